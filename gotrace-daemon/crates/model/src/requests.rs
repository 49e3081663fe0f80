//! Requests: what each spent its time on, what it waited for, and because of whom.

use core::net::SocketAddr;
use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::{
    Histogram,
    request::{BLOCKED_CLASSES, TIMES, time},
};
use serde::{Deserialize, Serialize};

use crate::{Location, Name, SpanContext};

/// Names of what time is spent on, but for being blocked, in the order of [`TimeSpent`].
pub const TIME_NAMES: [&str; time::BLOCKED] =
    ["on_cpu", "descheduled", "throttled", "run_queue", "world_stopped", "syscall", "gc_assist"];

/// Wait reasons that have a sum of their own, as the runtime names them; all others share the last one.
pub const BLOCKED_NAMES: [&str; BLOCKED_CLASSES] = [
    "chan receive",
    "chan send",
    "select",
    "sync.Mutex.Lock",
    "sync.RWMutex.Lock",
    "sync.RWMutex.RLock",
    "sync.WaitGroup.Wait",
    "sync.Cond.Wait",
    "semacquire",
    "IO wait",
    "sleep",
    "other",
];

/// What time was spent on, in nanoseconds; the parts add up to the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeSpent(pub [u64; TIMES]);

impl TimeSpent {
    /// The parts that are not blocked, by name.
    pub fn states(&self) -> impl Iterator<Item = (&'static str, u64)> {
        TIME_NAMES.into_iter().zip(self.0)
    }

    /// Time blocked, by wait reason.
    pub fn blocked(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BLOCKED_NAMES.into_iter().zip(self.0.into_iter().skip(time::BLOCKED))
    }

    /// All parts, by name.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.states().chain(self.blocked())
    }

    /// The whole.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, ns| sum.saturating_add(*ns))
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, ns)| *sum = sum.saturating_add(ns));
    }
}

/// What kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// A span of the program's own OpenTelemetry SDK.
    Span,
    /// A call of a function that the user has named.
    Function,
}

impl Protocol {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Grpc => "grpc",
            Self::Span => "otel",
            Self::Function => "function",
        }
    }

    /// Whether a status stands for a fault of the server's: HTTP's 5xx, and gRPC's `UNKNOWN`, `DEADLINE_EXCEEDED`,
    /// `UNIMPLEMENTED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`, as OpenTelemetry's conventions have it; a span's `Error`.
    #[must_use]
    pub const fn is_error(self, status: u16) -> bool {
        match self {
            Self::Grpc => matches!(status, 2 | 4 | 12..=15),
            Self::Http1 | Self::Http2 => matches!(status, 500..=599),
            Self::Span => status == 1,
            Self::Function => false,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// Its handler was done.
    Normal,
    /// Its goroutine panicked and ended.
    Panic,
    /// Its handler took over the connection, and its goroutine has ended.
    Hijacked,
    /// Its goroutine has ended for another reason.
    GoroutineExit,
    /// Another goroutine ended it: what is told of its time is of the one that it began on.
    OtherGoroutine,
}

impl Ended {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Panic => "panic",
            Self::Hijacked => "hijacked",
            Self::GoroutineExit => "goroutine_exit",
            Self::OtherGoroutine => "other_goroutine",
        }
    }
}

/// What requests are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteName {
    /// What kind of request.
    pub protocol: Protocol,
    /// HTTP's method; `None` for all others.
    pub method: Option<Arc<str>>,
    /// The pattern of the route without method and host, `/package.Service/Method`, or the span's name; `None` where
    /// no router told it.
    pub route: Option<Arc<str>>,
    /// The function that served it, where that is all that is known.
    #[serde(with = "crate::wire")]
    pub handler: Option<Arc<Location>>,
}

/// HTTP's methods as the semantic conventions know them; others are `_OTHER`.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// Codes of gRPC, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a code of gRPC.
#[must_use]
pub fn code_of_grpc(status: u16) -> Option<&'static str> {
    CODES.get(usize::from(status)).copied()
}

impl RouteName {
    /// HTTP's method as the semantic conventions know it.
    #[must_use]
    pub fn known_method(&self) -> Option<&str> {
        let method = self.method.as_deref()?;
        Some(if METHODS.contains(&method) { method } else { "_OTHER" })
    }

    /// As people read it: `GET /users/{id}`, `GET (main.serve)`.
    #[must_use]
    pub fn text(&self) -> String {
        let what = match (&self.route, &self.handler) {
            (Some(route), _) => route.to_string(),
            // Without the path of its package, which is long and often the same.
            (None, Some(handler)) => {
                let function = &*handler.function;
                let path_end = function.find('[').unwrap_or(function.len());
                let short = function[..path_end].rfind('/').map_or(function, |slash| &function[slash + 1..]);
                if self.protocol == Protocol::Function { short.to_owned() } else { format!("({short})") }
            }
            (None, None) => "(no route)".to_owned(),
        };
        match &self.method {
            Some(method) => format!("{method} {what}"),
            None => what,
        }
    }

    /// The text of each, with the protocol of those that another one has the same text as.
    #[must_use]
    pub fn texts(names: &[&Self]) -> Vec<String> {
        let texts: Vec<String> = names.iter().map(|name| name.text()).collect();
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for text in &texts {
            *times.entry(text).or_default() += 1;
        }
        let told = |(name, text): (&&Self, &String)| match times.get(&**text) {
            Some(2..) => format!("{text} {}", name.protocol.name()),
            _ => text.clone(),
        };
        names.iter().zip(&texts).map(told).collect()
    }
}

/// Requests of one route.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Which ones.
    pub name: RouteName,
    /// How many ended within the interval, by status: HTTP's, or gRPC's code; `None` where there was none.
    pub by_status: BTreeMap<Option<u16>, u64>,
    /// How many of them failed: HTTP 5xx, a panic, or a code of gRPC that stands for the server's fault.
    pub errors: u64,
    /// How many of them were slow.
    pub slow: u64,
    /// How long they took, within the interval. The longest may be told too long by up to a fifth where a longer one was
    /// before.
    #[serde(with = "crate::wire")]
    pub durations: Histogram,
    /// What they spent their time on, within the interval.
    pub times: TimeSpent,
    /// The same of those that were slow.
    pub slow_times: TimeSpent,
    /// The same figures since attaching.
    pub total: RouteTotal,
    /// How many are open.
    pub open: u64,
    /// For how long the oldest of them has been.
    pub oldest_open_ns: Option<u64>,
}

impl Route {
    /// One that has none yet.
    #[must_use]
    pub fn new(name: RouteName) -> Self {
        Self {
            name,
            by_status: BTreeMap::new(),
            errors: 0,
            slow: 0,
            durations: Histogram::default(),
            times: TimeSpent::default(),
            slow_times: TimeSpent::default(),
            total: RouteTotal::default(),
            open: 0,
            oldest_open_ns: None,
        }
    }

    /// Why its slow requests are slow, where one thing beside their own work stands out.
    #[must_use]
    pub fn why_slow(&self) -> Option<WhySlow> {
        /// Fewer slow requests say little.
        const LEAST_SLOW: u64 = 3;
        /// Of the time of the slow ones.
        const LEAST_SHARE: f64 = 0.2;
        let total = self.slow_times.total();
        let own_work = TIME_NAMES[time::ON_CPU];
        let (part, ns) =
            self.slow_times.parts().filter(|(part, _)| *part != own_work).max_by_key(|(_, ns)| *ns)?;
        let share = ns as f64 / total.max(1) as f64;
        (self.slow >= LEAST_SLOW && share >= LEAST_SHARE).then_some(WhySlow { part, share })
    }
}

/// What slow requests of a route spent the most time on, but for their own work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WhySlow {
    /// One of [`TIME_NAMES`] or [`BLOCKED_NAMES`].
    pub part: &'static str,
    /// Of their time.
    pub share: f64,
}

/// Requests of one route since attaching.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RouteTotal {
    /// How long those that ended took, by status.
    #[serde(with = "crate::wire")]
    pub by_status: BTreeMap<Option<u16>, Histogram>,
    /// How many of them failed.
    pub errors: u64,
    /// How many of them were slow.
    pub slow: u64,
    /// How long they took.
    #[serde(with = "crate::wire")]
    pub durations: Histogram,
    /// What they spent their time on.
    pub times: TimeSpent,
    /// The same of those that were slow.
    pub slow_times: TimeSpent,
}

/// What a goroutine did that ended another one's wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The goroutine.
    pub goid: u64,
    /// Its entry function; `None` where it is not known.
    #[serde(with = "crate::wire")]
    pub function: Option<Arc<Location>>,
    /// What it waited for meanwhile, or `running` where it did not.
    pub state: Arc<str>,
    /// For how long of it.
    pub duration_ns: u64,
    /// Where, in the program.
    #[serde(with = "crate::wire")]
    pub frame: Option<Arc<Location>>,
}

/// A long wait of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestWait {
    /// When it began, after the request did.
    pub offset_ns: u64,
    /// Its own address as a span of the request's trace.
    pub span_id: [u8; 8],
    /// How long it took, until the goroutine ran again.
    pub duration_ns: u64,
    /// Go's own wait reason, or `syscall`.
    pub reason: Arc<str>,
    /// Where, innermost first.
    #[serde(with = "crate::wire")]
    pub stack: Vec<Arc<Location>>,
    /// The first of the stack that is not the runtime's or a waiting primitive of the standard library.
    #[serde(with = "crate::wire")]
    pub site: Option<Arc<Location>>,
    /// The first of the stack that is the program's own code, else the first outside the standard library.
    #[serde(with = "crate::wire")]
    pub own_code: Option<Arc<Location>>,
    /// Who is at the other end of the connection that it waited for.
    pub peer: Option<SocketAddr>,
    /// Who ended it: `goroutine`, `netpoll`, `timer`, `gc` or `unknown`.
    #[serde(with = "crate::wire")]
    pub ended_by: Name,
    /// The goroutine that did.
    pub ended_by_goid: Option<u64>,
    /// What that one did meanwhile.
    pub causes: Vec<Cause>,
}

/// The program's own span of a request, made by its OpenTelemetry SDK: the parent of what is told of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnSpan {
    /// Its parent; `None` where it begins a trace.
    pub parent_span_id: Option<[u8; 8]>,
}

impl OwnSpan {
    /// A span and its address, out of ids as they lie in memory: of its trace, itself, and its parent.
    #[must_use]
    pub fn of(ids: &[u8]) -> Option<(SpanContext, Self)> {
        let (trace_id, ids) = ids.split_first_chunk::<16>()?;
        let (span_id, ids) = ids.split_first_chunk::<8>()?;
        let (parent, _) = ids.split_first_chunk::<8>()?;
        let parent_span_id = (*parent != [0; 8]).then_some(*parent);
        Some((SpanContext { trace_id: *trace_id, span_id: *span_id }, Self { parent_span_id }))
    }
}

/// Goroutines that were started for a request, by its own or by one another, but for those of the server itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Children {
    /// How many had ended when the request did.
    pub goroutines: u64,
    /// How many had not: what they spent is not known of the request.
    pub left_running: u64,
    /// What those that had ended spent their time on, from their beginnings to their ends.
    pub time: TimeSpent,
}

/// What the goroutine of an open request does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// `running`, `runnable`, `syscall`, `GC assist`, or what it waits for.
    pub state: Arc<str>,
    /// Where, innermost first; empty where it is not known, as while it runs.
    #[serde(with = "crate::wire")]
    pub stack: Vec<Arc<Location>>,
    /// The first of the stack that is the program's own code, else the first outside the standard library.
    #[serde(with = "crate::wire")]
    pub own_code: Option<Arc<Location>>,
}

/// Requests that were open before their tracing began, and wait: those whose stacks are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBefore {
    /// What serves them: `net/http`, `golang.org/x/net/http2` or `google.golang.org/grpc`.
    pub server: &'static str,
    /// What their goroutines wait for.
    pub reason: Arc<str>,
    /// Where, innermost first.
    pub stack: Vec<Arc<Location>>,
    /// The first of the stack that is the program's own code, else the first outside the standard library.
    pub own_code: Option<Arc<Location>>,
    /// Their goroutines.
    pub goids: Vec<u64>,
}

/// A slow request, or one that is open for long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its number among those that were told of the process.
    pub id: u64,
    /// Its own address as a span: in the trace of the program's own span or of the caller where there is one, else in its
    /// goroutine's.
    pub context: SpanContext,
    /// The program's own span of it, else the caller's; `None` where there is neither.
    pub parent_span_id: Option<[u8; 8]>,
    /// The program's own span of it.
    pub own_span: Option<OwnSpan>,
    /// The span of its goroutine.
    pub goroutine: SpanContext,
    /// What it is counted by.
    pub name: RouteName,
    /// The path that it asked for, without what looks like a secret; `None` where that is not wanted, or not known.
    pub path: Option<Arc<str>>,
    /// HTTP's status, gRPC's code, or that of a span's status; `None` where there was none.
    pub status: Option<u16>,
    /// When it began, Unix epoch.
    pub start_unix_nano: u64,
    /// How long it took, or has taken.
    pub duration_ns: u64,
    /// The goroutine that it began on.
    pub goid: u64,
    /// How it ended; `None` while it is open.
    pub ended: Option<Ended>,
    /// What its goroutine spent the time on.
    pub time: TimeSpent,
    /// Goroutines that were started for it; `None` where that is not known of all, and while it is open.
    pub children: Option<Children>,
    /// Its waits of at least the threshold, the longest of them, in their order.
    pub waits: Vec<RequestWait>,
    /// Whether none is missing.
    pub waits_complete: bool,
    /// What its goroutine does now, where it is open.
    pub now: Option<Now>,
}

/// Requests of a process, as of an interval.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// By route, the one that took the most time first.
    pub routes: Vec<Route>,
    /// Those that were slow, in the order of their ends, and open for long, that were not told before.
    pub slow: Vec<Arc<Request>>,
    /// Slow ones beyond what is told of each route and second.
    pub left_out: u64,
    /// For which time requests were traced: the figures are those of that.
    pub covered: Covered,
    /// The same since attaching.
    pub covered_total: Covered,
}

/// For which part of a time requests were traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// Nanoseconds for which they were.
    pub traced_ns: u64,
    /// All of it.
    pub all_ns: u64,
}

impl Covered {
    /// The share; 1 of no time.
    #[must_use]
    pub fn share(self) -> f64 {
        if self.all_ns == 0 { 1.0 } else { self.traced_ns as f64 / self.all_ns as f64 }
    }

    /// Both times together.
    pub fn add(&mut self, other: Self) {
        self.traced_ns += other.traced_ns;
        self.all_ns += other.all_ns;
    }

    /// What came since it was as `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            traced_ns: self.traced_ns.saturating_sub(before.traced_ns),
            all_ns: self.all_ns.saturating_sub(before.all_ns),
        }
    }
}

/// The caller's span, out of its `traceparent` (W3C Trace Context).
#[must_use]
pub fn caller(traceparent: &[u8]) -> Option<SpanContext> {
    let text = std::str::from_utf8(traceparent.get(..55)?).ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if parts.next().is_some() || version == "ff" || ![version, trace, span, flags].into_iter().all(is_hex) {
        return None;
    }
    let trace_id = bytes(trace)?;
    let span_id = bytes(span)?;
    (trace_id != [0; 16] && span_id != [0; 8]).then_some(SpanContext { trace_id, span_id })
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if hex.len() != 2 * N {
        return None;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_named_without_the_path_of_its_package() {
        for (function, expected) in [
            ("github.com/prometheus/prometheus/web.New.func1", "(web.New.func1)"),
            ("main.serve", "(main.serve)"),
            ("a/b.F[c/d.E]", "(b.F[c/d.E])"),
            ("ends/", "()"),
        ] {
            let handler = Some(Arc::new(Location { function: function.into(), file: "".into(), line: 0 }));
            let name = RouteName { protocol: Protocol::Http1, method: None, route: None, handler };
            assert_eq!(name.text(), expected);
        }
    }

    #[test]
    fn what_reads_alike_is_told_by_its_protocol() {
        let name = |protocol, route: &str| RouteName {
            protocol,
            method: Some("GET".into()),
            route: Some(route.into()),
            handler: None,
        };
        let names = [name(Protocol::Http1, "/a"), name(Protocol::Http2, "/a"), name(Protocol::Http2, "/b")];
        let texts = RouteName::texts(&names.each_ref());
        assert_eq!(texts, ["GET /a http/1.1", "GET /a http/2", "GET /b"]);
    }

    #[test]
    fn parts_have_names_and_add_up() {
        let mut spent = TimeSpent::default();
        (1..).zip(&mut spent.0).for_each(|(n, part)| *part = n);
        assert_eq!(spent.parts().count(), TIMES);
        assert_eq!(spent.parts().map(|(_, ns)| ns).sum::<u64>(), spent.total());
        assert_eq!(spent.blocked().last(), Some(("other", 19)));
        spent.add(&TimeSpent([u64::MAX; TIMES]));
        assert_eq!(spent.total(), u64::MAX);
    }
}
