//! A process's memory, read without stopping it: its goroutines and their stacks ([`snapshot`]), what its heap
//! refers to and what that proves ([`heap`]), verdicts from a series of snapshots ([`leak`]), and the one examination
//! that all of them come to ([`examine`]).

pub mod examine;
pub mod heap;
pub mod leak;
pub mod snapshot;
