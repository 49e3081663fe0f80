//! Dates where gotrace's own clock is another than the node's. Needs root, `go` and util-linux with time namespaces.

use std::{
    fs,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use gotrace_tests::{
    daemon::{Place, Program},
    gotrace::{binary, left_out, privileged},
};
use serde_json::Value;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}

/// All values of these keys, wherever they are, as numbers.
fn times(value: &Value, keys: &[&str], found: &mut Vec<u64>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str().and_then(|text| text.parse().ok()) {
                    Some(time) if keys.contains(&key.as_str()) => found.push(time),
                    _ => times(value, keys, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| times(value, keys, found)),
        _ => {}
    }
}

#[test]
fn dates_are_right_inside_a_time_namespace() {
    if !privileged("robust_time") {
        return;
    }
    if !fs::exists("/proc/self/ns/time").unwrap_or(false) {
        left_out("robust_time", "the kernel has no time namespaces");
        return;
    }
    let place = Place::new().expect("a directory");
    let mut program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    for engine in ["events", "snapshot"] {
        let export = place.path().join(format!("{engine}.jsonl"));
        let before = now();
        let gotrace = Command::new("unshare")
            .args(["--time", "--monotonic", "1000000", "--boottime", "1000000", "--fork"])
            .arg(binary().expect("gotrace is built"))
            .args([
                "attach",
                "--level",
                "waits",
                "--duration",
                "2s",
                "--quiet",
                "--engine",
                engine,
                "--export",
            ])
            .arg(&export)
            .args(["--pid", &program.pid().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        // Goroutines that come and go, whose spans have dates; however many there are by the time that it attaches.
        let mut gotrace = gotrace;
        while gotrace.try_wait().expect("our child").is_none() {
            program.count("churn 1000 100ms").expect("it obeys");
        }
        let output = gotrace.wait_with_output().expect("it has ended");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let after = now();
        let mut found = Vec::new();
        for line in fs::read_to_string(&export).expect("a file").lines() {
            let value: Value = serde_json::from_str(line).expect("JSON");
            times(&value, &["endTimeUnixNano", "timeUnixNano"], &mut found);
        }
        println!("{engine}: {} dates", found.len());
        assert!(!found.is_empty(), "{engine}");
        for time in found {
            assert!((before..=after).contains(&time), "{engine}: {before} <= {time} <= {after}");
        }
    }
}
