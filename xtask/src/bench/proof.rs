//! What a pass of the proof over a large heap takes, beside the program's own collector and its own profile of
//! leaked goroutines in the same run: time, the longest pause of a goroutine that ticks meanwhile, the agent's
//! memory, and whether a bound of the rate of reading is kept.
//!
//! The heap is made of maps, trees, lists and slices (`tests/go/bench/heap.go`). Half of the goroutines that wait for
//! others are leaked, and the pass must find at least nine tenths of those and none else.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Binaries, Extent, median,
    process::{GoProgram, Speaking},
    report::{Bar, Report},
    snapshot::{Goes, alone, grouped, pause, pause_ms},
};

const MIB: f64 = (1 << 20) as f64;
/// Heaps, in MiB. The last is left out where there is too little memory for it, and of a quick run.
const HEAPS_MIB: [u64; 3] = [64, 1024, 4096];
/// Goroutines that wait for others.
const CANDIDATES: [usize; 2] = [1_000, 100_000];
/// The heap that is held against the bar of time.
const HELD_MIB: u64 = 1024;
/// Most milliseconds of a pass over that.
const PASS_MS: f64 = 1500.0;
/// Most memory of the agent, in MiB: a part of the heap, and so much more.
const OF_HEAP: f64 = 1.0 / 16.0;
const BESIDE_MIB: f64 = 64.0;
/// A second pass takes as long as the first, but for what clocks and other programs do.
const SECOND: f64 = 1.1;
/// Bytes a second that one measurement may read at most, and how far beyond that may be: what may be read at once.
const RATE: u64 = 64 << 20;
const RATE_SLACK: f64 = 1.05;

/// Passes over heaps of several sizes.
pub fn measure(binaries: &Binaries, extent: Extent, report: &mut Report) -> Result<()> {
    for mib in HEAPS_MIB {
        // The program takes up to twice its heap.
        let (needed, there) = (2.25 * mib as f64, available_mib()?);
        if mib > HELD_MIB && extent.snapshots < 2 {
            println!("  a heap of {mib} MiB: not measured in a quick run");
            continue;
        }
        if there < needed {
            println!(
                "  SKIPPED: a heap of {mib} MiB needs {needed:.0} MiB of memory, and {there:.0} are free"
            );
            continue;
        }
        // Two, so that its own collector does not wait for the goroutine that ticks.
        let mut program = GoProgram::start(&binaries.program, 2)?;
        // In steps, each of which takes less time than any answer may.
        let mut heap_mib = 0.0;
        for step in 1..=mib.div_ceil(HELD_MIB) {
            let bytes = (step * HELD_MIB).min(mib) << 20;
            heap_mib = field(&program.ask(&format!("grow {bytes}"))?, "count")? / MIB;
        }
        let mut waiting = 0;
        for candidates in CANDIDATES {
            program.ask(&format!("wait {}", candidates - waiting))?;
            waiting = candidates;
            println!("  a heap of {heap_mib:.0} MiB, {} goroutines that wait", grouped(candidates));
            at_size(&mut program, binaries, extent, (mib, heap_mib, candidates), report)?;
        }
        if mib == HEAPS_MIB[0] {
            at_rate(&program, binaries, report)?;
        }
    }
    Ok(())
}

fn at_size(
    program: &mut GoProgram,
    binaries: &Binaries,
    extent: Extent,
    (mib, heap_mib, candidates): (u64, f64, usize),
    report: &mut Report,
) -> Result<()> {
    let name = format!("heap of {mib} MiB, {} candidates", grouped(candidates));
    let (mut first, mut second, mut again) = (Goes::default(), Goes::default(), Goes::default());
    let (mut read, mut found, mut retained) = (Vec::new(), 0.0, Vec::new());
    for _ in 0..extent.snapshots {
        let mut agent = Speaking::start(Command::new(&binaries.proofs).arg(program.pid().to_string()))?;
        agent.json().context("proof-rate could not begin")?;
        for goes in [&mut first, &mut second] {
            let told = go(program, &mut agent, goes)?;
            found = field(&told, "unreached")?;
            read.push(field(&told, "bytes_read")? / MIB);
            let (all, leaked) = (field(&told, "candidates")?, candidates as f64 / 2.0);
            ensure!(
                all >= candidates as f64 && found <= leaked && found >= 0.9 * leaked,
                "of {candidates} goroutines that wait, half of them leaked, a pass tells {told}"
            );
        }
        // A pause has to be seen often to be told from the machine's own.
        let more = if mib <= HELD_MIB { extent.pairs } else { 1 };
        for _ in 0..more {
            go(program, &mut agent, &mut again)?;
        }
        agent.tell("retained")?;
        retained.push(field(&agent.json()?, "ms")?);
        agent.hush();
        agent.end()?;
    }
    let held = mib == HELD_MIB;
    for (goes, again) in [(&first, "first pass"), (&second, "second pass")] {
        let label = format!("{name}: {again}");
        let most = held.then_some(Bar::AtMost(PASS_MS));
        report.add(&label, "ms", median(goes.ms.clone()), None, most);
        report.add(format!("{label}: processor time"), "ms", median(goes.cpu_ms.clone()), None, None);
        pause(&label, goes, false, report);
    }
    let passes = again.ms.len();
    pause(&format!("{name}: {passes} passes more"), &again, true, report);
    let (one, two) = (median(first.ms.clone()), median(second.ms.clone()));
    report.add(
        format!("{name}: second pass beside the first"),
        "ms",
        two,
        Some(one),
        Some(Bar::RatioAtMost(SECOND)),
    );
    let most = Bar::AtMost((heap_mib * OF_HEAP + BESIDE_MIB).round());
    let peak = first.peak_mib.max(second.peak_mib);
    report.add(format!("{name}: agent's memory"), "MiB", peak, None, Some(most));
    report.add(format!("{name}: read in a pass"), "MiB", median(read), Some(heap_mib), None);
    report.add(format!("{name}: what leaked ones retain"), "ms", median(retained), None, None);

    for (command, text) in [("gc", "runtime.GC()"), ("leaked", "its own goroutineleak profile")] {
        let mut goes = Goes::default();
        let mut count = 0.0;
        for _ in 0..extent.snapshots {
            goes.noise_ms.push(alone(program, goes.ms.last().copied().unwrap_or(100.0))?);
            let answer = program.ask(command)?;
            goes.ms.push(field(&answer, "wall_ns")? / 1e6);
            goes.cpu_ms.push(field(&answer, "cpu_ns")? / 1e6);
            goes.pause_ms.push(field(&answer, "pause_ns")? / 1e6);
            count = field(&answer, "count")?;
        }
        let label = format!("{name}: {text}");
        report.add(&label, "ms", median(goes.ms.clone()), None, None);
        report.add(format!("{label}: processor time"), "ms", median(goes.cpu_ms.clone()), None, None);
        pause(&label, &goes, false, report);
        if command == "leaked" {
            let label = format!("{name}: leaked goroutines found, beside its own profile");
            report.add(label, "goroutines", found, Some(count), None);
        }
    }
    Ok(())
}

/// One pass, after as long without one.
fn go(program: &mut GoProgram, agent: &mut Speaking, goes: &mut Goes) -> Result<Value> {
    goes.noise_ms.push(alone(program, goes.ms.last().copied().unwrap_or(100.0))?);
    program.ask("pause")?;
    agent.tell("pass")?;
    let answer = agent.json()?;
    // A pause that lasts until the end is noted only when it is over.
    thread::sleep(Duration::from_millis(1));
    goes.pause_ms.push(pause_ms(program)?);
    goes.ms.push(field(&answer, "ms")?);
    goes.cpu_ms.push(field(&answer, "cpu_ms")?);
    goes.peak_mib = goes.peak_mib.max(field(&answer, "peak_mib")?);
    ensure!(field(&answer, "void")? == 0.0, "a pass over a program that stands still told nothing: {answer}");
    Ok(answer)
}

/// A pass whose rate of reading is bounded.
fn at_rate(program: &GoProgram, binaries: &Binaries, report: &mut Report) -> Result<()> {
    let arguments = [program.pid().to_string(), RATE.to_string()];
    let mut agent = Speaking::start(Command::new(&binaries.proofs).args(arguments))?;
    agent.json().context("proof-rate could not begin")?;
    let begin = Instant::now();
    agent.tell("pass")?;
    let told = agent.json()?;
    let rate = field(&told, "bytes_read")? / begin.elapsed().as_secs_f64() / MIB;
    agent.hush();
    agent.end()?;
    let most = (RATE >> 20) as f64;
    let label = format!("a pass with --max-read-rate {most:.0} MiB: read a second");
    report.add(label, "MiB/s", rate, Some(most), Some(Bar::RatioAtMost(RATE_SLACK)));
    Ok(())
}

fn field(answer: &Value, name: &str) -> Result<f64> {
    answer[name].as_f64().with_context(|| format!("{name} of {answer}"))
}

fn available_mib() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    Ok(line.and_then(|l| l.parse::<f64>().ok()).context("/proc/meminfo has no MemAvailable")? / 1024.0)
}
