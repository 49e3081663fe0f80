//! Which words of a goroutine's stack hold pointers that it will still use: what the collector takes in, no more
//! (`runtime/mgcmark.go`, `scanstack` and `scanframeworker`, Go 1.19 to 1.27).
//!
//! Input: the stack of a goroutine that waits or is in a system call, as it was read, and the beginning of its `g`. Output: those words;
//! nothing where the stack cannot be followed to its end by exact tables, so that all of it has to be taken.
//! Frames without a map, and those that a signal interrupted, are taken whole, with what they were given.
//! Untrusted: frames, objects and deferred calls are bounded.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Engine, Standing, Status,
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
    /// (first address, first address behind, first address behind its pointers) of objects on the stack.
    objects: Vec<(u64, u64, u64)>,
    taken: Vec<bool>,
}

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
        let begin = words.len();
        let (Some(sp), Some(reader)) = (standing.sp, self.readers.first_mut()) else { return Ok(false) };
        if !sp.is_multiple_of(8) || standing.stack.1.checked_sub(sp) != Some(bytes.len() as u64) {
            return Ok(false);
        }
        let in_syscall = standing.status == Status::Syscall;
        let start = Start { pc: standing.pc, sp, lr: 0, in_syscall };
        let (mut frames, mut bases) = (Vec::new(), Vec::new());
        let (end, _) = reader.places.unwind(&self.binary, start, bytes, &mut frames, Some(&mut bases));
        if end != End::Complete {
            return Ok(false);
        }
        let at = |address: u64| word(bytes, address.wrapping_sub(sp) as usize);
        let behind = if self.layout.arm64 { 8 } else { 0 };
        let maps = &mut self.maps;
        maps.objects.clear();
        let (mut from, mut whole) = (sp, false);
        for (frame, &base) in frames.iter().zip(&bases) {
            let pc = frame.pc();
            let known = maps.known.entry(pc).or_insert_with(|| {
                let pc = pc.wrapping_sub(self.bias);
                Known {
                    map: self.binary.stack_map(pc, false).map(Arc::new),
                    injected: self.binary.unwind(pc).is_none_or(|u| u.injected),
                }
            });
            // Where this frame ends, and the caller's begins.
            let to = base.wrapping_sub(behind);
            match &known.map {
                Some(map) if !whole && !known.injected => {
                    let frame = to.wrapping_sub(u64::from(map.end));
                    words.extend(map.slots.iter().map(|&slot| at(frame.wrapping_add(u64::from(slot)))));
                    maps.objects.extend(map.objects.iter().map(|o| {
                        let first = frame.wrapping_add(u64::from(o.offset));
                        let of = |len: u32| first.saturating_add(u64::from(len));
                        (first, of(o.size), of(o.pointers))
                    }));
                    whole = false;
                }
                map => {
                    words.extend((from..to.min(standing.stack.1)).step_by(8).map(at));
                    // Its arguments are in the caller's frame, and so are the caller's registers, or the caller goes
                    // on with its deferred calls.
                    whole = map.is_none() || known.injected;
                }
            }
            from = to;
        }
        if whole {
            words.extend((from..standing.stack.1).step_by(8).map(at));
        }
        words.extend(head.chunks_exact(8).skip(G_STACK / 8).map(|b| word(b, 0)));
        if !self.defers(memory, word(head, G_DEFER), (sp, bytes), words)? {
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
        words: &mut Vec<u64>,
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
            words.extend(record.chunks_exact(8).map(|b| word(b, 0)));
            next = word(&record, link);
        }
        Ok(false)
    }
}

impl Maps {
    /// Adds what objects on the stack hold, of those that a word from `begin` on points into, and so on.
    fn take_objects(&mut self, (sp, bytes): (u64, &[u8]), begin: usize, words: &mut Vec<u64>) {
        self.objects.sort_unstable();
        self.taken.clear();
        self.taken.resize(self.objects.len(), false);
        let end = sp.saturating_add(bytes.len() as u64);
        let mut next = begin;
        while let Some(&address) = words.get(next) {
            next += 1;
            if address < sp || address >= end {
                continue;
            }
            let after = self.objects.partition_point(|&(first, ..)| first <= address);
            let Some(n) = after.checked_sub(1) else { continue };
            let (first, behind, pointers) = self.objects[n];
            if address >= behind || std::mem::replace(&mut self.taken[n], true) {
                continue;
            }
            words.extend(
                (first..pointers.min(end)).step_by(8).map(|a| word(bytes, a.wrapping_sub(sp) as usize)),
            );
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
        let objects = vec![(0x1040, 0x1048, 0x1048), (0x1010, 0x1028, 0x1020), (0x1070, 0x1080, 0x1080)];
        let mut maps = Maps { objects, ..Maps::default() };
        // The words before are another stack's.
        let mut words = vec![0x1070, 7, 0x1020];
        maps.take_objects((0x1000, &stack), 1, &mut words);
        assert_eq!(words, [0x1070, 7, 0x1020, 0x1010, 0x1018]);
        // What a table says goes no further than the stack.
        maps.objects[2].2 = u64::MAX;
        let mut words = vec![0x1078];
        maps.take_objects((0x1000, &stack), 0, &mut words);
        assert_eq!(words, [0x1078, 0x1070, 0x1078]);
    }
}
