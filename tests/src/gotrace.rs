//! Runs the command `gotrace` beside a Go program and reads what it leaves: its JSON lines and its
//! OTLP export. Ends it by its pid when dropped.
//!
//! The binary is `$GOTRACE_BIN`, or what `cargo build` left in the target directory.

use std::{
    fs::{self, File},
    io::{Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    export::Export,
    fixture::{PATIENCE, read_lines},
    gobuild::target_dir,
};

/// The `gotrace` binary under test.
///
/// # Errors
/// Where there is none, with the command that makes it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GOTRACE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.exists(), "GOTRACE_BIN names {}, which does not exist", path.display());
        return Ok(path);
    }
    let test = std::env::current_exe().context("finding the test's own path")?;
    // target[/TRIPLE]/PROFILE/deps/test-HASH
    let beside = test.parent().and_then(Path::parent).map(|p| p.join("gotrace"));
    let candidates = beside.into_iter().chain([target_dir().join("debug/gotrace")]);
    candidates
        .into_iter()
        .find(|p| p.exists())
        .ok_or_else(|| anyhow!("gotrace is not built: run `cargo build -p gotrace-daemon`"))
}

/// Whether probes are put in place by links here: what `gotrace doctor` says.
///
/// # Errors
/// Where there is no binary, or no report.
pub fn by_links() -> Result<bool> {
    let doctor = Command::new(binary()?).args(["doctor", "--format", "json"]).output()?;
    links_in(&String::from_utf8_lossy(&doctor.stdout))
}

/// The same of a report of another machine's.
///
/// # Errors
/// Where it is none.
pub fn links_in(report: &str) -> Result<bool> {
    let report: Value = serde_json::from_str(report).context("a report of gotrace doctor")?;
    let checks = report["checks"].as_array().context("checks")?;
    let links = checks.iter().find(|c| c["name"] == "uprobe links").context("a check of uprobe links")?;
    Ok(links["state"] == "ok")
}

/// What must be true of this machine for live tests: root. `false` only where the caller has said in
/// `GOTRACE_TESTS=unprivileged` that it knows; then a line on standard error says what is left out.
///
/// # Panics
/// Where the test does not run as root and nobody said so.
#[must_use]
pub fn privileged(test: &str) -> bool {
    // SAFETY: geteuid takes no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    assert!(
        std::env::var("GOTRACE_TESTS").is_ok_and(|v| v == "unprivileged")
            && std::env::var_os("CI").is_none_or(|v| v.is_empty()),
        "{test} needs root to load eBPF programs; run it as root, or say \
         GOTRACE_TESTS=unprivileged to leave the live tests out, which CI does not"
    );
    skipped(&format!("{test} needs root"));
    false
}

/// Leaves a test out because this machine lacks something, aloud.
///
/// # Panics
/// In CI, where nothing is left out.
pub fn left_out(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|v| v.is_empty()), "{test} is not left out in CI: {why}");
    skipped(&format!("{test}: {why}"));
}

/// Says so, and notes it for whoever runs all tests (`GOTRACE_SKIPPED`), who says it again at the end.
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
    let Some(path) = std::env::var_os("GOTRACE_SKIPPED") else { return };
    let noted = File::options().create(true).append(true).open(path);
    let noted = noted.and_then(|mut file| writeln!(file, "{what}"));
    noted.expect("noted");
}

/// Reads everything in a thread of its own.
fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let _ = from.read_to_string(&mut text);
        text
    })
}

/// A running `gotrace`.
#[derive(Debug)]
pub struct Gotrace {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Lines of JSON that were read while it ran.
    read: Vec<Value>,
    /// Lines among them that are not JSON.
    said: String,
    errors: thread::JoinHandle<String>,
    export: PathBuf,
    dir: tempfile::TempDir,
}

/// What `gotrace` left when it ended.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its lines of JSON after the header.
    pub lines: Vec<Value>,
    /// Whatever it printed beside them; after `exec` also what the command printed.
    pub stderr: String,
    /// What it exported.
    pub export: Export,
    _dir: tempfile::TempDir,
}

impl Outcome {
    /// The summary on the last line.
    ///
    /// # Errors
    /// Where there is none.
    pub fn summary(&self) -> Result<&Value> {
        self.lines
            .iter()
            .rev()
            .find_map(|l| l.get("summary"))
            .with_context(|| format!("gotrace printed no summary ({}):\n{}", self.status, self.stderr))
    }

    /// How many it says were lost, of every kind together.
    ///
    /// # Errors
    /// Where there is no summary.
    pub fn lost(&self) -> Result<u64> {
        let lost = self.summary()?.get("lost").cloned().unwrap_or(Value::Null);
        Ok(lost.as_object().map_or(0, |o| o.values().filter_map(Value::as_u64).sum()))
    }
}

impl Gotrace {
    /// `gotrace attach` with a threshold of 1 ms, at level `full` and without a budget unless `more` names
    /// others; comes back when its probes are in place.
    ///
    /// # Errors
    /// Where it ends instead, with its words.
    pub fn attach(pid: u32, more: &[&str]) -> Result<Self> {
        Self::attach_by(Command::new(binary()?), pid, more)
    }

    /// [`Self::attach`] by a command that ends with `gotrace`.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_by(gotrace: Command, pid: u32, more: &[&str]) -> Result<Self> {
        let mut args = vec!["attach", "--pid"];
        let pid = pid.to_string();
        args.extend([&pid, "--min-wait", "1ms"]);
        if !more.contains(&"--level") {
            args.extend(["--level", "full"]);
        }
        if !more.contains(&"--budget") {
            args.extend(["--budget", "none"]);
        }
        Self::start(gotrace, &args, more, &[])
    }

    /// [`Self::attach`] from within the PID and mount namespaces that the process lives in, by the pid
    /// that it has there: as a sidecar does. Needs util-linux.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_within(pid: u32, more: &[&str]) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let inner = status
            .lines()
            .find_map(|l| l.strip_prefix("NSpid:")?.split_whitespace().next_back())
            .with_context(|| format!("{path} has no NSpid"))?;
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &pid.to_string(), "--pid", "--mount"]).arg(binary()?);
        let args = ["attach", "--pid", inner, "--level", "full", "--budget", "none", "--min-wait", "1ms"];
        Self::start(nsenter, &args, more, &[])
    }

    /// `gotrace exec` of a command at level `full`; comes back when its probes are in place.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn exec(more: &[&str], command: &[&str]) -> Result<Self> {
        let args = ["exec", "--level", "full", "--min-wait", "1ms"];
        Self::start(Command::new(binary()?), &args, more, command)
    }

    fn start(mut gotrace: Command, args: &[&str], more: &[&str], command: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("making a temporary directory")?;
        let export = dir.path().join("export.jsonl");
        gotrace.args(args).args(["--format", "json", "--export"]).arg(&export).args(more);
        if !command.is_empty() {
            gotrace.arg("--").args(command);
        }
        let mut child = gotrace
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {gotrace:?}"))?;
        let stdout = child.stdout.take().context("its standard output is a pipe")?;
        let stderr = child.stderr.take().context("its standard error is a pipe")?;
        // `exec` leaves its standard output to the command, and writes its results to standard error.
        let (lines, errors) = if command.is_empty() {
            (read_lines(stdout), read_all(stderr))
        } else {
            (read_lines(stderr), read_all(stdout))
        };
        let mut this = Self { child, lines, read: Vec::new(), said: String::new(), errors, export, dir };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match this.lines.recv_timeout(left) {
                Ok(line) if line.contains("\"schema\":\"gotrace.attach/1\"") => return Ok(this),
                // What else is said, and what the command that `exec` runs says, goes to the same place.
                Ok(line) => this.said += &(line + "\n"),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("gotrace {args:?} printed no header within {PATIENCE:?}")
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let outcome = this.wait()?;
                    bail!(
                        "gotrace {args:?} ended with {} before its probes were in place:\n{}",
                        outcome.status,
                        outcome.stderr
                    )
                }
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads on until an interval is as wanted, also one that ended before this was asked, and gives it.
    /// [`Outcome::lines`] has all of them.
    ///
    /// # Errors
    /// Where none is within the time.
    pub fn read_until(
        &mut self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).map_err(|_| {
                let last = self.read.last();
                anyhow!("not within {within:?}: {what}; the last line is {last:?}\n{}", self.said)
            })?;
            let is_json = line.starts_with('{');
            self.take(line)?;
            let last = self.read.last().filter(|_| is_json).and_then(|l| l.get("interval"));
            if let Some(interval) = last.filter(|interval| wanted(interval)) {
                return Ok(interval.clone());
            }
        }
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        self.signal(libc::SIGINT);
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the pid is our own child's, not yet waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Reads its intervals until one that ends from now on holds, and gives that one.
    ///
    /// # Errors
    /// Where none does in time or before its end, with the last one.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
        let is_later = |i: &Value| i["end_unix_nano"].as_u64().is_some_and(|end| u128::from(end) > now);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                let last = self.read.iter().rev().find_map(|l| l.get("interval"));
                bail!(
                    "within {PATIENCE:?}, or before gotrace ended, not true: {what}\n{last:?}\n{}",
                    self.said
                );
            };
            self.take(line)?;
            let last = self.read.last().and_then(|l| l.get("interval"));
            if let Some(interval) = last.filter(|interval| is_later(interval) && holds(interval)) {
                return Ok(interval.clone());
            }
        }
    }

    /// Keeps a line.
    fn take(&mut self, line: String) -> Result<()> {
        if line.starts_with('{') {
            let value = serde_json::from_str(&line)
                .with_context(|| format!("gotrace printed a line that is not JSON: {line}"))?;
            self.read.push(value);
        } else {
            self.said += &(line + "\n");
        }
        Ok(())
    }

    /// Waits for its end and reads what it left.
    ///
    /// # Errors
    /// Where it does not end in time, or what it left cannot be read.
    pub fn wait(mut self) -> Result<Outcome> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("waiting for gotrace")? {
                break status;
            }
            ensure!(Instant::now() < deadline, "gotrace did not end within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(5));
        };
        // What `exec` ran may have left somebody behind who has the pipe.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.take(line)?;
        }
        let lines = std::mem::take(&mut self.read);
        let errors = std::mem::replace(&mut self.errors, thread::spawn(String::new));
        let stderr = errors.join().map_err(|_| anyhow!("reading what gotrace says"))?
            + &std::mem::take(&mut self.said);
        let export = match fs::read_to_string(&self.export) {
            Ok(text) => Export::parse(&text).with_context(|| format!("reading the export\n{stderr}"))?,
            Err(_) => Export::default(),
        };
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir()?);
        Ok(Outcome { status, lines, stderr, export, _dir: dir })
    }
}

impl Drop for Gotrace {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
