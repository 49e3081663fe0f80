//! Who holds a lock. `sync.Mutex` and `sync.RWMutex` record no owner; stacks and code tell.
//!
//! Input: addresses of locks, and the memory of the running process. Output: goroutines, each with the frame that it is
//! told by and with what it rests on ([`Evidence`]). Only words count that a frame will still use, by the program's own
//! tables. Which lines of a function lock and unlock is told by its code and its table of inlined calls. The process
//! runs on: what is told was so at some time in between.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{HeapError, Prover, layout::Span, spans};
use crate::{
    gobin::Frame,
    process::{ProcessError, ReadMemory},
    snapshot::{Pieces, StackFrame, Standing, word_at},
};

/// Longer stacks are left out.
const MAX_STACK: u64 = 1 << 20;
/// Longer functions are not looked through.
const MAX_CODE: u64 = 1 << 16;
/// Holders of one lock that are told.
const MAX_TOLD: usize = 8;

/// What it rests on that a goroutine holds a lock, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// It stands between the lines of a function that lock and unlock, and of such objects the function has just this.
    Locked,
    /// It will still use the lock's address.
    Refers,
    /// It will still use a structure around the lock.
    Encloses,
}

impl Evidence {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Refers => "refers",
            Self::Encloses => "encloses",
        }
    }
}

/// A goroutine that holds a lock, or may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its id.
    pub goid: u64,
    /// The frame that tells.
    pub frame: StackFrame,
    /// What it rests on.
    pub evidence: Evidence,
}

/// What a line of a function does with locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Site {
    line: u32,
    locks: bool,
    /// Of a `sync.RWMutex`, and for reading.
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Mutex,
    Write,
    Read,
}

const FUNCTIONS: [(&str, bool, Kind); 8] = [
    ("sync.(*Mutex).Lock", true, Kind::Mutex),
    ("internal/sync.(*Mutex).Lock", true, Kind::Mutex),
    ("sync.(*Mutex).Unlock", false, Kind::Mutex),
    ("internal/sync.(*Mutex).Unlock", false, Kind::Mutex),
    ("sync.(*RWMutex).Lock", true, Kind::Write),
    ("sync.(*RWMutex).Unlock", false, Kind::Write),
    ("sync.(*RWMutex).RLock", true, Kind::Read),
    ("sync.(*RWMutex).RUnlock", false, Kind::Read),
];

/// What functions do with locks, as far as it was needed.
#[derive(Debug, Default)]
struct Code {
    /// Entries of those functions that lock and unlock which are not always inlined.
    entries: Vec<(u64, bool, Kind)>,
    sites: HashMap<u64, Vec<Site>, FixedState>,
}

/// A lock that is looked for.
#[derive(Clone, Copy, Debug)]
struct Sought {
    address: u64,
    /// Its object: address and bytes; just itself where it is in none.
    object: (u64, u64),
}

impl Prover {
    /// Who holds each of these locks, in their order, the best evidence first. `waits`: by goid, the lock that a goroutine waits for.
    ///
    /// # Errors
    /// When the memory cannot be read, or does not look like that of this program.
    pub fn holders(
        &mut self,
        memory: &dyn ReadMemory,
        locks: &[u64],
        waits: &HashMap<u64, u64, FixedState>,
    ) -> Result<Vec<Vec<LockHolder>>, HeapError> {
        let mut found = vec![Vec::new(); locks.len()];
        let list = self.list(memory)?;
        let spans = spans::read(memory, &self.layout, list, &self.version)?.objects;
        let sought: Vec<Sought> = locks
            .iter()
            .map(|&address| Sought { address, object: object(&spans, address).unwrap_or((address, 1)) })
            .collect();
        let standings = self.engine.standings(memory)?.goroutines;
        let binary = std::sync::Arc::clone(self.engine.binary());
        let mut code = Code::default();
        code.entries.extend(
            FUNCTIONS
                .iter()
                .filter_map(|&(name, locks, kind)| Some((binary.function_address(name)?, locks, kind))),
        );
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
                let Some(bytes) = pieces.item(i, len as usize) else { continue };
                let within = |s: &Sought, w: u64| w.wrapping_sub(s.object.0) < s.object.1;
                let has = |s: &Sought| bytes.chunks_exact(8).any(|b| within(s, word_at(b, 0)));
                let hit: Vec<usize> = (0..sought.len()).filter(|&n| has(&sought[n])).collect();
                if hit.is_empty() {
                    continue;
                }
                let frames = self.engine.used_by_frame(&mut self.maps, standing, bytes);
                for n in hit {
                    let own = waits.get(&standing.goid) == Some(&sought[n].address);
                    if let Some(holder) =
                        self.holder(memory, &spans, &mut code, sought[n], standing, &frames, own)?
                    {
                        found[n].push(holder);
                    }
                }
            }
            first += done;
        }
        for holders in &mut found {
            holders.sort_by_key(|h| (h.evidence, h.goid));
            // One that is known makes the others bystanders.
            let best = holders.first().map(|h| h.evidence);
            holders.retain(|h| h.evidence != Evidence::Encloses || best == Some(Evidence::Encloses));
            holders.truncate(MAX_TOLD);
        }
        Ok(found)
    }

    /// The best that a goroutine's frames tell of a lock. `own`: it waits for this one itself, so that having its address
    /// says nothing.
    #[expect(clippy::too_many_arguments, reason = "one goroutine's parts beside what is known of all")]
    fn holder(
        &self,
        memory: &dyn ReadMemory,
        spans: &[Span],
        code: &mut Code,
        sought: Sought,
        standing: &Standing,
        frames: &[(StackFrame, Vec<u64>)],
        own: bool,
    ) -> Result<Option<LockHolder>, ProcessError> {
        let mut best: Option<LockHolder> = None;
        for (frame, words) in frames {
            let (begin, size) = sought.object;
            let mut inside = words.iter().filter(|&&w| w.wrapping_sub(begin) < size).peekable();
            if inside.peek().is_none() {
                continue;
            }
            let exact = inside.any(|&w| w == sought.address);
            let alone =
                || words.iter().all(|&w| object(spans, w).is_none_or(|o| o.1 != size || o.0 == begin));
            let evidence = if alone() && self.is_between(memory, code, *frame)? {
                Evidence::Locked
            } else if own {
                continue;
            } else if exact {
                Evidence::Refers
            } else {
                Evidence::Encloses
            };
            if best.is_none_or(|b| evidence < b.evidence) {
                best = Some(LockHolder { goid: standing.goid, frame: *frame, evidence });
            }
        }
        Ok(best)
    }

    /// Whether a frame stands behind a line of its function that locks, and no line between unlocks.
    fn is_between(
        &self,
        memory: &dyn ReadMemory,
        code: &mut Code,
        frame: StackFrame,
    ) -> Result<bool, ProcessError> {
        let (binary, bias) = (self.engine.binary(), self.engine.bias());
        let pc = frame.pc().wrapping_sub(bias);
        let frames = binary.lookup(pc, frame.is_return_address());
        let (Some(outer), Some(function)) = (frames.last(), binary.function_at(pc)) else { return Ok(false) };
        if outer.wrapper || is_of_locks(&outer.function) {
            return Ok(false);
        }
        if !code.sites.contains_key(&function.entry) {
            let length = function.end.saturating_sub(function.entry);
            let mut bytes = vec![0; usize::try_from(length.min(MAX_CODE)).unwrap_or(0)];
            let readable =
                length <= MAX_CODE && memory.read_at(function.entry.wrapping_add(bias), &mut bytes)?;
            let mut sites = Vec::new();
            if readable {
                let calls = code.entries.iter().flat_map(|&(target, locks, kind)| {
                    let calls = binary.calls_in(function.entry, &bytes, target).into_iter();
                    calls.map(move |pc| (pc, locks, kind))
                });
                sites.extend(calls.filter_map(|(pc, locks, kind)| {
                    let frames = binary.lookup(pc, true);
                    let line = own_line(&frames)?;
                    Some(Site { line, locks, kind })
                }));
                let step = binary.instruction_step();
                for pc in (function.entry..function.end).step_by(step) {
                    let frames = binary.lookup(pc, false);
                    let known = frames.iter().rev().skip(1).find_map(|f| {
                        FUNCTIONS
                            .iter()
                            .find(|(name, ..)| *name == f.function)
                            .map(|&(_, locks, kind)| (locks, kind))
                    });
                    if let (Some((locks, kind)), Some(line)) = (known, own_line(&frames)) {
                        sites.push(Site { line, locks, kind });
                    }
                }
            }
            sites.sort_unstable();
            sites.dedup();
            code.sites.insert(function.entry, sites);
        }
        let sites = code.sites.get(&function.entry).map_or(&[][..], Vec::as_slice);
        Ok(is_locked_at(sites, outer.line))
    }
}

/// The line of the compiled function that a call belongs to; `None` where it is a deferred one, which is called when
/// the function ends.
fn own_line(frames: &[Frame]) -> Option<u32> {
    let deferred = |f: &Frame| f.wrapper || f.function.contains(".deferwrap");
    let (own, inlined) = frames.split_last()?;
    (!inlined.iter().any(deferred) && own.line > 0).then_some(own.line)
}

/// Whether a line before this one locks, and none from there on unlocks.
fn is_locked_at(sites: &[Site], line: u32) -> bool {
    sites.iter().filter(|s| s.locks && s.line < line).any(|lock| {
        let unlocks = |s: &Site| !s.locks && s.kind == lock.kind && s.line >= lock.line && s.line <= line;
        !sites.iter().any(unlocks)
    })
}

/// Whether a function is of the packages that locks are made of.
fn is_of_locks(function: &str) -> bool {
    ["sync.", "internal/sync.", "runtime."].iter().any(|p| function.starts_with(p))
}

/// The object that holds an address.
pub(super) fn object(spans: &[Span], address: u64) -> Option<(u64, u64)> {
    let n = spans.partition_point(|s| s.base <= address).checked_sub(1)?;
    let span = spans.get(n).filter(|s| s.size > 0)?;
    let index = (address - span.base) / span.size;
    (index < u64::from(span.count)).then_some((span.base + index * span.size, span.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(line: u32, locks: bool) -> Site {
        Site { line, locks, kind: Kind::Mutex }
    }

    #[test]
    fn a_lock_is_held_from_its_line_to_the_one_that_unlocks() {
        let sites = [site(10, true), site(20, false), site(30, true)];
        let held: Vec<u32> = (5..40).filter(|&line| is_locked_at(&sites, line)).collect();
        assert_eq!(held, [11, 12, 13, 14, 15, 16, 17, 18, 19, 31, 32, 33, 34, 35, 36, 37, 38, 39]);
        // Another kind of unlocking does not count.
        let read = Site { kind: Kind::Read, ..site(12, false) };
        assert!(is_locked_at(&[site(10, true), read], 15));
        assert!(!is_locked_at(&[site(10, true), site(10, false)], 15), "in one line");
    }
}
