//! gotrace's chores: `cargo xtask …`. One file a subcommand; each says what it needs and installs it.

mod arm64;
mod bench;
mod cluster;
mod collector;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod kernels;
mod licences;
mod lines;
mod packages;
mod page;
mod pictures;
mod sbom;
mod setup;
mod svg;
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
    /// Measure what gotrace costs and takes, and hold it against its bars
    Bench(bench::Options),
    /// Build the eBPF objects, or check that the committed ones belong to the sources
    Ebpf {
        #[command(subcommand)]
        action: ebpf::Action,
    },
    /// Build the page that the daemon serves, or check that the committed one belongs to its sources
    Page {
        #[command(subcommand)]
        action: page::Action,
    },
    /// Make the README's pictures: the terminal view and the page, on the demo's program
    Pictures,
    /// Let libFuzzer try everything that parses
    Fuzz(fuzz::Options),
    /// Check the licences of everything that gotrace is made of
    Licences,
    /// Count the lines of code of each package, without tests, comments and blank lines
    Lines,
    /// Build what users download: static binary with man pages and completions as an archive, .deb, image, chart, SBOM
    Dist(dist::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Setup => setup::main(),
        Chore::Demo(options) => demo::main(&options),
        Chore::Test(options) => test::main(&options),
        Chore::Bench(options) => bench::main(&options),
        Chore::Ebpf { action } => ebpf::main(action),
        Chore::Page { action } => page::main(action),
        Chore::Pictures => pictures::main(),
        Chore::Fuzz(options) => fuzz::main(&options),
        Chore::Licences => licences::main(),
        Chore::Lines => lines::main(),
        Chore::Dist(options) => dist::main(&options),
    }
}
