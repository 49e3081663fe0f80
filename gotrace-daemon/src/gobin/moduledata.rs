//! Finds the function table and the runtime's module data, with or without section headers.
//!
//! The module data (`runtime/symtab.go`, `moduledata`) tells where Go's text begins, which from Go 1.26
//! on nothing else does, and where tables of inlined calls are.

use std::collections::HashMap;

use object::elf::PF_W;

use super::{
    Error,
    bytes::{slice, u64_at},
    elf::Elf,
    pclntab::{Header, View},
    versions,
};

/// Offsets in `moduledata`, Go 1.18 to 1.27.
const FUNCTAB_POINTER: u64 = 104;
const PCLNTABLE_FUNCTAB: u64 = 128;
const FUNCTAB_LEN: u64 = 136;
const TEXT: u64 = 176;
/// As much of it as is looked at.
const SIZE: u64 = 512;
/// Words that look like a pointer to the function table; a program has one or two.
const MAX_CANDIDATES: usize = 64;

/// The function table and what belongs to it.
#[derive(Debug)]
pub(super) struct Found<'a> {
    /// From the table's header to the end of its section or segment.
    pub view: View<'a>,
    /// Address of Go's text: what the table's addresses count from.
    pub text: u64,
    /// Address of what `funcdata` offsets count from; `None` when not found.
    pub gofunc: Option<u64>,
    /// Address of the module data; `None` when not found.
    pub module: Option<u64>,
    pub warnings: Vec<String>,
}

/// Finds both.
pub(super) fn find<'a>(elf: &Elf<'a>, minor: u32) -> Result<Found<'a>, Error> {
    let (data, header, address) =
        pclntab(elf).ok_or(Error::NotGo { why: "it has no Go function table (pclntab)" })?;
    let mut view = View { header, data, inline: &[] };
    let mut warnings = Vec::new();
    let Some(module) = Module::find(elf, address, &header) else {
        if header.text_start == 0 || !elf.is_code(header.text_start) {
            return Err(Error::NotGo { why: "it has a Go function table but no module data" });
        }
        warnings.push("the module data was not found: inlined functions are not shown".to_owned());
        return Ok(Found { view, text: header.text_start, gofunc: None, module: None, warnings });
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
    let inline = std::iter::once(known).chain(others).find_map(|offset| {
        let address = module.word(offset)?;
        view.inline = elf.bytes_from(address)?;
        view.inline_plausible().then_some((view.inline, address))
    });
    view.inline = inline.map(|(bytes, _)| bytes).unwrap_or_default();
    if inline.is_none() {
        warnings.push("the tables of inlined calls were not found: inlined functions are not shown".into());
    }
    let gofunc = inline.map(|(_, address)| address);
    Ok(Found { view, text, gofunc, module: Some(module.address), warnings })
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
