//! Registers of Go's ABIInternal, and reading the memory of the traced process.
//!
//! Source: Go's `src/cmd/compile/abi-internal.md`; the same since Go 1.18.

use core::mem::MaybeUninit;

use aya_ebpf::{EbpfContext, helpers::generated, programs::ProbeContext};

/// Index of the n-th integer argument register in `pt_regs`: RAX, RBX, RCX.
#[cfg(bpf_target_arch = "x86_64")]
const ARGUMENTS: [usize; 3] = [10, 5, 11];
/// R14
#[cfg(bpf_target_arch = "x86_64")]
const CURRENT_G: usize = 1;
/// RDX
#[cfg(bpf_target_arch = "x86_64")]
const CLOSURE_CONTEXT: usize = 12;
/// RBP
#[cfg(bpf_target_arch = "x86_64")]
const FRAME_POINTER: usize = 4;

/// Index of the n-th integer argument register in `user_pt_regs`: X0, X1, X2.
#[cfg(bpf_target_arch = "aarch64")]
const ARGUMENTS: [usize; 3] = [0, 1, 2];
/// X28
#[cfg(bpf_target_arch = "aarch64")]
const CURRENT_G: usize = 28;
/// X26
#[cfg(bpf_target_arch = "aarch64")]
const CLOSURE_CONTEXT: usize = 26;
/// X29
#[cfg(bpf_target_arch = "aarch64")]
const FRAME_POINTER: usize = 29;

#[inline(always)]
fn register(ctx: &ProbeContext, index: usize) -> u64 {
    // SAFETY: `pt_regs` is an array of words, `index` is one of the constants above, and the verifier
    // checks the access.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
}

/// The n-th integer argument, 0 to 2.
#[inline(always)]
pub fn argument<const N: usize>(ctx: &ProbeContext) -> u64 {
    register(ctx, ARGUMENTS[N])
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

/// Reads one word of the traced process.
#[inline(always)]
pub fn read_word(address: u64) -> Option<u64> {
    read_words::<1>(address).map(|[word]| word)
}
