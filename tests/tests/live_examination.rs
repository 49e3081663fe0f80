//! `gotrace attach` finds what `gotrace leaks` finds: the same goroutines in one finding, with what they retain, where they
//! wait in plain words, and who holds what they wait for; and what it has proven it goes on to tell. Needs root and `go`.

use std::cell::Cell;

use gotrace_tests::{
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, privileged},
    leaks::{json, leaks},
    running::Running,
};
use serde_json::Value;

const PACE: [&str; 8] =
    ["--prove-after", "2s", "--prove-every", "1s", "--suspect-every", "300ms", "--interval", "500ms"];

/// A running case.
fn start(name: &str) -> Running {
    Running::start(&build("cases", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds"), name)
}

/// What `gotrace leaks` finds of it, and then `gotrace attach`, once there is something in a list.
fn both(name: &str, list: &str, verdict: &str) -> (Value, Value) {
    let running = start(name);
    let output = leaks(running.0.id(), &["--watch", "6s", "--format", "json"]).expect("gotrace runs");
    let lines = json(&output).expect("JSON");
    let found: Vec<&Value> = lines.iter().filter(|l| l["verdict"] == verdict).collect();
    assert_eq!(found.len(), 1, "{name}: {lines:#?}");
    let mut gotrace = Gotrace::attach(running.0.id(), &PACE).expect("gotrace attaches");
    let of = |i: &Value| {
        let mut of = i[list].as_array().into_iter().flatten();
        of.find(|f| list == "leaks" || f["verdict"] == verdict).cloned()
    };
    let told = gotrace.until("it is found", |i| of(i).is_some()).expect("found");
    gotrace.interrupt();
    gotrace.wait().expect("it ends");
    (found[0].clone(), of(&told).expect("it is there"))
}

/// Goid, evidence and frame of each holder.
fn holders(of: &Value) -> Vec<(u64, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    let holders = of["holders"].as_array().expect("holders");
    let of =
        |h: &Value| (h["goid"].as_u64().unwrap_or(0), text(&h["evidence"]), text(&h["frame"]["function"]));
    holders.iter().map(of).collect()
}

#[test]
fn those_that_wait_for_each_other_are_one_leak_with_all_that_they_retain() {
    if !privileged("live_examination") {
        return;
    }
    let (found, told) = both("wrapped", "leaks", "unreachable");
    assert_eq!(found["count"], 4, "{found:#?}");
    for field in ["count", "retained_bytes", "goids"] {
        assert_eq!(found[field], told[field], "{field}: {found:#?} {told:#?}");
    }
    let others = |v: &Value| v["others"].as_array().expect("others").len();
    assert_eq!((others(&found), others(&told)), (1, 1), "{told:#?}");
}

#[test]
fn who_holds_a_lock_or_keeps_a_connection_is_told_by_both() {
    if !privileged("live_examination") {
        return;
    }
    for (name, verdict, place) in
        [("holder", "stuck", Value::Null), ("dry", "stalled", "waits for a database connection".into())]
    {
        let (found, told) = both(name, "suspects", verdict);
        assert_eq!(found["count"], told["count"], "{name}");
        assert_eq!((&found["place"], &told["place"]), (&place, &place), "{name}");
        assert!(!holders(&found).is_empty(), "{name}: {found:#?}");
        assert_eq!(holders(&found), holders(&told), "{name}");
    }
}

#[test]
fn what_is_proven_stays_told() {
    if !privileged("live_examination") {
        return;
    }
    let running = start("pull");
    let mut gotrace = Gotrace::attach(running.0.id(), &PACE).expect("gotrace attaches");
    // More come all along, so that there is another proof, and another.
    let (most, rises) = (Cell::new(0), Cell::new(0));
    let grows = |i: &Value| {
        let of = i["leaks"].as_array().into_iter().flatten();
        let count: u64 = of.filter_map(|l| l["count"].as_u64()).sum();
        assert!(count >= most.get(), "{} were proven, and then {count}", most.get());
        rises.set(rises.get() + u64::from(count > most.get()));
        most.set(count);
        rises.get() >= 2
    };
    gotrace.until("two proofs found more", grows).expect("they do");
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("it ends");
    assert_eq!(outcome.summary().expect("a summary")["leaks_refuted"], 0);
}
