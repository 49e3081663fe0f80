//! The goroutine table of one process: who lives, who made whom, where from.
//!
//! Pure: events in, [`Output`]s out, time is in the events. It refuses to guess: a death whose birth
//! was not seen makes no span, a goroutine first met in a wait has an unknown creation site.
//!
//! A live goroutine costs its 40 bytes and as many more once it has waited, at the hash tables' load (at
//! most 94 bytes each, 188 in all); sites cost more and are as many as the program has `go` statements.

mod output;
mod site;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::decode::{Create, Event, Exit, OpenWait, Wait};
use gotrace_common::{Histogram, WakerKind};

pub use output::{Ended, Output, Waited, Waker};
pub use site::{SiteKey, SiteStats};

/// The creation site of goroutines whose birth was not seen.
const UNKNOWN_SITE: u32 = 0;

/// A live goroutine.
#[derive(Clone, Copy, Debug)]
struct Goroutine {
    birth_ns: u64,
    parent_goid: u64,
    /// When `begins_trace`: the goroutine with which its creator's trace begins. Else the one with which
    /// its own begins.
    trace: u64,
    site: u32,
    begins_trace: bool,
    birth_seen: bool,
    has_waited: bool,
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
type ByReason = smallvec::SmallVec<[(u8, u64); 1]>;

/// What happened since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Births seen.
    pub born: u64,
    /// Deaths seen, of goroutines that were known.
    pub died: u64,
    /// Deaths seen, of goroutines that were not known: born before attaching.
    pub died_unknown: u64,
    /// Births of a goid that was alive: a death was lost. Mended.
    pub repaired: u64,
}

/// The table of one process.
#[derive(Debug)]
pub struct Table {
    goroutines: HashMap<u64, Goroutine, FixedState>,
    waits_by_reason: HashMap<u64, ByReason, FixedState>,
    sites: Vec<SiteStats>,
    site_index: HashMap<SiteKey, u32, FixedState>,
    waits: Vec<Option<Box<Histogram>>>,
    waiting: HashMap<u8, u64, FixedState>,
    totals: Totals,
    knows_main: bool,
    trace_root_age_ns: u64,
}

impl Table {
    /// An empty table. `trace_root_age_ns`: a goroutine created by one older than this begins a trace.
    #[must_use]
    pub fn new(trace_root_age_ns: u64) -> Self {
        Self {
            goroutines: HashMap::default(),
            waits_by_reason: HashMap::default(),
            sites: vec![SiteStats::new(SiteKey { created_pc: 0, entry_pc: 0 })],
            site_index: HashMap::default(),
            waits: vec![None; 256],
            waiting: HashMap::default(),
            totals: Totals::default(),
            knows_main: false,
            trace_root_age_ns,
        }
    }

    /// Takes an event of this process; what ended goes to `out`.
    pub fn apply(&mut self, event: &Event<'_>, out: &mut Vec<Output>) {
        match event {
            Event::Create(create) => self.create(create),
            Event::Exit(exit) => self.exit(exit, out),
            Event::Wait(wait) => self.wait(wait, out),
            Event::OpenWait(wait) => self.open_wait(wait),
            Event::Exec { .. } => {}
        }
    }

    fn create(&mut self, create: &Create) {
        let key = SiteKey { created_pc: create.created_pc, entry_pc: create.entry_pc };
        let sites = &mut self.sites;
        let site = *self.site_index.entry(key).or_insert_with(|| {
            sites.push(SiteStats::new(key));
            // As many as the program has `go` statements: far below 2^32.
            u32::try_from(sites.len() - 1).unwrap_or(UNKNOWN_SITE)
        });
        let (begins_trace, trace) = self.place_in_trace(create.parent_goid, create.time_ns);
        let goroutine = Goroutine {
            birth_ns: create.time_ns,
            parent_goid: create.parent_goid,
            trace,
            site,
            begins_trace,
            birth_seen: true,
            has_waited: false,
        };
        if let Some(old) = self.goroutines.insert(create.goid, goroutine) {
            if old.birth_seen {
                // Goids are never used twice: its death must have been lost.
                self.totals.repaired += 1;
            }
            self.site_mut(old.site).leave(None);
            if old.has_waited {
                self.waits_by_reason.remove(&create.goid);
            }
        }
        self.totals.born += 1;
        self.knows_main |= create.goid == 1;
        self.site_mut(site).born();
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
                (parent == 1 || !creator.birth_seen || old, root)
            }
        }
    }

    fn root_of(&self, goid: u64, goroutine: &Goroutine) -> u64 {
        if goroutine.begins_trace { goid } else { goroutine.trace }
    }

    /// The goroutine with which the trace of `goid` begins; itself when it is not known.
    #[must_use]
    pub fn trace_root(&self, goid: u64) -> u64 {
        self.goroutines.get(&goid).map_or(goid, |g| self.root_of(goid, g))
    }

    fn exit(&mut self, exit: &Exit, out: &mut Vec<Output>) {
        let Some(goroutine) = self.goroutines.remove(&exit.goid) else {
            self.totals.died_unknown += 1;
            return;
        };
        let waits_by_reason = if goroutine.has_waited {
            self.waits_by_reason.remove(&exit.goid).unwrap_or_default()
        } else {
            ByReason::new()
        };
        self.totals.died += 1;
        let lifetime_ns = exit.time_ns.saturating_sub(goroutine.birth_ns);
        let site = self.site_mut(goroutine.site);
        site.leave(goroutine.birth_seen.then_some(lifetime_ns));
        let SiteKey { created_pc, entry_pc } = site.key;
        if !goroutine.birth_seen {
            return;
        }
        out.push(Output::Ended(Ended {
            goid: exit.goid,
            parent_goid: goroutine.parent_goid,
            root: self.root_of(exit.goid, &goroutine),
            creator_root: (goroutine.begins_trace && goroutine.parent_goid != 0).then_some(goroutine.trace),
            birth_ns: goroutine.birth_ns,
            exit_ns: exit.time_ns,
            created_pc,
            entry_pc,
            wait_total_ns: exit.wait_total_ns,
            wait_count: exit.wait_count,
            waits_by_reason,
        }));
    }

    fn wait(&mut self, wait: &Wait<'_>, out: &mut Vec<Output>) {
        let duration_ns = wait.end_ns.saturating_sub(wait.start_ns);
        let goroutine = self.meet(wait.goid);
        goroutine.has_waited = true;
        let (site, goroutine) = (goroutine.site, *goroutine);
        self.site_mut(site).waits_mut().add(duration_ns);
        if let Some(slot) = self.waits.get_mut(usize::from(wait.reason)) {
            slot.get_or_insert_with(Box::default).add(duration_ns);
        }
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
            frames: wait.frames.iter().collect(),
        }));
    }

    /// The goroutine, which is noted as born unseen when it was not known.
    fn meet(&mut self, goid: u64) -> &mut Goroutine {
        let sites = &mut self.sites;
        self.goroutines.entry(goid).or_insert_with(|| {
            if let Some(site) = sites.first_mut() {
                site.met();
            }
            Goroutine {
                birth_ns: 0,
                parent_goid: 0,
                trace: 0,
                site: UNKNOWN_SITE,
                begins_trace: true,
                birth_seen: false,
                has_waited: false,
            }
        })
    }

    /// Begins a new reading of who waits: what the last one found is forgotten.
    pub fn begin_open_waits(&mut self) {
        self.waiting.clear();
        for site in &mut self.sites {
            site.waiting.clear();
        }
    }

    fn open_wait(&mut self, wait: &OpenWait) {
        let site = self.meet(wait.goid).site;
        *self.waiting.entry(wait.reason).or_default() += 1;
        *self.site_mut(site).waiting.entry(wait.reason).or_default() += 1;
    }

    fn site_mut(&mut self, site: u32) -> &mut SiteStats {
        let index = if (site as usize) < self.sites.len() { site as usize } else { UNKNOWN_SITE as usize };
        &mut self.sites[index]
    }

    /// Those that are known to live, in no order.
    pub fn living(&self) -> impl Iterator<Item = Living> + '_ {
        self.goroutines.iter().map(|(&goid, g)| Living { goid, birth_ns: g.birth_seen.then_some(g.birth_ns) })
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

    /// How many wait now, by reason, as of the last reading.
    pub fn waiting(&self) -> impl Iterator<Item = (u8, u64)> {
        self.waiting.iter().map(|(reason, n)| (*reason, *n))
    }

    /// The sites, with `oldest_birth_ns` brought up to date. Walks over all goroutines.
    pub fn sites(&mut self) -> &mut [SiteStats] {
        for site in &mut self.sites {
            site.oldest_birth_ns = None;
        }
        for goroutine in self.goroutines.values().filter(|g| g.birth_seen) {
            if let Some(site) = self.sites.get_mut(goroutine.site as usize) {
                let oldest = site.oldest_birth_ns.get_or_insert(goroutine.birth_ns);
                *oldest = (*oldest).min(goroutine.birth_ns);
            }
        }
        &mut self.sites
    }

    /// Bytes that the table of live goroutines takes, without what goes to the heap for those that wait
    /// for more than one reason.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.goroutines.allocation_size() + self.waits_by_reason.allocation_size()
    }
}

#[cfg(test)]
mod tests;
