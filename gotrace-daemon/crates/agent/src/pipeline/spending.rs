//! What probes take, held against the budget: reads the kernel side's counts and the processes' CPU times
//! twice a second, asks the governors, and has probes put in place or removed as they decide.
//!
//! Processes that share the probes of their file share their step too: the one that is most over its budget decides
//! for all.
//!
//! Turns of requests are not told one by one: that there are any is, for which share of the time, and that there are none
//! any more.

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
    retry::Failed,
    traced::Traced,
};
use crate::tracee::{Input, Lowered, Outputs, StepChange, Why, percent};
use gotrace_kernel::{self as kernel, HitCost, Kernel};
use gotrace_model::{Interval, Level};
use gotrace_process::Clock;

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// The share of the time for which requests are traced is told anew when it has changed so many times.
const NEWS: f64 = 2.0;

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
    /// For which share of the time requests are traced, as far as that was told.
    told: HashMap<Group, f64>,
    /// Steps that could not be taken, by pid; without a budget.
    pub failed: HashMap<u32, Failed>,
    /// Steps that were changed since the beginning.
    pub changes: u64,
}

impl Default for Spending {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            next: now,
            governors: HashMap::new(),
            told: HashMap::new(),
            failed: HashMap::new(),
            changes: 0,
        }
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
        let Some(budget) = self.config.budget else { return self.try_again(now) };
        if now < self.spending.next {
            return;
        }
        self.spending.next = now + EVERY;
        let cost = self.cost(Duration::ZERO);
        let Some(probes) = &self.probes else { return };
        let mut worst: HashMap<Group, (Option<Usage>, u32)> = HashMap::new();
        // A group that is new is at the step of who is in it; and what is wanted of that one.
        let mut steps: HashMap<Group, (Step, Step)> = HashMap::new();
        for traced in &mut self.traced {
            if traced.slot.is_none() || traced.cramped || traced.tracee.lowered() == Some(Lowered::Neighbours)
            {
                continue;
            }
            let most = traced.most(&self.config);
            let lowered = traced.step() != most;
            let group = group_of(traced, probes);
            let all = steps.entry(group).or_insert((traced.step(), most));
            all.1 = all.1.max(most);
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
        self.spending.told.retain(|group, _| worst.contains_key(group));
        let since = now.duration_since(self.spending.began);
        let (mut changes, mut news) = (Vec::new(), Vec::new());
        for (group, (usage, pid)) in &worst {
            let Some((step, most)) = steps.get(group).copied() else { continue };
            let between = self.config.between_turns();
            let governor = self.spending.governors.entry(*group).or_insert_with(|| {
                if step >= most {
                    Governor::new(most, between)
                } else {
                    Governor::lowered(most, between, step, since)
                }
            });
            let Some(usage) = usage else { continue };
            if let Some(change) = governor.observe(since, usage, budget) {
                changes.push((*group, change, *pid));
            }
            let covers = governor.covers();
            let told = self.spending.told.get(group).copied();
            let is_news = match (told, covers) {
                (Some(told), Some(covers)) => covers.max(told) > NEWS * covers.min(told),
                (told, covers) => told.is_some() != covers.is_some(),
            };
            if is_news {
                news.push((*group, covers, usage.cost_share(Step::Requests)));
            }
        }
        for (group, covers, cost_share) in news {
            self.tell_turns(group, covers, cost_share, budget);
        }
        if changes.is_empty() {
            return;
        }
        for (group, change, pid) in changes {
            self.change_step(group, change, pid, budget);
        }
        if self.node.is_none() {
            self.report(|traced| traced.tracee.has_changed(), report);
        }
    }

    /// Another level is wanted of a process: those that share its probes get it with it, as the budget allows.
    pub(super) fn change_most(&mut self, pid: u32) {
        let Some(probes) = &self.probes else { return };
        let is_weighed = |traced: &&Traced| {
            traced.slot.is_some() && !traced.cramped && traced.tracee.lowered() != Some(Lowered::Neighbours)
        };
        let own = self.traced.iter().find(|traced| traced.pid() == pid);
        let Some(group) = own.filter(is_weighed).map(|traced| group_of(traced, probes)) else { return };
        let members: Vec<(u32, Step, Step)> = self
            .traced
            .iter()
            .filter(|traced| is_weighed(traced) && group_of(traced, probes) == group)
            .map(|traced| (traced.pid(), traced.step(), traced.most(&self.config)))
            .collect();
        let Some(most) = members.iter().map(|(_, _, most)| *most).max() else { return };
        let Some(now) = members.iter().map(|(_, now, _)| *now).min() else { return };
        let (since, between) = (self.spending.began.elapsed(), self.config.between_turns());
        let governor = self.spending.governors.get(&group);
        // What the budget has lowered stays there until there is room.
        let to = if governor.is_some_and(Governor::is_lowered) { now.min(most) } else { most };
        if self.config.budget.is_some() {
            let governor = if to == most {
                Governor::new(most, between)
            } else {
                Governor::lowered(most, between, to, since)
            };
            self.spending.governors.insert(group, governor);
        }
        if to != now {
            let processes = members.len();
            tracing::info!(
                pid,
                processes,
                from = now.name(),
                to = to.name(),
                "level changed for a client of the socket"
            );
        }
        for (pid, now, _) in members {
            if now != to {
                self.set_step(pid, to);
            }
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
        // Of those that are to have the same step, one that has it not yet holds for all.
        let reached = self.traced.iter().filter(|t| pids.contains(&t.pid())).map(Traced::step).min();
        if let Some(reached) = reached.filter(|reached| *reached < change.to)
            && let Some(governor) = self.spending.governors.get_mut(&group)
        {
            governor.failed(reached, self.spending.began.elapsed());
            if reached == change.from {
                return;
            }
        }
        let Change { from, to, cost_share } = change;
        let is_turn = from.max(to) == Step::Requests && from.min(to) == self.config.between_turns();
        if is_turn {
            tracing::debug!(pid = decided_by, to = to.name(), "a turn of requests ends or begins");
            return;
        }
        self.spending.changes += 1;
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
        let (now_ns, why) = (Clock::now_monotonic_ns(), Why::Budget { cost_share, share: budget.share() });
        let mut out = Outputs::default();
        for traced in self.traced.iter_mut().filter(|t| pids.contains(&t.pid())) {
            traced.tracee.apply(&Input::TellChange { now_ns, from, to, why }, &mut out);
        }
        self.hand_on(out);
    }

    /// Requests of a group are traced for this share of the time from now on, or all the time.
    fn tell_turns(&mut self, group: Group, covers: Option<f64>, cost_share: f64, budget: Budget) {
        let Some(probes) = &self.probes else { return };
        let told = match covers {
            Some(covers) => self.spending.told.insert(group, covers),
            None => self.spending.told.remove(&group),
        };
        let pids: Vec<u32> =
            self.traced.iter().filter(|t| group_of(t, probes) == group).map(Traced::pid).collect();
        let what = match covers {
            Some(covers) => format!(
                "requests are traced in turns, for about {} of the time: overhead about {} of the CPU time, budget {} \
                 (--budget none lifts it); counts are those of the requests that begin and end within a turn",
                percent(covers),
                percent(cost_share),
                percent(budget.share()),
            ),
            None => "requests are traced all the time again".to_owned(),
        };
        match self.node {
            Some(_) => tracing::info!(pid = pids.first(), processes = pids.len(), "{what}"),
            None => tracing::warn!(pid = pids.first(), "{what}"),
        }
        let (from, to) = (Step::Requests, self.config.between_turns());
        let (from, to) = if covers.is_some() { (from, to) } else { (to, from) };
        let (now_ns, why) = (Clock::now_monotonic_ns(), Why::Budget { cost_share, share: budget.share() });
        let mut out = Outputs::default();
        let changes = told.is_some() != covers.is_some();
        for traced in self.traced.iter_mut().filter(|t| changes && pids.contains(&t.pid())) {
            traced.tracee.apply(&Input::TellChange { now_ns, from, to, why }, &mut out);
        }
        self.hand_on(out);
    }

    /// Whoever follows these processes is told of the change; what was given up also in the log.
    fn note_change(&mut self, pids: &[u32], Change { from, to, cost_share }: Change, budget: Budget) {
        let traced = self.traced.iter_mut().filter(|t| pids.contains(&t.pid()) && t.step() == to);
        for traced in traced {
            traced.tracee.tell(&Input::Changed(StepChange { from, to, cost_share }));
            if to < from {
                tracing::warn!(
                    pid = traced.pid(),
                    "level lowered from {} to {}: overhead about {} of the CPU time, budget {} (--budget none lifts it); \
                     until it is raised again, {}{}",
                    from.level_name(),
                    to.level_name(),
                    percent(cost_share),
                    percent(budget.share()),
                    match to {
                        Step::Snapshot =>
                            "there are no spans and no wait durations, and goroutines that live between two snapshots are \
                             missed",
                        Step::Probes(Level::Lifecycle) => "waits are not recorded",
                        Step::Probes(_) | Step::Requests =>
                            "wakers, scheduling latency and system calls are not recorded",
                    },
                    if traced.traces_requests() { ", and requests are not traced" } else { "" },
                );
            }
        }
    }

    /// Traces a process at another step.
    pub(super) fn set_step(&mut self, pid: u32, step: Step) {
        let Self { probes: Some(probes), traced, config, .. } = self else { return };
        let Some(traced) = traced.iter_mut().find(|t| t.pid() == pid) else { return };
        let below = step < Step::Probes(traced.wanted_level(config));
        let lowered = if traced.cramped { Some(Lowered::Memory) } else { below.then_some(Lowered::Budget) };
        traced.lower(lowered);
        match (traced.step(), step) {
            (before, after) if before == after => {}
            (_, Step::Snapshot) => {
                probes.remove(traced);
                traced.stop_events(config);
            }
            (Step::Snapshot, _) => {
                traced.set_aim(step);
                match probes.put_in_place(traced) {
                    Ok(()) => traced.resume_events(Clock::now_monotonic_ns(), config),
                    Err(error) => {
                        tracing::warn!(pid, "still using snapshots: {error}");
                        self.note_failure(pid, step, &error);
                    }
                }
            }
            (before, _) => {
                traced.set_aim(step);
                let failed = |error: &kernel::Error| {
                    tracing::warn!(pid, "cannot change the level from {}: {error}", before.name());
                };
                match probes.change_step(traced, before) {
                    Ok(()) => traced.level_changed(before, config),
                    Err(error) if error.is_passing() => {
                        failed(&error);
                        self.note_failure(pid, step, &error);
                    }
                    Err(error) => {
                        failed(&error);
                        traced.set_aim(before);
                        // None of its probes is left in place.
                        if let Err(error) = probes.put_in_place(traced) {
                            tracing::warn!(pid, "falling back to snapshots: {error}");
                            traced.lower(Some(Lowered::File));
                            traced.stop_events(config);
                        }
                    }
                }
            }
        }
        if let Some(traced) = self.traced.iter_mut().find(|t| t.pid() == pid) {
            traced.tell_paused();
        }
    }

    /// The step that the group of a process that joins is at.
    pub(super) fn step_for(&self, traced: &Traced) -> Option<Step> {
        let file =
            traced.shared_file().filter(|file| self.probes.as_ref().is_some_and(|p| p.is_shared(*file)))?;
        self.spending.governors.get(&Group::File(file)).map(Governor::step)
    }
}

fn group_of(traced: &Traced, probes: &Probes) -> Group {
    probes.shares(traced).map_or(Group::Process(traced.number()), Group::File)
}

impl Traced {
    /// How it is traced now.
    pub(super) fn step(&self) -> Step {
        if self.is_sampled() { Step::Snapshot } else { self.aim() }
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
            added_ns: self.tracee.cost().by_level(&new, cost?).map(|ns| ns / seconds),
        })
    }
}
