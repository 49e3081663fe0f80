//! What surrounds the processes of the node (container, pod, task, cloud), told to the line as it becomes
//! known.
//!
//! Of those that are traced the line tells. Rules about pods and containers need it of the others too: then
//! every process of the node is attended to, found in `/proc` every [`LOOK_EVERY`]. A changed configuration has
//! everybody asked anew.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle};

use crate::config::Config;
use gotrace_agent::pipeline::{Control, ProcessEvent};
use gotrace_metadata::{Attendant, EnrichConfig, Enricher};
use gotrace_process::{all_processes, start_ticks};

/// Time between two looks for processes that rules are to judge by what surrounds them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Pid and start of a process.
type Process = (u32, u64);

/// Who is attended to. Cheap to clone; empty until [`Self::follow`].
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Whom it asks, and as which configuration says.
    attendant: Option<(Attendant, EnrichConfig)>,
    traced: HashSet<Process>,
    /// All processes of the node, where rules judge by what surrounds them, and who looks for them.
    all: HashSet<Process>,
    looking: Option<JoinHandle<()>>,
}

impl Surroundings {
    /// Asks as the configuration says from now on, and tells the line.
    pub fn follow(&self, config: &Config, control: &Control, runtime: &Handle) {
        let mut state = self.state();
        let asked = config.enrich();
        if state.attendant.as_ref().is_none_or(|(_, before)| *before != asked) {
            let control = control.clone();
            let tell = move |pid, start, attributes| control.metadata(pid, start, attributes);
            let attendant = Attendant::start(Enricher::start(&asked, runtime), runtime, tell);
            for (pid, start) in state.traced.union(&state.all) {
                attendant.began(*pid, *start);
            }
            state.attendant = Some((attendant, asked));
        }
        match (config.judges_by_metadata(), state.looking.take()) {
            (true, None) => {
                let all = self.clone();
                state.looking = Some(runtime.spawn(async move {
                    loop {
                        all.look();
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                }));
            }
            (true, looking) => state.looking = looking,
            (false, Some(looking)) => {
                looking.abort();
                let others: Vec<Process> = state.all.difference(&state.traced).copied().collect();
                state.all.clear();
                others.into_iter().for_each(|process| state.ended(process));
            }
            (false, None) => {}
        }
    }

    /// A process came or went. Does not wait.
    pub fn tell(&self, event: &ProcessEvent<'_>) {
        let mut state = self.state();
        match event {
            ProcessEvent::Began(target) => {
                let process = (target.pid(), target.identity.start_ticks);
                state.traced.insert(process);
                state.began(process);
            }
            ProcessEvent::Ended(identity) => {
                let process = (identity.pid, identity.start_ticks);
                state.traced.remove(&process);
                state.ended(process);
            }
        }
    }

    /// Attends to processes that are new, and to none that is gone.
    fn look(&self) {
        let Ok(pids) = all_processes() else { return };
        let there: HashSet<Process> =
            pids.into_iter().filter_map(|pid| Some((pid, start_ticks(pid)?))).collect();
        let mut state = self.state();
        if state.looking.is_none() {
            return;
        }
        let before = std::mem::replace(&mut state.all, there);
        state.all.difference(&before).for_each(|process| state.began(*process));
        before.difference(&state.all).for_each(|process| state.ended(*process));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Sets and handles: a panic elsewhere leaves them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn began(&self, (pid, start): Process) {
        if let Some((attendant, _)) = &self.attendant {
            attendant.began(pid, start);
        }
    }

    fn ended(&self, (pid, start): Process) {
        if let Some((attendant, _)) = &self.attendant {
            attendant.ended(pid, start);
        }
    }
}
