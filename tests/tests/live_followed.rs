//! The live table of a process that a daemon traces: what a user sees and presses, and how it ends. Needs root; no Go.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
};

use gotrace_export::reports::{frame, header};
use gotrace_model::samples;
use gotrace_tests::{
    daemon::{Daemon, Place},
    demo::{Demo, unpack_demo},
    fixture::PATIENCE,
    gotrace::privileged,
    running::Running,
    terminal::OnTerminal,
};

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// The demo in a place of its own, with a daemon that traces it at level `waits`.
struct Traced {
    place: Place,
    demo: Running,
    daemon: Daemon,
}

impl Traced {
    fn start() -> Self {
        let place = Place::new().expect("a directory");
        let demo = unpack_demo(place.path()).expect("the demo");
        let mut command = std::process::Command::new(demo);
        command.args(["-for", "1h"]).stdin(Stdio::null()).stdout(Stdio::null());
        let demo = Running(command.spawn().expect("it starts"));
        let socket = place.path().join("run/gotrace.sock");
        let arguments = ["--socket", socket.to_str().expect("a plain path")];
        let config = place.config("level: waits", "limits: {budget: off}\n");
        let this = Self { daemon: Daemon::start(&config, &arguments).expect("it starts"), place, demo };
        this.until_at("waits");
        this
    }

    fn until_at(&self, level: &str) {
        let at = |d: &Daemon| Ok(d.metrics()?.is_at(self.demo.pid(), level));
        self.daemon.until(level, PATIENCE, at).unwrap_or_else(|e| panic!("{e:#}"));
    }

    /// `gotrace attach` on a terminal.
    fn attach(&self, more: &[&str]) -> OnTerminal {
        attach(&self.place.path().join("run/gotrace.sock"), self.demo.pid(), more)
    }
}

fn attach(socket: &Path, pid: u32, more: &[&str]) -> OnTerminal {
    let (pid, socket) = (pid.to_string(), socket.to_str().expect("a plain path"));
    OnTerminal::start_with(&[&["attach", &*pid], more].concat(), &[("GOTRACE_SOCKET", socket)])
}

/// What was sent behind the view, once this has come; the terminal is as before.
fn behind(view: &OnTerminal, text: &str) -> String {
    view.wait_for(text);
    let shown = view.shown();
    let (_, behind) = shown.rsplit_once(LEAVE).expect("the view was left");
    assert!(behind.contains(text), "{behind}");
    assert!(view.is_cooked());
    behind.to_owned()
}

/// What a process has open of the kernel's probes.
fn probes(pid: u32) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let targets = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|to| ["bpf", "perf_event"].iter().any(|of| to.to_string_lossy().contains(of))).collect()
}

#[test]
fn what_the_daemon_traces_is_shown_in_the_live_table() {
    if !privileged("live_followed") {
        return;
    }
    let traced = Traced::start();
    let mut view = traced.attach(&["--level", "full"]);
    view.wait_for(ENTER);
    let (shown, daemon) = (view.shown(), traced.daemon.pid());
    assert!(shown.contains(&format!("from gotrace daemon (pid {daemon}), which traces process")), "{shown}");
    for part in ["engine events", "level full", "created/s", "main.waitForever", "lost 0", "q quit"] {
        view.wait_to_see(part);
    }
    assert!(!view.is_cooked());
    traced.until_at("full");
    // Those of the daemon are all that there are.
    assert_eq!(probes(view.pid()), Vec::<PathBuf>::new());
    assert!(!probes(daemon).is_empty(), "the daemon's are seen so");
    // The keys do what they do.
    view.press("2");
    for part in ["chan receive", "sort: total", "main.customer"] {
        view.wait_to_see(part);
    }
    view.press("1/waitf\r\r");
    for part in ["filter: waitf", "created by", "main.leakyHandler", "in all"] {
        view.wait_to_see(part);
    }
    view.press("\x1b\x1b");
    view.wait_to_see("main.customer");
    // What no report has is read here, which takes no probes.
    view.press("5");
    view.wait_to_see("goroutines at (own code)");
    view.wait_to_see("main.waitForever (main.go:");
    view.press("/waitf\rW");
    view.wait_to_see("who holds what goroutine");
    view.press("\x1b\x1b4");
    view.wait_to_see("lock or channel");
    assert_eq!(probes(view.pid()), Vec::<PathBuf>::new());
    view.press("q");
    assert!(view.end().success(), "{}", view.shown());
    let last = behind(&view, "stopped by you; the daemon traces it on");
    assert!(!last.contains("left out"), "{last}");
    traced.until_at("waits");

    let mut timed = traced.attach(&["--duration", "2s"]);
    timed.wait_for(ENTER);
    assert!(timed.end().success(), "{}", timed.shown());
    behind(&timed, "stopped after --duration; the daemon traces it on");

    // Lines where lines are wanted.
    let mut json = traced.attach(&["--format", "json", "--duration", "2s"]);
    assert!(json.end().success());
    json.wait_for("\"interval\"");
    assert!(!json.shown().contains('\x1b'), "{}", json.shown());
}

#[test]
fn the_table_ends_with_the_process_and_with_the_daemon() {
    if !privileged("live_followed") {
        return;
    }
    let mut traced = Traced::start();
    let mut view = traced.attach(&[]);
    view.wait_to_see("main.waitForever");
    traced.demo.signal(libc::SIGKILL);
    traced.demo.0.wait().expect("it ends");
    assert!(view.end().success(), "{}", view.shown());
    behind(&view, "the daemon traces the process no more: it has ended, or no rule takes it");

    let mut traced = Traced::start();
    let mut view = traced.attach(&[]);
    view.wait_to_see("main.waitForever");
    traced.daemon.kill().expect("killed");
    assert!(!view.end().success(), "{}", view.shown());
    behind(&view, "gotrace.sock broke off");
}

/// What stands for a daemon: it has a process with probes, and answers this where it is to tell of it whole.
fn made_up(directory: &Path, pid: u32, status: &'static str, whole: Vec<u8>) -> PathBuf {
    let socket = directory.join("made-up.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("bound");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let start = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)).expect("a start");
    let process = format!(r#"{{"pid":{pid},"start_ticks":{start},"engine":"events","level":"waits"}}"#);
    let processes = format!(r#"{{"schema":"gotrace.processes/1","processes":[{process}]}}"#);
    let answer = move |mut stream: UnixStream| -> Option<()> {
        let (mut lines, mut first) = (BufReader::new(stream.try_clone().ok()?), String::new());
        lines.read_line(&mut first).ok().filter(|read| *read > 0)?;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).ok().filter(|read| *read > 0)?;
        }
        let is_whole = first.contains("format=interval");
        let (status, body) = if is_whole {
            (status, &whole[..])
        } else if first.contains("format=text") {
            ("200 OK", &b"plain words of a daemon\n"[..])
        } else {
            ("200 OK", processes.as_bytes())
        };
        write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\n\r\n").ok()?;
        stream.write_all(body).ok()?;
        // It tells of it for as long as somebody listens.
        if is_whole && status.starts_with("200") {
            lines.read_line(&mut line).ok()?;
        }
        Some(())
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One that is gone has what it wanted.
            let _ = answer(stream);
        }
    });
    socket
}

#[test]
fn another_build_writes_lines_and_a_broken_one_is_told_of() {
    if !privileged("live_followed") {
        return;
    }
    let place = Place::new().expect("a directory");
    let demo = Demo::start("1h").expect("it starts");
    let own = r#"{"schema":"gotrace.reports/1","gotrace":"0.9.9","layout":"0"}"#;
    for (status, whole, says) in [
        (
            "200 OK",
            format!("{own}\n").into_bytes(),
            "gotrace: the daemon is gotrace 0.9.9, and this is gotrace ",
        ),
        (
            "400 Bad Request",
            b"format must be json or text\n".to_vec(),
            "is another version of gotrace: plain",
        ),
    ] {
        let socket = made_up(place.path(), demo.pid(), status, whole);
        let mut lines = attach(&socket, demo.pid(), &[]);
        assert!(lines.end().success(), "{}", lines.shown());
        for part in [says, "plain lines instead of the live table", "plain words of a daemon"] {
            lines.wait_for(part);
        }
        assert!(!lines.shown().contains(ENTER), "{}", lines.shown());
    }
    for (whole, says) in [
        (b"<html>\n".to_vec(), "sends no header of reports"),
        (vec![b'x'; 1 << 20], "sends no header of reports"),
        ([&header()[..], &[0xff; 4]].concat(), "sends a report of 4294967295 bytes"),
        ([&header()[..], &[9, 0, 0, 0], &[0xff; 9]].concat(), "sends a report that cannot be read"),
    ] {
        let socket = made_up(place.path(), demo.pid(), "200 OK", whole);
        let mut broken = attach(&socket, demo.pid(), &[]);
        assert!(!broken.end().success(), "{}", broken.shown());
        broken.wait_for(says);
        let shown = broken.shown();
        assert_eq!(shown.contains(ENTER), shown.contains(LEAVE), "{shown}");
        assert!(broken.is_cooked());
    }
}

#[test]
fn reports_that_were_left_out_are_told() {
    if !privileged("live_followed") {
        return;
    }
    let place = Place::new().expect("a directory");
    let demo = Demo::start("1h").expect("it starts");
    let frame = |missed| frame(&samples::whole(), missed).expect("memory");
    let whole = [&header()[..], &frame(1), &frame(0), &frame(2)].concat();
    let socket = made_up(place.path(), demo.pid(), "200 OK", whole);
    let mut view = attach(&socket, demo.pid(), &[]);
    for part in ["main.worker", "3 reports left out: not read in time"] {
        view.wait_to_see(part);
    }
    view.press("q");
    assert!(view.end().success(), "{}", view.shown());
    behind(&view, "gotrace: 3 reports left out: not read in time");
}
