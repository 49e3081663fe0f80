//! Routes that routers but that of `net/http` know of a request: read where what holds them is sure to be the request's.
//!
//! Routers keep what they know in a context that they take from a pool, and put back as soon as the request's handlers are
//! done: that is where it is read, with the goroutine still the request's. That of gorilla/mux makes
//! a copy of the request with its route instead, as soon as it has found it.

use core::arch::asm;

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    Hit, OpenRequest, RequestConfig, flags,
    request::{ContextLayout, NO_STEP, ROUTE_BYTES, RequestFields},
};

use crate::{
    go_abi::{argument, current_g, follow, frame_pointer, read_text, read_word, read_words},
    probes::{request, route},
    process::{Probe, Process},
};

/// Levels of routers mounted in one another that are followed.
const MAX_LEVELS: u64 = 8;
/// Contexts that are followed from a router's to the one that the request came with.
const MAX_CONTEXTS: usize = 8;
/// How deep the stack of a goroutine is that another one waits for: deeper than that one's.
pub const CHILD: u32 = 1 << 31;
/// What the pattern of a mounted router ends with, but for the innermost one's.
const MOUNTED: u64 = u64::from_ne_bytes(*b"/*\0\0\0\0\0\0");

/// `(*Engine).ServeHTTP` of gin, as it puts its context back.
#[uprobe]
pub fn gin_route(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_gin(ctx);
    0
}

/// `(*Router).Find` of echo.
#[uprobe]
pub fn echo_lookup(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_echo_lookup(ctx);
    0
}

/// `(*Echo).ServeHTTP`, as it puts its context back.
#[uprobe]
pub fn echo_route(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_echo(ctx);
    0
}

/// `(*Mux).ServeHTTP` of chi, as it puts its context back.
#[uprobe]
pub fn chi_route(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_chi(ctx);
    0
}

/// `requestWithRoute` of gorilla/mux.
#[uprobe]
pub fn gorilla_route(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_gorilla(ctx);
    0
}

/// `contextSet` of gorilla/mux up to 1.7.
#[uprobe]
pub fn gorilla_value(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_gorilla_value(ctx);
    0
}

/// The request that a goroutine serves, or the one that started it (as `http.TimeoutHandler` does), and how deep on the
/// stack a frame of it is. What is another's may be over, and the next one begun: it is to be compared.
#[inline(always)]
pub fn served(ctx: &Probe, process: &Process, goid: u64, frame: u64) -> Option<(*mut OpenRequest, u32)> {
    let g = current_g(ctx);
    // g.stack.hi; stacks move, and what is on them keeps its distance from there.
    let depth = (read_word(g + 8)?.wrapping_sub(frame) as u32) & (CHILD - 1);
    if let Some(open) = request::open_http(process, goid) {
        return Some((open, depth));
    }
    if process.flags & flags::PARENT_GOID == 0 {
        return None;
    }
    let parent = read_word(g + u64::from(process.layout.gopc) - 8)?;
    Some((request::open_http(process, parent)?, depth | CHILD))
}

/// Whether an `http.Request` is the one that is served, or a copy of it.
#[inline(always)]
pub fn is_same(config: &RequestConfig, open: &OpenRequest, request: u64) -> bool {
    // As words: comparing what may be nothing reads what was never written, which kernels before 5.19 refuse.
    let header = |request| follow(request, config.request.header).and_then(read_word).unwrap_or(0);
    let own = if open.header != 0 { open.header } else { header(open.object) };
    own != 0 && own == header(request)
}

/// The address of a request's context.
#[inline(always)]
pub fn context_of(fields: &RequestFields, request: u64) -> Option<u64> {
    if fields.context == NO_STEP {
        return None;
    }
    read_word(request + u64::from(fields.context) + 8)
}

/// Whether a context comes from that of the request that is served: each begins with the one that it was made from.
#[inline(always)]
fn comes_from(config: &RequestConfig, open: &OpenRequest, mut context: u64) -> bool {
    let of_object = || context_of(&config.request, open.object).unwrap_or(0);
    let own = if open.header != 0 { open.context } else { of_object() };
    for _ in 0..MAX_CONTEXTS {
        if context == 0 || own == 0 {
            return false;
        }
        if context == own {
            return true;
        }
        context = read_word(context + 8).unwrap_or(0);
    }
    false
}

/// The third argument of `(*Pool).Put` is gin's context.
#[inline(always)]
pub fn on_gin(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestStep)?;
    let layout = request::config(&process)?.routers.gin;
    on_context(ctx, &process, goid, layout)
}

/// The same of echo's.
#[inline(always)]
pub fn on_echo(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestStep)?;
    let layout = request::config(&process)?.routers.echo;
    on_context(ctx, &process, goid, layout)
}

/// The fourth argument of `(*Router).Find` is where the path is that is looked for.
#[inline(always)]
pub fn on_echo_lookup(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestStep)?;
    let (open, _) = served(ctx, &process, goid, 0)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is or of one that waits for it.
    unsafe { (*open).asked = argument::<3>(ctx) };
    Some(())
}

#[inline(always)]
fn on_context(ctx: &Probe, process: &Process, goid: u64, layout: ContextLayout) -> Option<()> {
    let (open, depth) = served(ctx, process, goid, frame_pointer(ctx))?;
    let context = argument::<2>(ctx);
    if layout.pattern == NO_STEP || layout.request == NO_STEP {
        return None;
    }
    let request = process.read(read_word(context + u64::from(layout.request)))?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is or of one that waits for it.
    let (same, asked) = unsafe { (is_same(request::config(process)?, &*open, request), (*open).asked) };
    let [pointer, length] = process.read(read_words::<2>(context + u64::from(layout.pattern)))?;
    if !same || pointer == asked {
        return None;
    }
    tell(open, depth, pointer, length)
}

/// The third argument of `(*Pool).Put` is chi's context: the pattern is that of all its routers, one behind the other.
#[inline(always)]
pub fn on_chi(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestStep)?;
    let (open, depth) = served(ctx, &process, goid, frame_pointer(ctx))?;
    let config = request::config(&process)?;
    let (layout, context) = (config.routers.chi, argument::<2>(ctx));
    if layout.patterns == NO_STEP || layout.last == NO_STEP || layout.parent == NO_STEP {
        return None;
    }
    let parent = process.read(read_word(context + u64::from(layout.parent) + 8))?;
    let [_, last] = process.read(read_words::<2>(context + u64::from(layout.last)))?;
    let [patterns, count] = process.read(read_words::<2>(context + u64::from(layout.patterns)))?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is or of one that waits for it.
    if !comes_from(config, unsafe { &*open }, parent) {
        return None;
    }
    // Nothing in the last one: it has no route for the request.
    if last == 0 || count == 0 || count > MAX_LEVELS {
        return None;
    }
    // The depth alone decides: what it says is not known yet.
    // SAFETY: as above.
    if !unsafe { (*open).yields_to(last.max(2), depth) } {
        return None;
    }
    forget(open);
    // SAFETY: as above.
    unsafe {
        (*open).named.length = join((&raw mut (*open).named.route).cast(), patterns, count)?;
        (*open).named_depth = depth;
    }
    Some(())
}

/// Writes the patterns one behind the other: those but the last without the `/*` of where the next one is mounted, and all
/// of it without a slash at the end, as `RoutePattern` does. How long that is, as [`gotrace_common::RouteKey::length`] has it.
#[inline(always)]
fn join(text: *mut u8, patterns: u64, count: u64) -> Option<u8> {
    let mut at = 0;
    for n in 0..MAX_LEVELS {
        if n < count {
            let [pointer, mut length] = read_words::<2>(patterns + 16 * n)?;
            if n + 1 < count && length >= 2 {
                let mut end = 0u64;
                // SAFETY: as long as stated.
                unsafe { read_text::<8>((&raw mut end).cast(), pointer + length - 2, 2) };
                length -= if end == MOUNTED { 2 } else { 0 };
            }
            let room = ROUTE_BYTES as u64 - at;
            // SAFETY: no more than there is room for. The verifier looks at each by itself, and sees no more than
            // twice the text, which the value has behind it.
            unsafe { read_text::<ROUTE_BYTES>(text.add(index(at)), pointer, bounded(length.min(room))) };
            if length > room {
                return Some(255);
            }
            at += length;
        }
        if at >= ROUTE_BYTES as u64 {
            break;
        }
    }
    for _ in 0..2 {
        // SAFETY: a byte of the text.
        unsafe {
            let last = text.add(index(at.wrapping_sub(1)));
            if at > 1 && *last == b'/' {
                *last = 0;
                at -= 1;
            }
        }
    }
    Some(at as u8)
}

/// An index below 128, as the verifier is to see.
#[inline(always)]
fn index(at: u64) -> usize {
    (bounded(at) & 127) as usize
}

/// The same number, of which the compiler knows nothing: it would leave out what only the verifier needs.
#[inline(always)]
fn bounded(mut number: u64) -> u64 {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) number, options(nostack, preserves_flags)) };
    number
}

/// `requestWithRoute` of gorilla/mux: the request, and the route.
#[inline(always)]
pub fn on_gorilla(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestStep)?;
    on_gorilla_route(ctx, &process, goid, argument::<1>(ctx))
}

/// `contextSet` of old ones: the request, a key, and, as an interface, the route or another value. The keys are interfaces
/// too.
#[inline(always)]
pub fn on_gorilla_value(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestStep)?;
    let route = request::config(&process)?.routers.gorilla_route;
    if route == 0 || argument::<3>(ctx) != route {
        return None;
    }
    on_gorilla_route(ctx, &process, goid, argument::<4>(ctx))
}

/// Both are called by the router, whose frame it still is.
#[inline(always)]
fn on_gorilla_route(ctx: &Probe, process: &Process, goid: u64, route: u64) -> Option<()> {
    let config = request::config(process)?;
    let (open, depth) = served(ctx, process, goid, frame_pointer(ctx))?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is or of one that waits for it.
    if !is_same(config, unsafe { &*open }, argument::<0>(ctx)) {
        return None;
    }
    let [pointer, length] = follow(route, config.routers.gorilla_template).and_then(read_words::<2>)?;
    tell(open, depth, pointer, length)
}

/// A router tells the route, which is taken where no other says more.
#[inline(always)]
fn tell(open: *mut OpenRequest, depth: u32, pointer: u64, length: u64) -> Option<()> {
    // SAFETY: as the callers'.
    if !unsafe { (*open).yields_to(length, depth) } {
        return None;
    }
    forget(open);
    // SAFETY: as above.
    unsafe {
        route::text_at([pointer, length], &raw mut (*open).named);
        (*open).named_depth = depth;
    }
    Some(())
}

/// Nothing is told of the route.
#[inline(always)]
pub fn forget(open: *mut OpenRequest) {
    // SAFETY: as the callers'; as many words as it has.
    unsafe {
        (*open).named.length = 0;
        let words = (&raw mut (*open).named.route).cast::<u64>();
        for n in 0..ROUTE_BYTES / 8 {
            words.add(n).write(0);
        }
    }
}
