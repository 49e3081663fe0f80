//! The terminal itself: taking it, giving it back, and what the user does.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    execute, terminal,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::isatty,
};

use super::state::View;

/// Whether the terminal is taken: giving back what was not taken would garble it.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Rows of a page.
pub(super) const PAGE: isize = 10;

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// To end.
    Quit,
    /// Rows further down (or up, when negative).
    Scroll(isize),
    /// Back to the first row.
    Top,
    /// The other columns, where not all fit.
    SwitchColumns,
    /// Another view.
    Show(View),
    /// By another column.
    Sort,
    /// To say which rows to show.
    Filter,
    /// A character of that.
    Type(char),
    /// Without its last character.
    Erase,
    /// With the runtime's own goroutines, or without.
    Runtime,
    /// To compare with what is shown now, or no more.
    Mark,
    /// What is shown as a file.
    Export,
    /// Who holds what a goroutine of the row waits for.
    Why,
    /// What is read when it is asked for, anew.
    Again,
    /// To stop the picture, or to have it go on.
    Pause,
    /// More about a row, or what was typed is enough.
    Enter,
    /// What the keys do.
    Help,
    /// Back from there; to end where there is nothing to come back from.
    Back,
    /// A page further down, or, of a recording, to play or pause.
    PageOrPause,
    /// Back (negative) or on in a recording.
    Seek(i8),
    /// A recording faster.
    Faster,
    /// A recording slower.
    Slower,
    /// The size has changed.
    Redraw,
    /// A key without a meaning.
    Nothing,
}

pub(super) fn enter() -> io::Result<()> {
    terminal::enable_raw_mode()?;
    TAKEN.store(true, Ordering::Release);
    // Cleared here: ratatui's way to clear asks the terminal where the cursor is, and waits for an answer
    // that not every terminal gives.
    execute!(
        io::stdout(),
        terminal::EnterAlternateScreen,
        terminal::Clear(terminal::ClearType::All),
        cursor::Hide
    )
    .inspect_err(|_| leave())
}

/// Gives the terminal back; does nothing when it was not taken. Errors mean that it is gone.
pub(super) fn leave() {
    if TAKEN.swap(false, Ordering::AcqRel) {
        let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

/// The next thing that the user does within `timeout`; `typing`: most keys are characters.
///
/// # Errors
/// When the terminal is gone.
pub(super) fn next(timeout: Duration, typing: bool) -> io::Result<Option<Action>> {
    wait(Duration::ZERO)?;
    if !event::poll(Duration::ZERO)? {
        wait(timeout)?;
        if !event::poll(Duration::ZERO)? {
            return Ok(None);
        }
    }
    Ok(Some(action(&event::read()?, typing)))
}

/// Waits for keys, at most so long. From a terminal that has hung up crossterm would read for ever, and never come back.
fn wait(timeout: Duration) -> io::Result<()> {
    let mut keys = [PollFd::from_borrowed_fd(keyboard()?, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match poll(&mut keys, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if keys[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the terminal has hung up"));
    }
    Ok(())
}

/// Where keys come from: what crossterm reads too, standard input or else the process's terminal.
fn keyboard() -> io::Result<BorrowedFd<'static>> {
    static TERMINAL: OnceLock<Option<File>> = OnceLock::new();
    let other = TERMINAL.get_or_init(|| {
        let is_input = isatty(rustix::stdio::stdin());
        if is_input { None } else { File::options().read(true).write(true).open("/dev/tty").ok() }
    });
    // Without either, crossterm says so.
    Ok(other.as_ref().map_or_else(rustix::stdio::stdin, File::as_fd))
}

fn action(event: &Event, typing: bool) -> Action {
    match event {
        Event::Resize(..) => Action::Redraw,
        Event::Key(key) if typing && key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Quit,
            KeyCode::Char(typed) if !key.modifiers.contains(KeyModifiers::CONTROL) => Action::Type(typed),
            KeyCode::Backspace => Action::Erase,
            KeyCode::Enter => Action::Enter,
            KeyCode::Esc => Action::Back,
            _ => Action::Nothing,
        },
        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Quit,
            KeyCode::Char('l') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Redraw,
            KeyCode::Char('q') => Action::Quit,
            KeyCode::Esc => Action::Back,
            KeyCode::Enter => Action::Enter,
            KeyCode::Char('1') => Action::Show(View::Sites),
            KeyCode::Char('2') => Action::Show(View::Places),
            KeyCode::Char('3') => Action::Show(View::Requests),
            KeyCode::Char('4') => Action::Show(View::Locks),
            KeyCode::Char('5') => Action::Show(View::Goroutines),
            KeyCode::Char('W') => Action::Why,
            KeyCode::Char('R') => Action::Again,
            KeyCode::Char('s') => Action::Sort,
            KeyCode::Char('/') => Action::Filter,
            KeyCode::Char('r') => Action::Runtime,
            KeyCode::Char('d') => Action::Mark,
            KeyCode::Char('e') => Action::Export,
            KeyCode::Char('p') => Action::Pause,
            KeyCode::Char('?') => Action::Help,
            KeyCode::Down | KeyCode::Char('j') => Action::Scroll(1),
            KeyCode::Up | KeyCode::Char('k') => Action::Scroll(-1),
            KeyCode::PageDown => Action::Scroll(PAGE),
            KeyCode::Char(' ') => Action::PageOrPause,
            KeyCode::PageUp => Action::Scroll(-PAGE),
            KeyCode::Right | KeyCode::Char('l') => Action::Seek(1),
            KeyCode::Left | KeyCode::Char('h') => Action::Seek(-1),
            KeyCode::Char('+' | '=' | '>') => Action::Faster,
            KeyCode::Char('-' | '<') => Action::Slower,
            KeyCode::Home => Action::Top,
            KeyCode::Tab | KeyCode::Char('w') => Action::SwitchColumns,
            _ => Action::Nothing,
        },
        _ => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_mean_what_the_help_line_says() {
        let key = |code, modifiers| action(&Event::Key(KeyEvent::new(code, modifiers)), false);
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Action::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Action::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Action::Nothing);
        assert_eq!(key(KeyCode::Up, KeyModifiers::NONE), Action::Scroll(-1));
        assert_eq!(key(KeyCode::Char(' '), KeyModifiers::NONE), Action::PageOrPause);
        assert_eq!(key(KeyCode::Left, KeyModifiers::NONE), Action::Seek(-1));
        assert_eq!(key(KeyCode::Char('+'), KeyModifiers::NONE), Action::Faster);
        assert_eq!(key(KeyCode::Esc, KeyModifiers::NONE), Action::Back);
        assert_eq!(key(KeyCode::Char('2'), KeyModifiers::NONE), Action::Show(View::Places));
        assert_eq!(key(KeyCode::Char('3'), KeyModifiers::NONE), Action::Show(View::Requests));
        assert_eq!(key(KeyCode::Char('4'), KeyModifiers::NONE), Action::Show(View::Locks));
        assert_eq!(key(KeyCode::Char('5'), KeyModifiers::NONE), Action::Show(View::Goroutines));
        assert_eq!(key(KeyCode::Char('W'), KeyModifiers::SHIFT), Action::Why);
        assert_eq!(key(KeyCode::Char('R'), KeyModifiers::SHIFT), Action::Again);
        assert_eq!(key(KeyCode::Char('d'), KeyModifiers::NONE), Action::Mark);
        assert_eq!(key(KeyCode::Char('d'), KeyModifiers::CONTROL), Action::Quit);
        assert_eq!(key(KeyCode::Char('e'), KeyModifiers::NONE), Action::Export);
        assert_eq!(key(KeyCode::Char('/'), KeyModifiers::NONE), Action::Filter);
        assert_eq!(key(KeyCode::Char('w'), KeyModifiers::NONE), Action::SwitchColumns);
        assert_eq!(action(&Event::Resize(1, 1), false), Action::Redraw);
    }

    #[test]
    fn what_is_typed_is_no_command() {
        let key = |code, modifiers| action(&Event::Key(KeyEvent::new(code, modifiers)), true);
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Action::Type('q'));
        assert_eq!(key(KeyCode::Char('W'), KeyModifiers::SHIFT), Action::Type('W'));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Action::Quit);
        assert_eq!(key(KeyCode::Backspace, KeyModifiers::NONE), Action::Erase);
        assert_eq!(key(KeyCode::Enter, KeyModifiers::NONE), Action::Enter);
        assert_eq!(key(KeyCode::Esc, KeyModifiers::NONE), Action::Back);
    }
}
