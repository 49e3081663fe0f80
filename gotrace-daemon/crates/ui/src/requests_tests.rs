//! What rows of routes say, what more there is of one, and what has room on which screen.

use gotrace_common::{
    Histogram,
    request::{TIMES, time},
};
use gotrace_model::{
    Location, SpanContext,
    requests::{Cause, Ended, Now, Protocol, RequestWait, Requests, RouteTotal, TimeSpent},
};

use super::*;
use crate::state::{
    View,
    tests::{interval, screen},
};

const MS: u64 = 1_000_000;

fn place(function: &str, line: u32) -> Arc<Location> {
    Arc::new(Location { function: function.into(), file: "/src/shop/cart.go".into(), line })
}

fn name(route: &str) -> RouteName {
    RouteName {
        protocol: Protocol::Http1,
        method: Some("GET".into()),
        route: Some(route.into()),
        handler: None,
    }
}

fn spent(on_cpu: u64, locked: u64) -> TimeSpent {
    let mut spent = TimeSpent([0; TIMES]);
    (spent.0[time::ON_CPU], spent.0[time::BLOCKED + 3]) = (on_cpu, locked);
    spent
}

fn route(path: &str, durations: &[u64], errors: u64, open: u64) -> Route {
    let mut all = Histogram::default();
    durations.iter().for_each(|ms| all.add(ms * MS));
    let total = RouteTotal {
        by_status: [(Some(200), all)].into(),
        errors,
        slow: 1,
        durations: all,
        times: spent(all.sum_ns / 4, all.sum_ns / 4 * 3),
        ..RouteTotal::default()
    };
    let oldest_open_ns = (open > 0).then_some(12_000 * MS);
    Route { durations: all, total, open, oldest_open_ns, ..Route::new(name(path)) }
}

fn slow(path: &str, goid: u64, ms: u64, ended: Option<Ended>) -> Arc<Request> {
    let context = SpanContext { trace_id: [1; 16], span_id: [2; 8] };
    let cause = Cause {
        goid: 911,
        function: Some(place("main.flusher", 9)),
        state: "IO wait".into(),
        duration_ns: ms / 2 * MS,
        frame: Some(place("main.write", 40)),
    };
    let wait = RequestWait {
        offset_ns: 4 * MS,
        span_id: [9; 8],
        duration_ns: ms / 2 * MS,
        reason: "sync.Mutex.Lock".into(),
        stack: Vec::new(),
        site: Some(place("main.(*Cart).Total", 88)),
        own_code: None,
        peer: None,
        ended_by: "goroutine",
        ended_by_goid: Some(911),
        causes: vec![cause],
    };
    Arc::new(Request {
        own_span: None,
        id: goid,
        context,
        parent_span_id: None,
        goroutine: context,
        name: name(path),
        path: Some("/users/42".into()),
        status: ended.map(|_| 503),
        start_unix_nano: 1_000 + goid,
        duration_ns: ms * MS,
        goid,
        ended,
        time: spent(ms / 2 * MS, ms / 2 * MS),
        children: None,
        waits: vec![wait],
        waits_complete: true,
        now: ended.is_none().then(|| Now { state: "select".into(), stack: Vec::new(), own_code: None }),
    })
}

fn busy() -> Interval {
    let mut interval = interval();
    interval.level = "full";
    let routes = vec![
        route("/checkout/{id}", &[40, 60, 900], 1, 0),
        route("/profile", &[3, 4, 5, 6, 7], 0, 2),
        route("/quiet", &[], 0, 0),
    ];
    let slow = vec![slow("/checkout/{id}", 1, 60, Some(Ended::Normal)), slow("/checkout/{id}", 2, 800, None)];
    interval.requests = Some(Arc::new(Requests { routes, slow, left_out: 0, ..Requests::default() }));
    interval
}

fn shown(interval: Interval) -> State {
    let mut state = State::new(String::new(), false, false);
    state.update(&Arc::new(interval));
    state.show(View::Requests);
    state
}

fn routes(state: &State) -> Vec<&str> {
    state.routes.iter().map(|row| &*row.name).collect()
}

#[test]
fn routes_are_sorted_filtered_and_those_without_requests_left_out() {
    let mut state = shown(busy());
    assert_eq!(routes(&state), ["GET /checkout/{id}", "GET /profile"]);
    let row = &state.routes[0];
    assert_eq!(
        (&*row.count, &*row.errors, &*row.max, &*row.open, &*row.oldest),
        ("3", "1", "900ms", "-", "-")
    );
    assert_eq!((&*row.bar, &*row.parts), ("███░░░░░░░", "sync.Mutex.Lock 75%, on CPU 25%"));
    assert_eq!((&*state.routes[1].open, &*state.routes[1].oldest), ("2", "12s"));
    state.sort_by_next();
    assert_eq!((state.sorted_by(), routes(&state)[0]), ("count", "GET /profile"));
    state.typing = true;
    "CHECK".chars().for_each(|c| state.type_char(c));
    assert_eq!(routes(&state), ["GET /checkout/{id}"]);
}

#[test]
fn the_slowest_requests_of_a_route_are_told_with_whom_they_waited_for() {
    let mut state = shown(busy());
    state.enter();
    let detail = state.detail.join("\n");
    for part in [
        "requests    3, 1 failed, 1 slow; p50 ",
        "status      200 × 3",
        "time        sync.Mutex.Lock 75%, on CPU 25%",
        "slowest     OPEN  800ms  ",
        "goroutine 2 now: select",
        "            503  60ms  ",
        "main.(*Cart).Total cart.go:88  held by goroutine 911 (main.flusher): IO wait 30ms in main.write",
    ] {
        assert!(detail.contains(part), "{part} in\n{detail}");
    }
    // It ends, and others come that are faster than those that are kept.
    let mut next = busy();
    let mut slower: Vec<_> = (10..20).map(|n| slow("/checkout/{id}", n, n, Some(Ended::Normal))).collect();
    slower.push(slow("/checkout/{id}", 2, 900, Some(Ended::Normal)));
    let routes = next.requests.as_ref().map(|r| r.routes.clone()).unwrap_or_default();
    next.requests = Some(Arc::new(Requests { routes, slow: slower, left_out: 3, ..Requests::default() }));
    state.update(&Arc::new(next));
    let detail = state.detail.join("\n");
    assert!(detail.contains("slowest     503  900ms") && !detail.contains("OPEN"), "{detail}");
    assert!(detail.contains("503  19ms") && !detail.contains("503  10ms"), "{detail}");
    assert!(detail.contains("more are slow than are told"), "{detail}");
    state.scroll(1);
    assert!(state.detail.join("\n").contains("slow ones   none told yet"), "{:?}", state.detail);
}

#[test]
fn what_is_slow_is_kept_while_the_picture_is_stopped_or_behind() {
    let mut state = shown(busy());
    state.pause();
    let mut next = busy();
    next.requests = Some(Arc::new(Requests {
        slow: vec![slow("/profile", 30, 70, Some(Ended::Panic))],
        ..Requests::default()
    }));
    state.update(&Arc::new(next));
    state.pause();
    state.update(&Arc::new(busy()));
    state.scroll(1);
    state.enter();
    assert!(state.detail.join("\n").contains("slowest     503  70ms"), "{:?}", state.detail);
}

#[test]
fn a_screen_of_any_size_shows_what_it_has_room_for() {
    let sizes: [(u16, u16, &[&str]); 4] = [
        (60, 16, &["requests by", "GET /checkout/{id}", "≤p99", "max", "errors"]),
        (80, 24, &["≤p50", "open", "oldest", "12s", "900ms"]),
        (
            120,
            36,
            &["new/s", "time spent", "███░░░░", "█ on CPU  ▓ waiting", "sync.Mutex.Lock 75%", "s sort: time"],
        ),
        (200, 60, &["sync.Mutex.Lock 75%, on CPU 25%"]),
    ];
    for (width, height, parts) in sizes {
        let text = screen(&mut shown(busy()), width, height);
        for part in parts {
            assert!(text.contains(part), "{width}x{height}: {part} in\n{text}");
        }
    }
    for width in 0..140 {
        let mut state = shown(busy());
        state.enter();
        (0..12).for_each(|height| drop(screen(&mut state, width, height)));
    }
}

#[test]
fn where_requests_are_not_traced_it_says_how_to_have_them() {
    let text = screen(&mut shown(interval()), 80, 24);
    assert!(text.contains("not traced: gotrace attach --requests auto"), "{text}");
    let mut lowered = busy();
    lowered.level = "waits";
    let text = screen(&mut shown(lowered.clone()), 120, 24);
    assert!(text.contains("not traced now: the level is below full"), "{text}");
    lowered.requests = Some(Arc::default());
    let text = screen(&mut shown(lowered), 120, 24);
    assert!(text.contains("none yet: requests are not traced at this level"), "{text}");
}

#[test]
fn parts_are_named_as_far_as_they_have_room() {
    let list = "sync.Mutex.Lock 75%, on CPU 25%";
    for (width, fits) in [
        (99, list),
        (31, list),
        (30, "sync.Mutex.Lock 75%"),
        (19, "sync.Mutex.Lock 75%"),
        (4, "sync"),
        (0, ""),
    ] {
        assert_eq!(first_of(list, width), fits, "{width}");
    }
    assert_eq!(first_of("", 5), "");
}

#[test]
fn names_that_a_program_chose_steer_nothing() {
    let mut hostile = busy();
    let path = "/a\u{1b}[2J\u{202e}x";
    let routes = vec![route(path, &[1], 0, 0)];
    let slow = vec![slow(path, 1, 60, Some(Ended::Normal))];
    hostile.requests = Some(Arc::new(Requests { routes, slow, left_out: 0, ..Requests::default() }));
    let mut state = shown(hostile);
    state.enter();
    for text in [&state.routes[0].name, &state.detail.concat()] {
        assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
}
