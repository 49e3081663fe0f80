//! The ELF symbol table, read for a few names only: it may hold hundreds of thousands.

use std::collections::HashMap;

use object::elf::{SHT_SYMTAB, STT_FUNC};

use super::{
    bytes::{cstr, u8_at, u32_at, u64_at},
    elf::Elf,
};

/// What the symbol table holds.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Whether there is one.
    pub present: bool,
    /// Addresses of the wanted functions that it has.
    pub addresses: HashMap<&'static str, u64>,
}

/// Looks for functions.
pub(super) fn find(elf: &Elf<'_>, wanted: &[&'static str]) -> Symbols {
    const ENTRY: usize = 24;
    let Some(table) = elf.sections.iter().find(|s| s.kind == SHT_SYMTAB.0 && s.data.len() > ENTRY) else {
        return Symbols::default();
    };
    let Some(strings) = elf.linked(table).map(|s| s.data) else { return Symbols::default() };
    let mut symbols = Symbols { present: true, ..Symbols::default() };
    for entry in table.data.chunks_exact(ENTRY) {
        if u8_at(entry, 4).is_none_or(|info| info & 0xf != STT_FUNC.0) {
            continue;
        }
        let Some(rest) = u32_at(entry, 0).and_then(|o| strings.get(o as usize..)) else { continue };
        if !rest.starts_with(b"runtime.") {
            continue;
        }
        let Some(name) = cstr(rest, 0) else { continue };
        if let Some(name) = wanted.iter().find(|w| w.as_bytes() == name)
            && let Some(address) = u64_at(entry, 8)
        {
            symbols.addresses.entry(name).or_insert(address);
        }
    }
    symbols
}
