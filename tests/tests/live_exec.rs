//! `gotrace exec`: nothing is missed from goroutine 1 on, the exit status passes through, and the Go
//! programs that a command starts are followed. Needs root and `go`.

use std::process::Command;

use gotrace_tests::{
    fixture::Account,
    gobuild::{Arch, Mode, build, workspace},
    gotrace::{Gotrace, binary, privileged},
    live::{DEEP, EXACT, judge},
};

#[test]
fn everyone_is_seen_from_the_first_goroutine_on() {
    if !privileged("live_exec") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("account.jsonl");
    let path = path.to_str().expect("a plain path");
    for version in ["1.19.13", "1.24.11", "1.27.3"] {
        let program = build("account", version, Mode::Stripped, Arch::HOST).expect("it builds");
        let mut command = vec![program.to_str().expect("a plain path"), "-now", "-account", path];
        command.extend(EXACT);
        let gotrace = Gotrace::exec(&DEEP, &command).expect("gotrace runs the program");
        let outcome = gotrace.wait().expect("gotrace ends");
        assert!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
        let text = std::fs::read_to_string(path).expect("the program wrote its account");
        let account = Account::parse(&text).expect("a whole account");
        let counted = judge(&account, &outcome).unwrap_or_else(|e| panic!("go{version}: {e:#}"));
        eprintln!("exec go{version}: {} goroutines, {} waits", counted.goroutines, counted.waits);
        // Who is born before main begins is seen too: the runtime's own, whose parent is goroutine 1.
        let sites = outcome.lines.iter().filter_map(|l| l["interval"]["sites"].as_array()).flatten();
        let entries: Vec<_> = sites.filter_map(|s| s["entry"]["function"].as_str()).collect();
        assert!(entries.contains(&"runtime.main"), "go{version}: goroutine 1 is not in {entries:?}");
    }
}

#[test]
fn the_exit_status_passes_through() {
    if !privileged("live_exec") {
        return;
    }
    let program = build("account", "1.27.3", Mode::Plain, Arch::HOST).expect("it builds");
    let status = Command::new(binary().expect("gotrace is built"))
        .args(["exec", "--quiet", "--"])
        .arg(&program)
        .args(["-now", "-scenario", "no-such-scenario"])
        .status()
        .expect("gotrace starts");
    assert_eq!(status.code(), Some(2));
}

#[test]
fn go_test_is_followed_into_the_test_binary() {
    if !privileged("live_exec") {
        return;
    }
    let dir = workspace().join("tests/go/tested");
    let gotrace = Gotrace::exec(
        &["--follow-children"],
        &["go", "-C", dir.to_str().expect("a plain path"), "test", "-count=1", "./..."],
    )
    .expect("gotrace runs go test");
    let outcome = gotrace.wait().expect("gotrace ends");
    assert!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
    let of_sum = |s: &&gotrace_tests::export::Span| {
        s.get("gotrace.created_by.function.name") == "gotrace.test/tested.Sum"
    };
    let worker = outcome.export.spans.iter().filter(of_sum).count();
    assert_eq!(worker, 5, "goroutines of the test binary");
}
