//! Whether goroutines become more and more: those that stand at one place, and those of one creation site, which may
//! wake now and then.
//!
//! A pool of workers that fills up looks like it, and so do connections, which are there for as long as their clients
//! want: neither is told.

use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

use super::{
    Growth, Reason, Watch,
    judge::{Member, Place, pick, seconds},
    trend::{MIN_POINTS, Trend, trend},
    watch::NONE,
};
use crate::snapshot::{Goroutine, ObjectId, ObjectKind, Op, Snapshot, Status, Wait, WaitObject};

/// The main goroutine, which programs park on purpose.
const MAIN: u64 = 1;
/// How many more goroutines must have settled before their number is called growing.
const GROWN: f64 = 4.0;
/// The same for workers that receive from one channel, which a pool starts as it needs them.
const POOL_GROWN: f64 = 32.0;
/// The same for goroutines of one site that move.
const SITE_GROWN: f64 = 8.0;
/// Of those of a site that came, at most one in so many has exited.
const SITE_EXITED: u64 = 8;
/// How much more often a figure must rise than fall (Kendall's tau).
const MONOTONE: f64 = 0.7;
/// Goroutines of which the ids tell that they came bit by bit.
const MANY: usize = 24;
/// The range of goids is divided into so many parts, of at least so many ids: a processor takes them from the counter
/// by sixteen.
const PARTS: u64 = 8;
const PART: u64 = 256;

/// Goroutines that become more.
pub(super) struct Growing<'a> {
    pub members: Vec<Member<'a>>,
    pub growth: Growth,
    pub why: String,
}

/// What is looked up for all places and sites.
pub(super) struct Grower<'a> {
    watch: &'a Watch,
    snapshot: &'a Snapshot,
    /// Objects at which goroutines of several creation sites wait to receive.
    mixed: OnceCell<HashSet<ObjectId>>,
    /// By creator: goroutines that it made and that wait for descriptors.
    serving: OnceCell<HashMap<u64, usize>>,
}

impl<'a> Grower<'a> {
    pub fn new(watch: &'a Watch, snapshot: &'a Snapshot) -> Self {
        Self { watch, snapshot, mixed: OnceCell::new(), serving: OnceCell::new() }
    }

    /// Whether more and more goroutines settle at a place.
    pub fn at(&self, place: &Place<'a>) -> Option<Growing<'a>> {
        let snapshot = self.snapshot;
        // Whoever has a timer ends by itself: more come only until the first end.
        let members = pick(place, |m| m.track.looks >= 2 && !m.is_main() && !m.may_end_by_itself(snapshot));
        if members.is_empty() {
            return None;
        }
        let pool = self.is_pool(place, &members);
        let connections = |grown: &f64| self.are_connections(&members, *grown, 1);
        let (growth, why, _) = self
            .rising(place, pool)
            .filter(|(.., grown)| !connections(grown))
            .or_else(|| self.piled_up(place, &members, pool).filter(|(.., grown)| !connections(grown)))?;
        Some(Growing { members, growth, why })
    }

    /// The same of goroutines that wait for descriptors without a deadline. Whose connections these are is not looked
    /// at.
    pub fn at_descriptors(&self, place: &Place<'a>) -> Option<Growing<'a>> {
        let members = pick(place, |m| m.track.looks >= 2 && !m.is_main());
        if members.is_empty() {
            return None;
        }
        let (growth, why, _) = self.rising(place, false).or_else(|| self.piled_up(place, &members, false))?;
        Some(Growing { members, growth, why })
    }

    /// Whether their number has risen all through the watch, and by how much.
    fn rising(&self, place: &Place<'a>, pool: bool) -> Option<(Growth, String, f64)> {
        let series = self.watch.series(place.group);
        let (first, last) = (series.first()?, series.last()?);
        let grown = last.1 - first.1;
        let enough = if pool { grown >= POOL_GROWN && last.1 >= 2.0 * first.1 } else { grown >= GROWN };
        let stay = place.group.left.saturating_mul(4) <= place.group.joined;
        if !enough || !stay {
            return None;
        }
        let found = rises(&series)?;
        // Those that stood here at the start did not come since.
        let came = grown + place.group.left as f64;
        let why = format!(
            "blocked here: {} at the start, {} after {}; {came} came since, and {} left. A rising load looks the same until \
             it ends: watch longer to be sure.",
            first.1,
            last.1,
            seconds(last.0.saturating_sub(first.0)),
            place.group.left
        );
        Some((Growth { low: found.low, high: found.high }, why, grown))
    }

    /// Whether they have come bit by bit for as long as goroutines came at all, and none has left: a watch need not see
    /// many come.
    fn piled_up(
        &self,
        place: &Place<'a>,
        members: &[Member<'a>],
        pool: bool,
    ) -> Option<(Growth, String, f64)> {
        let group = place.group;
        let seen = group.arrived > 0 && group.left == 0 && group.returned == 0;
        if pool || !seen || !self.are_spread(members) {
            return None;
        }
        let watched = self.watch.watched_ns();
        let growth = rate(group.arrived, watched)?;
        let came = if group.arrived == 1 { "one came".to_owned() } else { format!("{} came", group.arrived) };
        let why = format!(
            "{came} to block here in {} and none left; by their ids, these {} came steadily for as long as the process has \
             created goroutines.",
            seconds(watched),
            members.len()
        );
        Some((growth, why, group.arrived as f64))
    }

    /// Whether they wait for work at one queue. A channel of empty elements without a buffer, to which nobody sends, is
    /// closed one day; goroutines of several creation sites at one channel are no pool; nor are those that came one by
    /// one between many others. Whoever was given work is one.
    fn is_pool(&self, place: &Place<'a>, members: &[Member<'a>]) -> bool {
        let most = |wanted: &dyn Fn(&Member<'a>) -> bool| {
            members.iter().filter(|m| wanted(m)).count() * 2 > members.len()
        };
        if !most(&|m| m.shares(self.snapshot)) {
            return false;
        }
        place.group.returned > 0 || most(&|m| self.waits_at_queue(m)) && !self.are_spread(members)
    }

    fn waits_at_queue(&self, member: &Member<'a>) -> bool {
        let is_signal = |o: &WaitObject| {
            o.kind == ObjectKind::Chan && o.known && o.elem_size == 0 && o.cap == 0 && o.senders == 0
        };
        let group = self.watch.groups.get(member.track.group as usize);
        let given_work = group.is_some_and(|g| g.returned > 0);
        member.shared(self.snapshot).any(|(w, o)| {
            !is_signal(o) && (given_work || o.address == 0 || !self.mixed().contains(&w.object))
        })
    }

    /// Objects at which goroutines of several creation sites wait.
    fn mixed(&self) -> &HashSet<ObjectId> {
        self.mixed.get_or_init(|| {
            let mut first: HashMap<ObjectId, u64> = HashMap::new();
            let mut mixed = HashSet::new();
            for goroutine in self.snapshot.goroutines.iter().filter(|g| g.status.is_waiting()) {
                for wait in self.snapshot.waits_of(goroutine) {
                    let shared = |o: &WaitObject| o.receivers >= 2;
                    let receives = wait.op != Some(Op::Send);
                    if receives
                        && self.snapshot.object(wait.object).is_some_and(shared)
                        && *first.entry(wait.object).or_insert(goroutine.created_pc) != goroutine.created_pc
                    {
                        mixed.insert(wait.object);
                    }
                }
            }
            mixed
        })
    }

    /// Whether goroutines came all along, as their ids tell, which are given in about the order of creation: in nearly
    /// all parts of the ids since the first of them there are some, and in the older half not many less than in the
    /// newer. Those that last for a while and then end are fewer the older they are.
    fn are_spread(&self, members: &[Member<'a>]) -> bool {
        let newest = self.snapshot.goroutines.last().map_or(0, |g| g.goid);
        let Some(oldest) = members.iter().map(|m| m.goroutine.goid).min() else { return false };
        let range = newest.saturating_sub(oldest) + 1;
        if members.len() < MANY || range < PARTS * PART {
            return false;
        }
        let mut parts = [0_usize; PARTS as usize];
        for member in members {
            let n = (member.goroutine.goid - oldest) * PARTS / range;
            if let Some(part) = parts.get_mut(usize::try_from(n).unwrap_or(usize::MAX)) {
                *part += 1;
            }
        }
        let (older, newer) = parts.split_at(parts.len() / 2);
        let (older, newest): (usize, _) = (older.iter().sum(), newer.last());
        let empty = parts.iter().filter(|n| **n == 0).count();
        empty <= 1 && newest != Some(&0) && older * 100 >= members.len() * 40
    }

    /// A goroutine whose creator serves or accepts connections, or that was made together with one that waits for a
    /// descriptor, is there for as long as its client wants: what grows no faster than the connections is taken for
    /// theirs. Before Go 1.21 creators are not known. `from`: the look from which `grown` counts.
    fn are_connections(&self, members: &[Member<'a>], grown: f64, from: usize) -> bool {
        let io = |look: Option<&super::watch::Look>| look.map_or(0, |l| l.io);
        let more = io(self.watch.looks.last()).saturating_sub(io(self.watch.looks.get(from)));
        if 2.0 * (more as f64) < grown {
            return false;
        }
        let mut by_creator: HashMap<u64, usize> = HashMap::new();
        for parent in members.iter().filter_map(|m| m.goroutine.parent_goid) {
            *by_creator.entry(parent).or_insert(0) += 1;
        }
        let theirs = |m: &&Member<'a>| {
            let Some(parent) = m.goroutine.parent_goid else { return true };
            let made = by_creator.get(&parent).copied().unwrap_or(0);
            self.serves_connection(parent)
                || parent != MAIN && self.serving().get(&parent).is_some_and(|n| 2 * n >= made)
        };
        members.iter().filter(theirs).count() * 2 > members.len()
    }

    fn is_serving(&self, goroutine: &Goroutine) -> bool {
        self.watch.reason(goroutine) == Reason::Io || goroutine.status == Status::Syscall
    }

    fn serves_connection(&self, goid: u64) -> bool {
        goid != MAIN && self.snapshot.goroutine(goid).is_some_and(|c| self.is_serving(c))
    }

    fn serving(&self) -> &HashMap<u64, usize> {
        self.serving.get_or_init(|| {
            let mut by_creator = HashMap::new();
            for goroutine in self.snapshot.goroutines.iter().filter(|g| self.is_serving(g)) {
                if let Some(parent) = goroutine.parent_goid {
                    *by_creator.entry(parent).or_insert(0) += 1;
                }
            }
            by_creator
        })
    }

    /// Creation sites whose goroutines come and do not go, though they may wake now and then; those at which most stand
    /// come first. `told`: sites of which it is said already.
    pub fn sites(&self, told: &HashSet<u32>) -> Vec<Growing<'a>> {
        let watch = self.watch;
        let mut found: HashMap<u32, Trend> = HashMap::new();
        for (n, site) in (0..).zip(&watch.sites) {
            if site.came as f64 >= SITE_GROWN
                && site.exited.saturating_mul(SITE_EXITED) <= site.came
                && !told.contains(&n)
                && let Some(rise) = steadily(&watch.alive(site))
            {
                found.insert(n, rise);
            }
        }
        if found.is_empty() {
            return Vec::new();
        }
        let mut members: HashMap<u32, Vec<Member<'a>>> = HashMap::new();
        for track in watch.tracks.iter().filter(|t| found.contains_key(&t.site)) {
            let Some(goroutine) = self.snapshot.goroutine(track.goid) else { continue };
            let reason = watch.reason(goroutine);
            members.entry(track.site).or_default().push(Member { goroutine, track, reason });
        }
        let mut all: Vec<Growing<'a>> =
            members.into_iter().filter_map(|(site, m)| self.site(site, found.get(&site)?, m)).collect();
        all.sort_by_key(|g| g.members.first().map(|m| m.goroutine.goid));
        all
    }

    fn site(&self, site: u32, rise: &Trend, mut members: Vec<Member<'a>>) -> Option<Growing<'a>> {
        let known = self.watch.sites.get(site as usize)?;
        let waits =
            |m: &&Member<'a>| m.goroutine.status.is_waiting() && m.reason != Reason::Io && !m.is_main();
        let waiting = members.iter().filter(waits).count();
        let at_queues = members.iter().filter(|m| self.waits_at_queue(m)).count();
        // One that stands where it stood when it came may be there until its timer fires.
        let now = self.watch.looks().saturating_sub(1);
        let old: Vec<&Member<'a>> = members.iter().filter(|m| m.track.born as usize + 3 <= now).collect();
        let wake = old.iter().filter(|m| m.track.since > m.track.born + 1).count();
        if waiting * 2 < members.len()
            || at_queues * 4 >= members.len()
            || old.is_empty()
            || wake * 2 < old.len()
        {
            return None;
        }
        let alive = self.watch.alive(known);
        let grown = alive.last()?.1 - alive.first()?.1;
        if self.are_connections(&members, grown, 0) {
            return None;
        }
        let mut places: HashMap<u32, usize> = HashMap::new();
        for group in members.iter().map(|m| m.track.group).filter(|g| *g != NONE) {
            *places.entry(group).or_insert(0) += 1;
        }
        let (most, _) = places.into_iter().max_by_key(|&(group, n)| (n, std::cmp::Reverse(group)))?;
        members.sort_by_key(|m| (m.track.group != most, m.goroutine.goid));
        let watched = seconds(self.watch.watched_ns());
        let gone = match known.exited {
            0 => format!("none of the {} created in {watched} has exited", known.came),
            n => format!("of the {} created in {watched} and those before, {n} exited", known.came),
        };
        let why = format!(
            "{gone}, although they run now and then. A rising load looks the same until it ends: watch longer to be sure."
        );
        Some(Growing { members, growth: Growth { low: rise.low, high: rise.high }, why })
    }
}

impl Member<'_> {
    /// What others receive from or wait for as well.
    pub fn shared<'s>(&self, snapshot: &'s Snapshot) -> impl Iterator<Item = (Wait, &'s WaitObject)> {
        self.objects(snapshot).filter(|(w, o)| {
            matches!(o.kind, ObjectKind::Chan | ObjectKind::Cond | ObjectKind::Semaphore)
                && w.op != Some(Op::Send)
                && (o.receivers >= 2 || o.kind != ObjectKind::Chan && o.address == 0)
        })
    }
}

/// The trend of a number that rises, and still does at the end.
fn rises(series: &[(u64, f64)]) -> Option<Trend> {
    if series.len() < MIN_POINTS {
        return None;
    }
    let last = series.last()?.1;
    let still = series.get(series.len() * 2 / 3).is_some_and(|middle| last > middle.1);
    let steps = series.windows(2).filter(|w| matches!(w, [a, b] if b.1 > a.1)).count();
    trend(series).filter(|t| t.low > 0.0 && t.tau >= MONOTONE && still && steps >= 3)
}

/// That of one that rises in each third.
fn steadily(series: &[(u64, f64)]) -> Option<Trend> {
    let last = series.len().checked_sub(1)?;
    let at = |n: usize| series.get(n).map(|s| s.1);
    let thirds = [at(0)?, at(last / 3)?, at(2 * last / 3)?, at(last)?];
    let enough = thirds[3] - thirds[0] >= SITE_GROWN && thirds.is_sorted_by(|a, b| a < b);
    if enough { rises(series) } else { None }
}

/// How many come a second where so many came in a time: 95 % bounds of a Poisson process (Wilson and Hilferty).
fn rate(came: u64, ns: u64) -> Option<Growth> {
    const Z: f64 = 1.96;
    if came == 0 || ns == 0 {
        return None;
    }
    let bound = |n: f64, z: f64| n * (1.0 - 1.0 / (9.0 * n) + z / (3.0 * n.sqrt())).max(0.0).powi(3);
    let (n, seconds) = (came as f64, ns as f64 / 1e9);
    Some(Growth { low: bound(n, -Z) / seconds, high: bound(n + 1.0, Z) / seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_the_bounds_of_its_count() {
        let second = 1_000_000_000;
        let one = rate(1, second).expect("a rate");
        assert!(one.low > 0.01 && one.low < 0.06 && one.high > 5.0 && one.high < 6.0, "{one:?}");
        let many = rate(100, 10 * second).expect("a rate");
        assert!(many.low > 8.0 && many.low < 8.3 && many.high > 12.0 && many.high < 12.4, "{many:?}");
        assert!(rate(0, second).is_none() && rate(1, 0).is_none());
    }

    #[test]
    fn a_step_is_no_steady_rise() {
        let series = |values: &[f64]| -> Vec<(u64, f64)> {
            values.iter().zip(1..).map(|(v, n)| (n * 1_000_000_000, *v)).collect()
        };
        let line: Vec<f64> = (0..12_u32).map(|n| f64::from(n) * 2.0).collect();
        assert!(steadily(&series(&line)).is_some());
        let step: Vec<f64> = (0..12_u32).map(|n| f64::from(n.min(4)) * 4.0).collect();
        assert!(steadily(&series(&step)).is_none());
    }
}
