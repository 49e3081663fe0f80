//! How much memory what is kept of all processes may take together, and who is looked at less closely when
//! it is too much.
//!
//! Pure: figures and the time are arguments. Of those that take more than a little, the least interesting go
//! to snapshots: the fewest records a second for the memory that they take. What then is still too much
//! stops growing: who holds more than an equal share has room for no further goroutines, and births beyond
//! are counted as lost. Back when what it would take fits into [`FILLED`] of the limit, after a rest that
//! doubles while it fails.

use std::{collections::HashMap, time::Duration};

/// Who takes less than one part in so many of the limit is not worth the trouble.
const LITTLE: u64 = 64;
/// What traces a goroutine's waits is freed where snapshots tell of them: so much of the whole.
const FREED: f64 = 0.4;
/// A process is followed closely again when all would take so much of the limit then.
const FILLED: f64 = 0.8;
/// Room is given again below so much of the limit.
const CALM: f64 = 0.9;
/// Rest before a process is followed closely again, and the longest.
const FIRST_REST: Duration = Duration::from_secs(30);
const LONGEST_REST: Duration = Duration::from_secs(600);

/// What a process takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Holding {
    /// Its number within the line.
    pub number: u32,
    pub bytes: u64,
    /// Records that came of it a second, lately.
    pub records_per_second: f64,
    /// Whether it has probes, or would have but for memory.
    pub has_probes: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Trace it by snapshots.
    Cramp(u32),
    /// Trace it as before.
    Release(u32),
    /// It may have no more goroutines than it has.
    Cap(u32),
    /// It may have as many as each may.
    Uncap(u32),
}

/// Of a process that was cramped, or is capped.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    cramped: bool,
    capped: bool,
    rest: Duration,
    not_before: Duration,
}

/// Watches over the bound.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    known: HashMap<u32, Known>,
}

impl Keeper {
    /// Processes that are traced by snapshots for want of memory.
    pub fn cramped(&self) -> u64 {
        self.known.values().filter(|k| k.cramped).count() as u64
    }

    /// Looks at what all take; `now` counts from any beginning.
    pub fn look(&mut self, now: Duration, holdings: &[Holding], limit: u64) -> Vec<Measure> {
        self.known.retain(|number, _| holdings.iter().any(|h| h.number == *number));
        let total: u64 = holdings.iter().map(|h| h.bytes).sum();
        let mut measures = Vec::new();
        if total > limit {
            self.cramp(now, holdings, limit, total, &mut measures);
            let share = limit / holdings.len().max(1) as u64;
            for holding in holdings.iter().filter(|h| h.bytes > share) {
                let known = self.known.entry(holding.number).or_default();
                if !std::mem::replace(&mut known.capped, true) {
                    measures.push(Measure::Cap(holding.number));
                }
            }
            return measures;
        }
        if total as f64 <= limit as f64 * CALM {
            for (number, known) in self.known.iter_mut().filter(|(_, k)| k.capped) {
                known.capped = false;
                measures.push(Measure::Uncap(*number));
            }
            self.release(now, holdings, limit, total, &mut measures);
        }
        measures
    }

    fn cramp(
        &mut self,
        now: Duration,
        holdings: &[Holding],
        limit: u64,
        total: u64,
        measures: &mut Vec<Measure>,
    ) {
        let is_cramped = |known: &HashMap<u32, Known>, number| known.get(&number).is_some_and(|k| k.cramped);
        let mut candidates: Vec<&Holding> = holdings
            .iter()
            .filter(|h| h.has_probes && h.bytes >= limit / LITTLE && !is_cramped(&self.known, h.number))
            .collect();
        let worth = |h: &Holding| h.records_per_second / h.bytes.max(1) as f64;
        candidates.sort_by(|a, b| worth(a).total_cmp(&worth(b)).then(b.bytes.cmp(&a.bytes)));
        let mut left = total as f64;
        for holding in candidates {
            if left <= limit as f64 {
                break;
            }
            left -= holding.bytes as f64 * FREED;
            let known = self.known.entry(holding.number).or_default();
            known.cramped = true;
            known.rest = if known.rest.is_zero() { FIRST_REST } else { (known.rest * 2).min(LONGEST_REST) };
            known.not_before = now + known.rest;
            measures.push(Measure::Cramp(holding.number));
        }
    }

    /// One at a look, the smallest first.
    fn release(
        &mut self,
        now: Duration,
        holdings: &[Holding],
        limit: u64,
        total: u64,
        measures: &mut Vec<Measure>,
    ) {
        let smallest = holdings
            .iter()
            .filter(|h| self.known.get(&h.number).is_some_and(|k| k.cramped && now >= k.not_before))
            .min_by_key(|h| h.bytes);
        let Some(holding) = smallest else { return };
        let more = holding.bytes as f64 * (1.0 / (1.0 - FREED) - 1.0);
        if total as f64 + more > limit as f64 * FILLED {
            return;
        }
        if let Some(known) = self.known.get_mut(&holding.number) {
            known.cramped = false;
            measures.push(Measure::Release(holding.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: u64 = 64 * MIB;

    fn holding(number: u32, mib: u64, records_per_second: f64) -> Holding {
        Holding { number, bytes: mib * MIB, records_per_second, has_probes: true }
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn what_fits_stays() {
        let mut keeper = Keeper::default();
        let all: Vec<Holding> = (0..32).map(|n| holding(n, 2, 0.0)).collect();
        assert_eq!(keeper.look(seconds(0), &all, LIMIT), []);
        assert_eq!(keeper.cramped(), 0);
    }

    #[test]
    fn the_least_interesting_for_what_it_takes_goes_first_and_small_ones_stay() {
        let mut keeper = Keeper::default();
        let all = [
            holding(1, 30, 50_000.0),
            holding(2, 20, 10.0),
            holding(3, 15, 0.0),
            Holding { bytes: MIB / 2, ..holding(4, 0, 0.0) },
            Holding { has_probes: false, ..holding(5, 10, 0.0) },
        ];
        let measures = keeper.look(seconds(0), &all, LIMIT);
        // 75.5 MiB: 15 give 6, 20 give 8.
        assert_eq!(measures[..2], [Measure::Cramp(3), Measure::Cramp(2)], "{measures:?}");
        // Those above an equal share (12.8 MiB) do not grow until there is room.
        assert_eq!(measures[2..], [Measure::Cap(1), Measure::Cap(2), Measure::Cap(3)]);
        assert_eq!(keeper.cramped(), 2);
    }

    #[test]
    fn where_nobody_has_anything_to_give_nobody_grows() {
        let mut keeper = Keeper::default();
        let all = [Holding { has_probes: false, ..holding(1, 70, 0.0) }, holding(2, 0, 5.0)];
        assert_eq!(keeper.look(seconds(0), &all, LIMIT), [Measure::Cap(1)]);
        assert_eq!(keeper.look(seconds(1), &all, LIMIT), [], "once");
        let fewer = [Holding { has_probes: false, ..holding(1, 50, 0.0) }, holding(2, 0, 5.0)];
        assert_eq!(keeper.look(seconds(2), &fewer, LIMIT), [Measure::Uncap(1)]);
    }

    #[test]
    fn it_comes_back_after_a_rest_that_grows_and_does_not_flap() {
        let mut keeper = Keeper::default();
        let (mut crampings, mut releases) = (Vec::new(), Vec::new());
        let mut cramped = false;
        for tick in 0..7200 {
            let now = Duration::from_millis(500) * tick;
            // 70 MiB when it is followed closely, 42 when not: it would fit, and does not.
            let bytes = if cramped { 42 } else { 70 };
            for measure in keeper.look(now, &[holding(1, bytes, 1.0)], 72 * MIB) {
                match measure {
                    Measure::Cramp(1) => (cramped, _) = (true, crampings.push(now)),
                    Measure::Release(1) => (cramped, _) = (false, releases.push(now)),
                    _ => {}
                }
            }
        }
        assert_eq!((crampings, releases), (Vec::new(), Vec::new()), "70 of 72 fit");
        let mut keeper = Keeper::default();
        let (mut cramped, mut changes) = (false, Vec::new());
        for tick in 0..7200 {
            let now = Duration::from_millis(500) * tick;
            // It shrinks far when it is not followed, and comes back to more than before.
            let bytes = if cramped { 20 } else { 80 };
            for measure in keeper.look(now, &[holding(1, bytes, 1.0)], LIMIT) {
                match measure {
                    Measure::Cramp(1) => cramped = true,
                    Measure::Release(1) => {
                        cramped = false;
                        changes.push(now.as_secs());
                    }
                    _ => {}
                }
            }
        }
        assert!((4..=10).contains(&changes.len()), "{changes:?}");
        assert!(changes.windows(2).all(|w| w[1] - w[0] >= 30), "{changes:?}");
        assert!(changes.last().expect("some") - changes[changes.len() - 2] >= 600, "{changes:?}");
    }

    #[test]
    fn who_has_ended_is_forgotten() {
        let mut keeper = Keeper::default();
        keeper.look(seconds(0), &[holding(1, 80, 0.0)], LIMIT);
        assert_eq!(keeper.cramped(), 1);
        keeper.look(seconds(1), &[], LIMIT);
        assert_eq!(keeper.cramped(), 0);
    }
}
