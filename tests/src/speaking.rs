//! Programs that are told what to do by lines and answer by lines of JSON.

use std::{
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::Receiver,
};

use serde_json::Value;

use crate::fixture::read_lines;

/// A child that is ended with its test.
#[derive(Debug)]
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it; its lines come with it.
///
/// # Panics
/// Where it cannot be started.
pub fn start(command: &mut Command) -> (Ended, Receiver<String>) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let stdout: ChildStdout = child.stdout.take().expect("a pipe");
    (Ended(child), read_lines(stdout))
}

/// A line of JSON.
///
/// # Panics
/// Where it is none.
#[must_use]
pub fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}
