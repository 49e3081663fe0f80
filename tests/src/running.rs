//! A child that does not outlive the test that started it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

/// It is killed, and waited for, when this is dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts a program with one argument, as `tests/go/cases` takes it, without input.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn start(program: &Path, case: &str) -> Self {
        Self(Command::new(program).arg(case).stdin(Stdio::null()).spawn().expect("it starts"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// Where that fails.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes two numbers; the process is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.pid().cast_signed(), signal) }, 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
