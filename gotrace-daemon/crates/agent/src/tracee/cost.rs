//! What the probes of one process cost it: hits, as the kernel side counts them, times what calibration
//! found for one, over the CPU time that the process used.
//!
//! An estimate, and said to be one wherever it is shown. One that comes to more than was used is cut to that: a share
//! of 1 stands for "at most all of it". Unknown stays `None`: before the calibration has
//! ended, when it failed, and over a time in which the process used no CPU time that its clock ticks tell.

use gotrace_common::Hit;

use gotrace_go::{Event, Plan, requests::Moment};
use serde::{Deserialize, Serialize};

use super::serial;
use gotrace_kernel::HitCost;

/// What counting a switch of a traced thread takes, as a share of an emulated hit: it traps nothing. The program's own
/// time on 6.18 was 145 to 245 ns beside hits of 706 to 758 ns (`kernel.bpf_stats_enabled`, which is part of it).
const SWITCH_SHARE: f64 = 0.3;

/// A process's account.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ProbeCost {
    /// Hits of which kinds are single-stepped.
    #[serde(with = "serial::kinds")]
    stepped: [bool; Hit::COUNT],
    began_cpu_ns: Option<u64>,
    hits: u64,
    cost_ns: Option<f64>,
    cpu_ns: Option<u64>,
}

impl ProbeCost {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut stepped = [false; Hit::COUNT];
        for probe in plan.probes.iter().filter(|p| !p.emulated) {
            stepped[hit_of(probe.event) as usize] = true;
        }
        Self { stepped, ..Self::default() }
    }

    /// What so many hits took, by the least level that has their probes; those of requests are the last.
    pub(crate) fn by_level(&self, hits: &[u64; Hit::COUNT], cost: HitCost) -> [f64; 4] {
        let mut by_level = [0.0; 4];
        for (hit, (count, of_one)) in hits.iter().zip(self.of_each(cost)).enumerate() {
            let level = match hit {
                hit if hit == Hit::Create as usize || hit == Hit::Exit as usize => 0,
                hit if [Hit::Park, Hit::Run, Hit::Switch].iter().any(|h| *h as usize == hit) => 1,
                hit if hit >= Hit::RequestBegin as usize => 3,
                hit if hit >= Hit::StopWorld as usize => 0,
                _ => 2,
            };
            by_level[level] += *count as f64 * of_one;
        }
        by_level
    }

    /// What a hit of each kind takes.
    fn of_each(&self, cost: HitCost) -> [f64; Hit::COUNT] {
        let HitCost { emulated_ns, stepped_ns, .. } = cost;
        let mut of_each = self.stepped.map(|stepped| if stepped { stepped_ns } else { emulated_ns });
        of_each[Hit::Switch as usize] = SWITCH_SHARE * emulated_ns;
        of_each
    }

    /// CPU time that the process has used since the last call of [`Self::interval`], and since the beginning, when it
    /// has used `cpu_ns` in all; at its end, what is known.
    pub(crate) fn used(&self, cpu_ns: Option<u64>) -> (Option<u64>, Option<u64>) {
        let now = cpu_ns.or(self.cpu_ns);
        let since = |before: Option<u64>| now.zip(before).map(|(now, before)| now.saturating_sub(before));
        (since(self.cpu_ns), since(self.began_cpu_ns))
    }

    /// The probes are in place.
    pub(crate) fn begin(&mut self, cpu_ns: Option<u64>) {
        self.began_cpu_ns = cpu_ns;
        self.cpu_ns = cpu_ns;
    }

    /// The share of the CPU time since the last call that the probes took. `hits` and `cpu_ns` are
    /// totals.
    pub(crate) fn interval(
        &mut self,
        hits: &[u64; Hit::COUNT],
        cpu_ns: Option<u64>,
        cost: Option<HitCost>,
    ) -> Option<f64> {
        let cost_ns = cost.map(|cost| {
            hits.iter().zip(self.of_each(cost)).map(|(n, of_one)| *n as f64 * of_one).sum::<f64>()
        });
        let share = match (cost_ns, self.cost_ns, cpu_ns, self.cpu_ns) {
            (Some(now), Some(before), Some(cpu), Some(cpu_before)) if cpu > cpu_before => {
                Some(((now - before).max(0.0) / (cpu - cpu_before) as f64).min(1.0))
            }
            // Known for the first time: since the beginning.
            (Some(now), None, Some(cpu), _) => share(now, self.began_cpu_ns, cpu),
            _ => None,
        };
        self.hits = hits.iter().sum();
        self.cost_ns = cost_ns;
        // At its end a process has no CPU time any more; what it had is known.
        self.cpu_ns = cpu_ns.or(self.cpu_ns);
        share
    }

    /// Nanoseconds a hit, and the share of the CPU time, since the beginning.
    pub(crate) fn whole_run(&self) -> (Option<f64>, Option<f64>) {
        let of_one = self.cost_ns.filter(|_| self.hits > 0).map(|cost| cost / self.hits as f64);
        let share = self.cost_ns.zip(self.cpu_ns).and_then(|(cost, cpu)| share(cost, self.began_cpu_ns, cpu));
        (of_one, share)
    }
}

fn share(cost_ns: f64, began_cpu_ns: Option<u64>, cpu_ns: u64) -> Option<f64> {
    let used_ns = cpu_ns.checked_sub(began_cpu_ns?)?;
    (used_ns > 0).then(|| (cost_ns / used_ns as f64).min(1.0))
}

/// How the kernel side counts a probe's hits.
fn hit_of(event: Event) -> Hit {
    match event {
        Event::Create | Event::CreateCoroutine => Hit::Create,
        Event::Exit => Hit::Exit,
        Event::Park => Hit::Park,
        Event::Run => Hit::Run,
        Event::Ready => Hit::Ready,
        Event::Netpoll => Hit::Netpoll,
        Event::InjectList => Hit::InjectList,
        Event::Yield => Hit::Yield,
        Event::Coroutine => Hit::Coroutine,
        Event::SyscallEnter => Hit::SyscallEnter,
        Event::SyscallExit => Hit::SyscallExit,
        Event::StopWorld => Hit::StopWorld,
        Event::StartWorld | Event::WorldStarted => Hit::StartWorld,
        Event::AssistBegin => Hit::AssistBegin,
        Event::AssistEnd => Hit::AssistEnd,
        Event::Request(_, Moment::Begin) => Hit::RequestBegin,
        Event::Request(_, Moment::End) => Hit::RequestEnd,
        Event::Request(..) => Hit::RequestStep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Option<HitCost> =
        Some(HitCost { emulated_ns: 1000.0, stepped_ns: 10_000.0, neighbour_ns: 0.0 });

    fn hits(create: u64, park: u64) -> [u64; Hit::COUNT] {
        let mut hits = [0; Hit::COUNT];
        hits[Hit::Create as usize] = create;
        hits[Hit::Park as usize] = park;
        hits
    }

    #[test]
    fn slow_probes_weigh_more() {
        let mut cost = ProbeCost::default();
        cost.stepped[Hit::Park as usize] = true;
        cost.begin(Some(0));
        assert_eq!(cost.interval(&hits(100, 10), Some(2_000_000), COST), Some(0.1));
        assert_eq!(cost.interval(&hits(200, 10), Some(3_000_000), COST), Some(0.1));
        assert_eq!(cost.whole_run(), (Some(300_000.0 / 210.0), Some(0.1)));
    }

    #[test]
    fn a_switch_is_no_trap() {
        let mut cost = ProbeCost::default();
        cost.begin(Some(1_000_000));
        let mut switches = hits(0, 0);
        switches[Hit::Switch as usize] = 1000;
        assert_eq!(cost.used(Some(3_000_000)), (Some(2_000_000), Some(2_000_000)));
        assert_eq!(cost.interval(&switches, Some(3_000_000), COST), Some(0.15));
        assert_eq!(cost.by_level(&switches, COST.expect("known")), [0.0, 300_000.0, 0.0, 0.0]);
        assert_eq!(cost.used(Some(4_000_000)), (Some(1_000_000), Some(3_000_000)));
        assert_eq!(cost.used(None), (Some(0), Some(2_000_000)));
    }

    #[test]
    fn no_more_is_taken_than_was_used() {
        let mut cost = ProbeCost::default();
        cost.begin(Some(0));
        assert_eq!(cost.interval(&hits(10_300, 0), Some(10_000_000), COST), Some(1.0));
        assert_eq!(cost.whole_run(), (Some(1000.0), Some(1.0)));
        assert_eq!(cost.interval(&hits(20_600, 0), Some(20_000_000), COST), Some(1.0));
        assert_eq!(cost.whole_run(), (Some(1000.0), Some(1.0)));
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let mut cost = ProbeCost::default();
        cost.begin(Some(500));
        assert_eq!(cost.interval(&hits(5, 0), Some(1500), None), None);
        assert_eq!(cost.whole_run(), (None, None));
        // No tick of the process's clock: its share is not known, the cost of a hit is.
        assert_eq!(cost.interval(&hits(5, 0), Some(500), COST), None);
        assert_eq!(cost.whole_run(), (Some(1000.0), None));
        // Gone: the last reading holds for the whole run.
        assert_eq!(cost.interval(&hits(6, 0), Some(60_500), COST), Some(1000.0 / 60_000.0));
        assert_eq!(cost.interval(&hits(6, 0), None, COST), None);
        assert_eq!(cost.whole_run(), (Some(1000.0), Some(0.1)));
    }
}
