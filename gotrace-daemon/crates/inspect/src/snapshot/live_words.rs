//! Which words of a goroutine's stack hold pointers that it will still use: what the collector takes in, no more
//! (`runtime/mgcmark.go`, `scanstack` and `scanframeworker`, Go 1.19 to 1.27).
//!
//! Input: the stack of a goroutine that does not run, as it was read, and the beginning of its `g`. Output: those
//! words; nothing where the stack cannot be followed to its end by exact tables, so that all of it has to be taken. By
//! frame ([`LiveFrames`]) what could be followed is told then.
//! Frames without a map, and those that a signal interrupted, are taken whole, with what they were given.
//! Untrusted: frames, objects and deferred calls are bounded.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Engine, StackFrame, Standing, Status,
    layout::word,
    unwind::{End, Start},
};
use gotrace_go::FrameMap;
use gotrace_process::{ProcessError, ReadMemory};

/// As much of a `g` as is needed: what refers to its own stack from there are the panic that is under way, the
/// deferred calls (`g._defer`), and the context of a closure (`g.sched.ctxt`).
pub const G_HEAD: usize = 128;
/// `stack.lo`, `stack.hi`, `stackguard0`, `stackguard1` at the beginning of a `g`: where a stack ends, another span's
/// first object may begin.
const G_STACK: usize = 32;
/// `g._defer`, Go 1.19 to 1.27.
const G_DEFER: usize = 40;
/// Bytes of a `runtime._defer` that may hold pointers.
const DEFER: usize = 80;
/// Deferred calls of one goroutine.
const MAX_DEFERS: usize = 4096;

/// What is known of a program counter.
#[derive(Clone, Debug)]
struct Known {
    map: Option<Arc<FrameMap>>,
    /// A signal called the function: its caller may go on somewhere else.
    injected: bool,
}

/// Maps by program counter, and what is used for one stack after the other.
#[derive(Debug, Default)]
pub(super) struct Maps {
    known: HashMap<u64, Known, FixedState>,
    objects: Vec<StackObject>,
    taken: Vec<bool>,
}

/// An object on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StackObject {
    first: u64,
    /// First address behind it.
    behind: u64,
    /// First address behind its pointers.
    pointers: u64,
    frame: u32,
}

/// A word that a goroutine will still use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveWord {
    /// What it holds.
    pub word: u64,
    /// Where on the stack it is; `None` where it is in the `g` or a deferred call's record elsewhere.
    pub address: Option<u64>,
    /// The position of its frame.
    frame: u32,
}

/// The frames of a goroutine that does not run, and what it will still use.
#[derive(Clone, Debug, Default)]
pub struct LiveFrames {
    /// The frames, the innermost first.
    pub frames: Vec<StackFrame>,
    /// Where the frame of each begins its caller's part of the stack: what it was called with is there.
    bases: Vec<u64>,
    /// The words, in no order.
    pub words: Vec<LiveWord>,
}

impl LiveFrames {
    /// Each frame with the words in it, the innermost first.
    #[must_use]
    pub fn by_frame(&self) -> Vec<(StackFrame, Vec<u64>)> {
        let mut frames: Vec<_> = self.frames.iter().map(|f| (*f, Vec::new())).collect();
        for word in &self.words {
            if let Some((_, words)) = frames.get_mut(word.frame as usize) {
                words.push(word.word);
            }
        }
        frames
    }
}

/// Takes the words that are found, in the order in which they are looked at again.
trait Words {
    fn add(&mut self, word: u64, address: Option<u64>, frame: u32);
    fn at(&self, n: usize) -> Option<u64>;
    fn count(&self) -> usize;
}

impl Words for Vec<u64> {
    fn add(&mut self, word: u64, _: Option<u64>, _: u32) {
        self.push(word);
    }

    fn at(&self, n: usize) -> Option<u64> {
        self.get(n).copied()
    }

    fn count(&self) -> usize {
        self.len()
    }
}

impl Words for Vec<LiveWord> {
    fn add(&mut self, word: u64, address: Option<u64>, frame: u32) {
        self.push(LiveWord { word, address, frame });
    }

    fn at(&self, n: usize) -> Option<u64> {
        self.get(n).map(|w| w.word)
    }

    fn count(&self) -> usize {
        self.len()
    }
}

/// Of no frame.
const NO_FRAME: u32 = u32::MAX;

impl Engine {
    /// Adds to `words` the pointers of a stack that are still used. `head`: the first [`G_HEAD`] bytes of its
    /// `g`; `bytes`: the stack from the stack pointer to its end. `false`: they are not known, and nothing that
    /// was added is complete.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn live_words(
        &mut self,
        memory: &dyn ReadMemory,
        standing: &Standing,
        head: &[u8],
        bytes: &[u8],
        words: &mut Vec<u64>,
    ) -> Result<bool, ProcessError> {
        let (mut frames, mut bases) = (Vec::new(), Vec::new());
        if self.follow(standing, bytes, &mut frames, &mut bases) != Some(End::Complete) {
            return Ok(false);
        }
        self.live(memory, standing, head, bytes, (&frames, &bases), words)
    }

    /// The frames of a goroutine with what it will still use. `bytes`: the stack from the stack pointer to its end.
    /// Where the stack cannot be followed to its end, or the `g` not be read, all words of the frames that are known.
    ///
    /// # Errors
    /// When the process is gone, or its memory may not be read.
    pub fn live_frames(
        &mut self,
        memory: &dyn ReadMemory,
        standing: &Standing,
        bytes: &[u8],
    ) -> Result<LiveFrames, ProcessError> {
        let mut found = LiveFrames::default();
        let Some(end) = self.follow(standing, bytes, &mut found.frames, &mut found.bases) else {
            return Ok(found);
        };
        let mut head = [0; G_HEAD];
        let known = end == End::Complete && memory.read_at(standing.g, &mut head)?;
        let followed = (&*found.frames, &*found.bases);
        if known && self.live(memory, standing, &head, bytes, followed, &mut found.words)? {
            return Ok(found);
        }
        found.words.clear();
        let (sp, behind) = (standing.sp.unwrap_or_default(), self.behind());
        let mut from = sp;
        for (n, &base) in found.bases.iter().enumerate() {
            let to = base.wrapping_sub(behind);
            for address in (from..to.min(standing.stack.1)).step_by(8) {
                let word = word(bytes, address.wrapping_sub(sp) as usize);
                found.words.add(word, Some(address), n as u32);
            }
            from = to;
        }
        // What could not be followed.
        for address in (from..standing.stack.1).step_by(8) {
            let word = word(bytes, address.wrapping_sub(sp) as usize);
            found.words.add(word, Some(address), NO_FRAME);
        }
        Ok(found)
    }

    /// The first two words that the innermost wanted frame was called with, where the function keeps them: of a method
    /// the first is its receiver, as long as the function still needs it. And that frame.
    pub fn first_arguments(
        &mut self,
        standing: &Standing,
        bytes: &[u8],
        wanted: &mut dyn FnMut(StackFrame) -> bool,
    ) -> Option<(StackFrame, [u64; 2])> {
        let (mut frames, mut bases) = (Vec::new(), Vec::new());
        self.follow(standing, bytes, &mut frames, &mut bases)?;
        let n = frames.iter().position(|&frame| wanted(frame))?;
        let at = usize::try_from(bases.get(n)?.checked_sub(standing.sp?)?).ok()?;
        let words = bytes.get(at..at.checked_add(16)?)?;
        Some((*frames.get(n)?, [word(words, 0), word(words, 8)]))
    }

    /// Follows a stack; `None` where `bytes` are not that.
    fn follow(
        &mut self,
        standing: &Standing,
        bytes: &[u8],
        frames: &mut Vec<StackFrame>,
        bases: &mut Vec<u64>,
    ) -> Option<End> {
        let (sp, reader) = (standing.sp?, self.readers.first_mut()?);
        if !sp.is_multiple_of(8) || standing.stack.1.checked_sub(sp) != Some(bytes.len() as u64) {
            return None;
        }
        let in_syscall = standing.status == Status::Syscall;
        let start = Start { pc: standing.pc, sp, lr: 0, in_syscall };
        Some(reader.places.unwind(&self.binary, start, bytes, frames, Some(bases)).0)
    }

    /// Behind a frame amd64 has the return address; arm64 keeps it within.
    fn behind(&self) -> u64 {
        if self.layout.arm64 { 8 } else { 0 }
    }

    /// Adds the words of a stack that was followed to its end.
    fn live(
        &mut self,
        memory: &dyn ReadMemory,
        standing: &Standing,
        head: &[u8],
        bytes: &[u8],
        (frames, bases): (&[StackFrame], &[u64]),
        words: &mut impl Words,
    ) -> Result<bool, ProcessError> {
        let begin = words.count();
        let Some(sp) = standing.sp else { return Ok(false) };
        let at = |address: u64| word(bytes, address.wrapping_sub(sp) as usize);
        let behind = self.behind();
        let maps = &mut self.maps;
        maps.objects.clear();
        let (mut from, mut whole) = (sp, false);
        for (n, (frame, &base)) in (0..).zip(frames.iter().zip(bases)) {
            let pc = frame.pc();
            let known = maps.known.entry(pc).or_insert_with(|| {
                let pc = pc.wrapping_sub(self.bias);
                Known {
                    map: self.binary.stack_map(pc).map(Arc::new),
                    injected: self.binary.unwind(pc).is_none_or(|u| u.injected),
                }
            });
            // Where this frame ends, and the caller's begins.
            let to = base.wrapping_sub(behind);
            match &known.map {
                Some(map) if !whole && !known.injected => {
                    let frame = to.wrapping_sub(u64::from(map.end));
                    for &slot in &map.slots {
                        let address = frame.wrapping_add(u64::from(slot));
                        words.add(at(address), Some(address), n);
                    }
                    maps.objects.extend(map.objects.iter().map(|o| {
                        let first = frame.wrapping_add(u64::from(o.offset));
                        let of = |len: u32| first.saturating_add(u64::from(len));
                        StackObject { first, behind: of(o.size), pointers: of(o.pointers), frame: n }
                    }));
                    whole = false;
                }
                map => {
                    let all = (from..to.min(standing.stack.1)).step_by(8);
                    all.for_each(|address| words.add(at(address), Some(address), n));
                    // Its arguments are in the caller's frame, and so are the caller's registers, or the caller goes
                    // on with its deferred calls.
                    whole = map.is_none() || known.injected;
                }
            }
            from = to;
        }
        if whole {
            let rest = (from..standing.stack.1).step_by(8);
            rest.for_each(|address| words.add(at(address), Some(address), NO_FRAME));
        }
        let of_g = head.chunks_exact(8).skip(G_STACK / 8);
        of_g.for_each(|b| words.add(word(b, 0), None, NO_FRAME));
        if !self.defers(memory, word(head, G_DEFER), (sp, bytes), bases, words)? {
            return Ok(false);
        }
        self.maps.take_objects((sp, bytes), begin, words);
        Ok(true)
    }

    /// Adds the records of deferred calls; some are on the stack, and nothing else refers to what they call.
    fn defers(
        &self,
        memory: &dyn ReadMemory,
        first: u64,
        (sp, bytes): (u64, &[u8]),
        bases: &[u64],
        words: &mut impl Words,
    ) -> Result<bool, ProcessError> {
        let link = if self.binary.go_version().minor >= 22 { 32 } else { 40 };
        let mut next = first;
        let mut record = [0; DEFER];
        for _ in 0..MAX_DEFERS {
            if next == 0 {
                return Ok(true);
            }
            let offset = next.checked_sub(sp).and_then(|o| usize::try_from(o).ok());
            match offset.and_then(|o| bytes.get(o..)).filter(|b| !b.is_empty()) {
                Some(on_stack) => {
                    let len = on_stack.len().min(DEFER);
                    record = [0; DEFER];
                    record[..len].copy_from_slice(&on_stack[..len]);
                }
                None if memory.read_at(next, &mut record)? => {}
                None => return Ok(false),
            }
            let on_stack = offset.filter(|&o| o < bytes.len()).is_some();
            let frame = if on_stack { bases.partition_point(|&base| base <= next) as u32 } else { NO_FRAME };
            for (n, b) in record.chunks_exact(8).enumerate() {
                words.add(word(b, 0), on_stack.then(|| next.wrapping_add(8 * n as u64)), frame);
            }
            next = word(&record, link);
        }
        Ok(false)
    }
}

impl Maps {
    /// Adds what objects on the stack hold, of those that a word from `begin` on points into, and so on.
    fn take_objects(&mut self, (sp, bytes): (u64, &[u8]), begin: usize, words: &mut impl Words) {
        self.objects.sort_unstable();
        self.taken.clear();
        self.taken.resize(self.objects.len(), false);
        let end = sp.saturating_add(bytes.len() as u64);
        let mut next = begin;
        while let Some(address) = words.at(next) {
            next += 1;
            if address < sp || address >= end {
                continue;
            }
            let after = self.objects.partition_point(|o| o.first <= address);
            let Some(n) = after.checked_sub(1) else { continue };
            let StackObject { first, behind, pointers, frame } = self.objects[n];
            if address >= behind || std::mem::replace(&mut self.taken[n], true) {
                continue;
            }
            for address in (first..pointers.min(end)).step_by(8) {
                words.add(word(bytes, address.wrapping_sub(sp) as usize), Some(address), frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_taken_in_where_something_points_into_them() {
        let stack: Vec<u8> = (0..16_u64).flat_map(|n| (0x1000 + 8 * n).to_le_bytes()).collect();
        // Of three words and two pointers, of one, and one that nothing leads to.
        let object = |first, behind, pointers, frame| StackObject { first, behind, pointers, frame };
        let objects = vec![
            object(0x1040, 0x1048, 0x1048, 2),
            object(0x1010, 0x1028, 0x1020, 1),
            object(0x1070, 0x1080, 0x1080, 3),
        ];
        let mut maps = Maps { objects, ..Maps::default() };
        // The words before are another stack's.
        let mut words = vec![0x1070, 7, 0x1020];
        maps.take_objects((0x1000, &stack), 1, &mut words);
        assert_eq!(words, [0x1070, 7, 0x1020, 0x1010, 0x1018]);
        // Each is of the frame that its object is in.
        let mut words = vec![LiveWord { word: 0x1020, address: None, frame: 5 }];
        maps.take_objects((0x1000, &stack), 0, &mut words);
        let of_object = |n: u64| LiveWord { word: 0x1000 + 8 * n, address: Some(0x1000 + 8 * n), frame: 1 };
        assert_eq!(words[1..], [of_object(2), of_object(3)]);
        // What a table says goes no further than the stack.
        maps.objects[2].pointers = u64::MAX;
        let mut words = vec![0x1078];
        maps.take_objects((0x1000, &stack), 0, &mut words);
        assert_eq!(words, [0x1078, 0x1070, 0x1078]);
    }
}
