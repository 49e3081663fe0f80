//! Samples of the metric catalogue as OTLP metrics.
//!
//! Input: a process's [`Interval`]s in order of time, whose totals count from attaching on, and what the
//! exporter dropped of its spans. Output: one `ResourceMetrics` each. Keeps what the last report said,
//! for delta temporality, and which series exist ([`gotrace_model::metrics::admission`]).
//!
//! Beside telemetry.md's names: `gotrace.engine` carries `gotrace.goroutine.count.lower_bound`, true
//! while goroutines may live that were never seen.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use gotrace_common::Histogram;
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value as Any},
    metrics::v1::{
        AggregationTemporality, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric, number_data_point,
    },
};

use super::{config::Temporality, convert, histogram};
use gotrace_model::{
    Interval, Resource,
    metrics::{
        self as catalogue, Kind, LabelValue, Sample, Series, Value,
        admission::{Admitted, Room, SeriesBounds, Weights},
    },
};

/// What has been reported so far, by process.
#[derive(Debug)]
pub(super) struct Metrics {
    temporality: Temporality,
    /// By the resource's process.
    processes: HashMap<u64, Process>,
    /// Series that are left for all of them.
    room: Room,
}

#[derive(Debug)]
struct Process {
    resource: Arc<Resource>,
    begin_unix_nano: u64,
    last_unix_nano: u64,
    admitted: Admitted,
    counters: HashMap<(&'static str, Series), u64>,
    histograms: HashMap<(&'static str, Series), Box<Histogram>>,
}

impl Metrics {
    pub fn new(temporality: Temporality, bounds: SeriesBounds) -> Self {
        Self { temporality, processes: HashMap::new(), room: Room::new(bounds, Weights::OTLP) }
    }

    /// Processes that have their most important figures only.
    pub fn brief(&self) -> u64 {
        self.processes.values().filter(|p| !p.admitted.has_entered()).count() as u64
    }

    /// A report, and how many points it has.
    pub fn report(
        &mut self,
        interval: &Interval,
        spans_dropped: &BTreeMap<&'static str, u64>,
    ) -> (ResourceMetrics, u64) {
        // A process that nobody else speaks of has ended.
        let key = interval.resource.process();
        let ended = self.processes.extract_if(|k, p| *k != key && Arc::strong_count(&p.resource) == 1);
        ended.for_each(|(_, process)| self.room.give_back(&process.admitted));
        let process = self.processes.entry(key).or_insert_with(|| Process {
            resource: Arc::clone(&interval.resource),
            begin_unix_nano: interval.start_unix_nano,
            last_unix_nano: interval.start_unix_nano,
            admitted: Admitted::default(),
            counters: HashMap::new(),
            histograms: HashMap::new(),
        });
        process.resource.clone_from(&interval.resource);
        // The wall clock may have been set back since.
        process.begin_unix_nano = process.begin_unix_nano.min(interval.start_unix_nano);
        process.last_unix_nano = process.last_unix_nano.min(interval.start_unix_nano);
        let samples = catalogue::samples(interval, spans_dropped, &mut process.admitted, &mut self.room);
        let mut report = Report { temporality: self.temporality, process, end: interval.end_unix_nano };
        let metrics: Vec<Metric> = samples.into_iter().map(|sample| report.metric(sample)).collect();
        process.last_unix_nano = interval.end_unix_nano;
        let points = metrics.iter().map(points).sum();
        let metrics = ResourceMetrics {
            resource: Some(convert::resource(&interval.resource)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(convert::scope()),
                metrics,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        };
        (metrics, points)
    }
}

/// Data points of a metric.
pub(super) fn points(metric: &Metric) -> u64 {
    let n = match &metric.data {
        Some(metric::Data::Gauge(g)) => g.data_points.len(),
        Some(metric::Data::Sum(s)) => s.data_points.len(),
        Some(metric::Data::ExponentialHistogram(h)) => h.data_points.len(),
        _ => 0,
    };
    n as u64
}

struct Report<'a> {
    temporality: Temporality,
    process: &'a mut Process,
    end: u64,
}

impl Report<'_> {
    fn metric(&mut self, sample: Sample) -> Metric {
        let catalogue::Metric { name, unit, help, kind } = *sample.metric;
        let series = sample.series.into_iter();
        let exemplars = sample.exemplars;
        let data = match kind {
            Kind::Gauge => metric::Data::Gauge(Gauge {
                data_points: series.map(|(series, value)| self.number(&series, &value, None)).collect(),
            }),
            Kind::UpDownCounter => {
                let begin = Some(self.process.begin_unix_nano);
                metric::Data::Sum(Sum {
                    data_points: series.map(|(series, value)| self.number(&series, &value, begin)).collect(),
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    is_monotonic: false,
                })
            }
            Kind::Counter => {
                let delta = self.temporality == Temporality::Delta;
                metric::Data::Sum(Sum {
                    data_points: series
                        .map(|(series, value)| self.counter(name, series, &value, delta))
                        .collect(),
                    aggregation_temporality: temporality(delta),
                    is_monotonic: true,
                })
            }
            Kind::Histogram => {
                let delta = self.temporality != Temporality::Cumulative;
                metric::Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: series
                        .map(|(series, value)| {
                            let of_it = exemplars.iter().filter(|(of, _)| *of == series);
                            let exemplars = of_it.map(|(_, exemplar)| self::exemplar(*exemplar)).collect();
                            let point = self.durations(name, series, value, delta);
                            ExponentialHistogramDataPoint { exemplars, ..point }
                        })
                        .collect(),
                    aggregation_temporality: temporality(delta),
                })
            }
        };
        Metric {
            name: name.into(),
            unit: unit.into(),
            description: help.into(),
            data: Some(data),
            ..Default::default()
        }
    }

    fn number(&self, series: &Series, value: &Value, start: Option<u64>) -> NumberDataPoint {
        NumberDataPoint {
            attributes: attributes(series),
            start_time_unix_nano: start.unwrap_or_default(),
            time_unix_nano: self.end,
            value: Some(match value {
                Value::Int(count) => number_data_point::Value::AsInt(convert::clamp(*count)),
                Value::Double(number) => number_data_point::Value::AsDouble(*number),
                Value::Nanoseconds(ns) => number_data_point::Value::AsDouble(*ns as f64 / 1e9),
                // The catalogue gives durations to histograms alone.
                Value::Durations(h) => number_data_point::Value::AsInt(convert::clamp(h.count)),
            }),
            ..Default::default()
        }
    }

    fn counter(&mut self, name: &'static str, series: Series, value: &Value, delta: bool) -> NumberDataPoint {
        let total = if let Value::Int(total) | Value::Nanoseconds(total) = value { *total } else { 0 };
        let mut point = self.number(&series, value, Some(self.start(delta)));
        let last = self.process.counters.entry((name, series)).or_default();
        let earlier = *last;
        // A total never goes back, whatever the table lost.
        *last = total.max(earlier);
        let told = if delta { *last - earlier } else { *last };
        point.value = Some(match value {
            Value::Nanoseconds(_) => number_data_point::Value::AsDouble(told as f64 / 1e9),
            _ => number_data_point::Value::AsInt(convert::clamp(told)),
        });
        point
    }

    fn durations(
        &mut self,
        name: &'static str,
        series: Series,
        value: Value,
        delta: bool,
    ) -> ExponentialHistogramDataPoint {
        let now = if let Value::Durations(now) = value { now } else { Box::default() };
        let attributes = attributes(&series);
        let mut point = if delta {
            let last = self.process.histograms.entry((name, series)).or_default();
            let (difference, max_known) = histogram::difference(&now, last);
            *last = now;
            let mut point = histogram::data_point(&difference);
            if !max_known {
                point.max = None;
            }
            point
        } else {
            histogram::data_point(&now)
        };
        point.attributes = attributes;
        point.start_time_unix_nano = self.start(delta);
        point.time_unix_nano = self.end;
        point
    }

    /// Where a point's time begins.
    fn start(&self, delta: bool) -> u64 {
        if delta { self.process.last_unix_nano } else { self.process.begin_unix_nano }
    }
}

fn exemplar(exemplar: catalogue::Exemplar) -> Exemplar {
    let catalogue::Exemplar { time_unix_nano, duration_ns, span } = exemplar;
    Exemplar {
        filtered_attributes: Vec::new(),
        time_unix_nano,
        span_id: span.span_id.to_vec(),
        trace_id: span.trace_id.to_vec(),
        value: Some(exemplar::Value::AsDouble(histogram::seconds(duration_ns))),
    }
}

fn temporality(delta: bool) -> i32 {
    if delta { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative }.into()
}

fn attributes(series: &Series) -> Vec<KeyValue> {
    series
        .labels()
        .into_iter()
        .map(|(key, value)| match value {
            LabelValue::Text(text) => convert::text(key, &text),
            LabelValue::Name(name) => convert::text(key, name),
            LabelValue::Int(number) => convert::int(key, number),
            LabelValue::Bool(yes) => convert::attribute(key, Any::BoolValue(yes)),
        })
        .collect()
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
