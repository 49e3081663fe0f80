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

fn draw(frame: &mut Frame<'_>, node: &Node, top: usize) {
    let rows = &node.rows;
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(frame.area());
    let alive: u64 = rows.iter().map(|r| r.alive).sum();
    let mut about = format!("{} Go processes · {alive} goroutines · ↑↓ scroll · q quit", rows.len());
    if let Some(not_shown) = node.not_shown() {
        about += &format!(" · {not_shown}");
    }
    frame.render_widget(Paragraph::new(about), head);
    let cells: Vec<_> = rows.iter().skip(top).map(Row::cells).collect();
    let widths = (0..TITLES.len()).map(|column| {
        let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        Constraint::Length(u16::try_from(longest.max(TITLES[column].len()).min(40)).unwrap_or(40))
    });
    let cell = |column: usize, text: String| {
        if is_number(column) { Cell::from(Text::from(text).right_aligned()) } else { Cell::from(text) }
    };
    let titles =
        TableRow::new(TITLES.iter().enumerate().map(|(column, title)| cell(column, (*title).into())))
            .style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
    let lines = cells
        .iter()
        .map(|row| TableRow::new(row.iter().enumerate().map(|(column, text)| cell(column, text.clone()))));
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
        let node = Node { rows, refused: 0, unreadable: 2 };
        let mut terminal = Terminal::new(TestBackend::new(120, 6)).expect("in memory");
        terminal.draw(|frame| draw(frame, &node, 0)).expect("in memory");
        let buffer = terminal.backend().buffer();
        let lines: Vec<String> =
            (0..6).map(|y| (0..120).map(|x| buffer[(x, y)].symbol()).collect::<String>()).collect();
        assert!(lines[0].starts_with("2 Go processes · 13 goroutines"), "{lines:?}");
        assert!(lines[0].contains("not shown: 2 processes without permission to read them"), "{lines:?}");
        assert!(
            lines[1].contains("service") && lines[2].contains("42") && lines[3].contains("43"),
            "{lines:?}"
        );
    }
}
