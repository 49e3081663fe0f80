//! All processes of a node as rows: what `top` shows, in plain lines and as JSON (`gotrace.top/1`).
//!
//! Input: each process's last [`Interval`]. Output: [`Row`]s, and text. A figure that is not known is `None`,
//! `null` in JSON, `-` in lines.

use std::{
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use gotrace_model::printable::{printable, write_json};
use gotrace_model::{Interval, Resource};

/// The schema of the JSON lines.
pub const SCHEMA: &str = "gotrace.top/1";

/// What there is on a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its Go processes, those with most goroutines first.
    pub rows: Vec<Row>,
    /// Go programs that could not be traced, since the beginning.
    pub refused: u64,
    /// Processes that gotrace may not look at: whether they are Go programs is not known.
    pub unreadable: u64,
    /// How many there are, while not each of them has been seen.
    pub awaited: Option<u64>,
}

impl Node {
    /// What is not among the rows, in a sentence; `None` where all is.
    #[must_use]
    pub fn not_shown(&self) -> Option<String> {
        let count = |n: u64, one: &str, more: &str| match n {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {more}")),
        };
        let parts: Vec<String> = [
            count(
                self.unreadable,
                "process without permission to read it",
                "processes without permission to read them",
            ),
            count(
                self.refused,
                "Go process that could not be traced (see stderr)",
                "Go processes that could not be traced (see stderr)",
            ),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty()).then(|| format!("not shown: {}", parts.join(", ")))
    }
}

/// A process.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In gotrace's PID namespace.
    pub pid: u32,
    /// `service.name`.
    pub service: String,
    /// Its pod, else its container; `None` where neither is known.
    pub place: Option<String>,
    /// `go1.24.3`.
    pub go_version: Option<String>,
    /// `events` or `snapshot`.
    pub engine: &'static str,
    /// How much is traced.
    pub level: &'static str,
    /// Why it is lower than is wanted: `budget`, `memory`, `room`.
    pub level_reason: Option<&'static str>,
    /// The level that is wanted.
    pub level_wanted: &'static str,
    /// Goroutines alive.
    pub alive: u64,
    /// Whether that may be too few.
    pub alive_is_lower_bound: bool,
    /// Births a second, over the last interval.
    pub born_per_second: f64,
    /// Births less deaths a second, over the last interval.
    pub growth_per_second: f64,
    /// CPU time of its goroutines a second, over the last interval, in nanoseconds; `None` where none of it is known.
    pub cpu_ns_per_second: Option<f64>,
    /// What most goroutines wait for, and how many; `None` where that is not known, or nobody waits.
    pub top_wait: Option<(String, u64)>,
    /// Goroutines that are proven to be leaked, and others that may be.
    pub leaked: (u64, u64),
    /// What the probes take of its CPU time.
    pub probe_cost_share: Option<f64>,
    /// Events lost since attaching.
    pub lost: u64,
}

impl Row {
    /// A process by its last state.
    #[must_use]
    pub fn of(interval: &Interval) -> Self {
        let Interval { resource, pid, start_unix_nano, end_unix_nano, alive, born, died, .. } = interval;
        let text = |name| resource.text(name).map(str::to_owned);
        let seconds = end_unix_nano.saturating_sub(*start_unix_nano) as f64 / 1e9;
        let rate = |n: f64| if seconds > 0.0 { n / seconds } else { 0.0 };
        let cpu_ns = interval.sites.iter().filter_map(|site| site.cpu_ns).reduce(u64::saturating_add);
        let top_wait = interval.waiting.iter().max_by_key(|(_, count)| **count);
        Self {
            pid: *pid,
            service: text("service.name").unwrap_or_default(),
            place: place(resource),
            go_version: text("process.runtime.version"),
            engine: interval.engine,
            level: interval.level,
            level_reason: interval.level_reason,
            level_wanted: interval.levels.wanted,
            alive: *alive,
            alive_is_lower_bound: interval.alive_is_lower_bound,
            born_per_second: rate(*born as f64),
            growth_per_second: rate(*born as f64 - *died as f64),
            cpu_ns_per_second: cpu_ns.map(|ns| rate(ns as f64)),
            top_wait: top_wait.map(|(reason, count)| (reason.to_string(), *count)),
            leaked: interval.leaked(),
            probe_cost_share: interval.probe_cost_share,
            lost: interval.lost.values().sum(),
        }
    }

    /// The cells of a table, in the order of [`TITLES`].
    #[must_use]
    pub fn cells(&self) -> [String; TITLES.len()] {
        let Self { pid, service, place, go_version, engine, level, alive, top_wait, .. } = self;
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        [
            pid.to_string(),
            service.clone(),
            dash(place.clone()),
            dash(go_version.clone()),
            (*engine).into(),
            self.level_reason.map_or_else(|| (*level).into(), |why| format!("{level} ({why})")),
            format!("{}{alive}", if self.alive_is_lower_bound { "≥" } else { "" }),
            format!("{:.1}", self.born_per_second),
            format!("{:+.1}", self.growth_per_second),
            dash(self.cpu_ns_per_second.map(|ns| format!("{:.1}%", ns / 1e7))),
            dash(top_wait.as_ref().map(|(reason, count)| format!("{count} {reason}"))),
            dash(leaked(self.leaked)),
            dash(self.probe_cost_share.map(|share| format!("~{:.2}%", share * 100.0))),
            self.lost.to_string(),
        ]
        .map(|cell| printable(&cell).into_owned())
    }
}

/// Titles of the columns.
pub const TITLES: [&str; 14] = [
    "pid",
    "service",
    "pod/container",
    "go",
    "engine",
    "level",
    "alive",
    "created/s",
    "growth/s",
    "cpu",
    "top wait",
    "leaked",
    "overhead",
    "lost",
];

/// `3 proven, 12 suspected`; `None` where nobody is.
#[must_use]
pub fn leaked((proven, suspected): (u64, u64)) -> Option<String> {
    match (proven, suspected) {
        (0, 0) => None,
        (proven, 0) => Some(format!("{proven} proven")),
        (0, suspected) => Some(format!("{suspected} suspected")),
        (proven, suspected) => Some(format!("{proven} proven, {suspected} suspected")),
    }
}

fn place(resource: &Resource) -> Option<String> {
    let text = |name| resource.text(name).map(str::to_owned);
    match (text("k8s.namespace.name"), text("k8s.pod.name")) {
        (Some(namespace), Some(pod)) => Some(format!("{namespace}/{pod}")),
        (None, Some(pod)) => Some(pod),
        _ => text("container.name").or_else(|| text("container.id").map(|id| id.chars().take(12).collect())),
    }
}

/// Rows, those with most goroutines first.
#[must_use]
pub fn rows<'a>(intervals: impl Iterator<Item = &'a Interval>) -> Vec<Row> {
    let mut rows: Vec<Row> = intervals.map(Row::of).collect();
    rows.sort_by(|a, b| b.alive.cmp(&a.alive).then(a.pid.cmp(&b.pid)));
    rows
}

/// A table in plain lines.
///
/// # Errors
/// When it cannot be written.
pub fn table(out: &mut impl Write, node: &Node) -> io::Result<()> {
    let cells: Vec<_> = node.rows.iter().map(Row::cells).collect();
    let titles = TITLES.map(String::from);
    let width = |column: usize| {
        std::iter::once(&titles).chain(&cells).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    for row in std::iter::once(&titles).chain(&cells) {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if is_number(column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    if let Some(not_shown) = node.not_shown() {
        writeln!(out, "{not_shown}")?;
    }
    writeln!(out)?;
    out.flush()
}

/// Whether a column's cells stand at its right side.
#[must_use]
pub fn is_number(column: usize) -> bool {
    matches!(
        TITLES.get(column),
        Some(&("pid" | "alive" | "created/s" | "growth/s" | "cpu" | "overhead" | "lost"))
    )
}

/// The first line.
///
/// # Errors
/// When it cannot be written.
pub fn json_header(out: &mut impl Write) -> io::Result<()> {
    line(out, &json!({ "schema": SCHEMA, "time_unix_nano": now() }))
}

/// A line with all rows.
///
/// # Errors
/// When it cannot be written.
pub fn json(out: &mut impl Write, node: &Node) -> io::Result<()> {
    let processes: Vec<_> = node
        .rows
        .iter()
        .map(|row| {
            json!({
                "pid": row.pid,
                "service": row.service,
                "place": row.place,
                "go_version": row.go_version,
                "engine": row.engine,
                "level": row.level,
                "level_reason": row.level_reason,
                "level_wanted": row.level_wanted,
                "alive": row.alive,
                "alive_is_lower_bound": row.alive_is_lower_bound,
                "born_per_second": row.born_per_second,
                "growth_per_second": row.growth_per_second,
                "cpu_ns_per_second": row.cpu_ns_per_second,
                "top_wait": row.top_wait.as_ref().map(|(reason, count)| json!({ "reason": reason, "count": count })),
                "leaks_proven": row.leaked.0,
                "leak_suspects": row.leaked.1,
                "probe_cost_share": row.probe_cost_share,
                "lost": row.lost,
            })
        })
        .collect();
    let object = json!({
        "time_unix_nano": now(),
        "processes": processes,
        "processes_unreadable": node.unreadable,
        "programs_refused": node.refused,
    });
    line(out, &object)?;
    out.flush()
}

fn line(out: &mut impl Write, value: &serde_json::Value) -> io::Result<()> {
    write_json(out, value)?;
    out.write_all(b"\n")
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::{Site, samples};

    #[test]
    fn rows_have_rates_and_say_what_is_not_known() {
        let resource = samples::resource();
        let mut few = samples::interval(&resource, 1, Vec::new());
        (few.pid, few.alive, few.born, few.died) = (7, 3, 10, 4);
        few.end_unix_nano = few.start_unix_nano + 2_000_000_000;
        few.waiting = [("select".into(), 1), ("IO wait".into(), 2)].into();
        few.probe_cost_share = None;
        (few.level, few.level_reason) = ("sampled", Some("memory"));
        let mut many = few.clone();
        (many.pid, many.alive) = (8, 30);
        let site = |cpu_ns| Site { cpu_ns, ..samples::site("main.worker", 1, 0) };
        few.sites = vec![site(None)];
        many.sites = [Some(400_000_000), None, Some(2_000_000)].map(site).into();
        let rows = rows([&few, &many].into_iter());
        assert_eq!(rows.iter().map(|r| r.pid).collect::<Vec<_>>(), [8, 7]);
        let row = &rows[1];
        assert_eq!((row.born_per_second, row.growth_per_second), (5.0, 3.0));
        assert_eq!(row.top_wait, Some(("IO wait".into(), 2)));
        let node = Node { rows, refused: 1, unreadable: 3, awaited: None };
        let mut text = Vec::new();
        table(&mut text, &node).expect("in memory");
        let text = String::from_utf8(text).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("pid  service  pod/container"), "{text}");
        assert!(lines[2].contains("sampled (memory)"), "{text}");
        assert!(lines[1].contains("+3.0  20.1%") && lines[2].contains("+3.0      -"), "{text}");
        let not_shown = "not shown: 3 processes without permission to read them, 1 Go process that could not be traced (see stderr)";
        assert_eq!(lines[3], not_shown);
        assert!(lines[2].contains("2 IO wait") && lines[2].contains("+3.0"), "{text}");
        let mut line = Vec::new();
        json(&mut line, &node).expect("in memory");
        let line: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert!(line["processes"][1]["probe_cost_share"].is_null());
        assert!(line["processes"][1]["place"].is_null());
        assert_eq!(line["processes"][0]["cpu_ns_per_second"], 201_000_000.0);
        assert!(line["processes"][1]["cpu_ns_per_second"].is_null());
        assert_eq!(line["processes"][1]["level_reason"], "memory");
        assert_eq!((&line["processes_unreadable"], &line["programs_refused"]), (&json!(3), &json!(1)));
    }
}
