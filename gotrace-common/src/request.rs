//! Requests: what user space tells the kernel side of a program's servers, and what the kernel side keeps of each request.
//!
//! A goroutine that serves a request has an [`Account`]: the state that it is in, since when, and one sum a state. Each
//! event of the scheduler closes the books of the old state. A request is the difference of two readings, so that its
//! parts always add up to the whole.

use crate::{Header, Histogram};

mod routers;

pub use routers::{ContextLayout, MountedLayout, RouterLayouts};

/// States of a goroutine that has an account ([`Account::state`]).
pub mod state {
    /// It has a thread.
    pub const RUNNING: u32 = 0;
    /// It waits for a thread.
    pub const RUNNABLE: u32 = 1;
    /// It is in a system call, or in C.
    pub const SYSCALL: u32 = 2;
    /// It does the collector's work, as it allocates.
    pub const ASSIST: u32 = 3;
    /// It waits.
    pub const BLOCKED: u32 = 4;
}

/// Sums of an account ([`Account::times`]), by what time was spent on.
pub mod time {
    /// On a processor. Where processor time is not counted, all of the time on a thread.
    pub const ON_CPU: usize = 0;
    /// On a thread that had no processor, as others had it.
    pub const DESCHEDULED: usize = 1;
    /// On a thread that stood still, as the CPU quota was used up.
    pub const THROTTLED: usize = 2;
    /// Runnable, without a thread.
    pub const RUN_QUEUE: usize = 3;
    /// The same while the world was stopped.
    pub const WORLD_STOPPED: usize = 4;
    /// In system calls.
    pub const SYSCALL: usize = 5;
    /// At the collector's work.
    pub const GC_ASSIST: usize = 6;
    /// Blocked: the first of [`super::BLOCKED_CLASSES`].
    pub const BLOCKED: usize = 7;
}

/// Classes of wait reasons that have a sum of their own; the last one is that of all others.
pub const BLOCKED_CLASSES: usize = 12;
/// Sums of an account.
pub const TIMES: usize = time::BLOCKED + BLOCKED_CLASSES;
/// Sums by what time was spent on ([`time`]).
pub type Times = [u64; TIMES];

/// What kind of request ([`RouteKey::protocol`]).
pub mod protocol {
    /// HTTP/1.0 or 1.1.
    pub const HTTP1: u8 = 1;
    /// HTTP/2.
    pub const HTTP2: u8 = 2;
    /// gRPC.
    pub const GRPC: u8 = 3;
    /// A span of the program's own OpenTelemetry SDK.
    pub const SPAN: u8 = 4;
    /// A call of a function that the user has named.
    pub const FUNCTION: u8 = 5;
}

/// Families of requests: what tells one from another ([`RequestKey::family`]).
pub mod family {
    /// HTTP: the goroutine, which serves one at a time.
    pub const HTTP: u32 = 1;
    /// gRPC: the stream.
    pub const GRPC: u32 = 2;
    /// Spans of the program's own: the span.
    pub const SPAN: u32 = 3;
    /// Calls of functions that the user has named: the goroutine, of which the outermost is told.
    pub const FUNCTION: u32 = 4;
}

/// How a request ended ([`RequestRecord::header`], `count`).
pub mod ended {
    /// Its handler was done.
    pub const NORMAL: u8 = 0;
    /// Its goroutine panicked and ended.
    pub const PANIC: u8 = 1;
    /// Its connection was taken over by the handler, and its goroutine has ended.
    pub const HIJACKED: u8 = 2;
    /// Its goroutine has ended for another reason.
    pub const GOROUTINE_EXIT: u8 = 3;
    /// Another goroutine ended it: times are those of the one that it began on.
    pub const ELSEWHERE: u8 = 4;
}

/// Flags of a record ([`RequestRecord::header`], `arg`).
pub mod record {
    /// Waits of it could not be sent.
    pub const WAITS_LOST: u8 = 1;
    /// [`super::RequestRecord::caller`] begins with an [`super::OwnSpan`].
    pub const OWN_SPAN: u8 = 2;
}

/// Spans that are requests of a goroutine at once; more are not followed.
pub const SPANS: usize = 4;

/// What [`RouteKey::status`] is where a request has none.
pub mod status {
    /// It is not known, or the handler took over the connection.
    pub const NONE: u16 = 0xffff;
    /// The goroutine ended without one.
    pub const FAILED: u16 = 0xfffe;
}

/// Bytes of a route's text that are kept.
pub const ROUTE_BYTES: usize = 104;
/// Bytes of a path that are kept.
pub const PATH_BYTES: usize = 120;
/// Bytes of a `traceparent` header (W3C Trace Context), padded.
pub const TRACEPARENT_BYTES: usize = 56;
/// No step in a [`FieldPath`].
pub const NO_STEP: u16 = u16::MAX;

/// How to reach a field: bytes to go on from where a value points; before each step but the first a pointer is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FieldPath {
    /// [`NO_STEP`] from the first that there is not.
    pub steps: [u16; 3],
}

impl Default for FieldPath {
    fn default() -> Self {
        Self::NONE
    }
}

impl FieldPath {
    /// There is no such field.
    pub const NONE: Self = Self { steps: [NO_STEP; 3] };
}

/// How entries of a `map[string][]string` lie in memory (14 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeaderMap {
    /// 1 for a map of buckets, 2 for a Swiss map; 0 where it is not known.
    pub kind: u16,
    /// Bytes of a bucket or group.
    pub size: u16,
    /// Where the first key is in it.
    pub keys: u16,
    /// From a key to the next.
    pub key_stride: u16,
    /// Where the first element is in it.
    pub elements: u16,
    /// From an element to the next.
    pub element_stride: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

/// Where a span of OpenTelemetry's SDK has what is read of it (24 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SpanLayout {
    /// Address of the type of those that are recorded; 0 where spans are not traced.
    pub recorded: u64,
    /// `spanContext.traceID`
    pub trace_id: u16,
    /// `spanContext.spanID`
    pub span_id: u16,
    /// `parent.traceID`
    pub parent_trace_id: u16,
    /// `parent.spanID`
    pub parent_span_id: u16,
    /// `parent.remote`
    pub parent_remote: u16,
    /// `spanKind`
    pub kind: u16,
    /// `name`
    pub name: u16,
    /// `status.Code`
    pub status: u16,
}

/// Ids of a span of the program's own, as they lie in memory (32 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OwnSpan {
    /// Its trace.
    pub trace_id: [u64; 2],
    /// Itself; 0 for no span.
    pub span_id: u64,
    /// Its parent; 0 for none.
    pub parent_span_id: u64,
}

/// Code of the process, from the first address up to the second, which is not of it; both 0 for none.
pub type CodeRange = [u64; 2];

/// Packages whose own goroutines are no children of requests ([`RequestConfig::libraries`]).
pub const LIBRARIES: usize = 4;

/// How to reach what is read of a request as it begins (26 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RequestFields {
    /// `Method`
    pub method: FieldPath,
    /// `URL.Path`; none where paths are not wanted.
    pub path: FieldPath,
    /// `Header`
    pub header: FieldPath,
    /// `ProtoMajor`
    pub proto_major: FieldPath,
    /// Its context: where the interface begins; [`NO_STEP`] where that is not known.
    pub context: u16,
}

impl RequestFields {
    /// Nothing is read.
    pub const NONE: Self = Self {
        method: FieldPath::NONE,
        path: FieldPath::NONE,
        header: FieldPath::NONE,
        proto_major: FieldPath::NONE,
        context: NO_STEP,
    };
}

/// Value of the map `REQUEST_CONFIGS`, one row a process slot (320 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RequestConfig {
    /// Class of each wait reason, below [`BLOCKED_CLASSES`].
    pub classes: [u8; 64],
    /// A request of a route that has no threshold of its own is sent when it took at least so long.
    pub threshold_ns: u64,
    /// No threshold of a route is below this.
    pub least_ns: u64,
    /// Spans of OpenTelemetry's SDK
    pub span: SpanLayout,
    /// Routers but that of `net/http`
    pub routers: RouterLayouts,
    /// Code of the runtime, and of `net/http` and its like: goroutines that it starts are for the collector, or keep
    /// connections, and are no children of a request.
    pub libraries: [CodeRange; LIBRARIES],
    /// What of that starts a goroutine for a handler, which is one.
    pub handler_starts: CodeRange,
    /// `http.Request`
    pub request: RequestFields,
    /// `net/http/internal/http2.ServerRequest` (Go 1.27 and later), which `http.Request` is made of
    pub server_request: RequestFields,
    /// `http.Request.Pattern`, or the text behind `http.Request.pat`
    pub pattern: FieldPath,
    /// `http.response.status`
    pub http1_status: FieldPath,
    /// `status` of the state of `net/http`'s HTTP/2 writer
    pub http2_status: FieldPath,
    /// The same of `golang.org/x/net/http2`
    pub x_http2_status: FieldPath,
    /// The method of a gRPC stream
    pub grpc_method: FieldPath,
    /// The code of a gRPC status
    pub grpc_code: FieldPath,
    /// How headers lie in memory.
    pub headers: HeaderMap,
    /// 1 where nothing but the handler may hold the `http.Request` of HTTP/2 (Go 1.27 and later): it can be collected, and
    /// its memory be another request's, before the handler is done. What is read of it is read while it is sure.
    pub http2_released: u8,
    /// Reserved, 0.
    pub reserved: u8,
}

impl Default for RequestConfig {
    fn default() -> Self {
        let none = FieldPath::NONE;
        Self {
            classes: [0; 64],
            threshold_ns: 0,
            least_ns: 0,
            span: SpanLayout::default(),
            routers: RouterLayouts::NONE,
            libraries: [[0; 2]; LIBRARIES],
            handler_starts: [0; 2],
            request: RequestFields::NONE,
            server_request: RequestFields::NONE,
            pattern: none,
            http1_status: none,
            http2_status: none,
            x_http2_status: none,
            grpc_method: none,
            grpc_code: none,
            headers: HeaderMap::default(),
            http2_released: 0,
            reserved: 0,
        }
    }
}

/// Value of the map `ACCOUNTS`, keyed as `GOROUTINES` (264 bytes): made when a goroutine's first request begins, removed
/// when it has none any more; or made with a goroutine that is started for a request, and removed with that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Account {
    /// Since when it is in its state.
    pub since_ns: u64,
    /// Processor time that its thread had used then.
    pub cpu_ns: u64,
    /// For how long its thread had stood still then, as the CPU quota was used up.
    pub throttled_ns: u64,
    /// For how long the world had been stopped then.
    pub stopped_ns: u64,
    /// One of [`state`].
    pub state: u32,
    /// Class of its wait reason.
    pub class: u32,
    /// Requests that it serves, but for `spans`.
    pub open: u32,
    /// Waits of it that could not be sent.
    pub waits_lost: u32,
    /// The stream of gRPC's that it serves; 0 for none.
    pub stream: u64,
    /// Spans that are requests of it, by their addresses; 0 where there is none. Another goroutine may end one of them, and
    /// writes 0 there.
    pub spans: [u64; SPANS],
    /// Sums, by [`time`].
    pub times: Times,
    /// The request that the goroutine was started for, by another one; its `process` is 0 for none.
    pub of: RequestKey,
    /// When that began: its key may be another one's by now.
    pub of_start_ns: u64,
}

/// Key of the map `REQUESTS` (16 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RequestKey {
    /// A goid, or an address: see [`family`].
    pub id: u64,
    /// [`crate::ProcessConfig::process`]
    pub process: u32,
    /// One of [`family`].
    pub family: u32,
}

/// Goroutines that were started for a request: by its own, or by another one of them (184 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Children {
    /// How many.
    pub started: u64,
    /// Those that there was no room to follow.
    pub unseen: u64,
    /// How many have begun to end: where that is more than had ended before `times` was read, that is not complete.
    pub ending: u64,
    /// What those that have ended spent their time on.
    pub times: Times,
    /// How many have.
    pub ended: u64,
}

/// The path that a request asked for, as it was when it began (128 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Path {
    /// How long it is; 0 where it was not read.
    pub length: u64,
    /// As much of it as there is room for, padded with 0.
    pub text: [u8; PATH_BYTES],
}

impl Default for Path {
    fn default() -> Self {
        Self { length: 0, text: [0; PATH_BYTES] }
    }
}

/// Value of the map `REQUESTS`: a request that has begun and not ended (784 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OpenRequest {
    /// When it began; 0 where it is just being ended.
    pub start_ns: u64,
    /// The goroutine that it began on.
    pub goid: u64,
    /// Address of the `http.Request`, of the stream, or of the span; of a call, how many bytes of the stack lie above it.
    pub object: u64,
    /// Address of the request that a mux was last called with, which may be a copy; 0 for none.
    pub routed: u64,
    /// Address of the function that an `http.HandlerFunc` last called for it; 0 for none. Of a call, of the first of the
    /// function's instructions that is probed.
    pub handler: u64,
    /// One of [`protocol`].
    pub protocol: u8,
    /// The handler took over the connection.
    pub hijacked: u8,
    /// Its goroutine panicked.
    pub panicked: u8,
    /// It carries what is told as requests of its own, a call of gRPC's or a connection of HTTP/2: this one is not counted.
    pub carries: u8,
    /// [`Account::waits_lost`] at its beginning.
    pub waits_lost: u32,
    /// What it is counted by, complete at its end; before, the pattern that a router but that of `net/http` has told. There
    /// are at least [`ROUTE_BYTES`] behind it.
    pub named: RouteKey,
    /// The account at its beginning.
    pub base: Times,
    /// The program's own span of it.
    pub own: OwnSpan,
    /// Where the request can be collected before its end ([`RequestConfig::http2_released`]): the map of its headers, by
    /// which it is known whether it is still the same; else 0, and so is what follows.
    pub header: u64,
    /// Its method.
    pub method: [u8; 8],
    /// Address and length of the pattern that a mux had noted in it when an `http.HandlerFunc` was called.
    pub pattern: [u64; 2],
    /// Its `traceparent`.
    pub traceparent: [u8; TRACEPARENT_BYTES],
    /// Its context.
    pub context: u64,
    /// Address of the path that a router of echo's was last asked for; 0 for none. Old ones take it for the pattern where
    /// they have none.
    pub asked: u64,
    /// How deep on the stack the mux was that [`Self::routed`] is of: the deeper of two is called by the other one.
    pub routed_depth: u32,
    /// The same of the router that has told [`Self::named`].
    pub named_depth: u32,
    /// Goroutines that were started for it.
    pub children: Children,
    /// What it asked for.
    pub path: Path,
}

impl Default for OpenRequest {
    fn default() -> Self {
        Self {
            start_ns: 0,
            goid: 0,
            object: 0,
            routed: 0,
            handler: 0,
            protocol: 0,
            hijacked: 0,
            panicked: 0,
            carries: 0,
            waits_lost: 0,
            named: RouteKey::default(),
            base: Times::default(),
            own: OwnSpan::default(),
            header: 0,
            method: [0; 8],
            pattern: [0; 2],
            traceparent: [0; TRACEPARENT_BYTES],
            context: 0,
            asked: 0,
            routed_depth: 0,
            named_depth: 0,
            children: Children::default(),
            path: Path::default(),
        }
    }
}

impl OpenRequest {
    /// Whether a pattern of this length, of a router this deep, says more than the one that was told: that of the innermost
    /// router does, but `/` less than any other.
    #[inline(always)]
    #[must_use]
    pub const fn yields_to(&self, length: u64, depth: u32) -> bool {
        match (self.named.length, length) {
            (_, 0) => false,
            (0, _) => true,
            (told, 1) => told == 1 && depth >= self.named_depth,
            (1, _) => true,
            _ => depth >= self.named_depth,
        }
    }
}

/// What requests are counted by (128 bytes): key of the map `ROUTES`, and, with status 0, of `THRESHOLDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RouteKey {
    /// [`crate::ProcessConfig::process`]
    pub process: u32,
    /// HTTP's status, gRPC's code, the code of a span's status, or one of [`status`].
    pub status: u16,
    /// One of [`protocol`].
    pub protocol: u8,
    /// Length of the route's text; 255 where there was more than is kept.
    pub length: u8,
    /// Where there is no text: [`OpenRequest::handler`].
    pub handler: u64,
    /// HTTP's method, padded with 0; of a longer one its beginning.
    pub method: [u8; 8],
    /// The pattern of the route, gRPC's method, or a span's name, padded with 0.
    pub route: [u8; ROUTE_BYTES],
}

impl Default for RouteKey {
    fn default() -> Self {
        Self {
            process: 0,
            status: 0,
            protocol: 0,
            length: 0,
            handler: 0,
            method: [0; 8],
            route: [0; ROUTE_BYTES],
        }
    }
}

/// Value of the map `ROUTES`: all requests of a route with one status (1,328 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RouteTimes {
    /// How long they took. The count is that of the buckets.
    pub durations: Histogram,
    /// What they spent their time on.
    pub times: Times,
}

/// A request has ended that took at least as long as its route's threshold (680 bytes; 552 in recordings of earlier versions,
/// without the last field, or 368, without the last two).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RequestRecord {
    /// `kind` is [`crate::kind::REQUEST`]; `time_ns` is the end, `arg` has flags of [`record`], `count` is one of
    /// [`ended`].
    pub header: Header,
    /// The goroutine that it began on.
    pub goid: u64,
    /// When it began.
    pub start_ns: u64,
    /// What it is counted by.
    pub key: RouteKey,
    /// What its goroutine spent the time on.
    pub times: Times,
    /// The program's own span, or the caller's `traceparent`; 0 for none.
    pub caller: [u8; TRACEPARENT_BYTES],
    /// Goroutines that were started for it.
    pub children: Children,
    /// What it asked for.
    pub path: Path,
}

const _: () = {
    assert!(size_of::<SpanLayout>() == 24);
    assert!(size_of::<OwnSpan>() == 32);
    assert!(size_of::<RouterLayouts>() == 32);
    assert!(size_of::<RequestConfig>() == 320);
    assert!(size_of::<Account>() == 264);
    assert!(size_of::<Children>() == 184);
    assert!(size_of::<Path>() == 128);
    assert!(size_of::<RequestKey>() == 16);
    assert!(size_of::<OpenRequest>() == 784);
    assert!(size_of::<RouteKey>() == 128);
    assert!(size_of::<RouteTimes>() == 1328);
    assert!(size_of::<RequestRecord>() == 680);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), no padding (sizes asserted above), every bit pattern valid.
    unsafe impl aya::Pod for super::RequestConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Account {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RequestKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OpenRequest {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RouteKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RouteTimes {}
}
