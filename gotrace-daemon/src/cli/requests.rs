//! `gotrace requests`: where each request's time went, and because of whom.
//!
//! Probes at level `full`, and where requests begin and end.

mod before;
mod from_daemon;

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use clap::{Args, Parser as _};

use super::{
    Cli, CliError, Command, Exit, TextOrJson,
    args::{BudgetArg, percent},
    asked::AskArgs,
    is_broken_pipe,
    output::Stdout,
    target::TargetArgs,
    trace::{Background, events_alone},
};
use crate::units as values;
use gotrace_agent::pipeline::{Line, LineConfig, Slow, Stop, TraceRequests};
use gotrace_export::{otlp::ExportConfig, requests as export};
use gotrace_go::requests::{Moment, Requests, Server};
use gotrace_model::{Interval, Level};
use gotrace_process::{Clock, Target};

/// How long a slow request that has ended waits to be printed.
const TICK: Duration = Duration::from_secs(1);
/// Frames of a wait.
const STACK_DEPTH: u8 = 24;

/// Arguments of `requests`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Prints each slow request as it ends: its parts, which add up to its duration (on CPU, run queue,
throttled, system call, GC assist, blocked by wait reason), its longest waits with the place in the
program, and what the goroutine did meanwhile that ended each. A request that is open for so long
is printed once while it is, and again when it ends. Those that were open before gotrace attached,
and wait, come first: where, and for what. Then a table of routes, every --interval and
at the end. Fast requests leave only counts. Of a request gotrace reads its method, the route's
pattern, the status and the traceparent header, with --paths the path too, and nothing else: no query,
no other header, no body.

Servers: net/http (HTTP/1.1 and 2), golang.org/x/net/http2 behind net/http, google.golang.org/grpc.
A span that the program's own OpenTelemetry SDK records for a request is the parent of gotrace's;
one that belongs to no request, of a message or a job, is a request itself. Of spans gotrace reads
ids, kind, name and status.
Anything else: --request FUNCTION, whose calls are then requests, from call to return. A call within
another one, or within a request of HTTP or gRPC, is a part of that. On amd64 the kernel single-steps
each return of the function, recursive ones too: a call costs 20 to 25 us in all.
Goroutines that a request starts, and those that these start, are told as its children where they
have ended before it; those of net/http that read from connections are not.
`gotrace inspect` shows what a binary has.

Where a gotrace daemon on this node traces requests of the process already, these are told: no second
set of probes. That is not so with --no-daemon, --slow, --request, --paths, --min-wait and --budget.

Examples:
  gotrace requests 1234
  gotrace requests server --slow 250ms --duration 1m
  gotrace requests server --slow 0ms --format json | jq -c '.request // empty | [.route, .time_ns]'")]
pub struct RequestsArgs {
    /// Which process.
    #[command(flatten)]
    target: TargetArgs,
    /// A request is slow from this time on (0ms: all are); auto: from the 99th percentile of its route on,
    /// at least 1 ms, and from 100 ms on for a route with fewer than 200 requests
    #[arg(long, value_parser = values::slow, default_value = "auto", value_name = "TIME|auto")]
    slow: Slow,
    /// Take each call of this function for a request too, for servers without net/http, gRPC or OpenTelemetry: workers
    /// of a queue, consumers, other protocols. Its name is as in a traceback: main.handle, main.(*Queue).work,
    /// example.com/shop/cart.each[...]. Up to 8 times
    #[arg(long = "request", value_name = "FUNCTION")]
    functions: Vec<String>,
    /// Tell the path that each slow request asked for, without its query. Segments that look like a secret are
    /// [redacted]
    #[arg(long)]
    paths: bool,
    /// Waits of a slow request that are at least this long are told with their places
    #[arg(long, value_parser = values::duration, default_value = "1ms", value_name = "TIME")]
    min_wait: Duration,
    /// Stop after this time (10s, 2m, 1h30m)
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME")]
    duration: Option<Duration>,
    /// Time between two tables of routes
    #[arg(long, value_parser = values::interval, default_value = "10s", value_name = "TIME")]
    interval: Duration,
    /// Output format: text, or one JSON object per line (schema gotrace.requests/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    format: TextOrJson,
    /// Limit the probes' overhead to this percentage of the process's CPU time (but allow at least 5 ms
    /// per second), or none for no limit. Above it, requests are traced in turns, and counted if they begin
    /// and end within one; the share of the time that was traced is shown
    #[arg(long, value_parser = percent, default_value = "10%", value_name = "PERCENT|none")]
    budget: BudgetArg,
    /// Whether the daemon is asked.
    #[command(flatten)]
    ask: AskArgs,
}

/// Traces requests until the process ends, the time is over, or the user has enough.
///
/// # Errors
/// When the process cannot be traced or serves no requests that can be, or results cannot be written.
pub(super) fn run(args: &RequestsArgs) -> Result<Exit, CliError> {
    let target = Target::open(args.target.pid()?)?;
    let pid = target.pid();
    match args.needs_own_probes() {
        Some(flag) => args.ask.warn_of_probes(pid, &format!("gotrace requests {flag}")),
        None => {
            if let Some((daemon, probed)) = args.ask.daemon_with_probes(pid)
                && let Some(exit) = from_daemon::run(args, pid, &daemon, &probed)?
            {
                return Ok(exit);
            }
        }
    }
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut line = Line::new(args.line_config(), None)?;
    line.trace(target)?;
    let mut out = Output { json: args.format == TextOrJson::Json, out: Stdout::lock() };
    if let Some(traced) = line.first() {
        let requests = traced.requests();
        let servers = servers(requests);
        for missing in &requests.missing {
            CliError::warn(missing);
        }
        if out.json {
            let now = Clock::measure().unix_nano(Clock::now_monotonic_ns());
            let how = (traced.engine(), traced.level_name());
            export::json_header(&mut out.out, traced.resource(), pid, how, now)?;
        } else {
            export::header(&mut out.out, traced.resource(), pid, &servers, &args.in_words())?;
        }
        match before::find(&line, pid) {
            Ok(before) if out.json => export::json_open_before(&mut out.out, &before)?,
            Ok(before) => export::open_before(&mut out.out, pid, &before)?,
            Err(error) => {
                let why = error.reason();
                CliError::warn(&format!("requests that were open before cannot be told: {why}"));
            }
        }
        out.out.flush()?;
    }
    let deadline = args.duration.map(|d| Instant::now() + d);
    let (mut gathered, mut failed) = (export::Gathered::default(), None);
    let mut shown = Instant::now();
    let ended = line.run(&stop, deadline, &mut |interval| {
        gathered.add(interval, false);
        let mut report = || {
            out.slow(interval)?;
            if shown.elapsed() >= args.interval {
                shown = Instant::now();
                out.interval(&gathered)?;
                gathered = gathered.next();
            }
            io::Result::Ok(())
        };
        if let (Err(error), None) = (report(), &failed) {
            failed = Some(error);
            stop.set();
        }
    });
    let summaries = line.finish();
    let written = failed.map_or(Ok(()), Err).and_then(|()| {
        if out.json {
            out.interval(&gathered)?;
        }
        for summary in &summaries {
            let mut whole = export::Gathered::default();
            whole.add(&summary.last, true);
            if out.json {
                let cost = summary.last.probe_cost_share;
                export::json_summary(&mut out.out, &whole, cost, &summary.ended)?;
            } else {
                export::table(&mut out.out, &whole)?;
            }
        }
        io::Result::Ok(())
    });
    ended?;
    match written {
        Err(error) if !is_broken_pipe(&error) => Err(error.into()),
        _ => Ok(Exit::DONE),
    }
}

struct Output {
    json: bool,
    out: Stdout,
}

impl Output {
    /// The slow requests of a report.
    fn slow(&mut self, interval: &Interval) -> io::Result<()> {
        for request in interval.requests.iter().flat_map(|requests| &requests.slow) {
            if self.json {
                export::json_request(&mut self.out, request)?;
            } else {
                export::request(&mut self.out, request)?;
            }
        }
        self.out.flush()
    }

    fn interval(&mut self, gathered: &export::Gathered) -> io::Result<()> {
        if self.json {
            export::json_interval(&mut self.out, gathered)
        } else {
            export::table(&mut self.out, gathered)
        }
    }
}

/// Names of the servers whose requests can be traced, and of the functions.
fn servers(requests: &Requests) -> Vec<&str> {
    let traced = requests.servers.iter().filter(|server| requests.can_trace(**server));
    let mut names: Vec<&str> =
        traced.filter(|server| **server != Server::Function).map(|server| server.name()).collect();
    for point in requests.points.iter().filter(|point| point.server == Server::Function) {
        if point.moment == Moment::Begin && !names.contains(&&*point.function) {
            names.push(&point.function);
        }
    }
    names
}

impl RequestsArgs {
    /// The flag that a daemon's reports cannot follow; `None` where there is none. Every flag is named here: one that is new
    /// does not compile until it is written what it needs.
    fn needs_own_probes(&self) -> Option<&'static str> {
        let plain = Cli::try_parse_from(["gotrace", "requests", "1"]).ok();
        let Some(Command::Requests(usual)) = plain.and_then(|cli| cli.command) else {
            return Some("with these flags");
        };
        let Self {
            target: _,
            slow,
            functions,
            paths,
            min_wait,
            duration: _,
            interval: _,
            format: _,
            budget,
            ask: _,
        } = self;
        [
            ("--slow", *slow != usual.slow),
            ("--request", !functions.is_empty()),
            ("--paths", *paths),
            ("--min-wait", *min_wait != usual.min_wait),
            ("--budget", *budget != usual.budget),
        ]
        .into_iter()
        .find_map(|(flag, needs)| needs.then_some(flag))
    }

    fn in_words(&self) -> String {
        match self.slow {
            Slow::Auto => "from the 99th percentile of its route on (100ms until 200 requests)".into(),
            Slow::From(time) if time.is_zero() => "whatever it takes".into(),
            Slow::From(time) => {
                let ns = u64::try_from(time.as_nanos()).ok();
                format!("from {} on", gotrace_export::text::duration(ns))
            }
        }
    }

    fn line_config(&self) -> LineConfig {
        LineConfig {
            min_wait: self.min_wait,
            stack_depth: STACK_DEPTH,
            requests: Some(TraceRequests {
                slow: self.slow,
                required: true,
                functions: self.functions.as_slice().into(),
                paths: self.paths,
            }),
            ..events_alone(Level::Full, TICK.min(self.interval), self.budget.budget())
        }
    }
}
