//! A process's metrics in requests that receivers take: they refuse more than 4 MiB by default.
//!
//! Pure. Metrics are kept in their order; one that is too large alone is divided by its points, which are the
//! same wherever they stand. With the default bound on series there is nothing to divide.

use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, Gauge, Metric, ResourceMetrics, ScopeMetrics, Sum, metric::Data,
};
use prost::Message as _;

use super::batch::MAX_BYTES;

/// The same metrics, each time at most [`MAX_BYTES`] of them, as far as a single point is not larger.
pub(super) fn split(whole: ResourceMetrics) -> Vec<ResourceMetrics> {
    if whole.encoded_len() <= MAX_BYTES {
        return vec![whole];
    }
    let ResourceMetrics { resource, scope_metrics, schema_url } = whole;
    let mut requests = Vec::new();
    for ScopeMetrics { scope, metrics, schema_url: scope_schema } in scope_metrics {
        let mut pieces = Vec::new();
        for metric in metrics {
            divide(metric, &mut pieces);
        }
        let mut close = |metrics: Vec<Metric>| {
            let of_scope = ScopeMetrics { scope: scope.clone(), metrics, schema_url: scope_schema.clone() };
            requests.push(ResourceMetrics {
                resource: resource.clone(),
                scope_metrics: vec![of_scope],
                schema_url: schema_url.clone(),
            });
        };
        let (mut together, mut bytes) = (Vec::new(), 0);
        for piece in pieces {
            let size = piece.encoded_len();
            if bytes + size > MAX_BYTES && !together.is_empty() {
                close(std::mem::take(&mut together));
                bytes = 0;
            }
            bytes += size;
            together.push(piece);
        }
        close(together);
    }
    requests
}

/// Halves a metric until each piece is small enough or has one point.
fn divide(mut metric: Metric, pieces: &mut Vec<Metric>) {
    if metric.encoded_len() > MAX_BYTES
        && let Some(second) = second_half(&mut metric)
    {
        divide(metric, pieces);
        divide(second, pieces);
        return;
    }
    pieces.push(metric);
}

/// Takes the second half of a metric's points off it; `None` where it has but one, or none.
fn second_half(metric: &mut Metric) -> Option<Metric> {
    fn half<T>(points: &mut Vec<T>) -> Option<Vec<T>> {
        (points.len() > 1).then(|| points.split_off(points.len() / 2))
    }
    let data = match metric.data.as_mut()? {
        Data::Gauge(gauge) => Data::Gauge(Gauge { data_points: half(&mut gauge.data_points)? }),
        Data::Sum(sum) => {
            let data_points = half(&mut sum.data_points)?;
            Data::Sum(Sum { data_points, ..*sum })
        }
        Data::ExponentialHistogram(histogram) => {
            let data_points = half(&mut histogram.data_points)?;
            Data::ExponentialHistogram(ExponentialHistogram { data_points, ..*histogram })
        }
        // gotrace makes no others.
        _ => return None,
    };
    let Metric { name, description, unit, metadata, .. } = &*metric;
    Some(Metric {
        name: name.clone(),
        description: description.clone(),
        unit: unit.clone(),
        metadata: metadata.clone(),
        data: Some(data),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::{
        SeriesBounds,
        config::Temporality,
        metrics::{Metrics, points},
    };
    use gotrace_go::MAX_NAME;
    use gotrace_model::Site;
    use gotrace_model::samples;

    fn site(name: &str) -> Site {
        let mut site = samples::site(name, 3, 1);
        site.entry = samples::location(name, name, 1);
        site.created_by = Some(samples::location(name, name, 2));
        site
    }

    #[test]
    fn a_request_is_no_larger_than_receivers_take_and_nothing_is_lost() {
        let resource = samples::resource();
        let long = |n: usize| format!("{n:05}{}", "n".repeat(MAX_NAME - 5));
        let sites = (0..2400).map(|n| site(&long(n))).collect();
        let bounds = SeriesBounds { per_process: 10_000, all: 20_000, ..SeriesBounds::default() };
        let mut metrics = Metrics::new(Temporality::Cumulative, bounds);
        let (whole, count) = metrics.report(&samples::interval(&resource, 0, sites), &Default::default());
        assert!(whole.encoded_len() > 4 << 20, "{} bytes", whole.encoded_len());
        let (of, scope) = (whole.resource.clone(), whole.scope_metrics[0].scope.clone());
        let parts = split(whole);
        assert!(parts.len() > 4, "{} requests", parts.len());
        let mut total = 0;
        for part in &parts {
            assert!(part.encoded_len() < MAX_BYTES + (64 << 10), "{} bytes", part.encoded_len());
            assert_eq!((&part.resource, &part.scope_metrics[0].scope), (&of, &scope));
            total += part.scope_metrics[0].metrics.iter().map(points).sum::<u64>();
        }
        assert_eq!(total, count);
    }

    #[test]
    fn what_is_small_stays_whole() {
        let resource = samples::resource();
        let mut metrics = Metrics::new(Temporality::Cumulative, SeriesBounds::default());
        let (whole, _) = metrics.report(&samples::interval(&resource, 0, Vec::new()), &Default::default());
        assert_eq!(split(whole.clone()), [whole]);
    }
}
