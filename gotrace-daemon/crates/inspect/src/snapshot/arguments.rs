//! What functions were called with, as Go's tracebacks print it (`runtime/traceback.go`, `printArgs`, the
//! same from Go 1.18 to 1.27 but for where it looks up what is live): the words that the compiler's table of
//! a function names, in the bytes of a stack that was read.
//!
//! Input: the tables, in the process's read-only data, where [`Binary::argument_tables`] tells, and the bytes
//! of a stack. Output: [`Arguments`], bytes and how to print them. Both inputs are untrusted: a table without
//! an end within the length that the compiler keeps to is none, and little more than [`MAX_BYTES`] are kept.
//! What could not be read is not known, and counted.

use std::fmt::Write as _;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::StackFrame;
use gotrace_go::{ArgumentTables, Binary};
use gotrace_process::{ProcessError, ReadMemory};

/// Bytes of a table (`internal/abi/symtab.go`, `TraceArgsMaxLen`).
const MAX_TABLE: u64 = 171;
/// The smallest unit in which memory can be missing.
const PAGE: u64 = 4096;
/// Bytes of all goroutines that one reader reads, of which there are two at most; the arguments of frames
/// beyond are not known.
const MAX_BYTES: usize = 256 << 20;

const END: u8 = 0xff;
const OPEN: u8 = 0xfe;
const CLOSE: u8 = 0xfd;
const DOTS: u8 = 0xfc;
const TOO_FAR: u8 = 0xfb;

/// An element of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// A struct, array, string, slice or interface begins.
    Open,
    Close,
    /// There are more than the table tells.
    Dots,
    /// A word too far away for the table.
    TooFar,
    /// Bytes at an offset from the frame's arguments. Not `live`: the program may have put the register's
    /// place on the stack to another use, or never have filled it.
    Value {
        offset: u8,
        size: u8,
        live: bool,
    },
}

/// What a function's frames are printed as at one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shape(Box<[Token]>);

impl Shape {
    /// Reads a table; `None` when it does not end within the bytes.
    fn parse(table: &[u8]) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut bytes = table.iter().copied();
        loop {
            tokens.push(match bytes.next()? {
                END => return Some(Self(tokens.into())),
                OPEN => Token::Open,
                CLOSE => Token::Close,
                DOTS => Token::Dots,
                TOO_FAR => Token::TooFar,
                offset => Token::Value { offset, size: bytes.next()?.min(8), live: true },
            });
        }
    }

    /// How many bits tell which values are live, when those from an offset on have one each.
    fn slots(&self, first: u8) -> usize {
        self.0.iter().filter(|t| matches!(t, Token::Value { offset, .. } if *offset >= first)).count()
    }

    /// Marks the values whose bits say that they are not live.
    fn mark(&mut self, first: u8, bits: &[u8]) {
        let values = self.0.iter_mut().filter_map(|t| match t {
            Token::Value { offset, live, .. } if *offset >= first => Some(live),
            _ => None,
        });
        for (slot, live) in values.enumerate() {
            *live = bits.get(slot / 8).is_none_or(|b| b & (1 << (slot % 8)) != 0);
        }
    }

    fn values(&self) -> impl Iterator<Item = (usize, usize)> {
        self.0.iter().filter_map(|t| match *t {
            Token::Value { offset, size, .. } => Some((usize::from(offset), usize::from(size))),
            _ => None,
        })
    }

    /// Bytes from a frame's arguments to behind the last that is printed.
    fn reach(&self) -> u64 {
        self.values().map(|(offset, size)| (offset + size) as u64).max().unwrap_or(0)
    }

    /// What a traceback has between the parentheses; takes the bytes of the values from the front.
    fn print(&self, bytes: &mut &[u8]) -> String {
        let mut text = String::new();
        let mut first = true;
        for token in &self.0 {
            if !first && *token != Token::Close {
                text.push_str(", ");
            }
            first = *token == Token::Open;
            match *token {
                Token::Open => text.push('{'),
                Token::Close => text.push('}'),
                Token::Dots => text.push_str("..."),
                Token::TooFar => text.push('_'),
                Token::Value { size, live, .. } => {
                    let mut word = [0; 8];
                    let size = usize::from(size).min(bytes.len());
                    let (value, rest) = bytes.split_at(size);
                    *bytes = rest;
                    word[..size].copy_from_slice(value);
                    // A string takes it.
                    let _ = write!(text, "{:#x}", u64::from_le_bytes(word));
                    text.push_str(if live { "" } else { "?" });
                }
            }
        }
        text
    }
}

/// The arguments of all frames of a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// By frame; `None` where the table could not be read.
    shapes: HashMap<StackFrame, Option<Shape>, FixedState>,
    /// For each frame of a stack, from the innermost on, 1 and the bytes of its values, or 0 where they are
    /// not known.
    bytes: Vec<u8>,
    /// Address of each `g` and where its stack begins in `bytes`; sorted by [`Arguments::finish`].
    begins: Vec<(u64, usize)>,
    /// Those of other `g`s that a second reader read. Apart: it has looked up the tables itself.
    others: Option<Box<Self>>,
}

/// Where a stack's arguments are, until it is known whether the goroutine stood still.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    begin: usize,
    /// Frames whose arguments could not be read.
    pub unreadable: u64,
}

impl Arguments {
    /// Learns what the frames of a stack are printed as. Gives how many bytes from the stack pointer `sp` on
    /// that takes; `bases` are where the arguments of each frame begin.
    pub(super) fn reach(
        &mut self,
        memory: &dyn ReadMemory,
        (binary, bias): (&Binary, u64),
        sp: u64,
        frames: &[StackFrame],
        bases: &[u64],
    ) -> Result<u64, ProcessError> {
        let mut reach = 0;
        for (frame, base) in frames.iter().zip(bases) {
            let shape = match self.shapes.entry(*frame) {
                hashbrown::hash_map::Entry::Occupied(known) => known.into_mut(),
                hashbrown::hash_map::Entry::Vacant(new) => new.insert(load(memory, binary, bias, *frame)?),
            };
            let needed = shape.as_ref().map_or(0, Shape::reach);
            if needed > 0 && *base >= sp {
                reach = reach.max((base - sp).saturating_add(needed));
            }
        }
        Ok(reach)
    }

    /// Keeps the arguments of a stack whose bytes from `sp` on are given, after [`Arguments::reach`].
    pub(super) fn keep(&mut self, sp: u64, frames: &[StackFrame], bases: &[u64], bytes: &[u8]) -> Kept {
        let mut kept = Kept { begin: self.bytes.len(), unreadable: 0 };
        // Not even that they are not known is kept then: other goroutines may have the same stack.
        if kept.begin >= MAX_BYTES {
            return Kept { begin: usize::MAX, unreadable: frames.len() as u64 };
        }
        for (frame, base) in frames.iter().zip(bases) {
            let begin = self.bytes.len();
            self.bytes.push(1);
            let shape = self.shapes.get(frame).and_then(Option::as_ref).filter(|_| begin < MAX_BYTES);
            let whole = shape.is_some_and(|shape| {
                shape.values().all(|(offset, size)| {
                    let at = base.checked_sub(sp).and_then(|o| usize::try_from(o).ok());
                    let at = at.and_then(|o| o.checked_add(offset));
                    let value = at.and_then(|at| bytes.get(at..at.checked_add(size)?));
                    self.bytes.extend_from_slice(value.unwrap_or_default());
                    value.is_some()
                })
            });
            if !whole {
                self.bytes.truncate(begin);
                self.bytes.push(0);
                kept.unreadable += 1;
            }
        }
        kept
    }

    /// A stack is that of this `g`.
    pub(super) fn add(&mut self, g: u64, kept: Kept) {
        self.begins.push((g, kept.begin));
    }

    /// Adds those of other `g`s.
    pub(super) fn adopt(&mut self, others: Self) {
        self.others = Some(Box::new(others));
    }

    /// All are there.
    pub(super) fn finish(&mut self) {
        self.begins.sort_unstable();
        if let Some(others) = &mut self.others {
            others.finish();
        }
    }

    /// What a traceback has between the parentheses of each frame of a `g`'s stack; `None` where that is not
    /// known.
    pub(super) fn of(&self, g: u64, frames: &[StackFrame]) -> Vec<Option<String>> {
        let Ok(n) = self.begins.binary_search_by_key(&g, |&(g, _)| g) else {
            let unknown = || vec![None; frames.len()];
            return self.others.as_ref().map_or_else(unknown, |others| others.of(g, frames));
        };
        let begin = self.begins.get(n).map_or(usize::MAX, |&(_, begin)| begin);
        let mut bytes = self.bytes.get(begin..).unwrap_or_default();
        let print = |frame: &StackFrame| {
            let (known, rest) = bytes.split_first()?;
            bytes = rest;
            let shape = self.shapes.get(frame).and_then(Option::as_ref).filter(|_| *known == 1)?;
            Some(shape.print(&mut bytes))
        };
        frames.iter().map(print).collect()
    }
}

/// What a frame is printed as; `None` when its tables cannot be read.
fn load(
    memory: &dyn ReadMemory,
    binary: &Binary,
    bias: u64,
    frame: StackFrame,
) -> Result<Option<Shape>, ProcessError> {
    let (table, liveness) =
        match binary.argument_tables(frame.pc().wrapping_sub(bias), frame.is_return_address()) {
            ArgumentTables::None => return Ok(Some(Shape::default())),
            ArgumentTables::Unknown => return Ok(None),
            ArgumentTables::At { table, liveness } => (table.wrapping_add(bias), liveness),
        };
    let Some(mut shape) = read_shape(memory, table)? else { return Ok(None) };
    let Some((liveness, index)) = liveness else { return Ok(Some(shape)) };
    let liveness = liveness.wrapping_add(bias);
    let mut first = [0];
    if !memory.read_at(liveness, &mut first)? {
        return Ok(None);
    }
    let mut bits = vec![0; shape.slots(first[0]).div_ceil(8)];
    if !bits.is_empty() && !memory.read_at(liveness.wrapping_add(u64::from(index)), &mut bits)? {
        return Ok(None);
    }
    shape.mark(first[0], &bits);
    Ok(Some(shape))
}

/// Reads a table of unknown length: behind the page that it begins in only if it does not end there.
fn read_shape(memory: &dyn ReadMemory, address: u64) -> Result<Option<Shape>, ProcessError> {
    let page = PAGE - address % PAGE;
    for len in [MAX_TABLE.min(page), MAX_TABLE] {
        let mut table = vec![0; usize::try_from(len).unwrap_or_default()];
        if !memory.read_at(address, &mut table)? {
            return Ok(None);
        }
        if let Some(shape) = Shape::parse(&table) {
            return Ok(Some(shape));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
