//! When a process's metrics are reported: at its first interval, then at most once in so much time, and
//! its last state in any case.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;

use super::{
    SeriesBounds,
    config::Temporality,
    metrics::{self, Metrics},
    split::split,
    stats::Account,
};
use gotrace_model::{Interval, Resource};

/// A report that is due, or a part of one.
pub(super) struct Due {
    /// The process.
    pub resource: Arc<Resource>,
    /// The request.
    pub request: ExportMetricsServiceRequest,
    /// Its points.
    pub points: u64,
}

/// Turns intervals into reports in time.
pub(super) struct Pace {
    metrics: Metrics,
    every_ns: u64,
    /// By the resource's process: the end of the last interval reported, and a later one that was not.
    processes: HashMap<u64, (u64, Option<Arc<Interval>>)>,
}

impl Pace {
    pub fn new(temporality: Temporality, every: Duration, bounds: SeriesBounds) -> Self {
        Self {
            metrics: Metrics::new(temporality, bounds),
            every_ns: u64::try_from(every.as_nanos()).unwrap_or(u64::MAX),
            processes: HashMap::new(),
        }
    }

    /// Takes an interval and gives what is due, of this process or of others.
    pub fn take(&mut self, interval: Arc<Interval>, account: &Account) -> Vec<Due> {
        let now = interval.end_unix_nano;
        let process = interval.resource.process();
        self.processes.entry(process).or_insert((0, None)).1 = Some(interval);
        let every_ns = self.every_ns;
        let mut due = Vec::new();
        for (last, waiting) in self.processes.values_mut() {
            if now.saturating_sub(*last) >= every_ns
                && let Some(interval) = waiting.take()
            {
                *last = interval.end_unix_nano;
                due.push(interval);
            }
        }
        // A process that was silent for three reports has ended.
        self.processes.retain(|_, (last, waiting)| {
            waiting.is_some() || now.saturating_sub(*last) < every_ns.saturating_mul(3).max(60_000_000_000)
        });
        due.into_iter().flat_map(|interval| self.report(&interval, account)).collect()
    }

    /// Gives the last state of all.
    pub fn finish(&mut self, account: &Account) -> Vec<Due> {
        let left: Vec<_> = self.processes.values_mut().filter_map(|(_, waiting)| waiting.take()).collect();
        left.into_iter().flat_map(|interval| self.report(&interval, account)).collect()
    }

    fn report(&mut self, interval: &Interval, account: &Account) -> Vec<Due> {
        let dropped: BTreeMap<_, _> = account.spans_dropped_of(&interval.resource);
        let (report, _) = self.metrics.report(interval, &dropped);
        account.brief(self.metrics.brief());
        split(report)
            .into_iter()
            .map(|metrics| Due {
                resource: Arc::clone(&interval.resource),
                points: metrics.scope_metrics.iter().flat_map(|s| &s.metrics).map(metrics::points).sum(),
                request: ExportMetricsServiceRequest { resource_metrics: vec![metrics] },
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::samples;

    #[test]
    fn the_first_and_the_last_state_are_reported_and_between_them_only_some() {
        let account = Account::default();
        let resource = samples::resource();
        let mut pace = Pace::new(Temporality::Cumulative, Duration::from_secs(3), SeriesBounds::default());
        let reported: Vec<usize> = (0..8)
            .map(|s| pace.take(Arc::new(samples::interval(&resource, s, Vec::new())), &account).len())
            .collect();
        assert_eq!(reported, [1, 0, 0, 1, 0, 0, 1, 0]);
        let last = pace.finish(&account);
        assert_eq!(last.len(), 1);
        assert!(last[0].points > 3);
        assert!(pace.finish(&account).is_empty());
    }

    #[test]
    fn a_process_that_fell_silent_is_reported_by_the_others_time() {
        let account = Account::default();
        let (a, b) = (samples::resource(), samples::resource());
        let mut pace = Pace::new(Temporality::Cumulative, Duration::from_secs(3), SeriesBounds::default());
        let mut take = |r, s| pace.take(Arc::new(samples::interval(r, s, Vec::new())), &account).len();
        assert_eq!((take(&a, 0), take(&a, 1), take(&b, 1)), (1, 0, 1));
        assert_eq!((take(&b, 2), take(&b, 3), take(&b, 4)), (0, 1, 1));
    }
}
