//! A test run that leaves goroutines behind fails, however short it was, and says which test, site and stack; one that
//! leaves none passes, and one whose findings are known. Needs root and `go`.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use gotrace_tests::{
    gobuild::workspace,
    gotrace::{binary, privileged},
};
use serde_json::Value;

fn go_test(leak: bool, more: &[&str]) -> Output {
    let mut gotrace = Command::new(binary().expect("built"));
    gotrace.args(["exec", "--fail-on", "left_behind"]).args(more).args(["--", "go", "test", "./..."]);
    gotrace.current_dir(workspace().join("tests/go/leftbehind")).stdin(Stdio::null());
    gotrace.env("GOTOOLCHAIN", "go1.27.3").env("GOWORK", "off").env_remove("GOFLAGS").env_remove("LEAK");
    gotrace.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_WORKSPACE");
    if leak {
        gotrace.env("LEAK", "1");
    }
    gotrace.output().expect("gotrace starts")
}

/// A run in which all that are left behind were judged: on a busy machine the short-lived program may be over before
/// its memory could be pinned, and the goroutine that polls may have been woken, and wait for a CPU, at the exit.
fn whole(more: &[&str]) -> Output {
    let judged = ["quick.(*Pool).work", "leftbehind.Poll", "leftbehind.(*Server).serve"];
    let mut output = go_test(true, more);
    for _ in 0..5 {
        let stderr = String::from_utf8_lossy(&output.stderr);
        if judged.iter().all(|function| stderr.contains(function)) {
            break;
        }
        output = go_test(true, more);
    }
    output
}

#[test]
fn tests_that_leave_goroutines_behind_are_named() {
    if !privileged("live_left_behind") {
        return;
    }
    let output = whole(&["--format", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(10), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("ok"), "what go test prints is left alone");
    let lines: Vec<Value> =
        stderr.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    assert_eq!(lines[0]["schema"], "gotrace.leaks/1");
    assert_eq!(lines[0]["engine"], "events");
    let found: Vec<&Value> = lines.iter().filter(|l| l["verdict"] == "left_behind").collect();
    let of = |function: &str| {
        let full = format!("gotrace.test/leftbehind.{function}");
        *found.iter().find(|f| f["entry"]["function"] == full.as_str()).expect("a finding of this function")
    };
    assert_eq!(found.len(), 3, "{found:#?}");
    let worker = of("(*Server).serve");
    assert_eq!(worker["test"], "gotrace.test/leftbehind.TestForgottenClose");
    assert_eq!(worker["created_by"]["function"], "gotrace.test/leftbehind.Start");
    assert_eq!(worker["count"], 1);
    assert_eq!(worker["wait_reason"], "chan receive");
    let stack = worker["stack"].as_array().expect("a list");
    assert!(stack.iter().any(|f| f["function"] == "gotrace.test/leftbehind.(*Server).serve"), "{stack:?}");
    let age = &worker["oldest_ns"];
    assert!(age["at_least"].as_u64() > Some(300_000_000) && age["at_least"] == age["at_most"], "{age}");
    assert_eq!(worker["waits_on"][0]["kind"], "chan", "{worker}");
    assert_eq!((&worker["suppressed"], &worker["in_baseline"]), (&Value::Null, &Value::Null));
    let poll = of("Poll");
    assert_eq!(poll["test"], "gotrace.test/leftbehind.TestForgottenPoll");
    // Its tests are over within milliseconds, and another goroutine was about to wake by itself.
    let work = "gotrace.test/leftbehind/quick.(*Pool).work";
    let quick = *found.iter().find(|f| f["entry"]["function"] == work).expect("a finding of this function");
    assert_eq!(
        (&quick["count"], &quick["wait_reason"]),
        (&Value::from(2), &Value::from("chan receive")),
        "{quick}"
    );
    let stack = quick["stack"].as_array().expect("a list");
    assert!(stack.iter().any(|f| f["function"] == work), "{stack:?}");
    let judged = &lines.last().expect("a line that sums up")["judged"];
    assert_eq!(
        (&judged["test_programs"], &judged["goroutines"]),
        (&Value::from(2), &Value::from(4)),
        "{judged}"
    );
}

#[test]
fn tests_that_leave_nothing_behind_pass() {
    if !privileged("live_left_behind") {
        return;
    }
    let output = go_test(false, &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.starts_with("gotrace: 2 test programs, 0 goroutines left behind"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn what_is_known_is_told_and_does_not_fail() {
    if !privileged("live_left_behind") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let (baseline, junit, suppress) = (file("leaks.json"), file("leaks.xml"), file("known.yaml"));
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let (baseline_text, junit_text, suppress_text) = (text(&baseline), text(&junit), text(&suppress));

    // Whatever is found becomes the baseline.
    let output = whole(&["--write-baseline", &baseline_text]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("gotrace: wrote 3 findings to baseline"), "{stderr}");
    let written: Value = serde_json::from_str(&read(&baseline)).expect("JSON");
    assert_eq!(written["schema"], "gotrace.baseline/1");
    assert_eq!(written["findings"].as_array().map(Vec::len), Some(3), "{written}");

    // With it the same run succeeds, and tells them all the same.
    let output = whole(&["--baseline", &baseline_text, "--junit", &junit_text]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr.matches("known: in the baseline").count(), 3, "{stderr}");
    assert!(stderr.contains("0 goroutines left behind (plus 4 in the baseline)"), "{stderr}");
    let xml = read(&junit);
    assert!(
        xml.contains("failures=\"0\"") && xml.matches("<skipped message=\"in the baseline").count() == 3,
        "{xml}"
    );

    // What is new fails, what is suppressed does not; both are told.
    let all = written["findings"].as_array().expect("a list");
    let others: Vec<&Value> =
        all.iter().filter(|f| f["function"] == "gotrace.test/leftbehind.Poll").collect();
    let less = serde_json::json!({"schema": "gotrace.baseline/1", "findings": others});
    fs::write(&baseline, less.to_string()).expect("written");
    let known = "suppressions:\n- function: gotrace.test/leftbehind/quick.*\n  verdict: [left_behind]\n  reason: a fixture\n";
    fs::write(&suppress, known).expect("written");
    let more = [
        "--baseline",
        &baseline_text,
        "--suppress",
        &suppress_text,
        "--junit",
        &junit_text,
        "--annotations",
        "github",
    ];
    let output = whole(&more);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(10), "{stderr}");
    assert_eq!(stderr.matches("suppressed: a fixture").count(), 1, "{stderr}");
    let line = "gotrace: 2 test programs, 1 goroutine left behind (plus 2 suppressed, 1 in the baseline)";
    assert!(stderr.lines().any(|l| l.starts_with(line)), "{stderr}");
    let annotations: Vec<&str> = stderr.lines().filter(|l| l.starts_with("::")).collect();
    let [annotation] = annotations[..] else { panic!("{annotations:?}") };
    assert!(annotation.starts_with("::error file=server.go,line="), "{annotation}");
    assert!(annotation.contains("gotrace.test/leftbehind.(*Server).serve left behind by"), "{annotation}");
    let xml = read(&junit);
    assert!(xml.contains("tests=\"3\" skipped=\"2\" failures=\"1\" errors=\"0\""), "{xml}");
    assert!(xml.contains("<skipped message=\"suppressed: a fixture: 2 goroutines"), "{xml}");

    // Files that are not what they should be are refused before anything runs.
    fs::write(&suppress, "suppressions:\n- function: a.f\n").expect("written");
    let output = go_test(true, &["--suppress", &suppress_text]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("known.yaml:2:3: missing field `reason`"), "{stderr}");
    let output = go_test(true, &["--baseline", &text(&file("none.json"))]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("none.json") && stderr.contains("--write-baseline"), "{stderr}");
}
