//! What goroutines have used of the processors, and creation sites with them; and for how long they were throttled.
//!
//! The kernel side tells a goroutine's total: with each wait that it tells, at its exit, and else each time that it has
//! grown by a millisecond ([`gotrace_common::CPU_TOLD_NS`]). A site's figure is therefore at most that much too small
//! for each of its goroutines that live.

use serde::{Deserialize, Serialize};

use super::{SiteStats, Table, UNKNOWN_SITE};
use crate::decode::Cpu;

/// What was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUse {
    /// Processor time.
    pub cpu_ns: u64,
    /// For how long threads stood still, as the CPU quota was used up.
    pub throttled_ns: u64,
}

impl CpuUse {
    fn plus(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            throttled_ns: self.throttled_ns.saturating_add(other.throttled_ns),
        }
    }

    /// What it is more than before.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            throttled_ns: self.throttled_ns.saturating_sub(before.throttled_ns),
        }
    }
}

/// Of one goroutine.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// The kernel side's total.
    told: CpuUse,
    /// What it was before the kernel side began anew.
    before: CpuUse,
}

impl Used {
    pub(super) fn total(self) -> CpuUse {
        self.before.plus(self.told)
    }
}

/// All of it as values that can be written and read, in parts of any size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTimes {
    /// Goroutines: id, the kernel side's total, what it was before that began anew.
    pub goroutines: Vec<(u64, CpuUse, CpuUse)>,
    /// Sites by number: the sum, and what of it was reported.
    pub sites: Vec<(u32, CpuUse, CpuUse)>,
}

impl Table {
    pub(super) fn cpu_used(&mut self, cpu: &Cpu) {
        if self.is_full_for(cpu.goid) {
            // Whose it is, and where that came from, is not kept.
            return;
        }
        let site = self.meet(cpu.goid, cpu.time_ns).site;
        self.used(cpu.goid, site, CpuUse { cpu_ns: cpu.cpu_ns, throttled_ns: cpu.throttled_ns });
    }

    /// A goroutine of this site has used so much, all in all; 0 where that is not known. Where the site is not known yet,
    /// it is no site's: what a site has used never shrinks.
    pub(super) fn used(&mut self, goid: u64, site: u32, total: CpuUse) {
        if total == CpuUse::default() {
            return;
        }
        let used = self.cpu.entry(goid).or_default();
        let new = total.since(used.told);
        used.told = used.told.plus(new);
        if site != UNKNOWN_SITE {
            self.site_has_used(site, new);
        }
    }

    fn site_has_used(&mut self, site: u32, new: CpuUse) {
        let site = self.site_mut(site);
        site.cpu = site.cpu.plus(new);
    }

    /// A goroutine whose site was not known is of this one.
    pub(super) fn place_cpu(&mut self, goid: u64, site: u32) {
        if let Some(total) = self.cpu.get(&goid).map(|used| used.total()) {
            self.site_has_used(site, total);
        }
    }

    /// A goroutine of this site has ended. Gives what it has used; 0 where that is not known.
    pub(super) fn end_cpu(&mut self, goid: u64, site: u32, total: CpuUse) -> CpuUse {
        self.used(goid, site, total);
        if site == UNKNOWN_SITE {
            self.place_cpu(goid, site);
        }
        self.cpu.remove(&goid).map_or_else(CpuUse::default, Used::total)
    }

    /// The kernel side begins anew with what it counts of each goroutine.
    pub(super) fn forget_cpu(&mut self) {
        for used in self.cpu.values_mut() {
            *used = Used { told: CpuUse::default(), before: used.total() };
        }
    }

    /// What goroutines and sites have used, in parts of so many goroutines.
    pub fn cpu_times(&self, part: usize, mut each: impl FnMut(CpuTimes)) {
        let none = CpuUse::default();
        let sites = (0..).zip(&self.sites).filter(|(_, site)| site.cpu != none || site.cpu_reported != none);
        let mut next = CpuTimes {
            goroutines: Vec::new(),
            sites: sites.map(|(n, site)| (n, site.cpu, site.cpu_reported)).collect(),
        };
        for (goid, Used { told, before }) in &self.cpu {
            next.goroutines.push((*goid, *told, *before));
            if next.goroutines.len() == part {
                each(std::mem::take(&mut next));
            }
        }
        if next != CpuTimes::default() {
            each(next);
        }
    }

    /// Puts such a part in.
    pub fn restore_cpu(&mut self, times: &CpuTimes) {
        for &(goid, told, before) in &times.goroutines {
            self.cpu.insert(goid, Used { told, before });
        }
        for &(site, cpu, cpu_reported) in &times.sites {
            let site: &mut SiteStats = self.site_mut(site);
            (site.cpu, site.cpu_reported) = (cpu, cpu_reported);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decode::{Create, Event, Exit},
        table::{Ended, Look, Output, Sighting},
    };

    const MS: u64 = 1_000_000;

    struct Fed {
        table: Table,
        out: Vec<Output>,
    }

    impl Fed {
        fn new() -> Self {
            Self { table: Table::new(1000 * MS), out: Vec::new() }
        }

        fn create(&mut self, goid: u64, entry_pc: u64) {
            let create = Create {
                process: 1,
                time_ns: 10 * MS,
                goid,
                parent_goid: 1,
                created_pc: 0x100,
                entry_pc,
                coroutine: false,
            };
            self.table.apply(&Event::Create(create), &mut self.out);
        }

        fn told(&mut self, goid: u64, cpu_ns: u64) {
            self.table.apply(
                &Event::Cpu(Cpu { process: 1, time_ns: 20 * MS, goid, cpu_ns, throttled_ns: cpu_ns / 4 }),
                &mut self.out,
            );
        }

        fn exit(&mut self, goid: u64, cpu_ns: u64) -> Option<u64> {
            let exit = Exit {
                process: 1,
                time_ns: 30 * MS,
                goid,
                wait_total_ns: 0,
                schedule_total_ns: 0,
                wait_count: 0,
                cpu_ns,
                throttled_ns: cpu_ns / 4,
                blocked_total_ns: 0,
                syscall_total_ns: 0,
                whole: false,
            };
            self.table.apply(&Event::Exit(exit), &mut self.out);
            match self.out.pop()? {
                Output::Ended(Ended { cpu, .. }) => {
                    assert_eq!(cpu.throttled_ns, cpu.cpu_ns / 4);
                    Some(cpu.cpu_ns)
                }
                Output::Waited(_) => None,
            }
        }

        fn of(&mut self, entry_pc: u64) -> u64 {
            let mut sites = self.table.sites().iter();
            sites.find(|site| site.key.entry_pc == entry_pc).map_or(0, |site| {
                assert_eq!(site.cpu.throttled_ns, site.cpu.cpu_ns / 4);
                site.cpu.cpu_ns
            })
        }
    }

    #[test]
    fn what_is_told_is_a_total() {
        let mut fed = Fed::new();
        fed.create(7, 0x200);
        fed.create(8, 0x200);
        fed.told(7, 2 * MS);
        fed.told(7, 5 * MS);
        fed.told(8, MS);
        assert_eq!(fed.of(0x200), 6 * MS);
        // From two threads at once, the larger total first.
        fed.told(7, 4 * MS);
        assert_eq!((fed.exit(7, 5 * MS + 8), fed.of(0x200)), (Some(5 * MS + 8), 6 * MS + 8));
        assert_eq!((fed.exit(8, 0), fed.of(0x200)), (Some(MS), 6 * MS + 8), "an exit that does not tell");
        assert!(fed.table.cpu.is_empty());
    }

    #[test]
    fn what_a_site_has_used_never_shrinks() {
        let mut fed = Fed::new();
        // Met before it is known where it comes from.
        fed.told(5, 3 * MS);
        fed.told(6, MS);
        assert_eq!((fed.of(0), fed.of(0x300)), (0, 0));
        let seen = |goid| Sighting { goid, parent_goid: 1, created_pc: 0x100, entry_pc: 0x300, wait: None };
        fed.table.reconcile(Look { began_ns: 20 * MS, ended_ns: 21 * MS, complete: true }, &[seen(5)]);
        assert_eq!((fed.of(0), fed.of(0x300)), (0, 3 * MS));
        fed.told(5, 4 * MS);
        assert_eq!(fed.of(0x300), 4 * MS);
        // One that is never placed is counted when it ends.
        assert_eq!((fed.exit(6, 2 * MS), fed.of(0)), (None, 2 * MS));
    }

    #[test]
    fn the_kernel_side_may_begin_anew() {
        let mut fed = Fed::new();
        fed.create(7, 0x200);
        fed.told(7, 5 * MS);
        fed.table.forget_parks();
        fed.told(7, MS);
        fed.told(7, 2 * MS);
        assert_eq!((fed.of(0x200), fed.exit(7, 3 * MS)), (7 * MS, Some(8 * MS)));
        assert_eq!(fed.of(0x200), 8 * MS);
    }

    #[test]
    fn it_is_written_and_read_in_parts() {
        let mut fed = Fed::new();
        for goid in 10..15 {
            fed.create(goid, 0x200 + goid % 2);
            fed.told(goid, goid * MS);
        }
        let mut parts = Vec::new();
        fed.table.cpu_times(2, |part| parts.push(part));
        assert_eq!(parts.iter().map(|part| part.goroutines.len()).collect::<Vec<_>>(), [2, 2, 1]);
        let mut read = Fed { table: Table::from_state(fed.table.state()), out: Vec::new() };
        fed.table.goroutines().for_each(|g| read.table.restore(&g));
        parts.iter().for_each(|part| read.table.restore_cpu(part));
        for entry_pc in [0x200, 0x201] {
            assert_eq!(read.of(entry_pc), fed.of(entry_pc));
        }
        assert_eq!((read.exit(12, 0), read.exit(13, 20 * MS)), (Some(12 * MS), Some(20 * MS)));
        // Numbers that there are not, and more than there can be.
        let none = CpuUse::default();
        read.table
            .restore_cpu(&CpuTimes { goroutines: vec![(1, none, none)], sites: vec![(99, none, none)] });
        read.told(10, u64::MAX);
        read.told(14, u64::MAX);
        assert_eq!(read.table.sites().iter().map(|site| site.cpu.cpu_ns).max(), Some(u64::MAX));
    }
}
