//! Which series a process may have: at most so many ([`SeriesBounds`]), first come, first served, and for good, so
//! that a cumulative series never changes its meaning. What finds no room is summed up in one series a
//! metric, marked `otel.metric.overflow=true`.
//!
//! A wait reason costs two series, a creation site four; the fixed metrics have their own share. All processes
//! together have a bound too: where these are given away a process has fewer reasons and sites of
//! its own, and where not even its fixed metrics fit, its most important figures only.

use std::{collections::HashSet, sync::Arc};

use crate::sink::model::{Location, Site};

/// How many series there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesBounds {
    /// Of one process; at least [`Self::LEAST`].
    pub per_process: usize,
    /// Of all processes together.
    pub all: usize,
}

impl SeriesBounds {
    /// A process's fixed metrics, and what is beyond.
    pub const LEAST: usize = BASE;
}

impl Default for SeriesBounds {
    fn default() -> Self {
        Self { per_process: 200, all: 20_000 }
    }
}

/// Series of a metric whose attribute is one of gotrace's own names (kinds of events, of loss), the
/// one for what is beyond included.
pub(super) const MAX_NAMES: usize = 16;
/// `go.goroutine.count`, `go.schedule.duration`, `gotrace.probe.cost`, engine and level; five metrics
/// by name, of some 40 names in all.
/// The leaks that are proven and those that are suspected, two metrics each with the one for what is beyond,
/// and those refuted.
const FIXED: usize = 5 + 3 * MAX_NAMES + 4 * (LEAKS + 1) + 1;
/// Leaks of a process that have series of their own, and as many suspected ones.
pub(super) const LEAKS: usize = 8;
/// Metrics by wait reason, and by creation site.
const PER_REASON: usize = 2;
const PER_SITE: usize = 4;
/// What a process has beside reasons and sites of its own.
const BASE: usize = FIXED + PER_REASON + PER_SITE;
/// Reasons that find room however many sites there are.
const REASONS_KEPT: usize = 12;

/// A creation site by value.
pub(super) type SiteKey = (Arc<Location>, Option<Arc<Location>>);

/// What is left for all processes.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
    /// What reasons and sites of one process share, their overflow series taken off.
    pool: usize,
}

impl Room {
    pub fn new(bounds: SeriesBounds) -> Self {
        Self { left: bounds.all, pool: bounds.per_process.saturating_sub(BASE) }
    }

    fn take(&mut self, series: usize) -> bool {
        let left = self.left.checked_sub(series);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// A process has ended.
    pub fn give_back(&mut self, admitted: &Admitted) {
        let Admitted { entered, reasons, sites } = admitted;
        self.left += usize::from(*entered) * BASE + PER_REASON * reasons.len() + PER_SITE * sites.len();
    }
}

/// What one process has been given.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    entered: bool,
    reasons: HashSet<Arc<str>>,
    sites: HashSet<SiteKey>,
}

impl Admitted {
    /// Whether there is room for more than a process's most important figures; once there was, for good.
    pub fn enter(&mut self, room: &mut Room) -> bool {
        self.entered = self.entered || room.take(BASE);
        self.entered
    }

    /// Whether it has more than its most important figures.
    pub fn has_entered(&self) -> bool {
        self.entered
    }

    /// Whether a reason has series of its own; gives it some while there is room.
    pub fn reason(&mut self, reason: &Arc<str>, room: &mut Room) -> bool {
        if self.reasons.contains(reason) {
            return true;
        }
        let fits = PER_REASON * (self.reasons.len() + 1) + PER_SITE * self.sites.len() <= room.pool
            && room.take(PER_REASON);
        if fits {
            self.reasons.insert(Arc::clone(reason));
        }
        fits
    }

    /// Whether a site has series of its own; gives it some while there is room.
    pub fn site(&mut self, site: &Site, room: &mut Room) -> Option<SiteKey> {
        let key = (Arc::clone(&site.entry), site.created_by.clone());
        if self.sites.contains(&key) {
            return Some(key);
        }
        let reasons = self.reasons.len().max(REASONS_KEPT);
        if PER_SITE * (self.sites.len() + 1) + PER_REASON * reasons > room.pool || !room.take(PER_SITE) {
            return None;
        }
        self.sites.insert(key.clone());
        Some(key)
    }
}
