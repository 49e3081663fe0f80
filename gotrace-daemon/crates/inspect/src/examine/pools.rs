//! Pools that hand out nothing: what of [`crate::leak::stalls`] holds once it is known who keeps the members.
//!
//! Input: an examination and its last look. Output: [`Stall`]s, one a pool, with who keeps its members or may.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Examination, explain::lock_of_goroutine, place};
use crate::{
    heap::{HeapError, LockHolder, Pool, Pools, Prover},
    leak::{Awaited, Finding, Holder, Stall, is_function, is_servant, is_served, stalls as all_stalls},
    snapshot::{Goroutine, Names, Snapshot, StackFrame},
};
use gotrace_process::ReadMemory;

/// Beyond so many goroutines nobody looks for holders.
pub(super) const MAX_GOROUTINES: usize = 200_000;

/// The pools that hand out nothing.
pub(super) fn stalls(examination: &mut Examination, snapshot: &Snapshot) -> Vec<Stall> {
    let Examination { watch, names, proving, .. } = examination;
    let mut found = Vec::new();
    for stall in all_stalls(watch, snapshot) {
        match proving.as_mut().filter(|p| p.failure().is_none()) {
            Some(proving) if snapshot.goroutines.len() <= MAX_GOROUTINES => {
                found.extend(by_pool(&mut |of| proving.keepers(of), names, snapshot, stall));
            }
            _ => found.push(stall),
        }
    }
    found.retain_mut(|stall| !is_served(watch, snapshot, stall));
    found
}

/// Each pool of those that goroutines of one kind wait for.
fn by_pool(
    keepers: &mut dyn FnMut(&Pools<'_>) -> Option<Vec<Pool>>,
    names: &mut Names,
    snapshot: &Snapshot,
    stall: Stall,
) -> Vec<Stall> {
    let Some(members) = stall.awaited.members() else { return Vec::new() };
    let may_keep = may_keep(names, snapshot, stall.awaited);
    let pools = Pools {
        waiters: &stall.goids,
        pool: stall.channel.filter(|_| stall.awaited == Awaited::Token).map(|(address, _)| address),
        takes: &|function| stall.awaited.is_called_with_pool(function),
        members,
        may_keep: &|goid| may_keep.get(&goid).copied().unwrap_or(false),
    };
    let Some(found) = keepers(&pools) else { return vec![stall] };
    found
        .into_iter()
        .map(|pool| Stall {
            goids: pool.waiters,
            holders: pool.keepers.iter().filter_map(|k| holder(snapshot, k)).collect(),
            searched: pool.address.is_some(),
            ..stall.clone()
        })
        .collect()
}

/// Who holds the lock that a goroutine waits for, or keeps the members of the pool, the best known first. Empty where it
/// waits for something else, and where there are too many goroutines.
///
/// # Errors
/// When the memory cannot be read.
pub fn holders(
    prover: &mut Prover,
    memory: &dyn ReadMemory,
    names: &mut Names,
    snapshot: &Snapshot,
    goid: u64,
) -> Result<Vec<Holder>, HeapError> {
    let Some(goroutine) = snapshot.goroutine(goid).filter(|_| snapshot.goroutines.len() <= MAX_GOROUTINES)
    else {
        return Ok(Vec::new());
    };
    let told = |of: &[LockHolder]| of.iter().filter_map(|h| holder(snapshot, h)).collect::<Vec<_>>();
    if let Some(lock) = lock_of_goroutine(snapshot, goroutine) {
        let waits =
            snapshot.goroutines.iter().filter_map(|g| Some((g.goid, lock_of_goroutine(snapshot, g)?)));
        let waits = waits.collect();
        return Ok(told(prover.holders(memory, &[lock], &waits)?.first().map_or(&[][..], Vec::as_slice)));
    }
    let Some(awaited) = place(names, snapshot.frames(goroutine)).filter(|a| a.members().is_some()) else {
        return Ok(Vec::new());
    };
    let mut known: HashMap<usize, bool, FixedState> = HashMap::default();
    let mut waits = |g: &&Goroutine| {
        g.status.is_waiting()
            && g.stack.is_some_and(|id| {
                *known
                    .entry(id.index())
                    .or_insert_with(|| place(names, snapshot.stacks.frames(id)) == Some(awaited))
            })
    };
    let goids = snapshot.goroutines.iter().filter(&mut waits).map(|g| g.goid).collect();
    let stall = Stall { awaited, goids, least_ns: 0, channel: None, holders: Vec::new(), searched: false };
    let mut failed = None;
    let mut keepers = |of: &Pools<'_>| match prover.keepers(memory, of) {
        Ok(found) => Some(found),
        Err(e) => {
            failed = Some(e);
            None
        }
    };
    let pools = by_pool(&mut keepers, names, snapshot, stall);
    match failed {
        Some(e) => Err(e),
        None => Ok(pools.into_iter().find(|p| p.goids.contains(&goid)).map_or_else(Vec::new, |p| p.holders)),
    }
}

/// By goid, whether a goroutine may keep a member: it is none of the library's own, and inside of the function in which
/// those are that do, where that is known.
fn may_keep(names: &mut Names, snapshot: &Snapshot, awaited: Awaited) -> HashMap<u64, bool, FixedState> {
    let mut servants: HashMap<u64, bool, FixedState> = HashMap::default();
    let mut inside: HashMap<usize, bool, FixedState> = HashMap::default();
    let mut may = HashMap::default();
    for goroutine in &snapshot.goroutines {
        let serves = *servants
            .entry(goroutine.entry_pc)
            .or_insert_with(|| names.entry(goroutine.entry_pc).is_some_and(|f| is_servant(&f.function)));
        let is_inside = awaited.keeps_inside().is_none_or(|function| {
            goroutine.stack.is_some_and(|id| {
                *inside
                    .entry(id.index())
                    .or_insert_with(|| has_function(names, snapshot.frames(goroutine), function))
            })
        });
        may.insert(goroutine.goid, !serves && is_inside);
    }
    may
}

fn has_function(names: &mut Names, stack: &[StackFrame], function: &str) -> bool {
    names.stack(stack).iter().any(|f| is_function(&f.frame.function, function))
}

/// A holder as findings have it; `None` where the goroutine is not in the snapshot.
pub(super) fn holder(snapshot: &Snapshot, of: &LockHolder) -> Option<Holder> {
    let goroutine = snapshot.goroutine(of.goid)?;
    let waiting = goroutine.status.is_waiting();
    Some(Holder {
        goid: of.goid,
        entry_pc: goroutine.entry_pc,
        stack: snapshot.frames(goroutine).to_vec(),
        frame: of.frame,
        status: goroutine.status,
        wait_reason: waiting.then_some(goroutine.wait_reason),
        evidence: of.evidence,
        waits_for: None,
        waits_on: snapshot
            .waits_of(goroutine)
            .iter()
            .filter_map(|w| Some((*w, *snapshot.object(w.object)?)))
            .take(Finding::MAX_WAITS)
            .collect(),
    })
}
