//! What a daemon tells of a process that it traces: report by report, and as live table.
//!
//! Input: reports as [`gotrace_export::reports`] reads them. Output: these; the table, or plain lines where the daemon is of
//! another build, of which is told, or where there is no table to be had. Invariants: the terminal is given back before anything is
//! said; reports that were left out are told of, in the table and behind it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    CliError, Stdout,
    asked::{Daemon, Ended, Follow, Form, Reports, Trouble},
    diagnostics::HoldBack,
    reading::Apart,
    say,
    trace::Background,
};
use gotrace_agent::pipeline::Stop;
use gotrace_export::{
    otlp::ExportConfig,
    reports::{Reader, ReportsError, Told, left_out, lines},
};
use gotrace_model::{Interval, Level, printable::printable};
use gotrace_process::Target;
use gotrace_ui::View;

/// Says from whom the figures are.
pub(super) fn say_from(daemon: &Daemon, pid: u32, level: &str, wanted: Level) {
    say(&format!(
        "gotrace: from gotrace daemon (pid {}), which traces process {pid} at level {}; level {wanted} is held meanwhile, within \
         its budget (--no-daemon attaches probes of gotrace's own)\n",
        daemon.pid(),
        printable(level),
    ));
}

/// Says why a command goes on with probes of its own: what the daemon does not do.
pub(super) fn say_own(daemon: &Daemon, pid: u32, why: &str, command: &str) {
    CliError::warn(&format!(
        "gotrace daemon (pid {}) traces process {pid} with probes already, and {why}: {command} needs a second set of probes, \
         which costs the program again",
        daemon.pid()
    ));
}

/// Says why there are no more.
pub(super) fn say_ended(ended: Ended) {
    say(&format!("gotrace: {}\n", why(ended)));
}

/// Why there are no more.
pub(super) const fn why(ended: Ended) -> &'static str {
    match ended {
        Ended::Gone => "the daemon traces the process no more: it has ended, or no rule takes it",
        Ended::Duration => "stopped after --duration; the daemon traces it on",
        Ended::Stopped => "stopped by you; the daemon traces it on",
    }
}

/// Why reports are not taken on.
enum Halt {
    /// They are another build's, as this says.
    OtherBuild(String),
    /// Whoever takes them does not want them.
    Unwanted,
    Failed(CliError),
}

/// How it ended that reports were taken.
pub(super) enum Heard {
    /// There are no more.
    All(Ended),
    /// They are another build's, as this says.
    OtherBuild(String),
    /// Whoever took them did not want them.
    Unwanted,
}

/// Has a daemon tell of a process, and hands on each report until there are no more, `take` does not want them, the time is
/// over, or the user has enough; `None`, of which is told, where the daemon does not.
///
/// # Errors
/// As [`each`].
pub(super) fn reports(
    daemon: &Daemon,
    wanted: Follow,
    duration: Option<Duration>,
    take: &mut dyn FnMut(Told) -> Result<bool, CliError>,
) -> Result<Option<Heard>, CliError> {
    let background = Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let reports = match daemon.reports(Follow { form: Form::Interval, ..wanted }) {
        Ok(reports) => reports,
        Err(trouble) => {
            daemon.warn(trouble);
            return Ok(None);
        }
    };
    let deadline = duration.map(|duration| Instant::now() + duration);
    each(daemon, reports, (&stop, deadline), take).map(Some)
}

/// Takes off what a daemon had seen when it was first asked: what was lost, the levels that were had, and the collector's.
/// What all probes cost over this time is not known.
pub(super) fn since(interval: &mut Interval, first: &Interval) {
    interval.collector = interval.collector.since(&first.collector);
    for (counts, before) in [(&mut interval.lost, &first.lost), (&mut interval.levels.ns, &first.levels.ns)] {
        for (what, n) in counts.iter_mut() {
            *n = n.saturating_sub(before.get(what).copied().unwrap_or(0));
        }
        counts.retain(|_, n| *n > 0);
    }
}

/// Hands on each report until there are no more, or `take` does not want them.
///
/// # Errors
/// Those of `take`; when the daemon breaks off, or sends what cannot be read.
fn each(
    daemon: &Daemon,
    reports: Reports,
    until: (&Stop, Option<Instant>),
    take: &mut dyn FnMut(Told) -> Result<bool, CliError>,
) -> Result<Heard, CliError> {
    let mut reader = Reader::default();
    let ended = daemon.listen(reports, until, &mut |bytes| {
        reader.take(bytes);
        loop {
            match reader.next_told() {
                Ok(Some(told)) => {
                    if !take(told)? {
                        return Err(Halt::Unwanted);
                    }
                }
                Ok(None) => return Ok(()),
                Err(error @ ReportsError::OtherBuild(_)) => return Err(Halt::OtherBuild(error.to_string())),
                Err(error) => return Err(daemon.broke_off(&error.to_string()).into()),
            }
        }
    });
    match ended {
        Ok(ended) => Ok(Heard::All(ended)),
        Err(Halt::OtherBuild(why)) => Ok(Heard::OtherBuild(why)),
        Err(Halt::Unwanted) => Ok(Heard::Unwanted),
        Err(Halt::Failed(error)) => Err(error),
    }
}

impl From<CliError> for Halt {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

/// Shows what a daemon tells of a process, which it traces at `level`; `None`, of which is told, where it does not.
///
/// # Errors
/// When the daemon breaks off, or sends what cannot be read.
pub(super) fn show(
    daemon: &Daemon,
    wanted: Follow,
    level: &str,
    (stop, deadline): (&Stop, Option<Instant>),
) -> Result<Option<Ended>, CliError> {
    let reports = match daemon.reports(Follow { form: Form::Interval, ..wanted }) {
        Ok(reports) => reports,
        Err(Trouble::Unknown(why)) if why.contains("format must be") => {
            return plain(daemon, wanted, "is another version of gotrace", (stop, deadline));
        }
        Err(trouble) => {
            daemon.warn(trouble);
            return Ok(None);
        }
    };
    let target = Target::open(wanted.pid)?;
    let about = about(daemon, &target, level);
    let mut shown = Shown { about, target: Some(target), wanted, table: None, missed: 0 };
    let heard = each(daemon, reports, (stop, deadline), &mut |told| shown.take(told, stop).map(|()| true));
    let missed = shown.end();
    if missed > 0 {
        say(&format!("gotrace: {}\n", left_out(missed)));
    }
    match heard? {
        Heard::All(ended) => Ok(Some(ended)),
        Heard::OtherBuild(why) => plain(daemon, wanted, &why, (stop, deadline)),
        Heard::Unwanted => Ok(None),
    }
}

/// Has the daemon write lines, and says why.
fn plain(
    daemon: &Daemon,
    wanted: Follow,
    why: &str,
    until: (&Stop, Option<Instant>),
) -> Result<Option<Ended>, CliError> {
    say(&format!("gotrace: the daemon {why}: plain lines instead of the live table\n"));
    daemon.follow(Follow { form: Form::Text, ..wanted }, until, &mut Stdout::lock())
}

/// What is shown until there is a report.
fn about(daemon: &Daemon, target: &Target, level: &str) -> String {
    let (pid, executable) = (target.pid(), target.executable.display().to_string());
    let (executable, level) = (printable(&executable), printable(level));
    format!("pid {pid} · {executable} · gotrace daemon (pid {}) · level {level}", daemon.pid())
}

/// What the user sees.
struct Shown {
    about: String,
    /// Taken with the terminal.
    target: Option<Target>,
    wanted: Follow,
    /// The terminal's, while it is taken.
    table: Option<(View, HoldBack)>,
    /// Reports that were left out.
    missed: u64,
}

impl Shown {
    fn take(&mut self, told: Told, stop: &Stop) -> Result<(), CliError> {
        match told {
            Told::Begun => self.begin(stop),
            Told::Report { interval, missed } => return self.report(&Arc::new(*interval), missed),
        }
        Ok(())
    }

    fn begin(&mut self, stop: &Stop) {
        let Some(target) = self.target.take() else { return };
        let hold_back = HoldBack::begin();
        let stop = stop.clone();
        let shown = gotrace_ui::Shown {
            about: std::mem::take(&mut self.about),
            note: String::new(),
            system: self.wanted.system,
            reader: Ok(Arc::new(Apart::new(target))),
        };
        match View::start(shown, move || stop.set()) {
            Ok(view) => self.table = Some((view, hold_back)),
            // Plain lines then.
            Err(error) => tracing::debug!(%error, "no live view"),
        }
    }

    fn report(&mut self, interval: &Arc<Interval>, missed: u64) -> Result<(), CliError> {
        self.missed = self.missed.saturating_add(missed);
        match &self.table {
            Some((view, _)) => {
                if missed > 0 {
                    view.note(left_out(self.missed));
                }
                view.show(interval);
            }
            None => {
                let mut out = Stdout::lock();
                lines(&mut out, interval, missed, self.wanted.system)?;
                std::io::Write::flush(&mut out)?;
            }
        }
        Ok(())
    }

    /// Gives the terminal back, if it was taken; how many reports the table did not have.
    fn end(self) -> u64 {
        let Some((view, hold_back)) = self.table else { return 0 };
        view.finish();
        drop(hold_back);
        self.missed
    }
}
