//! What a request is counted by, and counting it.

use gotrace_common::{
    Lost, OpenRequest, RequestConfig, RouteKey, RouteTimes, bucket_of,
    request::{FieldPath, NO_STEP, ROUTE_BYTES, TIMES, protocol},
};

use crate::{
    go_abi::{follow, read_text, read_word, read_words},
    maps::{ROUTES, ZEROS},
    probes::headers,
    process::{Process, increment},
};

/// Reads what else is read at a request's end, where it may be collected before that.
#[inline(always)]
pub fn read_now(config: &RequestConfig, object: u64, open: *mut OpenRequest) -> Option<()> {
    if config.http2_released == 0 {
        return None;
    }
    let header = follow(object, config.header).and_then(read_word)?;
    let [pointer, length] = read_words::<2>(follow(object, config.method)?)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is; as long as stated, and filled with 0.
    unsafe {
        (*open).header = header;
        read_text::<8>((&raw mut (*open).method).cast(), pointer, length);
        headers::traceparent(object, config, (&raw mut (*open).traceparent).cast());
    }
    Some(())
}

/// What the request is counted by: its method and route, or the function that served it.
#[inline(always)]
pub fn name(config: &RequestConfig, open: &OpenRequest, key: &mut RouteKey) {
    if open.protocol == protocol::GRPC {
        text(open.object, config.grpc_method, key);
        return;
    }
    if open.protocol == protocol::SPAN {
        text(open.object, FieldPath { steps: [config.span.name, NO_STEP, NO_STEP] }, key);
        return;
    }
    if open.header != 0 {
        key.method = open.method;
        if open.pattern[1] != 0 {
            text_at(open.pattern, key);
        }
    } else if let Some(at) = follow(open.object, config.method)
        && let Some([pointer, length]) = read_words::<2>(at)
    {
        // SAFETY: as long as stated.
        unsafe { read_text::<8>((&raw mut key.method).cast(), pointer, length) };
    }
    // A mux notes the pattern in the request that it was called with: believed as long as that is a copy of this one.
    // As words: comparing what may be nothing reads what was never written, which kernels before 5.19 refuse.
    let header = |object| follow(object, config.header).and_then(read_word).unwrap_or(0);
    let of_object = header(open.object);
    let copy = open.routed != 0 && open.routed != open.object && header(open.routed) == of_object;
    if key.length == 0 && (open.header == 0 || open.header == of_object) {
        text(if copy { open.routed } else { open.object }, config.pattern, key);
    }
    if key.length == 0 {
        key.handler = open.handler;
    }
}

/// Reads the route's text.
#[inline(always)]
fn text(object: u64, path: FieldPath, key: &mut RouteKey) -> Option<()> {
    text_at(read_words::<2>(follow(object, path)?)?, key);
    Some(())
}

/// The same, from where it lies.
#[inline(always)]
fn text_at([pointer, length]: [u64; 2], key: &mut RouteKey) {
    // SAFETY: as long as stated.
    if length != 0 && unsafe { read_text::<ROUTE_BYTES>((&raw mut key.route).cast(), pointer, length) } {
        key.length = if length > ROUTE_BYTES as u64 { 255 } else { length as u8 };
    }
}

/// Counts a request with its route and status.
#[inline(always)]
pub fn count(process: &Process, key: &RouteKey, duration_ns: u64, open: &OpenRequest) -> Option<()> {
    let route = match ROUTES.get_ptr_mut(key) {
        Some(route) => route,
        None => {
            // SAFETY: the zeros of an array.
            let zeros: &RouteTimes = unsafe { &*ZEROS.get_ptr(0)? };
            // Another may have been first.
            let _ = ROUTES.insert(key, zeros, u64::from(aya_ebpf::bindings::BPF_NOEXIST));
            match ROUTES.get_ptr_mut(key) {
                Some(route) => route,
                None => {
                    process.lost(Lost::RoutesFull);
                    return None;
                }
            }
        }
    };
    // SAFETY: a pointer to a map value; the bucket is below the array's length.
    unsafe {
        let durations = &raw mut (*route).durations;
        increment(&raw mut (*durations).sum_ns, duration_ns);
        // Two tasks may race here and the shorter may stay; the buckets are exact.
        if duration_ns > (*durations).max_ns {
            (*durations).max_ns = duration_ns;
        }
        let bucket = bucket_of(duration_ns);
        if bucket < gotrace_common::BUCKETS {
            increment((&raw mut (*durations).buckets).cast::<u64>().add(bucket), 1);
        }
        for n in 0..TIMES {
            let spent = open.base[n];
            if spent != 0 {
                increment((&raw mut (*route).times).cast::<u64>().add(n), spent);
            }
        }
    }
    Some(())
}
