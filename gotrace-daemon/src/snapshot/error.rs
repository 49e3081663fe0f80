//! Why there is no snapshot.

use crate::process::ProcessError;

/// Why a process's goroutines cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The process, or its memory.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The program does not tell where its list of goroutines is.
    #[error(
        "the runtime's list of goroutines was not found: neither a symbol runtime.allglen and \
         runtime.allgptr, nor the code of runtime.forEachGRace or runtime.atomicAllG that reads them"
    )]
    NoAllgs,
    /// A field that is needed has no known place in this version of Go.
    #[error("the place of {field} is not known for {version}")]
    NoField {
        /// The field (`g.goid`).
        field: &'static str,
        /// The version.
        version: String,
    },
    /// What was read is not what a Go runtime of that version holds.
    #[error("the goroutines do not look like those of {version}: {why}")]
    Implausible {
        /// The version that the executable names.
        version: String,
        /// What was found where.
        why: String,
    },
    /// Its runtime has not made its first goroutine.
    #[error("the program has no goroutines yet: its Go runtime has not started")]
    NotStarted,
    /// A saved image is not one.
    #[error("not a memory image of gotrace: {what}")]
    Image {
        /// What is wrong.
        what: String,
    },
}

impl SnapshotError {
    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Process(e) => e.help(),
            Self::NoAllgs | Self::NoField { .. } => {
                Some("`gotrace inspect` shows what is known of the program".into())
            }
            Self::Implausible { .. } => Some(
                "the executable on disk may not be the one that runs, or the program's Go is newer than this \
                 gotrace or changed; `gotrace inspect` shows what is known of it"
                    .into(),
            ),
            Self::NotStarted => Some("try again: the process has only just been started".into()),
            Self::Image { .. } => None,
        }
    }

    /// gotrace's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Process(e) => e.exit_code(),
            Self::NoAllgs | Self::NoField { .. } | Self::Implausible { .. } => 4,
            Self::NotStarted | Self::Image { .. } => 1,
        }
    }
}
