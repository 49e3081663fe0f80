//! What `exec --fail-on` comes to: the programs that were judged, told in every form that was asked for, and the exit
//! code.
//!
//! Input: what the line knows of each program ([`Program`]), from this gotrace or, with `go test`, from the one that
//! each test program ran under, by a file of this run. Output: text or JSON lines on stderr, as stdout belongs to the
//! command, and always a line that sums up; JUnit XML; annotations of GitHub Actions; a new baseline. A finding that is
//! suppressed or in the baseline is told as such, and does not fail the run.

mod github;
mod judge;
mod junit;
mod suite;

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CliError, ExecArgs, Exit, Format, args::FailOn};
use gotrace_export::text;
use gotrace_inspect::leak::{Accepted, Identity};
use gotrace_model::printable::{printable, write_json};
pub(super) use judge::{found, judge};
pub(super) use suite::{Outcome, Suite, Told, annotate, write_junit};

/// A program that was judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub pid: u32,
    /// Its executable.
    pub executable: String,
    /// Import path of its main package; that of a test program ends in `.test`.
    pub package: Option<String>,
    pub is_test: bool,
    /// By verdict that was asked for.
    pub judgements: Vec<Judgement>,
}

/// What a program came to under one verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Judgement {
    pub verdict: FailOn,
    pub findings: Vec<Found>,
    /// Goroutines of which it cannot be told.
    pub not_judged: u64,
    /// Why the program was not judged, or not in full, if it was not.
    pub unjudged: Option<Unjudged>,
    /// Seconds from the beginning of the last proof that was completed to the program's end; only for `unreachable`.
    pub proof_age: Option<f64>,
    /// The findings as they are to be printed.
    pub printed: String,
}

/// A finding.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub identity: Identity,
    pub accepted: Accepted,
    pub count: u64,
    /// Where the goroutines were created, or else begin: file and line.
    pub file: Option<String>,
    pub line: u32,
    /// What they wait for.
    pub wait_reason: Option<String>,
    /// The test that made them.
    pub test: Option<String>,
    /// All of it, for people.
    pub text: String,
}

/// A verdict that was asked for and cannot be given, as the budget had less traced than it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Unjudged {
    /// The level that it needs, and how long there was less.
    pub level_needed: String,
    pub below_ns: u64,
    pub budget: Option<f64>,
}

impl Program {
    /// `shop.test`.
    fn name(&self) -> &str {
        let path = self.package.as_deref().unwrap_or(&self.executable);
        if self.package.is_some() { path } else { path.rsplit('/').next().unwrap_or(path) }
    }
}

impl Found {
    /// `2 goroutines of main.worker left behind by TestX: chan receive; created by main.start (start.go:12)`.
    fn sentence(&self) -> String {
        let Self { identity, count, file, line, wait_reason, test, .. } = self;
        let s = if *count == 1 { "" } else { "s" };
        let what = identity.verdict.name().replace('_', " ");
        let by = test.as_ref().map_or_else(String::new, |t| format!(" by {t}"));
        let reason = wait_reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
        let created = identity.created_by.as_ref().map_or_else(String::new, |function| {
            let file = file.as_deref().and_then(|f| f.rsplit('/').next());
            let place = file.map_or_else(String::new, |file| format!(" ({file}:{line})"));
            format!("; created by {function}{place}")
        });
        format!("{count} goroutine{s} of {} {what}{by}{reason}{created}", identity.function)
    }

    /// Why it does not fail the run.
    fn acceptance(&self) -> Option<String> {
        match (&self.accepted.suppressed, self.accepted.in_baseline) {
            (Some(reason), _) => Some(format!("suppressed: {reason}")),
            (None, Some(true)) => Some("in the baseline".into()),
            (None, _) => None,
        }
    }
}

impl Unjudged {
    fn sentence(&self, program: &Program, verdict: FailOn) -> String {
        let Self { level_needed, below_ns, budget } = self;
        let what = match verdict {
            FailOn::LeftBehind => "left_behind",
            FailOn::Unreachable => "unreachable",
        };
        let budget =
            budget.map_or_else(String::new, |share| format!(" of {:.1}% of its CPU time", share * 100.0));
        format!(
            "pid {} ({}): cannot judge {what}: traced below level {level_needed} for {} to stay within the budget{budget}",
            program.pid,
            printable(&program.executable),
            text::duration(Some(*below_ns)),
        )
    }

    fn json(&self, program: &Program, verdict: FailOn) -> serde_json::Value {
        json!({ "unjudged": {
            "pid": program.pid,
            "executable": program.executable,
            "verdict": verdict.name(),
            "level_needed": self.level_needed,
            "below_ns": self.below_ns,
            "budget": self.budget,
            "why": self.sentence(program, verdict),
        }})
    }
}

/// Counts over all programs, of one verdict.
#[derive(Debug, Default)]
struct Total {
    programs: u64,
    tests: u64,
    /// Goroutines of findings that fail the run, are suppressed, are in the baseline.
    failing: u64,
    suppressed: u64,
    in_baseline: u64,
    not_judged: u64,
    unjudged: u64,
    proofs: u64,
}

impl Total {
    fn of(programs: &[Program], verdict: FailOn) -> Self {
        let mut total = Self::default();
        for program in programs {
            for judgement in program.judgements.iter().filter(|j| j.verdict == verdict) {
                total.programs += 1;
                total.tests += u64::from(program.is_test);
                total.not_judged += judgement.not_judged;
                total.unjudged += u64::from(judgement.unjudged.is_some());
                total.proofs += u64::from(judgement.proof_age.is_some());
                for found in &judgement.findings {
                    let of = match (&found.accepted.suppressed, found.accepted.in_baseline) {
                        (Some(_), _) => &mut total.suppressed,
                        (None, Some(true)) => &mut total.in_baseline,
                        (None, _) => &mut total.failing,
                    };
                    *of += found.count;
                }
            }
        }
        total
    }

    /// One line.
    fn sentence(&self, verdict: FailOn) -> String {
        let Self { programs, tests, failing, suppressed, in_baseline, not_judged, unjudged, proofs } = self;
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let kind = if tests == programs && *programs > 0 { "test program" } else { "program" };
        let what = match verdict {
            FailOn::LeftBehind => "left behind",
            FailOn::Unreachable => "unreachable",
        };
        let mut line =
            format!("{programs} {kind}{}, {failing} goroutine{} {what}", plural(*programs), plural(*failing));
        let accepted: Vec<String> = [(suppressed, "suppressed"), (in_baseline, "in the baseline")]
            .into_iter()
            .filter(|(n, _)| **n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
        if !accepted.is_empty() {
            line += &format!(" (plus {})", accepted.join(", "));
        }
        if *not_judged > 0 {
            line += &format!(", {not_judged} not judged (may have been about to exit)");
        }
        if verdict == FailOn::Unreachable {
            line += &format!("; proof completed in {proofs} of {programs}");
        }
        if *unjudged > 0 {
            line += &format!("; {unjudged} program{} not fully judged", plural(*unjudged));
        }
        line
    }

    fn json(&self, verdict: FailOn) -> serde_json::Value {
        let Self { programs, tests, failing, suppressed, in_baseline, not_judged, unjudged, proofs } = self;
        json!({ "judged": {
            "verdict": verdict.name(),
            "programs": programs,
            "test_programs": tests,
            "goroutines": failing,
            "suppressed": suppressed,
            "in_baseline": in_baseline,
            "not_judged": not_judged,
            "programs_unjudged": unjudged,
            "proofs_completed": (verdict == FailOn::Unreachable).then_some(proofs),
        }})
    }
}

/// Tells what programs came to; the exit code of a command that ended with `exit`.
///
/// # Errors
/// When a file that was asked for cannot be written.
pub(super) fn conclude(args: &ExecArgs, programs: &[Program], exit: Exit) -> Result<Exit, CliError> {
    let format = args.trace.format;
    // A reader of stderr that went away has seen enough.
    let _ = print(&mut io::stderr().lock(), programs, &args.fail_on, format);
    let suites: Vec<Suite> = programs.iter().map(Suite::of).collect();
    annotate(args.annotations, format == Format::Table, &suites);
    if let Some(path) = &args.junit {
        write_junit(path, &suites)?;
    }
    let findings = || programs.iter().flat_map(|p| &p.judgements).flat_map(|j| &j.findings);
    let kept = findings().filter(|f| f.accepted.suppressed.is_none()).map(|f| f.identity.clone());
    let written = args.baseline.write(kept)?;
    let found = !written && findings().any(|f| !f.accepted.is_accepted());
    let unjudged = programs.iter().flat_map(|p| &p.judgements).any(|j| j.unjudged.is_some());
    Ok(match exit {
        Exit::DONE if found => Exit::FINDINGS,
        Exit::DONE if unjudged => Exit::FAILURE,
        exit => exit,
    })
}

fn print(out: &mut impl Write, programs: &[Program], verdicts: &[FailOn], format: Format) -> io::Result<()> {
    let mut unjudged = false;
    for program in programs {
        for judgement in &program.judgements {
            out.write_all(judgement.printed.as_bytes())?;
            let Some(why) = &judgement.unjudged else { continue };
            unjudged = true;
            match format {
                Format::Table => writeln!(out, "error: {}", why.sentence(program, judgement.verdict))?,
                Format::Json => line(out, &why.json(program, judgement.verdict))?,
            }
        }
    }
    if unjudged && format == Format::Table {
        writeln!(out, "help: raise --budget, or omit it to trace without a limit")?;
    }
    for verdict in verdicts {
        let total = Total::of(programs, *verdict);
        match format {
            Format::Table => writeln!(out, "gotrace: {}", total.sentence(*verdict))?,
            Format::Json => line(out, &total.json(*verdict))?,
        }
    }
    out.flush()
}

fn line(out: &mut impl Write, value: &serde_json::Value) -> io::Result<()> {
    write_json(out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_inspect::leak::Verdict;

    /// A finding of a test program, and what is known of it.
    pub(super) fn found(function: &str, suppressed: Option<&str>, in_baseline: Option<bool>) -> Found {
        Found {
            identity: Identity {
                verdict: Verdict::LeftBehind,
                function: function.into(),
                created_by: Some("shop.Start".into()),
                waits_at: None,
            },
            accepted: Accepted { suppressed: suppressed.map(Into::into), in_baseline },
            count: 2,
            file: Some("/src/shop/shop.go".into()),
            line: 12,
            wait_reason: Some("chan receive".into()),
            test: Some("shop.TestX".into()),
            text: "left_behind\n  2 goroutines".into(),
        }
    }

    pub(super) fn program(findings: Vec<Found>, not_judged: u64, unjudged: bool) -> Program {
        let why = Unjudged { level_needed: "full".into(), below_ns: 1_500_000_000, budget: Some(0.01) };
        Program {
            pid: 7,
            executable: "/tmp/go-build1/b001/shop.test".into(),
            package: Some("example.com/shop.test".into()),
            is_test: true,
            judgements: vec![Judgement {
                verdict: FailOn::LeftBehind,
                findings,
                not_judged,
                unjudged: unjudged.then_some(why),
                proof_age: None,
                printed: String::new(),
            }],
        }
    }

    fn told(programs: &[Program], verdict: FailOn) -> String {
        let mut out = Vec::new();
        print(&mut out, programs, &[verdict], Format::Table).expect("a vector takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn one_line_sums_up_whatever_there_is() {
        let healthy = || program(Vec::new(), 0, false);
        assert_eq!(
            told(&[healthy(), healthy(), program(Vec::new(), 2, false)], FailOn::LeftBehind),
            "gotrace: 3 test programs, 0 goroutines left behind, 2 not judged (may have been about to exit)\n"
        );
        assert_eq!(told(&[], FailOn::LeftBehind), "gotrace: 0 programs, 0 goroutines left behind\n");
        let findings = vec![
            found("a.f", None, Some(false)),
            found("a.g", Some("by design"), Some(false)),
            found("a.h", None, Some(true)),
        ];
        assert_eq!(
            told(&[program(findings, 0, false)], FailOn::LeftBehind),
            "gotrace: 1 test program, 2 goroutines left behind (plus 2 suppressed, 2 in the baseline)\n"
        );
        let unjudged = told(&[program(Vec::new(), 0, true)], FailOn::LeftBehind);
        assert!(unjudged.contains("traced below level full for 1.5s"), "{unjudged}");
        assert!(unjudged.ends_with("0 goroutines left behind; 1 program not fully judged\n"), "{unjudged}");
    }

    #[test]
    fn it_is_said_in_how_many_programs_a_proof_was_completed() {
        let proven = |proof_age| {
            let mut program = program(Vec::new(), 0, false);
            program.judgements[0].verdict = FailOn::Unreachable;
            program.judgements[0].proof_age = proof_age;
            program
        };
        assert_eq!(
            told(&[proven(Some(0.3)), proven(None)], FailOn::Unreachable),
            "gotrace: 2 test programs, 0 goroutines unreachable; proof completed in 1 of 2\n"
        );
    }

    #[test]
    fn a_finding_is_a_sentence() {
        assert_eq!(
            found("shop.worker", None, None).sentence(),
            "2 goroutines of shop.worker left behind by shop.TestX: chan receive; created by shop.Start (shop.go:12)"
        );
    }
}
