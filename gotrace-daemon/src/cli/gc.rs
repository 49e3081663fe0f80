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
    asked::{AskArgs, Daemon, Follow, Form, Probed},
    check::throttling,
    followed::{self, Heard},
    is_broken_pipe,
    output::Stdout,
    target::TargetArgs,
    trace::{Background, events_alone},
};
use crate::units as values;
use gotrace_agent::pipeline::{Line, Stop};
use gotrace_export::{
    collector,
    otlp::ExportConfig,
    reports::{Told, left_out},
};
use gotrace_model::{Interval, Level, Resource};
use gotrace_process::{Clock, CpuQuota, Target, usage};

/// A daemon reports no more often.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `gc`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Prints each cycle of the garbage collector as it ends: what began it (heap: the heap had grown by
GOGC; after 2 minutes; runtime.GC), how long it marked, its two pauses, and how long goroutines had
to mark for what they allocated (assists), by entry function. Then everything else that stopped the
world, and who called it. Ctrl-C ends with the sums, and with how often the CPU quota of the
process's control groups made it stand still.

The probes are hit four times a cycle and twice an assist, and at creations and exits of goroutines.

Where a gotrace daemon on this node traces the process with probes already, what it sees is told: no
second set of probes. That is not so with --no-daemon and --budget.

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
    if args.has_own_budget() {
        args.ask.warn_of_probes(pid, "gotrace gc --budget");
    } else if let Some((daemon, probed)) = args.ask.daemon_with_probes(pid)
        && let Some(exit) = from_daemon(args, &target, &daemon, &probed)?
    {
        return Ok(exit);
    }
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut line = Line::new(events_alone(Level::Lifecycle, args.interval, args.budget.budget()), None)?;
    let mut telling = Telling::of(args, &target);
    line.trace(target)?;
    if let Some(traced) = line.first() {
        telling.header(traced.resource(), (traced.engine(), traced.level_name()))?;
    }
    let deadline = args.duration.map(|d| Instant::now() + d);
    let mut failed = None;
    let ended = line.run(&stop, deadline, &mut |interval| {
        if let (Err(error), None) = (telling.report(interval), &failed) {
            failed = Some(error);
            stop.set();
        }
    });
    let summaries = line.finish();
    let written = failed
        .map_or(Ok(()), Err)
        .and_then(|()| summaries.iter().try_for_each(|summary| telling.end(&summary.last, &summary.ended)));
    ended?;
    match written {
        Err(error) if !is_broken_pipe(&error) => Err(error.into()),
        _ => Ok(Exit::DONE),
    }
}

/// Tells what a daemon sees; `None`, of which is told, where it does not.
fn from_daemon(
    args: &GcArgs,
    target: &Target,
    daemon: &Daemon,
    Probed { level }: &Probed,
) -> Result<Option<Exit>, CliError> {
    let (pid, wanted) = (target.pid(), Level::Lifecycle);
    let every = args.interval.max(LEAST_INTERVAL);
    let follow = Follow { pid, level: wanted, every, form: Form::Interval, system: false };
    let mut telling = Telling::of(args, target);
    // The first report, and the last one.
    let mut known: Option<(Interval, Interval)> = None;
    let heard = followed::reports(daemon, follow, args.duration, &mut |told| {
        let Told::Report { mut interval, missed } = told else { return Ok(true) };
        let Some((first, last)) = &mut known else {
            followed::say_from(daemon, pid, level, wanted);
            telling.header(&interval.resource, (interval.engine, interval.level))?;
            known = Some(((*interval).clone(), *interval));
            return Ok(true);
        };
        if missed > 0 {
            CliError::warn(&left_out(missed));
        }
        followed::since(&mut interval, first);
        telling.report(&interval)?;
        interval.start_unix_nano = first.end_unix_nano;
        *last = *interval;
        Ok(true)
    })?;
    let why = match heard {
        None => return Ok(None),
        Some(Heard::All(ended)) => followed::why(ended),
        // Each is wanted.
        Some(Heard::Unwanted) => return Ok(Some(Exit::DONE)),
        Some(Heard::OtherBuild(why)) => {
            followed::say_own(daemon, pid, &why, "gotrace gc");
            return Ok(None);
        }
    };
    let Some((_, mut last)) = known else { return Ok(Some(Exit::DONE)) };
    // That of the run is not known, of which the last report's is a part.
    last.probe_cost_share = None;
    match telling.end(&last, why) {
        Err(error) if !is_broken_pipe(&error) => Err(error.into()),
        _ => Ok(Some(Exit::DONE)),
    }
}

impl GcArgs {
    /// Whether the user has said what probes may cost, which those of a daemon do not follow.
    fn has_own_budget(&self) -> bool {
        self.budget != BudgetArg::OF_ONLOOKERS
    }
}

/// What is written, and what is known of the process besides.
struct Telling {
    out: Stdout,
    json: bool,
    pid: u32,
    /// CPU time at the beginning, and now.
    cpu: (Option<u64>, Option<u64>),
    /// The same of quotas.
    quotas: (Option<Vec<CpuQuota>>, Option<Vec<CpuQuota>>),
}

impl Telling {
    fn of(args: &GcArgs, target: &Target) -> Self {
        let (pid, quotas) = (target.pid(), target.cpu_quotas());
        let json = args.format == TextOrJson::Json;
        Self { out: Stdout::lock(), json, pid, cpu: (cpu_ns(pid), None), quotas: (quotas.clone(), quotas) }
    }

    fn header(&mut self, resource: &Resource, how: (&str, &str)) -> io::Result<()> {
        if self.json {
            let now = Clock::measure().unix_nano(Clock::now_monotonic_ns());
            collector::json_header(&mut self.out, resource, self.pid, how, now)?;
        } else {
            collector::header(&mut self.out, resource, self.pid)?;
        }
        self.out.flush()
    }

    fn report(&mut self, interval: &Interval) -> io::Result<()> {
        // While it lives.
        self.cpu.1 = cpu_ns(self.pid).or(self.cpu.1);
        if let Some(now) = Target::open(self.pid).ok().and_then(|t| t.cpu_quotas()) {
            self.quotas.1 = Some(now);
        }
        if self.json {
            collector::json_interval(&mut self.out, interval)
        } else {
            collector::interval(&mut self.out, interval)
        }
    }

    /// `last`: the last state, as of the whole run.
    fn end(&mut self, last: &Interval, ended: &str) -> io::Result<()> {
        let cpu_ns = self.cpu.1.map(|now| now.saturating_sub(self.cpu.0.unwrap_or(0)));
        let throttling = throttling(self.quotas.0.clone(), self.quotas.1.clone());
        let run = collector::Run { last, ended, cpu_ns, throttling };
        if self.json { run.write_json(&mut self.out) } else { run.write_text(&mut self.out) }
    }
}

/// CPU time that a process has used; `None` when it is gone.
fn cpu_ns(pid: u32) -> Option<u64> {
    let (seconds, _) = usage(pid);
    (seconds > 0.0).then_some((seconds * 1e9) as u64)
}
