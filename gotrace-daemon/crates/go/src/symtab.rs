//! The ELF symbol table, read for a few names only: it may hold hundreds of thousands.

use std::collections::HashMap;

use object::elf::{SHT_SYMTAB, STT_FUNC, STT_OBJECT};

use super::{
    bytes::{cstr, u8_at, u32_at, u64_at},
    elf::Elf,
    names,
};

/// What the symbol table holds.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Whether there is one.
    pub present: bool,
    /// Addresses of the wanted functions that it has.
    pub addresses: HashMap<&'static str, u64>,
    /// Addresses of the wanted variables that it has.
    pub variables: HashMap<&'static str, u64>,
}

/// Looks for functions and variables.
pub(super) fn find(elf: &Elf<'_>, functions: &[&'static str], variables: &[&'static str]) -> Symbols {
    const ENTRY: usize = 24;
    let Some(table) = elf.sections.iter().find(|s| s.kind == SHT_SYMTAB.0 && s.data.len() > ENTRY) else {
        return Symbols::default();
    };
    let Some(strings) = elf.linked(table).map(|s| s.data) else { return Symbols::default() };
    let mut symbols = Symbols { present: true, ..Symbols::default() };
    for entry in table.data.chunks_exact(ENTRY) {
        let kind = u8_at(entry, 4).unwrap_or_default() & 0xf;
        let (wanted, into) = if kind == STT_FUNC.0 {
            (functions, &mut symbols.addresses)
        } else if kind == STT_OBJECT.0 {
            (variables, &mut symbols.variables)
        } else {
            continue;
        };
        let Some(rest) = u32_at(entry, 0).and_then(|o| strings.get(o as usize..)) else { continue };
        if !rest.starts_with(b"runtime.") {
            continue;
        }
        let Some(name) = cstr(rest, 0) else { continue };
        if let Some(name) = wanted.iter().find(|w| w.as_bytes() == name)
            && let Some(address) = u64_at(entry, 8)
        {
            into.entry(name).or_insert(address);
        }
    }
    symbols
}

/// The variable that holds a link-time address, by the symbol table, and how far into it the address is.
/// The linker's marks (`runtime.bss`), which have no size, are no variables. Reads the whole table: for a question
/// now and then.
pub(super) fn variable_at(elf: &Elf<'_>, address: u64) -> Option<(String, u64)> {
    const ENTRY: usize = 24;
    let table = elf.sections.iter().find(|s| s.kind == SHT_SYMTAB.0 && s.data.len() > ENTRY)?;
    let strings = elf.linked(table)?.data;
    let mut best: Option<(u64, u32)> = None;
    for entry in table.data.chunks_exact(ENTRY) {
        let (begin, size) = (u64_at(entry, 8)?, u64_at(entry, 16)?);
        let holds = begin <= address && address - begin < size;
        if u8_at(entry, 4)? & 0xf == STT_OBJECT.0 && holds && best.is_none_or(|(b, _)| begin > b) {
            best = Some((begin, u32_at(entry, 0)?));
        }
    }
    let (begin, name) = best?;
    let name = cstr(strings.get(name as usize..)?, 0)?;
    Some((names::text(name), address - begin))
}
