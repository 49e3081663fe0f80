//! `leaks --format json`: one object a line, schema `gotrace.leaks/1`: a header, a line a finding, the worst
//! first, a summary. Unknown is `null`; addresses are strings.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    Header, When,
    values::{frames, line, place, reason},
};
use crate::{
    leak::{Agreement, AtLeastAtMost, Finding, Holder, Part},
    sink::dump::json::wait_on,
    snapshot::Names,
};

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.leaks/1";

/// Writes findings.
///
/// # Errors
/// What the writer says.
pub fn write(
    out: &mut impl Write,
    header: Header<'_>,
    findings: &[Finding],
    names: &mut Names,
) -> io::Result<()> {
    line(
        out,
        &json!({
            "schema": SCHEMA,
            "time_unix_nano": header.time_unix_nano,
            "pid": header.pid,
            "executable": header.executable,
            "go_version": header.go_version,
            "engine": header.engine,
            "duration_ns": header.duration_ns,
            "looks": header.looks,
            "watched": header.when == When::Watched,
            "references_complete": header.references_complete,
        }),
    )?;
    for finding in findings {
        line(out, &object(finding, names))?;
    }
    let watched = header.when == When::Watched;
    let proof = header.proof.map(|p| {
        json!({
            "passes": p.passes,
            "passes_needed": p.needed,
            "passes_void": p.void,
            "refuted": p.refuted,
            "leaked_bytes": p.retained.leaked_bytes,
            "heap_bytes": p.retained.heap_bytes,
        })
    });
    line(
        out,
        &json!({"summary": {
            "findings": findings.len(),
            "goroutines": header.goroutines,
            "came": watched.then_some(header.came_and_exited.0),
            "exited": watched.then_some(header.came_and_exited.1),
            "proof": proof,
        }}),
    )
}

fn object(finding: &Finding, names: &mut Names) -> Value {
    let others: Vec<Value> = finding.others.iter().map(|other| part(other, names)).collect();
    let waits: Vec<Value> = finding.waits_on.iter().map(|(w, o)| wait_on(*w, o)).collect();
    json!({
        "verdict": finding.verdict.name(),
        "count": finding.count(),
        "growth_per_second": finding.growth.map(|g| json!({"low": g.low, "high": g.high})),
        "oldest_ns": bounds(finding.oldest),
        "entry": place(names.runs(finding.entry_pc, &finding.stack)),
        "created_by": place(names.created_by(finding.created_pc).first()),
        "wait_reason": reason(names, finding.wait_reason),
        "stack": frames(&finding.stack, names),
        "waits_on": waits,
        "waits_on_total": finding.waits_on_total,
        "goids": finding.goids,
        "others": others,
        "place": null,
        "holders": finding.holders.iter().map(|h| holder(h, names)).collect::<Vec<_>>(),
        "came": finding.came_and_exited.map(|(came, _)| came),
        "exited": finding.came_and_exited.map(|(_, exited)| exited),
        "retained_bytes": finding.retained_bytes,
        "passes": finding.passes.map(|p| json!({"agreed": p.agreed, "needed": p.needed})),
        "provisional": finding.passes.is_some_and(Agreement::is_provisional),
        "test": finding.test,
        "why": finding.why,
    })
}

fn holder(holder: &Holder, names: &mut Names) -> Value {
    let function = names.runs(holder.entry_pc, &holder.stack).map(|f| f.function.clone());
    let frame = place(names.stack(&[holder.frame]).last().map(|f| f.frame));
    json!({
        "goid": holder.goid,
        "function": function,
        "frame": frame,
        "state": holder.status.name(),
        "wait_reason": reason(names, holder.wait_reason),
        "evidence": holder.evidence.name(),
        "waits_for": holder.waits_for,
    })
}

fn part(part: &Part, names: &mut Names) -> Value {
    let waits: Vec<Value> = part.waits_on.iter().map(|(w, o)| wait_on(*w, o)).collect();
    json!({
        "count": part.goids.len(),
        "entry": place(names.runs(part.entry_pc, &part.stack)),
        "created_by": place(names.created_by(part.created_pc).first()),
        "wait_reason": reason(names, part.wait_reason),
        "stack": frames(&part.stack, names),
        "waits_on": waits,
        "waits_on_total": part.waits_on_total,
        "goids": part.goids,
    })
}

pub(super) fn bounds(bounds: AtLeastAtMost) -> Value {
    json!({"at_least": bounds.at_least_ns, "at_most": bounds.at_most_ns})
}
