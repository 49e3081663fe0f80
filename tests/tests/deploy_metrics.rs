//! The alert rules and the dashboard: their expressions are Prometheus', as promtool judges them, and their
//! alerts come and stay away where they should. Every metric and label that they name is on the daemon's page,
//! and promtool finds the page well formed. Needs promtool, which `cargo xtask setup` puts into the cache
//! directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use gotrace_common::Histogram;
use gotrace_export::{
    otlp::{ExportStats, SpoolStats},
    prometheus::{Agent, Board},
};
use gotrace_model::{
    Coverage, Interval, Leak, Levels, Location, Resource, Site, Suspected, Value as Attribute,
    requests::{Protocol, Route, RouteName},
};
use gotrace_tests::{gobuild::cache_dir, manifests};
use serde_json::Value;

fn promtool(arguments: &[&str], within: &Path) -> String {
    let program = cache_dir().join("servers/promtool");
    assert!(program.exists(), "{} is not there: `cargo xtask setup` puts it there", program.display());
    let output = Command::new(program).current_dir(within).args(arguments).output().expect("promtool runs");
    let text = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

/// The dashboard's expressions, its variables filled in as Grafana does for "All".
fn dashboard() -> Vec<String> {
    let text =
        fs::read_to_string(manifests::directory().join("grafana/gotrace.json")).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    for panel in board["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            found.push(expression.replace("$service", ".*").replace("$instance", ".*"));
        }
    }
    for variable in board["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            // label_values(metric, label): a metric with that label.
            let inner =
                query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')')).expect("a query");
            let (metric, label) = inner.split_once(", ").expect("metric and label");
            found.push(format!("{metric}{{{label}=~\".*\"}}"));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

#[test]
fn alerts_come_when_they_should() {
    let directory = manifests::directory().join("prometheus");
    promtool(&["check", "rules", "gotrace.rules.yaml"], &directory);
    promtool(&["test", "rules", "gotrace.rules.test.yaml"], &directory);
}

#[test]
fn the_dashboard_asks_what_prometheus_understands() {
    let rules: Vec<Value> = dashboard()
        .iter()
        .enumerate()
        .map(|(n, expression)| serde_json::json!({"record": format!("panel:{n}"), "expr": expression}))
        .collect();
    let file = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("rules.yaml"), file.to_string()).expect("written");
    promtool(&["check", "rules", "rules.yaml"], directory.path());
    // promtool does refuse what is none.
    let wrong =
        serde_json::json!({"groups": [{"name": "x", "rules": [{"record": "x:y", "expr": "rat(x)"}]}]});
    fs::write(directory.path().join("wrong.yaml"), wrong.to_string()).expect("written");
    let program = cache_dir().join("servers/promtool");
    let refused =
        Command::new(program).current_dir(directory.path()).args(["check", "rules", "wrong.yaml"]).output();
    assert!(!refused.expect("promtool runs").status.success());
}

#[test]
fn the_dashboard_is_one() {
    let text =
        fs::read_to_string(manifests::directory().join("grafana/gotrace.json")).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let mut ids = BTreeSet::new();
    for panel in board["panels"].as_array().expect("panels") {
        let place = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24 && place("h") > 0, "{panel}");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "two panels have an id: {panel}");
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|d| !d.is_empty()), "{panel}");
        }
    }
}

fn histogram(ns: u64) -> Histogram {
    let mut histogram = Histogram::default();
    histogram.add(ns);
    histogram
}

/// The daemon's page with everything on it that there can be.
fn page() -> String {
    let named = |name: &str| Arc::new(Location { function: name.into(), file: "/m.go".into(), line: 3 });
    let resource = Arc::new(Resource::new(BTreeMap::from([
        ("service.name".into(), Attribute::Text("shop".into())),
        ("k8s.namespace.name".into(), Attribute::Text("sales".into())),
        ("k8s.pod.name".into(), Attribute::Text("shop-1".into())),
    ])));
    let site = Site {
        entry: named("main.worker"),
        created_by: Some(named("main.main")),
        alive: 3,
        born: 1,
        died: 1,
        born_total: 9,
        died_total: 6,
        cpu_ns: Some(1_000_000),
        cpu_total_ns: 2_000_000,
        throttled_ns: 0,
        throttled_total_ns: 500_000,
        waiting: BTreeMap::new(),
        waits: Histogram::default(),
        lifetimes: histogram(1_000),
        oldest_ns: Some(1),
        oldest_is_lower_bound: false,
    };
    let mut requests = gotrace_model::samples::requests(&[4, 250]);
    let of_http = requests.routes[0].clone();
    for (protocol, handler, route) in [
        (Protocol::Http1, Some(named("main.serve")), None),
        (Protocol::Grpc, None, Some("/shop.Cart/Add".into())),
    ] {
        let name = RouteName { protocol, handler, route, ..of_http.name.clone() };
        requests.routes.push(Route { name, ..of_http.clone() });
    }
    let interval = Interval {
        requests: Some(requests.into()),
        resource,
        pid: 7,
        start_unix_nano: 1,
        end_unix_nano: 2,
        alive: 3,
        alive_is_lower_bound: false,
        born: 1,
        died: 1,
        born_total: 9,
        died_total: 6,
        lost: [("ring_wait", 2)].into(),
        repaired: [("birth", 1)].into(),
        sampled_out: [("ratio", 1)].into(),
        events: [("create", 9)].into(),
        waiting: BTreeMap::from([("sync.Mutex.Lock".into(), 1)]),
        waits: BTreeMap::from([("sync.Mutex.Lock".into(), histogram(5_000_000))]),
        waits_at: Arc::new(gotrace_model::samples::places()),
        schedule: histogram(1_000),
        syscalls: Histogram::default(),
        sites: vec![site],
        snapshots: histogram(1_000_000),
        engine: "events",
        level: "waits",
        level_reason: None,
        levels: Levels::default(),
        leaks: vec![Leak {
            entry: named("main.worker"),
            created_by: Some(named("main.main")),
            waits_at: Some(named("main.worker")),
            reason: "chan receive".into(),
            count: 2,
            retained_bytes: Some(4_096),
            goids: vec![18, 19],
            suppressed: Some("by design".into()),
            growth_per_second: None,
            others: Vec::new(),
            place: None,
            holders: Vec::new(),
            why: "why".into(),
        }],
        leaks_refuted: 1,
        suspects: vec![Suspected {
            verdict: "growing",
            entry: named("main.worker"),
            created_by: Some(named("main.main")),
            waits_at: Some(named("main.worker")),
            reason: "chan receive".into(),
            count: 5,
            growth_per_second: Some((0.1, 0.2)),
            standing_ns: 1_000_000_000,
            why: "5 more stand here.".into(),
            goids: vec![20],
            suppressed: Some("by design".into()),
            place: None,
            holders: Vec::new(),
        }],
        collector: gotrace_model::samples::collector(),
        process_cpu_ns: None,
        process_cpu_total_ns: None,
        probe_cost_share: Some(0.01),
    };
    let agent = Agent {
        processes: [("events", 1)].into(),
        totals: vec![("gotrace_level_changes_total", "Changes of a process's level.", 2)],
        gauges: vec![("gotrace_memory_kept_bytes", "Bytes kept of all processes.", 2)],
        threads: [("pipeline", true)].into(),
        probed_files: 1,
        export: Some(ExportStats {
            spans_dropped: [("queue_full", 1)].into(),
            spool: Some(SpoolStats::default()),
            ..ExportStats::default()
        }),
        coverage: Some(Coverage::default()),
        cpu_seconds: 1.5,
        resident_bytes: 1 << 20,
    };
    let board = Board::default();
    board.show(&Arc::new(interval));
    board.page(&agent, |_| std::collections::BTreeMap::new())
}

/// Words of an expression or a line of the page, each with the bracket that it stands in: `{`, `(` behind
/// `by` and the like, or none.
fn words(text: &str) -> Vec<(String, char)> {
    const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let (mut found, mut within, mut word, mut last) = (Vec::new(), vec![' '], String::new(), String::new());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_alphanumeric() || c == '_' || c == ':' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            found.push((word.clone(), *within.last().unwrap_or(&' ')));
            last = std::mem::take(&mut word);
        }
        match c {
            '"' => while chars.next().is_some_and(|c| c != '"') {},
            '{' => within.push('{'),
            '[' => within.push('['),
            '(' => within.push(if GROUPING.contains(&last.as_str()) { '(' } else { ' ' }),
            '}' | ')' | ']' => drop(within.pop()),
            _ => {}
        }
        if !c.is_whitespace() {
            last.clear();
        }
    }
    if !word.is_empty() {
        found.push((word, *within.last().unwrap_or(&' ')));
    }
    found
}

#[test]
fn what_is_asked_for_is_on_the_page() {
    let page = page();
    let mut known = BTreeSet::new();
    let mut labels = BTreeSet::from(["instance", "job", "le"].map(String::from));
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        for (word, within) in words(line.rsplit_once(' ').map_or(line, |(sample, _)| sample)) {
            let _ = if within == '{' { labels.insert(word) } else { known.insert(word) };
        }
    }
    assert!(
        known.contains("go_goroutine_count") && labels.contains("gotrace_wait_reason"),
        "{known:?}\n{page}"
    );

    let text =
        fs::read_to_string(manifests::directory().join("prometheus/gotrace.rules.yaml")).expect("the rules");
    let rules = manifests::parse(&text).expect("YAML");
    let mut asked = dashboard();
    for rule in
        rules[0]["groups"].as_array().expect("groups").iter().flat_map(|g| g["rules"].as_array()).flatten()
    {
        asked.push(rule["expr"].as_str().expect("an expression").to_owned());
        if let Some(record) = rule["record"].as_str() {
            known.insert(record.to_owned());
        }
        // {{ $labels.service_name }}
        for part in rule["annotations"].to_string().split("$labels.").skip(1) {
            let label: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(labels.contains(&label), "{label} is on no sample: {}", rule["alert"]);
        }
    }
    known.insert("up".into());
    const OURS: [&str; 6] = ["go_", "gotrace_", "process_", "service:", "target_info", "up"];
    let (mut metrics, mut named) = (0, 0);
    for expression in &asked {
        for (word, within) in words(expression) {
            if within == '{' || within == '(' {
                named += 1;
                assert!(labels.contains(&word), "label {word} is on no sample: {expression}");
            } else if within == ' ' && OURS.iter().any(|o| word.starts_with(o)) {
                metrics += 1;
                assert!(known.contains(&word), "metric {word} is not on the page: {expression}");
            }
        }
    }
    assert!(metrics > 30 && named > 60, "{metrics} metrics and {named} labels were found");
}

#[test]
fn promtool_finds_the_page_well_formed() {
    let mut child = Command::new(cache_dir().join("servers/promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    child.stdin.take().expect("a pipe").write_all(page().as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    // The conventions call them go.goroutine.count; what promtool says of their ending is taste.
    let wrong: Vec<&str> =
        text.lines().filter(|l| !l.is_empty() && !l.contains("goroutine_count non-histogram")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
