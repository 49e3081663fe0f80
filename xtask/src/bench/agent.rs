//! What gotrace itself takes: time to attach and detach, processor and memory under load, the rates of
//! its table and of its exporter.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Binaries, Extent, median,
    observer::{LEVELS, attach},
    process::{GoProgram, Speaking},
    report::{Bar, Report},
};
use crate::util::capture;

/// Most resident memory of gotrace under load, in MiB.
const RESIDENT_MIB: f64 = 60.0;
/// Least events a second from the ring to the table.
const EVENTS_PER_SECOND: f64 = 2e6;
/// Most bytes of the table for a live goroutine.
const BYTES_PER_GOROUTINE: f64 = 200.0;
/// Least spans a second, with four requests in flight.
const SPANS_PER_SECOND: f64 = 200_000.0;

/// From the start of gotrace until its probes are in place, and from Ctrl-C to its end.
pub fn attach_and_detach(
    program: &GoProgram,
    binaries: &Binaries,
    extent: Extent,
    report: &mut Report,
) -> Result<()> {
    for level in LEVELS {
        let (mut attached, mut detached) = (Vec::new(), Vec::new());
        for _ in 0..extent.pairs {
            let start = Instant::now();
            let gotrace = attach(&binaries.gotrace, program.pid(), &["--level", level])?;
            attached.push(milliseconds(start.elapsed()));
            // So that it is not interrupted while it is still beginning.
            std::thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            gotrace.interrupt()?;
            gotrace.end()?;
            detached.push(milliseconds(start.elapsed()));
        }
        report.add(format!("attach, level {level}"), "ms", median(attached), None, None);
        report.add(format!("detach and exit, level {level}"), "ms", median(detached), None, None);
    }
    Ok(())
}

/// gotrace at level `waits` with spans to a collector, while the program makes 10,000 goroutines a
/// second that each wait 2 ms: 20,000 spans a second.
pub fn under_load(
    program: &mut GoProgram,
    binaries: &Binaries,
    extent: Extent,
    report: &mut Report,
) -> Result<()> {
    let mut collector = Speaking::start(Command::new(&binaries.line).arg("receive"))?;
    let hello = collector.json()?;
    let endpoint = hello["endpoint"].as_str().context("the collector told no endpoint")?.to_owned();
    let gotrace = attach(
        &binaries.gotrace,
        program.pid(),
        &["--level", "waits", "--otlp", &endpoint, "--otlp-protocol", "grpc"],
    )?;
    let (start, before) = (Instant::now(), cpu_seconds(gotrace.pid())?);
    let made = program.ask(&format!("churn 10000 {}ms", extent.load.as_millis()))?;
    let cpu = (cpu_seconds(gotrace.pid())? - before) / start.elapsed().as_secs_f64();
    let resident = resident_mib(gotrace.pid())?;
    gotrace.interrupt()?;
    let last = gotrace.end()?.pop().context("gotrace printed no summary")?;
    let summary: Value = serde_json::from_str(&last).context("gotrace's summary")?;
    let sum_of = |field: &str| -> f64 {
        let counts = summary["summary"][field].as_object();
        counts.map_or(0, |c| c.values().filter_map(Value::as_u64).sum()) as f64
    };
    let (lost, dropped) = (sum_of("lost"), sum_of("spans_dropped"));
    collector.hush();
    let received = collector.json()?["spans"].as_f64().unwrap_or(0.0);
    collector.end()?;
    let made = made["count"].as_f64().unwrap_or(0.0);
    let rate = made / extent.load.as_secs_f64();
    report.add("under load: goroutines", "1/s", rate, None, None);
    report.add("under load: gotrace's processor time", "% of a CPU", cpu * 100.0, None, None);
    report.add(
        "under load: gotrace's resident memory",
        "MiB",
        resident,
        None,
        Some(Bar::AtMost(RESIDENT_MIB)),
    );
    report.add("under load: events lost", "events", lost, None, None);
    report.add("under load: spans received, of two a goroutine", "spans", received, Some(made * 2.0), None);
    report.add("under load: spans dropped", "spans", dropped, None, None);
    Ok(())
}

/// A recording of the program, through decoder and table on one core.
pub fn table(
    program: &mut GoProgram,
    binaries: &Binaries,
    extent: Extent,
    target: &Path,
    report: &mut Report,
) -> Result<()> {
    let recording = target.join("bench.gtr");
    let path = recording.to_str().context("the target directory's name is not UTF-8")?;
    let more = ["--level", "full", "--min-wait", "0s", "--record", path];
    let gotrace = attach(&binaries.gotrace, program.pid(), &more)?;
    for work in ["churn 10000 2s", "births 500ms", "pingpong 500ms"] {
        program.ask(work)?;
    }
    gotrace.interrupt()?;
    gotrace.end()?;
    let seconds = extent.load.as_secs_f64().to_string();
    let measured = capture(Command::new(&binaries.line).args(["table", path, &seconds]));
    fs::remove_file(&recording).with_context(|| format!("removing {path}"))?;
    let measured = json_lines(&measured?)?;
    let of = |name: &str, field: &str| {
        measured
            .iter()
            .find(|m| m["name"] == name)
            .and_then(|m| m[field].as_f64())
            .with_context(|| format!("bench-line told no {field} of {name}"))
    };
    for field in ["creates", "exits", "waits"] {
        report.add(format!("recorded log: {field}"), "records", of("table", field)?, None, None);
    }
    let rate = of("table", "events_per_second")?;
    report.add("ring to table, one core", "events/s", rate, None, Some(Bar::AtLeast(EVENTS_PER_SECOND)));
    let bar = Some(Bar::AtMost(BYTES_PER_GOROUTINE));
    report.add("table at 1,000,000 goroutines", "bytes each", of("memory", "bytes_each")?, None, bar);
    let name = "table at 1,000,000 goroutines that have waited";
    report.add(name, "bytes each", of("memory", "bytes_each_waited")?, None, bar);
    Ok(())
}

/// Spans a second that reach a collector in the exporter's own process.
pub fn spans(binaries: &Binaries, extent: Extent, report: &mut Report) -> Result<()> {
    let measured = json_lines(&capture(Command::new(&binaries.spans).arg(extent.spans.to_string()))?)?;
    let mut names: Vec<&str> = measured.iter().filter_map(|m| m["name"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    ensure!(!names.is_empty(), "spans-rate measured nothing");
    for name in names {
        let rates = measured.iter().filter(|m| m["name"] == name);
        let rate = median(rates.filter_map(|m| m["spans_per_second"].as_f64()).collect());
        let bar = name.starts_with("gotrace").then_some(Bar::AtLeast(SPANS_PER_SECOND));
        report.add(format!("exporter: {name}"), "spans/s", rate, None, bar);
    }
    Ok(())
}

fn json_lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("a measurement: {l}"))).collect()
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Processor time of a process so far (`/proc/PID/stat`, fields 14 and 15, in ticks of 10 ms).
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    Ok(fields.skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

/// The most memory that a process has had resident.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmHWM"))? / 1024.0)
}
