//! `gotrace gc`: what the collector costs a running process, what else stops its world, and what its CPU quota does.
//!
//! Probes at the collector's pauses and assists, and at creations and exits of goroutines (level `lifecycle`).

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    CliError, Exit, TextOrJson,
    args::{BudgetArg, percent},
    asked::AskArgs,
    check::throttling,
    is_broken_pipe,
    output::Stdout,
    target::TargetArgs,
    trace::{Background, events_alone},
};
use crate::units as values;
use gotrace_agent::pipeline::{Line, Stop};
use gotrace_export::{collector, otlp::ExportConfig};
use gotrace_model::{Interval, Level};
use gotrace_process::{Clock, Target, usage};

/// Arguments of `gc`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Prints each cycle of the garbage collector as it ends: what began it (heap: the heap had grown by
GOGC; after 2 minutes; runtime.GC), how long it marked, its two pauses, and how long goroutines had
to mark for what they allocated (assists), by entry function. Then everything else that stopped the
world, and who called it. Ctrl-C ends with the sums, and with how often the CPU quota of the
process's control groups made it stand still.

The probes are hit four times a cycle and twice an assist, and at creations and exits of goroutines.

Examples:
  gotrace gc 1234 --duration 1m
  gotrace gc server --format json | jq -c '.interval.longest_stops[]?'")]
pub struct GcArgs {
    /// Which process.
    #[command(flatten)]
    target: TargetArgs,
    /// Stop after this time (10s, 2m, 1h30m)
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME")]
    duration: Option<Duration>,
    /// Report interval
    #[arg(long, value_parser = values::interval, default_value = "1s", value_name = "TIME")]
    interval: Duration,
    /// Output format: text, or one JSON object per line (schema gotrace.gc/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    format: TextOrJson,
    /// Limit the probes' overhead to this percentage of the process's CPU time (but allow at least 5 ms
    /// per second), or none for no limit. Above it, gotrace removes the probes, and puts them back when
    /// overhead drops; nothing is seen meanwhile, which is reported
    #[arg(long, value_parser = percent, default_value = "5%", value_name = "PERCENT|none")]
    budget: BudgetArg,
    /// Whether the daemon is asked.
    #[command(flatten)]
    ask: AskArgs,
}

/// Watches until the process ends, the time is over, or the user has enough.
///
/// # Errors
/// When the process cannot be traced, or results cannot be written.
pub(super) fn run(args: &GcArgs) -> Result<Exit, CliError> {
    let target = Target::open(args.target.pid()?)?;
    let pid = target.pid();
    args.ask.warn_of_probes(pid, "gotrace gc");
    let quotas = target.cpu_quotas();
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut line = Line::new(events_alone(Level::Lifecycle, args.interval, args.budget.budget()), None)?;
    let cpu_before = cpu_ns(pid);
    line.trace(target)?;
    let json = args.format == TextOrJson::Json;
    let mut out = Stdout::lock();
    if let Some(traced) = line.first() {
        let (resource, how) = (traced.resource(), (traced.engine(), traced.level_name()));
        if json {
            let now = Clock::measure().unix_nano(Clock::now_monotonic_ns());
            collector::json_header(&mut out, resource, pid, how, now)?;
        } else {
            collector::header(&mut out, resource, pid)?;
        }
        out.flush()?;
    }
    let (mut cpu, mut quotas_now, mut failed) = (None, quotas.clone(), None);
    let mut report = |interval: &Interval| {
        // While it lives.
        cpu = cpu_ns(pid).or(cpu);
        if let Some(now) = Target::open(pid).ok().and_then(|t| t.cpu_quotas()) {
            quotas_now = Some(now);
        }
        if json {
            collector::json_interval(&mut out, interval)
        } else {
            collector::interval(&mut out, interval)
        }
    };
    let deadline = args.duration.map(|d| Instant::now() + d);
    let ended = line.run(&stop, deadline, &mut |interval| {
        if let (Err(error), None) = (report(interval), &failed) {
            failed = Some(error);
            stop.set();
        }
    });
    let summaries = line.finish();
    let written = failed.map_or(Ok(()), Err).and_then(|()| {
        for summary in &summaries {
            let cpu_ns = cpu.map(|now| now.saturating_sub(cpu_before.unwrap_or(0)));
            let throttling = throttling(quotas.clone(), quotas_now.clone());
            let run = collector::Run { summary, cpu_ns, throttling };
            if json { run.write_json(&mut out)? } else { run.write_text(&mut out)? }
        }
        io::Result::Ok(())
    });
    ended?;
    match written {
        Err(error) if !is_broken_pipe(&error) => Err(error.into()),
        _ => Ok(Exit::DONE),
    }
}

/// CPU time that a process has used; `None` when it is gone.
fn cpu_ns(pid: u32) -> Option<u64> {
    let (seconds, _) = usage(pid);
    (seconds > 0.0).then_some((seconds * 1e9) as u64)
}
