//! What counting CPU time costs a thread of a program that is not traced, at each switch: two threads on one CPU that wake
//! each other, without gotrace and beside it, by interleaved pairs.

use std::{
    io::{Read as _, Write as _, pipe},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::{
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

use super::{
    Binaries, Extent, median,
    observer::attach,
    process::GoProgram,
    report::{Bar, Report},
};

/// Of a foreign switch, in nanoseconds.
const MOST_NS: f64 = 250.0;

/// Takes the samples and adds their medians to the report.
pub fn measure(program: &GoProgram, binaries: &Binaries, extent: Extent, report: &mut Report) -> Result<()> {
    let (mut without, mut added, mut hits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..extent.pairs {
        let before = nanoseconds_a_switch(extent.sample)?;
        let gotrace = attach(&binaries.gotrace, program.pid(), &["--level", "waits"])?;
        added.push(nanoseconds_a_switch(extent.sample)? - before);
        without.push(before);
        gotrace.interrupt()?;
        let lines = gotrace.end()?;
        let summary = lines.last().context("gotrace told nothing")?;
        let summary: serde_json::Value = serde_json::from_str(summary)?;
        hits.extend(summary["summary"]["cost_ns_per_event"].as_f64());
    }
    report.add("a switch of threads: untraced", "ns", median(without.clone()), None, None);
    let hit = Some(median(hits)).filter(|hit| *hit > 0.0);
    let added = median(added);
    report.add(
        "a switch of foreign threads: added by gotrace --level waits",
        "ns",
        added,
        Some(median(without)),
        Some(Bar::AtMost(MOST_NS)),
    );
    report.add("the same beside an event of the traced program", "ns", added, hit, None);
    Ok(())
}

/// CPU time of this process by the switches of two of its threads, which wake each other on one CPU.
fn nanoseconds_a_switch(length: Duration) -> Result<f64> {
    let (mut here, mut to_here) = pipe()?;
    let (mut there, mut to_there) = pipe()?;
    let other = thread::spawn(move || -> Result<()> {
        pin()?;
        let mut byte = [0];
        while there.read(&mut byte)? > 0 {
            to_here.write_all(&byte)?;
        }
        Ok(())
    });
    let own = thread::spawn(move || -> Result<f64> {
        pin()?;
        let (begin, began_ns) = (Instant::now(), cpu_ns());
        let mut rounds = 0u32;
        while begin.elapsed() < length {
            for _ in 0..64 {
                to_there.write_all(&[0])?;
                here.read_exact(&mut [0])?;
                rounds += 1;
            }
        }
        Ok((cpu_ns() - began_ns) as f64 / (2.0 * f64::from(rounds)))
    });
    let ended = |_| anyhow!("a thread panicked");
    let result = own.join().map_err(ended)?;
    other.join().map_err(ended)??;
    result
}

/// Has this thread run on the first CPU.
fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus).context("cannot run on the first CPU alone")
}

/// CPU time of this process.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
