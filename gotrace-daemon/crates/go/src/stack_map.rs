//! Which words of a stack frame hold pointers that are still used: what the collector itself goes by, and
//! still there in a stripped binary.
//!
//! Source: `runtime/stkframe.go`, `getStackMap` (`runtime/stack.go` in Go 1.19), and `runtime/mgcmark.go`,
//! `scanframeworker`, Go 1.19 to 1.27, the same on amd64 and arm64 but for the smallest frame. Input is the
//! function table, untrusted: whatever does not fit together gives no map, and a frame without a map has to
//! be taken whole.

use std::borrow::Cow;

use super::{
    Arch, Binary,
    bytes::{u8_at, u32_at},
    pclntab::{Func, View},
};

/// Index of the bitmap by pc, among a function's `pcdata` (`abi.PCDATA_StackMapIndex`).
const PCDATA_STACK_MAP: usize = 1;
/// Among its `funcdata`: bitmaps of arguments, bitmaps of locals, objects on the stack.
const FUNCDATA_ARGS: usize = 0;
const FUNCDATA_LOCALS: usize = 1;
const FUNCDATA_OBJECTS: usize = 2;
/// `abi.ArgsSizeUnknown`: assembly, and the stubs of package reflect.
const ARGS_UNKNOWN: u32 = 0x8000_0000;
/// Words of a frame that a map may speak of: 8 MiB.
const MAX_WORDS: u32 = 1 << 20;
/// Objects of a frame.
const MAX_OBJECTS: u64 = 1 << 16;
const OBJECT_RECORD: usize = 16;

/// The pointers of one frame, as the program counter tells them.
///
/// Offsets are in bytes from the frame's stack pointer at that program counter. The frame itself ends
/// [`Self::end`] bytes from there; what lies behind belongs to the caller's frame, and of it this frame's
/// arguments are in [`Self::slots`] here and not in the caller's map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameMap {
    /// Where the words are that hold pointers, ascending. A word that is not here is no pointer, or one that
    /// is never used again; the objects below are apart from this.
    pub slots: Box<[u32]>,
    /// Variables whose address was taken. The collector takes in one only where a live word on this stack, or
    /// a deferred call, points into it. Taking all of them in, without looking for that, keeps more than the
    /// collector does and never less.
    pub objects: Box<[StackObject]>,
    /// Where the frame ends: the caller's stack pointer after the call has returned.
    pub end: u32,
}

/// A variable on the stack whose address was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackObject {
    /// Where it begins, in bytes from the frame's stack pointer.
    pub offset: u32,
    /// Its length in bytes: a pointer into it keeps all of it.
    pub size: u32,
    /// Bytes at its beginning in which it may hold pointers. Which of their words do, its type tells; here
    /// each may.
    pub pointers: u32,
}

impl Binary {
    /// The pointers of the frame whose program counter this is (link-time address): where the function goes on
    /// when its callee returns, or where a goroutine was stopped. A function that faulted goes on elsewhere
    /// (its callee is `runtime.sigpanic`): this is not for it.
    ///
    /// `None` where there is no exact answer: outside of Go code, in assembly and stubs that do not say what
    /// arguments they have, at `runtime.asyncPreempt` and `runtime.debugCallV2`, whose frames hold their
    /// caller's registers, and where the tables do not fit together. Every word of such a frame **and of its
    /// caller's** may be a pointer.
    #[must_use]
    pub fn stack_map(&self, pc: u64) -> Option<FrameMap> {
        let view = self.view();
        let pc = self.relative(pc)?;
        let f = view.func(view.index_at(pc)?)?;
        view.stack_map(&f, pc, self.arch)
    }
}

impl View<'_> {
    fn stack_map(&self, f: &Func, pc: u32, arch: Arch) -> Option<FrameMap> {
        if matches!(&*self.name(f), b"runtime.asyncPreempt" | b"runtime.debugCallV2")
            || f.args == ARGS_UNKNOWN
        {
            return None;
        }
        let delta = self.stack_delta(f, pc)?;
        // amd64: below the return address; arm64: the caller's stack pointer. Both keep the caller's frame
        // pointer in the word below, if there is a frame.
        let (varp, argp) = (if delta > 0 { delta.checked_sub(8)? } else { 0 }, delta.checked_add(8)?);
        let end = match arch {
            Arch::Amd64 => argp,
            Arch::Arm64 => delta,
        };
        let index = if pc == f.entry {
            0
        } else {
            let value = match self.pcdata(f, PCDATA_STACK_MAP) {
                // No table: the same as a value of -1 everywhere.
                None | Some(0) => -1,
                Some(table) => self.value_at(table, f, pc.checked_sub(1)?)?,
            };
            // -1: in the prologue, where the map of the entry holds.
            u32::try_from(if value == -1 { 0 } else { value }).ok()?
        };
        let smallest = match arch {
            Arch::Amd64 => 0,
            Arch::Arm64 => 16,
        };
        let mut slots = Vec::new();
        if varp > smallest {
            let (bits, words) = self.bitmap(self.funcdata(f, FUNCDATA_LOCALS)?, index)?;
            let begin = varp.checked_sub(words.checked_mul(8)?)?;
            push(&mut slots, &bits, words, begin);
        }
        if f.args >= 8 {
            let (bits, words) = self.bitmap(self.funcdata(f, FUNCDATA_ARGS)?, index)?;
            argp.checked_add(words.checked_mul(8)?)?;
            push(&mut slots, &bits, words, argp);
        }
        let objects = match self.funcdata(f, FUNCDATA_OBJECTS) {
            Some(at) => self.stack_objects(at, varp, argp)?,
            None => Box::default(),
        };
        Some(FrameMap { slots: slots.into(), objects, end })
    }

    /// The n-th bitmap of a set, and how many bits it has (`runtime.stackmap`).
    fn bitmap(&self, at: u32, n: u32) -> Option<(Cow<'_, [u8]>, u32)> {
        let at = at as usize;
        let (count, words) = (self.inline.u32_at(at)?, self.inline.u32_at(at.checked_add(4)?)?);
        // Both are signed in the runtime.
        if count == 0 || count > i32::MAX as u32 || words > MAX_WORDS {
            return None;
        }
        if words == 0 {
            return Some((Cow::default(), 0));
        }
        let len = words.div_ceil(8) as usize;
        let begin = at.checked_add(8)?.checked_add(len.checked_mul(n as usize)?)?;
        let bits = self.inline.slice(begin, len)?;
        (n < count).then_some((bits, words))
    }

    /// Objects on the stack (`runtime.stackObjectRecord`): below the locals' end where the offset is negative,
    /// else among the arguments.
    fn stack_objects(&self, at: u32, varp: u32, argp: u32) -> Option<Box<[StackObject]>> {
        let at = at as usize;
        let count = self.inline.u64_at(at).filter(|&n| n <= MAX_OBJECTS)? as usize;
        let records = self.inline.slice(at.checked_add(8)?, count.checked_mul(OBJECT_RECORD)?)?;
        let mut objects = Vec::with_capacity(count);
        for record in records.chunks_exact(OBJECT_RECORD) {
            let signed = |at| u32_at(record, at).map(u32::cast_signed);
            let (offset, size) = (signed(0)?, u32::try_from(signed(4)?).ok()?);
            // Negative up to Go 1.23 where a program, not a bitmap, tells the pointers.
            let pointers = signed(8)?.unsigned_abs();
            if pointers > size {
                return None;
            }
            let base = if offset < 0 { varp } else { argp };
            let begin = i64::from(base) + i64::from(offset);
            // The frame may not have grown that far yet.
            let Ok(offset) = u32::try_from(begin) else { continue };
            offset.checked_add(size)?;
            objects.push(StackObject { offset, size, pointers });
        }
        Some(objects.into())
    }

    /// Where the maps of a function end in [`View::inline`]; `None` where it has none, or broken ones.
    pub fn stack_maps_end(&self, f: &Func) -> Option<usize> {
        let bitmaps = |n: usize| {
            let at = self.funcdata(f, n)? as usize;
            let (count, words) = (self.inline.u32_at(at)?, self.inline.u32_at(at.checked_add(4)?)?);
            (words.div_ceil(8) as usize).checked_mul(count as usize)?.checked_add(8)?.checked_add(at)
        };
        let objects = || {
            let at = self.funcdata(f, FUNCDATA_OBJECTS)? as usize;
            let count = self.inline.u64_at(at).filter(|&n| n <= MAX_OBJECTS)? as usize;
            count.checked_mul(OBJECT_RECORD)?.checked_add(8)?.checked_add(at)
        };
        let ends = [bitmaps(FUNCDATA_ARGS), bitmaps(FUNCDATA_LOCALS), objects()];
        ends.into_iter().flatten().filter(|&end| end <= self.inline.len()).max()
    }
}

/// Adds the offsets of a bitmap's bits.
fn push(slots: &mut Vec<u32>, bits: &[u8], words: u32, begin: u32) {
    for word in 0..words {
        let byte = u8_at(bits, word as usize / 8).unwrap_or_default();
        if byte >> (word % 8) & 1 != 0 {
            slots.push(begin + 8 * word);
        }
    }
}
