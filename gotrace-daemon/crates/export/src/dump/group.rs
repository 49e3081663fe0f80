//! Goroutines that stand at the same place: same stack, state, wait reason, creation and entry.

use std::cmp::Reverse;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use gotrace_inspect::snapshot::{Goroutine, StackId, Status};

/// Goroutines that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// The one with the least goid.
    pub first: &'a Goroutine,
    /// How many.
    pub count: u64,
    /// The greatest goid.
    pub last_goid: u64,
    /// Whether one goroutine made all of them, as far as is known.
    pub same_parent: bool,
    /// When the first of them began to wait, by the runtime's own account; `None` where that is not known of any.
    pub waits_since_ns: Option<u64>,
}

/// What members of a group have in common.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    stack: Option<StackId>,
    status: Status,
    wait_reason: u8,
    flags: [bool; 3],
    created_pc: u64,
    entry_pc: u64,
}

/// Groups goroutines that come by ascending goid: the largest group first, then the oldest.
#[must_use]
pub fn groups<'a>(goroutines: &[&'a Goroutine]) -> Vec<Group<'a>> {
    let mut all: Vec<Group<'a>> = Vec::new();
    let mut places: HashMap<Key, usize, FixedState> = HashMap::default();
    for &goroutine in goroutines {
        let key = Key {
            stack: goroutine.stack,
            status: goroutine.status,
            wait_reason: goroutine.wait_reason,
            flags: [goroutine.is_system(), goroutine.is_locked_to_thread(), goroutine.is_stack_complete()],
            created_pc: goroutine.created_pc,
            entry_pc: goroutine.entry_pc,
        };
        let since = Some(goroutine.wait_since_ns).filter(|since| goroutine.status.is_waiting() && *since > 0);
        let n = *places.entry(key).or_insert(all.len());
        match all.get_mut(n) {
            Some(group) => {
                group.count += 1;
                group.last_goid = goroutine.goid;
                group.same_parent &= group.first.parent_goid == goroutine.parent_goid;
                group.waits_since_ns = group.waits_since_ns.into_iter().chain(since).min();
            }
            None => {
                let last_goid = goroutine.goid;
                let same_parent = true;
                all.push(Group { first: goroutine, count: 1, last_goid, same_parent, waits_since_ns: since });
            }
        }
    }
    all.sort_by_key(|g| (Reverse(g.count), g.first.goid));
    all
}
