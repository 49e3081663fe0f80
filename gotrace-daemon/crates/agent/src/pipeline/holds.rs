//! Levels that clients of the daemon's socket hold: for as long as one listens, its process is traced at that level at
//! least, within the budget, and reported as often as it wants.
//!
//! Input: what clients want, and that they are gone, from their threads. Output: steps, at a turn of the line. What several
//! want of a process is the highest level and the shortest time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Line, LineConfig, in_hand::Process, traced::Traced};
use crate::tracee::{Input, Settings};
use gotrace_export::api::Wanted;
use gotrace_model::{Interval, Level};

/// What is held of processes. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Holds(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    held: BTreeMap<u64, (Process, Wanted)>,
    next: u64,
    changed: bool,
}

/// Something that is held until this is dropped.
pub(super) struct Hold {
    of: Holds,
    number: u64,
}

/// What is held of one process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    level: Option<Level>,
    every: Option<Duration>,
    next_report: Option<Instant>,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, All> {
        // Whole values: a panic elsewhere leaves none half made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody wants this of a process.
    pub fn hold(&self, process: Process, wanted: Wanted) -> Hold {
        let mut all = self.lock();
        let number = all.next;
        all.next += 1;
        all.held.insert(number, (process, wanted));
        all.changed = true;
        Hold { of: self.clone(), number }
    }

    /// All that is held, where that has changed since this was last called.
    fn changed(&self) -> Option<Vec<(Process, Wanted)>> {
        let mut all = self.lock();
        std::mem::take(&mut all.changed).then(|| all.held.values().copied().collect())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut all = self.of.lock();
        all.held.remove(&self.number);
        all.changed = true;
    }
}

impl Held {
    /// What all of these want of a process.
    fn of(process: Process, all: &[(Process, Wanted)], now: Instant) -> Self {
        let own = all.iter().filter(|(of, _)| *of == process).map(|(_, wanted)| wanted);
        let every = own.clone().map(|wanted| wanted.every).min();
        Self { level: own.map(|w| w.level).max(), every, next_report: every.map(|every| now + every) }
    }

    /// Whether a report is due, which counts as made.
    fn is_due(&mut self, now: Instant) -> bool {
        let (Some(every), Some(next)) = (self.every, self.next_report) else { return false };
        let due = now >= next;
        if due {
            // After a long turn it begins anew.
            self.next_report = Some(if next + every > now { next + every } else { now + every });
        }
        due
    }
}

impl Line {
    /// Takes up what clients want, and reports to them.
    pub(super) fn tend_holds(&mut self, now: Instant, report: &mut dyn FnMut(&Arc<Interval>)) {
        if let Some(all) = self.shown.handle.captures().holds().changed() {
            let mut changed = Vec::new();
            for traced in &mut self.traced {
                let held = Held::of(traced.process(), &all, now);
                let before = std::mem::replace(&mut traced.held, held);
                if before.level != held.level {
                    traced.tracee.tell(&Input::Settings(traced.settings(&self.config)));
                    changed.push(traced.pid());
                }
            }
            changed.into_iter().for_each(|pid| self.change_most(pid));
        }
        self.report(|traced| traced.held.is_due(now), report);
    }

    /// The shortest time between two reports of a process.
    pub(super) fn report_interval(&self) -> Duration {
        let held = self.traced.iter().filter_map(|traced| traced.held.every);
        held.min().map_or(self.config.interval, |every| every.min(self.config.interval))
    }
}

impl Traced {
    /// The level that is wanted of it.
    pub(super) fn wanted_level(&self, line: &LineConfig) -> Level {
        self.held.level.map_or(line.level, |level| level.max(line.level))
    }

    /// How it is to be traced, as its tracee is told.
    pub(super) fn settings(&self, line: &LineConfig) -> Settings {
        Settings { level: self.wanted_level(line), ..line.settings() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wanted(level: Level, seconds: u32) -> Wanted {
        Wanted { level, every: SECOND * seconds }
    }

    #[test]
    fn the_most_that_is_wanted_holds_until_nobody_wants_it() {
        let (holds, now) = (Holds::default(), Instant::now());
        let of =
            |process| holds.changed().map(|all| Held::of(process, &all, now)).map(|h| (h.level, h.every));
        assert!(holds.changed().is_none());
        let first = holds.hold((7, 1), wanted(Level::Waits, 2));
        let second = holds.hold((7, 1), wanted(Level::Full, 5));
        let _other = holds.hold((7, 2), wanted(Level::Full, 1));
        assert_eq!(of((7, 1)), Some((Some(Level::Full), Some(2 * SECOND))));
        assert_eq!(of((7, 1)), None, "nothing has changed");
        drop(second);
        assert_eq!(of((7, 1)), Some((Some(Level::Waits), Some(2 * SECOND))));
        drop(first);
        assert_eq!(of((7, 1)), Some((None, None)));
    }

    #[test]
    fn reports_are_due_as_often_as_is_wanted() {
        let now = Instant::now();
        let mut held = Held::of((7, 1), &[((7, 1), wanted(Level::Full, 2))], now);
        let due: Vec<u32> = (0..8).filter(|s| held.is_due(now + SECOND * *s)).collect();
        assert_eq!(due, [2, 4, 6]);
        // After a long turn there is one, and not all that were missed.
        let late: Vec<u32> = (100..103).filter(|s| held.is_due(now + SECOND * *s)).collect();
        assert_eq!(late, [100, 102]);
        assert!(!Held::default().is_due(now));
    }
}
