//! The page is what Prometheus takes, its bounds hold, and names come by the usual rule.

use std::collections::HashSet;

use super::*;
use crate::sink::{
    model::{Resource, Site},
    otlp::samples,
};

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
    let mut admitted: Vec<Admitted> = intervals.iter().map(|_| Admitted::default()).collect();
    page(intervals.iter().zip(&mut admitted), &Agent::default())
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
    assert!(beyond.expect("a sum of the rest").ends_with(&format!(" {}", 3 * (5000 - SITES))));
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
    let mut admitted = Admitted::default();
    let first = interval(SITES, 2);
    let mut second = first.clone();
    second.sites.splice(0..0, (1000..1100).map(site));
    let own = |page: &str| {
        page.lines().filter(|l| l.contains("main.worker") && l.starts_with("gotrace_goroutine_alive")).count()
    };
    let before = page([(&first, &mut admitted)].into_iter(), &Agent::default());
    let after = page([(&second, &mut admitted)].into_iter(), &Agent::default());
    assert_eq!((own(&before), own(&after)), (SITES, SITES));
    assert!(after.contains("main.worker0\"") && !after.contains("main.worker1000"));
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
        attributes.insert(name.into(), Value::Text(value.into()));
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
