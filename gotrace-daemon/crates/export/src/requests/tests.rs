//! What is printed of requests, as it is written down.

use std::sync::Arc;

use gotrace_common::{
    Histogram,
    request::{TIMES, time},
};
use gotrace_model::{
    Location, SpanContext,
    requests::{
        Cause, Children, Ended, Now, OwnSpan, Protocol, Request, RequestWait, Requests, Route, RouteName,
        RouteTotal, TimeSpent,
    },
    samples,
};

use super::*;

const MS: u64 = 1_000_000;

fn place(function: &str, line: u32) -> Arc<Location> {
    Arc::new(Location { function: function.into(), file: "/src/shop/cart.go".into(), line })
}

fn spent(parts: &[(usize, u64)]) -> TimeSpent {
    let mut spent = TimeSpent([0; TIMES]);
    parts.iter().for_each(|(part, ns)| spent.0[*part] = *ns);
    spent
}

fn name(route: &str) -> RouteName {
    RouteName {
        protocol: Protocol::Http1,
        method: Some("GET".into()),
        route: (!route.is_empty()).then(|| route.into()),
        handler: route.is_empty().then(|| place("main.serve", 12)),
    }
}

fn slow() -> Request {
    let held = |goid, state: &str, ns| Cause {
        goid,
        function: Some(place("main.flusher", 9)),
        state: state.into(),
        duration_ns: ns,
        frame: Some(place("main.write\x1b", 40)),
    };
    Request {
        id: 3,
        context: SpanContext { trace_id: [0xab; 16], span_id: [2; 8] },
        parent_span_id: Some([0xcd; 8]),
        path: None,
        own_span: None,
        goroutine: SpanContext { trace_id: [1; 16], span_id: [4; 8] },
        name: name("/checkout/{id}"),
        status: Some(503),
        start_unix_nano: 1_700_000_000_000_000_000,
        duration_ns: 100 * MS,
        goid: 77,
        ended: Some(Ended::Normal),
        time: spent(&[(time::ON_CPU, 4 * MS), (time::THROTTLED, 35 * MS), (time::BLOCKED + 3, 61 * MS)]),
        children: Some(Children::default()),
        waits: vec![RequestWait {
            offset_ns: 4_200_000,
            span_id: [9; 8],
            duration_ns: 61 * MS,
            reason: "sync.Mutex.Lock".into(),
            stack: vec![place("sync.(*Mutex).Lock", 1), place("main.(*Cart).Total", 88)],
            site: Some(place("shop.lock", 5)),
            own_code: Some(place("main.(*Cart).Total", 88)),
            peer: None,
            ended_by: "goroutine",
            ended_by_goid: Some(911),
            causes: vec![
                held(911, "IO wait", 50 * MS),
                held(911, "running", 11 * MS),
                held(5, "sleep", 50 * MS),
            ],
        }],
        waits_complete: true,
        now: None,
    }
}

fn text(print: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    print(&mut out).expect("memory");
    String::from_utf8(out).expect("text")
}

#[test]
fn a_slow_request_is_told_with_its_parts_and_whom_it_waited_for() {
    assert_eq!(
        text(|out| request(out, &slow())),
        "GET /checkout/{id}  503  100ms  sync.Mutex.Lock 61ms, throttled 35ms, on CPU 4.0ms\n  \
         +4.2ms   sync.Mutex.Lock 61ms  shop.lock < main.(*Cart).Total cart.go:88  held by goroutine 911 \
         (main.flusher): IO wait 50ms in main.write\\u{1b}, running 11ms, ended by goroutine 5 (main.flusher): \
         sleep 50ms in main.write\\u{1b}\n"
    );
    let open = Request {
        status: None,
        ended: None,
        waits: Vec::new(),
        waits_complete: false,
        now: Some(Now {
            state: "IO wait".into(),
            stack: vec![place("internal/poll.runtime_pollWait", 7), place("main.charge", 31)],
            own_code: Some(place("main.charge", 31)),
        }),
        time: spent(&[(time::BLOCKED + 9, 100 * MS)]),
        name: name(""),
        ..slow()
    };
    assert_eq!(
        text(|out| request(out, &open)),
        "GET (main.serve)  OPEN  100ms  IO wait 100ms; goroutine 77 now: IO wait in main.charge cart.go:31\n  some of its waits are missing \
         here; the parts above are complete\n"
    );
}

#[test]
fn a_span_of_the_program_is_told_with_its_name_and_parent() {
    let name =
        RouteName { protocol: Protocol::Span, method: None, route: Some("work off".into()), handler: None };
    let moved = Request {
        name,
        status: Some(1),
        ended: Some(Ended::OtherGoroutine),
        own_span: Some(OwnSpan { parent_span_id: Some([0xef; 8]) }),
        waits: Vec::new(),
        ..slow()
    };
    assert_eq!(
        text(|out| request(out, &moved)),
        "work off  ERROR  100ms  sync.Mutex.Lock 61ms, throttled 35ms, on CPU 4.0ms\n  another goroutine ended it; \
         its time is that of goroutine 77, which began it\n"
    );
    let line = text(|out| json_request(out, &moved));
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let said = &said["request"];
    assert_eq!((&said["protocol"], &said["route"]), (&"otel".into(), &"work off".into()));
    assert_eq!(said["ended"], "other_goroutine");
    assert_eq!(said["own_span"], serde_json::json!({ "parent_span_id": "ef".repeat(8) }));
}

#[test]
fn a_call_is_told_with_its_function_and_its_children() {
    let handler = Some(place("example.com/shop.(*Queue).work", 7));
    let time = spent(&[(time::BLOCKED + 9, 40 * MS), (time::ON_CPU, 10 * MS)]);
    let call = Request {
        name: RouteName { protocol: Protocol::Function, method: None, route: None, handler },
        status: None,
        waits: Vec::new(),
        children: Some(Children { goroutines: 3, left_running: 2, time }),
        ..slow()
    };
    assert_eq!(
        text(|out| request(out, &call)),
        "shop.(*Queue).work  -  100ms  sync.Mutex.Lock 61ms, throttled 35ms, on CPU 4.0ms\n  goroutines that it \
         started: 3 took 50ms: IO wait 40ms, on CPU 10ms; left running 2\n"
    );
    let line = text(|out| json_request(out, &call));
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let children = &said["request"]["children"];
    assert_eq!((&children["goroutines"], &children["left_running"]), (&3.into(), &2.into()));
    assert_eq!(children["time_ns"]["blocked"], serde_json::json!({ "IO wait": 40 * MS }));
    assert_eq!(said["request"]["protocol"], "function");
    let left = Request { children: Some(Children { left_running: 1, ..Children::default() }), ..call };
    assert!(text(|out| request(out, &left)).ends_with("goroutines that it started: left running 1\n"));
    let unknown = Request { children: None, ..left };
    let line = text(|out| json_request(out, &unknown));
    assert!(line.contains("\"children\":null"), "{line}");
}

#[test]
fn its_json_has_every_field() {
    let line = text(|out| json_request(out, &slow()));
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let said = &said["request"];
    assert_eq!(said["trace_id"], "ab".repeat(16));
    assert_eq!((&said["status"], &said["route"]), (&503.into(), &"/checkout/{id}".into()));
    assert_eq!(said["time_ns"]["throttled"], 35 * MS);
    assert_eq!(said["time_ns"]["blocked"], serde_json::json!({ "sync.Mutex.Lock": 61 * MS }));
    assert_eq!(said["waits"][0]["causes"][2]["goid"], 5);
    let fields: Vec<_> = said.as_object().expect("an object").keys().map(String::as_str).collect();
    let contract = [
        "children",
        "duration_ns",
        "ended",
        "goid",
        "handler",
        "id",
        "method",
        "open",
        "own_code",
        "own_span",
        "parent_span_id",
        "path",
        "protocol",
        "route",
        "span_id",
        "stack",
        "start_unix_nano",
        "state",
        "status",
        "time_ns",
        "trace_id",
        "waits",
        "waits_complete",
    ];
    assert_eq!(fields, contract);
}

fn route(path: &str, durations: &[u64], open: u64) -> Route {
    let mut histogram = Histogram::default();
    durations.iter().for_each(|ns| histogram.add(*ns));
    let by_status = [(Some(200), histogram)].into_iter().collect();
    let times = spent(&[(time::ON_CPU, histogram.sum_ns / 4), (time::BLOCKED, histogram.sum_ns / 4 * 3)]);
    Route {
        by_status: [(Some(200), histogram.count)].into_iter().collect(),
        durations: histogram,
        times,
        total: RouteTotal { by_status, durations: histogram, times, ..RouteTotal::default() },
        open,
        oldest_open_ns: (open > 0).then_some(12_000 * MS),
        ..Route::new(name(path))
    }
}

#[test]
fn a_table_has_a_row_a_route_and_says_what_is_missing() {
    let mut interval = samples::interval(&samples::resource(), 2, Vec::new());
    (interval.start_unix_nano, interval.end_unix_nano) = (1_000 * MS, 3_000 * MS);
    interval.lost = [("ring_request", 4)].into_iter().collect();
    let routes = vec![route("/a", &[MS, 3 * MS], 0), route("/slow", &[80 * MS], 2)];
    let covered = Covered { traced_ns: 500, all_ns: 2000 };
    interval.requests =
        Some(Arc::new(Requests { covered, routes, slow: Vec::new(), left_out: 7, ..Requests::default() }));
    let mut gathered = Gathered::default();
    gathered.add(&interval, false);
    gathered.add(&interval, false);
    assert_eq!(
        text(|out| table(out, &gathered)),
        "\n6 requests in 2.0 s:\n\
         route                                requests  errors   slow      p50      p99      max open (since)  \
         where the time went\n\
         GET /slow                                   2       0      0    ≤80ms     80ms     80ms      2 (12s)  \
         ████░░░░░░░░░░░░  chan receive 75%, on CPU 25%\n\
         GET /a                                      4       0      0   ≤1.0ms    3.0ms    3.0ms            -  \
         ████░░░░░░░░░░░░  chan receive 75%, on CPU 25%\n\
         █ on CPU  ▓ waiting for a CPU  ▒ system call, GC assist  ░ blocked\n\
         14 more slow requests are counted, and not shown: of each route 20 a second are\n\
         requests were traced in turns, for 25% of the time, to keep the overhead within the budget\n\
         lost: ring_request 4\n"
    );
    let next = gathered.next();
    assert!(text(|out| table(out, &next)).starts_with("\n0 requests in"));
    let line = text(|out| json_interval(out, &gathered));
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(said["interval"]["coverage"], 0.25);
    assert_eq!(said["interval"]["routes"][0]["open"], 2);
    assert_eq!(said["interval"]["routes"][1]["by_status"], serde_json::json!({ "200": 4 }));
}

#[test]
fn what_stands_out_of_slow_requests_is_said() {
    let mut interval = samples::interval(&samples::resource(), 2, Vec::new());
    interval.requests = Some(Arc::new(samples::requests(&[300, 400, 312])));
    let mut gathered = Gathered::default();
    gathered.add(&interval, true);
    let table = text(|out| table(out, &gathered));
    let said = table.lines().find(|line| line.contains("slow requests of")).expect("a line");
    assert_eq!(
        said,
        "75% of the time of slow requests of GET /checkout/{id} (3 of 3, p99 400ms): throttled, as the CPU quota was \
         used up"
    );
    let line: serde_json::Value =
        serde_json::from_str(&text(|out| json_interval(out, &gathered))).expect("JSON");
    let route = &line["interval"]["routes"][0];
    assert_eq!(route["why_slow"], serde_json::json!({ "part": "throttled", "share": 0.75 }));
    assert_eq!(route["slow_time_ns"]["throttled"], 759 * MS);
    // Of few, and of those that work, nothing is said.
    let mut few = samples::requests(&[300, 400]).routes.remove(0);
    assert_eq!(few.why_slow(), None);
    (few.slow, few.slow_times) = (9, spent(&[(time::ON_CPU, 90 * MS), (time::THROTTLED, 10 * MS)]));
    assert_eq!(few.why_slow(), None);
}
