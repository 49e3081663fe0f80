//! `gotrace requests` over its budget: it traces in turns, says for which share of the time, and what it tells is right
//! though turns begin and end under open requests. Needs root and `go`.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    fixture::PATIENCE,
    gobuild::Mode,
    gotrace::privileged,
    requests::{
        Own, Program, Report, Watch,
        judge::{agrees, identity, record, sums},
        server,
    },
};
use serde_json::Value;

/// Turns that must begin while the server is busy, after the first one.
const TURNS: usize = 2;
/// What the server does again and again while it is busy: some 900 requests a second, of which the probes want several
/// times 5 ms.
const WORK: [&str; 2] = ["run 400 fast", "run 20 mutex_sleeping channel"];

/// What an interval counted.
fn count(interval: &Value) -> u64 {
    let routes = interval["routes"].as_array().into_iter().flatten();
    routes.filter_map(|route| route["count"].as_u64()).sum()
}

fn coverage(interval: &Value) -> f64 {
    interval["coverage"].as_f64().expect("a number")
}

/// Intervals are as long as a busy machine makes them, and the last one is shorter.
fn length_ns(interval: &Value) -> f64 {
    let at = |field: &str| interval[field].as_u64().expect("a time");
    (at("end_unix_nano") - at("start_unix_nano")) as f64
}

/// Turns that began after a rest.
fn turns(report: &Report) -> usize {
    let shares: Vec<f64> = report.intervals.iter().map(coverage).collect();
    shares.windows(2).filter(|pair| pair[0] == 0.0 && pair[1] > 0.0).count()
}

fn judged(version: &str) -> Vec<String> {
    let mut program = Program::start(&server(version, Mode::Stripped));
    // At least 5 ms of each second.
    let mut watch = Watch::within("0.1%", program.pid(), &["--slow", "0ms", "--interval", "1s"]);
    // One that no turn sees the beginning and the end of.
    program.tell("open");
    let open = program.answer();
    let begun = Instant::now();
    let mut own = Vec::new();
    while turns(watch.said()) < TURNS {
        WORK.iter().for_each(|work| own.extend(program.run(work).0));
        assert!(begun.elapsed() < PATIENCE, "it does not trace in turns: {:?}", watch.said().intervals);
    }
    let (busy, told) = (own.len(), watch.said().intervals.len());
    own.extend(program.run("release").0);
    while !watch.said().intervals.last().is_some_and(|last| coverage(last) == 1.0) {
        own.extend(program.run("run 1 sleep").0);
        thread::sleep(Duration::from_millis(200));
        assert!(begun.elapsed() < 2 * PATIENCE, "it is calm, and not all is traced");
    }
    let report = watch.finish();
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: String| wrong.extend((!holds).then_some(what));
    let counted = report.intervals.iter().map(count).sum::<u64>();
    let shares: Vec<f64> = report.intervals.iter().map(coverage).collect();
    let summary = coverage(&report.summary);
    let while_busy = shares.iter().take(told).sum::<f64>() / told as f64;
    println!(
        "  {} turns after the first, {while_busy:.3} of the time while it is busy, {summary:.3} in all; {counted} of {} requests; costs {}",
        turns(&report),
        own.len(),
        report.summary["probe_cost_share"]
    );
    check((0.01..0.7).contains(&while_busy), format!("it covers {while_busy} of the time: {shares:?}"));
    let (covered, whole) = report.intervals.iter().fold((0.0, 0.0), |(covered, whole), interval| {
        (covered + coverage(interval) * length_ns(interval), whole + length_ns(interval))
    });
    let mean = covered / whole;
    check((mean - summary).abs() < 0.03, format!("the whole run covers {summary}, its intervals {mean}"));
    // Nothing is counted but in a turn, and of those that end in turns most are.
    let outside = report.intervals.iter().filter(|i| coverage(i) == 0.0).map(count).sum::<u64>();
    check(outside == 0, format!("{outside} requests are counted outside of turns"));
    let expected = while_busy * busy as f64 + (own.len() - busy) as f64;
    let ratio = counted as f64 / expected;
    check(
        (0.5..1.5).contains(&ratio),
        format!("{counted} requests are counted, of about {expected:.0} in turns"),
    );
    check(count(&report.summary) == counted, format!("the summary counts {}", count(&report.summary)));
    check(
        report.ended.len() as u64 == counted,
        format!("{} records of {counted} requests", report.ended.len()),
    );
    let lost = report.lost();
    check(lost.is_empty(), format!("lost: {lost:?}"));
    // It was open when turns began and ended: nobody can say what became of it.
    let its = |seen: &&Value| seen["trace_id"] == open["trace_id"];
    let told = report.ended.iter().filter(its).count();
    check(told == 0, format!("{told} records of the request that was open throughout"));
    let left = report.intervals.last().and_then(|i| i["routes"].as_array());
    let left = left.into_iter().flatten().filter(|route| route["open"].as_u64() > Some(0)).count();
    check(left == 0, "all have ended, and some are open".into());
    wrong.extend(report.ended.iter().chain(&report.open).flat_map(record));
    wrong.extend(sums(&report));
    let own: HashMap<&str, &Own> = own.iter().map(|own| (own.trace_id.as_str(), own)).collect();
    for seen in &report.ended {
        match own.get(seen["trace_id"].as_str().unwrap_or_default()) {
            Some(own) => wrong.extend(identity(own, seen)),
            None => wrong.push(format!("a record of no request: {seen}")),
        }
    }
    wrong
}

#[test]
fn over_the_budget_requests_are_traced_in_turns() {
    if !privileged("live_requests_turns") {
        return;
    }
    agrees("Go 1.27.3, a budget of 5 ms a second", || judged("1.27.3"));
}
