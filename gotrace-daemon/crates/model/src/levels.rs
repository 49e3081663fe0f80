//! At which levels a process was traced, and which figures are incomplete because it was not traced at the one
//! that is wanted all the time.
//!
//! Levels go by their names, as outputs have them: `full`, `waits`, `lifecycle`, and `sampled` without probes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Name;

/// At which levels a process was traced since attaching, and why at lower ones than was wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// The level that is wanted, a name as of [`crate::Interval::level`]; empty where nobody wanted anything.
    #[serde(with = "crate::wire")]
    pub wanted: Name,
    /// Nanoseconds at each level since attaching, by name. Levels that it never had are left out.
    #[serde(with = "crate::wire")]
    pub ns: BTreeMap<Name, u64>,
    /// The change that ended the interval; `None` where another thing did.
    pub change: Option<LevelChange>,
    /// The share of the process's CPU time that the probes may take; `None` for as much as they take.
    pub budget: Option<f64>,
}

/// A change of the level, made to keep within the budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelChange {
    /// The level before; the interval's figures were gathered at it.
    #[serde(with = "crate::wire")]
    pub from: Name,
    /// The level from now on.
    #[serde(with = "crate::wire")]
    pub to: Name,
    /// What the probes took of the process's CPU time when that was decided; 0 for none.
    pub probe_cost_share: f64,
}

impl LevelChange {
    /// Whether less is traced than before.
    #[must_use]
    pub fn is_lower(&self) -> bool {
        rank(self.to) < rank(self.from)
    }
}

/// Levels by how much they tell, least first: `sampled`, `lifecycle`, `waits`, `full`.
fn rank(level: &str) -> usize {
    ["lifecycle", "waits", "full"].iter().position(|name| *name == level).map_or(0, |at| at + 1)
}

impl Levels {
    /// Nanoseconds at lower levels than this one, which was wanted; 0 where it was not.
    #[must_use]
    pub fn below_ns(&self, level: &str) -> u64 {
        if rank(self.wanted) < rank(level) {
            return 0;
        }
        self.ns.iter().filter(|(name, _)| rank(name) < rank(level)).map(|(_, ns)| ns).sum()
    }

    /// Nanoseconds at lower levels than the one that is wanted.
    #[must_use]
    pub fn lowered_ns(&self) -> u64 {
        self.below_ns(self.wanted)
    }

    /// The fields of an interval that are incomplete, as there were no probes for them all the time.
    #[must_use]
    pub fn incomplete(&self) -> Vec<&'static str> {
        let kinds: [(&str, &[&'static str]); 3] = [
            ("lifecycle", &["born", "died"]),
            ("waits", &["waits", "waits_at", "cpu_ns", "spans"]),
            ("full", &["schedule_delay_ns", "syscall_ns"]),
        ];
        let mut fields = Vec::new();
        for (level, names) in kinds {
            if self.below_ns(level) > 0 {
                fields.extend_from_slice(names);
            }
        }
        // A goroutine whose birth or death was not seen has no span either.
        if fields.contains(&"born") && !fields.contains(&"spans") {
            fields.push("spans");
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(wanted: &'static str, ns: &[(&'static str, u64)]) -> Levels {
        Levels { wanted, ns: ns.iter().copied().collect(), ..Levels::default() }
    }

    #[test]
    fn what_was_given_up_is_incomplete_and_nothing_else() {
        let none: [&str; 0] = [];
        assert_eq!(levels("full", &[("full", 5)]).incomplete(), none);
        assert_eq!(levels("sampled", &[("sampled", 5)]).incomplete(), none, "nobody wanted more");
        assert_eq!(levels("lifecycle", &[("lifecycle", 5), ("waits", 1)]).incomplete(), none);
        let lowered = levels("full", &[("full", 5), ("waits", 2)]);
        assert_eq!(lowered.incomplete(), ["schedule_delay_ns", "syscall_ns"]);
        let lowered = levels("waits", &[("waits", 5), ("lifecycle", 2)]);
        assert_eq!(lowered.incomplete(), ["waits", "waits_at", "cpu_ns", "spans"]);
        let lowered = levels("lifecycle", &[("sampled", 2)]);
        assert_eq!(lowered.incomplete(), ["born", "died", "spans"]);
        let lowered = levels("full", &[("full", 5), ("lifecycle", 2), ("sampled", 3)]);
        assert_eq!(
            lowered.incomplete(),
            ["born", "died", "waits", "waits_at", "cpu_ns", "spans", "schedule_delay_ns", "syscall_ns"]
        );
        assert_eq!((lowered.below_ns("lifecycle"), lowered.below_ns("waits")), (3, 5));
        assert_eq!(lowered.lowered_ns(), 5);
    }
}
