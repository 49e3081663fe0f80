//! The exit check: which goroutines a process leaves behind when it ends.
//!
//! The process's memory is pinned from its beginning ([`PinnedMemory`]), so that all of its goroutines, their stacks
//! and what they wait on are read when it has ended, as they were then. What memory does not tell is kept while it
//! runs: when goroutines were made and began to wait, and their families, so that the test is found that made one's
//! ancestor. Where memory cannot be pinned, events alone tell: then the stack of a goroutine is that of the last
//! snapshot, taken every [`EVERY`] or more seldom where that takes long, if its last wait began before it; and whether
//! it waits for a timer is not known.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::{LineConfig, Traced, traced::local_file};
use gotrace_go::{Binary, EntryKind};
use gotrace_inspect::{
    heap::{Proven, Prover},
    leak::{AtExit, Doing, Finding, Left, Reason, is_machinery, left_behind, test_function},
    snapshot::{
        Engine, Goroutine, Live, Names, ObjectKind, Options, Snapshot, SnapshotError, StackFrame, Status,
        Wait, WaitObject,
    },
};
use gotrace_model::{Interval, Levels};
use gotrace_process::{Clock, Executable, PinnedMemory, Watch};

/// Time between two looks at stacks.
const EVERY: Duration = Duration::from_millis(200);
/// And in durations of a look.
const REST: u32 = 10;
/// Births that are kept, and goroutines whose test is.
const MAX_KEPT: usize = 1 << 20;
/// Generations that are looked through for a test.
const MAX_GENERATIONS: usize = 64;
/// The main goroutine.
const MAIN: u64 = 1;
/// So long the last thread of a process may take to end.
const LAST_THREAD: Duration = Duration::from_secs(1);
/// A goroutine that accepts connections: none that comes ends its wait for good, only closing does.
const ACCEPTS: &str = "internal/poll.(*FD).Accept";

/// Whose goroutines are told that are left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeftBehind {
    /// Nobody's.
    #[default]
    Nobody,
    /// The command's, and those of programs that run tests; other children are not traced, so that there is
    /// time for those.
    Tests,
    /// The same, and all children are traced.
    Everybody,
}

impl LeftBehind {
    /// Whether a child with this executable is traced. `go test` names its programs so.
    pub(super) fn follows(self, executable: &Path) -> bool {
        self != Self::Tests || executable.extension().is_some_and(|e| e == "test")
    }
}

/// What a process left behind.
pub struct LeftProcess {
    /// The process.
    pub pid: u32,
    /// Its executable.
    pub executable: String,
    /// Its version of Go.
    pub go_version: String,
    /// When it ended, since Unix epoch.
    pub time_unix_nano: u64,
    /// Import path of its main package, where its build information tells; that of a test program ends in `.test`.
    pub package: Option<String>,
    /// Whether it ran tests.
    pub is_test: bool,
    /// Goroutines that were alive; by memory without the runtime's own.
    pub alive: u64,
    /// Of those, the ones that may have been about to end, so that they were not judged.
    pub not_judged: u64,
    /// Of those, the ones of which it is not known where they came from, so that they were not judged either.
    pub unknown: u64,
    /// Whether events were lost, so that some may have ended.
    pub lossy: bool,
    /// At which levels it was traced: below `full` neither births nor waits are all seen.
    pub levels: Levels,
    /// The findings.
    pub findings: Vec<Finding>,
    /// Names of its addresses.
    pub names: Names,
}

/// Who made a goroutine, and what it runs.
#[derive(Clone, Copy, Debug)]
struct Family {
    parent: u64,
    entry_pc: u64,
    created_pc: u64,
}

/// Looks at stacks, on a thread of their own: the ring does not wait for them.
struct Looks {
    orders: Sender<()>,
    results: Receiver<Result<Snapshot, SnapshotError>>,
    /// When the one was ordered that is under way.
    ordered: Option<Instant>,
}

impl Looks {
    fn start(mut live: Live) -> io::Result<Self> {
        let (orders, wanted) = channel();
        let (results, taken) = channel();
        let options = Options { stacks: true, waits: false, labels: false, arguments: false, callees: false };
        thread::Builder::new()
            .name("gotrace-stacks".into())
            .spawn(move || while wanted.recv().is_ok() && results.send(live.take(options)).is_ok() {})?;
        Ok(Self { orders, results: taken, ordered: None })
    }
}

/// What is kept of a process.
pub(super) struct Behind {
    names: Names,
    /// `None` until it runs its program, and where that is not allowed.
    pinned: Option<PinnedMemory>,
    is_test: bool,
    looks: Option<Looks>,
    failed: bool,
    next: Instant,
    last: Option<Snapshot>,
    families: HashMap<u64, Family, FixedState>,
    tests: HashMap<u64, String, FixedState>,
    /// Those that wait at the end: since when, what for, woken or not.
    waiting: HashMap<u64, (u64, u8, bool), FixedState>,
}

/// Whether it is worth knowing what this program leaves behind: one that runs tests, or, if it is the
/// command itself, any but Go's own tools.
fn is_judged(binary: &Binary, is_command: bool) -> bool {
    let tool = binary.build().path.as_deref().is_some_and(|p| p.starts_with("cmd/"));
    !tool && (is_command || is_test(binary))
}

/// Whether it runs tests.
pub(super) fn is_test(binary: &Binary) -> bool {
    binary.function_address("testing.tRunner").is_some()
}

impl Behind {
    /// `None` where the process is not judged.
    pub fn new(
        config: &LineConfig,
        binary: &Arc<Binary>,
        file: Option<Arc<Executable>>,
        is_command: bool,
    ) -> Option<Self> {
        (config.left_behind != LeftBehind::Nobody && is_judged(binary, is_command)).then(|| Self {
            names: Names::new(Arc::clone(binary), 0, file),
            pinned: None,
            is_test: is_test(binary),
            looks: None,
            failed: false,
            next: Instant::now(),
            last: None,
            families: HashMap::default(),
            tests: HashMap::default(),
            waiting: HashMap::default(),
        })
    }

    /// It runs its program: its memory is to be read when it has ended.
    pub fn pin(&mut self, watch: &Watch) {
        match PinnedMemory::new(watch) {
            Ok(pinned) => self.pinned = Some(pinned),
            Err(error) => tracing::info!(
                pid = watch.pid(),
                %error,
                "cannot pin its memory for the exit check: goroutines that block shortly before exit are not judged, and their \
                 stacks are unknown"
            ),
        }
    }

    /// A goroutine was made.
    pub fn born(&mut self, goid: u64, parent: u64, entry_pc: u64, created_pc: u64) {
        if self.families.len() < MAX_KEPT {
            self.families.insert(goid, Family { parent, entry_pc, created_pc });
        }
    }

    /// A goroutine waited, with these return addresses on its stack.
    pub fn waited(&mut self, goid: u64, frames: impl Iterator<Item = u64>) {
        if !self.tests.contains_key(&goid) && self.tests.len() < MAX_KEPT {
            let frames: Vec<StackFrame> = frames.map(StackFrame::returning_to).collect();
            self.remember_test(goid, &frames);
        }
    }

    fn remember_test(&mut self, goid: u64, frames: &[StackFrame]) {
        let stack = self.names.stack(frames);
        let test = stack.iter().rev().find_map(|f| test_function(&f.frame.function));
        if let Some(test) = test.map(str::to_owned) {
            self.tests.insert(goid, test);
        }
    }

    /// A new reading of who waits begins.
    pub fn begin_waits(&mut self) {
        self.waiting.clear();
    }

    /// A goroutine waits.
    pub fn waits(&mut self, goid: u64, since_ns: u64, reason: u8, woken: bool) {
        self.waiting.insert(goid, (since_ns, reason, woken));
    }

    /// Has the stacks looked at if it is time, and takes in what was seen.
    pub fn look(&mut self, traced: &mut Traced) {
        if self.failed {
            return;
        }
        let now = Instant::now();
        let Some(looks) = &mut self.looks else {
            if now >= self.next
                && let Err(error) = self.begin_looks(traced)
            {
                self.cannot(traced, &*error);
            }
            return;
        };
        let Some(ordered) = looks.ordered else {
            if now >= self.next {
                // Refused when the thread panicked, and has said so.
                self.failed = looks.orders.send(()).is_err();
                looks.ordered = Some(now);
            }
            return;
        };
        let taken = match looks.results.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {
                self.failed = true;
                return;
            }
            Ok(taken) => taken,
        };
        looks.ordered = None;
        match taken {
            Ok(snapshot) => {
                let took = Duration::from_nanos(snapshot.duration_ns);
                self.next = ordered + EVERY.max(took * REST);
                self.take_in(snapshot);
            }
            // It has not begun, or has ended: the next look will tell, or there is none.
            Err(_) if self.last.is_none() || traced.has_ended() => self.next = now + EVERY / 10,
            Err(error) => self.cannot(traced, &error),
        }
    }

    fn begin_looks(&mut self, traced: &Traced) -> Result<(), Box<dyn std::error::Error>> {
        let live = Live::new(traced.target(), Arc::clone(traced.tracee.symbolizer().shared_binary()))?;
        self.names = live.names(traced.target());
        self.looks = Some(Looks::start(live)?);
        Ok(())
    }

    fn cannot(&mut self, traced: &Traced, error: &dyn std::fmt::Display) {
        if traced.has_ended() {
            return;
        }
        self.failed = true;
        tracing::warn!(pid = traced.pid(), %error, "no stacks for goroutines leaked at exit");
    }

    fn take_in(&mut self, snapshot: Snapshot) {
        self.learn(&snapshot);
        self.last = Some(snapshot);
    }

    /// Takes in what a snapshot tells of families and tests.
    fn learn(&mut self, snapshot: &Snapshot) {
        for goroutine in &snapshot.goroutines {
            let goid = goroutine.goid;
            let Self { families, names, .. } = self;
            families.entry(goid).or_insert_with(|| Family {
                parent: goroutine.parent_goid.unwrap_or(0),
                entry_pc: names.runs_entry(goroutine.entry_pc, snapshot.frames(goroutine)),
                created_pc: goroutine.created_pc,
            });
            if !goroutine.is_system() && !self.tests.contains_key(&goid) && self.tests.len() < MAX_KEPT {
                let frames = snapshot.frames(goroutine).to_vec();
                self.remember_test(goid, &frames);
            }
        }
    }

    /// The test that made a goroutine or one of its ancestors.
    fn test_of(&mut self, goid: u64) -> Option<String> {
        let mut at = goid;
        for _ in 0..MAX_GENERATIONS {
            if let Some(test) = self.tests.get(&at) {
                return Some(test.clone());
            }
            let family = *self.families.get(&at)?;
            let made = self.names.created_by(family.created_pc);
            if let Some(test) = made.iter().find_map(|f| test_function(&f.function)) {
                return Some(test.to_owned());
            }
            let entry = self.names.entry(family.entry_pc);
            if let Some(test) = entry.and_then(|f| test_function(&f.function)) {
                return Some(test.to_owned());
            }
            at = family.parent;
        }
        None
    }

    /// Judges a process that has ended.
    pub fn conclude(mut self, traced: &Traced, last: &Interval) -> LeftProcess {
        let end_ns = Clock::now_monotonic_ns();
        if self.looks.is_none() {
            let file = local_file(traced.target());
            let binary = Arc::clone(traced.tracee.symbolizer().shared_binary());
            self.names = Names::new(binary, traced.tracee.symbolizer().bias(), file);
        }
        let births: HashMap<u64, Option<u64>, FixedState> =
            traced.tracee.table().living().map(|g| (g.goid, g.birth_ns)).collect();
        let (alive, unknown, AtExit { findings, not_judged }) = match self.as_it_was(traced) {
            Some((pinned, snapshot)) => {
                self.learn(&snapshot);
                let mut left = self.left_in_memory(&snapshot, &births);
                let mut at_exit = left_behind(end_ns, left.clone());
                if at_exit.not_judged > 0 {
                    let unreachable = unreachable(traced, &pinned);
                    left.iter_mut().for_each(|l| l.unreachable = unreachable.contains(&l.goid));
                    at_exit = left_behind(end_ns, left);
                }
                (snapshot.counts.goroutines.saturating_sub(snapshot.counts.system), 0, at_exit)
            }
            None => {
                let (left, unknown) = self.left_by_events(traced, &births);
                (births.len() as u64, unknown, left_behind(end_ns, left))
            }
        };
        LeftProcess {
            pid: traced.pid(),
            executable: traced.target().executable.display().to_string(),
            go_version: traced.binary().go_version().text.clone(),
            time_unix_nano: traced.tracee.clock().unix_nano(end_ns),
            package: traced.binary().build().path.clone(),
            is_test: self.is_test,
            alive,
            not_judged,
            unknown,
            lossy: !last.lost.is_empty(),
            levels: last.levels.clone(),
            findings,
            names: self.names,
        }
    }

    /// Its memory and its goroutines as they were when it ended; `None` where memory was not pinned.
    fn as_it_was(&mut self, traced: &Traced) -> Option<(PinnedMemory, Snapshot)> {
        let pinned = self.pinned.take()?;
        if !traced.bias_known || !traced.watch.wait_timeout(LAST_THREAD) {
            return None;
        }
        let binary = Arc::clone(traced.tracee.symbolizer().shared_binary());
        let bias = traced.tracee.symbolizer().bias();
        let options = Options { stacks: true, waits: true, labels: false, arguments: false, callees: false };
        match Engine::new(binary, bias).and_then(|mut engine| engine.take(&pinned, options)) {
            Ok(snapshot) => Some((pinned, snapshot)),
            Err(error) => {
                tracing::debug!(pid = traced.pid(), %error, "cannot read its goroutines at exit");
                None
            }
        }
    }

    /// Those that were alive, by memory.
    fn left_in_memory(
        &mut self,
        snapshot: &Snapshot,
        births: &HashMap<u64, Option<u64>, FixedState>,
    ) -> Vec<Left> {
        let mut left = Vec::new();
        for g in &snapshot.goroutines {
            // The main goroutine ends with the program.
            let entry_pc = self.families.get(&g.goid).map_or(g.entry_pc, |family| family.entry_pc);
            if g.goid == MAIN || g.is_system() || !self.is_own(entry_pc) {
                continue;
            }
            let stack = snapshot.frames(g).to_vec();
            let waits = snapshot.waits_of(g).iter().filter_map(|w| Some((*w, *snapshot.object(w.object)?)));
            let waits_on: Vec<(Wait, WaitObject)> = waits.collect();
            let doing = self.doing(g, &stack, &waits_on);
            let since = self.waiting.get(&g.goid).map(|&(since, ..)| since);
            left.push(Left {
                goid: g.goid,
                entry_pc,
                created_pc: g.created_pc,
                birth_ns: births.get(&g.goid).copied().flatten(),
                doing,
                parked_ns: since.filter(|_| doing != Doing::Runs),
                wait_reason: g.status.is_waiting().then_some(g.wait_reason),
                stack: Some(stack).filter(|s| !s.is_empty()),
                waits_on,
                unreachable: false,
                test: self.test_of(g.goid),
            });
        }
        left
    }

    fn doing(&mut self, g: &Goroutine, stack: &[StackFrame], waits_on: &[(Wait, WaitObject)]) -> Doing {
        match g.status {
            Status::Waiting | Status::Leaked => {}
            Status::Syscall => return Doing::WakesByItself,
            _ => return Doing::Runs,
        }
        let reasons = self.names.binary().wait_reasons();
        let reason = Reason::from_name(reasons.get(usize::from(g.wait_reason)).copied().unwrap_or_default());
        let has_timer = waits_on.iter().any(|(_, o)| o.timer || o.kind == ObjectKind::Timer);
        match reason {
            Reason::Io => {
                let stack = self.names.stack(stack);
                let accepts = stack.iter().any(|f| f.frame.function == ACCEPTS);
                if accepts { Doing::WaitsForOthers } else { Doing::WakesByItself }
            }
            Reason::Receive | Reason::Select if has_timer => Doing::WakesByItself,
            // What it waits on could not be read.
            Reason::Receive | Reason::Select if waits_on.is_empty() => Doing::MayHaveTimer,
            Reason::NoCases => Doing::WaitsForOthers,
            reason if reason.is_for_others() => Doing::WaitsForOthers,
            _ => Doing::WakesByItself,
        }
    }

    /// Those that were alive, by events, and how many are unknown besides.
    fn left_by_events(
        &mut self,
        traced: &Traced,
        births: &HashMap<u64, Option<u64>, FixedState>,
    ) -> (Vec<Left>, u64) {
        let (mut left, mut unknown) = (Vec::new(), 0);
        for (&goid, &birth_ns) in births {
            if goid == MAIN {
                continue;
            }
            let Some(family) = self.families.get(&goid).copied() else {
                unknown += 1;
                continue;
            };
            if !self.is_own(family.entry_pc) {
                continue;
            }
            let wait = self.waiting.get(&goid).filter(|(.., woken)| !woken);
            let doing = match wait.map(|&(_, reason, _)| Reason::from_name(&traced.tracee.reason(reason))) {
                None => Doing::Runs,
                Some(Reason::Receive | Reason::Select) => Doing::MayHaveTimer,
                Some(Reason::NoCases) => Doing::WaitsForOthers,
                Some(reason) if reason.is_for_others() => Doing::WaitsForOthers,
                Some(_) => Doing::WakesByItself,
            };
            let stack = wait.zip(self.last.as_ref()).and_then(|(&(since, ..), snapshot)| {
                let goroutine = snapshot.goroutine(goid).filter(|_| since < snapshot.monotonic_ns)?;
                Some(snapshot.frames(goroutine).to_vec()).filter(|s| !s.is_empty())
            });
            left.push(Left {
                goid,
                entry_pc: family.entry_pc,
                created_pc: family.created_pc,
                birth_ns,
                doing,
                parked_ns: wait.map(|&(since, ..)| since),
                wait_reason: wait.map(|&(_, reason, _)| reason),
                stack,
                waits_on: Vec::new(),
                unreachable: false,
                test: self.test_of(goid),
            });
        }
        (left, unknown)
    }

    /// Whether goroutines with this entry are the program's.
    fn is_own(&mut self, entry_pc: u64) -> bool {
        let link_time = entry_pc.wrapping_sub(self.names.bias());
        let kind = self.names.binary().entry_kind(link_time);
        let entry = self.names.entry(entry_pc).map_or("", |f| &f.function);
        !matches!(kind, Some(EntryKind::System | EntryKind::Runner)) && !is_machinery(entry)
    }
}

/// Goroutines of a process that has ended that nothing led to which could have run. One pass over the heap tells all of
/// them, as nothing moves any more.
fn unreachable(traced: &Traced, pinned: &PinnedMemory) -> HashSet<u64, FixedState> {
    let binary = Arc::clone(traced.tracee.symbolizer().shared_binary());
    let marked = Prover::new(binary, traced.tracee.symbolizer().bias())
        .and_then(|mut prover| prover.pass(pinned).map(|p| p.unreachable.iter().map(Proven::goid).collect()));
    marked.unwrap_or_else(|error| {
        tracing::debug!(pid = traced.pid(), %error, "cannot scan its heap at exit");
        HashSet::default()
    })
}
