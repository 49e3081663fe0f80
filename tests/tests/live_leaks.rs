//! Every kind of leak of a real program is found, with its verdict and the function that leaks, and nothing
//! is said of programs that only look like it. Needs root and `go`.

use std::{collections::BTreeSet, thread};

use gotrace_tests::{
    gobuild::{Arch, CORNER_VERSIONS, Mode, build, minor},
    gotrace::privileged,
    leaks::{Leaks, json, leaks},
};
use serde_json::Value;

/// Entry functions of a finding: its own, and those of others that wait with them for each other.
fn entries(finding: &Value) -> impl Iterator<Item = &str> {
    let others = finding["others"].as_array().into_iter().flatten();
    [finding].into_iter().chain(others).filter_map(|f| f["entry"]["function"].as_str())
}

fn found(lines: &[Value]) -> BTreeSet<(String, String)> {
    let findings = lines.iter().filter(|l| l.get("verdict").is_some());
    findings
        .flat_map(|l| {
            let verdict = l["verdict"].as_str().unwrap_or_default();
            entries(l).map(|function| (verdict.to_owned(), function.to_owned()))
        })
        .collect()
}

fn line<'a>(lines: &'a [Value], function: &str) -> &'a Value {
    lines.iter().find(|l| entries(l).any(|f| f == function)).expect("a finding of this function")
}

/// What is leaked, and the verdicts that are right. A stale word in memory may hide a leak from the proof;
/// then it has a lesser verdict. Those that grow have both: the newest are not proven yet.
fn expected(version: &str, proof: bool) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut all: Vec<(&str, Vec<&str>)> =
        suspected(version).into_iter().map(|(function, verdicts)| (function, verdicts.to_vec())).collect();
    if proof {
        for function in ["main.awaitReply", "main.selectDead"] {
            if !all.iter().any(|(f, _)| *f == function) {
                all.push((function, Vec::new()));
            }
        }
        for (_, verdicts) in &mut all {
            verdicts.insert(0, "unreachable");
        }
    }
    all
}

/// The verdicts without a proof. Newer programs tell more: from Go 1.21 on who made a goroutine, without
/// which nobody is called orphaned.
fn suspected(version: &str) -> Vec<(&'static str, &'static [&'static str])> {
    let minor = minor(version);
    let mut all: Vec<(&str, &[&str])> = vec![
        ("main.receiveNil", &["deadlock"]),
        ("main.notify", &["growing"]),
        ("main.refresh", &["stuck"]),
        ("main.finish", if minor >= 26 { &["stuck", "orphaned"] } else { &["stuck"] }),
    ];
    let circle: &[&str] = if minor >= 26 { &["deadlock", "stuck"] } else { &["stuck"] };
    all.extend([("main.transfer", circle), ("main.transferBack", circle)]);
    if minor >= 21 {
        all.extend([("main.awaitReply", &["orphaned"][..]), ("main.selectDead", &["orphaned"][..])]);
    }
    // It sends, so that it is stuck as well once it has stood for long.
    all.push(("main.compute", if minor >= 21 { &["stuck", "orphaned"] } else { &["stuck"] }));
    all
}

fn check(version: &str, mode: Mode, proof: bool) {
    let program = build("leaks", version, mode, Arch::HOST).expect("it builds");
    let leaking = Leaks::start(&program, "leak").expect("it starts");
    let mut watch = vec!["--watch", "10s", "--stuck-after", "4s", "--format", "json"];
    watch.extend(if proof {
        &["--fail-on", "unreachable"][..]
    } else {
        &["--no-proof", "--fail-on", "stuck"]
    });
    let output = leaks(leaking.pid(), &watch).expect("gotrace runs");
    assert_eq!(output.status.code(), Some(10), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = json(&output).expect("JSON");
    let found = found(&lines);
    let mut missing = found.clone();
    for (function, verdicts) in expected(version, proof) {
        let all = verdicts.iter().filter(|v| missing.remove(&((**v).to_owned(), function.to_owned())));
        let right = all.count() > 0;
        assert!(right, "Go {version} {}: {function} should be {verdicts:?}: {found:#?}", mode.name());
    }
    assert!(missing.is_empty(), "Go {version} {}: too much was found: {missing:?}", mode.name());

    assert_eq!(lines[0]["schema"], "gotrace.leaks/1");
    for function in ["main.transfer", "main.transferBack"] {
        let why = line(&lines, function)["why"].as_str().expect("a sentence");
        assert!(why.contains("cycle"), "Go {version}: {function}: {why}");
    }
    let growing = line(&lines, "main.notify");
    let growth = &growing["growth_per_second"];
    let (low, high) = (growth["low"].as_f64().expect("a number"), growth["high"].as_f64().expect("a number"));
    // One each tenth of a second, and a little more between: on a busy machine much more.
    assert!(low > 0.0 && low <= high && high < 11.0, "{growth}");
    assert_eq!(growing["count"].as_u64(), growing["goids"].as_array().map(|a| a.len() as u64));
    assert_eq!(growing["created_by"]["function"], "main.handler");
    assert_eq!(growing["waits_on"][0]["kind"], "chan");
    assert_eq!(growing["wait_reason"], "chan send");
    let nil = line(&lines, "main.receiveNil");
    assert_eq!(nil["verdict"], if proof { "unreachable" } else { "deadlock" });
    assert_eq!(nil["count"], 2);
    assert!(nil["oldest_ns"]["at_least"].as_u64() > Some(4_000_000_000), "{nil}");
    assert_eq!(nil["oldest_ns"]["at_most"], Value::Null, "born before gotrace looked");
    let stack = nil["stack"].as_array().expect("a stack");
    assert!(stack.iter().any(|f| f["function"] == "main.receiveNil" && f["line"].as_u64() > Some(0)));
    let summary = &lines.last().expect("a summary")["summary"];
    assert_eq!(summary["findings"].as_u64(), Some(lines.len() as u64 - 2));
    if !proof {
        assert_eq!(summary["proof"], Value::Null);
        return;
    }
    assert_eq!(summary["proof"]["refuted"], 0, "{summary}");
    assert!(summary["proof"]["passes"].as_u64() >= Some(10), "{summary}");
    let proven: Vec<&Value> = lines.iter().filter(|l| l["verdict"] == "unreachable").collect();
    let functions: BTreeSet<&str> = proven.iter().filter_map(|l| l["entry"]["function"].as_str()).collect();
    assert!(functions.len() >= 7, "{functions:?}");
    let alone: u64 = proven.iter().filter_map(|l| l["retained_bytes"].as_u64()).sum();
    let leaked = summary["proof"]["leaked_bytes"].as_u64().expect("a number");
    let heap = summary["proof"]["heap_bytes"].as_u64().expect("a number");
    assert!(alone > 0 && alone <= leaked && leaked < heap, "{alone} of {leaked} of {heap}");
    for line in proven {
        assert_eq!(line["passes"], serde_json::json!({"agreed": 10, "needed": 10}), "{line}");
        assert_eq!(line["provisional"], false, "{line}");
    }
}

fn check_healthy(version: &str, mode: Mode) {
    let program = build("leaks", version, mode, Arch::HOST).expect("it builds");
    let healthy = Leaks::start(&program, "healthy").expect("it starts");
    let all = "unreachable,deadlock,growing,stuck,orphaned";
    let watch = ["--watch", "10s", "--stuck-after", "4s", "--format", "json", "--fail-on", all];
    let output = leaks(healthy.pid(), &watch).expect("gotrace runs");
    let lines = json(&output).expect("JSON");
    assert!(found(&lines).is_empty(), "Go {version} {}: {:#?}", mode.name(), &lines[1..]);
    assert_eq!(output.status.code(), Some(0));
    assert!(lines.last().expect("a summary")["summary"]["goroutines"].as_u64() > Some(50));
}

/// A watch mostly waits: the versions beside each other.
fn at_once(check: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        for version in CORNER_VERSIONS {
            let check = &check;
            scope.spawn(move || check(version));
        }
    });
}

#[test]
fn leaks_are_found_in_every_corner_version() {
    if !privileged("live_leaks") {
        return;
    }
    at_once(|version| check(version, Mode::Stripped, true));
}

#[test]
fn leaks_are_suspected_without_a_proof() {
    if !privileged("live_leaks") {
        return;
    }
    at_once(|version| check(version, Mode::Stripped, false));
}

#[test]
fn nothing_is_said_of_healthy_programs() {
    if !privileged("live_leaks") {
        return;
    }
    at_once(|version| check_healthy(version, Mode::Stripped));
}

#[test]
fn at_once_only_what_is_sure_at_once() {
    if !privileged("live_leaks") {
        return;
    }
    let program = build("leaks", "1.27.3", Mode::Plain, Arch::HOST).expect("it builds");
    let leaking = Leaks::start(&program, "leak").expect("it starts");
    let output = leaks(leaking.pid(), &["--format", "json", "--no-proof"]).expect("gotrace runs");
    let found = found(&json(&output).expect("JSON"));
    assert!(found.contains(&("deadlock".into(), "main.receiveNil".into())), "{found:?}");
    assert!(found.contains(&("orphaned".into(), "main.awaitReply".into())), "{found:?}");
    assert!(found.iter().all(|(verdict, _)| verdict != "growing" && verdict != "stuck"), "{found:?}");

    let graph = leaks(leaking.pid(), &["--graph", "json"]).expect("gotrace runs");
    let lines = json(&graph).expect("JSON");
    assert_eq!(lines[0]["schema"], "gotrace.graph/1");
    let groups: Vec<&Value> = lines.iter().filter_map(|l| l.get("group")).collect();
    let group = groups.iter().find(|g| g["entry"]["function"] == "main.selectDead").expect("in the graph");
    let id = &group["id"];
    let edges: Vec<&Value> =
        lines.iter().filter_map(|l| l.get("edge")).filter(|e| e["group"] == *id).collect();
    assert_eq!(edges.iter().filter(|e| e["kind"] == "waits").count(), 1, "{edges:?}");
    let dot = leaks(leaking.pid(), &["--graph", "dot"]).expect("gotrace runs");
    let dot = String::from_utf8_lossy(&dot.stdout).into_owned();
    assert!(dot.starts_with("digraph ") && dot.contains("main.selectDead") && dot.ends_with("}\n"), "{dot}");
}
