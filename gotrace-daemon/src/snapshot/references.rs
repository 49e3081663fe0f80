//! Who holds what a goroutine waits on, as far as stacks tell: looks for the addresses of channels and
//! locks in the stacks of all other goroutines and in the program's variables.
//!
//! Input: memory of the running process, a [`Snapshot`] of it, and suspects. Output: [`References`].
//! Conservative: every word may be a pointer, also one that was left behind in a frame, so that a holder
//! may be seen where there is none. The heap is **not** searched: a holder that keeps the address in a
//! structure there is not seen. So "nobody holds it" is a suspicion, never a proof.

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::{
    Engine, Snapshot,
    layout::word,
    pieces::Pieces,
    seen::{Holds, Seen},
};
use crate::process::{ProcessError, ReadMemory};

/// Most bytes of one stack.
const MAX_STACK: u64 = 4 << 20;
/// Most bytes of one part of the program's variables.
const MAX_VARIABLES: u64 = 256 << 20;
/// Goroutines named for each address.
const MAX_NAMED: usize = 64;
/// The program's variables are read in pieces of this many bytes.
const PIECE: u64 = 1 << 16;
/// Ranges that are read together.
const CHUNK: usize = 4096;

/// An address that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The address.
    pub address: u64,
    /// How far before it a pointer may point and count as a reference: a lock is a field, and others hold
    /// the structure. 0 for a channel.
    pub reach: u64,
}

/// A goroutine that nobody may be able to release, with all that could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its id.
    pub goid: u64,
    /// What it waits on: it is held if any of these is.
    pub waits_on: Vec<Reference>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Goids, ascending, of the suspects of which nothing is referred to by a goroutine that is no suspect,
    /// by a variable, or by a suspect that is itself held.
    pub unheld: Vec<u64>,
    /// For each address, goids of those whose stack has exactly this word, suspects included, ascending; not
    /// all of them where there are many.
    pub stacks: HashMap<u64, Vec<u64>, FixedState>,
    /// Whether everything was looked through. Otherwise `unheld` means nothing.
    pub complete: bool,
}

impl References {
    /// What this and a later search agree on.
    #[must_use]
    pub fn agree(mut self, later: &Self) -> Self {
        self.unheld.retain(|goid| later.unheld.binary_search(goid).is_ok());
        Self { unheld: self.unheld, stacks: later.stacks.clone(), complete: self.complete && later.complete }
    }
}

/// Addresses that are looked for, by address, and what is known of each.
struct Search {
    sought: Vec<Reference>,
    held: Vec<bool>,
    exact: Vec<Vec<u64>>,
    longest_reach: u64,
    complete: bool,
}

impl Search {
    fn new(suspects: &[Suspect]) -> Self {
        let mut sought: Vec<Reference> = suspects.iter().flat_map(|s| s.waits_on.iter().copied()).collect();
        sought.sort_unstable_by_key(|r| (r.address, std::cmp::Reverse(r.reach)));
        sought.dedup_by_key(|r| r.address);
        Self {
            held: vec![false; sought.len()],
            exact: vec![Vec::new(); sought.len()],
            longest_reach: sought.iter().map(|r| r.reach).max().unwrap_or(0),
            sought,
            complete: true,
        }
    }

    fn index(&self, address: u64) -> Option<usize> {
        self.sought.binary_search_by_key(&address, |r| r.address).ok()
    }

    /// Takes in a word that somebody holds.
    fn take(&mut self, word: u64) {
        let (Some(first), Some(last)) = (self.sought.first(), self.sought.last()) else { return };
        if word < first.address.saturating_sub(self.longest_reach) || word > last.address {
            return;
        }
        let begin = self.sought.partition_point(|r| r.address < word);
        for (r, held) in self.sought.iter().zip(&mut self.held).skip(begin) {
            let distance = r.address - word;
            if distance > self.longest_reach {
                break;
            }
            *held |= distance <= r.reach;
        }
    }

    fn is_held(&self, suspect: &Suspect) -> bool {
        suspect.waits_on.iter().any(|r| self.index(r.address).is_none_or(|n| self.held[n]))
    }
}

impl Engine {
    /// Looks for holders. The process runs on: what is found was so at some time in between, so that a
    /// suspect must be looked at again afterwards ([`super::Goroutine::park_mark`]).
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn find_references(
        &self,
        memory: &dyn ReadMemory,
        snapshot: &Snapshot,
        suspects: &[Suspect],
    ) -> Result<References, ProcessError> {
        let mut search = Search::new(suspects);
        if search.sought.is_empty() {
            return Ok(References { complete: true, ..References::default() });
        }
        let mut open: HashMap<u64, &Suspect, FixedState> = suspects.iter().map(|s| (s.goid, s)).collect();

        let mut ranges = Vec::new();
        for range in self.binary.variables() {
            let (begin, end) = (range.start.wrapping_add(self.bias), range.end.wrapping_add(self.bias));
            let begin = begin & !7;
            let pieces = end.saturating_sub(begin).min(MAX_VARIABLES).div_ceil(PIECE);
            search.complete &= end.saturating_sub(begin) <= MAX_VARIABLES;
            ranges.extend((0..pieces).map(|n| {
                let at = begin + n * PIECE;
                (at, (end - at).min(PIECE) as u32)
            }));
        }
        Self::words(memory, &ranges, |_, word| search.take(word))?;
        for goroutine in snapshot.goroutines.iter().filter(|g| !open.contains_key(&g.goid)) {
            for wait in snapshot.waits_of(goroutine) {
                let address = snapshot.object(wait.object).map_or(0, |o| o.address);
                if let Some(n) = search.index(address) {
                    search.held[n] = true;
                }
            }
        }

        // Everybody's stack once: those of suspects for the account of exact words only.
        let stacks = self.stacks(memory, snapshot, |_| true, &mut search.complete)?;
        let ranges: Vec<_> = stacks.iter().map(|&(_, at, len)| (at, len)).collect();
        Self::words(memory, &ranges, |n, word| {
            let goid = stacks[n].0;
            if let Some(exact) = search.index(word).and_then(|i| search.exact.get_mut(i))
                && exact.last() != Some(&goid)
                && exact.len() < MAX_NAMED
            {
                exact.push(goid);
            }
            if !open.contains_key(&goid) {
                search.take(word);
            }
        })?;

        // Who is held can act, and holds what its stack refers to.
        while search.complete {
            let woken: HashSet<u64, FixedState> =
                open.values().filter(|s| search.is_held(s)).map(|s| s.goid).collect();
            if woken.is_empty() {
                break;
            }
            open.retain(|goid, _| !woken.contains(goid));
            let stacks = self.stacks(memory, snapshot, |goid| woken.contains(&goid), &mut search.complete)?;
            let ranges: Vec<_> = stacks.iter().map(|&(_, at, len)| (at, len)).collect();
            Self::words(memory, &ranges, |_, word| search.take(word))?;
        }
        let mut unheld: Vec<u64> = open.into_keys().collect();
        unheld.sort_unstable();
        let stacks = search.sought.iter().zip(search.exact).map(|(r, mut goids)| {
            goids.sort_unstable();
            goids.dedup();
            (r.address, goids)
        });
        Ok(References { unheld, stacks: stacks.collect(), complete: search.complete })
    }

    /// The part of each wanted goroutine's stack that is in use: goid, address, length; all of it for one
    /// that runs.
    fn stacks(
        &self,
        memory: &dyn ReadMemory,
        snapshot: &Snapshot,
        wanted: impl Fn(u64) -> bool,
        complete: &mut bool,
    ) -> Result<Vec<(u64, u64, u32)>, ProcessError> {
        let mut gs: Vec<u64> = snapshot.goroutines.iter().filter(|g| wanted(g.goid)).map(|g| g.g).collect();
        gs.sort_unstable();
        let len = self.layout.g_len;
        let items: Vec<(u64, u32)> = gs.into_iter().map(|g| (g, len as u32)).collect();
        let mut stacks = Vec::with_capacity(items.len());
        let mut pieces = Pieces::default();
        let mut rest = &items[..];
        while !rest.is_empty() {
            let done = pieces.read(memory, rest, 512)?;
            for n in 0..done {
                let Some(bytes) = pieces.item(n, len) else { continue };
                let Holds::Goroutine(seen) = Seen::parse(bytes, &self.layout) else { continue };
                let (lo, hi) = seen.stack;
                let from = seen.start().map_or(lo, |s| s.sp);
                *complete &= hi - from <= MAX_STACK;
                stacks.push((seen.goid, from & !7, (hi - from).min(MAX_STACK) as u32));
            }
            rest = &rest[done..];
        }
        stacks.sort_unstable_by_key(|&(_, at, _)| at);
        Ok(stacks)
    }

    /// Reads ranges (address, length), sorted, and tells each word with the number of its range. What is not
    /// readable is left out: nothing that is alive is there.
    fn words(
        memory: &dyn ReadMemory,
        ranges: &[(u64, u32)],
        mut tell: impl FnMut(usize, u64),
    ) -> Result<(), ProcessError> {
        let (mut first, mut pieces) = (0, Pieces::default());
        while first < ranges.len() {
            let now = &ranges[first..ranges.len().min(first + CHUNK)];
            let done = pieces.read(memory, now, 0)?;
            for (n, &(_, len)) in now.iter().enumerate().take(done) {
                let Some(bytes) = pieces.item(n, len as usize) else { continue };
                for at in (0..bytes.len() / 8 * 8).step_by(8) {
                    tell(first + n, word(bytes, at));
                }
            }
            first += done;
        }
        Ok(())
    }
}
