//! The processes that are traced: who they are, whether they still live, their files and memory, and
//! starting one with the probes in place.
//!
//! Reads `/proc` and uses pidfds; refuses to stop, signal or write to a process that it did not start.
//! Input: a pid or a command. Output: [`Target`], [`Memory`], [`Watch`], [`Spawned`], or a
//! [`ProcessError`] that says what to do.

mod clock;
mod error;
mod memory;
mod resource;
mod signals;
mod spawn;
mod target;
mod watch;

pub use clock::Clock;
pub use error::ProcessError;
pub use memory::{Memory, Piece, ReadMemory};
pub use resource::{GoFacts, ResourceOptions, resource};
pub use signals::Forwarder;
pub use spawn::{ExecutableKind, SpawnError, Spawned};
pub use target::{Identity, MAX_EXECUTABLE_BYTES, Mapping, Target, parent_of};
pub use watch::Watch;
