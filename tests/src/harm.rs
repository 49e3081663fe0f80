//! Trials that hold gotrace to its first promise: who is watched, or only runs the same file, comes to no
//! harm. Runs the Go program `tests/go/harm` and `gotrace` beside it, by the command line alone, and counts
//! trials and deaths.
//!
//! A death is an end by a signal that the trial did not send, a status other than 0, a result that is not
//! the program's own, or, of who is not watched, code in memory that is not the file's. Each kind of trial is a
//! line `harm: NAME: N trials, D deaths`. `GOTRACE_HARM=long` makes many more of each.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

pub use crate::code::{Code, changed};
use crate::{
    daemon::Daemon,
    fixture::{PATIENCE, read_lines},
    gobuild::{Arch, Mode, build},
    gotrace::{binary, by_links},
};

/// What the program prints when all that it worked is right.
pub const OK: &str = "ok 6f8228b0a3900940";

/// The newest Go of the matrix.
pub const NEWEST: &str = "1.27.3";

/// Builds of the program that are alike in what they do and not in where their functions are.
pub const BUILDS: [(&str, Mode); 4] =
    [(NEWEST, Mode::Plain), ("1.26.6", Mode::Plain), (NEWEST, Mode::NoInline), ("1.24.11", Mode::Plain)];

/// How many trials: the first number, or with `GOTRACE_HARM=long` the second.
#[must_use]
pub fn trials(short: usize, long: usize) -> usize {
    if std::env::var("GOTRACE_HARM").is_ok_and(|v| v == "long") { long } else { short }
}

/// How gotrace puts its probes in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By links of many uprobes.
    Links,
    /// By perf events.
    PerfEvents,
}

impl Way {
    /// Those that this kernel has.
    ///
    /// # Errors
    /// As [`by_links`].
    pub fn all() -> Result<Vec<Self>> {
        Ok(if by_links()? { vec![Self::Links, Self::PerfEvents] } else { vec![Self::PerfEvents] })
    }

    /// Its name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::PerfEvents => "perf events",
        }
    }

    /// `gotrace`, to put its probes in place so.
    ///
    /// # Errors
    /// When it is not built.
    pub fn gotrace(self) -> Result<Command> {
        let mut gotrace = Command::new(binary()?);
        if self == Self::PerfEvents {
            gotrace.env("GOTRACE_UPROBES", "perf");
        }
        Ok(gotrace)
    }
}

/// Counts of trials and deaths.
#[derive(Debug, Default)]
pub struct Harm {
    deaths: Mutex<Vec<String>>,
}

impl Harm {
    /// Makes so many trials, so many of them at once; prints how many died, and how the first one did. A trial
    /// is told its number.
    pub fn trials(
        &self,
        name: &str,
        number: usize,
        at_once: usize,
        trial: impl Fn(usize) -> Result<()> + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let deaths = Mutex::new(Vec::new());
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..at_once.min(number) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= number {
                            break;
                        }
                        if let Err(e) = trial(i) {
                            let death = format!("{name}, trial {i}: {e:#}");
                            deaths.lock().unwrap_or_else(PoisonError::into_inner).push(death);
                        }
                    }
                });
            }
        });
        let mut deaths = deaths.into_inner().unwrap_or_else(PoisonError::into_inner);
        eprintln!("harm: {name}: {number} trials, {} deaths ({:.0?})", deaths.len(), begun.elapsed());
        if let Some(first) = deaths.first() {
            eprintln!("  {}", first.replace('\n', "\n  "));
        }
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).append(&mut deaths);
    }

    /// Nobody may have died.
    ///
    /// # Panics
    /// When somebody has.
    pub fn none(self) {
        let deaths = self.deaths.into_inner().unwrap_or_else(PoisonError::into_inner);
        assert!(deaths.is_empty(), "{} deaths; how the first of each kind came is told above", deaths.len());
    }
}

/// A directory with programs in it that everybody may run, and a word by which gotrace's rules know who is to
/// be traced: one of a process's arguments.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
    mark: String,
}

impl Place {
    /// An empty one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("harm").tempdir().context("making a directory")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        // No part of the path, which is an argument of each program here.
        let name = dir.path().file_name().context("a name")?.to_string_lossy().replace('.', "");
        let mark = name.replacen("harm", "watched", 1);
        Ok(Self { dir, mark })
    }

    /// A file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The word.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The Go program, as a file of its own.
    ///
    /// # Errors
    /// When it does not build.
    pub fn program(&self, name: &str, version: &str, mode: Mode) -> Result<PathBuf> {
        self.copy(name, &build("harm", version, mode, Arch::HOST)?)
    }

    /// A copy of a program.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn copy(&self, name: &str, program: &Path) -> Result<PathBuf> {
        let path = self.path(name);
        fs::copy(program, &path).with_context(|| format!("copying {}", program.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// `gotrace daemon` over those that have the word among their arguments. `trace` and `more` are of its
    /// configuration.
    ///
    /// # Errors
    /// When it does not start.
    pub fn daemon(&self, way: Way, trace: &str, more: &str) -> Result<Daemon> {
        let config = format!(
            "trace: {{interval: 500ms, {trace}}}\nrules:\n  include:\n  - command_line: [\"*{}*\"]\n{more}",
            self.mark
        );
        Daemon::start_by(way.gotrace()?, &config, &[])
    }

    /// The same at level `full`, whatever that costs.
    ///
    /// # Errors
    /// As [`Self::daemon`].
    pub fn full_daemon(&self, way: Way) -> Result<Daemon> {
        self.daemon(way, "level: full", "limits: {budget: off}\n")
    }
}

/// A command of these words.
#[must_use]
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Runs a command to its end, which must be a good one, and says so often that its work is right. Meanwhile
/// there are no probes in its code but those that belong there.
///
/// # Errors
/// When it dies, or is about to.
pub fn lives(command: &mut Command, times: usize, code: &Code) -> Result<()> {
    let [mut out, mut err] = [tempfile::tempfile()?, tempfile::tempfile()?];
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let status = ends_with(&mut child, code).with_context(|| format!("{command:?}"))?;
    let text = |file: &mut fs::File| -> Result<String> {
        let mut text = String::new();
        std::io::Seek::rewind(file)?;
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    let (out, err) = (text(&mut out)?, text(&mut err)?);
    let said = out.lines().filter(|l| *l == OK).count();
    let wrong = out.lines().any(|l| l != OK && l != "ready");
    if !status.success() || said != times || wrong {
        bail!("{command:?} ended with {status}; it printed:\n{out}{}", cut(&err));
    }
    Ok(())
}

/// The beginning of what a program said at its end: Go's traceback can be long.
fn cut(text: &str) -> String {
    text.lines().take(12).collect::<Vec<_>>().join("\n")
}

/// Waits for a child's end; one that does not end is killed.
///
/// # Errors
/// When it does not end.
pub fn ends(child: &mut Child) -> Result<ExitStatus> {
    ends_with(child, &Code::default())
}

/// The same, and looks at its code meanwhile.
///
/// # Errors
/// As [`ends`] and [`Code::check`].
pub fn ends_with(child: &mut Child, code: &Code) -> Result<ExitStatus> {
    let begun = Instant::now();
    let kill = |child: &mut Child| {
        let _ = child.kill();
        let _ = child.wait();
    };
    for looks in 0.. {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            kill(child);
            bail!("it did not end within {PATIENCE:?}");
        }
        if looks % 8 == 0
            && let Err(e) = code.check(child.id())
        {
            kill(child);
            return Err(e);
        }
        thread::sleep(Duration::from_millis(2));
    }
    bail!("it never ended")
}

/// Waits until something holds.
///
/// # Errors
/// When it does not in any reasonable time, or cannot be told.
pub fn until(what: &str, holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    within(PATIENCE, what, holds)
}

/// Waits until something holds, so long at most; how long it took.
///
/// # Errors
/// When it does not, or cannot be told.
pub fn within(most: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(begun.elapsed() < most, "within {most:?} not true: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(begun.elapsed())
}

/// A running program that works until it is told to end; killed when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    lines: Mutex<mpsc::Receiver<String>>,
}

impl Worker {
    /// Starts it, and waits until it has begun to work.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("starting {command:?}"))?;
        let lines = read_lines(child.stdout.take().context("its standard output is a pipe")?);
        let begun = lines.recv_timeout(PATIENCE);
        let mut this = Self { child, lines: Mutex::new(lines) };
        match begun {
            Ok(line) if line == "ready" => Ok(this),
            Ok(line) => bail!("{command:?} said {line}"),
            Err(_) => bail!("{command:?} did not begin: {:?}", this.child.try_wait()?),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the pid is our own child's, not yet waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Tells it to end; its work must be right.
    ///
    /// # Errors
    /// When it has died, or does.
    pub fn end(mut self) -> Result<()> {
        self.signal(libc::SIGTERM);
        let status = ends(&mut self.child)?;
        let lines: Vec<_> = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner).iter().collect();
        ensure!(status.success() && lines == [OK], "it ended with {status} and {lines:?}");
        Ok(())
    }

    /// Whether probes are in its code.
    ///
    /// # Errors
    /// As [`changed`].
    pub fn is_probed(&self, file: &Path) -> Result<bool> {
        Ok(!changed(self.pid(), file)?.is_empty())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `gotrace` that watches while a trial is made; killed when dropped.
#[derive(Debug)]
pub struct Watcher {
    child: Child,
    out: tempfile::NamedTempFile,
}

impl Watcher {
    /// `gotrace attach` to a process; comes back at once.
    ///
    /// # Errors
    /// When it does not start.
    pub fn attach(way: Way, pid: u32, more: &[&str]) -> Result<Self> {
        let out = tempfile::NamedTempFile::new()?;
        let mut gotrace = way.gotrace()?;
        gotrace.args(["attach", "--format", "json", "--pid", &pid.to_string()]).args(more);
        gotrace.stdin(Stdio::null()).stdout(out.reopen()?).stderr(out.reopen()?);
        let child = gotrace.spawn().context("starting gotrace")?;
        Ok(Self { child, out })
    }

    /// Whether it has put its probes in place.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.said().contains("\"schema\":\"gotrace.attach/1\"")
    }

    /// Waits for that.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn begins(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.has_begun() {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none() && begun.elapsed() < PATIENCE, "{ended:?}:\n{}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// All that it has said.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.out.path()).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, which comes with the watched program's.
    ///
    /// # Errors
    /// When it does not end.
    pub fn ends(&mut self) -> Result<ExitStatus> {
        ends(&mut self.child)
    }

    /// Ctrl-C, and its end.
    ///
    /// # Errors
    /// As [`Self::ends`].
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        // SAFETY: kill takes no pointers; the pid is our own child's.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) };
        self.ends()
    }

    /// `kill -9`, and its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.ends().map(drop)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a daemon that somebody was traced by: a trial of whom gotrace never saw says nothing.
///
/// # Errors
/// When nobody was, or it does not end well.
pub fn end(daemon: Daemon) -> Result<()> {
    daemon.until("somebody was traced, and has ended", PATIENCE, |daemon| {
        Ok(daemon.metrics()?.sum("gotrace_processes_ended_total", &[]) > 0.0)
    })?;
    let (status, _, said) = daemon.finish()?;
    ensure!(status.success(), "gotrace daemon ended with {status}:\n{said}");
    Ok(())
}

/// Runs a script with these as `$1`, `$2`.
///
/// # Errors
/// When it fails.
pub fn shell(script: &str, arguments: &[&Path]) -> Result<()> {
    let done =
        Command::new("sh").args(["-c", script, "sh"]).args(arguments).output().context("starting sh")?;
    ensure!(done.status.success(), "{script}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Something mounted, until it is dropped.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts a file system of this type.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn new(kind: &str, options: &str, at: &Path) -> Result<Self> {
        shell("mount -t \"$1\" -o \"$2\" harm \"$3\"", &[Path::new(kind), Path::new(options), at])?;
        Ok(Self { at: at.into() })
    }

    /// Binds a file or directory.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn bind(from: &Path, at: &Path) -> Result<Self> {
        shell("mount --bind \"$1\" \"$2\"", &[from, at])?;
        Ok(Self { at: at.into() })
    }

    /// What a command has mounted there.
    #[must_use]
    pub fn found(at: &Path) -> Self {
        Self { at: at.into() }
    }

    /// Unmounts it as anybody does, which nobody may keep from: fails while it is busy.
    ///
    /// # Errors
    /// When it is still busy after so long.
    pub fn unmount(self, most: Duration) -> Result<()> {
        let done = within(most, "it is unmounted", || Ok(shell("umount \"$1\"", &[&self.at]).is_ok()));
        if done.is_ok() {
            std::mem::forget(self);
        }
        done.map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It fails only where it has been unmounted, which is what is wanted.
        let _ = shell("umount -l \"$1\"", &[&self.at]);
    }
}
