//! Leaks and deadlocks as people have reported them, each as the smallest program that shows it, with the answer that
//! `gotrace leaks` has to give in a watch of some seconds, and a healthy twin of which it must say nothing. Needs root
//! and `go`.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use gotrace_tests::{
    gobuild::{Arch, CORNER_VERSIONS, Mode, VERSIONS, build, minor},
    gotrace::{binary, privileged},
    leaks::{json, leaks},
    running::Running,
};
use serde_json::{Value, json};

/// Cases that are watched at the same time.
const AT_ONCE: usize = 8;

/// What has to be said.
struct Case {
    name: &'static str,
    /// The oldest minor version of Go that it builds with.
    since: u32,
    verdict: &'static str,
    /// Own functions in which the goroutines stand, each in a finding.
    at: &'static [&'static str],
    created_by: &'static str,
    /// Goroutines, of all findings together, at least; exactly, where they do not become more.
    at_least: u64,
    exactly: Option<u64>,
    /// What the sentences of one of the findings have.
    says: &'static [&'static str],
    /// What the goroutines run that are known to hold the locks (`|` between them); nobody else is.
    holder: &'static str,
    /// The frame by which two goroutines are known to keep members of the pool; nobody else is.
    keeps: &'static str,
}

const fn grows(
    name: &'static str,
    at: &'static [&'static str],
    created_by: &'static str,
    at_least: u64,
) -> Case {
    Case {
        name,
        since: 19,
        verdict: "growing",
        at,
        created_by,
        at_least,
        exactly: None,
        says: &[],
        holder: "",
        keeps: "",
    }
}

const fn stuck(
    name: &'static str,
    at: &'static [&'static str],
    exactly: u64,
    says: &'static [&'static str],
) -> Case {
    let exactly = Some(exactly);
    Case {
        name,
        since: 19,
        verdict: "stuck",
        at,
        created_by: "",
        at_least: 1,
        exactly,
        says,
        holder: "",
        keeps: "",
    }
}

const CASES: &[Case] = &[
    grows("shared", &["main.request"], "main.requests.func1", 100),
    grows("own", &["main.request"], "main.requests.func1", 100),
    Case { says: &["none of the ", "created in"], ..grows("tick", &["main.ticking"], "main.again", 16) },
    Case { says: &["none of the ", "created in"], ..grows("nap", &["main.napping"], "main.again", 16) },
    grows("cap1", &["main.waiter"], "main.waiters", 16),
    grows("cap2", &["main.waiter"], "main.waiters", 16),
    Case { since: 23, verdict: "unreachable", ..grows("pull", &["main.count"], "main.pull", 8) },
    Case {
        holder: "main.selflock.func1",
        ..stuck("selflock", &["main.relock", "main.selflock.func2"], 4, &["Locked twice: "])
    },
    Case {
        holder: "main.reader",
        ..stuck(
            "rwlock",
            &["main.reader", "main.writer"],
            2,
            &["One reader holds it and a writer waits", "Locked twice: "],
        )
    },
    Case {
        holder: "main.(*box).fill",
        ..stuck("cond", &["main.(*box).look", "main.(*box).take"], 2, &["blocked for at least"])
    },
    Case {
        verdict: "deadlock",
        holder: "main.transfer|main.bill",
        ..stuck(
            "crossed",
            &["main.order", "main.bill"],
            2,
            &["are deadlocked: each holds the lock that the other is blocked on. Blocked for at least "],
        )
    },
    Case { holder: "main.flusher", ..stuck("holder", &["main.put"], 8, &[]) },
    stuck("near", &["main.group.func3"], 1, &["One Done is missing"]),
    stuck("far", &["main.group.func1"], 1, &["One Done is missing"]),
    Case { verdict: "unreachable", ..stuck("wrapped", &["main.wrapped.func1"], 4, &[]) },
    stuck("finalizer", &["main.drop.func1"], 1, &["no finalizer runs any more"]),
    Case {
        says: &[
            " read without a deadline from 127.0.0.1:",
            ", nothing unread: connections that this process opened.",
        ],
        ..grows("deadline", &["main.fetch"], "main.later", 41)
    },
    Case {
        verdict: "stalled",
        keeps: "main.caller",
        ..stuck(
            "dry",
            &["main.caller"],
            10,
            &["The 2 goroutines found to hold its connections have not run either"],
        )
    },
];

/// Healthy twins, and the oldest minor version of Go that they build with.
const HEALTHY: &[(&str, u32)] = &[
    ("shared_ok", 19),
    ("crossed_ok", 19),
    ("tick_ok", 19),
    ("nap_ok", 19),
    ("cap_ok", 19),
    ("pull_ok", 23),
    ("lock_ok", 19),
    ("busy_ok", 19),
    ("group_ok", 19),
    ("wrapped_ok", 19),
    ("final_ok", 19),
    ("dry_ok", 19),
    ("idle_ok", 19),
    ("clients_ok", 19),
    ("pool_ok", 19),
    ("later_ok", 19),
    ("names", 19),
];

/// The lines that watching a case comes to.
fn watched(program: &Path, name: &str) -> Vec<Value> {
    let running = Running::start(program, name);
    let output = leaks(running.pid(), &["--watch", "12s", "--format", "json"]).expect("gotrace runs");
    json(&output).expect("JSON")
}

fn findings(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|l| l.get("verdict").is_some()).collect()
}

/// The innermost function of the program's own that each part of a finding stands in.
fn stands(finding: &Value) -> Vec<String> {
    let others = finding["others"].as_array().into_iter().flatten();
    let own = |f: &Value| {
        let stack = f["stack"].as_array().expect("a stack");
        let mut own = stack.iter().filter_map(|f| f["function"].as_str()).filter(|f| f.starts_with("main."));
        own.next().unwrap_or("?").to_owned()
    };
    [finding].into_iter().chain(others).map(own).collect()
}

/// What is wrong with what was said of a case.
fn judge(case: &Case, lines: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = findings(lines);
    let places: Vec<String> = all.iter().flat_map(|f| stands(f)).collect();
    for at in case.at {
        if !places.iter().any(|p| p == at) {
            wrong.push(format!("nothing is said of {at}"));
        }
    }
    let known = |p: &str| case.at.contains(&p) || case.name == "wrapped" && p == "main.wrapped";
    for place in places.iter().filter(|p| !known(p)) {
        wrong.push(format!("{place} is accused"));
    }
    // Those that were proven, and the newest that are not yet.
    let right = |v: &str| v == case.verdict || case.verdict == "unreachable" && v == "growing";
    if !all.iter().all(|f| f["verdict"].as_str().is_some_and(right))
        || !all.iter().any(|f| f["verdict"] == case.verdict)
    {
        wrong.push(format!("the verdict is not {}", case.verdict));
    }
    if !case.created_by.is_empty() && !all.iter().any(|f| f["created_by"]["function"] == case.created_by) {
        wrong.push(format!("{} is not named as creator", case.created_by));
    }
    let count: u64 = all.iter().filter_map(|f| f["count"].as_u64()).sum();
    if count < case.at_least || case.exactly.is_some_and(|n| n != count) {
        wrong.push(format!("{count} goroutines"));
    }
    for said in case.says {
        if !all.iter().any(|f| f["why"].as_str().is_some_and(|w| w.contains(said))) {
            wrong.push(format!("\"{said}\" is not said"));
        }
    }
    let holders = |f: &&Value| f["holders"].as_array().cloned().unwrap_or_default();
    let locked: Vec<Value> = all.iter().flat_map(holders).filter(|h| h["evidence"] == "locked").collect();
    let told = |name: &str| locked.iter().any(|h| h["function"] == name);
    let mut known = case.holder.split('|').filter(|name| !name.is_empty());
    let others = |h: &Value| !case.holder.split('|').any(|name| h["function"] == name);
    if locked.iter().any(others) || !known.all(told) {
        wrong.push(format!("the lock is said to be held by {locked:?}"));
    }
    if !case.keeps.is_empty() {
        let kept: Vec<Value> = all.iter().flat_map(holders).collect();
        let right = |h: &Value| h["evidence"] == "refers" && h["frame"]["function"] == case.keeps;
        if kept.len() != 2 || !kept.iter().all(right) {
            wrong.push(format!("the connections are said to be kept by {kept:?}"));
        }
        if !all.iter().all(|f| f["place"] == "waits for a database connection") {
            wrong.push("the place is not named".to_owned());
        }
    }
    let entries = all.iter().filter_map(|f| f["entry"]["function"].as_str());
    for entry in entries.filter(|e| e.contains("gowrap") || e.ends_with("-fm") || e.starts_with("runtime.")) {
        wrong.push(format!("{entry} is given for what runs"));
    }
    wrong
}

/// Watches cases, some at a time; gives what is wrong.
fn check(version: &str, mode: Mode) -> Vec<String> {
    let program = build("cases", version, mode, Arch::HOST).expect("it builds");
    let cases = CASES.iter().filter(|c| minor(version) >= c.since).map(|c| (c.name, Some(c)));
    let healthy = HEALTHY.iter().filter(|(_, since)| minor(version) >= *since).map(|(name, _)| (*name, None));
    let all: Vec<(&str, Option<&Case>)> = cases.chain(healthy).collect();
    let mut wrong = Vec::new();
    for some in all.chunks(AT_ONCE) {
        let watched: Vec<(&str, Vec<String>)> = thread::scope(|scope| {
            let watch = |&(name, case): &(&'static str, Option<&'static Case>)| {
                let program = &program;
                let handle = scope.spawn(move || {
                    let lines = watched(program, name);
                    let mut wrong = match case {
                        // A program that has ended has no findings either.
                        _ if !lines.iter().any(|l| l["summary"]["came"].is_u64()) => {
                            vec!["it was not watched to the end".to_owned()]
                        }
                        Some(case) => judge(case, &lines),
                        None if findings(&lines).is_empty() => Vec::new(),
                        None => vec!["something is said of a healthy program".to_owned()],
                    };
                    if !wrong.is_empty() {
                        wrong.extend(lines.iter().map(|l| format!("  {l}")));
                    }
                    wrong
                });
                (name, handle)
            };
            let handles: Vec<_> = some.iter().map(watch).collect();
            handles.into_iter().map(|(name, h)| (name, h.join().expect("it was judged"))).collect()
        });
        for (name, of) in watched.into_iter().filter(|(_, of)| !of.is_empty()) {
            wrong.push(format!("Go {version} {}: {name}:\n    {}", mode.name(), of.join("\n    ")));
        }
    }
    wrong
}

#[test]
fn each_case_has_its_answer_and_its_twin_none() {
    if !privileged("live_cases") {
        return;
    }
    // All of them take minutes each; `GOTRACE_CASES=all` asks for them.
    let all = std::env::var_os("GOTRACE_CASES").is_some_and(|v| v == "all");
    let versions = if all { &VERSIONS[..] } else { &["1.27.3"] };
    let modes = if all { &[Mode::Stripped, Mode::Plain][..] } else { &[Mode::Stripped] };
    let each = versions.iter().flat_map(|v| modes.iter().map(move |m| (v, *m)));
    let wrong: Vec<String> = each.flat_map(|(version, mode)| check(version, mode)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn gotrace(command: &str, pid: u32, more: &[&str]) -> Output {
    Command::new(binary().expect("gotrace"))
        .args([command, "--pid", &pid.to_string()])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .expect("gotrace runs")
}

/// The goroutines of a case in a dump, once there are as many that wait and are not main's.
fn dumped(running: &Running, wanted: usize) -> Vec<Value> {
    let deadline = std::time::Instant::now() + gotrace_tests::fixture::PATIENCE;
    loop {
        let output = gotrace("dump", running.pid(), &["--format", "json"]);
        let lines = json(&output).expect("JSON");
        let own = |l: &&Value| {
            l["state"] == "waiting" && l["goid"].as_u64() > Some(1) && l["wait_reason"] != "sleep"
        };
        let own: Vec<Value> = lines.iter().filter(own).cloned().collect();
        if own.len() >= wanted {
            return own;
        }
        assert!(std::time::Instant::now() < deadline, "{lines:#?}");
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn goroutines_are_named_for_what_they_run() {
    if !privileged("live_cases") {
        return;
    }
    for version in CORNER_VERSIONS {
        let program = build("cases", version, Mode::Stripped, Arch::HOST).expect("it builds");
        let running = Running::start(&program, "names");
        let mut entries: Vec<String> = dumped(&running, 6)
            .iter()
            .map(|l| l["entry"]["function"].as_str().unwrap_or("?").to_owned())
            .collect();
        entries.sort();
        let expected = [
            "main.names.func1",
            "main.quick.run",
            "main.quick.run",
            "main.quick.run",
            "main.receiver",
            "main.receiver",
        ];
        assert_eq!(entries, expected, "Go {version}");
    }
}

/// What `why` says of the one goroutine of a case that waits.
fn why(version: &str, mode: Mode, name: &str) -> (Value, String) {
    let program = build("cases", version, mode, Arch::HOST).expect("it builds");
    let running = Running::start(&program, name);
    let goid = dumped(&running, 1)[0]["goid"].to_string();
    why_of(&running, &goid)
}

/// What `why` says of a goroutine, as JSON and as text.
fn why_of(running: &Running, goid: &str) -> (Value, String) {
    let output = gotrace("why", running.pid(), &["--goid", goid, "--format", "json"]);
    let value = serde_json::from_slice(&output.stdout).expect("JSON");
    let output = gotrace("why", running.pid(), &["--goid", goid]);
    (value, String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn why_tells_what_a_goroutine_waits_for_now() {
    if !privileged("live_cases") {
        return;
    }
    for version in CORNER_VERSIONS {
        let program = build("cases", version, Mode::Stripped, Arch::HOST).expect("it builds");
        let running = Running::start(&program, "moving");
        let goid = dumped(&running, 1)[0]["goid"].to_string();
        let deadline = std::time::Instant::now() + gotrace_tests::fixture::PATIENCE;
        loop {
            let (value, _) = why_of(&running, &goid);
            if value["outcome"] == "moved_on" {
                assert!(value["path"].is_null(), "Go {version}: {value}");
                let said = value["why"].as_str().unwrap_or_default();
                assert!(
                    said.starts_with("it has run since the first snapshot, when it was blocked in "),
                    "Go {version}: {value}"
                );
                break;
            }
            assert!(std::time::Instant::now() < deadline, "Go {version}: {value}");
        }

        // The goroutine that runs finalizers has none to run.
        let running = Running::start(&program, "final_ok");
        let lines = loop {
            let output = gotrace("dump", running.pid(), &["--system", "--format", "json"]);
            let lines = json(&output).expect("JSON");
            let idle = lines.iter().find(|l| l["wait_reason"] == "finalizer wait");
            if let Some(idle) = idle {
                let (value, text) = why_of(&running, &idle["goid"].to_string());
                assert_eq!(value["outcome"], "not_for_others", "Go {version}: {text}");
                if text.contains("it runs the program's finalizers and has none to run") {
                    break lines;
                }
            }
            assert!(std::time::Instant::now() < deadline, "Go {version}: {lines:#?}");
        };

        // No `go` statement made the main goroutine.
        let main = lines.iter().find(|l| l["goid"] == 1).expect("it is listed");
        assert_eq!((&main["entry"]["function"], &main["created_by"]), (&json!("runtime.main"), &Value::Null));
    }
}

#[test]
fn why_names_variables_types_and_coroutines_that_there_are() {
    if !privileged("live_cases") {
        return;
    }
    let (value, text) = why("1.27.3", Mode::Plain, "global");
    assert_eq!(value["path"]["root"]["name"], "main.db", "{text}");

    let (value, text) = why("1.27.3", Mode::Stripped, "pull_kept");
    assert_eq!(value["outcome"], "held", "{text}");
    let objects = value["path"]["objects"].as_array().expect("objects");
    let last = objects.last().expect("an object")["type"].as_str().unwrap_or_default();
    assert!(last.starts_with("coroutine of iter.Pull"), "{text}");
    assert!(text.contains("(main.words) blocked in coroutine"), "{text}");

    // The timer lies in the middle of a time.Timer: what is there has the fields of a timer.
    for version in ["1.24.11", "1.27.3"] {
        let (value, text) = why(version, Mode::Stripped, "signal");
        let objects = value["path"]["objects"].as_array().unwrap_or_else(|| panic!("{text}"));
        for pair in objects.windows(2) {
            let (of, field) =
                (pair[0]["type"].as_str().unwrap_or(""), pair[0]["field"].as_str().unwrap_or(""));
            let next = pair[1]["type"].as_str().unwrap_or("");
            assert!(!(of.starts_with("runtime.timer") && field == ".ts"), "Go {version}: {text}");
            assert!(!(of == "runtime.timer" && next == "[]runtime.timerWhen"), "Go {version}: {text}");
        }
    }
}

#[test]
fn a_stopped_program_has_no_stuck_goroutines() {
    if !privileged("live_cases") {
        return;
    }
    let program = build("cases", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
    let running = Running::start(&program, "busy_ok");
    dumped(&running, 1);
    running.signal(libc::SIGSTOP);
    let output = leaks(running.pid(), &["--watch", "6s", "--stuck-after", "1s", "--format", "json"]);
    running.signal(libc::SIGCONT);
    let lines = json(&output.expect("gotrace runs")).expect("JSON");
    assert!(findings(&lines).is_empty(), "{lines:#?}");
}
