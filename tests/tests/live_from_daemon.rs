//! `gotrace requests` and `gotrace gc` beside a daemon that has probes in the process: what it tells is what the program
//! says, and they put none in place. Needs root and `go`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use gotrace_tests::{
    daemon::{Daemon, Place},
    fixture::PATIENCE,
    gobuild::Mode,
    gotrace::{binary, privileged},
    requests::{Program, Report, server},
    running::Running,
};
use serde_json::Value;

/// A server in a place of its own, with a daemon that traces it.
struct Traced {
    place: Place,
    program: Program,
    daemon: Daemon,
}

impl Traced {
    fn start(more: &str) -> Self {
        let place = Place::new().expect("a directory");
        let own = place.path().join("server");
        fs::copy(server("1.27.3", Mode::Stripped), &own).expect("copied");
        let program = Program::start(&own);
        let socket = place.path().join("run/gotrace.sock");
        let arguments = ["--socket", socket.to_str().expect("a plain path")];
        let config = place.config("level: full", &format!("limits: {{budget: off}}\n{more}"));
        let daemon = Daemon::start(&config, &arguments).expect("it starts");
        let at = |d: &Daemon| Ok(d.metrics()?.is_at(program.pid(), "full"));
        daemon.until("its probes", PATIENCE, at).unwrap_or_else(|e| panic!("{e:#}"));
        Self { place, program, daemon }
    }

    fn ask(&self, command: &str, more: &[&str]) -> Asked {
        let mut gotrace = Command::new(binary().expect("gotrace"));
        gotrace.args([command, &self.program.pid().to_string(), "--format", "json"]).args(more);
        gotrace.env("GOTRACE_SOCKET", self.place.path().join("run/gotrace.sock"));
        let child = gotrace.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(child.spawn().expect("it starts"));
        let lines = BufReader::new(child.0.stdout.take().expect("a pipe"));
        Asked { child, lines }
    }
}

/// A command that asks.
struct Asked {
    child: Running,
    lines: BufReader<std::process::ChildStdout>,
}

impl Asked {
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).expect("its output");
        (read > 0).then(|| serde_json::from_str(&line).expect("JSON"))
    }

    /// Ctrl-C; what it said besides.
    fn end(mut self) -> (Vec<Value>, String) {
        self.child.signal(libc::SIGINT);
        let rest = std::iter::from_fn(|| self.line()).collect();
        let mut said = String::new();
        self.child.0.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert!(self.child.0.wait().expect("it ends").success(), "{said}");
        (rest, said)
    }
}

/// What a process has open of the kernel's probes.
fn probes(pid: u32) -> Vec<PathBuf> {
    let open = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).expect("it runs");
    let targets = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|to| ["bpf", "perf_event"].iter().any(|of| to.to_string_lossy().contains(of))).collect()
}

fn requests_of(routes: &Value) -> u64 {
    routes.as_array().into_iter().flatten().filter_map(|route| route["count"].as_u64()).sum()
}

#[test]
fn requests_are_those_that_the_daemon_traces() {
    if !privileged("live_from_daemon") {
        return;
    }
    let mut traced = Traced::start("requests: {mode: slow}\n");
    // Before: not of what is asked now.
    let (before, _) = traced.program.run("run 3 sleep");
    let mut asked = traced.ask("requests", &["--interval", "1s"]);
    let mut report = Report::default();
    while report.intervals.is_empty() {
        report.take(asked.line().expect("a report"));
    }
    assert_eq!(report.header["schema"], "gotrace.requests/1", "{}", report.header);
    let old: u64 = report.intervals.iter().map(|interval| requests_of(&interval["routes"])).sum();
    assert!(old <= before.len() as u64, "{old}");
    assert_eq!(probes(asked.child.pid()), Vec::<PathBuf>::new());
    assert!(!probes(traced.daemon.pid()).is_empty(), "the daemon's are seen so");
    let (own, _) = traced.program.run("run 5 sleep io channel");
    let wanted = old + own.len() as u64;
    let seen = |report: &Report| {
        report.intervals.iter().map(|interval| requests_of(&interval["routes"])).sum::<u64>()
    };
    while seen(&report) < wanted {
        report.take(asked.line().expect("a report"));
    }
    let (rest, said) = asked.end();
    rest.into_iter().for_each(|line| report.take(line));
    assert_eq!(seen(&report), wanted);
    assert_eq!(requests_of(&report.summary["routes"]), wanted, "{}", report.summary);
    let from = format!("from gotrace daemon (pid {}), which traces process", traced.daemon.pid());
    assert!(said.contains(&from) && said.contains("stopped by you; the daemon traces it on"), "{said}");
    // What the daemon does not do needs probes of its own.
    let (_, said) = {
        let mut asked = traced.ask("requests", &["--slow", "250ms"]);
        assert!(asked.line().is_some());
        assert!(!probes(asked.child.pid()).is_empty());
        asked.end()
    };
    assert!(said.contains("gotrace requests --slow needs a second set of probes"), "{said}");
}

#[test]
fn requests_that_the_daemon_does_not_trace_are_traced_beside_it() {
    if !privileged("live_from_daemon") {
        return;
    }
    let mut traced = Traced::start("");
    let mut asked = traced.ask("requests", &[]);
    assert!(asked.line().is_some());
    assert!(!probes(asked.child.pid()).is_empty());
    let (own, _) = traced.program.run("run 5 sleep");
    let (rest, said) = asked.end();
    let mut report = Report::default();
    rest.into_iter().for_each(|line| report.take(line));
    assert_eq!(requests_of(&report.summary["routes"]), own.len() as u64, "{}", report.summary);
    assert!(said.contains("does not trace its requests") && said.contains("second set of probes"), "{said}");
}

#[test]
fn the_collector_is_told_as_the_daemon_sees_it() {
    if !privileged("live_from_daemon") {
        return;
    }
    let mut traced = Traced::start("");
    traced.program.run("run 4 assist");
    let mut asked = traced.ask("gc", &[]);
    assert_eq!(asked.line().expect("a header")["schema"], "gotrace.gc/1");
    assert_eq!(probes(asked.child.pid()), Vec::<PathBuf>::new());
    traced.program.run("run 4 assist");
    let cycles = |of: &Value| {
        let cycles = of["cycles"].as_object().into_iter().flatten();
        cycles.filter_map(|(_, n)| n.as_u64()).sum::<u64>()
    };
    let mut last = 0;
    while last == 0 {
        last = cycles(&asked.line().expect("a report")["interval"]);
    }
    let (rest, said) = asked.end();
    let summary = &rest.last().expect("a summary")["summary"];
    // Those before are not of this run, and each that is told is counted.
    let total = cycles(summary);
    let told = traced.daemon.metrics().expect("metrics").sum("gotrace_gc_cycles_total", &[]);
    assert!(total >= last && (total as f64) < told, "{total} of {told}: {summary}");
    assert!(said.contains("from gotrace daemon (pid "), "{said}");
    assert_eq!(summary["stopped_because"], "stopped by you; the daemon traces it on", "{summary}");
}
