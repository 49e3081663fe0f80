//! `gotrace gc` against the runtime's own account: cycles, pauses, assists, and who else stops the world, with every Go
//! version and build mode. Needs root and `go`.

use std::{io::Write as _, process::Command};

use gotrace_tests::{
    fixture::PATIENCE,
    gobuild::{Arch, Mode, VERSIONS, build},
    gotrace::{binary, privileged},
    speaking::{parse, start},
};
use serde_json::Value;

/// Processes of a version of which one must agree in time: what is preempted between two looks at the clock is counted
/// by one side alone.
const TRIES: u32 = 8;

/// What the runtime counted in one process, and what gotrace saw: its intervals and its summary.
fn both(version: &str, mode: Mode) -> (Value, Vec<Value>, Value) {
    let program = build("collector", version, mode, Arch::HOST).expect("it builds");
    let (mut program, own) = start(&mut Command::new(program));
    assert_eq!(own.recv_timeout(PATIENCE).expect("it is ready"), "READY");
    let pid = program.0.id().to_string();
    let gc = ["gc", "--pid", &pid, "--format", "json", "--budget", "none", "--interval", "200ms"];
    let (gotrace, seen) = start(Command::new(binary().expect("gotrace")).args(gc));
    let header = parse(&seen.recv_timeout(PATIENCE).expect("the probes are in place"));
    assert_eq!((&header["schema"], &header["engine"]), (&"gotrace.gc/1".into(), &"events".into()));
    let mut stdin = program.0.stdin.take().expect("a pipe");
    stdin.write_all(b"go\n").expect("it reads");
    let account = parse(&own.recv_timeout(PATIENCE).expect("an account"));
    // SAFETY: no memory is involved; the child has not been waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(gotrace.0.id().cast_signed(), libc::SIGINT) }, 0, "it lives");
    let mut intervals = Vec::new();
    loop {
        let line = parse(&seen.recv_timeout(PATIENCE).expect("a summary"));
        if let Some(summary) = line.get("summary") {
            return (account, intervals, summary.clone());
        }
        intervals.push(line["interval"].clone());
    }
}

/// Whether two times are one but for so much of it, and for so many nanoseconds.
fn agree(own: &Value, seen: &Value, percent: u64, nanoseconds: u64) -> bool {
    let (own, seen) = (own.as_u64().expect("a time"), seen.as_u64().expect("a time"));
    own.abs_diff(seen) <= own * percent / 100 + nanoseconds
}

#[test]
fn cycles_pauses_and_assists_are_those_that_the_runtime_counts() {
    if !privileged("live_collector") {
        return;
    }
    let stripped = VERSIONS.into_iter().map(|version| (version, Mode::Stripped));
    let modes = [Mode::Plain, Mode::PieStripped, Mode::Cgo, Mode::Race, Mode::NoInline, Mode::Pgo];
    let newest = modes.map(|mode| ("1.27.3", mode));
    let oldest = [Mode::PieStripped, Mode::Cgo, Mode::Race, Mode::NoInline].map(|mode| ("1.19.13", mode));
    for (version, mode) in stripped.chain(newest).chain(oldest) {
        let what = format!("Go {version}, {}", mode.name());
        for n in 1.. {
            let (own, intervals, seen) = both(version, mode);
            let said = format!("{what}:\n{own}\n{seen}");
            assert_eq!(seen["lost"], serde_json::json!({}), "{said}");
            // Counts are exact.
            let cycles: u64 =
                seen["cycles"].as_object().expect("cycles").values().filter_map(Value::as_u64).sum();
            assert_eq!(Some(cycles), own["cycles"].as_u64(), "{said}");
            assert_eq!(seen["cycles"]["call"], own["calls"], "{said}");
            assert_eq!(seen["pause_ns"]["count"].as_u64(), Some(2 * cycles), "{said}");
            assert_eq!(seen["stop_the_world_ns"]["read mem stats"]["count"], own["reads"], "{said}");
            assert_eq!(seen["stop_the_world_ns"].as_object().expect("reasons").len(), 1, "{said}");
            // Each is told once, or counted among those that were left out.
            let told = |i: &Value| {
                i["ended"].as_array().expect("cycles").len() as u64
                    + i["ended_left_out"].as_u64().expect("a number")
            };
            assert_eq!(intervals.iter().map(told).sum::<u64>(), cycles, "{said}");
            let stops: Vec<&Value> =
                intervals.iter().flat_map(|i| i["longest_stops"].as_array().expect("stops")).collect();
            assert!(!stops.is_empty(), "{said}");
            for stop in stops {
                assert_eq!(stop["function"]["function"], "runtime.ReadMemStats", "{what}: {stop}");
                assert_eq!(stop["called_from"]["function"], "main.collectStats", "{what}: {stop}");
                assert_eq!(stop["goid"], 1, "{what}: {stop}");
            }
            let called = intervals.iter().flat_map(|i| i["ended"].as_array().expect("cycles"));
            for cycle in called.filter(|c| c["reason"] == "call") {
                assert_eq!(cycle["called_from"]["function"], "main.collectNow", "{what}: {cycle}");
            }
            for assists in seen["assists_by"].as_array().expect("assists") {
                let entry = assists["entry"]["function"].as_str().expect("a function");
                assert!(
                    ["main.main", "main.main.func1", "main.main.func2", "runtime.main"].contains(&entry),
                    "{what}: {assists}"
                );
            }
            // At mark termination the runtime stops counting some microseconds before it starts the world.
            let pauses = agree(&own["pause_ns"], &seen["pause_ns"]["sum"], 3, 15_000 * cycles);
            let assists = own["assist_ns"].is_null()
                || agree(&own["assist_ns"], &seen["assist_ns"]["sum"], 5, 1_000_000);
            if pauses && assists {
                break;
            }
            eprintln!("process {n} of {said}");
            assert!(n < TRIES, "pauses agree: {pauses}, assists agree: {assists}; {said}");
        }
    }
}
