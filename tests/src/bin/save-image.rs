//! Saves the memory that a snapshot of a running Go program reads, for tests that have no process: the
//! images in `tests/images`. `tests/images/record.sh` says how those were made.
//!
//! Usage: `save-image PID EXECUTABLE OUT`. The executable is not read from the process, so that it can be
//! one that an emulator runs at its own addresses; a position-independent one is refused.

use std::{fs::File, sync::Arc};

use anyhow::{Context, Result, ensure};
use gotrace_go::Binary;
use gotrace_inspect::snapshot::{Engine, Options, Recording};
use gotrace_process::Target;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, executable, out] = &arguments[..] else {
        anyhow::bail!("usage: save-image PID EXECUTABLE OUT");
    };
    let memory = Target::open(pid.parse().context("PID is a number")?)?.memory();
    let bytes = std::fs::read(executable).with_context(|| format!("reading {executable}"))?;
    let binary = Binary::parse(&bytes)?;
    ensure!(!binary.build().pie, "{executable} is position-independent");
    let recording = Recording::new(&memory);
    let snapshot = Engine::new(Arc::new(binary), 0)?.take(&recording, Options::default())?;
    let image = recording.image(0);
    image.write(File::create(out)?)?;
    println!(
        "{} goroutines, {} bytes of memory: {:?}",
        snapshot.goroutines.len(),
        image.len(),
        snapshot.counts
    );
    Ok(())
}
