//! What probes take, held against the budget: reads the kernel side's counts and the processes' CPU times
//! twice a second, asks the governors, and has probes put in place or removed as they decide.
//!
//! Processes that share the probes of their file share their step too: the one that is most over its budget decides
//! for all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use gotrace_common::Hit;

use super::{
    Line,
    budget::{Budget, Change, Governor, Step, Usage},
    probes::{Probes, SharedFile},
    sharing::NEIGHBOURS,
    traced::Traced,
};
use crate::{
    kernel::{HitCost, Kernel},
    level::Level,
    process::Clock,
    sink::model::{Interval, LevelChange, LogRecord, Severity, Value},
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
    /// Holds what the probes take against the budget, when it is time. Where single processes are followed, a
    /// change is reported at once.
    pub(super) fn tend_budget(&mut self, now: Instant, report: &mut dyn FnMut(&Arc<Interval>)) {
        let Some(budget) = self.config.budget else { return };
        if now < self.spending.next {
            return;
        }
        self.spending.next = now + EVERY;
        let cost = self.cost(Duration::ZERO);
        let Some(probes) = &self.probes else { return };
        let mut worst: HashMap<Group, (Option<Usage>, u32)> = HashMap::new();
        // A group that is new is at the step of who is in it.
        let mut steps: HashMap<Group, Step> = HashMap::new();
        for traced in &mut self.traced {
            if traced.slot.is_none() || traced.cramped || traced.lowered == Some(NEIGHBOURS) {
                continue;
            }
            let lowered = traced.step() != Step::Probes(self.config.level);
            let group = group_of(traced, probes);
            steps.entry(group).or_insert(traced.step());
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
            let governor = self.spending.governors.entry(*group).or_insert_with(|| match steps.get(group) {
                Some(step) if *step != Step::Probes(most) => Governor::lowered(most, *step, since),
                _ => Governor::new(most),
            });
            if let Some(usage) = usage
                && let Some(change) = governor.observe(since, usage, budget)
            {
                changes.push((*group, change, *pid));
            }
        }
        if changes.is_empty() {
            return;
        }
        for (group, change, pid) in changes {
            self.change_step(group, change, pid, budget);
        }
        if self.node.is_none() {
            self.report(|traced| traced.level_change.is_some(), report);
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
        if self.node.is_none() {
            self.note_change(&pids, change, budget);
        }
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

    /// Whoever follows these processes is told of the change; what was given up also in the log.
    fn note_change(&mut self, pids: &[u32], Change { from, to, cost_share }: Change, budget: Budget) {
        let traced = self.traced.iter_mut().filter(|t| pids.contains(&t.pid()) && t.step() == to);
        for traced in traced {
            traced.level_change = Some(LevelChange {
                from: from.level_name(),
                to: to.level_name(),
                probe_cost_share: cost_share,
            });
            if to < from {
                tracing::warn!(
                    pid = traced.pid(),
                    "level {} instead of {}: the probes' overhead was {} of the CPU time, the budget is {} \
                     (--budget none lifts it). Until there is room again, {}",
                    to.level_name(),
                    from.level_name(),
                    percent(cost_share),
                    percent(budget.share()),
                    match to {
                        Step::Snapshot =>
                            "goroutines that live between two snapshots are missed, and there are no spans and no \
                             durations of waits",
                        Step::Probes(Level::Lifecycle) => "waits are not seen",
                        Step::Probes(_) => "wakers, scheduling delays and system calls are not seen",
                    }
                );
            }
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
                        // None of its probes is left in place.
                        if let Err(error) = probes.put_in_place(traced) {
                            tracing::warn!(pid, "traced by snapshots from now on: {error}");
                            traced.lowered = Some("file");
                            traced.stop_events(config);
                        }
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

/// How long a process had which level.
#[derive(Clone, Debug, Default)]
pub(super) struct LevelTimes {
    /// The level of now, and since when (monotonic).
    now: Option<(&'static str, u64)>,
    before: BTreeMap<&'static str, u64>,
    /// Since when waits are all seen (monotonic), where they were not for a while before; else 0.
    waits_since_ns: u64,
}

impl LevelTimes {
    /// It has this level from now on.
    pub fn change(&mut self, now_ns: u64, level: &'static str) {
        let sees_waits = |level| matches!(level, "waits" | "full");
        if sees_waits(level) && self.now.is_some_and(|(before, _)| !sees_waits(before)) {
            self.waits_since_ns = now_ns;
        }
        self.before = self.until(now_ns);
        self.now = Some((level, now_ns));
    }

    /// Whether all waits were seen of a goroutine that was born then (monotonic) and has ended now.
    pub fn saw_all_waits(&self, birth_ns: u64) -> bool {
        matches!(self.now, Some(("waits" | "full", _))) && birth_ns >= self.waits_since_ns
    }

    /// Nanoseconds at each level, by name, until now.
    pub fn until(&self, now_ns: u64) -> BTreeMap<&'static str, u64> {
        let mut times = self.before.clone();
        if let Some((level, since_ns)) = self.now {
            *times.entry(level).or_insert(0) += now_ns.saturating_sub(since_ns);
        }
        times
    }
}

impl Traced {
    /// How it is traced now.
    pub(super) fn step(&self) -> Step {
        if self.is_sampled() { Step::Snapshot } else { Step::Probes(self.level) }
    }

    /// What it used since the last look, a second; `None` at the first, and when it is gone. `lowered`: what
    /// it does counts though no probe is hit.
    fn usage(
        &mut self,
        kernel: &Kernel,
        cost: Option<HitCost>,
        now: Instant,
        lowered: bool,
    ) -> Option<Usage> {
        // Until it is known what a hit costs, the first look is the one to begin from.
        if cost.is_none() && self.looked.is_some() {
            return None;
        }
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
        let cost = cost.map(|cost| cost.among(self.neighbours));
        let mut new = hits;
        new.iter_mut().zip(before.hits).for_each(|(now, before)| *now = now.saturating_sub(before));
        Some(Usage {
            cpu_ns: cpu_ns.saturating_sub(before.cpu_ns?) as f64 / seconds,
            added_ns: self.cost.by_level(&new, cost?).map(|ns| ns / seconds),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_at_levels_add_up() {
        let mut times = LevelTimes::default();
        assert!(times.until(50).is_empty());
        times.change(100, "full");
        times.change(130, "sampled");
        times.change(200, "full");
        assert_eq!(times.until(205), [("full", 35), ("sampled", 70)].into());
        assert_eq!(times.until(205), [("full", 35), ("sampled", 70)].into(), "asking changes nothing");
    }

    #[test]
    fn waits_of_who_lived_at_a_lower_level_are_not_taken_for_all() {
        let mut times = LevelTimes::default();
        times.change(100, "full");
        // Its probes were in place a little before.
        assert!(times.saw_all_waits(90));
        times.change(150, "waits");
        assert!(times.saw_all_waits(90));
        times.change(200, "lifecycle");
        assert!(!times.saw_all_waits(210));
        times.change(300, "waits");
        assert!(times.saw_all_waits(310) && !times.saw_all_waits(210) && !times.saw_all_waits(90));
    }
}
