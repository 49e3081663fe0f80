//! Holds what is kept of all processes against the bound on memory: measures it twice a second, asks the
//! keeper, and does and tells what it says.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Line, Step,
    memory::{Holding, Keeper, Measure},
    traced::Traced,
};
use crate::tracee::{Input, Outputs, Why};
use gotrace_process::Clock;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// Time between two of those at which those are measured too of whom nothing came.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// What a process takes beside its table: its addresses' names, buffers, the snapshots' frame.
const BESIDE: u64 = 64 << 10;

/// What the line knows of memory.
pub(super) struct Keeping {
    keeper: Keeper,
    began: Instant,
    looked: Instant,
    /// When all were measured.
    measured: Instant,
    /// Bytes at the last look.
    pub bytes: u64,
    /// What the tables of programs took then.
    pub programs: u64,
    /// Levels that were changed since the beginning.
    pub changes: u64,
}

impl Default for Keeping {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            keeper: Keeper::default(),
            began: now,
            looked: now,
            measured: now,
            bytes: 0,
            programs: 0,
            changes: 0,
        }
    }
}

impl Keeping {
    /// Processes that are traced by snapshots for want of memory.
    pub fn cramped(&self) -> u64 {
        self.keeper.cramped()
    }
}

impl Traced {
    /// Bytes that are kept of it.
    fn bytes_now(&self) -> u64 {
        let snapshot = self.snapshots.as_ref().map_or(0, super::seed::Snapshots::bytes);
        let looks = self.examining.as_ref().map_or(0, super::examining::Examining::bytes);
        (self.tracee.table().bytes() + self.tracee.requests_bytes() + snapshot + looks) as u64 + BESIDE
    }
}

impl Line {
    /// Holds what is kept against the bound, when it is time.
    pub(super) fn tend_memory(&mut self, now: Instant) {
        let passed = now.duration_since(self.keeping.looked);
        if passed < EVERY {
            return;
        }
        self.keeping.looked = now;
        let all = now.duration_since(self.keeping.measured) >= ALL_EVERY;
        if all {
            self.keeping.measured = now;
        }
        let holdings: Vec<Holding> = self
            .traced
            .iter_mut()
            .map(|traced| {
                let records = std::mem::take(&mut traced.records);
                // Where nothing came it is much the same: the snapshots of those with probes come seldom.
                if records > 0 || traced.kept_bytes == 0 || traced.is_sampled() || all {
                    traced.kept_bytes = traced.bytes_now();
                }
                Holding {
                    number: traced.number(),
                    bytes: traced.kept_bytes,
                    records_per_second: records as f64 / passed.as_secs_f64(),
                    has_probes: traced.slot.is_some() && !traced.is_sampled(),
                }
            })
            .collect();
        self.keeping.bytes = holdings.iter().map(|h| h.bytes).sum();
        let since = now.duration_since(self.keeping.began);
        self.keeping.programs = self.programs_bytes();
        // What programs take cannot be given up; the processes have a share whatever that is.
        let limit = self.config.memory.saturating_sub(self.keeping.programs).max(self.config.memory / 4);
        for measure in self.keeping.keeper.look(since, &holdings, limit) {
            self.take(measure);
        }
    }

    /// What the tables of the programs take that are traced.
    fn programs_bytes(&self) -> u64 {
        let mut known = HashSet::new();
        let programs = self.traced.iter().map(|traced| &traced.parsed().program);
        programs.filter(|program| known.insert(Arc::as_ptr(program))).map(|p| p.binary.bytes() as u64).sum()
    }

    fn take(&mut self, measure: Measure) {
        let (Measure::Cramp(number)
        | Measure::Release(number)
        | Measure::Cap(number)
        | Measure::Uncap(number)) = measure;
        let each = self.config.goroutines_each;
        let Some(traced) = self.traced.iter_mut().find(|t| t.number() == number) else { return };
        let (pid, before) = (traced.pid(), traced.step());
        // It changes: to be measured anew.
        traced.kept_bytes = 0;
        match measure {
            Measure::Cap(_) => {
                traced.capped = true;
                let room = usize::try_from(traced.tracee.table().alive()).unwrap_or(each).min(each);
                traced.tracee.tell(&Input::Room(room as u64));
                tracing::warn!(
                    pid,
                    goroutines = room,
                    "memory limit reached (limits.memory): no more goroutines tracked for this process; further ones are \
                     counted as lost (table_limit)"
                );
            }
            Measure::Uncap(_) => {
                traced.capped = false;
                traced.tracee.tell(&Input::Room(each as u64));
                tracing::info!(pid, "below the memory limit again: tracking new goroutines");
            }
            Measure::Cramp(_) => {
                traced.cramped = true;
                self.set_step(pid, Step::Snapshot);
                if let Some(traced) = self.traced.iter_mut().find(|t| t.number() == number) {
                    traced.tracee.tell(&Input::GiveBack);
                }
                self.tell_of_memory(number, before);
            }
            Measure::Release(_) => {
                traced.cramped = false;
                let traced = self.traced.iter().find(|t| t.number() == number);
                let step = traced.map(|t| self.step_for(t).unwrap_or(t.most(&self.config)));
                self.set_step(pid, step.unwrap_or(Step::Snapshot));
                self.tell_of_memory(number, before);
            }
        }
    }

    fn tell_of_memory(&mut self, number: u32, from: Step) {
        let Some(traced) = self.traced.iter().find(|t| t.number() == number) else { return };
        let (to, used, limit) = (traced.step(), self.keeping.bytes, self.config.memory);
        if to == from {
            return;
        }
        self.keeping.changes += 1;
        let pid = traced.pid();
        tracing::info!(
            pid,
            from = from.name(),
            to = to.name(),
            used,
            limit,
            "level changed because of limits.memory"
        );
        if let Some(traced) = self.traced.iter_mut().find(|t| t.number() == number) {
            let (now_ns, why) = (Clock::now_monotonic_ns(), Why::Memory { used, limit });
            let mut out = Outputs::default();
            traced.tracee.apply(&Input::TellChange { now_ns, from, to, why }, &mut out);
            self.hand_on(out);
        }
    }
}
