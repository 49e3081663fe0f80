//! The text of `/metrics`: Prometheus's exposition format 0.0.4. Pure.
//!
//! A process's figures are those of the metric catalogue, bounded as those of OTLP are, but that a histogram counts
//! as its lines ([`WEIGHTS`]): [`MAX_SERIES`] a process, [`MAX_SERIES_OF_NODE`] in all. What a process has beyond is
//! summed up in a series with `otel_metric_overflow="true"`; processes beyond have their most important figures
//! only, and are counted. Lifetimes, which OTLP has by creation site, are told of all sites together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use gotrace_common::{BUCKETS, Histogram, bucket_upper_bound_ns};

use super::Agent;
use gotrace_model::{
    Interval, Resource, Value as Attribute,
    metrics::{
        self as catalogue, Kind, LIFETIME, LabelValue, Metric, Sample, Series, Value,
        admission::{Admitted, Room, SeriesBounds, Weights},
    },
    printable::printable,
};

/// Series that one process may have.
pub const MAX_SERIES: usize = 262;
/// Series of all processes.
pub const MAX_SERIES_OF_NODE: usize = 20_000;
/// Upper bounds of histograms' buckets, in seconds, as the page writes them.
const BOUNDS: [(f64, &str); 6] =
    [(1e-5, "1e-05"), (1e-4, "0.0001"), (1e-3, "0.001"), (1e-2, "0.01"), (1e-1, "0.1"), (1.0, "1")];
/// Series of a histogram: its buckets, the one without bound, sum and count.
const PER_HISTOGRAM: usize = BOUNDS.len() + 3;
/// What series cost on the page.
const WEIGHTS: Weights =
    Weights { histogram: PER_HISTOGRAM, lifetimes_by_site: false, more: 2, reasons_kept: 7, sites_kept: 10 };

/// A process's last state, and what the exporter dropped of its spans.
pub(super) struct Shown<'a> {
    pub interval: &'a Interval,
    pub spans_dropped: BTreeMap<&'static str, u64>,
    pub admitted: &'a mut Admitted,
}

/// A metric with its samples.
#[derive(Debug)]
struct Family {
    help: &'static str,
    kind: Kind,
    text: String,
}

#[derive(Debug, Default)]
struct Page {
    families: BTreeMap<String, Family>,
}

/// What all processes may have.
pub(super) fn room(routes: usize) -> Room {
    Room::new(SeriesBounds { per_process: MAX_SERIES, all: MAX_SERIES_OF_NODE, routes }, WEIGHTS)
}

/// The page.
pub(super) fn page<'a>(processes: impl Iterator<Item = Shown<'a>>, room: &mut Room, agent: &Agent) -> String {
    let mut page = Page::default();
    let mut brief = 0;
    for Shown { interval, spans_dropped, admitted } in processes {
        let labels = process_labels(&interval.resource, interval.pid);
        page.beside(interval, &labels);
        for sample in catalogue::samples(interval, &spans_dropped, admitted, room) {
            page.process(sample, &labels);
        }
        brief += u32::from(!admitted.has_entered());
    }
    page.gauge(
        "gotrace_processes_brief",
        "Processes with too many series to export all.",
        "",
        f64::from(brief),
    );
    page.agent(agent);
    page.text()
}

impl Page {
    fn text(self) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, text: samples }) in self.families {
            let kind = match kind {
                Kind::Gauge | Kind::UpDownCounter => "gauge",
                Kind::Counter => "counter",
                Kind::Histogram => "histogram",
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }

    fn family(&mut self, name: &str, help: &'static str, kind: Kind) -> &mut String {
        let family = || Family { help, kind, text: String::new() };
        &mut self.families.entry(name.to_owned()).or_insert_with(family).text
    }

    fn sample(&mut self, name: &str, help: &'static str, kind: Kind, labels: &str, value: f64) {
        let text = self.family(name, help, kind);
        let _ = if labels.is_empty() {
            writeln!(text, "{name} {value}")
        } else {
            writeln!(text, "{name}{{{labels}}} {value}")
        };
    }

    fn gauge(&mut self, name: &str, help: &'static str, labels: &str, value: f64) {
        self.sample(name, help, Kind::Gauge, labels, value);
    }

    fn counter(&mut self, name: &str, help: &'static str, labels: &str, value: u64) {
        self.sample(name, help, Kind::Counter, labels, value as f64);
    }

    fn histogram(&mut self, name: &str, help: &'static str, labels: &str, histogram: &Histogram) {
        let text = self.family(name, help, Kind::Histogram);
        for (bound, written) in BOUNDS {
            let below: u64 = (0..BUCKETS)
                .take_while(|bucket| bucket_upper_bound_ns(*bucket) as f64 <= bound * 1e9)
                .map(|bucket| histogram.buckets[bucket])
                .sum();
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{written}\"}} {below}");
        }
        let Histogram { sum_ns, buckets, .. } = histogram;
        // The kernel side counts without a lock: the buckets are what the total must agree with.
        let count: u64 = buckets.iter().sum();
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {}", *sum_ns as f64 / 1e9);
        let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
    }

    /// What the page has beside the catalogue's figures.
    fn beside(&mut self, interval: &Interval, process: &str) {
        let lost: u64 = interval.lost.values().sum();
        self.gauge(
            "gotrace_incomplete",
            "1 if values of the process may be lower bounds.",
            process,
            f64::from(u8::from(lost > 0 || interval.alive_is_lower_bound)),
        );
        let info = target_info(&interval.resource, process);
        self.gauge("target_info", "Metadata of the process.", &info, 1.0);
    }

    fn process(&mut self, sample: Sample, process: &str) {
        // The format has no exemplars.
        let Sample { metric, series, exemplars: _ } = sample;
        let Metric { help, kind, .. } = *metric;
        let name = metric.prometheus_name();
        if *metric == LIFETIME {
            let mut all = Histogram::default();
            for (_, value) in series {
                if let Value::Durations(durations) = value {
                    all.merge(&durations);
                }
            }
            self.histogram(&name, help, process, &all);
            return;
        }
        for (series, value) in series {
            let labels = labels(process, &series);
            match value {
                Value::Int(count) => self.sample(&name, help, kind, &labels, count as f64),
                Value::Double(number) => self.sample(&name, help, kind, &labels, number),
                Value::Nanoseconds(ns) => self.sample(&name, help, kind, &labels, ns as f64 / 1e9),
                Value::Durations(durations) => self.histogram(&name, help, &labels, &durations),
            }
        }
    }

    fn agent(&mut self, agent: &Agent) {
        let Agent {
            processes,
            totals,
            gauges,
            coverage,
            threads,
            probed_files,
            export,
            cpu_seconds,
            resident_bytes,
        } = agent;
        for sample in coverage.iter().flat_map(catalogue::node::coverage) {
            self.process(sample, "");
        }
        for (engine, count) in processes {
            self.gauge(
                "gotrace_processes",
                "Traced processes.",
                &format!("gotrace_engine=\"{engine}\""),
                *count as f64,
            );
        }
        for (name, moves) in threads {
            self.gauge(
                "gotrace_thread_up",
                "1 while this thread of gotrace makes progress.",
                &format!("gotrace_thread=\"{name}\""),
                f64::from(u8::from(*moves)),
            );
        }
        self.gauge("gotrace_probed_files", "Executables with probes.", "", *probed_files as f64);
        for (name, help, total) in totals {
            self.counter(name, help, "", *total);
        }
        for (name, help, figure) in gauges {
            self.gauge(name, help, "", *figure as f64);
        }
        self.sample(
            "process_cpu_seconds_total",
            "CPU time used by gotrace.",
            Kind::Counter,
            "",
            *cpu_seconds,
        );
        self.gauge(
            "process_resident_memory_bytes",
            "Resident memory of gotrace.",
            "",
            *resident_bytes as f64,
        );
        let Some(export) = export else { return };
        for (name, help, value) in [
            ("gotrace_exporter_spans_sent_total", "Spans accepted by the collector.", export.spans_sent),
            (
                "gotrace_exporter_points_sent_total",
                "Metric points accepted by the collector.",
                export.points_sent,
            ),
            ("gotrace_exporter_logs_sent_total", "Log records accepted by the collector.", export.logs_sent),
            ("gotrace_exporter_requests_total", "Requests accepted by the collector.", export.requests),
            ("gotrace_exporter_retries_total", "Retried requests.", export.retries),
        ] {
            self.counter(name, help, "", value);
        }
        if let Some(spool) = &export.spool {
            for (name, help, value) in [
                (
                    "gotrace_exporter_spool_size_bytes",
                    "Bytes in the spool, waiting for the collector.",
                    spool.bytes,
                ),
                ("gotrace_exporter_spool_limit_bytes", "Size limit of the spool.", spool.limit),
                (
                    "gotrace_exporter_spool_spans",
                    "Spans in the spool, waiting for the collector.",
                    spool.spans,
                ),
                (
                    "gotrace_exporter_spool_usable",
                    "1 while the spool directory is usable.",
                    u64::from(spool.trouble.is_none()),
                ),
            ] {
                self.gauge(name, help, "", value as f64);
            }
        }
        for (name, help, dropped) in [
            (
                "gotrace_exporter_spans_dropped_total",
                "Spans not delivered to the collector or the file.",
                &export.spans_dropped,
            ),
            (
                "gotrace_exporter_points_dropped_total",
                "Metric points not delivered to the collector or the file; the next report makes up for them.",
                &export.points_dropped,
            ),
            (
                "gotrace_exporter_logs_dropped_total",
                "Log records not delivered to the collector or the file.",
                &export.logs_dropped,
            ),
        ] {
            for (why, count) in dropped {
                self.counter(name, help, &format!("gotrace_dropped_reason=\"{why}\""), *count);
            }
        }
    }
}

/// Labels of a series: the process's, if it is one's, and those that tell it from the metric's others.
fn labels(process: &str, series: &Series) -> String {
    let mut labels = process.to_owned();
    for (name, value) in series.labels() {
        let name = label_name(name);
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = match value {
            LabelValue::Text(text) => write!(labels, "{comma}{name}=\"{}\"", escape(&text)),
            LabelValue::Name(text) => write!(labels, "{comma}{name}=\"{text}\""),
            LabelValue::Int(number) => write!(labels, "{comma}{name}=\"{number}\""),
            LabelValue::Bool(yes) => write!(labels, "{comma}{name}=\"{yes}\""),
        };
    }
    labels
}

/// A label's name: letters, digits and `_`, no digit first; names that begin with two `_` are Prometheus's own.
fn label_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) { name } else { format!("key_{name}") }
}

/// Labels of every series of a process.
const PROCESS_LABELS: [&str; 3] = ["process_pid", "service_name", "service_instance_id"];

/// What tells a process from others.
fn process_labels(resource: &Resource, pid: u32) -> String {
    let of = |name| escape(resource.text(name).unwrap_or_default());
    format!(
        "process_pid=\"{pid}\",service_name=\"{}\",service_instance_id=\"{}\"",
        of("service.name"),
        of("service.instance.id")
    )
}

/// Everything known of it, but for lists and what is long.
fn target_info(resource: &Resource, process: &str) -> String {
    let mut labels = process.to_owned();
    let mut used: BTreeSet<String> = PROCESS_LABELS.map(String::from).into();
    for (name, value) in &resource.attributes {
        if matches!(&**name, "process.pid" | "service.name" | "service.instance.id") {
            continue;
        }
        let name = label_name(name);
        // Two names may be one here, which would make the page unreadable.
        if !used.insert(name.clone()) {
            continue;
        }
        let _ = match value {
            Attribute::Text(text) => write!(labels, ",{name}=\"{}\"", escape(text)),
            Attribute::Double(number) => write!(labels, ",{name}=\"{number}\""),
            Attribute::Int(number) => write!(labels, ",{name}=\"{number}\""),
            Attribute::List(_) => Ok(()),
        };
    }
    labels
}

/// A label's value: what acts on a terminal is spelled out, then what the format wants escaped is.
fn escape(text: &str) -> String {
    printable(text).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
