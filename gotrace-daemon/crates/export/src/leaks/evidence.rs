//! `leaks --evidence FILE`: what marking the heap saw, as JSON lines, schema `gotrace.evidence/1`: a header,
//! a line a pass, a line for each candidate of the last pass, a summary.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{ProofSummary, values::line};
use gotrace_inspect::heap::{CandidateEvidence, PassEvidence, Prover};

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.evidence/1";

/// Writes it.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut impl Write, pid: u32, prover: &Prover, summary: &ProofSummary) -> io::Result<()> {
    line(out, &json!({"schema": SCHEMA, "pid": pid, "go_version": prover.go_version()}))?;
    for (n, evidence) in prover.evidence().iter().enumerate() {
        line(out, &pass(n + 1, evidence))?;
    }
    for c in prover.candidates() {
        line(out, &candidate(c, prover))?;
    }
    let proof = prover.proof();
    line(
        out,
        &json!({"summary": {
            "passes": summary.passes,
            "passes_needed": summary.needed,
            "passes_void": summary.void,
            "proven": proof.proven().count(),
            "refuted": summary.refuted,
            "never_stopped_goid": proof.never_stopped,
            "leaked_bytes": summary.retained.leaked_bytes,
            "heap_bytes": summary.retained.heap_bytes,
        }}),
    )
}

fn pass(n: usize, e: &PassEvidence) -> Value {
    let r = &e.roots;
    json!({"pass": {
        "number": n,
        "duration_ns": e.duration_ns,
        "spans": e.spans,
        "spans_unreadable": e.spans_unreadable,
        "heap_bytes": e.heap_bytes,
        "modules": e.modules,
        "goroutines": e.goroutines,
        "unused_goroutines": e.unused,
        "candidates": e.candidates,
        "roots": {
            "data_bytes": r.data_bytes,
            "data_exact_bytes": r.data_exact_bytes,
            "bss_bytes": r.bss_bytes,
            "bss_exact_bytes": r.bss_exact_bytes,
            "goroutines": r.goroutines,
            "stack_bytes": r.stack_bytes,
            "stacks_exact": r.stacks_exact,
            "finalizers": r.finalizers,
            "weak_handles": r.weak_handles,
            "cleanups": r.cleanups,
            "specials_cut": r.specials_cut,
            "blocks": r.blocks,
            "fresh_spans": r.fresh_spans,
            "fresh_objects": r.fresh_objects,
            "goroutines_again": r.goroutines_again,
            "goroutines_again_exact": r.again_exact,
        },
        "objects_exact": e.objects_exact,
        "objects_whole": e.objects_whole,
        "reached_objects": e.reached_objects,
        "reached_bytes": e.reached_bytes,
        "woken": e.woken,
        "moved": e.moved,
        "unreached": e.unreached,
        "bytes_read": e.bytes_read,
        "bytes_unreadable": e.bytes_unreadable,
    }})
}

fn candidate(c: &CandidateEvidence, prover: &Prover) -> Value {
    let addresses = |list: &[u64]| list.iter().map(|a| format!("{a:#x}")).collect::<Vec<_>>();
    let passes = prover.proof().unreachable.get(c.goid).map(|p| p.passes);
    json!({"candidate": {
        "goid": c.goid,
        "g": format!("{:#x}", c.g),
        "outcome": c.outcome.name(),
        "waits_on": addresses(&c.waits_on),
        "records": addresses(&c.records),
        "passes": passes,
    }})
}
