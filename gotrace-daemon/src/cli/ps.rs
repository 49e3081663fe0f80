//! `gotrace ps`, and `gotrace` alone on a terminal: the Go programs that run here, and what one second shows to be wrong
//! with each. Reads memory, and puts no probes in place.
//!
//! A daemon of this node that traces some of them is asked what it knows beyond that second ([`gotrace_export::ps::Longer`]).
//! Each program is examined as `gotrace leaks` does it, in a watch of a second and with one heap scan. A few at a time,
//! with their tables packed: it may be run in the container of the daemon, which has the memory.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    CliError, Exit, TextOrJson,
    asked::AskArgs,
    examine::{Concluded, Program},
    output::{Stdout, colour},
    programs::{Listed, Pods, Running},
    say,
};
use gotrace_export::ps::{Longer, Programs, Row, Seen, longer, problems, too_large};
use gotrace_inspect::examine::{Examination, Pace};
use gotrace_metadata::Placement;
use gotrace_process::{Clock, ProcessError, Target, contained, usage};

/// How long each is watched, and how long one must not have run to wait for a lock.
const WATCH: Duration = Duration::from_secs(1);
/// Held while an executable is read.
static PARSING: Mutex<()> = Mutex::new(());
/// Programs that are looked at at a time.
const AT_A_TIME: usize = 4;
/// No heap is scanned of a process that has more in memory.
const MAX_RESIDENT: u64 = 1 << 30;
/// Digits of a container's id that tell it from others.
const SHORT_ID: usize = 12;

/// Arguments of `ps`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Takes snapshots of each Go program for a second, and scans its heap once if no more than 1 GiB of
the process is in memory. The last column says what is wrong:
  DEADLOCK  goroutines blocked forever by the language's rules, or on locks in a cycle
  LEAK?     goroutines blocked on something that nothing which can still run references, by one
            heap scan of the ten that a proof takes
  STALLED   goroutines wait for a pool that hands out nothing
  LOCK      goroutines wait for a lock, and did not get it within that second
  GROWING   more and more goroutines block at the same place
`ok` means that one second showed none of these: `gotrace check` looks for longer.

Of programs that a gotrace daemon on this node traces, it also shows what the daemon knows: growth
over the last 15 minutes, leaks that are proven (LEAK), and how long goroutines have been blocked.

Reads the memory of the processes, which are never stopped or modified; needs no eBPF.

Examples:
  gotrace ps
  gotrace ps --format json | jq 'select(.process.note == \"leak\").process.pid'")]
pub struct PsArgs {
    /// Output format: table, or one JSON object per line (schema gotrace.ps/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    format: TextOrJson,
    /// Whether the daemon is asked.
    #[command(flatten)]
    ask: AskArgs,
}

impl Default for PsArgs {
    fn default() -> Self {
        Self { format: TextOrJson::Text, ask: AskArgs::default() }
    }
}

/// Looks at all Go programs and lists them.
///
/// # Errors
/// When processes cannot be listed, or results cannot be written.
pub(super) fn run(args: &PsArgs) -> Result<Exit, CliError> {
    let listed = Listed::now()?;
    let all: Vec<&Running> = listed.go().collect();
    // Without Kubernetes there are none.
    let pods = Pods::ask().ok();
    let progress = io::stderr().is_terminal();
    let (waiting, rows) = (Mutex::new(all.iter()), Mutex::new(Vec::new()));
    let work = || {
        while let Some(running) = next(&waiting) {
            let row = look(running, pods.as_ref());
            let Ok(mut rows) = rows.lock() else { return };
            rows.push(row);
            if progress {
                say(&format!("\r\x1b[K{} of {} Go programs", rows.len(), all.len()));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..AT_A_TIME.min(all.len()) {
            // Without a thread more it takes longer.
            let _ = thread::Builder::new().name("gotrace-ps".into()).spawn_scoped(scope, work);
        }
        work();
    });
    if progress {
        say("\r\x1b[K");
    }
    let mut rows: Vec<Row> = rows.into_inner().unwrap_or_default().into_iter().flatten().collect();
    // Now, so that what it says is as young as what was seen.
    let (daemon, mut known) = ask(&args.ask).unzip();
    for row in &mut rows {
        let start = all.iter().find(|running| running.pid == row.pid).map(|running| running.start_ticks);
        row.longer = start.and_then(|start| known.as_mut()?.remove(&(row.pid, start)));
        if let (Ok(seen), Some(longer)) = (&mut row.seen, &row.longer) {
            seen.add(longer);
        }
    }
    let programs = Programs {
        rows,
        time_unix_nano: Clock::measure().unix_nano(Clock::now_monotonic_ns()),
        watched_ns: u64::try_from(WATCH.as_nanos()).unwrap_or(u64::MAX),
        unreadable: listed.unreadable,
        daemon,
    };
    let mut out = Stdout::lock();
    match args.format {
        TextOrJson::Text => programs.write_text(&mut out, colour())?,
        TextOrJson::Json => programs.write_json(&mut out)?,
    }
    if args.format == TextOrJson::Text && io::stdout().is_terminal() && !programs.rows.is_empty() {
        writeln!(
            out,
            "\nwhat is wrong: gotrace check NAME    watch it: gotrace attach NAME    more: gotrace help"
        )?;
    }
    out.flush()?;
    Ok(Exit::DONE)
}

/// What a daemon knows of processes, by their pids and starts.
type Known = BTreeMap<(u32, u64), Longer>;

/// The daemon of this node by its pid, and what it knows.
fn ask(args: &AskArgs) -> Option<(u32, Known)> {
    let daemon = args.daemon()?;
    let [processes, histories, findings] =
        daemon.get(["/api/v1/processes", "/api/v1/history", "/api/v1/findings"])?;
    Some((daemon.pid(), longer(&processes, &histories, &findings)))
}

fn next<'a>(waiting: &Mutex<std::slice::Iter<'_, &'a Running>>) -> Option<&'a Running> {
    waiting.lock().ok()?.next().copied()
}

/// What a second shows of a program; `None` of one that has ended.
fn look(running: &Running, pods: Option<&Pods>) -> Option<Row> {
    // One that has gotrace panic does not hide the others.
    let seen = match contained(|| examine(running)) {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(error)) if error.exit() == Exit::GONE => return None,
        Ok(Err(error)) => Err(error.reason().to_owned()),
        Err(panic) => Err(format!("gotrace panicked, which is a bug; please report it: {panic}")),
    };
    Some(Row {
        pid: running.pid,
        name: running.name.clone(),
        executable: running.executable.display().to_string(),
        place: place(&running.placement, pods),
        seen,
        longer: None,
    })
}

fn place(placement: &Placement, pods: Option<&Pods>) -> Option<String> {
    if let Some(place) = pods.and_then(|pods| pods.place(placement)) {
        return Some(format!("{}/{}", place.namespace, place.pod));
    }
    let id = placement.container_id.as_deref()?;
    Some(id.get(..SHORT_ID).unwrap_or(id).to_owned())
}

fn examine(running: &Running) -> Result<Seen, CliError> {
    let pid = running.pid;
    let target = Target::open(pid)?;
    if target.identity.start_ticks != running.start_ticks {
        return Err(ProcessError::Gone { pid }.into());
    }
    let program = {
        // Until it is packed, its table may take 20 MB.
        let _alone = PARSING.lock();
        Program::of(target)?.packed()
    };
    let (_, resident) = usage(pid);
    let scans = resident <= MAX_RESIDENT;
    let pace = scans.then_some(Pace { max_read_rate: None, keeps_candidates: false, provisional: true });
    let mut process = program.examine(WATCH, pace)?;
    process.progress = false;
    let first = process.look()?;
    let began = first.monotonic_ns;
    let count = first.counts.goroutines.saturating_sub(first.counts.system);
    // What a scan fails at is said below.
    let _ = process.examination.pass();
    let until = |_: &mut Examination, next: Instant| {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        false
    };
    let seen = process.watch(first, Some(WATCH), None, until);
    let Concluded { last, findings, gone, .. } = process.conclude(seen)?;
    if let Some(gone) = gone {
        return Err(gone);
    }
    let goroutines = last.counts.goroutines.saturating_sub(last.counts.system);
    let seconds = last.monotonic_ns.saturating_sub(began) as f64 / 1e9;
    let growth = goroutines as f64 - count as f64;
    let examination = &process.examination;
    let not_scanned = match examination.proof_failure() {
        _ if !scans => Some(too_large(resident)),
        Some(why) => Some(why.to_owned()),
        None if examination.proof_summary().is_some_and(|s| s.passes > 0) => None,
        None => Some("the list of goroutines could not be read meanwhile".to_owned()),
    };
    Ok(Seen {
        go_version: program.binary.go_version().text.clone(),
        goroutines,
        growth_per_second: if seconds > 0.0 { growth / seconds } else { 0.0 },
        problems: problems(&findings, process.examination.names()),
        not_scanned,
    })
}
