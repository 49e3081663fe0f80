//! OTLP: spans, metrics and log records to a collector and into a file of JSON lines. The only room that names
//! opentelemetry.
//!
//! ```text
//! pipeline ──spans, intervals──▶ lane ──▶ thread: batch, encode ──▶ queue ──▶ tasks: send, repeat
//!                          │                                          └──▶ spool ──▶ tasks: send, repeat
//!                          └───▶ lane ──▶ thread: JSON lines ──▶ file
//! ```
//!
//! Every arrow is bounded ([`MAX_QUEUED_SPANS`], [`MAX_QUEUED_BYTES`], [`SpoolConfig`]) and every loss is counted by why
//! and by process ([`ExportStats`]). Spans and process metrics are `opentelemetry-proto` messages sent
//! by tonic or reqwest: the SDK knows one resource a provider, drops partial success on the floor and
//! takes no finished histograms. gotrace's own health does go through the SDK (`health`).

mod batch;
mod collector;
pub mod config;
mod convert;
mod dispatch;
mod drain;
mod encode;
mod file;
mod health;
mod histogram;
mod json_lines;
mod lane;
mod logs;
mod metrics;
mod pace;
mod requests;
mod retry;
mod room;
mod split;
pub mod spool;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
mod transport;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

pub use config::{ConfigError, Environment, ExportConfig, OtlpConfig, OtlpFlags, SpoolConfig, Temporality};
pub use dispatch::MAX_QUEUED_BYTES;
pub use file::OtlpFile;
pub use gotrace_model::metrics::admission::SeriesBounds;
pub use health::SDK_LOG_TARGET;
pub use lane::MAX_QUEUED_SPANS;
pub use stats::{Dropped, ExportStats, SpoolStats, WARNING_INTERVAL};
pub use transport::TransportError;

use collector::Collector;
use config::{DEFAULT_METRIC_INTERVAL, Signal, SignalConfig};
use dispatch::Outbox;
use file::FileWriter;
use gotrace_model::{Coverage, Interval, LogRecord, Resource, Span};
use health::Health;
use lane::{Gauge, Giver};
use pace::Pace;
use room::Room;
use spool::Spool;
use stats::Account;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use transport::Transport;

/// Of the time for the end, what the disk has at most.
const FOR_DISK: Duration = Duration::from_secs(1);

/// Takes spans and intervals and exports them in the background.
#[derive(Debug)]
pub struct Exporter {
    account: Arc<Account>,
    /// Whether there is a collector, and a file.
    ways: [bool; 2],
    /// `None` once it has ended, whoever still holds it.
    work: Mutex<Option<Work>>,
}

/// What runs in the background.
#[derive(Debug)]
struct Work {
    collector: Option<Lane>,
    file: Option<Lane>,
    dispatchers: JoinSet<()>,
    ending: watch::Sender<bool>,
    cancel: watch::Sender<Option<Instant>>,
    spool: Option<Spool>,
    health: Option<Health>,
}

/// Why what is given to the two ways is lost: while they work, and once they have ended.
const WHY: [[Dropped; 2]; 2] =
    [[Dropped::QueueFull, Dropped::Unreachable], [Dropped::FileQueueFull, Dropped::FileError]];

/// A lane with the thread at its end.
#[derive(Debug)]
struct Lane {
    giver: Giver,
    thread: JoinHandle<()>,
    ended: tokio::sync::oneshot::Receiver<()>,
}

/// The exporter could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file for JSON lines could not be made.
    #[error("cannot write spans to {path}: {error}; choose another file with --export")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The way to the collector could not be set up.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No thread could be made.
    #[error("cannot start a thread for the exporter: {0}")]
    Thread(std::io::Error),
}

impl Exporter {
    /// Starts the background work on `runtime`. Needs no collector to be there.
    ///
    /// # Errors
    /// When a file of the configuration cannot be read or made.
    pub fn start(config: ExportConfig, runtime: &tokio::runtime::Handle) -> Result<Self, StartError> {
        let _entered = runtime.enter();
        let account = Arc::new(Account::default());
        let (cancel, cancelled) = watch::channel(None);
        let (ending, ends) = watch::channel(false);
        let mut dispatchers = JoinSet::new();
        let ExportConfig { otlp, file, temporality, metric_interval, spool, series } = config;
        let every = metric_interval.unwrap_or(DEFAULT_METRIC_INTERVAL);
        let mut health = None;
        let queued_bytes = Arc::new(Room::new(dispatch::MAX_QUEUED_BYTES));
        let spool = match spool.filter(|_| otlp.is_some()) {
            None => None,
            Some(config) => Some(
                Spool::start(config, Arc::clone(&queued_bytes), Arc::clone(&account))
                    .map_err(StartError::Thread)?,
            ),
        };
        let collector = match otlp {
            None => None,
            Some(otlp) => {
                let mut outbox = |signal, config: &SignalConfig| -> Result<Outbox, StartError> {
                    let transport = Transport::new(signal, config)?;
                    if signal == Signal::Metrics && otlp.health {
                        health = Health::start(&transport, Arc::clone(&account), runtime);
                    }
                    let (outbox, work) = dispatch::dispatcher(
                        signal,
                        transport,
                        Arc::clone(&queued_bytes),
                        Arc::clone(&account),
                        (cancelled.clone(), ends.clone()),
                        spool.clone(),
                    );
                    dispatchers.spawn_on(work, runtime);
                    Ok(outbox)
                };
                let traces = otlp.traces.as_ref().map(|c| outbox(Signal::Traces, c)).transpose()?;
                let metrics = otlp.metrics.as_ref().map(|c| outbox(Signal::Metrics, c)).transpose()?;
                let logs = otlp.logs.as_ref().map(|c| outbox(Signal::Logs, c)).transpose()?;
                let work = Collector {
                    traces,
                    metrics,
                    logs,
                    pace: Pace::new(temporality, every, series),
                    account: Arc::clone(&account),
                };
                Some(Lane::start("gotrace-otlp", move |lane| work.run(lane))?)
            }
        };
        let file = match file {
            None => None,
            Some(path) => {
                let pace = Pace::new(temporality, every, series);
                let writer = FileWriter::create(&path, pace, Arc::clone(&account))
                    .map_err(|error| StartError::File { path: path.display().to_string(), error })?;
                Some(Lane::start("gotrace-export", move |lane| writer.run(lane))?)
            }
        };
        let ways = [collector.is_some(), file.is_some()];
        let work = Work { collector, file, dispatchers, ending, cancel, spool, health };
        Ok(Self { account, ways, work: Mutex::new(Some(work)) })
    }

    fn work(&self) -> MutexGuard<'_, Option<Work>> {
        // Its parts are whole whatever happened while it was held.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives something to each way that there is; what it does not take is lost for that reason.
    fn give(&self, mut take: impl FnMut(Option<&Lane>, Dropped)) {
        let work = self.work();
        let lanes = work.as_ref().map(|work| [&work.collector, &work.file]);
        for (way, [full, ended]) in WHY.into_iter().enumerate().filter(|(way, _)| self.ways[*way]) {
            match lanes {
                Some(lanes) => take(lanes[way].as_ref(), full),
                None => take(None, ended),
            }
        }
    }

    /// Takes finished spans. Never blocks; what does not fit is counted.
    pub fn spans(&self, batch: Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let batch = Arc::new(batch);
        self.give(|lane, why| {
            let lost = |of: &Arc<Resource>, n: usize| self.account.dropped(Signal::Traces, why, of, n as u64);
            match lane {
                Some(lane) => lane.giver.spans(&batch, lost),
                None => batch.iter().for_each(|span| lost(span.resource(), 1)),
            }
        });
    }

    /// Takes a process's state. Never blocks; one that does not fit is made good by the next.
    pub fn interval(&self, interval: &Arc<Interval>) {
        self.give(|lane, _| {
            if let Some(lane) = lane {
                lane.giver.interval(interval);
            }
        });
    }

    /// Takes something that happened. Never blocks; what does not fit is counted.
    pub fn log(&self, record: &Arc<LogRecord>) {
        self.give(|lane, why| {
            if !lane.is_some_and(|lane| lane.giver.log(record)) {
                self.account.dropped(Signal::Logs, why, &record.resource, 1);
            }
        });
    }

    /// Takes the node's account of executions, which is told with gotrace's own health.
    pub fn coverage(&self, coverage: Coverage) {
        self.account.coverage(coverage);
    }

    /// The moment's account.
    #[must_use]
    pub fn stats(&self) -> ExportStats {
        self.account.stats()
    }

    /// Spans of one process that did not arrive, by why.
    #[must_use]
    pub fn spans_dropped_of(&self, resource: &Arc<Resource>) -> BTreeMap<&'static str, u64> {
        self.account.spans_dropped_of(resource)
    }

    /// Flushes and ends, whoever else still holds it; what is not out by the deadline, and what is given from now on, is
    /// counted. What waits to be tried again is tried at once. With a spool the collector has a little less, and the disk
    /// gets what it did not take.
    pub async fn shutdown(&self, deadline: Duration) -> ExportStats {
        let account = &self.account;
        let Some(work) = self.work().take() else { return account.stats() };
        let Work { collector, file, mut dispatchers, ending, cancel, spool, health } = work;
        let until = Instant::now() + deadline;
        ending.send_replace(true);
        let for_disk = if spool.is_some() { (deadline / 5).min(FOR_DISK) } else { Duration::ZERO };
        let network_until = until - for_disk;
        // Both lanes end at once, so that neither waits for the other.
        let lanes = [(collector, Dropped::Unreachable), (file, Dropped::FileError)]
            .map(|(lane, why)| lane.map(|lane| (lane.end(), why)));
        for ((ended, gauge), why) in lanes.into_iter().flatten() {
            if timeout_at(network_until, ended).await.is_err() {
                account.lost(Signal::Traces, why, gauge.spans() as u64);
            }
        }
        let all = async { while dispatchers.join_next().await.is_some() {} };
        if timeout_at(network_until, all).await.is_err() {
            cancel.send_replace(Some(until));
            // Cancelled ones end at their next step; they keep or count what they hold.
            while dispatchers.join_next().await.is_some() {}
        }
        if let Some(spool) = spool {
            // A disk that hangs is left alone.
            let _ = timeout_at(until, spool.close()).await;
        }
        if let Some(health) = health {
            health.end(until).await;
        }
        account.stats()
    }
}

impl Lane {
    fn start(name: &str, work: impl FnOnce(&lane::Taker) + Send + 'static) -> Result<Self, StartError> {
        let (giver, taker) = lane::lane();
        let (tell, ended) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                work(&taker);
                let _ = tell.send(());
            })
            .map_err(StartError::Thread)?;
        Ok(Self { giver, thread, ended })
    }

    /// Closes the lane. The thread ends by itself; one that hangs in the file system is left behind.
    fn end(self) -> (tokio::sync::oneshot::Receiver<()>, Gauge) {
        let Self { giver, thread, ended } = self;
        let gauge = giver.gauge();
        drop((giver, thread));
        (ended, gauge)
    }
}
