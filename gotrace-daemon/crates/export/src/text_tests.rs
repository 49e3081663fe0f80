//! What plain lines and summaries say, and states that other tests are made of.

use super::*;
use gotrace_common::Histogram;
use gotrace_model::{Collector, Leak, Levels, Resource, Suspected};

/// A state with a little of everything.
pub(crate) fn sample() -> Interval {
    let location = |function: &str, line| {
        Arc::new(Location { function: function.into(), file: "/src/main.go".into(), line })
    };
    let mut waits = Histogram::default();
    waits.add(1_500_000);
    waits.add(2_000_000);
    let empty = Histogram::default();
    let site = |entry, created_by, alive, born_total, waiting, waits, oldest_ns| Site {
        entry,
        created_by,
        alive,
        born: 5,
        died: 1,
        born_total,
        died_total: born_total - alive,
        cpu_ns: (alive == 10).then_some(420_000_000),
        cpu_total_ns: if alive == 10 { 2_100_000_000 } else { 0 },
        throttled_ns: if alive == 10 { 180_000_000 } else { 0 },
        throttled_total_ns: if alive == 10 { 900_000_000 } else { 0 },
        waiting,
        waits,
        lifetimes: empty,
        oldest_ns,
        oldest_is_lower_bound: false,
    };
    let receive: BTreeMap<Arc<str>, u64> = [("chan receive".into(), 10)].into();
    Interval {
        requests: None,
        resource: Arc::new(Resource::new(
            [("process.executable.name".into(), Value::Text("shop".into()))].into(),
        )),
        pid: 42,
        start_unix_nano: 1_000_000_000,
        end_unix_nano: 2_000_000_000,
        alive: 12,
        alive_is_lower_bound: true,
        born: 5,
        died: 1,
        born_total: 100,
        died_total: 88,
        lost: [("ring_create", 3)].into(),
        repaired: [("death", 2)].into(),
        sampled_out: [("rate_limit", 7), ("ratio", 1200)].into(),
        events: [("create", 100), ("exit", 88)].into(),
        waiting: receive.clone(),
        waits: [("chan receive".into(), waits)].into(),
        waits_at: Arc::new(gotrace_model::samples::places()),
        schedule: empty,
        syscalls: empty,
        sites: vec![
            site(
                location("main.worker", 12),
                Some(location("main.main", 30)),
                10,
                90,
                receive,
                waits,
                Some(7_000_000_000),
            ),
            site(location(Location::BORN_BEFORE, 0), None, 2, 10, BTreeMap::new(), empty, None),
        ],
        snapshots: empty,
        engine: "events",
        level: "waits",
        level_reason: None,
        levels: Levels { wanted: "waits", ns: [("waits", 1_000_000_000)].into(), ..Levels::default() },
        leaks: Vec::new(),
        leaks_refuted: 0,
        suspects: Vec::new(),
        collector: Collector::default(),
        process_cpu_ns: Some(500_000_000),
        process_cpu_total_ns: Some(2_500_000_000),
        probe_cost_share: None,
    }
}

/// The same, at the moment at which the budget had its level lowered.
pub(crate) fn lowered() -> Interval {
    let mut lowered = sample();
    (lowered.level, lowered.level_reason) = ("lifecycle", Some("budget"));
    lowered.probe_cost_share = Some(0.28);
    lowered.levels = Levels {
        wanted: "waits",
        ns: [("waits", 1_500_000_000), ("lifecycle", 8_500_000_000)].into(),
        change: Some(LevelChange { from: "waits", to: "lifecycle", probe_cost_share: 0.28 }),
        budget: Some(0.05),
    };
    lowered
}

fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut bytes = Vec::new();
    write(&mut bytes).expect("a vector takes everything");
    String::from_utf8(bytes).expect("text")
}

#[test]
fn an_interval_reads_as_lines() {
    assert_eq!(
        text(|out| interval(out, &sample(), false)),
        "pid 42: at least 12 alive, 5 created/s, 1 exited/s, LOST: 3 ring_create\n  \
         \u{20}    10 alive       5 created/s       1 exited/s  main.worker  created by main.main (main.go:30)  \
         cpu 42%  waiting: 10 in chan receive  waits p50 ≤1.8ms p99 2.0ms max 2.0ms  oldest 7.0s\n  \
         \u{20}     2 alive       5 created/s       1 exited/s  (created before attaching)  created by ?\n"
    );
}

#[test]
fn an_interval_that_is_too_short_for_rates_has_counts() {
    let mut short = sample();
    short.end_unix_nano = short.start_unix_nano + 430_000;
    (short.born, short.sites[0].born) = (0, 1);
    let text = text(|out| interval(out, &short, false));
    assert!(text.starts_with("pid 42: at least 12 alive, 0 created, 1 exited in 430us, LOST: "), "{text}");
    assert!(text.contains("    10 alive       1 created       1 exited  main.worker"), "{text}");
    assert!(!text.contains("/s"), "{text}");
}

#[test]
fn what_happened_now_and_then_is_not_said_to_be_never() {
    for (n, seconds, expected) in
        [(0, 10, "0"), (1, 60, "<0.1"), (1, 10, "0.1"), (5, 1, "5"), (99, 10, "9.9"), (999, 10, "100")]
    {
        assert_eq!(Rate(seconds * 1_000_000_000).of(n), expected);
    }
}

#[test]
fn the_main_goroutine_has_no_go_statement() {
    let mut main = sample();
    main.sites[0].entry = Arc::new(Location { function: "runtime.main".into(), file: "".into(), line: 0 });
    main.sites[0].created_by = None;
    let text = text(|out| interval(out, &main, false));
    assert!(text.contains("  runtime.main  created by the runtime  cpu 42%  waiting: "), "{text}");
}

#[test]
fn names_do_not_steer_the_terminal() {
    let mut evil = sample();
    evil.sites[0].entry = Arc::new(Location { function: "evil\x1b[2J".into(), file: "".into(), line: 0 });
    let text = text(|out| interval(out, &evil, false));
    assert!(text.contains("evil\\u{1b}[2J") && !text.contains('\x1b'), "{text}");
}

#[test]
fn a_summary_names_losses_and_waits() {
    let summary_of = Summary {
        last: sample(),
        cost_ns_per_event: None,
        spans: 9,
        spans_dropped: [("unreachable", 2)].into(),
        points_dropped: BTreeMap::new(),
        logs_dropped: [("unreachable", 1)].into(),
        ended: "the process ended".into(),
    };
    let text = text(|out| summary(out, &summary_of, false));
    for part in [
        "pid 42 (shop): 1.0 s at level waits; the process exited",
        "100 created, 88 exited, at least 12 alive",
        "chan receive                                2    ≤1.8ms     2.0ms     2.0ms",
        "events       188, LOST: 3 ring_create",
        "repaired     2 exits (missed by the probes, found by snapshots)",
        "spans        9, sampled out: 7 rate limit, 1200 ratio, NOT DELIVERED: 2 unreachable",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn what_the_budget_took_away_is_said_at_once_and_in_the_end() {
    let now = text(|out| interval(out, &lowered(), false));
    let mut lines = now.lines();
    assert_eq!(
        lines.next(),
        Some(
            "pid 42: at least 12 alive, 5 created/s, 1 exited/s, LOST: 3 ring_create, overhead about 28% CPU, \
             level lifecycle instead of waits (budget)"
        )
    );
    assert_eq!(
        lines.next(),
        Some("  level lowered from waits to lifecycle: overhead about 28% of its CPU time, budget 5.0%")
    );
    let mut last = lowered();
    last.levels.ns.insert("sampled", 2_000_000_000);
    let summary_of = Summary {
        last,
        cost_ns_per_event: Some(548.0),
        spans: 9,
        spans_dropped: BTreeMap::new(),
        points_dropped: BTreeMap::new(),
        logs_dropped: BTreeMap::new(),
        ended: "duration".into(),
    };
    let text = text(|out| summary(out, &summary_of, false));
    for part in [
        "1.0 s (1.5s at level waits, 8.5s at level lifecycle, 2.0s from snapshots); stopped after --duration",
        "INCOMPLETE   created, exited, waits, cpu time, spans: below level waits for 10s, to stay within the budget of 5.0% \
         (--budget none lifts it)",
        "snapshots    0, p50 -",
        "events       188, LOST: 3 ring_create\n  \
         overhead     about 28.0% of the target's CPU time, about 548 ns per event\n",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn an_estimate_above_what_was_used_is_said_to_be_one() {
    let mut last = sample();
    last.probe_cost_share = Some(1.0);
    let now = text(|out| interval(out, &last, false));
    assert!(now.lines().next().is_some_and(|l| l.ends_with(", overhead at most 100% CPU")), "{now}");
    let summary_of = Summary {
        last,
        cost_ns_per_event: Some(548.0),
        spans: 9,
        spans_dropped: BTreeMap::new(),
        points_dropped: BTreeMap::new(),
        logs_dropped: BTreeMap::new(),
        ended: "duration".into(),
    };
    let text = text(|out| summary(out, &summary_of, false));
    let said = "about 100.0% of the target's CPU time (the estimate is above what it used), about 548 ns";
    assert!(text.contains(said), "{text}");
}

#[test]
fn what_is_sampled_says_so() {
    let mut last = sample();
    (last.engine, last.level, last.lost) = ("snapshot", "sampled", BTreeMap::new());
    last.levels = Levels { wanted: "sampled", ns: [("sampled", 1_000_000_000)].into(), ..Levels::default() };
    last.snapshots.add(3_000_000);
    last.sites[0].oldest_is_lower_bound = true;
    let summary_of = Summary {
        last,
        cost_ns_per_event: None,
        spans: 0,
        spans_dropped: BTreeMap::new(),
        points_dropped: BTreeMap::new(),
        logs_dropped: BTreeMap::new(),
        ended: "interrupted".into(),
    };
    let text = text(|out| summary(out, &summary_of, false));
    assert!(text.contains("1.0 s from snapshots; interrupted"), "{text}");
    assert!(text.contains("snapshots    1, p50 ") && text.contains("max 3.0ms"), "{text}");
    assert!(text.contains("oldest 7.0s+"), "{text}");
    assert!(!text.contains("events ") && !text.contains("spans "), "{text}");
}

#[test]
fn durations_are_short() {
    for (ns, expected) in [
        (870, "870ns"),
        (1_234, "1.2us"),
        (35_000_000, "35ms"),
        (999_600_000, "1.0s"),
        (35_000_000_000, "35s"),
        (125_000_000_000, "2m05s"),
        (7_500_000_000_000, "2h05m"),
    ] {
        assert_eq!(duration(Some(ns)), expected);
    }
    assert_eq!(duration(None), "-");
}

#[test]
fn the_runtimes_own_are_counted_and_shown_when_asked_for() {
    let mut with_runtime = sample();
    let own = Location { function: "runtime.bgsweep".into(), file: "/go/mgcsweep.go".into(), line: 1 };
    with_runtime.sites[1].entry = Arc::new(own);
    let mut waits = Histogram::default();
    waits.add(1_000);
    with_runtime.waits.insert("GC worker (idle)".into(), waits);
    let summary_of = Summary {
        last: with_runtime.clone(),
        cost_ns_per_event: None,
        spans: 0,
        spans_dropped: BTreeMap::new(),
        points_dropped: BTreeMap::new(),
        logs_dropped: BTreeMap::new(),
        ended: "interrupted".into(),
    };
    for system in [false, true] {
        let lines = text(|out| interval(out, &with_runtime, system));
        assert!(lines.starts_with("pid 42: at least 12 alive (including 2 of the Go runtime), "), "{lines}");
        let whole = text(|out| summary(out, &summary_of, system));
        assert!(whole.contains("at least 12 alive at the end (including 2 of the Go runtime)"), "{whole}");
        assert_eq!(whole.contains("GC worker (idle)"), system, "{whole}");
        assert_eq!(whole.contains("of the Go runtime (--system)                1\n"), !system, "{whole}");
        for text in [lines, whole] {
            assert_eq!(text.contains("runtime.bgsweep"), system, "{text}");
            assert!(text.contains("main.worker"), "{text}");
        }
    }
    assert_eq!(with_runtime.without_system().sites.len(), with_runtime.sites.len() - 1);
}

#[test]
fn suppressed_findings_are_shown_with_the_reason() {
    let mut found = sample();
    let entry = Arc::clone(&found.sites[0].entry);
    let suppressed: Option<Arc<str>> = Some("by design".into());
    found.leaks.push(Leak {
        entry: Arc::clone(&entry),
        created_by: None,
        waits_at: None,
        reason: "chan receive".into(),
        count: 3,
        retained_bytes: None,
        goids: vec![7, 8, 9],
        growth_per_second: None,
        others: Vec::new(),
        place: None,
        holders: Vec::new(),
        why: "why".into(),
        suppressed: suppressed.clone(),
    });
    found.suspects.push(Suspected {
        verdict: "growing",
        entry,
        created_by: None,
        waits_at: None,
        reason: "select".into(),
        count: 4,
        growth_per_second: None,
        standing_ns: 1,
        why: "why".into(),
        goids: Vec::new(),
        place: None,
        holders: Vec::new(),
        suppressed,
    });
    let lines = text(|out| interval(out, &found, false));
    assert!(
        lines.contains("3 LEAKED  main.worker  created by ?: chan receive, suppressed: by design\n"),
        "{lines}"
    );
    assert!(
        lines.contains("4 suspected (growing)  main.worker  created by ?: select, suppressed: by design\n"),
        "{lines}"
    );
    found.leaks[0].suppressed = None;
    assert_eq!(text(|out| interval(out, &found, false)).matches("suppressed").count(), 1);
}
