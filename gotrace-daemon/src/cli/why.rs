//! `gotrace why`: who still holds what a goroutine waits on.
//!
//! Marks the heap of the process once and follows references back from what the goroutine waits on, to a
//! variable or to the stack of a goroutine.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use clap::{Args, ValueEnum, value_parser};

use super::{CliError, Exit, output::Stdout, target::TargetArgs};
use crate::units as values;
use gotrace_export::leaks::why::{self, Answer, State};
use gotrace_go::Binary;
use gotrace_inspect::{
    examine,
    heap::{HeapError, Holder, Prover, Throttled, Why},
    leak::Awaited,
    snapshot::{Goroutine, Live, Options},
};
use gotrace_process::Target;

/// Tries, where what was found had changed before it was followed, and where the goroutine ran meanwhile.
const TRIES: usize = 3;

/// Arguments of `why`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Prints the shortest chain of references from a variable, or from the stack of another goroutine, to
the channel, lock or the like that the goroutine is blocked on. Whatever should have sent, received,
closed or unlocked is along that chain. If there is no chain, see `gotrace leaks`.

Reads the memory of the process, which is never stopped or modified; needs no eBPF.

Examples:
  gotrace why 1234 --goid 51
  gotrace why 1234 --goid 51 --format dot | dot -Tsvg > why.svg")]
pub struct WhyArgs {
    /// Which process.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Goroutine id, as `gotrace dump` and `gotrace leaks` print it
    #[arg(short, long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub goid: u64,
    /// Output format: text, one JSON object (schema gotrace.why/1), or Graphviz
    #[arg(long, value_enum, default_value_t = WhyFormat::Text, value_name = "FORMAT")]
    pub format: WhyFormat,
    /// Read at most this much of the heap per second (50M, 1G) [default: no limit]
    #[arg(long, value_parser = values::bytes, value_name = "BYTES")]
    pub max_read_rate: Option<u64>,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhyFormat {
    /// Human-readable
    Text,
    /// Machine-readable
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
    let pid = args.target.pid()?;
    let target = Target::open(pid)?;
    let executable = target.executable.display().to_string();
    let bytes = target.exe_bytes()?;
    let binary = super::dump::parse(&target, &bytes).map_err(|e| {
        CliError::new(Exit::UNSUPPORTED, format!("cannot read process {pid}: {executable}: {e}"))
    })?;
    for warning in binary.warnings() {
        tracing::warn!(pid, "{warning}");
    }
    let mut live = Live::new(&target, Arc::new(binary)).map_err(|e| super::dump::error(pid, &e))?;
    let mut out = Stdout::lock();
    explain((&target, &mut live), args.goid, (args.max_read_rate, None), args.format, &mut out)?;
    out.flush()?;
    Ok(Exit::DONE)
}

/// Looks in a process, and writes what was found. The heap is read at this rate at most, and not marked where that takes
/// more than so many bytes.
///
/// # Errors
/// As [`run`].
pub(super) fn explain(
    (target, live): (&Target, &mut Live),
    goid: u64,
    (max_read_rate, room): (Option<u64>, Option<u64>),
    format: WhyFormat,
    out: &mut impl io::Write,
) -> Result<(), CliError> {
    let pid = target.pid();
    let binary = Arc::clone(live.binary());
    let mut names = live.names(target);
    let mut prover = Prover::new(Arc::clone(&binary), live.bias()).map_err(|e| error(pid, e))?;
    prover.keep_candidates();
    if let Some(room) = room {
        prover.bound(live.most(), room);
    }
    let memory = target.memory();
    let memory = Throttled::new(&memory, max_read_rate);
    let options = Options { labels: false, ..Options::default() };
    let reason = |g: &Goroutine| binary.wait_reasons().get(usize::from(g.wait_reason)).copied();
    let ends_by_itself =
        |g: &Goroutine| !g.status.is_waiting() || matches!(reason(g), Some("sleep" | "IO wait"));
    let mut tries = 1;
    let (first, found, mut snapshot) = loop {
        let before = live.take(options).map_err(|e| super::dump::error(pid, &e))?;
        prover.pass(&memory).map_err(|e| error(pid, e))?;
        let found = prover.why(&memory, goid).map_err(|e| error(pid, e))?;
        let after = live.take(options).map_err(|e| super::dump::error(pid, &e))?;
        let is_done = match (before.goroutine(goid), after.goroutine(goid)) {
            (_, None) => true,
            (_, Some(after)) if found == Why::Other && ends_by_itself(after) => true,
            (Some(before), Some(after)) => is_clear(&found, before) && stands(before, after),
            (None, Some(_)) => false,
        };
        if tries == TRIES || is_done {
            break (before, found, after);
        }
        tries += 1;
    };
    let holders = examine::holders(&mut prover, &memory, &mut names, &snapshot, goid);
    let holders = holders.map_err(|e| error(pid, e))?;
    let others = why::holding(&found).into_iter().chain(holders.iter().map(|h| h.goid));
    live.look_outside(&mut snapshot, std::iter::once(goid).chain(others));
    let goroutine = snapshot.goroutine(goid);
    let before = first.goroutine(goid);
    if found == Why::Unknown && goroutine.is_none() && before.is_none() {
        return Err(CliError::failure(format!("process {pid} has no goroutine {}", goid))
            .help("`gotrace dump` lists all goroutines"));
    }
    let address = match &found {
        Why::Held(Some(path)) => match path.holder {
            Holder::Variable { address, module: 0, .. } => Some(address),
            _ => None,
        },
        Why::Variable(address) => Some(*address),
        _ => None,
    };
    let variable = match address {
        Some(address) => Binary::variable_at(&target.exe_bytes()?, address.wrapping_sub(live.bias())),
        None => None,
    };
    let waits = goroutine.filter(|g| g.status.is_waiting());
    let waited = before.filter(|g| g.status.is_waiting());
    let moved_on = match (waited, goroutine) {
        (Some(before), Some(now)) if stands(before, now) => None,
        // A loop that sleeps: what it does now is told in any case.
        (Some(before), Some(now))
            if found == Why::Other && ends_by_itself(now) && reason(before) == reason(now) =>
        {
            None
        }
        (Some(before), _) => reason(before),
        (None, _) => None,
    };
    // It waited only when the heap was marked.
    let passing = waited.is_none() && waits.is_none() && goroutine.is_some() && found != Why::Unknown;
    let found = if passing { Why::Other } else { found };
    // Of one that has ended, what it was.
    let (shown, stack) = match (goroutine, before) {
        (Some(now), _) => (Some(now), snapshot.frames(now)),
        (None, Some(before)) => (Some(before), first.frames(before)),
        (None, None) => (None, &[][..]),
    };
    let place = examine::place(&mut names, stack).map(Awaited::text);
    let answer = Answer {
        pid,
        go_version: &binary.go_version().text,
        goid,
        entry_pc: shown.map_or(0, |g| g.entry_pc),
        stack,
        wait_reason: waits.and_then(reason),
        place,
        state: State::of(goroutine),
        moved_on,
        why: &found,
        holders: &holders,
        variable: variable.as_ref(),
        snapshot: &snapshot,
    };
    match format {
        WhyFormat::Text => why::text(out, answer, &mut names)?,
        WhyFormat::Json => why::json(out, answer, &mut names)?,
        WhyFormat::Dot => why::dot(out, answer, &mut names)?,
    }
    Ok(())
}

/// Whether what was found tells something, of a wait that had begun before it was looked for.
fn is_clear(found: &Why, before: &Goroutine) -> bool {
    match found {
        Why::Unknown => false,
        Why::Other => true,
        Why::Held(path) => {
            path.as_ref().is_some_and(|p| !matches!(p.holder, Holder::Runtime)) && before.status.is_waiting()
        }
        Why::Variable(_) | Why::Unreached | Why::OnPurpose => before.status.is_waiting(),
    }
}

/// Whether it has not run between two looks. Two states of one that stands have the same mark.
fn stands(before: &Goroutine, after: &Goroutine) -> bool {
    match (before.status.is_waiting(), after.status.is_waiting()) {
        (true, true) => before.park_mark == after.park_mark || after.park_mark == 0,
        (before, after) => before == after,
    }
}

fn error(pid: u32, e: HeapError) -> CliError {
    match e {
        HeapError::Process(e) => e.into(),
        HeapError::Snapshot(e) => super::dump::error(pid, &e),
        e => CliError::new(Exit::UNSUPPORTED, format!("cannot read the heap of process {pid}: {e}")),
    }
}
