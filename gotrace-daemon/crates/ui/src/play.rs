//! A recording in the live table: plays, pauses, seeks, faster or slower. Draws what a [`Film`] gives, as far as the
//! time of the one who looks has come.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Ui, input::Action};
use gotrace_model::Interval;

/// How far a key goes.
const SEEK_NS: u64 = 10_000_000_000;
/// How long the keyboard is listened to at most.
const KEYS_FOR: Duration = Duration::from_millis(50);

/// Gives intervals in their order.
pub trait Film {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read at all.
    fn next_interval(&mut self) -> io::Result<Option<Arc<Interval>>>;

    /// Begins anew.
    ///
    /// # Errors
    /// As [`Self::next_interval`].
    fn rewind(&mut self) -> io::Result<()>;
}

/// Where the one who looks is.
#[derive(Debug)]
struct Head {
    /// The time that is shown, Unix epoch; `None` before the first interval.
    at: Option<u64>,
    speed: f64,
    playing: bool,
    /// When `at` was last moved on.
    since: Instant,
}

impl Head {
    /// Moves on with the time.
    fn tick(&mut self, now: Instant) {
        let passed = now.duration_since(self.since).as_secs_f64() * self.speed * 1e9;
        self.since = now;
        if let (Some(at), true) = (&mut self.at, self.playing) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
            let passed = passed as u64;
            *at = at.saturating_add(passed);
        }
    }

    /// Whether this time has come. The first one always has.
    fn has_come_to(&mut self, time: u64) -> bool {
        *self.at.get_or_insert(time) >= time
    }

    fn note(&self, is_over: bool) -> String {
        let state = if is_over {
            "end"
        } else if self.playing {
            "playing"
        } else {
            "paused"
        };
        format!("{state} ×{} · space play/pause · ←→ 10 s · +- speed", self.speed)
    }
}

/// Shows it until the user has enough; `system`: with the runtime's own goroutines, until they want it otherwise.
///
/// # Errors
/// When stdout is no terminal that can be set up for it, or the film cannot be read.
pub fn play(about: String, speed: f64, system: bool, film: &mut dyn Film) -> io::Result<()> {
    let mut ui = Ui::start(about, system)?;
    ui.refuse_readings("not in a recording: this is read from a running process, see gotrace attach");
    let mut head = Head { at: None, speed, playing: true, since: Instant::now() };
    let mut next = film.next_interval()?;
    let mut shown: Option<Arc<Interval>> = None;
    loop {
        head.tick(Instant::now());
        while let Some(interval) = next.take_if(|next| head.has_come_to(next.end_unix_nano)) {
            if let Some(passed_over) = shown.replace(interval) {
                ui.pass_over(&passed_over);
            }
            next = film.next_interval()?;
        }
        if let (None, Some(last)) = (&next, &shown) {
            head.at = Some(last.end_unix_nano);
        }
        ui.note(head.note(next.is_none()));
        match &shown {
            Some(interval) => ui.draw(interval)?,
            None => ui.redraw()?,
        }
        let Some(action) = ui.poll(KEYS_FOR)? else { continue };
        let now = head.at.unwrap_or_default();
        let target = match action {
            Action::Quit => break,
            Action::PageOrPause | Action::Pause => {
                head.playing = !head.playing;
                continue;
            }
            Action::Faster => {
                head.speed = (head.speed * 2.0).min(1024.0);
                continue;
            }
            Action::Slower => {
                head.speed = (head.speed / 2.0).max(1.0 / 8.0);
                continue;
            }
            Action::Seek(by) if by > 0 => {
                head.at = Some(now.saturating_add(SEEK_NS));
                continue;
            }
            Action::Seek(_) => now.saturating_sub(SEEK_NS),
            Action::Top => 0,
            _ => continue,
        };
        film.rewind()?;
        next = film.next_interval()?;
        shown = None;
        head.at = next.as_ref().map(|first| target.max(first.end_unix_nano));
    }
    ui.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_as_fast_as_is_wanted_and_not_while_paused() {
        let begin = Instant::now();
        let mut head = Head { at: None, speed: 4.0, playing: true, since: begin };
        head.tick(begin + Duration::from_secs(1));
        assert!(head.has_come_to(100), "the first one has always come");
        assert!(!head.has_come_to(4_000_000_100));
        head.tick(begin + Duration::from_secs(2));
        assert!(head.has_come_to(4_000_000_100));
        head.playing = false;
        head.tick(begin + Duration::from_secs(9));
        assert_eq!(head.at, Some(4_000_000_100));
        assert!(head.note(false).starts_with("paused ×4"));
    }
}
