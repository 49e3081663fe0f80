//! Sample values of what results are, as a program would give them: for tests of what writes them down, and for telling
//! builds apart ([`crate::wire::layout`]).

use core::net::SocketAddr;
use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::{Histogram, request::time};

use crate::{
    Assists, Collector, Cycle, GoroutineSpan, Holder, Interval, Leak, LeakPart, LevelChange, Levels,
    Location, LogRecord, Peer, Place, Places, Resource, Severity, Site, Span, SpanContext, Suspected, Value,
    WaitSpan, Waker, WorldStop,
    ids::ProcessKey,
    requests::{
        Cause, Children, Covered, Ended, Now, OwnSpan, Protocol, Request, RequestWait, Requests, Route,
        RouteName, RouteTotal, TimeSpent,
    },
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

/// A state of a process in which each field holds something.
#[must_use]
pub fn whole() -> Interval {
    let at = |line| location("main.worker", "/src/main.go", line);
    let attributes = [("process.pid", Value::Int(7)), ("share", Value::Double(0.5))];
    let attributes = attributes.map(|(name, value)| (Arc::from(name), value));
    let texts = [("name", Value::Text("shop".into())), ("args", Value::List(vec!["-v".into()]))];
    let mut attributes = BTreeMap::from(attributes);
    attributes.extend(texts.map(|(name, value)| (Arc::from(name), value)));
    let resource = Arc::new(Resource { attributes, process: 3 });
    let mut site = site("main.worker", 5, 2);
    (site.throttled_ns, site.throttled_total_ns, site.oldest_is_lower_bound) = (7, 8, true);
    let place = Place {
        reason: "IO wait".into(),
        at: Some(at(40)),
        own: true,
        peer: Some(Peer::At(SocketAddr::from(([10, 0, 3, 7], 5432)))),
        stack: vec![location("runtime.gopark", "/go/src/runtime/proc.go", 402), at(40)],
        waits: histogram(&[61_000_000, 20_000_000]),
        recent: (1, 20_000_000),
        system: true,
    };
    let elsewhere = Place { peer: Some(Peer::Other), ..place.clone() };
    let mut collector = collector();
    (collector.recent_left_out, collector.longest_left_out) = (4, 5);
    for assists in &mut collector.assists_by {
        assists.created_by = Some(at(30));
    }
    for cycle in &mut collector.recent {
        cycle.called_from = Some(at(31));
    }
    Interval {
        alive_is_lower_bound: true,
        waits_at: Arc::new(Places { places: vec![place, elsewhere], ..places() }),
        level_reason: Some("budget"),
        levels: Levels {
            wanted: "full",
            ns: BTreeMap::from([("full", 8), ("waits", 9)]),
            change: Some(LevelChange { from: "full", to: "waits", probe_cost_share: 0.06 }),
            budget: Some(0.05),
        },
        leaks: vec![leak()],
        leaks_refuted: 6,
        suspects: vec![suspected()],
        collector,
        requests: Some(Arc::new(whole_requests())),
        ..interval(&resource, 1, vec![site])
    }
}

/// A goroutine that holds a lock.
fn holder() -> Holder {
    Holder {
        goid: 9,
        runs: location("main.flush", "/src/main.go", 50),
        frame: location("main.(*store).flush", "/src/store.go", 51),
        state: "waiting",
        reason: Some("IO wait".into()),
        evidence: "locked",
        waits_for: Some(10),
    }
}

/// Goroutines that can never run again.
fn leak() -> Leak {
    let at = |line| location("main.leak", "/src/leak.go", line);
    let part = LeakPart {
        entry: at(1),
        created_by: Some(at(2)),
        waits_at: Some(at(3)),
        reason: "chan send".into(),
        goids: vec![21, 22],
    };
    Leak {
        entry: at(4),
        created_by: Some(at(5)),
        waits_at: Some(at(6)),
        reason: "chan receive".into(),
        count: 3,
        growth_per_second: Some((0.5, 1.5)),
        retained_bytes: Some(4096),
        goids: vec![18, 19, 20],
        others: vec![part],
        place: Some("waits for a database connection"),
        holders: vec![holder()],
        why: "nothing refers to the channel".into(),
        suppressed: Some("known".into()),
    }
}

/// Goroutines that may never finish.
fn suspected() -> Suspected {
    let at = |line| location("main.stuck", "/src/stuck.go", line);
    Suspected {
        verdict: "stuck",
        entry: at(1),
        created_by: Some(at(2)),
        waits_at: Some(at(3)),
        reason: "sync.Mutex.Lock".into(),
        count: 4,
        growth_per_second: Some((2.5, 3.5)),
        standing_ns: 60_000_000_000,
        place: Some("waits for a lock"),
        holders: vec![holder()],
        why: "blocked for 60 s".into(),
        goids: vec![31, 32],
        suppressed: Some("known".into()),
    }
}

/// Requests of which each field holds something.
fn whole_requests() -> Requests {
    let at = |line| location("main.serve", "/src/serve.go", line);
    let mut all = requests(&[200, 300]);
    let name = RouteName {
        protocol: Protocol::Http2,
        method: Some("POST".into()),
        route: Some("/pay".into()),
        handler: Some(at(1)),
    };
    let time = TimeSpent(std::array::from_fn(|part| part as u64 + 1));
    let wait = RequestWait {
        offset_ns: 11,
        span_id: [12; 8],
        duration_ns: 13,
        reason: "sync.Mutex.Lock".into(),
        stack: vec![at(2), at(3)],
        site: Some(at(2)),
        own_code: Some(at(3)),
        peer: Some(SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, 1], 443))),
        ended_by: "goroutine",
        ended_by_goid: Some(14),
        causes: vec![Cause {
            goid: 14,
            function: Some(at(4)),
            state: "running".into(),
            duration_ns: 15,
            frame: Some(at(5)),
        }],
    };
    for route in &mut all.routes {
        route.name = name.clone();
        (route.errors, route.open, route.oldest_open_ns) = (1, 2, Some(16));
        (route.times, route.slow_times) = (time, time);
        (route.total.errors, route.total.times, route.total.slow_times) = (1, time, time);
    }
    for request in &mut all.slow {
        let request = Arc::make_mut(request);
        request.name = name.clone();
        request.parent_span_id = Some([17; 8]);
        request.own_span = Some(OwnSpan { parent_span_id: Some([18; 8]) });
        request.time = time;
        request.children = Some(Children { goroutines: 19, left_running: 20, time });
        request.waits = vec![wait.clone()];
        request.now = Some(Now { state: "IO wait".into(), stack: vec![at(6)], own_code: Some(at(6)) });
    }
    all.left_out = 21;
    all.covered = Covered { traced_ns: 22, all_ns: 23 };
    all.covered_total = Covered { traced_ns: 24, all_ns: 25 };
    all
}
