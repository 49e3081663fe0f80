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
use gotrace_process::{ProcessError, ReadMemory};

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
    /// A pointer from here on counts as a reference: a lock is a field, and others hold the structure. The address
    /// itself for a channel.
    pub begin: u64,
    /// And up to here, exclusive.
    pub end: u64,
}

impl Reference {
    /// Only pointers to the address itself count.
    #[must_use]
    pub const fn exact(address: u64) -> Self {
        Self { address, begin: address, end: address.saturating_add(1) }
    }
}

/// A goroutine that nobody may be able to release, with all that could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its id.
    pub goid: u64,
    /// What it waits on: it is held if any of these is.
    pub waits_on: Vec<Reference>,
    /// It waits for one of the other suspects, if that one's stack has what it waits on: then what its own stack has
    /// holds nothing. Otherwise it can act, as far as is known.
    pub follows: bool,
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
    /// By begin: begin, end, number of what is sought; and the greatest end of those so far.
    ranges: Vec<(u64, u64, usize)>,
    ends: Vec<u64>,
    complete: bool,
}

impl Search {
    fn new(suspects: &[Suspect]) -> Self {
        let mut sought: Vec<Reference> = suspects.iter().flat_map(|s| s.waits_on.iter().copied()).collect();
        sought.sort_unstable_by_key(|r| (r.address, r.begin, std::cmp::Reverse(r.end)));
        sought.dedup_by_key(|r| r.address);
        let mut ranges: Vec<(u64, u64, usize)> =
            sought.iter().enumerate().map(|(n, r)| (r.begin, r.end, n)).collect();
        ranges.sort_unstable();
        let ends = ranges.iter().scan(0, |most, r| {
            *most = r.1.max(*most);
            Some(*most)
        });
        Self {
            held: vec![false; sought.len()],
            exact: vec![Vec::new(); sought.len()],
            ends: ends.collect(),
            ranges,
            sought,
            complete: true,
        }
    }

    fn index(&self, address: u64) -> Option<usize> {
        self.sought.binary_search_by_key(&address, |r| r.address).ok()
    }

    /// Takes in a word that somebody holds.
    fn take(&mut self, word: u64) {
        let (Some(first), Some(end)) = (self.ranges.first(), self.ends.last()) else { return };
        if word < first.0 || word >= *end {
            return;
        }
        let behind = self.ranges.partition_point(|r| r.0 <= word);
        for (&(_, end, n), &most) in self.ranges.iter().zip(&self.ends).take(behind).rev() {
            if most <= word {
                break;
            }
            if let Some(held) = self.held.get_mut(n) {
                *held |= word < end;
            }
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

        // One that follows is not known to wait for a suspect unless that one's stack has what it waits on.
        let known = |s: &Suspect| {
            let others = |goid: &u64| *goid != s.goid && open.get(goid).is_some_and(|o| !o.follows);
            let exact = |r: &Reference| search.index(r.address).and_then(|n| search.exact.get(n));
            !s.follows || s.waits_on.iter().all(|r| exact(r).is_some_and(|goids| goids.iter().any(others)))
        };
        let unknown: HashSet<u64, FixedState> = open.values().filter(|s| !known(s)).map(|s| s.goid).collect();
        // Who is held can act, and holds what its stack refers to.
        while search.complete {
            let held = |s: &&&Suspect| search.is_held(s) || unknown.contains(&s.goid);
            let woken: HashSet<u64, FixedState> = open.values().filter(held).map(|s| s.goid).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_into_the_bounds_hold_and_those_to_neighbours_do_not() {
        let suspect = |goid, address, begin, end| Suspect {
            goid,
            waits_on: vec![Reference { address, begin, end }],
            follows: false,
        };
        let all = [
            suspect(1, 0x1040, 0x1000, 0x1060),
            suspect(2, 0x10a0, 0x1060, 0x10c0),
            // Where no object is known, bounds may overlap.
            suspect(3, 0x5000, 0x4f80, 0x5001),
            suspect(4, 0x5010, 0x4f90, 0x5011),
        ];
        for (word, held) in [
            (0x0fff, &[][..]),
            (0x1000, &[1]),
            (0x105f, &[1]),
            (0x1060, &[2]),
            (0x10c0, &[]),
            (0x4f88, &[3]),
            (0x4f90, &[3, 4]),
            (0x5000, &[3, 4]),
            (0x5008, &[4]),
            (0x5011, &[]),
        ] {
            let mut search = Search::new(&all);
            search.take(word);
            let found: Vec<u64> = all.iter().filter(|s| search.is_held(s)).map(|s| s.goid).collect();
            assert_eq!(found, held, "{word:#x}");
        }
    }
}
