//! Who waits for which lock and channel now, and who holds those locks: one snapshot, and two looks at stacks.
//!
//! Input: a snapshot with what goroutines wait on, and the memory of the running process. Output: a [`Graph`] that can be
//! looked at, and what of it is not known. Bounded: holders are looked for of the locks that most wait for, and those
//! that refer to channels where few goroutines wait on some; what that leaves out is said. The process runs on between
//! the snapshot and the looks: a holder may have let go.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{explain::lock_of_goroutine, pools::MAX_GOROUTINES};
use crate::{
    heap::Prover,
    leak::{Graph, LeftOut},
    snapshot::{Live, ObjectKind, Reference, Snapshot, Suspect, WaitObject},
};
use gotrace_process::ProcessError;

/// Locks of which the holder is looked for.
const MAX_LOCKS: usize = 32;
/// Goroutines at channels beyond which nobody looks for those that refer to these.
const MAX_AT_CHANNELS: usize = 4096;
/// Objects and groups of the graph.
const MOST: (usize, usize) = (100, 200);

/// Who waits for what, and who holds it.
#[derive(Clone, Debug, Default)]
pub struct WaitGraph {
    /// Locks and channels, and what else goroutines of the program wait for each other at.
    pub graph: Graph,
    /// What is not in it.
    pub left_out: LeftOut,
    /// Locks of which the holder was not looked for, as others have more waiters.
    pub locks_not_searched: usize,
    /// Why no holder is known; `None` where they were looked for.
    pub holders_unknown: Option<String>,
    /// Whether those that refer to channels were looked for in all stacks.
    pub references_complete: bool,
}

/// The graph of a snapshot, which was just taken of this process. `room`: bytes that the look for holders may take.
///
/// # Errors
/// When the process is gone, or its memory may not be read.
pub fn wait_graph(live: &Live, snapshot: &Snapshot, room: u64) -> Result<WaitGraph, ProcessError> {
    let locks = locks(snapshot);
    let mut found = WaitGraph::default();
    let mut held = Vec::new();
    if !locks.is_empty() {
        match holders(live, snapshot, &locks, room) {
            Ok(holders) => held = holders,
            Err(why) => found.holders_unknown = Some(why),
        }
        found.locks_not_searched = locks.len().saturating_sub(MAX_LOCKS);
    }
    let suspects = at_channels(snapshot);
    let references = if suspects.len() > MAX_AT_CHANNELS {
        None
    } else if suspects.is_empty() {
        found.references_complete = true;
        None
    } else {
        let references = live.find_references(snapshot, &suspects)?;
        found.references_complete = references.complete;
        Some(references)
    };
    let graph = Graph::with_holders(snapshot, references.as_ref(), &held);
    (found.graph, found.left_out) = graph.bounded(is_shown, MOST);
    Ok(found)
}

/// Whether goroutines wait for each other at it.
fn is_shown(object: &WaitObject) -> bool {
    !matches!(object.kind, ObjectKind::Timer | ObjectKind::Fd) && !object.timer
}

/// Locks that are waited for, the most waiters first.
fn locks(snapshot: &Snapshot) -> Vec<u64> {
    let mut waiting: BTreeMap<u64, usize> = BTreeMap::new();
    for lock in snapshot.goroutines.iter().filter_map(|g| lock_of_goroutine(snapshot, g)) {
        *waiting.entry(lock).or_default() += 1;
    }
    let mut locks: Vec<(u64, usize)> = waiting.into_iter().collect();
    locks.sort_by_key(|&(lock, n)| (Reverse(n), lock));
    locks.into_iter().map(|(lock, _)| lock).collect()
}

/// The holders of the first of these locks; otherwise why none is known.
fn holders(
    live: &Live,
    snapshot: &Snapshot,
    locks: &[u64],
    room: u64,
) -> Result<Vec<(u64, Vec<crate::heap::LockHolder>)>, String> {
    if snapshot.goroutines.len() > MAX_GOROUTINES {
        return Err(format!("holders are looked for among {MAX_GOROUTINES} goroutines at most"));
    }
    let mut prover = Prover::new(Arc::clone(live.binary()), live.bias()).map_err(|e| e.to_string())?;
    prover.bound((2 * MAX_GOROUTINES) as u64, room);
    let locks = locks.get(..MAX_LOCKS).unwrap_or(locks);
    let waits: HashMap<u64, u64, FixedState> =
        snapshot.goroutines.iter().filter_map(|g| Some((g.goid, lock_of_goroutine(snapshot, g)?))).collect();
    let found = prover.holders(live.memory(), locks, &waits).map_err(|e| e.to_string())?;
    Ok(locks.iter().copied().zip(found).collect())
}

/// Goroutines that wait on channels of the program.
fn at_channels(snapshot: &Snapshot) -> Vec<Suspect> {
    let waits_on = |g| {
        let channel = |o: &&WaitObject| o.kind == ObjectKind::Chan && o.address != 0 && !o.timer;
        let objects = snapshot.waits_of(g).iter().filter_map(|w| snapshot.object(w.object));
        objects.filter(channel).map(|o| Reference::exact(o.address)).collect::<Vec<_>>()
    };
    let of_program = snapshot.goroutines.iter().filter(|g| !g.is_system());
    let suspects = of_program.map(|g| Suspect { goid: g.goid, waits_on: waits_on(g), follows: false });
    suspects.filter(|s| !s.waits_on.is_empty()).take(MAX_AT_CHANNELS + 1).collect()
}
