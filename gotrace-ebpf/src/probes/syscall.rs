//! Time in system calls, as the runtime's scheduler sees them (cgo calls are among them; raw system
//! calls are not).

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    GoroutineState, Header, Hit, LEVEL_FULL, ROW_SYSCALL, WaitHead, WakerKind, kind,
    request::state as account_state,
};

use crate::{
    go_abi::{current_g, frame_pointer, read_word},
    maps::GOROUTINES,
    probes::{account, wait},
    process::{Probe, Process},
};

/// `entersyscall`, `entersyscallblock`: the g is the current one.
#[uprobe]
pub fn syscall_enter(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_enter(ctx, current_g(ctx));
    0
}

#[inline(always)]
pub fn on_enter(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::SyscallEnter, LEVEL_FULL)?;
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    if let Some(state) = GOROUTINES.get_ptr_mut(process.key(goid)) {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        let state = unsafe { &mut *state };
        state.syscall_ns = process.now_ns;
        state.flags |= GoroutineState::IN_SYSCALL;
        account::enter(&process, state, goid, account_state::SYSCALL);
    } else {
        let flags = GoroutineState::IN_SYSCALL;
        process.keep(
            goid,
            &GoroutineState { syscall_ns: process.now_ns, g, flags, ..GoroutineState::default() },
        );
    }
    Some(())
}

/// `exitsyscall`: the g is the current one, on its own stack.
#[uprobe]
pub fn syscall_exit(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_exit(ctx, current_g(ctx));
    0
}

#[inline(always)]
pub fn on_exit(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::SyscallExit, LEVEL_FULL)?;
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let state = unsafe { &mut *GOROUTINES.get_ptr_mut(process.key(goid))? };
    account::enter(&process, state, goid, account_state::RUNNING);
    let start_ns = state.syscall_ns;
    if state.flags & GoroutineState::IN_SYSCALL == 0 {
        return None;
    }
    state.flags &= !GoroutineState::IN_SYSCALL;
    state.syscall_ns = process.now_ns;
    let duration_ns = process.now_ns.saturating_sub(start_ns);
    state.syscall_total_ns += duration_ns;
    process.count_duration(ROW_SYSCALL, duration_ns);
    if duration_ns < process.min_wait_ns {
        return None;
    }
    let head = WaitHead {
        header: Header {
            kind: kind::WAIT,
            arg: ROW_SYSCALL as u8,
            count: 0,
            waker: WakerKind::Unknown as u8,
            process: process.process,
            time_ns: process.now_ns,
        },
        goid,
        start_ns,
        wake_ns: 0,
        waker_goid: 0,
        cpu_ns: 0,
    };
    let sent = wait::send(&process, head, [kind::WAIT, kind::WAIT_DEEP], [], 0, frame_pointer(ctx));
    if sent.is_none() {
        account::lose_wait(&process, goid);
    }
    sent
}
