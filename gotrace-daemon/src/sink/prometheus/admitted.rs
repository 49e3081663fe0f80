//! Which series of its own a creation site or a wait reason has on the page: first come, first served, and
//! for good, so that a total never changes its meaning.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use crate::sink::model::Location;

/// Creation sites of one process that have series of their own.
pub(super) const SITES: usize = 10;
/// Wait reasons of one process that have.
pub(super) const REASONS: usize = 7;

/// A creation site by value.
pub(super) type Site = (Arc<Location>, Option<Arc<Location>>);

/// What one process has been given.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    sites: HashSet<Site>,
    reasons: HashSet<Arc<str>>,
}

impl Admitted {
    pub fn site(&mut self, site: &Site) -> bool {
        admit(&mut self.sites, site, SITES)
    }

    pub fn reason(&mut self, reason: &Arc<str>) -> bool {
        admit(&mut self.reasons, reason, REASONS)
    }
}

fn admit<K: Clone + Eq + Hash>(known: &mut HashSet<K>, key: &K, limit: usize) -> bool {
    if known.contains(key) {
        return true;
    }
    let fits = known.len() < limit;
    if fits {
        known.insert(key.clone());
    }
    fits
}
