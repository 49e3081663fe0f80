//! What a snapshot of very many goroutines takes, beside the program's own goroutine profile in the same
//! run: time, the longest pause of a goroutine that ticks meanwhile, bytes, and the agent's memory.
//!
//! Before every measurement the same program is left alone for as long: the longest pause of that time is
//! the machine's noise, which the pause that is added is held against.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Binaries, Extent, median,
    process::{GoProgram, Speaking},
    report::{Bar, Report},
};

/// How many goroutines are parked, one measurement after the other.
const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Most milliseconds of a snapshot of the last size, with stacks, without, and repeated.
const WITH_STACKS_MS: f64 = 1200.0;
const WITHOUT_STACKS_MS: f64 = 600.0;
const REPEATED_MS: f64 = 800.0;
/// Most memory of the agent, in MiB.
const AGENT_MIB: f64 = 400.0;

/// Of so many goroutines a whole dump is written: a million have gigabytes of JSON.
const DUMPED_MOST: usize = 100_000;

/// What several goes at one thing came to.
#[derive(Default)]
pub(super) struct Goes {
    pub ms: Vec<f64>,
    pub cpu_ms: Vec<f64>,
    pub pause_ms: Vec<f64>,
    pub noise_ms: Vec<f64>,
    pub peak_mib: f64,
}

/// Parks goroutines in a program of its own, and measures at each size.
pub fn measure(binaries: &Binaries, extent: Extent, target: &Path, report: &mut Report) -> Result<()> {
    // Two, so that its own profile does not wait for the goroutine that ticks.
    let mut program = GoProgram::start(&binaries.program, 2)?;
    let mut parked = 0;
    for size in SIZES {
        program.ask(&format!("park {}", size - parked))?;
        parked = size;
        println!("  {} goroutines", grouped(size));
        at_size(&mut program, binaries, extent, size, target, report)?;
    }
    Ok(())
}

fn at_size(
    program: &mut GoProgram,
    binaries: &Binaries,
    extent: Extent,
    size: usize,
    target: &Path,
    report: &mut Report,
) -> Result<()> {
    let last = SIZES.last() == Some(&size);
    let bar = |most: f64| last.then_some(Bar::AtMost(most));
    let name = grouped(size);
    for (what, text, most) in [
        ("heads", "snapshot without stacks", WITHOUT_STACKS_MS),
        ("stacks", "snapshot with stacks", WITH_STACKS_MS),
        ("everything", "snapshot with stacks, waits and labels", WITH_STACKS_MS),
    ] {
        let (mut first, mut repeated) = (Goes::default(), Goes::default());
        for _ in 0..extent.snapshots {
            let mut agent =
                Speaking::start(Command::new(&binaries.snapshots).arg(program.pid().to_string()))?;
            agent.json().context("snapshot-rate could not begin")?;
            for goes in [&mut first, &mut repeated] {
                go(program, &mut agent, what, size, goes)?;
            }
            agent.hush();
            agent.end()?;
        }
        for (goes, again, most) in [(&first, "first", most), (&repeated, "repeated", most.min(REPEATED_MS))] {
            let label = format!("{name}: {text}, {again}");
            report.add(&label, "ms", median(goes.ms.clone()), None, bar(most));
            report.add(format!("{label}: processor time"), "ms", median(goes.cpu_ms.clone()), None, None);
            pause(&label, goes, last, report);
            report.add(format!("{label}: agent's memory"), "MiB", goes.peak_mib, None, bar(AGENT_MIB));
        }
    }
    for debug in 0..3 {
        let mut goes = Goes::default();
        let mut bytes = 0.0;
        for _ in 0..extent.snapshots {
            let wait = goes.ms.last().copied().unwrap_or(100.0);
            goes.noise_ms.push(alone(program, wait)?);
            let answer = program.ask(&format!("profile {debug}"))?;
            let of = |field: &str| answer[field].as_f64().with_context(|| format!("{field} of {answer}"));
            goes.ms.push(of("wall_ns")? / 1e6);
            goes.cpu_ms.push(of("cpu_ns")? / 1e6);
            goes.pause_ms.push(of("pause_ns")? / 1e6);
            bytes = of("count")?;
        }
        // The runtime gives no more than 64 MiB in that form (`runtime/pprof`, `writeGoroutineStacks`).
        let cut = if debug == 2 && bytes >= f64::from(64 << 20) { ", cut off by the runtime" } else { "" };
        let label = format!("{name}: its own profile, debug={debug}");
        report.add(&label, "ms", median(goes.ms.clone()), None, None);
        report.add(format!("{label}: processor time"), "ms", median(goes.cpu_ms.clone()), None, None);
        pause(&label, &goes, false, report);
        report.add(format!("{label}: output{cut}"), "MiB", bytes / f64::from(1 << 20), None, None);
    }
    if size <= DUMPED_MOST {
        let dump = dump(program.pid(), binaries, target)?;
        let label = format!("{name}: gotrace dump --format json, from start to exit");
        report.add(&label, "ms", dump.ms, None, None);
        report.add(format!("{label}: output"), "MiB", dump.bytes / f64::from(1 << 20), None, None);
        report.add(format!("{label}: memory"), "MiB", dump.peak_mib, None, None);
    }
    Ok(())
}

/// One snapshot, after as long without one.
fn go(program: &mut GoProgram, agent: &mut Speaking, what: &str, size: usize, goes: &mut Goes) -> Result<()> {
    let wait = goes.ms.last().copied().unwrap_or(100.0);
    goes.noise_ms.push(alone(program, wait)?);
    program.ask("pause")?;
    agent.tell(what)?;
    let answer = agent.json()?;
    // A pause that lasts until the end is noted only when it is over.
    thread::sleep(Duration::from_millis(1));
    goes.pause_ms.push(pause_ms(program)?);
    let of = |field: &str| answer[field].as_f64().with_context(|| format!("{field} of {answer}"));
    let (seen, wrong) = (of("goroutines")?, of("wrong")?);
    ensure!(seen >= size as f64 && wrong == 0.0, "of {size} goroutines the snapshot tells {answer}");
    goes.ms.push(of("ms")?);
    goes.cpu_ms.push(of("cpu_ms")?);
    goes.peak_mib = goes.peak_mib.max(of("peak_mib")?);
    Ok(())
}

/// The longest pause while nobody looks.
pub(super) fn alone(program: &mut GoProgram, milliseconds: f64) -> Result<f64> {
    program.ask("pause")?;
    thread::sleep(Duration::from_secs_f64(milliseconds / 1e3));
    pause_ms(program)
}

pub(super) fn pause_ms(program: &mut GoProgram) -> Result<f64> {
    let answer = program.ask("pause")?;
    Ok(answer["pause_ns"].as_f64().with_context(|| format!("the Go program answered {answer}"))? / 1e6)
}

/// The longest pause, against that of the program alone; what is added may be as much as that.
pub(super) fn pause(label: &str, goes: &Goes, held: bool, report: &mut Report) {
    let (pause, noise) = (median(goes.pause_ms.clone()), median(goes.noise_ms.clone()));
    let bar = held.then_some(Bar::RatioAtMost(1.0));
    report.add(format!("{label}: longest pause"), "ms", pause, Some(noise), None);
    report.add(format!("{label}: pause added"), "ms", (pause - noise).max(0.0), Some(noise), bar);
}

/// What a whole dump took.
struct Dump {
    ms: f64,
    bytes: f64,
    peak_mib: f64,
}

fn dump(pid: u32, binaries: &Binaries, target: &Path) -> Result<Dump> {
    let path = target.join("bench.dump");
    let file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let begin = Instant::now();
    let mut child = Command::new(&binaries.gotrace)
        .args(["dump", "--pid", &pid.to_string(), "--format", "json"])
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .context("starting gotrace dump")?;
    let mut peak_mib: f64 = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for gotrace dump")? {
            break status;
        }
        // Unreadable when it has just ended. What it took in the last two milliseconds may be missing.
        peak_mib = peak_mib.max(super::agent::resident_mib(child.id()).unwrap_or(0.0));
        thread::sleep(Duration::from_millis(2));
    };
    let ms = begin.elapsed().as_secs_f64() * 1e3;
    let bytes = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len() as f64;
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    ensure!(status.success(), "gotrace dump ended with {status}");
    Ok(Dump { ms, bytes, peak_mib })
}

/// With its thousands apart.
pub(super) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(SIZES.map(grouped), ["1,000", "100,000", "1,000,000"]);
        assert_eq!(grouped(12), "12");
    }
}
