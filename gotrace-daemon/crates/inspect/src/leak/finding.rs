//! What is reported.

use std::{cmp::Reverse, collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Accepted, Awaited};
use crate::{
    heap::Evidence,
    snapshot::{StackFrame, Status, Wait, WaitObject},
};

/// Why goroutines are believed not to finish, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What they wait on cannot be reached by any goroutine that can still run: proven from the heap.
    Unreachable,
    /// They wait for ever by the language's rules, or for locks of each other.
    Deadlock,
    /// They wait for a member of a pool that hands out none: those that keep the members stand still.
    Stalled,
    /// There are more and more of them.
    Growing,
    /// They have not moved for long, where others do.
    Stuck,
    /// No other goroutine refers to what they wait on, as far as stacks tell.
    Orphaned,
    /// They were alive when the program ended.
    LeftBehind,
}

impl Verdict {
    /// All of them, the worst first.
    pub const ALL: [Self; 7] = [
        Self::Unreachable,
        Self::Deadlock,
        Self::Stalled,
        Self::Growing,
        Self::Stuck,
        Self::Orphaned,
        Self::LeftBehind,
    ];

    /// The name that outputs and arguments use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Deadlock => "deadlock",
            Self::Stalled => "stalled",
            Self::Growing => "growing",
            Self::Stuck => "stuck",
            Self::Orphaned => "orphaned",
            Self::LeftBehind => "left_behind",
        }
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.name() == name)
    }
}

impl FromStr for Verdict {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::from_name(name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("`{name}` is not a verdict: expected {known}")
        })
    }
}

/// A duration that is known within bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtLeastAtMost {
    /// Never more than the truth.
    pub at_least_ns: u64,
    /// Never less than the truth; `None` when nothing bounds it.
    pub at_most_ns: Option<u64>,
}

impl AtLeastAtMost {
    /// The bounds of the longest of two durations.
    #[must_use]
    pub fn longest(self, other: Self) -> Self {
        Self {
            at_least_ns: self.at_least_ns.max(other.at_least_ns),
            at_most_ns: self.at_most_ns.zip(other.at_most_ns).map(|(a, b)| a.max(b)),
        }
    }
}

/// Goroutines that marking the heap could not reach ([`crate::heap`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreached {
    /// By goid: how many passes in a row agree.
    pub goids: BTreeMap<u64, u32>,
    /// How many must agree for a proof.
    pub needed: u32,
    /// How many were made that told something.
    pub passes: u32,
}

/// How many passes over the heap agree on a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// So many do on each of its goroutines.
    pub agreed: u32,
    /// So many must for a proof.
    pub needed: u32,
}

impl Agreement {
    /// Whether more passes must agree before it is proven.
    #[must_use]
    pub const fn is_provisional(self) -> bool {
        self.agreed < self.needed
    }
}

/// Goroutines a second, a 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// Goroutines of another creation site or place that belong to a finding, as each waits for what others of it hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Their entry function.
    pub entry_pc: u64,
    /// Return address of the `go` statement; 0 for none.
    pub created_pc: u64,
    /// Number of the wait reason.
    pub wait_reason: Option<u8>,
    /// Their stack, innermost frame first; empty when not known.
    pub stack: Vec<StackFrame>,
    /// What they wait on, as in [`Finding`].
    pub waits_on: Vec<(Wait, WaitObject)>,
    /// How many objects that would be without the bound.
    pub waits_on_total: usize,
    /// Their ids, ascending; all of them are among those of the finding.
    pub goids: Vec<u64>,
}

/// A goroutine that holds the lock that others wait for, or may.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// Its id.
    pub goid: u64,
    /// Its entry function.
    pub entry_pc: u64,
    /// Its stack, innermost frame first.
    pub stack: Vec<StackFrame>,
    /// The frame of it that tells.
    pub frame: StackFrame,
    /// What it does.
    pub status: Status,
    /// Number of its wait reason; `None` when it does not wait.
    pub wait_reason: Option<u8>,
    /// What it rests on.
    pub evidence: Evidence,
    /// The goroutine that holds what this one waits for itself.
    pub waits_for: Option<u64>,
    /// What it waits on.
    pub waits_on: Vec<(Wait, WaitObject)>,
}

/// Goroutines of one creation site that stand at the same place, under one verdict, and those that wait with them for
/// each other. Addresses are those of the living process.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Why.
    pub verdict: Verdict,
    /// How their number grows; only for [`Verdict::Growing`], and [`Verdict::Unreachable`] where it does.
    pub growth: Option<Growth>,
    /// How long the one that has waited longest has waited; for [`Verdict::LeftBehind`] how long it lived.
    pub oldest: AtLeastAtMost,
    /// Their entry function.
    pub entry_pc: u64,
    /// Return address of the `go` statement; 0 for none.
    pub created_pc: u64,
    /// Number of the wait reason; `None` when they do not wait.
    pub wait_reason: Option<u8>,
    /// Their stack, innermost frame first; empty when not known.
    pub stack: Vec<StackFrame>,
    /// What they wait on: each object once, the most waited on first, no more than [`Finding::MAX_WAITS`].
    pub waits_on: Vec<(Wait, WaitObject)>,
    /// How many objects that would be without the bound.
    pub waits_on_total: usize,
    /// Their ids, ascending, with those of [`Finding::others`].
    pub goids: Vec<u64>,
    /// Goroutines of other sites and places; only for [`Verdict::Unreachable`].
    pub others: Vec<Part>,
    /// How many passes agree; only for [`Verdict::Unreachable`].
    pub passes: Option<Agreement>,
    /// Goroutines of its creation site that were seen to come after the first look, and to go; `None` where nobody
    /// looked twice.
    pub came_and_exited: Option<(u64, u64)>,
    /// Whether [`Finding::oldest`] is how long it has lived: it does not stand still.
    pub lives: bool,
    /// What they wait for, where they stand at a known place.
    pub awaited: Option<Awaited>,
    /// Who holds the lock that they wait for, or keeps members of the pool, the best known first.
    pub holders: Vec<Holder>,
    /// Bytes of the heap that only these goroutines keep alive; `None` where that was not looked for.
    pub retained_bytes: Option<u64>,
    /// What is known and what is not, in a sentence.
    pub why: String,
    /// The test that made them, by its function; only for [`Verdict::LeftBehind`].
    pub test: Option<String>,
    /// Whether it is suppressed, or known from a baseline.
    pub accepted: Accepted,
}

impl Finding {
    /// Objects listed for one finding.
    pub const MAX_WAITS: usize = 16;

    /// How many goroutines are of its own site and place.
    #[must_use]
    pub fn own_count(&self) -> usize {
        self.count() - self.others.iter().map(|o| o.goids.len()).sum::<usize>()
    }

    /// How many goroutines.
    #[must_use]
    pub fn count(&self) -> usize {
        self.goids.len()
    }

    /// By impact: verdict, then how fast they grow, then how many, then how old.
    #[must_use]
    pub fn by_impact(&self) -> impl Ord + use<> {
        // Non-negative floats order as their bits do.
        let speed = self.growth.map_or(0, |g| g.low.max(0.0).to_bits());
        let first = self.goids.first().copied().unwrap_or(0);
        (
            self.verdict,
            Reverse(speed),
            Reverse(self.count()),
            Reverse(self.oldest.at_least_ns),
            self.created_pc,
            self.entry_pc,
            first,
        )
    }
}
