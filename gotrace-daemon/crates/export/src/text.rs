//! Plain lines for people who read a pipe or a log, and the summary at the end of a run.

mod leaks;

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{self, Write},
    sync::Arc,
};

pub use self::leaks::{bytes, held_by, leaks};
use crate::{collector, places, requests};
use gotrace_common::Histogram;
use gotrace_go::is_system_reason;
use gotrace_model::printable::printable;
use gotrace_model::{Interval, LevelChange, Location, Quantile, Site, Summary, Value};

/// Sites shown for an interval.
const SITES: usize = 10;

/// A few lines for an interval: totals, then the creation sites with most goroutines. `system`: with the runtime's own.
///
/// # Errors
/// What the writer says.
pub fn interval(out: &mut impl Write, interval: &Interval, system: bool) -> io::Result<()> {
    let rate = Rate(interval.end_unix_nano.saturating_sub(interval.start_unix_nano));
    writeln!(
        out,
        "pid {}: {}{} alive{}, {} created{}, {} exited{}{}{}{}",
        interval.pid,
        if interval.alive_is_lower_bound { "at least " } else { "" },
        interval.alive,
        of_the_runtime(interval),
        rate.of(interval.born),
        rate.unit(),
        rate.of(interval.died),
        rate.unit_and_time(),
        lost(&interval.lost),
        overhead(interval),
        lowered(interval),
    )?;
    if let Some(change) = &interval.levels.change {
        writeln!(out, "  {}", changed(change, interval.levels.budget))?;
    }
    let busy = interval.sites.iter().filter(|s| s.alive > 0 || s.born > 0 || s.died > 0);
    let busy = busy.filter(|s| system || !s.is_system());
    for site in busy.clone().take(SITES) {
        let [entry, creator] = [place(&site.entry), creator(site)];
        let unit = rate.unit();
        writeln!(
            out,
            "  {:>7} alive {:>7} created{unit} {:>7} exited{unit}  {entry}  created by {creator}{}{}{}{}",
            site.alive,
            rate.of(site.born),
            rate.of(site.died),
            rate.cpu(site),
            waiting(&site.waiting),
            waited(site),
            oldest(site),
        )?;
    }
    let more = busy.count().saturating_sub(SITES);
    if more > 0 {
        writeln!(out, "  and {more} more creation sites")?;
    }
    collector::in_interval(out, &interval.collector)?;
    requests::in_interval(out, interval)?;
    leaks(out, interval)?;
    out.flush()
}

/// How often a second, by the length of an interval in nanoseconds. One that is too short for that has counts: the last
/// one of a run mostly.
#[derive(Clone, Copy)]
struct Rate(u64);

impl Rate {
    const SHORTEST_NS: u64 = 50_000_000;

    fn of(self, n: u64) -> String {
        if self.0 < Self::SHORTEST_NS || n == 0 {
            return n.to_string();
        }
        match n as f64 * 1e9 / self.0 as f64 {
            rate if rate < 0.05 => "<0.1".into(),
            rate if rate < 9.95 => format!("{rate:.1}").trim_end_matches(".0").into(),
            rate => format!("{rate:.0}"),
        }
    }

    const fn unit(self) -> &'static str {
        if self.0 < Self::SHORTEST_NS { "" } else { "/s" }
    }

    /// `  cpu 42%`: of one CPU; empty where it is not known.
    fn cpu(self, site: &Site) -> String {
        let used = site.known_cpu_ns(false).filter(|_| self.0 >= Self::SHORTEST_NS);
        used.map_or_else(String::new, |used| format!("  cpu {}", percent(used as f64 / self.0 as f64)))
    }

    fn unit_and_time(self) -> String {
        match self.unit() {
            "" => format!(" in {}", duration(Some(self.0))),
            unit => unit.into(),
        }
    }
}

/// ` (including 5 of the Go runtime)`; empty for none.
fn of_the_runtime(interval: &Interval) -> String {
    match interval.system() {
        0 => String::new(),
        n => format!(" (including {n} of the Go runtime)"),
    }
}

/// What a run came to. `system`: with the runtime's own goroutines.
///
/// # Errors
/// What the writer says.
pub fn summary(out: &mut impl Write, summary: &Summary, system: bool) -> io::Result<()> {
    let Summary { last, spans, spans_dropped, points_dropped, logs_dropped, ended, cost_ns_per_event } =
        summary;
    let seconds = last.end_unix_nano.saturating_sub(last.start_unix_nano) as f64 / 1e9;
    let name = match last.resource.attributes.get("process.executable.name") {
        Some(Value::Text(name)) => format!(" ({})", printable(name)),
        _ => String::new(),
    };
    writeln!(out, "\npid {}{name}: {seconds:.1} s {}; {}", last.pid, how(last), stopped(ended))?;
    writeln!(
        out,
        "  goroutines   {} created, {} exited, {}{} alive at the end{}",
        last.born_total,
        last.died_total,
        if last.alive_is_lower_bound { "at least " } else { "" },
        last.alive,
        of_the_runtime(last),
    )?;
    if !last.waits.is_empty() {
        writeln!(
            out,
            "  waits        {:<34} {:>10} {:>9} {:>9} {:>9}",
            "reason", "count", "p50", "p99", "max"
        )?;
        let (hidden, shown): (Vec<_>, Vec<_>) = by_count(&last.waits, |h| h.count)
            .into_iter()
            .partition(|(reason, _)| !system && is_system_reason(reason));
        for (reason, waits) in shown {
            writeln!(
                out,
                "               {reason:<34} {:>10} {:>9} {:>9} {:>9}",
                waits.count,
                quantile(waits, 0.5),
                quantile(waits, 0.99),
                duration(Some(waits.max_ns)),
            )?;
        }
        if !hidden.is_empty() {
            let count: u64 = hidden.iter().map(|(_, waits)| waits.count).sum();
            writeln!(out, "               {:<34} {count:>10}", "of the Go runtime (--system)")?;
        }
    }
    places::in_summary(out, &last.waits_at, system)?;
    let scheduling = ("scheduling", "latency, runnable to running", &last.schedule);
    for (what, of, histogram) in [scheduling, ("syscalls", "duration", &last.syscalls)] {
        if histogram.count > 0 {
            writeln!(
                out,
                "  {what:<12} {of:<34} {:>10} {:>9} {:>9} {:>9}",
                histogram.count,
                quantile(histogram, 0.5),
                quantile(histogram, 0.99),
                duration(Some(histogram.max_ns)),
            )?;
        }
    }
    cpu_time(out, last, system)?;
    let alive = last.sites.iter().filter(|s| s.alive > 0 && (system || !s.is_system()));
    let alive: Vec<&Site> = alive.take(SITES).collect();
    if !alive.is_empty() {
        writeln!(out, "  still alive")?;
        for site in alive {
            writeln!(
                out,
                "    {:>8}  {}  created by {}{}{}",
                site.alive,
                place(&site.entry),
                creator(site),
                waiting(&site.waiting),
                oldest(site)
            )?;
        }
    }
    collector::in_summary(out, &last.collector)?;
    requests::in_summary(out, last)?;
    leaks(out, last)?;
    incomplete(out, last)?;
    if last.levels.ns.contains_key("sampled") {
        snapshots(out, last)?;
    }
    if !last.levels.ns.keys().any(|level| *level != "sampled") {
        return out.flush();
    }
    let events: u64 = last.events.values().sum();
    let lost = if last.lost.is_empty() { ", none lost".into() } else { lost(&last.lost) };
    writeln!(out, "  events       {events}{lost}")?;
    if let Some(cost) = cost_ns_per_event {
        let share = last.probe_cost_share.map_or_else(String::new, |share| {
            let above = if share < 1.0 { "" } else { " (the estimate is above what it used)" };
            format!("about {:.1}% of the target's CPU time{above}, ", share * 100.0)
        });
        writeln!(out, "  overhead     {share}about {cost:.0} ns per event")?;
    }
    if !last.repaired.is_empty() {
        writeln!(
            out,
            "  repaired     {} (missed by the probes, found by snapshots)",
            repaired(&last.repaired)
        )?;
    }
    write!(out, "  spans        {spans}")?;
    if !last.sampled_out.is_empty() {
        write!(
            out,
            ", sampled out: {}",
            list(last.sampled_out.iter().map(|(k, n)| (k.replace('_', " "), *n)))
        )?;
    }
    if !spans_dropped.is_empty() {
        write!(out, ", NOT DELIVERED: {}", list(spans_dropped.iter().map(|(k, n)| (k, *n))))?;
    }
    writeln!(out)?;
    for (what, dropped) in [("metric points", points_dropped), ("log records", logs_dropped)] {
        if !dropped.is_empty() {
            let why = list(dropped.iter().map(|(k, n)| (k, *n)));
            writeln!(out, "  {what} NOT DELIVERED: {why}")?;
        }
    }
    out.flush()
}

/// Who used the CPU, most first; nothing where that is not known.
fn cpu_time(out: &mut impl Write, last: &Interval, system: bool) -> io::Result<()> {
    let Some(in_goroutines) = last.goroutines_cpu_total_ns() else { return Ok(()) };
    let of_process = last.process_cpu_total_ns.unwrap_or(0);
    // Both are measured; the moments at which they are read differ.
    let all = of_process.max(in_goroutines);
    let (shown, hidden): (Vec<&Site>, Vec<&Site>) = last.sites.iter().partition(|s| system || !s.is_system());
    let shown = by_function(&shown, |site| site.cpu_total_ns);
    let (listed, more) = shown.split_at(shown.len().min(SITES));
    let mut rows: Vec<(String, u64)> = listed.to_vec();
    let sum = |times: &mut dyn Iterator<Item = u64>| times.fold(0, u64::saturating_add);
    rows.push(("other functions".into(), sum(&mut more.iter().map(|(_, time)| *time))));
    rows.push(("the runtime's own (--system)".into(), sum(&mut hidden.iter().map(|s| s.cpu_total_ns))));
    let complete = last.levels.below_ns("waits") == 0;
    let rest = "outside of goroutines: scheduler, C threads, probes";
    let rest = if complete { rest.into() } else { format!("{rest}; or not seen") };
    rows.push((rest, all - in_goroutines));
    let seconds = last.end_unix_nano.saturating_sub(last.start_unix_nano);
    let cpus = all as f64 / seconds.max(1) as f64;
    writeln!(out, "  cpu time     {}, {cpus:.2} CPUs on average", duration(Some(all)))?;
    for (what, time) in rows.iter().filter(|(_, time)| *time > 0) {
        let share = percent(*time as f64 / all.max(1) as f64);
        writeln!(out, "    {:>8} {share:>6}  {what}", duration(Some(*time)))?;
    }
    throttled(out, last)
}

/// Sums by the function that goroutines run, the largest first; those of 0 are left out.
fn by_function(sites: &[&Site], of: impl Fn(&Site) -> u64) -> Vec<(String, u64)> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for site in sites {
        let sum = sums.entry(&*site.entry.function).or_default();
        *sum = sum.saturating_add(of(site));
    }
    let mut rows: Vec<(String, u64)> =
        sums.into_iter().filter(|(_, n)| *n > 0).map(|(f, n)| (printable(f).into_owned(), n)).collect();
    rows.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    rows
}

/// Whose threads stood still for the CPU quota, the longest first; nothing where none did, or that is not known.
fn throttled(out: &mut impl Write, last: &Interval) -> io::Result<()> {
    let all = last.throttled_total_ns();
    if all == 0 {
        return Ok(());
    }
    let sites: Vec<&Site> = last.sites.iter().collect();
    let all_of = by_function(&sites, |site| site.throttled_total_ns);
    let shown: Vec<String> =
        all_of.iter().take(3).map(|(name, time)| format!("{name} {}", duration(Some(*time)))).collect();
    let more = if all_of.len() > shown.len() { ", …" } else { "" };
    writeln!(
        out,
        "  throttled    {} of goroutines' time: threads stood still, as the CPU quota was used up ({}{more})",
        duration(Some(all)),
        shown.join(", ")
    )
}

/// Why the run ended, as a clause; results say it as [`Summary::ended`] has it.
pub(crate) fn stopped(ended: &str) -> &str {
    match ended {
        "duration" => "stopped after --duration",
        "the process ended" => "the process exited",
        "the command ended" => "the command exited",
        ended => ended,
    }
}

fn how(interval: &Interval) -> String {
    let at = |level: &str| match level {
        "sampled" => "from snapshots".to_owned(),
        level => format!("at level {level}"),
    };
    let levels = &interval.levels;
    if levels.ns.len() < 2 {
        return at(interval.level);
    }
    // From the one that was wanted downwards.
    let parts: Vec<String> = ["full", "waits", "lifecycle", "sampled"]
        .into_iter()
        .filter_map(|level| Some(format!("{} {}", duration(Some(*levels.ns.get(level)?)), at(level))))
        .collect();
    format!("({})", parts.join(", "))
}

/// `, overhead about 1.2% CPU`; empty while it is not known. An estimate above what was used is all of that.
fn overhead(interval: &Interval) -> String {
    interval.probe_cost_share.map_or_else(String::new, |share| {
        format!(", overhead {} {} CPU", if share < 1.0 { "about" } else { "at most" }, percent(share))
    })
}

/// Why there is less than is wanted.
fn lowered(interval: &Interval) -> String {
    let Some(why) = interval.level_reason else { return String::new() };
    format!(", level {} instead of {} ({why})", interval.level, interval.levels.wanted)
}

pub(crate) fn changed(change: &LevelChange, budget: Option<f64>) -> String {
    let LevelChange { from, to, probe_cost_share } = change;
    let budget = budget.map_or_else(|| "none".into(), percent);
    if change.is_lower() {
        let cost = percent(*probe_cost_share);
        format!("level lowered from {from} to {to}: overhead about {cost} of its CPU time, budget {budget}")
    } else {
        format!("level raised from {from} to {to}: within the budget of {budget}")
    }
}

/// What was not seen all the time.
fn incomplete(out: &mut impl Write, last: &Interval) -> io::Result<()> {
    let levels = &last.levels;
    let what: Vec<&str> = levels
        .incomplete()
        .into_iter()
        .filter(|field| *field != "waits_at")
        .map(|field| match field {
            "born" => "created",
            "died" => "exited",
            "schedule_delay_ns" => "scheduling latency",
            "syscall_ns" => "syscalls",
            "cpu_ns" => "cpu time",
            field => field,
        })
        .collect();
    if what.is_empty() {
        return Ok(());
    }
    let budget = levels.budget.map_or_else(String::new, |share| {
        format!(", to stay within the budget of {} (--budget none lifts it)", percent(share))
    });
    let lowered = duration(Some(levels.lowered_ns()));
    writeln!(out, "  INCOMPLETE   {}: below level {} for {lowered}{budget}", what.join(", "), levels.wanted)
}

/// `0.42%`, `28%`.
pub(crate) fn percent(share: f64) -> String {
    if share < 0.0995 { format!("{:.1}%", share * 100.0) } else { format!("{:.0}%", share * 100.0) }
}

/// What there is instead of events and spans.
fn snapshots(out: &mut impl Write, last: &Interval) -> io::Result<()> {
    let taken = &last.snapshots;
    writeln!(
        out,
        "  snapshots    {}, p50 {}, max {}; goroutines that started and finished between two snapshots are not counted",
        taken.count,
        quantile(taken, 0.5),
        duration((taken.count > 0).then_some(taken.max_ns)),
    )
}

/// `3 creations, 1 exit`.
fn repaired(repaired: &BTreeMap<&'static str, u64>) -> String {
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    let name = |kind: &'static str| match kind {
        "birth" => "creation",
        "death" => "exit",
        kind => kind,
    };
    repaired
        .iter()
        .map(|(kind, n)| format!("{n} {}{}", name(kind), plural(*n)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn by_count<T>(map: &BTreeMap<Arc<str>, T>, count: impl Fn(&T) -> u64) -> Vec<(&Arc<str>, &T)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(_, v)| std::cmp::Reverse(count(v)));
    entries
}

fn place(location: &Location) -> String {
    printable(&location.function).into_owned()
}

fn creator(site: &Site) -> String {
    match &*site.entry.function {
        // There is no `go` statement.
        "runtime.main" => "the runtime".into(),
        _ => made_at(site.created_by.as_ref()),
    }
}

pub(crate) fn made_at(location: Option<&Arc<Location>>) -> String {
    match location {
        Some(location) if location.line > 0 => {
            let file = location.file.rsplit('/').next().unwrap_or(&location.file);
            printable(&format!("{} ({file}:{})", location.function, location.line)).into_owned()
        }
        Some(location) => printable(&location.function).into_owned(),
        None => "?".into(),
    }
}

fn waiting(waiting: &BTreeMap<Arc<str>, u64>) -> String {
    if waiting.is_empty() {
        return String::new();
    }
    format!(
        "  waiting: {}",
        list(by_count(waiting, |n| *n).into_iter().map(|(k, n)| (format!("in {k}"), *n)))
    )
}

/// How long waits of at least the threshold took.
fn waited(site: &Site) -> String {
    let waits = &site.waits;
    if waits.count == 0 {
        return String::new();
    }
    let [p50, p99] = [0.5, 0.99].map(|q| quantile(waits, q));
    format!("  waits p50 {p50} p99 {p99} max {}", duration(Some(waits.max_ns)))
}

fn oldest(site: &Site) -> String {
    let more = if site.oldest_is_lower_bound { "+" } else { "" };
    site.oldest_ns.map_or_else(String::new, |ns| format!("  oldest {}{more}", duration(Some(ns))))
}

fn lost(lost: &BTreeMap<&'static str, u64>) -> String {
    if lost.is_empty() {
        return String::new();
    }
    format!(", LOST: {}", list(lost.iter().map(|(k, n)| (k, *n))))
}

fn list<K: Display>(entries: impl Iterator<Item = (K, u64)>) -> String {
    entries.map(|(k, n)| format!("{n} {k}")).collect::<Vec<_>>().join(", ")
}

/// A percentile: `201ms` where it is exact, `≤226ms` where only the bucket that it is in is known; `-` when unknown.
#[must_use]
pub fn quantile(histogram: &Histogram, q: f64) -> String {
    match Quantile::of(histogram, q) {
        Some(known) if !known.is_exact() => format!("≤{}", duration(Some(known.at_most_ns))),
        known => duration(known.map(|k| k.at_most_ns)),
    }
}

/// A problem as it stands in a table: red on a terminal.
#[must_use]
pub fn problem(text: &str, colour: bool) -> String {
    if colour { format!("\x1b[31;1m{text}\x1b[0m") } else { text.to_owned() }
}

/// A duration with two to three digits: `870ns`, `1.2ms`, `35s`, `2h05m`; `-` when unknown.
#[must_use]
pub fn duration(ns: Option<u64>) -> String {
    let Some(ns) = ns else { return "-".into() };
    let scaled = |value: f64, unit: &str| {
        if value < 9.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
    };
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..999_500 => scaled(ns as f64 / 1e3, "us"),
        999_500..999_500_000 => scaled(ns as f64 / 1e6, "ms"),
        999_500_000..60_000_000_000 => scaled(ns as f64 / 1e9, "s"),
        _ => {
            let seconds = ns / 1_000_000_000;
            match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
                (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
                (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
            }
        }
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
pub(super) mod tests;
