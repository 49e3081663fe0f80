//! `gotrace top`: all Go processes of the node in one table.
//!
//! Runs a line of its own over the whole node, as the daemon does, and exports nothing.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{CliError, Exit, Format, diagnostics::HoldBack, is_broken_pipe, trace::Background};
use crate::{
    config::Config,
    level::Level,
    pipeline::{Line, ProcessEvent, Stop},
    sink::{otlp::ExportConfig, prometheus::Board, top},
    ui::TopView,
    units,
};

/// Arguments of `top`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace top
  gotrace top --level waits --interval 5s
  gotrace top --duration 10s --format json | jq .processes
  gotrace top --config gotrace.yaml

All Go processes, those with most goroutines first: births and growth a second over the last
interval, what most wait for, what the probes take of the process's CPU time, what was lost.")]
pub struct TopArgs {
    /// Whose rules, limits and level hold (YAML); deploy/gotrace.example.yaml shows every field
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Detail: lifecycle, waits, full [default: lifecycle, or the configuration's]
    #[arg(long, value_parser = units::level, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// Time between two reports
    #[arg(long, value_parser = units::interval, default_value = "2s", value_name = "TIME")]
    pub interval: Duration,
    /// End after this time (10s, 2m, 1h30m)
    #[arg(long, value_parser = units::duration_above_zero, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Live table (plain lines where stdout is no terminal), or one JSON object an interval (schema
    /// gotrace.top/1)
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
}

pub(super) fn run(args: &TopArgs) -> Result<Exit, CliError> {
    let config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let mut line_config = config.line();
    line_config.interval = args.interval;
    line_config.level = match (args.level, &args.config) {
        (Some(level), _) => level,
        (None, Some(_)) => line_config.level,
        (None, None) => Level::Lifecycle,
    };
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut line = Line::new(line_config, None)?;
    let board = Arc::new(Board::default());
    let ended = Arc::clone(&board);
    line.watch_node(
        config.rules(),
        Some(Box::new(move |event| {
            if let ProcessEvent::Ended(identity) = event {
                ended.remove(identity.pid);
            }
        })),
    )?;
    let deadline = args.duration.map(|d| Instant::now() + d);
    let view = show(args, &board, &stop, deadline)?;
    let result = line.run(&stop, deadline, &mut |interval| board.show(interval));
    drop(view);
    line.finish().1?;
    result?;
    Ok(Exit::DONE)
}

/// Whatever shows; dropped at the end.
struct View(#[expect(dead_code, reason = "held for what dropping does")] Option<(TopView, HoldBack)>);

fn show(
    args: &TopArgs,
    board: &Arc<Board>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<View, CliError> {
    let board = Arc::clone(board);
    let rows = move || {
        let intervals = board.intervals();
        top::rows(intervals.iter().map(|i| &**i))
    };
    if args.format == Format::Table && io::stdout().is_terminal() {
        let hold_back = HoldBack::begin();
        let stop = stop.clone();
        let view = TopView::start(rows, move || stop.set())?;
        return Ok(View(Some((view, hold_back))));
    }
    let (format, interval, stop) = (args.format, args.interval, stop.clone());
    thread::Builder::new().name("gotrace-view".into()).spawn(move || {
        // At the end nobody is traced any more: what was before is what counts.
        let over = || stop.why().is_some() || deadline.is_some_and(|d| Instant::now() >= d);
        let shown = lines(format, interval, &over, &rows);
        // A reader that went away (`| head`) ends the run; there is nobody to tell.
        if let Err(error) = shown {
            stop.set();
            if !is_broken_pipe(&error) {
                tracing::error!(%error, "results cannot be shown");
            }
        }
    })?;
    Ok(View(None))
}

fn lines(
    format: Format,
    interval: Duration,
    over: &impl Fn() -> bool,
    rows: &impl Fn() -> Vec<top::Row>,
) -> io::Result<()> {
    if format == Format::Json {
        top::json_header(&mut io::stdout().lock())?;
    }
    loop {
        thread::sleep(interval);
        if over() {
            return Ok(());
        }
        match format {
            Format::Json => top::json(&mut io::stdout().lock(), &rows())?,
            Format::Table => top::table(&mut io::stdout().lock(), &rows())?,
        }
    }
}
