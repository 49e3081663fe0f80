//! Why there is no snapshot.

use gotrace_process::ProcessError;

/// Why a process's goroutines cannot be read.
#[derive(Debug, thiserror::Error)]
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
    #[error("the offset of {field} is not known for {version}")]
    NoField {
        /// The field (`g.goid`).
        field: &'static str,
        /// The version.
        version: String,
    },
    /// What was read is not what a Go runtime of that version holds.
    #[error("the goroutine layout does not match {version}: {why}")]
    Implausible {
        /// The version that the executable names.
        version: String,
        /// What was found where.
        why: String,
    },
    /// Its runtime has not made its first goroutine.
    #[error("the Go runtime has not started yet")]
    NotStarted,
    /// There are more goroutines than there is memory for.
    #[error(
        "its {count} goroutines are too many for the memory that they may take: room for {most} (limits.memory)"
    )]
    TooMany {
        /// Goroutines, or entries of the runtime's list.
        count: u64,
        /// How many there is room for.
        most: u64,
    },
    /// gotrace itself failed while it read.
    #[error("gotrace panicked while reading goroutines, which is a bug; see the message above")]
    Panicked,
    /// A saved image is not one.
    #[error("not a gotrace memory image: {what}")]
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
                Some("`gotrace inspect` shows the offsets known for the program".into())
            }
            Self::Implausible { .. } => Some(
                "the executable on disk may have been replaced, or its Go version is modified or newer than this gotrace \
                 supports; `gotrace inspect` shows the known offsets"
                    .into(),
            ),
            Self::NotStarted => Some("try again; the process has just been started".into()),
            Self::TooMany { .. } => Some("raise limits.memory, and the memory of gotrace's container".into()),
            Self::Panicked => Some("please report it with the message".into()),
            Self::Image { .. } => None,
        }
    }

    /// gotrace's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Process(e) => e.exit_code(),
            Self::NoAllgs | Self::NoField { .. } | Self::Implausible { .. } => 4,
            Self::NotStarted | Self::TooMany { .. } | Self::Panicked | Self::Image { .. } => 1,
        }
    }
}
