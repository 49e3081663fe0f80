//! The daemon's pages: `/metrics` for Prometheus, `/livez` and `/readyz` for whoever starts and stops it.
//!
//! Input: each process's last [`Interval`], what the line says of itself ([`Agent`]), the exporter's account.
//! Output: text over HTTP. Names are those of the OTLP metrics by OpenTelemetry's usual rule for Prometheus.
//! Refuses to let the line wait: the page is made when it is asked for, from what was left here.

mod admitted;
mod page;
mod server;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use page::{MAX_SERIES, MAX_SERIES_OF_NODE};
pub use server::{ServeError, Server};

use super::{model::Interval, otlp::ExportStats};
use admitted::Admitted;

/// What gotrace says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agent {
    /// Processes traced now, by engine.
    pub processes: BTreeMap<&'static str, u64>,
    /// Totals since the beginning, by name of their metric without `_total`, with their help.
    pub totals: Vec<(&'static str, &'static str, u64)>,
    /// Figures of now, by name of their metric, with their help.
    pub gauges: Vec<(&'static str, &'static str, u64)>,
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
    /// Whether the line moves.
    fn live(&self) -> Health;
    /// Whether processes are traced, and what comes of it gets out or is kept.
    fn ready(&self) -> Health;
}

/// The processes' last states. Shared by the line, which fills it, and the server.
#[derive(Debug, Default)]
pub struct Board {
    processes: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    interval: Arc<Interval>,
    admitted: Admitted,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        // Whole values: a panic elsewhere leaves none half written.
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process's state.
    pub fn show(&self, interval: &Arc<Interval>) {
        let mut processes = self.lock();
        match processes.get_mut(&interval.resource.process()) {
            Some(entry) => entry.interval = Arc::clone(interval),
            None => {
                let entry = Entry { interval: Arc::clone(interval), admitted: Admitted::default() };
                processes.insert(interval.resource.process(), entry);
            }
        }
    }

    /// The process with this pid is not traced any more.
    pub fn remove(&self, pid: u32) {
        self.lock().retain(|_, entry| entry.interval.pid != pid);
    }

    /// All processes' last states.
    #[must_use]
    pub fn intervals(&self) -> Vec<Arc<Interval>> {
        self.lock().values().map(|entry| Arc::clone(&entry.interval)).collect()
    }

    /// The text for Prometheus.
    #[must_use]
    pub fn page(&self, agent: &Agent) -> String {
        let mut processes = self.lock();
        page::page(processes.values_mut().map(|entry| (&*entry.interval, &mut entry.admitted)), agent)
    }
}
