//! Takes snapshots of a running Go program, and says how long each took and how much memory that needed.
//!
//! Usage: `snapshot-rate PID [TIMES]`. Needs the right to read the process's memory.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use gotrace::{
    gobin::Binary,
    process::Target,
    snapshot::{Live, Options},
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pid = arguments.next().context("usage: snapshot-rate PID [TIMES]")?.parse()?;
    let times: u32 = arguments.next().map_or(Ok(3), |n| n.parse())?;
    let target = Target::open(pid)?;
    let binary = Arc::new(Binary::parse(&target.exe_bytes()?)?);
    let mut live = Live::new(&target, binary)?;
    let heads = Options { stacks: false, waits: false, labels: false, arguments: false };
    let stacks = Options { stacks: true, ..heads };
    for (what, options) in [("heads", heads), ("stacks", stacks), ("everything", Options::default())] {
        for _ in 0..times {
            let (begin, cpu) = (Instant::now(), cpu_ms());
            let snapshot = live.take(options)?;
            let (took, cpu) = (begin.elapsed(), cpu_ms() - cpu);
            println!(
                "{what}: {} goroutines, {} stacks, {} objects in {:.0} ms ({cpu:.0} ms of CPU); peak memory {} MiB; {:?}",
                snapshot.goroutines.len(),
                snapshot.stacks.len(),
                snapshot.objects.len(),
                took.as_secs_f64() * 1e3,
                peak_mib()?,
                snapshot.counts,
            );
        }
    }
    Ok(())
}

fn cpu_ms() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
}

fn peak_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).context("no peak in /proc/self/status")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kib / 1024)
}
