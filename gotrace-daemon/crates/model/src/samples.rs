//! Sample values of what results are, as a program would give them: for tests of what writes them down.

use core::net::SocketAddr;
use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::{Histogram, request::time};

use crate::{
    Assists, Collector, Cycle, GoroutineSpan, Interval, Levels, Location, LogRecord, Peer, Place, Places,
    Resource, Severity, Site, Span, SpanContext, Value, WaitSpan, Waker, WorldStop,
    ids::ProcessKey,
    requests::{Ended, Protocol, Request, Requests, Route, RouteName, RouteTotal, TimeSpent},
};

/// When the samples begin, Unix epoch in nanoseconds.
pub const START: u64 = 1_700_000_000_000_000_000;

/// A place in the source.
#[must_use]
pub fn location(function: &str, file: &str, line: u32) -> Arc<Location> {
    Arc::new(Location { function: function.into(), file: file.into(), line })
}

/// A small resource.
#[must_use]
pub fn resource() -> Arc<Resource> {
    Arc::new(Resource::new(BTreeMap::from([
        ("process.pid".into(), Value::Int(7)),
        ("service.name".into(), Value::Text("shop".into())),
        ("process.command_args".into(), Value::List(vec!["shop".into(), "-v".into()])),
    ])))
}

/// A log record.
#[must_use]
pub fn log(resource: &Arc<Resource>) -> LogRecord {
    LogRecord {
        resource: Arc::clone(resource),
        name: "gotrace.leak.confirmed",
        time_unix_nano: START,
        severity: Severity::Warn,
        body: "3 goroutines of main.worker can never run again".into(),
        attributes: vec![
            ("code.function.name", Value::Text("main.worker".into())),
            ("gotrace.leak.proven", Value::Int(3)),
            ("gotrace.probe.cost", Value::Double(0.25)),
        ],
    }
}

/// A goroutine's span address.
#[must_use]
pub fn context(root: u64, goid: u64) -> SpanContext {
    ProcessKey::new("boot", 7, 100, 0, 0).context(root, goid)
}

/// A goroutine's life.
#[must_use]
pub fn goroutine(resource: &Arc<Resource>, goid: u64) -> Span {
    Span::Goroutine(GoroutineSpan {
        resource: Arc::clone(resource),
        context: context(18, goid),
        parent: (goid != 18).then(|| context(18, 18).span_id),
        creator_link: (goid == 18).then(|| context(1, 1)),
        start_unix_nano: START,
        end_unix_nano: START + 5_000_000,
        entry: location("main.worker", "/src/main.go", 12),
        created_by: Some(location("main.main", "/src/main.go", 30)),
        goid,
        parent_goid: if goid == 18 { 1 } else { 18 },
        wait_total_ns: Some(3_000_000),
        run_total_ns: Some(2_000_000),
        wait_count: Some(4),
        cpu_ns: Some(1_250_000),
        throttled_ns: Some(250_000),
        life: None,
        waits_by_reason: vec![("chan receive".into(), 2_500_000), ("select".into(), 0)],
    })
}

/// A goroutine's life of which nothing optional is known.
#[must_use]
pub fn bare_goroutine(resource: &Arc<Resource>) -> Span {
    Span::Goroutine(GoroutineSpan {
        resource: Arc::clone(resource),
        context: context(2, 2),
        parent: None,
        creator_link: None,
        start_unix_nano: START,
        end_unix_nano: START,
        entry: location("?0x47ab12", "", 0),
        created_by: None,
        goid: 2,
        parent_goid: 0,
        wait_total_ns: None,
        run_total_ns: None,
        wait_count: None,
        cpu_ns: None,
        throttled_ns: None,
        life: None,
        waits_by_reason: Vec::new(),
    })
}

/// A wait.
#[must_use]
pub fn wait(resource: &Arc<Resource>, waker: Waker) -> Span {
    Span::Wait(WaitSpan {
        resource: Arc::clone(resource),
        context: SpanContext { span_id: [9; 8], ..context(18, 18) },
        parent: context(18, 18).span_id,
        goid: 18,
        reason: "chan receive".into(),
        start_unix_nano: START + 1_000,
        end_unix_nano: START + 2_001_000,
        scheduling_delay_ns: matches!(waker, Waker::Goroutine(..)).then_some(700),
        site: (waker != Waker::Unknown).then(|| location("main.worker", "/src/main.go", 15)),
        own_code: (waker == Waker::Netpoll).then(|| location("main.fetch", "/src/main.go", 19)),
        peer: (waker == Waker::Netpoll).then(|| SocketAddr::from(([10, 0, 3, 7], 5432))),
        waker,
    })
}

/// One of each shape.
/// Spans of each kind.
#[must_use]
pub fn all(resource: &Arc<Resource>) -> Vec<Span> {
    vec![
        goroutine(resource, 18),
        goroutine(resource, 19),
        bare_goroutine(resource),
        wait(resource, Waker::Goroutine(1, context(1, 1))),
        wait(resource, Waker::Netpoll),
        wait(resource, Waker::Timer),
        wait(resource, Waker::Gc),
        wait(resource, Waker::Unknown),
    ]
}

/// A sample: histogram
#[must_use]
pub fn histogram(durations: &[u64]) -> Histogram {
    let mut h = Histogram::default();
    for d in durations {
        h.add(*d);
    }
    h
}

/// A creation site.
#[must_use]
pub fn site(name: &str, born: u64, died: u64) -> Site {
    Site {
        entry: location(name, "/src/main.go", 12),
        created_by: Some(location("main.main", "/src/main.go", 30)),
        alive: born - died,
        born,
        died,
        born_total: born,
        died_total: died,
        cpu_ns: Some(born * 1_000_000),
        cpu_total_ns: born * 2_000_000,
        throttled_ns: 0,
        throttled_total_ns: 0,
        waiting: BTreeMap::from([("chan receive".into(), born - died)]),
        waits: histogram(&[1_000_000, 3_000_000]),
        lifetimes: histogram(&vec![5_000_000; usize::try_from(died).expect("small")]),
        oldest_ns: (born > died).then_some(9_000_000),
        oldest_is_lower_bound: false,
    }
}

/// A collector at work.
#[must_use]
pub fn collector() -> Collector {
    let (entry, created_by) = (location("main.decode", "/src/main.go", 12), None);
    Collector {
        cycles: BTreeMap::from([("call", 1), ("heap", 2)]),
        marking: histogram(&[18_000_000, 2_000_000, 3_000_000]),
        pauses: histogram(&[90_000, 60_000, 80_000, 50_000, 70_000, 40_000]),
        stops: BTreeMap::from([("read mem stats", histogram(&[41_000_000]))]),
        assists: histogram(&[700_000, 300_000]),
        assists_by: vec![Assists { entry: Arc::clone(&entry), created_by, count: 2, total_ns: 1_000_000 }],
        recent: vec![Cycle {
            number: 3,
            trigger: "heap",
            called_from: None,
            end_unix_nano: START,
            mark_ns: Some(3_000_000),
            sweep_pause_ns: Some(70_000),
            mark_pause_ns: 40_000,
            assist_ns: 300_000,
            assisted_by: vec![(entry, 300_000)],
        }],
        recent_left_out: 0,
        longest: vec![WorldStop {
            reason: "read mem stats",
            start_unix_nano: START,
            duration_ns: 41_000_000,
            goid: 17,
            function: Some(location("runtime.ReadMemStats", "/go/src/runtime/mstats.go", 350)),
            called_from: Some(location("main.collectStats", "/src/stats.go", 31)),
        }],
        longest_left_out: 0,
    }
}

/// Where goroutines wait: in two functions, of which one is more than one place, and where it is not known.
#[must_use]
pub fn places() -> Places {
    let place = |reason: &str, function: &str, line, waits: &[u64]| Place {
        reason: reason.into(),
        at: Some(location(function, "/src/main.go", line)),
        own: true,
        peer: None,
        stack: vec![
            location("runtime.gopark", "/go/src/runtime/proc.go", 402),
            location(function, "/src/main.go", line),
        ],
        waits: histogram(waits),
        recent: (1, waits.last().copied().unwrap_or(0)),
        system: false,
    };
    let database = Some(Peer::At(SocketAddr::from(([10, 0, 3, 7], 5432))));
    let query = Place { peer: database, ..place("IO wait", "main.query", 40, &[61_000_000, 20_000_000]) };
    let unknown = Place { at: None, stack: Vec::new(), ..place("select", "", 0, &[1_500_000]) };
    Places {
        places: vec![
            query,
            place("chan receive", "main.worker", 15, &[40_000_000, 2_000_000, 3_000_000]),
            place("select", "main.serve", 86, &[5_000_000, 6_000_000]),
            place("chan receive", "main.worker", 22, &[4_000_000]),
            unknown,
        ],
        others: histogram(&[1_000_000]),
        min_wait_ns: Some(1_000_000),
    }
}

/// Requests of one route that took so many milliseconds, all of them slow, and answered 200.
#[must_use]
pub fn requests(milliseconds: &[u64]) -> Requests {
    let name = RouteName {
        protocol: Protocol::Http1,
        method: Some("GET".into()),
        route: Some("/checkout/{id}".into()),
        handler: None,
    };
    let mut durations = Histogram::default();
    let mut times = TimeSpent::default();
    let one = |(n, ms): (u64, &u64)| {
        let duration_ns = ms * 1_000_000;
        let mut time = TimeSpent::default();
        (time.0[time::ON_CPU], time.0[time::THROTTLED]) = (duration_ns / 4, duration_ns - duration_ns / 4);
        durations.add(duration_ns);
        times.add(&time);
        let span_id = (n + 1).to_be_bytes();
        Arc::new(Request {
            id: n + 1,
            context: SpanContext { trace_id: [0xab; 16], span_id },
            parent_span_id: None,
            own_span: None,
            goroutine: SpanContext { trace_id: [0xab; 16], span_id: [0xcd; 8] },
            name: name.clone(),
            path: Some("/checkout/42".into()),
            status: Some(200),
            start_unix_nano: START,
            duration_ns,
            goid: 7,
            ended: Some(Ended::Normal),
            time,
            waits: Vec::new(),
            waits_complete: true,
            children: None,
            now: None,
        })
    };
    let slow: Vec<_> = (0..).zip(milliseconds).map(one).collect();
    let count = slow.len() as u64;
    let by_status = [(Some(200), durations)].into();
    let total = RouteTotal { by_status, errors: 0, slow: count, durations, times, slow_times: times };
    let by_status = [(Some(200), count)].into();
    let route =
        Route { by_status, slow: count, durations, times, slow_times: times, total, ..Route::new(name) };
    Requests { routes: vec![route], slow, ..Requests::default() }
}

/// A state of the process.
#[must_use]
pub fn interval(resource: &Arc<Resource>, seconds: u64, sites: Vec<Site>) -> Interval {
    let sum = |f: fn(&Site) -> u64| sites.iter().map(f).sum();
    Interval {
        requests: None,
        resource: Arc::clone(resource),
        pid: 7,
        start_unix_nano: START + seconds * 1_000_000_000,
        end_unix_nano: START + (seconds + 1) * 1_000_000_000,
        alive: sum(|s| s.alive),
        alive_is_lower_bound: false,
        born: sum(|s| s.born),
        died: sum(|s| s.died),
        born_total: sum(|s| s.born_total),
        died_total: sum(|s| s.died_total),
        lost: BTreeMap::from([("ring_wait", 3)]),
        repaired: BTreeMap::from([("death", 2)]),
        sampled_out: BTreeMap::from([("ratio", 9)]),
        events: BTreeMap::from([("create", sum(|s| s.born_total)), ("exit", sum(|s| s.died_total))]),
        waiting: BTreeMap::from([("chan receive".into(), 2), ("syscall".into(), 1)]),
        waits: BTreeMap::from([("chan receive".into(), histogram(&[900, 1_000_000, 3_000_000]))]),
        waits_at: Arc::new(places()),
        schedule: histogram(&[1_200, 4_000]),
        syscalls: histogram(&[50_000]),
        sites,
        snapshots: histogram(&[2_000_000]),
        engine: "events",
        level: "full",
        level_reason: None,
        levels: Levels::default(),
        leaks: Vec::new(),
        leaks_refuted: 0,
        suspects: Vec::new(),
        collector: Collector::default(),
        process_cpu_ns: Some(100_000_000),
        process_cpu_total_ns: Some(200_000_000),
        probe_cost_share: Some(0.0125),
    }
}
