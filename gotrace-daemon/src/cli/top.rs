//! `gotrace top`: all Go processes of the node in one table.
//!
//! Runs a line of its own over the whole node, as the daemon does, and exports nothing. By snapshots alone
//! unless `--level` asks for probes.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    CliError, Exit, Format,
    args::{BudgetArg, percent},
    asked::AskArgs,
    diagnostics::HoldBack,
    is_broken_pipe,
    trace::Background,
};
use crate::config::Config;
use crate::units;
use gotrace_agent::pipeline::{
    Counts, Engine, Line, LineConfig, LineHandle, LineState, ProcessEvent, SpanSampling, Stop,
};
use gotrace_export::{
    otlp::ExportConfig,
    prometheus::Board,
    top::{self, Node},
};
use gotrace_model::Level;
use gotrace_ui::TopView;

/// The first round is waited for no longer.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// Arguments of `top`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Lists all Go processes, those with the most goroutines first: goroutines created per second and net
growth over the last interval, CPU time of goroutines (with --level waits or full), the most common
wait reason, the probes' overhead, and lost events.

Without --level no probes are attached: the processes' memory is read every interval, and goroutines
that start and finish between two readings are missed. With --level, probes are attached to every
program that the rules match, within the budget.

Examples:
  gotrace top
  gotrace top --level waits --interval 5s
  gotrace top --duration 10s --format json | jq .processes
  gotrace top --config gotrace.yaml")]
pub struct TopArgs {
    /// Configuration (YAML) whose rules and limits apply, but not its level: only --level attaches probes.
    /// deploy/gotrace.example.yaml shows every field
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Attach probes for this level of detail: lifecycle, waits or full [default: no probes, snapshots only]
    #[arg(long, value_parser = units::level, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// With --level: limit the probes' overhead to this percentage of each process's CPU time (but allow at
    /// least 5 ms per second), or none for no limit. Above it, the level of that process is lowered, and
    /// raised again when overhead drops; see column level [default: 5%, or the configuration's]
    #[arg(long, value_parser = percent, value_name = "PERCENT|none")]
    pub budget: Option<BudgetArg>,
    /// Report interval
    #[arg(long, value_parser = units::interval, default_value = "2s", value_name = "TIME")]
    pub interval: Duration,
    /// Stop after this time (10s, 2m, 1h30m)
    #[arg(long, value_parser = units::duration_above_zero, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Output format: live table (plain lines if stdout is not a terminal), or one JSON object per interval
    /// (schema gotrace.top/1)
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
    /// Whether the daemon is asked.
    #[command(flatten)]
    pub ask: AskArgs,
}

pub(super) fn run(args: &TopArgs) -> Result<Exit, CliError> {
    let config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let line_config = line_config(args, &config)?;
    if args.level.is_some() {
        args.ask.warn_of_probes_on_node();
    }
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut line = Line::new(line_config, None)?;
    let board = Arc::new(Board::default());
    let ended = Arc::clone(&board);
    line.observe(Box::new(move |event| {
        if let ProcessEvent::Ended(identity) = event {
            ended.remove(identity.pid);
        }
    }));
    line.watch_node(config.rules())?;
    let deadline = args.duration.map(|d| Instant::now() + d);
    let view = show(args, &board, line.handle(), &stop, deadline)?;
    let result = line.run(&stop, deadline, &mut |interval| board.show(interval));
    drop(view);
    drop(line.finish());
    result?;
    Ok(Exit::DONE)
}

/// Probes only where a level is asked for here and now: whoever looks must not change what runs.
fn line_config(args: &TopArgs, config: &Config) -> Result<LineConfig, CliError> {
    let mut line = config.line();
    // What is remembered is the daemon's.
    line.state = None;
    // Nobody is given spans, and requests are not shown.
    line.sampling = SpanSampling::NONE;
    line.requests = None;
    line.interval = args.interval;
    line.budget = match (args.budget, &args.config) {
        (Some(budget), _) => budget.budget(),
        (None, Some(_)) => line.budget,
        (None, None) => BudgetArg::OF_ONLOOKERS.budget(),
    };
    match args.level {
        Some(_) if line.engine == Engine::Snapshot => {
            return Err(CliError::usage("--level needs probes, but the configuration has engine: snapshot")
                .help("remove --level, or engine from the configuration"));
        }
        Some(level) => line.level = level,
        None => line.engine = Engine::Snapshot,
    }
    Ok(line)
}

/// Whatever shows; dropped at the end.
struct View(#[expect(dead_code, reason = "held for what dropping does")] Option<(TopView, HoldBack)>);

fn show(
    args: &TopArgs,
    board: &Arc<Board>,
    handle: LineHandle,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<View, CliError> {
    let board = Arc::clone(board);
    let (begun, every, is_complete) = (Instant::now(), args.interval, AtomicBool::new(false));
    let node = move || {
        let intervals = board.intervals();
        let LineState { looked_at: Counts { unreadable, scans, .. }, coverage, traced, .. } = handle.state();
        let rows = top::rows(intervals.iter().map(|i| &**i));
        // Others may come all the time.
        let round = FIRST_ROUND.min(2 * every);
        let is_whole = scans > 0 && rows.len() as u64 >= traced || begun.elapsed() >= round;
        if is_whole {
            is_complete.store(true, Ordering::Relaxed);
        }
        let awaited = if is_complete.load(Ordering::Relaxed) { None } else { Some(traced) };
        Node { rows, refused: coverage.refused_total(), unreadable, awaited }
    };
    if args.format == Format::Table && io::stdout().is_terminal() {
        let hold_back = HoldBack::begin();
        let stop = stop.clone();
        let view = TopView::start(node, move || stop.set())?;
        return Ok(View(Some((view, hold_back))));
    }
    let (format, interval, stop) = (args.format, args.interval, stop.clone());
    thread::Builder::new().name("gotrace-view".into()).spawn(move || {
        // At the end nobody is traced any more: what was before is what counts.
        let over = || stop.why().is_some() || deadline.is_some_and(|d| Instant::now() >= d);
        let shown = lines(format, interval, &over, &node);
        // A reader that went away (`| head`) ends the run; there is nobody to tell.
        if let Err(error) = shown {
            stop.set();
            if !is_broken_pipe(&error) {
                tracing::error!(%error, "cannot show results");
            }
        }
    })?;
    Ok(View(None))
}

fn lines(
    format: Format,
    interval: Duration,
    over: &impl Fn() -> bool,
    node: &impl Fn() -> Node,
) -> io::Result<()> {
    if format == Format::Json {
        top::json_header(&mut io::stdout().lock())?;
    }
    let write = |node: &Node| match format {
        Format::Json => top::json(&mut io::stdout().lock(), node),
        Format::Table => top::table(&mut io::stdout().lock(), node),
    };
    // What there is before everybody has been seen, for one who waits no longer.
    let mut early = None;
    loop {
        thread::sleep(interval);
        if over() {
            return early.map_or(Ok(()), |node| write(&node));
        }
        let node = node();
        if node.awaited.is_some() {
            early = Some(node);
            continue;
        }
        early = None;
        write(&node)?;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn line_of(more: &[&str]) -> Result<LineConfig, CliError> {
        let cli = Cli::try_parse_from(["gotrace", "top"].iter().chain(more)).expect("valid arguments");
        let Some(Command::Top(args)) = cli.command else { panic!("top") };
        let config =
            args.config.as_ref().map_or_else(Config::default, |path| Config::read(path).expect("right"));
        line_config(&args, &config)
    }

    #[test]
    fn only_a_level_on_the_command_line_puts_probes_in_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("a plain path").to_owned()
        };
        let events = file(
            "events.yaml",
            "trace: {level: full, engine: events}\nlimits: {budget: 2%}\nrequests: {mode: slow}\n",
        );
        let snapshot = file("snapshot.yaml", "trace: {engine: snapshot}\n");
        let share = |line: &LineConfig| line.budget.map(gotrace_agent::pipeline::Budget::share);
        let line = line_of(&[]).expect("right");
        assert_eq!((line.engine, share(&line)), (Engine::Snapshot, Some(0.05)));
        let line = line_of(&["--config", &events]).expect("right");
        assert_eq!((line.engine, share(&line)), (Engine::Snapshot, Some(0.02)));
        let line = line_of(&["--config", &events, "--level", "waits"]).expect("right");
        assert_eq!((line.engine, line.level, share(&line)), (Engine::Events, Level::Waits, Some(0.02)));
        assert_eq!((line.sampling, line.requests), (SpanSampling::NONE, None), "it shows neither");
        let line = line_of(&["--level", "full", "--budget", "none"]).expect("right");
        assert_eq!((line.engine, line.level, share(&line)), (Engine::Auto, Level::Full, None));
        assert!(line_of(&["--config", &snapshot]).is_ok());
        assert!(line_of(&["--config", &snapshot, "--level", "waits"]).is_err());
    }
}
