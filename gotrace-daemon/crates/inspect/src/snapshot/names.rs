//! Names for a snapshot's addresses: each distinct address is looked up once.
//!
//! Input: a parsed [`Binary`] and the addresses of a [`Snapshot`](super::Snapshot). Output: frames as Go's
//! own traceback prints them, inlined ones included, each with the mark whether the traceback leaves it
//! out at its default level.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::StackFrame;
use gotrace_go::{Binary, Frame, has_go_statement};
use gotrace_process::Executable;

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
    file: Option<Arc<Executable>>,
    bias: u64,
    frames: HashMap<StackFrame, Box<[Frame]>, FixedState>,
    entries: HashMap<u64, Option<Frame>, FixedState>,
    /// By entry: whether what runs is told by the stack only.
    covers: HashMap<u64, bool, FixedState>,
    /// Where functions begin, by an address in each; at which address of the process where they have code of their own,
    /// else where what holds them begins.
    beginnings: HashMap<(StackFrame, usize), (Option<u64>, Frame), FixedState>,
    /// Calls of `iter.Pull`, by where coroutines are made in it.
    pulls: HashMap<u64, Box<[Frame]>, FixedState>,
}

impl Names {
    /// `bias`: mapped address less link-time address ([`super::Snapshot::bias`]). `file`: the executable,
    /// to look into the wrappers that the compiler makes.
    #[must_use]
    pub fn new(binary: Arc<Binary>, bias: u64, file: Option<Arc<Executable>>) -> Self {
        Self {
            binary,
            file,
            bias,
            frames: HashMap::default(),
            entries: HashMap::default(),
            covers: HashMap::default(),
            beginnings: HashMap::default(),
            pulls: HashMap::default(),
        }
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// Mapped address less link-time address.
    #[must_use]
    pub fn bias(&self) -> u64 {
        self.bias
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

    /// The function that a goroutine runs, by its entry address and its stack, with the place where it begins. Where
    /// the entry is what the compiler or the runtime puts around it (`go` of a func value, a method value or a method
    /// of an interface; a coroutine of `iter.Pull`; the goroutines that run finalizers and cleanups), it is the
    /// outermost function of the stack that is none of these.
    pub fn runs(&mut self, entry_pc: u64, stack: &[StackFrame]) -> Option<&Frame> {
        let inside = if self.covers(entry_pc) { self.outermost(stack) } else { None };
        match inside {
            Some(key) => self.beginnings.get(&key).map(|(_, frame)| frame),
            None => self.entry(entry_pc),
        }
    }

    /// The entry of what a goroutine runs, by its own entry and its stack: another one where its own is a wrapper whose
    /// callee only its closure tells.
    pub fn runs_entry(&mut self, entry_pc: u64, stack: &[StackFrame]) -> u64 {
        if self.binary.callee_word(entry_pc.wrapping_sub(self.bias)).is_none() {
            return entry_pc;
        }
        let inside = self.outermost(stack).and_then(|key| self.beginnings.get(&key));
        inside.and_then(|(address, _)| *address).unwrap_or(entry_pc)
    }

    fn covers(&mut self, entry_pc: u64) -> bool {
        let Self { binary, bias, covers, .. } = self;
        *covers.entry(entry_pc).or_insert_with(|| {
            let own = binary.lookup(entry_pc.wrapping_sub(*bias), false).pop();
            own.is_some_and(|f| is_around(&f) && f.function != "runtime.main")
        })
    }

    /// The outermost function of a whole stack that is the program's: a physical frame, and which of its functions.
    fn outermost(&mut self, stack: &[StackFrame]) -> Option<(StackFrame, usize)> {
        let last = *stack.last()?;
        self.load(last);
        // One that was not followed to its end does not tell.
        if self.frames.get(&last)?.last()?.function != "runtime.goexit" {
            return None;
        }
        for &physical in stack.iter().rev() {
            self.load(physical);
            let frames = self.frames.get(&physical)?;
            let Some(n) = frames.iter().rposition(|f| !is_around(f)) else { continue };
            let key = (physical, n);
            if !self.beginnings.contains_key(&key) {
                let frame = frames.get(n)?.clone();
                let Self { binary, bias, .. } = self;
                let holder = || binary.function_at(physical.pc().wrapping_sub(*bias)).map(|f| f.entry);
                let own = if frame.inlined { binary.function_address(&frame.function) } else { holder() };
                let beginning = own.and_then(|entry| binary.lookup(entry, false).pop());
                let beginning = beginning.filter(|b| b.function == frame.function);
                let mut beginning = beginning.unwrap_or(frame);
                beginning.inlined = false;
                let address = own.or_else(holder).map(|entry| entry.wrapping_add(*bias));
                self.beginnings.insert(key, (address, beginning));
            }
            return Some(key);
        }
        None
    }

    /// The place of the `go` statement that made a goroutine: the innermost function, inlined or not, with
    /// file and line first; last the compiled function that holds it, which is the one that Go's own
    /// traceback names. A coroutine is made by the function that calls `iter.Pull`, if the program has only one call
    /// of it. Empty for 0, outside of Go code, and for the main goroutine, which comes from no `go` statement.
    pub fn created_by(&mut self, created_pc: u64) -> &[Frame] {
        let frame = StackFrame::returning_to(created_pc);
        self.load(frame);
        let outer = self.frames.get(&frame).and_then(|f| f.last());
        if outer.is_some_and(|f| !has_go_statement(&f.function)) {
            return &[];
        }
        if !outer.is_some_and(|f| f.function.starts_with("iter.Pull")) {
            return self.frames.get(&frame).map_or(&[], |f| f);
        }
        let Self { binary, file, bias, pulls, .. } = self;
        let by = pulls.entry(created_pc).or_insert_with(|| {
            let made = created_pc.wrapping_sub(*bias);
            let pull = binary.function_at(made).map_or(made, |f| f.entry);
            let read = |offset, length| {
                let mut code = vec![0; length];
                file.as_deref()?.read_exact_at(&mut code, offset).ok()?;
                Some(code)
            };
            match binary.callers(pull, &read)[..] {
                [caller] => {
                    let mut frames = binary.lookup(caller, true);
                    frames.retain(|f| !f.function.starts_with("iter.Pull"));
                    frames.into()
                }
                _ => Box::default(),
            }
        });
        if by.is_empty() { self.frames.get(&frame).map_or(&[], |f| f) } else { by }
    }
}

/// Whether a frame is around what a goroutine runs: made by the compiler, or of the machinery that calls it.
fn is_around(frame: &Frame) -> bool {
    let function = frame.function.as_str();
    frame.wrapper
        || function.starts_with("runtime.")
        || function == "reflectcall"
        || function.starts_with("iter.Pull")
}
