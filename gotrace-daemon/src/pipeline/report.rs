//! The state of a traced process, put together from its table and the kernel side's counts.

use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::{Counters, Histogram, Hit, Lost, REASON_ROWS, ROW_OTHER, ROW_SCHEDULE, ROW_SYSCALL};

use super::{Budget, LineConfig, seed::Snapshots, traced::Traced};
use crate::{
    kernel::{HitCost, Kernel},
    level::Level,
    process::Clock,
    sink::model::{Interval, Levels, Site, Summary},
};

impl Traced {
    /// The state now, and what changed since the last call.
    pub(super) fn interval(
        &mut self,
        line: &LineConfig,
        kernel: Option<&Kernel>,
        cost: Option<HitCost>,
        undecodable: u64,
        stray: u64,
    ) -> Interval {
        let cost = cost.map(|cost| cost.among(self.neighbours));
        let now_ns = Clock::now_monotonic_ns();
        let counters = kernel.zip(self.slot).map_or_else(Counters::default, |(kernel, slot)| {
            kernel.counters(slot).unwrap_or_else(|error| {
                tracing::warn!(%error, "what the kernel side lost is not known");
                Counters::default()
            })
        });
        let totals = self.table.totals();
        let alive = self.table.alive();
        let (born_before, died_before) = self.reported;
        self.reported = (totals.born, totals.died);
        if self.sampler.is_to_be_said() {
            tracing::warn!(
                pid = self.pid(),
                "it makes more spans than a process may have exported (max_per_second): of a part of its traces none \
                 are, which is counted (gotrace.spans.sampled_out)"
            );
        }
        let sites = self.sites(now_ns);
        let (leaks, leaks_refuted) = self.leaks();
        let suspects = self.suspects();
        let interval = Interval {
            resource: Arc::clone(&self.resource),
            pid: self.pid(),
            start_unix_nano: self.clock.unix_nano(self.reported_ns),
            end_unix_nano: self.clock.unix_nano(now_ns),
            alive,
            // Without a snapshot, goroutines older than the attachment are known once they have waited.
            alive_is_lower_bound: !self.table.is_seeded(),
            born: totals.born - born_before,
            died: totals.died - died_before,
            born_total: totals.born,
            died_total: totals.died,
            lost: self.lost(&counters, undecodable, stray),
            repaired: [("birth", totals.births_mended), ("death", totals.deaths_mended)]
                .into_iter()
                .filter(|(_, n)| *n > 0)
                .collect(),
            sampled_out: self.sampler.left_out(),
            events: Hit::NAMES
                .iter()
                .zip(counters.hits)
                .filter(|(_, n)| *n > 0)
                .map(|(k, n)| (*k, n))
                .collect(),
            waiting: self.table.waiting().map(|(reason, n)| (self.reason(reason), n)).collect(),
            waits: self.waits(kernel),
            schedule: self.kernel_histogram(kernel, ROW_SCHEDULE, Level::Full),
            syscalls: self.kernel_histogram(kernel, ROW_SYSCALL, Level::Full),
            sites,
            snapshots: self.snapshots.as_ref().map(Snapshots::durations).unwrap_or_default(),
            engine: self.engine(),
            level: self.level_name(),
            level_reason: self.lowered,
            levels: self.levels(line, now_ns),
            leaks,
            leaks_refuted,
            suspects,
            probe_cost_share: self.cost.interval(&counters.hits, self.watch.cpu_time_ns(), cost),
        };
        self.reported_ns = now_ns;
        interval
    }

    fn levels(&mut self, line: &LineConfig, now_ns: u64) -> Levels {
        // Where there never was a place for its probes, nobody wants any.
        let probes = self.slot.is_some() || self.lowered.is_some();
        Levels {
            wanted: if probes { line.level.name() } else { "sampled" },
            ns: self.times.until(now_ns),
            change: self.level_change.take(),
            budget: line.budget.map(Budget::share).filter(|_| probes),
        }
    }

    fn lost(&self, counters: &Counters, undecodable: u64, stray: u64) -> BTreeMap<&'static str, u64> {
        let totals = self.table.totals();
        let here = [
            ("undecodable", undecodable),
            ("stray", stray),
            ("implausible", self.implausible),
            ("death_repaired", totals.repaired),
            ("table_limit", totals.refused),
        ];
        Lost::NAMES.iter().copied().zip(counters.lost).chain(here).filter(|(_, n)| *n > 0).collect()
    }

    fn kernel_histogram(&self, kernel: Option<&Kernel>, row: u32, level: Level) -> Histogram {
        let Some(kernel) = kernel.filter(|_| self.highest >= level && self.slot.is_some()) else {
            return Histogram::default();
        };
        kernel.histogram(self.slot.unwrap_or_default(), row).unwrap_or_else(|error| {
            tracing::warn!(%error, "a histogram is not known");
            Histogram::default()
        })
    }

    /// The short waits, which the kernel side counted, and those that it sent.
    fn waits(&self, kernel: Option<&Kernel>) -> BTreeMap<Arc<str>, Histogram> {
        let mut waits: BTreeMap<Arc<str>, Histogram> = BTreeMap::new();
        if self.highest < Level::Waits {
            return waits;
        }
        for row in 0..REASON_ROWS.min(ROW_OTHER) {
            let Ok(reason) = u8::try_from(row) else { break };
            let histogram = self.kernel_histogram(kernel, row, Level::Waits);
            if histogram.count > 0 {
                waits.insert(self.reason(reason), histogram);
            }
        }
        for (reason, histogram) in self.table.waits().filter(|(reason, _)| u32::from(*reason) != ROW_SYSCALL)
        {
            waits.entry(self.reason(reason)).or_default().merge(histogram);
        }
        waits
    }

    fn sites(&mut self, now_ns: u64) -> Vec<Site> {
        let Self { table, symbolizer, .. } = self;
        let mut sites = Vec::new();
        let mut reasons = Vec::new();
        for stats in table.sites() {
            let (born_before, died_before) = stats.reported;
            stats.reported = (stats.born, stats.died);
            if stats.alive == 0 && stats.born == 0 && stats.died == 0 {
                continue;
            }
            let key = stats.key;
            reasons.push(stats.waiting.clone());
            sites.push(Site {
                entry: symbolizer.entry(key.entry_pc),
                created_by: (key.created_pc != 0).then(|| symbolizer.call(key.created_pc)),
                alive: stats.alive,
                born: stats.born - born_before,
                died: stats.died - died_before,
                born_total: stats.born,
                died_total: stats.died,
                waiting: BTreeMap::new(),
                waits: stats.waits(),
                lifetimes: stats.lifetimes(),
                oldest_is_lower_bound: stats.oldest_is_lower_bound,
                oldest_ns: stats.oldest_birth_ns.map(|birth_ns| now_ns.saturating_sub(birth_ns)),
            });
        }
        for (site, waiting) in sites.iter_mut().zip(reasons) {
            site.waiting = waiting.into_iter().map(|(reason, n)| (self.reason(reason), n)).collect();
        }
        sites.sort_by(|a, b| {
            b.alive.cmp(&a.alive).then(b.born_total.cmp(&a.born_total)).then_with(|| a.entry.cmp(&b.entry))
        });
        sites
    }

    /// What tracing this process came to.
    pub(super) fn summary(&self, last: &Interval, why: &str) -> Summary {
        let mut last = last.clone();
        last.start_unix_nano = self.clock.unix_nano(self.began_ns);
        let (cost_ns_per_event, share) = self.cost.whole_run();
        last.probe_cost_share = share;
        Summary {
            last,
            cost_ns_per_event,
            spans: self.spans,
            spans_dropped: BTreeMap::new(),
            ended: why.into(),
        }
    }
}
