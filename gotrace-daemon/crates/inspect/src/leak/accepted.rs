//! Findings that are known and do not fail a run: suppressed ones, each with a reason, and those of a baseline.
//!
//! A finding is known again by names ([`Identity`]): its verdict, the function that its goroutines run, the one that
//! created them and the one in which they wait; never by lines, addresses, goroutine ids or counts, which differ from
//! run to run. A suppressed finding and one of a baseline are reported like any other, with what makes them known:
//! nothing is hidden. Input: a list of suppressions, the text of a baseline. Output: [`Accepted`]. Pure.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Finding, Verdict};
use crate::snapshot::Names;
use gotrace_go::waits_for_others;
use gotrace_process::Pattern;

/// The schema of a baseline.
pub const BASELINE_SCHEMA: &str = "gotrace.baseline/1";

/// What a finding is known by from one run to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Its verdict.
    pub verdict: Verdict,
    /// The function that its goroutines run.
    pub function: String,
    /// The function that created them; `None` when not known.
    pub created_by: Option<String>,
    /// The function in which they wait: the first outside the runtime and the standard library's waiting
    /// primitives; `None` when not known.
    pub waits_at: Option<String>,
}

impl Identity {
    /// That of a finding.
    #[must_use]
    pub fn of(finding: &Finding, names: &mut Names) -> Self {
        let function = names.runs(finding.entry_pc, &finding.stack).map(|f| f.function.clone());
        let created_by = names.created_by(finding.created_pc).first().map(|f| f.function.clone());
        let stack = names.stack(&finding.stack);
        let at = stack.iter().find(|f| !f.internal && !waits_for_others(&f.frame.function));
        Self {
            verdict: finding.verdict,
            waits_at: at.map(|f| f.frame.function.clone()),
            function: function.unwrap_or_else(|| "?".into()),
            created_by,
        }
    }

    /// Its functions.
    fn functions(&self) -> impl Iterator<Item = &str> {
        let Self { verdict: _, function, created_by, waits_at } = self;
        [Some(function), created_by.as_ref(), waits_at.as_ref()].into_iter().flatten().map(String::as_str)
    }

    /// Whether it is the same finding. A place that is not known of one of the two does not tell them apart.
    fn is(&self, other: &Self) -> bool {
        let Self { verdict, function, created_by, waits_at } = other;
        let same = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        (self.verdict, &self.function) == (*verdict, function)
            && self.created_by == *created_by
            && same(&self.waits_at, waits_at)
    }
}

/// Findings that are known and may stay, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Suppression {
    /// A pattern for the function that the goroutines run, that created them, or in which they wait.
    pub function: Pattern,
    /// Only these verdicts; all where there are none.
    pub verdicts: Vec<Verdict>,
    /// Why; never empty.
    pub reason: Arc<str>,
}

/// All suppressions; the first that matches counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suppressions(pub Arc<[Suppression]>);

impl Suppressions {
    /// Why a finding is suppressed; `None` when it is not.
    #[must_use]
    pub fn reason(&self, finding: &Identity) -> Option<Arc<str>> {
        self.0
            .iter()
            .filter(|s| s.verdicts.is_empty() || s.verdicts.contains(&finding.verdict))
            .find(|s| finding.functions().any(|f| s.function.matches(f)))
            .map(|s| Arc::clone(&s.reason))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The findings of an earlier run, which do not fail this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    schema: String,
    findings: BTreeSet<Identity>,
}

impl Baseline {
    /// Of these findings.
    #[must_use]
    pub fn new(findings: impl IntoIterator<Item = Identity>) -> Self {
        Self { schema: BASELINE_SCHEMA.into(), findings: findings.into_iter().collect() }
    }

    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let baseline: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if baseline.schema != BASELINE_SCHEMA {
            return Err(format!("schema is {:?}, expected {BASELINE_SCHEMA}", baseline.schema));
        }
        Ok(baseline)
    }

    /// As JSON, in an order of its own, a finding's field a line, so that two versions compare well.
    #[must_use]
    pub fn text(&self) -> String {
        // Text, lists and structures of these only: nothing that JSON cannot say.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Whether it has this finding.
    #[must_use]
    pub fn contains(&self, finding: &Identity) -> bool {
        self.findings.iter().any(|known| known.is(finding))
    }

    /// How many findings it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.findings.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What is known of a finding beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Why it is suppressed; `None` when it is not.
    pub suppressed: Option<Arc<str>>,
    /// Whether the baseline has it; `None` without a baseline.
    pub in_baseline: Option<bool>,
}

impl Accepted {
    /// Whether the finding is no reason to fail.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.suppressed.is_some() || self.in_baseline == Some(true)
    }
}

/// What findings are held against.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acceptance {
    /// Those that are suppressed.
    pub suppressions: Suppressions,
    /// Those of an earlier run; `None` where none is asked for.
    pub baseline: Option<Baseline>,
}

impl Acceptance {
    /// What is known of a finding.
    #[must_use]
    pub fn of(&self, finding: &Identity) -> Accepted {
        Accepted {
            suppressed: self.suppressions.reason(finding),
            in_baseline: self.baseline.as_ref().map(|baseline| baseline.contains(finding)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict, function: &str) -> Identity {
        Identity {
            verdict,
            function: function.into(),
            created_by: Some("example.com/shop.Start".into()),
            waits_at: Some("example.com/shop.(*Server).serve".into()),
        }
    }

    fn suppressions(function: &str, verdicts: &[Verdict]) -> Suppressions {
        let function = function.parse().expect("a pattern");
        let one = Suppression { function, verdicts: verdicts.to_vec(), reason: "by design".into() };
        Suppressions(Arc::new([one]))
    }

    #[test]
    fn functions_and_verdicts_suppress() {
        let found = finding(Verdict::LeftBehind, "example.com/shop.(*Server).run");
        for (pattern, verdicts, suppressed) in [
            ("example.com/shop.(*Server).run", &[][..], true),
            ("example.com/shop.*", &[Verdict::LeftBehind], true),
            ("example.com/shop.Start", &[Verdict::Stuck, Verdict::LeftBehind], true),
            ("~Server.*serve$", &[], true),
            ("example.com/shop.(*Server).run", &[Verdict::Unreachable], false),
            ("shop.(*Server).run", &[], false),
            ("example.com/shop.(*Server).runs", &[], false),
        ] {
            let reason = suppressions(pattern, verdicts).reason(&found);
            assert_eq!(reason.as_deref(), suppressed.then_some("by design"), "{pattern} {verdicts:?}");
        }
        assert_eq!(Suppressions::default().reason(&found), None);
    }

    #[test]
    fn a_baseline_knows_what_it_was_made_of_and_nothing_else() {
        let known = finding(Verdict::LeftBehind, "a.f");
        let baseline = Baseline::new([known.clone(), finding(Verdict::Stuck, "a.g"), known.clone()]);
        let text = baseline.text();
        assert!(text.contains("\"verdict\": \"left_behind\"") && text.ends_with("}\n"), "{text}");
        let read = Baseline::parse(&text).expect("what was written");
        assert_eq!((&read, read.len()), (&baseline, 2));
        assert!(read.contains(&known));
        // Where it waits may be known at one time and not at another.
        assert!(read.contains(&Identity { waits_at: None, ..known.clone() }));
        for other in [
            finding(Verdict::Unreachable, "a.f"),
            finding(Verdict::LeftBehind, "a.h"),
            Identity { created_by: None, ..known.clone() },
            Identity { waits_at: Some("a.elsewhere".into()), ..known.clone() },
        ] {
            assert!(!read.contains(&other), "{other:?}");
        }
        assert!(Baseline::parse("{\"schema\":\"gotrace.leaks/1\",\"findings\":[]}").is_err());
        assert!(Baseline::parse("[]").is_err());
    }

    #[test]
    fn what_is_suppressed_or_known_is_accepted() {
        let known = finding(Verdict::LeftBehind, "a.f");
        let acceptance = Acceptance {
            suppressions: suppressions("a.g", &[]),
            baseline: Some(Baseline::new([known.clone()])),
        };
        let of = |function| acceptance.of(&finding(Verdict::LeftBehind, function));
        assert!(of("a.f").is_accepted() && of("a.f").suppressed.is_none());
        assert_eq!(of("a.g").suppressed.as_deref(), Some("by design"));
        assert!(of("a.g").is_accepted() && of("a.g").in_baseline == Some(false));
        assert!(!of("a.h").is_accepted());
        assert_eq!(Acceptance::default().of(&known), Accepted::default());
    }
}
