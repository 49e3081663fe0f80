//! `check --format text`: for people. The verdict comes first, then problems, warnings and what is known, then what was
//! checked and what was not, and what to run next.

use std::io::{self, Write};

use super::{Report, Weight};
use crate::{
    leaks::text::{INDENT, finding, looked, process, proof, wrap},
    text::problem,
};
use gotrace_inspect::snapshot::Names;
use gotrace_model::printable::printable;

/// Writes it. `colour`: with problems in red.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut impl Write, report: Report<'_>, names: &mut Names, colour: bool) -> io::Result<()> {
    let Report { header, coverage, next, .. } = report;
    let is_problem = report.tally().problems > 0;
    writeln!(out, "{}: {}", process(header), problem(&report.verdict(), colour && is_problem))?;
    writeln!(out, "  {}", looked(header))?;
    if let Some(line) = header.proof.and_then(proof) {
        writeln!(out, "  {line}")?;
    }
    for weight in Weight::ALL {
        let mut title = match weight {
            Weight::Problem => None,
            Weight::Warning => Some("warnings:"),
            Weight::Known => Some("known:"),
        };
        for found in report.of(weight) {
            writeln!(out)?;
            if let Some(title) = title.take() {
                writeln!(out, "{title}")?;
            }
            let mut block = Vec::new();
            finding(&mut block, found, header.outside, names)?;
            let name = found.verdict.name();
            if colour && weight == Weight::Problem {
                block = String::from_utf8_lossy(&block).replacen(name, &problem(name, true), 1).into();
            }
            out.write_all(&block)?;
        }
        for condition in report.conditions(weight) {
            writeln!(out)?;
            if let Some(title) = title.take() {
                writeln!(out, "{title}")?;
            }
            let name = problem(&format!("{:<12}", condition.name), colour && weight == Weight::Problem);
            let mut lines = wrap(&condition.sentence).into_iter();
            writeln!(out, "  {name}{}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(out, "{INDENT}{line}")?;
            }
            for line in condition.details.lines() {
                writeln!(out, "{INDENT}{line}")?;
            }
        }
    }
    writeln!(out)?;
    if !coverage.checked.is_empty() {
        writeln!(out, "checked:")?;
    }
    for &verdict in &coverage.checked {
        writeln!(out, "  {:<13}{}", verdict.name(), report.result(verdict))?;
    }
    if let Some(throttling) = &coverage.throttling {
        let told = if throttling.is_throttled() { "1 finding".to_owned() } else { throttling.sentence() };
        writeln!(out, "  {:<13}{told}", "throttling")?;
    }
    if let Some(requests) = report.requests {
        writeln!(out, "  {:<13}{}", "slow", requests.sentence())?;
    }
    if !coverage.not_checked.is_empty() {
        writeln!(out, "not checked:")?;
    }
    for item in &coverage.not_checked {
        writeln!(out, "  {}: {}", printable(&item.what), printable(&item.why))?;
    }
    if !next.is_empty() {
        writeln!(out, "next:")?;
    }
    let width = next.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, purpose) in next {
        writeln!(out, "  {command:<width$}  {purpose}")?;
    }
    Ok(())
}
