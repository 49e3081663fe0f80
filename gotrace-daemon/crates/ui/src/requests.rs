//! The view of requests: routes as rows, with where their time went, and of one of them the slowest requests.
//!
//! Made of an interval's [`Requests`]: figures are since attaching, but for those that are open and came just now. Slow
//! requests are told once, so those of each route that took longest are kept here, a few of each.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use gotrace_export::{requests as told, text};
use gotrace_model::{
    Interval, Quantile,
    printable::printable,
    requests::{Request, Route, RouteName},
};
use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Modifier, Style},
    text::Text,
    widgets::{Cell, Paragraph, Row as TableRow, Table},
};

use super::{format, since, state::State};

/// Slow requests that are kept of a route, and routes that some are kept of.
const KEPT: usize = 5;
const ROUTES: usize = 512;

/// A route as a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RouteRow {
    /// Which one.
    pub key: RouteName,
    pub name: String,
    pub count: String,
    pub rate: String,
    pub errors: String,
    /// At most.
    pub p50: String,
    /// At most.
    pub p99: String,
    pub max: String,
    pub open: String,
    /// How long the oldest that is open has been.
    pub oldest: String,
    /// Where the time went.
    pub bar: String,
    /// The largest parts of it, in words.
    pub parts: String,
}

/// By which column routes are sorted, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Time,
    Count,
    New,
    Errors,
    P99,
    Max,
    Open,
}

impl Sort {
    const ALL: [Self; 7] =
        [Self::Time, Self::Count, Self::New, Self::Errors, Self::P99, Self::Max, Self::Open];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Count => "count",
            Self::New => "new/s",
            Self::Errors => "errors",
            Self::P99 => "p99",
            Self::Max => "max",
            Self::Open => "oldest open",
        }
    }

    /// The next column's.
    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    fn of(self, route: &Route) -> u64 {
        let total = &route.total;
        match self {
            Self::Time => total.durations.sum_ns,
            Self::Count => total.durations.count,
            Self::New => route.durations.count,
            Self::Errors => total.errors,
            Self::P99 => Quantile::of(&total.durations, 0.99).map_or(0, |p| p.at_most_ns),
            Self::Max => total.durations.max_ns,
            Self::Open => route.oldest_open_ns.unwrap_or(0),
        }
    }
}

/// The slowest requests of each route that were told.
#[derive(Debug, Default)]
pub(super) struct Slowest(BTreeMap<RouteName, Vec<Arc<Request>>>);

impl Slowest {
    /// Takes what an interval tells.
    pub fn add(&mut self, interval: &Interval) {
        for request in interval.requests.iter().flat_map(|requests| &requests.slow) {
            if self.0.len() >= ROUTES && !self.0.contains_key(&request.name) {
                continue;
            }
            let kept = self.0.entry(request.name.clone()).or_default();
            // One that was open is told again when it ends, and all of them when a recording is looked at again.
            let same = |known: &Arc<Request>| {
                (known.goid, known.start_unix_nano) == (request.goid, request.start_unix_nano)
            };
            match kept.iter_mut().find(|known| same(known)) {
                Some(known) if known.duration_ns <= request.duration_ns => *known = Arc::clone(request),
                Some(_) => {}
                None => kept.push(Arc::clone(request)),
            }
            kept.sort_by_key(|request| Reverse(request.duration_ns));
            kept.truncate(KEPT);
        }
    }

    fn of(&self, name: &RouteName) -> &[Arc<Request>] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Routes that have the text, which is in lower case, in a name.
pub(super) fn chosen<'a>(interval: &'a Interval, wanted: &str, sort: Sort) -> Vec<&'a Route> {
    let routes = interval.requests.iter().flat_map(|requests| &requests.routes);
    let has = |route: &&Route| route.name.text().to_lowercase().contains(wanted);
    let is_busy = |route: &&Route| route.total.durations.count > 0 || route.open > 0;
    let mut chosen: Vec<&Route> = routes.filter(is_busy).filter(has).collect();
    // What has the same value stays in its order.
    chosen.sort_by_key(|route| Reverse(sort.of(route)));
    chosen
}

pub(super) fn rows(interval: &Interval, routes: &[&Route]) -> Vec<RouteRow> {
    let length_ns = interval.end_unix_nano.saturating_sub(interval.start_unix_nano);
    let or_dash = |ns: Option<u64>| ns.map_or_else(|| "-".into(), format::duration);
    let names: Vec<&RouteName> = routes.iter().map(|route| &route.name).collect();
    let row = |(route, name): (&&Route, String)| {
        let total = &route.total;
        RouteRow {
            key: route.name.clone(),
            name: printable(&name).into_owned(),
            count: format::count(total.durations.count),
            rate: format::rate(route.durations.count, length_ns),
            errors: format::count(total.errors),
            p50: or_dash(Quantile::of(&total.durations, 0.5).map(|p| p.at_most_ns)),
            p99: or_dash(Quantile::of(&total.durations, 0.99).map(|p| p.at_most_ns)),
            max: or_dash((total.durations.count > 0).then_some(total.durations.max_ns)),
            open: if route.open == 0 { "-".into() } else { format::count(route.open) },
            oldest: or_dash(route.oldest_open_ns),
            bar: told::bar(&total.times, u64::from(BAR)),
            parts: told::shares(&total.times, PARTS),
        }
    };
    routes.iter().zip(RouteName::texts(&names)).map(row).collect()
}

/// What is known of a route, with its slowest requests.
pub(super) fn details(interval: &Interval, route: &Route, slowest: &Slowest) -> Vec<String> {
    let total = &route.total;
    let (count, all) = (total.durations.count, &total.durations);
    let statuses: Vec<String> = total
        .by_status
        .iter()
        .map(|(status, durations)| {
            let status = status.map_or_else(|| "none".into(), |status| status.to_string());
            format!("{status} × {}", durations.count)
        })
        .collect();
    let mut lines = vec![
        printable(&route.name.text()).into_owned(),
        format!(
            "requests    {count}, {} failed, {} slow; p50 {}, p99 {}, max {}",
            total.errors,
            total.slow,
            text::quantile(all, 0.5),
            text::quantile(all, 0.99),
            format::duration(all.max_ns)
        ),
        format!("status      {}", statuses.join(", ")),
        format!("time        {}", told::shares(&total.times, usize::MAX)),
    ];
    if let Some(oldest) = route.oldest_open_ns {
        lines.push(format!("open        {}, the oldest for {}", route.open, format::duration(oldest)));
    }
    let kept = slowest.of(&route.name);
    if kept.is_empty() {
        lines.push("slow ones   none told yet".into());
    }
    for (n, request) in kept.iter().enumerate() {
        let mut bytes = Vec::new();
        // A vector takes everything.
        let _ = told::request(&mut bytes, request);
        let name = if n == 0 { "slowest" } else { "" };
        for (m, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            // Its route stands above.
            let line = line.strip_prefix(&*lines[0]).unwrap_or(line);
            let line = line.strip_prefix("  ").unwrap_or(line);
            lines.push(format!(
                "{:<11} {}{line}",
                if m == 0 { name } else { "" },
                if m == 0 { "" } else { "  " }
            ));
        }
    }
    if interval.requests.as_ref().is_some_and(|requests| requests.left_out > 0) {
        lines.push("            more are slow than are told: of each route 20 a second are".into());
    }
    lines
}

/// A column of fixed width, and the least width of the screen that it is shown at.
struct Column {
    title: &'static str,
    from_width: u16,
    text: fn(&RouteRow) -> &str,
}

const NUMBERS: [Column; 8] = [
    Column { title: "count", from_width: 0, text: |r| &r.count },
    Column { title: "new/s", from_width: 92, text: |r| &r.rate },
    Column { title: "errors", from_width: 46, text: |r| &r.errors },
    Column { title: "≤p50", from_width: 66, text: |r| &r.p50 },
    Column { title: "≤p99", from_width: 34, text: |r| &r.p99 },
    Column { title: "max", from_width: 54, text: |r| &r.max },
    Column { title: "open", from_width: 60, text: |r| &r.open },
    Column { title: "oldest", from_width: 76, text: |r| &r.oldest },
];
/// Width of each of them.
const NUMBER: u16 = 6;
/// Columns of a bar, and the least width of the screen for it, and for its parts in words.
const BAR: u16 = 10;
const BAR_FROM: u16 = 96;
const PARTS_FROM: u16 = 116;
/// Columns of these; the longest one has room.
const LEAST_PARTS: u16 = 24;
const MOST_PARTS: u16 = 48;
/// Parts that a row names at most.
const PARTS: usize = 3;

pub(super) fn table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let width = area.width;
    let numbers: Vec<&Column> = NUMBERS.iter().filter(|c| width >= c.from_width).collect();
    let bar = if width >= BAR_FROM { BAR } else { 0 };
    let parts = width.checked_sub(PARTS_FROM).map_or(0, |more| (LEAST_PARTS + more / 2).min(MOST_PARTS));
    let others =
        numbers.len() as u16 * (NUMBER + 1) + [bar, parts].iter().map(|w| w + u16::from(*w > 0)).sum::<u16>();
    let name = width.saturating_sub(others);
    let mut constraints = vec![Constraint::Length(name)];
    let mut titles = vec![Cell::from(if name < 17 { "requests" } else { "requests by route" })];
    for column in &numbers {
        constraints.push(Constraint::Length(NUMBER));
        titles.push(Text::from(since::title(state, column.title)).right_aligned().into());
    }
    for (width, title) in [(bar, "time spent"), (parts, "")] {
        if width > 0 {
            constraints.push(Constraint::Length(width));
            titles.push(title.into());
        }
    }
    let rows = state.routes.iter().enumerate().skip(state.top).take(state.visible).map(|(n, row)| {
        let mut cells = vec![Cell::from(format::shorten(&row.name, usize::from(name)))];
        cells.extend(numbers.iter().map(|c| Cell::from(Text::from((c.text)(row)).right_aligned())));
        if bar > 0 {
            cells.push(row.bar.as_str().into());
        }
        if parts > 0 {
            cells.push(first_of(&row.parts, usize::from(parts)).into());
        }
        let selected = if n == state.selected { Modifier::REVERSED } else { Modifier::empty() };
        TableRow::new(cells).style(Style::new().add_modifier(selected))
    });
    let head = TableRow::new(titles).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    frame.render_widget(Table::new(rows, constraints).column_spacing(1).header(head), area);
    let lowered = state.header.as_ref().is_some_and(|header| header.level != "full");
    let below = match (lowered, bar) {
        (true, _) => "not traced now: the level is below full",
        (false, 0) => "",
        (false, _) => told::LEGEND,
    };
    let row = u16::try_from(state.routes.len()).unwrap_or(u16::MAX).saturating_add(2);
    if !state.routes.is_empty() && row < area.height {
        frame.render_widget(Paragraph::new(below), Rect { y: area.y + row, height: 1, ..area });
    }
    if state.routes.is_empty() && area.height > 1 {
        let below = Rect { y: area.y + 1, height: area.height - 1, ..area };
        let none = match (&state.header, state.requests_traced) {
            (None, _) => "",
            (_, false) => {
                "requests are not traced: gotrace attach --requests auto does it,\n\
                 and gotrace requests prints each slow one as it ends"
            }
            (Some(header), true) if header.level != "full" => {
                "none yet: requests are not traced at this level (the overhead is above the budget)"
            }
            _ if !state.filter.is_empty() => "none with this filter",
            _ if state.mark.is_some() => "none since the mark",
            _ => "none yet",
        };
        frame.render_widget(Paragraph::new(none), below);
    }
}

/// Of a list what has room whole, and of its first entry as much as has.
fn first_of(list: &str, width: usize) -> &str {
    let fits = |at: &usize| list[..*at].chars().count() <= width;
    let ends = list.match_indices(", ").map(|(at, _)| at).chain([list.len()]);
    let cut = || list.char_indices().map(|(at, _)| at).take(width + 1).last().unwrap_or(0);
    let end = ends.take_while(fits).last().unwrap_or_else(cut);
    &list[..end]
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
