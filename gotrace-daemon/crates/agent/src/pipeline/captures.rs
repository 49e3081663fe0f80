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
    handle::LineState,
    holds::Holds,
    in_hand::{InHand, Process},
    programs::Program,
    questions::Question,
    traced::Traced,
};
use gotrace_export::{
    api::{self, Answer, CaptureError, Held, Processes, Proof, Room, Wanted},
    contention::Waits,
    dump::{Captured, Mapped},
};
use gotrace_inspect::{
    examine::{WaitGraph, wait_graph},
    snapshot::{Live, Options, SnapshotError},
};
use gotrace_process::{ProcessError, Target, Watch};

/// Bytes that a goroutine takes while it is written down; and so many there is always room for.
const TAKEN_EACH: u64 = 320;
const ALWAYS: u64 = 1 << 17;
/// Frames of distinct stacks, of 8 bytes each: an eighth of what there is, and so many always.
const FRAMES_EACH: u64 = TAKEN_EACH / 8 / 8;
const ALWAYS_FRAMES: u64 = 1 << 20;
/// Goroutines that may be born while they are read, besides a quarter of them.
const BORN_MEANWHILE: u64 = 1024;

/// The processes that are traced. Cheap to clone.
#[derive(Clone)]
pub struct Captures(Arc<Inner>);

struct Inner {
    /// By pid.
    processes: Mutex<BTreeMap<u32, Arc<Known>>>,
    in_hand: InHand,
    shown: Arc<Mutex<LineState>>,
    /// Goroutines that others have been given room for.
    promised: Mutex<u64>,
    /// What the line is to answer.
    questions: Mutex<Vec<Question>>,
    holds: Holds,
}

/// Room for so many goroutines and frames, until this is dropped; whether others have some of it.
struct Promise {
    of: Arc<Inner>,
    most: u64,
    frames: u64,
    shared: bool,
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
    pub(super) fn new(in_hand: InHand, shown: Arc<Mutex<LineState>>) -> Self {
        let (processes, promised, questions) = (Mutex::default(), Mutex::default(), Mutex::default());
        let holds = Holds::default();
        Self(Arc::new(Inner { processes, in_hand, shown, promised, questions, holds }))
    }

    /// What was asked since this was last called.
    pub(super) fn questions(&self) -> Vec<Question> {
        std::mem::take(&mut *self.0.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What clients hold of processes.
    pub(super) fn holds(&self) -> &Holds {
        &self.0.holds
    }

    fn ask(&self, question: Question) {
        self.0.questions.lock().unwrap_or_else(PoisonError::into_inner).push(question);
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
                start_ticks: traced.target().identity.start_ticks,
                since_unix_nano: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                engine: traced.engine(),
                level: traced.level_name(),
                resource: Arc::clone(traced.resource()),
                recorded: false,
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

    /// Room for a process that lists so many goroutines, as far as there is memory.
    fn promise(&self, listed: u64) -> Promise {
        let state = *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let room = state.kept_limit.saturating_sub(state.kept_bytes).max(state.kept_limit / 8) / TAKEN_EACH;
        let wanted = listed.saturating_add(listed / 4).saturating_add(BORN_MEANWHILE);
        let mut promised = self.0.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let most = wanted.min(room.saturating_sub(*promised).max(ALWAYS));
        let shared = *promised > 0;
        *promised = promised.saturating_add(most);
        let frames = room.saturating_mul(FRAMES_EACH).max(ALWAYS_FRAMES);
        Promise { of: Arc::clone(&self.0), most, frames, shared }
    }

    /// Has this read a process that is traced, with the memory that was set aside for it: so many bytes.
    ///
    /// # Errors
    /// [`CaptureError`]
    pub fn look<T>(
        &self,
        pid: u32,
        look: impl FnOnce(&Target, &mut Live, u64) -> T,
    ) -> Result<(T, Room), CaptureError> {
        self.read(pid, |_, target, live, most| Ok(look(target, live, most.saturating_mul(TAKEN_EACH))))
    }

    /// Reads a process that is traced. `read` is also told for how many goroutines there is room.
    fn read<T>(
        &self,
        pid: u32,
        read: impl FnOnce(&Known, &Target, &mut Live, u64) -> Result<T, SnapshotError>,
    ) -> Result<(T, Room), CaptureError> {
        let known = self.lock().get(&pid).map(Arc::clone).ok_or(CaptureError::NotTraced)?;
        let _held = self.0.in_hand.take(known.process);
        let captured = known.capture(&|| self.check(&known), |listed| self.promise(listed), read);
        // Of a process that ends or executes a program meanwhile nothing is to be believed.
        self.check(&known)?;
        captured
    }

    /// Why this is not to be believed, where the process is not any more what it was.
    fn check(&self, known: &Arc<Known>) -> Result<(), CaptureError> {
        let pid = known.traced.pid;
        let now = self.lock().get(&pid).map(Arc::clone);
        if known.watch.has_ended() || now.is_none() {
            return Err(CaptureError::NotTraced);
        }
        if known.watch.has_executed_another_program() || now.is_some_and(|now| !Arc::ptr_eq(&now, known)) {
            return Err(CaptureError::Later(format!(
                "process {pid} executed another program: try again in a moment"
            )));
        }
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised = self.of.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.most);
    }
}

impl Processes for Captures {
    fn traced(&self) -> Vec<api::Traced> {
        self.lock().values().map(|known| known.traced.clone()).collect()
    }

    fn find(&self, pid: u32) -> Option<api::Traced> {
        self.lock().get(&pid).map(|known| known.traced.clone())
    }

    fn capture(&self, pid: u32) -> Result<(Captured, Room), CaptureError> {
        self.read(pid, |known, target, live, _| known.read(target, live, false))
    }

    fn graph(&self, pid: u32) -> Result<(Captured, WaitGraph, Room), CaptureError> {
        let read = |known: &Known, target: &Target, live: &mut Live, most: u64| {
            let captured = known.read(target, live, true)?;
            let graph = wait_graph(live, &captured.snapshot, most.saturating_mul(TAKEN_EACH))?;
            Ok((captured, graph))
        };
        let ((captured, graph), room) = self.read(pid, read)?;
        Ok((captured, graph, room))
    }

    fn hold(&self, pid: u32, wanted: Wanted) -> Result<Held, CaptureError> {
        let known = self.lock().get(&pid).map(Arc::clone).ok_or(CaptureError::NotTraced)?;
        Ok(Box::new(self.0.holds.hold(known.process, wanted)))
    }

    fn waits(&self, pid: u32, answer: Answer<Waits>) {
        self.ask(Question::Waits(pid, answer));
    }

    fn proof(&self, pid: u32, fresh: bool, answer: Answer<Proof>) {
        self.ask(Question::Proof(pid, fresh, answer));
    }
}

impl Known {
    fn capture<T>(
        &self,
        check: &dyn Fn() -> Result<(), CaptureError>,
        promise: impl FnOnce(u64) -> Promise,
        read: impl FnOnce(&Self, &Target, &mut Live, u64) -> Result<T, SnapshotError>,
    ) -> Result<(T, Room), CaptureError> {
        let pid = self.traced.pid;
        let failed = |error| error_of(pid, &error);
        let target = Target::open(pid).map_err(|e| failed(e.into()))?;
        // That this is it is known only now.
        if (target.identity.pid, target.identity.start_ticks) != self.process {
            return Err(CaptureError::NotTraced);
        }
        check()?;
        let mut live = Live::new(&target, Arc::clone(&self.program.binary)).map_err(failed)?;
        let listed = live.listed();
        let _alone = alone(listed);
        let promise = promise(listed);
        live.set_most(promise.most);
        live.set_most_frames(promise.frames);
        let captured = read(self, &target, &mut live, promise.most).map_err(|error| match error {
            SnapshotError::TooMany { count, .. } if promise.shared => CaptureError::Later(format!(
                "its {count} goroutines are too many for the memory that is left while other processes are read: try again \
                 in a moment"
            )),
            error => failed(error),
        })?;
        Ok((captured, Box::new(promise)))
    }

    /// `waits`: with what goroutines wait on.
    fn read(&self, target: &Target, live: &mut Live, waits: bool) -> Result<Captured, SnapshotError> {
        let snapshot = live.take(Options { waits, ..Options::default() })?;
        if let Some(warning) = live.warning() {
            tracing::debug!(pid = self.traced.pid, "{warning}");
        }
        let mapping = target.executable_mappings()?.into_iter().find(|m| m.executable);
        Ok(Captured {
            snapshot,
            names: live.names(target),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_share_the_memory_that_there_is() {
        let state = LineState { kept_limit: 320 << 20, kept_bytes: 0, ..LineState::default() };
        let captures = Captures::new(InHand::default(), Arc::new(Mutex::new(state)));
        let small = captures.promise(100);
        assert_eq!((small.most, small.shared), (100 + 25 + BORN_MEANWHILE, false));
        let large = captures.promise(1 << 30);
        assert_eq!((large.most, large.shared), ((1 << 20) - small.most, true), "the rest");
        assert_eq!(captures.promise(u64::MAX).most, ALWAYS);
        drop((small, large));
        let all = captures.promise(u64::MAX);
        assert_eq!((all.most, all.frames, all.shared), (1 << 20, 5 << 20, false));
    }
}
