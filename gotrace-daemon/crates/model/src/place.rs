//! Places of waits: where in the program's own code goroutines wait, how often and how long.
//!
//! Made of waits that were sent with their stacks, so of those of at least the threshold ([`Places::min_wait_ns`]);
//! shorter ones are in [`crate::Interval::waits`] alone. Bounded: what found no room is summed up ([`Places::others`]).

use core::net::SocketAddr;
use std::{collections::BTreeMap, fmt, sync::Arc};

use gotrace_common::Histogram;
use serde::{Deserialize, Serialize};

use crate::Location;

/// Where goroutines waited since attaching.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Places {
    /// Those that took longest first.
    pub places: Vec<Place>,
    /// Waits at places for which there was no room.
    #[serde(with = "crate::wire")]
    pub others: Histogram,
    /// The shortest wait that counts, in nanoseconds; `None` where that is not known.
    pub min_wait_ns: Option<u64>,
}

/// Who is at the other end of a connection that the process opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Peer {
    /// Its address and port.
    At(SocketAddr),
    /// One of those that are not told apart, as there are too many.
    Other,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Other => f.write_str("other"),
        }
    }
}

/// A place where goroutines wait for one reason, and one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Go's own wait reason, or `syscall`.
    pub reason: Arc<str>,
    /// The first frame of the main module, else of another one, else of the standard library outside of what waits on
    /// behalf of its callers; the outermost frame where there is none, and `None` where no frame is known.
    #[serde(with = "crate::wire")]
    pub at: Option<Arc<Location>>,
    /// Whether that is in the main module.
    pub own: bool,
    /// For whom, where they wait for connections that the process opened.
    pub peer: Option<Peer>,
    /// The stack of the longest wait, innermost first, at most [`Self::MAX_STACK`] frames.
    #[serde(with = "crate::wire")]
    pub stack: Vec<Arc<Location>>,
    /// Its waits since attaching.
    #[serde(with = "crate::wire")]
    pub waits: Histogram,
    /// Those that ended within the interval, and how long they took together.
    pub recent: (u64, u64),
    /// Whether it is the runtime's own: its helpers wait there, none of the program's goroutines.
    pub system: bool,
}

impl Place {
    /// Frames of a stack that are told.
    pub const MAX_STACK: usize = 32;

    /// Whether the stack goes on where the goroutine was started.
    #[must_use]
    pub fn is_stack_complete(&self) -> bool {
        self.stack.last().is_some_and(|outermost| &*outermost.function == "runtime.goexit")
    }
}

/// Whom a function waits for, where that is known.
pub type WaitedFor = (Peer, Option<Arc<str>>);
/// A wait reason, a function, and nanoseconds spent so.
pub type WaitTime = (Arc<str>, Arc<str>, u64);

impl Places {
    /// Time that was waited since attaching; `system`: with that of the runtime's own goroutines.
    #[must_use]
    pub fn ns(&self, system: bool) -> u64 {
        let shown = self.places.iter().filter(|p| system || !p.system);
        shown.fold(self.others.sum_ns, |sum, place| sum.saturating_add(place.waits.sum_ns))
    }

    /// The first so many places, and the waits at all others.
    #[must_use]
    pub fn first(&self, most: usize) -> (&[Place], Histogram) {
        let (told, more) = self.places.split_at(self.places.len().min(most));
        let mut others = self.others;
        more.iter().for_each(|place| others.merge(&place.waits));
        (told, others)
    }

    /// How long was waited for each peer, and in which function; the order is theirs.
    #[must_use]
    pub fn by_peer(&self) -> BTreeMap<WaitedFor, Histogram> {
        let mut sums: BTreeMap<WaitedFor, Histogram> = BTreeMap::new();
        for place in &self.places {
            if let Some(peer) = place.peer {
                let function = place.at.as_ref().map(|at| Arc::clone(&at.function));
                sums.entry((peer, function)).or_default().merge(&place.waits);
            }
        }
        sums
    }

    /// Time that was waited by reason and function, the longest first, and that of which the function is not known;
    /// without the runtime's own.
    #[must_use]
    pub fn by_function(&self) -> (Vec<WaitTime>, u64) {
        let mut sums: BTreeMap<(&Arc<str>, &Arc<str>), u64> = BTreeMap::new();
        let mut unknown = self.others.sum_ns;
        for place in self.places.iter().filter(|p| !p.system) {
            let sum = match &place.at {
                Some(at) => sums.entry((&place.reason, &at.function)).or_default(),
                None => &mut unknown,
            };
            *sum = sum.saturating_add(place.waits.sum_ns);
        }
        let mut all: Vec<_> = sums
            .into_iter()
            .map(|((reason, function), ns)| (Arc::clone(reason), Arc::clone(function), ns))
            .collect();
        all.sort_by_key(|(.., ns)| std::cmp::Reverse(*ns));
        (all, unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(reason: &str, function: Option<&str>, line: u32, ns: u64) -> Place {
        let at = |function: &str| Location { function: function.into(), file: "/m.go".into(), line };
        let mut waits = Histogram::default();
        waits.add(ns);
        Place {
            reason: reason.into(),
            at: function.map(|f| Arc::new(at(f))),
            own: true,
            peer: None,
            stack: Vec::new(),
            waits,
            recent: (1, ns),
            system: function.is_some_and(|f| f.starts_with("runtime.")),
        }
    }

    #[test]
    fn lines_of_a_function_are_summed_up() {
        let mut others = Histogram::default();
        others.add(7);
        let places = Places {
            places: vec![
                place("select", Some("main.a"), 1, 30),
                place("select", Some("main.b"), 1, 40),
                place("select", Some("main.a"), 2, 20),
                place("sleep", Some("main.a"), 3, 5),
                place("sleep", None, 0, 3),
                place("GC worker (idle)", Some("runtime.gcBgMarkWorker"), 9, 1000),
            ],
            others,
            min_wait_ns: None,
        };
        let (by_function, unknown) = places.by_function();
        let told: Vec<_> = by_function.iter().map(|(r, f, ns)| (&**r, &**f, *ns)).collect();
        assert_eq!(told, [("select", "main.a", 50), ("select", "main.b", 40), ("sleep", "main.a", 5)]);
        assert_eq!(unknown, 10);
        assert_eq!((places.ns(true), places.ns(false)), (1105, 105));
        let (told, rest) = places.first(4);
        assert_eq!((told.len(), rest.count, rest.sum_ns), (4, 3, 1010));
        assert_eq!(places.first(99), (&*places.places, places.others));
    }
}
