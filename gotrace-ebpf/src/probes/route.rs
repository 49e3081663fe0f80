//! What a request is counted by, and counting it.

use gotrace_common::{
    Lost, OpenRequest, RequestConfig, RouteKey, RouteTimes, bucket_of,
    request::{FieldPath, NO_STEP, PATH_BYTES, ROUTE_BYTES, RequestFields, TIMES, protocol},
};

use crate::{
    go_abi::{follow, read_text, read_word, read_words},
    maps::{ROUTES, ZEROS},
    probes::{headers, router},
    process::{Process, increment},
};

/// Reads what else is read at a request's end, where it may be collected before that.
#[inline(always)]
pub fn read_now(
    config: &RequestConfig,
    fields: &RequestFields,
    object: u64,
    open: *mut OpenRequest,
) -> Option<()> {
    if config.http2_released == 0 {
        return None;
    }
    let header = follow(object, fields.header).and_then(read_word)?;
    let [pointer, length] = read_words::<2>(follow(object, fields.method)?)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is; as long as stated, and filled with 0.
    unsafe {
        (*open).header = header;
        (*open).context = router::context_of(fields, object).unwrap_or(0);
        read_text::<8>((&raw mut (*open).method).cast(), pointer, length);
        headers::traceparent(header, &config.headers, (&raw mut (*open).traceparent).cast());
    }
    Some(())
}

/// Reads what the request asks for, where that is wanted: before anybody changes it.
#[inline(always)]
pub fn read_path(fields: &RequestFields, object: u64, open: *mut OpenRequest) -> Option<()> {
    let [pointer, length] = read_words::<2>(follow(object, fields.path)?)?;
    // SAFETY: the value of a preallocated map, of the goroutine whose event this is; as long as stated, and filled with 0.
    unsafe {
        let path = &raw mut (*open).path;
        if read_text::<PATH_BYTES>((&raw mut (*path).text).cast(), pointer, length) {
            (*path).length = length;
        }
    }
    Some(())
}

/// Completes what the request is counted by: its method and route, or the function that served it.
///
/// # Safety
/// `open` must be the value of a preallocated map.
#[inline(always)]
pub unsafe fn name(process: &Process, config: &RequestConfig, open: *mut OpenRequest) {
    // SAFETY: as the caller says; nobody else writes it meanwhile, and all texts are as long as stated.
    unsafe {
        let key = &raw mut (*open).named;
        (*key).process = process.process;
        (*key).protocol = (*open).protocol;
        let object = (*open).object;
        if (*open).protocol == protocol::GRPC {
            text(object, config.grpc_method, key);
            return;
        }
        if (*open).protocol == protocol::FUNCTION {
            (*key).handler = (*open).handler;
            return;
        }
        if (*open).protocol == protocol::SPAN {
            text(object, FieldPath { steps: [config.span.name, NO_STEP, NO_STEP] }, key);
            return;
        }
        let known = (*open).header;
        if known != 0 {
            (*key).method = (*open).method;
        } else if let Some(at) = follow(object, config.request.method)
            && let Some([pointer, length]) = read_words::<2>(at)
        {
            read_text::<8>((&raw mut (*key).method).cast(), pointer, length);
        }
        // A mux notes the pattern in the request that it was called with: believed as long as that is a copy of this one.
        // As words: comparing what may be nothing reads what was never written, which kernels before 5.19 refuse.
        let header = |object| follow(object, config.request.header).and_then(read_word).unwrap_or(0);
        let (of_object, routed) = (header(object), (*open).routed);
        let own = if known != 0 { known } else { of_object };
        let copy = routed != 0 && routed != object && header(routed) == own;
        let [mut pointer, mut length] = (*open).pattern;
        if length == 0 && (copy || own == of_object) {
            let at = follow(if copy { routed } else { object }, config.pattern).unwrap_or(0);
            pointer = read_word(at).unwrap_or(0);
            length = if pointer == 0 { 0 } else { read_word(at + 8).unwrap_or(0) };
        }
        if (*open).yields_to(length, (*open).routed_depth) {
            router::forget(open);
            text_at([pointer, length], key);
        }
        if (*key).length == 0 {
            (*key).handler = (*open).handler;
        }
    }
}

/// Reads the route's text.
///
/// # Safety
/// As [`text_at`].
#[inline(always)]
unsafe fn text(object: u64, path: FieldPath, key: *mut RouteKey) -> Option<()> {
    // SAFETY: as the caller says.
    unsafe { text_at(read_words::<2>(follow(object, path)?)?, key) };
    Some(())
}

/// The same, from where it lies.
///
/// # Safety
/// `key` must be valid for writing; its text must be 0.
#[inline(always)]
pub unsafe fn text_at([pointer, length]: [u64; 2], key: *mut RouteKey) {
    // SAFETY: as the caller says; as long as stated.
    unsafe {
        if length != 0 && read_text::<ROUTE_BYTES>((&raw mut (*key).route).cast(), pointer, length) {
            (*key).length = if length > ROUTE_BYTES as u64 { 255 } else { length as u8 };
        }
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
