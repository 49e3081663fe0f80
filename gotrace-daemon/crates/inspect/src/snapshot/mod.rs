//! Goroutines out of memory: every goroutine of a running process with its full stack, without eBPF and
//! without stopping it.
//!
//! Input: a parsed [`Binary`](gotrace_go::Binary), where it is mapped, and a `ReadMemory`: a living
//! process or a saved image. Output: a [`Snapshot`]. The process runs on meanwhile; each goroutine is
//! looked at before and after its stack is read, one that moved is read again, and one that does not stand
//! still is reported as running without a stack. Refuses what does not look like a Go runtime of that
//! version. No memory, however hostile, makes it panic, loop, or allocate without bound.

mod arguments;
#[cfg(test)]
mod builder;
mod coroutines;
mod descriptors;
mod engine;
mod error;
mod image;
mod labels;
mod layout;
mod live;
mod live_words;
mod merge;
mod model;
mod names;
mod outside;
mod pieces;
mod reader;
mod references;
mod seen;
mod semaphores;
mod standing;
mod times;
mod until;
mod unwind;
mod waits;

pub use arguments::Arguments;
#[cfg(test)]
pub(crate) use builder::Builder;
pub use engine::Engine;
pub use error::SnapshotError;
pub use image::{Image, Recording};
pub use live::Live;
pub use live_words::{G_HEAD, LiveFrames, LiveWord};
pub use model::{
    Counts, Goroutine, LabelSet, LabelsId, ObjectId, ObjectKind, Op, Snapshot, StackFrame, StackId, Stacks,
    Status, Wait, WaitObject, WaitRange,
};

pub(crate) use layout::{half as half_at, word as word_at};
pub use names::{NamedFrame, Names};
pub use outside::Outside;
pub(crate) use pieces::Pieces;
pub use references::{Reference, References, Suspect};
pub use semaphores::Semaphores;
pub use standing::{Record, Standing, Standings, Stood, Survey};
pub use until::{End, Until};

/// What to read. The default is everything but arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Stacks; without them about twice as fast.
    pub stacks: bool,
    /// What goroutines wait on.
    pub waits: bool,
    /// pprof labels.
    pub labels: bool,
    /// What functions were called with; needs stacks.
    pub arguments: bool,
    /// Without stacks: those of goroutines whose stack alone tells what they run ([`Names::runs_entry`]).
    pub callees: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { stacks: true, waits: true, labels: true, arguments: false, callees: false }
    }
}
