//! gotrace: traces the goroutines of running Go programs from outside.
//!
//! The rooms and what each may depend on are in the README's map of the code.

pub mod cli;
pub mod config;
pub mod decode;
pub mod enrich;
pub mod eventlog;
pub mod gobin;
pub mod heap;
pub mod ids;
pub mod kernel;
pub mod leak;
pub mod level;
pub mod pipeline;
pub mod printable;
pub mod private;
pub mod process;
pub mod sink;
pub mod snapshot;
pub mod symbolize;
pub mod table;
pub mod ui;
mod units;
