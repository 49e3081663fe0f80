//! Runs `gotrace daemon` over Go programs that the test started, and asks its pages. Its rules take only
//! executables below the test's own directory: nothing else on the machine is touched.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    fixture::{PATIENCE, read_lines},
    gobuild::{Arch, Mode, build},
    gotrace::binary,
};

/// Go programs in a directory of their own.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir().context("making a temporary directory")? })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The program `bench` under this name: a file, and with it a binary, of its own.
    ///
    /// # Errors
    /// When it does not build.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        if !path.exists() {
            let built = build("bench", "1.24.11", Mode::Plain, Arch::HOST)?;
            fs::copy(&built, &path)
                .with_context(|| format!("copying {} to {}", built.display(), path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(path)
    }

    /// A configuration whose rules take what is in this place.
    #[must_use]
    pub fn config(&self, trace: &str, more: &str) -> String {
        format!(
            "trace: {{interval: 500ms, {trace}}}\nrules:\n  include:\n  - executable: [\"{}/**\"]\n{more}",
            self.path().display()
        )
    }
}

/// A running `bench`, which obeys commands and is ended when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

impl Program {
    /// Starts it; it waits for commands.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(path: &Path) -> Result<Self> {
        let mut child = Command::new(path)
            .args(["-procs", "2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", path.display()))?;
        let stdin = child.stdin.take();
        let answers = read_lines(child.stdout.take().context("its standard output is a pipe")?);
        let this = Self { child, stdin, answers };
        this.answer()?;
        Ok(this)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives a command.
    ///
    /// # Errors
    /// When it is gone.
    pub fn say(&mut self, command: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is open")?;
        writeln!(stdin, "{command}").context("giving a command")
    }

    /// The answer to the next command.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn answer(&self) -> Result<Value> {
        let line = self.answers.recv_timeout(PATIENCE).context("waiting for the program's answer")?;
        serde_json::from_str(&line).with_context(|| format!("the program said {line}"))
    }

    /// A command and its answer's `count`.
    ///
    /// # Errors
    /// As [`Self::say`] and [`Self::answer`].
    pub fn count(&mut self, command: &str) -> Result<u64> {
        self.say(command)?;
        self.answer()?["count"].as_u64().context("a count")
    }

    /// Lets it end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn finish(mut self) -> Result<()> {
        self.stdin = None;
        let status = self.child.wait().context("waiting for the program")?;
        ensure!(status.success(), "the program ended with {status}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `gotrace daemon`.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    config: PathBuf,
    address: String,
    said: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts it with this configuration and waits until it has looked at everybody.
    ///
    /// # Errors
    /// When it ends instead, with its words.
    pub fn start(config: &str, more: &[&str]) -> Result<Self> {
        Self::start_by(Command::new(binary()?), config, more)
    }

    /// The same by a command that ends with `gotrace`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_by(gotrace: Command, config: &str, more: &[&str]) -> Result<Self> {
        Self::start_at(gotrace, "127.0.0.1:0", config, more)
    }

    /// The same as [`Self::start`], where its pages are on another address.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(address: &str, config: &str) -> Result<Self> {
        Self::start_at(Command::new(binary()?), address, config, &[])
    }

    fn start_at(gotrace: Command, address: &str, config: &str, more: &[&str]) -> Result<Self> {
        let more: Vec<&str> = ["--listen", address].iter().chain(more).copied().collect();
        let (mut this, address) = Self::spawn(gotrace, config, &more)?;
        match address.recv_timeout(PATIENCE) {
            Ok(address) => this.address = address,
            Err(_) => bail!("gotrace daemon serves no pages:\n{}", this.said()),
        }
        this.until("it is ready", PATIENCE, Self::is_ready)?;
        Ok(this)
    }

    /// The same where its pages cannot be reached, by a command that ends with `gotrace`; comes back at
    /// once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_unseen(gotrace: Command, config: &str) -> Result<Self> {
        Self::spawn(gotrace, config, &["--listen", "off"]).map(|(daemon, _)| daemon)
    }

    fn spawn(mut gotrace: Command, config: &str, more: &[&str]) -> Result<(Self, mpsc::Receiver<String>)> {
        let dir = tempfile::tempdir().context("making a temporary directory")?;
        let path = dir.path().join("gotrace.yaml");
        fs::write(&path, whole(config))?;
        // Nobody else on the machine asks a test's daemon.
        let socket: &[&str] = if more.contains(&"--socket") { &[] } else { &["--socket", "off"] };
        let mut child = gotrace
            .args(["daemon", "--config"])
            .arg(&path)
            .args(socket)
            .args(more)
            .env("GOTRACE_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {gotrace:?}"))?;
        let stderr = child.stderr.take().context("its standard error is a pipe")?;
        let said = Arc::new(Mutex::new(String::new()));
        let (sender, address) = mpsc::channel();
        let heard = Arc::clone(&said);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Other lines name the collector's address.
                let page =
                    line.split_once("http://").and_then(|(_, address)| address.strip_suffix("/metrics"));
                if let Some(address) = page {
                    let _ = sender.send(address.to_owned());
                }
                if let Ok(mut said) = heard.lock() {
                    said.push_str(&line);
                    said.push('\n');
                }
            }
        });
        let this = Self { child, config: path, address: String::new(), said, reader: Some(reader), dir };
        Ok((this, address))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its pages are.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.lock().map(|said| said.clone()).unwrap_or_default()
    }

    /// A page: its status and text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream =
            TcpStream::connect(&self.address).with_context(|| format!("connecting to {}", self.address))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: gotrace\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("a status")?;
        Ok((status, body.to_owned()))
    }

    /// Whether it has looked at everybody. An answer that breaks off is none yet.
    fn is_ready(&self) -> Result<bool> {
        match self.get("/readyz") {
            Ok((status, _)) => Ok(status == 200),
            Err(e) if e.root_cause().downcast_ref().is_some_and(is_refused) => Err(e),
            Err(_) => Ok(false),
        }
    }

    /// The page for Prometheus.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(self.get("/metrics")?.1))
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When it does not within the time; what gotrace has said by then.
    pub fn until(
        &self,
        what: &str,
        within: Duration,
        holds: impl Fn(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            if holds(self)? {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > within {
                bail!("within {within:?} not true: {what}\n{}\n{}", self.said(), self.metrics()?.0);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it has said something.
    ///
    /// # Errors
    /// When it does not within the time; what it has said by then.
    pub fn until_said(&self, what: &str, within: Duration) -> Result<()> {
        let begun = Instant::now();
        while !self.said().contains(what) {
            ensure!(begun.elapsed() < within, "within {within:?} not said: {what}\n{}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Writes another configuration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn reconfigure(&self, config: &str) -> Result<()> {
        let new = self.dir.path().join("new.yaml");
        fs::write(&new, whole(config))?;
        fs::rename(&new, &self.config).context("replacing the configuration")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the pid is our own child's, not yet waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Ends it at once, without a word to it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Has it end, as a system service is ended; how it did, how long that took, and all that it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(mut self) -> Result<(ExitStatus, Duration, String)> {
        self.signal(libc::SIGTERM);
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let took = begun.elapsed();
                let reader = self.reader.take().context("read once")?;
                reader.join().map_err(|_| anyhow!("reading what gotrace says"))?;
                return Ok((status, took, self.said()));
            }
            ensure!(begun.elapsed() < PATIENCE, "gotrace daemon did not end:\n{}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// With what goes without saying: what is remembered of one test is not for the next.
fn whole(config: &str) -> String {
    let state = if config.contains("state:") { "" } else { "\nstate: {directory: off}\n" };
    format!("{config}{state}")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether nobody listens.
fn is_refused(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ConnectionRefused
}

/// The page for Prometheus.
#[derive(Clone, Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The values of all series of a metric whose labels contain all of these.
    #[must_use]
    pub fn values(&self, name: &str, labels: &[&str]) -> Vec<f64> {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|l| rest.contains(l)))
            .filter_map(|rest| rest.rsplit_once(' ')?.1.parse().ok())
            .collect()
    }

    /// The sum of them.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.values(name, labels).iter().sum()
    }

    /// Goroutines that the site `main.churn` of a process has created.
    #[must_use]
    pub fn churned(&self, pid: u32) -> f64 {
        self.sum(
            "gotrace_goroutine_created_total",
            &[&of(pid), "gotrace_created_by_function_name=\"main.churn\""],
        )
    }

    /// Whether the process is on the page.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        !self.values("go_goroutine_count", &[&of(pid)]).is_empty()
    }

    /// Whether the process is at this level.
    #[must_use]
    pub fn is_at(&self, pid: u32, level: &str) -> bool {
        !self.values("gotrace_level_ratio", &[&of(pid), &format!("gotrace_level=\"{level}\"")]).is_empty()
    }
}

/// The label of a process.
#[must_use]
pub fn of(pid: u32) -> String {
    format!("process_pid=\"{pid}\"")
}
