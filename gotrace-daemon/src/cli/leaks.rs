//! `gotrace leaks`: what will not finish, and why.
//!
//! Takes looks at the process, at once or over a time, and lets [`gotrace_inspect::leak`] judge. What depends on who
//! refers to a channel is looked for twice, with a look between and one after, and must hold each time: the
//! process runs on meanwhile.

use std::{io::Write as _, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

mod evidence;

use self::evidence::write_evidence;
use super::{
    CliError, Exit, TextOrJson,
    args::BaselineArgs,
    dump::SOCKETS_CUT,
    examine::{self, Begin, Concluded, Interrupts, Process, Program, prove, verdict},
    output::Stdout,
    target::TargetArgs,
};
use crate::units as values;
use gotrace_export::leaks::{When, graph, json, text};
use gotrace_inspect::{
    examine::Pace,
    leak::{Agreement, Finding, Graph, Verdict},
    snapshot::{Reference, References, Snapshot, Suspect},
};

/// Arguments of `leaks`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Verdicts, worst first:
  unreachable  leaked: nothing that can still run references what it is blocked on (proven by ten
               heap scans)
  deadlock     blocked forever by the language's rules, or on locks in a cycle
  stalled      waits for a pool that hands out nothing, as the holders of its members are blocked
               too (needs --watch)
  growing      more and more goroutines block at the same place, and stay (needs --watch)
  stuck        has not run for --stuck-after while others have (needs --watch)
  orphaned     suspected: its creator has exited, and no stack or variable refers to what it is
               blocked on

Reads the memory of the process, which is never stopped or modified; needs no eBPF. Ctrl-C stops
watching and prints what is known so far.

Examples:
  gotrace leaks server
  gotrace leaks 1234 --watch 60s
  gotrace leaks 1234 --watch 5m --format json --fail-on unreachable,deadlock,growing
  gotrace leaks 1234 --graph dot | dot -Tsvg > graph.svg")]
pub struct LeaksArgs {
    /// Which process.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Take snapshots for this long (60s, 10m); without it, report what one moment shows
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME")]
    pub watch: Option<Duration>,
    /// Time between snapshots; longer if they are slow [default: 1/16 of --watch, from 200ms to 10s]
    #[arg(long, value_parser = values::interval, value_name = "TIME", requires = "watch")]
    pub interval: Option<Duration>,
    /// Report goroutines as stuck that have not run for this long [default: half of --watch, at most 30s]
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME", requires = "watch")]
    pub stuck_after: Option<Duration>,
    /// Output format: text, or one JSON object per line (schema gotrace.leaks/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
    /// Exit with code 10 if there is a finding with one of these verdicts
    #[arg(long, value_delimiter = ',', value_parser = verdict, value_name = "VERDICT,…")]
    pub fail_on: Vec<Verdict>,
    /// YAML file of known findings, each with a reason: shown as suppressed, and never a failure
    #[arg(long, value_name = "FILE")]
    pub suppress: Option<PathBuf>,
    /// Known findings.
    #[command(flatten)]
    pub baseline: BaselineArgs,
    /// Do not scan the heap; nothing is reported as unreachable
    #[arg(long)]
    pub no_proof: bool,
    /// Write the result of every heap scan to FILE as JSON lines (schema gotrace.evidence/1)
    #[arg(long, value_name = "FILE", conflicts_with = "no_proof")]
    pub evidence: Option<PathBuf>,
    /// Read at most this much of the heap per second (50M, 1G) [default: no limit]
    #[arg(long, value_parser = values::bytes, value_name = "BYTES", conflicts_with = "no_proof")]
    pub max_read_rate: Option<u64>,
    /// Instead of findings, print the wait graph: which goroutines are blocked on what, and which stacks
    /// refer to it; for Graphviz or as JSON lines (schema gotrace.graph/1)
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with_all = ["watch", "format", "fail_on", "evidence", "max_read_rate"])]
    pub graph: Option<GraphFormat>,
}

/// How the graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For Graphviz
    Dot,
    /// One JSON object per line
    Json,
}

/// Looks, judges, and writes findings.
///
/// # Errors
/// When the process cannot be read (3), is no Go program (4), or is gone (5); the last also when it ends
/// while it is watched, after what was known by then has been written.
pub fn run(args: &LeaksArgs) -> Result<Exit, CliError> {
    let acceptance = args.baseline.acceptance(args.suppress.as_deref())?;
    let pid = args.target.pid()?;
    let program = Program::open(pid)?;
    let pace = Pace {
        max_read_rate: args.max_read_rate,
        keeps_candidates: args.evidence.is_some(),
        provisional: true,
    };
    let proofs = (!args.no_proof && args.graph.is_none()).then_some(pace);
    let stuck_after = args.stuck_after.unwrap_or_else(|| examine::stuck_after(args.watch));
    let mut process = program.examine(stuck_after, proofs)?;
    let header = program.header(if args.watch.is_some() { When::Watched } else { When::Once });
    if let Some(format) = args.graph {
        let (snapshot, references) = whole_graph(&mut process)?;
        let header = Begin::of(&snapshot).header(header, &snapshot, 1, references.complete);
        let graph = Graph::new(&snapshot, Some(&references));
        let mut out = Stdout::lock();
        let names = process.examination.names();
        match format {
            GraphFormat::Dot => graph::dot(&mut out, header, &graph, names)?,
            GraphFormat::Json => graph::json(&mut out, header, &graph, names)?,
        }
        out.flush()?;
        return Ok(Exit::DONE);
    }
    let first = process.look()?;
    let begin = Begin::of(&first);
    let interrupted = Interrupts::listen()?;
    // Of a watch the first look is what is left if the process ends; else two more are made, and there may be a million
    // goroutines in each.
    let first = if args.watch.is_some() { first } else { Snapshot::default() };
    prove(&mut process.examination, &interrupted, None, &mut 0);
    let seen = process.watch(first, args.watch, args.interval, |_, next| interrupted.wait_until(next));
    if args.watch.is_some() && seen.is_ok() {
        // Those that were not there at first.
        prove(&mut process.examination, &interrupted, None, &mut 0);
    }
    let Concluded { last, mut findings, references_complete: complete, gone } = process.conclude(seen)?;
    process.never_stopped();
    let identities = process.accept(&mut findings, &acceptance);
    let examination = &mut process.examination;
    let mut header = begin.header(header, &last, examination.watch().looks(), complete);
    let summary = examination.proof_summary();
    header.proof = summary.as_ref();
    if gone.is_none() {
        header.outside = Some(&last.outside);
    }
    header.came_and_exited = examination.watch().came_and_exited();
    if let (Some(path), Some(prover), Some(summary)) = (&args.evidence, examination.prover(), &summary) {
        write_evidence(path, pid, prover, summary)?;
    }
    let mut out = Stdout::lock();
    match args.format {
        TextOrJson::Text => text::write(&mut out, header, &findings, examination.names())?,
        TextOrJson::Json => json::write(&mut out, header, &findings, examination.names())?,
    }
    out.flush()?;
    drop(out);
    if last.outside.sockets_cut {
        CliError::warn(SOCKETS_CUT);
    }
    if !complete && gone.is_none() {
        CliError::warn(
            "too many goroutines or too large stacks to search for references: orphaned goroutines not reported",
        );
    }
    let counts =
        |f: &Finding| args.fail_on.contains(&f.verdict) && !f.passes.is_some_and(Agreement::is_provisional);
    let kept = findings.iter().zip(identities).filter(|(f, _)| counts(f) && f.accepted.suppressed.is_none());
    let written = args.baseline.write(kept.map(|(_, identity)| identity))?;
    if !written && findings.iter().any(|f| counts(f) && !f.accepted.is_accepted()) {
        return Ok(Exit::FINDINGS);
    }
    match gone {
        Some(error) => Err(error.help("the results are as of its exit")),
        None => Ok(Exit::DONE),
    }
}

/// A look, and whose stacks refer to anything that is waited on.
fn whole_graph(process: &mut Process) -> Result<(Snapshot, References), CliError> {
    let snapshot = process.look()?;
    let address = |w: &gotrace_inspect::snapshot::Wait| {
        let object = snapshot.object(w.object).filter(|o| o.address != 0)?;
        Some(Reference::exact(object.address))
    };
    let waiting: Vec<Suspect> = snapshot
        .goroutines
        .iter()
        .map(|g| Suspect {
            goid: g.goid,
            waits_on: snapshot.waits_of(g).iter().filter_map(address).collect(),
            follows: false,
        })
        .filter(|s| !s.waits_on.is_empty())
        .collect();
    let references = process.examination.references(&snapshot, &waiting);
    let references = references.map_err(|e| process.error(&e))?;
    Ok((snapshot, references))
}
