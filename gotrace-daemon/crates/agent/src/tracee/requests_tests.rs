//! Requests from records and counts as the kernel side gives them.

use gotrace_common::{
    Header, RequestRecord, RouteKey, kind,
    request::{TIMES, TRACEPARENT_BYTES},
};
use gotrace_model::Resource;
use gotrace_process::Clock;

use super::*;
use crate::{
    decode::{Event, Frames, decode, with_path},
    tracee::{Counted, Input, NoNames, Origin, ProbeCost, Settings, SpanSampling},
};

const MS: u64 = 1_000_000;

fn tracee(per_second: Option<u64>) -> Tracee {
    let reasons: Vec<Arc<str>> = (0..256).map(|n| format!("reason {n}").into()).collect();
    let origin = Origin {
        pid: 7,
        resource: Arc::new(Resource::default()),
        key: ProcessKey::new("boot", 7, 1, 2, 0),
        clock: Clock::from_offset(0, 0),
        reasons: reasons.into(),
        settings: Settings {
            sampling: SpanSampling {
                ratio: 1.0,
                keep_longer_than: None,
                keep_wait_over: None,
                max_per_second: None,
            },
            level: gotrace_model::Level::Full,
            budget: None,
            trace_root_age_ns: u64::MAX,
        },
        sampled: false,
        suppressions: gotrace_inspect::leak::Suppressions::default(),
        room: 1000,
    };
    let mut tracee = Tracee::new(origin, ProbeCost::default());
    let state = RequestsState::new(per_second);
    tracee.apply(&Input::Requests(Box::new(state)), &NoNames, &mut Outputs::default());
    tracee
}

fn key(route: &str, status: u16) -> RouteKey {
    let mut key = RouteKey { status, protocol: request::protocol::HTTP1, ..RouteKey::default() };
    key.method[..3].copy_from_slice(b"GET");
    key.route[..route.len()].copy_from_slice(route.as_bytes());
    key.length = u8::try_from(route.len()).expect("short");
    key
}

/// A record as the kernel side writes it, of a request that was blocked all the time.
fn record(goid: u64, start_ns: u64, end_ns: u64, key: RouteKey, traceparent: &str) -> RequestRecord {
    let mut times = [0; TIMES];
    times[request::time::BLOCKED] = end_ns - start_ns;
    let mut header = [0; TRACEPARENT_BYTES];
    header[..traceparent.len()].copy_from_slice(traceparent.as_bytes());
    RequestRecord {
        header: Header { kind: kind::REQUEST, arg: 0, count: 0, waker: 0, process: 1, time_ns: end_ns },
        goid,
        start_ns,
        key,
        times,
        caller: header,
        children: request::Children::default(),
        path: request::Path::default(),
    }
}

fn bytes_of(record: &RequestRecord) -> Vec<u8> {
    let length = size_of::<RequestRecord>();
    // SAFETY: the record has no padding and lives as long as the slice, which is copied.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast::<u8>(), length) }.to_vec()
}

fn end(tracee: &mut Tracee, record: &RequestRecord) -> Outputs {
    let mut out = Outputs::default();
    tracee.apply(&Input::Record(&bytes_of(record)), &NoNames, &mut out);
    out
}

fn wait(
    tracee: &mut Tracee,
    goid: u64,
    (start_ns, wake_ns, end_ns): (u64, u64, u64),
    reason: u8,
    waker: u64,
) {
    let wait = Wait {
        process: 1,
        goid,
        start_ns,
        end_ns,
        wake_ns,
        reason,
        waker: if waker == 0 { WakerKind::Netpoll } else { WakerKind::Goroutine },
        waker_goid: waker,
        cpu_ns: 0,
        socket: None,
        frames: Frames::default(),
    };
    tracee.event(&Event::Wait(wait), &NoNames, &mut Outputs::default());
}

fn told(tracee: &mut Tracee, now_ns: u64, counts: RequestCounts) -> Requests {
    let mut out = Outputs::default();
    tracee.apply(&Input::RequestCounts(Box::new(counts)), &NoNames, &mut out);
    tracee.apply(&Input::Report(Box::new(Counted { now_ns, ..Counted::default() })), &NoNames, &mut out);
    let interval = out.intervals.pop().expect("a report");
    (**interval.requests.as_ref().expect("they are traced")).clone()
}

#[test]
fn a_record_is_what_the_kernel_side_wrote() {
    let mut record = record(12, 5, 30, key("GET example.com/users/{id}", 404), "x");
    record.header.count = request::ended::PANIC;
    record.header.arg = 1;
    record.times = std::array::from_fn(|n| n as u64 + 1);
    let bytes = bytes_of(&record);
    let Ok(Event::Request(end)) = decode(&bytes) else { panic!("{:?}", decode(&bytes)) };
    assert_eq!((end.process, end.goid, end.start_ns, end.end_ns), (1, 12, 5, 30));
    assert_eq!((end.ended, end.waits_lost), (request::ended::PANIC, true));
    assert_eq!((end.key, end.times, end.caller), (record.key, record.times, record.caller));
    let mut tracee = tracee(None);
    let out = self::end(&mut tracee, &record);
    let [Span::Request(_, request)] = &out.spans[..] else { panic!("{:?}", out.spans) };
    assert_eq!((request.ended, request.status), (Some(Ended::Panic), Some(404)));
    assert_eq!(request.name.text(), "GET /users/{id}");
    // Its parts do not add up, and that is not hidden.
    assert!(!request.waits_complete);
}

#[test]
fn the_programs_own_span_is_the_parent() {
    let mut record = record(12, 5, 30, key("work off /tmp", 1), "");
    record.key.protocol = request::protocol::SPAN;
    record.key.method = [0; 8];
    record.header.count = request::ended::ELSEWHERE;
    let ids: Vec<u8> = (1..=32).collect();
    record.caller[..32].copy_from_slice(&ids);
    for (flags, parent) in [(request::record::OWN_SPAN, true), (request::record::WAITS_LOST, false)] {
        record.header.arg = flags;
        let out = end(&mut tracee(None), &record);
        let [Span::Request(_, request)] = &out.spans[..] else { panic!("{:?}", out.spans) };
        assert_eq!((request.ended, request.status), (Some(Ended::OtherGoroutine), Some(1)));
        assert_eq!(request.name.text(), "work off /tmp");
        assert_eq!(request.waits_complete, parent);
        let own = request.own_span.map(|own| own.parent_span_id);
        if parent {
            assert_eq!(request.context.trace_id, ids[..16]);
            assert_eq!(request.parent_span_id.as_ref().map(|id| &id[..]), Some(&ids[16..24]));
            assert_eq!(own.flatten().as_ref().map(|id| &id[..]), Some(&ids[24..32]));
        } else {
            assert_eq!((request.parent_span_id, own), (None, None));
        }
    }
}

#[test]
fn a_wait_is_explained_by_what_the_goroutine_did_that_ended_it() {
    let mut tracee = tracee(None);
    // 3 held the lock and slept, 2 waited for 3, the request for 2.
    wait(&mut tracee, 3, (10 * MS, 58 * MS, 58 * MS), 4, 0);
    wait(&mut tracee, 2, (12 * MS, 60 * MS, 60 * MS), 5, 3);
    wait(&mut tracee, 9, (12 * MS, 60 * MS, 60 * MS), 6, 3);
    wait(&mut tracee, 1, (20 * MS, 62 * MS, 63 * MS), 7, 2);
    let ended = record(1, 15 * MS, 70 * MS, key("/cart", 200), "");
    let out = end(&mut tracee, &ended);
    let Some(Span::Request(_, request)) = out.spans.last() else { panic!("{:?}", out.spans) };
    assert_eq!(out.spans.len(), 2, "one wait, and the request");
    assert!(request.waits_complete);
    let [wait] = &request.waits[..] else { panic!("{:?}", request.waits) };
    assert_eq!((wait.offset_ns, wait.duration_ns, &*wait.reason), (5 * MS, 43 * MS, "reason 7"));
    assert_eq!((wait.ended_by, wait.ended_by_goid), ("goroutine", Some(2)));
    let causes: Vec<_> = wait.causes.iter().map(|c| (c.goid, &*c.state, c.duration_ns / MS)).collect();
    assert_eq!(causes, [(2, "reason 5", 40), (3, "reason 4", 38)]);
}

#[test]
fn one_that_did_not_wait_has_run() {
    let mut tracee = tracee(None);
    wait(&mut tracee, 2, (30 * MS, 38 * MS, 38 * MS), 5, 0);
    wait(&mut tracee, 1, (20 * MS, 60 * MS, 60 * MS), 7, 2);
    let out = end(&mut tracee, &record(1, 15 * MS, 70 * MS, key("/cart", 200), ""));
    let Some(Span::Request(_, request)) = out.spans.last() else { panic!("{:?}", out.spans) };
    let causes = &request.waits.first().expect("one").causes;
    let causes: Vec<_> = causes.iter().map(|c| (c.goid, &*c.state, c.duration_ns / MS)).collect();
    assert_eq!(causes, [(2, "reason 5", 8), (2, "running", 32)]);
    // Two that wait for each other are followed once.
    wait(&mut tracee, 4, (80 * MS, 90 * MS, 90 * MS), 5, 3);
    wait(&mut tracee, 3, (80 * MS, 90 * MS, 90 * MS), 5, 4);
    wait(&mut tracee, 1, (80 * MS, 90 * MS, 90 * MS), 7, 3);
    let out = end(&mut tracee, &record(1, 75 * MS, 95 * MS, key("/cart", 200), ""));
    let Some(Span::Request(_, request)) = out.spans.last() else { panic!("{:?}", out.spans) };
    assert_eq!(request.waits.first().expect("one").causes.len(), 2);
}

#[test]
fn a_request_is_in_its_callers_trace() {
    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut tracee = tracee(None);
    let mut of = |traceparent: &str| {
        let out = end(&mut tracee, &record(1, 0, MS, key("/", 200), traceparent));
        let Some(Span::Request(_, request)) = out.spans.last() else { panic!("{:?}", out.spans) };
        (request.context.trace_id, request.parent_span_id, request.goroutine.trace_id)
    };
    let (trace, parent, _) = of(CALLER);
    assert_eq!(trace[..3], [0x4b, 0xf9, 0x2f]);
    assert_eq!(parent, Some([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
    for wrong in [
        "",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7+01",
    ] {
        let (trace, parent, own) = of(wrong);
        assert_eq!((trace, parent), (own, None), "{wrong}");
    }
}

fn counted(route: &str, status: u16, durations: &[u64]) -> RouteCount {
    let mut histogram = Histogram::default();
    durations.iter().for_each(|ns| histogram.add(*ns));
    let mut times = [0; TIMES];
    times[request::time::ON_CPU] = durations.iter().sum();
    RouteCount { id: RouteId::of(&key(route, status)), status, durations: histogram, times }
}

#[test]
fn routes_are_told_since_the_last_report_and_in_all() {
    let mut tracee = tracee(None);
    let routes = vec![counted("/a", 200, &[MS, 2 * MS]), counted("/a", 503, &[8 * MS])];
    let first = told(&mut tracee, 10, RequestCounts { routes, ..RequestCounts::default() });
    let [a] = &first.routes[..] else { panic!("{first:?}") };
    assert_eq!((a.durations.count, a.errors, a.times.total()), (3, 1, 11 * MS));
    assert_eq!(a.by_status, BTreeMap::from([(Some(200), 2), (Some(503), 1)]));
    end(&mut tracee, &record(1, 0, 3 * MS, key("/a", 200), ""));
    let routes = vec![
        counted("/a", 200, &[MS, 2 * MS, 3 * MS]),
        counted("/a", 503, &[8 * MS]),
        counted("/a", request::status::FAILED, &[MS]),
        counted("/b", 404, &[MS]),
    ];
    let second = told(&mut tracee, 20, RequestCounts { routes, ..RequestCounts::default() });
    let [a, b] = &second.routes[..] else { panic!("{second:?}") };
    assert_eq!((a.durations.count, a.durations.max_ns, a.errors, a.slow), (2, 3 * MS, 1, 1));
    assert_eq!((a.total.durations.count, a.total.durations.max_ns, a.total.errors), (5, 8 * MS, 2));
    assert_eq!((b.durations.count, b.errors, b.name.text()), (1, 0, "GET /b".into()));
    assert_eq!(second.slow.len(), 1);
    let third = told(&mut tracee, 30, RequestCounts::default());
    assert!(third.routes.is_empty() && third.slow.is_empty());
}

#[test]
fn of_a_route_so_many_are_told_and_the_rest_is_counted() {
    let mut tracee = tracee(Some(3));
    let mut spans = 0;
    for n in 0..10 {
        spans += end(&mut tracee, &record(n, 0, 5 * MS, key("/a", 200), "")).spans.len();
    }
    spans += end(&mut tracee, &record(1, 0, 5 * MS, key("/b", 200), "")).spans.len();
    // Another second.
    spans += end(&mut tracee, &record(1, 0, 2000 * MS, key("/a", 200), "")).spans.len();
    let routes = vec![counted("/a", 200, &[5 * MS; 11])];
    let told = told(&mut tracee, 10, RequestCounts { routes, ..RequestCounts::default() });
    assert_eq!((spans, told.slow.len(), told.left_out, told.routes[0].slow), (5, 5, 7, 11));
}

#[test]
fn an_open_request_is_told_once_and_again_when_it_ends() {
    let mut tracee = tracee(None);
    let open = OpenSeen {
        id: RouteId::of(&key("/stream", 0)),
        goid: 5,
        start_ns: 10 * MS,
        times: [0; TIMES],
        state: (request::state::BLOCKED, 9, 30 * MS),
        slow: true,
    };
    let counts = RequestCounts { now_ns: 500 * MS, open: vec![open], ..RequestCounts::default() };
    let detail =
        |goid| OpenDetail { goid, start_ns: 10 * MS, path: Some("/stream/1".into()), frames: vec![7, 8] };
    let details = Input::OpenDetails(vec![detail(4), detail(5)]);
    tracee.apply(&details, &NoNames, &mut Outputs::default());
    assert!(!tracee.has_told((5, 10 * MS)));
    let first = told(&mut tracee, 500 * MS, counts.clone());
    assert!(tracee.has_told((5, 10 * MS)));
    let [request] = &first.slow[..] else { panic!("{first:?}") };
    let now = request.now.as_ref().expect("it is open");
    assert_eq!((request.ended, &*now.state), (None, "IO wait"));
    assert_eq!(request.path.as_deref(), Some("/stream/1"));
    assert_eq!((request.duration_ns, request.time.total()), (490 * MS, 470 * MS));
    let [route] = &first.routes[..] else { panic!("{first:?}") };
    assert_eq!((route.open, route.oldest_open_ns), (1, Some(490 * MS)));
    let second = told(&mut tracee, 600 * MS, RequestCounts { now_ns: 600 * MS, ..counts });
    assert_eq!((second.slow.len(), second.routes[0].open), (0, 1));
    end(&mut tracee, &record(5, 10 * MS, 700 * MS, key("/stream", 200), ""));
    let third = told(&mut tracee, 800 * MS, RequestCounts::default());
    assert_eq!(third.slow.len(), 1);
    assert_eq!(third.slow[0].ended, Some(Ended::Normal));
}

#[test]
fn what_is_too_old_is_forgotten_and_said_to_be_missing() {
    let mut tracee = tracee(None);
    for n in 0..MAX_PAST as u64 + 10 {
        wait(&mut tracee, n % 100, (n * MS, n * MS + 1, n * MS + 2), 3, 0);
    }
    let last = (MAX_PAST as u64 + 10) * MS;
    let of = |tracee: &mut Tracee, start_ns| {
        let out = end(tracee, &record(7, start_ns, last, key("/a", 200), ""));
        let Some(Span::Request(_, request)) = out.spans.last() else { panic!("{:?}", out.spans) };
        (request.waits.len(), request.waits_complete)
    };
    assert_eq!(of(&mut tracee, last - 1000 * MS), (10, true));
    assert_eq!(of(&mut tracee, 0), (MAX_WAITS, false));
    let state = tracee.requests.as_ref().expect("they are traced");
    assert_eq!((state.past.len(), state.last.len()), (MAX_PAST, 100));
}

#[test]
fn names_are_what_can_be_printed() {
    let mut odd = key("GET /a", 200);
    odd.route[..3].copy_from_slice(b"\x1b[3");
    assert!(!RouteId::of(&odd).route.contains('\x1b'));
    let long = RouteKey { length: 255, route: [b'x'; 104], ..odd };
    assert_eq!(RouteId::of(&long).route.chars().count(), 105);
    assert!(RouteId::of(&long).route.ends_with('…'));
}

/// What is told of goroutines that a request started; nothing where that is not sure.
#[test]
fn children_are_told_where_all_of_them_are_known() {
    let of = |started, unseen, ending, ended| request::Children {
        started,
        unseen,
        ending,
        ended,
        times: std::array::from_fn(|n| n as u64),
    };
    let told = |children: request::Children| of_children(&children);
    let known = told(of(5, 0, 3, 3)).expect("all are known");
    assert_eq!((known.goroutines, known.left_running, known.time.0[2]), (3, 2, 2));
    assert_eq!(told(of(5, 1, 3, 3)), None);
    // One of them was about to add what it spent.
    assert_eq!(told(of(5, 0, 4, 3)), None);
    let mut tracee = tracee(None);
    let mut with = record(7, 1_000, 2_000, key("/a", 200), "");
    with.children = of(2, 0, 2, 2);
    let said = |out: Outputs| match &out.spans[..] {
        [.., Span::Request(_, request)] => request.children,
        _ => panic!("a request ended"),
    };
    assert_eq!(said(end(&mut tracee, &with)).map(|children| children.goroutines), Some(2));
    // As recordings of earlier versions have them: without the path, and without the children.
    let mut bytes = bytes_of(&with);
    for (field, known) in [(size_of::<request::Path>(), Some(2)), (size_of::<request::Children>(), None)] {
        bytes.truncate(bytes.len() - field);
        let mut out = Outputs::default();
        tracee.apply(&Input::Record(&bytes), &NoNames, &mut out);
        assert_eq!(said(out).map(|children| children.goroutines), known);
    }
}

/// A recording has what was told of a path, and no more.
#[test]
fn paths_are_told_without_secrets() {
    let mut tracee = tracee(None);
    let mut asked = record(7, 1_000, 2_000, key("/a", 200), "");
    let text = b"/reset-password/hunter2";
    asked.path.length = text.len() as u64;
    asked.path.text[..text.len()].copy_from_slice(text);
    let path = |out: Outputs| match &out.spans[..] {
        [.., Span::Request(_, request)] => request.path.clone(),
        _ => panic!("a request ended"),
    };
    assert_eq!(path(end(&mut tracee, &asked)).as_deref(), Some("/reset-password/[redacted]"));
    let bytes = bytes_of(&asked);
    let Ok(Event::Request(decoded)) = decode(&bytes) else { panic!("it is a request") };
    let recorded = with_path(&bytes, &paths::redacted(&decoded.path));
    assert!(!recorded.windows(7).any(|part| part == b"hunter2"));
    let mut out = Outputs::default();
    tracee.apply(&Input::Record(&recorded), &NoNames, &mut out);
    assert_eq!(path(out).as_deref(), Some("/reset-password/[redacted]"));
}
