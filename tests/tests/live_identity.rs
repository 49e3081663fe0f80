//! A process is a pid, a start and an execution: whoever comes after it in its pid, or in itself, has goroutines
//! of its own, also where their ids are the same and the program is. Needs root, `go` and util-linux.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    export::{Export, Span},
    fixture::PATIENCE,
    gotrace::{binary, privileged},
    running::Running,
};
use serde_json::Value;

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}

/// What the daemon has exported so far; span ids are used once.
fn spans(export: &Path) -> Vec<Span> {
    let text = fs::read_to_string(export).expect("an export");
    // What is being written has no end yet.
    let text = text.rfind('\n').map_or("", |end| &text[..end]);
    let spans = Export::parse(text).expect("JSON lines").spans;
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
        daemon.until(what, PATIENCE, |d| Ok(d.metrics()?.churned(pid) == count as f64)).map(drop)
    };
    daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(pid))).expect("traced");
    // The program that executes it is traced when the page has grown by what it has just made.
    let settle = |program: &mut Program| {
        let begun = Instant::now();
        loop {
            let before = daemon.metrics().expect("a page").churned(pid);
            let count = program.count("churn 500 20ms").expect("it churns") as f64;
            let look = Instant::now();
            while look.elapsed() < Duration::from_secs(2) {
                if daemon.metrics().expect("a page").churned(pid) == before + count {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            assert!(begun.elapsed() < PATIENCE, "its births are not counted: {}", daemon.said());
        }
    };
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
            settle(&mut program);
        }
        let (times, before) = (traced(&daemon), now_ns());
        program.say(&format!("exec {}", shop.display())).expect("it listens");
        program.answer().expect("the program greets again");
        executions.push((before, now_ns()));
        if settled {
            daemon.until("it is traced anew", PATIENCE, |d| Ok(traced(d) == times + 1)).expect("anew");
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

/// Starts the program again and again in the pid that it had last, until the file `stop` is there. Where somebody
/// else has got that pid, a thread of gotrace mostly, the program takes another one from then on.
const IN_ONE_PID: &str = r#"
    want=300
    while [ ! -e "$3" ]; do
        echo $((want - 1)) >/proc/sys/kernel/ns_last_pid
        "$1" -procs 2 <"$2" &
        got=$!
        wait $got
        [ $got = $want ] || want=$((want + 16))
    done"#;

/// The pid of each process that has said all that it had to, in their order, and the most that any made.
fn said(path: &Path) -> (Vec<u64>, u64) {
    let text = fs::read_to_string(path).expect("what they said");
    let lines: Vec<&str> = text.split_inclusive('\n').filter(|l| l.ends_with('\n')).collect();
    let (mut pids, mut made) = (Vec::new(), 0);
    for pair in lines.chunks_exact(2) {
        let [hello, answer] = [pair[0], pair[1]].map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
        pids.push(hello["pid"].as_u64().expect("a pid"));
        made = answer["count"].as_u64().expect("a count").max(made);
    }
    (pids, made)
}

/// How many processes had the pid of one before them.
fn again(pids: &[u64]) -> usize {
    pids.len() - pids.iter().collect::<BTreeSet<_>>().len()
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    /// So many times a pid is used again.
    const ROUNDS: usize = 40;
    /// So many of those processes are seen: who ends before gotrace has taken notice is not.
    const SEEN: usize = 20;
    if !privileged("live_identity") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("the program builds");
    let export = place.path().join("export.jsonl");
    let config = place.config("level: waits", &format!("otlp: {{export: {}}}\n", export.display()));
    // A namespace's pids are handed out as the test says.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(binary().expect("built"));
    let daemon = Daemon::start_unseen(command, &config).expect("it starts");
    daemon.until_said("discovering new processes by the tracepoint", PATIENCE).expect("it watches");
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let within = fs::read_to_string(children).expect("its children").trim().to_owned();
    let [commands, answers, stop] = ["commands", "answers", "stop"].map(|name| place.path().join(name));
    fs::write(&commands, "churn 1000 100ms\n").expect("written");
    let mut script = Running(
        Command::new("nsenter")
            .args(["--target", &within, "--pid", "--mount", "sh", "-e", "-c", IN_ONE_PID, "sh"])
            .args([&shop, &commands, &stop])
            .stdout(fs::File::create(&answers).expect("a file"))
            .spawn()
            .expect("nsenter starts"),
    );
    // Of those whose spans are written, how many were in a pid after another one.
    let seen = || {
        let spans = spans(&export);
        let of = |s: &Span| (s.resource["process.pid"].clone(), s.resource["service.instance.id"].clone());
        let all: BTreeSet<(String, String)> = spans.iter().map(of).collect();
        all.len() - all.iter().map(|(pid, _)| pid).collect::<BTreeSet<_>>().len()
    };
    let begun = Instant::now();
    loop {
        let (pids, _) = said(&answers);
        if again(&pids) >= ROUNDS && seen() >= SEEN {
            break;
        }
        assert!(script.0.try_wait().expect("ours").is_none(), "the script ended: {}", daemon.said());
        assert!(
            begun.elapsed() < 2 * PATIENCE,
            "{} times again, {} seen: {}",
            again(&pids),
            seen(),
            daemon.said()
        );
        thread::sleep(Duration::from_millis(200));
    }
    fs::write(&stop, "").expect("written");
    assert!(script.0.wait().expect("it ends").success());
    let (pids, made) = said(&answers);
    // SAFETY: kill takes no pointers; the pid is that of the daemon, which `unshare` has yet to wait for.
    unsafe { libc::kill(within.parse().expect("a pid"), libc::SIGTERM) };
    let (_, _, log) = daemon.finish().expect("it ends");
    let mut processes: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in spans(&export) {
        let pid = span.resource["process.pid"].parse().expect("a pid");
        assert!(pids.contains(&pid), "{pid} is none of {pids:?}; {log}");
        processes.entry(span.resource["service.instance.id"].clone()).or_default().push(span);
    }
    eprintln!(
        "{} of {} processes were seen; {} times a pid was used again",
        processes.len(),
        pids.len(),
        again(&pids)
    );
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
