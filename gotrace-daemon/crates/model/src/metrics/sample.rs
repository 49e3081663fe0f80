//! A metric's series and their values at one moment.

use gotrace_common::Histogram;

use super::{Metric, Series};
use crate::SpanContext;

/// A series' value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A count.
    Int(u64),
    /// A share, or a rate.
    Double(f64),
    /// A total of time, told in seconds.
    Nanoseconds(u64),
    /// Durations.
    Durations(Box<Histogram>),
}

/// A metric's series at one moment; there is at least one.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The metric.
    pub metric: &'static Metric,
    /// Its series.
    pub series: Vec<(Series, Value)>,
    /// Some of what was counted since the last moment, each with its series.
    pub exemplars: Vec<(Series, Exemplar)>,
}

impl Sample {
    /// Without exemplars.
    #[must_use]
    pub fn new(metric: &'static Metric, series: Vec<(Series, Value)>) -> Self {
        Self { metric, series, exemplars: Vec::new() }
    }
}

/// One of what a series counts, and the span of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// When it was counted, Unix epoch.
    pub time_unix_nano: u64,
    /// How long it took.
    pub duration_ns: u64,
    /// Its span.
    pub span: SpanContext,
}
