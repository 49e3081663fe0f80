//! Wrappers whose callee only the goroutine's closure tells: those that the compiler makes of `go f(x)`, where `f` is
//! a func value, and of `go i.m(x)`, where `i` is an interface.
//!
//! Such a wrapper has what it calls as the first variable of its closure, and calls either the word that this points
//! to (a func value begins with its code's address) or a later one (methods in the table of an interface, from the
//! fourth word on). Which one is read off its instructions, which are untrusted: a walk goes over each of them once,
//! follows registers and slots of the stack, and ends with the first indirect call. Go 1.18 to 1.27.

use std::collections::HashMap;

use gotrace_common::CLOSURE_WORDS;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::{Arch, Binary, code_arm64::written, entry::LONGEST_WRAPPER, versions};

/// Wrappers that are looked into; programs with more are made up.
const MOST_WRAPPERS: usize = 1 << 16;
/// Where the first variable of a closure is, behind the address of its code.
const FIRST_VARIABLE: i64 = 8;

/// What a register or a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The address of the closure that runs.
    Closure,
    /// The first variable of it.
    First,
    /// The n-th word of what that points to.
    Word(u8),
}

impl Value {
    /// What lies so many bytes behind this.
    fn load(self, displacement: i64) -> Option<Self> {
        match self {
            Self::Closure => (displacement == FIRST_VARIABLE).then_some(Self::First),
            Self::First => {
                let word = u8::try_from(displacement / 8).ok().filter(|_| displacement % 8 == 0)?;
                (usize::from(word) < CLOSURE_WORDS).then_some(Self::Word(word))
            }
            Self::Word(_) => None,
        }
    }

    fn word(self) -> Option<u8> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

impl Binary {
    /// Which of the words that the first variable of a goroutine's closure points to is the address of what the
    /// goroutine runs; `None` where its entry (link-time address) is no wrapper, or one that always calls the same.
    #[must_use]
    pub fn callee_word(&self, entry: u64) -> Option<u8> {
        let at = self.closures.binary_search_by_key(&entry, |(entry, _)| *entry).ok()?;
        self.closures.get(at).map(|(_, word)| *word)
    }

    /// Entries (link-time addresses) of the wrappers that call what their closure tells, ascending.
    pub fn closure_wrappers(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.closures.iter().map(|(entry, _)| *entry)
    }

    /// Finds them in the file's bytes.
    pub(super) fn find_closures(&self, data: &[u8]) -> Box<[(u64, u8)]> {
        let read = |offset: u64, length: usize| {
            let begin = usize::try_from(offset).ok()?;
            Some(data.get(begin..begin.checked_add(length)?)?.to_vec())
        };
        let view = self.view();
        let wrapper = versions::wrapper_id(self.version.minor);
        let mut found: Vec<(u64, u8)> = (0..self.header.functions)
            .filter_map(|n| view.func(n))
            .filter(|f| f.id == wrapper && may_be_called_by_go(&view.name(f)))
            .take(MOST_WRAPPERS)
            .filter_map(|f| {
                let entry = self.text.wrapping_add(u64::from(f.entry));
                let length = u64::from(f.end.checked_sub(f.entry)?).min(LONGEST_WRAPPER);
                let code = read(self.file_offset(entry)?, usize::try_from(length).ok()?)?;
                let word = callee_word(self.arch(), &code)?;
                // One whose callee was inlined may call a func value on behalf of that.
                self.wrapped(entry, &read).is_none().then_some((entry, word))
            })
            .collect();
        found.sort_unstable();
        found.into()
    }
}

/// Whether a wrapper with this name may be a goroutine's entry, rather than a method's: `main.f.gowrap1`,
/// `main.f.func1` (before Go 1.22), `main.f·dwrap·1` (Go 1.18), `main.T.m-fm`.
fn may_be_called_by_go(name: &[u8]) -> bool {
    let last = name.rsplit(|b| *b == b'.').next().unwrap_or_default();
    let numbered = |prefix: &[u8]| {
        last.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
    };
    let dwrap = "·dwrap·".as_bytes();
    numbered(b"gowrap")
        || numbered(b"func")
        || last.ends_with(b"-fm")
        || last.windows(dwrap.len()).any(|part| part == dwrap)
}

/// Which word behind the first variable of its closure a function calls, by its code; `None` where its first indirect
/// call calls something else.
fn callee_word(arch: Arch, code: &[u8]) -> Option<u8> {
    match arch {
        Arch::Amd64 => amd64(code),
        Arch::Arm64 => arm64(code),
    }
}

/// What is known while a function is walked through, by number of the register, and by register and displacement.
struct Held<R> {
    registers: HashMap<R, Value>,
    slots: HashMap<(R, i64), Value>,
}

impl<R: Copy + Eq + std::hash::Hash> Held<R> {
    fn new(closure: R) -> Self {
        Self { registers: HashMap::from([(closure, Value::Closure)]), slots: HashMap::new() }
    }

    fn load(&self, base: R, displacement: i64) -> Option<Value> {
        match self.registers.get(&base) {
            Some(value) => value.load(displacement),
            None => self.slots.get(&(base, displacement)).copied(),
        }
    }

    fn set(&mut self, register: R, value: Option<Value>) {
        match value {
            Some(value) => drop(self.registers.insert(register, value)),
            None => drop(self.registers.remove(&register)),
        }
    }

    fn store(&mut self, base: R, displacement: i64, value: Option<Value>) {
        match value {
            Some(value) => drop(self.slots.insert((base, displacement), value)),
            None => drop(self.slots.remove(&(base, displacement))),
        }
    }

    /// The register has another value: slots are not told by it any more.
    fn moved(&mut self, base: R) {
        self.slots.retain(|(register, _), _| *register != base);
    }
}

fn amd64(code: &[u8]) -> Option<u8> {
    let mut held = Held::new(Register::RDX);
    let mut factory = InstructionInfoFactory::new();
    let address = |i: &Instruction| {
        let plain = i.memory_index() == Register::None && i.memory_base() != Register::None;
        plain.then(|| (i.memory_base().full_register(), i.memory_displacement64().cast_signed()))
    };
    for i in Decoder::new(64, code, DecoderOptions::NONE).into_iter().take_while(|i| !i.is_invalid()) {
        let value_of = |held: &Held<Register>, n: u32| match i.op_kind(n) {
            OpKind::Register => held.registers.get(&i.op_register(n)).copied(),
            OpKind::Memory => address(&i).and_then(|(base, at)| held.load(base, at)),
            _ => None,
        };
        match i.flow_control() {
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                return value_of(&held, 0).and_then(Value::word);
            }
            FlowControl::Return => return None,
            // The stack alone is kept, and its pointer is what it was.
            FlowControl::Call => {
                held.registers.clear();
                continue;
            }
            _ => {}
        }
        let moves = i.mnemonic() == Mnemonic::Mov && i.op_count() == 2;
        let value = if moves { value_of(&held, 1) } else { None };
        for used in factory.info(&i).used_registers() {
            let writes = !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead);
            let register = used.register().full_register();
            if writes {
                held.set(register, None);
                held.moved(register);
            }
        }
        if moves && i.op0_kind() == OpKind::Register {
            held.set(i.op0_register(), value);
        } else if moves && let Some((base, at)) = address(&i) {
            held.store(base, at, value);
        }
    }
    None
}

fn arm64(code: &[u8]) -> Option<u8> {
    const CLOSURE: u32 = 26;
    /// `bl`
    const CALL: u32 = 0x9400_0000;
    let mut held = Held::new(CLOSURE);
    for bytes in code.chunks_exact(4) {
        let w = u32::from_le_bytes(bytes.try_into().ok()?);
        let (d, n, second) = (w & 31, (w >> 5) & 31, (w >> 10) & 31);
        if matches!(w & 0xffff_fc1f, 0xd63f_0000 | 0xd61f_0000) {
            // blr, br
            return held.registers.get(&n).copied().and_then(Value::word);
        }
        if w & 0xffff_fc1f == 0xd65f_0000 {
            // ret
            return None;
        }
        if w & 0xfc00_0000 == CALL {
            held.registers.clear();
            continue;
        }
        if w & 0x7c00_0000 == 0x1400_0000 || w & 0xff00_0000 == 0x5400_0000 {
            // b, b.cond
            continue;
        }
        let unsigned = i64::from((w >> 10) & 0xfff) * 8;
        let unscaled = i64::from((w << 11).cast_signed() >> 23);
        let pair = i64::from((w << 10).cast_signed() >> 25) * 8;
        // Registers that are loaded or stored, and where.
        let at = match w & 0xffc0_0000 {
            0xf940_0000 | 0xf900_0000 => Some((unsigned, false)),
            0xa940_0000 | 0xa900_0000 => Some((pair, true)),
            0xf840_0000 | 0xf800_0000 if w & 0x0020_0c00 == 0 => Some((unscaled, false)),
            _ => None,
        };
        let loads = w & 0x0040_0000 != 0;
        match at {
            Some((at, two)) if loads => {
                let values = (held.load(n, at), held.load(n, at + 8));
                held.set(d, values.0);
                if two {
                    held.set(second, values.1);
                }
            }
            Some((at, two)) => {
                let values = (held.registers.get(&d).copied(), held.registers.get(&second).copied());
                held.store(n, at, values.0);
                if two {
                    held.store(n, at + 8, values.1);
                }
            }
            // mov xd, xm
            None if w & 0xffe0_ffe0 == 0xaa00_03e0 => {
                let value = held.registers.get(&((w >> 16) & 31)).copied();
                held.set(d, value);
            }
            None => {
                let mask = written(w);
                held.registers.retain(|register, _| mask & 1 << register == 0);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_that_is_called_is_read_off_code_of_amd64() {
        // mov rax,[rdx+0x10]; mov rdx,[rdx+8]; mov rcx,[rdx]; call rcx
        let of_func = [0x48, 0x8b, 0x42, 0x10, 0x48, 0x8b, 0x52, 8, 0x48, 0x8b, 0x0a, 0xff, 0xd1];
        assert_eq!(amd64(&of_func), Some(0));
        // push rbp; mov rbp,rsp; sub rsp,0x10; mov rcx,[rdx+8]; mov rax,[rdx+0x10]; mov rcx,[rcx+0x20]; nop; call rcx
        let of_interface = [
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x48, 0x8b, 0x4a, 8, 0x48, 0x8b, 0x42, 0x10,
            0x48, 0x8b, 0x49, 0x20, 0x90, 0xff, 0xd1,
        ];
        assert_eq!(amd64(&of_interface), Some(4));
        // mov [rsp+8],rdx; call +0 (the race detector's); mov rdx,[rsp+8]; mov rdx,[rdx+8]; mov [rsp+0x10],rdx;
        // mov rax,[rsp+0x10]; call [rax]
        let by_the_stack = [
            0x48, 0x89, 0x54, 0x24, 8, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x54, 0x24, 8, 0x48, 0x8b, 0x52, 8,
            0x48, 0x89, 0x54, 0x24, 0x10, 0x48, 0x8b, 0x44, 0x24, 0x10, 0xff, 0x10,
        ];
        assert_eq!(amd64(&by_the_stack), Some(0));
    }

    #[test]
    fn what_calls_something_else_has_no_word() {
        // mov rcx,[rdx+0x10]; mov rcx,[rcx]; call rcx (the second variable)
        assert_eq!(amd64(&[0x48, 0x8b, 0x4a, 0x10, 0x48, 0x8b, 0x09, 0xff, 0xd1]), None);
        // mov rdx,[rdx+8]; xor edx,edx; call [rdx]
        assert_eq!(amd64(&[0x48, 0x8b, 0x52, 8, 0x31, 0xd2, 0xff, 0x12]), None);
        // mov rdx,[rdx+8]; ret; call [rdx]
        assert_eq!(amd64(&[0x48, 0x8b, 0x52, 8, 0xc3, 0xff, 0x12]), None);
        // mov rcx,[rdx+8]; mov rcx,[rcx+0x1000]; call rcx (beyond what is read)
        let far = [0x48, 0x8b, 0x4a, 8, 0x48, 0x8b, 0x89, 0, 0x10, 0, 0, 0xff, 0xd1];
        assert_eq!(amd64(&far), None);
        assert_eq!((amd64(&[]), arm64(&[1, 2, 3])), (None, None));
    }

    #[test]
    fn the_word_that_is_called_is_read_off_code_of_arm64() {
        let of = |words: &[u32]| arm64(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
        // str x30,[sp,#-32]!; ldp x26,x0,[x26,#8]; ldr x1,[x26]; blr x1
        assert_eq!(of(&[0xf81e_0ffe, 0xa940_835a, 0xf940_0341, 0xd63f_0020]), Some(0));
        // ldr x2,[x26,#8]; ldr x0,[x26,#16]; ldr x2,[x2,#32]; blr x2
        assert_eq!(of(&[0xf940_0742, 0xf940_0b40, 0xf940_1042, 0xd63f_0040]), Some(4));
        // ldr x3,[x26,#8]; ldr x4,[x3]; mov x26,x3; blr x4
        assert_eq!(of(&[0xf940_0743, 0xf940_0064, 0xaa03_03fa, 0xd63f_0080]), Some(0));
        // str x26,[sp,#8]; bl; ldr x26,[sp,#8]; ldr x26,[x26,#8]; ldr x1,[x26]; blr x1
        let by_the_stack = [0xf900_07fa, 0x9400_0100, 0xf940_07fa, 0xf940_075a, 0xf940_0341, 0xd63f_0020];
        assert_eq!(of(&by_the_stack), Some(0));
        // ldr x2,[x26,#16]; ldr x2,[x2]; blr x2
        assert_eq!(of(&[0xf940_0b42, 0xf940_0042, 0xd63f_0040]), None);
        // ldr x2,[x26,#8]; add x2,x2,#8; blr x2
        assert_eq!(of(&[0xf940_0742, 0x9100_2042, 0xd63f_0040]), None);
    }

    #[test]
    fn wrappers_of_go_statements_are_told_from_methods() {
        for name in [
            "main.f.gowrap1",
            "main.f.func12",
            "main.(*T).m-fm",
            "main.f·dwrap·1",
            "main.g[go.shape.int].gowrap2",
        ] {
            assert!(may_be_called_by_go(name.as_bytes()), "{name}");
        }
        for name in ["main.(*T).m", "main.f.deferwrap1", "main.function1", "main.f.func", "main.T.func1x", ""]
        {
            assert!(!may_be_called_by_go(name.as_bytes()), "{name}");
        }
    }
}
