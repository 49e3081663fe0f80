//! What the judgements find in records that are right, and in records that are wrong in one thing each.

use serde_json::{Value, json};

use super::{super::Report, *};

fn own() -> Own {
    Own {
        kind: "mutex_sleeping".into(),
        protocol: "http/1.1".into(),
        method: "GET".into(),
        path: "/mutex_sleeping".into(),
        route: "/mutex_sleeping".into(),
        status: 200,
        ended: "normal".into(),
        goid: 30,
        start_unix_nano: 1_000_000_020_000,
        total_ns: 5_100_000,
        phases: [("wait".into(), 5_080_000)].into(),
        trace_id: "0".repeat(31) + "1",
        parent_span_id: "0".repeat(15) + "2",
        partner: 15,
        ..Own::default()
    }
}

fn seen() -> Value {
    let time = json!({
        "on_cpu": 60_000, "descheduled": 0, "throttled": 0, "run_queue": 20_000, "world_stopped": 0, "syscall": 0,
        "gc_assist": 0, "blocked": {"sync.Mutex.Lock": 5_050_000}
    });
    json!({
        "id": 1, "protocol": "http/1.1", "method": "GET", "route": "/mutex_sleeping", "path": null, "status": 200,
        "start_unix_nano": 1_000_000_000_000_u64, "duration_ns": 5_130_000, "goid": 30, "ended": "normal",
        "trace_id": "00000000000000000000000000000001", "parent_span_id": "0000000000000002",
        "span_id": "0000000000000003", "time_ns": time, "children": null,
        "waits": [{
            "offset_ns": 25_000, "duration_ns": 5_050_000, "reason": "sync.Mutex.Lock", "peer": null,
            "stack": [{"function": "sync.(*Mutex).Lock"}, {"function": "main.locks"}, {"function": "main.only.func1"}],
            "site": {"function": "main.locks"}, "own_code": {"function": "main.locks"},
            "ended_by": {"kind": "goroutine", "goid": 15},
            "causes": [{"goid": 15, "function": "main.holder", "state": "sleep", "duration_ns": 5_045_000}]
        }],
        "waits_complete": true
    })
}

fn report(ended: Vec<Value>) -> Report {
    let mut report = Report { ended, summary: json!({}), ..Report::default() };
    for seen in &report.ended {
        let route = json!({
            "protocol": seen["protocol"], "method": seen["method"], "route": seen["route"], "count": 1, "errors": 0,
            "slow": 1, "time_ns": seen["time_ns"]
        });
        report.intervals.push(json!({"routes": [route], "lost": {}}));
    }
    report
}

fn judged(seen: Value) -> Vec<String> {
    all(&[own()], &report(vec![seen]), "1.24.11", 1)
}

#[test]
fn a_record_that_is_right_is_not_found_wrong() {
    assert_eq!(judged(seen()), [""; 0]);
}

#[test]
fn a_record_that_is_wrong_in_one_thing_is_found_wrong() {
    let other: [(&str, Value); 18] = [
        ("/duration_ns", json!(5_130_001)),
        ("/time_ns/run_queue", json!(19_999)),
        ("/protocol", json!("http/2")),
        ("/method", json!("POST")),
        ("/route", Value::Null),
        ("/status", json!(500)),
        ("/goid", json!(31)),
        ("/ended", json!("panic")),
        ("/trace_id", Value::Null),
        ("/parent_span_id", json!("0000000000000003")),
        ("/span_id", Value::Null),
        ("/waits_complete", json!(false)),
        ("/waits/0/reason", json!("select")),
        ("/waits/0/stack/1/function", json!("main.holder")),
        ("/waits/0/own_code/function", json!("main.only.func1")),
        ("/waits/0/ended_by/goid", json!(16)),
        ("/waits/0/causes/0/state", json!("running")),
        ("/waits/0/offset_ns", json!(100_000)),
    ];
    for (at, value) in other {
        let mut seen = seen();
        *seen.pointer_mut(at).unwrap_or_else(|| panic!("there is no {at}")) = value;
        assert_ne!(judged(seen), [""; 0], "{at}");
    }
}

#[test]
fn what_is_missing_or_told_twice_is_found() {
    let (_, wrong) = pairs(&[own()], &[]);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    let (_, wrong) = pairs(&[own()], &[seen(), seen()]);
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    let (_, wrong) = pairs(&[], &[seen()]);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}

#[test]
fn a_request_without_a_trace_is_known_by_goroutine_and_time() {
    let bare = Own { trace_id: String::new(), parent_span_id: String::new(), ..own() };
    let mut record = seen();
    record["trace_id"] = Value::Null;
    let mut later = record.clone();
    later["start_unix_nano"] = json!(1_000_100_000_000_u64);
    let seen = [later, record];
    let (pairs, wrong) = pairs(std::slice::from_ref(&bare), &seen);
    assert_eq!(pairs.len(), 1);
    assert_eq!(pairs[0].1["start_unix_nano"], 1_000_000_000_000_u64);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}

#[test]
fn times_that_others_took_are_allowed_and_no_more() {
    let busy = Own { total_ns: 9_100_000, phases: [("wait".into(), 9_080_000)].into(), ..own() };
    let mut record = seen();
    record["duration_ns"] = json!(9_130_000);
    record["time_ns"]["descheduled"] = json!(4_000_000);
    assert_eq!(times(&[(&busy, &record)], 1), [""; 0]);
    record["time_ns"]["descheduled"] = json!(3_800_000);
    assert_ne!(times(&[(&busy, &record)], 1), [""; 0]);
    // More than the program's own wait is never right.
    let short = Own { phases: [("wait".into(), 4_900_000)].into(), ..own() };
    assert_ne!(times(&[(&short, &seen())], 1), [""; 0]);
}

#[test]
fn counts_are_held_against_the_programs() {
    let failing = Own { status: 500, ..own() };
    let mut report = report(vec![seen()]);
    assert_eq!(counts(&[own()], &report, |_| true), [""; 0]);
    assert_ne!(counts(&[own()], &report, |_| false), [""; 0]);
    assert_ne!(counts(std::slice::from_ref(&failing), &report, |_| true), [""; 0]);
    assert_ne!(counts(&[own(), own()], &report, |_| true), [""; 0]);
    report.intervals[0]["routes"][0]["errors"] = json!(1);
    assert_eq!(counts(&[failing], &report, |_| true), [""; 0]);
    assert_eq!(sums(&report), [""; 0]);
    report.intervals[0]["routes"][0]["time_ns"]["blocked"]["sync.Mutex.Lock"] = json!(1);
    assert_ne!(sums(&report), [""; 0]);
}

#[test]
fn a_kind_has_one_name() {
    let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), KINDS.len());
}
