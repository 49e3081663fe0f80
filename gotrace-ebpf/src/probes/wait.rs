//! Waits: from a park to the goroutine's next run, whoever or whatever made it runnable.
//!
//! The stack is walked when the wait ends, and only for waits that are sent: until its next run a
//! goroutine's saved registers and stack are those of the park (when the collector moves a parked
//! stack, it adjusts the frame pointers in it).

use aya_ebpf::{macros::uprobe, maps::ring_buf::RingBufEntry, programs::ProbeContext};
use gotrace_common::{
    DEEP_FRAMES, FRAMES, GoroutineState, Header, Hit, LEVEL_WAITS, Lost, ROW_SCHEDULE, WaitHead, WaitOf, kind,
};

use crate::{
    emit::{reserve, submit},
    go_abi::{argument, read_word, read_words},
    maps::GOROUTINES,
    probes::{account, cpu, socket},
    process::{Probe, Process},
};

/// `park_m`: the g is the first argument, its wait reason is set.
#[uprobe]
pub fn park(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_park(ctx, argument::<0>(ctx));
    0
}

#[inline(always)]
pub fn on_park(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::Park, LEVEL_WAITS)?;
    // goid, schedlink, waitsince, waitreason and its neighbours
    let words = process.read(read_words::<4>(g + u64::from(process.layout.goid)))?;
    cpu::leave(&process, words[0]);
    let reason = words[3] as u8;
    let poll = if reason == process.io_reason { socket::poll(&process, g) } else { 0 };
    begin(&process, g, words[0], reason, poll);
    Some(())
}

/// Notes that a goroutine waits from now on; `poll`: for this ([`GoroutineState::poll`]).
#[inline(always)]
pub fn begin(process: &Process, g: u64, goid: u64, reason: u8, poll: u64) {
    if let Some(state) = GOROUTINES.get_ptr_mut(process.key(goid)) {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        let state = unsafe { &mut *state };
        state.park_ns = process.now_ns;
        state.wake_ns = 0;
        state.waker_goid = 0;
        state.g = g;
        state.poll = poll;
        state.reason = reason;
        state.waker = 0;
        account::block(process, state, goid, reason);
        return;
    }
    process.keep(
        goid,
        &GoroutineState { park_ns: process.now_ns, g, poll, reason, ..GoroutineState::default() },
    );
}

/// `execute`: the g is the first argument and about to run.
#[uprobe]
pub fn run(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_run(ctx, argument::<0>(ctx));
    0
}

#[inline(always)]
pub fn on_run(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::Run, LEVEL_WAITS)?;
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    cpu::run(&process, g, goid);
    end(&process, g, goid)
}

/// Notes that a goroutine runs: ends its wait, if it was in one.
#[inline(always)]
pub fn end(process: &Process, g: u64, goid: u64) -> Option<()> {
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let state = unsafe { &mut *GOROUTINES.get_ptr_mut(process.key(goid))? };
    account::run(process, state, goid);
    if state.park_ns != 0 {
        let until_ns = if state.wake_ns == 0 { process.now_ns } else { state.wake_ns };
        state.blocked_total_ns += until_ns.saturating_sub(state.park_ns);
    } else if state.wake_ns == 0 && state.syscall_ns != 0 && state.flags & GoroutineState::IN_SYSCALL == 0 {
        // It came back from a system call and found no processor.
        state.schedule_total_ns += process.now_ns.saturating_sub(state.syscall_ns);
    }
    state.syscall_ns = 0;
    state.flags &= !GoroutineState::IN_SYSCALL;
    if state.wake_ns != 0 {
        let delay_ns = process.now_ns.saturating_sub(state.wake_ns);
        state.schedule_total_ns += delay_ns;
        process.count_duration(ROW_SCHEDULE, delay_ns);
    }
    if state.park_ns == 0 {
        state.wake_ns = 0;
        return None;
    }
    let duration_ns = process.now_ns.saturating_sub(state.park_ns);
    state.wait_total_ns += duration_ns;
    state.wait_count = state.wait_count.saturating_add(1);
    let head = WaitHead {
        header: Header {
            kind: kind::WAIT,
            arg: state.reason,
            count: 0,
            waker: state.waker,
            process: process.process,
            time_ns: process.now_ns,
        },
        goid,
        start_ns: state.park_ns,
        wake_ns: state.wake_ns,
        waker_goid: state.waker_goid,
        cpu_ns: state.cpu_ns,
    };
    state.park_ns = 0;
    state.wake_ns = 0;
    if duration_ns < process.min_wait_ns {
        process.count_short_wait(head.header.arg, duration_ns);
        return None;
    }
    state.cpu_told_ns = head.cpu_ns as u32;
    let layout = &process.layout;
    let pc = read_word(g + u64::from(layout.sched_pc)).unwrap_or(0);
    let fp = read_word(g + u64::from(layout.sched_bp)).unwrap_or(0);
    let sent = match if state.poll == 0 { None } else { socket::peer(process, state.poll) } {
        Some(peer) => send(process, head, [kind::WAIT_PEER, kind::WAIT_PEER_DEEP], peer, pc, fp),
        None => send(process, head, [kind::WAIT, kind::WAIT_DEEP], [], pc, fp),
    };
    if sent.is_none() {
        account::lose_wait(process, goid);
    }
    sent
}

/// Sends a wait with its stack; `kinds`: with up to [`FRAMES`] frames, and with more. `pc` 0 means that the walk begins
/// with the frame of `fp`.
#[inline(always)]
pub fn send<const P: usize>(
    process: &Process,
    head: WaitHead,
    kinds: [u8; 2],
    peer: [u64; P],
    pc: u64,
    fp: u64,
) -> Option<()> {
    if process.stack_depth as usize <= FRAMES {
        send_as::<P, FRAMES>(process, head, kinds[0], peer, pc, fp)
    } else {
        send_as::<P, DEEP_FRAMES>(process, head, kinds[1], peer, pc, fp)
    }
}

#[inline(always)]
fn send_as<const P: usize, const N: usize>(
    process: &Process,
    mut head: WaitHead,
    kind: u8,
    peer: [u64; P],
    pc: u64,
    fp: u64,
) -> Option<()> {
    let mut entry: RingBufEntry<WaitOf<P, N>> = reserve(process, Lost::RingWait)?;
    head.header.kind = kind;
    // SAFETY: the reserved space is as long as the record; all of the head and of the peer is written, and the frames up
    // to `count`, beyond which the reader does not look.
    unsafe {
        let record = entry.as_mut_ptr();
        head.header.count = walk::<N>((&raw mut (*record).frames).cast(), process.stack_depth, pc, fp);
        (&raw mut (*record).peer).write(peer);
        (&raw mut (*record).head).write(head);
    }
    submit(entry);
    Some(())
}

/// Follows saved frame pointers; returns how many program counters were written.
///
/// # Safety
/// `frames` must have room for `N` words.
#[inline(always)]
pub unsafe fn walk<const N: usize>(frames: *mut u64, depth: u8, pc: u64, mut fp: u64) -> u8 {
    let mut count = 0u8;
    let mut next_pc = pc;
    for i in 0..N {
        if i >= depth as usize {
            break;
        }
        if next_pc == 0 {
            let Some([next, ret]) = read_words::<2>(fp) else { break };
            if ret == 0 {
                break;
            }
            next_pc = ret;
            // Stacks grow down: an older frame lies above.
            fp = if next > fp { next } else { 0 };
        }
        // SAFETY: `i` is below `N`.
        unsafe { frames.add(i).write(next_pc) };
        count = i as u8 + 1;
        next_pc = 0;
        if fp == 0 {
            break;
        }
    }
    count
}
