//! What other rooms' tests ask of OTLP.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};

use super::{SeriesBounds, Temporality, metrics::Metrics};
use gotrace_model::Interval;

/// The sum over the points of each metric of a report; of a histogram, the sum of its counts.
pub(crate) fn sums(interval: &Interval, dropped: &BTreeMap<&'static str, u64>) -> BTreeMap<String, f64> {
    let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
    let (report, _) = metrics.report(interval, dropped);
    let number = |value: Option<number_data_point::Value>| match value {
        Some(number_data_point::Value::AsInt(n)) => n as f64,
        Some(number_data_point::Value::AsDouble(n)) => n,
        None => 0.0,
    };
    report
        .scope_metrics
        .into_iter()
        .flat_map(|scope| scope.metrics)
        .map(|metric| {
            let sum = match metric.data {
                Some(metric::Data::Gauge(g)) => g.data_points.iter().map(|p| number(p.value)).sum(),
                Some(metric::Data::Sum(s)) => s.data_points.iter().map(|p| number(p.value)).sum(),
                Some(metric::Data::ExponentialHistogram(h)) => {
                    h.data_points.iter().map(|p| p.count as f64).sum()
                }
                _ => 0.0,
            };
            (metric.name, sum)
        })
        .collect()
}
