//! Why nothing can be proved of a process.

use crate::{process::ProcessError, snapshot::SnapshotError};

/// Why the heap of a process cannot be marked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeapError {
    /// The process, or its memory.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its goroutines cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The layout of the runtime's structures is not known for this version.
    #[error("the heap of {version} is not known to this gotrace: nothing can be proved of it")]
    Unknown {
        /// The version that the executable names.
        version: String,
    },
    /// The executable does not tell where its variables are.
    #[error("the module data of the Go runtime was not found in the executable: nothing can be proved")]
    NoModule,
    /// What was read is not what a heap of that version looks like.
    #[error("the heap does not look like that of {version}: {why}")]
    Implausible {
        /// The version that the executable names.
        version: String,
        /// What was found.
        why: String,
    },
}

impl HeapError {
    /// Whether the process is gone or may not be read, rather than that its heap is not understood.
    #[must_use]
    pub const fn is_of_process(&self) -> bool {
        matches!(self, Self::Process(_) | Self::Snapshot(SnapshotError::Process(_)))
    }
}
