//! gotrace's chores: `cargo xtask …`. One file a subcommand; each says what it needs and installs it.

mod ebpf;
mod util;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// gotrace's chores
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Build the eBPF objects, or check that the committed ones belong to the sources
    Ebpf {
        #[command(subcommand)]
        action: ebpf::Action,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Ebpf { action } => ebpf::main(action),
    }
}
