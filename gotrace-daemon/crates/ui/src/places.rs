//! The view of places: where in the program's own code goroutines wait, as rows, and more about one of them.
//!
//! Made of an interval's [`Places`], so of waits of at least the threshold, which the table's head says.

use std::sync::Arc;

use gotrace_export::text;
use gotrace_model::{Interval, Location, Peer, Place, Places, Quantile, printable::printable};
use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Modifier, Style},
    text::Text,
    widgets::{Cell, Paragraph, Row as TableRow, Table},
};

use super::{detail::at, format, since, state::State};

/// A place as a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlaceRow {
    /// Which one.
    pub key: (Arc<str>, Option<Arc<Location>>, Option<Peer>),
    pub function: String,
    /// `main.go:86`.
    pub position: String,
    pub reason: String,
    pub count: String,
    pub rate: String,
    pub total: String,
    /// Of the time of all places.
    pub share: String,
    /// At most.
    pub p50: String,
    /// At most.
    pub p99: String,
    pub max: String,
}

/// By which column places are sorted, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Total,
    Count,
    New,
    P99,
    Max,
}

impl Sort {
    pub(super) const ALL: [Self; 5] = [Self::Total, Self::Count, Self::New, Self::P99, Self::Max];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Count => "count",
            Self::New => "new/s",
            Self::P99 => "p99",
            Self::Max => "max",
        }
    }

    /// The next column's.
    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    fn of(self, place: &Place) -> u64 {
        match self {
            Self::Total => place.waits.sum_ns,
            Self::Count => place.waits.count,
            Self::New => place.recent.0,
            Self::P99 => Quantile::of(&place.waits, 0.99).map_or(0, |p| p.at_most_ns),
            Self::Max => place.waits.max_ns,
        }
    }
}

/// Places that have the text, which is in lower case, in a name. `system`: with the runtime's own.
pub(super) fn chosen<'a>(places: &'a Places, wanted: &str, sort: Sort, system: bool) -> Vec<&'a Place> {
    let has = |text: &str| text.to_lowercase().contains(wanted);
    let mut chosen: Vec<&Place> = places
        .places
        .iter()
        .filter(|p| system || !p.system)
        .filter(|p| {
            has(&p.reason)
                || p.peer.is_some_and(|peer| has(&peer.to_string()))
                || p.at.as_deref().is_some_and(|at| has(&at.function) || has(&at.file))
        })
        .collect();
    // What has the same value stays in its order.
    chosen.sort_by_key(|place| std::cmp::Reverse(sort.of(place)));
    chosen
}

/// `system`: beside the runtime's own.
pub(super) fn rows(interval: &Interval, places: &[&Place], system: bool) -> Vec<PlaceRow> {
    let length_ns = interval.end_unix_nano.saturating_sub(interval.start_unix_nano);
    let all_ns = interval.waits_at.ns(system).max(1);
    let or_dash = |ns: Option<u64>| ns.map_or_else(|| "-".into(), format::duration);
    let row = |place: &&Place| {
        let position = place.at.as_deref().filter(|at| !at.file.is_empty() && at.line != 0);
        let position = position.map(|at| {
            let file = at.file.rsplit('/').next().unwrap_or_default();
            printable(&format!("{file}:{}", at.line)).into_owned()
        });
        PlaceRow {
            key: (Arc::clone(&place.reason), place.at.clone(), place.peer),
            function: place
                .at
                .as_deref()
                .map_or_else(|| "?".into(), |at| printable(&at.function).into_owned()),
            position: position.unwrap_or_else(|| "-".into()),
            reason: printable(&match place.peer {
                Some(peer) => format!("{} ← {peer}", place.reason),
                None => place.reason.to_string(),
            })
            .into_owned(),
            count: format::count(place.waits.count),
            rate: format::rate(place.recent.0, length_ns),
            total: format::duration(place.waits.sum_ns),
            share: format::share(place.waits.sum_ns as f64 / all_ns as f64),
            p50: or_dash(Quantile::of(&place.waits, 0.5).map(|p| p.at_most_ns)),
            p99: or_dash(Quantile::of(&place.waits, 0.99).map(|p| p.at_most_ns)),
            max: format::duration(place.waits.max_ns),
        }
    };
    places.iter().map(row).collect()
}

/// What is known of a place, with the stack of its longest wait.
pub(super) fn details(interval: &Interval, place: &Place, system: bool) -> Vec<String> {
    let waits = &place.waits;
    let mut lines = vec![
        place.at.as_deref().map_or_else(|| "place not known".into(), at),
        match place.peer {
            Some(peer) => format!("reason      {}, from {peer}", printable(&place.reason)),
            None => format!("reason      {}", printable(&place.reason)),
        },
        format!(
            "waits       {}, p50 {}, p99 {}, max {}",
            waits.count,
            text::quantile(waits, 0.5),
            text::quantile(waits, 0.99),
            format::duration(waits.max_ns)
        ),
        format!(
            "in all      {}, {} of the time at all places; within the interval {} waits, {}",
            format::duration(waits.sum_ns),
            format::share(waits.sum_ns as f64 / interval.waits_at.ns(system).max(1) as f64),
            place.recent.0,
            format::duration(place.recent.1),
        ),
    ];
    let mut name = "longest";
    for frame in &place.stack {
        lines.push(format!("{name:<11} {}", at(frame)));
        name = "";
    }
    if !place.own && !place.stack.is_empty() && !place.is_stack_complete() {
        lines.push(format!("{:<11} … (a larger --stack-depth shows what is further out)", ""));
    }
    lines
}

/// A column of fixed width, and the least width of the screen that it is shown at.
struct Column {
    title: &'static str,
    from_width: u16,
    text: fn(&PlaceRow) -> &str,
}

const NUMBERS: [Column; 7] = [
    Column { title: "total", from_width: 0, text: |r| &r.total },
    Column { title: "share", from_width: 90, text: |r| &r.share },
    Column { title: "count", from_width: 44, text: |r| &r.count },
    Column { title: "new/s", from_width: 100, text: |r| &r.rate },
    Column { title: "≤p50", from_width: 84, text: |r| &r.p50 },
    Column { title: "≤p99", from_width: 60, text: |r| &r.p99 },
    Column { title: "max", from_width: 52, text: |r| &r.max },
];
/// Width of each of them.
const NUMBER: u16 = 6;
const REASON_FROM: u16 = 66;
const REASON: u16 = 20;
const POSITION_FROM: u16 = 76;
const POSITION: u16 = 16;

pub(super) fn table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let width = area.width;
    let numbers: Vec<&Column> = NUMBERS.iter().filter(|c| width >= c.from_width).collect();
    let reason = if width >= REASON_FROM { REASON.min(width / 5) } else { 0 };
    let position = if width >= POSITION_FROM { POSITION.min(width / 6) } else { 0 };
    let others = numbers.len() as u16 * (NUMBER + 1)
        + [reason, position].iter().map(|w| w + u16::from(*w > 0)).sum::<u16>();
    let function = width.saturating_sub(others);
    let mut constraints = vec![Constraint::Length(function)];
    let mut titles = vec![Cell::from(title(state, usize::from(function)))];
    for (width, title) in [(position, "line"), (reason, "reason")] {
        if width > 0 {
            constraints.push(Constraint::Length(width));
            titles.push(title.into());
        }
    }
    for column in &numbers {
        constraints.push(Constraint::Length(NUMBER));
        titles.push(Text::from(since::title(state, column.title)).right_aligned().into());
    }
    let rows = state.places.iter().enumerate().skip(state.top).take(state.visible).map(|(n, row)| {
        let mut cells = vec![Cell::from(format::shorten(&row.function, usize::from(function)))];
        for (width, text) in [(position, &row.position), (reason, &row.reason)] {
            if width > 0 {
                cells.push(format::shorten(text, usize::from(width)).into());
            }
        }
        cells.extend(numbers.iter().map(|c| Cell::from(Text::from((c.text)(row)).right_aligned())));
        let selected = if n == state.selected { Modifier::REVERSED } else { Modifier::empty() };
        TableRow::new(cells).style(Style::new().add_modifier(selected))
    });
    let head = TableRow::new(titles).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    frame.render_widget(Table::new(rows, constraints).column_spacing(1).header(head), area);
    if state.places.is_empty() && area.height > 1 {
        let below = Rect { y: area.y + 1, height: 1, ..area };
        let none = match (&state.header, &state.filter) {
            (Some(header), _) if !matches!(header.level, "waits" | "full") => {
                "not known: places are told at the levels waits and full"
            }
            (_, filter) if !filter.is_empty() => "none with this filter",
            _ => "none yet",
        };
        frame.render_widget(Paragraph::new(none), below);
    }
}

fn title(state: &State, width: usize) -> String {
    let least = state.min_wait_ns.map_or_else(|| "--min-wait".into(), format::duration);
    let titles = [format!("waits from {least} on, in own code"), format!("waits from {least} on")];
    let fits = titles.iter().find(|title| title.chars().count() <= width);
    fits.cloned().unwrap_or_else(|| format::shorten("waits", width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{
        View,
        tests::{interval, screen},
    };
    use gotrace_model::samples;

    fn shown() -> State {
        let mut state = State::new(String::new(), false, false);
        state.update(&Arc::new(interval()));
        state.show(View::Places);
        state
    }

    fn functions(state: &State) -> Vec<(&str, &str)> {
        state.places.iter().map(|row| (&*row.function, &*row.position)).collect()
    }

    #[test]
    fn places_are_sorted_filtered_and_told_more_of() {
        let mut state = shown();
        let all = [
            ("main.query", "main.go:40"),
            ("main.worker", "main.go:15"),
            ("main.serve", "main.go:86"),
            ("main.worker", "main.go:22"),
            ("?", "-"),
        ];
        assert_eq!(functions(&state), all);
        assert_eq!(
            (&*state.places[0].total, &*state.places[0].share, &*state.places[0].rate),
            ("81ms", "56%", "0.5")
        );
        assert_eq!(state.places[0].reason, "IO wait ← 10.0.3.7:5432");
        state.enter();
        let detail = state.detail.join("\n");
        for part in [
            "main.query (main.go:40)",
            "reason      IO wait, from 10.0.3.7:5432",
            "waits       2, p50 ",
            "max 61ms",
            "longest     runtime.gopark (proc.go:402)\n            main.query (main.go:40)",
        ] {
            assert!(detail.contains(part), "{part} in\n{detail}");
        }
        (0..3).for_each(|_| state.sort_by_next());
        assert_eq!((state.place_sort, state.places.len()), (Sort::P99, 5));
        state.sort_by_next();
        state.sort_by_next();
        assert_eq!(state.place_sort, Sort::Total);
        state.back();
        "SERVE".chars().for_each(|c| state.type_char(c));
        assert_eq!(functions(&state), [("main.serve", "main.go:86")]);
        state.back();
        "3.7:5432".chars().for_each(|c| state.type_char(c));
        assert_eq!(functions(&state), [("main.query", "main.go:40")]);
        state.back();
        state.show(View::Sites);
        assert!(state.places.is_empty() && state.rows.len() == 2);
    }

    #[test]
    fn the_runtimes_own_places_are_shown_when_wanted() {
        let mut with_runtime = interval();
        let mut places = samples::places();
        places.places[1].system = true;
        with_runtime.waits_at = Arc::new(places);
        let mut state = State::new(String::new(), false, false);
        state.show(View::Places);
        state.update(&Arc::new(with_runtime));
        assert_eq!(state.places.len(), 4);
        state.switch_system();
        assert_eq!(state.places.len(), 5);
    }

    #[test]
    fn a_screen_of_any_size_shows_what_it_has_room_for() {
        let wide = screen(&mut shown(), 120, 14);
        for part in [
            "waits from 1.0ms on, in own code",
            "line",
            "main.go:86",
            "chan receive",
            "share",
            "≤p50",
            "40ms",
            "s sort: total",
            "1 created by",
        ] {
            assert!(wide.contains(part), "{part} in\n{wide}");
        }
        let narrow = screen(&mut shown(), 80, 14);
        for part in ["waits from 1.0ms", "main.go:86", "chan receive", "≤p99", "? help"] {
            assert!(narrow.contains(part), "{part} in\n{narrow}");
        }
        let mut state = State::new(String::new(), false, false);
        state.show(View::Places);
        let mut none = interval();
        (none.level, none.waits_at) = ("sampled", Arc::default());
        state.update(&Arc::new(none));
        let text = screen(&mut state, 80, 14);
        assert!(text.contains("waits ") && text.contains("not known: places are told"), "{text}");
        for width in 0..90 {
            let mut state = shown();
            state.enter();
            (0..12).for_each(|height| drop(screen(&mut state, width, height)));
        }
    }

    #[test]
    fn names_that_a_program_chose_steer_nothing() {
        let mut hostile = interval();
        let mut places = samples::places();
        let name = "main.\u{1b}[2J\u{202e}x";
        let at = Some(Arc::new(Location { function: name.into(), file: "a\u{9b}b.go".into(), line: 7 }));
        places.places[0].stack = at.iter().cloned().collect();
        places.places[0].at = at;
        hostile.waits_at = Arc::new(places);
        let mut state = State::new(String::new(), false, false);
        state.show(View::Places);
        state.update(&Arc::new(hostile));
        state.enter();
        let PlaceRow { function, position, .. } = &state.places[0];
        for text in [function, position, &state.detail.concat()] {
            assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
        }
    }
}
