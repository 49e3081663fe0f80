//! `check --format json`: one object a line, schema `gotrace.check/1`: a header, a line a finding, the worst first, a
//! summary. Header and findings are those of `leaks`. Unknown is `null`; addresses are strings.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Report, Tally, Throttling};
use crate::{
    leaks::{json, values::line},
    requests::json::{figures, one},
};
use gotrace_inspect::{leak::Verdict, snapshot::Names};

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.check/1";

/// Writes it.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut impl Write, report: Report<'_>, names: &mut Names) -> io::Result<()> {
    let Report { header, fail_on, findings, coverage, requests, .. } = report;
    let mut first = json::header(SCHEMA, header);
    first["fail_on"] = fail_on.iter().map(|v| v.name()).collect();
    line(out, &first)?;
    for finding in findings {
        line(out, &json::object(finding, header.outside, names))?;
    }
    let mut summary = json::summary(header, findings.len());
    let Tally { problems, warnings, known } = report.tally();
    let checked = |verdict: &Verdict| {
        let found = findings.iter().filter(|f| f.verdict == *verdict).count();
        json!({ "what": verdict.name(), "findings": found })
    };
    let not_checked = coverage
        .not_checked
        .iter()
        .map(|n| json!({ "what": n.what, "why": n.why, "inconclusive": n.inconclusive }));
    let throttling = coverage.throttling.as_ref().map(Throttling::to_json);
    let requests = requests.map(|requests| {
        let mut told = figures(&requests.gathered);
        told["slow_from_ns"] = requests.slow_ns.into();
        told["slowest"] = requests.slowest.iter().map(|request| one(request)).collect();
        told["probe_cost_share"] = json!(requests.probe_cost);
        told
    });
    for (name, value) in [
        ("throttling", throttling.into()),
        ("requests", requests.into()),
        ("problems", problems.into()),
        ("warnings", warnings.into()),
        ("known", known.into()),
        ("inconclusive", coverage.is_inconclusive().into()),
        ("verdict", report.verdict().into()),
        ("stuck_after_ns", coverage.stuck_after_ns.into()),
        ("checked", coverage.checked.iter().map(checked).collect()),
        ("not_checked", Value::Array(not_checked.collect())),
    ] {
        summary[name] = value;
    }
    line(out, &json!({ "summary": summary }))
}
