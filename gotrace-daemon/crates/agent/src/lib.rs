//! From the kernel's ring to the exporter's queue: decoding, the goroutine table, symbols, tracees, recordings of what
//! reaches them, and the pipeline that joins them with discovery, snapshots, proofs and the overhead budget.

pub mod decode;
pub mod pipeline;
pub mod recording;
pub mod symbolize;
pub mod table;
pub mod tracee;
