//! `gotrace why`: who still holds what a goroutine waits on.
//!
//! Marks the heap of the process once and follows references back from what the goroutine waits on, to a
//! variable or to the stack of a goroutine.

use std::{io::Write as _, sync::Arc};

use clap::{Args, ValueEnum, value_parser};

use super::{CliError, Exit, output::Stdout};
use crate::{
    gobin::Binary,
    heap::{HeapError, Holder, Prover, Throttled, Why},
    process::Target,
    sink::leaks::why::{self, Answer},
    snapshot::{Live, Options},
    units as values,
};

/// Tries, where what was found had changed before it was followed.
const TRIES: usize = 3;

/// Arguments of `why`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace why --pid 1234 --goid 51
  gotrace why --pid 1234 --goid 51 --format dot | dot -Tsvg > why.svg

For a goroutine that waits for a channel, a lock or the like: the shortest way from a variable or from
the stack of another goroutine to what it waits on. Whoever should have closed the channel, sent,
received or unlocked is found there. Goroutines that nothing leads to are told by `gotrace leaks`.

Reads the process's memory; it is neither stopped nor changed, and eBPF is not needed.")]
pub struct WhyArgs {
    /// The process to look at
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: u32,
    /// The goroutine, as `gotrace dump` and `gotrace leaks` number it
    #[arg(short, long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub goid: u64,
    /// Text for people, one JSON object (schema gotrace.why/1), or for Graphviz
    #[arg(long, value_enum, default_value_t = WhyFormat::Text, value_name = "FORMAT")]
    pub format: WhyFormat,
    /// Read the heap no faster than this many bytes a second (50M, 1G) [default: as fast as can be]
    #[arg(long, value_parser = values::bytes, value_name = "BYTES")]
    pub max_read_rate: Option<u64>,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhyFormat {
    /// For people
    Text,
    /// For programs
    Json,
    /// For Graphviz
    Dot,
}

/// Looks, and writes what was found.
///
/// # Errors
/// When the process cannot be read (3), is no Go program or its heap is not understood (4), is gone (5), or
/// has no such goroutine (1).
pub fn run(args: &WhyArgs) -> Result<Exit, CliError> {
    let target = Target::open(args.pid)?;
    let executable = target.executable.display().to_string();
    let bytes = target.exe_bytes()?;
    let binary = Binary::parse(&bytes)
        .map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("process {}: {executable}: {e}", args.pid)))?;
    for warning in binary.warnings() {
        tracing::warn!(pid = args.pid, "{warning}");
    }
    let binary = Arc::new(binary);
    let mut live = Live::new(&target, Arc::clone(&binary)).map_err(|e| super::dump::error(args.pid, &e))?;
    let mut names = live.names(&target);
    let mut prover = Prover::new(Arc::clone(&binary), live.bias()).map_err(|e| error(args.pid, e))?;
    prover.keep_candidates();
    let memory = target.memory();
    let memory = Throttled::new(&memory, args.max_read_rate);
    let mut found = Why::Unknown;
    for _ in 0..TRIES {
        prover.pass(&memory).map_err(|e| error(args.pid, e))?;
        found = prover.why(&memory, args.goid).map_err(|e| error(args.pid, e))?;
        let vague = match &found {
            Why::Held(path) => path.as_ref().is_none_or(|p| matches!(p.holder, Holder::Runtime)),
            found => *found == Why::Unknown,
        };
        if !vague {
            break;
        }
    }
    let options = Options { labels: false, ..Options::default() };
    let snapshot = live.take(options).map_err(|e| super::dump::error(args.pid, &e))?;
    let goroutine = snapshot.goroutine(args.goid);
    if found == Why::Unknown && goroutine.is_none() {
        return Err(CliError::failure(format!("process {}: there is no goroutine {}", args.pid, args.goid))
            .help("`gotrace dump` shows all that there are"));
    }
    let address = match &found {
        Why::Held(Some(path)) => match path.holder {
            Holder::Variable { address, module: 0, .. } => Some(address),
            _ => None,
        },
        Why::Variable(address) => Some(*address),
        _ => None,
    };
    let variable = address.and_then(|a| Binary::variable_at(&bytes, a.wrapping_sub(live.bias())));
    let waits = goroutine.filter(|g| g.status.is_waiting());
    let answer = Answer {
        pid: args.pid,
        go_version: &binary.go_version().text,
        goid: args.goid,
        entry_pc: goroutine.map_or(0, |g| g.entry_pc),
        stack: goroutine.map_or(&[], |g| snapshot.frames(g)),
        wait_reason: waits.and_then(|g| binary.wait_reasons().get(usize::from(g.wait_reason)).copied()),
        why: &found,
        variable: variable.as_ref(),
    };
    let mut out = Stdout::lock();
    match args.format {
        WhyFormat::Text => why::text(&mut out, answer, &mut names)?,
        WhyFormat::Json => why::json(&mut out, answer, &mut names)?,
        WhyFormat::Dot => why::dot(&mut out, answer, &mut names)?,
    }
    out.flush()?;
    Ok(Exit::DONE)
}

fn error(pid: u32, e: HeapError) -> CliError {
    match e {
        HeapError::Process(e) => e.into(),
        HeapError::Snapshot(e) => super::dump::error(pid, &e),
        e => CliError::new(Exit::UNSUPPORTED, format!("process {pid}: {e}")),
    }
}
