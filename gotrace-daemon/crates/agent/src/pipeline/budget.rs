//! How much of a process's CPU time its probes may take, and at which step it is traced so that they do not
//! take more.
//!
//! Pure: figures and the time are arguments. Down at once where much too much is used, after a second where
//! a little; up one step when there is room, after a rest. A rest is so long that a try that fails stays
//! within the budget on the average, and doubles while tries fail: no flapping. At the lowest step there are
//! no probes, and the tries are the bursts in which more is seen.
//!
//! Requests, where they are traced, are given up first, and in turns: while they do not fit, a turn in which they are
//! traced is followed by a rest so long that both together keep within the budget.

use std::time::Duration;

pub use crate::tracee::Step;
use gotrace_model::Level;

/// What probes may take of one core whatever the process takes itself: 0.5 %.
pub const FLOOR_NS_PER_SECOND: f64 = 5_000_000.0;
/// Over the budget for so long is too long.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many times the budget is too much at once.
const FAR_OVER: f64 = 2.0;
/// A step is taken down to when it is expected to need so much of the budget at most.
const FITS: f64 = 0.8;
/// Of the budget that must be free for a step up to be tried.
const ROOM: f64 = 0.5;
/// Rest before the first try, and the longest.
const FIRST_REST: Duration = Duration::from_secs(10);
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Between two steps up that both fit, and before a process that has become calm is tried again.
const SHORT_REST: Duration = Duration::from_secs(5);
/// A step up that was held for so long was none too many.
const PROBATION: Duration = Duration::from_secs(60);
/// A turn of requests lasts so long; less, but for the least, where that would take what may be taken in the time that a
/// turn and its rest are to take together.
const TURN_S: f64 = 5.0;
const LEAST_TURN_S: f64 = 1.0;
const TURN_AND_REST_S: f64 = 20.0;
/// How long a try that fails lasts, until the probes are gone.
const TRY_LASTS_S: f64 = 1.0;

/// What probes may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    share: f64,
}

impl Budget {
    /// This share of a process's CPU time, at least [`FLOOR_NS_PER_SECOND`].
    #[must_use]
    pub fn of_share(share: f64) -> Self {
        Self { share }
    }

    /// The share.
    #[must_use]
    pub fn share(self) -> f64 {
        self.share
    }

    fn allowed_ns(self, cpu_ns: f64) -> f64 {
        (self.share * cpu_ns).max(FLOOR_NS_PER_SECOND)
    }
}

/// What a process used, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Its CPU time, that of its probes included.
    pub cpu_ns: f64,
    /// What the probes that each level adds took, least level first, and those of requests.
    pub added_ns: [f64; 4],
}

impl Usage {
    /// What probes up to the step take.
    #[must_use]
    pub fn cost_ns(&self, step: Step) -> f64 {
        let levels = match step {
            Step::Snapshot => 0,
            Step::Probes(level) => level as usize,
            Step::Requests => self.added_ns.len(),
        };
        self.added_ns.iter().take(levels).sum()
    }

    /// The same as a share of the process's CPU time. An estimate may come to more than was used, and the CPU time of a
    /// moment may be less than a tick of its clock: 1 stands for "at most all of it".
    #[must_use]
    pub fn cost_share(&self, step: Step) -> f64 {
        let cost_ns = self.cost_ns(step);
        if cost_ns > 0.0 { (cost_ns / self.cpu_ns).min(1.0) } else { 0.0 }
    }

    /// How many times the budget it is.
    #[must_use]
    pub fn of_budget(&self, step: Step, budget: Budget) -> f64 {
        self.cost_ns(step) / budget.allowed_ns(self.cpu_ns)
    }
}

/// A change that was decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The step before.
    pub from: Step,
    /// The step from now on.
    pub to: Step,
    /// What the probes took before, as a share of the process's CPU time; 0 for none.
    pub cost_share: f64,
}

/// A turn in which requests are traced, so far.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// The last look.
    seen: Duration,
    /// Seconds.
    length: f64,
    /// How many times what may be taken in a second was taken in all; and by the probes that there are between turns.
    spent: f64,
    beneath: f64,
}

impl Turn {
    fn at(now: Duration) -> Self {
        Self { seen: now, length: 0.0, spent: 0.0, beneath: 0.0 }
    }
}

/// Decides for the processes that share probes.
#[derive(Clone, Debug)]
pub struct Governor {
    most: Step,
    step: Step,
    over_since: Option<Duration>,
    next_try: Duration,
    rest: Duration,
    raised_at: Option<Duration>,
    lowered: Option<(Duration, f64)>,
    /// The step between turns of requests.
    between: Step,
    turn: Option<Turn>,
    /// The end of the last turn that a rest followed.
    rested: Option<Duration>,
    covers: Option<f64>,
}

impl Governor {
    /// At the highest step that is wanted, which it never exceeds. `between`: the step between turns of requests.
    #[must_use]
    pub fn new(most: Step, between: Step) -> Self {
        Self {
            most,
            step: most,
            between,
            turn: None,
            rested: None,
            covers: None,
            over_since: None,
            next_try: Duration::ZERO,
            rest: FIRST_REST,
            raised_at: None,
            lowered: None,
        }
    }

    /// At another step than the highest: it is tried to raise it after the first rest from `now` on.
    #[must_use]
    pub fn lowered(most: Step, between: Step, step: Step, now: Duration) -> Self {
        Self { step, next_try: now + FIRST_REST, ..Self::new(most, between) }
    }

    /// The step of now.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether it is at a lower step than is wanted, turns of requests aside.
    #[must_use]
    pub fn is_lowered(&self) -> bool {
        self.step < self.most.min(self.between)
    }

    /// The share of the time for which requests are traced, where that is in turns.
    #[must_use]
    pub fn covers(&self) -> Option<f64> {
        self.covers
    }

    /// Takes what the process that is most over its budget used lately; `now` counts from any beginning.
    pub fn observe(&mut self, now: Duration, usage: &Usage, budget: Budget) -> Option<Change> {
        // Where too much is taken without them, they are off with what is given up next.
        if self.step == Step::Requests && usage.of_budget(self.between, budget) <= 1.0 {
            return self.in_turn(now, usage, budget);
        }
        let of_budget = usage.of_budget(self.step, budget);
        if of_budget > 1.0 {
            let since = *self.over_since.get_or_insert(now);
            if of_budget < FAR_OVER && now.saturating_sub(since) < PATIENCE {
                return None;
            }
            return self.lower(now, usage, budget);
        }
        self.over_since = None;
        let is_between = self.most == Step::Requests && self.step == self.between;
        let above = if is_between { Some(Step::Requests) } else { self.step.above() };
        let above = above.filter(|above| *above <= self.most)?;
        // What a turn takes beyond the budget, its rest gives back.
        let room = if is_between { FITS } else { ROOM };
        let calm =
            self.lowered.is_some_and(|(at, cpu_ns)| now >= at + SHORT_REST && usage.cpu_ns < cpu_ns / 4.0);
        if of_budget > room || (now < self.next_try && !calm) {
            return None;
        }
        self.raised_at = Some(now).filter(|_| above != Step::Requests);
        self.turn = (above == Step::Requests).then_some(Turn::at(now));
        self.next_try = now + SHORT_REST;
        self.lowered = None;
        Some(self.change(above, usage))
    }

    /// The change that was decided could not be made, for a reason of the moment: it is at this step still, and the next
    /// try comes after a rest, twice as long each time.
    pub fn failed(&mut self, step: Step, now: Duration) {
        self.step = step;
        self.next_try = now + self.rest;
        self.rest = (self.rest * 2).min(LONGEST_REST);
        (self.raised_at, self.lowered, self.turn) = (None, None, None);
    }

    /// Requests are traced: until the turn is over, where that comes to more than may be taken.
    fn in_turn(&mut self, now: Duration, usage: &Usage, budget: Budget) -> Option<Change> {
        let mut turn = self.turn.take().unwrap_or(Turn::at(now));
        let time = now.saturating_sub(turn.seen).as_secs_f64();
        turn.seen = now;
        turn.length += time;
        turn.spent += time * usage.of_budget(Step::Requests, budget);
        turn.beneath += time * usage.of_budget(self.between, budget);
        let Turn { length, spent, beneath, .. } = turn;
        let is_spent = length >= LEAST_TURN_S && spent >= FITS * TURN_AND_REST_S;
        if length < TURN_S && !is_spent {
            self.turn = Some(turn);
            return None;
        }
        if spent <= length {
            if self.rested.is_some_and(|at| now.saturating_sub(at) >= PROBATION) {
                self.covers = None;
            }
            self.turn = Some(Turn::at(now));
            return None;
        }
        // Turn and rest together are to take FITS. Where what is left takes that alone, it is to be lowered first.
        let rest = (spent - FITS * length) / (FITS - beneath / length).max(0.0);
        let rest = Duration::try_from_secs_f64(rest).unwrap_or(LONGEST_REST).min(LONGEST_REST);
        self.covers = Some(length / (length + rest.as_secs_f64()));
        self.rested = Some(now);
        self.next_try = now + rest;
        let own_ns = (usage.cpu_ns - usage.cost_ns(Step::Requests)).max(0.0);
        self.lowered = Some((now, own_ns));
        Some(self.change(self.between, usage))
    }

    fn lower(&mut self, now: Duration, usage: &Usage, budget: Budget) -> Option<Change> {
        let to = [Step::Probes(Level::Waits), Step::Probes(Level::Lifecycle), Step::Snapshot]
            .into_iter()
            .find(|step| *step < self.step && usage.of_budget(*step, budget) <= FITS)?;
        let failed = self.raised_at.is_some_and(|at| now.saturating_sub(at) < PROBATION);
        self.rest = if failed { (self.rest * 2).min(LONGEST_REST) } else { FIRST_REST };
        let paid_back = TRY_LASTS_S * usage.of_budget(self.step, budget);
        let paid_back = Duration::try_from_secs_f64(paid_back).unwrap_or(LONGEST_REST);
        self.next_try = now + self.rest.max(paid_back).min(LONGEST_REST);
        (self.over_since, self.turn) = (None, None);
        self.lowered = Some((now, usage.cpu_ns));
        Some(self.change(to, usage))
    }

    fn change(&mut self, to: Step, usage: &Usage) -> Change {
        let from = std::mem::replace(&mut self.step, to);
        Change { from, to, cost_share: usage.cost_share(from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { share: 0.01 };
    const TICK: Duration = Duration::from_millis(500);
    const FULL: Step = Step::Probes(Level::Full);
    const WAITS: Step = Step::Probes(Level::Waits);
    const LIFECYCLE: Step = Step::Probes(Level::Lifecycle);

    /// A process that takes a core, whose probes would take these shares of it.
    fn usage(lifecycle: f64, waits: f64, full: f64) -> Usage {
        Usage { cpu_ns: 1e9, added_ns: [lifecycle, waits, full, 0.0].map(|share| share * 1e9) }
    }

    /// Runs for so many seconds; what is above the step of now is not seen. The changes, with their times.
    fn run(governor: &mut Governor, from_s: u64, seconds: u64, real: Usage) -> Vec<(f64, Step)> {
        let mut changes = Vec::new();
        for tick in 0..seconds * 2 {
            let now = Duration::from_secs(from_s) + TICK * u32::try_from(tick).expect("few");
            let mut seen = real;
            let levels = match governor.step() {
                Step::Snapshot => 0,
                Step::Probes(level) => level as usize,
                Step::Requests => 4,
            };
            seen.added_ns[levels..].fill(0.0);
            if let Some(change) = governor.observe(now, &seen, BUDGET) {
                changes.push((now.as_secs_f64(), change.to));
            }
        }
        changes
    }

    #[test]
    fn what_fits_stays() {
        let mut governor = Governor::new(FULL, FULL);
        assert_eq!(run(&mut governor, 0, 600, usage(0.001, 0.004, 0.004)), []);
        // A process that does next to nothing has the floor.
        let idle = Usage { cpu_ns: 1e6, added_ns: [1e6, 1e6, 2e6, 0.0] };
        assert_eq!(governor.observe(Duration::from_secs(700), &idle, BUDGET), None);
    }

    #[test]
    fn a_storm_of_parks_is_left_at_once_for_what_fits() {
        let mut governor = Governor::new(FULL, FULL);
        let changes = run(&mut governor, 0, 5, usage(0.0001, 0.5, 0.3));
        assert_eq!(changes, [(0.0, LIFECYCLE)]);
    }

    #[test]
    fn what_probes_took_is_not_none_where_the_clock_has_not_ticked_yet() {
        for (cpu_ns, cost_share) in [(0.0, 1.0), (1e7, 1.0), (1e8, 0.4)] {
            let usage = Usage { cpu_ns, added_ns: [0.0, 2e7, 2e7, 0.0] };
            let change = Governor::new(FULL, FULL).observe(Duration::ZERO, &usage, BUDGET);
            assert_eq!(change, Some(Change { from: FULL, to: LIFECYCLE, cost_share }));
        }
        let idle = Usage::default();
        let change = Governor::lowered(FULL, FULL, WAITS, Duration::ZERO).observe(FIRST_REST, &idle, BUDGET);
        assert_eq!(change, Some(Change { from: WAITS, to: FULL, cost_share: 0.0 }));
    }

    #[test]
    fn a_little_too_much_is_borne_for_a_second() {
        let mut governor = Governor::new(FULL, FULL);
        assert_eq!(run(&mut governor, 0, 3, usage(0.001, 0.005, 0.006)), [(1.0, WAITS)]);
        let mut governor = Governor::new(FULL, FULL);
        assert_eq!(run(&mut governor, 0, 1, usage(0.001, 0.005, 0.006)), []);
        assert_eq!(run(&mut governor, 1, 1, usage(0.001, 0.005, 0.001)), [], "it has passed");
        assert_eq!(run(&mut governor, 2, 1, usage(0.001, 0.005, 0.006)), [], "counted anew");
    }

    #[test]
    fn tries_that_fail_become_seldom_and_stay_within_the_budget() {
        let mut governor = Governor::new(WAITS, WAITS);
        let storm = usage(0.0001, 0.5, 0.0);
        let changes = run(&mut governor, 0, 3600, storm);
        let tries: Vec<f64> = changes.iter().filter(|(_, to)| *to == WAITS).map(|(at, _)| *at).collect();
        assert!((2..=12).contains(&tries.len()), "{tries:?}");
        // Each is over at the next look, half a second later; and about a second with the probes' removal.
        let failed: Vec<f64> =
            changes.iter().skip(1).filter(|(_, to)| *to == LIFECYCLE).map(|(at, _)| *at).collect();
        assert_eq!(failed.len(), tries.len());
        assert!(tries.iter().zip(&failed).all(|(begun, over)| over - begun <= 0.5));
        assert!(tries.len() as f64 * TRY_LASTS_S * 0.5 <= 0.01 * 3600.0, "the average is within the budget");
        assert!(tries.windows(2).all(|t| t[1] - t[0] >= 10.0));
    }

    #[test]
    fn after_the_storm_it_is_restored_step_by_step() {
        let mut governor = Governor::new(FULL, FULL);
        assert_eq!(run(&mut governor, 0, 20, usage(0.3, 0.5, 0.3)), [(0.0, Step::Snapshot)]);
        let calm = Usage { cpu_ns: 1e7, added_ns: [1e4, 1e5, 1e5, 0.0] };
        let changes = run(&mut governor, 20, 120, calm);
        assert_eq!(changes.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [LIFECYCLE, WAITS, FULL]);
        assert!(changes[2].0 <= 35.0, "{changes:?}");
        assert_eq!(run(&mut governor, 140, 600, calm), []);
    }

    #[test]
    fn a_step_up_that_could_not_be_made_is_tried_again_after_longer_and_longer_rests() {
        let calm = Usage { cpu_ns: 1e7, added_ns: [1e4, 1e5, 1e5, 0.0] };
        let mut governor = Governor::lowered(FULL, FULL, LIFECYCLE, Duration::ZERO);
        let mut tries = Vec::new();
        for second in 0..100 {
            let now = Duration::from_secs(second);
            if let Some(change) = governor.observe(now, &calm, BUDGET) {
                assert_eq!((change.from, change.to), (LIFECYCLE, WAITS));
                tries.push(second);
                governor.failed(LIFECYCLE, now);
            }
        }
        assert_eq!(tries, [10, 20, 40, 80]);
        assert_eq!(governor.step(), LIFECYCLE);
    }

    #[test]
    fn it_never_exceeds_what_is_wanted() {
        let mut governor = Governor::new(LIFECYCLE, LIFECYCLE);
        assert_eq!(run(&mut governor, 0, 600, usage(0.0, 0.0, 0.0)), []);
        assert_eq!(governor.step(), LIFECYCLE);
    }

    /// The share of the budget that was taken, and of the time for which requests were traced, over so many seconds.
    fn taken(changes: &[(f64, Step)], seconds: f64, real: &Usage) -> (f64, f64) {
        let (mut taken, mut traced, mut at, mut step) = (0.0, 0.0, 0.0, Step::Requests);
        for (until, next) in changes.iter().copied().chain([(seconds, Step::Snapshot)]) {
            taken += (until - at) * real.of_budget(step, BUDGET);
            traced += if step == Step::Requests { until - at } else { 0.0 };
            (at, step) = (until, next);
        }
        (taken / seconds, traced / seconds)
    }

    #[test]
    fn requests_are_traced_in_turns_that_keep_within_the_budget() {
        for (full, requests, covers) in
            [(0.003, 0.009, 0.67), (0.03, 0.01, 0.2), (0.06, 0.1, 0.05), (0.5, 0.3, 0.01)]
        {
            let mut real = usage(0.0, 0.0, full);
            real.added_ns[3] = requests * 1e9;
            let mut governor = Governor::new(Step::Requests, Step::Snapshot);
            let changes = run(&mut governor, 0, 3600, real);
            let (of_budget, traced) = taken(&changes, 3600.0, &real);
            assert!((0.6..=1.0).contains(&of_budget), "{of_budget} of the budget: {changes:?}");
            assert!((traced / covers - 1.0).abs() < 0.25, "{traced} of the time: {changes:?}");
            assert!(governor.covers().is_some_and(|told| (told / traced - 1.0).abs() < 0.25));
            assert!(changes.iter().all(|(_, to)| [Step::Requests, Step::Snapshot].contains(to)));
        }
    }

    #[test]
    fn requests_are_traced_all_the_time_again_when_there_is_room() {
        let mut busy = usage(0.0, 0.0, 0.03);
        busy.added_ns[3] = 1e7;
        let mut governor = Governor::new(Step::Requests, Step::Snapshot);
        assert!(!run(&mut governor, 0, 60, busy).is_empty());
        let calm = Usage { cpu_ns: 1e7, added_ns: [0.0, 0.0, 1e5, 1e5] };
        let changes = run(&mut governor, 60, 40, calm);
        assert!(changes.len() <= 1 && governor.step() == Step::Requests, "{changes:?}");
        assert!(governor.covers().is_some(), "it may be but a moment");
        assert_eq!(run(&mut governor, 100, 600, calm), []);
        assert_eq!(governor.covers(), None);
    }

    #[test]
    fn requests_are_given_up_before_the_levels() {
        // What they take beyond the budget is given up in turns, and the level stays.
        let mut real = usage(0.001, 0.001, 0.002);
        real.added_ns[3] = 0.02 * 1e9;
        let mut governor = Governor::new(Step::Requests, FULL);
        let changes = run(&mut governor, 0, 600, real);
        assert!(changes.len() > 10 && changes.iter().all(|(_, to)| *to >= FULL), "{changes:?}");
        let (of_budget, traced) = taken(&changes, 600.0, &real);
        assert!(of_budget <= 1.0 && traced > 0.1, "{of_budget} of the budget, {traced} of the time");
        // Where the level alone takes too much it is lowered at once, and requests are off.
        let mut governor = Governor::new(Step::Requests, FULL);
        let changes = run(&mut governor, 0, 60, usage(0.001, 0.001, 0.1));
        assert_eq!(changes.first(), Some(&(0.0, WAITS)));
        assert!(changes.iter().all(|(_, to)| *to < Step::Requests), "{changes:?}");
    }
}
