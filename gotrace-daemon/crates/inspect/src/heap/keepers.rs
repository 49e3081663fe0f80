//! Who keeps the members of a pool (connections), or may have taken from a semaphore.
//!
//! Input: goroutines that wait at a pool, and how a member of it is recognized ([`Members`]). Output: for each pool the
//! goroutines whose stacks lead to a member that no other goroutine's leads to; of what has no members, those whose
//! stacks refer to it. The pool is what the function that they wait in was called with. Followed are words that frames
//! will still use, through objects of the heap, a bounded way: who is missed is not named, and nobody is named by what
//! several refer to. The process runs on: what is told was so at some time in between.

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::{
    Evidence, HeapError, LockHolder, Prover,
    holders::{MAX_STACK, object},
    layout::Span,
    spans,
};
use crate::snapshot::{Pieces, StackFrame, Standing, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// Steps from a stack to a member at most: of an HTTP response through its body and buffer to the connection.
const MAX_STEPS: usize = 8;
/// Objects that are looked through at most.
const MAX_OBJECTS: usize = 1 << 18;
/// As much of an object is.
const MAX_BYTES: u64 = 1 << 10;
/// Keepers that are told.
const MAX_TOLD: usize = 64;
/// Several goroutines lead to it.
const SHARED: u32 = u32::MAX;
/// The bit of a `time.Time`'s first word that says that it was read from the clock (`time/time.go`, `hasMonotonic`).
const MONOTONIC: u64 = 1 << 63;

/// How a member of a pool is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// A word of it, at one of these positions, refers to the pool, and a time that was read from the clock follows.
    Stamped(&'static [usize]),
    /// Its third word refers to the pool, and those before are nil.
    Third,
    /// There are none: who refers to the pool itself may have taken from it.
    Itself,
}

impl Members {
    /// Whether an object that begins with these words is a member.
    fn has(self, words: &[u64], pool: u64) -> bool {
        let word = |n: usize| words.get(n).copied().unwrap_or(0);
        match self {
            Self::Stamped(at) => at.iter().any(|&n| word(n) == pool && word(n + 1) & MONOTONIC != 0),
            Self::Third => word(0) == 0 && word(1) == 0 && word(2) == pool,
            Self::Itself => false,
        }
    }
}

/// Goroutines that wait for members of pools of a kind.
pub struct Pools<'a> {
    /// Their ids, ascending.
    pub waiters: &'a [u64],
    /// The pool, where it is known.
    pub pool: Option<u64>,
    /// Whether a function is the one that was called with the pool.
    pub takes: &'a dyn Fn(&str) -> bool,
    /// How members are recognized.
    pub members: Members,
    /// Who may keep one; the others are asked only where none of these does.
    pub may_keep: &'a dyn Fn(u64) -> bool,
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Its address; `None` where that is not known.
    pub address: Option<u64>,
    /// Who waits for a member, ascending.
    pub waiters: Vec<u64>,
    /// Who keeps one, or may.
    pub keepers: Vec<LockHolder>,
}

/// What a goroutine's frames will still use.
struct Stack {
    standing: Standing,
    frames: Vec<(StackFrame, Vec<u64>)>,
}

/// From where objects are reached.
#[derive(Clone, Copy)]
struct Source {
    goid: u64,
    frame: StackFrame,
}

/// For each object by which source it is reached.
struct Reached<'a> {
    spans: &'a [Span],
    pool: (u64, u64),
    sources: Vec<Source>,
    labels: HashMap<u64, u32, FixedState>,
    open: Vec<(u64, u64)>,
}

impl Reached<'_> {
    fn reach(&mut self, word: u64, label: u32) {
        let Some((begin, size)) = object(self.spans, word).filter(|o| *o != self.pool) else { return };
        let goid = |label: u32| self.sources.get(label as usize).map(|s| s.goid);
        match self.labels.get(&begin).copied() {
            None if self.labels.len() >= MAX_OBJECTS => return,
            None => self.labels.insert(begin, label),
            Some(known) if known == SHARED || known == label || goid(known) == goid(label) => return,
            Some(_) => self.labels.insert(begin, SHARED),
        };
        self.open.push((begin, size));
    }
}

impl Prover {
    /// The pools that goroutines wait for, and who keeps their members. Empty where there are too many goroutines.
    ///
    /// # Errors
    /// When the memory cannot be read, or does not look like that of this program.
    pub fn keepers(&mut self, memory: &dyn ReadMemory, of: &Pools<'_>) -> Result<Vec<Pool>, HeapError> {
        let list = self.list(memory)?;
        let spans = spans::read(memory, &self.layout, list, &self.version)?.objects;
        let standings = self.engine.standings(memory)?.goroutines;
        let waits = |goid: u64| of.waiters.binary_search(&goid).is_ok();
        let mut pools: Vec<Pool> = Vec::new();
        let mut stacks: Vec<Stack> = Vec::new();
        let binary = std::sync::Arc::clone(self.engine.binary());
        let bias = self.engine.bias();
        let function = |frame: StackFrame| {
            let frames = binary.lookup(frame.pc().wrapping_sub(bias), frame.is_return_address());
            frames.last().map_or_else(String::new, |f| f.function.clone())
        };
        let mut known: HashMap<StackFrame, bool, FixedState> = HashMap::default();
        let mut takes =
            |frame: StackFrame| *known.entry(frame).or_insert_with(|| (of.takes)(&function(frame)));
        let mut failed = Ok(());
        self.each_stack(memory, &standings, &mut |prover, standing, bytes| {
            if !waits(standing.goid) {
                match prover.engine.live_frames(memory, standing, bytes) {
                    Ok(live) => stacks.push(Stack { standing: *standing, frames: live.by_frame() }),
                    Err(e) => failed = Err(e),
                }
                return;
            }
            let first = || {
                let found = prover.engine.first_arguments(standing, bytes, &mut takes);
                let (frame, [first, second]) = found?;
                // Up to Go 1.19 a generic method is called with its dictionary first.
                let dictionary = object(&spans, first).is_none() && function(frame).contains("[...]");
                Some(if dictionary { second } else { first }).filter(|address| *address != 0)
            };
            let address = of.pool.or_else(first).map(|a| object(&spans, a).map_or(a, |o| o.0));
            match pools.iter_mut().find(|p| p.address == address) {
                Some(pool) => pool.waiters.push(standing.goid),
                None => pools.push(Pool { address, waiters: vec![standing.goid], keepers: Vec::new() }),
            }
        })?;
        failed?;
        // A stack that was run on while it was read holds what never was there together.
        let standings: Vec<Standing> = stacks.iter().map(|s| s.standing).collect();
        let mut unmoved = self.engine.unmoved(memory, &standings)?.into_iter();
        stacks.retain(|_| unmoved.next().unwrap_or(false));
        for pool in &mut pools {
            pool.waiters.sort_unstable();
            let Some(address) = pool.address else { continue };
            let pool_object = object(&spans, address).unwrap_or((address, 1));
            for first in [true, false] {
                let of_these: Vec<&Stack> =
                    stacks.iter().filter(|s| (of.may_keep)(s.standing.goid) == first).collect();
                pool.keepers = match of.members {
                    Members::Itself if first => candidates(memory, &spans, pool_object, &of_these)?,
                    Members::Itself => break,
                    members => keeping(memory, &spans, pool_object, members, &of_these)?,
                };
                if !pool.keepers.is_empty() {
                    break;
                }
            }
            pool.keepers.truncate(MAX_TOLD);
            for keeper in &mut pool.keepers {
                // What a function of the runtime still uses, its caller gave it.
                let frames =
                    stacks.iter().find(|s| s.standing.goid == keeper.goid).map_or(&[][..], |s| &s.frames);
                let mut callers = frames.iter().map(|(frame, _)| *frame).skip_while(|f| *f != keeper.frame);
                let own = callers.find(|frame| !function(*frame).starts_with("runtime."));
                keeper.frame = own.unwrap_or(keeper.frame);
            }
        }
        Ok(pools)
    }

    /// Tells the stack of each goroutine of the program's that does not run, from its stack pointer up.
    pub(super) fn each_stack(
        &mut self,
        memory: &dyn ReadMemory,
        standings: &[Standing],
        tell: &mut dyn FnMut(&mut Self, &Standing, &[u8]),
    ) -> Result<(), ProcessError> {
        let mut stacks: Vec<(u64, u32, &Standing)> = standings
            .iter()
            .filter(|s| !s.system && !s.from_c)
            .filter_map(|s| Some((s.sp?, s.stack.1.checked_sub(s.sp?)?, s)))
            .filter(|&(_, len, _)| len <= MAX_STACK)
            .map(|(sp, len, s)| (sp, len as u32, s))
            .collect();
        stacks.sort_unstable_by_key(|&(sp, ..)| sp);
        let items: Vec<(u64, u32)> = stacks.iter().map(|&(sp, len, _)| (sp, len)).collect();
        let (mut first, mut pieces) = (0, Pieces::default());
        while first < items.len() {
            let done = pieces.read(memory, &items[first..], 0)?;
            for i in 0..done {
                let (_, len, standing) = stacks[first + i];
                if let Some(bytes) = pieces.item(i, len as usize) {
                    tell(self, standing, bytes);
                }
            }
            first += done;
        }
        Ok(())
    }
}

/// Goroutines whose stacks lead to a member, each to one that no other leads to.
fn keeping(
    memory: &dyn ReadMemory,
    spans: &[Span],
    pool: (u64, u64),
    members: Members,
    stacks: &[&Stack],
) -> Result<Vec<LockHolder>, ProcessError> {
    let mut reached =
        Reached { spans, pool, sources: Vec::new(), labels: HashMap::default(), open: Vec::new() };
    for stack in stacks {
        for (frame, words) in &stack.frames {
            let label = reached.sources.len() as u32;
            reached.sources.push(Source { goid: stack.standing.goid, frame: *frame });
            words.iter().for_each(|&word| reached.reach(word, label));
        }
    }
    let mut found: HashSet<u64, FixedState> = HashSet::default();
    let mut pieces = Pieces::default();
    let mut words = Vec::new();
    for _ in 0..MAX_STEPS {
        let mut now = std::mem::take(&mut reached.open);
        now.sort_unstable();
        now.dedup();
        now.retain(|&(begin, _)| !found.contains(&begin));
        let items: Vec<(u64, u32)> =
            now.iter().map(|&(begin, size)| (begin, size.min(MAX_BYTES) as u32)).collect();
        let mut first = 0;
        while first < items.len() {
            let done = pieces.read(memory, &items[first..], 0)?;
            for i in 0..done {
                let (begin, len) = items[first + i];
                let Some(bytes) = pieces.item(i, len as usize) else { continue };
                words.clear();
                words.extend(bytes.chunks_exact(8).map(|b| word_at(b, 0)));
                if members.has(&words, pool.0) {
                    found.insert(begin);
                    continue;
                }
                let label = reached.labels.get(&begin).copied().unwrap_or(SHARED);
                if !is_noscan(spans, begin) {
                    words.iter().for_each(|&word| reached.reach(word, label));
                }
            }
            first += done;
        }
    }
    let mut holders: Vec<LockHolder> = Vec::new();
    let labels = found.iter().filter_map(|begin| reached.labels.get(begin)).filter(|l| **l != SHARED);
    for source in labels.filter_map(|&label| reached.sources.get(label as usize)) {
        if !holders.iter().any(|h| h.goid == source.goid) {
            holders.push(LockHolder { goid: source.goid, frame: source.frame, evidence: Evidence::Refers });
        }
    }
    holders.sort_unstable_by_key(|h| h.goid);
    Ok(holders)
}

/// Goroutines whose stacks refer to a semaphore, or, where there is none, to an object that does.
fn candidates(
    memory: &dyn ReadMemory,
    spans: &[Span],
    pool: (u64, u64),
    stacks: &[&Stack],
) -> Result<Vec<LockHolder>, ProcessError> {
    let of_pool = |word: u64| word.wrapping_sub(pool.0) < pool.1;
    let mut found: Vec<LockHolder> = Vec::new();
    for stack in stacks {
        if let Some((frame, _)) = stack.frames.iter().find(|(_, words)| words.iter().any(|&w| of_pool(w))) {
            found.push(LockHolder {
                goid: stack.standing.goid,
                frame: *frame,
                evidence: Evidence::Candidate,
            });
        }
    }
    if found.is_empty() {
        let mut bytes = Vec::new();
        for stack in stacks {
            'frames: for (frame, words) in &stack.frames {
                for (begin, size) in words.iter().filter_map(|&w| object(spans, w)) {
                    bytes.resize(size.min(MAX_BYTES) as usize, 0);
                    if memory.read_at(begin, &mut bytes)?
                        && bytes.chunks_exact(8).any(|b| of_pool(word_at(b, 0)))
                    {
                        let evidence = Evidence::Candidate;
                        found.push(LockHolder { goid: stack.standing.goid, frame: *frame, evidence });
                        break 'frames;
                    }
                }
            }
        }
    }
    found.sort_unstable_by_key(|h| h.goid);
    Ok(found)
}

/// Whether an object holds no pointers.
fn is_noscan(spans: &[Span], address: u64) -> bool {
    let n = spans.partition_point(|s| s.base <= address);
    n.checked_sub(1).and_then(|n| spans.get(n)).is_some_and(|s| s.noscan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_known_by_their_pool_and_what_follows() {
        const POOL: u64 = 0xc000_0000;
        let stamp = MONOTONIC | 5;
        assert!(Members::Stamped(&[0]).has(&[POOL, stamp], POOL));
        // A prepared statement begins with the pool as well, and a string follows.
        assert!(!Members::Stamped(&[0]).has(&[POOL, 0xc000_1000, 8], POOL));
        assert!(!Members::Stamped(&[0]).has(&[POOL], POOL));
        assert!(Members::Stamped(&[1, 2]).has(&[7, 8, POOL, stamp], POOL));
        assert!(Members::Third.has(&[0, 0, POOL, 1], POOL) && !Members::Third.has(&[1, 1, POOL], POOL));
    }

    #[test]
    fn what_two_goroutines_lead_to_is_nobodys() {
        let span = Span { base: 0x1000, bytes: 0x1000, size: 64, count: 64, ..Span::default() };
        let spans = [span];
        let source = |goid| Source { goid, frame: StackFrame::at(1) };
        let mut reached = Reached {
            spans: &spans,
            pool: (0x1000, 64),
            sources: vec![source(5), source(5), source(6)],
            labels: HashMap::default(),
            open: Vec::new(),
        };
        reached.reach(0x1008, 0);
        assert!(reached.labels.is_empty(), "the pool itself is not followed");
        reached.reach(0x1048, 0);
        reached.reach(0x1040, 1);
        assert_eq!(reached.labels.get(&0x1040), Some(&0), "another frame of the same goroutine");
        reached.reach(0x1040, 2);
        assert_eq!(reached.labels.get(&0x1040), Some(&SHARED));
        assert_eq!(reached.open.len(), 2, "and what it leads to is looked at again");
    }
}
