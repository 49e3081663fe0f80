//! CPU time of goroutines against the clocks of the threads that they ran on, with every Go version and build mode. Needs
//! root and `go`.

use std::{io::Write as _, process::Command};

use gotrace_tests::{
    cpu::{disagreements, sum},
    fixture::PATIENCE,
    gobuild::{Arch, Mode, VERSIONS, build},
    gotrace::{binary, privileged},
    quota::Quota,
    speaking::{parse, start},
};
use serde_json::Value;

/// Processes of a version of which one must agree: where others preempt the program between a look at its clock and the
/// scheduler's, one side alone counts that.
const TRIES: u32 = 4;

/// What the program says, and gotrace's summary; within a CPU quota, where there is one.
fn both(version: &str, mode: Mode, level: &str, quota: Option<&Quota>) -> (Value, Value) {
    let program = build("cpu", version, mode, Arch::HOST).expect("it builds");
    let (mut program, own) = start(&mut Command::new(program));
    assert_eq!(own.recv_timeout(PATIENCE).expect("it is ready"), "READY");
    if let Some(quota) = quota {
        quota.limit(program.0.id()).expect("moved");
    }
    let pid = program.0.id().to_string();
    let attach = ["attach", "--pid", &pid, "--format", "json", "--budget", "none", "--level", level];
    let (gotrace, seen) = start(Command::new(binary().expect("gotrace")).args(attach));
    let header = parse(&seen.recv_timeout(PATIENCE).expect("the probes are in place"));
    assert_eq!(header["engine"], "events");
    program.0.stdin.as_mut().expect("a pipe").write_all(b"go\n").expect("it reads");
    let account = parse(&own.recv_timeout(PATIENCE).expect("an account"));
    // SAFETY: no memory is involved; the child has not been waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(gotrace.0.id().cast_signed(), libc::SIGINT) }, 0, "it lives");
    loop {
        let line = parse(&seen.recv_timeout(PATIENCE).expect("a summary"));
        if let Some(summary) = line.get("summary") {
            return (account, summary.clone());
        }
    }
}

#[test]
fn cpu_time_of_goroutines_is_that_of_their_threads() {
    if !privileged("live_cpu") {
        return;
    }
    let stripped = VERSIONS.into_iter().map(|version| (version, Mode::Stripped, "waits"));
    let modes = [Mode::Plain, Mode::PieStripped, Mode::Cgo, Mode::Race, Mode::NoInline];
    let newest = modes.map(|mode| ("1.27.3", mode, "waits"));
    let oldest = [Mode::Cgo, Mode::Race].map(|mode| ("1.19.13", mode, "waits"));
    let full = ["1.19.13", "1.27.3"].map(|version| (version, Mode::Stripped, "full"));
    for (version, mode, level) in stripped.chain(newest).chain(oldest).chain(full) {
        for n in 1.. {
            let (own, seen) = both(version, mode, level, None);
            println!("Go {version}, {}, level {level}, process {n}", mode.name());
            let wrong = disagreements(&own, &seen, 33);
            assert_eq!(seen["lost"], serde_json::json!({}), "{seen}");
            if wrong.is_empty() {
                break;
            }
            assert!(n < TRIES, "Go {version}, {}: {wrong:?}\n{own}\n{seen}", mode.name());
        }
    }
}

#[test]
fn time_throttled_is_what_the_quota_took() {
    if !privileged("live_cpu") {
        return;
    }
    let quota = Quota::new(50).expect("a control group");
    for version in ["1.19.13", "1.27.3"] {
        for n in 1.. {
            let (own, seen) = both(version, Mode::Stripped, "waits", Some(&quota));
            let (cpu, throttled) = (sum(&seen, "cpu_ns", |_| true), sum(&seen, "throttled_ns", |_| true));
            let elapsed = own["elapsed"].as_u64().expect("a time");
            println!("Go {version}: {cpu} ns on CPUs, {throttled} ns throttled, {elapsed} ns elapsed");
            // Half a CPU is what it gets, and some more where a period has begun.
            let process = own["process"].as_u64().expect("a time");
            let on_cpu = cpu.abs_diff(process) < process / 10;
            // Two processors have work all the time: what they do not run, they stand still, but for what others take.
            let whole = cpu + throttled;
            let plausible = whole < elapsed * 22 / 10 && whole > elapsed * 12 / 10 && throttled > elapsed / 2;
            if on_cpu && plausible {
                break;
            }
            assert!(n < TRIES, "Go {version}:\n{own}\n{seen}");
        }
    }
}
