//! The table as values that can be written and read: its frame, and its goroutines in parts of any size, so that a
//! table of millions goes through a bounded buffer.
//!
//! What was read needs not come from a table: numbers of sites that there are not are taken for the unknown one.

use gotrace_common::Histogram;
use serde::{Deserialize, Serialize};

use super::{ByReason, Goroutine, Look, SiteKey, SiteStats, Table, Totals, reconcile::Reconciling};
use crate::tracee::serial;

/// The table without its goroutines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableState {
    sites: Vec<SiteStats>,
    #[serde(with = "serial::rows")]
    waits: Vec<(u8, Histogram)>,
    waiting: Vec<(u8, u64)>,
    totals: Totals,
    knows_main: bool,
    trace_root_age_ns: u64,
    long_wait_ns: u64,
    limit: u64,
    began_ns: u64,
    /// Deaths since a snapshot was ordered, and that snapshot where it is being held against the table.
    reconciling: Option<(Vec<u64>, Option<Look>)>,
    refused: (u64, u64),
    generation: u8,
    seeded: bool,
    sampled: bool,
}

/// A goroutine of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GoroutineState {
    goid: u64,
    birth_ns: u64,
    parent_goid: u64,
    trace: u64,
    site: u32,
    flags: u8,
    mark: u8,
    wait: u8,
    missing: bool,
    waits: Vec<(u8, u64)>,
}

impl Table {
    /// The table without its goroutines.
    #[must_use]
    pub fn state(&self) -> TableState {
        TableState {
            sites: self.sites.clone(),
            waits: self.waits().map(|(reason, histogram)| (reason, *histogram)).collect(),
            waiting: self.waiting().collect(),
            totals: self.totals,
            knows_main: self.knows_main,
            trace_root_age_ns: self.trace_root_age_ns,
            long_wait_ns: self.long_wait_ns,
            limit: self.limit as u64,
            began_ns: self.began_ns,
            reconciling: self.reconciling.as_deref().map(|r| (r.exits.iter().copied().collect(), r.look)),
            refused: (self.refused_now, self.refused_before),
            generation: self.generation,
            seeded: self.seeded,
            sampled: self.sampled,
        }
    }

    /// Its goroutines.
    pub fn goroutines(&self) -> impl Iterator<Item = GoroutineState> + '_ {
        self.goroutines.iter().map(|(&goid, g)| {
            let Goroutine { birth_ns, parent_goid, trace, site, flags, mark, wait } = *g;
            let waits = self.waits_by_reason.get(&goid).filter(|_| g.is(Goroutine::HAS_WAITED));
            let waits = waits.map(|sums| sums.to_vec()).unwrap_or_default();
            let missing = self.missing.contains(&goid);
            GoroutineState { goid, birth_ns, parent_goid, trace, site, flags, mark, wait, missing, waits }
        })
    }

    /// The table that this is the frame of; [`Self::restore`] puts the goroutines in.
    #[must_use]
    pub fn from_state(state: TableState) -> Self {
        let mut table = Self::new(state.trace_root_age_ns);
        table.site_index = (0..).zip(&state.sites).skip(1).map(|(number, site)| (site.key, number)).collect();
        table.sites = state.sites;
        if table.sites.is_empty() {
            table.sites.push(SiteStats::new(SiteKey { created_pc: 0, entry_pc: 0 }));
        }
        for (reason, histogram) in state.waits {
            if let Some(slot) = table.waits.get_mut(usize::from(reason)) {
                *slot = Some(Box::new(histogram));
            }
        }
        table.waiting = state.waiting.into_iter().collect();
        table.totals = state.totals;
        table.knows_main = state.knows_main;
        table.long_wait_ns = state.long_wait_ns;
        table.limit = usize::try_from(state.limit).unwrap_or(usize::MAX);
        table.began_ns = state.began_ns;
        // Whether events told of more since the last snapshot is not written: they may have.
        table.refused_since = state.totals.refused > 0;
        let refused = table.refused_since;
        table.reconciling = state
            .reconciling
            .map(|(exits, look)| Box::new(Reconciling { exits: exits.into_iter().collect(), look, refused }));
        (table.refused_now, table.refused_before) = state.refused;
        table.generation = state.generation;
        table.seeded = state.seeded;
        table.sampled = state.sampled;
        table
    }

    /// Puts a goroutine in.
    pub fn restore(&mut self, state: &GoroutineState) {
        let GoroutineState {
            goid,
            birth_ns,
            parent_goid,
            trace,
            site,
            flags,
            mark,
            wait,
            missing,
            ref waits,
        } = *state;
        let goroutine = Goroutine { birth_ns, parent_goid, trace, site, flags, mark, wait };
        self.goroutines.insert(goid, goroutine);
        if goroutine.is(Goroutine::HAS_WAITED) {
            self.waits_by_reason.insert(goid, waits.iter().copied().collect::<ByReason>());
        }
        if missing {
            self.missing.insert(goid);
        }
    }
}
