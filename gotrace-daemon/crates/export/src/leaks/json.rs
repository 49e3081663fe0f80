//! `leaks --format json`: one object a line, schema `gotrace.leaks/1`: a header, a line a finding, the worst
//! first, a summary. Unknown is `null`; addresses are strings.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    Header, When,
    values::{frames, line, place, reason},
};
use crate::outside::{call_json, wait_json};
use gotrace_inspect::{
    leak::{Agreement, AtLeastAtMost, Awaited, Finding, Holder, Part},
    snapshot::{Names, Outside, Wait, WaitObject},
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
    line(out, &self::header(SCHEMA, header))?;
    for finding in findings {
        line(out, &object(finding, header.outside, names))?;
    }
    line(out, &json!({ "summary": summary(header, findings.len()) }))
}

/// The header.
pub(crate) fn header(schema: &str, header: Header<'_>) -> Value {
    json!({
        "schema": schema,
        "time_unix_nano": header.time_unix_nano,
        "pid": header.pid,
        "executable": header.executable,
        "go_version": header.go_version,
        "engine": header.engine,
        "duration_ns": header.duration_ns,
        "looks": header.looks,
        "watched": header.when == When::Watched,
        "references_complete": header.references_complete,
    })
}

/// The summary.
pub(crate) fn summary(header: Header<'_>, findings: usize) -> Value {
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
    json!({
        "findings": findings,
        "goroutines": header.goroutines,
        "sockets_cut": header.outside.is_some_and(|o| o.sockets_cut),
        "came": watched.then_some(header.came_and_exited.0),
        "exited": watched.then_some(header.came_and_exited.1),
        "proof": proof,
    })
}

/// A finding.
pub(crate) fn object(finding: &Finding, outside: Option<&Outside>, names: &mut Names) -> Value {
    let others: Vec<Value> = finding.others.iter().map(|other| part(other, outside, names)).collect();
    json!({
        "verdict": finding.verdict.name(),
        "count": finding.count(),
        "growth_per_second": finding.growth.map(|g| json!({"low": g.low, "high": g.high})),
        "oldest_ns": bounds(finding.oldest),
        "entry": place(names.runs(finding.entry_pc, &finding.stack)),
        "created_by": place(names.created_by(finding.created_pc).first()),
        "wait_reason": reason(names, finding.wait_reason),
        "stack": frames(&finding.stack, names),
        "waits_on": waits(&finding.waits_on, outside),
        "waits_on_total": finding.waits_on_total,
        "goids": finding.goids,
        "others": others,
        "place": finding.awaited.map(Awaited::text),
        "holders": finding.holders.iter().map(|h| holder(h, outside, names)).collect::<Vec<_>>(),
        "came": finding.came_and_exited.map(|(came, _)| came),
        "exited": finding.came_and_exited.map(|(_, exited)| exited),
        "retained_bytes": finding.retained_bytes,
        "passes": finding.passes.map(|p| json!({"agreed": p.agreed, "needed": p.needed})),
        "provisional": finding.passes.is_some_and(Agreement::is_provisional),
        "test": finding.test,
        "suppressed": finding.accepted.suppressed,
        "in_baseline": finding.accepted.in_baseline,
        "why": finding.why,
    })
}

fn waits(waits_on: &[(Wait, WaitObject)], outside: Option<&Outside>) -> Vec<Value> {
    waits_on.iter().map(|(wait, object)| wait_json(*wait, object, outside)).collect()
}

pub(super) fn holder(holder: &Holder, outside: Option<&Outside>, names: &mut Names) -> Value {
    let function = names.runs(holder.entry_pc, &holder.stack).map(|f| f.function.clone());
    let frame = place(names.stack(&[holder.frame]).last().map(|f| f.frame));
    let mut waits = waits(&holder.waits_on, outside);
    waits.extend(outside.and_then(|o| o.call(holder.goid)).map(call_json));
    json!({
        "goid": holder.goid,
        "function": function,
        "frame": frame,
        "state": holder.status.name(),
        "wait_reason": reason(names, holder.wait_reason),
        "evidence": holder.evidence.name(),
        "waits_for": holder.waits_for,
        "waits_on": waits,
    })
}

fn part(part: &Part, outside: Option<&Outside>, names: &mut Names) -> Value {
    json!({
        "count": part.goids.len(),
        "entry": place(names.runs(part.entry_pc, &part.stack)),
        "created_by": place(names.created_by(part.created_pc).first()),
        "wait_reason": reason(names, part.wait_reason),
        "stack": frames(&part.stack, names),
        "waits_on": waits(&part.waits_on, outside),
        "waits_on_total": part.waits_on_total,
        "goids": part.goids,
    })
}

pub(super) fn bounds(bounds: AtLeastAtMost) -> Value {
    json!({"at_least": bounds.at_least_ns, "at_most": bounds.at_most_ns})
}
