//! The page is what Prometheus takes, its bounds hold, and names come by the usual rule.

use std::{collections::HashSet, sync::Arc};

use super::*;
use gotrace_model::samples;
use gotrace_model::{Coverage, Covered, Location, Refused, Resource, Site};

fn site(n: usize) -> Site {
    let at = |function: String| {
        Arc::new(Location { function: function.into(), file: "/src/a\\b.go".into(), line: 7 })
    };
    Site {
        entry: at(format!("main.worker{n}")),
        created_by: Some(at("main.\"odd\"\nname".into())),
        alive: 1,
        born: 1,
        died: 0,
        born_total: 3,
        died_total: 2,
        cpu_ns: Some(1_000_000),
        cpu_total_ns: 2_000_000,
        throttled_ns: 0,
        throttled_total_ns: 0,
        waiting: BTreeMap::new(),
        waits: Histogram::default(),
        lifetimes: Histogram::default(),
        oldest_ns: None,
        oldest_is_lower_bound: false,
    }
}

fn interval(sites: usize, reasons: usize) -> Interval {
    let resource = Arc::new(Resource::new(samples::resource().attributes.clone()));
    let mut interval = samples::interval(&resource, 1, (0..sites).map(site).collect());
    let mut histogram = Histogram::default();
    histogram.add(2_000_000);
    for n in 0..reasons {
        interval.waiting.insert(format!("reason {n:02}").into(), 1);
        interval.waits.insert(format!("reason {n:02}").into(), histogram);
    }
    interval.schedule = histogram;
    interval.snapshots = histogram;
    interval
}

fn series(page: &str) -> Vec<&str> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(s, _)| s)
        .collect()
}

fn of(intervals: &[Interval]) -> String {
    let board = crate::prometheus::Board::default();
    intervals.iter().for_each(|interval| board.show(&Arc::new(interval.clone())));
    board.page(&Agent::default(), |_| BTreeMap::new())
}

#[test]
fn a_process_with_5000_sites_has_no_more_series_than_it_may() {
    let page = of(&[interval(5000, 40)]);
    let all = series(&page);
    let unique: HashSet<_> = all.iter().collect();
    assert_eq!(all.len(), unique.len(), "each series once");
    let own = all.iter().filter(|s| s.contains("process_pid=")).count();
    assert!(own <= MAX_SERIES, "{own}");
    let beyond = page.lines().find(|l| {
        l.starts_with("gotrace_goroutine_created_total{") && l.contains("otel_metric_overflow=\"true\"")
    });
    let beyond: usize =
        beyond.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).expect("a sum of the rest");
    let named = page
        .lines()
        .filter(|l| l.starts_with("gotrace_goroutine_created_total{") && l.contains("main.worker"))
        .count();
    assert!(named >= 10, "{named}");
    assert_eq!(beyond, 3 * (5000 - named));
}

#[test]
fn a_node_has_no_more_series_than_it_may() {
    let intervals: Vec<Interval> = (0..300).map(|_| interval(50, 20)).collect();
    let page = of(&intervals);
    let own = series(&page).iter().filter(|s| s.contains("process_pid=")).count();
    // Those without room have six each.
    assert!(own <= MAX_SERIES_OF_NODE + 300 * 6, "{own}");
    let brief = page.lines().find_map(|l| l.strip_prefix("gotrace_processes_brief ")).expect("told");
    assert!(brief.parse::<u64>().expect("a number") > 150, "{brief}");
    assert_eq!(page.matches("# TYPE go_goroutine_count gauge").count(), 1);
}

#[test]
fn what_is_admitted_stays() {
    let board = crate::prometheus::Board::default();
    let show = |interval: &Interval| {
        board.show(&Arc::new(interval.clone()));
        board.page(&Agent::default(), |_| BTreeMap::new())
    };
    let first = interval(8, 2);
    let mut second = first.clone();
    second.sites.splice(0..0, (1000..1100).map(site));
    let own = |page: &str| {
        let of_worker = |l: &&str| {
            l.starts_with("gotrace_goroutine_alive") && l.contains("code_function_name=\"main.worker")
        };
        page.lines().filter(of_worker).count()
    };
    let before = show(&first);
    let after = show(&second);
    assert_eq!(own(&before), 8);
    assert!(own(&after) >= 8 && after.contains("main.worker7\""), "{after}");
    // What a process had is there for another when it has ended.
    board.remove(first.pid);
    assert_eq!(own(&show(&interval(8, 2))), 8);
}

#[test]
fn otlp_and_the_page_tell_the_same() {
    use crate::otlp::testing;
    use gotrace_model::{Leak, Suspected, samples};
    let mut all = interval(40, 20);
    all.resource = samples::resource();
    all.syscalls.add(1_000);
    all.leaks_refuted = 1;
    for n in 0..12 {
        let at = site(n).entry;
        all.leaks.push(Leak {
            entry: Arc::clone(&at),
            created_by: None,
            waits_at: Some(Arc::clone(&at)),
            reason: "chan receive".into(),
            count: 2,
            retained_bytes: Some(10),
            goids: Vec::new(),
            growth_per_second: None,
            others: Vec::new(),
            place: None,
            holders: Vec::new(),
            why: "why".into(),
            suppressed: (n == 0).then(|| "by design".into()),
        });
        all.suspects.push(Suspected {
            verdict: "growing",
            entry: at,
            created_by: None,
            waits_at: None,
            reason: "chan send".into(),
            count: 3,
            growth_per_second: None,
            standing_ns: 1,
            why: "why".into(),
            goids: Vec::new(),
            place: None,
            holders: Vec::new(),
            suppressed: (n == 0).then(|| "by design".into()),
        });
    }
    let dropped = BTreeMap::from([("queue_full", 4)]);
    let board = crate::prometheus::Board::default();
    board.show(&Arc::new(all.clone()));
    let page = board.page(&Agent::default(), |_| dropped.clone());
    for metric in ["gotrace_leak_proven{", "gotrace_leak_suspects{"] {
        let suppressed =
            page.lines().filter(|l| l.starts_with(metric) && l.contains("gotrace_leak_suppressed=\"true\""));
        assert_eq!(suppressed.count(), 1, "{metric}");
    }
    // Sums over a metric's series: which of them have a name of their own is each output's.
    let otlp = testing::sums(&all, &dropped);
    assert!(otlp.len() >= 18, "{otlp:?}");
    for metric in catalogue::CATALOGUE {
        let name = metric.prometheus_name();
        let sample = if metric.kind == Kind::Histogram { format!("{name}_count") } else { name };
        let own = page.lines().filter(|l| l.starts_with(&format!("{sample}{{")));
        let sum: f64 = own.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
        let told = otlp.get(metric.name).copied().unwrap_or_default();
        assert!((sum - told).abs() < 1e-9, "{}: {sum} on the page, {told} by OTLP", metric.name);
    }
}

#[test]
fn the_account_of_executions_is_told() {
    let mut coverage = Coverage::default();
    (coverage.seen, coverage.lost) = (4, 1);
    coverage.cover(Covered::Gone);
    coverage.cover(Covered::Refused(Refused::TooLarge));
    let agent = Agent { coverage: Some(coverage), ..Agent::default() };
    let page = crate::prometheus::Board::default().page(&agent, |_| BTreeMap::new());
    for line in [
        "# TYPE gotrace_processes_seen_total counter",
        "gotrace_processes_seen_total 4",
        "gotrace_processes_covered_total{gotrace_coverage=\"events\"} 0",
        "gotrace_processes_covered_total{gotrace_coverage=\"gone\"} 1",
        "gotrace_processes_covered_total{gotrace_coverage=\"refused\"} 1",
        "gotrace_processes_refused_total{gotrace_refused_reason=\"too_large\"} 1",
        "gotrace_executions_lost_total 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
}

#[test]
fn the_format_is_prometheus() {
    let page = of(&[interval(1, 1)]);
    for line in [
        "# TYPE go_goroutine_count gauge",
        "# TYPE gotrace_goroutine_created_total counter",
        "# TYPE go_schedule_duration_seconds histogram",
        "gotrace_created_by_function_name=\"main.\\\"odd\\\"\\\\nname\"",
        "code_file_path=\"/src/a\\\\b.go\"",
        "le=\"0.001\"} 0",
        "le=\"0.01\"} 1",
        "le=\"+Inf\"} 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn what_a_process_says_of_itself_can_break_no_line_and_no_label() {
    let mut evil = interval(1, 0);
    let mut attributes = evil.resource.attributes.clone();
    let forged = "a\"} 1\ngotrace_forged{x=\"\u{1b}[2J\u{9b}\u{202e}\u{2028}\r\\";
    for (name, value) in [
        ("service.name", forged),
        ("1digit", forged),
        ("service.version", "real"),
        ("service_version", "second"),
        ("process_pid", "1"),
        ("__name__", "gotrace_forged"),
        ("tëam\nx", forged),
    ] {
        attributes.insert(name.into(), Attribute::Text(value.into()));
    }
    evil.resource = Arc::new(Resource::new(attributes));
    evil.sites[0].entry = Arc::new(Location { function: forged.into(), file: forged.into(), line: 1 });
    let page = of(&[evil]);
    assert!(!page.contains(|c: char| c != '\n' && !(' '..='~').contains(&c)), "{page:?}");
    assert!(!page.lines().any(|line| line.starts_with("gotrace_forged")));
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((_, rest)) = line.split_once('{') else { continue };
        let labels = labels(rest).unwrap_or_else(|| panic!("{line}"));
        let names: HashSet<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(names.len(), labels.len(), "a label is there once: {line}");
    }
    assert!(page.contains("service_version=\"real\"") && !page.contains("\"second\""));
}

/// Names of the labels of a sample, read as Prometheus reads them; `None` where it would not take the line.
fn labels(mut rest: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let (name, value) = rest.split_once("=\"")?;
        let good = |(n, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || n > 0 && c.is_ascii_digit();
        if name.is_empty() || name.starts_with("__") || !name.chars().enumerate().all(good) {
            return None;
        }
        names.push(name.to_owned());
        let mut escape = false;
        let end = value.bytes().position(|b| {
            let ends = b == b'"' && !escape;
            escape = b == b'\\' && !escape;
            ends
        })?;
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return rest.strip_prefix("} ")?.parse::<f64>().ok().map(|_| names),
        }
    }
}

#[test]
fn who_follows_a_process_has_its_reports_or_how_many_it_missed() {
    let board = crate::prometheus::Board::default();
    let report = Arc::new(interval(1, 1));
    let process = report.resource.process();
    assert!(board.follow(process).is_none(), "there is no report yet");
    board.show(&report);
    let (mut slow, gone) = (board.follow(process).expect("it is there"), board.follow(process));
    drop(gone);
    for _ in 0..20 {
        board.show(&report);
    }
    let mut missed = Vec::new();
    while let Ok(followed) = slow.try_recv() {
        missed.push(followed.missed);
    }
    assert_eq!(missed, [0; 16], "as many wait as may");
    board.show(&report);
    assert_eq!(slow.try_recv().map(|followed| followed.missed), Ok(4));
    board.show(&report);
    assert_eq!(slow.try_recv().map(|followed| followed.missed), Ok(0), "it was told");
    board.remove(report.pid);
    assert!(
        slow.try_recv().is_err_and(|error| error == tokio::sync::mpsc::error::TryRecvError::Disconnected)
    );
}
