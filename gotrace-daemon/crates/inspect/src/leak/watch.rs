//! What is kept of a process between two looks at it: for each goroutine since when it stands where it
//! stands, for each place how many stand there, for each creation site how many come and go.
//!
//! Input: snapshots of one process, in the order of time. A goroutine is the same if its goid is; it has
//! not moved if its [`park_mark`](crate::snapshot::Goroutine::park_mark) and its stack are the same.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::{Awaited, Reason};
use crate::snapshot::{Goroutine, Snapshot, StackFrame};

/// As many places are told apart; goroutines at others are counted only.
const MAX_GROUPS: usize = 1 << 17;
/// Looks that are the end of a watch.
const LAST_LOOKS: usize = 4;
/// No group.
pub(super) const NONE: u32 = u32::MAX;

/// What the user can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A goroutine that has not moved for this long may be [`Verdict::Stuck`](super::Verdict::Stuck).
    pub stuck_after_ns: u64,
}

/// One look at the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// `CLOCK_MONOTONIC` when reading began.
    pub begin_ns: u64,
    /// And when it ended.
    pub end_ns: u64,
    /// Goroutines that came, went, or moved since the look before, and those that run.
    pub moved: u64,
    /// Goroutines that wait for descriptors.
    pub io: u64,
}

/// A goroutine. There can be millions: times are numbers of looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Track {
    pub goid: u64,
    mark: u64,
    pub site: u32,
    /// Where it stands; [`NONE`] when it runs.
    pub group: u32,
    /// The look that first saw it there; all since have.
    pub since: u32,
    /// Looks that saw it there, one after the other.
    pub looks: u32,
    /// The look that first saw it alive.
    pub born: u32,
}

/// Goroutines with the same entry function and creation site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Site {
    pub entry_pc: u64,
    pub created_pc: u64,
    /// Goroutines that were seen to come after the first look, and to go.
    pub came: u64,
    pub exited: u64,
    /// The look from which on `alive` counts; for each look from there, how many there were.
    pub first_look: usize,
    pub alive: Vec<u32>,
    /// Of those born while watched, the ones that ended.
    pub finished: u64,
    /// How long the longest-lived of those can have lived.
    pub longest_finished_ns: u64,
}

/// Goroutines of a site at the same place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub site: u32,
    pub stack: u32,
    /// The look from which on `settled` counts.
    pub first_look: usize,
    /// For each look, how many stood there then and at the look before without having moved.
    pub settled: Vec<u32>,
    /// How many have settled, and how many of those have gone or moved since.
    pub joined: u64,
    pub left: u64,
    /// How often one stood here, had run by the next look, and stood here again: it is given work.
    pub returned: u64,
    /// How many of those that settled after the first two looks had not been there at the first look.
    pub arrived: u64,
    /// The last look that found one gone or moved that the look before had seen here.
    pub passed: u32,
}

/// A list that is read from its beginning and written anew at the same time.
struct InPlace {
    all: Vec<Track>,
    read: usize,
    written: usize,
    /// Those that were to be read where something was to be written.
    ahead: VecDeque<Track>,
}

impl InPlace {
    fn of(all: Vec<Track>) -> Self {
        Self { all, read: 0, written: 0, ahead: VecDeque::new() }
    }

    /// The next of the old ones, if it is wanted.
    fn next_if(&mut self, wanted: impl FnOnce(&Track) -> bool) -> Option<Track> {
        if let Some(&next) = self.ahead.front() {
            return wanted(&next).then(|| self.ahead.pop_front()).flatten();
        }
        let next = self.all.get(self.read).copied().filter(wanted)?;
        self.read += 1;
        Some(next)
    }

    fn push(&mut self, track: Track) {
        if self.written == self.read
            && let Some(&next) = self.all.get(self.read)
        {
            self.ahead.push_back(next);
            self.read += 1;
        }
        match self.all.get_mut(self.written) {
            Some(place) => *place = track,
            None => self.all.push(track),
        }
        self.written += 1;
        self.read = self.read.max(self.written);
    }

    /// What was written; nothing is left to be read.
    fn finish(mut self) -> Vec<Track> {
        self.all.truncate(self.written);
        self.all
    }
}

/// What was seen so far.
#[derive(Debug)]
pub struct Watch {
    pub(super) settings: Settings,
    pub(super) reasons: Vec<Reason>,
    pub(super) looks: Vec<Look>,
    /// By goid.
    pub(super) tracks: Vec<Track>,
    pub(super) sites: Vec<Site>,
    site_ids: HashMap<(u64, u64), u32, FixedState>,
    pub(super) stacks: Vec<Box<[StackFrame]>>,
    stack_ids: HashMap<Box<[StackFrame]>, u32, FixedState>,
    /// What goroutines wait for at the first of the stacks, as far as that was asked.
    pub(super) awaited: Vec<Option<Awaited>>,
    pub(super) groups: Vec<Group>,
    group_ids: HashMap<(u32, u32), u32, FixedState>,
}

impl Watch {
    /// Nothing seen yet. `reasons`: names of the program's wait reasons, by number.
    #[must_use]
    pub fn new(settings: Settings, reasons: &[&str]) -> Self {
        Self {
            settings,
            reasons: reasons.iter().map(|name| Reason::from_name(name)).collect(),
            looks: Vec::new(),
            tracks: Vec::new(),
            sites: Vec::new(),
            site_ids: HashMap::default(),
            stacks: Vec::new(),
            stack_ids: HashMap::default(),
            awaited: Vec::new(),
            groups: Vec::new(),
            group_ids: HashMap::default(),
        }
    }

    /// From now on it is judged by these.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Looks so far.
    #[must_use]
    pub fn looks(&self) -> usize {
        self.looks.len()
    }

    /// Whether so few looks saw a goroutine move that one that is stuck cannot be told from one that is idle.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.others_move_since(self.looks.first().map_or(0, |first| first.end_ns))
    }

    /// Bytes that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let stacks: usize = self.stacks.iter().map(|s| 2 * s.len() * size_of::<StackFrame>() + 64).sum();
        let groups: usize =
            self.groups.iter().map(|g| size_of::<Group>() + 32 + g.settled.capacity() * 4).sum();
        self.tracks.capacity() * size_of::<Track>()
            + stacks
            + groups
            + self.sites.iter().map(|s| size_of::<Site>() + 48 + s.alive.capacity() * 4).sum::<usize>()
    }

    /// Goroutines that were seen to come after the first look, and to go; those that came and went between two
    /// looks are in neither.
    #[must_use]
    pub fn came_and_exited(&self) -> (u64, u64) {
        self.sites.iter().fold((0, 0), |(came, exited), s| (came + s.came, exited + s.exited))
    }

    /// Places that are told apart.
    #[must_use]
    pub fn places(&self) -> usize {
        self.groups.len()
    }

    /// What the goroutine waits for; [`Reason::Other`] when it does not wait.
    #[must_use]
    pub fn reason(&self, goroutine: &Goroutine) -> Reason {
        if !goroutine.status.is_waiting() {
            return Reason::Other;
        }
        self.reasons.get(usize::from(goroutine.wait_reason)).copied().unwrap_or(Reason::Other)
    }

    /// Asks for each stack that is new what goroutines wait for there.
    pub fn know_places(&mut self, mut of: impl FnMut(&[StackFrame]) -> Option<Awaited>) {
        let known = self.awaited.len();
        self.awaited.extend(self.stacks.iter().skip(known).map(|stack| of(stack)));
    }

    /// What goroutines of a group wait for, if that is a known place.
    pub(super) fn awaited(&self, group: &Group) -> Option<Awaited> {
        self.awaited.get(group.stack as usize).copied().flatten()
    }

    /// Takes in the next look. One that is older than the last is left out.
    pub fn observe(&mut self, snapshot: &Snapshot) {
        let begin_ns = snapshot.monotonic_ns;
        let end_ns = begin_ns.saturating_add(snapshot.duration_ns);
        let before = self.looks.last().copied();
        if before.is_some_and(|b| b.begin_ns >= begin_ns) {
            return;
        }
        let look = self.looks.len();
        let number = u32::try_from(look).unwrap_or(u32::MAX);
        let stacks: Vec<u32> =
            snapshot.stacks.ids().map(|id| self.stack_id(snapshot.stacks.frames(id))).collect();
        // In place, as there may be a million: those that come have higher ids than those that are known, mostly.
        let mut tracks = InPlace::of(std::mem::take(&mut self.tracks));
        let (mut moved, mut io) = (0, 0);
        for goroutine in snapshot.goroutines.iter().filter(|g| !g.is_system()) {
            while let Some(gone) = tracks.next_if(|t| t.goid < goroutine.goid) {
                moved += 1;
                self.gone(gone, number, end_ns);
            }
            io += u64::from(self.reason(goroutine) == Reason::Io);
            let known = tracks.next_if(|t| t.goid == goroutine.goid);
            let site = known.map_or_else(|| self.site_id(goroutine, look), |t| t.site);
            let stack = goroutine.stack.and_then(|id| stacks.get(id.index())).copied();
            let group = stack.map_or(NONE, |stack| self.group_id(site, stack, look));
            let fresh = Track {
                goid: goroutine.goid,
                mark: goroutine.park_mark,
                site,
                group,
                since: number,
                looks: 1,
                born: known.map_or(number, |t| t.born),
            };
            let stood = known.filter(|t| {
                let known = fresh.mark != 0 && group != NONE;
                goroutine.status.is_waiting() && known && t.group == group && t.mark == fresh.mark
            });
            if let Some(stood) = stood {
                let looks = stood.looks.saturating_add(1);
                if let Some(g) = self.groups.get_mut(group as usize) {
                    g.count(look);
                    g.joined += u64::from(looks == 2);
                    g.arrived += u64::from(looks == 2 && stood.born > 0);
                }
                tracks.push(Track { looks, ..stood });
                continue;
            }
            moved += u64::from(before.is_some());
            match known {
                Some(t) => {
                    let returned = goroutine.status.is_waiting() && t.group == group && t.mark != fresh.mark;
                    if let Some(g) = self.groups.get_mut(group as usize).filter(|_| returned) {
                        g.returned += 1;
                    }
                    self.leave(t, number);
                }
                None => self.came(site, before.is_some()),
            }
            tracks.push(fresh);
        }
        while let Some(gone) = tracks.next_if(|_| true) {
            moved += 1;
            self.gone(gone, number, end_ns);
        }
        let tracks = tracks.finish();
        for track in &tracks {
            if let Some(site) = self.sites.get_mut(track.site as usize) {
                count(&mut site.alive, look.saturating_sub(site.first_look));
            }
        }
        self.tracks = tracks;
        self.looks.push(Look { begin_ns, end_ns, moved, io });
    }

    fn came(&mut self, site: u32, watched: bool) {
        if let Some(site) = self.sites.get_mut(site as usize).filter(|_| watched) {
            site.came += 1;
        }
    }

    fn gone(&mut self, track: Track, look: u32, end_ns: u64) {
        self.leave(track, look);
        if let Some(site) = self.sites.get_mut(track.site as usize) {
            site.exited += 1;
        }
        let born_after = self.begin_before(track.born);
        if let (Some(site), Some(born_after)) = (self.sites.get_mut(track.site as usize), born_after) {
            site.finished += 1;
            site.longest_finished_ns = site.longest_finished_ns.max(end_ns.saturating_sub(born_after));
        }
    }

    /// It is seen no more where it stood.
    fn leave(&mut self, track: Track, look: u32) {
        if let Some(group) = self.groups.get_mut(track.group as usize) {
            group.left += u64::from(track.looks >= 2);
            group.passed = look;
        }
    }

    fn stack_id(&mut self, frames: &[StackFrame]) -> u32 {
        if let Some(&id) = self.stack_ids.get(frames) {
            return id;
        }
        if self.stacks.len() >= MAX_GROUPS {
            return NONE;
        }
        let id = u32::try_from(self.stacks.len()).unwrap_or(NONE);
        self.stacks.push(frames.into());
        self.stack_ids.insert(frames.into(), id);
        id
    }

    fn site_id(&mut self, goroutine: &Goroutine, look: usize) -> u32 {
        let Goroutine { entry_pc, created_pc, .. } = *goroutine;
        *self.site_ids.entry((entry_pc, created_pc)).or_insert_with(|| {
            let id = u32::try_from(self.sites.len()).unwrap_or(NONE);
            self.sites.push(Site { entry_pc, created_pc, first_look: look, ..Site::default() });
            id
        })
    }

    fn group_id(&mut self, site: u32, stack: u32, look: usize) -> u32 {
        if stack == NONE {
            return NONE;
        }
        if let Some(&id) = self.group_ids.get(&(site, stack)) {
            return id;
        }
        if self.groups.len() >= MAX_GROUPS {
            return NONE;
        }
        let id = u32::try_from(self.groups.len()).unwrap_or(NONE);
        self.groups.push(Group { site, stack, first_look: look, ..Group::default() });
        self.group_ids.insert((site, stack), id);
        id
    }

    /// Places and stacks have other numbers than before.
    pub(super) fn index_places(&mut self) {
        let number = |n: usize| u32::try_from(n).unwrap_or(NONE);
        self.stack_ids = self.stacks.iter().enumerate().map(|(n, s)| (s.clone(), number(n))).collect();
        self.group_ids =
            self.groups.iter().enumerate().map(|(n, g)| ((g.site, g.stack), number(n))).collect();
    }

    /// How long a goroutine has stood where it stands, as of the last look.
    pub(super) fn stands(&self, track: &Track) -> super::AtLeastAtMost {
        let (begin, end) = self.looks.last().map_or((0, 0), |l| (l.begin_ns, l.end_ns));
        super::AtLeastAtMost {
            at_least_ns: if track.looks < 2 { 0 } else { begin.saturating_sub(self.since_ns(track)) },
            at_most_ns: self.begin_before(track.since).map(|before| end.saturating_sub(before)),
        }
    }

    /// How long a goroutine has lived, as of the last look.
    pub(super) fn lived(&self, track: &Track) -> super::AtLeastAtMost {
        let (begin, end) = self.looks.last().map_or((0, 0), |l| (l.begin_ns, l.end_ns));
        let born = self.looks.get(track.born as usize).map_or(begin, |l| l.end_ns);
        super::AtLeastAtMost {
            at_least_ns: begin.saturating_sub(born),
            at_most_ns: self.begin_before(track.born).map(|before| end.saturating_sub(before)),
        }
    }

    /// End of the look that first saw a goroutine where it stands.
    pub(super) fn since_ns(&self, track: &Track) -> u64 {
        self.looks.get(track.since as usize).map_or(0, |l| l.end_ns)
    }

    /// Begin of the look before this one: what it saw first began later. `None` for the first look, before
    /// which nobody looked.
    fn begin_before(&self, look: u32) -> Option<u64> {
        self.looks.get((look as usize).checked_sub(1)?).map(|l| l.begin_ns)
    }

    /// Whether, since a time, others came, went or moved at most looks, and at one of the last few: those at
    /// the end of a watch follow one another so closely that a quiet program has no time to move.
    pub(super) fn others_move_since(&self, ns: u64) -> bool {
        let within: Vec<bool> = self.looks.iter().filter(|l| l.begin_ns >= ns).map(|l| l.moved > 0).collect();
        let lately = within.iter().rev().take(LAST_LOOKS).any(|m| *m);
        lately && within.iter().filter(|m| **m).count() * 2 > within.len()
    }

    /// The settled of a group at each look (end of the look, count); from the second look on, as before
    /// nobody can have settled.
    pub(super) fn series(&self, group: &Group) -> Vec<(u64, f64)> {
        self.counts(1, group.first_look, &group.settled)
    }

    /// How many goroutines of a site there were at each look.
    pub(super) fn alive(&self, site: &Site) -> Vec<(u64, f64)> {
        self.counts(0, site.first_look, &site.alive)
    }

    fn counts(&self, from: usize, first_look: usize, counts: &[u32]) -> Vec<(u64, f64)> {
        let count = |look: usize| {
            f64::from(look.checked_sub(first_look).and_then(|n| counts.get(n)).copied().unwrap_or(0))
        };
        self.looks.iter().enumerate().skip(from).map(|(n, l)| (l.end_ns, count(n))).collect()
    }

    /// From the end of the first look to that of the last.
    pub(super) fn watched_ns(&self) -> u64 {
        let end = |look: Option<&Look>| look.map_or(0, |l| l.end_ns);
        end(self.looks.last()).saturating_sub(end(self.looks.first()))
    }
}

impl Group {
    fn count(&mut self, look: usize) {
        count(&mut self.settled, look.saturating_sub(self.first_look));
    }
}

/// One more at a look.
fn count(counts: &mut Vec<u32>, n: usize) {
    if counts.len() <= n {
        counts.resize(n + 1, 0);
    }
    if let Some(count) = counts.get_mut(n) {
        *count += 1;
    }
}
