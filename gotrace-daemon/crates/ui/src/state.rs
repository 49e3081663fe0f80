//! What is shown, made of an interval: plain text in rows, no terminal.

use std::{collections::BTreeMap, sync::Arc};

use super::{detail, format};
use gotrace_model::{Interval, Location, Quantile, Resource, Site, Value, printable::printable};

/// A creation site as a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Which one.
    pub key: (Arc<Location>, Option<Arc<Location>>),
    /// Entry function.
    pub entry: String,
    /// Where the `go` statement is: `file.go:12 in main.main`.
    pub created_by: String,
    pub alive: String,
    pub born: String,
    pub died: String,
    /// Of one CPU.
    pub cpu: String,
    /// Reasons with their numbers, most first.
    pub waiting: String,
    /// At most.
    pub p50: String,
    /// At most.
    pub p99: String,
    pub max: String,
    pub oldest: String,
}

/// The totals above the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Header {
    pub pid: u32,
    /// Path of the executable.
    pub path: String,
    pub go_version: String,
    pub engine: &'static str,
    pub level: &'static str,
    pub elapsed: String,
    pub alive: String,
    pub born: String,
    pub died: String,
    /// Losses by kind; empty when nothing was lost.
    pub lost: String,
    /// All that wait, by reason.
    pub waiting: String,
    /// What the probes cost, as a share of the process's CPU time, and what they may; empty while not known.
    pub cost: String,
    /// Why the level is lower than is wanted; empty where it is not.
    pub lowered: String,
    /// Goroutines that are proven or suspected to be leaked; empty while there are none.
    pub leaked: String,
}

impl Header {
    /// The process in at most `width` characters: its path gives way first.
    pub(super) fn process(&self, width: usize) -> String {
        let Self { pid, path, go_version, engine, level, elapsed, .. } = self;
        let full = |path: &str| {
            format!("pid {pid} · {path} · {go_version} · engine {engine} · level {level} · {elapsed}")
        };
        let for_path = width.saturating_sub(full("").chars().count());
        if for_path >= path.chars().count().min(16) {
            return full(&format::shorten(path, for_path));
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let short = |name: &str| format!("pid {pid} · {name} · {engine}/{level} · {elapsed}");
        let for_name = width.saturating_sub(short("").chars().count());
        format::shorten(&short(&format::shorten(name, for_name)), width)
    }
}

/// By which column rows are sorted, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Alive,
    Cpu,
    Created,
    Exited,
    P99,
    Max,
    Oldest,
}

impl Sort {
    const ALL: [Self; 7] =
        [Self::Alive, Self::Cpu, Self::Created, Self::Exited, Self::P99, Self::Max, Self::Oldest];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Cpu => "cpu",
            Self::Created => "new/s",
            Self::Exited => "exit/s",
            Self::P99 => "p99",
            Self::Max => "max",
            Self::Oldest => "oldest",
        }
    }

    fn of(self, site: &Site) -> u64 {
        match self {
            Self::Alive => site.alive,
            Self::Cpu => site.cpu_ns.unwrap_or(0),
            Self::Created => site.born,
            Self::Exited => site.died,
            Self::P99 => Quantile::of(&site.waits, 0.99).map_or(0, |p| p.at_most_ns),
            Self::Max => site.waits.max_ns,
            Self::Oldest => site.oldest_ns.unwrap_or(0),
        }
    }
}

/// The view's state.
#[derive(Debug)]
pub(super) struct State {
    /// Shown until there is a header.
    pub about: String,
    pub header: Option<Header>,
    /// What is wrong, the worst first; empty where nothing is known to be.
    pub problems: String,
    pub rows: Vec<Row>,
    pub with_waits: bool,
    /// First row shown.
    pub top: usize,
    /// The row that more can be shown of.
    pub selected: usize,
    /// Rows that the last drawing had room for.
    pub visible: usize,
    pub color: bool,
    /// Whether durations of waits are shown where there is no room for all columns.
    pub durations: bool,
    /// What the last line begins with.
    pub note: String,
    pub sort: Sort,
    /// Rows that have this are shown.
    pub filter: String,
    /// Whether keys change it.
    pub typing: bool,
    /// Whether the runtime's own goroutines are shown.
    pub system: bool,
    /// Whether what comes is passed over.
    pub paused: bool,
    /// More of the row that is selected; empty where that is not wanted.
    pub detail: Vec<String>,
    with_detail: bool,
    pub help: bool,
    last: Option<Arc<Interval>>,
    began_unix_nano: Option<u64>,
}

impl State {
    pub(super) fn new(about: String, color: bool, system: bool) -> Self {
        Self {
            about,
            header: None,
            problems: String::new(),
            rows: Vec::new(),
            with_waits: true,
            top: 0,
            selected: 0,
            visible: 0,
            color,
            durations: false,
            note: String::new(),
            sort: Sort::default(),
            filter: String::new(),
            typing: false,
            system,
            paused: false,
            detail: Vec::new(),
            with_detail: false,
            help: false,
            last: None,
            began_unix_nano: None,
        }
    }

    pub(super) fn update(&mut self, interval: &Arc<Interval>) {
        self.began_unix_nano.get_or_insert(interval.start_unix_nano);
        if !self.paused {
            self.last = Some(Arc::clone(interval));
            self.refresh();
        }
    }

    /// Makes what is shown anew.
    fn refresh(&mut self) {
        let Some(interval) = self.last.clone() else { return };
        // The row that is selected stays so, wherever it goes.
        let selected = self.rows.get(self.selected).map(|row| row.key.clone());
        self.header = Some(header(&interval, self.began_unix_nano.unwrap_or(interval.start_unix_nano)));
        self.problems = problems(&interval);
        let wanted = self.filter.to_lowercase();
        let mut sites: Vec<&Site> = interval
            .sites
            .iter()
            .filter(|site| (self.system || !site.is_system()) && has(site, &wanted))
            .collect();
        // What has the same value stays in its order.
        sites.sort_by_key(|site| std::cmp::Reverse(self.sort.of(site)));
        self.rows = rows(&interval, &sites);
        self.with_waits = interval.level != "lifecycle";
        if let Some(at) = selected.and_then(|key| self.rows.iter().position(|row| row.key == key)) {
            self.selected = at;
        }
        self.clamp();
        self.detail = match sites.get(self.selected).filter(|_| self.with_detail) {
            Some(site) => detail::lines(&interval, site),
            None => Vec::new(),
        };
    }

    /// Selects another row; `isize::MIN` is the first.
    pub(super) fn scroll(&mut self, by: isize) {
        self.selected = self.selected.saturating_add_signed(by);
        self.clamp();
        if self.with_detail {
            self.refresh();
        }
    }

    pub(super) fn clamp(&mut self) {
        self.selected = self.selected.min(self.rows.len().saturating_sub(1));
        let visible = self.visible.max(1);
        self.top = self.top.min(self.rows.len().saturating_sub(visible));
        self.top = self.top.clamp((self.selected + 1).saturating_sub(visible), self.selected);
    }

    pub(super) fn sort_by_next(&mut self) {
        let at = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or(0);
        self.sort = Sort::ALL[(at + 1) % Sort::ALL.len()];
        self.selected = 0;
        self.rows.clear();
        self.refresh();
    }

    pub(super) fn type_char(&mut self, typed: char) {
        if self.filter.chars().count() < 64 {
            self.filter.push(typed);
        }
        self.refresh();
    }

    pub(super) fn erase(&mut self) {
        self.filter.pop();
        self.refresh();
    }

    pub(super) fn switch_system(&mut self) {
        self.system = !self.system;
        self.refresh();
    }

    pub(super) fn pause(&mut self) {
        self.paused = !self.paused;
    }

    /// What was typed is enough; else more, or no more, of the row that is selected.
    pub(super) fn enter(&mut self) {
        if std::mem::take(&mut self.typing) {
            return;
        }
        self.with_detail = !self.with_detail;
        self.refresh();
    }

    /// One step back; whether there was one.
    pub(super) fn back(&mut self) -> bool {
        if std::mem::take(&mut self.help) {
            return true;
        }
        if std::mem::take(&mut self.typing) || !self.filter.is_empty() {
            self.filter.clear();
        } else if self.with_detail {
            self.with_detail = false;
        } else {
            return false;
        }
        self.refresh();
        true
    }
}

/// Whether a site has the text, which is in lower case, in one of its names.
fn has(site: &Site, wanted: &str) -> bool {
    let in_place = |place: &Location| {
        place.function.to_lowercase().contains(wanted) || place.file.to_lowercase().contains(wanted)
    };
    wanted.is_empty()
        || in_place(&site.entry)
        || site.created_by.as_deref().is_some_and(in_place)
        || site.waiting.keys().any(|reason| reason.to_lowercase().contains(wanted))
}

/// `LEAK 2519 × main.waitForever · growing 7 × main.poll`: what is not suppressed, the worst first.
fn problems(interval: &Interval) -> String {
    let leaks = interval.leaks.iter().filter(|l| l.suppressed.is_none());
    let suspects = interval.suspects.iter().filter(|s| s.suppressed.is_none());
    leaks
        .map(|l| format!("LEAK {} × {}", l.count, l.entry.function))
        .chain(suspects.map(|s| format!("{} {} × {}", s.verdict, s.count, s.entry.function)))
        .collect::<Vec<_>>()
        .join(" · ")
}

pub(super) fn header(interval: &Interval, began_unix_nano: u64) -> Header {
    let length_ns = interval.end_unix_nano.saturating_sub(interval.start_unix_nano);
    let path = text(&interval.resource, "process.executable.path").unwrap_or("?");
    let path = printable(path);
    let version = text(&interval.resource, "process.runtime.version").unwrap_or("Go version unknown");
    Header {
        pid: interval.pid,
        path: path.into(),
        go_version: version.into(),
        engine: interval.engine,
        level: interval.level,
        elapsed: format::duration(interval.end_unix_nano.saturating_sub(began_unix_nano)),
        alive: format!(
            "{}{}",
            if interval.alive_is_lower_bound { "≥" } else { "" },
            format::count(interval.alive)
        ),
        born: format::rate(interval.born, length_ns),
        died: format::rate(interval.died, length_ns),
        lost: interval
            .lost
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(kind, n)| format!("{kind} {}", format::count(*n)))
            .collect::<Vec<_>>()
            .join(", "),
        waiting: reasons(&interval.waiting, usize::MAX),
        cost: interval.probe_cost_share.map_or_else(String::new, |share| {
            let budget = interval.levels.budget.map(|b| format!(" (budget {})", format::share(b)));
            let at_most = if share < 1.0 { "" } else { "≤" };
            format!("{at_most}{}{}", format::share(share), budget.unwrap_or_default())
        }),
        lowered: interval.level_reason.map_or_else(String::new, |why| {
            format!("level {} instead of {}: {why}", interval.level, interval.levels.wanted)
        }),
        leaked: gotrace_export::top::leaked(interval.leaked()).unwrap_or_default(),
    }
}

fn rows(interval: &Interval, sites: &[&Site]) -> Vec<Row> {
    let length_ns = interval.end_unix_nano.saturating_sub(interval.start_unix_nano);
    let or_dash = |ns: Option<u64>| ns.map_or_else(|| "-".into(), format::duration);
    sites
        .iter()
        .map(|site| Row {
            key: (Arc::clone(&site.entry), site.created_by.clone()),
            entry: site.entry.function.to_string(),
            created_by: site.created_by.as_deref().map_or_else(|| "-".into(), place),
            alive: format::count(site.alive),
            born: format::rate(site.born, length_ns),
            died: format::rate(site.died, length_ns),
            cpu: site
                .known_cpu_ns(false)
                .map_or_else(|| "-".into(), |ns| format::share(ns as f64 / length_ns.max(1) as f64)),
            waiting: reasons(&site.waiting, 3),
            p50: or_dash(Quantile::of(&site.waits, 0.5).map(|p| p.at_most_ns)),
            p99: or_dash(Quantile::of(&site.waits, 0.99).map(|p| p.at_most_ns)),
            max: or_dash((site.waits.count > 0).then_some(site.waits.max_ns)),
            oldest: oldest(site),
        })
        .collect()
}

/// `2m05s`; `2m05s+` when it may be more.
fn oldest(site: &Site) -> String {
    let more = if site.oldest_is_lower_bound { "+" } else { "" };
    site.oldest_ns.map_or_else(|| "-".into(), |ns| format!("{}{more}", format::duration(ns)))
}

/// `pool.go:12`, which is short and found at once.
fn place(location: &Location) -> String {
    if location.file.is_empty() || location.line == 0 {
        return location.function.to_string();
    }
    let file = location.file.rsplit('/').next().unwrap_or(&location.file);
    format!("{file}:{}", location.line)
}

/// `chan receive 12, select 3`, most first; what is left out is counted.
fn reasons(waiting: &BTreeMap<Arc<str>, u64>, most: usize) -> String {
    let mut sorted: Vec<_> = waiting.iter().filter(|(_, n)| **n > 0).collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let rest: u64 = sorted.iter().skip(most).map(|(_, n)| **n).sum();
    let mut parts: Vec<String> =
        sorted.iter().take(most).map(|(reason, n)| format!("{reason} {}", format::count(**n))).collect();
    if rest > 0 {
        parts.push(format!("other {}", format::count(rest)));
    }
    parts.join(", ")
}

fn text<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
    match resource.attributes.get(key) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use gotrace_common::Histogram;

    use super::*;
    use gotrace_model::Levels;

    pub(crate) fn interval() -> Interval {
        let location = |function: &str, file: &str, line| {
            Arc::new(Location { function: function.into(), file: file.into(), line })
        };
        let mut resource = Resource::default();
        for (key, value) in
            [("process.executable.path", "/srv/shop/server"), ("process.runtime.version", "go1.24.3")]
        {
            resource.attributes.insert(key.into(), Value::Text(value.into()));
        }
        let mut waits = Histogram::default();
        for ms in 1..=100 {
            waits.add(ms * 1_000_000);
        }
        let site = |entry: &str, alive, waiting: &[(&str, u64)], waits: Histogram| Site {
            entry: location(entry, "/src/main.go", 10),
            created_by: Some(location("main.main", "/src/cmd/main.go", 30)),
            alive,
            born: 50,
            died: 25,
            born_total: 500,
            died_total: 250,
            cpu_ns: (alive == 1000).then_some(840_000_000),
            cpu_total_ns: if alive == 1000 { 840_000_000 } else { 0 },
            throttled_ns: 0,
            throttled_total_ns: 0,
            waiting: waiting.iter().map(|(r, n)| ((*r).into(), *n)).collect(),
            waits,
            lifetimes: Histogram::default(),
            oldest_ns: Some(65_000_000_000),
            oldest_is_lower_bound: entry.starts_with("net/http"),
        };
        Interval {
            resource: Arc::new(resource),
            pid: 1234,
            start_unix_nano: 1_000_000_000_000,
            end_unix_nano: 1_002_000_000_000,
            alive: 1250,
            alive_is_lower_bound: true,
            born: 100,
            died: 50,
            born_total: 1000,
            died_total: 500,
            lost: BTreeMap::from([("ring_wait", 7)]),
            repaired: BTreeMap::new(),
            sampled_out: BTreeMap::new(),
            events: BTreeMap::new(),
            waiting: BTreeMap::from([("chan receive".into(), 900), ("select".into(), 100)]),
            waits: BTreeMap::new(),
            schedule: Histogram::default(),
            syscalls: Histogram::default(),
            sites: vec![
                site(
                    "net/http.(*conn).serve",
                    1000,
                    &[("IO wait", 1), ("select", 5), ("sleep", 3), ("x", 2)],
                    waits,
                ),
                site(
                    "github.com/example/shop/internal/inventory.(*Pool).worker.func1",
                    250,
                    &[("chan receive", 250)],
                    Histogram::default(),
                ),
            ],
            snapshots: Histogram::default(),
            engine: "events",
            level: "waits",
            level_reason: None,
            levels: Levels::default(),
            leaks: Vec::new(),
            leaks_refuted: 0,
            suspects: Vec::new(),
            collector: gotrace_model::samples::collector(),
            process_cpu_ns: Some(1_000_000_000),
            process_cpu_total_ns: Some(1_000_000_000),
            probe_cost_share: Some(0.0042),
        }
    }

    #[test]
    fn an_interval_becomes_text() {
        let interval = interval();
        let header = header(&interval, 990_000_000_000);
        assert_eq!(
            header.process(80),
            "pid 1234 · /srv/shop/server · go1.24.3 · engine events · level waits · 12s"
        );
        assert_eq!(header.process(40), "pid 1234 · server · events/waits · 12s");
        assert_eq!(header.process(36), "pid 1234 · se…r · events/waits · 12s");
        assert!((0..80).all(|width| header.process(width).chars().count() <= width));
        assert_eq!(header.cost, "0.42%");
        let all = Interval { probe_cost_share: Some(1.0), ..interval.clone() };
        assert_eq!(super::header(&all, 990_000_000_000).cost, "≤100%");
        assert_eq!((header.elapsed.as_str(), header.alive.as_str()), ("12s", "≥1250"));
        assert_eq!((header.born.as_str(), header.died.as_str()), ("50.0", "25.0"));
        assert_eq!(header.lost, "ring_wait 7");
        assert_eq!(header.waiting, "chan receive 900, select 100");
        let sites: Vec<&Site> = interval.sites.iter().collect();
        let rows = rows(&interval, &sites);
        assert_eq!(rows[0].waiting, "select 5, sleep 3, x 2, other 1");
        assert_eq!(rows[0].created_by, "main.go:30");
        assert_eq!((rows[0].max.as_str(), rows[0].oldest.as_str()), ("100ms", "1m05s+"));
        assert_eq!((rows[0].cpu.as_str(), rows[1].cpu.as_str()), ("42%", "-"));
        assert_eq!(rows[1].oldest, "1m05s");
        assert_eq!(rows[1].p99, "-");
    }

    fn shown() -> State {
        let mut state = State::new(String::new(), false, false);
        state.update(&Arc::new(interval()));
        state.visible = 10;
        state
    }

    fn entries(state: &State) -> Vec<&str> {
        state.rows.iter().map(|row| &*row.entry).collect()
    }

    const SERVE: &str = "net/http.(*conn).serve";
    const WORKER: &str = "github.com/example/shop/internal/inventory.(*Pool).worker.func1";

    #[test]
    fn scrolling_stays_within_the_rows() {
        let mut state = shown();
        state.visible = 1;
        state.scroll(50);
        assert_eq!((state.selected, state.top), (1, 1));
        state.scroll(isize::MIN);
        assert_eq!((state.selected, state.top), (0, 0));
        state.visible = 10;
        state.scroll(1);
        assert_eq!((state.selected, state.top), (1, 0));
    }

    #[test]
    fn rows_are_sorted_by_any_column() {
        let mut state = shown();
        assert_eq!(entries(&state), [SERVE, WORKER]);
        let mut last = (*state.last.clone().expect("shown")).clone();
        last.sites[1].cpu_ns = Some(2_000_000_000);
        state.update(&Arc::new(last));
        assert_eq!(entries(&state), [SERVE, WORKER]);
        state.sort_by_next();
        assert_eq!((state.sort.name(), entries(&state)), ("cpu", vec![WORKER, SERVE]));
        (1..Sort::ALL.len()).for_each(|_| state.sort_by_next());
        assert_eq!((state.sort, entries(&state)), (Sort::Alive, vec![SERVE, WORKER]));
    }

    #[test]
    fn a_filter_finds_functions_files_and_reasons() {
        let mut state = shown();
        for (typed, found) in [
            ("POOL", vec![WORKER]),
            ("cmd/main", vec![SERVE, WORKER]),
            ("sleep", vec![SERVE]),
            ("zzz", vec![]),
        ] {
            state.typing = true;
            typed.chars().for_each(|c| state.type_char(c));
            assert_eq!(entries(&state), found, "{typed}");
            assert!(state.back() && state.filter.is_empty() && !state.typing);
        }
        state.typing = true;
        state.type_char('z');
        state.erase();
        state.enter();
        assert_eq!((state.typing, entries(&state).len(), state.detail.len()), (false, 2, 0));
        assert!(!state.back(), "there is nothing to come back from");
    }

    #[test]
    fn what_is_selected_stays_so_and_is_told_more_of() {
        let mut state = shown();
        state.scroll(1);
        state.enter();
        let text = state.detail.join("\n");
        assert!(text.contains(WORKER) && text.contains("500 created, 250 exited"), "{text}");
        state.sort = Sort::Cpu;
        let mut last = (*state.last.clone().expect("shown")).clone();
        last.sites[1].cpu_ns = Some(2_000_000_000);
        state.update(&Arc::new(last));
        assert_eq!((state.selected, entries(&state)), (0, vec![WORKER, SERVE]));
        assert!(state.detail.join("\n").contains(WORKER));
        assert!(state.back() && state.detail.is_empty());
    }

    #[test]
    fn a_picture_can_be_stopped() {
        let mut state = shown();
        state.pause();
        let mut next = interval();
        next.sites.clear();
        state.update(&Arc::new(next.clone()));
        assert_eq!(state.rows.len(), 2);
        state.pause();
        state.update(&Arc::new(next));
        assert_eq!(state.rows.len(), 0);
    }

    #[test]
    fn the_runtimes_own_are_shown_when_wanted() {
        let mut with_runtime = interval();
        let mut worker = with_runtime.sites[1].clone();
        worker.entry =
            Arc::new(Location { function: "runtime.gcBgMarkWorker".into(), file: "".into(), line: 0 });
        with_runtime.sites.push(worker);
        let mut state = State::new(String::new(), false, false);
        state.update(&Arc::new(with_runtime));
        assert_eq!(state.rows.len(), 2);
        state.switch_system();
        assert_eq!(entries(&state)[2], "runtime.gcBgMarkWorker");
    }
}
