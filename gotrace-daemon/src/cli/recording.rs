//! `gotrace record`, and what `attach` and `exec` record with `--record`.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;

use super::{
    AttachArgs, CliError, Exit, TraceArgs,
    args::{BudgetArg, RecordingArgs, WhenFull, percent},
    asked::AskArgs,
    attach, say,
    target::TargetArgs,
};
use gotrace_agent::recording::{Head, Limit, MetricsExport, Recorder};
use gotrace_model::printable::printable;

/// The smallest recording of which the oldest can be thrown away: some states of a table fit.
const LEAST: u64 = 1 << 20;

/// Arguments of `record`.
#[derive(Clone, Debug, Args)]
#[command(
    mut_arg("record", |arg| arg.hide(true)),
    mut_arg("quiet", |arg| arg.hide(true)),
    mut_arg("format", |arg| arg.hide(true)),
    after_help = "\
The file holds everything gotrace learns about the process and nothing else of its memory: events,
snapshots of its goroutines and where they wait, results of leak proofs, and function names.

Examples:
  gotrace record 1234 -o run.gtr --duration 30s --level full
  gotrace record 1234 -o run.gtr --max-size 1G --when-full drop-oldest
  gotrace record 1234 -o run.gtr --keep 60s     until Ctrl-C; kill -USR1 writes the file at once
  gotrace view run.gtr
  gotrace convert run.gtr -o run.otlp.jsonl"
)]
pub struct RecordArgs {
    /// Which process.
    #[command(flatten)]
    target: TargetArgs,
    /// File to record to
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Limit the probes' overhead to this percentage of the process's CPU time (but allow at least 5 ms
    /// per second), or none for no limit
    #[arg(long, value_parser = percent, default_value = "5%", value_name = "PERCENT|none")]
    budget: BudgetArg,
    /// Whether the daemon is asked.
    #[command(flatten)]
    ask: AskArgs,
    /// How to trace and what to do with it.
    #[command(flatten)]
    trace: TraceArgs,
}

impl RecordArgs {
    pub(super) fn trace(&self) -> &TraceArgs {
        &self.trace
    }
}

/// Records until the process ends, the time is over, or the user has enough.
pub(super) fn run(args: RecordArgs) -> Result<Exit, CliError> {
    let RecordArgs { target, output, budget, ask, mut trace } = args;
    let path = output.display().to_string();
    trace.recording.record = Some(output);
    trace.quiet = true;
    let exit = attach::run(AttachArgs { target, budget, http: None, ask, trace })?;
    say(&format!("gotrace: recorded; replay it with `gotrace view {}`\n", printable(&path)));
    Ok(exit)
}

impl RecordingArgs {
    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let Self { record, max_size, when_full, keep } = self;
        let usage = |what: &str| Err(CliError::usage(what));
        match (record, max_size, when_full, keep) {
            (None, None, WhenFull::Stop, None) => Ok(()),
            (None, ..) => usage("--max-size, --when-full and --keep need --record"),
            (_, None, WhenFull::DropOldest, None) => usage("--when-full drop-oldest needs --max-size"),
            (_, _, WhenFull::DropOldest, Some(_)) => {
                usage("--when-full drop-oldest cannot be used with --keep, which always drops the oldest")
            }
            (_, Some(bytes), WhenFull::DropOldest, _) | (_, Some(bytes), _, Some(_)) if *bytes < LEAST => {
                usage("--max-size must be at least 1M with --keep or --when-full drop-oldest")
            }
            _ => Ok(()),
        }
    }

    fn limit(&self) -> Limit {
        match (self.max_size, self.when_full, self.keep) {
            (bytes, _, Some(time)) => Limit::Keep { time, bytes },
            (None, ..) => Limit::None,
            (Some(most), WhenFull::Stop, _) => Limit::Stop(most),
            (Some(most), WhenFull::DropOldest, _) => Limit::DropOldest(most),
        }
    }
}

impl TraceArgs {
    /// Begins the recording, where one is wanted.
    pub(super) fn recorder(&self, budget: &BudgetArg) -> Result<Option<Recorder>, CliError> {
        let Some(path) = &self.recording.record else { return Ok(None) };
        let export = self.export_config()?;
        let metrics = MetricsExport {
            temporality: export.temporality.name().into(),
            every_ns: export.metric_interval.and_then(|every| u64::try_from(every.as_nanos()).ok()),
            series: (export.series.per_process as u64, export.series.all as u64),
        };
        let head = Head { metrics, ..Head::now(self.configuration(budget)) };
        Ok(Some(Recorder::create(path, &head, self.recording.limit())?))
    }

    /// How it is traced, for who reads the recording.
    fn configuration(&self, budget: &BudgetArg) -> BTreeMap<String, String> {
        let Self {
            level, min_wait, stack_depth, interval, engine, reconcile, span_ratio, ring_bytes, ..
        } = self;
        [
            ("level", level.to_string()),
            ("min-wait", format!("{min_wait:?}")),
            ("stack-depth", stack_depth.to_string()),
            ("interval", format!("{interval:?}")),
            ("engine", format!("{engine:?}").to_lowercase()),
            ("reconcile", format!("{reconcile:?}")),
            ("span-ratio", span_ratio.to_string()),
            ("ring-bytes", ring_bytes.to_string()),
            ("budget", budget.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
