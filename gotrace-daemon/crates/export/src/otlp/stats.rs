//! What became of everything that was given to the exporter: sent, dropped and why, a process at a
//! time. Filled by the exporter's threads and tasks, read by the pipeline at any moment.
//!
//! Warnings pass here too: one at once, then at most one every [`WARNING_INTERVAL`], so that a
//! collector that is down does not fill the terminal.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::config::Signal;
use gotrace_model::{Coverage, Resource};

/// Processes with losses, beyond which those that have ended are forgotten.
const PROCESSES: usize = 1024;
/// Least time between two warnings of the same kind.
pub const WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// Why something did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// The exporter's memory was used up: the collector was slower than the target, or down.
    QueueFull,
    /// The collector took the request and refused these (partial success).
    Rejected,
    /// The collector refused the request with an error that no repetition mends.
    Refused,
    /// No answer, or only errors worth repeating, until the patience or the deadline was over.
    Unreachable,
    /// The spool on disk was full, and this the oldest.
    SpoolFull,
    /// A file of the spool was torn or changed.
    SpoolDamaged,
    /// The file's writer was slower than the target.
    FileQueueFull,
    /// The file could not be written.
    FileError,
}

impl Dropped {
    /// As outputs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::SpoolFull => "spool_full",
            Self::SpoolDamaged => "spool_damaged",
            Self::FileQueueFull => "file_queue_full",
            Self::FileError => "file_error",
        }
    }
}

/// A moment's account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExportStats {
    /// Spans that the collector acknowledged.
    pub spans_sent: u64,
    /// Spans written to the file.
    pub spans_written: u64,
    /// Spans that did not arrive, by why. Kinds with 0 are left out.
    pub spans_dropped: BTreeMap<&'static str, u64>,
    /// Metric points that the collector acknowledged.
    pub points_sent: u64,
    /// Metric points written to the file.
    pub points_written: u64,
    /// Metric points that did not arrive, by why; cumulative ones are made good by the next report.
    pub points_dropped: BTreeMap<&'static str, u64>,
    /// Log records that the collector acknowledged.
    pub logs_sent: u64,
    /// Log records written to the file.
    pub logs_written: u64,
    /// Log records that did not arrive, by why. Kinds with 0 are left out.
    pub logs_dropped: BTreeMap<&'static str, u64>,
    /// Processes without room for all of their series ([`super::SeriesBounds`]), at the moment.
    pub processes_brief: u64,
    /// Requests that the collector acknowledged.
    pub requests: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// The last trouble with the collector, for a status line; `None` when the last request went well.
    pub collector_trouble: Option<String>,
    /// The node's account of executions, which others keep; `None` where there is none.
    pub coverage: Option<Coverage>,
    /// What waits on disk; `None` without a spool.
    pub spool: Option<SpoolStats>,
    /// The file's first error. The command ends with exit code 1 when there is one.
    pub file_error: Option<String>,
}

/// What waits on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Where.
    pub directory: PathBuf,
    /// Bytes that its files may take.
    pub limit: u64,
    /// Bytes that its files take.
    pub bytes: u64,
    /// Spans in it.
    pub spans: u64,
    /// Metric points in it.
    pub points: u64,
    /// Log records in it.
    pub logs: u64,
    /// Why it cannot be used at the moment.
    pub trouble: Option<String>,
}

impl ExportStats {
    /// Spans that did not arrive, all reasons together.
    #[must_use]
    pub fn spans_dropped_total(&self) -> u64 {
        self.spans_dropped.values().sum()
    }
}

/// The account while it is being kept.
#[derive(Debug, Default)]
pub(super) struct Account {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stats: ExportStats,
    /// By the resource's process.
    by_process: HashMap<u64, (Arc<Resource>, BTreeMap<&'static str, u64>)>,
    last_warning: HashMap<&'static str, Instant>,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The account is a set of independent counters: a panic elsewhere leaves it usable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment's account.
    pub fn stats(&self) -> ExportStats {
        self.lock().stats.clone()
    }

    /// Spans of one process that did not arrive, by why.
    pub fn spans_dropped_of(&self, resource: &Arc<Resource>) -> BTreeMap<&'static str, u64> {
        self.lock()
            .by_process
            .get(&resource.process())
            .map(|(_, dropped)| dropped.clone())
            .unwrap_or_default()
    }

    /// Counts `count` spans or points of a process as not arrived.
    pub fn dropped(&self, signal: Signal, why: Dropped, resource: &Arc<Resource>, count: u64) {
        if count == 0 {
            return;
        }
        let mut inner = self.lock();
        if signal == Signal::Traces {
            *inner.stats.spans_dropped.entry(why.name()).or_default() += count;
            if inner.by_process.len() >= PROCESSES {
                // Those of whom nobody speaks any more have ended.
                inner.by_process.retain(|_, (resource, _)| Arc::strong_count(resource) > 1);
            }
            let (latest, by_why) = inner
                .by_process
                .entry(resource.process())
                .or_insert_with(|| (Arc::clone(resource), BTreeMap::new()));
            latest.clone_from(resource);
            *by_why.entry(why.name()).or_default() += count;
        } else if signal == Signal::Logs {
            *inner.stats.logs_dropped.entry(why.name()).or_default() += count;
        } else {
            *inner.stats.points_dropped.entry(why.name()).or_default() += count;
        }
    }

    /// Counts spans, points or records that did not arrive, of a process that is not known any more.
    pub fn lost(&self, signal: Signal, why: Dropped, count: u64) {
        if count == 0 {
            return;
        }
        let stats = &mut self.lock().stats;
        let by_why = match signal {
            Signal::Traces => &mut stats.spans_dropped,
            Signal::Metrics => &mut stats.points_dropped,
            Signal::Logs => &mut stats.logs_dropped,
        };
        *by_why.entry(why.name()).or_default() += count;
    }

    /// So many processes have no room for all of their series.
    pub fn brief(&self, processes: u64) {
        self.lock().stats.processes_brief = processes;
    }

    /// The node's account of executions now.
    pub fn coverage(&self, coverage: Coverage) {
        self.lock().stats.coverage = Some(coverage);
    }

    /// What waits on disk now.
    pub fn spool(&self, spool: SpoolStats) {
        self.lock().stats.spool = Some(spool);
    }

    /// Counts a request that the collector took.
    pub fn sent(&self, signal: Signal, count: u64) {
        let mut inner = self.lock();
        inner.stats.requests += 1;
        inner.stats.collector_trouble = None;
        match signal {
            Signal::Traces => inner.stats.spans_sent += count,
            Signal::Metrics => inner.stats.points_sent += count,
            Signal::Logs => inner.stats.logs_sent += count,
        }
    }

    /// Counts what the file took.
    pub fn written(&self, signal: Signal, count: u64) {
        let mut inner = self.lock();
        match signal {
            Signal::Traces => inner.stats.spans_written += count,
            Signal::Metrics => inner.stats.points_written += count,
            Signal::Logs => inner.stats.logs_written += count,
        }
    }

    /// Counts a repetition.
    pub fn retried(&self) {
        self.lock().stats.retries += 1;
    }

    /// Keeps the file's first error; `true` when this is it.
    pub fn file_failed(&self, error: String) -> bool {
        let mut inner = self.lock();
        let first = inner.stats.file_error.is_none();
        inner.stats.file_error.get_or_insert(error);
        first
    }

    /// Keeps trouble with the collector and warns of it, unless that was done a moment ago.
    pub fn trouble(&self, kind: &'static str, message: String) {
        self.warn(kind, &message);
        self.lock().stats.collector_trouble = Some(message);
    }

    /// Warns, unless that was done a moment ago.
    pub fn warn(&self, kind: &'static str, message: &str) {
        let now = Instant::now();
        let mut inner = self.lock();
        let due = inner
            .last_warning
            .get(kind)
            .is_none_or(|last| now.saturating_duration_since(*last) >= WARNING_INTERVAL);
        if due {
            inner.last_warning.insert(kind, now);
            tracing::warn!("{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_its_own_account() {
        let (a, b) = (Arc::new(Resource::default()), Arc::new(Resource::default()));
        let account = Account::default();
        account.dropped(Signal::Traces, Dropped::QueueFull, &a, 3);
        account.dropped(Signal::Traces, Dropped::Refused, &a, 2);
        account.dropped(Signal::Traces, Dropped::QueueFull, &b, 4);
        account.dropped(Signal::Metrics, Dropped::Refused, &b, 5);
        account.dropped(Signal::Traces, Dropped::FileError, &b, 0);
        let stats = account.stats();
        assert_eq!(stats.spans_dropped, BTreeMap::from([("queue_full", 7), ("refused", 2)]));
        assert_eq!(stats.spans_dropped_total(), 9);
        assert_eq!(stats.points_dropped, BTreeMap::from([("refused", 5)]));
        assert_eq!(account.spans_dropped_of(&b), BTreeMap::from([("queue_full", 4)]));
    }

    #[test]
    fn trouble_is_forgotten_when_a_request_goes_well() {
        let account = Account::default();
        account.trouble("connection", "down".into());
        assert_eq!(account.stats().collector_trouble.as_deref(), Some("down"));
        account.sent(Signal::Traces, 1);
        assert_eq!(account.stats().collector_trouble, None);
        assert!(account.file_failed("full".into()));
        assert!(!account.file_failed("again".into()));
        assert_eq!(account.stats().file_error.as_deref(), Some("full"));
    }
}
