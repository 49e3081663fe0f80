//! Why nothing can be proved of a process.

use crate::snapshot::SnapshotError;
use gotrace_process::ProcessError;

/// Why the heap of a process cannot be marked.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// The process, or its memory.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its goroutines cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The layout of the runtime's structures is not known for this version.
    #[error("this gotrace does not support the heap of {version}: no leak proof")]
    Unknown {
        /// The version that the executable names.
        version: String,
    },
    /// The executable does not tell where its variables are.
    #[error("module data of the Go runtime not found in the executable: no leak proof")]
    NoModule,
    /// Marking it takes more memory than there is.
    #[error("marking its heap takes {needed} MiB, of {room} MiB that it may take (limits.memory)")]
    TooLarge {
        /// MiB that it would take, at least.
        needed: u64,
        /// MiB that it may take.
        room: u64,
    },
    /// What was read is not what a heap of that version looks like.
    #[error("the heap layout does not match {version}: {why}")]
    Implausible {
        /// The version that the executable names.
        version: String,
        /// What was found.
        why: String,
    },
}

impl HeapError {
    /// Whether there is too little memory for it.
    #[must_use]
    pub const fn is_for_memory(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Snapshot(SnapshotError::TooMany { .. }))
    }

    /// Whether the process is gone or may not be read, rather than that its heap is not understood.
    #[must_use]
    pub const fn is_of_process(&self) -> bool {
        matches!(self, Self::Process(_) | Self::Snapshot(SnapshotError::Process(_)))
    }
}
