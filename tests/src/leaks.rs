//! Runs the Go program that leaks, or that looks as if it did, and `gotrace leaks` beside it.

use std::{
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    fixture::{PATIENCE, read_lines},
    gotrace::binary,
};

/// The running program.
#[derive(Debug)]
pub struct Leaks {
    child: Child,
    _stdin: ChildStdin,
}

impl Leaks {
    /// Starts it, and waits until all of its goroutines have begun. `what`: `leak` or `healthy`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path, what: &str) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let stdin = child.stdin.take().context("a pipe")?;
        let lines = read_lines(child.stdout.take().context("a pipe")?);
        let this = Self { child, _stdin: stdin };
        let ready = lines.recv_timeout(PATIENCE).context("the program says nothing")?;
        ensure!(ready == "READY", "the program said {ready}");
        Ok(this)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Leaks {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `gotrace leaks` of a process.
///
/// # Errors
/// Where it does not start.
pub fn leaks(pid: u32, more: &[&str]) -> Result<Output> {
    Command::new(binary()?)
        .args(["leaks", "--pid", &pid.to_string()])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .context("running gotrace leaks")
}

/// Its lines of JSON.
///
/// # Errors
/// Where it failed, or wrote something else.
pub fn json(output: &Output) -> Result<Vec<Value>> {
    ensure!(
        matches!(output.status.code(), Some(0 | 10)),
        "gotrace leaks ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("not JSON: {l}"))).collect()
}
