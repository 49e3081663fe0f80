//! Wakes: who made a goroutine runnable. They only annotate a wait; its end is the next run.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    GoroutineState, Hit, LEVEL_FULL, Lost, MAX_WAKE_LIST, WakerKind, request::state as account_state,
};

use crate::{
    go_abi::{argument, closure_context, read_word},
    maps::GOROUTINES,
    probes::{account, cpu, lifecycle::running_goid},
    process::{Probe, Process},
};

/// `ready`: the g is the first argument.
#[uprobe]
pub fn ready(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_ready(ctx, argument::<0>(ctx));
    0
}

/// `goready.func1`, where `ready` was inlined: the g is the closure's first variable.
#[uprobe]
pub fn ready_closure(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    if let Some(g) = read_word(closure_context(ctx) + 8) {
        on_ready(ctx, g);
    }
    0
}

#[inline(always)]
pub fn on_ready(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::Ready, LEVEL_FULL)?;
    match running_goid(ctx, &process) {
        Some(goid) if goid != 0 => wake(&process, g, WakerKind::Goroutine, goid),
        _ => wake(&process, g, WakerKind::Timer, 0),
    }
}

/// Notes that a parked goroutine has become runnable. The first wake counts.
#[inline(always)]
fn wake(process: &Process, g: u64, waker: WakerKind, waker_goid: u64) -> Option<()> {
    let (goid, state) = note_wake(process, g, waker, waker_goid)?;
    account::enter(process, state, goid, account_state::RUNNABLE)
}

/// The same, without the account: of one of a list, for which the verifier would have to look at that as often as the list
/// may be long. Until it runs it counts as blocked.
#[inline(always)]
fn note_wake(
    process: &Process,
    g: u64,
    waker: WakerKind,
    waker_goid: u64,
) -> Option<(u64, &'static GoroutineState)> {
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    // SAFETY: the value of a preallocated map; between park and run only the wake that wins in the
    // runtime comes here.
    let state = unsafe { &mut *GOROUTINES.get_ptr_mut(process.key(goid))? };
    if state.park_ns == 0 || state.wake_ns != 0 {
        return None;
    }
    state.wake_ns = process.now_ns;
    if process.gc_reasons >> (state.reason & 63) & 1 != 0 {
        state.waker = WakerKind::Gc as u8;
    } else {
        state.waker = waker as u8;
        state.waker_goid = waker_goid;
    }
    Some((goid, state))
}

/// `netpollready(toRun, pd, mode)`: a file descriptor is ready for reading, writing or both.
#[uprobe]
pub fn netpoll(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_netpoll(ctx, argument::<1>(ctx), argument::<2>(ctx) as u32);
    0
}

#[inline(always)]
pub fn on_netpoll(ctx: &Probe, poll_desc: u64, mode: u32) -> Option<()> {
    let process = Process::hit(ctx, Hit::Netpoll, LEVEL_FULL)?;
    // 'r', 'w' or their sum, which means both.
    if mode != u32::from(b'w') {
        wake_poller(&process, poll_desc + u64::from(process.layout.poll_rg));
    }
    if mode != u32::from(b'r') {
        wake_poller(&process, poll_desc + u64::from(process.layout.poll_wg));
    }
    Some(())
}

#[inline(always)]
fn wake_poller(process: &Process, address: u64) -> Option<()> {
    let g = process.read(read_word(address))?;
    // 0: nobody, 1: pdReady, 2: pdWait
    if g > 2 {
        wake(process, g, WakerKind::Netpoll, 0)?;
    }
    Some(())
}

/// `injectglist`: the first argument points at a list of goroutines, linked by `schedlink`.
#[uprobe]
pub fn inject_list(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_inject_list(ctx, argument::<0>(ctx));
    0
}

#[inline(always)]
pub fn on_inject_list(ctx: &Probe, list: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::InjectList, LEVEL_FULL)?;
    let mut g = process.read(read_word(list))?;
    for _ in 0..MAX_WAKE_LIST {
        if g == 0 {
            return None;
        }
        // Goroutines that the network poller lists have had their wake already.
        note_wake(&process, g, WakerKind::Unknown, 0);
        g = process.read(read_word(g + u64::from(process.layout.schedlink)))?;
    }
    if g != 0 {
        process.lost(Lost::ListTooLong);
    }
    Some(())
}

/// `goschedImpl`, `goyield_m`, `preemptPark`: the g is the first argument, runnable and not running.
#[uprobe]
pub fn give_way(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_yield(ctx, argument::<0>(ctx));
    0
}

#[inline(always)]
pub fn on_yield(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::Yield, LEVEL_FULL)?;
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    cpu::leave(&process, goid);
    if let Some(state) = GOROUTINES.get_ptr_mut(process.key(goid)) {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        let state = unsafe { &mut *state };
        state.wake_ns = process.now_ns;
        state.park_ns = 0;
        account::enter(&process, state, goid, account_state::RUNNABLE);
    } else {
        process.keep(goid, &GoroutineState { wake_ns: process.now_ns, ..GoroutineState::default() });
    }
    Some(())
}
