//! Known places at which goroutines wait, at two versions of each library and of Go: what `gotrace leaks` and `gotrace why`
//! call them, that a pool which hands out nothing is told as stalled, and who keeps its members. Nobody is said to hold
//! what it does not hold. Needs root, `go`, a C compiler, and the libraries from Go's module proxy.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use gotrace_tests::{
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build},
    gotrace::{binary, privileged},
    leaks::{Leaks, json, leaks},
};
use serde_json::Value;

/// With `old.mod` and with `go.mod` of `tests/go/places`.
const VERSIONS: [&str; 2] = ["1.19.13", "1.27.3"];

/// Where goroutines wait for a member, what that is called, and the functions by which the two are known that keep one;
/// `candidate` where they only may.
const POOLS: [(&str, &str, &str, &[&str]); 7] = [
    (
        "main.wantsConnection",
        "waits for a database connection",
        "refers",
        &["main.openTransaction", "main.rowsNotClosed"],
    ),
    ("main.wantsPgx", "waits for a database connection", "refers", &["main.keepsPgx"]),
    ("main.wantsHTTP", "waits for a free HTTP connection", "refers", &["main.bodyNotRead"]),
    ("main.wantsRedis", "waits for a Redis connection", "candidate", &[]),
    ("main.wantsWeight", "waits for a semaphore", "candidate", &["main.keepsWeight"]),
    (
        "main.wantsSlot",
        "waits for an errgroup slot",
        "candidate",
        &["golang.org/x/sync/errgroup.(*Group).Go.func1"],
    ),
    ("main.wantsToken", "waits for a semaphore", "candidate", &["main.keepsToken"]),
];

/// What is no pool: it ends by itself, or nobody can end it.
const OTHERS: [(&str, &str); 4] = [
    ("main.limited", "waits for a rate limiter"),
    ("main.resolves", "waits for DNS"),
    ("main.asksServer", "waits for DNS"),
    ("main.inC", "waits for a cgo call"),
];

/// The innermost function of the program's own in a stack.
fn own(of: &Value) -> &str {
    let frames = of["stack"].as_array().into_iter().flatten();
    frames
        .filter_map(|f| f["function"].as_str())
        .find(|f| f.starts_with("main.") && !f.starts_with("main._C"))
        .unwrap_or("?")
}

/// Processes of a version that are tried.
const TRIES: u32 = 2;

/// What is wrong with what was said of one pool.
fn check_pool(
    &(at, place, evidence, keepers): &(&str, &str, &str, &[&str]),
    finding: Option<&&Value>,
) -> Vec<String> {
    let Some(finding) = finding else { return vec![format!("nothing is said of {at}")] };
    let mut wrong = Vec::new();
    for (field, expected) in [("verdict", "stalled"), ("place", place)] {
        if finding[field] != expected {
            wrong.push(format!("{at}: {field} {}", finding[field]));
        }
    }
    if finding["count"] != 3 {
        wrong.push(format!("{at}: {} goroutines", finding["count"]));
    }
    let holders = finding["holders"].as_array().expect("holders");
    let mut frames: Vec<&str> = holders.iter().filter_map(|h| h["frame"]["function"].as_str()).collect();
    frames.sort_unstable();
    frames.dedup();
    if holders.len() != 2
        || holders.iter().any(|h| h["evidence"] != evidence)
        || !keepers.is_empty() && frames != keepers
    {
        wrong.push(format!("{at}: said to be kept by {holders:#?}"));
    }
    wrong
}

/// What `gotrace why` calls the place of the goroutine that stands in a function.
fn why(pid: u32, function: &str) -> Value {
    let gotrace = |args: &[&str]| {
        let output = Command::new(binary().expect("gotrace"))
            .args(args)
            .args(["--pid", &pid.to_string(), "--format", "json"])
            .stdin(Stdio::null())
            .output();
        output.expect("gotrace runs")
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let dump = json(&gotrace(&["dump"])).expect("JSON");
        if let Some(found) = dump.iter().find(|g| own(g) == function) {
            let output = gotrace(&["why", "--goid", &found["goid"].to_string()]);
            let why: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            // A lookup that has just timed out begins anew.
            if why["place"] != Value::Null || Instant::now() > deadline {
                return why["place"].clone();
            }
        }
        assert!(Instant::now() < deadline, "nobody stands in {function}");
    }
}

#[test]
fn places_are_named_and_pools_that_are_dry_name_who_keeps_their_members() {
    if !privileged("live_places") {
        return;
    }
    for version in VERSIONS {
        let program = build("places", version, Mode::Cgo, Arch::HOST).expect("it builds");
        // A process that moves on while its stacks are read may hide a keeper: another one is a try.
        for n in 1..=TRIES {
            let (missed, false_ones) = judge(&program);
            assert!(false_ones.is_empty(), "Go {version}:\n{}", false_ones.join("\n"));
            if missed.is_empty() {
                break;
            }
            let missed = missed.join("\n");
            assert!(n < TRIES, "Go {version}, in {TRIES} processes:\n{missed}");
            eprintln!("Go {version}, process {n}:\n{missed}");
        }
    }
}

/// What is not said of a process as it is, and who is accused though nothing is wrong with it.
fn judge(program: &Path) -> (Vec<String>, Vec<String>) {
    let running = Leaks::start(program, "all").expect("it starts");
    let output = leaks(running.pid(), &["--watch", "12s", "--format", "json"]).expect("gotrace runs");
    let lines = json(&output).expect("JSON");
    let findings: BTreeMap<&str, &Value> =
        lines.iter().filter(|l| l.get("verdict").is_some()).map(|f| (own(f), f)).collect();
    let mut missed: Vec<String> =
        POOLS.iter().flat_map(|pool| check_pool(pool, findings.get(pool.0))).collect();
    // Those that keep members are named, and not accused themselves.
    let accused = findings.keys().filter(|at| !POOLS.iter().any(|p| p.0 == **at));
    let accused = accused.map(|at| format!("{at} is accused: {}", findings[at])).collect();
    for (function, place) in OTHERS {
        let said = why(running.pid(), function);
        if said != place {
            missed.push(format!("{function} is said to be at {said}"));
        }
    }
    (missed, accused)
}
