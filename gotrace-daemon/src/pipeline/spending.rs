//! What probes take, held against the budget: reads the kernel side's counts and the processes' CPU times
//! twice a second, asks the governors, and has probes put in place or removed as they decide.
//!
//! Processes that share the probes of their file share their step too: the one that is most over its budget decides
//! for all.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gotrace_common::Hit;

use super::{
    Line,
    budget::{Budget, Change, Governor, Step, Usage},
    probes::{Probes, SharedFile},
    traced::Traced,
};
use crate::{
    kernel::{HitCost, Kernel},
    process::Clock,
    sink::model::{LogRecord, Severity, Value},
};

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// Who shares probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Group {
    File(SharedFile),
    Process(u32),
}

/// What the line knows of spending.
pub(super) struct Spending {
    began: Instant,
    next: Instant,
    governors: HashMap<Group, Governor>,
    /// Steps that were changed since the beginning.
    pub changes: u64,
}

impl Default for Spending {
    fn default() -> Self {
        let now = Instant::now();
        Self { began: now, next: now, governors: HashMap::new(), changes: 0 }
    }
}

/// A process's counts at the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    at: Instant,
    hits: [u64; Hit::COUNT],
    /// `None` when nothing happened that would have made it worth reading.
    cpu_ns: Option<u64>,
}

impl Line {
    /// Holds what the probes take against the budget, when it is time.
    pub(super) fn tend_budget(&mut self, now: Instant) {
        let Some(budget) = self.config.budget else { return };
        if now < self.spending.next {
            return;
        }
        self.spending.next = now + EVERY;
        let Some(cost) = self.cost(Duration::ZERO) else { return };
        let Some(probes) = &self.probes else { return };
        let mut worst: HashMap<Group, (Option<Usage>, u32)> = HashMap::new();
        for traced in &mut self.traced {
            if traced.slot.is_none() || traced.cramped {
                continue;
            }
            let lowered = traced.step() != Step::Probes(self.config.level);
            let group = group_of(traced, probes);
            let usage = traced.usage(&probes.kernel, cost, now, lowered);
            let Some(usage) = usage else {
                // Not known yet; the others decide, and the governor stays.
                worst.entry(group).or_insert((None, traced.pid()));
                continue;
            };
            let step = traced.step();
            let entry = worst.entry(group).or_insert((None, traced.pid()));
            if entry.0.is_none_or(|most| usage.of_budget(step, budget) > most.of_budget(step, budget)) {
                *entry = (Some(usage), traced.pid());
            }
        }
        self.spending.governors.retain(|group, _| worst.contains_key(group));
        let since = now.duration_since(self.spending.began);
        let mut changes = Vec::new();
        for (group, (usage, pid)) in &worst {
            let most = self.config.level;
            let governor = self.spending.governors.entry(*group).or_insert_with(|| Governor::new(most));
            if let Some(usage) = usage
                && let Some(change) = governor.observe(since, usage, budget)
            {
                changes.push((*group, change, *pid));
            }
        }
        for (group, change, pid) in changes {
            self.change_step(group, change, pid, budget);
        }
    }

    fn change_step(&mut self, group: Group, change: Change, decided_by: u32, budget: Budget) {
        let Some(probes) = &self.probes else { return };
        let pids: Vec<u32> = self
            .traced
            .iter()
            .filter(|t| t.slot.is_some() && !t.cramped && group_of(t, probes) == group)
            .map(Traced::pid)
            .collect();
        for pid in &pids {
            self.set_step(*pid, change.to);
        }
        self.spending.changes += 1;
        let Change { from, to, cost_share } = change;
        let (cost, allowed) = (percent(cost_share), percent(budget.share()));
        tracing::info!(
            pid = decided_by,
            processes = pids.len(),
            from = from.name(),
            to = to.name(),
            cost,
            budget = allowed,
            "level changed"
        );
        let Some(exporter) = &self.exporter else { return };
        let text = format!(
            "level {} instead of {}: probes took {cost} of the CPU time, {allowed} are allowed",
            to.name(),
            from.name()
        );
        for traced in self.traced.iter().filter(|t| pids.contains(&t.pid())) {
            exporter.log(&Arc::new(LogRecord {
                resource: Arc::clone(&traced.resource),
                name: "gotrace.level.changed",
                time_unix_nano: traced.clock.unix_nano(Clock::now_monotonic_ns()),
                severity: Severity::Info,
                body: text.clone(),
                attributes: vec![
                    ("gotrace.level.from", Value::Text(from.name().into())),
                    ("gotrace.level.to", Value::Text(to.name().into())),
                    ("gotrace.level.reason", Value::Text("budget".into())),
                    ("gotrace.probe.cost", Value::Double(cost_share)),
                    ("gotrace.budget", Value::Double(budget.share())),
                ],
            }));
        }
    }

    /// Traces a process at another step.
    pub(super) fn set_step(&mut self, pid: u32, step: Step) {
        let Self { probes: Some(probes), traced, config, .. } = self else { return };
        let Some(traced) = traced.iter_mut().find(|t| t.pid() == pid) else { return };
        let wanted = step == Step::Probes(config.level);
        traced.lowered = if traced.cramped { Some("memory") } else { (!wanted).then_some("budget") };
        match (traced.step(), step) {
            (before, after) if before == after => {}
            (_, Step::Snapshot) => {
                probes.remove(traced);
                traced.stop_events(config);
            }
            (Step::Snapshot, Step::Probes(level)) => {
                traced.level = level;
                traced.highest = traced.highest.max(level);
                match probes.put_in_place(traced) {
                    Ok(()) => traced.resume_events(Clock::now_monotonic_ns(), config),
                    Err(error) => tracing::warn!(pid, "it stays traced by snapshots: {error}"),
                }
            }
            (Step::Probes(before), Step::Probes(level)) => {
                traced.level = level;
                traced.highest = traced.highest.max(level);
                match probes.change_level(traced, before) {
                    Ok(()) => traced.level_changed(before, config),
                    Err(error) => {
                        tracing::warn!(pid, "the level stays {before}: {error}");
                        traced.level = before;
                    }
                }
            }
        }
    }

    /// The step that the group of a process that joins is at.
    pub(super) fn step_for(&self, traced: &Traced) -> Option<Step> {
        let file =
            traced.shared_file().filter(|file| self.probes.as_ref().is_some_and(|p| p.is_shared(*file)))?;
        self.spending.governors.get(&Group::File(file)).map(Governor::step)
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

fn group_of(traced: &Traced, probes: &Probes) -> Group {
    probes.shares(traced).map_or(Group::Process(traced.number()), Group::File)
}

impl Traced {
    /// How it is traced now.
    pub(super) fn step(&self) -> Step {
        if self.is_sampled() { Step::Snapshot } else { Step::Probes(self.level) }
    }

    /// What it used since the last look, a second; `None` at the first, and when it is gone. `lowered`: what
    /// it does counts though no probe is hit.
    fn usage(&mut self, kernel: &Kernel, cost: HitCost, now: Instant, lowered: bool) -> Option<Usage> {
        let hits = kernel.counters(self.slot?).ok()?.hits;
        if !lowered && self.looked.is_some_and(|before| before.hits == hits) {
            self.looked = Some(Look { at: now, hits, cpu_ns: None });
            return Some(Usage::default());
        }
        let cpu_ns = self.watch.cpu_time_ns()?;
        let before = self.looked.replace(Look { at: now, hits, cpu_ns: Some(cpu_ns) })?;
        let seconds = now.duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let cost = cost.among(self.neighbours);
        let mut new = hits;
        new.iter_mut().zip(before.hits).for_each(|(now, before)| *now = now.saturating_sub(before));
        Some(Usage {
            cpu_ns: cpu_ns.saturating_sub(before.cpu_ns?) as f64 / seconds,
            added_ns: self.cost.by_level(&new, cost).map(|ns| ns / seconds),
        })
    }
}
