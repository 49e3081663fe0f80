//! The state of a tracee, put together from its table and what the kernel side counted ([`Counted`]).

use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::{Histogram, Hit, Lost, REASON_ROWS, ROW_OTHER, ROW_SCHEDULE, ROW_SYSCALL};

use super::{Counted, Facts, Lowered, Names, Tracee};
use gotrace_kernel::HitCost;
use gotrace_model::{Interval, Level, Levels, Site, Summary};

impl Tracee {
    /// The state now, and what changed since the last call.
    pub(crate) fn interval(&mut self, counted: &Counted, names: &dyn Names) -> Interval {
        let now_ns = counted.now_ns;
        let totals = self.table.totals();
        let alive = self.table.alive();
        let (born_before, died_before) =
            std::mem::replace(&mut self.facts.reported, (totals.born, totals.died));
        let sites = self.sites(now_ns, names);
        let (leaks, suspects) = self.leaks_and_suspects(names);
        let waits_at = Arc::new(self.places(names));
        let collector = self.collector.told(&mut self.symbols, names, &self.facts.clock);
        let requests = self.requests(now_ns, names);
        let mut hits = [0; Hit::COUNT];
        hits.iter_mut().zip(&counted.hits).for_each(|(hits, counted)| *hits = *counted);
        let cost = counted.cost_ns.map(|(emulated_ns, stepped_ns)| HitCost {
            emulated_ns,
            stepped_ns,
            neighbour_ns: 0.0,
        });
        let (process_cpu_ns, process_cpu_total_ns) = self.facts.cost.used(counted.cpu_ns);
        let Facts { clock, reported_ns, sampler, snapshots, mode, .. } = &self.facts;
        let interval = Interval {
            resource: Arc::clone(&self.resource),
            pid: self.pid(),
            start_unix_nano: clock.unix_nano(*reported_ns),
            end_unix_nano: clock.unix_nano(now_ns),
            alive,
            // Without a snapshot, goroutines older than the attachment are known once they have waited.
            alive_is_lower_bound: !self.table.is_seeded() || self.table.leaves_out(),
            born: totals.born.saturating_sub(born_before),
            died: totals.died.saturating_sub(died_before),
            born_total: totals.born,
            died_total: totals.died,
            lost: self.lost(counted),
            repaired: [("birth", totals.births_mended), ("death", totals.deaths_mended)]
                .into_iter()
                .filter(|(_, n)| *n > 0)
                .collect(),
            sampled_out: sampler.left_out(),
            events: Hit::NAMES.iter().zip(hits).filter(|(_, n)| *n > 0).map(|(k, n)| (*k, n)).collect(),
            waiting: self.table.waiting().map(|(reason, n)| (self.reason(reason), n)).collect(),
            waits: self.waits(counted),
            waits_at,
            schedule: counted.histogram(ROW_SCHEDULE),
            syscalls: counted.histogram(ROW_SYSCALL),
            sites,
            snapshots: *snapshots,
            engine: self.engine(),
            level: self.level_name(),
            level_reason: mode.lowered.map(Lowered::name),
            levels: self.levels(now_ns),
            leaks,
            leaks_refuted: self.findings.refuted,
            suspects,
            collector,
            requests,
            process_cpu_ns,
            process_cpu_total_ns,
            probe_cost_share: self.facts.cost.interval(&hits, counted.cpu_ns, cost),
        };
        self.facts.mode.change = None;
        self.facts.reported_ns = now_ns;
        interval
    }

    pub(super) fn levels(&self, now_ns: u64) -> Levels {
        let Facts { probes, mode, settings, .. } = &self.facts;
        // Where there never was a place for its probes, nobody wants any.
        let probes = *probes || mode.lowered.is_some();
        Levels {
            wanted: if probes { settings.level.name() } else { "sampled" },
            ns: mode.times(now_ns),
            change: mode.change.map(Into::into),
            budget: settings.budget.filter(|_| probes),
        }
    }

    pub(super) fn lost(&self, counted: &Counted) -> BTreeMap<&'static str, u64> {
        let totals = self.table.totals();
        let here = [
            ("undecodable", counted.undecodable),
            ("stray", counted.stray),
            ("implausible", self.facts.implausible),
            ("death_repaired", totals.repaired),
            ("table_limit", totals.refused),
        ];
        let kernel = Lost::NAMES.iter().copied().zip(counted.lost.iter().copied());
        kernel.chain(here).filter(|(_, n)| *n > 0).collect()
    }

    /// The short waits, which the kernel side counted, and those that it sent.
    pub(super) fn waits(&self, counted: &Counted) -> BTreeMap<Arc<str>, Histogram> {
        let mut waits: BTreeMap<Arc<str>, Histogram> = BTreeMap::new();
        if self.highest() < Level::Waits {
            return waits;
        }
        for (row, histogram) in &counted.histograms {
            if u32::from(*row) < REASON_ROWS.min(ROW_OTHER) {
                waits.insert(self.reason(*row), *histogram);
            }
        }
        for (reason, histogram) in self.table.waits().filter(|(reason, _)| u32::from(*reason) != ROW_SYSCALL)
        {
            waits.entry(self.reason(reason)).or_default().merge(histogram);
        }
        waits
    }

    fn sites(&mut self, now_ns: u64, names: &dyn Names) -> Vec<Site> {
        let counts = !self.is_sampled() && self.level() >= Level::Waits;
        let Self { table, symbols, .. } = self;
        let mut sites = Vec::new();
        let mut reasons = Vec::new();
        for stats in table.sites() {
            let (born_before, died_before) = std::mem::replace(&mut stats.reported, (stats.born, stats.died));
            if stats.alive == 0 && stats.born == 0 && stats.died == 0 {
                continue;
            }
            let cpu = stats.cpu.since(std::mem::replace(&mut stats.cpu_reported, stats.cpu));
            let key = stats.key;
            reasons.push(stats.waiting.clone());
            sites.push(Site {
                entry: symbols.entry(key.entry_pc, names),
                created_by: symbols.created_by(key.created_pc, names),
                alive: stats.alive,
                born: stats.born.saturating_sub(born_before),
                died: stats.died.saturating_sub(died_before),
                born_total: stats.born,
                died_total: stats.died,
                // Below level waits nobody counts.
                cpu_ns: (stats.cpu.cpu_ns > 0 && (cpu.cpu_ns > 0 || counts)).then_some(cpu.cpu_ns),
                cpu_total_ns: stats.cpu.cpu_ns,
                throttled_ns: cpu.throttled_ns,
                throttled_total_ns: stats.cpu.throttled_ns,
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

    /// What tracing this process came to; `last`: its last report.
    #[must_use]
    pub fn summary(&self, last: &Interval, why: &str) -> Summary {
        let mut last = last.clone();
        last.start_unix_nano = self.began_unix_nano();
        let (cost_ns_per_event, share) = self.facts.cost.whole_run();
        last.probe_cost_share = share;
        Summary {
            last,
            cost_ns_per_event,
            spans: self.facts.spans,
            spans_dropped: BTreeMap::new(),
            points_dropped: BTreeMap::new(),
            logs_dropped: BTreeMap::new(),
            ended: why.into(),
        }
    }
}

impl Counted {
    fn histogram(&self, row: u32) -> Histogram {
        let found = self.histograms.iter().find(|(at, _)| u32::from(*at) == row);
        found.map(|(_, histogram)| *histogram).unwrap_or_default()
    }
}
