//! Takes snapshots of a running Go program on command, and says what each took: for `cargo xtask bench`.
//!
//! Usage: `snapshot-rate PID`. Each line on standard input is what to read, `heads`, `stacks` or
//! `everything`; each line on standard output its result in JSON. Ends when standard input does. Needs the
//! right to read the process's memory.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use gotrace_go::Binary;
use gotrace_inspect::snapshot::{Live, Options};
use gotrace_process::Target;
use serde_json::json;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pid = arguments.next().context("usage: snapshot-rate PID")?.parse()?;
    let begin = Instant::now();
    let target = Target::open(pid)?;
    let binary = Arc::new(Binary::parse(&target.exe_bytes()?)?);
    let mut live = Live::new(&target, binary)?;
    println!("{}", json!({ "prepare_ms": milliseconds(begin) }));
    let heads = Options { stacks: false, waits: false, labels: false, arguments: false, callees: false };
    for line in std::io::stdin().lines() {
        let line = line?;
        let options = match line.trim() {
            "heads" => heads,
            "stacks" => Options { stacks: true, ..heads },
            "everything" => Options::default(),
            other => bail!("it can read heads, stacks or everything, not {other:?}"),
        };
        let (begin, cpu) = (Instant::now(), cpu_ms());
        let snapshot = live.take(options)?;
        let (took, cpu) = (milliseconds(begin), cpu_ms() - cpu);
        let counts = snapshot.counts;
        let answer = json!({
            "ms": took,
            "cpu_ms": cpu,
            "goroutines": snapshot.goroutines.len(),
            "stacks": snapshot.stacks.len(),
            "objects": snapshot.objects.len(),
            "running": counts.running,
            "torn": counts.torn,
            "wrong": counts.stacks_missing + counts.stacks_incomplete + counts.unreadable + counts.implausible,
            "peak_mib": peak_mib()?,
        });
        println!("{answer}");
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn cpu_ms() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut t) };
    t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
}

fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).context("no peak in /proc/self/status")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kib / 1024.0)
}
