//! What is kept of a creation site.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use gotrace_common::Histogram;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::CpuUse;
use crate::tracee::serial;

/// A creation site: the `go` statement and what it starts, as addresses in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SiteKey {
    /// Return address of the `go` statement; 0 when unknown.
    pub created_pc: u64,
    /// Entry of the goroutine's function; 0 when unknown.
    pub entry_pc: u64,
}

/// Figures of a creation site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteStats {
    /// Which one.
    pub key: SiteKey,
    /// Goroutines alive.
    pub alive: u64,
    /// Births since the table was made.
    pub born: u64,
    /// Deaths since the table was made.
    pub died: u64,
    /// How many wait now, by reason, as of the last reading.
    pub waiting: BTreeMap<u8, u64>,
    /// Birth of the oldest one alive, as far as is known; `None` when none is.
    pub oldest_birth_ns: Option<u64>,
    /// Whether births were not seen of some alive: the oldest may be older.
    pub oldest_is_lower_bound: bool,
    /// Births and deaths that were reported before; for differences between reports.
    pub reported: (u64, u64),
    /// What its goroutines have used, as far as they have told.
    #[serde(skip)]
    pub cpu: CpuUse,
    /// What of it was reported before.
    #[serde(skip)]
    pub cpu_reported: CpuUse,
    #[serde(with = "serial::boxed_histogram")]
    waits: Option<Box<Histogram>>,
    #[serde(with = "serial::boxed_histogram")]
    lifetimes: Option<Box<Histogram>>,
    /// Of a walk over all goroutines, empty between two.
    #[serde(skip)]
    sampled_waits: SmallVec<[(u8, u64); 2]>,
}

impl SiteStats {
    pub(super) fn new(key: SiteKey) -> Self {
        Self {
            key,
            alive: 0,
            born: 0,
            died: 0,
            waiting: BTreeMap::new(),
            oldest_birth_ns: None,
            oldest_is_lower_bound: false,
            reported: (0, 0),
            cpu: CpuUse::default(),
            cpu_reported: CpuUse::default(),
            waits: None,
            lifetimes: None,
            sampled_waits: SmallVec::new(),
        }
    }

    /// Histograms that it keeps.
    pub(super) fn histograms(&self) -> usize {
        usize::from(self.waits.is_some()) + usize::from(self.lifetimes.is_some())
    }

    pub(super) fn born(&mut self) {
        self.alive += 1;
        self.born += 1;
    }

    /// One that was born earlier is met for the first time.
    pub(super) fn met(&mut self) {
        self.alive += 1;
    }

    /// One that was met comes from elsewhere.
    pub(super) fn unmeet(&mut self) {
        self.alive = self.alive.saturating_sub(1);
    }

    /// One that a snapshot saw waiting.
    pub(super) fn sampled_wait(&mut self, reason: u8) {
        match self.sampled_waits.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, n)) => *n += 1,
            None => self.sampled_waits.push((reason, 1)),
        }
    }

    /// Adds them to those that a reading showed, here and in the sum of all sites.
    pub(super) fn add_sampled_waits(&mut self, all: &mut HashMap<u8, u64, FixedState>) {
        for (reason, n) in self.sampled_waits.drain(..) {
            *self.waiting.entry(reason).or_default() += n;
            *all.entry(reason).or_default() += n;
        }
    }

    pub(super) fn leave(&mut self, lifetime_ns: Option<u64>) {
        self.alive = self.alive.saturating_sub(1);
        self.died += 1;
        if let Some(lifetime_ns) = lifetime_ns {
            self.lifetimes.get_or_insert_with(Box::default).add(lifetime_ns);
        }
    }

    pub(super) fn waits_mut(&mut self) -> &mut Histogram {
        self.waits.get_or_insert_with(Box::default)
    }

    /// Waits that were sent, of goroutines of this site.
    #[must_use]
    pub fn waits(&self) -> Histogram {
        self.waits.as_deref().copied().unwrap_or_default()
    }

    /// Lifetimes of goroutines of this site whose birth and death were seen.
    #[must_use]
    pub fn lifetimes(&self) -> Histogram {
        self.lifetimes.as_deref().copied().unwrap_or_default()
    }
}
