//! What the examination of a traced process found, as its tracee takes it, and what was proven of one that is not
//! traced any more.

use std::{sync::Arc, time::Duration};

use super::{Traced, behind::is_test};
use crate::tracee::{Found, FoundHolder, FoundPart, WaitPlace};
use gotrace_inspect::{
    leak::{Finding, Holder, Part},
    snapshot::{Names, StackFrame},
};
use gotrace_model::Interval;

/// Holders that are told of one finding.
const HOLDERS: usize = 8;

/// What was proven of a process that is not traced any more.
#[derive(Clone, Debug)]
pub struct ProvenProcess {
    /// The process.
    pub pid: u32,
    /// Its executable.
    pub executable: String,
    /// Import path of its main package, where its build information tells.
    pub package: Option<String>,
    /// Whether it ran tests.
    pub is_test: bool,
    /// Its last state, which has the leaks.
    pub last: Arc<Interval>,
    /// How long before the end the last proof began that was completed; `None` where none was.
    pub before_the_end: Option<Duration>,
}

impl Traced {
    /// What is left of proofs when it is not traced any more; `last`: its last state.
    pub(super) fn proven(&self, last: &Arc<Interval>) -> ProvenProcess {
        let completed = self.examining.as_ref().and_then(|e| e.completed());
        ProvenProcess {
            pid: self.pid(),
            executable: self.target.executable.display().to_string(),
            package: self.binary().build().path.clone(),
            is_test: is_test(self.binary()),
            last: Arc::clone(last),
            before_the_end: completed.map(|begun| begun.elapsed()),
        }
    }
}

fn frames(stack: &[StackFrame]) -> Vec<u64> {
    stack.iter().copied().map(StackFrame::pc).collect()
}

/// Gives goroutines of findings the entries that the table has for them.
pub(super) fn name_entries(findings: &mut [Finding], names: &mut Names) {
    for finding in findings {
        finding.entry_pc = names.runs_entry(finding.entry_pc, &finding.stack);
        for part in &mut finding.others {
            part.entry_pc = names.runs_entry(part.entry_pc, &part.stack);
        }
        for holder in &mut finding.holders {
            holder.entry_pc = names.runs_entry(holder.entry_pc, &holder.stack);
        }
    }
}

/// A finding as the tracee takes it.
pub(super) fn recorded(found: &Finding) -> Found {
    let part = |part: &Part| FoundPart {
        place: WaitPlace {
            entry_pc: part.entry_pc,
            created_pc: part.created_pc,
            reason: part.wait_reason,
            frames: frames(&part.stack),
        },
        goids: part.goids.clone(),
    };
    let holder = |holder: &Holder| FoundHolder {
        goid: holder.goid,
        entry_pc: holder.entry_pc,
        frame_pc: holder.frame.pc(),
        status: holder.status,
        reason: holder.wait_reason,
        evidence: holder.evidence,
        waits_for: holder.waits_for,
    };
    Found {
        verdict: found.verdict,
        place: WaitPlace {
            entry_pc: found.entry_pc,
            created_pc: found.created_pc,
            reason: found.wait_reason,
            frames: frames(&found.stack),
        },
        awaited: found.awaited,
        goids: found.goids.clone(),
        others: found.others.iter().map(part).collect(),
        holders: found.holders.iter().take(HOLDERS).map(holder).collect(),
        growth_per_second: found.growth.map(|g| (g.low, g.high)),
        standing_ns: found.oldest.at_least_ns,
        retained_bytes: found.retained_bytes,
        why: found.why.as_str().into(),
    }
}
