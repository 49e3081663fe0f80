//! Who waits for which semaphore or `sync.Cond` before Go 1.26, where no goroutine points to it: the runtime's
//! table of semaphores, and the lists in the conditions themselves (`runtime/sema.go`, Go 1.19 to 1.25).
//!
//! Input: memory of the running process, untrusted, and where the table is. Output: by goroutine, the entry
//! (`sudog`) that it waits with. The trees and lists change meanwhile: what is found has to be looked at again
//! beside the goroutine, and one that is not found has no address. No entry is visited twice, and their number is
//! bounded.

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::{
    Engine, Record, Standing,
    layout::{Layout, word},
    pieces::Pieces,
    unwind::{Start, roles},
};
use gotrace_go::SemaphoreTable;
use gotrace_process::{ProcessError, ReadMemory};

/// Entries that are visited at all.
const MAX_ENTRIES: usize = 1 << 22;
/// `sudog.next` and `sudog.prev`, Go 1.19 to 1.27.
const NEXT: usize = 8;
const PREV: usize = 16;
/// `sync.Cond`: a Locker, then a notifyList, in which the first waiter is this far from the beginning.
pub(super) const COND_LIST: u64 = 16;
const LIST_HEAD: u64 = 16;
/// Bytes of a stack in which the frames of the runtime and of `sync.(*Cond).Wait` are.
const WINDOW: u64 = 1024;
/// Entries lie close together: they are read by pages, of which a few are kept.
const PAGE: u64 = 4096;
const PAGES: usize = 64;

/// Goroutines that wait for semaphores.
#[derive(Clone, Debug, Default)]
pub struct Semaphores {
    waiters: HashMap<u64, (u64, u64), FixedState>,
    /// Entries that could not be read or were not what they should be: the tree or list was being changed.
    pub unreadable: u64,
}

impl Semaphores {
    /// What the goroutine whose `g` is at an address waits with: addresses of its `runtime.sudog` and of the
    /// semaphore, a word inside of the mutex or wait group.
    #[must_use]
    pub fn of(&self, g: u64) -> Option<(u64, u64)> {
        self.waiters.get(&g).copied()
    }

    /// All of them: addresses of the `g`, of its `runtime.sudog` and of the semaphore.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.waiters.iter().map(|(&g, &(sudog, semaphore))| (g, sudog, semaphore))
    }

    /// Walks the table. `bias`: mapped address less link-time address.
    pub(super) fn read(
        memory: &dyn ReadMemory,
        layout: &Layout,
        table: SemaphoreTable,
        bias: u64,
    ) -> Result<Self, ProcessError> {
        let mut this = Self::default();
        let mut roots = vec![0; table.roots as usize * table.stride as usize];
        if !memory.read_at(table.address.wrapping_add(bias), &mut roots)? {
            this.unreadable = 1;
            return Ok(this);
        }
        let mut sudogs = Sudogs::new(memory, layout);
        let mut open = Vec::new();
        for (root, bytes) in (0..table.roots).zip(roots.chunks_exact(table.stride as usize)) {
            open.push(word(bytes, SemaphoreTable::TREE as usize));
            while let Some(sudog) = open.pop() {
                // A cycle, or an entry that has come elsewhere meanwhile.
                if sudog == 0 || !sudogs.is_new(sudog) {
                    continue;
                }
                let semaphore = sudogs.get(sudog)?.map(|b| word(b, layout.sudog_elem));
                let Some(semaphore) = semaphore.filter(|&s| s != 0 && table.root_of(s) == root) else {
                    this.unreadable += 1;
                    continue;
                };
                this.note(&mut sudogs, layout, sudog, semaphore)?;
                if let Some(bytes) = sudogs.get(sudog)? {
                    open.extend([word(bytes, NEXT), word(bytes, PREV)]);
                }
                this.line(&mut sudogs, layout, sudog, semaphore)?;
            }
        }
        Ok(this)
    }

    /// Those that wait for the same semaphore behind the one that is in the tree.
    fn line(
        &mut self,
        sudogs: &mut Sudogs<'_>,
        layout: &Layout,
        first: u64,
        semaphore: u64,
    ) -> Result<(), ProcessError> {
        let mut at = first;
        loop {
            let next = sudogs.get(at)?.map_or(0, |b| word(b, layout.sudog_waitlink));
            if next == 0 {
                return Ok(());
            }
            let same = sudogs.get(next)?.is_some_and(|b| word(b, layout.sudog_elem) == semaphore);
            if !same || !sudogs.is_new(next) {
                self.unreadable += 1;
                return Ok(());
            }
            self.note(sudogs, layout, next, semaphore)?;
            at = next;
        }
    }

    fn note(
        &mut self,
        sudogs: &mut Sudogs<'_>,
        layout: &Layout,
        sudog: u64,
        semaphore: u64,
    ) -> Result<(), ProcessError> {
        let g = sudogs
            .get(sudog)?
            .filter(|b| word(b, layout.sudog_c) == 0)
            .map_or(0, |b| word(b, layout.sudog_g));
        if g == 0 {
            self.unreadable += 1;
        } else {
            self.waiters.insert(g, (sudog, semaphore));
        }
        Ok(())
    }
}

/// Goroutines that wait on conditions whose addresses are known: each condition's list is read once.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    known: HashSet<u64, FixedState>,
    /// Addresses of the `sudog` and of the condition, by address of the `g`.
    waiters: HashMap<u64, (u64, u64), FixedState>,
}

impl Conditions {
    /// Forgets everything.
    pub fn begin(&mut self) {
        self.known.clear();
        self.waiters.clear();
    }

    /// The entry with which a `g` is in the list of what may be a `sync.Cond`; `None` when it is not.
    pub fn find(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        condition: u64,
        g: u64,
    ) -> Result<Option<u64>, ProcessError> {
        if condition == 0 || !condition.is_multiple_of(8) {
            return Ok(None);
        }
        if self.known.len() < MAX_ENTRIES && self.known.insert(condition) {
            let mut head = [0; 8];
            let at = condition.wrapping_add(COND_LIST + LIST_HEAD);
            let mut next = if memory.read_at(at, &mut head)? { u64::from_le_bytes(head) } else { 0 };
            let mut sudogs = Sudogs::new(memory, layout);
            while next != 0 && self.waiters.len() < MAX_ENTRIES && sudogs.is_new(next) {
                let Some(bytes) = sudogs.get(next)? else { break };
                let (owner, following) = (word(bytes, layout.sudog_g), word(bytes, NEXT));
                self.waiters.insert(owner, (next, condition));
                next = following;
            }
        }
        Ok(self.waiters.get(&g).filter(|&&(_, of)| of == condition).map(|&(sudog, _)| sudog))
    }
}

/// Reads entries, by pages.
struct Sudogs<'a> {
    memory: &'a dyn ReadMemory,
    len: usize,
    pages: Vec<(u64, Vec<u8>)>,
    single: Vec<u8>,
    seen: HashSet<u64, FixedState>,
}

impl<'a> Sudogs<'a> {
    fn new(memory: &'a dyn ReadMemory, layout: &Layout) -> Self {
        let len = layout.sudog_len.max(PREV + 8);
        Self {
            memory,
            len,
            pages: vec![(0, Vec::new()); PAGES],
            single: vec![0; len],
            seen: HashSet::default(),
        }
    }

    /// Whether an entry was not met before, and may be visited.
    fn is_new(&mut self, sudog: u64) -> bool {
        self.seen.len() < MAX_ENTRIES && self.seen.insert(sudog)
    }

    /// An entry's bytes; `None` where there is none.
    fn get(&mut self, sudog: u64) -> Result<Option<&[u8]>, ProcessError> {
        if !sudog.is_multiple_of(8) || sudog < PAGE {
            return Ok(None);
        }
        let (page, at) = (sudog & !(PAGE - 1), (sudog % PAGE) as usize);
        if at + self.len <= PAGE as usize {
            let slot = &mut self.pages[(page / PAGE) as usize % PAGES];
            if slot.0 != page {
                slot.0 = 0;
                slot.1.resize(PAGE as usize, 0);
                if self.memory.read_at(page, &mut slot.1)? {
                    slot.0 = page;
                }
            }
            if slot.0 == page {
                return Ok(slot.1.get(at..at + self.len));
            }
        }
        Ok(self.memory.read_at(sudog, &mut self.single)?.then_some(&self.single[..]))
    }
}

impl Engine {
    /// Who waits for which semaphore (mutexes, wait groups) by the runtime's own table, in any version of Go:
    /// what a `g` itself tells only from Go 1.26 on. `None` where the table was not found in the program. The
    /// process runs on: an entry may have gone since.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn semaphores(&self, memory: &dyn ReadMemory) -> Result<Option<Semaphores>, ProcessError> {
        let Some(table) = self.binary.semaphores() else { return Ok(None) };
        Semaphores::read(memory, &self.layout, table, self.bias).map(Some)
    }

    /// For goroutines that wait for a lock or `sync.Cond` and do not lead to their record themselves (up to Go
    /// 1.25), the record, with the address of the semaphore or inside of the condition; in their order, `None`
    /// for all others and where it is not known. It holds of those that have not moved since before.
    /// `in_condition`: whether one waits on a `sync.Cond` rather than for a semaphore.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn records_apart(
        &mut self,
        memory: &dyn ReadMemory,
        standings: &[Standing],
        in_condition: impl Fn(&Standing) -> Option<bool>,
    ) -> Result<Vec<Option<Record>>, ProcessError> {
        let mut found = vec![None; standings.len()];
        let mut conditions = Vec::new();
        let mut semaphores = None;
        for (n, standing) in standings.iter().enumerate().filter(|(_, s)| s.waiting == 0) {
            match in_condition(standing) {
                Some(true) => conditions.extend(standing.sp.map(|sp| (sp, n))),
                Some(false) => {
                    if semaphores.is_none() {
                        semaphores = Some(self.semaphores(memory)?.unwrap_or_default());
                    }
                    let of = semaphores.as_ref().and_then(|s| s.of(standing.g));
                    found[n] = of.map(|(sudog, elem)| Record { sudog, chan: 0, elem });
                }
                None => {}
            }
        }
        conditions.sort_unstable();
        let items: Vec<(u64, u32)> = conditions
            .iter()
            .map(|&(sp, n)| (sp, standings[n].stack.1.saturating_sub(sp).min(WINDOW) as u32))
            .collect();
        let (mut first, mut pieces, mut lists) = (0, Pieces::default(), Conditions::default());
        while first < items.len() {
            let done = pieces.read(memory, &items[first..], 0)?;
            for i in 0..done {
                let ((_, n), len) = (conditions[first + i], items[first + i].1);
                if let Some(bytes) = pieces.item(i, len as usize) {
                    found[n] = self.condition(memory, &standings[n], bytes, &mut lists)?;
                }
            }
            first += done;
        }
        Ok(found)
    }

    /// The record with which a goroutine waits on a `sync.Cond`, by its innermost frames.
    fn condition(
        &mut self,
        memory: &dyn ReadMemory,
        standing: &Standing,
        bytes: &[u8],
        lists: &mut Conditions,
    ) -> Result<Option<Record>, ProcessError> {
        let (Some(sp), Some(reader)) = (standing.sp, self.readers.first_mut()) else { return Ok(None) };
        let start = Start { pc: standing.pc, sp, lr: 0, in_syscall: false };
        let (mut frames, mut bases) = (Vec::new(), Vec::new());
        reader.places.unwind(&self.binary, start, bytes, &mut frames, Some(&mut bases));
        for slot in reader.places.pointers_of(&self.binary, roles::COND, &frames, &bases) {
            let condition = word(bytes, slot.wrapping_sub(sp) as usize);
            if let Some(sudog) = lists.find(memory, &self.layout, condition, standing.g)? {
                return Ok(Some(Record { sudog, chan: 0, elem: condition.wrapping_add(COND_LIST) }));
            }
        }
        Ok(None)
    }
}
