//! Reports on traced processes, each interval and at the end of each: what the kernel side and the system have counted
//! is read here, and what it comes to is the tracee's to say. Input: traced processes. Output: intervals, to whoever
//! shows them and to the exporter, and summaries.

use std::{sync::Arc, time::Duration};

use gotrace_common::{GoroutineState, Histogram, ROW_OTHER, ROW_SCHEDULE, ROW_SYSCALL};
use gotrace_kernel::{HitCost, Kernel};
use gotrace_model::{Interval, Level};
use gotrace_process::Clock;

use super::{
    CALIBRATION_WITHIN, LeftProcess, Line, ProvenProcess, Traced, probes::Probes, requests::read_requests,
};
use crate::tracee::{Counted, Input};

impl Line {
    /// What processes that have ended left behind, if that was wanted, in the order of their ends.
    pub fn take_left_behind(&mut self) -> Vec<LeftProcess> {
        std::mem::take(&mut self.left)
    }

    /// What was proven of processes that have ended, where proofs were made, in the order of their ends.
    pub fn take_proven(&mut self) -> Vec<ProvenProcess> {
        std::mem::take(&mut self.proven)
    }

    pub(super) fn end(&mut self, mut traced: Traced, why: &str, report: &mut dyn FnMut(&Arc<Interval>)) {
        self.forget(traced.pid());
        read_open_waits(self.probes.as_ref(), std::slice::from_mut(&mut traced));
        read_requests(self.probes.as_mut(), std::slice::from_mut(&mut traced));
        let cost = self.cost(CALIBRATION_WITHIN);
        let last = traced.report(self.count(&traced, cost));
        traced.tracee.tell(&Input::End { why: why.into() });
        report(&last);
        if let Some(exporter) = &self.exporter {
            exporter.interval(&last);
        }
        if self.node.is_none() && self.config.proofs.is_some() {
            self.proven.push(traced.proven(&last));
        }
        if let Some(behind) = traced.behind.take().filter(|_| traced.has_ended()) {
            self.left.push(behind.conclude(&traced, &last));
        }
        if self.node.is_some() {
            tracing::info!(
                pid = traced.pid(),
                created = last.born_total,
                alive = last.alive,
                "stopped tracing: {why}"
            );
        } else {
            self.summaries.push(traced.tracee.summary(&last, why));
        }
        if let (Some(probes), Some(slot)) = (&mut self.probes, traced.slot) {
            probes.remove(&mut traced);
            probes.leave(&traced);
            probes.give_slot_back(slot);
        }
        if traced.has_ended() {
            let identity = &traced.target().identity;
            self.executions.remove(&(identity.pid, identity.start_ticks));
        }
        self.note_end(&traced);
    }

    /// Follows the wall clock: when it was set, dates are by the new one from the next record on.
    pub(super) fn tend_clock(&mut self) {
        if !self.clock.tick() {
            return;
        }
        let clock = self.clock.clock();
        tracing::debug!(offset_ns = clock.offset_ns(), "the wall clock was set, or has drifted");
        self.traced.iter_mut().for_each(|traced| traced.set_clock(clock));
    }

    /// Reports on those that are `wanted`.
    pub(super) fn report(
        &mut self,
        wanted: impl Fn(&mut Traced) -> bool,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) {
        let wanted: Vec<bool> = self.traced.iter_mut().map(wanted).collect();
        if !wanted.contains(&true) {
            return;
        }
        if self.traced.iter().any(|t| t.tracee.level() > Level::Lifecycle || t.is_sampled()) {
            read_open_waits(self.probes.as_ref(), &mut self.traced);
        }
        read_requests(self.probes.as_mut(), &mut self.traced);
        let cost = self.cost(Duration::ZERO);
        let mut traced = std::mem::take(&mut self.traced);
        for (traced, _) in traced.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted) {
            let interval = traced.report(self.count(traced, cost));
            if let Some(exporter) = &self.exporter {
                exporter.interval(&interval);
            }
            report(&interval);
        }
        self.traced = traced;
    }

    /// What the kernel side and the system have counted of a process.
    pub(super) fn count(&self, traced: &Traced, cost: Option<HitCost>) -> Counted {
        let cost = cost.map(|cost| cost.among(traced.neighbours));
        let kernel = self.probes.as_ref().map(|p| &p.kernel).zip(traced.slot);
        let counters = kernel.map_or_else(Default::default, |(kernel, slot)| {
            kernel.counters(slot).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read kernel counters");
                Default::default()
            })
        });
        Counted {
            hits: counters.hits.to_vec(),
            lost: counters.lost.to_vec(),
            histograms: kernel
                .map(|(kernel, slot)| histograms(kernel, slot, traced.tracee.highest()))
                .unwrap_or_default(),
            cost_ns: cost.map(|cost| (cost.emulated_ns, cost.stepped_ns)),
            cpu_ns: traced.watch.cpu_time_ns(),
            undecodable: self.undecodable,
            stray: self.stray,
            now_ns: Clock::now_monotonic_ns(),
        }
    }
}

/// The kernel side's histograms of a process that are not empty, as far as its levels had any.
fn histograms(kernel: &Kernel, slot: u32, highest: Level) -> Vec<(u8, Histogram)> {
    if highest < Level::Waits {
        return Vec::new();
    }
    let rows = kernel.histograms(slot).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the kernel's histograms");
        Vec::new()
    });
    let is_of_level = |row: u8| match u32::from(row) {
        ROW_SYSCALL | ROW_SCHEDULE => highest >= Level::Full,
        row => row < ROW_OTHER,
    };
    (0..).zip(rows).filter(|(row, histogram)| histogram.count > 0 && is_of_level(*row)).collect()
}

/// Tells the tables who waits now; without probes the last snapshot has.
fn read_open_waits(probes: Option<&Probes>, traced: &mut [Traced]) {
    for traced in traced.iter_mut() {
        traced.begin_open_waits();
    }
    let Some(Probes { kernel, .. }) = probes else { return };
    let time_ns = Clock::now_monotonic_ns();
    let result = kernel.goroutines(|key, state| {
        let (start_ns, reason) = match state.park_ns {
            0 if state.flags & GoroutineState::IN_SYSCALL == 0 => return,
            0 => (state.syscall_ns, u8::try_from(ROW_SYSCALL).unwrap_or(u8::MAX)),
            park_ns => (park_ns, state.reason),
        };
        // They are in the order of their numbers.
        let index = traced.binary_search_by_key(&key.process, Traced::number);
        if let Some(traced) = index.ok().and_then(|index| traced.get_mut(index)) {
            traced.open_wait(key.goid, start_ns, reason, time_ns);
            if let Some(behind) = &mut traced.behind {
                behind.waits(key.goid, start_ns, reason, state.wake_ns != 0);
            }
        }
    });
    if let Err(error) = result {
        tracing::warn!(%error, "cannot read which goroutines are blocked");
    }
}
