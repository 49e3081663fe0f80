//! What findings say beside the verdict, from the process's memory: how far a `sync.WaitGroup` or a lock has counted,
//! and who holds a lock.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Process, proof::Proving};
use crate::{
    heap::{Evidence, LockHolder},
    leak::{Finding, Holder, NO_OWNER, STATE_BYTES, Verdict, state},
    process::ReadMemory as _,
    snapshot::{ObjectKind, Snapshot},
};

/// Beyond so many goroutines nobody looks for holders.
const MAX_GOROUTINES: usize = 200_000;
/// Findings that are looked into.
const MAX_FINDINGS: usize = 64;

/// Adds to findings what the locks and groups say that their goroutines wait for. What cannot be read is left out.
pub(super) fn explain(
    process: &Process,
    proving: Option<&mut Proving>,
    snapshot: &Snapshot,
    findings: &mut [Finding],
) {
    let memory = process.live.memory();
    for finding in findings.iter_mut().filter(|f| is_blocked(f)).take(MAX_FINDINGS) {
        let Some((_, object)) = finding.waits_on.first().filter(|(_, o)| o.address != 0) else { continue };
        let mut bytes = [0; STATE_BYTES];
        if let Ok(true) = memory.read_at(object.address, &mut bytes)
            && let Some(said) = state(object.kind, &bytes)
        {
            finding.why = format!("{}. {}", sentence(&said), sentence(&finding.why));
        }
    }
    if let Some(proving) = proving {
        name_holders(proving, snapshot, findings);
    }
}

fn is_blocked(finding: &Finding) -> bool {
    matches!(finding.verdict, Verdict::Stuck | Verdict::Deadlock | Verdict::Unreachable)
}

/// The lock that the goroutines of a finding wait for, if it is one.
fn lock_of(finding: &Finding) -> Option<u64> {
    let is_lock = |kind| matches!(kind, ObjectKind::Mutex | ObjectKind::RwMutex);
    let (_, object) = finding.waits_on.first().filter(|_| finding.waits_on_total == 1)?;
    (is_blocked(finding) && is_lock(object.kind) && object.address != 0).then_some(object.address)
}

fn name_holders(proving: &mut Proving, snapshot: &Snapshot, findings: &mut [Finding]) {
    let mut locks: Vec<u64> = findings.iter().filter_map(lock_of).take(MAX_FINDINGS).collect();
    locks.sort_unstable();
    locks.dedup();
    if locks.is_empty() || snapshot.goroutines.len() > MAX_GOROUTINES {
        return;
    }
    let is_lock = |kind| matches!(kind, ObjectKind::Mutex | ObjectKind::RwMutex);
    let waits: HashMap<u64, u64, FixedState> = snapshot
        .goroutines
        .iter()
        .filter_map(|g| {
            let object = snapshot.waits_of(g).first().and_then(|w| snapshot.object(w.object))?;
            (is_lock(object.kind) && object.address != 0).then_some((g.goid, object.address))
        })
        .collect();
    let found = proving.holders(&locks, &waits);
    let of =
        |lock: u64| locks.binary_search(&lock).ok().and_then(|n| found.get(n)).map_or(&[][..], Vec::as_slice);
    let locked = |lock: u64| of(lock).first().filter(|h| h.evidence == Evidence::Locked).map(|h| h.goid);
    for finding in findings {
        let Some(lock) = lock_of(finding) else { continue };
        let told = |h: &LockHolder| {
            let goroutine = snapshot.goroutine(h.goid)?;
            let waiting = goroutine.status.is_waiting();
            Some(Holder {
                goid: h.goid,
                entry_pc: goroutine.entry_pc,
                stack: snapshot.frames(goroutine).to_vec(),
                frame: h.frame,
                status: goroutine.status,
                wait_reason: waiting.then_some(goroutine.wait_reason),
                evidence: h.evidence,
                waits_for: waits.get(&h.goid).and_then(|&lock| locked(lock)),
            })
        };
        finding.holders = of(lock).iter().filter_map(told).collect();
        if finding.holders.first().is_some_and(|h| h.evidence == Evidence::Locked) {
            finding.why = finding.why.replace(NO_OWNER, "");
        }
        let own = |h: &&Holder| h.evidence == Evidence::Locked && h.waits_for == Some(h.goid);
        if let Some(holder) = finding.holders.iter().find(own) {
            finding.why = format!(
                "Locked twice: goroutine {} holds this lock and waits for it itself. {}",
                holder.goid,
                sentence(&finding.why)
            );
        }
    }
}

/// With a capital letter.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
