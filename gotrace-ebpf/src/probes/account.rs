//! What goroutines that serve requests spend their time on: the state that each is in, since when, and one sum a state.
//! Each event of the scheduler closes the books of the old state, so that sums always add up to the time between.

use core::{arch::asm, ptr};

use gotrace_common::{
    Account, GoroutineState, OpenRequest, flags,
    request::{BLOCKED_CLASSES, TIMES, state, time},
};

use crate::{
    maps::{ACCOUNTS, GOROUTINES, PAUSES, REQUEST_CONFIGS, STOPPED},
    probes::cpu,
    process::Process,
};

/// Set to 1 where requests are traced. Constant to the verifier, which else removes all that is for them.
#[unsafe(no_mangle)]
static REQUESTS_TRACED: u32 = 0;

/// Whether requests of a process are traced.
#[inline(always)]
pub fn wanted(process: &Process) -> bool {
    // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
    unsafe { ptr::read_volatile(&REQUESTS_TRACED) != 0 && process.flags & flags::REQUESTS != 0 }
}

/// Whether a goroutine has an account.
#[inline(always)]
pub fn has(process: &Process, goroutine: &GoroutineState) -> bool {
    wanted(process) && goroutine.accounted != 0
}

/// Its account.
#[inline(always)]
pub fn of(process: &Process, goid: u64) -> Option<*mut Account> {
    ACCOUNTS.get_ptr_mut(process.key(goid))
}

/// A goroutine comes into another state, in an event of its own thread or one that makes it runnable.
#[inline(always)]
pub fn enter(process: &Process, goroutine: &GoroutineState, goid: u64, to: u32) -> Option<()> {
    if !has(process, goroutine) {
        return None;
    }
    let account = of(process, goid)?;
    close(process, account, true);
    open(process, account, to);
    Some(())
}

/// The same of one whose state is not at hand.
#[inline(always)]
pub fn change(process: &Process, goid: u64, to: u32) -> Option<()> {
    if !wanted(process) {
        return None;
    }
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let goroutine = unsafe { &*GOROUTINES.get_ptr(process.key(goid))? };
    enter(process, goroutine, goid, to)
}

/// A goroutine is blocked, for this reason.
#[inline(always)]
pub fn block(process: &Process, goroutine: &GoroutineState, goid: u64, reason: u8) -> Option<()> {
    if !has(process, goroutine) {
        return None;
    }
    let account = of(process, goid)?;
    close(process, account, true);
    open(process, account, state::BLOCKED);
    let config = REQUEST_CONFIGS.get_ptr(process.slot)?;
    // SAFETY: a value of an array; the index is below its length. The account is of the goroutine whose event this is.
    unsafe { (*account).class = u32::from((*config).classes[usize::from(reason & 63)]) };
    Some(())
}

/// A goroutine is put on a thread. One that was on its way out of a system call found no processor before, and has waited
/// for one since.
#[inline(always)]
pub fn run(process: &Process, goroutine: &GoroutineState, goid: u64) -> Option<()> {
    if !has(process, goroutine) {
        return None;
    }
    let account = of(process, goid)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe {
        if (*account).state == state::RUNNING {
            (*account).state = state::RUNNABLE;
        }
    }
    close(process, account, true);
    open(process, account, state::RUNNING);
    Some(())
}

/// A wait of the goroutine could not be sent.
#[inline(always)]
pub fn lose_wait(process: &Process, goid: u64) {
    if wanted(process)
        && let Some(account) = of(process, goid)
    {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        unsafe { (*account).waits_lost += 1 };
    }
}

/// The account is in this state from now on.
#[inline(always)]
pub fn open(process: &Process, account: *mut Account, to: u32) {
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe {
        (*account).state = to;
        (*account).stopped_ns = stopped(process);
        if to == state::RUNNING {
            ((*account).cpu_ns, (*account).throttled_ns) = cpu::used(process);
        }
    }
}

/// Adds the time since the last event to the sum of the state. `own`: this is the thread that the goroutine is on, if it
/// is on one.
#[inline(always)]
pub fn close(process: &Process, account: *mut Account, own: bool) {
    // SAFETY: the value of a preallocated map. Two events of a goroutine are never at the same time.
    let account = unsafe { &mut *account };
    let spent = process.now_ns.saturating_sub(account.since_ns);
    account.since_ns += spent;
    let times = &mut account.times;
    match account.state {
        state::RUNNING => {
            let (mut cpu, mut throttled) = (spent, 0);
            if own && process.flags & flags::CPU_TIME != 0 {
                let (cpu_ns, throttled_ns) = cpu::used(process);
                cpu = least(cpu_ns.saturating_sub(account.cpu_ns), spent);
                throttled = least(throttled_ns.saturating_sub(account.throttled_ns), spent - cpu);
                (account.cpu_ns, account.throttled_ns) = (cpu_ns, throttled_ns);
            }
            times[time::ON_CPU] += cpu;
            times[time::THROTTLED] += throttled;
            times[time::DESCHEDULED] += spent - cpu - throttled;
        }
        state::RUNNABLE => {
            let now = stopped(process);
            let stopped = least(now.saturating_sub(account.stopped_ns), spent);
            account.stopped_ns = now;
            times[time::WORLD_STOPPED] += stopped;
            times[time::RUN_QUEUE] += spent - stopped;
        }
        state::SYSCALL => times[time::SYSCALL] += spent,
        state::ASSIST => times[time::GC_ASSIST] += spent,
        _ => {
            let class = account.class as usize;
            let class = if class < BLOCKED_CLASSES { class } else { BLOCKED_CLASSES - 1 };
            times[time::BLOCKED + class] += spent;
        }
    }
}

/// The request has what its goroutine spent the time on since it began, in place of what the account was then. Who looks at
/// those that are open sees that.
#[inline(always)]
pub fn settle(account: *const Account, open: *mut OpenRequest) -> u64 {
    let mut sum = 0u64;
    // SAFETY: values of preallocated maps.
    unsafe {
        ptr::write_volatile(&raw mut (*open).start_ns, 0);
        let (times, spent) =
            ((&raw const (*account).times).cast::<u64>(), (&raw mut (*open).base).cast::<u64>());
        for n in 0..TIMES {
            let part = times.add(n).read_volatile().wrapping_sub(spent.add(n).read());
            spent.add(n).write(part);
            sum = sum.wrapping_add(part);
        }
    }
    sum
}

/// The same by another goroutine, whose account this is not, and may change meanwhile: it is believed where it adds up.
/// How long the request took; `None` where it is not believed.
#[inline(always)]
pub fn settle_elsewhere(process: &Process, account: *const Account, open: *mut OpenRequest) -> Option<u64> {
    // SAFETY: values of preallocated maps.
    unsafe {
        let start_ns = (*open).start_ns;
        let since_ns = (&raw const (*account).since_ns).read_volatile();
        let (state, class) = ((*account).state, (*account).class as usize);
        let sum = settle(account, open);
        if sum != since_ns.wrapping_sub(start_ns)
            || (&raw const (*account).since_ns).read_volatile() != since_ns
        {
            return None;
        }
        let rest = process.now_ns.saturating_sub(since_ns);
        let part = match state {
            state::RUNNING => time::ON_CPU,
            state::RUNNABLE => time::RUN_QUEUE,
            state::SYSCALL => time::SYSCALL,
            state::ASSIST => time::GC_ASSIST,
            _ => time::BLOCKED + if class < BLOCKED_CLASSES { class } else { BLOCKED_CLASSES - 1 },
        };
        if part < TIMES {
            *(&raw mut (*open).base).cast::<u64>().add(below_32(part)) += rest;
        }
        Some(sum + rest)
    }
}

/// What is below 32 anyway, where it is used as an index: the verifier of Linux 5.10 does not know that of what was on the
/// stack since.
#[inline(always)]
fn below_32(mut n: usize) -> usize {
    // SAFETY: it changes nothing but the register that it is given.
    unsafe { asm!("{0} &= 31", inout(reg) n, options(nomem, nostack)) };
    n
}

#[inline(always)]
fn least(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

/// For how long the world of the process has been stopped, all in all.
#[inline(always)]
fn stopped(process: &Process) -> u64 {
    // SAFETY: values of arrays, which live as long as the maps.
    let before = STOPPED.get_ptr(process.slot).map_or(0, |sum| unsafe { ptr::read_volatile(sum) });
    let now = PAUSES.get_ptr(process.slot).map_or(0, |pause| {
        // SAFETY: as above.
        let (start_ns, restart_ns, of) =
            unsafe { ((*pause).start_ns, (*pause).restart_ns, (*pause).header.process) };
        // One that another process ended in stays where it was.
        let is_now = start_ns != 0 && restart_ns == 0 && of == process.process;
        if is_now { process.now_ns.saturating_sub(start_ns) } else { 0 }
    });
    before + now
}
