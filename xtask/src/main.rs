//! gotrace's chores: `cargo xtask …`. One file a subcommand; each says what it needs and installs it.

mod arm64;
mod demo;
mod ebpf;
mod kernels;
mod setup;
mod test;
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
    /// Install what building the eBPF objects and running all tests needs
    Setup,
    /// Build gotrace, start a small Go program, and show what gotrace sees of it
    Demo(demo::Options),
    /// Install what is missing and run all tests
    Test(test::Options),
    /// Build the eBPF objects, or check that the committed ones belong to the sources
    Ebpf {
        #[command(subcommand)]
        action: ebpf::Action,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Setup => setup::main(),
        Chore::Demo(options) => demo::main(&options),
        Chore::Test(options) => test::main(&options),
        Chore::Ebpf { action } => ebpf::main(action),
    }
}
