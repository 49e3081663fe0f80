//! What surrounds the processes of the node (container, pod, task, cloud), told to the line as it becomes
//! known.
//!
//! Of those that are traced the line tells. Rules about pods and containers need it of the others too: then
//! every process of the node is attended to, found in `/proc` every [`LOOK_EVERY`].

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::runtime::Handle;

use crate::{
    config::Config,
    enrich::{Attendant, Enricher},
    pipeline::{Control, ProcessEvent},
    process::{all_processes, start_ticks},
};

/// Time between two looks for processes that rules are to judge by what surrounds them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who is attended to. Cheap to clone; empty until [`Self::start`].
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    attendant: Arc<OnceLock<Attendant>>,
}

impl Surroundings {
    /// Starts asking, and telling the line.
    pub fn start(&self, config: &Config, control: &Control, runtime: &Handle) {
        let enricher = Enricher::start(&config.enrich(), runtime);
        let control = control.clone();
        let tell = move |pid, start, attributes| control.metadata(pid, start, attributes);
        // Started once.
        let _ = self.attendant.set(Attendant::start(enricher, runtime, tell));
        if config.judges_by_metadata() {
            let all = self.clone();
            runtime.spawn(async move {
                let mut seen = HashSet::new();
                loop {
                    all.look(&mut seen);
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            });
        }
    }

    /// A process came or went. Does not wait.
    pub fn tell(&self, event: &ProcessEvent<'_>) {
        let Some(attendant) = self.attendant.get() else { return };
        match event {
            ProcessEvent::Began(target) => attendant.began(target.pid(), target.identity.start_ticks),
            ProcessEvent::Ended(identity) => attendant.ended(identity.pid, identity.start_ticks),
        }
    }

    /// Attends to processes that are new, and to none that is gone.
    fn look(&self, seen: &mut HashSet<(u32, u64)>) {
        let (Some(attendant), Ok(pids)) = (self.attendant.get(), all_processes()) else { return };
        let there: HashSet<(u32, u64)> =
            pids.into_iter().filter_map(|pid| Some((pid, start_ticks(pid)?))).collect();
        for (pid, start) in there.difference(seen) {
            attendant.began(*pid, *start);
        }
        for (pid, start) in seen.difference(&there) {
            attendant.ended(*pid, *start);
        }
        *seen = there;
    }
}
