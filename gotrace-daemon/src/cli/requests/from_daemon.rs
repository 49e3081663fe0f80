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
};
use gotrace_export::reports::{Told, left_out};
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
    let follow = Follow { pid, level: Level::Full, every: TICK, form: Form::Interval, system: false };
    let out = Output { json: args.format == TextOrJson::Json, out: Stdout::lock() };
    let mut told = Telling {
        out,
        every: args.interval,
        shown: None,
        gathered: export::Gathered::default(),
        whole: export::Gathered::default(),
        first: None,
    };
    let heard = followed::reports(daemon, follow, args.duration, &mut |report| {
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
        None => return Ok(None),
        Some(Heard::All(ended)) if told.shown.is_some() => followed::why(ended),
        Some(Heard::All(_)) => return Ok(Some(Exit::DONE)),
        Some(Heard::OtherBuild(why)) => {
            followed::say_own(daemon, pid, &why, "gotrace requests");
            return Ok(None);
        }
        Some(Heard::Unwanted) if told.shown.is_some() => "the daemon traces its requests no more",
        Some(Heard::Unwanted) => {
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
    /// What the daemon had seen before.
    first: Option<Interval>,
}

impl Telling {
    fn take(&mut self, mut interval: Interval, missed: u64, (daemon, pid): (&Daemon, u32)) -> io::Result<()> {
        let shown = match self.shown {
            Some(shown) => shown,
            None => {
                self.header(&interval, (daemon, pid))?;
                *self.shown.insert(Instant::now())
            }
        };
        if missed > 0 {
            CliError::warn(&left_out(missed));
        }
        match &self.first {
            Some(first) => followed::since(&mut interval, first),
            None => {
                self.first = Some(interval.clone());
                // Of what was lost before nobody knows when.
                interval.lost.clear();
            }
        }
        self.gathered.add(&interval, false);
        self.whole.add(&interval, false);
        self.out.slow(&interval)?;
        if shown.elapsed() >= self.every {
            self.shown = Some(Instant::now());
            self.out.interval(&self.gathered)?;
            self.gathered = self.gathered.next();
        }
        self.out.out.flush()
    }

    fn header(&mut self, interval: &Interval, (daemon, pid): (&Daemon, u32)) -> io::Result<()> {
        let out = &mut self.out.out;
        if self.out.json {
            let now = Clock::measure().unix_nano(Clock::now_monotonic_ns());
            return export::json_header(out, &interval.resource, pid, (interval.engine, interval.level), now);
        }
        let whose = format!("all servers that gotrace daemon (pid {}) traces", daemon.pid());
        export::header(out, &interval.resource, pid, &[&whose], "as `requests` of its configuration says")
    }

    fn end(&mut self, why: &str) -> io::Result<()> {
        if !self.out.json {
            return export::table(&mut self.out.out, &self.whole);
        }
        self.out.interval(&self.gathered)?;
        // What all probes of the daemon cost over this time is not known.
        export::json_summary(&mut self.out.out, &self.whole, None, why)
    }
}
