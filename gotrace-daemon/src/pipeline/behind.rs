//! Who a process leaves behind when it ends: what must be kept of it while it runs, as nothing of its memory
//! can be read afterwards.
//!
//! Kept are the families of goroutines, so that the test is found that made one's ancestor; and the last
//! snapshot of all stacks, taken every [`EVERY`] or more seldom where that takes long. A goroutine's stack
//! at the end is that of the snapshot if its last wait began before; otherwise it is not known.

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
use hashbrown::HashMap;

use super::{LineConfig, Traced};
use crate::{
    gobin::{Binary, EntryKind},
    leak::{Finding, Left, is_machinery, left_behind, test_function},
    process::Clock,
    sink::model::{Interval, Levels},
    snapshot::{Live, Names, Options, Snapshot, SnapshotError, StackFrame},
};

/// Time between two looks at stacks.
const EVERY: Duration = Duration::from_millis(200);
/// And in durations of a look.
const REST: u32 = 10;
/// Births that are kept, and goroutines whose test is.
const MAX_KEPT: usize = 1 << 20;
/// Generations that are looked through for a test.
const MAX_GENERATIONS: usize = 64;

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
    /// Goroutines that were alive, all of them.
    pub alive: u64,
    /// Of those, the ones of which it is not known where they came from, so that they were not judged.
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
        let options = Options { stacks: true, waits: false, labels: false, arguments: false };
        thread::Builder::new()
            .name("gotrace-stacks".into())
            .spawn(move || while wanted.recv().is_ok() && results.send(live.take(options)).is_ok() {})?;
        Ok(Self { orders, results: taken, ordered: None })
    }
}

/// What is kept of a process.
pub(super) struct Behind {
    names: Names,
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
    !tool && (is_command || binary.function_address("testing.tRunner").is_some())
}

impl Behind {
    /// `None` where the process is not judged.
    pub fn new(
        config: &LineConfig,
        binary: &Arc<Binary>,
        file: Option<Arc<std::fs::File>>,
        is_command: bool,
    ) -> Option<Self> {
        (config.left_behind != LeftBehind::Nobody && is_judged(binary, is_command)).then(|| Self {
            names: Names::new(Arc::clone(binary), 0, file),
            looks: None,
            failed: false,
            next: Instant::now(),
            last: None,
            families: HashMap::default(),
            tests: HashMap::default(),
            waiting: HashMap::default(),
        })
    }

    /// A goroutine was made.
    pub fn born(&mut self, goid: u64, parent: u64, entry_pc: u64, created_pc: u64) {
        if self.families.len() < MAX_KEPT {
            self.families.insert(goid, Family { parent, entry_pc, created_pc });
        }
    }

    /// A goroutine waited, with these return addresses on its stack.
    pub fn waited(&mut self, goid: u64, frames: &[u64]) {
        if !self.tests.contains_key(&goid) && self.tests.len() < MAX_KEPT {
            let frames: Vec<StackFrame> = frames.iter().map(|pc| StackFrame::returning_to(*pc)).collect();
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
        let live = Live::new(traced.target(), Arc::clone(traced.symbolizer.shared_binary()))?;
        self.names = live.names(traced.target());
        self.looks = Some(Looks::start(live)?);
        Ok(())
    }

    fn cannot(&mut self, traced: &Traced, error: &dyn std::fmt::Display) {
        if traced.has_ended() {
            return;
        }
        self.failed = true;
        tracing::warn!(pid = traced.pid(), %error, "the stacks of goroutines that are left behind will not be known");
    }

    fn take_in(&mut self, snapshot: Snapshot) {
        for goroutine in &snapshot.goroutines {
            let goid = goroutine.goid;
            self.families.entry(goid).or_insert(Family {
                parent: goroutine.parent_goid.unwrap_or(0),
                entry_pc: goroutine.entry_pc,
                created_pc: goroutine.created_pc,
            });
            if !goroutine.is_system() && !self.tests.contains_key(&goid) && self.tests.len() < MAX_KEPT {
                let frames = snapshot.frames(goroutine).to_vec();
                self.remember_test(goid, &frames);
            }
        }
        self.last = Some(snapshot);
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
            let file = traced.target().executable_file().try_clone().ok().map(Arc::new);
            let binary = Arc::clone(traced.symbolizer.shared_binary());
            self.names = Names::new(binary, traced.symbolizer.bias(), file);
        }
        let mut left = Vec::new();
        let (mut alive, mut unknown) = (0, 0);
        let living: Vec<_> = traced.table.living().collect();
        for g in living {
            alive += 1;
            // The main goroutine ends with the program.
            if g.goid == 1 {
                continue;
            }
            let Some(family) = self.families.get(&g.goid).copied() else {
                unknown += 1;
                continue;
            };
            let bias = traced.symbolizer.bias();
            let kind = traced.binary().entry_kind(family.entry_pc.wrapping_sub(bias));
            let entry = self.names.entry(family.entry_pc).map_or("", |f| &f.function);
            if matches!(kind, Some(EntryKind::System | EntryKind::Runner)) || is_machinery(entry) {
                continue;
            }
            let Some(&(parked_ns, wait_reason, false)) = self.waiting.get(&g.goid) else { continue };
            let stack = self.last.as_ref().and_then(|snapshot| {
                let goroutine = snapshot.goroutine(g.goid).filter(|_| parked_ns < snapshot.monotonic_ns)?;
                Some(snapshot.frames(goroutine).to_vec()).filter(|s| !s.is_empty())
            });
            left.push(Left {
                goid: g.goid,
                entry_pc: family.entry_pc,
                created_pc: family.created_pc,
                birth_ns: g.birth_ns,
                parked_ns,
                wait_reason,
                stack,
                test: self.test_of(g.goid),
            });
        }
        LeftProcess {
            pid: traced.pid(),
            executable: traced.target().executable.display().to_string(),
            go_version: traced.binary().go_version().text.clone(),
            time_unix_nano: traced.clock.unix_nano(end_ns),
            alive,
            unknown,
            lossy: !last.lost.is_empty(),
            levels: last.levels.clone(),
            findings: left_behind(end_ns, left),
            names: self.names,
        }
    }
}
