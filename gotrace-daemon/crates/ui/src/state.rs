//! What is shown, made of an interval: plain text in rows, no terminal.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    detail, format,
    places::{self, PlaceRow},
    reading::Readings,
    requests::{self, RouteRow},
    since,
};
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
    /// How that differs from the mark; empty where there is none.
    pub since: String,
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

/// What is shown of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    /// Its goroutines by creation site.
    #[default]
    Sites,
    /// Where they wait.
    Places,
    /// What it serves.
    Requests,
    /// Who waits for which lock and channel, when it was read.
    Locks,
    /// All goroutines by where they stand, when they were read.
    Goroutines,
}

/// The view's state.
#[derive(Debug)]
pub(super) struct State {
    /// Shown until there is a header.
    pub about: String,
    pub header: Option<Header>,
    /// What is wrong, the worst first; empty where nothing is known to be.
    pub problems: String,
    pub view: View,
    /// Of the view of creation sites; empty in another one.
    pub rows: Vec<Row>,
    /// Of the view of places.
    pub places: Vec<PlaceRow>,
    /// Of the view of requests.
    pub routes: Vec<RouteRow>,
    /// Whether they are traced, as far as the level allows.
    pub requests_traced: bool,
    /// Of the views that are read when they are asked for.
    pub readings: Readings,
    /// The shortest wait that places count, where that is known.
    pub min_wait_ns: Option<u64>,
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
    /// What became of the last key, until the next one; empty where there is nothing to say.
    pub said: String,
    pub sort: Sort,
    pub place_sort: places::Sort,
    pub request_sort: requests::Sort,
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
    pub(super) with_detail: bool,
    slowest: requests::Slowest,
    pub help: bool,
    /// What rows are compared with, where that is wanted.
    pub mark: Option<Arc<Interval>>,
    pub(super) last: Option<Arc<Interval>>,
    began_unix_nano: Option<u64>,
}

impl State {
    pub(super) fn new(about: String, color: bool, system: bool) -> Self {
        Self {
            about,
            header: None,
            problems: String::new(),
            view: View::default(),
            rows: Vec::new(),
            places: Vec::new(),
            routes: Vec::new(),
            requests_traced: false,
            readings: Readings::default(),
            min_wait_ns: None,
            with_waits: true,
            top: 0,
            selected: 0,
            visible: 0,
            color,
            durations: false,
            note: String::new(),
            said: String::new(),
            sort: Sort::default(),
            place_sort: places::Sort::default(),
            request_sort: requests::Sort::default(),
            filter: String::new(),
            typing: false,
            system,
            paused: false,
            detail: Vec::new(),
            with_detail: false,
            slowest: requests::Slowest::default(),
            help: false,
            mark: None,
            last: None,
            began_unix_nano: None,
        }
    }

    /// Takes of an interval that is not shown what is told once.
    pub(super) fn pass_over(&mut self, interval: &Interval) {
        self.slowest.add(interval);
    }

    pub(super) fn update(&mut self, interval: &Arc<Interval>) {
        self.pass_over(interval);
        self.began_unix_nano.get_or_insert(interval.start_unix_nano);
        if !self.paused {
            self.last = Some(Arc::clone(interval));
            self.refresh();
        }
    }

    /// Makes what is shown anew.
    pub(super) fn refresh(&mut self) {
        let Some(interval) = self.last.clone() else { return };
        self.mark.take_if(|mark| !since::is_after(mark, &interval));
        let mut header = header(&interval, self.began_unix_nano.unwrap_or(interval.start_unix_nano));
        let mut shown = Arc::clone(&interval);
        if let Some(mark) = &self.mark {
            header.since = since::told(mark, &interval);
            shown = Arc::new(since::between(mark, &interval));
        }
        self.header = Some(header);
        self.problems = problems(&interval);
        self.with_waits = interval.level != "lifecycle";
        self.min_wait_ns = interval.waits_at.min_wait_ns;
        self.requests_traced = interval.requests.is_some();
        match self.view {
            View::Sites => self.refresh_sites(&interval, &shown),
            View::Places => self.refresh_places(&interval, &shown),
            View::Requests => self.refresh_requests(&interval, &shown),
            View::Locks | View::Goroutines => self.refresh_readings(),
        }
        if let Some(why) = self.readings.told_why() {
            self.detail = why;
        }
    }

    pub(super) fn clear_rows(&mut self) {
        self.rows.clear();
        self.places.clear();
        self.routes.clear();
        self.readings.rows.clear();
    }

    fn refresh_requests(&mut self, interval: &Interval, shown: &Interval) {
        let selected = self.routes.get(self.selected).map(|row| row.key.clone());
        let chosen = requests::chosen(shown, &self.filter.to_lowercase(), self.request_sort);
        self.clear_rows();
        self.routes = requests::rows(shown, &chosen);
        if let Some(mark) = &self.mark {
            since::tell_routes(mark, &chosen, &mut self.routes);
        }
        if let Some(at) = selected.and_then(|key| self.routes.iter().position(|row| row.key == key)) {
            self.selected = at;
        }
        self.clamp();
        self.detail = match chosen.get(self.selected).filter(|_| self.with_detail) {
            Some(route) => {
                let route = since::route_of(interval, route).unwrap_or(route);
                requests::details(interval, route, &self.slowest)
            }
            None => Vec::new(),
        };
    }

    fn refresh_places(&mut self, interval: &Interval, shown: &Interval) {
        let selected = self.places.get(self.selected).map(|row| row.key.clone());
        let chosen =
            places::chosen(&shown.waits_at, &self.filter.to_lowercase(), self.place_sort, self.system);
        self.clear_rows();
        self.places = places::rows(shown, &chosen, self.system);
        if self.mark.is_some() {
            since::tell_places(&mut self.places);
        }
        if let Some(at) = selected.and_then(|key| self.places.iter().position(|row| row.key == key)) {
            self.selected = at;
        }
        self.clamp();
        self.detail = match chosen.get(self.selected).filter(|_| self.with_detail) {
            Some(place) => {
                let place = since::place_of(interval, place).unwrap_or(place);
                places::details(interval, place, self.system)
            }
            None => Vec::new(),
        };
    }

    /// `shown`: the interval, or what differs from the mark.
    fn refresh_sites(&mut self, interval: &Interval, shown: &Interval) {
        // The row that is selected stays so, wherever it goes.
        let selected = self.rows.get(self.selected).map(|row| row.key.clone());
        let wanted = self.filter.to_lowercase();
        self.clear_rows();
        let mut sites: Vec<&Site> = shown
            .sites
            .iter()
            .filter(|site| (self.system || !site.is_system()) && has(site, &wanted))
            .collect();
        // What has the same value stays in its order.
        match (&self.mark, self.sort) {
            (Some(mark), Sort::Alive) => {
                let growth = since::growth(mark);
                sites.sort_by_key(|site| std::cmp::Reverse(growth(site)));
            }
            (_, sort) => sites.sort_by_key(|site| std::cmp::Reverse(sort.of(site))),
        }
        self.rows = rows(shown, &sites);
        if let Some(mark) = &self.mark {
            since::tell_sites(mark, &sites, &mut self.rows);
        }
        if let Some(at) = selected.and_then(|key| self.rows.iter().position(|row| row.key == key)) {
            self.selected = at;
        }
        self.clamp();
        self.detail = match sites.get(self.selected).filter(|_| self.with_detail) {
            Some(site) => detail::lines(interval, since::site_of(interval, site).unwrap_or(site)),
            None => Vec::new(),
        };
    }

    /// Shows something else of the process.
    pub(super) fn show(&mut self, view: View) {
        if self.view != view {
            (self.view, self.selected, self.top) = (view, 0, 0);
            self.readings.want(view, false);
            self.refresh();
        }
    }

    /// How many rows the view has.
    pub(super) fn len(&self) -> usize {
        self.rows.len() + self.places.len() + self.routes.len() + self.readings.rows.len()
    }

    /// By what the view is sorted.
    pub(super) fn sorted_by(&self) -> &'static str {
        match self.view {
            View::Sites => self.sort.name(),
            View::Places => self.place_sort.name(),
            View::Requests => self.request_sort.name(),
            View::Locks | View::Goroutines => self.readings.sorted_by(self.view),
        }
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
        self.selected = self.selected.min(self.len().saturating_sub(1));
        let visible = self.visible.max(1);
        self.top = self.top.min(self.len().saturating_sub(visible));
        self.top = self.top.clamp((self.selected + 1).saturating_sub(visible), self.selected);
    }

    pub(super) fn sort_by_next(&mut self) {
        match self.view {
            View::Sites => {
                let at = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or(0);
                self.sort = Sort::ALL[(at + 1) % Sort::ALL.len()];
            }
            View::Places => self.place_sort = self.place_sort.next(),
            View::Requests => self.request_sort = self.request_sort.next(),
            View::Locks | View::Goroutines => self.readings.sort_by_next(),
        }
        self.selected = 0;
        self.clear_rows();
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
        // What was asked of a goroutine gives way to the row's own.
        self.with_detail = self.readings.leave_why() || !self.with_detail;
        self.refresh();
    }

    /// One step back; whether there was one.
    pub(super) fn back(&mut self) -> bool {
        if std::mem::take(&mut self.help) {
            return true;
        }
        if std::mem::take(&mut self.typing) || !self.filter.is_empty() {
            self.filter.clear();
        } else if self.readings.leave_why() {
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
        .map(|problem| printable(&problem).into_owned())
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
        since: String::new(),
    }
}

fn rows(interval: &Interval, sites: &[&Site]) -> Vec<Row> {
    let length_ns = interval.end_unix_nano.saturating_sub(interval.start_unix_nano);
    let or_dash = |ns: Option<u64>| ns.map_or_else(|| "-".into(), format::duration);
    sites
        .iter()
        .map(|site| Row {
            key: (Arc::clone(&site.entry), site.created_by.clone()),
            entry: printable(&site.entry.function).into_owned(),
            created_by: site
                .created_by
                .as_deref()
                .map_or_else(|| "-".into(), |at| printable(&place(at)).into_owned()),
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
#[path = "state_tests.rs"]
pub(super) mod tests;
