//! Intervals as OTLP metrics.
//!
//! Input: a process's [`Interval`]s in order of time, whose totals count from attaching on, and what the
//! exporter dropped of its spans. Output: one `ResourceMetrics` each. Keeps what the last report said,
//! for delta temporality, and which series exist ([`super::series`]). Never puts a goroutine's id on a
//! metric. `sites` of an interval must name every site ever seen, else a total could shrink.
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
        AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
};

use super::{
    config::Temporality,
    convert::{self, CODE, CREATED_BY, WAITS_AT},
    histogram,
    series::{Admitted, LEAKS, MAX_NAMES, Room, SeriesBounds, SiteKey},
};
use crate::sink::model::{Interval, Leak, Resource, Site, Suspected};

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

/// What tells the series of a metric apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Series {
    Only,
    Name(&'static str, Arc<str>),
    Site(SiteKey),
    Overflow,
}

impl Metrics {
    pub fn new(temporality: Temporality, bounds: SeriesBounds) -> Self {
        Self { temporality, processes: HashMap::new(), room: Room::new(bounds) }
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
        let end = interval.end_unix_nano;
        let whole = process.admitted.enter(&mut self.room);
        let (temporality, room) = (self.temporality, &mut self.room);
        let mut report = Report { temporality, process, room, end, metrics: Vec::new() };
        report.alive(interval.alive);
        if whole {
            report.fill(interval, spans_dropped);
        }
        report.how(interval);
        let metrics = report.metrics;
        process.last_unix_nano = end;
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
    room: &'a mut Room,
    end: u64,
    metrics: Vec<Metric>,
}

impl Report<'_> {
    /// The first of the four series that every process has.
    fn alive(&mut self, alive: u64) {
        self.up_down_counter(
            "go.goroutine.count",
            "{goroutine}",
            "Count of live goroutines.",
            convert::clamp(alive),
        );
    }

    /// The other three.
    fn how(&mut self, interval: &Interval) {
        if let Some(share) = interval.probe_cost_share {
            let point = NumberDataPoint {
                time_unix_nano: self.end,
                value: Some(number_data_point::Value::AsDouble(share)),
                ..Default::default()
            };
            self.gauge(
                "gotrace.probe.cost",
                "1",
                "Estimated cost of the probes as a share of the target's CPU time.",
                vec![point],
            );
        }
        let bound = convert::attribute(
            "gotrace.goroutine.count.lower_bound",
            Any::BoolValue(interval.alive_is_lower_bound),
        );
        self.info("gotrace.engine", "Engine that gives the figures.", interval.engine, vec![bound]);
        self.info("gotrace.level", "Level of detail.", interval.level, Vec::new());
    }

    fn fill(&mut self, interval: &Interval, spans_dropped: &BTreeMap<&'static str, u64>) {
        let Interval {
            resource: _,
            pid: _,
            start_unix_nano: _,
            end_unix_nano: _,
            alive: _,
            alive_is_lower_bound: _,
            born: _,
            died: _,
            born_total: _,
            died_total: _,
            lost,
            repaired,
            sampled_out,
            events,
            waiting,
            waits,
            schedule,
            syscalls,
            sites,
            snapshots,
            engine: _,
            level: _,
            level_reason: _,
            levels: _,
            leaks,
            leaks_refuted,
            suspects,
            probe_cost_share: _,
        } = interval;
        self.states(waiting);
        self.sites(sites);
        self.waits(waits, syscalls);
        if schedule.count > 0 {
            self.histogram(
                "go.schedule.duration",
                "The time goroutines have spent in the scheduler in a runnable state before actually \
                 running.",
                vec![(Series::Only, *schedule)],
            );
        }
        self.named("gotrace.events", "{event}", "Events that the probes saw.", "gotrace.event.kind", events);
        self.named(
            "gotrace.events.lost",
            "{event}",
            "Events that did not reach the table of goroutines.",
            "gotrace.lost.kind",
            lost,
        );
        self.named(
            "gotrace.table.repaired",
            "{goroutine}",
            "Births and deaths that were lost, found by snapshots and mended.",
            "gotrace.repaired.kind",
            repaired,
        );
        if snapshots.count > 0 {
            self.histogram(
                "gotrace.snapshot.duration",
                "How long reading every goroutine of the process took.",
                vec![(Series::Only, *snapshots)],
            );
        }
        self.leaks(leaks, *leaks_refuted);
        self.suspects(suspects);
        self.named(
            "gotrace.spans.dropped",
            "{span}",
            "Spans that did not reach the collector or the file.",
            "gotrace.dropped.reason",
            spans_dropped,
        );
        self.named(
            "gotrace.spans.sampled_out",
            "{span}",
            "Spans that sampling left out.",
            "gotrace.sampled_out.reason",
            sampled_out,
        );
    }

    fn states(&mut self, waiting: &BTreeMap<Arc<str>, u64>) {
        let mut points = Vec::new();
        let mut overflow = 0;
        for (reason, count) in waiting {
            if !self.process.admitted.reason(reason, self.room) {
                overflow += count;
                continue;
            }
            let state = if &**reason == "syscall" { "syscall" } else { "waiting" };
            let attributes =
                vec![convert::text("gotrace.state", state), convert::text("gotrace.wait.reason", reason)];
            points.push(self.gauge_point(attributes, *count));
        }
        if overflow > 0 {
            points.push(self.gauge_point(vec![overflow_attribute()], overflow));
        }
        self.gauge(
            "gotrace.goroutine.count",
            "{goroutine}",
            "Goroutines by state; those that run or could run are what is left of go.goroutine.count.",
            points,
        );
    }

    fn sites(&mut self, sites: &[Site]) {
        let (mut created, mut exited, mut alive, mut lifetimes) = (vec![], vec![], vec![], vec![]);
        let mut beyond: Option<(u64, u64, u64, Histogram)> = None;
        for site in sites {
            match self.process.admitted.site(site, self.room) {
                Some(key) => {
                    let series = Series::Site(key);
                    alive.push(self.gauge_point(attributes(&series), site.alive));
                    created.push((series.clone(), site.born_total));
                    exited.push((series.clone(), site.died_total));
                    lifetimes.push((series, site.lifetimes));
                }
                None => {
                    let (born, died, live, lifetime) = beyond.get_or_insert_default();
                    *born += site.born_total;
                    *died += site.died_total;
                    *live += site.alive;
                    lifetime.merge(&site.lifetimes);
                }
            }
        }
        if let Some((born, died, live, lifetime)) = beyond {
            alive.push(self.gauge_point(vec![overflow_attribute()], live));
            created.push((Series::Overflow, born));
            exited.push((Series::Overflow, died));
            lifetimes.push((Series::Overflow, lifetime));
        }
        let unit = "{goroutine}";
        self.counter("gotrace.goroutine.created", unit, "Goroutines created.", created);
        self.counter("gotrace.goroutine.exited", unit, "Goroutines that ended.", exited);
        self.gauge("gotrace.goroutine.alive", unit, "Goroutines alive.", alive);
        lifetimes.retain(|(_, h)| h.count > 0);
        self.histogram(
            "gotrace.goroutine.lifetime",
            "From creation to exit, of goroutines that ended.",
            lifetimes,
        );
    }

    /// Who may be leaked, the worst first.
    fn suspects(&mut self, suspects: &[Suspected]) {
        let (mut counts, mut growth) = (Vec::new(), Vec::new());
        for suspected in suspects.iter().take(LEAKS) {
            let mut attributes =
                attributes(&Series::Site((Arc::clone(&suspected.entry), suspected.created_by.clone())));
            attributes.push(convert::text("gotrace.wait.reason", &suspected.reason));
            attributes.push(convert::text("gotrace.leak.verdict", suspected.verdict));
            if let Some(at) = &suspected.waits_at {
                convert::place(&mut attributes, &WAITS_AT, at);
            }
            if let Some((low, _)) = suspected.growth_per_second {
                growth.push(NumberDataPoint {
                    attributes: attributes.clone(),
                    time_unix_nano: self.end,
                    value: Some(number_data_point::Value::AsDouble(low)),
                    ..Default::default()
                });
            }
            counts.push(self.gauge_point(attributes, suspected.count));
        }
        if let Some(rest) = suspects.get(LEAKS..).filter(|rest| !rest.is_empty()) {
            let count = rest.iter().map(|s| s.count).sum();
            counts.push(self.gauge_point(vec![overflow_attribute()], count));
        }
        self.gauge(
            "gotrace.leak.suspects",
            "{goroutine}",
            "Goroutines that may never finish, as far as looks tell.",
            counts,
        );
        self.gauge(
            "gotrace.leak.growth",
            "{goroutine}/s",
            "How many more of them there are each second, at least (95 %).",
            growth,
        );
    }

    /// What is proven, the most goroutines first.
    fn leaks(&mut self, leaks: &[Leak], refuted: u64) {
        let (mut proven, mut retained) = (Vec::new(), Vec::new());
        for leak in leaks.iter().take(LEAKS) {
            let mut attributes =
                attributes(&Series::Site((Arc::clone(&leak.entry), leak.created_by.clone())));
            attributes.push(convert::text("gotrace.wait.reason", &leak.reason));
            if let Some(at) = &leak.waits_at {
                convert::place(&mut attributes, &WAITS_AT, at);
            }
            if let Some(bytes) = leak.retained_bytes {
                retained.push(self.gauge_point(attributes.clone(), bytes));
            }
            proven.push(self.gauge_point(attributes, leak.count));
        }
        if leaks.len() > LEAKS {
            let rest = &leaks[LEAKS..];
            let count = rest.iter().map(|l| l.count).sum();
            proven.push(self.gauge_point(vec![overflow_attribute()], count));
            let bytes = rest.iter().filter_map(|l| l.retained_bytes).sum();
            retained.push(self.gauge_point(vec![overflow_attribute()], bytes));
        }
        self.gauge(
            "gotrace.leak.proven",
            "{goroutine}",
            "Goroutines that can never run again, as proven from the heap.",
            proven,
        );
        self.gauge("gotrace.leak.retained", "By", "Heap that leaked goroutines alone keep alive.", retained);
        if refuted > 0 {
            self.counter(
                "gotrace.leak.refuted",
                "{goroutine}",
                "Proofs of leak that turned out wrong: errors of gotrace.",
                vec![(Series::Only, refuted)],
            );
        }
    }

    fn waits(&mut self, waits: &BTreeMap<Arc<str>, Histogram>, syscalls: &Histogram) {
        let mut series = Vec::new();
        let mut beyond: Option<Histogram> = None;
        let syscall: Arc<str> = Arc::from("syscall");
        // System calls are waits by another way; a table that lists them itself is not added to.
        let extra = (syscalls.count > 0 && !waits.contains_key(&syscall)).then_some((&syscall, syscalls));
        for (reason, histogram) in waits.iter().chain(extra) {
            if histogram.count == 0 {
                continue;
            }
            if self.process.admitted.reason(reason, self.room) {
                series.push((Series::Name("gotrace.wait.reason", Arc::clone(reason)), *histogram));
            } else {
                beyond.get_or_insert_default().merge(histogram);
            }
        }
        series.extend(beyond.map(|h| (Series::Overflow, h)));
        self.histogram("gotrace.goroutine.wait.duration", "From park to the next run, all waits.", series);
    }

    /// A counter whose attribute is one of gotrace's own names.
    fn named(
        &mut self,
        name: &'static str,
        unit: &str,
        description: &str,
        key: &'static str,
        values: &BTreeMap<&'static str, u64>,
    ) {
        let mut series: Vec<_> =
            values.iter().take(MAX_NAMES - 1).map(|(n, v)| (Series::Name(key, Arc::from(*n)), *v)).collect();
        if values.len() >= MAX_NAMES {
            series.push((Series::Overflow, values.values().skip(MAX_NAMES - 1).sum()));
        }
        self.counter(name, unit, description, series);
    }

    fn info(&mut self, name: &'static str, description: &str, value: &str, more: Vec<KeyValue>) {
        let mut attributes = vec![convert::text(name, value)];
        attributes.extend(more);
        let point = self.gauge_point(attributes, 1);
        self.gauge(name, "1", description, vec![point]);
    }

    fn gauge_point(&self, attributes: Vec<KeyValue>, value: u64) -> NumberDataPoint {
        NumberDataPoint {
            attributes,
            time_unix_nano: self.end,
            value: Some(number_data_point::Value::AsInt(convert::clamp(value))),
            ..Default::default()
        }
    }

    fn push(&mut self, name: &str, unit: &str, description: &str, data: metric::Data) {
        self.metrics.push(Metric {
            name: name.into(),
            unit: unit.into(),
            description: description.into(),
            data: Some(data),
            ..Default::default()
        });
    }

    fn gauge(&mut self, name: &str, unit: &str, description: &str, data_points: Vec<NumberDataPoint>) {
        if !data_points.is_empty() {
            self.push(name, unit, description, metric::Data::Gauge(Gauge { data_points }));
        }
    }

    fn up_down_counter(&mut self, name: &str, unit: &str, description: &str, value: i64) {
        let point = NumberDataPoint {
            start_time_unix_nano: self.process.begin_unix_nano,
            time_unix_nano: self.end,
            value: Some(number_data_point::Value::AsInt(value)),
            ..Default::default()
        };
        let sum = Sum {
            data_points: vec![point],
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: false,
        };
        self.push(name, unit, description, metric::Data::Sum(sum));
    }

    /// Where a point's time begins.
    fn start(&self, delta: bool) -> (u64, AggregationTemporality) {
        if delta {
            (self.process.last_unix_nano, AggregationTemporality::Delta)
        } else {
            (self.process.begin_unix_nano, AggregationTemporality::Cumulative)
        }
    }

    fn counter(&mut self, name: &'static str, unit: &str, description: &str, series: Vec<(Series, u64)>) {
        if series.is_empty() {
            return;
        }
        let delta = self.temporality == Temporality::Delta;
        let (start, temporality) = self.start(delta);
        let mut data_points = Vec::with_capacity(series.len());
        for (series, total) in series {
            let attributes = attributes(&series);
            let last = self.process.counters.entry((name, series)).or_default();
            let earlier = *last;
            // A total never goes back, whatever the table lost.
            *last = total.max(earlier);
            let value = if delta { *last - earlier } else { *last };
            data_points.push(NumberDataPoint {
                attributes,
                start_time_unix_nano: start,
                time_unix_nano: self.end,
                value: Some(number_data_point::Value::AsInt(convert::clamp(value))),
                ..Default::default()
            });
        }
        let sum = Sum { data_points, aggregation_temporality: temporality.into(), is_monotonic: true };
        self.push(name, unit, description, metric::Data::Sum(sum));
    }

    fn histogram(&mut self, name: &'static str, description: &str, series: Vec<(Series, Histogram)>) {
        if series.is_empty() {
            return;
        }
        let delta = self.temporality != Temporality::Cumulative;
        let (start, temporality) = self.start(delta);
        let mut data_points = Vec::with_capacity(series.len());
        for (series, now) in series {
            let attributes = attributes(&series);
            let mut point = if delta {
                let last = self.process.histograms.entry((name, series)).or_default();
                let (difference, max_known) = histogram::difference(&now, last);
                **last = now;
                let mut point = histogram::data_point(&difference);
                if !max_known {
                    point.max = None;
                }
                point
            } else {
                histogram::data_point(&now)
            };
            point.attributes = attributes;
            point.start_time_unix_nano = start;
            point.time_unix_nano = self.end;
            data_points.push(point);
        }
        self.push_histogram(name, description, data_points, temporality);
    }

    fn push_histogram(
        &mut self,
        name: &str,
        description: &str,
        data_points: Vec<ExponentialHistogramDataPoint>,
        temporality: AggregationTemporality,
    ) {
        let data = ExponentialHistogram { data_points, aggregation_temporality: temporality.into() };
        self.push(name, "s", description, metric::Data::ExponentialHistogram(data));
    }
}

fn overflow_attribute() -> KeyValue {
    convert::attribute("otel.metric.overflow", Any::BoolValue(true))
}

fn attributes(series: &Series) -> Vec<KeyValue> {
    match series {
        Series::Only => Vec::new(),
        Series::Name(key, name) => vec![convert::text(key, name)],
        Series::Overflow => vec![overflow_attribute()],
        Series::Site((entry, created_by)) => {
            let mut attributes = Vec::with_capacity(6);
            if entry.is_known() {
                convert::place(&mut attributes, &CODE, entry);
            }
            if let Some(location) = created_by {
                convert::place(&mut attributes, &CREATED_BY, location);
            }
            attributes
        }
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
