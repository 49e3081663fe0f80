//! What is wrong with goroutines of a process: leaks that are proven, and those that are suspected, each with who holds
//! what they wait for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Location, Name};

/// Goroutines of one creation site that wait at one place, of which it was proven that they can never run
/// again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// Their entry function.
    #[serde(with = "crate::wire")]
    pub entry: Arc<Location>,
    /// The `go` statement; `None` when unknown.
    #[serde(with = "crate::wire")]
    pub created_by: Option<Arc<Location>>,
    /// Where they wait: the first frame outside the runtime and the standard library's waiting primitives.
    #[serde(with = "crate::wire")]
    pub waits_at: Option<Arc<Location>>,
    /// Go's own wait reason.
    pub reason: Arc<str>,
    /// How many.
    pub count: u64,
    /// How many more there are each second, a 95 % confidence interval; `None` unless they grow.
    pub growth_per_second: Option<(f64, f64)>,
    /// Bytes of the heap that they alone keep alive; `None` where that was not found out.
    pub retained_bytes: Option<u64>,
    /// Their ids, with those of `others`.
    pub goids: Vec<u64>,
    /// Goroutines of other sites and places that wait with them for each other, and nobody else.
    pub others: Vec<LeakPart>,
    /// What they wait for in plain words, where they stand at a known place.
    #[serde(with = "crate::wire")]
    pub place: Option<Name>,
    /// Who holds the lock that they wait for, the best known first.
    pub holders: Vec<Holder>,
    /// What is known and what is not, in a sentence.
    pub why: Arc<str>,
    /// Why that may stay as it is; `None` where it is not suppressed.
    pub suppressed: Option<Arc<str>>,
}

/// Goroutines of another creation site or place that belong to a [`Leak`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakPart {
    /// Their entry function.
    #[serde(with = "crate::wire")]
    pub entry: Arc<Location>,
    /// The `go` statement; `None` when unknown.
    #[serde(with = "crate::wire")]
    pub created_by: Option<Arc<Location>>,
    /// Where they wait, as in [`Leak`].
    #[serde(with = "crate::wire")]
    pub waits_at: Option<Arc<Location>>,
    /// Go's own wait reason.
    pub reason: Arc<str>,
    /// Their ids.
    pub goids: Vec<u64>,
}

/// A goroutine that holds a lock or keeps a member of a pool, or may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub goid: u64,
    /// Its entry function.
    #[serde(with = "crate::wire")]
    pub runs: Arc<Location>,
    /// The call that tells.
    #[serde(with = "crate::wire")]
    pub frame: Arc<Location>,
    /// What it does.
    #[serde(with = "crate::wire")]
    pub state: Name,
    /// What it waits for itself; `None` when it does not wait.
    pub reason: Option<Arc<str>>,
    /// What it rests on: `locked`, `refers`, `encloses` or `candidate`.
    #[serde(with = "crate::wire")]
    pub evidence: Name,
    /// The goroutine that holds what this one waits for.
    pub waits_for: Option<u64>,
}

/// Goroutines of one creation site that wait at one place and may never finish, as far as looks tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspected {
    /// `deadlock`, `stalled`, `growing`, `stuck` or `orphaned` (`gotrace_inspect::leak::Verdict`).
    #[serde(with = "crate::wire")]
    pub verdict: Name,
    /// Their entry function.
    #[serde(with = "crate::wire")]
    pub entry: Arc<Location>,
    /// The `go` statement; `None` when unknown.
    #[serde(with = "crate::wire")]
    pub created_by: Option<Arc<Location>>,
    /// Where they wait: the first frame outside the runtime and the standard library's waiting primitives.
    #[serde(with = "crate::wire")]
    pub waits_at: Option<Arc<Location>>,
    /// Go's own wait reason.
    pub reason: Arc<str>,
    /// How many.
    pub count: u64,
    /// How many more there are each second, a 95 % confidence interval; only for `growing`.
    pub growth_per_second: Option<(f64, f64)>,
    /// How long the one that stands longest has stood, at least.
    pub standing_ns: u64,
    /// What they wait for in plain words, where they stand at a known place.
    #[serde(with = "crate::wire")]
    pub place: Option<Name>,
    /// Who holds the lock that they wait for, or keeps members of the pool, the best known first.
    pub holders: Vec<Holder>,
    /// What is known and what is not, in a sentence.
    pub why: Arc<str>,
    /// Ids of some, at most 16.
    pub goids: Vec<u64>,
    /// Why that may stay as it is; `None` where it is not suppressed.
    pub suppressed: Option<Arc<str>>,
}
