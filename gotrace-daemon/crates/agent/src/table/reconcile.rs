//! A snapshot held against the table: goroutines that the table does not know become known, those that
//! are gone are taken out, and what was mended is counted.
//!
//! Pure: the snapshot comes as [`Sighting`]s and the times between which they were made. What makes it
//! right while events go on: the caller announces a snapshot before it begins ([`Table::watch_exits`]),
//! so that a death during it is remembered and undoes nothing; and holds it against the table when every
//! event up to its end has been applied. No birth, death or span is made up: a goroutine that a snapshot
//! found has a birth that was not seen, and one that it missed is taken out only when the next misses it
//! too and it gave no sign of life in between.

use foldhash::fast::FixedState;
use gotrace_common::ROW_SYSCALL;
use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use super::{CpuUse, Goroutine, NO_WAIT, SiteKey, Table, UNKNOWN_SITE};

/// A goroutine born this long before a snapshot began must be in it: the runtime lists a goroutine
/// before the probe of its birth is hit, but clocks are read one after the other.
const MARGIN_NS: u64 = 1_000_000;

/// A goroutine as a snapshot saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Its id.
    pub goid: u64,
    /// Its creator; 0 when the runtime made it, or the version of Go does not record it.
    pub parent_goid: u64,
    /// Return address of the `go` statement; 0 when there is none.
    pub created_pc: u64,
    /// Entry of its function; 0 for a C thread's call into Go, whose goid comes and goes.
    pub entry_pc: u64,
    /// Number of its wait reason, or `ROW_SYSCALL`; `None` when it runs, could run, or that is not wanted.
    pub wait: Option<u8>,
}

/// A snapshot's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When reading began, monotonic clock.
    pub began_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Whether every entry of the runtime's list was read and made sense.
    pub complete: bool,
}

/// What is between [`Table::watch_exits`] and [`Table::end_reconcile`].
#[derive(Debug, Default)]
pub(super) struct Reconciling {
    pub(super) exits: HashSet<u64, FixedState>,
    pub(super) look: Option<Look>,
    /// Whether events told meanwhile of goroutines for which there was no room.
    pub(super) refused: bool,
}

impl Table {
    /// From now on what a snapshot shows of births and deaths is all there is (no events): both are counted
    /// from differences between snapshots.
    pub fn become_sampled(&mut self) {
        self.sampled = true;
    }

    /// Events tell of births and deaths again, from `time_ns` (monotonic) on. Who lived then is known after
    /// the next snapshot that sees all.
    pub fn become_traced(&mut self, time_ns: u64) {
        self.sampled = false;
        self.seeded = false;
        self.knows_main = false;
        self.begin(time_ns);
    }

    /// Waits are not watched any more: snapshots tell of them, also of those that events told of before.
    pub fn forget_parks(&mut self) {
        self.begin_open_waits();
        self.forget_cpu();
        self.goroutines.values_mut().for_each(|g| g.flags &= !Goroutine::PARK_SEEN);
    }

    /// Every probe is in place from this time on (monotonic): a death before it can have been missed without
    /// anything being lost.
    pub fn begin(&mut self, time_ns: u64) {
        self.began_ns = time_ns;
    }

    /// A snapshot is about to begin: deaths are remembered from now on.
    pub fn watch_exits(&mut self) {
        self.reconciling = Some(Box::default());
    }

    /// There is no snapshot after all.
    pub fn forget_exits(&mut self) {
        self.reconciling = None;
    }

    /// Holds a whole snapshot against the table. Every event up to its end must have been applied.
    pub fn reconcile(&mut self, look: Look, sightings: &[Sighting]) {
        self.begin_reconcile(look);
        self.sight(sightings, true);
        self.end_reconcile();
    }

    /// Begins to hold a snapshot against the table; its sightings follow, in as many parts as is wanted,
    /// with events in between.
    pub fn begin_reconcile(&mut self, look: Look) {
        self.generation = if self.generation == u8::MAX { 1 } else { self.generation + 1 };
        if self.generation == 1 {
            // The number was in use 255 snapshots ago.
            self.goroutines.values_mut().for_each(|g| g.mark = 0);
        }
        self.reconciling.get_or_insert_default().look = Some(look);
    }

    /// Takes a part of the sightings. `syscalls_told`: events tell of system calls; where they tell of waits alone, the
    /// snapshot tells who is in one.
    pub fn sight(&mut self, sightings: &[Sighting], syscalls_told: bool) {
        for sighting in sightings {
            let Some(known) = self.goroutines.get_mut(&sighting.goid) else {
                self.add(sighting);
                continue;
            };
            known.mark = self.generation;
            let followed = !self.sampled && known.is(Goroutine::BIRTH_SEEN | Goroutine::PARK_SEEN);
            let told = |wait: &u8| !syscalls_told && u32::from(*wait) == ROW_SYSCALL;
            known.wait = sighting.wait.filter(|wait| !followed || told(wait)).unwrap_or(NO_WAIT);
            let site = known.site;
            // Met in a wait before the first snapshot came.
            if site == UNKNOWN_SITE && sighting.entry_pc != 0 {
                self.place(sighting);
            } else if self.is_wrapper_of(site, sighting) {
                self.unwrap_entry(sighting);
            }
        }
    }

    fn add(&mut self, sighting: &Sighting) {
        let Some(Reconciling { exits, look: Some(look), .. }) = self.reconciling.as_deref() else { return };
        if exits.contains(&sighting.goid) {
            return;
        }
        if self.goroutines.len() >= self.limit {
            self.refused_now += 1;
            return;
        }
        let key = key(sighting);
        let goroutine = Goroutine {
            // At the latest.
            birth_ns: look.ended_ns,
            parent_goid: sighting.parent_goid,
            trace: 0,
            site: self.site_of(key),
            flags: Goroutine::BEGINS_TRACE,
            mark: self.generation,
            wait: sighting.wait.unwrap_or(NO_WAIT),
        };
        self.goroutines.insert(sighting.goid, goroutine);
        self.add_to(goroutine.site);
    }

    /// Tells one that was met earlier where it comes from.
    fn place(&mut self, sighting: &Sighting) {
        let site = self.site_of(key(sighting));
        if let Some(goroutine) = self.goroutines.get_mut(&sighting.goid) {
            goroutine.site = site;
            goroutine.parent_goid = sighting.parent_goid;
            self.site_mut(UNKNOWN_SITE).unmeet();
            self.add_to(site);
            self.place_cpu(sighting.goid, site);
        }
    }

    /// From now on these entries are wrappers that are replaced by what a snapshot says that they run.
    pub fn set_wrappers(&mut self, entries: &[u64]) {
        self.wrappers = entries.iter().copied().collect();
    }

    /// These entries, in no order.
    pub fn wrappers(&self) -> impl Iterator<Item = u64> + '_ {
        self.wrappers.iter().copied()
    }

    /// Whether all that is known of a goroutine's entry is the wrapper around what a snapshot says that it runs.
    fn is_wrapper_of(&self, site: u32, sighting: &Sighting) -> bool {
        let known = self.sites.get(site as usize).map_or(0, |site| site.key.entry_pc);
        known != sighting.entry_pc
            && sighting.entry_pc != 0
            && self.wrappers.contains(&known)
            && !self.wrappers.contains(&sighting.entry_pc)
    }

    /// Moves a goroutine to the site of what it runs. Its birth, and what it has used, stay counted where they were.
    fn unwrap_entry(&mut self, sighting: &Sighting) {
        let site = self.site_of(key(sighting));
        if let Some(goroutine) = self.goroutines.get_mut(&sighting.goid) {
            let old = std::mem::replace(&mut goroutine.site, site);
            self.site_mut(old).unmeet();
            self.site_mut(site).met();
        }
    }

    /// A site has one more, whose birth was not seen.
    fn add_to(&mut self, site: u32) {
        // Nobody is born older than the table, or by a C thread's call into Go.
        if self.is_seeded() && site != UNKNOWN_SITE {
            self.site_mut(site).born();
            self.totals.born += 1;
            self.totals.births_mended += u64::from(!self.sampled);
        } else {
            self.site_mut(site).met();
        }
    }

    /// All sightings were taken: takes out who is gone.
    pub fn end_reconcile(&mut self) {
        let Some(Reconciling { look: Some(look), refused, .. }) = self.reconciling.take().map(|r| *r) else {
            return;
        };
        let (now, before) = (std::mem::take(&mut self.refused_now), self.refused_before);
        // Those that the last one found too many as well were counted; where events tell of births, when they were born.
        if self.sampled || !self.is_seeded() {
            self.totals.refused += now.saturating_sub(before);
        }
        self.refused_before = now;
        // One that was born before the snapshot began is in it, if it shows all.
        self.refused_since = if look.complete { refused } else { self.refused_since || before > 0 };
        let before = look.began_ns.saturating_sub(MARGIN_NS);
        let absent: Vec<u64> = self
            .goroutines
            .iter()
            .filter(|(_, g)| g.mark != self.generation && g.birth_ns < before)
            .map(|(goid, _)| *goid)
            .collect();
        let missed = std::mem::take(&mut self.missing);
        for goid in absent {
            // Without events nothing contradicts a snapshot that saw everyone.
            if missed.contains(&goid) || self.sampled && look.complete {
                self.take_out(goid);
            } else {
                self.missing.insert(goid);
            }
        }
        self.seeded |= look.complete;
    }

    fn take_out(&mut self, goid: u64) {
        let Some(goroutine) = self.goroutines.remove(&goid) else { return };
        self.waits_by_reason.remove(&goid);
        self.end_cpu(goid, goroutine.site, CpuUse::default());
        if self.site_mut(goroutine.site).key.entry_pc == 0 {
            // A C thread's call into Go has returned, or one that was met once and never placed.
            self.site_mut(goroutine.site).unmeet();
            return;
        }
        self.totals.died += 1;
        // No snapshot ever saw it: it died while the probes were put in place.
        let early = goroutine.mark == 0 && goroutine.birth_ns < self.began_ns;
        self.totals.deaths_mended += u64::from(!self.sampled && !early);
        self.site_mut(goroutine.site).leave(None);
    }

    /// An event of the goroutine: it lives, or it has ended and need not be found out.
    pub(super) fn heard_of(&mut self, goid: u64) {
        if !self.missing.is_empty() {
            self.missing.remove(&goid);
        }
    }

    pub(super) fn remember_exit(&mut self, goid: u64) {
        self.heard_of(goid);
        if let Some(reconciling) = &mut self.reconciling {
            reconciling.exits.insert(goid);
        }
    }

    /// Whether everyone who lived when tracing began is known: from the first goroutine on, or by a
    /// snapshot that saw all.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        self.seeded || self.knows_main
    }

    /// Whether a snapshot missed goroutines that the table has: the next one decides.
    #[must_use]
    pub fn doubts(&self) -> bool {
        !self.missing.is_empty()
    }
}

fn key(sighting: &Sighting) -> SiteKey {
    SiteKey { created_pc: sighting.created_pc, entry_pc: sighting.entry_pc }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
