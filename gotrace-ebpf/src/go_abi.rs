//! Registers of Go's ABIInternal, and reading the memory of the traced process.
//!
//! Source: Go's `src/cmd/compile/abi-internal.md`; the same since Go 1.18.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{EbpfContext, helpers::generated, programs::ProbeContext};
use gotrace_common::request::{FieldPath, NO_STEP};

/// Index of the n-th integer argument register in `pt_regs`: RAX, RBX, RCX, RDI, RSI, R8.
#[cfg(bpf_target_arch = "x86_64")]
const ARGUMENTS: [usize; 6] = [10, 5, 11, 14, 13, 9];
/// R14
#[cfg(bpf_target_arch = "x86_64")]
const CURRENT_G: usize = 1;
/// RDX
#[cfg(bpf_target_arch = "x86_64")]
const CLOSURE_CONTEXT: usize = 12;
/// RBP
#[cfg(bpf_target_arch = "x86_64")]
const FRAME_POINTER: usize = 4;
/// RIP
#[cfg(bpf_target_arch = "x86_64")]
const INSTRUCTION: usize = 16;
/// RSP
#[cfg(bpf_target_arch = "x86_64")]
const STACK_POINTER: usize = 19;

/// Index of the n-th integer argument register in `user_pt_regs`: X0 to X5.
#[cfg(bpf_target_arch = "aarch64")]
const ARGUMENTS: [usize; 6] = [0, 1, 2, 3, 4, 5];
/// X28
#[cfg(bpf_target_arch = "aarch64")]
const CURRENT_G: usize = 28;
/// X26
#[cfg(bpf_target_arch = "aarch64")]
const CLOSURE_CONTEXT: usize = 26;
/// X29
#[cfg(bpf_target_arch = "aarch64")]
const FRAME_POINTER: usize = 29;
/// SP
#[cfg(bpf_target_arch = "aarch64")]
const STACK_POINTER: usize = 31;
/// PC
#[cfg(bpf_target_arch = "aarch64")]
const INSTRUCTION: usize = 32;

#[inline(always)]
fn register(ctx: &ProbeContext, index: usize) -> u64 {
    // SAFETY: `pt_regs` is an array of words, `index` is one of the constants above, and the verifier
    // checks the access.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
}

/// The n-th integer argument, 0 to 5.
#[inline(always)]
pub fn argument<const N: usize>(ctx: &ProbeContext) -> u64 {
    register(ctx, ARGUMENTS[N])
}

/// The first three integer arguments, read in any case: of a choice between them the compiler would make one load at an
/// address that it computes, which the verifier refuses.
#[inline(always)]
pub fn first_arguments(ctx: &ProbeContext) -> [u64; 3] {
    // SAFETY: as in `register`.
    let read = |n: usize| unsafe { ctx.as_ptr().cast::<u64>().add(ARGUMENTS[n]).read_volatile() };
    [read(0), read(1), read(2)]
}

/// The g that runs: a goroutine's, or the scheduler's g0.
#[inline(always)]
pub fn current_g(ctx: &ProbeContext) -> u64 {
    register(ctx, CURRENT_G)
}

/// The closure that the running function belongs to.
#[inline(always)]
pub fn closure_context(ctx: &ProbeContext) -> u64 {
    register(ctx, CLOSURE_CONTEXT)
}

/// The frame pointer.
#[inline(always)]
pub fn frame_pointer(ctx: &ProbeContext) -> u64 {
    register(ctx, FRAME_POINTER)
}

/// The stack pointer.
#[inline(always)]
pub fn stack_pointer(ctx: &ProbeContext) -> u64 {
    register(ctx, STACK_POINTER)
}

/// Address of the instruction that is probed.
#[inline(always)]
pub fn instruction(ctx: &ProbeContext) -> u64 {
    register(ctx, INSTRUCTION)
}

/// Reads `N` consecutive words of the traced process; `None` when they are not readable.
#[inline(always)]
pub fn read_words<const N: usize>(address: u64) -> Option<[u64; N]> {
    let mut words = MaybeUninit::<[u64; N]>::uninit();
    // SAFETY: the destination is ours and as long as stated; the helper checks the source.
    let result = unsafe {
        generated::bpf_probe_read_user(words.as_mut_ptr().cast(), (N * 8) as u32, address as *const _)
    };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper has filled it.
    Some(unsafe { words.assume_init() })
}

/// Reads as much of the traced process as `to` has room for, straight into it; fills it with 0 where that is not
/// readable. Whether it was.
///
/// # Safety
/// `to` must be valid for writing.
#[inline(always)]
pub unsafe fn read_into<T>(to: *mut T, address: u64) -> bool {
    // SAFETY: as above; the helper checks the source.
    unsafe { generated::bpf_probe_read_user(to.cast(), size_of::<T>() as u32, address as *const _) == 0 }
}

/// Reads `length` bytes, at most `N`, and fills the rest of `N` with 0. Whether they were readable.
///
/// # Safety
/// `to` must be valid for writing `N` bytes.
#[inline(always)]
pub unsafe fn read_text<const N: usize>(to: *mut u8, address: u64, length: u64) -> bool {
    if length == 0 {
        return true;
    }
    let result: u64;
    // As one piece: between the comparison and the call the compiler may put the length on the stack, where the verifier
    // of Linux 5.10 forgets that it is bounded.
    // SAFETY: as above; the helper (bpf_probe_read_user, number 112) checks the source, and fills what it could not read
    // with 0.
    unsafe {
        asm!(
            "if r2 <= {most} goto +1",
            "r2 = {most}",
            "call 112",
            most = const N,
            inlateout("r1") to => _,
            inlateout("r2") length => _,
            inlateout("r3") address => _,
            lateout("r0") result,
            lateout("r4") _,
            lateout("r5") _,
            options(nostack),
        );
    }
    result == 0
}

/// Follows a path from `base` to the address of a field.
#[inline(always)]
pub fn follow(base: u64, path: FieldPath) -> Option<u64> {
    let [first, second, third] = path.steps;
    if first == NO_STEP || base == 0 {
        return None;
    }
    let mut address = base + u64::from(first);
    for step in [second, third] {
        if step != NO_STEP {
            address = read_word(address).filter(|pointer| *pointer != 0)? + u64::from(step);
        }
    }
    Some(address)
}

/// Reads one word of the traced process.
#[inline(always)]
pub fn read_word(address: u64) -> Option<u64> {
    read_words::<1>(address).map(|[word]| word)
}
