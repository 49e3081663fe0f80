//! What probes cost with 1, 10, 50 and 200 processes of one file under `gotrace daemon`: a hit, as one of them
//! measures it; attaching to all and leaving all; descriptors and kernel memory. By links and by perf events; each
//! figure beside that of one process.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Binaries, Extent,
    agent::milliseconds,
    daemon::{Daemon, Place},
    median,
    process::{GoProgram, Work},
    report::Report,
};

/// Processes of one file.
const PROCESSES: [usize; 4] = [1, 10, 50, 200];

/// How probes are put in place: name, and the variable that asks for it.
const WAYS: [(&str, &[(&str, &str)]); 2] = [("links", &[]), ("perf events", &[("GOTRACE_UPROBES", "perf")])];

/// How long attaching or leaving may take: perf events go one after the other.
const PATIENCE: Duration = Duration::from_secs(600);
/// Time for the first snapshots to be over.
const SETTLING: Duration = Duration::from_secs(3);

/// What is measured of one number of processes.
#[derive(Clone, Copy)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    value: f64,
}

/// Takes all figures.
pub fn measure(binaries: &Binaries, extent: Extent, target: &Path, report: &mut Report) -> Result<()> {
    let place = Place::new(&target.join("bench-probes"))?;
    let file = place.files(&binaries.program, "program", 1)?.pop().context("a file")?;
    for (way, variables) in WAYS {
        let mut one: Option<Vec<Figure>> = None;
        for count in PROCESSES {
            let figures = with(count, &file, &place, binaries, extent, variables)
                .with_context(|| format!("{count} processes, {way}"))?;
            for (i, Figure { name, unit, value }) in figures.iter().copied().enumerate() {
                let baseline = one.as_ref().map(|of_one| of_one[i].value);
                report.add(format!("probes, {way}: {name}, {count} processes"), unit, value, baseline, None);
            }
            one.get_or_insert(figures);
        }
    }
    Ok(())
}

/// Starts so many processes and the daemon over them.
fn with(
    count: usize,
    file: &Path,
    place: &Place,
    binaries: &Binaries,
    extent: Extent,
    variables: &[(&str, &str)],
) -> Result<Vec<Figure>> {
    let mut programs = (0..count).map(|_| GoProgram::start(file, 1)).collect::<Result<Vec<_>>>()?;
    let samples = |program: &mut GoProgram| -> Result<[f64; 2]> {
        let mut all: [Vec<f64>; 2] = Default::default();
        for _ in 0..extent.pairs {
            for (work, all) in Work::ALL.into_iter().zip(&mut all) {
                all.push(program.sample(work, extent.sample)?);
            }
        }
        Ok(all.map(median))
    };
    let first = programs.first_mut().context("a process")?;
    let without = samples(first)?;
    let before = kernel_memory()?;
    let config = place.config("level: full, reconcile: 0", None)?;
    let begun = Instant::now();
    let daemon = Daemon::start_with(&binaries.gotrace, &config, variables)?;
    daemon.until(PATIENCE, "all processes are traced", |page| {
        page.sum("gotrace_processes", "gotrace_engine=\"events\"") == count as f64
    })?;
    let attached = begun.elapsed();
    thread::sleep(SETTLING);
    let under = samples(first)?;
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count();
    let locked = locked_memory(daemon.pid())?;
    let after = kernel_memory()?;
    let detached = daemon.end_within(PATIENCE)?;
    let figures = [
        (Work::ALL[0].name(), "ns", under[0] - without[0]),
        (Work::ALL[1].name(), "ns", under[1] - without[1]),
        ("attach", "ms", milliseconds(attached)),
        ("leave and end", "ms", milliseconds(detached)),
        ("descriptors", "fds", descriptors as f64),
        ("memory of maps and programs", "MiB", locked / MIB),
        ("kernel memory of the machine", "MiB", (after - before) / MIB),
    ];
    programs.into_iter().try_for_each(GoProgram::end)?;
    Ok(figures.map(|(name, unit, value)| Figure { name, unit, value }).into())
}

const MIB: f64 = 1024.0 * 1024.0;

/// Bytes of eBPF maps and programs that a process has descriptors of, as the kernel accounts for them.
fn locked_memory(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that is closed meanwhile is not counted.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<f64>().ok());
        sum += bytes.unwrap_or(0.0);
    }
    Ok(sum)
}

/// Bytes that the kernel holds for itself, on the whole machine: what else it does is in there too.
fn kernel_memory() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<f64>().ok()
    };
    let parts = ["SUnreclaim:", "Percpu:", "KernelStack:", "PageTables:"];
    Ok(parts.into_iter().filter_map(of).sum::<f64>() * 1024.0)
}
