//! Who holds a lock. `sync.Mutex` and `sync.RWMutex` record no owner; stacks and code tell.
//!
//! Input: addresses of locks, and the memory of the running process. Output: goroutines, each with the frame that it is
//! told by and with what it rests on ([`Evidence`]). Only words count that a frame will still use, by the program's own
//! tables. Which lines of a function lock and unlock is told by its code and its table of inlined calls. A lock
//! that is a variable no frame need keep: its address stands in the code of those lines. Whoever waits for a `sync.Cond`
//! has unlocked its lock meanwhile. The process runs on: what is told was so at some time in between.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{HeapError, Prover, layout::Span, spans};
use crate::snapshot::{StackFrame, Standing, word_at};
use gotrace_go::Frame;
use gotrace_process::{ProcessError, ReadMemory};

/// Longer stacks are left out.
pub(super) const MAX_STACK: u64 = 1 << 20;
/// Longer functions are not looked through.
const MAX_CODE: u64 = 1 << 16;
/// Holders of one lock that are told.
const MAX_TOLD: usize = 8;

/// What it rests on that a goroutine holds a lock, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Evidence {
    /// It stands between the lines of a function that lock and unlock, and of such objects the function has just this.
    Locked,
    /// It will still use the lock's address.
    Refers,
    /// It will still use a structure around the lock.
    Encloses,
    /// It will still use a semaphore, of which nothing tells who took from it.
    Candidate,
}

impl Evidence {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Refers => "refers",
            Self::Encloses => "encloses",
            Self::Candidate => "candidate",
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

/// What those call that are inlined, where the lock is not free, or somebody waits.
const SLOW: [(&str, bool, Kind); 6] = [
    ("sync.(*Mutex).lockSlow", true, Kind::Mutex),
    ("internal/sync.(*Mutex).lockSlow", true, Kind::Mutex),
    ("sync.(*Mutex).unlockSlow", false, Kind::Mutex),
    ("internal/sync.(*Mutex).unlockSlow", false, Kind::Mutex),
    ("sync.runtime_SemacquireRWMutexR", true, Kind::Read),
    ("sync.(*RWMutex).rUnlockSlow", false, Kind::Read),
];

/// Waits with its lock unlocked. A `sync.Cond` begins with an interface (`L`), whose second word is the lock's address
/// (`sync/cond.go`, Go 1.19 to 1.27).
const WAIT: &str = "sync.(*Cond).Wait";
const COND_LOCK: u64 = 8;

/// What functions do with locks, as far as it was needed.
#[derive(Debug, Default)]
struct Code {
    /// Entries of those functions that lock and unlock which are not always inlined.
    entries: Vec<(u64, bool, Kind)>,
    /// The same of what is called by those that are inlined.
    slow: Vec<(u64, bool, Kind)>,
    /// By entry, what a function unlocks that it does not lock.
    unlocks: HashMap<u64, Vec<Kind>, FixedState>,
    sites: HashMap<u64, Vec<Site>, FixedState>,
    /// By entry, where a function takes addresses of variables, and which.
    taken: HashMap<u64, Vec<(u64, u64)>, FixedState>,
}

/// A lock that is looked for.
#[derive(Clone, Copy, Debug)]
struct Sought {
    address: u64,
    /// Its object: address and bytes; just itself where it is in none.
    object: (u64, u64),
    /// Its link-time address where it is in no object of the heap: it may be a variable.
    variable: Option<u64>,
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
            .map(|&address| match object(&spans, address) {
                Some(object) => Sought { address, object, variable: None },
                None => Sought {
                    address,
                    object: (address, 1),
                    variable: Some(address.wrapping_sub(self.engine.bias())),
                },
            })
            .collect();
        let standings = self.engine.standings(memory)?.goroutines;
        let binary = std::sync::Arc::clone(self.engine.binary());
        let entries = |of: &[(&str, bool, Kind)]| {
            of.iter()
                .filter_map(|&(name, locks, kind)| Some((binary.function_address(name)?, locks, kind)))
                .collect()
        };
        let mut code = Code { entries: entries(&FUNCTIONS), slow: entries(&SLOW), ..Code::default() };
        let variables = sought.iter().any(|s| s.variable.is_some());
        let mut failed = Ok(());
        self.each_stack(memory, &standings, &mut |prover, standing, bytes| {
            let within = |s: &Sought, w: u64| w.wrapping_sub(s.object.0) < s.object.1;
            let has = |s: &Sought| bytes.chunks_exact(8).any(|b| within(s, word_at(b, 0)));
            let mut hit: Vec<usize> = (0..sought.len()).filter(|&n| has(&sought[n])).collect();
            if failed.is_ok() && variables {
                failed = prover.named_in_code(memory, &mut code, &sought, standing, bytes, &mut hit);
            }
            if hit.is_empty() || failed.is_err() {
                return;
            }
            let frames = match prover.engine.live_frames(memory, standing, bytes) {
                Ok(live) => live.by_frame(),
                Err(e) => return failed = Err(e),
            };
            for n in hit {
                let own = waits.get(&standing.goid) == Some(&sought[n].address);
                match prover.holder(memory, &spans, &mut code, sought[n], standing, &frames, own) {
                    Ok(holder) => found[n].extend(holder),
                    Err(e) => failed = Err(e),
                }
            }
        })?;
        failed?;
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
        if self.has_let_go(memory, sought, frames, own)? {
            return Ok(None);
        }
        let mut best: Option<LockHolder> = None;
        let mut unlocked = false;
        for (frame, words) in frames {
            let (begin, size) = sought.object;
            let mut inside = words.iter().filter(|&&w| w.wrapping_sub(begin) < size).peekable();
            let kept = inside.peek().is_some();
            // What a function does with other locks says nothing.
            if !kept && !self.names(memory, code, *frame, sought.variable)? {
                continue;
            }
            let exact = inside.any(|&w| w == sought.address);
            let alone =
                || words.iter().all(|&w| object(spans, w).is_none_or(|o| o.1 != size || o.0 == begin));
            let place = self.place_in(memory, code, *frame, sought.variable)?;
            // A function that is called from there may unlock meanwhile, and lock again.
            unlocked |= place == Place::Unlocked;
            let evidence = if place == Place::Locked && !unlocked && alone() {
                Evidence::Locked
            } else if own || !kept {
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

    /// Whether a goroutine is in `sync.(*Cond).Wait` and has unlocked this lock for that, or waits to lock it again.
    fn has_let_go(
        &self,
        memory: &dyn ReadMemory,
        sought: Sought,
        frames: &[(StackFrame, Vec<u64>)],
        own: bool,
    ) -> Result<bool, ProcessError> {
        let (binary, bias) = (self.engine.binary(), self.engine.bias());
        for (frame, words) in frames {
            let functions = binary.lookup(frame.pc().wrapping_sub(bias), frame.is_return_address());
            if !functions.iter().any(|f| f.function == WAIT) {
                continue;
            }
            if own {
                return Ok(true);
            }
            for word in words {
                let mut lock = [0; 8];
                if memory.read_at(word.wrapping_add(COND_LOCK), &mut lock)?
                    && u64::from_le_bytes(lock) == sought.address
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Adds those that are variables whose address the code of a function takes in which a goroutine may stand.
    fn named_in_code(
        &self,
        memory: &dyn ReadMemory,
        code: &mut Code,
        sought: &[Sought],
        standing: &Standing,
        stack: &[u8],
        hit: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        let words = stack.chunks_exact(8).map(|b| word_at(b, 0));
        for pc in words.chain([standing.pc]) {
            let pc = pc.wrapping_sub(self.engine.bias());
            let Some(extent) = self.engine.binary().extent_at(pc) else { continue };
            let taken = self.taken(memory, code, extent)?;
            for (n, one) in sought.iter().enumerate() {
                if !hit.contains(&n) && taken.iter().any(|&(_, address)| Some(address) == one.variable) {
                    hit.push(n);
                }
            }
        }
        Ok(())
    }

    /// Whether the code of a frame's function takes the address of this variable.
    fn names(
        &self,
        memory: &dyn ReadMemory,
        code: &mut Code,
        frame: StackFrame,
        variable: Option<u64>,
    ) -> Result<bool, ProcessError> {
        let extent = self.engine.binary().extent_at(frame.pc().wrapping_sub(self.engine.bias()));
        let (Some(variable), Some(extent)) = (variable, extent) else { return Ok(false) };
        Ok(self.taken(memory, code, extent)?.iter().any(|&(_, address)| address == variable))
    }

    /// Where a function takes addresses of variables.
    fn taken<'c>(
        &self,
        memory: &dyn ReadMemory,
        code: &'c mut Code,
        (begin, end): (u64, u64),
    ) -> Result<&'c [(u64, u64)], ProcessError> {
        if !code.taken.contains_key(&begin) {
            let bytes = self.code_of(memory, begin, end)?.unwrap_or_default();
            code.taken.insert(begin, self.engine.binary().addresses_taken_in(begin, &bytes));
        }
        Ok(code.taken.get(&begin).map_or(&[], Vec::as_slice))
    }

    /// A function's code, unless it is longer than what is looked through.
    fn code_of(
        &self,
        memory: &dyn ReadMemory,
        begin: u64,
        end: u64,
    ) -> Result<Option<Vec<u8>>, ProcessError> {
        let length = end.saturating_sub(begin);
        let mut bytes = vec![0; usize::try_from(length.min(MAX_CODE)).unwrap_or(0)];
        let readable =
            length <= MAX_CODE && memory.read_at(begin.wrapping_add(self.engine.bias()), &mut bytes)?;
        Ok(readable.then_some(bytes))
    }

    /// What a function unlocks that it does not lock itself.
    fn unlocks(
        &self,
        memory: &dyn ReadMemory,
        code: &mut Code,
        entry: u64,
    ) -> Result<Vec<Kind>, ProcessError> {
        if let Some(known) = code.unlocks.get(&entry) {
            return Ok(known.clone());
        }
        let binary = self.engine.binary();
        let bytes = match binary.extent_at(entry) {
            Some((begin, end)) => self.code_of(memory, begin, end)?.unwrap_or_default(),
            None => Vec::new(),
        };
        let all = code.entries.iter().chain(&code.slow);
        let calls = |locks: bool, kind: Kind| {
            let mut those = all.clone().filter(|&&(_, l, k)| (l, k) == (locks, kind));
            those.any(|&(target, ..)| !binary.calls_in(entry, &bytes, target).is_empty())
        };
        let kinds = [Kind::Mutex, Kind::Write, Kind::Read];
        let unlocks: Vec<Kind> = kinds.into_iter().filter(|&k| calls(false, k) && !calls(true, k)).collect();
        code.unlocks.insert(entry, unlocks.clone());
        Ok(unlocks)
    }

    /// Where a frame stands in its function. Of a lock that is a variable only those lines count that take its address,
    /// and those that unlock what they take no address of.
    fn place_in(
        &self,
        memory: &dyn ReadMemory,
        code: &mut Code,
        frame: StackFrame,
        variable: Option<u64>,
    ) -> Result<Place, ProcessError> {
        let (binary, bias) = (self.engine.binary(), self.engine.bias());
        let pc = frame.pc().wrapping_sub(bias);
        let frames = binary.lookup(pc, frame.is_return_address());
        let (Some(outer), Some(function)) = (frames.last(), binary.function_at(pc)) else {
            return Ok(Place::Other);
        };
        if outer.wrapper || is_of_locks(&outer.function) {
            return Ok(Place::Other);
        }
        if !code.sites.contains_key(&function.entry) {
            let mut sites = Vec::new();
            if let Some(bytes) = self.code_of(memory, function.entry, function.end)? {
                let calls = code.entries.iter().flat_map(|&(target, locks, kind)| {
                    let calls = binary.calls_in(function.entry, &bytes, target).into_iter();
                    calls.map(move |pc| (pc, locks, kind))
                });
                sites.extend(calls.filter_map(|(pc, locks, kind)| {
                    let frames = binary.lookup(pc, true);
                    let line = own_line(&frames)?;
                    Some(Site { line, locks, kind })
                }));
                let of_locks =
                    |target| code.entries.iter().chain(&code.slow).any(|&(entry, ..)| entry == target);
                let others: Vec<(u64, u64)> = binary
                    .all_calls_in(function.entry, &bytes)
                    .into_iter()
                    .filter(|&(_, target)| !of_locks(target))
                    .collect();
                for (pc, target) in others {
                    let kinds = self.unlocks(memory, code, target)?;
                    if let (false, Some(line)) = (kinds.is_empty(), own_line(&binary.lookup(pc, true))) {
                        sites.extend(kinds.into_iter().map(|kind| Site { line, locks: false, kind }));
                    }
                }
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
        let Some(variable) = variable else {
            let sites = code.sites.get(&function.entry).map_or(&[][..], Vec::as_slice);
            return Ok(place_at(sites, outer.line));
        };
        let taken: Vec<(u32, bool)> = self
            .taken(memory, code, (function.entry, function.end))?
            .iter()
            .filter_map(|&(pc, address)| Some((own_line(&binary.lookup(pc, false))?, address == variable)))
            .collect();
        let mut sites = code.sites.get(&function.entry).cloned().unwrap_or_default();
        sites.retain(|site| {
            let its = || taken.iter().filter(|(line, _)| *line == site.line);
            its().any(|(_, is_it)| *is_it) || (!site.locks && its().next().is_none())
        });
        Ok(place_at(&sites, outer.line))
    }
}

/// The line of the compiled function that a call belongs to; `None` where it is a deferred one, which is called when
/// the function ends.
fn own_line(frames: &[Frame]) -> Option<u32> {
    let deferred = |f: &Frame| f.wrapper || f.function.contains(".deferwrap");
    let (own, inlined) = frames.split_last()?;
    (!inlined.iter().any(deferred) && own.line > 0).then_some(own.line)
}

/// Where a goroutine stands in a function that does something with locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind a line that locks, with no line between that unlocks.
    Locked,
    /// Behind a line that unlocks, with no line between that locks.
    Unlocked,
    Other,
}

fn place_at(sites: &[Site], line: u32) -> Place {
    let unlocked = |unlock: &Site| {
        let locks = |s: &Site| s.locks && s.kind == unlock.kind && s.line > unlock.line && s.line < line;
        !unlock.locks && unlock.line < line && !sites.iter().any(locks)
    };
    if is_locked_at(sites, line) {
        Place::Locked
    } else if sites.iter().any(unlocked) {
        Place::Unlocked
    } else {
        Place::Other
    }
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
        // Who unlocks to wait, and locks again.
        let pause = [site(10, false), site(20, true)];
        let places = [5, 15, 20, 25].map(|line| place_at(&pause, line));
        assert_eq!(places, [Place::Other, Place::Unlocked, Place::Unlocked, Place::Locked]);
    }
}
