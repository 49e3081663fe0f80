//! Instructions of amd64, by iced-x86.
//!
//! What the kernel emulates (`arch/x86/kernel/uprobes.c`): near calls, jumps and conditional jumps with a
//! relative target, `push` of a register, and `nop` of one byte.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, IntelFormatter,
    Mnemonic, OpAccess, OpKind, Register,
};

use super::{
    Operand,
    code::{Code, Field, Place},
};

const ARGUMENTS: [Register; 9] = [
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDI,
    Register::RSI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

const fn register(operand: Operand) -> Register {
    match operand {
        Operand::Argument(n) if (n as usize) < ARGUMENTS.len() => ARGUMENTS[n as usize],
        // On the stack.
        Operand::Argument(_) => Register::RSP,
        // The first of its three registers.
        Operand::StatusChange => Register::RAX,
        Operand::ClosureContext => Register::RDX,
        Operand::CurrentG => Register::R14,
    }
}

fn decode<'a>(code: &Code<'a>, from: usize) -> impl Iterator<Item = Instruction> + use<'a> {
    let bytes = code.bytes.get(from..).unwrap_or_default();
    let decoder = Decoder::with_ip(64, bytes, code.address.wrapping_add(from as u64), DecoderOptions::NONE);
    decoder.into_iter().take_while(|i| !i.is_invalid())
}

fn bytes<'a>(code: &Code<'a>, i: &Instruction) -> &'a [u8] {
    let at = offset(code, i);
    code.bytes.get(at..at + i.len()).unwrap_or_default()
}

fn offset(code: &Code<'_>, i: &Instruction) -> usize {
    i.ip().wrapping_sub(code.address) as usize
}

/// Whether the kernel emulates an instruction, by its bytes. Prefixes other than those named are refused:
/// the kernel rejects some of them.
fn emulated(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0x90] | [0x66, 0x90]                       // nop
            | [0xe8 | 0xe9, _, _, _, _] | [0xeb, _] // call, jmp
            | [0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, _, _, _, _] // conditional jumps
            | [0x50..=0x57] | [0x41, 0x50..=0x57] // push
    )
}

fn place(code: &Code<'_>, i: &Instruction) -> Place {
    let instruction = if i.near_branch_target() != 0 {
        let mnemonic = format!("{:?}", i.mnemonic()).to_lowercase();
        format!("{mnemonic} {}", code.target(i.near_branch_target()))
    } else {
        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_hex_prefix("0x");
        formatter.options_mut().set_hex_suffix("");
        formatter.options_mut().set_space_after_operand_separator(true);
        let mut text = String::new();
        formatter.format(i, &mut text);
        text
    };
    Place { offset: offset(code, i), instruction, emulated: emulated(bytes(code, i)) }
}

fn written(factory: &mut InstructionInfoFactory, i: &Instruction) -> Vec<Register> {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    let info = factory.info(i);
    info.used_registers()
        .iter()
        .filter(|r| matches!(r.access(), Write | CondWrite | ReadWrite | ReadCondWrite))
        .map(|r| r.register().full_register())
        .collect()
}

/// Whether a branch goes back into the first instructions, behind the entry: a probe there would be hit
/// more than once.
fn looped(code: &Code<'_>, place: usize) -> bool {
    let into = code.address + 1..=code.address + place as u64;
    decode(code, 0).any(|i| {
        matches!(i.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
            && into.contains(&i.near_branch_target())
    })
}

pub(super) fn entry(code: &Code<'_>, operands: &[Operand]) -> Option<Place> {
    let mut factory = InstructionInfoFactory::new();
    for i in decode(code, 0) {
        if emulated(bytes(code, &i)) {
            if looped(code, offset(code, &i)) {
                break;
            }
            return Some(place(code, &i));
        }
        let lost = operands.iter().any(|&o| written(&mut factory, &i).contains(&register(o)));
        if lost || i.flow_control() != FlowControl::Next {
            break;
        }
    }
    first(code)
}

pub(super) fn first(code: &Code<'_>) -> Option<Place> {
    decode(code, 0).next().map(|i| place(code, &i))
}

pub(super) fn returns(code: &Code<'_>) -> Option<Vec<Place>> {
    let (mut returns, mut end) = (Vec::new(), 0);
    for i in decode(code, 0) {
        end = offset(code, &i) + i.len();
        if i.mnemonic() == Mnemonic::Ret {
            returns.push(place(code, &i));
        }
    }
    (end == code.bytes.len()).then_some(returns)
}

pub(super) fn calls(code: &Code<'_>, target: u64) -> Vec<(Place, usize)> {
    decode(code, 0)
        .filter(|i| i.is_call_near() && i.near_branch_target() == target)
        .map(|i| (place(code, &i), offset(code, &i) + i.len()))
        .collect()
}

/// (offset of the instruction, address, whether it is taken rather than loaded from).
pub(super) fn data_references(code: &Code<'_>) -> Vec<(usize, u64, bool)> {
    decode(code, 0)
        .filter(|i| matches!(i.mnemonic(), Mnemonic::Mov | Mnemonic::Lea) && i.is_ip_rel_memory_operand())
        .map(|i| (offset(code, &i), i.ip_rel_memory_address(), i.mnemonic() == Mnemonic::Lea))
        .collect()
}

pub(super) fn after_call(code: &Code<'_>, behind: usize) -> Option<(Place, Operand)> {
    first_with(code, behind, Register::RAX)
        .or_else(|| decode(code, behind).next().map(|i| (place(code, &i), Operand::Argument(0))))
}

pub(super) fn after_store(code: &Code<'_>, field: u32) -> Option<(Place, Operand)> {
    let store = decode(code, 0).find(|i| {
        i.mnemonic() == Mnemonic::Mov
            && i.op0_kind() == OpKind::Memory
            && i.memory_size().size() == 8
            && i.memory_index() == Register::None
            && !matches!(i.memory_base(), Register::RSP | Register::RBP | Register::RIP | Register::None)
            && i.memory_displacement64() == u64::from(field)
    })?;
    first_with(code, offset(code, &store) + store.len(), store.memory_base())
}

pub(super) fn fields(code: &Code<'_>) -> Vec<Field> {
    decode(code, 0)
        .filter(|i| matches!(i.mnemonic(), Mnemonic::Mov | Mnemonic::Movups))
        .filter(|i| [i.op0_kind(), i.op1_kind()].contains(&OpKind::Memory))
        .filter(|i| i.memory_index() == Register::None)
        .filter(|i| {
            !matches!(i.memory_base(), Register::RSP | Register::RBP | Register::RIP | Register::None)
        })
        .filter_map(|i| {
            let offset = u32::try_from(i.memory_displacement64()).ok()?;
            let length = u32::try_from(i.memory_size().size()).ok()?;
            Some(Field { offset, length, stored: i.op0_kind() == OpKind::Memory })
        })
        .collect()
}

/// The first emulated instruction from an offset on, in a straight line, as long as an argument register
/// holds what `held` does at the offset.
fn first_with(code: &Code<'_>, from: usize, held: Register) -> Option<(Place, Operand)> {
    let mut factory = InstructionInfoFactory::new();
    let mut holders = vec![held];
    for i in decode(code, from) {
        let operand = (0..3).find(|&n| holders.contains(&ARGUMENTS[usize::from(n)])).map(Operand::Argument);
        if emulated(bytes(code, &i)) {
            return operand.map(|operand| (place(code, &i), operand));
        }
        if i.flow_control() != FlowControl::Next {
            break;
        }
        let copies = i.mnemonic() == Mnemonic::Mov
            && i.op0_kind() == OpKind::Register
            && i.op1_kind() == OpKind::Register
            && holders.contains(&i.op1_register());
        let lost = written(&mut factory, &i);
        holders.retain(|h| !lost.contains(h));
        if copies {
            holders.push(i.op0_register());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;

    fn code(bytes: &[u8]) -> Code<'_> {
        Code { arch: Arch::Amd64, bytes, address: 0x1000, name_of: &|a| (a == 0x2000).then(|| "f".into()) }
    }

    #[test]
    fn stack_check_branch() {
        // cmp rsp,[r14+0x10]; jbe +5
        let place = entry(&code(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x05, 0xc3]), &[Operand::Argument(0)]);
        let place = place.expect("decodes");
        assert_eq!((place.offset, place.emulated), (4, true));
        assert_eq!(place.instruction, "jbe 0x100b");
    }

    #[test]
    fn a_lost_operand_or_a_loop_or_a_return_means_the_entry() {
        // xor eax,eax; nop
        let place = entry(&code(&[0x31, 0xc0, 0x90]), &[Operand::Argument(0)]).expect("decodes");
        assert_eq!((place.offset, place.emulated), (0, false));
        assert!(entry(&code(&[0x31, 0xc0, 0x90]), &[Operand::Argument(1)]).expect("decodes").emulated);
        // xor eax,eax; nop; jmp to the nop
        let place = entry(&code(&[0x31, 0xc0, 0x90, 0xeb, 0xfd]), &[Operand::Argument(1)]).expect("decodes");
        assert_eq!((place.offset, place.emulated), (0, false));
        // ret; nop
        assert!(!entry(&code(&[0xc3, 0x90]), &[]).expect("decodes").emulated);
        assert_eq!(entry(&code(&[0x06]), &[]), None);
        assert_eq!(entry(&code(&[]), &[]), None);
    }

    #[test]
    fn data_relative_to_the_instruction() {
        // mov rax,[rip+0x10]; lea rcx,[rip+0x20]; mov rdx,[rax]; cmp dword [rip+0x30],0
        let bytes = [
            0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x48, 0x8d, 0x0d, 0x20, 0, 0, 0, 0x48, 0x8b, 0x10, 0x83, 0x3d,
            0x30, 0, 0, 0, 0,
        ];
        assert_eq!(data_references(&code(&bytes)), [(0, 0x1017, false), (7, 0x102e, true)]);
    }

    #[test]
    fn calls_and_results() {
        // xor eax,eax; call 0x2000; mov rbx,rax; xor eax,eax; nop
        let bytes = [0x31, 0xc0, 0xe8, 0xf9, 0x0f, 0, 0, 0x48, 0x89, 0xc3, 0x31, 0xc0, 0x90];
        let found = calls(&code(&bytes), 0x2000);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.offset, found[0].1), (2, 7));
        assert_eq!(found[0].0.instruction, "call f");
        let (place, operand) = after_call(&code(&bytes), 7).expect("decodes");
        assert_eq!((place.offset, place.emulated, operand), (12, true, Operand::Argument(1)));
        // The result is nowhere any more at the nop: the instruction behind the call, single-stepped.
        let (place, operand) = after_call(&code(&bytes), 10).expect("decodes");
        assert_eq!((place.offset, place.emulated, operand), (10, false, Operand::Argument(0)));
    }

    #[test]
    fn fields_that_are_loaded_and_stored() {
        // mov rbx,[rcx+0x2e8]; mov [rdx+0x2e0],rsi; movups [rdx+0x2e0],xmm15; mov rax,[rsp+0x20]; mov esi,[rcx+0x350]
        let bytes = [
            &[0x48, 0x8b, 0x99, 0xe8, 2, 0, 0][..],
            &[0x48, 0x89, 0xb2, 0xe0, 2, 0, 0],
            &[0x44, 0x0f, 0x11, 0xba, 0xe0, 2, 0, 0],
            &[0x48, 0x8b, 0x44, 0x24, 0x20],
            &[0x8b, 0xb1, 0x50, 3, 0, 0],
        ]
        .concat();
        let field = |offset, length, stored| Field { offset, length, stored };
        let expected =
            [field(0x2e8, 8, false), field(0x2e0, 8, true), field(0x2e0, 16, true), field(0x350, 4, false)];
        assert_eq!(fields(&code(&bytes)), expected);
    }

    #[test]
    fn behind_a_store() {
        // mov [rcx+0x98],rsi; inc [rdx+8]; nop
        let bytes = [0x48, 0x89, 0xb1, 0x98, 0, 0, 0, 0x48, 0xff, 0x42, 0x08, 0x90];
        let (place, operand) = after_store(&code(&bytes), 0x98).expect("there is one");
        assert_eq!((place.offset, place.emulated, operand), (11, true, Operand::Argument(2)));
        assert_eq!(after_store(&code(&bytes), 0x90), None);
        // The same with rdi: no argument register holds it.
        let bytes = [0x48, 0x89, 0xb7, 0x98, 0, 0, 0, 0x90];
        assert_eq!(after_store(&code(&bytes), 0x98), None);
    }
}
