//! What watching may cost the watched: `attach` and `exec` keep within their budget, and say at once what was
//! given up for it; a verdict that this leaves incomplete is no success; `top` changes nothing in a program
//! unless a level is asked for. Needs root and `go`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    daemon::{Place, Program},
    fixture::{PATIENCE, read_lines},
    gotrace::{Gotrace, binary, privileged},
};
use serde_json::{Value, json};

/// How soon the level must be lowered.
const SOON: Duration = Duration::from_secs(10);
/// Parks a second that make a storm.
const STORM: u64 = 100_000;

fn place() -> Option<Place> {
    privileged("live_budget").then(|| Place::new().expect("a directory"))
}

fn start(place: &Place) -> Program {
    Program::start(&place.program("storm").expect("the program builds")).expect("it starts")
}

fn ns(interval: &Value, field: &str) -> u64 {
    interval[field].as_u64().unwrap_or_else(|| panic!("{field} in {interval}"))
}

/// It ends a storm of `seconds`, which must have been one.
fn end_storm(program: &Program, seconds: u64) {
    let parks = program.answer().expect("the storm ends")["count"].as_u64().expect("a count") * 2;
    assert!(parks / seconds > STORM, "only {} parks a second", parks / seconds);
}

#[test]
fn a_storm_is_brought_within_the_budget_and_that_is_said_at_once() {
    let Some(place) = place() else { return };
    let mut program = start(&place);
    let more = ["--budget", "5%", "--interval", "500ms"];
    let mut gotrace = Gotrace::attach(program.pid(), &more).expect("gotrace attaches");
    let first = gotrace.read_until("an interval", PATIENCE, |_| true).expect("it reports");
    assert_eq!((&first["level"], &first["level_wanted"]), (&json!("full"), &json!("full")), "{first}");
    assert_eq!((&first["budget"], &first["level_lowered_by"]), (&json!(0.05), &Value::Null), "{first}");
    program.say("pingpong 15s").expect("it listens");
    let begun = Instant::now();
    let lowered = gotrace
        .read_until("the level is lowered", PATIENCE, |i| !i["level_change"].is_null())
        .unwrap_or_else(|e| panic!("{e:#}"));
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");
    let change = &lowered["level_change"];
    assert_eq!(change["from"], "full", "{change}");
    assert_eq!(change["to"], lowered["level"], "{lowered}");
    assert!(["waits", "lifecycle", "sampled"].map(Value::from).contains(&change["to"]), "{change}");
    assert!(change["probe_cost_share"].as_f64() > Some(0.05), "{change}");
    assert_eq!(lowered["level_lowered_by"], "budget", "{lowered}");
    // It ends there and then, and what follows is one of the lower level alone.
    assert!(ns(&lowered, "end_unix_nano") - ns(&lowered, "start_unix_nano") < 2_000_000_000, "{lowered}");
    let within = |i: &Value| {
        i["level"] != "full" && i["level_change"].is_null() && i["probe_cost_share"].as_f64() <= Some(0.05)
    };
    for n in 1..=5 {
        let kept = gotrace.read_until("it costs no more than it may", SOON, within);
        let kept = kept.unwrap_or_else(|e| panic!("{n}: {e:#}"));
        assert_eq!(kept["level_lowered_by"], "budget", "{kept}");
    }
    end_storm(&program, 15);
    let restored = gotrace
        .read_until("the level is restored", PATIENCE, |i| i["level"] == "full")
        .unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!((&restored["level_lowered_by"], &restored["level_wanted"]), (&Value::Null, &json!("full")));
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("gotrace ends");
    assert!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
    assert!(outcome.stderr.contains("level lowered from full to "), "{}", outcome.stderr);
    let summary = outcome.summary().expect("a summary");
    let incomplete = summary["incomplete"].as_array().expect("a list");
    for field in ["waits", "spans", "schedule_delay_ns", "syscall_ns"] {
        assert!(incomplete.contains(&field.into()), "{field} in {incomplete:?}");
    }
    let levels = summary["level_ns"].as_object().expect("a map");
    assert!(levels.len() >= 2 && levels.contains_key("full"), "{levels:?}");
    let all: u64 = levels.values().filter_map(Value::as_u64).sum();
    let whole = ns(summary, "end_unix_nano") - ns(summary, "start_unix_nano");
    assert!(all.abs_diff(whole) < 10_000_000, "{levels:?} of {whole}");
    eprintln!(
        "lowered to {} after {took:?}, at {}; {:?} of the whole run",
        change["to"], change["probe_cost_share"], summary["probe_cost_share"]
    );
    program.finish().expect("it ends");
}

#[test]
fn without_a_budget_the_level_stays() {
    let Some(place) = place() else { return };
    let mut program = start(&place);
    let more = ["--budget", "none", "--interval", "500ms"];
    let mut gotrace = Gotrace::attach(program.pid(), &more).expect("gotrace attaches");
    program.say("pingpong 5s").expect("it listens");
    let costly = |i: &Value| i["probe_cost_share"].as_f64() > Some(0.05);
    for _ in 0..5 {
        gotrace.read_until("it costs much", PATIENCE, costly).unwrap_or_else(|e| panic!("{e:#}"));
    }
    end_storm(&program, 5);
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("gotrace ends");
    for line in &outcome.lines {
        let state = if line["interval"].is_null() { &line["summary"] } else { &line["interval"] };
        assert_eq!((&state["level"], &state["budget"]), (&json!("full"), &Value::Null), "{state}");
        assert_eq!((&state["level_change"], &state["incomplete"]), (&Value::Null, &json!([])), "{state}");
    }
    assert_eq!(outcome.stderr, "");
    program.finish().expect("it ends");
}

/// `gotrace exec` of a program that obeys these commands, and ends.
fn exec(place: &Place, more: &[&str], commands: &str) -> Output {
    let program = place.program("storm").expect("the program builds");
    let mut gotrace = Command::new(binary().expect("built"))
        .arg("exec")
        .args(more)
        .arg("--")
        .arg(program)
        .args(["-procs", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("gotrace starts");
    let mut stdin = gotrace.stdin.take().expect("a pipe");
    stdin.write_all(commands.as_bytes()).expect("it listens");
    drop(stdin);
    gotrace.wait_with_output().expect("gotrace ends")
}

#[test]
fn what_could_not_be_judged_is_no_success() {
    let Some(place) = place() else { return };
    for verdict in ["left_behind", "unreachable"] {
        let fail_on = ["--quiet", "--fail-on", verdict];
        let output = exec(&place, &[&fail_on[..], &["--budget", "1%"]].concat(), "pingpong 5s\n");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verdict}: {stderr}");
        assert!(stderr.contains("cannot judge") && stderr.contains("help: raise --budget"), "{stderr}");
        // By default there is no budget, and the verdict stands.
        let output = exec(&place, &fail_on, "pingpong 2s\n");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{verdict}: {stderr}");
        assert!(!stderr.contains("cannot judge"), "{verdict}: {stderr}");
    }
    // For programs too; and what the command itself ends with is not hidden.
    let more = ["--fail-on", "left_behind", "--budget", "1%", "--format", "json"];
    let output = exec(&place, &more, "pingpong 5s\nno-such-command\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let lines = stderr.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let unjudged: Vec<Value> = lines.map(|l| l["unjudged"].clone()).filter(|u| !u.is_null()).collect();
    assert_eq!(unjudged.len(), 1, "{stderr}");
    assert_eq!(unjudged[0]["verdict"], "left_behind", "{}", unjudged[0]);
    assert!(ns(&unjudged[0], "below_ns") > 0 && unjudged[0]["budget"] == 0.01, "{}", unjudged[0]);
}

/// A running `gotrace top`, ended by its pid when dropped.
struct Top {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Top {
    fn start(config: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(binary().expect("built"))
            .args(["top", "--interval", "500ms", "--format", "json", "--config"])
            .arg(config)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = read_lines(child.stdout.take().expect("a pipe"));
        Self { child, lines }
    }

    /// The process's row, once it is as wanted.
    fn until(&self, pid: u32, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("top shows the process");
            let line: Value = serde_json::from_str(&line).expect("JSON");
            let row = line["processes"].as_array().into_iter().flatten().find(|p| p["pid"] == pid);
            if let Some(row) = row.filter(|row| wanted(row)) {
                return row.clone();
            }
        }
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // SAFETY: kill takes no pointers; the pid is our own child's, not yet waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) };
        let _ = self.child.wait();
    }
}

/// Bytes of the program's code in memory that are not those of its file.
fn changed_bytes(pid: u32, program: &Path) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let file = fs::read(program).expect("its file");
    let mut compared = 0;
    let mut changed = 0;
    for line in maps.lines().filter(|l| l.ends_with(program.to_str().expect("a plain path"))) {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().expect("a range"), fields.next().expect("rights"));
        if !rights.contains('x') {
            continue;
        }
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        let (begin, end) = range.split_once('-').expect("a range");
        let offset = usize::try_from(hex(fields.next().expect("an offset"))).expect("it fits");
        let length = usize::try_from(hex(end) - hex(begin)).expect("it fits");
        let own = &file[offset..file.len().min(offset + length)];
        let mut bytes = vec![0; own.len()];
        memory.read_exact_at(&mut bytes, hex(begin)).expect("its code");
        compared += own.len();
        changed += bytes.iter().zip(own).filter(|(a, b)| a != b).count();
    }
    assert!(compared > 100_000, "its code was not found:\n{maps}");
    changed
}

#[test]
fn top_changes_nothing_in_a_program_unless_a_level_is_asked_for() {
    let Some(place) = place() else { return };
    let mut program = start(&place);
    let path = place.program("storm").expect("it is there");
    program.count("park 70").expect("it parks");
    let pid = program.pid();
    let config = place.path().join("gotrace.yaml");
    // The file's level is for the daemon.
    fs::write(&config, place.config("level: full, engine: events", "")).expect("written");
    let top = Top::start(&config, &[]);
    for _ in 0..4 {
        let row = top.until(pid, |row| row["alive"].as_u64() >= Some(70));
        assert_eq!((&row["engine"], &row["level"]), (&json!("snapshot"), &json!("sampled")), "{row}");
        assert_eq!((&row["level_reason"], &row["level_wanted"]), (&Value::Null, &json!("sampled")), "{row}");
        assert_eq!(changed_bytes(pid, &path), 0);
    }
    drop(top);
    // The same look finds probes where there are some.
    let top = Top::start(&config, &["--level", "lifecycle"]);
    let row = top.until(pid, |row| row["engine"] == "events");
    assert_eq!((&row["level"], &row["level_wanted"]), (&json!("lifecycle"), &json!("lifecycle")), "{row}");
    assert!(changed_bytes(pid, &path) > 0);
    drop(top);
    let begun = Instant::now();
    while changed_bytes(pid, &path) > 0 {
        assert!(begun.elapsed() < PATIENCE, "the probes stay");
        thread::sleep(Duration::from_millis(20));
    }
    program.finish().expect("it ends");
}
