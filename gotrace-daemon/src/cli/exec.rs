//! `gotrace exec`: starts a command with the probes in place.

use std::{
    fmt,
    io::{self, Write},
    thread,
    time::Duration,
};

use super::{CliError, ExecArgs, Exit, Format, args::FailOn, go_test, trace};
use crate::{
    level::Level,
    pipeline::{LeftProcess, Line, LineError, ProofPace, ProvenProcess, Stop},
    printable::printable,
    process::{Forwarder, Spawned},
    sink::{
        json,
        leaks::{self, Header, When},
        model::Levels,
        text,
    },
};

/// Proofs where a proof decides over the run: one after the other, from the beginning on.
const AT_ONCE: ProofPace = ProofPace {
    after: Duration::from_millis(100),
    every: Duration::from_millis(500),
    rest: 2,
    max_read_rate: None,
};

/// Runs the command and ends with its exit status.
///
/// # Errors
/// When it cannot be started, with the exit code of a shell: 127 or 126; when it cannot be traced
/// though it is a Go program. What goes wrong later is said, and is the exit status of a command that
/// ended well.
pub fn run(mut args: ExecArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    let format = args.trace.format;
    if args.left_behind_to.is_some() {
        // Of what is for others nothing is shown.
        args.trace.format = Format::Table;
    }
    if args.follow_children && args.trace.engine == super::args::Engine::Snapshot {
        return Err(CliError::usage("--follow-children needs the events engine").help(
            "leave --engine out, or trace one program: gotrace exec --engine snapshot -- ./package.test",
        ));
    }
    let Some((command, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no command to execute"));
    };
    if let Some(run) = go_test::Run::of(&args) {
        return run.run();
    }
    // Forks, so it comes before there are threads.
    let mut child = Spawned::prepare(command, arguments)?;
    let pid = child.pid();
    let background = trace::Background::start(&args.trace)?;
    // The program that runs a test is a child of `go test`.
    let follow_children = args.follow_children || args.fails_on(FailOn::LeftBehind);
    let unreachable = args.fails_on(FailOn::Unreachable);
    let mut config = args.trace.line_config(follow_children, args.left_behind(), args.budget.budget());
    if unreachable {
        config.proofs = Some(ProofPace { max_read_rate: args.trace.max_read_rate, ..AT_ONCE });
    }
    let mut line = Line::new(config, background.exporter())?;
    let ended = Stop::default();
    let mut display = trace::Display::new(&args.trace, true);
    match child.target().map_err(LineError::from).and_then(|target| line.trace(target)) {
        Ok(()) => {
            trace::say_engine(&line, &args.trace, follow_children);
            if let Some(traced) = line.first() {
                display.began(traced, &ended)?;
            }
        }
        Err(error @ LineError::Program { .. }) => {
            let children = if follow_children { ", only Go programs that it starts" } else { "" };
            eprintln!("{}", CliError::failure(format!("{error}: it runs without probes{children}")));
            line.follow(pid);
        }
        // Dropping the child ends it before it has executed anything.
        Err(error) => return Err(error.into()),
    }
    let forwarder = Forwarder::start(child.pidfd())
        .map_err(|e| CliError::failure(format!("cannot pass signals on to the command: {e}")))?;
    child.release()?;
    if let Err(error) = line.has_begun(pid) {
        tracing::debug!(%error, "the command ended at once");
    }
    let waiter = {
        let ended = ended.clone();
        thread::spawn(move || {
            let status = child.wait();
            ended.set_because("the command ended");
            status
        })
    };
    let result = if line.tracing() > 0 || follow_children {
        trace::run(&mut line, &ended, args.trace.duration, &mut display)
    } else {
        Ok(())
    };
    // With --duration the tracing may end first: the probes go, the command goes on.
    let left = line.take_left_behind();
    let proven = line.take_proven();
    let finished = trace::finish(line, background, display);
    let status = waiter
        .join()
        .map_err(|_| CliError::failure("waiting for the command failed"))?
        .map_err(|e| CliError::failure(format!("cannot learn how process {pid} ended: {e}")))?;
    drop(forwarder);
    // The command ran, and its status is what matters; what went wrong with tracing is said.
    let mut exit = Exit(Spawned::exit_code(status));
    let result = match result {
        // A Go program may execute another program: the command's own affair.
        Err(error @ LineError::Program { .. }) => {
            eprintln!("{}", CliError::failure(format!("{error}: it runs without probes")));
            Ok(())
        }
        result => result,
    };
    for error in [result.map_err(CliError::from).err(), finished.err()].into_iter().flatten() {
        if !error.is_quiet() {
            eprintln!("{error}");
        }
        if exit == Exit::DONE {
            exit = error.exit();
        }
    }
    let mut unjudged = unjudged_left_behind(&left);
    if unreachable {
        unjudged.extend(unjudged_unreachable(&proven));
    }
    let tell = |out: &mut dyn Write| -> io::Result<bool> {
        let left = left_behind(out, left, format)?;
        Ok(if unreachable { tell_proven(out, &proven, format)? } else { false } || left)
    };
    let found = match &args.left_behind_to {
        None => tell(&mut io::stderr().lock())?,
        Some(directory) => {
            let mut text = Vec::new();
            if tell(&mut text)? {
                go_test::leave(directory, pid, &text)?;
            }
            // Whoever asked for it tells.
            false
        }
    };
    for unjudged in &unjudged {
        match format {
            Format::Json => eprintln!("{}", unjudged.json()),
            Format::Table => eprintln!("gotrace: {unjudged}"),
        }
    }
    if !unjudged.is_empty() && format == Format::Table {
        eprintln!("help: raise --budget, or leave it out: then everything is traced, whatever it takes");
    }
    Ok(match exit {
        Exit::DONE if found => Exit::FINDINGS,
        Exit::DONE if !unjudged.is_empty() => Exit::FAILURE,
        exit => exit,
    })
}

/// A verdict that was asked for and cannot be given, as the budget had less traced than it needs.
struct Unjudged {
    pid: u32,
    executable: String,
    verdict: FailOn,
    /// The level that it needs, and how long there was less.
    level: Level,
    below_ns: u64,
    budget: Option<f64>,
}

impl Unjudged {
    fn of(pid: u32, executable: &str, verdict: FailOn, level: Level, levels: &Levels) -> Option<Self> {
        let below_ns = levels.below_ns(level.name());
        (below_ns > 0).then(|| Self {
            pid,
            executable: executable.to_owned(),
            verdict,
            level,
            below_ns,
            budget: levels.budget,
        })
    }

    fn json(&self) -> serde_json::Value {
        let verdict = match self.verdict {
            FailOn::LeftBehind => "left_behind",
            FailOn::Unreachable => "unreachable",
        };
        serde_json::json!({ "unjudged": {
            "pid": self.pid,
            "executable": self.executable,
            "verdict": verdict,
            "level_needed": self.level.name(),
            "below_ns": self.below_ns,
            "budget": self.budget,
            "why": self.to_string(),
        }})
    }
}

impl fmt::Display for Unjudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, executable, verdict, level, below_ns, budget } = self;
        let what = match verdict {
            FailOn::LeftBehind => "whether goroutines were left behind",
            FailOn::Unreachable => "whether goroutines can never run again (unreachable)",
        };
        write!(
            f,
            "pid {pid} ({}): {what} could not be judged: for {} it was traced below level {level}, to keep within \
             the budget",
            printable(executable),
            text::duration(Some(*below_ns)),
        )?;
        match budget {
            Some(share) => write!(f, " of {:.1}% of its CPU time", share * 100.0),
            None => Ok(()),
        }
    }
}

/// A goroutine that somebody has woken is not left behind, and only level `full` tells.
fn unjudged_left_behind(left: &[LeftProcess]) -> Vec<Unjudged> {
    left.iter()
        .filter_map(|p| Unjudged::of(p.pid, &p.executable, FailOn::LeftBehind, Level::Full, &p.levels))
        .collect()
}

/// Proofs are made where somebody waits, and level `lifecycle` does not tell.
fn unjudged_unreachable(proven: &[ProvenProcess]) -> Vec<Unjudged> {
    let level = Level::Waits;
    proven
        .iter()
        .filter_map(|p| Unjudged::of(p.pid, &p.executable, FailOn::Unreachable, level, &p.last.levels))
        .collect()
}

/// Tells what was left behind; whether it was anything.
fn left_behind(mut out: &mut dyn Write, left: Vec<LeftProcess>, format: Format) -> io::Result<bool> {
    let mut found = false;
    for process in left {
        if process.unknown > 0 || process.lossy {
            tracing::warn!(
                pid = process.pid,
                born_unseen = process.unknown,
                events_lost = process.lossy,
                "what the program left behind is not known exactly"
            );
        }
        // Of what could not be judged none is not said to be none.
        let judged = process.levels.below_ns(Level::Full.name()) == 0;
        if process.findings.is_empty() && (format == Format::Table || !judged) {
            continue;
        }
        found |= !process.findings.is_empty();
        let header = Header {
            pid: process.pid,
            executable: &process.executable,
            go_version: &process.go_version,
            engine: "events",
            time_unix_nano: process.time_unix_nano,
            duration_ns: 0,
            looks: 0,
            goroutines: process.alive,
            came_and_exited: (0, 0),
            when: When::AtItsEnd,
            references_complete: true,
            proof: None,
        };
        let mut names = process.names;
        match format {
            Format::Table => leaks::text::write(&mut out, header, &process.findings, &mut names)?,
            Format::Json => leaks::json::write(&mut out, header, &process.findings, &mut names)?,
        }
    }
    out.flush()?;
    Ok(found)
}

/// Tells what was proven; whether it was anything. A process's memory is gone when it has ended, so that there
/// is no proof as of its end.
fn tell_proven(out: &mut dyn Write, proven: &[ProvenProcess], format: Format) -> io::Result<bool> {
    let mut found = false;
    for ProvenProcess { pid, executable, last, before_the_end } in proven {
        found |= !last.leaks.is_empty();
        match format {
            Format::Json => json::proven(out, last)?,
            Format::Table => {
                if !last.leaks.is_empty() {
                    writeln!(out, "pid {pid} ({executable}): goroutines that can never run again")?;
                    text::leaks(out, last)?;
                }
                match before_the_end {
                    Some(before) => writeln!(
                        out,
                        "pid {pid}: the last proof began {:.1} s before the end; what leaked later is not told",
                        before.as_secs_f64()
                    )?,
                    None => writeln!(
                        out,
                        "pid {pid} ({executable}): it ended before a proof was made: whether goroutines leaked is not known"
                    )?,
                }
            }
        }
    }
    out.flush()?;
    Ok(found)
}
