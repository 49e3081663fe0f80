//! The metric catalogue: what each figure of a process is (name, unit, help, kind) and how it comes out of the
//! process's state. OTLP, the Prometheus page, the documents and the tests read it; a figure that is added here is
//! on all of them. [`node`] has those of a node as a whole.
//!
//! Input: an [`Interval`], whose totals count from attaching on and whose `sites` name every site ever seen, and
//! what the exporter dropped of the process's spans. Output: [`Sample`]s, bounded by [`admission`]. A goroutine's id
//! is never on a metric.

pub mod admission;
pub mod node;
mod requests;
mod sample;
mod waits;

use core::net::SocketAddr;
use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::Histogram;

use crate::{Collector, Interval, Leak, Location, Site, Suspected};
use admission::{Admitted, LEAKS, MAX_NAMES, Room, SiteKey};
pub use requests::RequestKey;
pub use sample::{Exemplar, Sample, Value};

/// What a metric's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A figure of now.
    Gauge,
    /// A figure of now, of which sums make sense.
    UpDownCounter,
    /// A total since attaching.
    Counter,
    /// Durations since attaching.
    Histogram,
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// As OpenTelemetry writes it.
    pub name: &'static str,
    /// UCUM; that of a histogram is seconds.
    pub unit: &'static str,
    /// A sentence.
    pub help: &'static str,
    /// What its values are.
    pub kind: Kind,
}

impl Metric {
    const fn new(name: &'static str, unit: &'static str, help: &'static str, kind: Kind) -> Self {
        Self { name, unit, help, kind }
    }

    /// Its name on the Prometheus page, by OpenTelemetry's usual rule.
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        let mut name = self.name.replace('.', "_");
        name += match (self.unit, self.kind) {
            ("s", _) => "_seconds",
            ("By", _) => "_bytes",
            ("1", Kind::Gauge) => "_ratio",
            (unit, _) if unit.ends_with("/s") => "_per_second",
            _ => "",
        };
        if self.kind == Kind::Counter {
            name += "_total";
        }
        name
    }
}

macro_rules! catalogue {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $unit:literal, $kind:ident, $help:literal;)*) => {
        $($(#[$doc])* #[doc = $help] pub static $id: Metric = Metric::new($name, $unit, $help, Kind::$kind);)*
        /// All of them, in the order in which a process's state is told.
        pub static CATALOGUE: &[&Metric] = &[$(&$id),*];
    };
}

catalogue! {
    GOROUTINES = "go.goroutine.count", "{goroutine}", UpDownCounter, "Count of live goroutines.";
    STATES = "gotrace.goroutine.count", "{goroutine}", Gauge,
        "Goroutines by state; the rest of go.goroutine.count is running or runnable.";
    CREATED = "gotrace.goroutine.created", "{goroutine}", Counter, "Goroutines created.";
    EXITED = "gotrace.goroutine.exited", "{goroutine}", Counter, "Goroutines that exited.";
    ALIVE = "gotrace.goroutine.alive", "{goroutine}", Gauge, "Goroutines alive.";
    LIFETIME = "gotrace.goroutine.lifetime", "s", Histogram,
        "Lifetime of exited goroutines, from creation to exit.";
    CPU_TIME = "gotrace.goroutine.cpu.time", "s", Counter, "CPU time that goroutines used.";
    THROTTLED = "gotrace.cpu.throttled.time", "s", Counter,
        "Time that threads of goroutines stood still as the CPU quota was used up.";
    WAITS = "gotrace.goroutine.wait.duration", "s", Histogram, "Duration of all waits, from park to the next run.";
    WAIT_TIME = "gotrace.goroutine.wait.time", "s", Counter,
        "Time that goroutines waited, by reason and function of the program's own code; waits of at least --min-wait.";
    WAIT_PEER = "gotrace.wait.peer.duration", "s", Histogram,
        "Duration of waits for connections that the process opened, by the other end; waits of at least --min-wait.";
    SCHEDULE = "go.schedule.duration", "s", Histogram,
        "The time goroutines have spent in the scheduler in a runnable state before actually running.";
    GC_CYCLES = "gotrace.gc.cycles", "{cycle}", Counter, "Cycles of the garbage collector.";
    GC_PAUSE = "gotrace.gc.pause.duration", "s", Histogram, "Pauses of the garbage collector.";
    GC_ASSIST = "gotrace.gc.assist.time", "s", Counter,
        "Time that goroutines spent assisting the garbage collector.";
    WORLD_STOPS = "gotrace.stop_the_world.time", "s", Counter,
        "Time that the world was stopped for other reasons than the garbage collector.";
    REQUEST_DURATION = "gotrace.request.duration", "s", Histogram, "Duration of requests that the process served.";
    REQUEST_TIME = "gotrace.request.time", "s", Counter, "What requests spent their time on, by state.";
    EVENTS = "gotrace.events", "{event}", Counter, "Events seen by the probes.";
    LOST = "gotrace.events.lost", "{event}", Counter, "Events lost before they reached the goroutine table.";
    REPAIRED = "gotrace.table.repaired", "{goroutine}", Counter,
        "Lost creations and exits, found and repaired by snapshots.";
    SNAPSHOTS = "gotrace.snapshot.duration", "s", Histogram,
        "Time to read all goroutines of the process.";
    PROVEN = "gotrace.leak.proven", "{goroutine}", Gauge,
        "Leaked goroutines, proven by heap scans.";
    RETAINED = "gotrace.leak.retained", "By", Gauge, "Heap retained by leaked goroutines.";
    REFUTED = "gotrace.leak.refuted", "{goroutine}", Counter,
        "Leak proofs that turned out wrong: bugs in gotrace.";
    SUSPECTS = "gotrace.leak.suspects", "{goroutine}", Gauge,
        "Goroutines suspected to be leaked, from snapshots.";
    GROWTH = "gotrace.leak.growth", "{goroutine}/s", Gauge,
        "Growth of suspected goroutines per second, at least (95 %).";
    SPANS_DROPPED = "gotrace.spans.dropped", "{span}", Counter,
        "Spans not delivered to the collector or the file.";
    SAMPLED_OUT = "gotrace.spans.sampled_out", "{span}", Counter, "Spans sampled out.";
    PROBE_COST = "gotrace.probe.cost", "1", Gauge,
        "Estimated probe overhead as a share of the target's CPU time.";
    ENGINE = "gotrace.engine", "1", Gauge, "Engine in use.";
    LEVEL = "gotrace.level", "1", Gauge, "Level of detail.";
}

/// A label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelValue {
    /// What a program or its runtime named.
    Text(Arc<str>),
    /// One of gotrace's own names.
    Name(&'static str),
    /// A whole number.
    Int(u64),
    /// Yes or no.
    Bool(bool),
}

/// A label: its name as OpenTelemetry writes it, and its value.
pub type Label = (&'static str, LabelValue);

/// What tells the series of a metric apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Series {
    /// The metric has one.
    Only,
    /// By one of gotrace's own names: the label, and its value.
    Kind(&'static str, &'static str),
    /// By wait reason.
    Reason(Arc<str>),
    /// By state and wait reason.
    State(&'static str, Arc<str>),
    /// By wait reason and function of the program's own code.
    OwnCode(Arc<str>, Arc<str>),
    /// By creation site.
    Site(SiteKey),
    /// By creation site, where they wait, reason and verdict.
    Leak(Box<LeakKey>),
    /// By engine, and whether the count of goroutines is a lower bound.
    Engine(&'static str, bool),
    /// By the other end of a connection, and function of the program's own code.
    Peer(SocketAddr, Option<Arc<str>>),
    /// By route, and status or state.
    Request(Box<RequestKey>),
    /// What found no room.
    Overflow,
}

/// What tells a leak from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeakKey {
    site: SiteKey,
    waits_at: Option<Arc<Location>>,
    reason: Arc<str>,
    verdict: Option<&'static str>,
    /// Alerts leave it out.
    suppressed: bool,
}

/// Names of a place's labels.
#[derive(Debug)]
pub struct PlaceLabels {
    /// The function.
    pub function: &'static str,
    /// The file.
    pub file: &'static str,
    /// The line.
    pub line: &'static str,
}

/// Entry function; site of a wait.
pub const CODE: PlaceLabels =
    PlaceLabels { function: "code.function.name", file: "code.file.path", line: "code.line.number" };
/// The `go` statement.
pub const CREATED_BY: PlaceLabels = PlaceLabels {
    function: "gotrace.created_by.function.name",
    file: "gotrace.created_by.file.path",
    line: "gotrace.created_by.line.number",
};
/// Where goroutines wait.
pub const WAITS_AT: PlaceLabels = PlaceLabels {
    function: "gotrace.wait.function.name",
    file: "gotrace.wait.file.path",
    line: "gotrace.wait.line.number",
};

/// Where goroutines wait in the program's own code.
pub const OWN_CODE: PlaceLabels = PlaceLabels {
    function: "gotrace.own_code.function.name",
    file: "gotrace.own_code.file.path",
    line: "gotrace.own_code.line.number",
};

impl Series {
    /// Its labels; an unknown entry, file or line is left out.
    #[must_use]
    pub fn labels(&self) -> Vec<Label> {
        let text = |text: &Arc<str>| LabelValue::Text(Arc::clone(text));
        match self {
            Self::Only => Vec::new(),
            Self::Kind(label, name) => vec![(label, LabelValue::Name(name))],
            Self::Reason(reason) => vec![("gotrace.wait.reason", text(reason))],
            Self::State(state, reason) => {
                vec![("gotrace.state", LabelValue::Name(state)), ("gotrace.wait.reason", text(reason))]
            }
            Self::OwnCode(reason, function) => {
                vec![("gotrace.wait.reason", text(reason)), (OWN_CODE.function, text(function))]
            }
            Self::Site(site) => site_labels(site),
            Self::Leak(key) => {
                let LeakKey { site, waits_at, reason, verdict, suppressed } = &**key;
                let mut labels = site_labels(site);
                labels.push(("gotrace.wait.reason", text(reason)));
                labels.extend(verdict.map(|verdict| ("gotrace.leak.verdict", LabelValue::Name(verdict))));
                if let Some(at) = waits_at {
                    place(&mut labels, &WAITS_AT, at);
                }
                labels.extend(suppressed.then_some(("gotrace.leak.suppressed", LabelValue::Bool(true))));
                labels
            }
            Self::Engine(engine, lower_bound) => vec![
                ("gotrace.engine", LabelValue::Name(engine)),
                ("gotrace.goroutine.count.lower_bound", LabelValue::Bool(*lower_bound)),
            ],
            Self::Peer(peer, function) => {
                let mut labels = vec![
                    ("network.peer.address", LabelValue::Text(peer.ip().to_string().into())),
                    ("network.peer.port", LabelValue::Int(peer.port().into())),
                ];
                labels.extend(function.as_ref().map(|function| (OWN_CODE.function, text(function))));
                labels
            }
            Self::Request(key) => key.labels(),
            Self::Overflow => vec![("otel.metric.overflow", LabelValue::Bool(true))],
        }
    }
}

fn site_labels((entry, created_by): &SiteKey) -> Vec<Label> {
    let mut labels = Vec::with_capacity(6);
    if entry.is_known() {
        place(&mut labels, &CODE, entry);
    }
    if let Some(created_by) = created_by {
        place(&mut labels, &CREATED_BY, created_by);
    }
    labels
}

fn place(labels: &mut Vec<Label>, names: &PlaceLabels, location: &Location) {
    let Location { function, file, line } = location;
    labels.push((names.function, LabelValue::Text(Arc::clone(function))));
    if !file.is_empty() {
        labels.push((names.file, LabelValue::Text(Arc::clone(file))));
    }
    if *line != 0 {
        labels.push((names.line, LabelValue::Int(u64::from(*line))));
    }
}

/// All figures of a process's state; its most important ones alone where there is no room for more.
pub fn samples(
    interval: &Interval,
    spans_dropped: &BTreeMap<&'static str, u64>,
    admitted: &mut Admitted,
    room: &mut Room,
) -> Vec<Sample> {
    let whole = admitted.enter(room);
    let mut samples = Samples { admitted, room, samples: Vec::new() };
    samples.one(&GOROUTINES, Series::Only, Value::Int(interval.alive));
    if whole {
        samples.fill(interval, spans_dropped);
    }
    if let Some(share) = interval.probe_cost_share {
        samples.one(&PROBE_COST, Series::Only, Value::Double(share));
    }
    let engine = Series::Engine(interval.engine, interval.alive_is_lower_bound);
    samples.one(&ENGINE, engine, Value::Int(1));
    samples.one(&LEVEL, Series::Kind("gotrace.level", interval.level), Value::Int(1));
    samples.samples
}

struct Samples<'a> {
    admitted: &'a mut Admitted,
    room: &'a mut Room,
    samples: Vec<Sample>,
}

impl Samples<'_> {
    fn push(&mut self, metric: &'static Metric, series: Vec<(Series, Value)>) {
        if !series.is_empty() {
            self.samples.push(Sample::new(metric, series));
        }
    }

    fn one(&mut self, metric: &'static Metric, series: Series, value: Value) {
        self.push(metric, vec![(series, value)]);
    }

    fn fill(&mut self, interval: &Interval, spans_dropped: &BTreeMap<&'static str, u64>) {
        // Every field is named: one that is new does not compile until it is written where it is told.
        let Interval {
            resource: _,
            pid: _,
            start_unix_nano: _,
            end_unix_nano: _,
            alive: _,
            alive_is_lower_bound: _,
            born: _,
            died: _,
            born_total: _,
            died_total: _,
            lost,
            repaired,
            sampled_out,
            events,
            waiting,
            waits,
            waits_at,
            schedule,
            syscalls,
            sites,
            snapshots,
            engine: _,
            level: _,
            level_reason: _,
            levels: _,
            leaks,
            leaks_refuted,
            suspects,
            collector,
            process_cpu_ns: _,
            process_cpu_total_ns: _,
            requests,
            probe_cost_share: _,
        } = interval;
        self.states(waiting);
        self.sites(sites);
        self.cpu_time(sites, interval.goroutines_cpu_total_ns().unwrap_or(0));
        if interval.throttled_total_ns() > 0 {
            self.one(&THROTTLED, Series::Only, Value::Nanoseconds(interval.throttled_total_ns()));
        }
        self.waits(waits, syscalls);
        self.wait_time(waits_at);
        self.peers(waits_at);
        self.durations(&SCHEDULE, schedule);
        self.collector(collector);
        if let Some(requests) = requests {
            self.requests(requests);
        }
        self.kinds(&EVENTS, "gotrace.event.kind", events);
        self.kinds(&LOST, "gotrace.lost.kind", lost);
        self.kinds(&REPAIRED, "gotrace.repaired.kind", repaired);
        self.durations(&SNAPSHOTS, snapshots);
        let growth = self.leaks(leaks);
        if *leaks_refuted > 0 {
            self.one(&REFUTED, Series::Only, Value::Int(*leaks_refuted));
        }
        self.suspects(suspects, growth);
        self.kinds(&SPANS_DROPPED, "gotrace.dropped.reason", spans_dropped);
        self.kinds(&SAMPLED_OUT, "gotrace.sampled_out.reason", sampled_out);
    }

    fn collector(&mut self, collector: &Collector) {
        self.kinds(&GC_CYCLES, "gotrace.gc.reason", &collector.cycles);
        self.durations(&GC_PAUSE, &collector.pauses);
        let (mut series, mut beyond) = (Vec::new(), 0);
        for assists in &collector.assists_by {
            // Those that found no room among the sites are nobody's.
            let (entry, created_by) = (&assists.entry, &assists.created_by);
            match self.admitted.assists(entry, created_by.as_ref()).filter(|_| entry.is_known()) {
                Some(key) => series.push((Series::Site(key), Value::Nanoseconds(assists.total_ns))),
                None => beyond += assists.total_ns,
            }
        }
        if beyond > 0 {
            series.push((Series::Overflow, Value::Nanoseconds(beyond)));
        }
        self.push(&GC_ASSIST, series);
        if !collector.stops.is_empty() {
            let total_ns = collector.stops.values().map(|stops| stops.sum_ns).sum();
            self.one(&WORLD_STOPS, Series::Only, Value::Nanoseconds(total_ns));
        }
    }

    fn durations(&mut self, metric: &'static Metric, histogram: &Histogram) {
        if histogram.count > 0 {
            self.one(metric, Series::Only, Value::Durations(Box::new(*histogram)));
        }
    }

    fn kinds(&mut self, metric: &'static Metric, label: &'static str, kinds: &BTreeMap<&'static str, u64>) {
        let mut series: Vec<_> = kinds
            .iter()
            .take(MAX_NAMES - 1)
            .map(|(kind, count)| (Series::Kind(label, kind), Value::Int(*count)))
            .collect();
        if kinds.len() >= MAX_NAMES {
            series.push((Series::Overflow, Value::Int(kinds.values().skip(MAX_NAMES - 1).sum())));
        }
        self.push(metric, series);
    }

    fn states(&mut self, waiting: &BTreeMap<Arc<str>, u64>) {
        let (mut series, mut beyond) = (Vec::new(), 0);
        for (reason, count) in waiting {
            if self.admitted.reason(reason, self.room) {
                let state = if &**reason == "syscall" { "syscall" } else { "waiting" };
                series.push((Series::State(state, Arc::clone(reason)), Value::Int(*count)));
            } else {
                beyond += count;
            }
        }
        if beyond > 0 {
            series.push((Series::Overflow, Value::Int(beyond)));
        }
        self.push(&STATES, series);
    }

    fn waits(&mut self, waits: &BTreeMap<Arc<str>, Histogram>, syscalls: &Histogram) {
        let (mut series, mut beyond) = (Vec::new(), None::<Box<Histogram>>);
        let syscall: Arc<str> = Arc::from("syscall");
        // System calls are waits by another way; a table that lists them itself is not added to.
        let extra = (!waits.contains_key(&syscall)).then_some((&syscall, syscalls));
        for (reason, histogram) in waits.iter().chain(extra).filter(|(_, h)| h.count > 0) {
            if self.admitted.reason(reason, self.room) {
                series.push((Series::Reason(Arc::clone(reason)), Value::Durations(Box::new(*histogram))));
            } else {
                beyond.get_or_insert_default().merge(histogram);
            }
        }
        series.extend(beyond.map(|h| (Series::Overflow, Value::Durations(h))));
        self.push(&WAITS, series);
    }

    fn sites(&mut self, sites: &[Site]) {
        let (mut created, mut exited, mut alive, mut lifetimes) = (vec![], vec![], vec![], vec![]);
        let mut beyond: Option<(u64, u64, u64, Box<Histogram>)> = None;
        for site in sites {
            match self.admitted.site(site, self.room) {
                Some(key) => {
                    let series = Series::Site(key);
                    created.push((series.clone(), Value::Int(site.born_total)));
                    exited.push((series.clone(), Value::Int(site.died_total)));
                    alive.push((series.clone(), Value::Int(site.alive)));
                    if site.lifetimes.count > 0 {
                        lifetimes.push((series, Value::Durations(Box::new(site.lifetimes))));
                    }
                }
                None => {
                    let (born, died, live, lifetime) = beyond.get_or_insert_default();
                    *born += site.born_total;
                    *died += site.died_total;
                    *live += site.alive;
                    lifetime.merge(&site.lifetimes);
                }
            }
        }
        if let Some((born, died, live, lifetime)) = beyond {
            created.push((Series::Overflow, Value::Int(born)));
            exited.push((Series::Overflow, Value::Int(died)));
            alive.push((Series::Overflow, Value::Int(live)));
            if lifetime.count > 0 {
                lifetimes.push((Series::Overflow, Value::Durations(lifetime)));
            }
        }
        self.push(&CREATED, created);
        self.push(&EXITED, exited);
        self.push(&ALIVE, alive);
        self.push(&LIFETIME, lifetimes);
    }

    /// The sites that have used most first. One that has used little so far gets no series of its own, which it would keep.
    /// `all`: what all of them have used.
    fn cpu_time(&mut self, sites: &[Site], all: u64) {
        let mut used: Vec<&Site> = sites.iter().filter(|site| site.cpu_total_ns > 0).collect();
        used.sort_by_key(|site| std::cmp::Reverse(site.cpu_total_ns));
        let (mut series, mut beyond) = (Vec::new(), 0);
        for site in used {
            let much = site.cpu_total_ns >= all / 20;
            match self.admitted.cpu_time(&site.entry, site.created_by.as_ref(), much) {
                Some(key) => series.push((Series::Site(key), Value::Nanoseconds(site.cpu_total_ns))),
                None => beyond = u64::saturating_add(beyond, site.cpu_total_ns),
            }
        }
        if beyond > 0 {
            series.push((Series::Overflow, Value::Nanoseconds(beyond)));
        }
        self.push(&CPU_TIME, series);
    }

    /// What is proven, the most goroutines first; gives how they grow.
    fn leaks(&mut self, leaks: &[Leak]) -> Vec<(Series, Value)> {
        let (mut proven, mut retained, mut growth) = (Vec::new(), Vec::new(), Vec::new());
        for leak in leaks.iter().take(LEAKS) {
            let series = Series::Leak(Box::new(LeakKey {
                site: (Arc::clone(&leak.entry), leak.created_by.clone()),
                waits_at: leak.waits_at.clone(),
                reason: Arc::clone(&leak.reason),
                verdict: None,
                suppressed: leak.suppressed.is_some(),
            }));
            retained.extend(leak.retained_bytes.map(|bytes| (series.clone(), Value::Int(bytes))));
            if let Some((low, _)) = leak.growth_per_second {
                let mut series = series.clone();
                if let Series::Leak(key) = &mut series {
                    key.verdict = Some("unreachable");
                }
                growth.push((series, Value::Double(low)));
            }
            proven.push((series, Value::Int(leak.count)));
        }
        if let Some(rest) = leaks.get(LEAKS..).filter(|rest| !rest.is_empty()) {
            proven.push((Series::Overflow, Value::Int(rest.iter().map(|l| l.count).sum())));
            let bytes = rest.iter().filter_map(|l| l.retained_bytes).sum();
            retained.push((Series::Overflow, Value::Int(bytes)));
        }
        self.push(&PROVEN, proven);
        self.push(&RETAINED, retained);
        growth
    }

    /// What may be leaked, the worst first. `growth`: of what is proven.
    fn suspects(&mut self, suspects: &[Suspected], mut growth: Vec<(Series, Value)>) {
        let mut counts = Vec::new();
        for suspected in suspects.iter().take(LEAKS) {
            let series = Series::Leak(Box::new(LeakKey {
                site: (Arc::clone(&suspected.entry), suspected.created_by.clone()),
                waits_at: suspected.waits_at.clone(),
                reason: Arc::clone(&suspected.reason),
                verdict: Some(suspected.verdict),
                suppressed: suspected.suppressed.is_some(),
            }));
            growth.extend(suspected.growth_per_second.map(|(low, _)| (series.clone(), Value::Double(low))));
            counts.push((series, Value::Int(suspected.count)));
        }
        if let Some(rest) = suspects.get(LEAKS..).filter(|rest| !rest.is_empty()) {
            counts.push((Series::Overflow, Value::Int(rest.iter().map(|s| s.count).sum())));
        }
        self.push(&SUSPECTS, counts);
        growth.truncate(LEAKS);
        self.push(&GROWTH, growth);
    }
}
