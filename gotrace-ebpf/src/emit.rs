//! The only place that reserves ring space and submits records, and counts what could not be sent.
//!
//! Records are submitted without waking the reader, which comes by on a timer: a wakeup costs more
//! than a probe. It is woken when half of the ring is full.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    maps::ring_buf::RingBufEntry,
};
use gotrace_common::{Lost, flags};

use crate::{maps::EVENTS, process::Process};

/// Bytes in the ring at which the reader is woken; user space sets it to half of the ring.
#[unsafe(no_mangle)]
static WAKEUP_BYTES: u64 = 1 << 19;

/// Room for a record, or a loss of kind `lost`. A process that floods the ring finds none in its upper
/// half, which is the others'.
#[inline(always)]
pub fn reserve<T: 'static>(process: &Process, lost: Lost) -> Option<RingBufEntry<T>> {
    let entry = room(process);
    if entry.is_none() {
        process.lost(lost);
    }
    entry
}

/// Room for a record of which nothing is lost where there is none: a later one tells the same.
#[inline(always)]
pub fn room<T: 'static>(process: &Process) -> Option<RingBufEntry<T>> {
    if process.flags & flags::FLOODS != 0 && is_half_full() {
        return None;
    }
    EVENTS.reserve::<T>(0)
}

/// Sends a record that has been written in full.
#[inline(always)]
pub fn submit<T>(entry: RingBufEntry<T>) {
    entry.submit(u64::from(if is_half_full() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
}

#[inline(always)]
fn is_half_full() -> bool {
    // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
    let threshold = unsafe { core::ptr::read_volatile(&WAKEUP_BYTES) };
    EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > threshold
}

/// Fills a value with 0, word by word.
///
/// # Safety
/// It must be valid for writing, of whole words.
#[inline(always)]
pub unsafe fn clear<T>(value: *mut T) {
    for n in 0..size_of::<T>() / 8 {
        // SAFETY: as above.
        unsafe { value.cast::<u64>().add(n).write(0) };
    }
}

/// Copies a value word by word, as a copy of the whole takes room on the stack.
///
/// # Safety
/// Both must be valid, the latter for writing, of whole words.
#[inline(always)]
pub unsafe fn copy<T>(from: *const T, to: *mut T) {
    for n in 0..size_of::<T>() / 8 {
        // SAFETY: as above.
        unsafe { to.cast::<u64>().add(n).write(from.cast::<u64>().add(n).read()) };
    }
}
