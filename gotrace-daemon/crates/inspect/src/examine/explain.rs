//! What findings say beside the verdict, from the process: how far a `sync.WaitGroup` or a lock has counted, who holds a
//! lock, and who is at the other end of connections.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Proving,
    pools::{MAX_GOROUTINES, holder},
};
use crate::{
    heap::{Evidence, LockHolder},
    leak::{Finding, Holder, NO_OWNER, STATE_BYTES, UNANSWERED, Verdict, seconds, state},
    snapshot::{End, Goroutine, Live, ObjectKind, Op, Snapshot, WaitObject},
};
use gotrace_model::printable::printable;
use gotrace_process::ReadMemory as _;

/// Goroutines of one finding of which it is looked up what they wait for outside of the process.
const MAX_LOOKED_UP: usize = 4096;
/// Goroutines of a cycle that is told.
const MAX_CYCLE: usize = 16;
/// Findings that are looked into.
const MAX_FINDINGS: usize = 64;

/// Adds to findings what the locks and groups say that their goroutines wait for. What cannot be read is left out.
pub(super) fn explain(
    live: &Live,
    proving: Option<&mut Proving>,
    snapshot: &Snapshot,
    findings: &mut [Finding],
) {
    let memory = live.memory();
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

/// Adds to findings who is at the other end of connections, and to the snapshot what else their goroutines and those that
/// hold what these wait for wait for outside of the process.
pub(super) fn look_outside(live: &Live, snapshot: &mut Snapshot, findings: &mut [Finding]) {
    let holders = findings.iter().flat_map(|f| &f.holders).map(|h| h.goid);
    let waiting = findings.iter().flat_map(|f| f.goids.iter().copied().take(MAX_LOOKED_UP));
    let goids: Vec<u64> = holders.chain(waiting).collect();
    live.look_outside(snapshot, goids);
    for finding in findings {
        if let Some(said) = peers(snapshot, finding) {
            // Who opened the connections is the verdict's to know.
            finding.why = match finding.why.strip_prefix(UNANSWERED) {
                Some(why) => format!("{said}: connections that this process opened. {}", sentence(why)),
                None => format!("{said}. {}", sentence(&finding.why)),
            };
        }
    }
}

/// Who is at the other end of the connections that the goroutines of a finding read from, or write to, without a
/// deadline.
fn peers(snapshot: &Snapshot, finding: &Finding) -> Option<String> {
    let mut by_peer: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut empty, mut reads) = (true, 0);
    for goroutine in finding.goids.iter().filter_map(|&goid| snapshot.goroutine(goid)) {
        let [wait] = snapshot.waits_of(goroutine) else { continue };
        let file = snapshot.object(wait.object).and_then(|o| snapshot.outside.file(o));
        let Some(peer) = file.and_then(|f| f.peer.as_deref()) else { continue };
        if wait.until.end() != End::Never {
            return None;
        }
        *by_peer.entry(peer).or_insert(0) += 1;
        reads += usize::from(wait.op == Some(Op::Read));
        empty &= file.is_some_and(|f| f.unread_bytes == Some(0));
    }
    let known: usize = by_peer.values().sum();
    let (peer, most) = by_peer.iter().max_by_key(|(_, n)| **n)?;
    if reads != 0 && reads != known {
        return None;
    }
    let who = match (known, finding.count()) {
        (1, 1) => "It".to_owned(),
        (known, count) if known == count => format!("All {count}"),
        (known, _) => format!("{known} of them"),
    };
    let does = match (known == 1, reads == 0) {
        (true, false) => "reads without a deadline from",
        (true, true) => "writes without a deadline to",
        (false, false) => "read without a deadline from",
        (false, true) => "write without a deadline to",
    };
    let peer = printable(peer);
    let others = match by_peer.len() - 1 {
        0 => String::new(),
        1 => format!(" ({most}) and another peer ({})", known - most),
        n => format!(" ({most}) and {n} other peers ({})", known - most),
    };
    let unread = if empty && reads > 0 { ", nothing unread" } else { "" };
    Some(format!("{who} {does} {peer}{others}{unread}"))
}

fn is_blocked(finding: &Finding) -> bool {
    matches!(finding.verdict, Verdict::Stuck | Verdict::Deadlock | Verdict::Unreachable)
}

/// The lock that the goroutines of a finding wait for, if it is one.
fn lock_of(finding: &Finding) -> Option<u64> {
    let (_, object) = finding.waits_on.first().filter(|_| finding.waits_on_total == 1)?;
    let wanted = is_blocked(finding) || finding.verdict == Verdict::Growing;
    (wanted && is_lock(object)).then_some(object.address)
}

fn is_lock(object: &WaitObject) -> bool {
    matches!(object.kind, ObjectKind::Mutex | ObjectKind::RwMutex) && object.address != 0
}

/// The lock that a goroutine waits for.
pub(super) fn lock_of_goroutine(snapshot: &Snapshot, goroutine: &Goroutine) -> Option<u64> {
    let object = snapshot.waits_of(goroutine).first().and_then(|w| snapshot.object(w.object))?;
    is_lock(object).then_some(object.address)
}

fn name_holders(proving: &mut Proving, snapshot: &Snapshot, findings: &mut [Finding]) {
    let mut locks: Vec<u64> = findings.iter().filter_map(lock_of).take(MAX_FINDINGS).collect();
    locks.sort_unstable();
    locks.dedup();
    if locks.is_empty() || snapshot.goroutines.len() > MAX_GOROUTINES {
        return;
    }
    let waits: HashMap<u64, u64, FixedState> =
        snapshot.goroutines.iter().filter_map(|g| Some((g.goid, lock_of_goroutine(snapshot, g)?))).collect();
    let found = proving.holders(&locks, &waits);
    let of =
        |lock: u64| locks.binary_search(&lock).ok().and_then(|n| found.get(n)).map_or(&[][..], Vec::as_slice);
    let locked = |lock: u64| of(lock).first().filter(|h| h.evidence == Evidence::Locked).map(|h| h.goid);
    for finding in findings {
        let Some(lock) = lock_of(finding) else { continue };
        let told = |h: &LockHolder| {
            let waits_for = waits.get(&h.goid).and_then(|&lock| locked(lock));
            Some(Holder { waits_for, ..holder(snapshot, h)? })
        };
        finding.holders = of(lock).iter().filter_map(told).collect();
        if finding.holders.first().is_some_and(|h| h.evidence == Evidence::Locked) {
            finding.why = finding.why.replace(NO_OWNER, "");
        }
        let cycle = finding.goids.iter().map(|&goid| cycle_of(goid, &waits, locked)).find(|c| !c.is_empty());
        if let Some(cycle) = cycle.filter(|_| finding.verdict == Verdict::Stuck) {
            finding.verdict = Verdict::Deadlock;
            let for_long = seconds(finding.oldest.at_least_ns);
            finding.why = format!("{} Blocked for at least {for_long}.", in_cycle(cycle));
        }
        let own = |h: &&Holder| h.evidence == Evidence::Locked && h.waits_for == Some(h.goid);
        if let Some(holder) = finding.holders.iter().find(own) {
            finding.why = format!(
                "Locked twice: goroutine {} already holds the lock that it is blocked on. {}",
                holder.goid,
                sentence(&finding.why)
            );
        }
    }
}

/// Goroutines from this one on of which each is known to hold the lock that the one before it waits for, and it the last
/// one's; empty where there is no such cycle, or it is of one alone.
fn cycle_of(
    goid: u64,
    waits: &HashMap<u64, u64, FixedState>,
    locked: impl Fn(u64) -> Option<u64>,
) -> Vec<u64> {
    let mut cycle = vec![goid];
    loop {
        let next = cycle.last().and_then(|last| waits.get(last)).and_then(|&lock| locked(lock));
        match next {
            Some(next) if next == goid && cycle.len() > 1 => return cycle,
            Some(next) if !cycle.contains(&next) && cycle.len() < MAX_CYCLE => cycle.push(next),
            _ => return Vec::new(),
        }
    }
}

fn in_cycle(mut goids: Vec<u64>) -> String {
    goids.sort_unstable();
    let (last, others) = goids.split_last().unwrap_or((&0, &[]));
    let others: Vec<String> = others.iter().map(u64::to_string).collect();
    let next = if others.len() == 1 { "other" } else { "next" };
    format!(
        "Goroutines {} and {last} are deadlocked: each holds the lock that the {next} is blocked on.",
        others.join(", ")
    )
}

/// With a capital letter.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_each_other_is_a_cycle_and_who_waits_behind_them_is_none() {
        // 1 and 2 hold each other's lock; 3 waits for that of 1; 4 for one that nobody is known to hold; 5 for its own.
        let waits: HashMap<u64, u64, FixedState> =
            [(1, 20), (2, 10), (3, 10), (4, 40), (5, 50)].into_iter().collect();
        let locked =
            |lock: u64| [(10, 1), (20, 2), (50, 5)].into_iter().find(|&(l, _)| l == lock).map(|(_, g)| g);
        let cycles: Vec<Vec<u64>> = (1..=6).map(|goid| cycle_of(goid, &waits, locked)).collect();
        assert_eq!(cycles, [vec![1, 2], vec![2, 1], vec![], vec![], vec![], vec![]]);
        assert_eq!(
            in_cycle(vec![2, 1]),
            "Goroutines 1 and 2 are deadlocked: each holds the lock that the other is blocked on."
        );
        assert!(
            in_cycle(vec![1, 2, 3])
                .starts_with("Goroutines 1, 2 and 3 are deadlocked: each holds the lock that the next")
        );
    }
}
