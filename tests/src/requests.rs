//! Programs that account for their own requests (`tests/go/requests`, `tests/go/grpcserver`) beside `gotrace requests`: starts
//! both, and reads what each says. [`judge`] holds the one against the other.
//!
//! Panics where either ends too early, does not answer within [`PATIENCE`], or says what it should not.

pub mod judge;

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build_from, minor, workspace},
    gotrace::binary,
    speaking::{Ended, parse, start},
};

/// What the program knows of one of its requests.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Own {
    /// What it does; a key of [`judge::KINDS`].
    pub kind: String,
    /// As `gotrace.requests/1` calls it.
    pub protocol: String,
    /// Of the request; empty for what has none.
    pub method: String,
    /// What the client asked for, or a span's name.
    pub path: String,
    /// The pattern without its method; empty where no pattern matched, or the mux has none.
    pub route: String,
    /// As the client saw it; 0 where it saw none.
    pub status: u64,
    /// `normal`, `panic` or `hijacked`.
    pub ended: String,
    /// The goroutine that ran the handler.
    pub goid: u64,
    /// When the handler began.
    pub start_unix_nano: u64,
    /// From there to the handler's end.
    pub total_ns: u64,
    /// Parts of it by the program's clocks.
    pub phases: BTreeMap<String, u64>,
    /// Of the client's `traceparent`; empty where it sent none.
    pub trace_id: String,
    /// The same.
    pub parent_span_id: String,
    /// A span's own.
    pub span_id: String,
    /// The goroutine that ended its wait; 0 for none.
    pub partner: u64,
    /// What it read from; empty for nothing.
    pub peer: String,
    /// The function that is the request; empty where it is none.
    pub function: String,
    /// Goroutines that it started.
    pub children: u64,
    /// Those of them that were there at its end.
    pub left_running: u64,
    /// How long those slept that were gone.
    pub child_sleep_ns: u64,
    /// How long they computed.
    pub child_cpu_ns: u64,
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (goroutine {}, {} ns from {})",
            self.kind, self.goid, self.total_ns, self.start_unix_nano
        )
    }
}

/// The Go program.
#[derive(Debug)]
pub struct Program {
    child: Ended,
    lines: Receiver<String>,
    /// What it said at its start.
    pub ready: Value,
}

impl Program {
    /// Starts it, and waits until it serves.
    #[must_use]
    pub fn start(path: &Path) -> Self {
        let (child, lines) = start(&mut Command::new(path));
        let ready = parse(&lines.recv_timeout(PATIENCE).expect("the program serves"));
        assert_eq!(ready["ready"], true, "{ready}");
        Self { child, lines, ready }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Tells it something.
    pub fn tell(&mut self, command: &str) {
        let stdin = self.child.0.stdin.as_mut().expect("a pipe");
        stdin.write_all(format!("{command}\n").as_bytes()).expect("it listens");
    }

    /// The next line that it says.
    #[must_use]
    pub fn answer(&self) -> Value {
        parse(&self.lines.recv_timeout(PATIENCE).expect("the program answers"))
    }

    /// Tells it something, and gives its requests that have ended, and its last line.
    pub fn run(&mut self, command: &str) -> (Vec<Own>, Value) {
        self.tell(command);
        let mut all = Vec::new();
        loop {
            let line = self.answer();
            if let Some(done) = line["done"].as_u64() {
                assert_eq!(done, all.len() as u64, "{command}");
                return (all, line);
            }
            all.push(serde_json::from_value(line).expect("a request"));
        }
    }
}

/// What `gotrace requests` said.
#[derive(Debug, Default)]
pub struct Report {
    /// The first line.
    pub header: Value,
    /// Requests that ended.
    pub ended: Vec<Value>,
    /// Requests while they were open.
    pub open: Vec<Value>,
    /// Those that were open before.
    pub before: Vec<Value>,
    /// Intervals.
    pub intervals: Vec<Value>,
    /// The last line; null where there was none.
    pub summary: Value,
    /// Lines that are none of these.
    pub others: Vec<Value>,
}

impl Report {
    /// Takes a line.
    pub fn take(&mut self, mut line: Value) {
        if line.get("schema").is_some() {
            self.header = line;
        } else if line.get("request").is_some() {
            let request = line["request"].take();
            if request["open"] == true { &mut self.open } else { &mut self.ended }.push(request);
        } else if let Some(before) = line["open_before"].as_array_mut() {
            self.before.append(before);
        } else if line.get("interval").is_some() {
            self.intervals.push(line["interval"].take());
        } else if line.get("summary").is_some() {
            self.summary = line["summary"].take();
        } else {
            self.others.push(line);
        }
    }

    /// What was lost, by what it is, of all intervals and the summary.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut lost = BTreeMap::new();
        for place in self.intervals.iter().chain([&self.summary]) {
            for (name, n) in place["lost"].as_object().into_iter().flatten() {
                *lost.entry(name.clone()).or_default() += n.as_u64().unwrap_or(u64::from(!n.is_null()));
            }
        }
        lost.retain(|_, n| *n > 0);
        lost
    }
}

/// A running `gotrace requests`; ended when dropped.
#[derive(Debug)]
pub struct Watch {
    child: Ended,
    lines: Receiver<String>,
    report: Report,
}

impl Watch {
    /// Starts it on a process without a budget, and waits until its probes are in place.
    #[must_use]
    pub fn start(pid: u32, more: &[&str]) -> Self {
        Self::within("none", pid, more)
    }

    /// The same within a budget.
    #[must_use]
    pub fn within(budget: &str, pid: u32, more: &[&str]) -> Self {
        let pid = pid.to_string();
        let mut gotrace = Command::new(binary().expect("gotrace"));
        gotrace.args(["requests", "--pid", &pid, "--format", "json", "--budget", budget]).args(more);
        let (child, lines) = start(&mut gotrace);
        let header = parse(&lines.recv_timeout(PATIENCE).expect("the probes are in place"));
        assert_eq!(header["schema"], "gotrace.requests/1", "{header}");
        Self { child, lines, report: Report { header, ..Report::default() } }
    }

    /// Reads on until what it said so far is as wanted.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Report) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.report) {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line =
                line.unwrap_or_else(|e| panic!("{e}; not said so far: {what}\n{:#?}", self.report.open));
            self.report.take(parse(&line));
        }
    }

    /// What it has said so far, as far as it was read.
    pub fn said(&mut self) -> &Report {
        while let Ok(line) = self.lines.try_recv() {
            self.report.take(parse(&line));
        }
        &self.report
    }

    /// Ctrl-C; what it said to its end.
    #[must_use]
    pub fn finish(mut self) -> Report {
        // SAFETY: no memory is involved; the child has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(self.child.0.id().cast_signed(), libc::SIGINT) }, 0, "it lives");
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.report.take(parse(&line));
        }
        loop {
            if let Some(status) = self.child.0.try_wait().expect("its status") {
                assert!(status.success(), "gotrace ended with {status}");
                return self.report;
            }
            assert!(Instant::now() < deadline, "gotrace does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// `tests/go/requests` in the language of that version, so that a ServeMux has patterns from Go 1.22 on.
#[must_use]
pub fn server(version: &str, mode: Mode) -> PathBuf {
    let language = if minor(version) < 22 { "1.19".to_owned() } else { format!("1.{}", minor(version)) };
    server_in(&language, version, mode)
}

/// The same in another version's language: up to 1.21 the mux is the old one.
#[must_use]
pub fn server_in(language: &str, version: &str, mode: Mode) -> PathBuf {
    server_for(Arch::HOST, language, version, mode)
}

/// The same for another architecture.
#[must_use]
pub fn server_for(arch: Arch, language: &str, version: &str, mode: Mode) -> PathBuf {
    let files = [("main.go", "main.go"), ("kinds.go", "kinds.go"), ("client.go", "client.go")];
    let module = format!("module gotrace.test/requests\n\ngo {language}\n");
    built("requests", &files, Some(&module), (version, mode, arch))
}

/// A copy of some files of a Go program under other names, with another `go.mod`, built.
#[must_use]
pub fn built(
    program: &str,
    files: &[(&str, &str)],
    module: Option<&str>,
    (version, mode, arch): (&str, Mode, Arch),
) -> PathBuf {
    let source = workspace().join("tests/go").join(program);
    let copy = tempfile::tempdir().expect("a directory");
    for (from, to) in files {
        fs::copy(source.join(from), copy.path().join(to)).expect("copied");
    }
    if let Some(module) = module {
        fs::write(copy.path().join("go.mod"), module).expect("written");
    }
    build_from(copy.path(), program, version, mode, arch).unwrap_or_else(|e| panic!("{e:#}"))
}
