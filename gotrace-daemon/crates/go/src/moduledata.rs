//! Finds the function table and the runtime's module data, with or without section headers.
//!
//! The module data (`runtime/symtab.go`, `moduledata`) tells where Go's text begins, which from Go 1.26
//! on nothing else does, and where tables of inlined calls are.

use std::{collections::HashMap, ops::Range};

use object::elf::PF_W;

use super::{
    Error,
    bytes::{slice, u64_at},
    elf::Elf,
    packed::Bytes,
    pclntab::{Header, View},
    versions,
};

/// Offsets in `moduledata`, Go 1.18 to 1.27.
const FUNCTAB_POINTER: u64 = 104;
const PCLNTABLE_FUNCTAB: u64 = 128;
const FUNCTAB_LEN: u64 = 136;
const TEXT: u64 = 176;
/// Where variables without a value in the file lie: those that hold pointers, and those that hold none; and the last, from
/// Go 1.20 on also counters of coverage.
const BSS: u64 = 224;
const NOPTRBSS: u64 = 240;
const COUNTERS: u64 = 256;
/// The first version that has them.
const COUNTERS_SINCE: u32 = 20;
/// As much of it as is looked at.
const SIZE: u64 = 512;
/// Words that look like a pointer to the function table; a program has one or two.
const MAX_CANDIDATES: usize = 64;

/// The function table and what belongs to it.
#[derive(Debug)]
pub(super) struct Found<'a> {
    /// From the table's header to the end of its section or segment.
    pub view: View<'a>,
    /// The bytes of the table in it, and those of inlined calls and pointers on the stack; the latter empty when not found.
    pub table: &'a [u8],
    pub inline: &'a [u8],
    /// Address of Go's text: what the table's addresses count from.
    pub text: u64,
    /// Address of what `funcdata` offsets count from; `None` when not found.
    pub gofunc: Option<u64>,
    /// Address of the module data; `None` when not found.
    pub module: Option<u64>,
    /// Where its variables lie that have no value in the file; `None` when that is not told.
    pub unset: Option<Unset>,
    pub warnings: Vec<String>,
}

/// Where variables lie that have no value in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unset {
    /// Those that hold pointers.
    pub pointers: Range<u64>,
    /// Those that hold none.
    pub plain: Range<u64>,
    /// Counters of coverage.
    pub counters: Range<u64>,
}

impl Unset {
    /// `None` where these are no ranges.
    fn of(module: &Module<'_>, minor: u32) -> Option<Self> {
        let range = |at: u64| {
            let (begin, end) = (module.word(at)?, module.word(at + 8)?);
            (begin <= end).then_some(begin..end)
        };
        let (pointers, plain) = (range(BSS)?, range(NOPTRBSS)?);
        let counters = if minor < COUNTERS_SINCE { 0..0 } else { range(COUNTERS)? };
        (!pointers.is_empty() && !plain.is_empty()).then_some(Self { pointers, plain, counters })
    }
}

/// Finds both.
pub(super) fn find<'a>(elf: &Elf<'a>, minor: u32) -> Result<Found<'a>, Error> {
    let (data, header, address) =
        pclntab(elf).ok_or(Error::NotGo { why: "it has no Go function table (pclntab)" })?;
    let mut view = View { header, data: Bytes::Whole(data), inline: Bytes::Whole(&[]) };
    let mut warnings = Vec::new();
    let Some(module) = Module::find(elf, address, &header) else {
        if header.text_start == 0 || !elf.is_code(header.text_start) {
            return Err(Error::NotGo { why: "it has a Go function table but no module data" });
        }
        warnings.push("module data not found: inlined functions are not shown".to_owned());
        let text = header.text_start;
        return Ok(Found {
            view,
            table: data,
            inline: &[],
            text,
            gofunc: None,
            module: None,
            unset: None,
            warnings,
        });
    };
    let text = module.word(TEXT).unwrap_or_default();
    if !elf.is_code(text) {
        return Err(Error::Malformed {
            what: "the module data's text is not in an executable segment",
            at: elf.offset_of(module.address).unwrap_or_default() as u64,
        });
    }
    let known = versions::gofunc_offset(minor);
    // Another version may have moved the field: it is among the words behind `etypes`.
    let others = (288..=400).step_by(8).filter(|&o| o != known);
    let found = std::iter::once(known).chain(others).find_map(|offset| {
        let address = module.word(offset)?;
        let bytes = elf.bytes_from(address)?;
        view.inline = Bytes::Whole(bytes);
        view.inline_plausible().then_some((bytes, address))
    });
    let inline = found.map(|(bytes, _)| bytes).unwrap_or_default();
    view.inline = Bytes::Whole(inline);
    if found.is_none() {
        warnings.push("inline tables not found: inlined functions are not shown".into());
    }
    let gofunc = found.map(|(_, address)| address);
    let unset = Unset::of(&module, minor);
    Ok(Found { view, table: data, inline, text, gofunc, module: Some(module.address), unset, warnings })
}

/// The function table: (bytes, header, address).
fn pclntab<'a>(elf: &Elf<'a>) -> Option<(&'a [u8], Header, u64)> {
    for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
        if let Some(section) = elf.section(name)
            && let Some(header) = Header::parse(section.data, elf.arch)
        {
            return Some((section.data, header, section.address));
        }
    }
    // An externally linked position-independent executable has it inside of another section; others have
    // no sections at all.
    for segment in &elf.segments {
        let data = elf.contents(segment);
        let first = usize::try_from(segment.address.wrapping_neg() % 8).unwrap_or_default();
        for at in (first..data.len()).step_by(8) {
            let candidate = data.get(at..).unwrap_or_default();
            if Header::may_begin(candidate)
                && let Some(header) = Header::parse(candidate, elf.arch)
            {
                return Some((candidate, header, segment.address + at as u64));
            }
        }
    }
    None
}

struct Module<'a> {
    address: u64,
    bytes: &'a [u8],
    relocated: HashMap<u64, u64>,
}

impl<'a> Module<'a> {
    fn find(elf: &Elf<'a>, table: u64, header: &Header) -> Option<Self> {
        let mut candidates = Vec::new();
        if let Some(section) = elf.section(".go.module") {
            candidates.push(section.address);
        }
        // Position-independent executables keep pointers in relocations; the places need not hold them.
        candidates.extend(
            elf.relative_relocations()
                .filter(|&(_, value)| value == table)
                .map(|(at, _)| at)
                .take(MAX_CANDIDATES),
        );
        for segment in elf.segments.iter().filter(|s| s.flags & PF_W.0 != 0) {
            let data = elf.contents(segment);
            let first = usize::try_from(segment.address.wrapping_neg() % 8).unwrap_or_default();
            let words = data.get(first..).unwrap_or_default().chunks_exact(8);
            candidates.extend(
                words
                    .enumerate()
                    .filter(|(_, w)| u64_at(w, 0) == Some(table))
                    .map(|(i, _)| segment.address + (first + 8 * i) as u64)
                    .take(MAX_CANDIDATES),
            );
        }
        candidates.truncate(MAX_CANDIDATES);
        let relocated: HashMap<u64, u64> = elf
            .relative_relocations()
            .filter(|&(at, _)| candidates.iter().any(|&c| at >= c && at - c < SIZE))
            .collect();
        let functab = table.checked_add(header.functab as u64)?;
        candidates.into_iter().find_map(|address| {
            let bytes = elf.bytes_from(address)?;
            let this = Module { address, bytes, relocated: relocated.clone() };
            let matches = this.word(0)? == table
                && this.word(FUNCTAB_LEN)? == header.functions as u64 + 1
                && this.word(FUNCTAB_POINTER)? == functab
                && this.word(PCLNTABLE_FUNCTAB)? == functab;
            matches.then_some(this)
        })
    }

    fn word(&self, offset: u64) -> Option<u64> {
        self.relocated.get(&self.address.checked_add(offset)?).copied().or_else(|| {
            let at = usize::try_from(offset).ok()?;
            u64_at(slice(self.bytes, at, 8)?, 0)
        })
    }
}
