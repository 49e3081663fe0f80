//! Plain lines for people who read a pipe or a log, and the summary at the end of a run.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{self, Write},
    sync::Arc,
};

use super::model::{Interval, LevelChange, Location, Site, Summary, Value};
use crate::printable::printable;

/// Sites shown for an interval.
const SITES: usize = 10;

/// A few lines for an interval: totals, then the creation sites with most goroutines.
///
/// # Errors
/// What the writer says.
pub fn interval(out: &mut impl Write, interval: &Interval) -> io::Result<()> {
    let seconds = interval.end_unix_nano.saturating_sub(interval.start_unix_nano) as f64 / 1e9;
    let rate = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    writeln!(
        out,
        "pid {}: {}{} alive, {:.0} born/s, {:.0} died/s{}{}{}",
        interval.pid,
        if interval.alive_is_lower_bound { "at least " } else { "" },
        interval.alive,
        rate(interval.born),
        rate(interval.died),
        lost(&interval.lost),
        overhead(interval),
        lowered(interval),
    )?;
    if let Some(change) = &interval.levels.change {
        writeln!(out, "  {}", changed(change, interval.levels.budget))?;
    }
    let busy = interval.sites.iter().filter(|s| s.alive > 0 || s.born > 0 || s.died > 0);
    for site in busy.clone().take(SITES) {
        let [entry, creator] = [place(&site.entry), creator(site)];
        writeln!(
            out,
            "  {:>7} alive {:>7.0} born/s {:>7.0} died/s  {entry}  by {creator}{}{}{}",
            site.alive,
            rate(site.born),
            rate(site.died),
            waiting(&site.waiting),
            waited(site),
            oldest(site),
        )?;
    }
    let more = busy.count().saturating_sub(SITES);
    if more > 0 {
        writeln!(out, "  and {more} more creation sites")?;
    }
    leaks(out, interval)?;
    out.flush()
}

/// What a run came to.
///
/// # Errors
/// What the writer says.
pub fn summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let Summary { last, spans, spans_dropped, ended, cost_ns_per_event } = summary;
    let seconds = last.end_unix_nano.saturating_sub(last.start_unix_nano) as f64 / 1e9;
    let name = match last.resource.attributes.get("process.executable.name") {
        Some(Value::Text(name)) => format!(" ({})", printable(name)),
        _ => String::new(),
    };
    writeln!(out, "\npid {}{name}: {seconds:.1} s {}, ended: {ended}", last.pid, how(last))?;
    writeln!(
        out,
        "  goroutines   {} born, {} died, {}{} alive at the end",
        last.born_total,
        last.died_total,
        if last.alive_is_lower_bound { "at least " } else { "" },
        last.alive
    )?;
    if !last.waits.is_empty() {
        writeln!(
            out,
            "  waits        {:<34} {:>10} {:>9} {:>9} {:>9}",
            "reason", "count", "p50", "p99", "max"
        )?;
        for (reason, waits) in by_count(&last.waits, |h| h.count) {
            writeln!(
                out,
                "               {reason:<34} {:>10} {:>9} {:>9} {:>9}",
                waits.count,
                duration(waits.quantile_ns(0.5)),
                duration(waits.quantile_ns(0.99)),
                duration(Some(waits.max_ns)),
            )?;
        }
    }
    for (what, histogram) in [("run queue", &last.schedule), ("syscalls", &last.syscalls)] {
        if histogram.count > 0 {
            writeln!(
                out,
                "  {what:<12} {:<34} {:>10} {:>9} {:>9} {:>9}",
                "",
                histogram.count,
                duration(histogram.quantile_ns(0.5)),
                duration(histogram.quantile_ns(0.99)),
                duration(Some(histogram.max_ns)),
            )?;
        }
    }
    let alive: Vec<&Site> = last.sites.iter().filter(|s| s.alive > 0).take(SITES).collect();
    if !alive.is_empty() {
        writeln!(out, "  still alive")?;
        for site in alive {
            writeln!(
                out,
                "    {:>8}  {}  by {}{}{}",
                site.alive,
                place(&site.entry),
                creator(site),
                waiting(&site.waiting),
                oldest(site)
            )?;
        }
    }
    leaks(out, last)?;
    incomplete(out, last)?;
    if last.levels.ns.contains_key("sampled") {
        snapshots(out, last)?;
    }
    if !last.levels.ns.keys().any(|level| *level != "sampled") {
        return out.flush();
    }
    let events: u64 = last.events.values().sum();
    write!(out, "  events       {events}")?;
    if let Some(cost) = cost_ns_per_event {
        write!(out, ", about {cost:.0} ns of the target's CPU time each")?;
        if let Some(share) = last.probe_cost_share {
            write!(out, " ({:.1}% of it)", share * 100.0)?;
        }
    }
    writeln!(out, "{}", if last.lost.is_empty() { ", none lost".into() } else { lost(&last.lost) })?;
    if !last.repaired.is_empty() {
        writeln!(out, "  mended       {}, found missing by snapshots", repaired(&last.repaired))?;
    }
    write!(out, "  spans        {spans}")?;
    if !last.sampled_out.is_empty() {
        write!(
            out,
            ", left out by sampling: {}",
            list(last.sampled_out.iter().map(|(k, n)| (k.replace('_', " "), *n)))
        )?;
    }
    if !spans_dropped.is_empty() {
        write!(out, ", NOT DELIVERED: {}", list(spans_dropped.iter().map(|(k, n)| (k, *n))))?;
    }
    writeln!(out)?;
    out.flush()
}

fn how(interval: &Interval) -> String {
    let at = |level: &str| match level {
        "sampled" => "by snapshots".to_owned(),
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

/// `, overhead 1.2%`; empty while it is not known.
fn overhead(interval: &Interval) -> String {
    interval.probe_cost_share.map_or_else(String::new, |share| format!(", overhead {}", percent(share)))
}

/// Why there is less than is wanted.
fn lowered(interval: &Interval) -> String {
    let Some(why) = interval.level_reason else { return String::new() };
    format!(", level {} instead of {} ({why})", interval.level, interval.levels.wanted)
}

fn changed(change: &LevelChange, budget: Option<f64>) -> String {
    let LevelChange { from, to, probe_cost_share } = change;
    let budget = budget.map_or_else(|| "none".into(), percent);
    if change.is_lower() {
        let cost = percent(*probe_cost_share);
        format!("level {to} instead of {from} from now on: overhead {cost} of its CPU time, budget {budget}")
    } else {
        format!("level {to} after {from} from now on: there is room in the budget of {budget}")
    }
}

/// What was not seen all the time.
fn incomplete(out: &mut impl Write, last: &Interval) -> io::Result<()> {
    let levels = &last.levels;
    let what: Vec<&str> = levels
        .incomplete()
        .into_iter()
        .map(|field| match field {
            "schedule_delay_ns" => "run queue",
            "syscall_ns" => "syscalls",
            field => field,
        })
        .collect();
    if what.is_empty() {
        return Ok(());
    }
    let budget = levels.budget.map_or_else(String::new, |share| {
        format!(", to keep within the budget of {} (--budget none lifts it)", percent(share))
    });
    let lowered = duration(Some(levels.lowered_ns()));
    writeln!(out, "  INCOMPLETE   {}: below level {} for {lowered}{budget}", what.join(", "), levels.wanted)
}

/// `0.42%`, `28%`.
fn percent(share: f64) -> String {
    if share < 0.0995 { format!("{:.1}%", share * 100.0) } else { format!("{:.0}%", share * 100.0) }
}

/// What there is instead of events and spans.
fn snapshots(out: &mut impl Write, last: &Interval) -> io::Result<()> {
    let taken = &last.snapshots;
    writeln!(
        out,
        "  snapshots    {}, p50 {}, max {}; goroutines that lived between two of them are not among those above",
        taken.count,
        duration(taken.quantile_ns(0.5)),
        duration((taken.count > 0).then_some(taken.max_ns)),
    )
}

/// `3 births, 1 death`.
fn repaired(repaired: &BTreeMap<&'static str, u64>) -> String {
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    repaired.iter().map(|(kind, n)| format!("{n} {kind}{}", plural(*n))).collect::<Vec<_>>().join(", ")
}

fn by_count<T>(map: &BTreeMap<Arc<str>, T>, count: impl Fn(&T) -> u64) -> Vec<(&Arc<str>, &T)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(_, v)| std::cmp::Reverse(count(v)));
    entries
}

fn place(location: &Location) -> String {
    printable(&location.function).into_owned()
}

/// Goroutines that are proven to be leaked, and those that are suspected.
///
/// # Errors
/// What the writer says.
pub fn leaks(out: &mut (impl Write + ?Sized), interval: &Interval) -> io::Result<()> {
    for leak in interval.leaks.iter().take(SITES) {
        let at = match &leak.waits_at {
            Some(at) => format!(" in {}", made_at(Some(at))),
            None => String::new(),
        };
        let retained = leak.retained_bytes.map_or_else(String::new, |n| format!(", {n} bytes kept alive"));
        writeln!(
            out,
            "  {:>7} can never run again (proven)  {}  by {}: {}{at}{retained}",
            leak.count,
            place(&leak.entry),
            made_at(leak.created_by.as_ref()),
            leak.reason,
        )?;
    }
    let more: u64 = interval.leaks.iter().skip(SITES).map(|l| l.count).sum();
    if more > 0 {
        writeln!(out, "  {more:>7} more can never run again (proven)")?;
    }
    for suspected in interval.suspects.iter().take(SITES) {
        let at = match &suspected.waits_at {
            Some(at) => format!(" in {}", made_at(Some(at))),
            None => String::new(),
        };
        let growth = suspected
            .growth_per_second
            .map_or_else(String::new, |(low, high)| format!(", {low:.2} to {high:.2} more a second"));
        writeln!(
            out,
            "  {:>7} may never finish ({})  {}  by {}: {}{at}{growth}",
            suspected.count,
            suspected.verdict,
            place(&suspected.entry),
            made_at(suspected.created_by.as_ref()),
            suspected.reason,
        )?;
    }
    let more: u64 = interval.suspects.iter().skip(SITES).map(|s| s.count).sum();
    if more > 0 {
        writeln!(out, "  {more:>7} more may never finish")?;
    }
    if interval.leaks_refuted > 0 {
        writeln!(out, "  {} proofs of leak were REFUTED: please report it", interval.leaks_refuted)?;
    }
    Ok(())
}

fn creator(site: &Site) -> String {
    made_at(site.created_by.as_ref())
}

fn made_at(location: Option<&Arc<Location>>) -> String {
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
    format!("  waiting: {}", list(by_count(waiting, |n| *n).into_iter().map(|(k, n)| (k, *n))))
}

/// How long waits of at least the threshold took.
fn waited(site: &Site) -> String {
    let waits = &site.waits;
    if waits.count == 0 {
        return String::new();
    }
    let [p50, p99] = [0.5, 0.99].map(|q| duration(waits.quantile_ns(q)));
    format!("  waited p50 {p50} p99 {p99} max {}", duration(Some(waits.max_ns)))
}

fn oldest(site: &Site) -> String {
    let more = if site.oldest_is_lower_bound { ">" } else { "" };
    site.oldest_ns.map_or_else(String::new, |ns| format!("  oldest {more}{}", duration(Some(ns))))
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
pub(super) mod tests {
    use super::*;
    use crate::sink::model::{Levels, Resource};
    use gotrace_common::Histogram;

    /// A state with a little of everything.
    pub(crate) fn sample() -> Interval {
        let location = |function: &str, line| {
            Arc::new(Location { function: function.into(), file: "/src/main.go".into(), line })
        };
        let mut waits = Histogram::default();
        waits.add(1_500_000);
        waits.add(2_000_000);
        let empty = Histogram::default();
        let site = |entry, created_by, alive, born_total, waiting, waits, oldest_ns| Site {
            entry,
            created_by,
            alive,
            born: 5,
            died: 1,
            born_total,
            died_total: born_total - alive,
            waiting,
            waits,
            lifetimes: empty,
            oldest_ns,
            oldest_is_lower_bound: false,
        };
        let receive: BTreeMap<Arc<str>, u64> = [("chan receive".into(), 10)].into();
        Interval {
            resource: Arc::new(Resource::new(
                [("process.executable.name".into(), Value::Text("shop".into()))].into(),
            )),
            pid: 42,
            start_unix_nano: 1_000_000_000,
            end_unix_nano: 2_000_000_000,
            alive: 12,
            alive_is_lower_bound: true,
            born: 5,
            died: 1,
            born_total: 100,
            died_total: 88,
            lost: [("ring_create", 3)].into(),
            repaired: [("death", 2)].into(),
            sampled_out: [("rate_limit", 7), ("ratio", 1200)].into(),
            events: [("create", 100), ("exit", 88)].into(),
            waiting: receive.clone(),
            waits: [("chan receive".into(), waits)].into(),
            schedule: empty,
            syscalls: empty,
            sites: vec![
                site(
                    location("main.worker", 12),
                    Some(location("main.main", 30)),
                    10,
                    90,
                    receive,
                    waits,
                    Some(7_000_000_000),
                ),
                site(location(Location::BORN_BEFORE, 0), None, 2, 10, BTreeMap::new(), empty, None),
            ],
            snapshots: empty,
            engine: "events",
            level: "waits",
            level_reason: None,
            levels: Levels { wanted: "waits", ns: [("waits", 1_000_000_000)].into(), ..Levels::default() },
            leaks: Vec::new(),
            leaks_refuted: 0,
            suspects: Vec::new(),
            probe_cost_share: None,
        }
    }

    /// The same, at the moment at which the budget had its level lowered.
    pub(crate) fn lowered() -> Interval {
        let mut lowered = sample();
        (lowered.level, lowered.level_reason) = ("lifecycle", Some("budget"));
        lowered.probe_cost_share = Some(0.28);
        lowered.levels = Levels {
            wanted: "waits",
            ns: [("waits", 1_500_000_000), ("lifecycle", 8_500_000_000)].into(),
            change: Some(LevelChange { from: "waits", to: "lifecycle", probe_cost_share: 0.28 }),
            budget: Some(0.05),
        };
        lowered
    }

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes).expect("a vector takes everything");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn an_interval_reads_as_lines() {
        assert_eq!(
            text(|out| interval(out, &sample())),
            "pid 42: at least 12 alive, 5 born/s, 1 died/s, LOST: 3 ring_create\n  \
             \u{20}    10 alive       5 born/s       1 died/s  main.worker  by main.main (main.go:30)  waiting: 10 chan \
             receive  waited p50 1.8ms p99 2.0ms max 2.0ms  oldest 7.0s\n  \
             \u{20}     2 alive       5 born/s       1 died/s  (born before attaching)  by ?\n"
        );
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        let mut evil = sample();
        evil.sites[0].entry = Arc::new(Location { function: "evil\x1b[2J".into(), file: "".into(), line: 0 });
        let text = text(|out| interval(out, &evil));
        assert!(text.contains("evil\\u{1b}[2J") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn a_summary_names_losses_and_waits() {
        let summary_of = Summary {
            last: sample(),
            cost_ns_per_event: None,
            spans: 9,
            spans_dropped: [("unreachable", 2)].into(),
            ended: "the process ended".into(),
        };
        let text = text(|out| summary(out, &summary_of));
        for part in [
            "pid 42 (shop): 1.0 s at level waits, ended: the process ended",
            "100 born, 88 died, at least 12 alive",
            "chan receive                                2     1.8ms     2.0ms     2.0ms",
            "events       188, LOST: 3 ring_create",
            "mended       2 deaths, found missing by snapshots",
            "spans        9, left out by sampling: 7 rate limit, 1200 ratio, NOT DELIVERED: 2 unreachable",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn what_the_budget_took_away_is_said_at_once_and_in_the_end() {
        let now = text(|out| interval(out, &lowered()));
        let mut lines = now.lines();
        assert_eq!(
            lines.next(),
            Some(
                "pid 42: at least 12 alive, 5 born/s, 1 died/s, LOST: 3 ring_create, overhead 28%, level lifecycle \
                 instead of waits (budget)"
            )
        );
        assert_eq!(
            lines.next(),
            Some("  level lifecycle instead of waits from now on: overhead 28% of its CPU time, budget 5.0%")
        );
        let mut last = lowered();
        last.levels.ns.insert("sampled", 2_000_000_000);
        let summary_of = Summary {
            last,
            cost_ns_per_event: Some(548.0),
            spans: 9,
            spans_dropped: BTreeMap::new(),
            ended: "duration".into(),
        };
        let text = text(|out| summary(out, &summary_of));
        for part in [
            "1.0 s (1.5s at level waits, 8.5s at level lifecycle, 2.0s by snapshots), ended: duration",
            "INCOMPLETE   born, died, waits, spans: below level waits for 10s, to keep within the budget of 5.0% \
             (--budget none lifts it)",
            "snapshots    0, p50 -",
            "events       188, about 548 ns of the target's CPU time each (28.0% of it)",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn what_is_sampled_says_so() {
        let mut last = sample();
        (last.engine, last.level, last.lost) = ("snapshot", "sampled", BTreeMap::new());
        last.levels =
            Levels { wanted: "sampled", ns: [("sampled", 1_000_000_000)].into(), ..Levels::default() };
        last.snapshots.add(3_000_000);
        last.sites[0].oldest_is_lower_bound = true;
        let summary_of = Summary {
            last,
            cost_ns_per_event: None,
            spans: 0,
            spans_dropped: BTreeMap::new(),
            ended: "interrupted".into(),
        };
        let text = text(|out| summary(out, &summary_of));
        assert!(text.contains("1.0 s by snapshots, ended: interrupted"), "{text}");
        assert!(text.contains("snapshots    1, p50 ") && text.contains("max 3.0ms"), "{text}");
        assert!(text.contains("oldest >7.0s"), "{text}");
        assert!(!text.contains("events ") && !text.contains("spans "), "{text}");
    }

    #[test]
    fn durations_are_short() {
        for (ns, expected) in [
            (870, "870ns"),
            (1_234, "1.2us"),
            (35_000_000, "35ms"),
            (999_600_000, "1.0s"),
            (35_000_000_000, "35s"),
            (125_000_000_000, "2m05s"),
            (7_500_000_000_000, "2h05m"),
        ] {
            assert_eq!(duration(Some(ns)), expected);
        }
        assert_eq!(duration(None), "-");
    }
}
