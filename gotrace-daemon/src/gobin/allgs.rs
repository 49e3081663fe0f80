//! Where the runtime's list of all goroutines is: by the symbol table, else by the code that reads it.
//!
//! `runtime.forEachGRace` is in every program, and the first data that it touches are `allglen`, then
//! `allgptr` (`runtime/proc.go`, Go 1.18 to 1.27). Where nothing is inlined it calls
//! `runtime.atomicAllG`, which touches them in the same order.

use super::{Source, code::Code, elf::Elf, moduledata::Found, scan::Scan, symtab::Symbols, unwind::Allgs};

/// Names of the variables.
pub(super) const VARIABLES: [&str; 2] = ["runtime.allglen", "runtime.allgptr"];
/// The functions are small.
const MAX_FUNCTION: usize = 4096;

/// The code of one of the functions that were looked for.
pub(super) fn function<'a>(elf: &Elf<'a>, found: &Found<'_>, scan: &Scan, name: &str) -> Option<Code<'a>> {
    let address = *scan.addresses.get(name)?;
    let relative = u32::try_from(address.checked_sub(found.text)?).ok()?;
    let f = found.view.func(found.view.index_at(relative)?)?;
    let len = (f.end.checked_sub(relative)? as usize).min(MAX_FUNCTION);
    let bytes = elf.bytes_from(address)?;
    let bytes = bytes.get(..len.min(bytes.len()))?;
    Some(Code { arch: elf.arch, bytes, address, name_of: &|_| None })
}

/// The variables' addresses, and where they were learned.
pub(super) fn find(
    elf: &Elf<'_>,
    found: &Found<'_>,
    scan: &Scan,
    symbols: &Symbols,
) -> Option<(Allgs, Source)> {
    let [length, pointer] = VARIABLES.map(|name| symbols.variables.get(name).copied());
    if let (Some(length), Some(pointer)) = (length, pointer) {
        return Some((Allgs { length, pointer }, Source::Symtab));
    }
    ["runtime.forEachGRace", "runtime.atomicAllG"].into_iter().find_map(|name| {
        let code = function(elf, found, scan, name)?;
        // Both are variables without a value in the file, one word long.
        let variables = code.data_references();
        let mut variables = variables.into_iter().filter(|&a| a % 8 == 0 && elf.is_data(a));
        Some((Allgs { length: variables.next()?, pointer: variables.next()? }, Source::Code))
    })
}
