//! Figures of a node as a whole, beside those of its processes: the account of executions ([`Coverage`]).

use super::{Kind, Metric, Sample, Series, Value};
use crate::Coverage;

/// Executions that were seen.
pub static SEEN: Metric = Metric::new(
    "gotrace.processes.seen",
    "{process}",
    "Executions of programs that gotrace was told of, or found when it looked.",
    Kind::Counter,
);
/// What became of them; the difference is being looked at.
pub static COVERED: Metric = Metric::new(
    "gotrace.processes.covered",
    "{process}",
    "What became of the executions that were seen: each is in one class.",
    Kind::Counter,
);
/// Why programs could not be traced.
pub static REFUSED: Metric = Metric::new(
    "gotrace.processes.refused",
    "{process}",
    "Go programs, or such as may be, that could not be traced, by why.",
    Kind::Counter,
);
/// Executions that were not seen.
pub static EXECUTIONS_LOST: Metric = Metric::new(
    "gotrace.executions.lost",
    "{process}",
    "Executions that the kernel had no room to tell of; those that still ran were found by looking.",
    Kind::Counter,
);

/// All of them.
pub static NODE: &[&Metric] = &[&SEEN, &COVERED, &REFUSED, &EXECUTIONS_LOST];

/// The account's figures.
#[must_use]
pub fn coverage(coverage: &Coverage) -> Vec<Sample> {
    let one = |metric, count| Sample::new(metric, vec![(Series::Only, Value::Int(count))]);
    let kinds = |metric, label, counts: &mut dyn Iterator<Item = (&'static str, u64)>| {
        Sample::new(
            metric,
            counts.map(|(name, count)| (Series::Kind(label, name), Value::Int(count))).collect(),
        )
    };
    vec![
        one(&SEEN, coverage.seen),
        kinds(&COVERED, "gotrace.coverage", &mut coverage.covered()),
        kinds(&REFUSED, "gotrace.refused.reason", &mut coverage.refused()),
        one(&EXECUTIONS_LOST, coverage.lost),
    ]
}
