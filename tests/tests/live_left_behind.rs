//! A test run that leaves goroutines behind fails, and says which test, site and stack; one that leaves none
//! passes. Needs root and `go`.

use std::process::{Command, Output, Stdio};

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
    if leak {
        gotrace.env("LEAK", "1");
    }
    gotrace.output().expect("gotrace starts")
}

#[test]
fn tests_that_leave_goroutines_behind_are_named() {
    if !privileged("live_left_behind") {
        return;
    }
    let output = go_test(true, &["--format", "json"]);
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
    assert_eq!(found.len(), 2, "{found:#?}");
    let worker = of("(*Server).serve");
    assert_eq!(worker["test"], "gotrace.test/leftbehind.TestForgottenClose");
    assert_eq!(worker["created_by"]["function"], "gotrace.test/leftbehind.Start");
    assert_eq!(worker["count"], 1);
    assert_eq!(worker["wait_reason"], "chan receive");
    let stack = worker["stack"].as_array().expect("a list");
    assert!(stack.iter().any(|f| f["function"] == "gotrace.test/leftbehind.(*Server).serve"), "{stack:?}");
    let age = &worker["oldest_ns"];
    assert!(age["at_least"].as_u64() > Some(300_000_000) && age["at_least"] == age["at_most"], "{age}");
    let poll = of("Poll");
    assert_eq!(poll["test"], "gotrace.test/leftbehind.TestForgottenPoll");
}

#[test]
fn tests_that_leave_nothing_behind_pass() {
    if !privileged("live_left_behind") {
        return;
    }
    let output = go_test(false, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
