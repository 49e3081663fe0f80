//! The account of executions: under a storm of programs that end at once each ends in exactly one class. Needs root, `go`
//! and util-linux.
//!
//! In a PID namespace of its own, where nothing else executes programs: the account is exact, or it is wrong.

use std::{
    fs,
    process::{Command, Stdio},
};

use gotrace_tests::{
    daemon::{Daemon, Metrics, Place},
    fixture::PATIENCE,
    gotrace::{binary, privileged},
};

/// Programs that the storm starts.
const PROGRAMS: u32 = 600;

fn covered(metrics: &Metrics, class: &str) -> f64 {
    metrics.sum("gotrace_processes_covered_total", &[&format!("gotrace_coverage=\"{class}\"")])
}

/// The only child of a process.
fn child_of(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it lives");
    children.trim().parse().unwrap_or_else(|_| panic!("one child: {children}"))
}

/// Runs a shell's script in the PID namespace of a process; the shell is an execution too.
fn within(pid: u32, script: &str, argument: &str) {
    let status = Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--pid", "--mount", "sh", "-c", script, "sh", argument])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("nsenter starts");
    assert!(status.success(), "{status}");
}

#[test]
fn each_execution_is_in_one_class_under_a_storm() {
    if !privileged("robust_coverage") {
        return;
    }
    let place = Place::new().expect("a directory");
    let program = place.program("shop").expect("it builds").display().to_string();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc"]).arg(binary().expect("gotrace is built"));
    let daemon = Daemon::start_by(command, &place.config("level: lifecycle", ""), &[]).expect("it starts");
    let gotrace = child_of(daemon.pid());

    // One that stays, so that something is traced for sure; its input never ends.
    let mut held = Command::new("nsenter")
        .args(["--target", &gotrace.to_string(), "--pid", "--mount", &program, "-procs", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("nsenter starts");
    daemon
        .until("one is traced", PATIENCE, |d| {
            let metrics = d.metrics()?;
            Ok(covered(&metrics, "events") + covered(&metrics, "snapshot") >= 1.0)
        })
        .expect("traced");

    let script = format!(
        "i=0; while [ $i -lt {PROGRAMS} ]; do \"$1\" -procs 2 & i=$((i + 1)); [ $((i % 20)) -eq 0 ] && wait; done; wait"
    );
    within(gotrace, &script, &program);
    let executed = f64::from(PROGRAMS + 2);
    let until = |executed: f64| {
        let done = daemon.until("all of them are in a class", PATIENCE, |d| {
            Ok(d.metrics()?.sum("gotrace_processes_covered_total", &[]) >= executed)
        });
        done.expect("in time")
    };
    until(executed);
    // One more, after which none but that may have come.
    within(gotrace, ":", "");
    until(executed + 1.0);
    let metrics = daemon.metrics().expect("a page");
    let classes =
        ["events", "snapshot", "refused", "gone", "gone_unknown", "not_go", "left_out", "unreadable"];
    for class in classes {
        println!("{class}: {}", covered(&metrics, class));
    }
    let all: f64 = classes.iter().map(|class| covered(&metrics, class)).sum();
    assert_eq!(metrics.values("gotrace_executions_lost_total", &[]), [0.0], "{}", metrics.0);
    assert_eq!(all, executed + 1.0, "{}", metrics.0);
    assert_eq!(metrics.values("gotrace_processes_seen_total", &[]), [executed + 1.0]);
    assert_eq!(metrics.sum("gotrace_processes_refused_total", &[]), covered(&metrics, "refused"));
    // A shell that nobody could look at any more is not left out.
    assert!((1.0..=2.0).contains(&covered(&metrics, "left_out")) && covered(&metrics, "not_go") == 0.0);

    drop(held.stdin.take());
    held.wait().expect("it ends");
    // SAFETY: kill takes no pointers; the pid is of our own child's child, which lives.
    unsafe { libc::kill(gotrace.cast_signed(), libc::SIGTERM) };
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
    let summary = said.lines().find(|line| line.contains("programs executed")).expect("a summary");
    assert!(
        summary.contains(&format!("seen={}", PROGRAMS + 3)) && summary.contains("pending=0"),
        "{summary}"
    );
}
