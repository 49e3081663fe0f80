//! What a proof from the heap needs of every goroutine: where it stands, which part of its stack is in use,
//! and the runtime's records (`sudog`s) through which it waits.
//!
//! Input: memory of the running process. Output: [`Standing`]s, one an entry of the runtime's list that
//! holds a goroutine. Nothing is believed that does not name its goroutine; lists are bounded.

use hashbrown::HashMap;

use super::{
    Engine, SnapshotError, StackFrame, Status,
    layout::word,
    pieces::Pieces,
    seen::{Holds, Seen},
    unwind::Start,
};
use gotrace_go::EntryKind;
use gotrace_process::{ProcessError, ReadMemory};

/// Goroutines that are looked at together.
const AT_ONCE: usize = 4096;
/// How often a `g` that holds nonsense, as it is being changed, is looked at.
const TRIES: usize = 4;
/// `reflect.Select` allows 65,536 cases.
const MAX_CASES: usize = 1 << 16;
/// Records of all goroutines together, beyond two for each.
const MAX_RECORDS: usize = 1 << 22;
/// As much of a stack as is followed to tell the frame of a word.
const MAX_FOLLOWED: u64 = 1 << 20;

/// A goroutine as a proof sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Address of its `g`.
    pub g: u64,
    /// Its id.
    pub goid: u64,
    /// What it does.
    pub status: Status,
    /// Number of its wait reason; means something only when it waits.
    pub wait_reason: u8,
    /// Bounds of its stack: lowest address, first address behind.
    pub stack: (u64, u64),
    /// Where the used part of its stack begins; `None` when it runs, or when that is not known: then all of
    /// the stack may be in use.
    pub sp: Option<u64>,
    /// Saved program counter, of the system call where it is in one; 0 where `sp` is not known.
    pub pc: u64,
    /// First entry of the list of records through which it waits; 0 for none.
    pub waiting: u64,
    /// A C thread's call into Go, whose stack began elsewhere, or one that runs a plugin's function: what its stack
    /// holds is not known.
    pub from_c: bool,
    /// The runtime's own, or one that runs finalizers and cleanups.
    pub system: bool,
    /// Differs if it ran, but for one chance in 256, or if its stack was moved. 0 where the version of Go does
    /// not tell whether it ran.
    pub mark: u64,
    /// How often it stopped running, modulo 256.
    pub stops: Option<u8>,
}

/// Where a goroutine stood, however its stack was moved since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stood {
    /// Its id.
    pub goid: u64,
    pc: u64,
    waiting: u64,
    /// Of the part of its stack that is in use; 0 where that is not known.
    depth: u32,
    stops: Option<u8>,
}

impl Stood {
    /// Whether it is not the same goroutine any more, or has run since; its stack may have been moved.
    #[must_use]
    pub fn has_run(&self, later: &Standing) -> bool {
        !later.status.is_waiting() || *self != later.stood()
    }
}

/// All goroutines at about one time.
#[derive(Clone, Debug, Default)]
pub struct Standings {
    /// By address of the `g`.
    pub goroutines: Vec<Standing>,
    /// Addresses of the `g`s that hold no goroutine, ascending: dead, idle, or kept for C threads.
    pub unused: Vec<u64>,
    /// Entries of the runtime's list that could not be read or held nonsense at every look.
    pub unknown: u64,
}

/// A look at every goroutine, some at a time: of a million of them nothing is kept but addresses.
#[derive(Debug, Default)]
pub struct Survey {
    /// Addresses of `g`s, ascending, and how many of them were looked at.
    open: Vec<u64>,
    at: usize,
    /// Those of them that hold nonsense, and how often that was so.
    again: Vec<u64>,
    tries: usize,
    kinds: HashMap<u64, Option<EntryKind>>,
    pieces: Pieces,
    unused: Vec<u64>,
}

/// A record through which a goroutine waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its address.
    pub sudog: u64,
    /// The channel; 0 where it waits for a semaphore or a list of `sync.Cond`.
    pub chan: u64,
    /// Where an element goes, or the semaphore.
    pub elem: u64,
}

impl Engine {
    /// Looks at every goroutine.
    ///
    /// # Errors
    /// When the memory cannot be read at all, or does not look like that of this program.
    pub fn standings(&mut self, memory: &dyn ReadMemory) -> Result<Standings, SnapshotError> {
        let mut survey = self.survey(memory)?;
        let (mut goroutines, mut part) = (Vec::with_capacity(survey.len()), Vec::new());
        while survey.next(self, memory, &mut part)? {
            goroutines.append(&mut part);
        }
        goroutines.sort_unstable_by_key(|s: &Standing| s.g);
        let (unused, unknown) = survey.finish();
        Ok(Standings { goroutines, unused, unknown })
    }

    /// Begins to look at every goroutine, some at a time.
    ///
    /// # Errors
    /// When the memory cannot be read at all, or does not look like that of this program.
    pub fn survey(&mut self, memory: &dyn ReadMemory) -> Result<Survey, SnapshotError> {
        self.settle(memory)?;
        let mut open = self.list(memory, u64::MAX)?;
        open.sort_unstable();
        open.dedup();
        Ok(Survey { open, ..Survey::default() })
    }

    /// Says where the functions of plugins are: first address and length. Goroutines that run one of them are known
    /// to be some.
    pub fn know_plugins(&mut self, text: Vec<(u64, u64)>) {
        self.plugins = text;
    }

    fn is_of_plugin(&self, pc: u64) -> bool {
        self.plugins.iter().any(|&(begin, len)| pc >= begin && pc - begin < len)
    }

    /// Which of these goroutines, in their order, still stand where they stood, and have not run since.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn unmoved(
        &self,
        memory: &dyn ReadMemory,
        standings: &[Standing],
    ) -> Result<Vec<bool>, ProcessError> {
        let len = self.layout.g_len;
        let mut order: Vec<usize> = (0..standings.len()).collect();
        order.sort_unstable_by_key(|&n| standings[n].g);
        let items: Vec<(u64, u32)> = order.iter().map(|&n| (standings[n].g, len as u32)).collect();
        let mut unmoved = vec![false; standings.len()];
        let (mut first, mut pieces) = (0, Pieces::default());
        while first < items.len() {
            let done = pieces.read(memory, &items[first..], 512)?;
            for i in 0..done {
                let n = order[first + i];
                let before = &standings[n];
                unmoved[n] = match pieces.item(i, len).map(|b| Seen::parse(b, &self.layout)) {
                    Some(Holds::Goroutine(seen)) => {
                        let now = Standing::new(before.g, &seen, None);
                        let now = Standing { system: before.system, from_c: before.from_c, ..now };
                        before.mark != 0 && now == *before
                    }
                    _ => false,
                };
            }
            first += done;
        }
        Ok(unmoved)
    }

    /// The records of the waiting goroutines among these, in their order; `None` for a list that could not
    /// be read to its end, or that holds a record of another goroutine.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn records(
        &self,
        memory: &dyn ReadMemory,
        standings: &[Standing],
    ) -> Result<Vec<Option<Vec<Record>>>, ProcessError> {
        let layout = &self.layout;
        let len = layout.sudog_len;
        let mut lists: Vec<Option<Vec<Record>>> = vec![Some(Vec::new()); standings.len()];
        let mut budget = standings.len().saturating_mul(2).saturating_add(MAX_RECORDS);
        let mut open: Vec<(usize, u64)> = standings
            .iter()
            .enumerate()
            .filter(|(_, s)| s.status.is_waiting() && s.waiting != 0)
            .map(|(n, s)| (n, s.waiting))
            .collect();
        let mut pieces = Pieces::default();
        while !open.is_empty() {
            open.sort_unstable_by_key(|&(_, sudog)| sudog);
            let items: Vec<(u64, u32)> = open.iter().map(|&(_, sudog)| (sudog, len as u32)).collect();
            let done = pieces.read(memory, &items, 64)?;
            let mut next = open.split_off(done);
            for (i, (n, sudog)) in open.into_iter().enumerate() {
                let Some(list) = lists.get_mut(n) else { continue };
                let valid = pieces.item(i, len).filter(|b| word(b, layout.sudog_g) == standings[n].g);
                let Some(bytes) = valid.filter(|_| budget > 0) else {
                    *list = None;
                    continue;
                };
                budget -= 1;
                let Some(known) = list else { continue };
                let chan = word(bytes, layout.sudog_c);
                known.push(Record { sudog, chan, elem: word(bytes, layout.sudog_elem) });
                let following = word(bytes, layout.sudog_waitlink);
                // Of a semaphore's list, `waitlink` names the next goroutine, not the next case.
                if chan != 0 && following != 0 {
                    if known.len() >= MAX_CASES {
                        *list = None;
                    } else {
                        next.push((n, following));
                    }
                }
            }
            open = next;
        }
        Ok(lists)
    }

    /// The frame that a word on a goroutine's stack belongs to; `None` where the stack cannot be followed to it.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn frame_at(
        &mut self,
        memory: &dyn ReadMemory,
        standing: &Standing,
        address: u64,
    ) -> Result<Option<StackFrame>, ProcessError> {
        let Some(sp) = standing.sp.filter(|&sp| sp <= address) else { return Ok(None) };
        let len = standing.stack.1.saturating_sub(sp).min(MAX_FOLLOWED);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        if !memory.read_at(sp, &mut bytes)? {
            return Ok(None);
        }
        let start = Start { pc: standing.pc, sp, lr: 0, in_syscall: standing.status == Status::Syscall };
        let (mut frames, mut bases) = (Vec::new(), Vec::new());
        let binary = std::sync::Arc::clone(&self.binary);
        let Some(reader) = self.readers.first_mut() else { return Ok(None) };
        reader.places.unwind(&binary, start, &bytes, &mut frames, Some(&mut bases));
        let n = bases.iter().position(|&base| address < base);
        Ok(n.and_then(|n| frames.get(n)).copied())
    }

    /// Where the fields of a record are: its goroutine, what it waits on, and how much of it is read.
    #[must_use]
    pub fn record_layout(&self) -> (usize, usize, usize) {
        (self.layout.sudog_g, self.layout.sudog_elem, self.layout.sudog_len)
    }
}

impl Survey {
    /// Entries of the runtime's list.
    #[must_use]
    pub(crate) const fn len(&self) -> usize {
        self.open.len()
    }

    /// The next goroutines, by address of their `g`s; behind all of them come those that held nonsense when they were
    /// looked at first. `false` when there are no more.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn next(
        &mut self,
        engine: &Engine,
        memory: &dyn ReadMemory,
        part: &mut Vec<Standing>,
    ) -> Result<bool, SnapshotError> {
        part.clear();
        if self.at == self.open.len() {
            if self.again.is_empty() || self.tries + 1 >= TRIES {
                return Ok(false);
            }
            self.open = std::mem::take(&mut self.again);
            (self.at, self.tries) = (0, self.tries + 1);
        }
        let len = engine.layout.g_len;
        let end = self.open.len().min(self.at + AT_ONCE);
        let items: Vec<(u64, u32)> =
            self.open.get(self.at..end).unwrap_or_default().iter().map(|&g| (g, len as u32)).collect();
        let done = self.pieces.read(memory, &items, 512)?;
        self.at += done;
        for (n, &(g, _)) in items.iter().enumerate().take(done) {
            match self.pieces.item(n, len).map(|b| Seen::parse(b, &engine.layout)) {
                Some(Holds::Nothing) => self.unused.push(g),
                Some(Holds::Goroutine(seen)) => {
                    let of = |entry: u64| engine.binary.entry_kind(entry.wrapping_sub(engine.bias));
                    let kind = *self.kinds.entry(seen.entry_pc).or_insert_with(|| of(seen.entry_pc));
                    let plugins = kind.is_none() && engine.is_of_plugin(seen.entry_pc);
                    if kind.is_none() && seen.entry_pc != 0 && !plugins {
                        self.again.push(g);
                    } else {
                        let standing = Standing::new(g, &seen, kind);
                        part.push(Standing { from_c: standing.from_c || plugins, ..standing });
                    }
                }
                Some(Holds::Nonsense) | None => self.again.push(g),
            }
        }
        Ok(true)
    }

    /// Addresses of the `g`s that hold no goroutine, ascending, and the number of entries of the runtime's list that could
    /// not be read or held nonsense at every look.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u64>, u64) {
        self.unused.sort_unstable();
        (self.unused, self.again.len() as u64)
    }
}

impl Standing {
    /// As much of it as tells later whether it has run.
    #[must_use]
    pub fn stood(&self) -> Stood {
        let depth = self.sp.map_or(0, |sp| self.stack.1.wrapping_sub(sp));
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        Stood { goid: self.goid, pc: self.pc, waiting: self.waiting, depth, stops: self.stops }
    }

    fn new(g: u64, seen: &Seen, kind: Option<EntryKind>) -> Self {
        Self {
            g,
            goid: seen.goid,
            status: seen.status,
            wait_reason: seen.wait_reason,
            stack: seen.stack,
            // One that waits and has a thread runs on the thread's own stack for the runtime.
            sp: seen.start().filter(|_| seen.m == 0 || !seen.status.is_waiting()).map(|s| s.sp),
            pc: seen.start().map_or(0, |s| s.pc),
            waiting: seen.waiting,
            from_c: seen.entry_pc == 0,
            system: matches!(kind, Some(EntryKind::System | EntryKind::Runner)),
            mark: seen.standing_mark(),
            stops: seen.tracking_seq,
        }
    }
}
