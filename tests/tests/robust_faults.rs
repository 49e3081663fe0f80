//! No system call that fails makes gotrace panic, hang or keep silent: at each place from which `dump`, `attach` and the
//! daemon call the kernel, the first call fails with EAGAIN, EMFILE, ENOMEM or EIO, and there is the same result as
//! without, or a reason; whoever is watched comes to no harm. Some of the trials, or with `GOTRACE_FAULTS=long` all.
//! Needs root and `go`.

use std::{
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    faults::trial::{Ended, Fault, Supervisor, Trial, Verdicts, has_reason, no_panic, text},
    fixture::PATIENCE,
    gotrace::{left_out, privileged},
    harm::changed,
};
use serde_json::Value;

/// After so long the daemon may be content with less than was asked for, and say why.
const LOWER: Duration = Duration::from_secs(15);

/// A program that is watched, with goroutines that wait for ever, and one that ticks where something is to happen.
struct Watched {
    program: Program,
    file: PathBuf,
    pid: String,
    /// Holds the file.
    place: Place,
}

impl Watched {
    fn start(ticks: bool) -> Result<Self> {
        let place = Place::new()?;
        let file = place.program("watched")?;
        let mut program = Program::start(&file)?;
        program.count("park 7")?;
        if ticks {
            program.count("pause")?;
        }
        let pid = program.pid().to_string();
        Ok(Self { program, file, pid, place })
    }

    /// It is alive, does what it is told, and its code is that of its file.
    fn is_well(&mut self) -> Result<()> {
        self.program.count("park 0").context("the program is harmed")?;
        let changed = changed(self.program.pid(), &self.file)?;
        ensure!(changed.is_empty(), "probes are left behind, at {changed:x?}");
        Ok(())
    }
}

fn here(test: &str) -> bool {
    if !privileged(test) {
        return false;
    }
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        left_out(test, "registers of this architecture are not known");
        return false;
    }
    true
}

fn supervisor() -> Supervisor {
    Supervisor::new(env!("CARGO_BIN_EXE_fault")).expect("a directory")
}

/// Without what differs between two runs that are alike.
fn steady(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields
                .retain(|name, _| !name.ends_with("_ns") && !name.ends_with("_nano") && name != "thread_id");
            fields.values_mut().for_each(steady);
        }
        Value::Array(values) => values.iter_mut().for_each(steady),
        _ => {}
    }
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("a line of JSON: {l}"))).collect()
}

/// What a dump shows.
fn dumped(ended: &Ended) -> Result<String> {
    let mut lines = lines(&ended.stdout)?;
    lines.iter_mut().for_each(steady);
    Ok(lines.iter().map(|l| format!("{l}\n")).collect())
}

/// What the summary of `attach` shows that is the same each time.
fn attached(ended: &Ended) -> Result<String> {
    let lines = lines(&ended.stdout)?;
    let summary = &lines.iter().rev().find_map(|l| l.get("summary")).context("no summary")?;
    let parked = summary["events"]["park"].as_u64().unwrap_or_default();
    Ok(["engine", "level", "alive", "lost", "incomplete", "export_failed"]
        .map(|field| format!("{field} {}\n", summary[field]))
        .concat()
        + &format!("waits are seen: {}\n", parked > 0))
}

/// Tries errors at all places of a command that ends by itself: in the short form `some` of them.
fn try_command(name: &str, arguments: &[&str], shown: fn(&Ended) -> Result<String>, some: usize) {
    let mut watched = Watched::start(name == "attach").expect("it starts");
    let pid = watched.pid.clone();
    let arguments: Vec<&str> = arguments.iter().map(|a| if *a == "PID" { &*pid } else { a }).collect();
    let supervisor = supervisor();
    let well = supervisor.run(None, &arguments).expect("it runs");
    assert!(well.check().expect("it ends well"), "{}", well.stderr);
    let wanted = shown(&well).expect("a result");
    let places = supervisor.places().expect("a report");
    let all = Fault::all(&places);
    let mut verdicts = Verdicts::default();
    for fault in &all {
        if verdicts.are_enough(some) {
            break;
        }
        let by_hand = supervisor.by_hand(fault, &arguments).expect("gotrace is built");
        verdicts.take(fault, &by_hand, || {
            let ended = supervisor.run(Some(fault), &arguments).expect("it runs");
            let came = ended.check().and_then(|succeeded| {
                if succeeded {
                    ended.check_same(&wanted, &shown(&ended)?)?;
                }
                Ok(succeeded)
            });
            let came = came.and_then(|succeeded| watched.is_well().map(|()| succeeded));
            let reached = supervisor.places().expect("a report").len() == 1;
            Trial { reached, came, said: ended.stderr }
        });
    }
    verdicts.none_wrong(name, &places, some.min(all.len() / 2));
}

#[test]
fn a_dump_is_the_same_or_says_why_not() {
    if !here("robust_faults") {
        return;
    }
    try_command("dump", &["dump", "--pid", "PID", "--format", "json"], dumped, 70);
}

#[test]
fn attach_sees_the_same_or_says_why_not() {
    if !here("robust_faults") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let export = directory.path().join("export.jsonl");
    let arguments = [
        "attach",
        "--pid",
        "PID",
        "--duration",
        "1s",
        "--format",
        "json",
        "--level",
        "full",
        "--budget",
        "none",
        "--export",
        text(&export).expect("UTF-8"),
    ];
    try_command("attach", &arguments, attached, 12);
}

/// Runs the daemon over the watched program until that is traced, and ends it: whether it came to the level that is
/// wanted, and what was said.
fn run_daemon(gotrace: Command, watched: &Watched) -> (Result<bool>, String) {
    let config = watched.place.config("level: full", "limits: {budget: off}\n");
    let daemon = match Daemon::start_by(gotrace, &config, &[]) {
        Ok(daemon) => daemon,
        Err(e) => {
            let said = format!("{e:#}");
            let has_error = said.lines().any(|l| l.starts_with("error: "));
            let came =
                if has_error { Ok(false) } else { Err(e.context("it ended, or hangs, without a word")) };
            return (no_panic(&said).and(came), said);
        }
    };
    let pid = watched.program.pid();
    let begun = Instant::now();
    let traced = loop {
        let page = daemon.metrics().ok();
        if page.as_ref().is_some_and(|p| p.is_at(pid, "full")) {
            break Ok(true);
        }
        let lower = page.as_ref().is_some_and(|p| p.has(pid)) && has_reason(&daemon.said());
        match begun.elapsed() {
            long if long > LOWER && lower => break Ok(false),
            long if long > PATIENCE => {
                break Err(anyhow!("the program is not traced, or without a word of why not"));
            }
            _ => thread::sleep(Duration::from_millis(50)),
        }
    };
    // Some more of its rounds.
    thread::sleep(Duration::from_secs(1));
    let alive = daemon.get("/livez");
    let said = daemon.said();
    match daemon.finish() {
        Ok((status, _, said)) => {
            let ended = if status.success() { Ok(()) } else { Err(anyhow!("it ended with {status}")) };
            let is_well = || match &alive {
                Ok((200, _)) => Ok(()),
                other => Err(anyhow!("/livez answered {other:?}")),
            };
            (no_panic(&said).and(ended).and_then(|()| is_well()).and(traced), said)
        }
        Err(e) => (Err(e), said),
    }
}

#[test]
fn the_daemon_traces_the_same_or_says_why_not() {
    const SOME: usize = 6;
    if !here("robust_faults") {
        return;
    }
    let mut watched = Watched::start(true).expect("it starts");
    let supervisor = supervisor();
    let (well, said) = run_daemon(supervisor.gotrace(None).expect("gotrace is built"), &watched);
    assert!(well.expect("it traces the program"), "{said}");
    let places = supervisor.places().expect("a report");
    let all = Fault::all(&places);
    let mut verdicts = Verdicts::default();
    for fault in &all {
        if verdicts.are_enough(SOME) {
            break;
        }
        let by_hand = supervisor.by_hand(fault, &["daemon"]).expect("gotrace is built");
        verdicts.take(fault, &by_hand, || {
            let gotrace = supervisor.gotrace(Some(fault)).expect("gotrace is built");
            let (came, said) = run_daemon(gotrace, &watched);
            let came = came.and_then(|succeeded| watched.is_well().map(|()| succeeded));
            let reached = supervisor.places().expect("a report").len() == 1;
            Trial { reached, came, said }
        });
    }
    verdicts.none_wrong("daemon", &places, SOME);
}
