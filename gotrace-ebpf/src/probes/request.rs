//! Requests: where they begin and end. A fast one leaves nothing but counts.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use gotrace_common::{
    Account, GoroutineState, Header, Hit, LEVEL_FULL, Lost, OpenRequest, RequestConfig, RequestKey,
    RequestRecord, kind, program,
    request::{OwnSpan, ended, family, protocol, record, state, status},
};

use crate::{
    emit::{clear, copy, reserve, submit},
    go_abi::{argument, current_g, follow, frame_pointer, read_word, read_words},
    maps::{ACCOUNTS, GOROUTINES, REQUEST_CONFIGS, REQUESTS, THRESHOLDS, ZEROS},
    probes::{account, children, function, grpc, headers, route, router, span},
    process::{Probe, Process},
};

/// A hit in a process whose requests are watched, and the goroutine that runs.
#[inline(always)]
pub fn hit(ctx: &Probe, hit: Hit) -> Option<(Process, u64)> {
    let process = Process::hit(ctx, hit, LEVEL_FULL)?;
    if !account::wanted(&process) {
        return None;
    }
    let goid = process.read(read_word(current_g(ctx) + u64::from(process.layout.goid)))?;
    Some((process, goid))
}

#[inline(always)]
pub fn config(process: &Process) -> Option<&'static RequestConfig> {
    // SAFETY: a value of an array, which lives as long as the map; user space writes it before the process is traced.
    REQUEST_CONFIGS.get_ptr(process.slot).map(|config| unsafe { &*config })
}

/// The key of the request that a goroutine serves by HTTP.
#[inline(always)]
fn by_goroutine(process: &Process, goid: u64) -> RequestKey {
    RequestKey { id: goid, process: process.process, family: family::HTTP }
}

/// `net/http.serverHandler.ServeHTTP`: the request is the fourth argument.
#[inline(always)]
pub fn on_http_begin(ctx: &Probe) -> Option<()> {
    begin_http(ctx, argument::<3>(ctx), program::HTTP_BEGIN)
}

/// `(*serverConn).runHandler` of `golang.org/x/net/http2`: the request is the third argument; or of what `net/http` has in its
/// place, where that is what the request is made of. Where it then goes through `net/http`'s server it begins there once more.
#[inline(always)]
pub fn on_http2_begin(ctx: &Probe, program: u32) -> Option<()> {
    begin_http(ctx, argument::<2>(ctx), program)
}

#[inline(always)]
fn begin_http(ctx: &Probe, object: u64, program: u32) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestBegin)?;
    let config = config(&process)?;
    let wrapped = program == program::WRAPPED_HTTP2_BEGIN;
    let fields = if wrapped { &config.server_request } else { &config.request };
    let major = follow(object, fields.proto_major).and_then(read_word);
    let protocol = if major == Some(2) { protocol::HTTP2 } else { protocol::HTTP1 };
    if wrapped && protocol != protocol::HTTP2 {
        // It cannot be read: where it goes through `net/http`'s server it begins there.
        return None;
    }
    let at = by_goroutine(&process, goid);
    if protocol == protocol::HTTP2
        && !wrapped
        && let Some(open) = REQUESTS.get_ptr_mut(at)
        // SAFETY: the value of a preallocated map.
        && unsafe { (*open).header != 0 && router::is_same(config, &*open, object) }
    {
        // It has begun as what this one is made of.
        // SAFETY: as above, of the goroutine whose event this is.
        unsafe { (*open).object = object };
        return Some(());
    }
    let open = begin(&process, current_g(ctx), goid, at, object, protocol)?;
    if protocol == protocol::HTTP2 && route::read_now(config, fields, object, open).is_none() && wrapped {
        // Nothing else may be read of it as of a request.
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        unsafe { (*open).object = 0 };
    }
    route::read_path(fields, object, open)
}

/// `net/http.serverHandler.ServeHTTP`.
#[uprobe]
pub fn http_begin(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_begin(ctx);
    0
}

/// `(*serverConn).runHandler` of `golang.org/x/net/http2`.
#[uprobe]
pub fn x_http2_begin(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http2_begin(ctx, program::X_HTTP2_BEGIN);
    0
}

/// The same of `net/http/internal/http2`.
#[uprobe]
pub fn wrapped_http2_begin(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http2_begin(ctx, program::WRAPPED_HTTP2_BEGIN);
    0
}

/// `net/http.(*ServeMux).ServeHTTP`.
#[uprobe]
pub fn http_route(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_route(ctx);
    0
}

/// `net/http.HandlerFunc.ServeHTTP`.
#[uprobe]
pub fn http_handler(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_handler(ctx);
    0
}

/// `net/http.(*response).Hijack`.
#[uprobe]
pub fn http_hijack(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_hijack(ctx);
    0
}

/// `net/http.(*response).finishRequest`.
#[uprobe]
pub fn http1_end(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_end(ctx, program::HTTP1_END);
    0
}

/// `handlerDone` of the writer of HTTP/2 in `net/http`.
#[uprobe]
pub fn http2_end(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_end(ctx, program::HTTP2_END);
    0
}

/// The same in `golang.org/x/net/http2`.
#[uprobe]
pub fn x_http2_end(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_end(ctx, program::X_HTTP2_END);
    0
}

/// `runtime.gopanic`.
#[uprobe]
pub fn panic(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_panic(ctx);
    0
}

/// A request begins. It may have begun already: where the goroutine's stack has grown, the function began anew.
#[inline(always)]
pub fn begin(
    process: &Process,
    g: u64,
    goid: u64,
    key: RequestKey,
    object: u64,
    protocol: u8,
) -> Option<*mut OpenRequest> {
    let account = account_of(process, g, goid)?;
    if key.family == family::GRPC {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        unsafe {
            if (*account).stream != object {
                grpc::forget_stream(process, account);
            }
            (*account).stream = object;
        }
    }
    let open = match REQUESTS.get_ptr_mut(key) {
        Some(open) => {
            // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
            if unsafe { (*open).object } != object || key.family == family::SPAN {
                process.lost(Lost::RequestUnended);
            }
            open
        }
        None => {
            // SAFETY: the zeros of an array, which are more.
            let zeros = unsafe { &*ZEROS.get_ptr(0)?.cast::<OpenRequest>() };
            if REQUESTS.insert(key, zeros, 0).is_err() {
                process.lost(Lost::RequestsFull);
                // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
                close_idle(process, goid, account);
                return None;
            }
            if key.family != family::SPAN {
                // SAFETY: as above.
                unsafe { (*account).open += 1 };
            }
            REQUESTS.get_ptr_mut(key)?
        }
    };
    // SAFETY: values of preallocated maps, of the goroutine whose event this is.
    unsafe {
        (*open).start_ns = process.now_ns;
        (*open).goid = goid;
        (*open).object = object;
        (*open).routed = 0;
        (*open).routed_depth = 0;
        (*open).asked = 0;
        if (*open).named.length != 0 {
            router::forget(open);
        }
        (*open).handler = 0;
        (*open).protocol = protocol;
        (*open).hijacked = 0;
        (*open).panicked = 0;
        (*open).carries = 0;
        (*open).waits_lost = (*account).waits_lost;
        (*open).base = (*account).times;
        (*open).own.span_id = 0;
        if (*open).path.length != 0 {
            clear(&raw mut (*open).path);
        }
        if (*open).header != 0 {
            (*open).header = 0;
            (*open).method = [0; 8];
            (*open).pattern = [0; 2];
            clear(&raw mut (*open).traceparent);
        }
        if (*open).children.started != 0 {
            clear(&raw mut (*open).children);
        }
    }
    Some(open)
}

/// The goroutine's account, which it has from now on, with its books closed.
#[inline(always)]
fn account_of(process: &Process, g: u64, goid: u64) -> Option<*mut Account> {
    let goroutine = match GOROUTINES.get_ptr_mut(process.key(goid)) {
        Some(goroutine) => goroutine,
        None => {
            process.keep(goid, &GoroutineState { g, ..GoroutineState::default() });
            GOROUTINES.get_ptr_mut(process.key(goid))?
        }
    };
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    if unsafe { (*goroutine).accounted } != 0
        && let Some(account) = account::of(process, goid)
    {
        account::close(process, account, true);
        return Some(account);
    }
    // SAFETY: the zeros of an array, which are more.
    let zeros = unsafe { &*ZEROS.get_ptr(0)?.cast::<Account>() };
    if ACCOUNTS.insert(process.key(goid), zeros, 0).is_err() {
        process.lost(Lost::RequestsFull);
        return None;
    }
    let account = account::of(process, goid)?;
    // SAFETY: as above.
    unsafe {
        (*goroutine).accounted = 1;
        (*account).since_ns = process.now_ns;
    }
    account::open(process, account, state::RUNNING);
    Some(account)
}

/// The goroutine has no request any more.
#[inline(always)]
fn close_account(process: &Process, goid: u64) {
    // One that is gone has none.
    let _ = ACCOUNTS.remove(process.key(goid));
    if let Some(goroutine) = GOROUTINES.get_ptr_mut(process.key(goid)) {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        unsafe { (*goroutine).accounted = 0 };
    }
}

/// The same, where it has none.
#[inline(always)]
fn close_idle(process: &Process, goid: u64, account: *mut Account) {
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    let (open, of) = unsafe { ((*account).open, (*account).of) };
    if open == 0 && of.process == 0 && !span::has_any(account) {
        close_account(process, goid);
    }
}

/// What the goroutine serves by HTTP or gRPC, or as a call of a function that was named, if it does.
#[inline(always)]
pub fn serving(process: &Process, goid: u64, account: *mut Account) -> Option<*mut OpenRequest> {
    if let Some(open) = open_http(process, goid) {
        return Some(open);
    }
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    match unsafe { (*account).stream } {
        0 => function::open(process, goid).map(|(_, open)| open),
        id => REQUESTS.get_ptr_mut(RequestKey { id, process: process.process, family: family::GRPC }),
    }
}

/// The request that the goroutine serves by HTTP, if it does.
#[inline(always)]
pub fn open_http(process: &Process, goid: u64) -> Option<*mut OpenRequest> {
    REQUESTS.get_ptr_mut(by_goroutine(process, goid))
}

/// `(*ServeMux).ServeHTTP`: the request, the fourth argument, may be a copy; the mux notes its pattern there.
#[inline(always)]
pub fn on_http_route(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestStep)?;
    let request = argument::<3>(ctx);
    let (open, depth) = router::served(ctx, &process, goid, frame_pointer(ctx))?;
    // SAFETY: a value of a preallocated map.
    if depth >= router::CHILD && !router::is_same(config(&process)?, unsafe { &*open }, request) {
        return None;
    }
    // SAFETY: as above, of the goroutine whose event this is or of one that waits for it.
    unsafe {
        (*open).routed = request;
        (*open).routed_depth = depth;
    }
    Some(())
}

/// `HandlerFunc.ServeHTTP`: the first argument is a func value, which begins with the address of its code.
#[inline(always)]
pub fn on_http_handler(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestStep)?;
    let open = open_http(&process, goid)?;
    let handler = process.read(read_word(argument::<0>(ctx)))?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe { (*open).handler = handler };
    // SAFETY: as above.
    if unsafe { (*open).header } != 0 {
        // The request that the handler is given, which may be a copy: nothing else may hold it soon. The text is the mux's.
        let pattern = follow(argument::<3>(ctx), config(&process)?.pattern).and_then(read_words::<2>)?;
        if pattern[1] != 0 {
            // SAFETY: as above.
            unsafe { (*open).pattern = pattern };
        }
    }
    Some(())
}

/// `(*response).Hijack`.
#[inline(always)]
pub fn on_http_hijack(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestStep)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe { (*open_http(&process, goid)?).hijacked = 1 };
    Some(())
}

/// `(*Server).ServeConn` of `golang.org/x/net/http2`, where the connection is that of a request which asked for HTTP/2: its
/// streams are requests, and it is none.
#[inline(always)]
pub fn on_http_carries_http2(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestStep)?;
    let open = open_http(&process, goid)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe { (*open).carries = 1 };
    end(&process, by_goroutine(&process, goid), open, goid, status::NONE, ended::HIJACKED)
}

/// `(*Server).ServeConn` of `golang.org/x/net/http2`.
#[uprobe]
pub fn http_carries_http2(ctx: ProbeContext) -> u32 {
    let ctx = &Probe::new(ctx);
    on_http_carries_http2(ctx);
    0
}

/// `runtime.gopanic`.
#[inline(always)]
pub fn on_panic(ctx: &Probe) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestStep)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
    unsafe { (*open_http(&process, goid)?).panicked = 1 };
    Some(())
}

/// `(*response).finishRequest`, and `handlerDone` of the writers of HTTP/2: the first argument leads to the status.
#[inline(always)]
pub fn on_http_end(ctx: &Probe, program: u32) -> Option<()> {
    let (process, goid) = hit(ctx, Hit::RequestEnd)?;
    let open = open_http(&process, goid)?;
    let config = config(&process)?;
    let path = match program {
        program::HTTP1_END => config.http1_status,
        program::HTTP2_END => config.http2_status,
        _ => config.x_http2_status,
    };
    let status =
        follow(argument::<0>(ctx), path).and_then(read_word).map_or(status::NONE, |status| status as u16);
    // What nobody has written yet is written now: OK.
    let status = if status == 0 { 200 } else { status };
    end(&process, by_goroutine(&process, goid), open, goid, status, ended::NORMAL)
}

/// A goroutine that has an account ends: so does what it served by HTTP, or the call that it was in.
#[inline(always)]
pub fn on_goroutine_exit(process: &Process, goid: u64) {
    if let Some(account) = account::of(process, goid) {
        grpc::forget_stream(process, account);
        span::forget(process, account, goid);
        children::on_exit(process, account);
    }
    let mut key = by_goroutine(process, goid);
    let mut open = REQUESTS.get_ptr_mut(key);
    if open.is_none() {
        key.family = family::FUNCTION;
        open = REQUESTS.get_ptr_mut(key);
    }
    if let Some(open) = open {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        let (how, status) = match unsafe { ((*open).hijacked, (*open).panicked) } {
            (0, 0) => (ended::GOROUTINE_EXIT, status::FAILED),
            (0, _) => (ended::PANIC, status::FAILED),
            _ => (ended::HIJACKED, status::NONE),
        };
        end(process, key, open, goid, status, how);
    }
    close_account(process, goid);
}

/// A request ends: it is counted with its route, and sent where it took long.
#[inline(always)]
pub fn end(
    process: &Process,
    at: RequestKey,
    open: *mut OpenRequest,
    current: u64,
    status: u16,
    how: u8,
) -> Option<()> {
    // SAFETY: the value of a preallocated map, which stays readable while this runs.
    let (goid, start_ns) = unsafe { ((*open).goid, (*open).start_ns) };
    let Some(account) = account::of(process, goid) else {
        process.lost(Lost::RequestUnended);
        let _ = REQUESTS.remove(at);
        return None;
    };
    let duration_ns = if how == ended::ELSEWHERE {
        let Some(duration_ns) = account::settle_elsewhere(process, account, open) else {
            process.lost(Lost::RequestUnended);
            let _ = REQUESTS.remove(at);
            span::leave(account, at.id);
            return None;
        };
        duration_ns
    } else {
        account::close(process, account, goid == current);
        account::settle(account, open);
        process.now_ns.saturating_sub(start_ns)
    };
    let config = config(process)?;
    // SAFETY: as above.
    unsafe { route::name(process, config, open) };
    // SAFETY: as above.
    let (named, counts) = unsafe { (&(*open).named, (*open).carries == 0) };
    let mut sent = false;
    if counts && duration_ns >= config.least_ns {
        let own = THRESHOLDS.get_ptr(named);
        // SAFETY: a value of a preallocated map, which user space writes.
        let threshold_ns = own.map_or(config.threshold_ns, |ns| unsafe { core::ptr::read_volatile(ns) });
        sent = duration_ns >= threshold_ns;
    }
    // SAFETY: as above. Nothing else of it is written from now on.
    let open = unsafe {
        (*open).named.status = status;
        &*open
    };
    if counts {
        route::count(process, &open.named, duration_ns, open);
    }
    if sent && let Some(mut entry) = reserve::<RequestRecord>(process, Lost::RingRequest) {
        // SAFETY: the value of a preallocated map, of the goroutine whose event this is.
        let waits_lost = unsafe { (*account).waits_lost } != open.waits_lost;
        let has_span = open.own.span_id != 0;
        let to = entry.as_mut_ptr();
        // SAFETY: the room that was reserved; all of it is written.
        unsafe {
            (&raw mut (*to).header).write(Header {
                kind: kind::REQUEST,
                arg: if waits_lost { record::WAITS_LOST } else { 0 }
                    | if has_span { record::OWN_SPAN } else { 0 },
                count: how,
                waker: 0,
                process: process.process,
                time_ns: start_ns + duration_ns,
            });
            (&raw mut (*to).goid).write(goid);
            (&raw mut (*to).start_ns).write(start_ns);
            copy(&raw const open.named, &raw mut (*to).key);
            copy(&raw const open.base, &raw mut (*to).times);
            copy(&raw const open.path, &raw mut (*to).path);
            let caller = &raw mut (*to).caller;
            clear(caller);
            if has_span {
                caller.cast::<OwnSpan>().write(open.own);
            } else if open.header != 0 {
                caller.write(open.traceparent);
            } else if at.family == family::HTTP && how == ended::NORMAL {
                let map = follow(open.object, config.request.header).and_then(read_word).unwrap_or(0);
                headers::traceparent(map, &config.headers, caller.cast());
            }
            children::read(&raw const open.children, &raw mut (*to).children);
        }
        submit(entry);
    }
    // It is there: its value was at hand.
    let _ = REQUESTS.remove(at);
    // SAFETY: the value of a preallocated map. What another goroutine may write of it is a span's place.
    unsafe {
        if at.family == family::SPAN {
            span::leave(account, at.id);
            if how == ended::ELSEWHERE {
                return None;
            }
        } else {
            if (*account).stream == at.id && at.family == family::GRPC {
                (*account).stream = 0;
            }
            (*account).open = (*account).open.saturating_sub(1);
        }
    }
    close_idle(process, goid, account);
    Some(())
}
