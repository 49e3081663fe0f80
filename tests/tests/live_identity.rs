//! A process is a pid, a start and an execution: whoever comes after it in its pid, or in itself, has goroutines
//! of its own, also where their ids are the same and the program is. Needs root, `go` and util-linux.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    export::{Export, Span},
    gotrace::{binary, privileged},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}

/// What the daemon exported; span ids are used once.
fn spans(export: &Path) -> Vec<Span> {
    let text = fs::read_to_string(export).expect("an export");
    let spans = Export::parse(&text).expect("JSON lines").spans;
    let ids: BTreeSet<(&str, &str)> = spans.iter().map(|s| (&*s.trace_id, &*s.span_id)).collect();
    assert_eq!(ids.len(), spans.len(), "span ids are used once");
    spans
}

#[test]
fn a_process_that_executes_its_own_program_again_begins_anew_each_time() {
    const ROUNDS: usize = 12;
    if !privileged("live_identity") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("the program builds");
    let mut program = Program::start(&shop).expect("it starts");
    let pid = program.pid();
    let export = place.path().join("export.jsonl");
    let config = place.config("level: waits", &format!("otlp: {{export: {}}}\n", export.display()));
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    let until = |what: &str, count: u64| {
        daemon.until(what, SOON, |d| Ok(d.metrics()?.churned(pid) == count as f64)).map(drop)
    };
    daemon.until("it is traced", SOON, |d| Ok(d.metrics()?.has(pid))).expect("traced");
    let mut executions = Vec::new();
    let traced = |d: &Daemon| d.said().matches(&format!("traced pid={pid} ")).count();
    for round in 0..ROUNDS {
        // Most at once, in the middle of being noticed; some when the one before is known to be traced.
        let settled = round % 4 == 3;
        let count = program.count("churn 2000 60ms").expect("it churns");
        if round == 0 {
            until("the births of the first are counted", count).expect("counted");
        }
        if settled {
            thread::sleep(Duration::from_millis(300));
        }
        let (times, before) = (traced(&daemon), now_ns());
        program.say(&format!("exec {}", shop.display())).expect("it listens");
        program.answer().expect("the program greets again");
        executions.push((before, now_ns()));
        if settled {
            daemon.until("it is traced anew", SOON, |d| Ok(traced(d) == times + 1)).expect("anew");
            let count = program.count("churn 1000 60ms").expect("it churns");
            until("its births are counted, and nobody else's", count).expect("counted");
            // Whoever else says that it has executed does not make it begin anew once more.
            assert_eq!(traced(&daemon), times + 1, "{}", daemon.said());
        }
    }
    daemon.finish().expect("it ends");
    let spans = spans(&export);
    assert!(spans.len() > 500, "{} spans", spans.len());
    for span in &spans {
        for (before, after) in &executions {
            assert!(
                span.end_ns <= *after || span.start_ns >= *before,
                "born before an execution, died after: {span:?}"
            );
        }
    }
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    const ROUNDS: usize = 40;
    if !privileged("live_identity") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("the program builds");
    let export = place.path().join("export.jsonl");
    let config = place.config("level: waits", &format!("otlp: {{export: {}}}\n", export.display()));
    // A namespace's pids are handed out as the test says.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc"]).arg(binary().expect("built"));
    let daemon = Daemon::start_unseen(command, &config).expect("it starts");
    daemon.until_said("new processes are noticed by the kernel's tracepoint", SOON).expect("it watches");
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let within = fs::read_to_string(children).expect("its children").trim().to_owned();
    let commands = place.path().join("commands");
    fs::write(&commands, "churn 1000 100ms\n").expect("written");
    let script = format!(
        "i=0\nwhile [ $i -lt {ROUNDS} ]; do\n  echo 299 >/proc/sys/kernel/ns_last_pid\n  {} -procs 2 <{}\n  \
         i=$((i + 1))\ndone\n",
        shop.display(),
        commands.display()
    );
    let output = Command::new("nsenter")
        .args(["--target", &within, "--pid", "--mount", "sh", "-e", "-c", &script])
        .output()
        .expect("nsenter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let said: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(said.len(), 2 * ROUNDS);
    assert!(said.iter().step_by(2).all(|hello| hello["pid"] == 300), "{text}");
    let made = said.iter().filter_map(|answer| answer["count"].as_u64()).max().expect("counts");
    // SAFETY: kill takes no pointers; the pid is that of the daemon, which `unshare` has yet to wait for.
    unsafe { libc::kill(within.parse().expect("a pid"), libc::SIGTERM) };
    let (_, _, log) = daemon.finish().expect("it ends");
    let mut processes: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in spans(&export) {
        assert_eq!(span.resource["process.pid"], "300", "{log}");
        processes.entry(span.resource["service.instance.id"].clone()).or_default().push(span);
    }
    eprintln!("{} of {ROUNDS} processes with one pid were seen", processes.len());
    assert!(processes.len() > ROUNDS / 2, "{} processes; {log}", processes.len());
    let mut times = Vec::new();
    for (id, spans) in &processes {
        let lives: Vec<&Span> = spans.iter().filter(|s| !s.is_wait()).collect();
        let goids: BTreeSet<u64> = lives.iter().map(|s| s.goid()).collect();
        assert_eq!(goids.len(), lives.len(), "a goroutine of {id} lived twice; {log}");
        let churned = lives.iter().filter(|s| s.name.starts_with("main.churn")).count() as u64;
        assert!(churned <= made, "{id} has {churned} goroutines and made {made} at most");
        times.push((spans.iter().map(|s| s.start_ns).min(), spans.iter().map(|s| s.end_ns).max()));
    }
    times.sort();
    for pair in times.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "one lived when the next did: {pair:?}; {log}");
    }
}
