//! Goroutines that wait for locks of each other.
//!
//! `sync.Mutex` and `sync.RWMutex` record no owner. What can be seen from outside is who waits for which
//! lock and whose stack has the address of which lock. A circle is told where goroutines wait, each for a
//! lock to which the stack of the next refers, all unmoved for long. It is a deadlock where no goroutine
//! outside of the circle refers to any of these locks or to a structure around one: then nobody else is left
//! who could unlock them. A lock that is a global variable is referred to by code, not by stacks, so that it
//! never qualifies.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Watch,
    judge::{Member, Place, oldest, seconds, stands_long},
};
use crate::snapshot::{References, Snapshot};

/// Circles that are looked for among at most this many goroutines.
const MAX_NODES: usize = 4096;
/// Goroutines that a sentence names.
const MAX_TOLD: usize = 6;

/// Goroutines that wait for locks of each other.
pub(super) struct Circle<'a> {
    /// Those of one site and place together.
    pub members: Vec<Vec<Member<'a>>>,
    /// Who waits for whom.
    pub told: String,
    /// Whether nobody outside refers to any of the locks.
    pub closed: bool,
    /// How long all of them have stood at least.
    pub least_ns: u64,
}

impl Circle<'_> {
    /// Whether the goroutine is in it.
    pub fn has(&self, goid: u64) -> bool {
        self.members.iter().flatten().any(|m| m.goroutine.goid == goid)
    }

    /// Why it is believed that none of them will go on, or may not.
    pub fn why(&self) -> String {
        let outside = if self.closed {
            "no goroutine outside this cycle references these locks"
        } else {
            "a variable or goroutine outside this cycle references these locks too, and may unlock them"
        };
        format!(
            "{}; {outside}, and none in it has run for at least {}. Holders are inferred from references, as the runtime \
             records no owner.",
            self.told,
            seconds(self.least_ns)
        )
    }
}

/// All circles.
pub(super) fn circles<'a>(
    watch: &Watch,
    snapshot: &Snapshot,
    places: &BTreeMap<u32, Place<'a>>,
    held: &References,
) -> Vec<Circle<'a>> {
    // Who waits for which lock.
    let mut waits: BTreeMap<u64, (u64, u32, Member<'a>)> = BTreeMap::new();
    for (&group, place) in places {
        for member in &place.members {
            let goid = member.goroutine.goid;
            if !held.complete || !member.is_for_lock(snapshot) || !stands_long(watch, member) {
                continue;
            }
            if let Some(lock) = member.references(snapshot).and_then(|r| r.first().map(|r| r.address)) {
                waits.insert(goid, (lock, group, *member));
            }
        }
    }
    if waits.len() > MAX_NODES {
        return Vec::new();
    }
    // To those that wait for another lock and whose stack refers to this one.
    let next = |goid: u64| -> Vec<u64> {
        let Some(&(lock, ..)) = waits.get(&goid) else { return Vec::new() };
        let refer = held.stacks.get(&lock).map_or(&[][..], Vec::as_slice);
        refer
            .iter()
            .copied()
            .filter(|other| *other != goid && waits.get(other).is_some_and(|(l, ..)| *l != lock))
            .collect()
    };
    let reach = |from: u64| -> BTreeSet<u64> {
        let mut seen = BTreeSet::new();
        let mut open = next(from);
        while let Some(goid) = open.pop() {
            if seen.insert(goid) {
                open.extend(next(goid));
            }
        }
        seen
    };
    let reached: BTreeMap<u64, BTreeSet<u64>> = waits.keys().map(|&g| (g, reach(g))).collect();
    let mut done: BTreeSet<u64> = BTreeSet::new();
    let mut found = Vec::new();
    for (&goid, reaches) in &reached {
        if done.contains(&goid) || !reaches.contains(&goid) {
            continue;
        }
        let circle: BTreeSet<u64> = reaches
            .iter()
            .copied()
            .filter(|other| reached.get(other).is_some_and(|r| r.contains(&goid)))
            .collect();
        done.extend(&circle);
        let members: Vec<&(u64, u32, Member<'a>)> = circle.iter().filter_map(|g| waits.get(g)).collect();
        let alone: Vec<Member<'a>> = members.iter().map(|(_, _, m)| *m).collect();
        let least = oldest(watch, &alone).at_least_ns;
        let mut by_place: BTreeMap<u32, Vec<Member<'a>>> = BTreeMap::new();
        for (_, group, member) in members {
            by_place.entry(*group).or_default().push(*member);
        }
        found.push(Circle {
            members: by_place.into_values().collect(),
            told: tell(&circle, &waits, &next),
            closed: circle.iter().all(|goid| held.unheld.binary_search(goid).is_ok()),
            least_ns: least,
        });
    }
    found
}

fn tell(
    circle: &BTreeSet<u64>,
    waits: &BTreeMap<u64, (u64, u32, Member<'_>)>,
    next: &dyn Fn(u64) -> Vec<u64>,
) -> String {
    let mut told: Vec<String> = circle
        .iter()
        .take(MAX_TOLD)
        .filter_map(|goid| {
            let (lock, ..) = waits.get(goid)?;
            let holder = next(*goid).into_iter().find(|g| circle.contains(g))?;
            Some(format!(
                "goroutine {goid} waits for the lock at {lock:#x}, which the stack of goroutine {holder} references"
            ))
        })
        .collect();
    if circle.len() > told.len() {
        told.push(format!("and so on, {} in all", circle.len()));
    }
    told.join("; ")
}
