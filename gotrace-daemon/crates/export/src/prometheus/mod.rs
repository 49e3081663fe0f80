//! The daemon's pages: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever starts and stops it.
//!
//! Input: each process's last [`Interval`], what the line says of itself ([`Agent`]), the exporter's account.
//! Output: text over HTTP. Names are those of the OTLP metrics by OpenTelemetry's usual rule for Prometheus.
//! Refuses to let the line wait: the page is made when it is asked for, from what was left here.

mod page;
mod server;
mod socket;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

pub use page::{MAX_SERIES, MAX_SERIES_OF_NODE};
pub use server::{ServeError, Server, Site};
pub use socket::SocketError;

use gotrace_model::{
    Coverage, Interval, Resource,
    metrics::admission::{Admitted, Room, SeriesBounds},
};

use crate::{history::History, otlp::ExportStats};
use page::Shown;

/// What gotrace says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agent {
    /// Processes traced now, by engine.
    pub processes: BTreeMap<&'static str, u64>,
    /// Totals since the beginning, by name of their metric without `_total`, with their help.
    pub totals: Vec<(&'static str, &'static str, u64)>,
    /// Figures of now, by name of their metric, with their help.
    pub gauges: Vec<(&'static str, &'static str, u64)>,
    /// The account of executions; `None` where there is none.
    pub coverage: Option<Coverage>,
    /// Its long-lived threads by name, and whether each moves.
    pub threads: BTreeMap<&'static str, bool>,
    /// Files, or processes of their own, that have probes.
    pub probed_files: u64,
    /// Of the exporter; `None` when nothing is exported.
    pub export: Option<ExportStats>,
    /// gotrace's own CPU time, in seconds.
    pub cpu_seconds: f64,
    /// gotrace's own resident memory.
    pub resident_bytes: u64,
}

/// Whether gotrace does what it is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// It does not: why.
    Bad(String),
}

/// Whatever knows how gotrace is.
pub trait Watched: Send + Sync {
    /// What it says of itself now.
    fn agent(&self) -> Agent;
    /// What the exporter dropped of a process's spans, by why.
    fn spans_dropped(&self, resource: &Arc<Resource>) -> BTreeMap<&'static str, u64>;
    /// Whether the line moves.
    fn live(&self) -> Health;
    /// Whether processes are traced, and what comes of it gets out or is kept.
    fn ready(&self) -> Health;
}

/// The processes' last states. Shared by the line, which fills it, and the server.
#[derive(Debug)]
pub struct Board {
    /// By the resource's process. Held for as long as it takes to put a state in, or to take them out.
    processes: Mutex<BTreeMap<u64, Kept>>,
    /// Which series there are; only what makes the page takes it, and may hold it long.
    series: Mutex<(Room, BTreeMap<u64, Admitted>)>,
}

/// A process's last state, how it came to it, and who follows it.
#[derive(Debug)]
struct Kept {
    interval: Arc<Interval>,
    history: History,
    followers: Vec<Follower>,
}

/// Reports that may wait for one who follows a process.
const MAX_WAITING: usize = 16;

/// A report for one who follows a process.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub interval: Arc<Interval>,
    /// Reports before it that there was no room for.
    pub missed: u64,
}

/// One who follows a process.
#[derive(Debug)]
struct Follower {
    to: Sender<Followed>,
    missed: u64,
}

impl Follower {
    /// Hands it a report; whether it still is there.
    fn show(&mut self, interval: &Arc<Interval>) -> bool {
        match self.to.try_send(Followed { interval: Arc::clone(interval), missed: self.missed }) {
            Ok(()) => self.missed = 0,
            Err(TrySendError::Full(_)) => self.missed += 1,
            Err(TrySendError::Closed(_)) => return false,
        }
        true
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new(SeriesBounds::ROUTES)
    }
}

impl Board {
    /// With series of so many routes of requests a process ([`SeriesBounds::routes`]).
    #[must_use]
    pub fn new(routes: usize) -> Self {
        Self { processes: Mutex::default(), series: Mutex::new((page::room(routes), BTreeMap::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Kept>> {
        // Whole values: a panic elsewhere leaves none half written.
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process's state.
    pub fn show(&self, interval: &Arc<Interval>) {
        let mut processes = self.lock();
        let kept = processes.entry(interval.resource.process()).or_insert_with(|| Kept {
            interval: Arc::clone(interval),
            history: History::default(),
            followers: Vec::new(),
        });
        kept.interval = Arc::clone(interval);
        kept.history.add(interval);
        kept.followers.retain_mut(|follower| follower.show(interval));
    }

    /// The process with this pid is not traced any more.
    pub fn remove(&self, pid: u32) {
        self.lock().retain(|_, kept| kept.interval.pid != pid);
    }

    /// All processes' last states.
    #[must_use]
    pub fn intervals(&self) -> Vec<Arc<Interval>> {
        self.lock().values().map(|kept| Arc::clone(&kept.interval)).collect()
    }

    /// How a process came to its last state; `None` where it has none. `process`: as [`Resource::process`] has it.
    pub(crate) fn history(&self, process: u64) -> Option<History> {
        self.lock().get(&process).map(|kept| kept.history.clone())
    }

    /// The reports of a process from now on, until it is not traced any more; `None` where it has none yet.
    pub(crate) fn follow(&self, process: u64) -> Option<Receiver<Followed>> {
        let mut processes = self.lock();
        let (to, reports) = channel(MAX_WAITING);
        processes.get_mut(&process)?.followers.push(Follower { to, missed: 0 });
        Some(reports)
    }

    /// The text for Prometheus. `spans_dropped`: what the exporter dropped of a process's spans, by why.
    #[must_use]
    pub fn page(
        &self,
        agent: &Agent,
        spans_dropped: impl Fn(&Arc<Resource>) -> BTreeMap<&'static str, u64>,
    ) -> String {
        let intervals = self.intervals();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, processes) = &mut *series;
        let mut before = std::mem::take(processes);
        let mut admitted: Vec<Admitted> = intervals
            .iter()
            .map(|interval| before.remove(&interval.resource.process()).unwrap_or_default())
            .collect();
        before.values().for_each(|ended| room.give_back(ended));
        let shown = intervals.iter().zip(&mut admitted).map(|(interval, admitted)| Shown {
            interval,
            spans_dropped: spans_dropped(&interval.resource),
            admitted,
        });
        let text = page::page(shown, room, agent);
        *processes = intervals.iter().map(|interval| interval.resource.process()).zip(admitted).collect();
        text
    }
}
