//! Drawing the state into a frame of any size. No logic but what fits.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Cell, Paragraph, Row as TableRow, Table},
};

use super::{
    format, places, reading, requests, since,
    state::{Row, State, View},
};

/// Which columns give way to each other where there is no room for all.
#[derive(Clone, Copy, PartialEq)]
enum Group {
    Always,
    Rates,
    Durations,
}

/// A column of fixed width, and the least width of the screen that it is shown at.
struct Column {
    title: &'static str,
    from_width: u16,
    group: Group,
    text: fn(&Row) -> &str,
}

const NUMBERS: [Column; 8] = [
    Column { title: "alive", from_width: 0, group: Group::Always, text: |r| &r.alive },
    Column { title: "cpu", from_width: 62, group: Group::Always, text: |r| &r.cpu },
    Column { title: "new/s", from_width: 34, group: Group::Rates, text: |r| &r.born },
    Column { title: "exit/s", from_width: 40, group: Group::Rates, text: |r| &r.died },
    Column { title: "≤p50", from_width: 40, group: Group::Durations, text: |r| &r.p50 },
    Column { title: "≤p99", from_width: 34, group: Group::Durations, text: |r| &r.p99 },
    Column { title: "max", from_width: 46, group: Group::Durations, text: |r| &r.max },
    Column { title: "oldest", from_width: 54, group: Group::Always, text: |r| &r.oldest },
];
/// Width of each of them.
const NUMBER: u16 = 6;
/// From this width on all columns have room.
const ALL_FROM: u16 = 110;
const WAITING_FROM: u16 = 72;

/// What the keys do.
const HELP: [&str; 18] = [
    "↑↓ j k      select a row; page up, page down, space, home",
    "enter       more: totals, durations, stack, findings with why, holders and ids",
    "1 2 3       by creation site; places of waits in own code; requests by route",
    "4 5         locks and channels, who waits and who holds; goroutines by stack",
    "W           who holds what a goroutine of the row waits for (reads the heap)",
    "R           read 4 and 5 anew: no report has them",
    "s           sort by the next column",
    "/           rows whose function, file, wait reason or route has what you type",
    "r           show or hide the runtime's own goroutines",
    "d           mark now, show what grew since; details stay in all; d ends it",
    "e           export what is shown as JSON lines into a new file here",
    "p           stop the picture, or have it go on",
    "w tab       other columns, where not all fit",
    "←→ + -      in a recording: 10 s back or on, faster, slower",
    "esc q       back, and quit where there is nothing to come back from; quit",
    "cpu         of one CPU, within the interval; alive: now; new/s: the interval",
    "p50 p99     at most; waits of at least --min-wait since attaching",
    "requests    where --requests traces them, since attaching",
];
/// Where the values of details begin.
const INDENT: usize = 12;
/// Lines that the table keeps beside the details of a row.
const LEAST_OF_TABLE: u16 = 6;

pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    let problems = u16::from(!state.problems.is_empty() && area.height > 10);
    let more: Vec<String> =
        state.detail.iter().flat_map(|line| format::wrap(line, usize::from(area.width), INDENT)).collect();
    let wanted = u16::try_from(more.len() + 1).unwrap_or(u16::MAX);
    let room = area.height.saturating_sub(5 + problems);
    let detail = match more.len() {
        0 => 0,
        _ if room > 2 * LEAST_OF_TABLE => wanted.min(room - LEAST_OF_TABLE),
        // The whole screen, where both have no room.
        _ => room,
    };
    let [top, alarm, body, below, bottom] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(problems),
        Constraint::Min(0),
        Constraint::Length(detail),
        Constraint::Length(1),
    ])
    .areas(area);
    header(frame, top, state);
    if problems > 0 {
        let line = cut(&state.problems, usize::from(alarm.width));
        frame.render_widget(Line::styled(line, alarm_style(state)), alarm);
    }
    state.visible = usize::from(body.height.saturating_sub(1));
    state.clamp();
    if state.help {
        let lines = HELP.iter().flat_map(|line| format::wrap(line, usize::from(body.width), INDENT));
        frame.render_widget(Paragraph::new(lines.map(Line::raw).collect::<Vec<_>>()), body);
    } else {
        match state.view {
            View::Sites => table(frame, body, state),
            View::Places => places::table(frame, body, state),
            View::Requests => requests::table(frame, body, state),
            View::Locks | View::Goroutines => reading::table(frame, body, state),
        }
    }
    if detail > 0 {
        details(frame, below, &more);
    }
    frame.render_widget(Line::styled(footer(state, bottom.width), dim(state)), bottom);
}

/// More about the row that is selected.
fn details(frame: &mut Frame<'_>, area: Rect, lines: &[String]) {
    let width = usize::from(area.width);
    let head = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    let mut lines: Vec<Line<'_>> = lines.iter().map(|line| Line::raw(line.as_str())).collect();
    if let Some(first) = lines.first_mut() {
        *first = Line::styled(format!("{:<width$}", first.to_string()), head);
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn alarm_style(state: &State) -> Style {
    let alarm = Style::new().add_modifier(Modifier::BOLD);
    if state.color { alarm.fg(Color::Red) } else { alarm }
}

fn footer(state: &State, width: u16) -> String {
    if state.typing {
        return format!("/{}▏ · enter keeps it · esc shows all", state.filter);
    }
    if !state.said.is_empty() {
        return format::shorten(&state.said, usize::from(width));
    }
    if let Some(busy) = state.readings.busy() {
        return format::shorten(&busy, usize::from(width));
    }
    let names = [
        (View::Sites, "1 created by"),
        (View::Places, "2 places"),
        (View::Requests, "3 requests"),
        (View::Locks, "4 locks"),
        (View::Goroutines, "5 goroutines"),
    ];
    let others: Vec<&str> =
        names.iter().filter(|(view, _)| *view != state.view).map(|(_, name)| *name).collect();
    let beside = u16::try_from(state.note.chars().count()).unwrap_or(u16::MAX);
    let (enter, others) = match width.saturating_sub(beside) {
        0..ALL_FROM => ("enter", "1-5".to_owned()),
        _ => ("enter details", others.join(" · ")),
    };
    let mut line = format!("q quit · {enter} · {others} · s sort: {} · / filter", state.sorted_by());
    if !state.filter.is_empty() {
        line += &format!(": {}", state.filter);
    }
    // What is read anew is not compared.
    let is_read = matches!(state.view, View::Locks | View::Goroutines);
    line += match (is_read, state.mark.is_some()) {
        (true, _) => " · R read anew",
        (false, true) => " · d ends",
        (false, false) => " · d mark",
    };
    if state.with_waits && width < ALL_FROM && state.view == View::Sites {
        line += if state.durations { " · w rates" } else { " · w times" };
    }
    line += " · ? help";
    let hidden = state.len().saturating_sub(state.top + state.visible);
    if hidden > 0 {
        line += &format!(" · {hidden} more below");
    }
    if state.paused {
        line = format!("PAUSED, p goes on · {line}");
    }
    if !state.note.is_empty() {
        line = format!("{} · {line}", state.note);
    }
    line
}

fn header(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let width = usize::from(area.width);
    let Some(header) = &state.header else {
        let lines = vec![
            Line::styled(format::shorten(&state.about, width), bold),
            Line::styled("waiting for the first interval …", dim(state)),
        ];
        frame.render_widget(Paragraph::new(lines), area);
        return;
    };
    let since = if header.since.is_empty() { String::new() } else { format!(" ({})", header.since) };
    let rates = format!("   created/s {}   exited/s {}", header.born, header.died);
    let mut losses = if header.lost.is_empty() {
        vec![Span::styled("lost 0", dim(state))]
    } else {
        vec![Span::styled(format!("lost {}", header.lost), alarm_style(state))]
    };
    if !header.cost.is_empty() {
        losses.push(Span::styled(format!("   overhead about {}", header.cost), dim(state)));
    }
    if !header.lowered.is_empty() {
        losses.push(Span::styled(format!("   {}", header.lowered), bold));
    }
    if !header.leaked.is_empty() {
        losses.push(Span::styled(format!("   leaked {}", header.leaked), alarm_style(state)));
    }
    let mut lines = vec![
        Line::styled(header.process(width), bold),
        Line::from(vec![Span::styled(format!("alive {}{since}", header.alive), bold), Span::raw(rates)]),
        Line::from(losses),
    ];
    if state.with_waits {
        let waiting = if header.waiting.is_empty() { "none" } else { &header.waiting };
        lines.push(Line::raw(cut(&format!("waiting: {waiting}"), width)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// The first `width` characters: lists begin with what matters most.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).take(width).collect()
}

fn table(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let width = area.width;
    let hidden = match (state.with_waits, state.durations) {
        (false, _) => Some(Group::Durations),
        _ if width >= ALL_FROM => None,
        (true, true) => Some(Group::Rates),
        (true, false) => Some(Group::Durations),
    };
    let numbers: Vec<&Column> =
        NUMBERS.iter().filter(|c| width >= c.from_width && Some(c.group) != hidden).collect();
    let with_created_by = width >= ALL_FROM;
    let with_waiting = state.with_waits && width >= WAITING_FROM && (width >= ALL_FROM || !state.durations);
    let taken: u16 = numbers.iter().map(|_| NUMBER + 1).sum();
    let free = width.saturating_sub(taken);
    let created_by_width = if with_created_by { free / 5 } else { 0 };
    let waiting_width = if with_waiting { free * 2 / 5 } else { 0 };
    let gaps = u16::from(with_created_by) + u16::from(with_waiting);
    let entry_width = free.saturating_sub(created_by_width + waiting_width + gaps);

    let mut constraints = vec![Constraint::Length(entry_width)];
    let mut titles =
        vec![Cell::from(if entry_width < 28 { "entry function" } else { "goroutines by entry function" })];
    if with_created_by {
        constraints.push(Constraint::Length(created_by_width));
        titles.push("created at".into());
    }
    for column in &numbers {
        constraints.push(Constraint::Length(NUMBER));
        titles.push(Text::from(since::title(state, column.title)).right_aligned().into());
    }
    if with_waiting {
        constraints.push(Constraint::Length(waiting_width));
        titles.push("waiting".into());
    }
    let rows = state.rows.iter().enumerate().skip(state.top).take(state.visible).map(|(n, row)| {
        let mut cells = vec![Cell::from(format::shorten(&row.entry, usize::from(entry_width)))];
        if with_created_by {
            cells.push(format::shorten(&row.created_by, usize::from(created_by_width)).into());
        }
        for column in &numbers {
            cells.push(Text::from((column.text)(row)).right_aligned().into());
        }
        if with_waiting {
            cells.push(Cell::from(cut(&row.waiting, usize::from(waiting_width))));
        }
        let selected = if n == state.selected { Modifier::REVERSED } else { Modifier::empty() };
        TableRow::new(cells).style(Style::new().add_modifier(selected))
    });
    let head = TableRow::new(titles).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    frame.render_widget(Table::new(rows, constraints).column_spacing(1).header(head), area);
}

fn dim(state: &State) -> Style {
    if state.color { Style::new().fg(Color::DarkGray) } else { Style::new() }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

    use super::*;
    use crate::state::tests::interval;
    use gotrace_model::Interval;

    fn screen(width: u16, height: u16, color: bool) -> (Buffer, String) {
        screen_of(State::new("gotrace".into(), color, false), width, height)
    }

    fn screen_of(state: State, width: u16, height: u16) -> (Buffer, String) {
        show(state, &interval(), width, height)
    }

    fn show(mut state: State, interval: &Interval, width: u16, height: u16) -> (Buffer, String) {
        state.update(&std::sync::Arc::new(interval.clone()));
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
        terminal.draw(|frame| draw(frame, &mut state)).expect("in memory");
        let buffer = terminal.backend().buffer().clone();
        let text = (0..height)
            .map(|y| {
                let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
                line.trim_end().to_owned() + "\n"
            })
            .collect();
        (buffer, text)
    }

    #[test]
    fn a_wide_screen_shows_everything() {
        let (_, text) = screen(140, 10, true);
        for part in [
            "pid 1234 · /srv/shop/server · go1.24.3 · engine events · level waits · 2.0s",
            "alive ≥1250   created/s 50.0   exited/s 25.0",
            "lost ring_wait 7   overhead about 0.42%",
            "waiting: chan receive 900, select 100",
            "net/http.(*conn).serve",
            "main.go:30",
            "100ms",
            "1m05s",
            "select 5, sleep 3",
            "chan receive 250",
            "s sort: alive",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn what_the_budget_took_away_stands_above_the_table() {
        let mut lowered = interval();
        (lowered.level, lowered.level_reason) = ("lifecycle", Some("budget"));
        lowered.probe_cost_share = Some(0.28);
        (lowered.levels.wanted, lowered.levels.budget) = ("waits", Some(0.05));
        let (_, text) = show(State::new("gotrace".into(), true, false), &lowered, 100, 10);
        let line =
            "lost ring_wait 7   overhead about 28% (budget 5.00%)   level lifecycle instead of waits: budget";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_narrow_screen_keeps_what_matters() {
        let (_, text) = screen(60, 8, true);
        let line = text.lines().find(|l| l.contains("func1")).expect("the second site");
        assert!(line.contains('…') && line.contains("250"), "{text}");
        assert!(text.contains("new/s") && !text.contains("p50"), "{text}");
        let (_, text) = screen(40, 10, true);
        for part in ["pid 1234", "alive ≥1250", "lost ring_wait 7", "waiting: chan receive 900", "exit/s"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_key_switches_to_the_columns_without_room() {
        let mut state = State::new(String::new(), true, false);
        state.durations = true;
        let (_, text) = screen_of(state, 80, 10);
        for part in ["p50", "p99", "max", "100ms", "w rates", "oldest"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn details_and_help_share_the_screen_with_the_table() {
        let mut state = State::new(String::new(), true, false);
        state.update(&std::sync::Arc::new(interval()));
        state.enter();
        let (_, text) = screen_of(state, 100, 30);
        for part in
            ["created by  main.main (main.go:30)", "in all      500 created, 250 exited", "waits       100, "]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.contains("worker.func1"), "the other row too:\n{text}");
        let mut state = State::new(String::new(), true, false);
        state.help = true;
        let (_, text) = screen_of(state, 100, 30);
        assert!(text.contains("sort by the next column") && !text.contains("net/http"), "{text}");
        // All of it, on the smallest usual screen, below a line of problems.
        let mut state = State::new(String::new(), true, false);
        state.help = true;
        let mut leaking = interval();
        leaking.leaks.extend(gotrace_model::samples::whole().leaks);
        leaking.leaks.iter_mut().for_each(|leak| leak.suppressed = None);
        let (_, text) = show(state, &leaking, 80, 24);
        assert!(text.contains("LEAK "), "{text}");
        for line in HELP {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let mut state = State::new(String::new(), true, false);
        (state.typing, state.filter) = (true, "worker".into());
        let (_, text) = screen_of(state, 100, 30);
        assert!(text.contains("/worker▏") && !text.contains("net/http"), "{text}");
    }

    #[test]
    fn no_size_is_too_small() {
        for width in 0..40 {
            for height in 0..20 {
                screen(width, height, false);
                let mut state = State::new(String::new(), true, false);
                state.update(&std::sync::Arc::new(interval()));
                state.enter();
                state.help = height % 2 == 0;
                screen_of(state, width, height);
            }
        }
    }

    #[test]
    fn losses_are_red_only_where_colour_is_wanted() {
        let red = |buffer: &Buffer| buffer.content().iter().any(|c| c.fg == Color::Red);
        assert!(red(&screen(100, 10, true).0));
        let (buffer, _) = screen(100, 10, false);
        assert!(buffer.content().iter().all(|c| c.fg == Color::Reset && c.bg == Color::Reset));
    }
}
