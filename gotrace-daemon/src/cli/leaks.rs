//! `gotrace leaks`: what will not finish, and why.
//!
//! Takes looks at the process, at once or over a time, and lets [`crate::leak`] judge. What depends on who
//! refers to a channel is looked for twice, with a look between and one after, and must hold each time: the
//! process runs on meanwhile.

use std::{
    cell::Cell,
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum, value_parser};

mod explain;
mod proof;

use self::proof::{Proving, prove};
use super::{CliError, Exit, TextOrJson, output::Stdout};
use crate::{
    gobin::Binary,
    leak::{Agreement, Finding, Graph, Settings, Verdict, Watch, judge, suspects},
    process::Target,
    sink::leaks::{Header, When, graph, json, text},
    snapshot::{Live, Options, Reference, References, Snapshot, SnapshotError, Suspect},
    units as values,
};

/// Between two looks where there is no watch.
const SHORT: Duration = Duration::from_millis(300);
/// Looks at least this far apart.
const SHORTEST: Duration = Duration::from_millis(200);
/// And at most, unless said otherwise.
const LONGEST: Duration = Duration::from_secs(10);
/// As many looks as a watch has, where the bounds allow it.
const LOOKS: u32 = 16;
/// Time between looks, at least, in durations of a look: so that gotrace takes a tenth of a CPU at most.
const REST: u32 = 10;
/// Nothing is called stuck earlier, unless said otherwise.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// Goroutines whose references are looked for.
const MAX_SUSPECTS: usize = 200_000;

/// Arguments of `leaks`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace leaks --pid 1234
  gotrace leaks --pid 1234 --watch 60s
  gotrace leaks --pid 1234 --watch 5m --format json --fail-on unreachable,deadlock,growing
  gotrace leaks --pid 1234 --graph dot | dot -Tsvg > graph.svg

Verdicts, the worst first:
  unreachable  can never run again: nothing that can run leads to what it waits on, as marking the
               heap ten times shows
  deadlock     waits for ever by the language's rules, or for locks in a circle
  growing      more and more goroutines stand at the same place and stay (needs --watch)
  stuck        has not moved for --stuck-after, where others do (needs --watch)
  orphaned     its creator has ended, and no stack or variable refers to what it waits on: a suspicion

Reads the process's memory; it is neither stopped nor changed, and eBPF is not needed. Ctrl-C ends
the watch and tells what is known by then.")]
pub struct LeaksArgs {
    /// The process to look at
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: u32,
    /// Look again and again for this long (60s, 10m); without it, only what can be told at once
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME")]
    pub watch: Option<Duration>,
    /// Time between two looks; longer where looking takes long [default: a 16th of --watch, 200ms to 10s]
    #[arg(long, value_parser = values::interval, value_name = "TIME", requires = "watch")]
    pub interval: Option<Duration>,
    /// A goroutine that has not moved for this long may be stuck [default: half of --watch, at most 30s]
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME", requires = "watch")]
    pub stuck_after: Option<Duration>,
    /// Text for people, or one JSON object a line (schema gotrace.leaks/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
    /// End with exit code 10 when there is a finding with one of these verdicts
    #[arg(long, value_delimiter = ',', value_parser = verdict, value_name = "VERDICT,…")]
    pub fail_on: Vec<Verdict>,
    /// Do not mark the heap: nothing is told as unreachable
    #[arg(long)]
    pub no_proof: bool,
    /// Write what marking the heap saw, pass by pass, as JSON lines (schema gotrace.evidence/1)
    #[arg(long, value_name = "FILE", conflicts_with = "no_proof")]
    pub evidence: Option<PathBuf>,
    /// Read the heap no faster than this many bytes a second (50M, 1G) [default: as fast as can be]
    #[arg(long, value_parser = values::bytes, value_name = "BYTES", conflicts_with = "no_proof")]
    pub max_read_rate: Option<u64>,
    /// Instead of findings: who waits for what, and whose stack refers to it, for Graphviz or as JSON
    /// lines (schema gotrace.graph/1)
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with_all = ["watch", "format", "fail_on", "evidence", "max_read_rate"])]
    pub graph: Option<GraphFormat>,
}

/// How the graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For Graphviz
    Dot,
    /// One object a line
    Json,
}

/// Verdicts that this command can come to.
fn verdict(name: &str) -> Result<Verdict, String> {
    const EXPECTED: &str = "write unreachable, deadlock, growing, stuck or orphaned";
    match Verdict::from_name(name) {
        Some(Verdict::LeftBehind) => Err("left_behind is told at the end of `gotrace exec`".into()),
        Some(verdict) => Ok(verdict),
        None => Err(EXPECTED.into()),
    }
}

/// Looks, judges, and writes findings.
///
/// # Errors
/// When the process cannot be read (3), is no Go program (4), or is gone (5); the last also when it ends
/// while it is watched, after what was known by then has been written.
pub fn run(args: &LeaksArgs) -> Result<Exit, CliError> {
    let target = Target::open(args.pid)?;
    let executable = target.executable.display().to_string();
    let binary = Binary::parse(&target.exe_bytes()?)
        .map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("process {}: {executable}: {e}", args.pid)))?;
    for warning in binary.warnings() {
        tracing::warn!(pid = args.pid, "{warning}");
    }
    if binary.layout_is_extrapolated() {
        tracing::warn!(
            pid = args.pid,
            "{} is newer than this gotrace knows: whether goroutines move cannot be told, and of verdicts only the \
             deadlock of nil channels",
            binary.go_version().text
        );
    }
    let binary = Arc::new(binary);
    let live = Live::new(&target, Arc::clone(&binary)).map_err(|e| super::dump::error(args.pid, &e))?;
    let mut names = live.names(&target);
    let mut process = Process { pid: args.pid, live };
    let header = Header {
        pid: args.pid,
        executable: &executable,
        go_version: &binary.go_version().text,
        engine: "snapshot",
        time_unix_nano: 0,
        duration_ns: 0,
        looks: 1,
        goroutines: 0,
        came_and_exited: (0, 0),
        when: if args.watch.is_some() { When::Watched } else { When::Once },
        references_complete: true,
        proof: None,
    };
    if let Some(format) = args.graph {
        let (snapshot, references) = process.whole_graph()?;
        let header = header_of(header, Begin::of(&snapshot), &snapshot, 1, references.complete);
        let graph = Graph::new(&snapshot, Some(&references));
        let mut out = Stdout::lock();
        match format {
            GraphFormat::Dot => graph::dot(&mut out, header, &graph, &mut names)?,
            GraphFormat::Json => graph::json(&mut out, header, &graph, &mut names)?,
        }
        out.flush()?;
        return Ok(Exit::DONE);
    }
    let stuck_after =
        args.stuck_after.unwrap_or_else(|| args.watch.map_or(STUCK_AFTER, |w| (w / 2).min(STUCK_AFTER)));
    let stuck_after_ns = u64::try_from(stuck_after.as_nanos()).unwrap_or(u64::MAX);
    let mut watch = Watch::new(Settings { stuck_after_ns }, binary.wait_reasons());
    let first = process.look()?;
    watch.observe(&first);
    let begin = Begin::of(&first);
    let interrupted = Interrupts::listen()?;
    let mut proving = if args.no_proof { None } else { Proving::new(&target, &process.live, args) };
    prove(&mut proving, &interrupted);
    let seen = watching(args, &mut process, &mut watch, first, (&mut proving, &interrupted));
    if args.watch.is_some() && seen.is_ok() {
        // Those that were not there at first.
        prove(&mut proving, &interrupted);
    }
    let (last, mut findings, complete, gone) = match seen {
        Ok(last) => conclude(&mut process, &mut watch, last, &mut proving)?,
        Err(ended) => {
            let Ended { last, error } = *ended;
            let none = References::default();
            let unreached = proving.as_ref().map(Proving::unreached).unwrap_or_default();
            let findings = judge(&watch, &last, (&none, &none), &unreached);
            (last, findings, false, Some(error))
        }
    };
    let mut header = header_of(header, begin, &last, watch.looks(), complete);
    let summary = proving.as_mut().map(|p| p.conclude(&mut findings, gone.is_none())).transpose()?;
    header.proof = summary.as_ref();
    if gone.is_none() {
        explain::explain(&process, proving.as_mut(), &last, &mut findings);
    }
    header.came_and_exited = watch.came_and_exited();
    let mut out = Stdout::lock();
    match args.format {
        TextOrJson::Text => text::write(&mut out, header, &findings, &mut names)?,
        TextOrJson::Json => json::write(&mut out, header, &findings, &mut names)?,
    }
    out.flush()?;
    drop(out);
    if !complete && gone.is_none() {
        eprintln!(
            "gotrace: the process has too many goroutines or too large stacks to look for who refers to what \
             within bounds: orphaned goroutines were not told"
        );
    }
    let proven = |f: &Finding| !f.passes.is_some_and(Agreement::is_provisional);
    if findings.iter().any(|f| args.fail_on.contains(&f.verdict) && proven(f)) {
        return Ok(Exit::FINDINGS);
    }
    match gone {
        Some(error) => Err(error.help("what is written is what was known when it ended")),
        None => Ok(Exit::DONE),
    }
}

/// When the first look began, by both clocks.
#[derive(Clone, Copy)]
struct Begin {
    unix_nano: u64,
    monotonic_ns: u64,
}

impl Begin {
    fn of(first: &Snapshot) -> Self {
        Self { unix_nano: first.time_unix_nano, monotonic_ns: first.monotonic_ns }
    }
}

fn header_of<'a>(
    header: Header<'a>,
    begin: Begin,
    last: &Snapshot,
    looks: usize,
    complete: bool,
) -> Header<'a> {
    Header {
        time_unix_nano: begin.unix_nano,
        duration_ns: (last.monotonic_ns + last.duration_ns).saturating_sub(begin.monotonic_ns),
        looks,
        goroutines: last.counts.goroutines.saturating_sub(last.counts.system),
        references_complete: complete,
        ..header
    }
}

/// The process that is looked at.
struct Process {
    pid: u32,
    live: Live,
}

impl Process {
    fn look(&mut self) -> Result<Snapshot, CliError> {
        let options = Options { labels: false, ..Options::default() };
        self.live.take(options).map_err(|e| self.error(&e))
    }

    fn error(&self, e: &SnapshotError) -> CliError {
        super::dump::error(self.pid, e)
    }

    /// Who refers to what suspects wait on.
    fn references(&mut self, snapshot: &Snapshot, suspects: &[Suspect]) -> Result<References, CliError> {
        if suspects.is_empty() {
            return Ok(References { complete: true, ..References::default() });
        }
        if suspects.len() > MAX_SUSPECTS {
            return Ok(References::default());
        }
        Ok(self.live.find_references(snapshot, suspects)?)
    }

    /// A look, and whose stacks refer to anything that is waited on.
    fn whole_graph(&mut self) -> Result<(Snapshot, References), CliError> {
        let snapshot = self.look()?;
        let address = |w: &crate::snapshot::Wait| {
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
        let references = self.references(&snapshot, &waiting)?;
        Ok((snapshot, references))
    }
}

/// The watch could not go on.
struct Ended {
    last: Snapshot,
    error: CliError,
}

/// Looks until the time is over or the user wants no more; gives the last look.
fn watching(
    args: &LeaksArgs,
    process: &mut Process,
    watch: &mut Watch,
    first: Snapshot,
    (proving, interrupted): (&mut Option<Proving>, &Interrupts),
) -> Result<Snapshot, Box<Ended>> {
    let mut last = first;
    let Some(length) = args.watch else {
        std::thread::sleep(SHORT);
        return Ok(last);
    };
    let wanted = args.interval.unwrap_or_else(|| (length / LOOKS).clamp(SHORTEST, LONGEST));
    let begin = Instant::now();
    let progress = io::stderr().is_terminal();
    let mut next = begin + wanted;
    while next <= begin + length && !interrupted.wait_until(next) {
        let looked = Instant::now();
        match process.look() {
            Ok(snapshot) => {
                watch.observe(&snapshot);
                last = snapshot;
            }
            Err(error) => return Err(Box::new(Ended { last, error })),
        }
        if let Some(proving) = proving {
            proving.check();
        }
        if progress {
            let (seen, count) = (watch.looks(), last.counts.goroutines - last.counts.system);
            let left = (begin + length).saturating_duration_since(Instant::now()).as_secs();
            eprint!("\r\x1b[Klooked {seen} times, {count} goroutines, {left} s left (Ctrl-C ends it)");
        }
        next += wanted.max(looked.elapsed() * REST);
        // A process that was stopped for a while is not looked at more often afterwards.
        next = next.max(Instant::now());
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    Ok(last)
}

/// The end of the looks, where references have been searched: the last look, what was found, whether
/// everything could be searched, and the error if the process ended meanwhile.
type Conclusion = (Snapshot, Vec<Finding>, bool, Option<CliError>);

/// Looks for references, looks again, and once more, so that what is found has stood still meanwhile.
fn conclude(
    process: &mut Process,
    watch: &mut Watch,
    mut last: Snapshot,
    proving: &mut Option<Proving>,
) -> Result<Conclusion, CliError> {
    if watch.looks() < 2 {
        last = process.look()?;
        watch.observe(&last);
    }
    let mut both: Option<(References, References)> = None;
    for _ in 0..2 {
        let (mut others, mut locks) = suspects(watch, &last);
        if let Some(proving) = proving.as_mut() {
            proving.bound(&mut others);
            proving.bound(&mut locks);
        }
        let now = (process.references(&last, &others)?, process.references(&last, &locks)?);
        both = Some(match both {
            None => now,
            Some((others, locks)) => (others.agree(&now.0), locks.agree(&now.1)),
        });
        last = process.look()?;
        watch.observe(&last);
    }
    let (others, locks) = both.unwrap_or_default();
    let complete = others.complete && locks.complete;
    let unreached = proving.as_mut().map(|p| {
        p.check();
        p.unreached()
    });
    let findings = judge(watch, &last, (&others, &locks), &unreached.unwrap_or_default());
    Ok((last, findings, complete, None))
}

/// Ctrl-C and the like, for as long as it lives.
pub(super) struct Interrupts {
    runtime: tokio::runtime::Runtime,
    told: Arc<tokio::sync::Notify>,
    /// Whether one came, after which nothing is waited for any more.
    ended: Cell<bool>,
}

impl Interrupts {
    fn listen() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |e: io::Error| CliError::failure(format!("cannot listen for signals: {e}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(failed)?;
        let told = Arc::new(tokio::sync::Notify::new());
        {
            let _in_runtime = runtime.enter();
            for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
                let mut signals = signal(kind).map_err(failed)?;
                let told = Arc::clone(&told);
                runtime.spawn(async move {
                    while signals.recv().await.is_some() {
                        told.notify_one();
                    }
                });
            }
        }
        Ok(Self { runtime, told, ended: Cell::new(false) })
    }

    /// Whether the user wanted to end before the time came.
    fn wait_until(&self, time: Instant) -> bool {
        if !self.ended.get() {
            let told = async { tokio::time::timeout_at(time.into(), self.told.notified()).await.is_ok() };
            self.ended.set(self.runtime.block_on(told));
        }
        self.ended.get()
    }
}
