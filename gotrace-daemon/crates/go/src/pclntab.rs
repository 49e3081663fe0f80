//! Go's function table (pclntab): functions, files, lines and inlined calls of a program counter.
//!
//! Stripping leaves it in place, since tracebacks need it. Format: `runtime/symtab.go`,
//! `cmd/link/internal/ld/pcln.go`, Go 1.18 to 1.27. Input is the table's bytes, untrusted: offsets may
//! point anywhere, tables may be cut, and a walk ends after a bounded number of steps.

use std::{borrow::Cow, ops::Range};

use super::{
    Arch,
    bytes::{index_at, slice, u32_at, u64_at},
    packed::Bytes,
};

/// Table of inlined calls among a function's `funcdata` (`internal/abi`, `FUNCDATA_InlTree`).
const FUNCDATA_INLINE_TREE: usize = 3;
/// How a function's arguments are printed (`FUNCDATA_ArgInfo`), and which of them are live
/// (`FUNCDATA_ArgLiveInfo`).
const FUNCDATA_ARGUMENTS: usize = 5;
const FUNCDATA_LIVE_ARGUMENTS: usize = 6;
/// Index into it by pc, among a function's `pcdata` (`PCDATA_InlTreeIndex`).
const PCDATA_INLINE_INDEX: usize = 2;
/// Offset by pc in the table of live arguments (`PCDATA_ArgLiveIndex`).
const PCDATA_LIVE_ARGUMENTS: usize = 3;
/// The compiler stops inlining long before.
const MAX_INLINE_DEPTH: usize = 64;
/// Entries of one pc-value table; the largest functions have some ten thousand.
const MAX_PC_STEPS: usize = 1 << 20;
/// Bytes of a name or path; type arguments can make names long, but not that long.
const MAX_TEXT: usize = 1 << 16;
const MAGIC_118: u32 = 0xffff_fff0;
const MAGIC_120: u32 = 0xffff_fff1;
const HEADER: usize = 72;

/// Where the parts of a table are, relative to its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub functions: usize,
    /// 0 from Go 1.26 on, and in position-independent executables before relocation.
    pub text_start: u64,
    names: usize,
    compilation_units: usize,
    files: usize,
    pc_values: usize,
    pub functab: usize,
    /// Whether functions have a start line and inlined calls take 16 bytes (Go 1.20 and later).
    since_120: bool,
    quantum: u32,
}

impl Header {
    /// Reads a header; `None` where there is none, or one that cannot be right.
    pub fn parse(data: &[u8], arch: Arch) -> Option<Self> {
        let magic = u32_at(data, 0)?;
        let since_120 = match magic {
            MAGIC_118 => false,
            MAGIC_120 => true,
            _ => return None,
        };
        let quantum = match arch {
            Arch::Amd64 => 1,
            Arch::Arm64 => 4,
        };
        if slice(data, 4, 4)? != [0, 0, quantum, 8] {
            return None;
        }
        let header = Self {
            functions: index_at(data, 8)?,
            text_start: u64_at(data, 24)?,
            names: index_at(data, 32)?,
            compilation_units: index_at(data, 40)?,
            files: index_at(data, 48)?,
            pc_values: index_at(data, 56)?,
            functab: index_at(data, 64)?,
            since_120,
            quantum: u32::from(quantum),
        };
        let ordered = HEADER <= header.names
            && header.names < header.compilation_units
            && header.compilation_units <= header.files
            && header.files <= header.pc_values
            && header.pc_values <= header.functab;
        let functab_size = header.functions.checked_mul(8)?.checked_add(4)?;
        slice(data, header.functab, functab_size)?;
        (ordered && header.functions > 0).then_some(header)
    }

    /// Where the entries of all functions are, ascending.
    pub fn searched(&self) -> Range<usize> {
        self.functab..self.functab + 8 * self.functions + 4
    }

    /// All names in a table, with their offsets.
    pub fn names<'a>(&self, table: &'a [u8]) -> impl Iterator<Item = (u32, &'a [u8])> + use<'a> {
        let names = table.get(self.names..self.compilation_units).unwrap_or_default();
        let mut at = 0usize;
        names.split(|&b| b == 0).map(move |name| {
            let begin = at;
            at += name.len() + 1;
            (u32::try_from(begin).unwrap_or(u32::MAX), name)
        })
    }

    /// A function's name in a table with whatever follows it: for comparisons that need not know its length.
    pub fn name_start<'a>(&self, table: &'a [u8], f: &Func) -> &'a [u8] {
        let at = self.names.saturating_add(f.name as usize);
        table.get(..self.compilation_units).and_then(|names| names.get(at..)).unwrap_or_default()
    }

    /// Whether bytes may begin a table; cheap.
    pub fn may_begin(data: &[u8]) -> bool {
        matches!(u32_at(data, 0), Some(MAGIC_118 | MAGIC_120))
    }
}

/// A function's record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Func {
    /// First address, relative to the text's beginning.
    pub entry: u32,
    /// First address behind it.
    pub end: u32,
    /// Offset of its name ([`Header::names`]).
    pub name: u32,
    /// Bytes of arguments and results on the caller's stack, or `abi.ArgsSizeUnknown`.
    pub args: u32,
    pc_stack: u32,
    pc_file: u32,
    pc_line: u32,
    unit: u32,
    pcdata_count: usize,
    funcdata_count: usize,
    /// Kind of function (`internal/abi.FuncID`).
    pub id: u8,
    /// Properties (`internal/abi.FuncFlag`).
    pub flags: u8,
    /// Where the record's variable part begins.
    tail: usize,
}

impl Func {
    /// Where the record ends.
    pub fn record_end(&self) -> usize {
        self.tail + 4 * (self.pcdata_count + self.funcdata_count)
    }
}

/// A logical frame.
#[derive(Clone, Debug)]
pub(super) struct RawFrame<'a> {
    pub name: Cow<'a, [u8]>,
    pub file: Cow<'a, [u8]>,
    pub line: u32,
    pub id: u8,
    pub inlined: bool,
}

/// A table in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub header: Header,
    /// From the header on.
    pub data: Bytes<'a>,
    /// Tables of inlined calls and of pointers on the stack: what `funcdata` offsets count from. Empty when
    /// not found.
    pub inline: Bytes<'a>,
}

impl<'a> View<'a> {
    /// The n-th function.
    pub fn func(&self, n: usize) -> Option<Func> {
        if n >= self.header.functions {
            return None;
        }
        let at = self.header.functab + 8 * n;
        let entry = self.data.u32_at(at)?;
        let end = self.data.u32_at(at + 8)?;
        let record = self.header.functab.checked_add(self.data.u32_at(at + 4)? as usize)?;
        let word = |i: usize| self.data.u32_at(record + 4 * i);
        let tail = record + if self.header.since_120 { 40 } else { 36 };
        Some(Func {
            entry,
            end,
            name: word(1)?,
            args: word(2)?,
            pc_stack: word(4)?,
            pc_file: word(5)?,
            pc_line: word(6)?,
            pcdata_count: word(7)? as usize,
            unit: word(8)?,
            id: self.data.u8_at(tail)?,
            flags: self.data.u8_at(tail + 1)?,
            funcdata_count: usize::from(self.data.u8_at(tail + 3)?),
            tail: tail + 4,
        })
    }

    /// Index of the function at an address relative to the text's beginning.
    pub fn index_at(&self, pc: u32) -> Option<usize> {
        let searched = self.header.searched();
        if searched.end > self.data.len() {
            return None;
        }
        let entry = |n: usize| self.data.u32_at(searched.start + 8 * n).unwrap_or(u32::MAX);
        let (mut low, mut high) = (0, self.header.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if entry(middle) <= pc {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let n = low.checked_sub(1)?;
        (pc >= entry(n) && pc < entry(n + 1)).then_some(n)
    }

    /// A function's name.
    pub fn name(&self, f: &Func) -> Cow<'a, [u8]> {
        self.name_at(f.name)
    }

    fn name_at(&self, offset: u32) -> Cow<'a, [u8]> {
        self.text_at(self.header.names, offset, self.header.compilation_units)
    }

    /// A function's name, or so many bytes of it.
    pub fn name_beginning(&self, f: &Func, most: usize) -> Cow<'a, [u8]> {
        let at = self.header.names.saturating_add(f.name as usize);
        let end = self.header.compilation_units.min(at.saturating_add(most));
        self.data.cstr(at, end).or_else(|| self.data.slice(at, end.checked_sub(at)?)).unwrap_or_default()
    }

    /// Whether a function has this name: for comparisons that need not read all of a longer one.
    pub fn is_named(&self, f: &Func, name: &[u8]) -> bool {
        let at = self.header.names.saturating_add(f.name as usize);
        let end = self.header.compilation_units;
        at.saturating_add(name.len()) < end
            && self.data.u8_at(at + name.len()) == Some(0)
            && self.data.slice(at, name.len()).is_some_and(|found| *found == *name)
    }

    fn text_at(&self, table: usize, offset: u32, end: usize) -> Cow<'a, [u8]> {
        let at = table.saturating_add(offset as usize);
        self.data.cstr(at, end.min(at.saturating_add(MAX_TEXT))).unwrap_or_default()
    }

    /// Steps of a pc-value table: (value, first pc behind it), pcs relative to the function.
    fn steps(&self, table: u32, f: &Func) -> impl Iterator<Item = (i32, u32)> + use<'a> {
        let quantum = self.header.quantum;
        let len = f.end.saturating_sub(f.entry);
        // Offset 0 means no table.
        let at = if table == 0 { usize::MAX } else { self.header.pc_values + table as usize };
        let mut from = self.data.from(at);
        let (mut value, mut pc, mut first) = (-1i32, 0u32, true);
        std::iter::from_fn(move || {
            if pc >= len {
                return None;
            }
            let delta = from.uvarint()?;
            if delta == 0 && !first {
                return None;
            }
            first = false;
            // Zigzag: the lowest bit is the sign.
            #[expect(clippy::cast_possible_wrap, reason = "the bit pattern is what is meant")]
            let signed = (delta >> 1) as i32 ^ -((delta & 1) as i32);
            value = value.wrapping_add(signed);
            let advance = from.uvarint()?.checked_mul(quantum).filter(|&n| n > 0)?;
            pc = pc.saturating_add(advance);
            Some((value, pc))
        })
        .take(MAX_PC_STEPS)
    }

    /// The value of a pc-value table at an address relative to the text's beginning.
    pub fn value_at(&self, table: u32, f: &Func, pc: u32) -> Option<i32> {
        let pc = pc.checked_sub(f.entry)?;
        self.steps(table, f).find(|&(_, end)| pc < end).map(|(value, _)| value)
    }

    /// Bytes from the stack pointer to the caller's frame at an address of the function; `None` where the
    /// function does not say.
    pub fn stack_delta(&self, f: &Func, pc: u32) -> Option<u32> {
        self.value_at(f.pc_stack, f, pc).and_then(|n| u32::try_from(n).ok())
    }

    /// Offset of one of a function's pc-value tables.
    pub fn pcdata(&self, f: &Func, n: usize) -> Option<u32> {
        if n >= f.pcdata_count {
            return None;
        }
        self.data.u32_at(f.tail + 4 * n)
    }

    /// Offset in [`View::inline`] of one of a function's data.
    pub fn funcdata(&self, f: &Func, n: usize) -> Option<u32> {
        if n >= f.funcdata_count {
            return None;
        }
        let at = f.tail.checked_add(4 * (f.pcdata_count.checked_add(n)?))?;
        self.data.u32_at(at).filter(|&o| o != u32::MAX)
    }

    fn inline_tree(&self, f: &Func) -> Option<u32> {
        self.funcdata(f, FUNCDATA_INLINE_TREE)
    }

    /// Where the table of a function's arguments is, and, where one tells at this address which of them are
    /// live, that one with the offset of the bits in it. `None`: nothing is printed of it.
    pub fn arguments(&self, f: &Func, pc: u32) -> Option<(u32, Option<(u32, u32)>)> {
        let table = self.funcdata(f, FUNCDATA_ARGUMENTS)?;
        let liveness = self.funcdata(f, FUNCDATA_LIVE_ARGUMENTS).and_then(|liveness| {
            let value = self.value_at(self.pcdata(f, PCDATA_LIVE_ARGUMENTS)?, f, pc)?;
            // Where it does not say, all are live.
            Some((liveness, u32::try_from(value).ok().filter(|&offset| offset > 0)?))
        });
        Some((table, liveness))
    }

    const fn inline_entry_size(&self) -> usize {
        if self.header.since_120 { 16 } else { 20 }
    }

    /// Entry of an inline tree: (function id, offset of its name, pc in the parent relative to the entry).
    fn inline_entry(&self, tree: u32, n: i32) -> Option<(u8, u32, u32)> {
        let at = usize::try_from(n).ok()?.checked_mul(self.inline_entry_size())?;
        let at = at.checked_add(tree as usize)?;
        if self.header.since_120 {
            Some((self.inline.u8_at(at)?, self.inline.u32_at(at + 4)?, self.inline.u32_at(at + 8)?))
        } else {
            Some((self.inline.u8_at(at + 2)?, self.inline.u32_at(at + 12)?, self.inline.u32_at(at + 16)?))
        }
    }

    /// Extent of a function's inline tree in [`View::inline`] (begin, end), and the number of steps that
    /// it took to find.
    pub fn inline_extent(&self, f: &Func) -> Option<(usize, usize, usize)> {
        let tree = self.inline_tree(f)? as usize;
        let table = self.pcdata(f, PCDATA_INLINE_INDEX)?;
        let (mut largest, mut count) = (-1, 0);
        for (value, _) in self.steps(table, f) {
            largest = largest.max(value);
            count += 1;
        }
        let entries = usize::try_from(largest.checked_add(1)?).ok()?;
        let end = entries.checked_mul(self.inline_entry_size())?.checked_add(tree)?;
        Some((tree, end, count))
    }

    /// Offsets of the names of the calls in an extent that [`View::inline_extent`] gave.
    pub fn inlined_names(&self, extent: (usize, usize)) -> impl Iterator<Item = u32> + use<'a> {
        let (inline, at) = (self.inline, if self.header.since_120 { 4 } else { 12 });
        (extent.0..extent.1)
            .step_by(self.inline_entry_size())
            .filter_map(move |entry| inline.u32_at(entry + at))
    }

    /// Whether the first inline trees look like inline trees: names that exist, parents inside of the
    /// function. Distinguishes the right base from a wrong one.
    pub fn inline_plausible(&self) -> bool {
        let (mut seen, mut work) = (0, 0usize);
        for n in 0..self.header.functions.min(20_000) {
            let Some(f) = self.func(n) else { return false };
            let Some((begin, end, steps)) = self.inline_extent(&f) else { continue };
            work = work.saturating_add(steps);
            if work > 4 * MAX_PC_STEPS {
                return false;
            }
            let entries = (end - begin) / self.inline_entry_size();
            for i in 0..entries {
                let entry = i32::try_from(i).ok().and_then(|i| self.inline_entry(begin as u32, i));
                let Some((_, name, parent)) = entry else { return false };
                let before =
                    (name as usize).checked_sub(1).and_then(|o| self.data.u8_at(self.header.names + o));
                let begins = name == 0 || before == Some(0);
                if !begins || self.name_at(name).is_empty() || parent >= f.end.saturating_sub(f.entry) {
                    return false;
                }
                seen += 1;
            }
            if seen > 500 {
                break;
            }
        }
        true
    }

    fn position(&self, f: &Func, pc: u32) -> (Cow<'a, [u8]>, u32) {
        let line = self.value_at(f.pc_line, f, pc).and_then(|l| u32::try_from(l).ok()).unwrap_or(0);
        let file = self
            .value_at(f.pc_file, f, pc)
            .and_then(|n| {
                let slot = (f.unit as usize).checked_add(usize::try_from(n).ok()?)?;
                let at = slot.checked_mul(4)?.checked_add(self.header.compilation_units)?;
                self.data.u32_at(at).filter(|&o| o != u32::MAX)
            })
            .map(|o| self.text_at(self.header.files, o, self.header.pc_values))
            .unwrap_or_default();
        (file, line)
    }

    /// The address in the function's own code that the inlined calls at an address come from; that address
    /// itself where nothing is inlined.
    pub fn outer_pc(&self, f: &Func, mut pc: u32) -> u32 {
        let (Some(tree), Some(index)) = (self.inline_tree(f), self.pcdata(f, PCDATA_INLINE_INDEX)) else {
            return pc;
        };
        for _ in 0..MAX_INLINE_DEPTH {
            let entry = self.value_at(index, f, pc).and_then(|n| self.inline_entry(tree, n));
            let Some(next) = entry.and_then(|(_, _, parent)| f.entry.checked_add(parent)) else { break };
            pc = next;
        }
        pc
    }

    /// The frames of an address relative to the text's beginning, innermost first.
    pub fn frames(&self, f: &Func, pc: u32) -> Vec<RawFrame<'a>> {
        let mut frames = Vec::new();
        let tree = self.inline_tree(f);
        let index = self.pcdata(f, PCDATA_INLINE_INDEX);
        let mut pc = pc;
        for _ in 0..MAX_INLINE_DEPTH {
            let (file, line) = self.position(f, pc);
            let inlined = tree.zip(index).and_then(|(tree, index)| {
                let n = self.value_at(index, f, pc).filter(|&n| n >= 0)?;
                self.inline_entry(tree, n)
            });
            let Some((id, name, parent)) = inlined else {
                frames.push(RawFrame { name: self.name(f), file, line, id: f.id, inlined: false });
                break;
            };
            frames.push(RawFrame { name: self.name_at(name), file, line, id, inlined: true });
            let Some(next) = f.entry.checked_add(parent) else { break };
            pc = next;
        }
        frames
    }
}
