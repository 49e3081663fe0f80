//! `cargo xtask bench`: what gotrace costs the traced program and takes itself, held against its bars.
//!
//! Measures everything in one run on one machine: medians over interleaved pairs (without, with), so
//! that what else the machine does touches both alike. Costs to the traced program are its processor
//! time. Needs root, Go and bpftrace (installed where missing). Prints a table and writes
//! `target/bench.json`. A bar that is missed is a line that says so, not a failure.

mod agent;
mod collector;
mod cost;
mod daemon;
mod observer;
mod probes;
mod process;
mod programs;
mod proof;
mod report;
mod requests;
mod snapshot;
mod switches;

use std::{env, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    setup,
    util::{apt_install, root, run},
};
use process::GoProgram;
use report::Report;

/// How long to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Fewer and shorter samples: the figures vary more
    #[arg(long)]
    quick: bool,
    /// Measure only these parts, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
}

/// A part that can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What probes cost the program
    Cost,
    /// What tracing requests costs a server
    Requests,
    /// What counting CPU time costs other programs at each switch of threads
    CpuTime,
    /// Time to attach and to detach
    Attach,
    /// gotrace's processor time and memory under load
    Load,
    /// The rate from the ring to the table, and the table's memory
    Table,
    /// The exporter's rate
    Spans,
    /// Snapshots of up to a million goroutines
    Snapshot,
    /// Passes of the proof of leaks over heaps of up to 4 GiB
    Proof,
    /// An OpenTelemetry Collector between gotrace and where spans go
    Collector,
    /// The node agent with 50 processes, and with 100 binaries
    Daemon,
    /// A hit, attaching and detaching with 1 to 200 processes of one file, by links and by perf events
    Probes,
}

impl Part {
    /// Whether programs of `gotrace-tests` take part.
    fn has_helpers(self) -> bool {
        match self {
            Self::Load | Self::Table | Self::Spans | Self::Snapshot | Self::Proof | Self::Collector => true,
            Self::Cost | Self::Requests | Self::CpuTime | Self::Attach | Self::Daemon | Self::Probes => false,
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Interleaved pairs for each figure.
    pairs: usize,
    /// Length of a sample.
    sample: Duration,
    /// Length of the run under load.
    load: Duration,
    /// Spans of a measurement of the exporter.
    spans: usize,
    /// Snapshots for each figure.
    snapshots: usize,
}

/// The binaries that are measured.
struct Binaries {
    gotrace: PathBuf,
    line: PathBuf,
    spans: PathBuf,
    snapshots: PathBuf,
    proofs: PathBuf,
    collector: PathBuf,
    program: PathBuf,
}

/// Runs `cargo xtask bench`.
pub fn main(options: &Options) -> Result<()> {
    let extent = if options.quick {
        Extent {
            pairs: 3,
            sample: Duration::from_millis(200),
            load: Duration::from_secs(4),
            spans: 200_000,
            snapshots: 1,
        }
    } else {
        Extent {
            pairs: 9,
            sample: Duration::from_millis(500),
            load: Duration::from_secs(15),
            spans: 500_000,
            snapshots: 3,
        }
    };
    // The baseline of these.
    let with_bpftrace = [Part::Cost, Part::Requests].iter().any(|part| options.only.contains(part));
    if options.only.is_empty() || with_bpftrace {
        apt_install(&["bpftrace"])?;
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    println!("building gotrace for release");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["build", "--release", "--locked", "-p", "gotrace-daemon", "--bins"]);
    if options.only.is_empty() || options.only.iter().any(|part| part.has_helpers()) {
        cargo.args(["-p", "gotrace-tests"]);
    }
    // What cargo tells the programs that it runs makes some dependencies build anew.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    run(&mut cargo)?;
    let release = target.join("release");
    let binaries = Binaries {
        gotrace: release.join("gotrace"),
        line: release.join("bench-line"),
        spans: release.join("spans-rate"),
        snapshots: release.join("snapshot-rate"),
        proofs: release.join("proof-rate"),
        collector: release.join("collector-rate"),
        program: build_go("bench", &target)?,
    };
    let mut report = Report::default();
    // Each part leaves nothing behind, also when it fails: what it started ends with it.
    let wanted = |part: Part| options.only.is_empty() || options.only.contains(&part);
    let mut program = GoProgram::start(&binaries.program, 1)?;
    println!("measuring in {} on {}", program.go_version, machine());
    if wanted(Part::Cost) {
        println!("what probes cost the program, {} pairs", extent.pairs);
        cost::measure(&mut program, &binaries, extent, &mut report)?;
    }
    if wanted(Part::Requests) {
        println!("what tracing requests costs a server");
        requests::measure(&binaries, extent, &target, &mut report)?;
    }
    if wanted(Part::CpuTime) {
        println!("what counting CPU time costs others");
        switches::measure(&program, &binaries, extent, &mut report)?;
    }
    if wanted(Part::Attach) {
        println!("attaching and detaching");
        agent::attach_and_detach(&program, &binaries, extent, &mut report)?;
    }
    if wanted(Part::Load) {
        println!("gotrace at 10,000 goroutines a second for {:?}", extent.load);
        agent::under_load(&mut program, &binaries, extent, &mut report)?;
    }
    if wanted(Part::Table) {
        println!("from the ring to the table");
        agent::table(&mut program, &binaries, extent, &target, &mut report)?;
    }
    drop(program);
    if wanted(Part::Spans) {
        println!("spans to a collector");
        agent::spans(&binaries, extent, &mut report)?;
    }
    if wanted(Part::Snapshot) {
        println!("snapshots beside the program's own profile");
        snapshot::measure(&binaries, extent, &target, &mut report)?;
    }
    if wanted(Part::Proof) {
        println!("the proof of leaks beside the program's own");
        proof::measure(&binaries, extent, &mut report)?;
    }
    if wanted(Part::Daemon) {
        println!("the node agent");
        daemon::measure(&binaries, extent, &target, &mut report)?;
    }
    if wanted(Part::Probes) {
        println!("probes in up to 200 processes of one file");
        probes::measure(&binaries, extent, &target, &mut report)?;
    }
    if wanted(Part::Collector) {
        println!("spans through an OpenTelemetry Collector");
        collector::measure(&binaries, extent, &target, &mut report)?;
    }
    let path = target.join("bench.json");
    report.write(&path)?;
    println!("\n{report}\nwritten to {}", path.display());
    Ok(())
}

/// Builds a program of `tests/go` with the newest Go.
fn build_go(program: &str, target: &std::path::Path) -> Result<PathBuf> {
    let version = setup::GO_VERSIONS.last().context("no Go version is named in setup.rs")?;
    let out = target.join("fixtures").join(program).join(format!("go{version}"));
    run(Command::new("go")
        .current_dir(root().join("tests/go").join(program))
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&out)
        .arg(".")
        .env("GOTOOLCHAIN", format!("go{version}"))
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .env_remove("GOFLAGS"))
    .with_context(|| format!("building tests/go/{program} (`cargo xtask setup` installs Go)"))?;
    Ok(out)
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|l| Some(l.strip_prefix("model name")?.trim_start_matches([' ', '\t', ':']).to_owned()))
        .unwrap_or_else(|| env::consts::ARCH.into());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{cpus} × {model}, Linux {}, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}

/// The middle one; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
