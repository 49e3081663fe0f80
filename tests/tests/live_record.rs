//! What is recorded of a run and converted later is what the run itself wrote: each span, log record and metric of
//! `--export` and each interval of `--format json`, byte for byte. Needs root, and no Go.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    demo::{Demo, unpack_demo},
    fixture::PATIENCE,
    gotrace::{binary, privileged},
    recording::{Exported, intervals},
};

fn gotrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary().expect("built"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    gotrace(arguments).output().expect("it starts")
}

fn done(arguments: &[&str]) -> Output {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The user has enough.
fn interrupt(child: &Child) {
    // SAFETY: a signal to a child of ours that was not waited for.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
}

/// Converts a recording both ways and holds it against what the run wrote.
fn compare(recording: &str, live_export: &str, live_intervals: &str, directory: &Path) {
    let at = |name: &str| directory.join(name).to_str().expect("text").to_owned();
    let (spans, lines) = (at("converted.otlp.jsonl"), at("converted.json"));
    done(&["convert", recording, "-o", &spans]);
    done(&["convert", recording, "-o", &lines]);
    let live = Exported::parse(live_export);
    assert!(live.spans.len() > 50 && live.metrics.len() >= 2, "{} spans", live.spans.len());
    let converted = Exported::parse(&text(Path::new(&spans)));
    converted.assert_same(&live);
    let live = intervals(live_intervals);
    assert!(live.len() >= 3, "{live_intervals}");
    assert_eq!(intervals(&text(Path::new(&lines))), live);
}

#[test]
fn a_recording_gives_what_attach_exported() {
    if !privileged("live_record") {
        return;
    }
    let demo = Demo::start("300s").expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let (recording, export) = (at("run.gtr"), at("live.otlp.jsonl"));
    let pid = demo.pid().to_string();
    let live = done(&[
        "attach",
        "--pid",
        &pid,
        "--level",
        "full",
        "--min-wait",
        "0s",
        "--duration",
        "8s",
        "--interval",
        "500ms",
        "--reconcile",
        "1s",
        "--suspect-every",
        "1s",
        "--prove-after",
        "1s",
        "--prove-every",
        "2s",
        "--export",
        &export,
        "--record",
        &recording,
        "--format",
        "json",
    ]);
    let live_intervals = String::from_utf8_lossy(&live.stdout).into_owned();
    compare(&recording, &text(Path::new(&export)), &live_intervals, directory.path());
    let shown = done(&["view", &recording]);
    let lines = String::from_utf8_lossy(&shown.stdout).into_owned();
    let alive = lines.lines().filter(|line| line.starts_with("pid ")).count();
    assert_eq!(alive, intervals(&live_intervals).len() - 1, "all but the summary: {lines}");

    // Cut short: everything before the cut, then the place, and exit code 1.
    let whole = fs::read(&recording).expect("the recording");
    let cut = at("cut.gtr");
    fs::write(&cut, &whole[..whole.len() * 2 / 3]).expect("written");
    let result = output(&["convert", &cut, "--format", "json"]);
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cut.gtr: recording truncated at byte "), "{stderr}");
    let converted = String::from_utf8_lossy(&result.stdout);
    let some = intervals(&converted);
    let all = intervals(&live_intervals);
    assert!(!some.is_empty() && some.len() < all.len(), "{} of {}", some.len(), all.len());
    assert_eq!(some, all[..some.len()]);
}

#[test]
fn a_recording_gives_what_exec_exported() {
    if !privileged("live_record") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let program = unpack_demo(directory.path()).expect("unpacked");
    let (recording, export) = (at("run.gtr"), at("live.otlp.jsonl"));
    let live = done(&[
        "exec",
        "--level",
        "waits",
        "--interval",
        "500ms",
        "--export",
        &export,
        "--record",
        &recording,
        "--format",
        "json",
        "--",
        program.to_str().expect("text"),
        "-for",
        "4s",
    ]);
    let said = String::from_utf8_lossy(&live.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with('{')).collect();
    compare(&recording, &text(Path::new(&export)), &lines.join("\n"), directory.path());
}

#[test]
fn snapshots_alone_can_be_recorded_too() {
    if !privileged("live_record") {
        return;
    }
    let demo = Demo::start("300s").expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("run.gtr");
    let recording = recording.to_str().expect("text");
    let pid = demo.pid().to_string();
    let live = done(&[
        "attach",
        "--pid",
        &pid,
        "--engine",
        "snapshot",
        "--duration",
        "3s",
        "--interval",
        "500ms",
        "--record",
        recording,
        "--format",
        "json",
    ]);
    let converted = done(&["convert", recording]);
    assert_eq!(
        intervals(&String::from_utf8_lossy(&converted.stdout)),
        intervals(&String::from_utf8_lossy(&live.stdout))
    );
}

#[test]
fn what_is_kept_is_written_on_a_signal_and_at_the_end() {
    if !privileged("live_record") {
        return;
    }
    let demo = Demo::start("300s").expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("kept.gtr");
    let mut child = gotrace(&["record", &demo.pid().to_string(), "-o"])
        .arg(&recording)
        .args(["--keep", "60s", "--interval", "200ms", "--no-proof", "--suspect-every", "0"])
        .spawn()
        .expect("it starts");
    let kept = |path: &Path| {
        let result = gotrace(&["convert", "--format", "json"]).arg(path).output().expect("it starts");
        result.status.success().then(|| intervals(&String::from_utf8_lossy(&result.stdout)).len())
    };
    // Made at once, so that it is said where it cannot be; that its end is missing is said until it is written.
    wait_until("the file", || recording.exists());
    wait_until("a report in what is kept", || {
        // SAFETY: a signal to a child of ours that was not waited for.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGUSR1) };
        kept(&recording).is_some()
    });
    interrupt(&child);
    assert!(child.wait().expect("it ends").success());
    let mut newest: Vec<_> = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    newest.sort_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).expect("a time"));
    assert!(newest.len() >= 2, "{newest:?}");
    let last = newest.last().expect("the last");
    assert!(kept(last).is_some_and(|n| n > 0), "{}", last.display());
}
