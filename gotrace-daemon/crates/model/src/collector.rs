//! What the collector takes of a process, and what else stops its world.

use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::Histogram;
use serde::{Deserialize, Serialize};

use crate::{Location, Name};

/// What began a cycle, as outputs name it, by number.
pub const TRIGGERS: [&str; 4] = ["unknown", "heap", "time", "call"];

/// Why the world is stopped, by the runtime's number (`runtime/proc.go`, `stwReason`, Go 1.21 to 1.27). 1 and 2 are the
/// collector's.
pub const STOP_REASONS: [&str; 12] = [
    "unknown",
    "GC mark termination",
    "GC sweep termination",
    "write heap dump",
    "goroutine profile",
    "goroutine profile cleanup",
    "all goroutines stack trace",
    "read mem stats",
    "AllThreadsSyscall",
    "GOMAXPROCS",
    "start trace",
    "stop trace",
];

/// The collector's work and the stops of the world of a process since attaching, and the last ones.
///
/// A pause is counted as the runtime counts it (`/sched/pauses/total`): from the call that stops the world until the
/// processors are woken, at mark termination until the first may go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Collector {
    /// Cycles that ended, by what began them ([`TRIGGERS`]).
    #[serde(with = "crate::wire")]
    pub cycles: BTreeMap<Name, u64>,
    /// Mark phases, of cycles that were seen from their beginning.
    #[serde(with = "crate::wire")]
    pub marking: Histogram,
    /// The collector's pauses.
    #[serde(with = "crate::wire")]
    pub pauses: Histogram,
    /// Other stops of the world, by reason ([`STOP_REASONS`]).
    #[serde(with = "crate::wire")]
    pub stops: BTreeMap<Name, Histogram>,
    /// Assists: goroutines that allocate and do the collector's work for that.
    #[serde(with = "crate::wire")]
    pub assists: Histogram,
    /// Assists by creation site, the most time first.
    pub assists_by: Vec<Assists>,
    /// Cycles that ended within the interval, in their order.
    pub recent: Vec<Cycle>,
    /// Cycles of the interval that are not among them.
    pub recent_left_out: u64,
    /// The longest stops within the interval that were not the collector's, the longest first.
    pub longest: Vec<WorldStop>,
    /// Stops of the interval that are not among them.
    pub longest_left_out: u64,
}

impl Collector {
    /// Whether nothing was seen of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cycles.is_empty() && self.pauses.count == 0 && self.stops.is_empty() && self.assists.count == 0
    }

    /// What came since it was as `before`, with what the interval has of its own.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (trigger, n) in &mut since.cycles {
            *n = n.saturating_sub(before.cycles.get(trigger).copied().unwrap_or(0));
        }
        since.cycles.retain(|_, n| *n > 0);
        since.marking = self.marking.since(&before.marking);
        since.pauses = self.pauses.since(&before.pauses);
        since.assists = self.assists.since(&before.assists);
        for (reason, stops) in &mut since.stops {
            if let Some(before) = before.stops.get(reason) {
                *stops = stops.since(before);
            }
        }
        since.stops.retain(|_, stops| stops.count > 0);
        for assists in &mut since.assists_by {
            let is_it = |a: &&Assists| a.entry == assists.entry && a.created_by == assists.created_by;
            if let Some(before) = before.assists_by.iter().find(is_it) {
                assists.count = assists.count.saturating_sub(before.count);
                assists.total_ns = assists.total_ns.saturating_sub(before.total_ns);
            }
        }
        since.assists_by.retain(|assists| assists.count > 0);
        since.assists_by.sort_by_key(|assists| std::cmp::Reverse(assists.total_ns));
        since
    }

    /// Cycles that ended since attaching.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.cycles.values().sum()
    }
}

/// Assists of goroutines of one creation site since attaching.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assists {
    /// Their entry function.
    #[serde(with = "crate::wire")]
    pub entry: Arc<Location>,
    /// The `go` statement; `None` when unknown.
    #[serde(with = "crate::wire")]
    pub created_by: Option<Arc<Location>>,
    /// How many.
    pub count: u64,
    /// How long they took together.
    pub total_ns: u64,
}

/// A cycle of the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// Its number among those that were seen, from 1.
    pub number: u64,
    /// What began it ([`TRIGGERS`]).
    #[serde(with = "crate::wire")]
    pub trigger: Name,
    /// Where in the program it was asked for, where it was.
    #[serde(with = "crate::wire")]
    pub called_from: Option<Arc<Location>>,
    /// When its mark phase had ended, Unix epoch.
    pub end_unix_nano: u64,
    /// How long it marked; `None` where its beginning was not seen.
    pub mark_ns: Option<u64>,
    /// The pause with which it began; `None` where that was not seen.
    pub sweep_pause_ns: Option<u64>,
    /// The pause with which marking ended.
    pub mark_pause_ns: u64,
    /// Assists meanwhile.
    pub assist_ns: u64,
    /// The same by entry function, the most first; at most three.
    #[serde(with = "crate::wire")]
    pub assisted_by: Vec<(Arc<Location>, u64)>,
}

/// The world was stopped, not for the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorldStop {
    /// Why ([`STOP_REASONS`]).
    #[serde(with = "crate::wire")]
    pub reason: Name,
    /// When, Unix epoch.
    pub start_unix_nano: u64,
    /// For how long.
    pub duration_ns: u64,
    /// The goroutine that did it; 0 when that is not known.
    pub goid: u64,
    /// The runtime's function that was asked to, `runtime.ReadMemStats`.
    #[serde(with = "crate::wire")]
    pub function: Option<Arc<Location>>,
    /// Where in the program it was called.
    #[serde(with = "crate::wire")]
    pub called_from: Option<Arc<Location>>,
}

#[cfg(test)]
mod tests {
    use crate::samples;

    #[test]
    fn what_was_before_is_taken_off() {
        let before = samples::collector();
        assert!(!before.is_empty());
        assert!(before.since(&before).is_empty() && before.since(&before).assists_by.is_empty());
        let mut now = before.clone();
        *now.cycles.entry("call").or_default() += 2;
        now.pauses.add(7);
        let since = now.since(&before);
        assert_eq!((since.count(), since.cycles.get("call")), (2, Some(&2)));
        assert_eq!((since.pauses.count, since.pauses.sum_ns), (1, 7));
        assert_eq!(since.recent, now.recent);
    }
}
