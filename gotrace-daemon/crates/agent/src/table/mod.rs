//! The goroutine table of one process: who lives, who made whom, where from.
//!
//! Pure: events and snapshots in, [`Output`]s out, time is in both. It refuses to guess: a death whose birth
//! was not seen makes no span, a goroutine first met in a wait has an unknown creation site until a
//! snapshot tells it.
//!
//! A live goroutine costs its 40 bytes and as many more once it has waited, and 24 where what it used of the processors
//! is known, at the hash tables' load (at most 94 bytes each and 58, 246 in all); sites cost more and are as many as the
//! program has `go` statements.

mod cpu;
mod output;
mod peers;
mod places;
mod reconcile;
mod site;
mod state;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::decode::{Create, Event, Exit, OpenWait, Wait};
use gotrace_common::{Histogram, WakerKind};

pub use cpu::{CpuTimes, CpuUse};
pub use output::{Ended, Life, Output, Waited, Waker};
pub(crate) use peers::{PeerNumber, Peers};
pub(crate) use places::Stacks;
pub use places::StacksState;
pub use reconcile::{Look, Sighting};
pub use site::{SiteKey, SiteStats};
pub use state::{GoroutineState, TableState};

/// The creation site of goroutines whose birth was not seen.
const UNKNOWN_SITE: u32 = 0;
/// No wait reason.
const NO_WAIT: u8 = u8::MAX;

/// A live goroutine. 32 bytes.
#[derive(Clone, Copy, Debug)]
struct Goroutine {
    /// Birth; without [`Self::BIRTH_SEEN`] a time at which it lived.
    birth_ns: u64,
    parent_goid: u64,
    /// With [`Self::BEGINS_TRACE`]: the goroutine with which its creator's trace begins. Else the one with
    /// which its own begins.
    trace: u64,
    site: u32,
    flags: u8,
    /// The last snapshot that it was seen in; 0 for none.
    mark: u8,
    /// What that snapshot saw it wait for, where events do not tell; [`NO_WAIT`] for nothing.
    wait: u8,
}

impl Goroutine {
    const BEGINS_TRACE: u8 = 1;
    const BIRTH_SEEN: u8 = 2;
    /// It has sums of waits.
    const HAS_WAITED: u8 = 4;
    /// The kernel side keeps track of its waits, which it does from the first park after attaching on.
    const PARK_SEEN: u8 = 8;
    /// One of its waits was long.
    const WAITED_LONG: u8 = 16;

    /// Whether any of these holds.
    fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// A goroutine that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    /// Its id.
    pub goid: u64,
    /// When it was made, `CLOCK_MONOTONIC`; `None` when that was not seen.
    pub birth_ns: Option<u64>,
}

/// Sums of waits by reason. Most goroutines wait for one reason only; more go to the heap.
type ByReason = SmallVec<[(u8, u64); 1]>;

/// What happened since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Births seen.
    pub born: u64,
    /// Deaths seen, of goroutines that were known.
    pub died: u64,
    /// Deaths seen, of goroutines that were not known: born before attaching.
    pub died_unknown: u64,
    /// Births of a goid that was alive: a death was lost. Mended.
    pub repaired: u64,
    /// Goroutines that only a snapshot showed: their birth was lost. Among `born`.
    pub births_mended: u64,
    /// Goroutines that snapshots no longer showed: their death was lost. Among `died`.
    pub deaths_mended: u64,
    /// Births, and waits of goroutines that are not known, that found the table full.
    pub refused: u64,
}

/// The table of one process.
#[derive(Debug)]
pub struct Table {
    goroutines: HashMap<u64, Goroutine, FixedState>,
    waits_by_reason: HashMap<u64, ByReason, FixedState>,
    /// Processor time of those that are known to have used some.
    cpu: HashMap<u64, cpu::Used, FixedState>,
    sites: Vec<SiteStats>,
    site_index: HashMap<SiteKey, u32, FixedState>,
    waits: Vec<Option<Box<Histogram>>>,
    /// The same by reason and stack.
    stacks: Stacks,
    waiting: HashMap<u8, u64, FixedState>,
    totals: Totals,
    knows_main: bool,
    trace_root_age_ns: u64,
    long_wait_ns: u64,
    /// Goroutines that it has room for.
    limit: usize,
    began_ns: u64,
    reconciling: Option<Box<reconcile::Reconciling>>,
    /// Entries that are replaced by what a snapshot tells.
    wrappers: HashSet<u64, FixedState>,
    /// Who the last snapshot did not show.
    missing: HashSet<u64, FixedState>,
    /// Goroutines for which this snapshot finds no room, and the last one found none.
    refused_now: u64,
    refused_before: u64,
    /// Whether events told of goroutines for which there was no room, that no snapshot has been held against.
    refused_since: bool,
    /// Number of the last snapshot, 1 to 255.
    generation: u8,
    seeded: bool,
    sampled: bool,
}

impl Table {
    /// An empty table. `trace_root_age_ns`: a goroutine created by one older than this begins a trace.
    #[must_use]
    pub fn new(trace_root_age_ns: u64) -> Self {
        Self {
            goroutines: HashMap::default(),
            waits_by_reason: HashMap::default(),
            cpu: HashMap::default(),
            sites: vec![SiteStats::new(SiteKey { created_pc: 0, entry_pc: 0 })],
            site_index: HashMap::default(),
            waits: vec![None; 256],
            stacks: Stacks::default(),
            waiting: HashMap::default(),
            totals: Totals::default(),
            knows_main: false,
            trace_root_age_ns,
            long_wait_ns: u64::MAX,
            limit: usize::MAX,
            began_ns: 0,
            reconciling: None,
            wrappers: HashSet::default(),
            missing: HashSet::default(),
            refused_now: 0,
            refused_before: 0,
            refused_since: false,
            generation: 0,
            seeded: false,
            sampled: false,
        }
    }

    /// The same with room for so many live goroutines; births and waits beyond are counted ([`Totals::refused`]).
    #[must_use]
    pub fn with_room_for(mut self, goroutines: usize) -> Self {
        self.limit = goroutines;
        self
    }

    /// From now on it has room for so many, but for those that it has already.
    pub fn set_room(&mut self, goroutines: usize) {
        self.limit = goroutines;
    }

    /// From now on a goroutine created by one older than this begins a trace.
    pub fn set_trace_root_age(&mut self, nanoseconds: u64) {
        self.trace_root_age_ns = nanoseconds;
    }

    /// From now on a wait of at least this marks its goroutine ([`Ended::waited_long`]).
    pub fn set_long_wait(&mut self, nanoseconds: u64) {
        self.long_wait_ns = nanoseconds;
    }

    /// Gives back what is kept of waits, which snapshots tell of from now on, and room that is not used.
    pub fn give_back(&mut self) {
        self.waits_by_reason = HashMap::default();
        self.cpu = HashMap::default();
        self.goroutines.values_mut().for_each(|g| g.flags &= !Goroutine::HAS_WAITED);
        self.goroutines.shrink_to_fit();
        self.missing.shrink_to_fit();
    }

    /// The creation site of a goroutine; `None` where that is not known.
    #[must_use]
    pub fn creation_site(&self, goid: u64) -> Option<SiteKey> {
        let site = self.goroutines.get(&goid)?.site;
        self.sites.get(site as usize).filter(|_| site != UNKNOWN_SITE).map(|site| site.key)
    }

    /// Takes an event of this process; what ended goes to `out`.
    pub fn apply(&mut self, event: &Event<'_>, out: &mut Vec<Output>) {
        match event {
            Event::Create(create) | Event::CreateClosure(create, _) => self.create(create),
            Event::Exit(exit) => self.exit(exit, out),
            Event::Wait(wait) => self.wait(wait, out),
            Event::OpenWait(wait) => self.open_wait(wait),
            Event::Cpu(cpu) => self.cpu_used(cpu),
            Event::Pause(_) | Event::Assist(_) | Event::Request(_) | Event::Exec { .. } => {}
        }
    }

    /// Whether there is no room for this goroutine.
    fn is_full_for(&self, goid: u64) -> bool {
        self.goroutines.len() >= self.limit && !self.goroutines.contains_key(&goid)
    }

    /// An event tells of a goroutine for which there is no room.
    fn refuse(&mut self) {
        self.totals.refused += 1;
        self.refused_since = true;
        if let Some(reconciling) = &mut self.reconciling {
            reconciling.refused = true;
        }
    }

    /// Whether goroutines may live that it has no room for: while it is full, and until a snapshot shows that it has all.
    #[must_use]
    pub fn leaves_out(&self) -> bool {
        self.goroutines.len() >= self.limit || self.refused_before > 0 || self.refused_since
    }

    fn create(&mut self, create: &Create) {
        if self.is_full_for(create.goid) {
            self.refuse();
            return;
        }
        let site = self.site_of(SiteKey { created_pc: create.created_pc, entry_pc: create.entry_pc });
        let (begins_trace, trace) = self.place_in_trace(create.parent_goid, create.time_ns);
        let goroutine = Goroutine {
            birth_ns: create.time_ns,
            parent_goid: create.parent_goid,
            trace,
            site,
            flags: Goroutine::BIRTH_SEEN | if begins_trace { Goroutine::BEGINS_TRACE } else { 0 },
            mark: 0,
            wait: NO_WAIT,
        };
        if let Some(old) = self.goroutines.insert(create.goid, goroutine) {
            if old.is(Goroutine::BIRTH_SEEN) {
                // Goids are never used twice: its death must have been lost.
                self.totals.repaired += 1;
                self.site_mut(old.site).leave(None);
                self.cpu.remove(&create.goid);
            } else {
                // It was met before its birth.
                self.site_mut(old.site).unmeet();
                self.place_cpu(create.goid, site);
            }
            if old.is(Goroutine::HAS_WAITED) {
                self.waits_by_reason.remove(&create.goid);
            }
        }
        self.totals.born += 1;
        self.knows_main |= create.goid == 1;
        self.site_mut(site).born();
    }

    /// The site's number; a new one where it is new.
    fn site_of(&mut self, key: SiteKey) -> u32 {
        if key.entry_pc == 0 {
            return UNKNOWN_SITE;
        }
        let sites = &mut self.sites;
        *self.site_index.entry(key).or_insert_with(|| {
            sites.push(SiteStats::new(key));
            // As many as the program has `go` statements: far below 2^32.
            u32::try_from(sites.len() - 1).unwrap_or(UNKNOWN_SITE)
        })
    }

    /// Whether a goroutine made by `parent` at `now_ns` begins a trace; and the beginning of its own
    /// trace, or its creator's.
    fn place_in_trace(&self, parent: u64, now_ns: u64) -> (bool, u64) {
        if parent == 0 {
            return (true, 0);
        }
        match self.goroutines.get(&parent) {
            None => (true, parent),
            Some(creator) => {
                let root = self.root_of(parent, creator);
                let old = now_ns.saturating_sub(creator.birth_ns) > self.trace_root_age_ns;
                (parent == 1 || !creator.is(Goroutine::BIRTH_SEEN) || old, root)
            }
        }
    }

    fn root_of(&self, goid: u64, goroutine: &Goroutine) -> u64 {
        if goroutine.is(Goroutine::BEGINS_TRACE) { goid } else { goroutine.trace }
    }

    /// The goroutine with which the trace of `goid` begins; itself when it is not known.
    #[must_use]
    pub fn trace_root(&self, goid: u64) -> u64 {
        self.goroutines.get(&goid).map_or(goid, |g| self.root_of(goid, g))
    }

    fn exit(&mut self, exit: &Exit, out: &mut Vec<Output>) {
        self.remember_exit(exit.goid);
        let Some(goroutine) = self.goroutines.remove(&exit.goid) else {
            self.totals.died_unknown += 1;
            return;
        };
        let birth_seen = goroutine.is(Goroutine::BIRTH_SEEN);
        let waits_by_reason = if goroutine.is(Goroutine::HAS_WAITED) {
            self.waits_by_reason.remove(&exit.goid).unwrap_or_default()
        } else {
            ByReason::new()
        };
        let told = CpuUse { cpu_ns: exit.cpu_ns, throttled_ns: exit.throttled_ns };
        let cpu = self.end_cpu(exit.goid, goroutine.site, told);
        self.totals.died += 1;
        let lifetime_ns = exit.time_ns.saturating_sub(goroutine.birth_ns);
        let site = self.site_mut(goroutine.site);
        site.leave(birth_seen.then_some(lifetime_ns));
        let SiteKey { created_pc, entry_pc } = site.key;
        if !birth_seen {
            return;
        }
        out.push(Output::Ended(Ended {
            goid: exit.goid,
            parent_goid: goroutine.parent_goid,
            root: self.root_of(exit.goid, &goroutine),
            creator_root: (goroutine.is(Goroutine::BEGINS_TRACE) && goroutine.parent_goid != 0)
                .then_some(goroutine.trace),
            birth_ns: goroutine.birth_ns,
            exit_ns: exit.time_ns,
            created_pc,
            entry_pc,
            wait_total_ns: exit.wait_total_ns,
            wait_count: exit.wait_count,
            cpu,
            life: Life::of(exit, lifetime_ns),
            waited_long: goroutine.is(Goroutine::WAITED_LONG),
            waits_by_reason,
        }));
    }

    fn wait(&mut self, wait: &Wait<'_>, out: &mut Vec<Output>) {
        let duration_ns = wait.end_ns.saturating_sub(wait.start_ns);
        if let Some(slot) = self.waits.get_mut(usize::from(wait.reason)) {
            slot.get_or_insert_with(Box::default).add(duration_ns);
        }
        let frames: SmallVec<[u64; 8]> = wait.frames.iter().collect();
        self.stacks.add(wait.reason, &frames, wait.socket.as_ref(), duration_ns);
        if self.is_full_for(wait.goid) {
            // Whose it was, and where that came from, is not kept: it has no span.
            self.refuse();
            return;
        }
        let long = duration_ns >= self.long_wait_ns;
        let goroutine = self.meet(wait.goid, wait.start_ns);
        goroutine.flags |= Goroutine::HAS_WAITED | if long { Goroutine::WAITED_LONG } else { 0 };
        let (site, goroutine) = (goroutine.site, *goroutine);
        self.site_mut(site).waits_mut().add(duration_ns);
        self.used(wait.goid, site, CpuUse { cpu_ns: wait.cpu_ns, throttled_ns: 0 });
        let sums = self.waits_by_reason.entry(wait.goid).or_default();
        match sums.iter_mut().find(|(reason, _)| *reason == wait.reason) {
            Some((_, sum)) => *sum += duration_ns,
            None => sums.push((wait.reason, duration_ns)),
        }
        let waker = match wait.waker {
            WakerKind::Goroutine => {
                Waker::Goroutine { goid: wait.waker_goid, root: self.trace_root(wait.waker_goid) }
            }
            WakerKind::Netpoll => Waker::Netpoll,
            WakerKind::Timer => Waker::Timer,
            WakerKind::Gc => Waker::Gc,
            WakerKind::Unknown => Waker::Unknown,
        };
        out.push(Output::Waited(Waited {
            goid: wait.goid,
            root: self.root_of(wait.goid, &goroutine),
            reason: wait.reason,
            start_ns: wait.start_ns,
            end_ns: wait.end_ns,
            wake_ns: (wait.wake_ns != 0).then_some(wait.wake_ns),
            waker,
            peer: wait.socket.and_then(|socket| socket.peer),
            frames,
        }));
    }

    /// The goroutine, of which the kernel side has seen a wait that began at `start_ns`. It is noted as
    /// born unseen when it was not known.
    fn meet(&mut self, goid: u64, start_ns: u64) -> &mut Goroutine {
        self.heard_of(goid);
        let sites = &mut self.sites;
        let goroutine = self.goroutines.entry(goid).or_insert_with(|| {
            if let Some(site) = sites.first_mut() {
                site.met();
            }
            Goroutine {
                birth_ns: start_ns,
                parent_goid: 0,
                trace: 0,
                site: UNKNOWN_SITE,
                flags: Goroutine::BEGINS_TRACE,
                mark: 0,
                wait: NO_WAIT,
            }
        });
        goroutine.flags |= Goroutine::PARK_SEEN;
        goroutine.wait = NO_WAIT;
        goroutine
    }

    /// Begins a new reading of who waits: what the last one found is forgotten.
    pub fn begin_open_waits(&mut self) {
        self.waiting.clear();
        for site in &mut self.sites {
            site.waiting.clear();
        }
    }

    fn open_wait(&mut self, wait: &OpenWait) {
        if self.is_full_for(wait.goid) {
            // It is not among those alive, as its birth or the last snapshot has counted; when its wait ends, that is
            // counted too.
            return;
        }
        let site = self.meet(wait.goid, wait.start_ns).site;
        *self.waiting.entry(wait.reason).or_default() += 1;
        *self.site_mut(site).waiting.entry(wait.reason).or_default() += 1;
    }

    fn site_mut(&mut self, site: u32) -> &mut SiteStats {
        let index = if (site as usize) < self.sites.len() { site as usize } else { UNKNOWN_SITE as usize };
        &mut self.sites[index]
    }

    /// Those that are known to live, in no order.
    pub fn living(&self) -> impl Iterator<Item = Living> + '_ {
        self.goroutines
            .iter()
            .map(|(&goid, g)| Living { goid, birth_ns: g.is(Goroutine::BIRTH_SEEN).then_some(g.birth_ns) })
    }

    /// How many goroutines are known to live.
    #[must_use]
    pub fn alive(&self) -> u64 {
        self.goroutines.len() as u64
    }

    /// How many of them were born before attaching.
    #[must_use]
    pub fn alive_birth_unseen(&self) -> u64 {
        self.sites.first().map_or(0, |s| s.alive)
    }

    /// Whether the birth of goroutine 1 was seen: then all others' were too.
    #[must_use]
    pub fn knows_main(&self) -> bool {
        self.knows_main
    }

    /// What happened since the table was made.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Waits that were sent, by reason.
    pub fn waits(&self) -> impl Iterator<Item = (u8, &Histogram)> {
        self.waits.iter().enumerate().filter_map(|(i, h)| Some((u8::try_from(i).ok()?, h.as_deref()?)))
    }

    /// Waits that were sent, by reason and stack.
    pub(crate) fn stacks(&mut self) -> &mut Stacks {
        &mut self.stacks
    }

    /// The same, as they are.
    pub(crate) fn stacks_seen(&self) -> &Stacks {
        &self.stacks
    }

    /// The same, to be written.
    pub(crate) fn stacks_state(&self) -> Option<StacksState> {
        (!self.stacks.is_empty()).then(|| self.stacks.state())
    }

    /// How many wait now, by reason: as of the last reading, and, once [`Self::sites`] was called, as of the
    /// last snapshot those of which events do not tell.
    pub fn waiting(&self) -> impl Iterator<Item = (u8, u64)> {
        self.waiting.iter().map(|(reason, n)| (*reason, *n))
    }

    /// The sites, with ages and what the last snapshot tells of waits brought up to date. Walks over all
    /// goroutines; once after each reading of who waits.
    pub fn sites(&mut self) -> &mut [SiteStats] {
        for site in &mut self.sites {
            site.oldest_birth_ns = None;
            site.oldest_is_lower_bound = false;
        }
        for goroutine in self.goroutines.values() {
            let Some(site) = self.sites.get_mut(goroutine.site as usize) else { continue };
            let oldest = site.oldest_birth_ns.get_or_insert(goroutine.birth_ns);
            *oldest = (*oldest).min(goroutine.birth_ns);
            site.oldest_is_lower_bound |= !goroutine.is(Goroutine::BIRTH_SEEN);
            if goroutine.wait != NO_WAIT {
                site.sampled_wait(goroutine.wait);
            }
        }
        for site in &mut self.sites {
            site.add_sampled_waits(&mut self.waiting);
        }
        &mut self.sites
    }

    /// Bytes that all of it takes, without what goes to the heap for those that wait for more than one
    /// reason.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let histograms =
            self.waits.iter().flatten().count() + self.sites.iter().map(SiteStats::histograms).sum::<usize>();
        self.memory_bytes()
            + self.stacks.bytes()
            + self.missing.allocation_size()
            + self.site_index.allocation_size()
            + self.sites.capacity() * size_of::<SiteStats>()
            + self.waits.capacity() * size_of::<Option<Box<Histogram>>>()
            + histograms * size_of::<Histogram>()
    }

    /// Bytes that the table of live goroutines takes, without what goes to the heap for those that wait
    /// for more than one reason.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.goroutines.allocation_size()
            + self.waits_by_reason.allocation_size()
            + self.cpu.allocation_size()
    }
}

#[cfg(test)]
mod tests;
