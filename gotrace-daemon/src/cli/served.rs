//! Serves the pages and the API: of the processes that a line traces.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{CliError, trace::Background};
use gotrace_agent::pipeline::{Line, LineHandle, LineState, ProcessEvent};
use gotrace_export::{
    api::{Access, Api, Processes},
    otlp::Exporter,
    prometheus::{Agent, Board, Health, ServeError, Server, Site, SocketError, Watched},
};
use gotrace_model::Resource;
use gotrace_process::Threads;

/// How long the runtime and the page may be silent.
pub(super) const SERVES_WITHIN: Duration = Duration::from_secs(30);
/// Threads that a process may hold up: a restart would not mend that.
const HELD_UP: [&str; 2] = ["snapshots", "proofs"];

/// What is served, wherever.
pub(super) struct Served {
    site: Site,
    threads: Threads,
}

impl Served {
    /// These processes, whose last reports are on the board, for those whom `access` admits. The threads that serve beat
    /// among the others.
    pub(super) fn new(
        (processes, board): (Arc<dyn Processes>, Arc<Board>),
        own: Arc<dyn Watched>,
        threads: Threads,
        access: Access,
    ) -> Self {
        let api = Api::new(processes, Arc::clone(&board), access);
        Self { site: Site::new(board, own, api), threads }
    }

    /// The processes of a line.
    pub(super) fn of_line(
        handle: LineHandle,
        board: Arc<Board>,
        (background, discovers): (&Background, bool),
        access: Access,
    ) -> Self {
        let (processes, threads) = (Arc::new(handle.captures().clone()), handle.threads().clone());
        let own = Own { handle, exporter: background.exporter(), discovers, dropped: Mutex::default() };
        Self::new((processes, board), Arc::new(own), threads, access)
    }

    /// From now on at this address.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) fn at(&self, address: SocketAddr, background: &Background) -> Result<Server, ServeError> {
        let beat = self.threads.register("page", SERVES_WITHIN);
        Server::start(address, &self.site, (background.runtime(), beat))
    }

    /// From now on at this address, which is told.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) fn for_onlookers(
        &self,
        address: SocketAddr,
        background: &Background,
    ) -> Result<Server, CliError> {
        let server = self.at(address, background).map_err(|error| {
            CliError::failure(error.to_string())
                .help("choose another port with --http, such as 0 for any that is free")
        })?;
        super::say(&format!("gotrace: the page is on {} until gotrace ends\n", server.place()));
        Ok(server)
    }

    /// From now on at this socket of the file system.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) fn on_socket(&self, path: &Path, background: &Background) -> Result<Server, SocketError> {
        let beat = self.threads.register("page", SERVES_WITHIN);
        Server::start_on_socket(path, &self.site, (background.runtime(), beat))
    }
}

/// From now on the processes of a line that is about to run are served at an address, to clients on this host.
///
/// # Errors
/// When the address cannot be had.
pub(super) fn line(
    line: &mut Line,
    address: SocketAddr,
    background: &Background,
) -> Result<(Server, Arc<Board>), CliError> {
    let board = Arc::new(Board::default());
    let ended = Arc::clone(&board);
    line.observe(Box::new(move |event| {
        if let ProcessEvent::Ended(identity) = event {
            ended.remove(identity.pid);
        }
    }));
    let served = Served::of_line(line.handle(), Arc::clone(&board), (background, false), Access::default());
    Ok((served.for_onlookers(address, background)?, board))
}

/// gotrace's own state.
struct Own {
    handle: LineHandle,
    exporter: Option<Arc<Exporter>>,
    /// Whether it looks for processes itself.
    discovers: bool,
    /// Spans that were lost at the last question.
    dropped: Mutex<u64>,
}

impl Watched for Own {
    fn agent(&self) -> Agent {
        let LineState {
            traced,
            sampled,
            without_room,
            places,
            ended,
            level_changes,
            cramped,
            kept_bytes,
            kept_limit,
            looked_at,
            coverage,
        } = self.handle.state();
        let (cpu_seconds, resident_bytes) = own_usage();
        Agent {
            processes: [("events", traced.saturating_sub(sampled)), ("snapshot", sampled)].into(),
            totals: vec![
                ("gotrace_processes_ended_total", "Processes whose tracing has ended.", ended),
                (
                    "gotrace_processes_without_room_total",
                    "Processes traced by snapshots because limits.processes was reached.",
                    without_room,
                ),
                ("gotrace_programs_parsed_total", "Executables parsed.", looked_at.programs_parsed),
                (
                    "gotrace_level_changes_total",
                    "Level changes made to stay within the budget and memory limits.",
                    level_changes,
                ),
            ],
            gauges: vec![
                (
                    "gotrace_processes_without_memory",
                    "Processes traced by snapshots because of limits.memory.",
                    cramped,
                ),
                ("gotrace_memory_kept_bytes", "Memory used for the state of all processes.", kept_bytes),
                (
                    "gotrace_memory_limit_bytes",
                    "Limit of the memory used for the state of all processes.",
                    kept_limit,
                ),
            ],
            coverage: self.discovers.then_some(coverage),
            threads: self.handle.threads().state().iter().map(|(name, t)| (*name, t.is_none())).collect(),
            probed_files: places,
            export: self.exporter.as_ref().map(|e| e.stats()),
            cpu_seconds,
            resident_bytes,
        }
    }

    fn spans_dropped(&self, resource: &Arc<Resource>) -> BTreeMap<&'static str, u64> {
        self.exporter.as_ref().map(|e| e.spans_dropped_of(resource)).unwrap_or_default()
    }

    fn live(&self) -> Health {
        trouble_of(self.handle.threads(), |name| !HELD_UP.contains(&name))
    }

    fn ready(&self) -> Health {
        if self.discovers && self.handle.state().looked_at.scans == 0 {
            return Health::Bad("process discovery has not completed its first scan".into());
        }
        if let Some(stats) = self.exporter.as_ref().map(|e| e.stats()) {
            let total = stats.spans_dropped_total();
            let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *dropped, total);
            if let Some(trouble) = stats.collector_trouble.filter(|_| total > before) {
                return Health::Bad(format!("spans are being dropped: {trouble}"));
            }
        }
        trouble_of(self.handle.threads(), |_| true)
    }
}

/// What is wrong with threads of these names.
fn trouble_of(threads: &Threads, of: impl Fn(&str) -> bool) -> Health {
    let troubles: Vec<String> = threads
        .state()
        .into_iter()
        .filter(|(name, _)| of(name))
        .filter_map(|(name, trouble)| Some(format!("thread {name} {}", trouble?)))
        .collect();
    if troubles.is_empty() { Health::Good } else { Health::Bad(troubles.join("; ")) }
}

/// CPU seconds and resident bytes of gotrace itself; 0 where `/proc` does not tell.
pub(super) fn own_usage() -> (f64, u64) {
    gotrace_process::usage(std::process::id())
}
