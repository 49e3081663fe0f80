//! Marks the heap of a running Go program on command, and says what each pass took: for `cargo xtask bench`.
//!
//! Usage: `proof-rate PID [BYTES_PER_SECOND]`. Each line `pass` on standard input makes a pass, `retained` says what
//! those that it could not reach keep alive; each line on standard output is the result in JSON. Ends when standard
//! input does. Needs the right to read the process's memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, bail};
use gotrace_go::Binary;
use gotrace_inspect::{
    heap::{Prover, Throttled},
    snapshot::Live,
};
use gotrace_process::{Memory, Piece, ProcessError, ReadMemory, Target};
use serde_json::json;

/// Memory, and how much of it was asked for.
struct Counted<'a> {
    inner: &'a Memory,
    bytes: AtomicU64,
}

impl ReadMemory for Counted<'_> {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.inner.read_pieces(pieces, buffer, failed)
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pid = arguments.next().context("usage: proof-rate PID [BYTES_PER_SECOND]")?.parse()?;
    let rate: Option<u64> = arguments.next().map(|r| r.parse()).transpose()?;
    let begin = Instant::now();
    let target = Target::open(pid)?;
    let binary = Arc::new(Binary::parse(&target.exe_bytes()?)?);
    let bias = Live::new(&target, Arc::clone(&binary))?.bias();
    let inner = target.memory();
    let counted = Counted { inner: &inner, bytes: AtomicU64::new(0) };
    let memory = Throttled::new(&counted, rate);
    let mut prover = Prover::new(binary, bias)?;
    println!("{}", json!({ "prepare_ms": milliseconds(begin), "peak_mib": peak_mib()? }));
    for line in std::io::stdin().lines() {
        let line = line?;
        let (begin, cpu, before) = (Instant::now(), cpu_ms(), counted.bytes.load(Ordering::Relaxed));
        let mut retained = None;
        match line.trim() {
            "pass" => drop(prover.pass(&memory)?),
            "retained" => {
                let goids = prover.proof().unreachable.iter().map(|p| p.goid()).collect();
                retained = prover.retained(&memory, &[goids])?.leaked_bytes;
            }
            other => bail!("it can make a pass or tell what is retained, not {other:?}"),
        }
        let (took, cpu) = (milliseconds(begin), cpu_ms() - cpu);
        let last = prover.evidence().last().copied().unwrap_or_default();
        let answer = json!({
            "ms": took,
            "cpu_ms": cpu,
            "void": prover.proof().void,
            "goroutines": last.goroutines,
            "candidates": last.candidates,
            "unreached": last.unreached,
            "moved": last.moved,
            "proven": prover.proof().proven().count(),
            "settled": prover.proof().is_settled(),
            "heap_bytes": last.heap_bytes,
            "reached_bytes": last.reached_bytes,
            "reached_objects": last.reached_objects,
            "bytes_read": counted.bytes.load(Ordering::Relaxed) - before,
            "bytes_unreadable": last.bytes_unreadable,
            "retained_bytes": retained,
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
