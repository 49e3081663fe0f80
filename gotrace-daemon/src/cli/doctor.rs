//! `gotrace doctor`: what this host allows, found out by trying.
//!
//! Trials decide; what `/proc` and `/sys` say explains them. Output: text for people or one JSON
//! object, schema `gotrace.doctor/1`: `kernel`, `arch`, `engine` (`events`, `snapshot` or null: what
//! `--engine auto` comes to), `engines` (all that work), `level` (the most detailed one of the events engine
//! that works, or null), `checks` (each `name`, `state` ok|degraded|missing, `found`,
//! `meaning`, `remedy` or null).

mod host;
mod trials;

use std::io::{self, IsTerminal, Write};

use serde_json::json;

use super::{CliError, DoctorArgs, Exit, Stdout, TextOrJson};
use gotrace_model::{Level, printable::write_json};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Works, but not in every case or not in full.
    Degraded,
    /// The events engine does not work without it.
    Missing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        }
    }
}

/// A line of the report.
#[derive(Clone, Debug)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found or tried.
    found: String,
    /// What that means for tracing.
    meaning: String,
    /// What to do about it.
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), meaning: meaning.into(), remedy: None }
    }

    fn degraded(
        name: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state: State::Degraded,
            found: found.into(),
            meaning: meaning.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn missing(
        name: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { state: State::Missing, ..Self::degraded(name, found, meaning, remedy) }
    }
}

pub(super) fn run(args: &DoctorArgs) -> Result<Exit, CliError> {
    let trials::Trials { checks: trials, level, snapshots } = trials::trials();
    let mut checks = host::checks();
    checks.extend(trials);
    let works = level.is_some() && checks.iter().all(|c| c.state != State::Missing);
    let result = Engines { level: level.filter(|_| works), snapshots };
    let mut out = Stdout::lock();
    match args.format {
        TextOrJson::Text => text(&mut out, &checks, result, host::lacks("CAP_SYS_PTRACE"))?,
        TextOrJson::Json => json(&mut out, &checks, result)?,
    }
    out.flush()?;
    Ok(if works { Exit::DONE } else { Exit::PERMISSION })
}

/// What works.
#[derive(Clone, Copy, Debug)]
struct Engines {
    /// The most detailed level of the events engine.
    level: Option<Level>,
    snapshots: bool,
}

impl Engines {
    fn names(self) -> Vec<&'static str> {
        let events = self.level.map(|_| "events");
        events.into_iter().chain(self.snapshots.then_some("snapshot")).collect()
    }
}

/// `limited`: to processes that need no CAP_SYS_PTRACE.
fn text(out: &mut impl Write, checks: &[Check], engines: Engines, limited: bool) -> io::Result<()> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let color = io::stdout().is_terminal() && !no_color;
    for check in checks {
        let code = match check.state {
            State::Ok => 32,
            State::Degraded => 33,
            State::Missing => 31,
        };
        let state = format!("{:<8}", check.state.name());
        let state = if color { format!("\x1b[{code}m{state}\x1b[0m") } else { state };
        writeln!(out, "{state} {:<18} {}", check.name, check.found)?;
        if check.state != State::Ok {
            writeln!(out, "{:27} {}", "", check.meaning)?;
            if let Some(remedy) = &check.remedy {
                writeln!(out, "{:27} fix: {remedy}", "")?;
            }
        }
    }
    writeln!(out)?;
    let whom = if limited {
        ", only for unprivileged processes of the same user (CAP_SYS_PTRACE is missing)"
    } else {
        ""
    };
    match engines {
        Engines { level: Some(level), snapshots: true } => {
            writeln!(out, "result   ready: events engine (eBPF) up to level {level}, and snapshots{whom}")
        }
        Engines { level: Some(level), snapshots: false } => writeln!(
            out,
            "result   ready: events engine (eBPF) up to level {level}{whom}; no snapshots, so that goroutines created before \
             gotrace attaches appear only once they have waited, and `gotrace dump` does not work"
        ),
        Engines { level: None, snapshots: true } => writeln!(
            out,
            "result   snapshots only (no eBPF){whom}; --engine auto falls back to them. No spans, no wait durations, and \
             goroutines that live for less than --interval are missed. See above for what the events engine needs"
        ),
        Engines { level: None, snapshots: false } => {
            writeln!(out, "result   gotrace cannot run on this host; see above for what is missing")
        }
    }
}

fn json(out: &mut impl Write, checks: &[Check], engines: Engines) -> io::Result<()> {
    let uname = rustix::system::uname();
    let checks: Vec<_> = checks
        .iter()
        .map(|Check { name, state, found, meaning, remedy }| {
            json!({
                "name": name,
                "state": state.name(),
                "found": found,
                "meaning": meaning,
                "remedy": remedy,
            })
        })
        .collect();
    let report = json!({
        "schema": "gotrace.doctor/1",
        "kernel": uname.release().to_string_lossy(),
        "arch": host::arch(),
        "engine": engines.names().first(),
        "engines": engines.names(),
        "level": engines.level.map(Level::name),
        "checks": checks,
    });
    write_json(&mut *out, &report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::printed_tests::golden;
    use gotrace_kernel::{Error, Way};

    #[test]
    fn doctor_prints_what_is_written_down() -> io::Result<()> {
        let passed =
            Check::ok("BTF", "/sys/kernel/btf/vmlinux is readable", "the kernel has type information");
        let why = "this kernel has no uprobe links (Linux 6.6 and later)".to_owned();
        let checks = [
            passed.clone(),
            trials::links(&Way::PerfEvents { why, refused: false, passing: false }),
            trials::failure(
                "ring buffer",
                "needed to deliver events",
                &[],
                &Error::Permission { what: "create a ring buffer map (bpf(2))".into() },
            ),
        ];
        let mut out = Vec::new();
        text(&mut out, &checks, Engines { level: None, snapshots: false }, false)?;
        for (level, snapshots) in [(None, true), (Some(Level::Waits), false), (Some(Level::Full), true)] {
            for limited in [false, true] {
                text(&mut out, std::slice::from_ref(&passed), Engines { level, snapshots }, limited)?;
            }
        }
        golden("doctor.txt", &out);
        Ok(())
    }
}
