//! What every sink receives: finished spans and interval reports, with names resolved and times turned
//! into Unix epoch. Made by the pipeline from the table's outputs; sinks only write them down.

use core::net::SocketAddr;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use gotrace_common::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    Collector, Leak, Levels, Name, Places, Suspected,
    requests::{Request, Requests},
};

/// A place in the source of the traced program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Location {
    /// Function as Go names it (`net/http.(*conn).serve`); `?` plus the address when it has no name.
    pub function: Arc<str>,
    /// File as the compiler recorded it; empty when unknown.
    pub file: Arc<str>,
    /// Line, from 1; 0 when unknown.
    pub line: u32,
}

impl Location {
    /// Stands for the place of goroutines that are older than the attachment, as people read it.
    pub const BORN_BEFORE: &str = "(created before attaching)";

    /// Whether this is a place, and not [`Self::BORN_BEFORE`].
    #[must_use]
    pub fn is_known(&self) -> bool {
        &*self.function != Self::BORN_BEFORE
    }
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Text.
    Text(Arc<str>),
    /// A whole number.
    Int(i64),
    /// A number.
    Double(f64),
    /// A list of texts.
    List(Vec<Arc<str>>),
}

/// A traced process as OpenTelemetry's resource.
///
/// What is known of a process grows while it is traced: each time there is another resource, of the same
/// process ([`Self::process`]), that spans and metrics carry from then on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resource {
    /// Attributes by name (`service.name`, `process.pid`, …).
    pub attributes: BTreeMap<Arc<str>, Value>,
    /// See [`Self::process`].
    pub(crate) process: u64,
}

impl Default for Resource {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.attributes == other.attributes
    }
}

impl Resource {
    /// Of a process that had none before.
    #[must_use]
    pub fn new(attributes: BTreeMap<Arc<str>, Value>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { attributes, process: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Which process it is of, among those of this gotrace; never used again.
    #[must_use]
    pub fn process(&self) -> u64 {
        self.process
    }

    /// The same process with these attributes from now on.
    #[must_use]
    pub fn replaced(&self, attributes: BTreeMap<Arc<str>, Value>) -> Self {
        Self { attributes, process: self.process }
    }

    /// An attribute that is text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The same process with what others know of it (container, pod, cloud), which wins over what the
    /// process says of its surroundings; only its service it names itself, where it is not named by its
    /// file alone.
    #[must_use]
    pub fn with_metadata(&self, metadata: &BTreeMap<Arc<str>, Value>) -> Self {
        const NAME: &str = "service.name";
        let named_by_file = self.text(NAME) == self.text("process.executable.name");
        let mut both = self.clone();
        for (name, value) in metadata {
            let own = name.starts_with("service.") && self.attributes.contains_key(name);
            if !own || (&**name == NAME && named_by_file) {
                both.attributes.insert(Arc::clone(name), value.clone());
            }
        }
        both
    }
}

/// A span's address. Computed, never drawn: see [`crate::ids`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpanContext {
    /// Trace id, never all zero.
    pub trace_id: [u8; 16],
    /// Span id, never all zero.
    pub span_id: [u8; 8],
}

/// Something that happened and is told once.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// The process.
    pub resource: Arc<Resource>,
    /// What kind of event, `gotrace.leak.confirmed`.
    pub name: &'static str,
    /// When, Unix epoch.
    pub time_unix_nano: u64,
    /// How grave.
    pub severity: Severity,
    /// A sentence for people.
    pub body: String,
    /// What it is about.
    pub attributes: Vec<(&'static str, Value)>,
}

/// How grave something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warn,
    /// gotrace was wrong, or cannot go on.
    Error,
}

/// Something that ended and is exported as a span.
#[derive(Clone, Debug)]
pub enum Span {
    /// A goroutine's life.
    Goroutine(GoroutineSpan),
    /// A wait of at least the threshold.
    Wait(WaitSpan),
    /// A slow request, of this process.
    Request(Arc<Resource>, Arc<Request>),
    /// One of its waits, by number.
    RequestWait(Arc<Resource>, Arc<Request>, usize),
}

impl Span {
    /// The process.
    #[must_use]
    pub fn resource(&self) -> &Arc<Resource> {
        match self {
            Self::Goroutine(span) => &span.resource,
            Self::Wait(span) => &span.resource,
            Self::Request(resource, _) | Self::RequestWait(resource, ..) => resource,
        }
    }

    /// The same, to be replaced.
    pub fn resource_mut(&mut self) -> &mut Arc<Resource> {
        match self {
            Self::Goroutine(span) => &mut span.resource,
            Self::Wait(span) => &mut span.resource,
            Self::Request(resource, _) | Self::RequestWait(resource, ..) => resource,
        }
    }
}

/// A goroutine's life, from creation to exit.
#[derive(Clone, Debug)]
pub struct GoroutineSpan {
    /// The process.
    pub resource: Arc<Resource>,
    /// The span's own address.
    pub context: SpanContext,
    /// Its parent in the same trace; `None` at a trace's root.
    pub parent: Option<[u8; 8]>,
    /// The creating goroutine's span where this one begins a new trace.
    pub creator_link: Option<SpanContext>,
    /// Creation, Unix epoch.
    pub start_unix_nano: u64,
    /// Exit, Unix epoch.
    pub end_unix_nano: u64,
    /// Its entry function.
    pub entry: Arc<Location>,
    /// The `go` statement; `None` when unknown.
    pub created_by: Option<Arc<Location>>,
    /// Its id.
    pub goid: u64,
    /// Its creator's id; 0 when the runtime made it.
    pub parent_goid: u64,
    /// Sum of its waits; `None` below level `waits`.
    pub wait_total_ns: Option<u64>,
    /// Lifetime less waits; `None` below level `waits`.
    pub run_total_ns: Option<u64>,
    /// Number of its waits; `None` below level `waits`.
    pub wait_count: Option<u64>,
    /// Processor time that it used; `None` below level `waits`, and where the kernel does not tell.
    pub cpu_ns: Option<u64>,
    /// For how long its thread stood still, as the CPU quota was used up; `None` where it did not, or that is not known.
    pub throttled_ns: Option<u64>,
    /// What it did from its creation to its exit, in nanoseconds by state ([`LIFE_NAMES`]), which add up to its lifetime;
    /// `None` where its whole life was not seen at level `full`.
    pub life: Option<[u64; LIFE_NAMES.len()]>,
    /// Sums of its waits of at least the threshold by reason.
    pub waits_by_reason: Vec<(Arc<str>, u64)>,
}

/// Names of the states of a goroutine's life: on a thread outside of system calls; runnable and not on a thread; in system
/// calls; blocked.
pub const LIFE_NAMES: [&str; 4] =
    ["gotrace.time.running", "gotrace.time.run_queue", "gotrace.time.syscall", "gotrace.time.blocked"];

/// Who ended a wait.
#[derive(Clone, Debug, PartialEq)]
pub enum Waker {
    /// Not seen.
    Unknown,
    /// A goroutine, by id and span.
    Goroutine(u64, SpanContext),
    /// The network poller.
    Netpoll,
    /// A timer.
    Timer,
    /// The garbage collector.
    Gc,
}

/// A wait, from park to the next run.
#[derive(Clone, Debug)]
pub struct WaitSpan {
    /// The process.
    pub resource: Arc<Resource>,
    /// The span's own address.
    pub context: SpanContext,
    /// The goroutine's span.
    pub parent: [u8; 8],
    /// The goroutine.
    pub goid: u64,
    /// Go's own wait reason, or `syscall`.
    pub reason: Arc<str>,
    /// Park, Unix epoch.
    pub start_unix_nano: u64,
    /// Next run, Unix epoch.
    pub end_unix_nano: u64,
    /// From being runnable to running; `None` when the wake was not seen.
    pub scheduling_delay_ns: Option<u64>,
    /// First frame outside the runtime and the standard library's waiting primitives.
    pub site: Option<Arc<Location>>,
    /// Where it is in the program's own code ([`crate::Place::at`]), where that is another place than `site`.
    pub own_code: Option<Arc<Location>>,
    /// Who woke it.
    pub waker: Waker,
    /// Who is at the other end of the connection that it waited for.
    pub peer: Option<SocketAddr>,
}

/// State of a process over an interval; what the table on the terminal, the JSON lines and the
/// metrics are made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// The process.
    pub resource: Arc<Resource>,
    /// Process id in the agent's PID namespace.
    pub pid: u32,
    /// Begin, Unix epoch.
    pub start_unix_nano: u64,
    /// End, Unix epoch.
    pub end_unix_nano: u64,
    /// Goroutines known to live at the end.
    pub alive: u64,
    /// Whether goroutines may live that are not known (born before attaching, and no snapshot saw all).
    pub alive_is_lower_bound: bool,
    /// Born within the interval.
    pub born: u64,
    /// Died within the interval.
    pub died: u64,
    /// Born and died since attaching.
    pub born_total: u64,
    /// Died since attaching.
    pub died_total: u64,
    /// Lost since attaching, by kind. Kinds with 0 are left out.
    #[serde(with = "crate::wire")]
    pub lost: BTreeMap<Name, u64>,
    /// What snapshots found missing in the table and mended since attaching, by kind (`birth`, `death`).
    /// Kinds with 0 are left out.
    #[serde(with = "crate::wire")]
    pub repaired: BTreeMap<Name, u64>,
    /// Spans that sampling left out since attaching, by why (`ratio`, `rate_limit`). Kinds with 0 are left out.
    #[serde(with = "crate::wire")]
    pub sampled_out: BTreeMap<Name, u64>,
    /// Events since attaching, by kind.
    #[serde(with = "crate::wire")]
    pub events: BTreeMap<Name, u64>,
    /// Goroutines waiting at the end, by reason; those that have waited since before attaching as of the
    /// last snapshot. Empty at level `lifecycle`.
    pub waiting: BTreeMap<Arc<str>, u64>,
    /// All waits since attaching, by reason, short ones included.
    #[serde(with = "crate::wire")]
    pub waits: BTreeMap<Arc<str>, Histogram>,
    /// Where waits of at least the threshold were, since attaching.
    pub waits_at: Arc<Places>,
    /// Scheduling delays since attaching; empty below level `full`.
    #[serde(with = "crate::wire")]
    pub schedule: Histogram,
    /// System calls since attaching; empty below level `full`.
    #[serde(with = "crate::wire")]
    pub syscalls: Histogram,
    /// By creation site, most alive first.
    pub sites: Vec<Site>,
    /// How long snapshots took since attaching.
    #[serde(with = "crate::wire")]
    pub snapshots: Histogram,
    /// Engine that gave the figures: `events`, `snapshot`, `replay`.
    #[serde(with = "crate::wire")]
    pub engine: Name,
    /// `lifecycle`, `waits` or `full`; `sampled` without events.
    #[serde(with = "crate::wire")]
    pub level: Name,
    /// Why it is a lower one than is wanted: `budget`, `memory`, or `room` (as many have probes as may);
    /// `None` where it is not.
    #[serde(with = "crate::wire")]
    pub level_reason: Option<Name>,
    /// What of its tracing changed with the time, and what that leaves incomplete.
    pub levels: Levels,
    /// Goroutines that can never run again, as proven from the heap, most first.
    pub leaks: Vec<Leak>,
    /// Proofs that turned out wrong since attaching: gotrace's errors.
    pub leaks_refuted: u64,
    /// Goroutines that may never finish, the worst first; without those of `leaks`.
    pub suspects: Vec<Suspected>,
    /// What the collector took, and what else stopped the world. Empty without events.
    pub collector: Collector,
    /// Its requests, by route, and the slow ones; `None` where they are not traced.
    pub requests: Option<Arc<Requests>>,
    /// CPU time that the process used within the interval, in goroutines and outside of them; `None` where it is not
    /// known.
    pub process_cpu_ns: Option<u64>,
    /// The same since attaching.
    pub process_cpu_total_ns: Option<u64>,
    /// Estimated cost of the probes as a share of the target's CPU time over the interval: hits times
    /// what calibration found for one. `None` when not known.
    pub probe_cost_share: Option<f64>,
}

impl Interval {
    /// Goroutines that are proven to be leaked, and others that may be.
    #[must_use]
    pub fn leaked(&self) -> (u64, u64) {
        (self.leaks.iter().map(|l| l.count).sum(), self.suspects.iter().map(|s| s.count).sum())
    }
}

/// A creation site: where goroutines of one kind come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Their entry function.
    #[serde(with = "crate::wire")]
    pub entry: Arc<Location>,
    /// The `go` statement; `None` when unknown.
    #[serde(with = "crate::wire")]
    pub created_by: Option<Arc<Location>>,
    /// Alive at the end of the interval.
    pub alive: u64,
    /// Born within the interval.
    pub born: u64,
    /// Died within the interval.
    pub died: u64,
    /// Born since attaching.
    pub born_total: u64,
    /// Died since attaching.
    pub died_total: u64,
    /// Processor time that its goroutines used within the interval, as far as they have told; `None` where it is not known.
    pub cpu_ns: Option<u64>,
    /// The same since attaching; 0 where it is not known.
    pub cpu_total_ns: u64,
    /// For how long threads of its goroutines stood still within the interval, as the CPU quota was used up.
    pub throttled_ns: u64,
    /// The same since attaching.
    pub throttled_total_ns: u64,
    /// Waiting at the end of the interval, by reason.
    pub waiting: BTreeMap<Arc<str>, u64>,
    /// Waits of at least the threshold since attaching.
    #[serde(with = "crate::wire")]
    pub waits: Histogram,
    /// Lifetimes of those that died since attaching.
    #[serde(with = "crate::wire")]
    pub lifetimes: Histogram,
    /// Age of the oldest one alive; `None` when none is.
    pub oldest_ns: Option<u64>,
    /// Whether the oldest may be older: births of some alive were not seen.
    pub oldest_is_lower_bound: bool,
}

impl Site {
    /// Whether its goroutines are the runtime's own: those that run a function of package runtime, but for the main
    /// goroutine and those that the runtime starts for the program (`runtime/traceback.go`, isSystemGoroutine).
    #[must_use]
    pub fn is_system(&self) -> bool {
        let function = &*self.entry.function;
        function.starts_with("runtime.")
            && !matches!(function, "runtime.main" | "runtime.corostart" | "runtime.handleAsyncEvent")
    }
}

impl Site {
    /// Processor time that its goroutines used: within the interval, or since attaching; `None` where it is not known.
    #[must_use]
    pub fn known_cpu_ns(&self, total: bool) -> Option<u64> {
        if total { Some(self.cpu_total_ns).filter(|ns| *ns > 0) } else { self.cpu_ns }
    }
}

impl Interval {
    /// CPU time that goroutines used since attaching, the runtime's own among them; `None` where that is not known.
    #[must_use]
    pub fn goroutines_cpu_total_ns(&self) -> Option<u64> {
        let ns = self.sites.iter().fold(0, |sum: u64, s| sum.saturating_add(s.cpu_total_ns));
        (ns > 0).then_some(ns)
    }

    /// For how long threads of goroutines stood still since attaching, as the CPU quota was used up.
    #[must_use]
    pub fn throttled_total_ns(&self) -> u64 {
        self.sites.iter().fold(0, |sum: u64, s| sum.saturating_add(s.throttled_total_ns))
    }

    /// Goroutines alive that are the runtime's own.
    #[must_use]
    pub fn system(&self) -> u64 {
        self.sites.iter().filter(|s| s.is_system()).map(|s| s.alive).sum()
    }

    /// Without the sites of the runtime's own goroutines.
    #[must_use]
    pub fn without_system(&self) -> Self {
        let mut own = self.clone();
        own.sites.retain(|site| !site.is_system());
        own
    }
}

/// What a run came to, printed at its end.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The last state; its `start_unix_nano` is when the run began, and its `probe_cost_share` is that of
    /// the whole run.
    pub last: Interval,
    /// Nanoseconds of CPU time that one event cost the target, by calibration on this host; `None` when
    /// not known.
    pub cost_ns_per_event: Option<f64>,
    /// Spans handed to the exporter.
    pub spans: u64,
    /// Spans that did not reach the collector, by why.
    pub spans_dropped: BTreeMap<&'static str, u64>,
    /// Metric points that did not reach the collector, by why; cumulative ones are made good by the next report.
    pub points_dropped: BTreeMap<&'static str, u64>,
    /// Log records that did not reach the collector, by why.
    pub logs_dropped: BTreeMap<&'static str, u64>,
    /// Why the run ended: `interrupted`, `duration`, `the process ended`, `the command ended`,
    /// `the process executed another program`, …
    pub ended: String,
}
