//! Coroutine switches (`iter.Pull`): one goroutine stops and another runs, past the scheduler.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{Hit, LEVEL_FULL, WakerKind};

use crate::{
    go_abi::{argument, read_word},
    maps::GOROUTINES,
    probes::{cpu, wait},
    process::{Probe, Process},
};

/// `coroswitch_m`: the g that switches is the first argument; `g.coroarg` points at the coroutine, whose
/// first word is the g to run.
#[uprobe]
pub fn coroutine_switch(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_switch(ctx, argument::<0>(ctx));
    0
}

#[inline(always)]
pub fn on_switch(ctx: &Probe, from: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::Coroutine, LEVEL_FULL)?;
    let layout = &process.layout;
    let from_goid = process.read(read_word(from + u64::from(layout.goid)))?;
    let coroutine = process.read(read_word(from + u64::from(layout.coroarg)))?;
    let to = process.read(read_word(coroutine))?;
    let exiting = process.read(read_word(from + u64::from(layout.coroexit)))? as u8 != 0;
    if !exiting {
        wait::begin(&process, from, from_goid, process.coroutine_reason, 0);
    }
    if to == 0 {
        return None;
    }
    let to_goid = process.read(read_word(to + u64::from(layout.goid)))?;
    cpu::run(&process, to, to_goid);
    if let Some(state) = GOROUTINES.get_ptr_mut(process.key(to_goid)) {
        // SAFETY: the value of a preallocated map, of a goroutine that this event makes run.
        let state = unsafe { &mut *state };
        if state.park_ns != 0 {
            state.wake_ns = process.now_ns;
            state.waker = WakerKind::Goroutine as u8;
            state.waker_goid = from_goid;
        }
    }
    wait::end(&process, to, to_goid)
}
