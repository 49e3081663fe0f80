//! Which series a process may have: at most so many ([`SeriesBounds`]), first come, first served, and for good, so
//! that a cumulative series never changes its meaning. What finds no room is summed up in one series a
//! metric, marked `otel.metric.overflow=true`.
//!
//! A wait reason costs two series, a creation site four ([`Weights`]); the fixed metrics have their own share. All
//! processes together have a bound too: where these are given away a process has fewer reasons and sites of
//! its own, and where not even its fixed metrics fit, its most important figures only.

use core::net::SocketAddr;
use std::{collections::HashSet, sync::Arc};

use gotrace_common::request::TIMES;

use super::requests::{Routes, STATUSES};
use crate::{Location, Site, TRIGGERS};

/// How many series there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesBounds {
    /// Of one process; at least [`Self::LEAST`].
    pub per_process: usize,
    /// Of all processes together.
    pub all: usize,
    /// Routes of requests of one process that have series of their own, beside those.
    pub routes: usize,
}

impl SeriesBounds {
    /// A process's fixed metrics, and what is beyond, in OTLP.
    pub const LEAST: usize = Weights::OTLP.base();
    /// Routes, where nobody says how many.
    pub const ROUTES: usize = 20;
}

impl Default for SeriesBounds {
    fn default() -> Self {
        Self { per_process: 212, all: 20_000, routes: Self::ROUTES }
    }
}

/// Series of a metric whose label is one of gotrace's own names (kinds of events, of loss), the one for what is
/// beyond included.
pub(super) const MAX_NAMES: usize = 16;
/// Names that such metrics have in all: 16 events, 14 kinds of loss (and 2 of requests, beside these as their series are), 8 of spans that were dropped, 2 that were sampled
/// out, 2 of repairs.
const NAMES: usize = 42;
/// Leaks of a process that have series of their own, and as many suspected ones.
pub(super) const LEAKS: usize = 8;
/// Creation sites of a process whose assists of the collector have series of their own.
pub(super) const ASSISTS: usize = 2;
/// Creation sites of a process whose CPU time has series of its own.
pub(super) const CPU_TIMES: usize = 6;
/// Reasons and functions of a process whose waiting time has series of its own.
pub(super) const WAIT_TIMES: usize = 10;
/// Peers and functions of a process whose waiting has series of its own.
const PEERS: usize = 32;
/// What series cost on an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// A histogram; other series are one.
    pub histogram: usize,
    /// Whether lifetimes are told by creation site, or of all together.
    pub lifetimes_by_site: bool,
    /// Figures that the output has beside the catalogue's.
    pub more: usize,
    /// Reasons that find room however many sites there are.
    pub reasons_kept: usize,
    /// Sites that find room however many reasons there are.
    pub sites_kept: usize,
}

impl Weights {
    /// OTLP: each series is one.
    pub const OTLP: Self =
        Self { histogram: 1, lifetimes_by_site: true, more: 0, reasons_kept: 12, sites_kept: 0 };

    const fn reason(self) -> usize {
        1 + self.histogram
    }

    const fn site(self) -> usize {
        3 + if self.lifetimes_by_site { self.histogram } else { 0 }
    }

    /// What a process has beside reasons and sites of its own: count, cost, engine and level; scheduling delays,
    /// snapshots and pauses; cycles, assists and stops of the world; CPU time, time throttled and time waited; metrics by name; leaks that are proven and
    /// those that are suspected, two metrics each with the one for what is beyond (growth has none), and those refuted;
    /// what is beyond of reasons and sites.
    #[must_use]
    pub const fn base(self) -> usize {
        let lifetimes = if self.lifetimes_by_site { 0 } else { self.histogram };
        let durations = 3 * self.histogram + lifetimes;
        let collector = TRIGGERS.len() + (ASSISTS + 1) + 1;
        let times = collector + (CPU_TIMES + 1) + 1 + (WAIT_TIMES + 1);
        4 + durations + times + NAMES + (4 * LEAKS + 3) + 1 + self.reason() + self.site() + self.more
    }
}

/// A creation site by value.
pub type SiteKey = (Arc<Location>, Option<Arc<Location>>);

/// What is left for all processes.
#[derive(Debug)]
pub struct Room {
    weights: Weights,
    left: usize,
    /// What reasons and sites of one process share, their overflow series taken off.
    pool: usize,
    /// Routes of one process.
    pub(super) routes: usize,
}

impl Room {
    /// All of it.
    #[must_use]
    pub fn new(bounds: SeriesBounds, weights: Weights) -> Self {
        Self {
            weights,
            left: bounds.all,
            pool: bounds.per_process.saturating_sub(weights.base()),
            routes: bounds.routes,
        }
    }

    /// What a route takes of it: its statuses, and its times by state, of which few are not 0.
    pub(super) const fn route(&self) -> usize {
        STATUSES * self.weights.histogram + TIMES
    }

    pub(super) fn take(&mut self, series: usize) -> bool {
        let left = self.left.checked_sub(series);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// A process has ended.
    pub fn give_back(&mut self, admitted: &Admitted) {
        let Admitted { entered, reasons, sites, assists: _, cpu_times: _, wait_times: _, peers, routes } =
            admitted;
        self.left += usize::from(*entered) * self.weights.base()
            + self.weights.reason() * reasons.len()
            + self.weights.site() * sites.len()
            + self.weights.histogram * peers.len()
            + self.route() * routes.len();
    }
}

/// What one process has been given.
#[derive(Debug, Default)]
pub struct Admitted {
    entered: bool,
    reasons: HashSet<Arc<str>>,
    sites: HashSet<SiteKey>,
    assists: HashSet<SiteKey>,
    cpu_times: HashSet<SiteKey>,
    wait_times: HashSet<(Arc<str>, Arc<str>)>,
    peers: HashSet<(SocketAddr, Option<Arc<str>>)>,
    pub(super) routes: Routes,
}

impl Admitted {
    /// Whether there is room for more than a process's most important figures; once there was, for good.
    pub fn enter(&mut self, room: &mut Room) -> bool {
        self.entered = self.entered || room.take(room.weights.base());
        self.entered
    }

    /// Whether it has more than its most important figures.
    #[must_use]
    pub fn has_entered(&self) -> bool {
        self.entered
    }

    /// Whether a reason has series of its own; gives it some while there is room.
    pub fn reason(&mut self, reason: &Arc<str>, room: &mut Room) -> bool {
        if self.reasons.contains(reason) {
            return true;
        }
        let weights = room.weights;
        let fits = weights.reason() * (self.reasons.len() + 1)
            + weights.site() * self.sites.len().max(weights.sites_kept)
            <= room.pool
            && room.take(weights.reason());
        if fits {
            self.reasons.insert(Arc::clone(reason));
        }
        fits
    }

    /// Whether a site's assists have a series of their own; those of the first few have, which a process's own share has
    /// room for.
    pub fn assists(&mut self, entry: &Arc<Location>, created_by: Option<&Arc<Location>>) -> Option<SiteKey> {
        among_first(&mut self.assists, ASSISTS, entry, created_by)
    }

    /// The same of a site's CPU time; `new`: whether it may get a series if it has none.
    pub fn cpu_time(
        &mut self,
        entry: &Arc<Location>,
        created_by: Option<&Arc<Location>>,
        new: bool,
    ) -> Option<SiteKey> {
        let most = if new { CPU_TIMES } else { 0 };
        among_first(&mut self.cpu_times, most, entry, created_by)
    }

    /// Whether waits of a reason in a function have a series of their own; those of the first few have.
    pub fn own_code(&mut self, reason: &Arc<str>, function: &Arc<str>) -> bool {
        let key = (Arc::clone(reason), Arc::clone(function));
        if self.wait_times.len() < WAIT_TIMES {
            self.wait_times.insert(key);
            return true;
        }
        self.wait_times.contains(&key)
    }

    /// Whether waits for a peer in a function have a series of their own, beside a process's own share; gives it one while
    /// there is room.
    pub fn peer(&mut self, (peer, function): (SocketAddr, Option<&Arc<str>>), room: &mut Room) -> bool {
        let key = (peer, function.cloned());
        if self.peers.contains(&key) {
            return true;
        }
        let has = self.peers.len() < PEERS && room.take(room.weights.histogram);
        if has {
            self.peers.insert(key);
        }
        has
    }

    /// Whether a site has series of its own; gives it some while there is room.
    pub fn site(&mut self, site: &Site, room: &mut Room) -> Option<SiteKey> {
        let key = (Arc::clone(&site.entry), site.created_by.clone());
        if self.sites.contains(&key) {
            return Some(key);
        }
        let weights = room.weights;
        let reasons = weights.reason() * self.reasons.len().max(weights.reasons_kept);
        if weights.site() * (self.sites.len() + 1) + reasons > room.pool || !room.take(weights.site()) {
            return None;
        }
        self.sites.insert(key.clone());
        Some(key)
    }
}

fn among_first(
    first: &mut HashSet<SiteKey>,
    most: usize,
    entry: &Arc<Location>,
    created_by: Option<&Arc<Location>>,
) -> Option<SiteKey> {
    let key = (Arc::clone(entry), created_by.cloned());
    if first.len() < most {
        first.insert(key.clone());
    }
    first.contains(&key).then_some(key)
}
