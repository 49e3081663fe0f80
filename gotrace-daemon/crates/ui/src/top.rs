//! The table of all processes on a terminal, on a thread of its own: draws what it is given by a function,
//! and follows the keys. Gives back only the wish to end.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    text::Text,
    widgets::{Cell, Paragraph, Row as TableRow, Table},
};

use super::{
    format::shorten,
    input::{self, Action},
    refuse_background, restore_on_panic,
};
use gotrace_export::top::{Node, Row, TITLES, is_number};

/// Time between two drawings where no key is pressed.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// A table that runs. Dropping it gives the terminal back.
#[derive(Debug)]
pub struct TopView {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TopView {
    /// Takes the terminal. `node` gives what is to be seen; `on_quit` is called, from another thread, when
    /// the user has enough or the terminal is gone.
    ///
    /// # Errors
    /// When stdout is no terminal that can be set up for it, or belongs to another job of the shell.
    pub fn start(
        node: impl Fn() -> Node + Send + 'static,
        on_quit: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        refuse_background()?;
        restore_on_panic();
        input::enter()?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).inspect_err(|_| input::leave())?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::Builder::new()
            .name("gotrace-view".into())
            .spawn(move || {
                if let Err(error) = run(terminal, &node, &ended) {
                    tracing::debug!(%error, "the terminal is gone");
                }
                input::leave();
                on_quit();
            })
            .inspect_err(|_| input::leave())?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for TopView {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the terminal was given back before.
            let _ = thread.join();
        }
    }
}

fn run(
    mut terminal: Terminal<CrosstermBackend<io::Stdout>>,
    node: &impl Fn() -> Node,
    end: &AtomicBool,
) -> io::Result<()> {
    let mut top = 0usize;
    let mut next_draw = Instant::now();
    while !end.load(Ordering::Relaxed) {
        if Instant::now() >= next_draw {
            let node = node();
            top = top.min(node.rows.len().saturating_sub(1));
            terminal.draw(|frame| draw(frame, &node, top))?;
            next_draw = Instant::now() + DRAW_EVERY;
        }
        match input::next(Duration::from_millis(50), false)? {
            Some(Action::Quit | Action::Back) => return Ok(()),
            Some(Action::Scroll(by)) => top = top.saturating_add_signed(by),
            Some(Action::PageOrPause) => top = top.saturating_add_signed(input::PAGE),
            Some(Action::Top) => top = 0,
            Some(Action::Redraw) => {}
            _ => continue,
        }
        next_draw = Instant::now();
    }
    Ok(())
}

/// Columns, those first that are kept longest where not all find room.
const KEPT: [&str; TITLES.len()] = [
    "pid",
    "service",
    "alive",
    "growth/s",
    "top wait",
    "leaked",
    "pod/container",
    "level",
    "created/s",
    "cpu",
    "overhead",
    "engine",
    "lost",
    "go",
];
/// Widest text of a column.
const WIDEST: usize = 40;
/// The same where not all columns find room.
const NARROW: usize = 24;

/// The columns that find room, and how wide each is; and those that do not.
fn columns(cells: &[[String; TITLES.len()]], width: usize) -> (Vec<(usize, usize)>, Vec<&'static str>) {
    let wide = |column: usize, most: usize| {
        let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        longest.min(most).max(TITLES[column].chars().count())
    };
    let all: usize = (0..TITLES.len()).map(|column| wide(column, WIDEST) + 1).sum();
    if all <= width + 1 {
        return ((0..TITLES.len()).map(|column| (column, wide(column, WIDEST))).collect(), Vec::new());
    }
    // What is not known of anybody comes last, and loss first where there is some.
    let is = |title: &str, said: &dyn Fn(&str) -> bool| {
        let column = TITLES.iter().position(|t| *t == title);
        cells.iter().all(|row| column.and_then(|column| row.get(column)).is_some_and(|cell| said(cell)))
    };
    let mut order = KEPT;
    order.sort_by_key(|title| match *title {
        "lost" if !is(title, &|cell| cell == "0") => 0,
        title if is(title, &|cell| cell == "-") => 2,
        _ => 1,
    });
    let (mut taken, mut shown, mut left_out) = (0, Vec::new(), Vec::new());
    for title in order {
        let Some(column) = TITLES.iter().position(|t| *t == title) else { continue };
        let own = wide(column, NARROW);
        if taken + own <= width {
            taken += own + 1;
            shown.push((column, own));
        } else {
            left_out.push(title);
        }
    }
    shown.sort_unstable();
    (shown, left_out)
}

fn draw(frame: &mut Frame<'_>, node: &Node, top: usize) {
    let rows = &node.rows;
    let cells: Vec<_> = rows.iter().skip(top).map(Row::cells).collect();
    let (columns, left_out) = columns(&cells, frame.area().width.into());
    let mut notes: Vec<String> = node.not_shown().into_iter().collect();
    if !left_out.is_empty() {
        notes.push(format!("a wider terminal shows {}", left_out.join(", ")));
    }
    let lines = u16::try_from(notes.len()).unwrap_or(0);
    let parts = [Constraint::Length(1), Constraint::Min(1), Constraint::Length(lines)];
    let [head, body, foot] = Layout::vertical(parts).areas(frame.area());
    let alive: u64 = rows.iter().map(|r| r.alive).sum();
    let processes = if rows.len() == 1 { "process" } else { "processes" };
    let about = match node.awaited {
        Some(0) => "looking for Go processes on this node · q quit".to_owned(),
        Some(all) => {
            format!("looking at the Go processes of this node: {} of {all} so far · q quit", rows.len())
        }
        None => format!("{} Go {processes} · {alive} goroutines · ↑↓ scroll · q quit", rows.len()),
    };
    frame.render_widget(Paragraph::new(about), head);
    let notes = notes.iter().map(|note| shorten(note, frame.area().width.into()));
    frame.render_widget(Paragraph::new(notes.collect::<Vec<_>>().join("\n")), foot);
    let cell = |column: usize, text: String| {
        if is_number(column) { Cell::from(Text::from(text).right_aligned()) } else { Cell::from(text) }
    };
    let row = |of: &dyn Fn(usize) -> String| {
        TableRow::new(columns.iter().map(|&(column, width)| cell(column, shorten(&of(column), width))))
    };
    let titles = row(&|column| TITLES[column].into())
        .style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    let lines = cells.iter().map(|cells| row(&|column| cells[column].clone()));
    let widths =
        columns.iter().map(|&(_, width)| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)));
    frame.render_widget(Table::new(lines, widths).column_spacing(1).header(titles), body);
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;

    use super::*;
    use gotrace_export::top::rows;
    use gotrace_model::samples;

    #[test]
    fn everybody_has_a_line() {
        let mut shop = samples::interval(&samples::resource(), 1, Vec::new());
        (shop.pid, shop.alive) = (42, 12);
        let mut till = shop.clone();
        (till.pid, till.alive) = (43, 1);
        let rows = rows([&shop, &till].into_iter());
        let node = Node { rows, refused: 0, unreadable: 2, awaited: None };
        let lines = lines(&node, 120, 8);
        assert!(lines[0].starts_with("2 Go processes · 13 goroutines"), "{lines:?}");
        let note = "not shown: 2 processes without permission to read them";
        assert!(lines.iter().any(|line| line.starts_with(note)), "{lines:?}");
        assert!(
            lines[1].contains("service") && lines[2].contains("42") && lines[3].contains("43"),
            "{lines:?}"
        );
    }

    #[test]
    fn the_first_round_is_not_taken_for_all() {
        let mut node = Node { awaited: Some(0), ..Node::default() };
        assert!(lines(&node, 80, 4)[0].starts_with("looking for Go processes"));
        node.awaited = Some(3);
        assert!(lines(&node, 80, 4)[0].starts_with("looking at the Go processes of this node: 0 of 3"));
        node.awaited = None;
        assert!(lines(&node, 80, 4)[0].starts_with("0 Go processes"));
    }

    fn lines(node: &Node, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
        terminal.draw(|frame| draw(frame, node, 0)).expect("in memory");
        let buffer = terminal.backend().buffer();
        (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect()).collect()
    }

    /// Columns are whole, or left out and told of.
    #[test]
    fn what_finds_no_room_is_told() {
        let mut shop = samples::whole();
        (shop.pid, shop.alive) = (4_194_304, 123_456);
        let rows = rows([&shop].into_iter());
        let mut node = Node { rows, refused: 0, unreadable: 0, awaited: None };
        node.rows[0].service = "a-service-with-a-name-that-is-long".into();
        node.rows[0].place = Some("default/a-service-with-a-name-that-is-long-7f9c4d5b6-x2x4v".into());
        node.rows[0].lost = 17;
        for (width, wanted) in [
            (60, &["pid", "alive", "growth/s", "lost"][..]),
            (80, &["pid", "service", "alive", "growth/s", "lost"]),
            (120, &["pid", "service", "alive", "growth/s", "top wait", "leaked", "lost"]),
            (300, &TITLES),
        ] {
            let lines = lines(&node, width, 5);
            let told = lines.iter().find(|line| line.starts_with("a wider terminal shows "));
            for title in TITLES {
                let is_shown = lines[1]
                    .split("  ")
                    .flat_map(|part| part.split(' '))
                    .any(|word| title.split(' ').any(|own| own == word));
                let is_told = told.is_some_and(|line| line.contains(title) || line.contains('…'));
                assert!(is_shown || is_told, "{width}: {title}: {lines:#?}");
            }
            for title in wanted {
                assert!(lines[1].contains(title), "{width}: {title}: {lines:#?}");
            }
            assert!(lines[2].contains("4194304") && lines[2].contains("17"), "{lines:#?}");
        }
    }
}
