//! Verdicts: which goroutines will not finish, why that is believed, and what is not known.
//!
//! Input: [`Snapshot`](crate::snapshot::Snapshot)s of one process, one after the other, and for some
//! verdicts who refers to what is waited on ([`References`](crate::snapshot::References)). Output:
//! [`Finding`]s, the worst first. Pure: time is what the snapshots say, nothing is read, nothing is named.
//! A false alarm is worse than a late one: each verdict has conditions that healthy programs do not meet
//! (`docs/leaks.md`), and a goroutine is reported under one verdict only.
//!
//! [`Watch`] keeps what is needed of each goroutine between two looks, not the snapshots.

mod accepted;
mod awaited;
mod behind;
mod finding;
mod graph;
#[cfg(test)]
mod graph_tests;
mod growth;
#[cfg(test)]
mod growth_tests;
mod io;
#[cfg(test)]
mod io_tests;
mod judge;
mod locks;
mod reason;
mod stalled;
#[cfg(test)]
mod stalled_tests;
mod state;
#[cfg(test)]
mod tests;
mod thin;
mod together;
mod trend;
mod unreached;
mod watch;

pub use accepted::{Acceptance, Accepted, BASELINE_SCHEMA, Baseline, Identity, Suppression, Suppressions};
pub use awaited::{Awaited, is_function, is_servant};
pub use behind::{AtExit, Doing, Left, is_machinery, left_behind, test_function};
pub use finding::{Agreement, AtLeastAtMost, Finding, Growth, Holder, Part, Unreached, Verdict};
pub use graph::{Edge, EdgeKind, Graph, GraphGroup, GraphObject, LeftOut};
pub use io::{UNANSWERED, descriptors_wanted};
pub(crate) use judge::seconds;
pub use judge::{NO_OWNER, judge, standing, suspects};
pub use reason::Reason;
pub use stalled::{Stall, is_served, stalls};
pub use state::{STATE_BYTES, state};
pub use together::together;
pub use trend::{MIN_POINTS, Trend, trend};
pub use watch::{Settings, Watch};
