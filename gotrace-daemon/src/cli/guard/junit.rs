//! JUnit XML: a suite a program, a case a finding, and one case for each verdict without a finding, so that a program
//! that was judged is seen.
//!
//! Input: programs that were judged ([`Suite`]). Output: a file. A finding that is suppressed or in the baseline is a skipped case
//! with the reason, and so is one that does not fail the run; a program that could not be judged is an error.

use std::{io::Write as _, path::Path};

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{CliError, Outcome, Suite, suite::Told};
use crate::cli::output::create_shared;

/// Writes the file.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(path: &Path, suites: &[Suite]) -> Result<(), CliError> {
    let failed =
        |what: String| CliError::failure(format!("cannot write JUnit XML to {}: {what}", path.display()));
    let xml = report(suites).to_string().map_err(|e| failed(e.to_string()))?;
    create_shared(path).and_then(|mut f| f.write_all(xml.as_bytes())).map_err(|e| failed(e.to_string()))
}

fn report(suites: &[Suite]) -> Report {
    let mut report = Report::new("gotrace");
    for suite in suites {
        let mut written = TestSuite::new(&*suite.name);
        for outcome in &suite.outcomes {
            written.add_test_cases(cases(suite, outcome));
        }
        report.add_test_suite(written);
    }
    report
}

fn cases(suite: &Suite, outcome: &Outcome) -> Vec<TestCase> {
    let verdict = outcome.what;
    let case = |name: String, status: TestCaseStatus| {
        let mut case = TestCase::new(name, status);
        case.set_classname(&*suite.name);
        case
    };
    let warning = (!outcome.fails).then(|| "warning".to_owned());
    let mut cases: Vec<TestCase> = outcome
        .findings
        .iter()
        .map(|found| {
            let by = found.test.as_ref().map_or_else(String::new, |test| format!(" by {test}"));
            let mut status = match found.acceptance().or_else(|| warning.clone()) {
                Some(why) => {
                    let mut status = TestCaseStatus::skipped();
                    status.set_message(format!("{why}: {}", found.sentence()));
                    status
                }
                None => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(found.sentence());
                    status
                }
            };
            status.set_type(verdict).set_description(&found.text);
            case(format!("{verdict}: {}{by}", found.identity.function), status)
        })
        .collect();
    for Told { about, sentence, text } in &outcome.conditions {
        let mut status = if outcome.fails {
            TestCaseStatus::non_success(NonSuccessKind::Failure)
        } else {
            TestCaseStatus::skipped()
        };
        status.set_type(verdict).set_message(if outcome.fails {
            sentence.clone()
        } else {
            format!("warning: {sentence}")
        });
        status.set_description(text);
        let about = if about.is_empty() { String::new() } else { format!(": {about}") };
        cases.push(case(format!("{verdict}{about}"), status));
    }
    if let Some(why) = &outcome.unjudged {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_type(verdict).set_message(&**why);
        cases.push(case(verdict.to_owned(), status));
    } else if outcome.findings.is_empty() && outcome.conditions.is_empty() {
        cases.push(case(verdict.to_owned(), nothing(outcome)));
    }
    if outcome.not_judged > 0
        && let Some(last) = cases.last_mut()
    {
        last.set_system_out(format!("{} goroutines were not judged", outcome.not_judged));
    }
    cases
}

/// The case of a program without a finding.
fn nothing(outcome: &Outcome) -> TestCaseStatus {
    if let Some(why) = outcome.skipped {
        let mut status = TestCaseStatus::skipped();
        status.set_message(why);
        return status;
    }
    TestCaseStatus::success()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::guard::tests::{found, program};

    #[test]
    fn a_program_is_a_suite_and_a_finding_a_case() {
        let findings = vec![
            found("shop.worker<T>", None, Some(false)),
            found("shop.fine", Some("by design"), None),
            found("shop.known", None, Some(true)),
        ];
        let programs =
            [program(findings, 3, false), program(Vec::new(), 0, false), program(Vec::new(), 0, true)];
        let xml = report(&programs.map(|p| Suite::of(&p))).to_string().expect("XML");
        for part in [
            "<testsuites name=\"gotrace\" tests=\"5\" skipped=\"2\" failures=\"1\" errors=\"1\"",
            "<testsuite name=\"example.com/shop.test\" tests=\"3\" skipped=\"2\" errors=\"0\" failures=\"1\"",
            "name=\"left_behind: shop.worker&lt;T&gt; by shop.TestX\" classname=\"example.com/shop.test\"",
            "<failure message=\"2 goroutines of shop.worker&lt;T&gt; left behind by shop.TestX: chan receive;",
            "<skipped message=\"suppressed: by design: 2 goroutines of shop.fine",
            "<skipped message=\"in the baseline: 2 goroutines of shop.known",
            "3 goroutines were not judged",
            "<error message=\"pid 7 (/tmp/go-build1/b001/shop.test): cannot judge left_behind: traced below level",
        ] {
            assert!(xml.contains(part), "{part} in\n{xml}");
        }
    }
}
