//! Helpers for gotrace's live tests and virtual-machine tests: building the Go programs under
//! `tests/go`, running them and `gotrace` beside them, and holding the one's account against the
//! other's.
//!
//! Nothing here skips in silence: a missing tool is an error that says which command installs it.

pub mod bare;
pub mod cluster;
pub mod code;
pub mod compare;
pub mod container;
pub mod cpu;
pub mod daemon;
pub mod demo;
pub mod dump;
pub mod export;
pub mod faults;
pub mod fixture;
pub mod fuse;
pub mod gobuild;
pub mod gotrace;
pub mod guide;
pub mod harm;
pub mod http;
pub mod leaks;
pub mod live;
pub mod manifests;
pub mod memory;
pub mod patterns;
pub mod ports;
pub mod quota;
pub mod receiver;
pub mod recording;
pub mod requests;
pub mod rotel;
pub mod running;
pub mod server;
pub mod soak;
pub mod spans_rate;
pub mod speaking;
pub mod stacks;
pub mod terminal;
pub mod traceback;
pub mod vm;
