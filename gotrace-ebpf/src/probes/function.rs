//! Calls of functions that the user has named: each is a request. Of calls within one another on a goroutine the outermost
//! is told, and none within a request of HTTP or gRPC.
//!
//! A call is known by its depth: how far the return address lies below the stack's end, which stays the same when the stack
//! is moved. It ends where the function returns at that depth, with its goroutine, or where a panic is recovered above it.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    Hit, LEVEL_FULL, Lost, OpenRequest, RequestKey, program,
    request::{ended, family, protocol, status},
};

use crate::{
    go_abi::{current_g, instruction, read_word, stack_pointer},
    maps::REQUESTS,
    probes::{account, request},
    process::{Probe, Process},
};

/// `g.stack.hi` (runtime/runtime2.go): the second word.
const STACK_HIGH: u64 = 8;

/// A named function, before it has anything on the stack.
#[uprobe]
pub fn function_begin(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_begin(ctx);
    0
}

/// Each of its returns.
#[uprobe]
pub fn function_end(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_end(ctx, program::FUNCTION_END);
    0
}

/// The call of `runtime.gogo` in `runtime.recovery`: a goroutine goes on where a panic was recovered.
#[uprobe]
pub fn function_recovered(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_end(ctx, program::FUNCTION_RECOVERED);
    0
}

/// The call that a goroutine is in.
#[inline(always)]
pub fn open(process: &Process, goid: u64) -> Option<(RequestKey, *mut OpenRequest)> {
    let key = key(process, goid);
    Some((key, REQUESTS.get_ptr_mut(key)?))
}

#[inline(always)]
fn key(process: &Process, goid: u64) -> RequestKey {
    RequestKey { id: goid, process: process.process, family: family::FUNCTION }
}

/// How far an address of a goroutine's stack lies below its end.
#[inline(always)]
fn depth(process: &Process, g: u64, address: u64) -> Option<u64> {
    Some(process.read(read_word(g + STACK_HIGH))?.wrapping_sub(address))
}

#[inline(always)]
pub fn on_begin(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestBegin)?;
    // The scheduler's stack is no goroutine's.
    if goid == 0 {
        return None;
    }
    let g = current_g(ctx);
    let depth = depth(&process, g, stack_pointer(ctx))?;
    let key = key(&process, goid);
    if let Some(open) = REQUESTS.get_ptr_mut(key) {
        // At the same depth it is the same call, which began anew as its stack has grown.
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        if depth > unsafe { (*open).object } {
            return None;
        }
    } else if let Some(account) = account::of(&process, goid)
        // SAFETY: as above.
        && unsafe { (*account).open } != 0
    {
        return None;
    }
    let open = request::begin(&process, g, goid, key, depth, protocol::FUNCTION)?;
    // SAFETY: as above.
    unsafe { (*open).handler = instruction(ctx) };
    Some(())
}

/// The end of a call: at a return of the function, or on the scheduler's stack where a panic was recovered; what is below
/// the frame that goes on then is gone.
#[inline(always)]
pub fn on_end(ctx: &Probe, program: u32) -> Option<()> {
    let recovered = program == program::FUNCTION_RECOVERED;
    let process = Process::hit(ctx, if recovered { Hit::RequestStep } else { Hit::RequestEnd }, LEVEL_FULL)?;
    if !account::wanted(&process) {
        return None;
    }
    let layout = &process.layout;
    let (mut g, mut address) = (current_g(ctx), stack_pointer(ctx));
    if recovered {
        let m = process.read(read_word(g + u64::from(layout.m)))?;
        g = process.read(read_word(m + u64::from(layout.curg)))?;
        // `g.sched.sp` is before `g.sched.pc`.
        address = process.read(read_word(g + u64::from(layout.sched_pc) - 8))?;
    }
    let goid = process.read(read_word(g + u64::from(layout.goid)))?;
    let (key, open) = open(&process, goid)?;
    let depth = depth(&process, g, address)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let of_open = unsafe { (*open).object };
    if depth > of_open || recovered && depth == of_open {
        return None;
    }
    if depth < of_open && !recovered {
        // Its own end was not seen.
        process.lost(Lost::RequestUnended);
    }
    let (status, how) =
        if recovered { (status::FAILED, ended::PANIC) } else { (status::NONE, ended::NORMAL) };
    request::end(&process, key, open, goid, status, how)
}
