//! The alert rules and the dashboard: their expressions are Prometheus', as promtool judges them, and their
//! alerts come and stay away where they should. Needs promtool, which `cargo xtask setup` puts into the cache
//! directory.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

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
