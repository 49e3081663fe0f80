//! Processes that the bench starts, speaks with by lines, and ends by their ids. None of them can make
//! the bench wait for ever.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process and the lines that it prints; killed when dropped.
pub struct Speaking {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Speaking {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its standard output is a pipe")?;
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { name, child, stdin, lines })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line.
    pub fn line(&self) -> Result<String> {
        self.lines.recv_timeout(PATIENCE).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => anyhow!("{} said nothing for {PATIENCE:?}", self.name),
            mpsc::RecvTimeoutError::Disconnected => anyhow!("{} ended early", self.name),
        })
    }

    /// The next line, which is JSON.
    pub fn json(&self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))
    }

    /// Gives it a line.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{} takes no more lines", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("telling {} {line:?}", self.name))
    }

    /// Ends its standard input.
    pub fn hush(&mut self) {
        self.stdin = None;
    }

    /// Ctrl-C.
    pub fn interrupt(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::INT).with_context(|| format!("interrupting {}", self.name))
    }

    /// Waits for its end; returns the lines that are left.
    pub fn end(self) -> Result<Vec<String>> {
        self.end_within(PATIENCE)
    }

    /// The same, with more patience.
    pub fn end_within(mut self, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?
            {
                ensure!(status.success(), "{} ended with {status}", self.name);
                break;
            }
            ensure!(Instant::now() < deadline, "{} did not end within {patience:?}", self.name);
            thread::sleep(Duration::from_millis(1));
        }
        let mut rest = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            rest.push(line);
        }
        Ok(rest)
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Go program that measures itself (`tests/go/bench`).
pub struct GoProgram {
    process: Speaking,
    /// What it was built with.
    pub go_version: String,
}

/// What is measured in the Go program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A goroutine is born and dies.
    Births,
    /// A number is sent to another goroutine and back.
    PingPong,
}

impl Work {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Births, Self::PingPong];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Births => "goroutine birth+death",
            Self::PingPong => "channel round trip",
        }
    }
}

impl GoProgram {
    /// Starts it with so many processors to run goroutines on.
    pub fn start(program: &Path, procs: usize) -> Result<Self> {
        let process = Speaking::start(Command::new(program).args(["-procs", &procs.to_string()]))?;
        let hello = process.json()?;
        let go_version = hello["go_version"].as_str().unwrap_or("an unknown Go").to_owned();
        Ok(Self { process, go_version })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Lets it do something.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        self.process.tell(command)?;
        self.process.json().with_context(|| format!("when told {command:?}"))
    }

    /// Gives it a command, and does not wait for the answer.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.process.tell(command)
    }

    /// The answer to a command that was told.
    pub fn answer(&self) -> Result<Value> {
        self.process.json()
    }

    /// Lets it end.
    pub fn end(mut self) -> Result<()> {
        self.process.hush();
        self.process.end().map(drop)
    }

    /// Nanoseconds of processor time that one of `work` takes.
    pub fn sample(&mut self, work: Work, length: Duration) -> Result<f64> {
        let word = match work {
            Work::Births => "births",
            Work::PingPong => "pingpong",
        };
        let answer = self.ask(&format!("{word} {}ms", length.as_millis()))?;
        match (answer["cpu_ns"].as_f64(), answer["count"].as_f64()) {
            (Some(ns), Some(count)) if count > 0.0 => Ok(ns / count),
            _ => bail!("the Go program answered {answer}"),
        }
    }
}
