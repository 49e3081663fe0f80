//! Takes snapshots: the list of all `g`s, the `g`s in batches sorted by address, their stacks, and a second
//! look at each before it is believed.

use std::{hash::BuildHasher as _, sync::Arc, thread};

use foldhash::fast::RandomState;

use super::{
    Goroutine, Options, Snapshot, SnapshotError,
    layout::{Layout, word},
    live_words::Maps,
    merge::merge,
    reader::Reader,
    semaphores::Semaphores,
};
use gotrace_go::{Allgs, Binary};
use gotrace_process::{Clock, ProcessError, ReadMemory};

/// Longest list that is believed: so many goroutines have 80 GB of stacks.
const MAX_ALLGS: u64 = 1 << 25;
/// Entries of the list for each goroutine that there is memory for: it keeps those that have ended, an address each.
const LISTED: u64 = 4;
/// `g`s that a check of the layout looks at.
const CHECKED: u64 = 256;
/// From so many `g`s on a second thread reads one half of them.
const TWO_THREADS: usize = 50_000;
/// On machines with at least so many processors: two readers on two processors would leave the target none
/// (measured: they add a millisecond to its longest pause, one reader adds nothing).
const FOR_TWO_THREADS: usize = 4;

/// Takes snapshots of one program in one process, and keeps what does not change between them.
#[derive(Debug)]
pub struct Engine {
    pub(super) binary: Arc<Binary>,
    pub(super) bias: u64,
    allgs: Allgs,
    pub(super) layout: Layout,
    /// One a thread.
    pub(super) readers: Vec<Reader>,
    /// How far the process's clock is ahead of gotrace's; `None` where it is not known.
    pub(super) clock_offset_ns: Option<i64>,
    /// Whether two read, however few goroutines and processors there are.
    always_two: bool,
    /// Whether the layout is known to be that of the process.
    settled: bool,
    warning: Option<String>,
    pub(super) maps: Maps,
    /// Where the functions of plugins are.
    pub(super) plugins: Vec<(u64, u64)>,
    /// Length and hash of the list of the last snapshot, and the list sorted.
    list: (usize, u64),
    sorted: Vec<u64>,
    /// Goroutines that there is memory for.
    most: u64,
    /// And frames of distinct stacks.
    most_frames: usize,
    hasher: RandomState,
}

impl Engine {
    /// For a program that is mapped with this bias (mapped address less link-time address).
    ///
    /// # Errors
    /// When the program does not tell what is needed.
    pub fn new(binary: Arc<Binary>, bias: u64) -> Result<Self, SnapshotError> {
        let layout = Layout::new(&binary)?;
        let allgs = binary.allgs().ok_or(SnapshotError::NoAllgs)?;
        Ok(Self {
            bias,
            allgs,
            readers: vec![Reader::new(Arc::clone(&binary), bias, layout)],
            layout,
            clock_offset_ns: None,
            always_two: false,
            settled: !binary.layout_is_extrapolated(),
            warning: None,
            maps: Maps::default(),
            plugins: Vec::new(),
            binary,
            list: (0, 0),
            sorted: Vec::new(),
            most: MAX_ALLGS,
            most_frames: usize::MAX,
            hasher: RandomState::default(),
        })
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Arc<Binary> {
        &self.binary
    }

    /// A process with more goroutines is refused.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most
    }

    /// From now on a process with more goroutines is refused.
    pub fn set_most(&mut self, goroutines: u64) {
        self.most = goroutines;
    }

    /// From now on all distinct stacks together keep no more frames; those beyond are counted as missing.
    pub fn set_most_frames(&mut self, frames: u64) {
        self.most_frames = usize::try_from(frames).unwrap_or(usize::MAX);
    }

    /// Refuses where there are more goroutines than there is memory for.
    pub(crate) fn bound(&self, found: usize, count: u64) -> Result<(), SnapshotError> {
        if found as u64 <= self.most {
            return Ok(());
        }
        Err(SnapshotError::TooMany { count, most: self.most })
    }

    /// Entries of the runtime's list of goroutines; 0 where that cannot be read.
    #[must_use]
    pub fn listed(&self, memory: &dyn ReadMemory) -> u64 {
        let mut bytes = [0; 8];
        let known = memory.read_at(self.allgs.length.wrapping_add(self.bias), &mut bytes);
        if matches!(known, Ok(true)) { u64::from_le_bytes(bytes) } else { 0 }
    }

    /// From now on two threads read, however few goroutines and processors there are: for whom time is all
    /// that counts, and for tests.
    pub fn always_use_two_readers(&mut self) {
        self.always_two = true;
    }

    /// Mapped address less link-time address.
    #[must_use]
    pub fn bias(&self) -> u64 {
        self.bias
    }

    /// What must be known before the snapshots are believed: which layout was taken for a version that is
    /// not known. Told after the first look.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Reads all goroutines. [`Snapshot::pid`] is left to the caller.
    ///
    /// # Errors
    /// When the memory cannot be read at all, or does not look like that of this program.
    pub fn take(&mut self, memory: &dyn ReadMemory, options: Options) -> Result<Snapshot, SnapshotError> {
        self.settle(memory)?;
        let clock = Clock::measure();
        let begin = Clock::now_monotonic_ns();
        let gs = self.list(memory, u64::MAX)?;
        let mut snapshot = Snapshot {
            monotonic_ns: begin,
            clock_offset_ns: self.clock_offset_ns,
            time_unix_nano: clock.unix_nano(begin),
            bias: self.bias,
            ..Snapshot::default()
        };
        snapshot.counts.allgs = gs.len() as u64;
        let gs = self.sorted(gs);
        snapshot.counts.implausible += snapshot.counts.allgs - gs.len() as u64;
        let read = self.read(memory, options, &gs, &mut snapshot);
        self.sorted = gs;
        read?;
        self.bound(snapshot.goroutines.len(), snapshot.counts.allgs)?;
        self.finish(&mut snapshot)?;
        snapshot.duration_ns = Clock::now_monotonic_ns().saturating_sub(begin);
        Ok(snapshot)
    }

    /// Whether memory looks like that of this program: looks at a few goroutines, for a check before
    /// anything is believed.
    ///
    /// # Errors
    /// When it does not, with what was found.
    pub fn check_layout(&mut self, memory: &dyn ReadMemory) -> Result<(), SnapshotError> {
        self.settle(memory)?;
        let options =
            Options { stacks: false, waits: false, labels: false, arguments: false, callees: false };
        self.look(memory, self.layout, options).map(drop)
    }

    /// Reads a few goroutines by a layout.
    fn look(
        &self,
        memory: &dyn ReadMemory,
        layout: Layout,
        options: Options,
    ) -> Result<(Snapshot, Reader), SnapshotError> {
        let mut gs = self.list(memory, CHECKED)?;
        gs.sort_unstable();
        gs.dedup();
        let mut snapshot = Snapshot::default();
        let mut reader = Reader::new(Arc::clone(&self.binary), self.bias, layout);
        reader.read(memory, options, &gs, &mut snapshot)?;
        self.finish(&mut snapshot)?;
        Ok((snapshot, reader))
    }

    /// Whether everything that a few goroutines point to is where a layout says.
    fn fits(&self, memory: &dyn ReadMemory, layout: Layout) -> Result<(), SnapshotError> {
        let options = Options { labels: false, ..Options::default() };
        let (snapshot, reader) = self.look(memory, layout, options)?;
        let counts = snapshot.counts;
        let count = |is: fn(&Goroutine) -> bool| snapshot.goroutines.iter().filter(|g| is(g)).count() as u64;
        for (wrong, of, what) in [
            // Few are calls of C threads; ids only grow.
            (count(|g| g.entry_pc == 0), counts.goroutines, "have no entry function"),
            (
                count(|g| g.parent_goid.is_some_and(|p| p >= g.goid)),
                counts.goroutines,
                "were created by a younger one",
            ),
            (
                counts.stacks_missing + counts.stacks_incomplete,
                counts.goroutines,
                "stacks cannot be followed",
            ),
            (counts.waits_unreadable, counts.goroutines, "wait for what cannot be read"),
            (reader.waits.odd_queues, snapshot.objects.len() as u64, "channels have half a queue"),
        ] {
            if wrong > of / 4 {
                return Err(self.implausible(format!("{wrong} of {of} {what}")));
            }
        }
        Ok(())
    }

    /// For a version that is newer than all that are known: the newest layout, if the process looks like
    /// that, else the only other one that it looks like.
    pub(super) fn settle(&mut self, memory: &dyn ReadMemory) -> Result<(), SnapshotError> {
        if self.settled {
            return Ok(());
        }
        let newest = match self.fits(memory, self.layout) {
            Err(e @ SnapshotError::Implausible { .. }) => e,
            other => {
                self.settled = other.is_ok();
                return other;
            }
        };
        let mut tried = vec![self.layout];
        let mut fitting = Vec::new();
        for (minor, offsets) in self.binary.offsets_by_class() {
            let Ok(layout) = Layout::of(&self.binary, minor, &offsets) else { continue };
            if tried.iter().any(|t| t.has_the_same_goroutines(&layout)) {
                continue;
            }
            tried.push(layout);
            match self.fits(memory, layout) {
                Ok(()) => fitting.push((minor, layout)),
                Err(SnapshotError::Implausible { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        match fitting[..] {
            [(minor, layout)] => {
                self.warning = Some(format!(
                    "unsupported version {}: its goroutines look like those of Go 1.{minor}, using that layout",
                    self.binary.go_version()
                ));
                self.layout = layout;
                self.readers = vec![Reader::new(Arc::clone(&self.binary), self.bias, layout)];
                self.settled = true;
                Ok(())
            }
            [] => Err(newest),
            _ => {
                let like: Vec<String> = fitting.iter().map(|(minor, _)| format!("Go 1.{minor}")).collect();
                Err(self.implausible(format!(
                    "they do not match the newest known version, and match several older ones: {}",
                    like.join(", ")
                )))
            }
        }
    }

    /// Reads the `g`s at these sorted addresses; very many with two threads, each one half, where the target
    /// keeps processors of its own.
    fn read(
        &mut self,
        memory: &dyn ReadMemory,
        options: Options,
        gs: &[u64],
        snapshot: &mut Snapshot,
    ) -> Result<(), ProcessError> {
        snapshot.goroutines.reserve_exact(gs.len().min(1 << 21));
        let spare = || thread::available_parallelism().is_ok_and(|n| n.get() >= FOR_TWO_THREADS);
        let two = self.always_two || gs.len() >= TWO_THREADS && spare();
        let waiters = match self.binary.semaphores() {
            Some(table) if options.waits && self.layout.locks_are_apart => {
                Arc::new(Semaphores::read(memory, &self.layout, table, self.bias)?)
            }
            _ => Arc::default(),
        };
        if two && self.readers.len() < 2 {
            self.readers.push(Reader::new(Arc::clone(&self.binary), self.bias, self.layout));
        }
        for reader in &mut self.readers {
            reader.most = usize::try_from(self.most).unwrap_or(usize::MAX);
            reader.most_frames = self.most_frames;
            reader.waits.waiters = Arc::clone(&waiters);
            reader.waits.now = snapshot.process_clock();
        }
        match &mut self.readers[..] {
            [first, second] if two => {
                let (low, high) = gs.split_at(gs.len() / 2);
                let mut other = Snapshot::default();
                let together = thread::scope(|scope| {
                    let reading = thread::Builder::new()
                        .name("snapshot".into())
                        .spawn_scoped(scope, || second.read(memory, options, high, &mut other));
                    first.read(memory, options, low, snapshot)?;
                    // Where no thread can be had, one does both.
                    let Ok(thread) = reading else { return Ok(false) };
                    thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)).map(|()| true)
                })?;
                if !together {
                    second.read(memory, options, high, &mut other)?;
                }
                merge(first, second, snapshot, other);
            }
            [first, ..] => first.read(memory, options, gs, snapshot)?,
            [] => {}
        }
        if let Some(first) = self.readers.first() {
            first.waits.merge(&mut snapshot.waits, &mut snapshot.objects);
        }
        self.readers.iter_mut().for_each(|reader| reader.waits.end());
        Ok(())
    }

    /// Sorts the list, each address once. The runtime only ever adds to it, so that what was sorted for the
    /// last snapshot need not be again.
    fn sorted(&mut self, gs: Vec<u64>) -> Vec<u64> {
        let mut sorted = std::mem::take(&mut self.sorted);
        let (len, hash) = self.list;
        let same = |known: &&[u64]| self.hasher.hash_one(known) == hash;
        let added = match gs.get(..len).filter(same) {
            Some(_) if !sorted.is_empty() => gs.get(len..).unwrap_or_default(),
            _ => {
                sorted.clear();
                &gs[..]
            }
        };
        if !added.is_empty() {
            sorted.extend_from_slice(added);
            // Stable sorting finds the part that is sorted.
            sorted.sort();
            sorted.dedup();
        }
        self.list = (gs.len(), self.hasher.hash_one(&gs[..]));
        sorted
    }

    fn implausible(&self, why: String) -> SnapshotError {
        SnapshotError::Implausible { version: self.binary.go_version().text.clone(), why }
    }

    /// Addresses of the first `g`s. The length is read before the pointer: the runtime publishes the array
    /// first, then its length, and never shrinks it (`runtime/proc.go`, `allgadd`).
    pub(super) fn list(&self, memory: &dyn ReadMemory, most: u64) -> Result<Vec<u64>, SnapshotError> {
        let variable = |address: u64, name: &str| {
            let address = address.wrapping_add(self.bias);
            let mut bytes = [0; 8];
            if memory.read_at(address, &mut bytes)? {
                Ok(u64::from_le_bytes(bytes))
            } else {
                Err(self.implausible(format!("cannot read {name} at {address:#x}")))
            }
        };
        let len = variable(self.allgs.length, "runtime.allglen")?;
        let pointer = variable(self.allgs.pointer, "runtime.allgptr")?;
        if len == 0 && pointer == 0 {
            return Err(SnapshotError::NotStarted);
        }
        if len == 0 || len > MAX_ALLGS || pointer == 0 || !pointer.is_multiple_of(8) {
            return Err(self.implausible(format!("its list of goroutines has {len} entries at {pointer:#x}")));
        }
        if len.min(most) > self.most.saturating_mul(LISTED) {
            return Err(SnapshotError::TooMany { count: len, most: self.most });
        }
        let mut left = usize::try_from(len.min(most)).unwrap_or(usize::MAX);
        let mut gs = Vec::new();
        let mut bytes = vec![0; left.saturating_mul(8).min(1 << 20)];
        let mut at = pointer;
        while left > 0 {
            let now = &mut bytes[..left.min(1 << 17) * 8];
            if !memory.read_at(at, now)? {
                if let Some(error) = memory.withheld(at, now.len()) {
                    return Err(error.into());
                }
                return Err(self.implausible(format!(
                    "its list of goroutines has {len} entries at {pointer:#x}, but cannot be read at {at:#x}"
                )));
            }
            gs.extend(now.chunks_exact(8).map(|b| word(b, 0)));
            at = at.wrapping_add(now.len() as u64);
            left -= now.len() / 8;
        }
        Ok(gs)
    }

    /// Sorts, and refuses what does not look like a Go runtime.
    fn finish(&self, snapshot: &mut Snapshot) -> Result<(), SnapshotError> {
        let Snapshot { goroutines, counts, .. } = snapshot;
        let wrong = counts.implausible + counts.unreadable;
        let good = goroutines.len() as u64;
        if good == 0 || wrong > good / 4 + 2 {
            let why = format!(
                "of {} entries in its list {good} hold a plausible goroutine, {} are free, {} hold nonsense, {} \
                 are not readable",
                good + counts.dead + wrong,
                counts.dead,
                counts.implausible,
                counts.unreadable
            );
            return Err(self.implausible(why));
        }
        if let Some(arguments) = &mut snapshot.arguments {
            arguments.finish();
        }
        // Moves each once: they are large.
        goroutines.sort_by_cached_key(|g| g.goid);
        goroutines.dedup_by(|later, first| {
            let same = later.goid == first.goid;
            counts.duplicates += u64::from(same);
            same
        });
        counts.goroutines = goroutines.len() as u64;
        Ok(())
    }
}
