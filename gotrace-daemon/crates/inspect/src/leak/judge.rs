//! From what was seen to verdicts. Every condition is one of `docs/leaks.md`.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use super::{
    Accepted, Agreement, AtLeastAtMost, Finding, Growth, Reason, Stall, Unreached, Verdict, Watch,
    growth::{Grower, Growing},
    io, locks, stalled, unreached,
    watch::{Group, NONE, Track},
};
use crate::snapshot::{
    Goroutine, ObjectId, ObjectKind, Op, Reference, References, Snapshot, Suspect, Wait, WaitObject,
};

/// The main goroutine, which programs park on purpose.
const MAIN: u64 = 1;
/// A lock is a field: a pointer to the structure, this far before it or nearer, counts as a reference.
pub(super) const FIELD_REACH: u64 = 128;
/// Goroutines that may wait for a suspect, of which this is looked into.
const MAX_FOLLOWERS: usize = 4096;
/// What is said of a lock of which nobody is known to hold it.
pub const NO_OWNER: &str =
    " Go locks record no owner: it may never be released, or be held by a slow goroutine.";
/// Looks that saw a goroutine unmoved before it is called stuck: the mark misses a move once in 256, so
/// that three pairs of looks miss a goroutine that moves all the time once in 16 million.
const STUCK_LOOKS: u32 = 4;
/// Goroutines of the same site that must have ended while watched before one that only receives is called
/// stuck, and how much longer than those it must have lived.
const SIBLINGS: u64 = 3;
const SIBLINGS_FACTOR: u64 = 5;
/// A goroutine that waits, with what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub goroutine: &'a Goroutine,
    pub track: &'a Track,
    pub reason: Reason,
}

/// Those of one site at one place.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub group: &'a Group,
    pub members: Vec<Member<'a>>,
}

/// All places at which goroutines wait for others, or for what cannot come if that is proven, by group.
pub(super) fn places<'a>(
    watch: &'a Watch,
    snapshot: &'a Snapshot,
    unreached: &Unreached,
) -> BTreeMap<u32, Place<'a>> {
    let waits = |m: &Member<'_>| m.reason.is_for_others() || unreached.goids.contains_key(&m.goroutine.goid);
    places_of(watch, snapshot, waits)
}

/// The places of goroutines of a kind, by group.
pub(super) fn places_of<'a>(
    watch: &'a Watch,
    snapshot: &'a Snapshot,
    wanted: impl Fn(&Member<'a>) -> bool,
) -> BTreeMap<u32, Place<'a>> {
    let mut places: BTreeMap<u32, Place<'a>> = BTreeMap::new();
    for track in watch.tracks.iter().filter(|t| t.group != NONE) {
        let Some(group) = watch.groups.get(track.group as usize) else { continue };
        let Some(goroutine) = snapshot.goroutine(track.goid) else { continue };
        let reason = watch.reason(goroutine);
        let member = Member { goroutine, track, reason };
        if !wanted(&member) {
            continue;
        }
        places
            .entry(track.group)
            .or_insert_with(|| Place { group, members: Vec::new() })
            .members
            .push(member);
    }
    places
}

impl Member<'_> {
    pub fn objects<'s>(&self, snapshot: &'s Snapshot) -> impl Iterator<Item = (Wait, &'s WaitObject)> {
        let waits = snapshot.waits_of(self.goroutine).iter();
        waits.filter_map(|w| Some((*w, snapshot.object(w.object)?)))
    }

    pub fn is_for_lock(&self, snapshot: &Snapshot) -> bool {
        self.objects(snapshot).any(|(_, o)| matches!(o.kind, ObjectKind::Mutex | ObjectKind::RwMutex))
    }

    fn is_for_group(&self, snapshot: &Snapshot) -> bool {
        self.objects(snapshot).any(|(_, o)| o.kind == ObjectKind::WaitGroup)
    }

    /// One of its channels may be a timer's: then it wakes by itself.
    pub fn has_timer(&self, snapshot: &Snapshot) -> bool {
        self.objects(snapshot).any(|(_, o)| o.kind == ObjectKind::Timer || o.timer)
    }

    /// A timer may end its wait.
    pub fn may_end_by_itself(&self, snapshot: &Snapshot) -> bool {
        self.reason == Reason::Select && self.has_timer(snapshot)
            || snapshot.waits_of(self.goroutine).iter().any(|w| w.until.is_to_come())
    }

    /// It waits for a channel that carries nothing: a signal to stop, whose sender mostly keeps it in a
    /// structure on the heap, where references are not looked for.
    fn has_stop_signal(&self, snapshot: &Snapshot) -> bool {
        self.objects(snapshot)
            .any(|(w, o)| o.kind == ObjectKind::Chan && w.op != Some(Op::Send) && o.elem_size == 0)
    }

    /// It receives, as others do, from one channel: an idle worker.
    pub fn shares(&self, snapshot: &Snapshot) -> bool {
        self.shared(snapshot).next().is_some()
    }

    /// What it waits on, if all of it has addresses.
    pub fn references(&self, snapshot: &Snapshot) -> Option<Vec<Reference>> {
        let sought: Option<Vec<Reference>> = snapshot
            .waits_of(self.goroutine)
            .iter()
            .map(|w| {
                let o = snapshot.object(w.object)?;
                let exact = Reference::exact(o.address);
                let begin = if o.kind == ObjectKind::Chan {
                    o.address
                } else {
                    o.address.saturating_sub(FIELD_REACH)
                };
                (o.address != 0).then_some(Reference { begin, ..exact })
            })
            .collect();
        sought.filter(|s| !s.is_empty())
    }

    /// Whether the goroutine that made it has ended. `false` where that is not known.
    fn is_creator_gone(&self, snapshot: &Snapshot) -> bool {
        self.goroutine.parent_goid.is_some_and(|p| p != 0 && snapshot.goroutine(p).is_none())
    }

    pub fn is_main(&self) -> bool {
        self.goroutine.goid == MAIN
    }
}

/// Whether it has stood for long enough to be stuck, while others moved.
pub(super) fn stands_long(watch: &Watch, member: &Member<'_>) -> bool {
    stands_still(watch, member) && watch.others_move_since(watch.since_ns(member.track))
}

/// Whether it has stood for long enough to be stuck.
fn stands_still(watch: &Watch, member: &Member<'_>) -> bool {
    member.track.looks >= STUCK_LOOKS
        && watch.stands(member.track).at_least_ns >= watch.settings.stuck_after_ns
}

/// Goroutines that have waited for a lock, in a send or for a `sync.WaitGroup` for long enough to be stuck, whether or not
/// others have moved meanwhile; where none has ([`Watch::is_quiet`]) they are not judged.
#[must_use]
pub fn standing(watch: &Watch, snapshot: &Snapshot) -> Vec<u64> {
    let places = places(watch, snapshot, &Unreached::default());
    let names_itself = |m: &Member<'_>| m.reason == Reason::Send || m.is_for_group(snapshot);
    let stands = |m: &&Member<'_>| {
        let wanted = m.is_for_lock(snapshot) || names_itself(m) && !m.is_main();
        wanted && stands_still(watch, m) && !m.may_end_by_itself(snapshot)
    };
    places.values().flat_map(|place| &place.members).filter(stands).map(|m| m.goroutine.goid).collect()
}

/// Whether goroutines of its site come and go, and it has lived much longer than those.
fn outlives_siblings(watch: &Watch, member: &Member<'_>) -> bool {
    watch.sites.get(member.track.site as usize).is_some_and(|site| {
        site.finished >= SIBLINGS
            && watch.stands(member.track).at_least_ns / SIBLINGS_FACTOR >= site.longest_finished_ns
    })
}

/// Why a goroutine that nobody refers to would be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    Orphaned,
    Stuck,
}

/// Whether it would be that if nobody refers to what it waits on.
fn doubtful(watch: &Watch, snapshot: &Snapshot, member: &Member<'_>, doubt: Doubt) -> bool {
    if member.is_main() || member.track.looks < 2 || member.is_for_lock(snapshot) {
        return false;
    }
    let receives = matches!(member.reason, Reason::Receive | Reason::Select);
    let names_itself = member.reason == Reason::Send || member.is_for_group(snapshot);
    let timer = member.has_timer(snapshot);
    match doubt {
        Doubt::Orphaned => {
            let clear = receives && !timer && !member.has_stop_signal(snapshot) && !member.shares(snapshot);
            // A pool has what those that wait for a member of it wait on, on the heap.
            let group = watch.groups.get(member.track.group as usize);
            let pooled = group.and_then(|g| watch.awaited(g)).is_some();
            member.is_creator_gone(snapshot) && (names_itself || clear) && !pooled
        }
        Doubt::Stuck => {
            let outlives = || outlives_siblings(watch, member) && !member.shares(snapshot);
            stands_long(watch, member) && !member.may_end_by_itself(snapshot) && (names_itself || outlives())
        }
    }
}

/// Goroutines whose verdict depends on whether anybody refers to what they wait on: first those that wait
/// for channels and the like, then those that wait for locks. They are to be looked at apart, as each can
/// be released by one of the others.
#[must_use]
pub fn suspects(watch: &Watch, snapshot: &Snapshot) -> (Vec<Suspect>, Vec<Suspect>) {
    let (mut others, mut locks) = (Vec::new(), Vec::new());
    let mut followers: Vec<Suspect> = Vec::new();
    for place in places(watch, snapshot, &Unreached::default()).values() {
        let suspect = |m: &Member<'_>| {
            Some(Suspect { goid: m.goroutine.goid, waits_on: m.references(snapshot)?, follows: false })
        };
        let (for_locks, for_others): (Vec<&Member<'_>>, Vec<_>) =
            place.members.iter().partition(|m| m.is_for_lock(snapshot));
        locks.extend(for_locks.into_iter().filter(|m| stands_long(watch, m)).filter_map(suspect));
        let mut orphans: Vec<&Member<'_>> =
            for_others.iter().copied().filter(|m| doubtful(watch, snapshot, m, Doubt::Orphaned)).collect();
        if is_alone(snapshot, &orphans) {
            orphans.clear();
        }
        let stuck: Vec<&Member<'_>> =
            for_others.iter().copied().filter(|m| doubtful(watch, snapshot, m, Doubt::Stuck)).collect();
        others.extend(orphans.into_iter().chain(stuck).filter_map(suspect));
        let follows = for_others.into_iter().filter(|m| may_follow(watch, snapshot, m)).filter_map(suspect);
        followers
            .extend(follows.map(|s| Suspect { follows: true, ..s }).take(MAX_FOLLOWERS - followers.len()));
    }
    if !others.is_empty() {
        others.extend(followers);
    }
    for list in [&mut others, &mut locks] {
        list.sort_unstable_by_key(|s| (s.goid, s.follows));
        list.dedup_by_key(|s| s.goid);
    }
    (others, locks)
}

/// Whether it may wait for a goroutine that is itself suspected: long, at one channel, alone.
fn may_follow(watch: &Watch, snapshot: &Snapshot, member: &Member<'_>) -> bool {
    let alone =
        |(_, o): (Wait, &WaitObject)| o.kind == ObjectKind::Chan && o.senders + o.receivers == 1 && !o.timer;
    !member.is_main()
        && member.reason == Reason::Receive
        && stands_long(watch, member)
        && member.objects(snapshot).all(alone)
}

/// Whether a single goroutine receives: a worker whose channel is somewhere on the heap looks the same. A
/// leak repeats, each time with a channel of its own.
fn is_alone(snapshot: &Snapshot, orphans: &[&Member<'_>]) -> bool {
    let mut receivers =
        orphans.iter().filter(|m| matches!(m.reason, Reason::Receive | Reason::Select)).peekable();
    let some = receivers.peek().is_some();
    let channels: HashSet<u64> =
        receivers.filter_map(|m| Some(m.objects(snapshot).next()?.1.address)).collect();
    some && channels.len() < 2
}

/// The verdicts, the worst first. `held`: who refers to what the suspects for channels and for locks wait
/// on, as of after the last look. `unreached`: whom marking the heap could not reach. `stalls`: pools that hand out
/// nothing.
#[must_use]
pub fn judge(
    watch: &Watch,
    snapshot: &Snapshot,
    held: (&References, &References),
    unreached: &Unreached,
    stalls: &[Stall],
) -> Vec<Finding> {
    let places = places(watch, snapshot, unreached);
    let circles = locks::circles(watch, snapshot, &places, held.1);
    let grower = Grower::new(watch, snapshot);
    let mut told_sites: HashSet<u32> = HashSet::new();
    let mut findings = Vec::new();
    let told: RefCell<HashSet<u64>> = RefCell::default();
    let mut report = |verdict: Verdict, growth: Option<Growth>, members: &[Member<'_>], why: String| {
        let fresh: Vec<Member<'_>> =
            members.iter().filter(|m| told.borrow_mut().insert(m.goroutine.goid)).copied().collect();
        if let Some(finding) = finding(watch, snapshot, verdict, growth, &fresh, why) {
            findings.push(finding);
        }
    };
    for place in places.values() {
        let proven = pick(place, |m| unreached.goids.contains_key(&m.goroutine.goid));
        if proven.is_empty() {
            continue;
        }
        let growth = grower.at(place).map(|g| g.growth);
        let mut why = unreached::why(watch, unreached, &proven);
        if let Some(circle) = circles.iter().find(|c| proven.iter().any(|m| c.has(m.goroutine.goid))) {
            why += &format!(" They wait for locks in a cycle: {}.", circle.told);
        }
        told_sites.insert(place.group.site);
        // What grows at this place is this leak: the newest are not proven yet.
        let growing = grower.at(place).map_or_else(Vec::new, |g| g.members);
        let newer: Vec<u64> =
            growing.iter().map(|m| m.goroutine.goid).filter(|g| !unreached.goids.contains_key(g)).collect();
        if !newer.is_empty() {
            let (n, are) = (newer.len(), if newer.len() == 1 { "is" } else { "are" });
            why += &format!(" {n} more blocked here {are} not proven yet.");
        }
        report(Verdict::Unreachable, growth, &proven, why);
        told.borrow_mut().extend(newer);
    }
    for place in places.values() {
        let nil = pick(place, |m| m.reason == Reason::Nil && !m.is_main());
        report(
            Verdict::Deadlock,
            None,
            &nil,
            "an operation on a nil channel blocks forever by the language specification; no other goroutine can end it."
                .into(),
        );
    }
    for circle in circles.iter().filter(|c| c.closed) {
        for members in &circle.members {
            report(Verdict::Deadlock, None, members, circle.why());
        }
    }
    for stall in stalls {
        let why = stalled::why(stall);
        for place in places.values() {
            let members = pick(place, |m| stall.goids.binary_search(&m.goroutine.goid).is_ok());
            if !members.is_empty() {
                told_sites.insert(place.group.site);
                report(Verdict::Stalled, None, &members, why.clone());
            }
        }
    }
    for place in places.values() {
        if let Some(Growing { members, growth, why }) = grower.at(place) {
            told_sites.insert(place.group.site);
            report(Verdict::Growing, Some(growth), &members, why);
        }
    }
    for Growing { members, growth, why } in io::growing(watch, snapshot, &grower) {
        report(Verdict::Growing, Some(growth), &members, why);
    }
    let moving = grower.sites(&told_sites);
    for Growing { members, growth, why } in &moving {
        report(Verdict::Growing, Some(*growth), members, why.clone());
    }
    for circle in circles.iter().filter(|c| !c.closed) {
        for members in &circle.members {
            report(Verdict::Stuck, None, members, circle.why());
        }
    }
    for place in places.values() {
        let locked = pick(place, |m| m.is_for_lock(snapshot) && stands_long(watch, m));
        let least = oldest(watch, &locked).at_least_ns;
        report(
            Verdict::Stuck,
            None,
            &locked,
            format!("blocked for at least {} while other goroutines ran.{NO_OWNER}", seconds(least)),
        );
    }
    for place in places.values() {
        let runs = |m: &Member<'_>| m.goroutine.runs_finalizers() || m.goroutine.runs_cleanups();
        let stuck = pick(place, |m| runs(m) && !m.may_end_by_itself(snapshot) && stands_long(watch, m));
        let what = if stuck.iter().any(|m| m.goroutine.runs_finalizers()) {
            "it runs the finalizers in sequence: no finalizer runs any more, and what they would free is kept"
        } else {
            "it runs cleanups: the ones queued behind this one do not run"
        };
        let least = seconds(oldest(watch, &stuck).at_least_ns);
        report(Verdict::Stuck, None, &stuck, format!("{what}. Blocked for at least {least}."));
    }
    // Those that keep what others wait for are named there.
    told.borrow_mut().extend(stalls.iter().flat_map(|s| s.holders.iter().map(|h| h.goid)));
    let unheld = |m: &Member<'_>| held.0.complete && held.0.unheld.binary_search(&m.goroutine.goid).is_ok();
    // What a WaitGroup's waiter waits on is a field, and has no address where it was not found in time.
    let group = |m: &Member<'_>| m.is_for_group(snapshot) && outlives_siblings(watch, m);
    for (verdict, kind) in [(Verdict::Stuck, Doubt::Stuck), (Verdict::Orphaned, Doubt::Orphaned)] {
        for place in places.values() {
            let mut members = pick(place, |m| {
                doubtful(watch, snapshot, m, kind) && (unheld(m) || kind == Doubt::Stuck && group(m))
            });
            if kind == Doubt::Orphaned && is_alone(snapshot, &members.iter().collect::<Vec<_>>()) {
                members.clear();
            }
            let heap = unreached.passes > 0;
            let why = why_unheld(watch, snapshot, kind, &members, (members.iter().all(unheld), heap));
            report(verdict, None, &members, why);
        }
    }
    for members in moving.iter().map(|g| &g.members) {
        let lived = members.iter().map(|m| watch.lived(m.track)).reduce(AtLeastAtMost::longest);
        let first = members.first().map_or(0, |m| m.goroutine.goid);
        let of = |f: &&mut Finding| f.verdict == Verdict::Growing && f.goids.contains(&first);
        if let (Some(finding), Some(lived)) = (findings.iter_mut().find(of), lived) {
            (finding.oldest, finding.lives) = (lived, true);
        }
    }
    for finding in findings.iter_mut().filter(|f| f.verdict == Verdict::Stalled) {
        let first = finding.goids.first().copied().unwrap_or(0);
        if let Some(stall) = stalls.iter().find(|s| s.goids.binary_search(&first).is_ok()) {
            finding.holders.clone_from(&stall.holders);
        }
    }
    for finding in findings.iter_mut().filter(|f| f.verdict == Verdict::Unreachable) {
        let agreed = finding.goids.iter().filter_map(|goid| unreached.goids.get(goid)).min();
        finding.passes = agreed.map(|&agreed| Agreement { agreed, needed: unreached.needed });
    }
    findings.sort_by_cached_key(Finding::by_impact);
    findings
}

pub(super) fn pick<'a>(place: &Place<'a>, mut wanted: impl FnMut(&Member<'a>) -> bool) -> Vec<Member<'a>> {
    place.members.iter().filter(|m| wanted(m)).copied().collect()
}

fn why_unheld(
    watch: &Watch,
    snapshot: &Snapshot,
    kind: Doubt,
    members: &[Member<'_>],
    (all_unheld, heap_searched): (bool, bool),
) -> String {
    let least = seconds(oldest(watch, members).at_least_ns);
    let siblings = members
        .first()
        .and_then(|m| watch.sites.get(m.track.site as usize).filter(|_| outlives_siblings(watch, m)))
        .map(|s| format!("; {} of the same creation site exited meanwhile", s.finished))
        .unwrap_or_default();
    let referred = if all_unheld && heap_searched {
        "; no stack of another goroutine and no variable references what it is blocked on, but an object on the heap does"
    } else if all_unheld {
        "; no stack of another goroutine and no variable references what it is blocked on; the heap was not searched"
    } else if heap_searched {
        "; the heap was searched, and does not prove that nothing can release it"
    } else {
        "; no search for what references it, as its address is unknown or that of a field"
    };
    match kind {
        Doubt::Orphaned => format!(
            "the goroutine that created it has exited{referred}. Suspected, not proven. Blocked for at least {least}."
        ),
        Doubt::Stuck => {
            let gone = !members.is_empty() && members.iter().all(|m| m.is_creator_gone(snapshot));
            let gone = if gone { "; the goroutine that created it has exited" } else { "" };
            format!("blocked for at least {least} while other goroutines ran{siblings}{gone}{referred}.")
        }
    }
}

pub(super) fn oldest(watch: &Watch, members: &[Member<'_>]) -> AtLeastAtMost {
    members.iter().map(|m| watch.stands(m.track)).reduce(AtLeastAtMost::longest).unwrap_or_default()
}

fn finding(
    watch: &Watch,
    snapshot: &Snapshot,
    verdict: Verdict,
    growth: Option<Growth>,
    members: &[Member<'_>],
    why: String,
) -> Option<Finding> {
    let first = members.first()?;
    let site = watch.sites.get(first.track.site as usize)?;
    let group = watch.groups.get(first.track.group as usize)?;
    let (waits_on, waits_on_total) = waits_on(snapshot, members);
    let mut goids: Vec<u64> = members.iter().map(|m| m.goroutine.goid).collect();
    goids.sort_unstable();
    Some(Finding {
        verdict,
        growth,
        oldest: oldest(watch, members),
        entry_pc: site.entry_pc,
        created_pc: site.created_pc,
        wait_reason: Some(first.goroutine.wait_reason),
        stack: watch.stacks.get(group.stack as usize).map(|s| s.to_vec()).unwrap_or_default(),
        waits_on,
        waits_on_total,
        goids,
        others: Vec::new(),
        passes: None,
        came_and_exited: (watch.looks() > 1).then_some((site.came, site.exited)),
        lives: false,
        awaited: stalled::awaited(watch, snapshot, first).map(|(awaited, _)| awaited),
        holders: Vec::new(),
        retained_bytes: None,
        why,
        test: None,
        accepted: Accepted::default(),
    })
}

/// What most of these wait on, and how many objects there are: the number of members may be that of all goroutines.
fn waits_on(snapshot: &Snapshot, members: &[Member<'_>]) -> (Vec<(Wait, WaitObject)>, usize) {
    // Objects and who waits on each, the first of them first.
    let mut all: Vec<(ObjectId, u32)> = Vec::with_capacity(members.len());
    for (n, member) in (0..).zip(members) {
        all.extend(member.objects(snapshot).map(|(wait, _)| (wait.object, n)));
    }
    all.sort_unstable();
    let mut most: Vec<(Reverse<usize>, ObjectId, u32)> = Vec::new();
    let mut total = 0;
    for same in all.chunk_by(|(a, _), (b, _)| a == b) {
        let Some(&(object, first)) = same.first() else { continue };
        total += 1;
        let of = (Reverse(same.len()), object, first);
        if most.len() < Finding::MAX_WAITS || most.last().is_some_and(|last| of < *last) {
            most.insert(most.partition_point(|known| *known < of), of);
            most.truncate(Finding::MAX_WAITS);
        }
    }
    let told = |(_, object, first): (Reverse<usize>, ObjectId, u32)| {
        let found = members.get(first as usize)?.objects(snapshot).find(|(wait, _)| wait.object == object);
        found.map(|(wait, object)| (wait, *object))
    };
    (most.into_iter().filter_map(told).collect(), total)
}

/// `12.3 s`, `250 ms`.
pub(crate) fn seconds(ns: u64) -> String {
    if ns < 1_000_000_000 { format!("{} ms", ns / 1_000_000) } else { format!("{:.1} s", ns as f64 / 1e9) }
}
