//! What `gotrace check` came to, one file a format: a verdict in one line, findings, what was checked, and what was not.
//!
//! Input: a [`Report`], and [`Names`](gotrace_inspect::snapshot::Names) for its addresses. Output: bytes. What was not
//! checked is never told as if nothing were wrong with it.

mod conditions;
pub mod html;
pub mod json;
pub mod markdown;
pub mod text;

use gotrace_inspect::leak::{Finding, Verdict};
use gotrace_model::printable::printable;

use crate::leaks::Header;
pub use conditions::{Concern, Condition, Requested};

/// All that is told.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The process, and how it was looked at.
    pub header: Header<'a>,
    /// What is a problem where it is found.
    pub fail_on: &'a [Concern],
    /// What was found, the worst first.
    pub findings: &'a [Finding],
    /// What that rests on.
    pub coverage: &'a Coverage,
    /// Requests, where they were traced.
    pub requests: Option<&'a Requested>,
    /// What to run next, and what for.
    pub next: &'a [(String, &'static str)],
}

/// What was checked, and what was not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coverage {
    /// Verdicts that were checked, whether or not there are findings.
    pub checked: Vec<Verdict>,
    /// What was not.
    pub not_checked: Vec<NotChecked>,
    /// Not to have run for so long is to be stuck.
    pub stuck_after_ns: u64,
    /// What its CPU quota did to it; `None` where that is not known.
    pub throttling: Option<Throttling>,
}

/// What a CPU quota did meanwhile.
#[derive(Clone, Debug, PartialEq)]
pub enum Throttling {
    /// There is none.
    NoQuota,
    /// There is one.
    Quota {
        /// The control group that has it.
        group: String,
        /// CPUs that it may use.
        cpus: f64,
        /// Periods meanwhile in which the group ran.
        periods: u64,
        /// Those in which it had to stand still.
        throttled: u64,
    },
}

impl Throttling {
    /// Whether it stood still.
    #[must_use]
    pub fn is_throttled(&self) -> bool {
        matches!(self, Self::Quota { throttled: 1.., .. })
    }

    /// As JSON has it.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::NoQuota => serde_json::json!({ "quota": false }),
            Self::Quota { group, cpus, periods, throttled } => serde_json::json!({
                "quota": true, "group": group, "cpus": cpus, "periods": periods, "throttled_periods": throttled,
            }),
        }
    }

    /// In a sentence.
    pub(crate) fn sentence(&self) -> String {
        let Self::Quota { group, cpus, periods, throttled } = self else {
            return "no CPU quota".to_owned();
        };
        let cpus = (cpus * 100.0).round() / 100.0;
        let quota = format!("CPU quota of {cpus} CPUs (control group {})", printable(group));
        match throttled {
            0 => format!("not throttled in {}; {quota}", many_periods(*periods)),
            _ => format!(
                "all threads stood still in {throttled} of {} until the next one: the {quota} was used up",
                many_periods(*periods)
            ),
        }
    }
}

fn many_periods(n: u64) -> String {
    if n == 1 { "1 period".to_owned() } else { format!("{n} periods") }
}

/// Something that was not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotChecked {
    /// Verdicts by their names, or something else.
    pub what: String,
    /// And what to do about it, if something can be done.
    pub why: String,
    /// Whether there may be a problem all the same: without findings, it is not known whether there is one.
    pub inconclusive: bool,
}

/// What a finding counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// It fails the check.
    Problem,
    /// It does not.
    Warning,
    /// It is suppressed, or in the baseline.
    Known,
}

/// Numbers of findings by what they count for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that fail the check.
    pub problems: usize,
    /// Those that do not.
    pub warnings: usize,
    /// Those that are suppressed, or in the baseline.
    pub known: usize,
}

impl Weight {
    /// All of them, in the order in which findings are told.
    pub const ALL: [Self; 3] = [Self::Problem, Self::Warning, Self::Known];

    /// That of a finding.
    #[must_use]
    pub fn of(finding: &Finding, fail_on: &[Concern]) -> Self {
        if finding.accepted.is_accepted() {
            Self::Known
        } else if fail_on.contains(&Concern::Verdict(finding.verdict)) {
            Self::Problem
        } else {
            Self::Warning
        }
    }
}

impl Coverage {
    /// Whether the check cannot say that there is no problem.
    #[must_use]
    pub fn is_inconclusive(&self) -> bool {
        self.not_checked.iter().any(|n| n.inconclusive)
    }
}

impl<'a> Report<'a> {
    /// How many findings of which weight there are.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for finding in self.findings {
            match Weight::of(finding, self.fail_on) {
                Weight::Problem => tally.problems += 1,
                Weight::Warning => tally.warnings += 1,
                Weight::Known => tally.known += 1,
            }
        }
        tally.problems += self.conditions(Weight::Problem).len();
        tally.warnings += self.conditions(Weight::Warning).len();
        tally
    }

    /// The verdict: `2 problems (plus 1 known)`, `no problems found`.
    #[must_use]
    pub fn verdict(&self) -> String {
        let Tally { problems, warnings, known } = self.tally();
        let inconclusive = self.coverage.is_inconclusive();
        let found = match (problems, inconclusive) {
            (0, false) => "no problems found".to_owned(),
            (0, true) => "no problems found, but not everything was checked".to_owned(),
            (n, false) => many(n, "problem"),
            (n, true) => format!("{}, and not everything was checked", many(n, "problem")),
        };
        let mut others = Vec::new();
        if warnings > 0 {
            others.push(many(warnings, "warning"));
        }
        if known > 0 {
            others.push(format!("{known} known"));
        }
        if others.is_empty() { found } else { format!("{found} (plus {})", others.join(", ")) }
    }

    /// Findings of a weight, the worst first.
    fn of(&self, weight: Weight) -> impl Iterator<Item = &'a Finding> + use<'a> {
        let fail_on = self.fail_on;
        self.findings.iter().filter(move |f| Weight::of(f, fail_on) == weight)
    }

    /// What checking a verdict came to.
    fn result(&self, verdict: Verdict) -> String {
        match self.findings.iter().filter(|f| f.verdict == verdict).count() {
            0 => none(verdict, self.coverage.stuck_after_ns),
            n => many(n, "finding"),
        }
    }
}

/// What is said of a verdict of which there is no finding.
fn none(verdict: Verdict, stuck_after_ns: u64) -> String {
    match verdict {
        Verdict::Unreachable => "no leaked goroutines".into(),
        Verdict::Deadlock => "no goroutines that block each other, and none on a nil channel".into(),
        Verdict::Stalled => "no pool or semaphore that hands out nothing".into(),
        Verdict::Growing => "no goroutines that pile up".into(),
        Verdict::Stuck => {
            let after = crate::text::duration(Some(stuck_after_ns));
            format!("no goroutine stuck for {after} or longer")
        }
        Verdict::Orphaned => "no blocked goroutines that nothing seems to refer to".into(),
        Verdict::LeftBehind => "no goroutines left behind".into(),
    }
}

/// `1 problem`, `2 problems`.
fn many(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printed_tests::finding;
    use gotrace_inspect::leak::Accepted;

    const FAIL_ON: &[Concern] = &[Concern::Verdict(Verdict::Unreachable), Concern::Verdict(Verdict::Stuck)];

    fn verdict(findings: &[Finding], inconclusive: bool) -> (String, Tally) {
        let gap = |inconclusive| NotChecked { what: "stuck".into(), why: "stopped".into(), inconclusive };
        let coverage = Coverage { not_checked: vec![gap(false), gap(inconclusive)], ..Coverage::default() };
        let header = crate::printed_tests::header(crate::leaks::When::Watched, None);
        let report =
            Report { header, fail_on: FAIL_ON, findings, coverage: &coverage, requests: None, next: &[] };
        (report.verdict(), report.tally())
    }

    #[test]
    fn nothing_found_is_clean_only_where_everything_was_checked() {
        assert_eq!(verdict(&[], false).0, "no problems found");
        assert_eq!(verdict(&[], true).0, "no problems found, but not everything was checked");
    }

    #[test]
    fn findings_count_by_verdict_and_by_what_is_known_of_them() {
        let known = |accepted| Finding { accepted, ..finding(Verdict::Stuck, vec![7]) };
        let suppressed = Accepted { suppressed: Some("by design".into()), in_baseline: Some(false) };
        let in_baseline = Accepted { suppressed: None, in_baseline: Some(true) };
        let new = Accepted { suppressed: None, in_baseline: Some(false) };
        let orphaned = finding(Verdict::Orphaned, vec![9]);
        let all = [known(new), known(suppressed), known(in_baseline), orphaned.clone()];
        let (text, tally) = verdict(&all, false);
        assert_eq!(tally, Tally { problems: 1, warnings: 1, known: 2 });
        assert_eq!(text, "1 problem (plus 1 warning, 2 known)");
        assert_eq!(verdict(&all[1..3], false).0, "no problems found (plus 2 known)");
        assert_eq!(verdict(&all[..1], true).0, "1 problem, and not everything was checked");
        assert_eq!(verdict(&[orphaned], false).0, "no problems found (plus 1 warning)");
    }
}
