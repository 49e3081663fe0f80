//! How a tracee is traced: by events of which level or by snapshots alone, why less than is wanted, and how long it
//! was traced in which way.
//!
//! Pure: times are arguments (monotonic nanoseconds).

use std::collections::BTreeMap;

use gotrace_model::{Level, LevelChange};
use serde::{Deserialize, Serialize};

/// How much is traced of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// No probes: snapshots alone.
    Snapshot,
    /// Probes of this level.
    Probes(Level),
    /// Probes of level `full`, and those of requests.
    Requests,
}

impl Step {
    /// Those that have probes, least first: each has those of the ones before it too.
    pub(crate) const WITH_PROBES: [Self; 4] = [
        Self::Probes(Level::Lifecycle),
        Self::Probes(Level::Waits),
        Self::Probes(Level::Full),
        Self::Requests,
    ];

    /// As outputs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Probes(level) => level.name(),
            Self::Requests => "requests",
        }
    }

    /// The level of its probes; `None` without.
    pub(crate) const fn level(self) -> Option<Level> {
        match self {
            Self::Snapshot => None,
            Self::Probes(level) => Some(level),
            Self::Requests => Some(Level::Full),
        }
    }

    /// The level's name, as an interval has it.
    #[must_use]
    pub const fn level_name(self) -> &'static str {
        match self.level() {
            None => "sampled",
            Some(level) => level.name(),
        }
    }

    /// The next higher one; `None` for the highest.
    pub(crate) fn above(self) -> Option<Self> {
        Some(Self::Probes(match self {
            Self::Snapshot => Level::Lifecycle,
            Self::Probes(Level::Lifecycle) => Level::Waits,
            Self::Probes(Level::Waits) => Level::Full,
            Self::Probes(Level::Full) => return Some(Self::Requests),
            Self::Requests => return None,
        }))
    }

    fn sees_waits(self) -> bool {
        self >= Self::Probes(Level::Waits)
    }
}

/// Why less is traced than is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lowered {
    /// The probes took too much of the process's CPU time.
    Budget,
    /// What is kept of all processes took too much memory.
    Memory,
    /// As many processes have probes as may.
    Room,
    /// Probes could not safely be put into its file.
    File,
    /// Too many processes of its file have probes, each of which makes the others' hits dearer.
    Neighbours,
    /// The kernel has not what they take just now.
    Kernel,
}

impl Lowered {
    /// As outputs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Memory => "memory",
            Self::Room => "room",
            Self::File => "file",
            Self::Neighbours => "neighbours",
            Self::Kernel => "kernel",
        }
    }
}

/// A change of the step that is to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepChange {
    /// The step before.
    pub from: Step,
    /// The step from now on.
    pub to: Step,
    /// What the probes took before, as a share of the process's CPU time; 0 for none.
    pub cost_share: f64,
}

impl From<StepChange> for LevelChange {
    fn from(change: StepChange) -> Self {
        let StepChange { from, to, cost_share } = change;
        Self { from: from.level_name(), to: to.level_name(), probe_cost_share: cost_share }
    }
}

/// How a tracee is traced, and was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Mode {
    pub level: Level,
    /// The highest level that it has had.
    pub highest: Level,
    /// Whether births and deaths come from snapshots only.
    pub sampled: bool,
    pub lowered: Option<Lowered>,
    /// The last change, until it is reported.
    pub change: Option<StepChange>,
    times: LevelTimes,
}

impl Mode {
    pub fn new(level: Level, sampled: bool) -> Self {
        let times = LevelTimes::default();
        Self { level, highest: level, sampled, lowered: None, change: None, times }
    }

    pub fn step(&self) -> Step {
        if self.sampled { Step::Snapshot } else { Step::Probes(self.level) }
    }

    /// It is traced in the way of now from this time on.
    pub fn mark(&mut self, now_ns: u64) {
        self.times.change(now_ns, self.step());
    }

    /// Whether all waits were seen of a goroutine that was born then and has ended now.
    pub fn saw_all_waits(&self, birth_ns: u64) -> bool {
        self.times.saw_all_waits(birth_ns)
    }

    /// Whether it had level full all the time since then.
    pub fn was_full_since(&self, birth_ns: u64) -> bool {
        self.times.was_full_since(birth_ns)
    }

    /// Nanoseconds at each level, by name, until now.
    pub fn times(&self, now_ns: u64) -> BTreeMap<&'static str, u64> {
        self.times.until(now_ns).into_iter().map(|(step, ns)| (step.level_name(), ns)).collect()
    }
}

/// How long a process had which level.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct LevelTimes {
    /// The one of now, and since when.
    now: Option<(Step, u64)>,
    before: BTreeMap<Step, u64>,
    /// Since when waits are all seen, where they were not for a while before; else 0.
    waits_since_ns: u64,
}

impl LevelTimes {
    fn change(&mut self, now_ns: u64, step: Step) {
        if step.sees_waits() && self.now.is_some_and(|(before, _)| !before.sees_waits()) {
            self.waits_since_ns = now_ns;
        }
        self.before = self.until(now_ns);
        self.now = Some((step, now_ns));
    }

    fn saw_all_waits(&self, birth_ns: u64) -> bool {
        self.now.is_some_and(|(step, _)| step.sees_waits()) && birth_ns >= self.waits_since_ns
    }

    fn was_full_since(&self, birth_ns: u64) -> bool {
        const FULL: Step = Step::Probes(Level::Full);
        let Some((FULL, since_ns)) = self.now else { return false };
        birth_ns >= since_ns || self.before.iter().all(|(step, ns)| *step == FULL || *ns == 0)
    }

    fn until(&self, now_ns: u64) -> BTreeMap<Step, u64> {
        let mut times = self.before.clone();
        if let Some((step, since_ns)) = self.now {
            let time = times.entry(step).or_insert(0);
            *time = time.saturating_add(now_ns.saturating_sub(since_ns));
        }
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Step = Step::Probes(Level::Full);
    const WAITS: Step = Step::Probes(Level::Waits);
    const LIFECYCLE: Step = Step::Probes(Level::Lifecycle);

    #[test]
    fn the_times_at_levels_add_up() {
        let mut times = LevelTimes::default();
        assert!(times.until(50).is_empty());
        times.change(100, FULL);
        times.change(130, Step::Snapshot);
        times.change(200, FULL);
        assert_eq!(times.until(205), [(FULL, 35), (Step::Snapshot, 70)].into());
        assert_eq!(times.until(205), [(FULL, 35), (Step::Snapshot, 70)].into(), "asking changes nothing");
    }

    #[test]
    fn a_life_at_full_is_told_from_one_that_had_a_lower_level_in_it() {
        let mut times = LevelTimes::default();
        times.change(100, FULL);
        // Its probes were in place a little before; a change to the same is none.
        times.change(120, FULL);
        assert!(times.was_full_since(90));
        times.change(150, WAITS);
        assert!(!times.was_full_since(90));
        times.change(200, FULL);
        assert!(!times.was_full_since(110) && !times.was_full_since(199) && times.was_full_since(200));
    }

    #[test]
    fn waits_of_who_lived_at_a_lower_level_are_not_taken_for_all() {
        let mut times = LevelTimes::default();
        times.change(100, FULL);
        // Its probes were in place a little before.
        assert!(times.saw_all_waits(90));
        times.change(150, WAITS);
        assert!(times.saw_all_waits(90));
        times.change(200, LIFECYCLE);
        assert!(!times.saw_all_waits(210));
        times.change(300, WAITS);
        assert!(times.saw_all_waits(310) && !times.saw_all_waits(210) && !times.saw_all_waits(90));
    }
}
