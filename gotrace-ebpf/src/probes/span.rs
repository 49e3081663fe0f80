//! Spans of the program's own OpenTelemetry SDK: that of a request is the parent of what is told of it, and one that belongs
//! to no other request is a request.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    Account, Hit, Lost, RequestKey,
    request::{OwnSpan, SPANS, SpanLayout, ended, family, protocol, status},
};

use crate::{
    go_abi::{argument, current_g, read_word, read_words},
    maps::REQUESTS,
    probes::{account, request},
    process::{Probe, Process},
};

/// `trace.SpanKind`
const SERVER: u32 = 2;
const CLIENT: u32 = 3;
const PRODUCER: u32 = 4;
const CONSUMER: u32 = 5;

/// The call of `context.WithValue` in the SDK's `Start`.
#[uprobe]
pub fn span_begin(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_begin(ctx);
    0
}

/// The SDK's `(*recordingSpan).End`.
#[uprobe]
pub fn span_end(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_end(ctx);
    0
}

/// The fifth and the sixth argument are the span, as an interface: its type, which tells whether it is recorded, and its
/// address.
#[inline(always)]
pub fn on_begin(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestBegin)?;
    let layout = &request::config(&process)?.span;
    let span = argument::<5>(ctx);
    if layout.recorded == 0 || argument::<4>(ctx) != layout.recorded {
        return None;
    }
    let kind = process.read(read_word(span + u64::from(layout.kind)))? as u32;
    let (mut has_others, mut has_room) = (false, true);
    if let Some(account) = account::of(&process, goid) {
        if let Some(open) = request::serving(&process, goid, account) {
            // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
            let consumes = kind == CONSUMER && unsafe { (*open).protocol } == protocol::FUNCTION;
            // SAFETY: as above.
            if (kind == SERVER || consumes) && unsafe { (*open).own.span_id } == 0 {
                let own = process.read(ids(span, layout))?;
                // SAFETY: as above.
                unsafe { (*open).own = own };
            }
            return None;
        }
        has_others = has_any(account);
        has_room = is_at(account, 0) || is_at(account, span);
    }
    if kind == CLIENT || kind == PRODUCER {
        return None;
    }
    // One with a parent in this process is a part of something that is told already, unless it is said to serve.
    let serves = (kind == SERVER || kind == CONSUMER) && !has_others;
    if !serves && !begins_here(span, layout) {
        return None;
    }
    let own = process.read(ids(span, layout))?;
    let key = RequestKey { id: span, process: process.process, family: family::SPAN };
    if !has_room {
        process.lost(Lost::RequestsFull);
        return None;
    }
    let open = request::begin(&process, current_g(ctx), goid, key, span, protocol::SPAN)?;
    let account = account::of(&process, goid)?;
    // SAFETY: values of preallocated maps, of the goroutine whose event this is.
    unsafe {
        (*open).own = own;
        let places = (&raw mut (*account).spans).cast::<u64>();
        let mut there = is_at(account, span);
        for n in 0..SPANS {
            if !there && places.add(n).read_volatile() == 0 {
                places.add(n).write_volatile(span);
                there = true;
            }
        }
    }
    Some(())
}

/// Whether a word is among the account's spans.
#[inline(always)]
fn is_at(account: *const Account, word: u64) -> bool {
    let mut is_there = false;
    for n in 0..SPANS {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        is_there |= unsafe { (&raw const (*account).spans).cast::<u64>().add(n).read_volatile() } == word;
    }
    is_there
}

/// Whether spans are requests of the account's goroutine.
#[inline(always)]
pub fn has_any(account: *const Account) -> bool {
    let mut any = 0;
    for n in 0..SPANS {
        // SAFETY: as above.
        any |= unsafe { (&raw const (*account).spans).cast::<u64>().add(n).read_volatile() };
    }
    any != 0
}

/// Whether a span has no parent in this process.
#[inline(always)]
fn begins_here(span: u64, layout: &SpanLayout) -> bool {
    let Some([first, second]) = read_words::<2>(span + u64::from(layout.parent_trace_id)) else {
        return false;
    };
    if first | second == 0 {
        return true;
    }
    let Some(remote) = read_word(span + u64::from(layout.parent_remote)) else { return false };
    remote & 0xff != 0
}

#[inline(always)]
fn ids(span: u64, layout: &SpanLayout) -> Option<OwnSpan> {
    let trace_id = read_words::<2>(span + u64::from(layout.trace_id))?;
    let span_id = read_word(span + u64::from(layout.span_id))?;
    let parent_span_id = read_word(span + u64::from(layout.parent_span_id))?;
    Some(OwnSpan { trace_id, span_id, parent_span_id })
}

/// The first argument is the span.
#[inline(always)]
pub fn on_end(ctx: &Probe) -> Option<()> {
    let (process, goid) = request::hit(ctx, Hit::RequestEnd)?;
    let span = argument::<0>(ctx);
    let key = RequestKey { id: span, process: process.process, family: family::SPAN };
    let open = REQUESTS.get_ptr_mut(key)?;
    // SAFETY: the value of a preallocated map, which stays readable while this runs.
    let (began_on, start_ns) = unsafe { ((*open).goid, (*open).start_ns) };
    // Another goroutine is ending it.
    if start_ns == 0 {
        return None;
    }
    let at = u64::from(request::config(&process)?.span.status);
    let code = read_word(span + at).map_or(status::NONE, |code| code as u16);
    let how = if began_on == goid { ended::NORMAL } else { ended::ELSEWHERE };
    request::end(&process, key, open, goid, code, how)
}

/// A span is no request of the account's goroutine any more.
#[inline(always)]
pub fn leave(account: *mut Account, span: u64) {
    // SAFETY: the value of a preallocated map. Only who ends a span takes it from its place.
    unsafe {
        let places = (&raw mut (*account).spans).cast::<u64>();
        for n in 0..SPANS {
            if places.add(n).read_volatile() == span {
                places.add(n).write_volatile(0);
            }
        }
    }
}

/// A goroutine ends before spans that it began: what comes after is not its time, and their ends are not looked for.
#[inline(always)]
pub fn forget(process: &Process, account: *mut Account, goid: u64) {
    for n in 0..SPANS {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        let id = unsafe { (&raw const (*account).spans).cast::<u64>().add(n).read_volatile() };
        let key = RequestKey { id, process: process.process, family: family::SPAN };
        if id == 0 {
            continue;
        }
        // Its address may be another one's by now.
        // SAFETY: as above.
        let own = REQUESTS.get_ptr(key).is_some_and(|open| unsafe { (*open).goid } == goid);
        if own && REQUESTS.remove(key).is_ok() {
            process.lost(Lost::RequestUnended);
        }
    }
}
