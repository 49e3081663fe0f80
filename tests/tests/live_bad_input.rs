//! What goes wrong around a run is said, counted, and the exit code of the contract: full disks, a
//! collector that is down, capabilities missing one by one, a command that ends. Needs root, and no Go.

use std::process::{Command, Output, Stdio};

use gotrace_tests::{
    demo::{Demo, unpack_demo},
    gotrace::{binary, by_links, privileged},
    ports,
};
use serde_json::Value;

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("it starts")
}

fn gotrace(args: &[&str]) -> Output {
    run(Command::new(binary().expect("built")).args(args))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().expect("lines")).expect("JSON")
}

#[test]
fn a_program_that_is_not_gos_is_refused() {
    if !privileged("live_bad_input") {
        return;
    }
    let mut sleep = Command::new("sleep").arg("60").spawn().expect("it starts");
    let output = gotrace(&["attach", "--pid", &sleep.id().to_string()]);
    sleep.kill().expect("ours");
    sleep.wait().expect("it ends");
    assert_eq!(output.status.code(), Some(4));
    let stderr = stderr(&output);
    assert!(stderr.contains("not a Go program") && stderr.contains("help: "), "{stderr}");
}

#[test]
fn a_full_disk_is_a_failure_that_names_the_file() {
    if !privileged("live_bad_input") {
        return;
    }
    let demo = Demo::start("60s").expect("it starts");
    for flag in ["--export", "--record"] {
        let pid = demo.pid().to_string();
        let output = gotrace(&["attach", "--pid", &pid, "--duration", "500ms", "--quiet", flag, "/dev/full"]);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{flag}: {stderr}");
        assert!(stderr.contains("/dev/full") && stderr.contains("No space left"), "{flag}: {stderr}");
    }
}

#[test]
fn a_collector_that_is_down_costs_spans_that_are_counted() {
    if !privileged("live_bad_input") {
        return;
    }
    let demo = Demo::start("60s").expect("it starts");
    let [port] = ports::free().expect("a port");
    let endpoint = format!("http://127.0.0.1:{port}");
    let pid = demo.pid().to_string();
    let output =
        gotrace(&["attach", "--pid", &pid, "--duration", "1s", "--format", "json", "--otlp", &endpoint]);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains(&endpoint), "{stderr}");
    let summary = &last_line(&output)["summary"];
    assert!(summary["spans"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["spans_dropped"]["unreachable"], summary["spans"]);
}

#[test]
fn each_missing_capability_is_named() {
    if !privileged("live_bad_input") {
        return;
    }
    let demo = Demo::start("60s").expect("it starts");
    let pid = demo.pid().to_string();
    let without = |capabilities: &str, args: &[&str]| {
        let dropped = format!("-{}", capabilities.replace(',', ",-"));
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", &dropped, "--inh-caps", &dropped, "--"]);
        run(command.arg(binary().expect("built")).args(args))
    };
    let attach = ["attach", "--pid", &pid, "--duration", "200ms", "--quiet", "--engine", "events"];
    // Where probes are put in place by links, nothing takes CAP_SYS_ADMIN.
    let mut spare = vec!["bpf", "perfmon", "bpf,perfmon"];
    let mut needed =
        vec![("sys_ptrace", "SYS_PTRACE"), ("sys_admin,bpf", "BPF"), ("sys_admin,perfmon", "PERFMON")];
    if by_links().expect("doctor tells") {
        spare.push("sys_admin");
    } else {
        needed.push(("sys_admin", "SYS_ADMIN"));
    }
    // What CAP_SYS_ADMIN stands for may be missing.
    for capabilities in spare {
        let output = without(capabilities, &attach);
        assert_eq!(output.status.code(), Some(0), "without {capabilities}: {}", stderr(&output));
    }
    for (capabilities, named) in needed {
        let output = without(capabilities, &attach);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "without {capabilities}: {stderr}");
        assert!(stderr.contains("help: ") && stderr.contains(named), "without {capabilities}: {stderr}");
    }
    for (capabilities, named) in
        [("sys_admin,bpf", "give gotrace CAP_BPF"), ("sys_admin,perfmon", "CAP_PERFMON")]
    {
        let output = without(capabilities, &["doctor"]);
        let report = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "without {capabilities}: {report}");
        assert!(report.contains(named), "without {capabilities}: {report}");
    }
}

#[test]
fn exec_ends_as_its_command_does_and_says_why() {
    if !privileged("live_bad_input") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let demo = unpack_demo(directory.path()).expect("unpacked");
    let demo = demo.to_str().expect("a path");
    let output = gotrace(&["exec", "--format", "json", "--", demo, "-for", "300ms"]);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let summary: Value = serde_json::from_str(stderr.lines().last().expect("lines")).expect("JSON on stderr");
    assert_eq!(summary["summary"]["ended"], "the process ended");
    assert_eq!(summary["summary"]["alive_is_lower_bound"], false);
    // Tracing went wrong, the command did not: its own failure would win.
    let output = gotrace(&["exec", "--export", "/dev/full", "--quiet", "--", demo, "-for", "300ms"]);
    assert_eq!(output.status.code(), Some(1));
    let output = gotrace(&["exec", "--export", "/dev/full", "--quiet", "--", demo, "-no-such-flag"]);
    assert_eq!(output.status.code(), Some(2));
}
