//! Verdicts: which goroutines will not finish, why that is believed, and what is not known.
//!
//! Input: [`Snapshot`](crate::snapshot::Snapshot)s of one process, one after the other, and for some
//! verdicts who refers to what is waited on ([`References`](crate::snapshot::References)). Output:
//! [`Finding`]s, the worst first. Pure: time is what the snapshots say, nothing is read, nothing is named.
//! A false alarm is worse than a late one: each verdict has conditions that healthy programs do not meet
//! (`docs/leaks.md`), and a goroutine is reported under one verdict only.
//!
//! [`Watch`] keeps what is needed of each goroutine between two looks, not the snapshots.

mod behind;
mod finding;
mod graph;
mod growth;
#[cfg(test)]
mod growth_tests;
mod judge;
mod locks;
mod reason;
mod state;
#[cfg(test)]
mod tests;
mod thin;
mod together;
mod trend;
mod unreached;
mod watch;

pub use behind::{Left, is_machinery, left_behind, test_function};
pub use finding::{Agreement, AtLeastAtMost, Finding, Growth, Holder, Part, Unreached, Verdict};
pub use graph::{Edge, EdgeKind, Graph, GraphGroup, GraphObject};
pub use judge::{NO_OWNER, judge, suspects};
pub use reason::Reason;
pub use state::{STATE_BYTES, state};
pub use together::together;
pub use trend::{Trend, trend};
pub use watch::{Settings, Watch};
