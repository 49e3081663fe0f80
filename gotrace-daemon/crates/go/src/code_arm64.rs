//! Instructions of arm64, by hand: all have four bytes, and only a few kinds matter.
//!
//! What every kernel simulates (`arch/arm64/kernel/probes/decode-insn.c`): branches, calls, `cbz`, `tbz`,
//! `adr`, `adrp`, `br`, `blr`, `ret`. `nop` only recent ones; loads of literals are refused.

use super::{
    Operand,
    bytes::u32_at,
    code::{Code, Field, Place},
};

const fn register(operand: Operand) -> u32 {
    match operand {
        Operand::Argument(n) => n as u32,
        // The first of its three registers.
        Operand::StatusChange => 0,
        Operand::ClosureContext => 26,
        Operand::CurrentG => 28,
    }
}

fn words<'a>(code: &Code<'a>, from: usize) -> impl Iterator<Item = (usize, u32)> + use<'a> {
    let bytes = code.bytes.get(from..).unwrap_or_default();
    bytes.chunks_exact(4).enumerate().map(move |(i, w)| (from + 4 * i, u32_at(w, 0).unwrap_or_default()))
}

/// A signed field of `bits` bits that begins at bit `at`.
fn signed(word: u32, at: u32, bits: u32) -> i64 {
    let value = i64::from(word >> at) & ((1 << bits) - 1);
    if value >> (bits - 1) != 0 { value - (1 << bits) } else { value }
}

/// An instruction that the kernel simulates: its name, and where it branches to relative to itself.
fn simulated(w: u32) -> Option<(&'static str, Option<i64>)> {
    const CONDITIONS: [&str; 16] = [
        "b.eq", "b.ne", "b.hs", "b.lo", "b.mi", "b.pl", "b.vs", "b.vc", "b.hi", "b.ls", "b.ge", "b.lt",
        "b.gt", "b.le", "b.al", "b.nv",
    ];
    match w {
        _ if w >> 26 == 0x05 => Some(("b", Some(4 * signed(w, 0, 26)))),
        _ if w >> 26 == 0x25 => Some(("bl", Some(4 * signed(w, 0, 26)))),
        _ if w & 0xff00_0010 == 0x5400_0000 => {
            Some((CONDITIONS[(w & 15) as usize], Some(4 * signed(w, 5, 19))))
        }
        _ if w & 0x7f00_0000 == 0x3400_0000 => Some(("cbz", Some(4 * signed(w, 5, 19)))),
        _ if w & 0x7f00_0000 == 0x3500_0000 => Some(("cbnz", Some(4 * signed(w, 5, 19)))),
        _ if w & 0x7f00_0000 == 0x3600_0000 => Some(("tbz", Some(4 * signed(w, 5, 14)))),
        _ if w & 0x7f00_0000 == 0x3700_0000 => Some(("tbnz", Some(4 * signed(w, 5, 14)))),
        _ if w & 0x9f00_0000 == 0x1000_0000 => Some(("adr", None)),
        _ if w & 0x9f00_0000 == 0x9000_0000 => Some(("adrp", None)),
        _ if w & 0xffff_fc1f == 0xd61f_0000 => Some(("br", None)),
        _ if w & 0xffff_fc1f == 0xd63f_0000 => Some(("blr", None)),
        _ if w & 0xffff_fc1f == 0xd65f_0000 => Some(("ret", None)),
        _ => None,
    }
}

fn place(code: &Code<'_>, offset: usize, w: u32) -> Place {
    let here = code.address.wrapping_add(offset as u64);
    let (d, n) = (w & 31, (w >> 5) & 31);
    let instruction = match simulated(w) {
        Some((name @ ("cbz" | "cbnz"), Some(to))) => {
            let width = if w >> 31 == 1 { 'x' } else { 'w' };
            format!("{name} {width}{d}, {}", code.target(here.wrapping_add_signed(to)))
        }
        Some((name @ ("tbz" | "tbnz"), Some(to))) => {
            let bit = (w >> 31 << 5) | ((w >> 19) & 31);
            format!("{name} x{d}, #{bit}, {}", code.target(here.wrapping_add_signed(to)))
        }
        Some((name, Some(to))) => format!("{name} {}", code.target(here.wrapping_add_signed(to))),
        Some((name @ ("adr" | "adrp"), None)) => {
            let immediate = (signed(w, 5, 19) << 2) | i64::from((w >> 29) & 3);
            let to = if name == "adr" {
                here.wrapping_add_signed(immediate)
            } else {
                (here & !0xfff).wrapping_add_signed(immediate << 12)
            };
            format!("{name} x{d}, {to:#x}")
        }
        Some(("ret", _)) => "ret".to_owned(),
        Some((name, None)) => format!("{name} x{n}"),
        None => format!(".word {w:#010x}"),
    };
    Place { offset, instruction, emulated: simulated(w).is_some() }
}

/// By `ldr` and `str` of a general register of 64 bits, `ldp` and `stp` of two, and `str` of one of 128 bits. Where an
/// offset is too large for the instruction, the one before adds it.
pub(super) fn fields(code: &Code<'_>) -> Vec<Field> {
    const STACK: u32 = 31;
    let mut added = None;
    let mut found = Vec::new();
    for (_, w) in words(code, 0) {
        let scaled = |by: u32| ((w >> 10) & 0xfff) * by;
        let pair = u32::try_from(8 * signed(w, 15, 7)).ok();
        let base = (w >> 5) & 31;
        let before = match added.take() {
            Some((register, offset)) if register == base => offset,
            _ => 0,
        };
        let access = match w >> 22 {
            0x3e5 => Some((scaled(8), 8, false)),
            0x3e4 => Some((scaled(8), 8, true)),
            0x0f6 => Some((scaled(16), 16, true)),
            0x2a5 => pair.map(|offset| (offset, 16, false)),
            0x2a4 => pair.map(|offset| (offset, 16, true)),
            // `add` of 12 bits
            0x244 if base != STACK => {
                added = Some((w & 31, scaled(1)));
                None
            }
            _ => None,
        };
        if let Some((offset, length, stored)) = access.filter(|_| base != STACK) {
            found.push(Field { offset: before + offset, length, stored });
        }
    }
    found
}

/// General registers that an instruction may write, as bits. Where the encoding is not one that function
/// prologues hold, more than it writes.
pub(super) fn written(w: u32) -> u32 {
    let bit = |at: u32| 1 << ((w >> at) & 31);
    let (rd, rn, second) = (bit(0), bit(5), bit(10));
    let mask = match (w >> 25) & 15 {
        // Data processing with an immediate, or with registers; floating point may move to a general one.
        0b1000 | 0b1001 | 0b0101 | 0b1101 | 0b0111 | 0b1111 => rd,
        // System instructions; branches end a walk before this is asked.
        0b1010 | 0b1011 => rd,
        0b0100 | 0b0110 | 0b1100 | 0b1110 => {
            let vector = (w >> 26) & 1 == 1;
            let general = |mask| if vector { 0 } else { mask };
            match (w >> 27) & 7 {
                0b101 => {
                    let load = if (w >> 22) & 1 == 1 { general(rd | second) } else { 0 };
                    let back = if (w >> 23) & 1 == 1 { rn } else { 0 };
                    load | back
                }
                0b111 => {
                    let store = (w >> 22) & 3 == 0;
                    let register_offset = (w >> 21) & 1 == 1;
                    let unsigned = (w >> 24) & 1 == 1;
                    let mode = (w >> 10) & 3;
                    let back = if !unsigned && !register_offset && mode & 1 == 1 { rn } else { 0 };
                    let plain = unsigned || !register_offset || mode == 2;
                    if plain && store { back } else { general(rd) | back | if plain { 0 } else { rd | rn } }
                }
                0b011 => general(rd),
                _ => rd | rn | second | bit(16),
            }
        }
        _ => u32::MAX,
    };
    // 31 is the stack pointer or nothing.
    mask & 0x7fff_ffff
}

/// See `code_amd64::looped`.
fn looped(code: &Code<'_>, place: usize) -> bool {
    words(code, 0).any(|(at, w)| {
        matches!(simulated(w), Some((name, Some(to))) if name != "bl" && {
            let target = at as i64 + to;
            target > 0 && target <= place as i64
        })
    })
}

pub(super) fn entry(code: &Code<'_>, operands: &[Operand]) -> Option<Place> {
    let kept = operands.iter().fold(0, |mask, &o| mask | 1 << register(o));
    for (at, w) in words(code, 0) {
        if simulated(w).is_some() {
            if looped(code, at) {
                break;
            }
            return Some(place(code, at, w));
        }
        if written(w) & kept != 0 {
            break;
        }
    }
    first(code)
}

pub(super) fn first(code: &Code<'_>) -> Option<Place> {
    words(code, 0).next().map(|(at, w)| place(code, at, w))
}

pub(super) fn returns(code: &Code<'_>) -> Vec<Place> {
    let is_return = |w| matches!(simulated(w), Some(("ret", _)));
    words(code, 0).filter(|&(_, w)| is_return(w)).map(|(at, w)| place(code, at, w)).collect()
}

pub(super) fn calls(code: &Code<'_>, target: u64) -> Vec<(Place, usize)> {
    words(code, 0)
        .filter(|&(at, w)| {
            let here = code.address.wrapping_add(at as u64);
            matches!(simulated(w), Some(("bl", Some(to))) if here.wrapping_add_signed(to) == target)
        })
        .map(|(at, w)| (place(code, at, w), at + 4))
        .collect()
}

/// `adrp` with the `add` or the load that completes it: (address, whether it is taken by an `add`).
pub(super) fn data_references(code: &Code<'_>) -> Vec<(usize, u64, bool)> {
    let mut pages: [Option<u64>; 32] = [None; 32];
    let mut found = Vec::new();
    for (at, w) in words(code, 0) {
        let here = code.address.wrapping_add(at as u64);
        let (d, n) = ((w & 31) as usize, ((w >> 5) & 31) as usize);
        let immediate = u64::from((w >> 10) & 0xfff);
        if w & 0x9f00_0000 == 0x9000_0000 {
            let page = (signed(w, 5, 19) << 2) | i64::from((w >> 29) & 3);
            pages[d] = Some((here & !0xfff).wrapping_add_signed(page << 12));
        } else if w & 0xffc0_0000 == 0x9100_0000 {
            // add xd, xn, #immediate
            if let Some(page) = pages[n].take() {
                found.push((at, page.wrapping_add(immediate), true));
            }
            pages[d] = None;
        } else if w & 0x3fc0_0000 == 0x3940_0000 {
            // ldr of 1, 2, 4 or 8 bytes, [xn, #immediate scaled by the size]
            if let Some(page) = pages[n] {
                found.push((at, page.wrapping_add(immediate << (w >> 30)), false));
            }
            pages[d] = None;
        }
    }
    found
}

pub(super) fn after_call(code: &Code<'_>, behind: usize) -> Option<(Place, Operand)> {
    let mut holders = 1u32;
    for (at, w) in words(code, behind) {
        if simulated(w).is_some() {
            if let Some(n) = (0..3u8).find(|&n| holders & 1 << n != 0) {
                return Some((place(code, at, w), Operand::Argument(n)));
            }
            break;
        }
        // mov xd, xm
        let copies = w & 0xffe0_ffe0 == 0xaa00_03e0 && holders & 1 << ((w >> 16) & 31) != 0;
        holders &= !written(w);
        if copies && w & 31 != 31 {
            holders |= 1 << (w & 31);
        }
    }
    words(code, behind).next().map(|(at, w)| (place(code, at, w), Operand::Argument(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;

    fn assemble(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn code(bytes: &[u8]) -> Code<'_> {
        Code { arch: Arch::Arm64, bytes, address: 0x1000, name_of: &|a| (a == 0x2000).then(|| "f".into()) }
    }

    #[test]
    fn fields_that_are_loaded_and_stored() {
        // ldr x26,[x3,#632]; ldr x3,[sp,#24]; add x27,x3,#632; stp xzr,xzr,[x27]; str x4,[x3,#192]; str xzr,[x27]
        let words: [u32; 6] = [0xf941_3c7a, 0xf940_0fe3, 0x9109_e07b, 0xa900_7f7f, 0xf900_6064, 0xf900_037f];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let field = |offset, length, stored| Field { offset, length, stored };
        let expected = [field(632, 8, false), field(632, 16, true), field(192, 8, true), field(0, 8, true)];
        assert_eq!(fields(&code(&bytes)), expected);
    }

    #[test]
    fn stack_check_branch() {
        // ldr x16,[x28,#16]; cmp sp,x16; b.ls +8
        let bytes = assemble(&[0xf940_0b90, 0xeb30_63ff, 0x5400_0049, 0xd65f_03c0]);
        let place = entry(&code(&bytes), &[Operand::Argument(0)]).expect("decodes");
        assert_eq!((place.offset, place.emulated, place.instruction.as_str()), (8, true, "b.ls 0x1010"));
    }

    #[test]
    fn a_lost_operand_or_a_loop_means_the_entry() {
        // mov x0,x1; b +4
        let bytes = assemble(&[0xaa01_03e0, 0x1400_0001]);
        assert!(!entry(&code(&bytes), &[Operand::Argument(0)]).expect("decodes").emulated);
        assert!(entry(&code(&bytes), &[Operand::Argument(1)]).expect("decodes").emulated);
        // mov x0,x1; cbz x2,+8; b -4
        let bytes = assemble(&[0xaa01_03e0, 0xb400_0042, 0x17ff_ffff]);
        assert!(!entry(&code(&bytes), &[Operand::Argument(1)]).expect("decodes").emulated);
        assert_eq!(entry(&code(&[1, 2, 3]), &[]), None);
    }

    #[test]
    fn stores_write_no_argument() {
        for (word, mask) in [
            (0xf81e_0ffe, 0u32), // str x30,[sp,#-32]!
            (0xf81f_83fd, 0),    // stur x29,[sp,#-8]
            (0xf900_07e0, 0),    // str x0,[sp,#8]
            (0xf940_0b80, 1),    // ldr x0,[x28,#16]
            (0xa940_07e0, 0b11), // ldp x0,x1,[sp]
            (0xa900_07e0, 0),    // stp x0,x1,[sp]
            (0x9100_43e1, 0b10), // add x1,sp,#16
            (0xd500_3bbf, 0),    // dmb-like system instruction
        ] {
            assert_eq!(written(word), mask, "{word:#x}");
        }
    }

    #[test]
    fn data_by_page_and_offset() {
        // adrp x27,+1 page; add x27,x27,#0x18; ldar x0,[x27]; adrp x1,+2 pages; ldr x2,[x1,#0x20]
        let bytes = assemble(&[0xb000_001b, 0x9100_637b, 0xc8df_ff60, 0xd000_0001, 0xf940_1022]);
        assert_eq!(data_references(&code(&bytes)), [(4, 0x2018, true), (16, 0x3020, false)]);
    }

    #[test]
    fn calls_and_results() {
        // bl 0x2000; mov x1,x0; mov x0,xzr; adrp x3,…
        let bytes = assemble(&[0x9400_0400, 0xaa00_03e1, 0xaa1f_03e0, 0x9000_0003]);
        let found = calls(&code(&bytes), 0x2000);
        assert_eq!((found.len(), found[0].0.instruction.as_str(), found[0].1), (1, "bl f", 4));
        let (place, operand) = after_call(&code(&bytes), 4).expect("decodes");
        assert_eq!((place.offset, place.emulated, operand), (12, true, Operand::Argument(1)));
        assert_eq!(place.instruction, "adrp x3, 0x1000");
    }
}
