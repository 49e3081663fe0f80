//! Pools that hand out nothing any more: goroutines wait for a member, none of those that waited before them has got
//! one since, and whoever keeps the members stands still as well.
//!
//! Input: a [`Watch`] that knows places ([`super::Awaited`]), the last look, and for the verdict who keeps the members
//! ([`crate::heap`] looks for them). Output: [`Stall`]s. Where a keeper moves, the pool serves: nothing is told. A
//! semaphore records nobody: it is told only where as many goroutines as it lets in may keep it and wait for others.

use std::collections::BTreeMap;

use super::{
    Awaited, Holder, Watch,
    judge::{Member, seconds},
    watch::{NONE, Track},
};
use crate::snapshot::{ObjectKind, Op, Snapshot, Wait, WaitObject};

/// Looks that saw the oldest unmoved.
const LOOKS: u32 = 4;
/// As many wait for a pool at least of which nobody was found that keeps a member.
const UNEXPLAINED: usize = 2;

/// Goroutines that wait for a member of a pool, and that nobody has passed since the first of them came.
#[derive(Clone, Debug, PartialEq)]
pub struct Stall {
    /// What for.
    pub awaited: Awaited,
    /// Their ids, ascending.
    pub goids: Vec<u64>,
    /// For so long, at least, nobody has got a member.
    pub least_ns: u64,
    /// Of a channel that counts as a semaphore does: its address, and how many it lets in.
    pub channel: Option<(u64, u64)>,
    /// Who keeps the members, or may.
    pub holders: Vec<Holder>,
    /// Whether it was looked for who does.
    pub searched: bool,
}

/// Whether what a goroutine waits for is room in a full channel of empty elements.
fn token(wait: Wait, object: &WaitObject) -> bool {
    object.kind == ObjectKind::Chan
        && object.known
        && wait.op == Some(Op::Send)
        && object.elem_size == 0
        && object.cap > 0
        && object.len == object.cap
        && !object.closed
}

/// What a goroutine waits for, if that is a known place; and the channel, where that tells pools of a kind apart.
pub(super) fn awaited(
    watch: &Watch,
    snapshot: &Snapshot,
    member: &Member<'_>,
) -> Option<(Awaited, Option<(u64, u64)>)> {
    let known = watch.groups.get(member.track.group as usize).and_then(|g| watch.awaited(g));
    let mut objects = member.objects(snapshot);
    let full = objects.find(|(w, o)| token(*w, o)).map(|(_, o)| (o.address, o.cap));
    match (known, full) {
        (Some(Awaited::ErrgroupSlot), full) => Some((Awaited::ErrgroupSlot, full)),
        (Some(known), _) => Some((known, None)),
        (None, full) => {
            full.filter(|_| member.goroutine.waits.len() == 1).map(|full| (Awaited::Token, Some(full)))
        }
    }
}

/// Pools that may hand out nothing any more. Whether one does ([`is_served`]) depends on who keeps its members.
#[must_use]
pub fn stalls(watch: &Watch, snapshot: &Snapshot) -> Vec<Stall> {
    type Waiting<'a> = (Vec<(u64, &'a Track)>, u32);
    let mut pools: BTreeMap<(Awaited, Option<(u64, u64)>), Waiting<'_>> = BTreeMap::new();
    for track in watch.tracks.iter().filter(|t| t.group != NONE) {
        let Some(goroutine) = snapshot.goroutine(track.goid) else { continue };
        let reason = watch.reason(goroutine);
        if !reason.is_for_others() {
            continue;
        }
        let member = Member { goroutine, track, reason };
        let Some(key) = awaited(watch, snapshot, &member).filter(|(a, _)| a.members().is_some()) else {
            continue;
        };
        let group = watch.groups.get(track.group as usize);
        let (waiting, passed) = pools.entry(key).or_default();
        waiting.push((track.goid, track));
        *passed = group.map_or(u32::MAX, |g| g.passed).max(*passed);
    }
    // Others of that kind may have passed at places where nobody waits now.
    for group in &watch.groups {
        let of_kind = |key: &(Awaited, _)| watch.awaited(group) == Some(key.0);
        for (_, (_, passed)) in pools.iter_mut().filter(|(key, _)| of_kind(key)) {
            *passed = group.passed.max(*passed);
        }
    }
    pools
        .into_iter()
        .filter_map(|((awaited, channel), (waiting, passed))| {
            let oldest = waiting
                .iter()
                .filter(|(_, t)| t.looks >= LOOKS && t.since >= passed)
                .map(|(_, t)| watch.stands(t).at_least_ns)
                .max()
                .filter(|least| *least >= watch.settings.stuck_after_ns)?;
            let goids = waiting.iter().map(|(goid, _)| *goid).collect();
            Some(Stall { awaited, goids, least_ns: oldest, channel, holders: Vec::new(), searched: false })
        })
        .collect()
}

/// Whether the pool serves after all, as somebody who keeps a member moves, or as it is not known who may. Of those that
/// only may, the ones that stand are left.
#[must_use]
pub fn is_served(watch: &Watch, snapshot: &Snapshot, stall: &mut Stall) -> bool {
    let stands = |holder: &Holder| {
        let track =
            watch.tracks.binary_search_by_key(&holder.goid, |t| t.goid).ok().map(|n| &watch.tracks[n]);
        track
            .is_some_and(|t| t.looks >= LOOKS && watch.stands(t).at_least_ns >= watch.settings.stuck_after_ns)
    };
    if stall.awaited.has_members() {
        return match stall.holders.len() {
            0 => stall.goids.len() < UNEXPLAINED,
            _ => !stall.holders.iter().all(stands),
        };
    }
    let for_others = |holder: &Holder| {
        let reason = snapshot.goroutine(holder.goid).map(|g| watch.reason(g));
        stall.awaited == Awaited::RedisConnection || reason.is_some_and(super::Reason::is_for_others)
    };
    let all = stall.holders.len();
    stall.holders.retain(|h| stands(h) && for_others(h));
    match stall.channel {
        Some((_, room)) => (stall.holders.len() as u64) < room,
        None => stall.holders.is_empty() || stall.holders.len() < all,
    }
}

/// What is known of it.
pub(super) fn why(stall: &Stall) -> String {
    let (one, several) = stall.awaited.wanted();
    let n = stall.goids.len();
    let (wait, of_them) = if n == 1 {
        ("1 goroutine waits".to_owned(), "it has not")
    } else {
        (format!("{n} goroutines wait"), "none of them has")
    };
    let least = seconds(stall.least_ns);

    let holders = match (stall.holders.len(), stall.awaited.has_members()) {
        (0, _) if !stall.searched => format!("There was no search for goroutines that hold its {several}."),
        (0, _) => format!(
            "No goroutine was found that holds one of its {several}: objects on the heap may hold them, or they may be \
             lost or still being created."
        ),
        (1, true) => {
            format!("The goroutine found to hold one of its {several} has not run either.")
        }
        (n, true) => {
            format!("The {n} goroutines found to hold its {several} have not run either.")
        }
        (n, false) => format!(
            "The holders of its {several} are not recorded; {n} goroutine{} may hold them, and {} run either.",
            if n == 1 { "" } else { "s" },
            if n == 1 { "has not" } else { "none has" }
        ),
    };
    format!("{wait} for {one}, and {of_them} got one for at least {least}. {holders}")
}
