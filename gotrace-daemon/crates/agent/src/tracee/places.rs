//! A tracee's waits by place, put together from its table's stacks: those that are at one place in the program's own code,
//! of one reason and for one peer are one, with the stack of the longest wait as an example.
//!
//! Input: stacks in numbers, and what names addresses, which are asked for once each. Output: the model's [`Places`].

use std::{cmp::Reverse, sync::Arc};

use foldhash::fast::FixedState;
use gotrace_common::{Histogram, ROW_SYSCALL};
use gotrace_export::contention::{NameAddress, Waits, WaitsAt};
use gotrace_go::{Origin, is_system_reason};
use gotrace_model::{Level, Peer, Place, Places};
use hashbrown::{HashMap, hash_map::Entry};

use super::{Counted, Names, Tracee};

/// A place while it is put together.
struct Sum {
    place: Place,
    /// The stack of its longest wait.
    longest: (u64, Box<[u64]>),
}

impl Tracee {
    /// Its waits since tracing began; `None` where it never had a level that sees them.
    pub(crate) fn waits_now(&self, counted: &Counted, names: NameAddress) -> Option<Waits> {
        let levels = self.levels(counted.now_ns).ns;
        let seen = |level: &Level| levels.get(level.name()).copied().unwrap_or_default();
        let seen_ns = [Level::Waits, Level::Full].iter().map(seen).sum();
        if seen_ns == 0 {
            return None;
        }
        let stacks = self.table.stacks_seen();
        // Those that differ in their peer alone are one.
        let mut sums: HashMap<(u8, &[u64]), (u64, u64), FixedState> = HashMap::default();
        for stack in stacks.seen().iter().filter(|s| u32::from(s.reason) != ROW_SYSCALL) {
            let sum = sums.entry((stack.reason, &stack.frames)).or_default();
            let (count, ns) = stack.sum();
            *sum = (sum.0.saturating_add(count), sum.1.saturating_add(ns));
        }
        let at = |((reason, frames), sum): ((u8, &[u64]), _)| WaitsAt {
            reason: self.reason(reason),
            frames: frames.into(),
            sum,
        };
        let by_reason = self.waits(counted);
        Some(Waits {
            pid: self.pid(),
            began_unix_nano: self.began_unix_nano(),
            now_unix_nano: self.facts.clock.unix_nano(counted.now_ns),
            seen_ns,
            stacks: sums.into_iter().map(at).collect(),
            by_reason: by_reason.into_iter().map(|(reason, h)| (reason, (h.count, h.sum_ns))).collect(),
            without_room: stacks.others().count,
            lost: self.lost(counted).get("ring_wait").copied().unwrap_or_default(),
            min_wait_ns: stacks.min_wait_ns(),
            names,
        })
    }

    /// Goroutines that are proven to be leaked, by ascending id.
    pub(crate) fn proven(&self) -> Vec<u64> {
        self.findings.proven()
    }

    /// Where waits of at least the threshold were, and what of that is new since the last call.
    pub(super) fn places(&mut self, names: &dyn Names) -> Places {
        let Self { table, symbols, facts, .. } = self;
        let reasons = &facts.reasons;
        let mut sums: Vec<Sum> = Vec::new();
        let mut known: HashMap<_, usize, FixedState> = HashMap::default();
        let stacks = table.stacks();
        let peers = stacks.peers().clone();
        for stack in stacks.stacks() {
            let frame = symbols.own_code(&stack.frames, names);
            let own = frame.as_ref().is_some_and(|frame| frame.origin == Origin::Own);
            let at = frame.map(|frame| frame.at);
            let peer = stack.peer.map(|number| peers.get(number).map_or(Peer::Other, Peer::At));
            let number = match known.entry((stack.reason, at.clone(), peer)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let reason = reasons.get(usize::from(stack.reason)).cloned();
                    let reason = reason.unwrap_or_else(|| Arc::from("unspecified"));
                    let of_runtime = at.as_deref().is_some_and(|at| at.function.starts_with("runtime."));
                    let place = Place {
                        system: of_runtime || is_system_reason(&reason),
                        reason,
                        at,
                        own,
                        peer,
                        stack: Vec::new(),
                        waits: Histogram::default(),
                        recent: (0, 0),
                    };
                    sums.push(Sum { place, longest: (0, Box::default()) });
                    *new.insert(sums.len() - 1)
                }
            };
            let Some(Sum { place, longest }) = sums.get_mut(number) else { continue };
            stack.add_to(&mut place.waits);
            let (count, ns) = stack.report();
            place.recent = (place.recent.0.saturating_add(count), place.recent.1.saturating_add(ns));
            // Of two that are as long the one that came first.
            if stack.max_ns() > longest.0 || longest.1.is_empty() {
                *longest = (stack.max_ns(), stack.frames.clone());
            }
        }
        let (others, min_wait_ns) = (*stacks.others(), stacks.min_wait_ns());
        for Sum { place, longest } in &mut sums {
            for address in &longest.1 {
                place.stack.extend(symbols.frames(*address, names).iter().map(|frame| Arc::clone(&frame.at)));
            }
            place.stack.truncate(Place::MAX_STACK);
        }
        let mut places: Vec<Place> = sums.into_iter().map(|sum| sum.place).collect();
        places.sort_by(|a, b| {
            let by = |p: &Place| Reverse(p.waits.sum_ns);
            let longest = by(a).cmp(&by(b));
            longest.then_with(|| (&a.at, &a.reason, a.peer).cmp(&(&b.at, &b.reason, b.peer)))
        });
        Places { places, others, min_wait_ns }
    }
}
