//! `gotrace check`: whether something is wrong with a process, within ten seconds and without probes.
//!
//! Makes the examination of `gotrace leaks`, with as many heap scans as the time allows, and says beside findings what
//! was checked and what was not ([`coverage`]). Output: a report as text, Markdown or JSON, JUnit XML, annotations, a
//! baseline; exit code 10 for problems, and 1 where it cannot be told whether there are any.

mod coverage;
mod requests;
mod scans;

pub(super) use coverage::throttling;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Id, ValueEnum, builder::Resettable};

use self::{
    coverage::{Examined, Scanned, TracedRequests},
    requests::Tracing,
    scans::Scans,
};
use super::{
    CliError, Exit,
    args::{Annotations, BaselineArgs, BudgetArg, percent},
    asked::AskArgs,
    dump::{SOCKETS_CUT, write_to},
    examine::{self, Begin, Concluded, Interrupts, Program, verdict},
    guard::{Found, Outcome, Suite, Told, annotate, found, write_junit},
    output::colour,
    say,
    target::TargetArgs,
};
use crate::units as values;
use gotrace_export::{
    check::{Concern, Condition, Report, Weight, html, json, markdown, text},
    dump::{self, Dump, Filter},
    leaks::When,
};
use gotrace_inspect::{
    examine::Pace,
    leak::{Finding, Verdict, standing},
};
use gotrace_model::printable::printable;
use gotrace_process::is_stopped;
use gotrace_ui::Reader as _;

/// As fast as can be, and only whole proofs count.
const PACE: Pace = Pace { max_read_rate: None, keeps_candidates: false, provisional: false };

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
#[command(
    mut_arg("baseline", |arg| arg.requires(Resettable::<Id>::Reset)),
    mut_arg("write_baseline", |arg| arg.requires(Resettable::<Id>::Reset)),
    after_help = "\
Checks for goroutines that are leaked (unreachable), deadlocked, stalled on a pool, piling up
(growing), stuck or orphaned, as `gotrace leaks` does, and says what could not be checked and why.
`gotrace leaks --help` explains the verdicts. Also checks whether a CPU quota was used up
(throttling) and, with --requests, whether requests took long (slow), and what they spent their
time on: `gotrace requests --help`.

Exits with 10 if there are problems: findings with a verdict in --fail-on that are neither
suppressed nor in the baseline, throttling or slow requests if --fail-on names them. Other findings
are warnings. Exits with 1 if no problem was found but something in --fail-on could not be checked.

Reads the memory of the process, which is never stopped or modified; needs no eBPF without
--requests. Ctrl-C ends the check early.

Examples:
  gotrace check server
  gotrace check 1234 --html leak.html
  gotrace check 1234 -o report.md
  gotrace check 1234 --watch 60s --fail-on unreachable,deadlock
  gotrace check 1234 --requests=250ms --fail-on slow,throttling
  gotrace check 1234 --write-baseline known.json
  gotrace check 1234 --baseline known.json --junit check.xml"
)]
pub struct CheckArgs {
    /// Which process.
    #[command(flatten)]
    target: TargetArgs,
    /// How long to check: snapshots and heap scans are made for this long
    #[arg(long, value_parser = values::duration_above_zero, default_value = "10s", value_name = "TIME")]
    watch: Duration,
    /// Verdicts that are problems, and throttling and slow; other findings are warnings
    #[arg(long, value_delimiter = ',', value_parser = concern, value_name = "VERDICT,…",
          default_value = "unreachable,deadlock,stalled,growing,stuck")]
    fail_on: Vec<Concern>,
    /// Trace requests too, with probes: those that take TIME or longer are slow [default TIME: 100ms]
    #[arg(long, value_parser = values::duration, num_args = 0..=1, require_equals = true,
          default_missing_value = "100ms", value_name = "TIME")]
    requests: Option<Duration>,
    /// Limit the overhead of these probes to this percentage of the process's CPU time (but allow at least
    /// 5 ms per second), or none for no limit. Above it, requests are traced in turns
    #[arg(long, value_parser = percent, default_value = "10%", requires = "requests", value_name = "PERCENT|none")]
    budget: BudgetArg,
    /// Whether the daemon is asked, where probes are wanted.
    #[command(flatten)]
    ask: AskArgs,
    /// Known findings.
    #[command(flatten)]
    baseline: BaselineArgs,
    /// YAML file of known findings, each with a reason: shown as suppressed, and never a failure
    #[arg(long, value_name = "FILE")]
    suppress: Option<PathBuf>,
    /// Also write the results to FILE as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Also write a report to FILE as one HTML page, which loads nothing: findings, what was checked, who
    /// waits for which lock and channel, a flame graph of all goroutines
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also report findings as GitHub Actions annotations, on stderr [default: github if GITHUB_ACTIONS is
    /// true]
    #[arg(long, value_enum, value_name = "github|none", hide_possible_values = true)]
    annotations: Option<Annotations>,
    /// Output format [default: text, or by the extension of -o: .md, .json, .jsonl]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<CheckFormat>,
    /// Write the report to FILE instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CheckFormat {
    /// Human-readable
    Text,
    /// For a ticket or a chat
    Markdown,
    /// One JSON object per line (schema gotrace.check/1)
    Json,
}

impl CheckArgs {
    fn format(&self) -> CheckFormat {
        let extension = self.output.as_deref().and_then(Path::extension).and_then(|e| e.to_str());
        let by_name = match extension {
            Some("md" | "markdown") => CheckFormat::Markdown,
            Some("json" | "jsonl") => CheckFormat::Json,
            _ => CheckFormat::Text,
        };
        self.format.unwrap_or(by_name)
    }
}

/// Examines the process and writes the report.
///
/// # Errors
/// When the process cannot be read (3), is no Go program (4), or is gone (5); the last also when it ends meanwhile, after
/// what was known by then has been written.
pub(super) fn run(args: &CheckArgs) -> Result<Exit, CliError> {
    let acceptance = args.baseline.acceptance(args.suppress.as_deref())?;
    let pid = args.target.pid()?;
    let program = Program::open(pid)?;
    let stuck_after = examine::stuck_after(Some(args.watch));
    let mut process = program.examine(stuck_after, Some(PACE))?;
    let quotas = program.cpu_quotas();
    let first = process.look()?;
    let begin = Begin::of(&first);
    let interrupted = Interrupts::listen()?;
    if args.requests.is_some() {
        args.ask.warn_of_probes(pid, "gotrace check --requests");
    }
    let tracing = args.requests.map(|slow| Tracing::start(program.identity().clone(), slow, args.budget));
    let tracing = tracing.transpose()?;
    let mut scans = Scans::new(&interrupted, args.watch);
    let mut stopped = 0;
    let seen = process.watch(first, Some(args.watch), None, |examination, next| {
        stopped += usize::from(is_stopped(pid));
        scans.until(examination, next)
    });
    if seen.is_ok() {
        scans.finish(&mut process.examination);
    }
    let (requested, traced) = match tracing.map(Tracing::finish) {
        None => (None, TracedRequests::NotAsked),
        Some(Ok(requested)) => {
            let lost = requested.gathered.lost();
            (Some(requested), TracedRequests::Traced { lost })
        }
        Some(Err(why)) => (None, TracedRequests::Not(why)),
    };
    let Concluded { last, mut findings, references_complete, gone } = process.conclude(seen)?;
    let identities = process.accept(&mut findings, &acceptance);
    let summary = process.examination.proof_summary();
    let (useful, void) = summary.as_ref().map_or((0, 0), |s| (s.passes, s.void));
    let scanned = Scanned {
        void,
        all_void: useful == 0 && void > 0,
        never_stopped: process.never_stopped(),
        failure: process.examination.proof_failure().map(str::to_owned),
        suspects: scans.suspects(&process.examination, &findings),
        ..scans.scanned()
    };
    let examination = &mut process.examination;
    let watch = examination.watch();
    let mut header = begin.header(program.header(When::Watched), &last, watch.looks(), references_complete);
    header.proof = summary.as_ref();
    header.outside = gone.is_none().then_some(&last.outside);
    header.came_and_exited = watch.came_and_exited();
    let told = |goid: &u64| findings.iter().any(|f| f.goids.binary_search(goid).is_ok());
    let coverage = coverage::of(
        &args.fail_on,
        &Examined {
            pid,
            version: program.binary.go_version(),
            is_newer: program.binary.layout_is_extrapolated(),
            wanted: args.watch,
            watched_ns: header.duration_ns,
            stuck_after_ns: u64::try_from(stuck_after.as_nanos()).unwrap_or(u64::MAX),
            looks: header.looks,
            stopped,
            quiet: watch.is_quiet(),
            standing: standing(watch, &last).into_iter().filter(|goid| !told(goid)).collect(),
            counts: last.counts,
            references_complete,
            exited: gone.is_some(),
            interrupted: interrupted.came(),
            scanned,
            throttling: coverage::throttling(quotas, program.cpu_quotas()),
            requests: traced,
        },
    );
    let mut report = Report {
        header,
        fail_on: &args.fail_on,
        findings: &findings,
        coverage: &coverage,
        requests: requested.as_ref(),
        next: &[],
    };
    let next = if gone.is_some() { Vec::new() } else { next(pid, &report) };
    report.next = &next;
    let names = examination.names();
    write_to(args.output.as_ref(), |mut out| match args.format() {
        CheckFormat::Text => text::write(&mut out, report, names, args.output.is_none() && colour()),
        CheckFormat::Markdown => markdown::write(&mut out, report, names),
        CheckFormat::Json => json::write(&mut out, report, names),
    })?;
    if let Some(path) = &args.html {
        let filter = Filter::default();
        let header = dump::Header {
            executable: report.header.executable,
            go_version: report.header.go_version,
            ..dump::Header::default()
        };
        let all = Dump::new(header, &last, &filter, names);
        let locks = gone.is_none().then(|| program.locks());
        write_to(Some(path), |out| html::write(out, report, Some(&all), locks.as_ref(), names))?;
        say(&format!("gotrace: wrote the report to {}\n", printable(&path.display().to_string())));
    }
    if let Some(path) = &args.output {
        let path = path.display().to_string();
        say(&format!("gotrace: pid {pid}: {}; see {}\n", report.verdict(), printable(&path)));
    }
    if last.outside.sockets_cut {
        CliError::warn(SOCKETS_CUT);
    }
    let name = header.executable.rsplit('/').next().unwrap_or(header.executable).to_owned();
    let mut all = Vec::new();
    for (finding, identity) in findings.iter().zip(&identities) {
        all.push(found(finding, identity.clone(), header.outside, names)?);
    }
    let suites = [suite(name, &report, &all)];
    annotate(args.annotations, true, &suites);
    if let Some(path) = &args.junit {
        write_junit(path, &suites)?;
    }
    let kept =
        findings.iter().zip(identities).filter(|(f, _)| is_kept(f, args)).map(|(_, identity)| identity);
    let written = args.baseline.write(kept)?;
    let problems = report.tally().problems;
    match gone {
        _ if problems > 0 && !written => Ok(Exit::FINDINGS),
        Some(error) => Err(error.help("the results are as of its exit")),
        None if coverage.is_inconclusive() => Ok(Exit::FAILURE),
        None => Ok(Exit::DONE),
    }
}

/// Whether a finding belongs into a new baseline.
fn is_kept(finding: &Finding, args: &CheckArgs) -> bool {
    args.fail_on.contains(&Concern::Verdict(finding.verdict)) && finding.accepted.suppressed.is_none()
}

/// What may be a problem.
fn concern(name: &str) -> Result<Concern, String> {
    match [Concern::Throttling, Concern::Slow].into_iter().find(|concern| concern.name() == name) {
        Some(concern) => Ok(concern),
        None => verdict(name).map(Concern::Verdict).map_err(|why| format!("{why}; or throttling or slow")),
    }
}

/// What a CI server is told: each verdict that may fail the check, and warnings.
fn suite(name: String, report: &Report<'_>, found: &[Found]) -> Suite {
    let fails = |concern: Concern| report.fail_on.contains(&concern);
    let wanted = |v: &Verdict| fails(Concern::Verdict(*v)) || found.iter().any(|f| f.identity.verdict == *v);
    let of_verdict = |verdict: Verdict| Outcome {
        what: verdict.name(),
        findings: found.iter().filter(|f| f.identity.verdict == verdict).cloned().collect(),
        conditions: Vec::new(),
        fails: fails(Concern::Verdict(verdict)),
        not_judged: 0,
        unjudged: coverage::unjudged(report.coverage, verdict),
        skipped: None,
    };
    let conditions: Vec<Condition> =
        Weight::ALL.into_iter().flat_map(|weight| report.conditions(weight)).collect();
    let of_condition = |concern: Concern| {
        let told = conditions.iter().filter(|condition| condition.concern == concern);
        let told: Vec<Told> = told
            .map(|Condition { about, sentence, details, .. }| Told {
                about: about.clone(),
                sentence: sentence.clone(),
                text: details.clone(),
            })
            .collect();
        let unjudged = coverage::unjudged_concern(report.coverage, concern).filter(|_| fails(concern));
        (fails(concern) || !told.is_empty()).then(|| Outcome {
            what: concern.name(),
            findings: Vec::new(),
            conditions: told,
            fails: fails(concern),
            not_judged: 0,
            unjudged,
            skipped: None,
        })
    };
    let verdicts = Verdict::ALL.into_iter().filter(wanted).map(of_verdict);
    let others = [Concern::Throttling, Concern::Slow].into_iter().filter_map(of_condition);
    Suite { name, outcomes: verdicts.chain(others).collect() }
}

/// What to run next, and what for.
fn next(pid: u32, report: &Report<'_>) -> Vec<(String, &'static str)> {
    let mut next = Vec::new();
    let problem = report.findings.iter().find(|f| Weight::of(f, report.fail_on) == Weight::Problem);
    if let Some((problem, goid)) = problem.and_then(|p| Some((p, p.goids.first()?))) {
        next.push(match problem.verdict {
            Verdict::Unreachable => {
                (format!("gotrace dump --pid {pid} --goid {goid}"), "one of the leaked goroutines in full")
            }
            _ => (
                format!("gotrace why --pid {pid} --goid {goid}"),
                "what still references what it is blocked on",
            ),
        });
    }
    let longer = if report.findings.iter().any(|f| f.verdict == Verdict::Growing) {
        "a longer watch tells a leak from a rising load"
    } else if report.coverage.is_inconclusive() {
        "watches for longer, and makes all heap scans"
    } else {
        "a longer watch finds slower leaks"
    };
    next.push((format!("gotrace leaks --pid {pid} --watch 60s"), longer));
    let is_slow = |condition: &Condition| condition.concern == Concern::Slow;
    if [Weight::Problem, Weight::Warning].into_iter().flat_map(|w| report.conditions(w)).any(|c| is_slow(&c))
    {
        next.push((format!("gotrace requests --pid {pid}"), "slow requests as they end, with probes"));
    } else if problem.is_none() {
        next.push((
            format!("gotrace attach --pid {pid} --duration 10s"),
            "waits, by kind and place, with probes",
        ));
    }
    next
}
