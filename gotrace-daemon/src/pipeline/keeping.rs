//! Holds what is kept of all processes against the bound on memory: measures it twice a second, asks the
//! keeper, and does and tells what it says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Line, Step,
    memory::{Holding, Keeper, Measure},
    traced::Traced,
};
use crate::{
    process::Clock,
    sink::model::{LogRecord, Severity, Value},
};

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
    /// Levels that were changed since the beginning.
    pub changes: u64,
}

impl Default for Keeping {
    fn default() -> Self {
        let now = Instant::now();
        Self { keeper: Keeper::default(), began: now, looked: now, measured: now, bytes: 0, changes: 0 }
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
        let looks = self.suspicions.as_ref().map_or(0, super::suspicions::Suspicions::bytes);
        (self.table.bytes() + snapshot + looks) as u64 + BESIDE
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
        let limit = self.config.memory;
        for measure in self.keeping.keeper.look(since, &holdings, limit) {
            self.take(measure);
        }
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
                let room = usize::try_from(traced.table.alive()).unwrap_or(each).min(each);
                traced.table.set_room(room);
                tracing::warn!(
                    pid,
                    goroutines = room,
                    "what is kept of all processes takes too much memory (limits.memory): of this one no more \
                     goroutines are kept than now, births beyond are counted as lost (table_limit)"
                );
            }
            Measure::Uncap(_) => {
                traced.capped = false;
                traced.table.set_room(each);
                tracing::info!(pid, "there is memory for more goroutines again");
            }
            Measure::Cramp(_) => {
                traced.cramped = true;
                self.set_step(pid, Step::Snapshot);
                if let Some(traced) = self.traced.iter_mut().find(|t| t.number() == number) {
                    traced.table.give_back();
                }
                self.tell_of_memory(number, before);
            }
            Measure::Release(_) => {
                traced.cramped = false;
                let step = self.traced.iter().find(|t| t.number() == number).and_then(|t| self.step_for(t));
                self.set_step(pid, step.unwrap_or(Step::Probes(self.config.level)));
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
            "level changed for want of memory"
        );
        let Some(exporter) = &self.exporter else { return };
        exporter.log(&Arc::new(LogRecord {
            resource: Arc::clone(&traced.resource),
            name: "gotrace.level.changed",
            time_unix_nano: traced.clock.unix_nano(Clock::now_monotonic_ns()),
            severity: Severity::Info,
            body: format!(
                "level {} instead of {}: what is kept of all processes takes {used} bytes, {limit} are allowed",
                to.name(),
                from.name()
            ),
            attributes: vec![
                ("gotrace.level.from", Value::Text(from.name().into())),
                ("gotrace.level.to", Value::Text(to.name().into())),
                ("gotrace.level.reason", Value::Text("memory".into())),
                ("gotrace.memory.used", Value::Int(i64::try_from(used).unwrap_or(i64::MAX))),
                ("gotrace.memory.limit", Value::Int(i64::try_from(limit).unwrap_or(i64::MAX))),
            ],
        }));
    }
}
