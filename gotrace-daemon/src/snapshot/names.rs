//! Names for a snapshot's addresses: each distinct address is looked up once.
//!
//! Input: a parsed [`Binary`] and the addresses of a [`Snapshot`](super::Snapshot). Output: frames as Go's
//! own traceback prints them, inlined ones included, each with the mark whether the traceback leaves it
//! out at its default level.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::StackFrame;
use crate::gobin::{Binary, Frame};

/// A logical frame of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedFrame<'a> {
    /// Function, file, line. Its own `internal` knows one address only; [`NamedFrame::internal`] knows
    /// the stack.
    pub frame: &'a Frame,
    /// Address of the physical frame that it belongs to, in the living process.
    pub pc: u64,
    /// Number of the physical frame in the stack, from 0 for the innermost.
    pub physical: usize,
    /// Whether Go's traceback leaves it out at its default level.
    pub internal: bool,
}

/// Looks addresses up, and remembers them.
#[derive(Debug)]
pub struct Names {
    binary: Arc<Binary>,
    file: Option<Arc<File>>,
    bias: u64,
    frames: HashMap<StackFrame, Box<[Frame]>, FixedState>,
    entries: HashMap<u64, Option<Frame>, FixedState>,
}

impl Names {
    /// `bias`: mapped address less link-time address ([`super::Snapshot::bias`]). `file`: the executable,
    /// to look into the wrappers that the compiler makes.
    #[must_use]
    pub fn new(binary: Arc<Binary>, bias: u64, file: Option<Arc<File>>) -> Self {
        Self { binary, file, bias, frames: HashMap::default(), entries: HashMap::default() }
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// The frames of a stack, innermost first. An address outside of Go code has none.
    pub fn stack(&mut self, frames: &[StackFrame]) -> Vec<NamedFrame<'_>> {
        for frame in frames {
            self.load(*frame);
        }
        let mut named = Vec::new();
        let mut callee: Option<&str> = None;
        for (n, physical) in frames.iter().enumerate() {
            for frame in self.frames.get(physical).map_or(&[][..], |f| f) {
                let internal = frame.is_internal_below(callee);
                named.push(NamedFrame { frame, pc: physical.pc(), physical: n, internal });
                callee = Some(&frame.function);
            }
        }
        named
    }

    fn load(&mut self, frame: StackFrame) {
        let Self { binary, bias, frames, .. } = self;
        frames.entry(frame).or_insert_with(|| {
            binary.lookup(frame.pc().wrapping_sub(*bias), frame.is_return_address()).into()
        });
    }

    /// The function that a goroutine runs, by its entry address, with the place where it begins. The
    /// wrapper that the compiler makes of `go f(x)` is seen through. `None` for 0 and outside of Go code.
    pub fn entry(&mut self, entry_pc: u64) -> Option<&Frame> {
        let Self { binary, file, bias, entries, .. } = self;
        entries
            .entry(entry_pc)
            .or_insert_with(|| {
                binary.goroutine_function(entry_pc.wrapping_sub(*bias), &|offset, length| {
                    let mut code = vec![0; length];
                    file.as_deref()?.read_exact_at(&mut code, offset).ok()?;
                    Some(code)
                })
            })
            .as_ref()
    }

    /// The place of the `go` statement that made a goroutine: the innermost function, inlined or not, with
    /// file and line first; last the compiled function that holds it, which is the one that Go's own
    /// traceback names. Empty for 0 and outside of Go code.
    pub fn created_by(&mut self, created_pc: u64) -> &[Frame] {
        let frame = StackFrame::returning_to(created_pc);
        self.load(frame);
        self.frames.get(&frame).map_or(&[], |f| f)
    }
}
