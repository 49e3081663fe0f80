//! Where the runtime's list of all goroutines is: by the symbol table, else by the code that reads it.
//!
//! `runtime.forEachGRace` is in every program, and the first data that it touches are `allglen`, then
//! `allgptr` (`runtime/proc.go`, Go 1.18 to 1.27). Where nothing is inlined it calls
//! `runtime.atomicAllG`, which touches them in the same order. Built for coverage (`-coverpkg=std`) the code touches
//! counters of its own before: variables are taken only from where such ones lie ([`Unset`]).

use super::{
    Source,
    code::Code,
    elf::Elf,
    moduledata::{Found, Unset},
    scan::Scan,
    symtab::Symbols,
    unwind::Allgs,
};

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
        Some((pick(&code.data_references(), found.unset.as_ref(), |a| elf.is_data(a))?, Source::Code))
    })
}

/// Both are variables without a value in the file, one word long; the first holds no pointer, the second is one.
fn pick(references: &[u64], unset: Option<&Unset>, is_data: impl Fn(u64) -> bool) -> Option<Allgs> {
    let may_be = |holds: fn(&Unset, u64) -> bool| {
        move |a: u64| {
            a.is_multiple_of(8) && unset.is_none_or(|unset| holds(unset, a) && !unset.counters.contains(&a))
        }
    };
    let (is_length, is_pointer) =
        (may_be(|unset, a| unset.plain.contains(&a)), may_be(|unset, a| unset.pointers.contains(&a)));
    let mut variables = references.iter().copied().filter(|&a| is_data(a));
    let length = variables.find(|&a| is_length(a))?;
    let pointer = variables.find(|&a| is_pointer(a))?;
    Some(Allgs { length, pointer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_coverage_are_taken_for_no_variable() {
        let unset = Unset { pointers: 0x100..0x200, plain: 0x200..0x400, counters: 0x300..0x380 };
        let pick = |references: &[u64], unset| pick(references, unset, |a| a < 0x1000);
        let expected = Some(Allgs { length: 0x210, pointer: 0x108 });
        assert_eq!(pick(&[0x2000, 0x210, 0x108], Some(&unset)), expected);
        assert_eq!(pick(&[0x300, 0x308, 0x214, 0x210, 0x310, 0x218, 0x108], Some(&unset)), expected);
        assert_eq!(pick(&[0x300, 0x308], Some(&unset)), None);
        // Where it is not known where variables lie, the first two are believed, which a look at the process checks.
        assert_eq!(pick(&[0x300, 0x308], None), Some(Allgs { length: 0x300, pointer: 0x308 }));
    }
}
