//! Requests that a daemon of this node traces: nothing is added to what the program has to bear.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use super::{Output, RequestsArgs, TICK, export};
use crate::cli::{
    CliError, Exit, TextOrJson,
    asked::{Daemon, Follow, Form, Probed},
    followed::{self, Heard},
    is_broken_pipe,
    output::Stdout,
    say,
    trace::Background,
};
use gotrace_agent::pipeline::Stop;
use gotrace_export::{
    otlp::ExportConfig,
    reports::{Told, left_out},
};
use gotrace_model::{Interval, Level};
use gotrace_process::Clock;

/// Tells them; `None`, of which is told, where the daemon does not trace them.
///
/// # Errors
/// When the daemon breaks off, or results cannot be written.
pub(super) fn run(
    args: &RequestsArgs,
    pid: u32,
    daemon: &Daemon,
    Probed { level }: &Probed,
) -> Result<Option<Exit>, CliError> {
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let follow = Follow { pid, level: Level::Full, every: TICK, form: Form::Interval, system: false };
    let reports = match daemon.reports(follow) {
        Ok(reports) => reports,
        Err(trouble) => {
            daemon.warn(trouble);
            return Ok(None);
        }
    };
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let out = Output { json: args.format == TextOrJson::Json, out: Stdout::lock() };
    let mut told = Telling {
        out,
        every: args.interval,
        shown: None,
        gathered: export::Gathered::default(),
        whole: export::Gathered::default(),
        missed: 0,
        last: None,
    };
    let heard = followed::each(daemon, reports, (&stop, deadline), &mut |report| {
        let Told::Report { interval, missed } = report else { return Ok(true) };
        if interval.requests.is_none() {
            return Ok(false);
        }
        if told.shown.is_none() {
            followed::say_from(daemon, pid, level, Level::Full);
        }
        Ok(told.take(*interval, missed, (daemon, pid)).map(|()| true)?)
    })?;
    let why = match heard {
        Heard::All(ended) if told.shown.is_some() => followed::why(ended),
        Heard::All(_) => return Ok(Some(Exit::DONE)),
        Heard::OtherBuild(why) => {
            followed::say_own(daemon, pid, &why, "gotrace requests");
            return Ok(None);
        }
        Heard::Unwanted if told.shown.is_some() => "the daemon traces its requests no more",
        Heard::Unwanted => {
            let why = "does not trace its requests (requests.mode, or it serves none that can be)";
            followed::say_own(daemon, pid, why, "gotrace requests");
            return Ok(None);
        }
    };
    match told.end(why) {
        Err(error) if !is_broken_pipe(&error) => Err(error.into()),
        _ => {
            say(&format!("gotrace: {why}\n"));
            Ok(Some(Exit::DONE))
        }
    }
}

struct Telling {
    out: Output,
    /// Time between two tables.
    every: Duration,
    /// When the last one was; `None` before the first report.
    shown: Option<Instant>,
    /// Since then.
    gathered: export::Gathered,
    /// Since the beginning.
    whole: export::Gathered,
    /// Reports that were not read in time.
    missed: u64,
    last: Option<Interval>,
}

impl Telling {
    fn take(&mut self, interval: Interval, missed: u64, (daemon, pid): (&Daemon, u32)) -> io::Result<()> {
        let shown = match self.shown {
            Some(shown) => shown,
            None => {
                self.header(&interval, (daemon, pid))?;
                *self.shown.insert(Instant::now())
            }
        };
        if missed > 0 {
            self.missed = self.missed.saturating_add(missed);
            CliError::warn(&left_out(missed));
        }
        self.gathered.add(&interval, false);
        self.whole.add(&interval, false);
        self.out.slow(&interval)?;
        if shown.elapsed() >= self.every {
            self.shown = Some(Instant::now());
            self.out.interval(&self.gathered)?;
            self.gathered = self.gathered.next();
        }
        self.last = Some(interval);
        self.out.out.flush()
    }

    fn header(&mut self, interval: &Interval, (daemon, pid): (&Daemon, u32)) -> io::Result<()> {
        let out = &mut self.out.out;
        if self.out.json {
            let now = Clock::measure().unix_nano(Clock::now_monotonic_ns());
            return export::json_header(out, &interval.resource, pid, (interval.engine, interval.level), now);
        }
        let whose = format!("all servers that gotrace daemon (pid {}) traces", daemon.pid());
        export::header(out, &interval.resource, pid, &[&whose], "as requests.slow of its configuration says")
    }

    fn end(&mut self, why: &str) -> io::Result<()> {
        if !self.out.json {
            return export::table(&mut self.out.out, &self.whole);
        }
        self.out.interval(&self.gathered)?;
        let cost = self.last.as_ref().and_then(|last| last.probe_cost_share);
        export::json_summary(&mut self.out.out, &self.whole, cost, why)
    }
}
