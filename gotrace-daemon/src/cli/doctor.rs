//! `gotrace doctor`: what this host allows, found out by trying.
//!
//! Trials decide; what `/proc` and `/sys` say explains them. Output: text for people or one JSON
//! object, schema `gotrace.doctor/1`: `kernel`, `arch`, `engine` (`events` or null), `level` (the most
//! detailed one that works, or null), `checks` (each `name`, `state` ok|degraded|missing, `found`,
//! `meaning`, `remedy` or null).

mod host;
mod trials;

use std::io::{self, IsTerminal, Write};

use serde_json::json;

use super::{CliError, DoctorArgs, Exit, Stdout, TextOrJson};
use crate::level::Level;

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
    let (trials, level) = trials::trials();
    let mut checks = host::checks();
    checks.extend(trials);
    let works = level.is_some() && checks.iter().all(|c| c.state != State::Missing);
    let level = level.filter(|_| works);
    let mut out = Stdout::lock();
    match args.format {
        TextOrJson::Text => text(&mut out, &checks, level)?,
        TextOrJson::Json => json(&mut out, &checks, level)?,
    }
    out.flush()?;
    Ok(if works { Exit::DONE } else { Exit::PERMISSION })
}

fn text(out: &mut impl Write, checks: &[Check], level: Option<Level>) -> io::Result<()> {
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
                writeln!(out, "{:27} do: {remedy}", "")?;
            }
        }
    }
    writeln!(out)?;
    match level {
        Some(level) => {
            let whom = if host::lacks("CAP_SYS_PTRACE") {
                ", for processes of gotrace's own user without privileges (CAP_SYS_PTRACE is missing)"
            } else {
                ""
            };
            writeln!(out, "result   events engine (eBPF), up to level {level}{whom}")
        }
        None => writeln!(
            out,
            "result   the events engine (eBPF) does not work here; see what is missing above. Reading \
             memory without eBPF (--engine snapshot) is not available yet in this version"
        ),
    }
}

fn json(out: &mut impl Write, checks: &[Check], level: Option<Level>) -> io::Result<()> {
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
        "engine": level.map(|_| "events"),
        "level": level.map(Level::name),
        "checks": checks,
    });
    serde_json::to_writer(&mut *out, &report)?;
    writeln!(out)
}
