//! The live view on a terminal: input, state and drawing apart. The only room that names ratatui.
//!
//! Takes [`Interval`]s and the user's keys; gives back only the wish to end. The terminal is put back
//! on every way out: [`View::finish`], drop, panic. In raw mode Ctrl-C is a key like `q`; signals from
//! elsewhere are for whoever owns the [`View`], and end it by dropping it.

mod detail;
mod draw;
mod export;
mod format;
mod input;
mod places;
mod play;
mod reading;
mod requests;
mod since;
mod state;
mod top;
mod view;

use std::{io, os::fd::AsFd as _, sync::Arc, time::Duration};

use ratatui::{Terminal, backend::CrosstermBackend};

pub use play::{Film, play};
pub use reading::Reader;
pub use top::TopView;
pub use view::{Shown, View};

use gotrace_model::Interval;
use input::Action;
use reading::{Answer, Question};
use state::State;

/// The view, for as long as it owns the terminal.
struct Ui {
    terminal: Terminal<CrosstermBackend<io::Stdout>>,
    state: State,
    restored: bool,
}

impl Ui {
    /// Takes the terminal of stdout: alternate screen, raw mode, no cursor.
    ///
    /// # Errors
    /// When stdout is not a terminal that can be set up so, or is another job's.
    fn start(about: String, system: bool) -> io::Result<Self> {
        refuse_background()?;
        restore_on_panic();
        input::enter()?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()));
        let terminal = terminal.inspect_err(|_| input::leave())?;
        let mut this = Self { terminal, state: State::new(about, color_wanted(), system), restored: false };
        this.redraw()?;
        Ok(this)
    }

    /// Shows an interval.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn draw(&mut self, interval: &Arc<Interval>) -> io::Result<()> {
        self.state.update(interval);
        self.redraw()
    }

    /// Takes of an interval that is not shown what is told once.
    fn pass_over(&mut self, interval: &Interval) {
        self.state.pass_over(interval);
    }

    /// Waits at most `timeout` for the user, and does what the keys say. Returns whether the user wants to end (`q`,
    /// Ctrl-C, Escape where there is nothing to come back from).
    ///
    /// # Errors
    /// When the terminal is gone.
    fn poll_quit(&mut self, timeout: Duration) -> io::Result<bool> {
        let mut wait = timeout;
        while let Some(action) = self.poll(wait)? {
            wait = Duration::ZERO;
            match action {
                Action::Quit => return Ok(true),
                Action::PageOrPause => self.state.scroll(input::PAGE),
                Action::Pause => self.state.pause(),
                Action::Top => self.state.scroll(isize::MIN),
                _ => continue,
            }
            self.redraw()?;
        }
        Ok(false)
    }

    /// Waits at most `timeout` for the user, follows scrolling and a changed size, and gives back what else is wanted.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn poll(&mut self, timeout: Duration) -> io::Result<Option<Action>> {
        let action = input::next(timeout, self.state.typing)?;
        if action.is_some_and(|action| action != Action::Redraw) {
            self.state.said.clear();
        }
        match action {
            Some(Action::Scroll(by)) => self.state.scroll(by),
            Some(Action::SwitchColumns) => self.state.durations = !self.state.durations,
            Some(Action::Show(view)) => self.state.show(view),
            Some(Action::Sort) => self.state.sort_by_next(),
            Some(Action::Filter) => self.state.typing = true,
            Some(Action::Type(typed)) => self.state.type_char(typed),
            Some(Action::Erase) => self.state.erase(),
            Some(Action::Runtime) => self.state.switch_system(),
            Some(Action::Mark) => self.state.mark(),
            Some(Action::Why) => self.state.ask_why(),
            Some(Action::Again) => self.state.read_again(),
            Some(Action::Export) => {
                self.state.export(&std::env::current_dir().unwrap_or_else(|_| ".".into()));
            }
            Some(Action::Enter) => self.state.enter(),
            Some(Action::Help) => self.state.help = !self.state.help,
            Some(Action::Back) if !self.state.back() => return Ok(Some(Action::Quit)),
            Some(Action::Back) => {}
            Some(Action::Redraw) => {}
            other => return Ok(other),
        }
        self.redraw()?;
        Ok(Some(Action::Nothing))
    }

    /// What the user wants read now.
    fn take_question(&mut self) -> Option<Question> {
        self.state.readings.take_wanted()
    }

    /// Shows what was read.
    fn answer(&mut self, answer: Answer) -> io::Result<()> {
        self.state.readings.answered(answer);
        self.state.refresh();
        self.redraw()
    }

    /// Nothing can be read: why.
    fn refuse_readings(&mut self, why: &str) {
        why.clone_into(&mut self.state.readings.refused);
    }

    /// What stands at the end of the last line.
    fn note(&mut self, note: String) {
        self.state.note = note;
    }

    /// Gives the terminal back.
    fn finish(mut self) {
        self.restore();
    }

    fn redraw(&mut self) -> io::Result<()> {
        self.terminal.draw(|frame| draw::draw(frame, &mut self.state))?;
        Ok(())
    }

    fn restore(&mut self) {
        if !self.restored {
            self.restored = true;
            input::leave();
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        self.restore();
    }
}

impl std::fmt::Debug for Ui {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ui").field("restored", &self.restored).finish_non_exhaustive()
    }
}

/// A job in the background must not touch the terminal's settings: the system would stop it.
fn refuse_background() -> io::Result<()> {
    match rustix::termios::tcgetpgrp(io::stdout().as_fd()) {
        Ok(foreground) if foreground != rustix::process::getpgrp() => {
            Err(io::Error::other("gotrace runs in the background"))
        }
        // A terminal without jobs has no background.
        _ => Ok(()),
    }
}

/// Whether colour may be used: not with `NO_COLOR` (no-color.org) nor on a dumb terminal.
fn color_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// A panic's message belongs on the user's screen, not on the one that disappears.
fn restore_on_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            input::leave();
            next(info);
        }));
    });
}
