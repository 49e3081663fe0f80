//! Which words of a goroutine's stack hold pointers that it still uses, frame by frame, as the collector
//! itself goes by.
//!
//! Input: a goroutine that does not run, the bytes of its stack from its stack pointer up, and the
//! program's maps of frames ([`gotrace_go::FrameMap`]). Where a frame has no map, all of its words and
//! its caller's are told; where the stack cannot be followed, all words from there on.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Engine, StackFrame, Standing, Status,
    layout::word,
    unwind::{End, Start},
};
use gotrace_go::FrameMap;

/// Maps by program counter and whether the frame inside is that of a fault, and how often each kind was told.
#[derive(Debug, Default)]
pub struct FrameMaps {
    maps: HashMap<(u64, bool), Option<FrameMap>, FixedState>,
    frames: Vec<StackFrame>,
    bases: Vec<u64>,
    /// Frames of which only the words were told that hold pointers.
    pub exact: u64,
    /// Frames that were told whole, and ends of stacks that could not be followed.
    pub whole: u64,
}

impl Engine {
    /// Tells the words that may hold pointers, in pieces of one or more. `bytes`: all of the stack from its
    /// pointer up.
    pub fn used_words(
        &mut self,
        maps: &mut FrameMaps,
        standing: &Standing,
        bytes: &[u8],
        tell: &mut dyn FnMut(&[u8]),
    ) {
        self.used(maps, standing, bytes, &mut |_, words| tell(words));
    }

    /// The same, by frame, the innermost first; nothing of a goroutine whose frames are not known.
    pub fn used_by_frame(
        &mut self,
        maps: &mut FrameMaps,
        standing: &Standing,
        bytes: &[u8],
    ) -> Vec<(StackFrame, Vec<u64>)> {
        let mut used: Vec<(usize, u64)> = Vec::new();
        self.used(maps, standing, bytes, &mut |frame, words| {
            used.extend(words.chunks_exact(8).map(|b| (frame, word(b, 0))));
        });
        let mut frames: Vec<_> = maps.frames.iter().map(|f| (*f, Vec::new())).collect();
        for (frame, word) in used {
            if let Some((_, words)) = frames.get_mut(frame) {
                words.push(word);
            }
        }
        frames
    }

    /// The first two words that the innermost wanted frame was called with, where the function keeps them: of a method
    /// the first is its receiver, as long as the function still needs it. And that frame.
    pub fn first_arguments(
        &mut self,
        maps: &mut FrameMaps,
        standing: &Standing,
        bytes: &[u8],
        wanted: &mut dyn FnMut(StackFrame) -> bool,
    ) -> Option<(StackFrame, [u64; 2])> {
        self.used(maps, standing, bytes, &mut |_, _| {});
        let n = maps.frames.iter().position(|&frame| wanted(frame))?;
        let at = usize::try_from(maps.bases.get(n)?.checked_sub(standing.sp?)?).ok()?;
        let words = bytes.get(at..at.checked_add(16)?)?;
        Some((*maps.frames.get(n)?, [word(words, 0), word(words, 8)]))
    }

    /// Tells each with the number of its frame.
    fn used(
        &mut self,
        maps: &mut FrameMaps,
        standing: &Standing,
        bytes: &[u8],
        tell: &mut dyn FnMut(usize, &[u8]),
    ) {
        maps.frames.clear();
        let Some(sp) = standing.sp else { return tell(0, bytes) };
        let Some(reader) = self.readers.first_mut() else { return tell(0, bytes) };
        let in_syscall = standing.status == Status::Syscall;
        let start = Start { pc: standing.pc, sp, lr: 0, in_syscall };
        let FrameMaps { maps, frames, bases, exact, whole } = maps;
        let (end, _) = reader.places.unwind(&self.binary, start, bytes, frames, Some(bases));
        // Behind a frame amd64 has the return address; arm64 keeps it within.
        let behind = if self.layout.arm64 { 8 } else { 0 };
        let range = |from: usize, to: usize| bytes.get(from.min(to)..to.min(bytes.len())).unwrap_or_default();
        let mut begin = 0;
        let (mut panicked, mut whole_too) = (false, false);
        for (n, (frame, base)) in frames.iter().zip(&*bases).enumerate() {
            let after = base.wrapping_sub(sp).wrapping_sub(behind);
            let after = usize::try_from(after).unwrap_or(usize::MAX).min(bytes.len());
            let map = maps
                .entry((frame.pc(), panicked))
                .or_insert_with(|| self.binary.stack_map(frame.pc().wrapping_sub(self.bias), panicked));
            // A fault goes on with the function's deferred calls.
            panicked = reader.places.is_fault(&self.binary, frame.pc());
            match map.as_ref().filter(|m| begin + m.end as usize == after) {
                Some(map) => {
                    for &slot in &map.slots {
                        tell(n, range(begin + slot as usize, begin + slot as usize + 8));
                    }
                    for o in &map.objects {
                        let at = begin + o.offset as usize;
                        tell(n, range(at, at + o.pointers as usize));
                    }
                    if whole_too {
                        tell(n, range(begin, after));
                    }
                    *exact += u64::from(!whole_too);
                    *whole += u64::from(whole_too);
                    whole_too = false;
                }
                None => {
                    tell(n, range(begin, after));
                    *whole += 1;
                    whole_too = true;
                }
            }
            begin = after;
        }
        // Behind the outermost frame is nothing, or what could not be followed.
        tell(usize::MAX, range(begin, bytes.len()));
        *whole += u64::from(end != End::Complete);
    }
}
