//! `attach --format json`: one object a line, schema `gotrace.attach/1`. Unknown is `null`; times are
//! `*_unix_nano` or `*_ns`, integers.

use std::{
    io::{self, Write},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use gotrace_common::Histogram;
use serde_json::{Value as Json, json};

use crate::{collector, places, requests};
use gotrace_model::printable::write_json;
use gotrace_model::{
    Holder, Interval, Leak, LeakPart, Location, Quantile, Resource, Site, Summary, Suspected, Value,
};

/// The schema of these lines.
pub const SCHEMA: &str = "gotrace.attach/1";

fn attribute<'a>(resource: &'a Resource, name: &str) -> Option<&'a Arc<str>> {
    match resource.attributes.get(name) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

/// The first line of a process: its probes are in place.
///
/// # Errors
/// What the writer says.
pub fn header(
    out: &mut impl Write,
    resource: &Resource,
    pid: u32,
    engine: &str,
    level: &str,
) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    header_at(out, resource, pid, (engine, level), u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// The same of another time.
///
/// # Errors
/// What the writer says.
pub fn header_at(
    out: &mut impl Write,
    resource: &Resource,
    pid: u32,
    (engine, level): (&str, &str),
    time_unix_nano: u64,
) -> io::Result<()> {
    header_of(out, SCHEMA, resource, pid, (engine, level), time_unix_nano)
}

/// The same of another schema.
pub(crate) fn header_of(
    out: &mut impl Write,
    schema: &str,
    resource: &Resource,
    pid: u32,
    (engine, level): (&str, &str),
    time_unix_nano: u64,
) -> io::Result<()> {
    let line = json!({
        "schema": schema,
        "time_unix_nano": time_unix_nano,
        "pid": pid,
        "executable": attribute(resource, "process.executable.path"),
        "go_version": attribute(resource, "process.runtime.version"),
        "engine": engine,
        "level": level,
    });
    write(out, &line)
}

/// A line for an interval.
///
/// # Errors
/// What the writer says.
pub fn interval(out: &mut impl Write, interval: &Interval) -> io::Result<()> {
    write(out, &json!({ "interval": state(interval, false) }))
}

/// The last line of a process.
///
/// # Errors
/// What the writer says.
pub fn summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let Summary { last, cost_ns_per_event, spans, spans_dropped, points_dropped, logs_dropped, ended } =
        summary;
    let mut line = state(last, true);
    if let Json::Object(fields) = &mut line {
        // Since attaching, not within the last interval.
        fields.insert("born".into(), last.born_total.into());
        fields.insert("died".into(), last.died_total.into());
        fields.insert("process_cpu_ns".into(), json!(last.process_cpu_total_ns));
        fields.insert("sites".into(), last.sites.iter().map(|s| site(s, true)).collect());
        fields.insert("cost_ns_per_event".into(), json!(cost_ns_per_event));
        fields.insert("spans".into(), json!(spans));
        fields.insert("spans_dropped".into(), json!(spans_dropped));
        fields.insert("points_dropped".into(), json!(points_dropped));
        fields.insert("logs_dropped".into(), json!(logs_dropped));
        fields.insert("ended".into(), json!(ended));
    }
    write(out, &json!({ "summary": line }))
}

/// `total`: figures of requests since attaching.
fn state(interval: &Interval, total: bool) -> Json {
    let (waits_at, waits_at_others) = places::to_json(&interval.waits_at);
    json!({
        "pid": interval.pid,
        "start_unix_nano": interval.start_unix_nano,
        "end_unix_nano": interval.end_unix_nano,
        "alive": interval.alive,
        "alive_is_lower_bound": interval.alive_is_lower_bound,
        "born": interval.born,
        "died": interval.died,
        "lost": interval.lost,
        "repaired": interval.repaired,
        "spans_sampled_out": interval.sampled_out,
        "events": interval.events,
        "waiting": interval.waiting.iter().map(|(k, n)| (k.to_string(), json!(n))).collect::<Json>(),
        "waits": interval.waits.iter().map(|(k, h)| (k.to_string(), counted(h))).collect::<Json>(),
        "waits_at": waits_at,
        "waits_at_others": counted(&waits_at_others),
        "min_wait_ns": interval.waits_at.min_wait_ns,
        "schedule_delay_ns": counted(&interval.schedule),
        "syscall_ns": counted(&interval.syscalls),
        "snapshot_ns": counted(&interval.snapshots),
        "gc": collector::to_json(&interval.collector),
        "requests": interval.requests.as_deref().map(|of| requests::to_json(of, total)),
        "process_cpu_ns": interval.process_cpu_ns,
        "probe_cost_share": interval.probe_cost_share,
        "budget": interval.levels.budget,
        "engine": interval.engine,
        "level": interval.level,
        "level_wanted": interval.levels.wanted,
        "level_lowered_by": interval.level_reason,
        "level_change": interval.levels.change.map(|change| json!({
            "from": change.from,
            "to": change.to,
            "probe_cost_share": change.probe_cost_share,
        })),
        "level_ns": interval.levels.ns,
        "incomplete": interval.levels.incomplete(),
        "leaks": interval.leaks.iter().map(|l| leak(l, usize::MAX)).collect::<Vec<_>>(),
        "leaks_refuted": interval.leaks_refuted,
        "suspects": interval.suspects.iter().map(suspected).collect::<Vec<_>>(),
        "sites": interval.sites.iter().map(|s| site(s, false)).collect::<Vec<_>>(),
    })
}

fn site(site: &Site, total: bool) -> Json {
    json!({
        "entry": site.entry.is_known().then(|| location(&site.entry)),
        "created_by": site.created_by.as_deref().map(location),
        "system": site.is_system(),
        "alive": site.alive,
        "born": if total { site.born_total } else { site.born },
        "died": if total { site.died_total } else { site.died },
        "cpu_ns": site.known_cpu_ns(total),
        "throttled_ns": if total { site.throttled_total_ns } else { site.throttled_ns },
        "waiting": site.waiting.iter().map(|(k, n)| (k.to_string(), json!(n))).collect::<Json>(),
        "wait_ns": quantiles(&site.waits),
        "lifetime_ns": quantiles(&site.lifetimes),
        "oldest_ns": site.oldest_ns,
        "oldest_is_lower_bound": site.oldest_is_lower_bound,
    })
}

/// What is proven of a process, in one line.
///
/// # Errors
/// What the writer says.
pub fn proven(out: &mut (impl Write + ?Sized), interval: &Interval) -> io::Result<()> {
    let line = json!({"proven": {
        "pid": interval.pid,
        "leaks": interval.leaks.iter().map(|l| leak(l, usize::MAX)).collect::<Vec<_>>(),
        "leaks_refuted": interval.leaks_refuted,
    }});
    write_json(out, &line)?;
    out.write_all(b"\n")
}

/// `ids`: of at most so many goroutines.
pub(crate) fn leak(leak: &Leak, ids: usize) -> Json {
    json!({
        "entry": leak.entry.is_known().then(|| location(&leak.entry)),
        "created_by": leak.created_by.as_deref().map(location),
        "waits_at": leak.waits_at.as_deref().map(location),
        "wait_reason": leak.reason,
        "count": leak.count,
        "growth_per_second": leak.growth_per_second.map(|(low, high)| json!({ "low": low, "high": high })),
        "retained_bytes": leak.retained_bytes,
        "goids": leak.goids.get(..ids).unwrap_or(&leak.goids),
        "others": leak.others.iter().map(|p| part(p, ids)).collect::<Vec<_>>(),
        "place": leak.place,
        "holders": leak.holders.iter().map(holder).collect::<Vec<_>>(),
        "why": leak.why,
        "suppressed": leak.suppressed,
    })
}

fn part(part: &LeakPart, ids: usize) -> Json {
    json!({
        "entry": part.entry.is_known().then(|| location(&part.entry)),
        "created_by": part.created_by.as_deref().map(location),
        "waits_at": part.waits_at.as_deref().map(location),
        "wait_reason": part.reason,
        "count": part.goids.len(),
        "goids": part.goids.get(..ids).unwrap_or(&part.goids),
    })
}

fn holder(holder: &Holder) -> Json {
    json!({
        "goid": holder.goid,
        "function": holder.runs.is_known().then_some(&holder.runs.function),
        "frame": holder.frame.is_known().then(|| location(&holder.frame)),
        "state": holder.state,
        "wait_reason": holder.reason,
        "evidence": holder.evidence,
        "waits_for": holder.waits_for,
    })
}

pub(crate) fn suspected(suspected: &Suspected) -> Json {
    json!({
        "verdict": suspected.verdict,
        "entry": suspected.entry.is_known().then(|| location(&suspected.entry)),
        "created_by": suspected.created_by.as_deref().map(location),
        "waits_at": suspected.waits_at.as_deref().map(location),
        "wait_reason": suspected.reason,
        "count": suspected.count,
        "growth_per_second": suspected.growth_per_second.map(|(low, high)| json!({ "low": low, "high": high })),
        "standing_ns": suspected.standing_ns,
        "goids": suspected.goids,
        "place": suspected.place,
        "holders": suspected.holders.iter().map(holder).collect::<Vec<_>>(),
        "why": suspected.why,
        "suppressed": suspected.suppressed,
    })
}

pub(crate) fn location(location: &Location) -> Json {
    json!({
        "function": location.function,
        "file": (!location.file.is_empty()).then_some(&location.file),
        "line": (location.line != 0).then_some(location.line),
    })
}

pub(crate) fn quantiles(histogram: &Histogram) -> Json {
    let [p50, p99] = [0.5, 0.99].map(|q| Quantile::of(histogram, q));
    json!({
        "p50": p50.map(|p| p.at_most_ns),
        "p50_at_least": p50.map(|p| p.at_least_ns),
        "p99": p99.map(|p| p.at_most_ns),
        "p99_at_least": p99.map(|p| p.at_least_ns),
        "max": (histogram.count > 0).then_some(histogram.max_ns),
    })
}

pub(crate) fn counted(histogram: &Histogram) -> Json {
    let mut line = quantiles(histogram);
    if let Json::Object(fields) = &mut line {
        fields.insert("count".into(), histogram.count.into());
        fields.insert("sum".into(), histogram.sum_ns.into());
    }
    line
}

pub(crate) fn write(out: &mut impl Write, line: &Json) -> io::Result<()> {
    write_json(out, line)?;
    out.write_all(b"\n")?;
    // A reader waits for each line.
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::{lowered, sample};

    fn line(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Json {
        let mut bytes = Vec::new();
        write(&mut bytes).expect("a vector takes everything");
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1, "one line");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[test]
    fn an_interval_has_the_documented_shape() {
        let interval = line(|out| interval(out, &sample()));
        let interval = &interval["interval"];
        assert_eq!(interval["alive"], 12);
        assert_eq!(interval["born"], 5);
        assert_eq!(interval["lost"]["ring_create"], 3);
        let site = &interval["sites"][0];
        assert_eq!(site["entry"]["function"], "main.worker");
        assert_eq!(site["created_by"]["line"], 30);
        assert_eq!(site["waiting"]["chan receive"], 10);
        assert_eq!(
            (&site["cpu_ns"], &interval["process_cpu_ns"]),
            (&json!(420_000_000), &json!(500_000_000))
        );
        assert_eq!(interval["sites"][1]["cpu_ns"], Json::Null);
        // The upper of two: of the lower only the bucket is known.
        let waits = json!({
            "p50": 1_763_487, "p50_at_least": 1_482_910, "p99": 2_000_000, "p99_at_least": 2_000_000, "max": 2_000_000,
        });
        assert_eq!(site["wait_ns"], waits);
        assert_eq!(site["oldest_ns"], 7_000_000_000_u64);
        assert_eq!(site["oldest_is_lower_bound"], false);
        assert_eq!(interval["repaired"]["death"], 2);
        assert_eq!(interval["snapshot_ns"]["count"], 0);
        assert_eq!(interval["sites"][1]["entry"], Json::Null);
        assert_eq!(interval["sites"][1]["created_by"], Json::Null);
        assert_eq!(interval["sites"][1]["wait_ns"]["p50"], Json::Null);
        assert_eq!((&interval["level"], &interval["level_wanted"]), (&json!("waits"), &json!("waits")));
        assert_eq!((&interval["level_lowered_by"], &interval["level_change"]), (&Json::Null, &Json::Null));
        assert_eq!((&interval["budget"], &interval["incomplete"]), (&Json::Null, &json!([])));
    }

    #[test]
    fn what_the_budget_took_away_is_said() {
        let interval = line(|out| interval(out, &lowered()));
        let interval = &interval["interval"];
        for (field, value) in [
            ("level", json!("lifecycle")),
            ("level_wanted", json!("waits")),
            ("level_lowered_by", json!("budget")),
            ("level_change", json!({"from": "waits", "to": "lifecycle", "probe_cost_share": 0.28})),
            ("level_ns", json!({"waits": 1_500_000_000_u64, "lifecycle": 8_500_000_000_u64})),
            ("incomplete", json!(["waits", "waits_at", "cpu_ns", "spans"])),
            ("budget", json!(0.05)),
        ] {
            assert_eq!(interval[field], value, "{field}");
        }
    }

    #[test]
    fn a_summary_tells_totals_and_what_was_lost() {
        let summary_of = Summary {
            last: sample(),
            cost_ns_per_event: None,
            spans: 9,
            spans_dropped: [("queue_full", 2)].into(),
            points_dropped: [("unreachable", 7)].into(),
            logs_dropped: [].into(),
            ended: "interrupted".into(),
        };
        let summary = line(|out| summary(out, &summary_of));
        let summary = &summary["summary"];
        assert_eq!(summary["born"], 100);
        assert_eq!(summary["process_cpu_ns"], 2_500_000_000_u64);
        assert_eq!(summary["sites"][0]["cpu_ns"], 2_100_000_000_u64);
        assert_eq!(summary["cost_ns_per_event"], Json::Null);
        assert_eq!(summary["spans_dropped"]["queue_full"], 2);
        assert_eq!(summary["points_dropped"]["unreachable"], 7);
        assert_eq!(summary["sites"][0]["born"], 90);
    }

    #[test]
    fn the_header_says_what_is_not_known() {
        let header = line(|out| header(out, &Resource::default(), 7, "events", "waits"));
        assert_eq!(header["schema"], SCHEMA);
        assert_eq!((&header["pid"], &header["go_version"]), (&json!(7), &Json::Null));
    }
}
