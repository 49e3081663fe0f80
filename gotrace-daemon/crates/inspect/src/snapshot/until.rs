//! When a wait ends by itself: a descriptor's deadline, the end of a sleep, the time of a channel's timer.
//!
//! Input: words of the process's memory, which are `runtime.nanotime`, CLOCK_MONOTONIC of the process's time namespace
//! (`runtime/netpoll.go`, `pollDesc.rd` and `.wd`: 0 for none, negative when passed; `runtime/time.go`, `timer.when`: 0
//! for one that was stopped or has fired; `g.sleepWhen`). Output: [`Until`]. What cannot be read, or is of a clock that
//! a test pretends, is not known.

use super::{layout::Layout, pieces::Pieces};
use gotrace_process::{ProcessError, ReadMemory};

/// When a wait ends by itself, against the time at which the snapshot began. Eight bytes: there may be a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until(i64);

/// What an [`Until`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not known.
    Unknown,
    /// It does not: there is no deadline, or the timer does not run.
    Never,
    /// It is over, since when is not known.
    Passed,
    /// In so many nanoseconds; negative when that has passed.
    In(i64),
}

/// In a `testing/synctest` bubble time begins in the year 2000, as nanoseconds since 1970; ten years of it are taken for
/// such. No machine runs for as long, and hardly anybody sleeps so.
const PRETENDED: std::ops::Range<i64> = 946_684_800_000_000_000..1_262_304_000_000_000_000;

impl Until {
    /// It does not.
    pub const NEVER: Self = Self(i64::MAX);
    const PASSED: Self = Self(i64::MIN);

    /// In so many nanoseconds.
    #[must_use]
    pub fn in_ns(ns: i64) -> Self {
        // 0 is taken.
        Self(if ns == 0 { -1 } else { ns.clamp(i64::MIN + 1, i64::MAX - 1) })
    }

    /// What it says.
    #[must_use]
    pub const fn end(self) -> End {
        match self.0 {
            0 => End::Unknown,
            i64::MAX => End::Never,
            i64::MIN => End::Passed,
            ns => End::In(ns),
        }
    }

    /// Whether it is known to be still to come.
    #[must_use]
    pub const fn is_to_come(self) -> bool {
        matches!(self.end(), End::In(1..))
    }

    /// Of a descriptor's deadline. `now`: the process's clock, where it is known.
    pub(super) fn deadline(word: u64, now: Option<i64>) -> Self {
        match word.cast_signed() {
            ..0 => Self::PASSED,
            when => Self::timer(when.cast_unsigned(), now),
        }
    }

    /// Of a timer.
    pub(super) fn timer(word: u64, now: Option<i64>) -> Self {
        match word.cast_signed() {
            ..0 => Self::default(),
            0 => Self::NEVER,
            when if PRETENDED.contains(&when) => Self::default(),
            when => now.map_or(Self::default(), |now| Self::in_ns(when.saturating_sub(now))),
        }
    }
}

/// When the sleeping goroutines of a batch wake.
#[derive(Debug, Default)]
pub(super) struct Sleeps {
    /// By the goroutine's place in the batch.
    found: Vec<(usize, Until)>,
    pieces: Pieces,
}

impl Sleeps {
    /// Reads it of those that sleep: place in the batch, and address of the `g`, by ascending place.
    pub fn read(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        sleepers: &[(usize, u64)],
        now: Option<i64>,
    ) -> Result<(), ProcessError> {
        self.found.clear();
        // Before Go 1.23 only the timer that the goroutine keeps for it says when.
        let timer = layout.g_timer.zip(layout.timer_when);
        let Some(field) = layout.g_sleep_when.or(timer.map(|(timer, _)| timer)) else { return Ok(()) };
        let addresses: Vec<u64> = sleepers.iter().map(|(_, g)| g.wrapping_add(field as u64)).collect();
        let mut words = self.pieces.words(memory, &addresses)?;
        if let (None, Some((_, when))) = (layout.g_sleep_when, timer) {
            let timers: Vec<u64> = words
                .iter()
                .map(|t| t.filter(|&t| t != 0).map_or(0, |t| t.wrapping_add(when as u64)))
                .collect();
            words = self.pieces.words(memory, &timers)?;
        }
        let until = |word: Option<u64>| word.filter(|&w| w != 0).map(|w| Until::timer(w, now));
        self.found.extend(sleepers.iter().zip(words).filter_map(|(&(n, _), word)| Some((n, until(word)?))));
        Ok(())
    }

    /// When the n-th goroutine of the batch wakes.
    pub fn of(&self, n: usize) -> Until {
        let at = self.found.binary_search_by_key(&n, |&(of, _)| of).ok();
        at.and_then(|at| self.found.get(at)).map_or(Until::default(), |&(_, until)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_runtime_say_when() {
        let now = Some(1_000);
        assert_eq!(Until::default().end(), End::Unknown);
        for (word, deadline, timer) in [
            (0, End::Never, End::Never),
            (-1, End::Passed, End::Unknown),
            (1_500, End::In(500), End::In(500)),
            (400, End::In(-600), End::In(-600)),
            (1_000, End::In(-1), End::In(-1)),
            (i64::MAX, End::In(i64::MAX - 1_000), End::In(i64::MAX - 1_000)),
            (946_684_800_500_000_000, End::Unknown, End::Unknown),
        ] {
            let word = word.cast_unsigned();
            assert_eq!(Until::deadline(word, now).end(), deadline, "{word:#x}");
            assert_eq!(Until::timer(word, now).end(), timer, "{word:#x}");
        }
        // Without the process's clock only what does not depend on it is known.
        assert_eq!(Until::deadline(1_500, None).end(), End::Unknown);
        assert_eq!(Until::deadline(0, None).end(), End::Never);
        assert_eq!(Until::in_ns(i64::MAX).end(), End::In(i64::MAX - 1));
        assert_eq!(Until::in_ns(i64::MIN).end(), End::In(i64::MIN + 1));
        assert!(Until::in_ns(1).is_to_come() && !Until::in_ns(-1).is_to_come());
    }
}
