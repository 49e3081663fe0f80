//! Reads traced processes for whoever asks beside the line: all goroutines with their stacks, at once.
//!
//! Input: processes that begin to be traced and end, and a pid that is asked for. Output: a snapshot, and names for it.
//! Nothing is read but what is traced, of the execution that is traced, within what others leave of `limits.memory`.
//! Whoever asks lends its thread.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    alone::alone,
    in_hand::{InHand, Process},
    node::NodeState,
    programs::Program,
    traced::Traced,
};
use gotrace_export::{
    api::{self, CaptureError, Processes},
    dump::{Captured, Mapped},
};
use gotrace_inspect::snapshot::{Live, Options, SnapshotError};
use gotrace_process::{ProcessError, Target, Watch};

/// Bytes that a goroutine takes while it is written down; and so many there is always room for.
const TAKEN_EACH: u64 = 320;
const ALWAYS: u64 = 1 << 17;

/// The processes that are traced. Cheap to clone.
#[derive(Clone)]
pub struct Captures(Arc<Inner>);

struct Inner {
    /// By pid.
    processes: Mutex<BTreeMap<u32, Arc<Known>>>,
    in_hand: InHand,
    shown: Arc<Mutex<NodeState>>,
}

/// A process that is traced.
struct Known {
    traced: api::Traced,
    process: Process,
    /// Tells whether it still runs what is traced.
    watch: Watch,
    program: Arc<Program>,
}

impl std::fmt::Debug for Captures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Captures").finish_non_exhaustive()
    }
}

impl Captures {
    /// `shown`: where the line shows what memory there is.
    pub(super) fn new(in_hand: InHand, shown: Arc<Mutex<NodeState>>) -> Self {
        Self(Arc::new(Inner { processes: Mutex::default(), in_hand, shown }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Known>>> {
        // Whole values: a panic elsewhere leaves none half made.
        self.0.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is traced from now on.
    pub(super) fn began(&self, traced: &Traced) {
        // One that cannot be watched has ended.
        let Ok(watch) = traced.target().watch() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let known = Known {
            traced: api::Traced {
                pid: traced.pid(),
                since_unix_nano: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                engine: traced.engine(),
                level: traced.level_name(),
                resource: Arc::clone(traced.resource()),
            },
            process: traced.process(),
            watch,
            program: Arc::clone(&traced.parsed().program),
        };
        self.lock().insert(traced.pid(), Arc::new(known));
    }

    /// It is not any more.
    pub(super) fn ended(&self, traced: &Traced) {
        let mut processes = self.lock();
        let own = |known: &Arc<Known>| known.traced.resource.process() == traced.resource().process();
        if processes.get(&traced.pid()).is_some_and(own) {
            processes.remove(&traced.pid());
        }
    }

    /// Goroutines that there is memory for.
    fn most(&self) -> u64 {
        let state = *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let room = state.kept_limit.saturating_sub(state.kept_bytes).max(state.kept_limit / 8);
        (room / TAKEN_EACH).max(ALWAYS)
    }
}

impl Processes for Captures {
    fn traced(&self) -> Vec<api::Traced> {
        self.lock().values().map(|known| known.traced.clone()).collect()
    }

    fn find(&self, pid: u32) -> Option<api::Traced> {
        self.lock().get(&pid).map(|known| known.traced.clone())
    }

    fn capture(&self, pid: u32) -> Result<Captured, CaptureError> {
        let known = self.lock().get(&pid).map(Arc::clone).ok_or(CaptureError::NotTraced)?;
        let _held = self.0.in_hand.take(known.process);
        let captured = known.capture(self.most());
        // Of a process that ends or executes a program meanwhile nothing is to be believed.
        if known.watch.has_ended() {
            return Err(CaptureError::NotTraced);
        }
        if known.watch.has_executed_another_program() {
            return Err(CaptureError::Later(format!(
                "process {pid} executed another program: try again in a moment"
            )));
        }
        captured.map_err(|error| error_of(pid, &error))
    }
}

impl Known {
    fn capture(&self, most: u64) -> Result<Captured, SnapshotError> {
        let target = Target::open(self.traced.pid)?;
        let mut live = Live::new(&target, Arc::clone(&self.program.binary))?;
        let _alone = alone(live.listed());
        live.set_most(most);
        let snapshot = live.take(Options { waits: false, ..Options::default() })?;
        if let Some(warning) = live.warning() {
            tracing::debug!(pid = self.traced.pid, "{warning}");
        }
        let mapping = target.executable_mappings()?.into_iter().find(|m| m.executable);
        Ok(Captured {
            snapshot,
            names: live.names(&target),
            executable: target.executable.display().to_string(),
            build_id: self.program.build_id.clone().unwrap_or_default(),
            mapping: mapping.map(|m| Mapped { start: m.start, end: m.end, file_offset: m.file_offset }),
        })
    }
}

fn error_of(pid: u32, error: &SnapshotError) -> CaptureError {
    let what = match error {
        SnapshotError::Process(ProcessError::Gone { .. } | ProcessError::Zombie { .. }) => {
            return CaptureError::NotTraced;
        }
        SnapshotError::Process(_) => error.to_string(),
        _ => format!("cannot read process {pid}: {error}"),
    };
    let what = match error.help() {
        Some(help) => format!("{what}: {help}"),
        None => what,
    };
    match error {
        SnapshotError::NotStarted | SnapshotError::TooMany { .. } => CaptureError::Later(what),
        _ => CaptureError::Failed(what),
    }
}
