//! The text of `/metrics`: Prometheus's exposition format 0.0.4. Pure.
//!
//! Series are bounded as those of OTLP are: [`MAX_SERIES`] a process, [`MAX_SERIES_OF_NODE`] in all. What a
//! process has beyond is summed up in a series with `otel_metric_overflow="true"`; processes beyond have
//! their most important figures only, and are counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use gotrace_common::{BUCKETS, Histogram, bucket_upper_bound_ns};

use super::{
    Agent,
    admitted::{Admitted, REASONS, SITES},
};
use crate::{
    printable::printable,
    sink::model::{Interval, Location, Resource, Value},
};

/// Series that one process may have.
pub const MAX_SERIES: usize = 200;
/// Series of all processes.
pub const MAX_SERIES_OF_NODE: usize = 20_000;
/// Upper bounds of histograms' buckets, in seconds, as the page writes them.
const BOUNDS: [(f64, &str); 6] =
    [(1e-5, "1e-05"), (1e-4, "0.0001"), (1e-3, "0.001"), (1e-2, "0.01"), (1e-1, "0.1"), (1.0, "1")];
/// Series of a histogram: its buckets, the one without bound, sum and count.
const PER_HISTOGRAM: usize = BOUNDS.len() + 3;
/// Leaks of a process that are told apart, and as many suspected ones.
const LEAKS: usize = 5;
/// Kinds of events and losses that are told apart.
const KINDS: usize = 12;

/// What a process can have at most: its most important figures, reasons, sites, kinds, histograms, leaks.
const MOST: usize = 6
    + (REASONS + 1) * (1 + PER_HISTOGRAM)
    + 3 * (SITES + 1)
    + 2 * KINDS
    + 4
    + 3 * PER_HISTOGRAM
    + 4 * (LEAKS + 1)
    + 1;
const _: () = assert!(MOST <= MAX_SERIES, "the bound holds by construction");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
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
    families: BTreeMap<&'static str, Family>,
    series: usize,
}

/// The page.
pub(super) fn page<'a>(
    processes: impl Iterator<Item = (&'a Interval, &'a mut Admitted)>,
    agent: &Agent,
) -> String {
    let mut page = Page::default();
    let mut brief = 0;
    for (interval, admitted) in processes {
        let labels = process_labels(&interval.resource, interval.pid);
        if page.series + MAX_SERIES <= MAX_SERIES_OF_NODE {
            page.process(interval, &labels, admitted);
        } else {
            brief += 1;
            page.most_important(interval, &labels);
        }
    }
    page.gauge(
        "gotrace_processes_brief",
        "Processes without room for all of their series.",
        "",
        brief as f64,
    );
    page.agent(agent);
    page.text()
}

impl Page {
    fn text(self) -> String {
        let mut text = String::new();
        for (name, Family { help, kind, text: samples }) in self.families {
            let kind = match kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Histogram => "histogram",
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        text
    }

    fn family(&mut self, name: &'static str, help: &'static str, kind: Kind) -> &mut String {
        &mut self.families.entry(name).or_insert_with(|| Family { help, kind, text: String::new() }).text
    }

    fn sample(&mut self, name: &'static str, help: &'static str, kind: Kind, labels: &str, value: f64) {
        self.series += 1;
        let text = self.family(name, help, kind);
        let _ = if labels.is_empty() {
            writeln!(text, "{name} {value}")
        } else {
            writeln!(text, "{name}{{{labels}}} {value}")
        };
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &str, value: f64) {
        self.sample(name, help, Kind::Gauge, labels, value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: &str, value: u64) {
        self.sample(name, help, Kind::Counter, labels, value as f64);
    }

    fn histogram(&mut self, name: &'static str, help: &'static str, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        self.series += PER_HISTOGRAM;
        let text = self.family(name, help, Kind::Histogram);
        for (bound, written) in BOUNDS {
            let below: u64 = (0..BUCKETS)
                .take_while(|bucket| bucket_upper_bound_ns(*bucket) as f64 <= bound * 1e9)
                .map(|bucket| histogram.buckets[bucket])
                .sum();
            let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{written}\"}} {below}");
        }
        let Histogram { count, sum_ns, .. } = histogram;
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let braces = |text: &str| if text.is_empty() { String::new() } else { format!("{{{text}}}") };
        let _ = writeln!(text, "{name}_sum{} {}", braces(labels), *sum_ns as f64 / 1e9);
        let _ = writeln!(text, "{name}_count{} {count}", braces(labels));
    }

    /// Six series.
    fn most_important(&mut self, interval: &Interval, process: &str) {
        let Interval { alive, engine, level, probe_cost_share, resource, .. } = interval;
        self.gauge("go_goroutine_count", "Count of live goroutines.", process, *alive as f64);
        let labels = format!("{process},gotrace_engine=\"{engine}\"");
        self.gauge("gotrace_engine_ratio", "Engine that gives the figures.", &labels, 1.0);
        let labels = format!("{process},gotrace_level=\"{level}\"");
        self.gauge("gotrace_level_ratio", "Level of detail.", &labels, 1.0);
        if let Some(share) = probe_cost_share {
            self.gauge(
                "gotrace_probe_cost_ratio",
                "Estimated cost of the probes as a share of the target's CPU time.",
                process,
                *share,
            );
        }
        let lost: u64 = interval.lost.values().sum();
        self.gauge(
            "gotrace_incomplete",
            "1 when a figure of the process may be a lower bound.",
            process,
            f64::from(u8::from(lost > 0 || interval.alive_is_lower_bound)),
        );
        let info = target_info(resource, process);
        self.gauge("target_info", "What is known of the process.", &info, 1.0);
    }

    fn process(&mut self, interval: &Interval, process: &str, admitted: &mut Admitted) {
        self.most_important(interval, process);
        self.waiting(interval, process, admitted);
        self.sites(interval, process, admitted);
        self.leaks(interval, process);
        let Interval { events, lost, repaired, sampled_out, schedule, snapshots, .. } = interval;
        self.kinds(
            "gotrace_events_total",
            "Events that the probes saw.",
            process,
            "gotrace_event_kind",
            events,
        );
        self.kinds(
            "gotrace_events_lost_total",
            "Events that did not reach the table of goroutines.",
            process,
            "gotrace_lost_kind",
            lost,
        );
        self.kinds(
            "gotrace_table_repaired_total",
            "Births and deaths that were lost, found by snapshots and mended.",
            process,
            "gotrace_repaired_kind",
            repaired,
        );
        self.kinds(
            "gotrace_spans_sampled_out_total",
            "Spans that sampling left out.",
            process,
            "gotrace_sampled_out_reason",
            sampled_out,
        );
        if schedule.count > 0 {
            self.histogram(
                "go_schedule_duration_seconds",
                "The time goroutines have spent in the scheduler in a runnable state before actually running.",
                process,
                schedule,
            );
        }
        if snapshots.count > 0 {
            self.histogram(
                "gotrace_snapshot_duration_seconds",
                "How long reading every goroutine of the process took.",
                process,
                snapshots,
            );
        }
    }

    fn kinds(
        &mut self,
        name: &'static str,
        help: &'static str,
        process: &str,
        label: &str,
        kinds: &BTreeMap<&'static str, u64>,
    ) {
        for (kind, count) in kinds.iter().take(KINDS - 1) {
            self.counter(name, help, &format!("{process},{label}=\"{kind}\""), *count);
        }
        if kinds.len() >= KINDS {
            let rest = kinds.values().skip(KINDS - 1).sum();
            self.counter(name, help, &overflow(process), rest);
        }
    }

    fn waiting(&mut self, interval: &Interval, process: &str, admitted: &mut Admitted) {
        const COUNT: (&str, &str) = (
            "gotrace_goroutine_count",
            "Goroutines by state; those that run or could run are what is left of go_goroutine_count.",
        );
        const WAITS: (&str, &str) =
            ("gotrace_goroutine_wait_duration_seconds", "From park to the next run, all waits.");
        let mut beyond = 0;
        for (reason, count) in &interval.waiting {
            if !admitted.reason(reason) {
                beyond += count;
                continue;
            }
            let state = if &**reason == "syscall" { "syscall" } else { "waiting" };
            let labels =
                format!("{process},gotrace_state=\"{state}\",gotrace_wait_reason=\"{}\"", escape(reason));
            self.gauge(COUNT.0, COUNT.1, &labels, *count as f64);
        }
        if beyond > 0 {
            self.gauge(COUNT.0, COUNT.1, &overflow(process), beyond as f64);
        }
        let mut beyond = Histogram::default();
        for (reason, histogram) in interval.waits.iter().filter(|(_, h)| h.count > 0) {
            if admitted.reason(reason) {
                let labels = format!("{process},gotrace_wait_reason=\"{}\"", escape(reason));
                self.histogram(WAITS.0, WAITS.1, &labels, histogram);
            } else {
                beyond.merge(histogram);
            }
        }
        if beyond.count > 0 {
            self.histogram(WAITS.0, WAITS.1, &overflow(process), &beyond);
        }
    }

    fn sites(&mut self, interval: &Interval, process: &str, admitted: &mut Admitted) {
        let mut lifetimes = Histogram::default();
        let mut beyond = None;
        for site in &interval.sites {
            lifetimes.merge(&site.lifetimes);
            let figures = (site.born_total, site.died_total, site.alive);
            let key = (Arc::clone(&site.entry), site.created_by.clone());
            if admitted.site(&key) {
                let labels = format!("{process}{}", site_labels(&site.entry, site.created_by.as_deref()));
                self.site(&labels, figures);
            } else {
                let (born, died, alive) = beyond.get_or_insert((0, 0, 0));
                *born += figures.0;
                *died += figures.1;
                *alive += figures.2;
            }
        }
        if let Some(figures) = beyond {
            self.site(&overflow(process), figures);
        }
        if lifetimes.count > 0 {
            self.histogram(
                "gotrace_goroutine_lifetime_seconds",
                "From creation to exit, of goroutines that ended.",
                process,
                &lifetimes,
            );
        }
    }

    fn leaks(&mut self, interval: &Interval, process: &str) {
        const PROVEN: (&str, &str) =
            ("gotrace_leak_proven", "Goroutines that can never run again, as proven from the heap.");
        const RETAINED: (&str, &str) =
            ("gotrace_leak_retained_bytes", "Heap that leaked goroutines alone keep alive.");
        const SUSPECTS: (&str, &str) =
            ("gotrace_leak_suspects", "Goroutines that may never finish, as far as looks tell.");
        const GROWTH: (&str, &str) = (
            "gotrace_leak_growth_per_second",
            "How many more of them there are each second, at least (95 %).",
        );
        let Interval { leaks, leaks_refuted, suspects, .. } = interval;
        for leak in leaks.iter().take(LEAKS) {
            let labels = leak_labels(
                process,
                (&leak.entry, leak.created_by.as_deref(), leak.waits_at.as_deref()),
                &leak.reason,
            );
            self.gauge(PROVEN.0, PROVEN.1, &labels, leak.count as f64);
            if let Some(bytes) = leak.retained_bytes {
                self.gauge(RETAINED.0, RETAINED.1, &labels, bytes as f64);
            }
        }
        if let Some(rest) = leaks.get(LEAKS..).filter(|rest| !rest.is_empty()) {
            let count: u64 = rest.iter().map(|l| l.count).sum();
            let bytes: u64 = rest.iter().filter_map(|l| l.retained_bytes).sum();
            self.gauge(PROVEN.0, PROVEN.1, &overflow(process), count as f64);
            self.gauge(RETAINED.0, RETAINED.1, &overflow(process), bytes as f64);
        }
        for suspected in suspects.iter().take(LEAKS) {
            let mut labels = leak_labels(
                process,
                (&suspected.entry, suspected.created_by.as_deref(), suspected.waits_at.as_deref()),
                &suspected.reason,
            );
            let _ = write!(labels, ",gotrace_leak_verdict=\"{}\"", suspected.verdict);
            self.gauge(SUSPECTS.0, SUSPECTS.1, &labels, suspected.count as f64);
            if let Some((low, _)) = suspected.growth_per_second {
                self.gauge(GROWTH.0, GROWTH.1, &labels, low);
            }
        }
        if let Some(rest) = suspects.get(LEAKS..).filter(|rest| !rest.is_empty()) {
            let count: u64 = rest.iter().map(|s| s.count).sum();
            self.gauge(SUSPECTS.0, SUSPECTS.1, &overflow(process), count as f64);
        }
        if *leaks_refuted > 0 {
            self.counter(
                "gotrace_leak_refuted_total",
                "Proofs of leak that turned out wrong: errors of gotrace.",
                process,
                *leaks_refuted,
            );
        }
    }

    fn site(&mut self, labels: &str, (born, died, alive): (u64, u64, u64)) {
        self.counter("gotrace_goroutine_created_total", "Goroutines created.", labels, born);
        self.counter("gotrace_goroutine_exited_total", "Goroutines that ended.", labels, died);
        self.gauge("gotrace_goroutine_alive", "Goroutines alive.", labels, alive as f64);
    }

    fn agent(&mut self, agent: &Agent) {
        let Agent { processes, totals, gauges, probed_files, export, cpu_seconds, resident_bytes } = agent;
        for (engine, count) in processes {
            self.gauge(
                "gotrace_processes",
                "Processes that are traced.",
                &format!("gotrace_engine=\"{engine}\""),
                *count as f64,
            );
        }
        self.gauge("gotrace_probed_files", "Executables that have probes.", "", *probed_files as f64);
        for (name, help, total) in totals {
            self.counter(name, help, "", *total);
        }
        for (name, help, figure) in gauges {
            self.gauge(name, help, "", *figure as f64);
        }
        self.sample(
            "process_cpu_seconds_total",
            "CPU time of gotrace itself.",
            Kind::Counter,
            "",
            *cpu_seconds,
        );
        self.gauge("process_resident_memory_bytes", "Memory of gotrace itself.", "", *resident_bytes as f64);
        let Some(export) = export else { return };
        for (name, help, value) in [
            ("gotrace_exporter_spans_sent_total", "Spans that the collector took.", export.spans_sent),
            (
                "gotrace_exporter_points_sent_total",
                "Metric points that the collector took.",
                export.points_sent,
            ),
            ("gotrace_exporter_requests_total", "Requests that the collector took.", export.requests),
            ("gotrace_exporter_retries_total", "Attempts that were repeated.", export.retries),
        ] {
            self.counter(name, help, "", value);
        }
        if let Some(spool) = &export.spool {
            for (name, help, value) in [
                (
                    "gotrace_exporter_spool_size_bytes",
                    "Bytes that wait on disk for the collector.",
                    spool.bytes,
                ),
                ("gotrace_exporter_spool_limit_bytes", "Bytes that may wait on disk.", spool.limit),
                ("gotrace_exporter_spool_spans", "Spans that wait on disk.", spool.spans),
                (
                    "gotrace_exporter_spool_usable",
                    "1 while the spool's directory can be used.",
                    u64::from(spool.trouble.is_none()),
                ),
            ] {
                self.gauge(name, help, "", value as f64);
            }
        }
        for (why, count) in &export.spans_dropped {
            self.counter(
                "gotrace_exporter_spans_dropped_total",
                "Spans that did not reach the collector or the file.",
                &format!("gotrace_dropped_reason=\"{why}\""),
                *count,
            );
        }
    }
}

fn overflow(process: &str) -> String {
    format!("{process},otel_metric_overflow=\"true\"")
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
            Value::Text(text) => write!(labels, ",{name}=\"{}\"", escape(text)),
            Value::Double(number) => write!(labels, ",{name}=\"{number}\""),
            Value::Int(number) => write!(labels, ",{name}=\"{number}\""),
            Value::List(_) => Ok(()),
        };
    }
    labels
}

fn leak_labels(
    process: &str,
    (entry, created_by, waits_at): (&Location, Option<&Location>, Option<&Location>),
    reason: &str,
) -> String {
    let mut labels =
        format!("{process}{},gotrace_wait_reason=\"{}\"", site_labels(entry, created_by), escape(reason));
    if let Some(at) = waits_at {
        let _ = write!(
            labels,
            ",gotrace_wait_function_name=\"{}\",gotrace_wait_file_path=\"{}\",gotrace_wait_line_number=\"{}\"",
            escape(&at.function),
            escape(&at.file),
            at.line
        );
    }
    labels
}

fn site_labels(entry: &Location, created_by: Option<&Location>) -> String {
    let mut labels = String::new();
    let mut place = |prefix: &str, location: &Location| {
        let _ = write!(
            labels,
            ",{prefix}_function_name=\"{}\",{prefix}_file_path=\"{}\",{prefix}_line_number=\"{}\"",
            escape(&location.function),
            escape(&location.file),
            location.line
        );
    };
    if entry.is_known() {
        place("code", entry);
    }
    if let Some(created_by) = created_by {
        place("gotrace_created_by", created_by);
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
