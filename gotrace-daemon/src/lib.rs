//! The command `gotrace`: its command line and its configuration file. What it is made of is in `crates/`.
//!
//! The rooms and what each may depend on are in the README's map of the code.

// Where stderr cannot be written, these panic; `cli::say` does not.
#![warn(clippy::print_stderr, clippy::print_stdout)]

pub mod cli;
pub mod config;
mod units;
