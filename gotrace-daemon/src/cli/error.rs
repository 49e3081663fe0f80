//! What a subcommand ends with: an exit code, or an error with what went wrong, what to do, and the
//! exit code.

use std::{fmt, io, process::ExitCode};

use gotrace_kernel as kernel;
use gotrace_model::printable::printable_lines;
use gotrace_process::{ProcessError, SpawnError};

/// An exit code of the command line's contract, or that of the command that `exec` ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// Done.
    pub const DONE: Self = Self(0);
    /// Something failed.
    pub const FAILURE: Self = Self(1);
    /// The arguments make no sense.
    pub const USAGE: Self = Self(2);
    /// A permission or capability is missing.
    pub const PERMISSION: Self = Self(3);
    /// Not a Go program, or not supported.
    pub const UNSUPPORTED: Self = Self(4);
    /// The target is gone.
    pub const GONE: Self = Self(5);
    /// There are findings, with `--fail-on`.
    pub const FINDINGS: Self = Self(10);
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

/// Why a subcommand ended without its result. Printed as `error: what` and `help: what to do`,
/// further lines of either indented: what others chose cannot look like a line of gotrace's own.
#[derive(Debug)]
pub struct CliError {
    what: String,
    help: Option<String>,
    exit: Exit,
}

impl CliError {
    /// A failure with an exit code of its own.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { what: what.into(), help: None, exit }
    }

    /// A failure.
    pub fn failure(what: impl Into<String>) -> Self {
        Self::new(Exit::FAILURE, what)
    }

    /// Arguments that make no sense.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::USAGE, what)
    }

    /// Says on stderr what the user should know of a run that goes on.
    pub fn warn(what: &str) {
        super::say(&format!("warning: {}\n", printable_lines(what)));
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds what the user can do, if anything is known.
    #[must_use]
    pub fn maybe_help(mut self, help: Option<impl Into<String>>) -> Self {
        self.help = help.map(Into::into);
        self
    }

    /// What went wrong, without what to do.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.what
    }

    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", printable_lines(&self.what))?;
        match &self.help {
            Some(help) => write!(f, "\nhelp: {}", printable_lines(help)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}

impl From<ProcessError> for CliError {
    fn from(e: ProcessError) -> Self {
        Self::new(Exit(e.exit_code()), e.to_string()).maybe_help(e.help())
    }
}

impl From<SpawnError> for CliError {
    fn from(e: SpawnError) -> Self {
        Self::new(Exit(e.exit_code()), e.to_string()).maybe_help(e.help())
    }
}

impl From<kernel::Error> for CliError {
    fn from(e: kernel::Error) -> Self {
        Self::new(Exit(e.exit_code()), e.to_string()).help(e.help())
    }
}

/// A refusal while writing results to stdout.
impl From<io::Error> for CliError {
    fn from(e: io::Error) -> Self {
        if super::is_broken_pipe(&e) {
            // The reader has enough (`head`): no failure.
            return Self { what: String::new(), help: None, exit: Exit::DONE };
        }
        Self::failure(format!("cannot write results to stdout: {e}"))
    }
}

impl CliError {
    /// Whether there is nothing to say about it: the reader of stdout went away.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.what.is_empty()
    }
}
