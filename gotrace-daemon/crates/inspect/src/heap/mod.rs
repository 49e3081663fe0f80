//! Proofs from the heap: which goroutines can never run again, shown from outside.
//!
//! A goroutine that waits for a channel or lock which nothing that can run refers to will not run again.
//! Input: the memory of a running process, its program, and where that is mapped. Output: the goids of such
//! goroutines, how many passes agree, what they keep alive, and what was counted on the way. The process is
//! not stopped. A word is a pointer where the runtime's own maps say so, or where there is none; whatever is not
//! understood can run, so that a leak may be missed and none is made up. Refuses versions of Go that are not known.

mod bits;
mod describe;
mod error;
mod evidence;
mod free;
mod holders;
mod keepers;
mod layout;
mod mark;
mod modules;
mod objects;
mod pass;
mod prove;
mod retain;
mod roots;
mod shapes;
mod spans;
mod stacks;
mod table;
#[cfg(test)]
mod tests;
mod throttle;
mod together;
mod types;
mod variables;
mod waiting;
mod why;

pub use describe::What;
pub use error::HeapError;
pub use evidence::{CandidateEvidence, Outcome, PassEvidence, RootEvidence};
pub use holders::{Evidence, LockHolder};
pub use keepers::{Members, Pool, Pools};
pub use prove::{PASSES, Proof, Proven, Prover, Unreachable};
pub use retain::Retained;
pub use throttle::Throttled;
pub use waiting::Addresses;
pub use why::{Holder, Link, Path, Why};
