//! What the collector takes, and what else stops the world: as JSON, in `attach` and as `gotrace gc` prints it
//! (`gotrace.gc/1`).
//!
//! Input: [`Collector`]s. Output: text and JSON.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    sync::Arc,
};

use serde_json::{Value as Json, json};

use gotrace_common::Histogram;
use gotrace_model::{
    Assists, Collector, Cycle, Interval, Location, Resource, Value, WorldStop, printable::printable,
};

use crate::{
    check::Throttling,
    json::{self, counted, location},
    text::{changed, duration, percent, stopped as ended},
};

/// The schema of the JSON lines.
pub const SCHEMA: &str = "gotrace.gc/1";
/// Stops of the world that take less are no news while it is the goroutines that are looked at.
const LEAST_NS: u64 = 1_000_000;
/// Cycles of an interval that `gotrace gc` prints one by one.
const CYCLES: usize = 16;
/// Creation sites that a summary names.
const SITES: usize = 5;

/// As the field `gc` has it.
pub(crate) fn to_json(collector: &Collector) -> Json {
    let Collector {
        cycles,
        marking,
        pauses,
        stops,
        assists,
        assists_by,
        recent,
        recent_left_out,
        longest,
        longest_left_out,
    } = collector;
    json!({
        "cycles": cycles,
        "mark_ns": counted(marking),
        "pause_ns": counted(pauses),
        "stop_the_world_ns": stops.iter().map(|(reason, h)| ((*reason).to_owned(), counted(h))).collect::<Json>(),
        "assist_ns": counted(assists),
        "assists_by": assists_by.iter().map(assists_json).collect::<Vec<_>>(),
        "ended": recent.iter().map(cycle_json).collect::<Vec<_>>(),
        "ended_left_out": recent_left_out,
        "longest_stops": longest.iter().map(stop_json).collect::<Vec<_>>(),
        "longest_stops_left_out": longest_left_out,
    })
}

fn assists_json(assists: &Assists) -> Json {
    json!({
        "entry": assists.entry.is_known().then(|| location(&assists.entry)),
        "created_by": assists.created_by.as_deref().map(location),
        "count": assists.count,
        "total_ns": assists.total_ns,
    })
}

fn cycle_json(cycle: &Cycle) -> Json {
    let by = |(entry, ns): &(Arc<Location>, u64)| json!({ "entry": entry.is_known().then(|| location(entry)), "total_ns": ns });
    json!({
        "number": cycle.number,
        "reason": (cycle.trigger != "unknown").then_some(cycle.trigger),
        "called_from": cycle.called_from.as_deref().map(location),
        "end_unix_nano": cycle.end_unix_nano,
        "mark_ns": cycle.mark_ns,
        "sweep_termination_pause_ns": cycle.sweep_pause_ns,
        "mark_termination_pause_ns": cycle.mark_pause_ns,
        "assist_ns": cycle.assist_ns,
        "assisted_by": cycle.assisted_by.iter().map(by).collect::<Vec<_>>(),
    })
}

fn stop_json(stop: &WorldStop) -> Json {
    json!({
        "reason": (stop.reason != "unknown").then_some(stop.reason),
        "start_unix_nano": stop.start_unix_nano,
        "duration_ns": stop.duration_ns,
        "goid": (stop.goid != 0).then_some(stop.goid),
        "function": stop.function.as_deref().map(location),
        "called_from": stop.called_from.as_deref().map(location),
    })
}

/// What `attach` says of it within an interval.
pub(crate) fn in_interval(out: &mut impl Write, collector: &Collector) -> io::Result<()> {
    let Collector { recent, recent_left_out, longest, .. } = collector;
    if !recent.is_empty() {
        let paused: Vec<u64> =
            recent.iter().map(|c| c.sweep_pause_ns.unwrap_or(0) + c.mark_pause_ns).collect();
        let assists: u64 = recent.iter().map(|c| c.assist_ns).sum();
        writeln!(
            out,
            "  gc: {}, paused for {}{}",
            many(recent.len() as u64 + recent_left_out, "cycle"),
            duration(Some(paused.iter().sum())),
            if assists > 0 { format!(", assists {}", duration(Some(assists))) } else { String::new() },
        )?;
    }
    for line in stopped(longest.iter().filter(|s| s.duration_ns >= LEAST_NS)) {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// What `attach` says of it at its end.
pub(crate) fn in_summary(out: &mut impl Write, collector: &Collector) -> io::Result<()> {
    if collector.is_empty() {
        return Ok(());
    }
    writeln!(out, "  gc           {}", sums(collector))?;
    if !collector.stops.is_empty() {
        writeln!(out, "  world stops  {}", stops(&collector.stops))?;
    }
    Ok(())
}

/// `41 cycles (40 heap, 1 call), paused for 6.1ms (max 0.4ms), marking 746ms, assists 210ms`.
fn sums(collector: &Collector) -> String {
    let Collector { cycles, marking, pauses, assists, .. } = collector;
    let mut text = many(collector.count(), "cycle");
    if !cycles.is_empty() {
        let by: Vec<String> = cycles.iter().map(|(trigger, n)| format!("{n} {}", caused(trigger))).collect();
        let _ = write!(text, " ({})", by.join(", "));
    }
    if pauses.count > 0 {
        let (sum, max) = (duration(Some(pauses.sum_ns)), duration(Some(pauses.max_ns)));
        let _ = write!(text, ", paused for {sum} (max {max})");
    }
    for (what, histogram) in [("marking", marking), ("assists", assists)] {
        if histogram.count > 0 {
            let _ = write!(text, ", {what} {}", duration(Some(histogram.sum_ns)));
        }
    }
    text
}

/// What began a cycle.
fn caused(trigger: &str) -> &str {
    match trigger {
        "time" => "after 2 minutes",
        "call" => "by runtime.GC",
        "unknown" => "begun before",
        trigger => trigger,
    }
}

/// `3 for read mem stats (41ms, max 40ms)`.
fn stops(stops: &BTreeMap<&'static str, Histogram>) -> String {
    let told = stops.iter().map(|(reason, h)| {
        let (sum, max) = (duration(Some(h.sum_ns)), duration(Some(h.max_ns)));
        format!("{} for {reason} ({sum}, max {max})", h.count)
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Stops of one kind by one goroutine: `world stopped 3 times for 41ms (max 40ms) by runtime.ReadMemStats, called by
/// main.collectStats (stats.go:31) in goroutine 17`.
fn stopped<'a>(longest: impl Iterator<Item = &'a WorldStop>) -> Vec<String> {
    let mut kinds: Vec<(&WorldStop, u64, u64)> = Vec::new();
    for stop in longest {
        let same = |s: &WorldStop| {
            (s.reason, s.goid, &s.function, &s.called_from)
                == (stop.reason, stop.goid, &stop.function, &stop.called_from)
        };
        match kinds.iter_mut().find(|(first, ..)| same(first)) {
            Some((_, count, total_ns)) => {
                *count += 1;
                *total_ns += stop.duration_ns;
            }
            None => kinds.push((stop, 1, stop.duration_ns)),
        }
    }
    kinds.into_iter().map(|(longest, count, total_ns)| stopped_by(longest, count, total_ns)).collect()
}

/// The same of so many, of which this was the longest.
fn stopped_by(longest: &WorldStop, count: u64, total_ns: u64) -> String {
    let mut text = match (count, duration(Some(total_ns))) {
        (1, total) => format!("world stopped for {total}"),
        (n, total) => {
            format!("world stopped {n} times for {total} (max {})", duration(Some(longest.duration_ns)))
        }
    };
    match &longest.function {
        Some(function) => {
            let _ = write!(text, " by {}", printable(&function.function));
        }
        None => {
            let _ = write!(text, ": {}", longest.reason);
        }
    }
    if let Some(at) = &longest.called_from {
        let _ = write!(text, ", called by {}", place(at));
    }
    if longest.goid != 0 {
        let _ = write!(text, " in goroutine {}", longest.goid);
    }
    text
}

/// `main.collect (stats.go:31)`
fn place(location: &Location) -> String {
    let name = printable(&location.function).into_owned();
    match location.file.rsplit('/').next() {
        Some(file) if !file.is_empty() && location.line > 0 => {
            format!("{name} ({}:{})", printable(file), location.line)
        }
        _ => name,
    }
}

fn many(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Who assisted: creation sites that found no room are told together.
fn assisting(entry: &Location) -> String {
    if entry.is_known() { printable(&entry.function).into_owned() } else { "other functions".to_owned() }
}

/// The first lines of `gotrace gc`.
///
/// # Errors
/// What the writer says.
pub fn header(out: &mut impl Write, resource: &Resource, pid: u32) -> io::Result<()> {
    let text = |name: &str| match resource.attributes.get(name) {
        Some(Value::Text(text)) => printable(text).into_owned(),
        _ => "?".to_owned(),
    };
    writeln!(out, "pid {pid} ({}, {})", text("process.executable.name"), text("process.runtime.version"))
}

/// What `gotrace gc` prints of an interval: each cycle and each other stop of the world that ended in it.
///
/// # Errors
/// What the writer says.
pub fn interval(out: &mut impl Write, interval: &Interval) -> io::Result<()> {
    let Collector { recent, recent_left_out, longest, longest_left_out, .. } = &interval.collector;
    if let Some(change) = &interval.levels.change {
        writeln!(out, "  {}", changed(change, interval.levels.budget))?;
    }
    for cycle in recent.iter().take(CYCLES) {
        let known = |ns: Option<u64>| ns.map_or_else(|| "?".to_owned(), |ns| duration(Some(ns)));
        write!(
            out,
            "  cycle {:<5} {:<15} mark {:>6}  pauses {:>6} + {:>6}",
            cycle.number,
            caused(cycle.trigger),
            known(cycle.mark_ns),
            known(cycle.sweep_pause_ns),
            duration(Some(cycle.mark_pause_ns)),
        )?;
        if cycle.assist_ns > 0 {
            let by = cycle
                .assisted_by
                .iter()
                .map(|(entry, ns)| format!("{} {}", assisting(entry), duration(Some(*ns))));
            let by = by.collect::<Vec<_>>().join(", ");
            write!(out, "  assists {} ({by})", duration(Some(cycle.assist_ns)))?;
        }
        if let Some(at) = &cycle.called_from {
            write!(out, "  called by {}", place(at))?;
        }
        writeln!(out)?;
    }
    let more = recent.len().saturating_sub(CYCLES) as u64 + recent_left_out;
    if more > 0 {
        writeln!(out, "  and {} within this interval", many(more, "more cycle"))?;
    }
    for line in stopped(longest.iter()) {
        writeln!(out, "  {line}")?;
    }
    if *longest_left_out > 0 {
        writeln!(out, "  and {longest_left_out} shorter stops of the world within this interval")?;
    }
    out.flush()
}

/// What the whole run came to.
#[derive(Debug)]
pub struct Run<'a> {
    /// The last state; its `start_unix_nano` is when the run began.
    pub last: &'a Interval,
    /// Why the run ended.
    pub ended: &'a str,
    /// CPU time that the process used meanwhile; `None` where that is not known.
    pub cpu_ns: Option<u64>,
    /// What its CPU quota did meanwhile; `None` where that is not known.
    pub throttling: Option<Throttling>,
}

impl Run<'_> {
    /// As lines.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { last, ended: why, cpu_ns, throttling } = self;
        let collector = &last.collector;
        let seconds = last.end_unix_nano.saturating_sub(last.start_unix_nano) as f64 / 1e9;
        writeln!(out, "\n{seconds:.1} s ({}): {}", ended(why), sums(collector))?;
        let share = |ns: u64| match cpu_ns.filter(|cpu| *cpu > 0) {
            Some(cpu) => format!(" = {:.1}% of its CPU time", ns as f64 / cpu as f64 * 100.0),
            None => String::new(),
        };
        if collector.assists.count > 0 {
            let sum_ns = collector.assists.sum_ns;
            writeln!(
                out,
                "assists: goroutines that allocate marked for {}{}",
                duration(Some(sum_ns)),
                share(sum_ns)
            )?;
        }
        for assists in collector.assists_by.iter().take(SITES) {
            let entry = assisting(&assists.entry);
            writeln!(out, "  {:>8}  {entry}", duration(Some(assists.total_ns)))?;
        }
        let more = collector.assists_by.len().saturating_sub(SITES);
        if more > 0 {
            writeln!(out, "  and {} more", many(more as u64, "creation site"))?;
        }
        if !collector.stops.is_empty() {
            writeln!(out, "world stopped by others: {}", stops(&collector.stops))?;
        }
        match throttling {
            Some(throttling) => writeln!(out, "CPU throttling: {}", throttling.sentence())?,
            None => writeln!(out, "CPU throttling: the files of its control group cannot be read from here")?,
        }
        if coverage(last) < 1.0 {
            let share = percent(coverage(last));
            writeln!(
                out,
                "the probes were in place for {share} of the time, to stay within the budget (--budget)"
            )?;
        }
        if !last.lost.is_empty() {
            let lost: u64 = last.lost.values().sum();
            writeln!(out, "{lost} events were lost: the figures are lower bounds")?;
        }
        out.flush()
    }

    /// As the last JSON line.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { last, ended, cpu_ns, throttling } = self;
        let mut line = interval_json(last);
        if let Json::Object(fields) = &mut line {
            fields.insert("cpu_ns".into(), json!(cpu_ns));
            fields.insert("throttling".into(), json!(throttling.as_ref().map(Throttling::to_json)));
            fields.insert("probe_cost_share".into(), json!(last.probe_cost_share));
            fields.insert("stopped_because".into(), json!(ended));
        }
        json::write(out, &json!({ "summary": line }))
    }
}

/// The first JSON line: the probes are in place.
///
/// # Errors
/// What the writer says.
pub fn json_header(
    out: &mut impl Write,
    resource: &Resource,
    pid: u32,
    how: (&str, &str),
    time_unix_nano: u64,
) -> io::Result<()> {
    json::header_of(out, SCHEMA, resource, pid, how, time_unix_nano)
}

/// A JSON line for an interval.
///
/// # Errors
/// What the writer says.
pub fn json_interval(out: &mut impl Write, interval: &Interval) -> io::Result<()> {
    json::write(out, &json!({ "interval": interval_json(interval) }))
}

/// The share of the time for which the probes were in place.
fn coverage(last: &Interval) -> f64 {
    let unseen = last.levels.ns.get("sampled").copied().unwrap_or(0);
    let all: u64 = last.levels.ns.values().sum();
    if unseen == 0 { 1.0 } else { (all - unseen) as f64 / all as f64 }
}

fn interval_json(interval: &Interval) -> Json {
    let mut line = json!({
        "start_unix_nano": interval.start_unix_nano,
        "end_unix_nano": interval.end_unix_nano,
        "lost": interval.lost,
        "coverage": coverage(interval),
    });
    if let (Json::Object(line), Json::Object(fields)) = (&mut line, to_json(&interval.collector)) {
        line.extend(fields);
    }
    line
}
