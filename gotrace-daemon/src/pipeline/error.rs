//! Why a process cannot be traced, and what the user can do about it.

use crate::{gobin, kernel, process::ProcessError, snapshot::SnapshotError};

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its program is not one that gotrace traces.
    #[error("process {pid}: {executable}: {error}")]
    Program {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// Why not.
        error: gobin::Error,
    },
    /// The plan lacks the probes without which there is nothing to show.
    #[error("process {pid}: {executable} has no place to probe for {what}")]
    NoProbe {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// The events that cannot be seen.
        what: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// As many processes are traced as there is room for.
    #[error("process {pid} is not traced: {limit} processes are traced already")]
    TooMany {
        /// The process.
        pid: u32,
        /// The limit.
        limit: u32,
    },
    /// What the probes read makes no sense.
    #[error(
        "process {pid}: {go_version}: the runtime's structures are not laid out as gotrace expects ({source_} \
         offsets): {why}"
    )]
    Implausible {
        /// The process.
        pid: u32,
        /// Its version of Go.
        go_version: String,
        /// Where the offsets came from.
        source_: String,
        /// What was found.
        why: String,
    },
    /// The program does not tell what its goroutines can be read by.
    #[error("process {pid}: {error}")]
    Unreadable {
        /// The process.
        pid: u32,
        /// Why not.
        error: SnapshotError,
    },
    /// The event log cannot be written.
    #[error("cannot record events to {path}: {error}")]
    Record {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Waiting for the ring failed.
    #[error("cannot wait for events: {0}")]
    Ring(std::io::Error),
}

impl LineError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Process(e) => e.exit_code(),
            Self::Program { .. } | Self::NoProbe { .. } | Self::Implausible { .. } => 4,
            Self::Kernel(e) => e.exit_code(),
            Self::Unreadable { error, .. } => error.exit_code(),
            Self::TooMany { .. } | Self::Record { .. } | Self::Ring(_) => 1,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Process(e) => e.help(),
            Self::Kernel(e) => Some(e.help().into()),
            Self::Program { error, .. } => Some(error.help().into()),
            Self::NoProbe { .. } => Some("`gotrace inspect` shows what was found in the file".into()),
            Self::Implausible { .. } => Some(
                "`gotrace inspect` shows the offsets; a build of Go that changes them cannot be traced, nor a \
                 process whose executable on disk is not the one that runs"
                    .into(),
            ),
            Self::Unreadable { error, .. } => error.help(),
            Self::TooMany { .. } => None,
            Self::Record { .. } => Some("choose another place with --record".into()),
            Self::Ring(_) => None,
        }
    }
}
