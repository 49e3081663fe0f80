//! The collector, as far as the program pays for it: pauses, whoever asked for them, and assists.
//!
//! All of it is on the scheduler's stack, where a stack check never restarts a function.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    AssistRecord, FRAMES, Header, Hit, LEVEL_LIFECYCLE, Lost, PauseRecord, flags, kind, request::state,
};

use crate::{
    emit::{reserve, submit},
    go_abi::{argument, current_g, read_word, read_words},
    maps::{PAUSES, STOPPED},
    probes::{account, cpu, wait::walk},
    process::{Probe, Process, increment},
};

/// `stopTheWorldWithSema`: the reason is the first argument (Go 1.21).
#[uprobe]
pub fn stop_world(ctx: ProbeContext) -> u32 {
    on_stop(&Probe::new(ctx));
    0
}

#[inline(always)]
pub fn on_stop(ctx: &Probe) -> Option<()> {
    let process = Process::hit(ctx, Hit::StopWorld, LEVEL_LIFECYCLE)?;
    let pause = PAUSES.get_ptr_mut(process.slot)?;
    let (mut goid, mut count) = (0, 0);
    if let Some(g) = running_g(ctx, &process) {
        let layout = &process.layout;
        goid = process.read(read_word(g + u64::from(layout.goid)))?;
        // It is in runtime.systemstack, of which g.sched tells where its frame ends. Where that has saved the frame
        // pointer (arm64; amd64 from Go 1.21 on), that leads to where it returns to; else the stack pointer does.
        let sp = read_word(g + u64::from(layout.sched_pc) - 8).unwrap_or(0);
        let fp = read_word(g + u64::from(layout.sched_bp)).unwrap_or(0);
        let pc = if sp.wrapping_sub(fp) <= 8 { 0 } else { read_word(sp).unwrap_or(0) };
        // SAFETY: a value of an array, which lives as long as the map; only who stops the world writes it.
        count = unsafe { walk::<FRAMES>((&raw mut (*pause).frames).cast(), FRAMES as u8, pc, fp) };
    }
    let header = Header {
        kind: kind::PAUSE,
        arg: if process.flags & flags::STOP_REASON != 0 { argument::<0>(ctx) as u8 } else { 0 },
        count,
        waker: 0,
        process: process.process,
        time_ns: 0,
    };
    // SAFETY: as above.
    unsafe {
        (*pause).header = header;
        (*pause).goid = goid;
        (*pause).restart_ns = 0;
        (*pause).start_ns = process.now_ns;
    }
    Some(())
}

/// `startTheWorldWithSema`: goroutines that have a processor may go on.
#[uprobe]
pub fn start_world(ctx: ProbeContext) -> u32 {
    on_start(&Probe::new(ctx));
    0
}

#[inline(always)]
pub fn on_start(ctx: &Probe) -> Option<()> {
    let process = Process::hit(ctx, Hit::StartWorld, LEVEL_LIFECYCLE)?;
    // SAFETY: a value of an array, which lives as long as the map; only who stops the world writes it.
    let pause = unsafe { &mut *PAUSES.get_ptr_mut(process.slot)? };
    if pause.start_ns != 0 && pause.restart_ns == 0 && pause.header.process == process.process {
        let stopped_ns = process.now_ns.saturating_sub(pause.start_ns);
        increment(STOPPED.get_ptr_mut(process.slot)?, stopped_ns);
    }
    pause.restart_ns = process.now_ns;
    Some(())
}

/// The call of `wakep` in `startTheWorldWithSema`: all processors are woken.
#[uprobe]
pub fn world_started(ctx: ProbeContext) -> u32 {
    on_started(&Probe::new(ctx));
    0
}

#[inline(always)]
pub fn on_started(ctx: &Probe) -> Option<()> {
    let process = Process::hit(ctx, Hit::StartWorld, LEVEL_LIFECYCLE)?;
    // SAFETY: as above.
    let pause = unsafe { &mut *PAUSES.get_ptr_mut(process.slot)? };
    // Its beginning was not seen, or it was another process's.
    if pause.start_ns == 0 || pause.header.process != process.process {
        pause.start_ns = 0;
        return None;
    }
    let mut record = *pause;
    pause.start_ns = 0;
    record.header.time_ns = process.now_ns;
    if record.restart_ns == 0 {
        record.restart_ns = process.now_ns;
    }
    let mut entry = reserve::<PauseRecord>(&process, Lost::RingCollector)?;
    entry.write(record);
    submit(entry);
    Some(())
}

/// `gcAssistAlloc1`.
#[uprobe]
pub fn assist_begin(ctx: ProbeContext) -> u32 {
    on_assist_begin(&Probe::new(ctx));
    0
}

#[inline(always)]
pub fn on_assist_begin(ctx: &Probe) -> Option<()> {
    let process = Process::hit(ctx, Hit::AssistBegin, LEVEL_LIFECYCLE)?;
    if account::wanted(&process)
        && let Some(goid) =
            running_g(ctx, &process).and_then(|g| read_word(g + u64::from(process.layout.goid)))
    {
        account::change(&process, goid, state::ASSIST);
    }
    // It does not leave the thread before it is done: it is on the scheduler's stack.
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    unsafe { (*cpu::thread(&process)?).assist_ns = process.now_ns };
    Some(())
}

/// Where `gcAssistAlloc1` reads the clock for the second time: the g is the one that the thread runs.
#[uprobe]
pub fn assist_end(ctx: ProbeContext) -> u32 {
    on_assist_end(&Probe::new(ctx));
    0
}

#[inline(always)]
pub fn on_assist_end(ctx: &Probe) -> Option<()> {
    let process = Process::hit(ctx, Hit::AssistEnd, LEVEL_LIFECYCLE)?;
    let g = running_g(ctx, &process)?;
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    account::change(&process, goid, state::RUNNING);
    // SAFETY: the value of a preallocated map, of the thread whose event this is.
    let start_ns = unsafe { core::mem::take(&mut (*cpu::known_thread(&process)?).assist_ns) };
    if start_ns == 0 {
        return None;
    }
    // gopc, two words of other things, startpc
    let [created_pc, _, entry_pc] = process.read(read_words::<3>(g + u64::from(process.layout.gopc)))?;
    let mut entry = reserve::<AssistRecord>(&process, Lost::RingCollector)?;
    entry.write(AssistRecord {
        header: Header {
            kind: kind::ASSIST,
            arg: 0,
            count: 0,
            waker: 0,
            process: process.process,
            time_ns: process.now_ns,
        },
        goid,
        start_ns,
        created_pc,
        entry_pc,
    });
    submit(entry);
    Some(())
}

/// The goroutine on whose behalf the thread runs the scheduler's code.
#[inline(always)]
fn running_g(ctx: &Probe, process: &Process) -> Option<u64> {
    let layout = &process.layout;
    let m = read_word(current_g(ctx) + u64::from(layout.m))?;
    read_word(m + u64::from(layout.curg)).filter(|g| *g != 0)
}
