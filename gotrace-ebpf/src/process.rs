//! Which process a probe was hit in, and what user space said of it.

use core::{arch::asm, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_pidns_info,
    helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns, generated},
    programs::ProbeContext,
};
use gotrace_common::{
    BUCKETS, GoroutineKey, GoroutineState, Hit, Lost, ProcessConfig, REASON_ROWS, bucket_of,
};

use crate::{
    diagnostics,
    maps::{COUNTERS, EXECUTIONS, GOROUTINES, HELD, HISTOGRAMS, NOWHERE, PROCESSES, SHARES},
};

/// Device of the agent's PID namespace (`/proc/self/ns/pid`).
#[unsafe(no_mangle)]
static PID_NAMESPACE_DEVICE: u64 = 0;
/// Inode of the agent's PID namespace; 0 when it is the initial one.
#[unsafe(no_mangle)]
static PID_NAMESPACE_INODE: u64 = 0;
/// Set to 1 where probes carry a cookie (Linux 5.15): the number of a file-wide attachment in the upper half (0 for
/// probes that are scoped to a process), the program to run in the lower one. Constant to the verifier, which then
/// removes the call that older kernels do not know.
#[unsafe(no_mangle)]
static COOKIES: u32 = 0;
/// Copies of each process's histograms, less one: a power of two, less one.
#[unsafe(no_mangle)]
static HISTOGRAM_COPIES: u32 = 0;

/// The current thread group id as the agent sees it; 0 when the agent cannot see it.
#[inline(always)]
pub fn current_pid() -> u32 {
    // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
    let inode = unsafe { ptr::read_volatile(&PID_NAMESPACE_INODE) };
    if inode == 0 {
        return (bpf_get_current_pid_tgid() >> 32) as u32;
    }
    // SAFETY: as above.
    let device = unsafe { ptr::read_volatile(&PID_NAMESPACE_DEVICE) };
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: `info` is as long as stated.
    let result = unsafe { generated::bpf_get_ns_current_pid_tgid(device, inode, &mut info, 8) };
    if result == 0 { info.tgid } else { 0 }
}

/// A traced process in which a probe was hit, and when.
pub struct Process {
    config: &'static ProcessConfig,
    hit: Hit,
    /// The time of the hit.
    pub now_ns: u64,
}

impl core::ops::Deref for Process {
    type Target = ProcessConfig;

    #[inline(always)]
    fn deref(&self) -> &ProcessConfig {
        self.config
    }
}

impl Process {
    /// The process that was hit, when it is traced at `level` or above and runs the program that user space meant;
    /// counts the hit.
    ///
    /// A place can have several probes: those of a file-wide attachment and those scoped to other processes. Each
    /// process listens to its own only.
    #[inline(always)]
    pub fn hit(probe: &Probe, hit: Hit, level: u8) -> Option<Self> {
        let Some(config) = PROCESSES.get_ptr(current_pid()) else {
            diagnostics::not_traced(hit);
            return None;
        };
        // SAFETY: values of a preallocated map stay readable while a program runs.
        let config = unsafe { &*config };
        if config.level < level {
            return None;
        }
        if config.file != probe.file {
            return None;
        }
        if executions(config.slot) as u32 != config.generation {
            return None;
        }
        // SAFETY: the helper has no precondition.
        let process = Self { config, hit, now_ns: unsafe { bpf_ktime_get_ns() } };
        if let Some(counters) = COUNTERS.get_ptr_mut(config.slot) {
            // SAFETY: a pointer to a map value; `hit` is a constant below the array's length.
            increment(unsafe { (&raw mut (*counters).hits).cast::<u64>().add(hit as usize) }, 1);
        }
        Some(process)
    }

    /// Counts a loss.
    #[inline(always)]
    pub fn lost(&self, lost: Lost) {
        diagnostics::dropped(self.hit, lost);
        if let Some(counters) = COUNTERS.get_ptr_mut(self.slot) {
            // SAFETY: as in `hit`.
            increment(unsafe { (&raw mut (*counters).lost).cast::<u64>().add(lost as usize) }, 1);
        }
    }

    /// What was read, or the loss of it.
    #[inline(always)]
    pub fn read<T>(&self, read: Option<T>) -> Option<T> {
        if read.is_none() {
            self.lost(Lost::ReadFailed);
        }
        read
    }

    /// The key of a goroutine of this process.
    #[inline(always)]
    pub fn key(&self, goid: u64) -> GoroutineKey {
        GoroutineKey { goid, process: self.process, reserved: 0 }
    }

    /// Keeps track of a goroutine. Where the process has its share, or there is no room, that is its loss.
    #[inline(always)]
    pub fn keep(&self, goid: u64, state: &GoroutineState) {
        if let (Some(held), Some(share)) = (HELD.get_ptr_mut(self.slot), SHARES.get_ptr(self.slot)) {
            // SAFETY: values of arrays, which live as long as the maps.
            let (held_now, share) = unsafe { (ptr::read_volatile(held), ptr::read_volatile(share)) };
            // Below 0 where one that came while user space set it to 0 has ended: that must not look like very many.
            let has_room = (held_now as i64) < share as i64;
            if has_room && GOROUTINES.insert(self.key(goid), state, 0).is_ok() {
                increment(held, 1);
                return;
            }
        }
        self.lost(Lost::TableFull);
    }

    /// Keeps track of a goroutine no more.
    #[inline(always)]
    pub fn forget(&self, goid: u64) {
        if GOROUTINES.remove(self.key(goid)).is_ok()
            && let Some(held) = HELD.get_ptr_mut(self.slot)
        {
            // One less.
            increment(held, u64::MAX);
        }
    }

    /// Counts a duration in the histogram of `row`.
    #[inline(always)]
    pub fn count_duration(&self, row: u32, duration_ns: u64) {
        // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
        let mask = unsafe { ptr::read_volatile(&HISTOGRAM_COPIES) };
        // SAFETY: the helper has no precondition.
        let cpu = if mask == 0 { 0 } else { unsafe { bpf_get_smp_processor_id() } };
        let copy = self.slot * (mask + 1) + (cpu & mask);
        let Some(histogram) = HISTOGRAMS.get_ptr_mut(copy * REASON_ROWS + row) else { return };
        // SAFETY: a pointer to a map value; the bucket is below the array's length.
        unsafe {
            increment(&raw mut (*histogram).sum_ns, duration_ns);
            // Two tasks may race here and the shorter may stay; the buckets are exact.
            if duration_ns > (*histogram).max_ns {
                (*histogram).max_ns = duration_ns;
            }
            let bucket = bucket_of(duration_ns);
            if bucket < BUCKETS {
                increment((&raw mut (*histogram).buckets).cast::<u64>().add(bucket), 1);
            }
        }
    }

    /// Counts a wait that is too short to be sent.
    #[inline(always)]
    pub fn count_short_wait(&self, reason: u8, duration_ns: u64) {
        self.count_duration(u32::from(reason & 63), duration_ns);
        if let Some(counters) = COUNTERS.get_ptr_mut(self.slot) {
            // SAFETY: as in `hit`.
            increment(unsafe { &raw mut (*counters).short_waits }, 1);
        }
    }
}

/// How often the process in `slot` has executed a program.
#[inline(always)]
pub fn executions(slot: u32) -> u64 {
    // SAFETY: a value of an array, which lives as long as the map; read once.
    EXECUTIONS.get_ptr(slot).map_or(0, |count| unsafe { ptr::read_volatile(count) })
}

/// A hit: the registers, and which attachment it is of.
pub struct Probe {
    ctx: ProbeContext,
    /// The number of a file-wide attachment; 0 for probes that are scoped to a process.
    file: u32,
}

impl Probe {
    /// Of a program that is attached for itself.
    #[inline(always)]
    pub fn new(ctx: ProbeContext) -> Self {
        keep_own_stack(&ctx);
        // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
        let file = if unsafe { ptr::read_volatile(&COOKIES) } != 0 { (cookie(&ctx) >> 32) as u32 } else { 0 };
        Self { ctx, file }
    }

    /// Of a program that does the work of many, and the number of the one whose it is.
    #[inline(always)]
    pub fn dispatched(ctx: ProbeContext) -> (Self, u32) {
        keep_own_stack(&ctx);
        let cookie = cookie(&ctx);
        (Self { ctx, file: (cookie >> 32) as u32 }, cookie as u32)
    }
}

impl core::ops::Deref for Probe {
    type Target = ProbeContext;

    #[inline(always)]
    fn deref(&self) -> &ProbeContext {
        &self.ctx
    }
}

/// Always 0, which the compiler does not know, and the verifier does.
#[unsafe(no_mangle)]
static NEVER: u32 = 0;

/// From Linux 6.13 on a program whose stack has 64 bytes or more gets one for each CPU instead of the thread's, unless it
/// has a tail call (`check_max_stack_depth` of the kernel's `kernel/bpf/verifier.c`). For a program on a uprobe that is
/// fatal: it may be preempted, and a run of it by another thread on that CPU overwrites what it keeps there, addresses
/// among them (seen on 7.3: an oops in the first one's next store). So each has a tail call, which never happens, and
/// which the verifier removes once it has seen it.
#[inline(always)]
fn keep_own_stack(ctx: &ProbeContext) {
    // SAFETY: nobody writes it; volatile, so that the value here is not built in.
    if unsafe { ptr::read_volatile(&NEVER) } != 0 {
        // SAFETY: the array is empty.
        unsafe { NOWHERE.tail_call(ctx, 0) };
    }
}

#[inline(always)]
fn cookie(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of this program.
    unsafe { generated::bpf_get_attach_cookie(ctx.as_ptr()) }
}

#[inline(always)]
pub fn increment(counter: *mut u64, by: u64) {
    // Rust has no atomic addition for this target, which has no compare-and-swap before its version 3;
    // the instruction itself is as old as the target.
    // SAFETY: the callers pass a pointer to an aligned word in a map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) by, options(nostack)) };
}
