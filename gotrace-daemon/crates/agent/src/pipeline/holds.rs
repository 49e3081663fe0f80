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
    /// What all of these want of a process, where this was wanted before: a new pace begins with a report.
    fn of(process: Process, all: &[(Process, Wanted)], before: Self, now: Instant) -> Self {
        let own = all.iter().filter(|(of, _)| *of == process).map(|(_, wanted)| wanted);
        let every = own.clone().map(|wanted| wanted.every).min();
        let next_report = if every == before.every { before.next_report } else { every.map(|_| now) };
        Self { level: own.map(|w| w.level).max(), every, next_report }
    }

    /// The time between two reports, where clients want more of them than all processes have.
    fn own_pace(&self, interval: Duration) -> Option<Duration> {
        self.every.filter(|every| *every < interval)
    }

    /// Whether a report of its own is due, which counts as made. `interval`: between those of all processes.
    fn is_due(&mut self, now: Instant, interval: Duration) -> bool {
        let (Some(every), Some(next)) = (self.own_pace(interval), self.next_report) else { return false };
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
                let before = traced.held;
                let held = Held::of(traced.process(), &all, before, now);
                traced.held = held;
                if before.level != held.level {
                    traced.tracee.tell(&Input::Settings(traced.settings(&self.config)));
                    changed.push(traced.pid());
                }
            }
            changed.into_iter().for_each(|pid| self.change_most(pid));
        }
        let interval = self.config.interval;
        self.report(|traced| traced.held.is_due(now, interval), report);
    }

    /// Reports on all processes, but for those that are reported at a pace of their own: both would cut that up.
    pub(super) fn report_all(&mut self, report: &mut dyn FnMut(&Arc<Interval>)) {
        let interval = self.config.interval;
        self.report(|traced| traced.held.own_pace(interval).is_none(), report);
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
        let of = |process| {
            holds
                .changed()
                .map(|all| Held::of(process, &all, Held::default(), now))
                .map(|h| (h.level, h.every))
        };
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
        let wanted = [((7, 1), wanted(Level::Full, 2))];
        let mut held = Held::of((7, 1), &wanted, Held::default(), now);
        let often = 10 * SECOND;
        let due: Vec<u32> = (0..8).filter(|s| held.is_due(now + SECOND * *s, often)).collect();
        assert_eq!(due, [0, 2, 4, 6]);
        let again = Held::of((7, 1), &wanted, held, now + 100 * SECOND);
        assert_eq!(
            again.next_report, held.next_report,
            "what others want of other processes changes nothing"
        );
        // After a long turn there is one, and not all that were missed.
        let late: Vec<u32> = (100..103).filter(|s| held.is_due(now + SECOND * *s, often)).collect();
        assert_eq!(late, [100, 102]);
        assert!(!Held::default().is_due(now, often));
        // All are reported as often as that: two reports in turn would make short intervals of long ones.
        assert!(held.own_pace(often).is_some() && held.own_pace(2 * SECOND).is_none());
        assert!(!held.is_due(now + 200 * SECOND, 2 * SECOND));
    }
}
