//! Leaks proven while a process is traced: in reports, metrics and a log record, by either engine, and as what
//! fails a command. Needs root; the healthy program needs `go`.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use gotrace_tests::{
    demo::{Demo, unpack_demo},
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, binary, privileged},
};
use serde_json::Value;

const PROVE: [&str; 4] = ["--prove-after", "500ms", "--prove-every", "1s"];

/// The demo leaks at one place only, once in 25 requests.
fn check(leaks: &Value, refuted: &Value) {
    let leaks = leaks.as_array().expect("leaks");
    assert_eq!(leaks.len(), 1, "{leaks:?}");
    assert_eq!(leaks[0]["entry"]["function"], "main.waitForever");
    assert_eq!(leaks[0]["created_by"]["function"], "main.leakyHandler");
    assert_eq!(leaks[0]["wait_reason"], "chan receive");
    let count = leaks[0]["count"].as_u64().expect("a number");
    assert!(count >= 5 && leaks[0]["goids"].as_array().map(|g| g.len() as u64) == Some(count), "{leaks:?}");
    assert!(leaks[0]["retained_bytes"].as_u64() > Some(0), "{leaks:?}");
    assert_eq!(*refuted, 0);
}

fn has(list: &Value, one: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(one))
}

#[test]
fn leaks_are_proven_while_a_process_is_traced() {
    if !privileged("live_traced_proof") {
        return;
    }
    for engine in ["events", "snapshot"] {
        let demo = Demo::start("1h").expect("it starts");
        let mut flags = vec!["--engine", engine, "--suspect-every", "400ms"];
        flags.extend(PROVE);
        let mut gotrace = Gotrace::attach(demo.pid(), &flags).expect("gotrace attaches");
        gotrace
            .until("they grow", |i| {
                // Those that were proven before they were seen to grow are told so there.
                has(&i["suspects"], |s| s["verdict"] == "growing")
                    || has(&i["leaks"], |l| !l["growth_per_second"].is_null())
            })
            .expect("suspected");
        let proven = |l: &Value| l["count"].as_u64() >= Some(5) && l["retained_bytes"].as_u64() > Some(0);
        gotrace.until("they are proven", |i| has(&i["leaks"], proven)).expect("proven");
        gotrace.interrupt();
        let outcome = gotrace.wait().expect("it ends");
        let summary = outcome.summary().expect("a summary");
        check(&summary["leaks"], &summary["leaks_refuted"]);
        // Those that leaked since the last proof are suspected, and nobody else.
        let suspects = summary["suspects"].as_array().expect("suspects");
        assert!(suspects.iter().all(|s| s["entry"]["function"] == "main.waitForever"), "{suspects:?}");
        let found = &outcome.export;
        for name in ["gotrace.leak.proven", "gotrace.leak.retained", "gotrace.leak.growth"] {
            assert!(found.metrics.contains_key(name), "{engine}: {name} in {:?}", found.metrics);
        }
        assert!(!found.metrics.contains_key("gotrace.leak.refuted"));
        let (suspected, records): (Vec<&Value>, Vec<&Value>) =
            found.logs.iter().partition(|record| record["eventName"] == "gotrace.leak.suspected");
        let growing = suspected.iter().find(|record| {
            let attributes = record["attributes"].as_array().expect("attributes");
            attributes.iter().any(|a| a["value"]["stringValue"] == "growing")
        });
        if let Some(growing) = growing {
            let body = growing["body"]["stringValue"].as_str().expect("a sentence");
            assert!(body.contains("main.waitForever may have leaked (growing; chan receive)"), "{body}");
        }
        // Once, and again for each doubling.
        let count = summary["leaks"][0]["count"].as_u64().expect("a number");
        let most = 1 + count.ilog2() as usize;
        assert!((1..=most).contains(&records.len()), "{engine}: {count}: {records:?}");
        assert_eq!(records[0]["eventName"], "gotrace.leak.confirmed");
        let body = records[0]["body"]["stringValue"].as_str().expect("a sentence");
        assert!(
            body.contains("main.waitForever")
                && body.contains(" leaked: nothing that can still run references "),
            "{body}"
        );
    }
}

#[test]
fn without_proofs_nothing_is_said() {
    if !privileged("live_traced_proof") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    let mut flags = vec!["--duration", "4s", "--no-proof"];
    flags.extend(PROVE);
    let outcome = Gotrace::attach(demo.pid(), &flags).and_then(Gotrace::wait).expect("it runs");
    assert_eq!(outcome.summary().expect("a summary")["leaks"], Value::Array(Vec::new()));
}

#[test]
fn a_command_fails_on_what_is_proven() {
    if !privileged("live_traced_proof") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let demo = unpack_demo(directory.path()).expect("the demo");
    let (code, told) = until_proven(true, |seconds| {
        let output = exec(&demo, &["-for", &format!("{seconds}s")])
            .stdin(Stdio::null())
            .output()
            .expect("gotrace runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert_eq!(code, Some(10), "{told}");
    assert!(told.contains("LEAKED  main.waitForever"), "{told}");

    let healthy = build("leaks", "1.24.11", Mode::Stripped, Arch::HOST).expect("it builds");
    let (code, told) = until_proven(false, |seconds| {
        let mut child = exec(&healthy, &["healthy"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("gotrace runs");
        // It ends when its input does.
        let input = child.stdin.take();
        thread::sleep(Duration::from_secs(seconds));
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("LEAKED"), "{told}");
}

#[test]
fn what_is_suppressed_is_told_and_does_not_fail() {
    if !privileged("live_traced_proof") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let demo = unpack_demo(directory.path()).expect("the demo");
    let file = directory.path().join("known.yaml");
    let known = "suppressions:\n- function: main.waitForever\n  reason: the demo leaks on purpose\n";
    std::fs::write(&file, known).expect("written");
    let file = file.to_str().expect("a plain path");
    let (code, told) = until_proven(false, |seconds| {
        let mut gotrace = Command::new(binary().expect("built"));
        gotrace.args(["exec", "--quiet", "--fail-on", "unreachable", "--suppress", file, "--"]);
        let output = gotrace.arg(&demo).args(["-for", &format!("{seconds}s")]).stdin(Stdio::null()).output();
        let output = output.expect("gotrace runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // Until it has leaked before a proof.
        let found = told.contains("main.waitForever");
        (output.status.code(), if found { told } else { String::new() })
    });
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("suppressed: the demo leaks on purpose"), "{told}");
    assert!(told.contains("gotrace: 1 program, 0 goroutines unreachable (plus "), "{told}");
    assert!(told.contains("suppressed); proof completed in 1 of 1"), "{told}");

    let mut flags = vec!["--suppress", file, "--suspect-every", "400ms"];
    flags.extend(PROVE);
    let running = Demo::start("1h").expect("it starts");
    let mut gotrace = Gotrace::attach(running.pid(), &flags).expect("gotrace attaches");
    let proven = |l: &Value| l["suppressed"] == "the demo leaks on purpose";
    gotrace.until("they are proven", |i| has(&i["leaks"], proven)).expect("proven");
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("it ends");
    let records = outcome.export.logs.iter().filter(|r| r["eventName"] == "gotrace.leak.confirmed");
    let records: Vec<&Value> = records.collect();
    assert!(!records.is_empty(), "{:?}", outcome.export.logs);
    for record in records {
        assert_eq!(record["severityText"], "INFO", "{record}");
        let attributes = record["attributes"].as_array().expect("attributes");
        let reason = attributes.iter().find(|a| a["key"] == "gotrace.leak.suppression").expect("a reason");
        assert_eq!(reason["value"]["stringValue"], "the demo leaks on purpose");
    }
}

fn exec(program: &Path, arguments: &[&str]) -> Command {
    let mut gotrace = Command::new(binary().expect("built"));
    gotrace.args(["exec", "--quiet", "--fail-on", "unreachable", "--"]).arg(program).args(arguments);
    gotrace
}

/// Runs it for so many seconds, and for longer until a proof was completed meanwhile: of a program that leaks, one that
/// began after it had leaked.
fn until_proven(leaks: bool, run: impl Fn(u64) -> (Option<i32>, String)) -> (Option<i32>, String) {
    let mut all = Vec::new();
    for seconds in [4, 16, 64] {
        let (code, told) = run(seconds);
        if told.contains("before exit") && (code == Some(10) || !leaks) {
            return (code, told);
        }
        all.push((code, told));
    }
    panic!("nothing was proven: {all:?}");
}
