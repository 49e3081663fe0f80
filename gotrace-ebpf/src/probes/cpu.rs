//! Processor time: what each thread has used, counted by the kernel's scheduler and told at each switch, and whose that
//! is, told by where a goroutine is put on a thread and leaves it.
//!
//! Not every switch is told: some kernels leave out a few, away from tasks of their own. The scheduler's count makes good
//! for that at the next one.
//!
//! A thread that looks for other work after a goroutine has yielded or was preempted counts to that goroutine until it
//! runs another or sleeps, below level `full`.

use core::ptr;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use gotrace_common::{CPU_TOLD_NS, CpuRecord, GoroutineState, Header, Hit, Lost, ThreadState, flags, kind};

use crate::{
    emit::{room, submit},
    kernel::read,
    maps::{COUNTERS, GOROUTINES, THREADS, THREADS_HELD},
    probes::quota,
    process::{Process, increment},
};

/// Where `task_struct.pid` and `task_struct.se.sum_exec_runtime` are. User space reads it from the kernel's BTF.
#[unsafe(no_mangle)]
static TASK_PID: u64 = 0;
#[unsafe(no_mangle)]
static TASK_RUNTIME: u64 = 0;
/// Threads of one process that `THREADS` has room for.
#[unsafe(no_mangle)]
static THREADS_EACH: u64 = 0;

/// Runs for every switch of the machine: a lookup for each of the two tasks, but for the idle one, and no more for those
/// that are not known.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn thread_switch(ctx: RawTracePointContext) -> i32 {
    let mut now_ns = 0;
    let previous = current_thread();
    if previous != 0
        && let Some(thread) = THREADS.get_ptr_mut(previous)
    {
        // SAFETY: the value of a preallocated map, of the thread that leaves this processor.
        let thread = unsafe { &mut *thread };
        // SAFETY: user space sets it before loading.
        let counted_ns = read::<u64>(ctx.arg::<u64>(1), unsafe { ptr::read_volatile(&TASK_RUNTIME) });
        // SAFETY: the helper has no precondition.
        now_ns = unsafe { bpf_ktime_get_ns() };
        thread.cpu_ns += match (thread.counted_ns, counted_ns) {
            (before, now) if before != 0 && now != 0 => now.saturating_sub(before),
            _ if thread.since_ns != 0 => now_ns.saturating_sub(thread.since_ns),
            _ => 0,
        };
        thread.counted_ns = counted_ns;
        thread.since_ns = 0;
        quota::leave(thread, ctx.arg::<u64>(1), ctx.arg::<u64>(0) & 1 != 0, now_ns);
        if let Some(counters) = COUNTERS.get_ptr_mut(thread.slot) {
            // SAFETY: a pointer to a map value; the index is a constant below the array's length.
            increment(unsafe { (&raw mut (*counters).hits).cast::<u64>().add(Hit::Switch as usize) }, 1);
        }
    }
    // SAFETY: user space sets it before loading.
    let next = read::<u32>(ctx.arg::<u64>(2), unsafe { ptr::read_volatile(&TASK_PID) });
    if next != 0
        && let Some(thread) = THREADS.get_ptr_mut(next)
    {
        if now_ns == 0 {
            // SAFETY: as above.
            now_ns = unsafe { bpf_ktime_get_ns() };
        }
        // SAFETY: the value of a preallocated map, of the thread that gets this processor.
        let thread = unsafe { &mut *thread };
        thread.since_ns = now_ns;
        quota::come_back(thread, ctx.arg::<u64>(2), now_ns);
    }
    0
}

/// A thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exit(_ctx: RawTracePointContext) -> i32 {
    let id = current_thread();
    let Some(thread) = THREADS.get_ptr(id) else { return 0 };
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    let slot = unsafe { (*thread).slot };
    if THREADS.remove(id).is_ok() {
        release(slot);
    }
    0
}

/// The current thread's id in the initial PID namespace.
#[inline(always)]
fn current_thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// One thread less of the process in `slot`.
#[inline(always)]
fn release(slot: u32) {
    if let Some(held) = THREADS_HELD.get_ptr_mut(slot) {
        increment(held, u64::MAX);
    }
}

/// The current thread, where it is known.
#[inline(always)]
pub fn known_thread(process: &Process) -> Option<*mut ThreadState> {
    let thread = THREADS.get_ptr_mut(current_thread())?;
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    (unsafe { (*thread).process } == process.process).then_some(thread)
}

/// The current thread, which is known from now on; where there is no room for it, that is the process's loss.
#[inline(always)]
pub fn thread(process: &Process) -> Option<*mut ThreadState> {
    let id = current_thread();
    if let Some(thread) = THREADS.get_ptr_mut(id) {
        // SAFETY: the value of a preallocated map, of the thread whose event this is.
        if unsafe { (*thread).process } == process.process {
            return Some(thread);
        }
        // The process is traced anew.
        // SAFETY: as above.
        let slot = unsafe { (*thread).slot };
        if THREADS.remove(id).is_ok() {
            release(slot);
        }
    }
    if let Some(held) = THREADS_HELD.get_ptr_mut(process.slot) {
        // SAFETY: a value of an array, which lives as long as the map; user space sets the other before loading.
        let (held_now, each) = unsafe { (ptr::read_volatile(held), ptr::read_volatile(&THREADS_EACH)) };
        let state = ThreadState {
            since_ns: process.now_ns,
            process: process.process,
            slot: process.slot,
            ..ThreadState::default()
        };
        // Below 0 where one that came while user space set it to 0 has ended: that must not look like very many.
        if (held_now as i64) < each as i64 && THREADS.insert(id, state, 0).is_ok() {
            increment(held, 1);
            return THREADS.get_ptr_mut(id);
        }
    }
    process.lost(Lost::ThreadsFull);
    None
}

/// Processor time that the current thread has used.
#[inline(always)]
fn clock(process: &Process, thread: *mut ThreadState) -> u64 {
    // SAFETY: the value of a preallocated map, of the thread whose event this is: it has a processor.
    unsafe {
        if ptr::read_volatile(&raw const (*thread).since_ns) == 0 {
            (*thread).since_ns = process.now_ns;
        }
    }
    // The thread may be switched away and come back between any two of these: then the second time is as good.
    // SAFETY: as above; only switches of this thread write what is read here.
    let clock = || unsafe {
        let since_ns = ptr::read_volatile(&raw const (*thread).since_ns);
        let used_ns =
            ptr::read_volatile(&raw const (*thread).cpu_ns) + process.now_ns.saturating_sub(since_ns);
        (used_ns, since_ns == ptr::read_volatile(&raw const (*thread).since_ns))
    };
    match clock() {
        (used_ns, true) => used_ns,
        _ => clock().0,
    }
}

/// What the current thread has used of the processors, and for how long it has stood still for its quota, since it is
/// known; 0 where that is not counted.
#[inline(always)]
pub fn used(process: &Process) -> (u64, u64) {
    if process.flags & flags::CPU_TIME == 0 {
        return (0, 0);
    }
    let Some(thread) = known_thread(process) else { return (0, 0) };
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    let throttled_ns = unsafe { ptr::read_volatile(&raw const (*thread).throttled_ns) };
    (clock(process, thread), throttled_ns)
}

/// A goroutine is put on this thread; the one before it, if it has not left, leaves.
#[inline(always)]
pub fn run(process: &Process, g: u64, goid: u64) -> Option<()> {
    if process.flags & flags::CPU_TIME == 0 {
        return None;
    }
    let thread = thread(process)?;
    let now = clock(process, thread);
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    let (before, used) = unsafe { ((*thread).goid, taken(thread, now)) };
    // SAFETY: as above.
    unsafe { (*thread).goid = goid };
    if before != 0 {
        add(process, before, used);
    }
    // So that what it uses has a place; one that has ended has none, and what is left of it then is nobody's.
    if before != goid && GOROUTINES.get_ptr(process.key(goid)).is_none() {
        process.keep(goid, &GoroutineState { g, ..GoroutineState::default() });
    }
    Some(())
}

/// What the thread has used, and for how long it was throttled, since this was last asked, when it has used `now` in all.
///
/// # Safety
/// `thread` must be the value of a preallocated map, of the thread whose event this is.
#[inline(always)]
unsafe fn taken(thread: *mut ThreadState, now: u64) -> (u64, u64) {
    // SAFETY: as the caller says.
    unsafe {
        let throttled = ptr::read_volatile(&raw const (*thread).throttled_ns);
        let taken =
            (now.saturating_sub((*thread).from_ns), throttled.saturating_sub((*thread).throttled_from_ns));
        (*thread).from_ns = now;
        (*thread).throttled_from_ns = throttled;
        taken
    }
}

/// A goroutine leaves this thread. Gives what it has used on it, and for how long it was throttled, that was not counted
/// yet.
#[inline(always)]
pub fn leave(process: &Process, goid: u64) -> (u64, u64) {
    if process.flags & flags::CPU_TIME == 0 {
        return (0, 0);
    }
    let Some(thread) = known_thread(process) else { return (0, 0) };
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    if unsafe { (*thread).goid } != goid {
        return (0, 0);
    }
    // SAFETY: as above.
    let used = unsafe {
        (*thread).goid = 0;
        taken(thread, clock(process, thread))
    };
    add(process, goid, used);
    used
}

/// Counts what a goroutine has used and for how long it was throttled, and tells it where it is much.
#[inline(always)]
fn add(process: &Process, goid: u64, (used_ns, stood_ns): (u64, u64)) -> Option<()> {
    let state = GOROUTINES.get_ptr_mut(process.key(goid))?;
    // SAFETY: the value of a preallocated map; another thread may add to it now, so that is done at once.
    unsafe { increment(&raw mut (*state).cpu_ns, used_ns) };
    if stood_ns != 0 {
        // SAFETY: as above.
        unsafe { increment(&raw mut (*state).throttled_ns, stood_ns) };
    }
    // SAFETY: as above.
    let (cpu_ns, throttled_ns) = unsafe {
        (ptr::read_volatile(&raw const (*state).cpu_ns), ptr::read_volatile(&raw const (*state).throttled_ns))
    };
    // SAFETY: as above.
    let (cpu_told_ns, throttled_told_ns) = unsafe { ((*state).cpu_told_ns, (*state).throttled_told_ns) };
    if (cpu_ns as u32).wrapping_sub(cpu_told_ns) < CPU_TOLD_NS
        && (throttled_ns as u32).wrapping_sub(throttled_told_ns) < CPU_TOLD_NS
    {
        return None;
    }
    let mut entry = room::<CpuRecord>(process)?;
    entry.write(CpuRecord {
        header: Header {
            kind: kind::CPU,
            arg: 0,
            count: 0,
            waker: 0,
            process: process.process,
            time_ns: process.now_ns,
        },
        goid,
        cpu_ns,
        throttled_ns,
    });
    submit(entry);
    // SAFETY: as above.
    unsafe {
        (*state).cpu_told_ns = cpu_ns as u32;
        (*state).throttled_told_ns = throttled_ns as u32;
    }
    Some(())
}
