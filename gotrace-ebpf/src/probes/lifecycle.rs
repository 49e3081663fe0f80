//! Births and deaths.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    CreateClosureRecord, CreateRecord, ExitRecord, GoroutineState, Header, Hit, LEVEL_FULL, LEVEL_LIFECYCLE,
    LEVEL_WAITS, Lost, flags, kind,
};

use crate::{
    emit::{reserve, submit},
    go_abi::{argument, current_g, read_into, read_word, read_words},
    maps::{GOROUTINES, ZEROS},
    probes::{account, children, cpu, request},
    process::{Probe, Process},
};

/// At the call of `runqput` in `newproc.func1`: the new g is the second argument.
#[uprobe]
pub fn create_1(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    create(ctx, argument::<1>(ctx), kind::CREATE);
    0
}

/// Behind the call of `newproc1` in `newproc.func1`, where `runqput` was inlined.
#[uprobe]
pub fn create_0(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    create(ctx, argument::<0>(ctx), kind::CREATE);
    0
}

/// As [`create_0`], where the compiler keeps the new g in the third register.
#[uprobe]
pub fn create_2(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    create(ctx, argument::<2>(ctx), kind::CREATE);
    0
}

/// `_Grunnable`, `_Gdead` (runtime/runtime2.go).
const RUNNABLE: u32 = 1;
const DEAD: u32 = 6;

/// At a call of `casgstatus(g, old, new)` in `newproc.func1`, where `newproc1` was inlined.
#[uprobe]
pub fn create_by_status(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    if is_made(ctx) {
        create(ctx, argument::<0>(ctx), kind::CREATE);
    }
    0
}

/// Whether it is a dead goroutine that becomes runnable.
#[inline(always)]
pub fn is_made(ctx: &Probe) -> bool {
    argument::<1>(ctx) as u32 == DEAD && argument::<2>(ctx) as u32 == RUNNABLE
}

/// Behind the call of `newproc1` in `newcoro.func1`.
#[uprobe]
pub fn create_coroutine_0(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    create(ctx, argument::<0>(ctx), kind::CREATE_COROUTINE);
    0
}

/// As [`create_coroutine_0`], where the compiler keeps the new g in the second register.
#[uprobe]
pub fn create_coroutine_1(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    create(ctx, argument::<1>(ctx), kind::CREATE_COROUTINE);
    0
}

/// As [`create_coroutine_0`], where the compiler keeps the new g in the third register.
#[uprobe]
pub fn create_coroutine_2(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    create(ctx, argument::<2>(ctx), kind::CREATE_COROUTINE);
    0
}

#[inline(always)]
pub fn create(ctx: &Probe, g: u64, kind: u8) -> Option<()> {
    let process = Process::hit(ctx, Hit::Create, LEVEL_LIFECYCLE)?;
    let layout = &process.layout;
    let goid = process.read(read_word(g + u64::from(layout.goid)))?;
    // parentGoid (where there is one), gopc, ancestors, startpc
    let words = process.read(read_words::<4>(g + u64::from(layout.gopc) - 8))?;
    let parent_goid = if process.flags & flags::PARENT_GOID != 0 {
        words[0]
    } else {
        running_goid(ctx, &process).unwrap_or(0)
    };
    if process.level >= LEVEL_FULL {
        // A goroutine is runnable from its birth; a coroutine waits for its first switch.
        let coroutine = kind == gotrace_common::kind::CREATE_COROUTINE;
        // SAFETY: the zeros of an array, which are more.
        process.keep(goid, unsafe { &*ZEROS.get_ptr(0)?.cast::<GoroutineState>() });
        let state = GOROUTINES.get_ptr_mut(process.key(goid));
        if let Some(state) = state {
            // SAFETY: the value of a preallocated map, of a goroutine that has not run yet.
            let state = unsafe { &mut *state };
            state.g = g;
            state.flags = GoroutineState::WHOLE;
            if coroutine {
                (state.park_ns, state.reason) = (process.now_ns, process.coroutine_reason);
            } else {
                state.wake_ns = process.now_ns;
            }
        }
        children::on_create(&process, parent_goid, (goid, state), words[1], coroutine);
    }
    let record = CreateRecord {
        header: Header {
            kind,
            arg: 0,
            count: 0,
            waker: 0,
            process: process.process,
            time_ns: process.now_ns,
        },
        goid,
        parent_goid,
        created_pc: words[1],
        entry_pc: words[3],
    };
    if kind == gotrace_common::kind::CREATE
        && process.closures.may_have(record.entry_pc)
        && let Some(variable) = first_variable(&process, g)
    {
        return create_with_closure(&process, record, variable);
    }
    let mut entry = reserve::<CreateRecord>(&process, Lost::RingCreate)?;
    entry.write(record);
    submit(entry);
    Some(())
}

/// `gobuf.ctxt` behind `gobuf.pc` (runtime/runtime2.go): the closure that a goroutine begins with.
const CONTEXT: u64 = 16;

/// The first variable of a new goroutine's closure, behind the address of its code; `None` where it is no address.
#[inline(always)]
fn first_variable(process: &Process, g: u64) -> Option<u64> {
    let closure = read_word(g + u64::from(process.layout.sched_pc) + CONTEXT)?;
    read_word(closure + 8).filter(|variable| *variable != 0)
}

/// Sends a creation with what the first variable of the closure points to. Where it ends before all words do, the
/// first one is all there is.
#[inline(always)]
fn create_with_closure(process: &Process, record: CreateRecord, variable: u64) -> Option<()> {
    let mut entry = reserve::<CreateClosureRecord>(process, Lost::RingCreate)?;
    let mut create = record;
    create.header.kind = kind::CREATE_CLOSURE;
    let to = entry.as_mut_ptr();
    // SAFETY: the room that was reserved; what cannot be read is filled with 0 by the helper.
    unsafe {
        (&raw mut (*to).create).write(create);
        if !read_into(&raw mut (*to).words, variable) {
            read_into((&raw mut (*to).words).cast::<u64>(), variable);
        }
    }
    submit(entry);
    Some(())
}

/// Id of the goroutine that the current thread runs, also when it is on the scheduler's stack.
#[inline(always)]
pub fn running_goid(ctx: &Probe, process: &Process) -> Option<u64> {
    let layout = &process.layout;
    let m = read_word(current_g(ctx) + u64::from(layout.m))?;
    let g = read_word(m + u64::from(layout.curg))?;
    if g == 0 {
        return None;
    }
    read_word(g + u64::from(layout.goid))
}

/// `gdestroy`, before Go 1.22 `goexit0`: the g is the first argument and still has its goid.
#[uprobe]
pub fn exit(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_exit(ctx, argument::<0>(ctx));
    0
}

#[inline(always)]
pub fn on_exit(ctx: &Probe, g: u64) -> Option<()> {
    let process = Process::hit(ctx, Hit::Exit, LEVEL_LIFECYCLE)?;
    let goid = process.read(read_word(g + u64::from(process.layout.goid)))?;
    let (mut used, mut state) = ((0, 0), None);
    if process.level >= LEVEL_WAITS {
        used = cpu::leave(&process, goid);
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        state = GOROUTINES.get_ptr(process.key(goid)).map(|state| unsafe { &*state });
        if let Some(state) = state
            && account::has(&process, state)
        {
            request::on_goroutine_exit(&process, goid);
        }
    }
    let sent = send_exit(&process, goid, used, state);
    if state.is_some() {
        process.forget(goid);
    }
    sent
}

/// `used`: what it has used of its thread and how long it was throttled, where nothing else is known of it. Written in
/// place, as the stack has no room.
#[inline(always)]
fn send_exit(
    process: &Process,
    goid: u64,
    (cpu_ns, throttled_ns): (u64, u64),
    state: Option<&GoroutineState>,
) -> Option<()> {
    let mut entry = reserve::<ExitRecord>(process, Lost::RingExit)?;
    let record = entry.as_mut_ptr();
    let header = Header {
        kind: kind::EXIT,
        arg: match state {
            Some(state) if process.level >= LEVEL_FULL => u8::from(state.flags & GoroutineState::WHOLE != 0),
            _ => 0,
        },
        count: 0,
        waker: 0,
        process: process.process,
        time_ns: process.now_ns,
    };
    // SAFETY: the reserved space is as long as the record; all of it is written.
    unsafe {
        (&raw mut (*record).header).write(header);
        (&raw mut (*record).goid).write(goid);
        let (wait_total_ns, schedule_total_ns, wait_count) = (
            &raw mut (*record).wait_total_ns,
            &raw mut (*record).schedule_total_ns,
            &raw mut (*record).wait_count,
        );
        let (cpu, throttled) = (&raw mut (*record).cpu_ns, &raw mut (*record).throttled_ns);
        let (blocked_total_ns, syscall_total_ns) =
            (&raw mut (*record).blocked_total_ns, &raw mut (*record).syscall_total_ns);
        if let Some(state) = state {
            wait_total_ns.write(state.wait_total_ns);
            schedule_total_ns.write(state.schedule_total_ns);
            wait_count.write(u64::from(state.wait_count));
            cpu.write(state.cpu_ns);
            throttled.write(state.throttled_ns);
            blocked_total_ns.write(state.blocked_total_ns);
            syscall_total_ns.write(state.syscall_total_ns);
        } else {
            wait_total_ns.write(0);
            schedule_total_ns.write(0);
            wait_count.write(0);
            cpu.write(cpu_ns);
            throttled.write(throttled_ns);
            blocked_total_ns.write(0);
            syscall_total_ns.write(0);
        }
    }
    submit(entry);
    Some(())
}
