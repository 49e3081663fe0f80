//! The daemon's socket, on real Go programs: who is answered, what becomes of it when a daemon is killed, and what commands
//! of the node make of it. Needs root and `go`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    fixture::{PATIENCE, read_lines},
    gobuild::{Arch, Mode, build},
    gotrace::{binary, privileged},
    http::{Answer, get_on_socket, post},
    running::Running,
};
use serde_json::Value;

/// A user that is neither root nor the daemon's.
const NOBODY: libc::c_long = 65534;

fn place() -> Option<Place> {
    privileged("live_socket").then(|| Place::new().expect("a directory"))
}

/// Where a test's daemon listens.
fn socket(place: &Place) -> PathBuf {
    place.path().join("run/gotrace.sock")
}

fn start(place: &Place, limits: &str) -> Daemon {
    let socket = socket(place);
    let socket = socket.to_str().expect("a plain path");
    Daemon::start(&place.config("level: waits", limits), &["--socket", socket]).expect("it starts")
}

fn ask(socket: &Path, path: &str) -> Answer {
    get_on_socket(socket, path).unwrap_or_else(|e| panic!("{path}: {e:#}"))
}

fn until_traced(daemon: &Daemon, pid: u32) {
    daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(pid))).unwrap_or_else(|e| panic!("{e:#}"));
}

fn pids(socket: &Path) -> Vec<u64> {
    let list = ask(socket, "/api/v1/processes").json().expect("JSON");
    list["processes"].as_array().expect("a list").iter().filter_map(|p| p["pid"].as_u64()).collect()
}

/// Runs gotrace, which is to ask on this socket.
fn gotrace(socket: &Path, arguments: &[&str]) -> Output {
    let mut gotrace = Command::new(binary().expect("built"));
    gotrace.args(arguments).stdin(Stdio::null()).env("GOTRACE_SOCKET", socket);
    gotrace.env_remove("KUBECONFIG").env_remove("K8S_NODE_NAME").output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `ps` prints of a process as a line, all of it, and what it warns of.
fn ps(socket: &Path, pid: u32, more: &[&str]) -> (String, String, String) {
    let output = gotrace(socket, &[&["ps"], more].concat());
    let (all, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{all}{said}");
    let own = |line: &&str| line.split_whitespace().next() == Some(&pid.to_string());
    let line = all.lines().find(own).unwrap_or_else(|| panic!("no line of {pid}: {all}")).to_owned();
    (line, all, said)
}

#[test]
fn root_is_answered_and_nobody_else() {
    let Some(place) = place() else { return };
    let program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let daemon = start(&place, "");
    let socket = socket(&place);
    until_traced(&daemon, program.pid());
    let mode = |path: &Path| fs::symlink_metadata(path).expect("there").permissions().mode() & 0o7777;
    let directory = socket.parent().expect("a directory");
    assert_eq!((mode(&socket), mode(directory)), (0o600, 0o700));
    let list = ask(&socket, "/api/v1/processes").json().expect("JSON");
    let process = &list["processes"][0];
    assert_eq!(process["pid"], program.pid());
    let stat = fs::read_to_string(format!("/proc/{}/stat", program.pid())).expect("it lives");
    let start = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)).expect("a start");
    assert_eq!(process["start_ticks"].to_string(), start);
    assert_eq!(ask(&socket, "/livez").status, 200);

    // Whatever the file system allows, who asks is looked at.
    for path in [place.path(), directory] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("changed");
    }
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("changed");
    let path = socket.clone();
    let other = thread::spawn(move || {
        // SAFETY: takes numbers; as a system call of its own it changes this thread alone, which ends soon.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
        ["/api/v1/processes", "/metrics", "/livez", "/"].map(|page| ask(&path, page))
    });
    for answer in other.join().expect("no panic") {
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(answer.text().starts_with("only root and the user of the daemon"), "{}", answer.text());
    }
    assert_eq!(pids(&socket), [u64::from(program.pid())], "root still is");

    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success() && !socket.exists(), "{status}: {said}");
}

#[test]
fn a_socket_is_taken_over_from_a_dead_daemon_and_from_no_other() {
    let Some(place) = place() else { return };
    let program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let socket = socket(&place);
    let mut first = start(&place, "");
    until_traced(&first, program.pid());
    let second = start(&place, "");
    second.until_said("another gotrace daemon listens on it", PATIENCE).expect("said");
    let (status, _, said) = second.finish().expect("it ends");
    assert!(status.success(), "{said}");
    assert_eq!(pids(&socket), [u64::from(program.pid())], "the first one still listens");

    first.kill().expect("killed");
    let left = fs::symlink_metadata(&socket).expect("it is left");
    assert!(left.file_type().is_socket());
    // Nobody answers, and that is no matter.
    let (line, all, said) = ps(&socket, program.pid(), &[]);
    assert!(line.ends_with("  ok") && !all.contains("gotrace daemon") && said.is_empty(), "{all}{said}");
    let third = start(&place, "");
    until_traced(&third, program.pid());
    assert_eq!(pids(&socket), [u64::from(program.pid())]);
    third.finish().expect("it ends");

    // What is no socket stays, and there is all else.
    fs::write(&socket, "somebody's").expect("written");
    let fourth = start(&place, "");
    fourth.until_said("it is there, and no socket", PATIENCE).expect("said");
    until_traced(&fourth, program.pid());
    fourth.finish().expect("it ends");
    assert_eq!(fs::read(&socket).expect("there"), b"somebody's");
}

/// A program that leaks, under a name of its own.
fn leaking(directory: &Path, name: &str) -> Running {
    let program = build("cases", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
    let path = directory.join(name);
    fs::copy(program, &path).expect("copied");
    Running::start(&path, "wrapped")
}

#[test]
fn ps_shows_what_the_daemon_knows_and_hangs_with_no_daemon() {
    let Some(place) = place() else { return };
    let elsewhere = tempfile::tempdir().expect("a directory");
    let (own, other) = (leaking(place.path(), "ps-traced"), leaking(elsewhere.path(), "ps-untraced"));
    let socket = socket(&place);
    let limits =
        "limits: {suspect_every: 500ms, prove_after: 500ms, prove_every: 1s, proof_rest: 1, budget: off}\n";
    let daemon = start(&place, limits);
    daemon
        .until("its leak is proven", PATIENCE, |_| {
            let list = ask(&socket, "/api/v1/processes").json()?;
            Ok(list["processes"][0]["leaks_proven"].as_u64() > Some(0))
        })
        .unwrap_or_else(|e| panic!("{e:#}"));
    let is_proven = |line: &str| line.contains("  LEAK ") && line.contains(" × main.wrapped.func1");
    let (line, all, said) = ps(&socket, own.pid(), &[]);
    assert!(is_proven(&line) && said.is_empty(), "{all}{said}");
    let about = format!("from gotrace daemon (pid {}), which traces 1 of these, for ", daemon.pid());
    assert!(all.lines().any(|l| l.starts_with(&about)), "{all}");
    let not_known = |line: &str| line.contains("  LEAK? ") || line.ends_with("  ok");
    assert!(not_known(&ps(&socket, other.pid(), &[]).0), "no rule takes it");
    let (line, all, _) = ps(&socket, own.pid(), &["--no-daemon"]);
    assert!(not_known(&line) && !all.contains("gotrace daemon"), "{all}");

    let json = |socket: &Path, more: &[&str]| -> Vec<Value> {
        let output = gotrace(socket, &[&["ps", "--format", "json"], more].concat());
        let lines = text(&output.stdout);
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let of = |lines: &[Value], pid: u32| {
        lines.iter().map(|l| &l["process"]).find(|p| p["pid"] == pid).expect("it is there").clone()
    };
    let lines = json(&socket, &[]);
    let process = of(&lines, own.pid());
    assert_eq!((&process["note"], &process["problems"][0]["provisional"]), (&"leak".into(), &false.into()));
    let told = &process["daemon"];
    assert_eq!((&told["engine"], &told["level"]), (&"events".into(), &"waits".into()), "{process}");
    assert!(told["leaks_proven"].as_u64() > Some(0) && told["since_unix_nano"].is_u64(), "{process}");
    assert!(of(&lines, other.pid())["daemon"].is_null());
    let summary = &lines.last().expect("a line")["summary"];
    assert_eq!(summary["daemon"], serde_json::json!({"pid": daemon.pid(), "processes": 1}));
    let without = json(&socket, &["--no-daemon"]);
    assert!(without.last().expect("a line")["summary"]["daemon"].is_null());

    // One that hangs is left after a while.
    daemon.signal(libc::SIGSTOP);
    let (line, all, said) = ps(&socket, own.pid(), &[]);
    assert!(not_known(&line) && !all.contains("gotrace daemon"), "{all}");
    assert!(said.contains("does not answer within 3 s: going on without it"), "{said}");
    daemon.signal(libc::SIGCONT);
    let (line, all, said) = ps(&socket, own.pid(), &[]);
    assert!(is_proven(&line) && said.is_empty(), "{all}{said}");
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{said}");
}

/// A running `gotrace attach`, whose lines are read.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(socket: &Path, pid: u32, more: &[&str]) -> Self {
        let mut gotrace = Command::new(binary().expect("built"));
        gotrace.args(["attach", &pid.to_string(), "--format", "json"]).args(more);
        gotrace.env("GOTRACE_SOCKET", socket).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = gotrace.stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = read_lines(child.stdout.take().expect("a pipe"));
        Self { child, lines }
    }

    /// The next line that this holds of.
    fn until(&self, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("a line");
            let line = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
            if holds(&line) {
                return line;
            }
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes two numbers; the process is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    /// How it ends, and all that it said.
    fn end(self) -> (ExitStatus, String) {
        let output = self.child.wait_with_output().expect("it ends");
        (output.status, text(&output.stderr))
    }
}

/// The level that a process is traced at.
fn level(daemon: &Daemon, pid: u32) -> String {
    let metrics = daemon.metrics().expect("the page");
    let at = ["lifecycle", "waits", "full"].into_iter().find(|level| metrics.is_at(pid, level));
    at.unwrap_or("none").to_owned()
}

fn until_at(daemon: &Daemon, pid: u32, wanted: &str) {
    let at = |d: &Daemon| Ok(level(d, pid) == wanted);
    daemon.until(&format!("level {wanted}"), PATIENCE, at).unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn attach_asks_the_daemon_which_holds_the_level_meanwhile() {
    let Some(place) = place() else { return };
    let program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let (pid, socket) = (program.pid(), socket(&place));
    let daemon = start(&place, "limits: {budget: off}\n");
    until_at(&daemon, pid, "waits");

    // It is held for as long as somebody listens, however that one ends.
    for (how, signal) in [("asked to end", libc::SIGINT), ("killed", libc::SIGKILL)] {
        let following = Following::start(&socket, pid, &["--level", "full"]);
        let header = following.until(|_| true);
        assert_eq!(
            (&header["schema"], &header["pid"]),
            (&"gotrace.attach/1".into(), &pid.into()),
            "{header}"
        );
        let interval = following.until(|line| line["interval"]["level"] == "full");
        assert!(interval["interval"]["level_lowered_by"].is_null(), "{how}: {interval}");
        until_at(&daemon, pid, "full");
        following.signal(signal);
        let (status, said) = following.end();
        assert_eq!(status.success(), signal == libc::SIGINT, "{how}: {said}");
        assert!(
            said.contains(&format!("from gotrace daemon (pid {}), which traces process {pid}", daemon.pid()))
        );
        until_at(&daemon, pid, "waits");
    }
    // Two hold what the higher one wants.
    let full = Following::start(&socket, pid, &["--level", "full"]);
    let low = Following::start(&socket, pid, &["--level", "lifecycle"]);
    low.until(|line| line["interval"]["level"] == "full");
    full.signal(libc::SIGTERM);
    assert!(full.end().0.success());
    low.until(|line| line["interval"]["level"] == "waits");
    low.signal(libc::SIGINT);
    assert!(low.end().0.success());

    // In words, for a time.
    let output = gotrace(&socket, &["attach", &pid.to_string(), "--duration", "3s"]);
    let (all, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && all.contains(&format!("pid {pid}: ")), "{all}{said}");
    assert!(said.contains("stopped after --duration; the daemon traces it on"), "{said}");

    // Whoever comes by the network holds nothing.
    let path = format!("/api/v1/processes/{pid}/follow?level=full&every_ms=1000&format=json");
    let answer = post(daemon.address(), &path).expect("an answer");
    assert_eq!(answer.status, 405, "{}", answer.text());

    // What the daemon does not do is done, and said to cost.
    for (arguments, what) in [
        (&["attach", "--stack-depth", "4"][..], "--stack-depth"),
        (&["gc", "--budget", "none"], "gotrace gc --budget"),
    ] {
        let (command, more) = arguments.split_first().expect("a command");
        let pid = pid.to_string();
        let output = gotrace(&socket, &[&[*command, &pid, "--duration", "1s"], more].concat());
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains(&format!("{what} needs a second set of probes, which costs the program again")),
            "{said}"
        );
        let without =
            gotrace(&socket, &[&[*command, &pid, "--duration", "1s", "--no-daemon"], more].concat());
        assert!(
            without.status.success() && !text(&without.stderr).contains("daemon"),
            "{}",
            text(&without.stderr)
        );
    }

    // A daemon that hangs holds nobody up.
    daemon.signal(libc::SIGSTOP);
    let output = gotrace(&socket, &["attach", &pid.to_string(), "--duration", "1s"]);
    let (all, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.contains("does not answer within 3 s"), "{said}");
    assert!(all.contains("stopped after --duration"), "its own summary: {all}");
    daemon.signal(libc::SIGCONT);

    // The process ends: so does who follows it.
    let following = Following::start(&socket, pid, &[]);
    following.until(|line| line["interval"].is_object());
    program.finish().expect("it ends");
    let (status, said) = following.end();
    assert!(status.success() && said.contains("the daemon traces the process no more"), "{said}");
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{said}");
}

#[test]
fn the_budget_holds_for_what_is_held_too() {
    let Some(place) = place() else { return };
    let mut program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let (pid, socket) = (program.pid(), socket(&place));
    let daemon = start(&place, "limits: {budget: 1%}\n");
    until_at(&daemon, pid, "waits");
    let following = Following::start(&socket, pid, &["--level", "full"]);
    following.until(|line| line["interval"]["level"] == "full");
    // What only level full sees: wakes without end.
    program.say("pingpong on").expect("said");
    let lowered = following.until(|line| line["interval"]["level_lowered_by"] == "budget");
    assert_eq!(lowered["interval"]["level_wanted"], "full", "{lowered}");
    following.signal(libc::SIGINT);
    assert!(following.end().0.success());
    drop(program);
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{said}");
}
