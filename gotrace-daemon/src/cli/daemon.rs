//! `gotrace daemon`: the node agent.
//!
//! Reads the configuration, starts exporter and pages, runs the line over the whole node, takes a changed
//! configuration while it runs, and flushes at its end.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{
    CliError, Exit,
    args::{self, BudgetArg},
    surroundings::Surroundings,
    trace::Background,
};
use crate::{
    config::{self, Config},
    kernel,
    pipeline::{Control, Engine, Line, NodeState, Observer, ProcessEvent, Stop},
    process::drop_privileges,
    sink::{
        otlp::{ExportStats, Exporter, SpoolStats},
        prometheus::{Agent, Board, Health, Server, Watched},
    },
};

/// Time between two looks whether the configuration file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The line turns at least ten times a second; so long without a turn it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(15);

/// Arguments of `daemon`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace daemon
  gotrace daemon --config /etc/gotrace.yaml
  gotrace daemon --config gotrace.yaml --check-config
  gotrace daemon --config gotrace.yaml --budget 0.5%

Finds the Go programs of the node, attaches as the configuration's rules say, and exports spans and
metrics. SIGHUP, or a change of the file, has the configuration read again; SIGTERM ends with the
last data sent. Without --config everything that runs is traced, with nothing exported but the
Prometheus page on 127.0.0.1:9464.")]
pub struct DaemonArgs {
    /// Configuration (YAML); deploy/gotrace.example.yaml shows every field
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only say whether the configuration is right, and where it is not
    #[arg(long)]
    pub check_config: bool,
    /// Share of a process's CPU time that its probes may take, at least 0.5% of a core; off for as
    /// much as they take. Wins over the configuration's limits.budget [default: 1%]
    #[arg(long, value_name = "SHARE", value_parser = args::share)]
    pub budget: Option<BudgetArg>,
    /// Where /livez, /readyz and /metrics are served, or off. Wins over the configuration's
    /// http.listen [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

impl From<config::Error> for CliError {
    fn from(e: config::Error) -> Self {
        match e {
            config::Error::Read { .. } => Self::failure(e.to_string()),
            config::Error::Wrong { .. } | config::Error::Otlp(_) => Self::usage(e.to_string())
                .help("deploy/gotrace.example.yaml shows every field; --check-config tries a file"),
        }
    }
}

impl DaemonArgs {
    fn read(&self) -> Result<Config, CliError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(listen) = &self.listen {
            config.http.listen.clone_from(listen);
        }
        Ok(config)
    }

    /// The line's configuration, with what flags say.
    fn line(&self, config: &Config) -> crate::pipeline::LineConfig {
        let mut line = config.line();
        if let Some(budget) = self.budget {
            line.budget = budget.budget();
        }
        line
    }
}

pub(super) fn run(args: &DaemonArgs) -> Result<Exit, CliError> {
    let config = args.read()?;
    let listen = listen(&config)?;
    let export = config.export(&|name| std::env::var(name).ok())?;
    if args.check_config {
        if let Some(path) = &args.config {
            println!("{}: good", path.display());
        }
        return Ok(Exit::DONE);
    }
    let perf_events = config.line().engine != Engine::Snapshot && kernel::settled_way().wants_admin();
    match drop_privileges(perf_events) {
        Ok(left) => tracing::info!("capabilities kept: {left}"),
        Err(error) => tracing::warn!(%error, "capabilities that are not needed could not be dropped"),
    }
    let background = Background::with_export(export)?;
    let stop = Stop::default();
    background.stop_on(&stop, &[libc::SIGINT, libc::SIGTERM])?;
    let board = Arc::new(Board::default());
    let mut line = Line::new(args.line(&config), background.exporter())?;
    if let Some(refusal) = line.fallback() {
        tracing::warn!(
            "eBPF does not work here ({refusal}): the snapshot engine runs instead; goroutines that live shorter \
             than trace.interval are missed, there are no spans and no durations of waits"
        );
    }
    let surroundings = Surroundings::default();
    let control = line.watch_node(config.rules(), Some(observer(&board, surroundings.clone())))?;
    surroundings.start(&config, &control, background.runtime());
    let server = match listen {
        None => None,
        Some(address) => {
            let watched = Arc::new(Own {
                control: control.clone(),
                exporter: background.exporter(),
                dropped: Mutex::default(),
            });
            let server = Server::start(address, Arc::clone(&board), watched, background.runtime())
                .map_err(|e| CliError::failure(e.to_string()))?;
            tracing::info!("health and metrics: http://{}/metrics", server.address());
            Some(server)
        }
    };
    follow_file(args, &control, &background)?;
    let result = line.run(&stop, None, &mut |interval| board.show(interval));
    tracing::info!("ending: {}", stop.why().unwrap_or("the line failed"));
    if let Some(server) = server {
        server.stop(background.runtime());
    }
    // The probes go while the last data is sent.
    line.let_exporter_go();
    let detach = std::thread::spawn(move || line.finish().1);
    let stats = background.finish_within(config.grace());
    if let Some(stats) = stats {
        say_what_became(&stats);
    }
    detach.join().map_err(|_| CliError::failure("removing the probes failed"))??;
    result?;
    Ok(Exit::DONE)
}

/// What is left for the next gotrace, and what did not arrive.
fn say_what_became(stats: &ExportStats) {
    if let Some(SpoolStats { directory, bytes, spans, points, logs, .. }) = &stats.spool
        && spans + points + logs > 0
    {
        tracing::info!(
            spans,
            points,
            records = logs,
            bytes,
            "kept in {} for the next gotrace",
            directory.display()
        );
    }
    if !stats.spans_dropped.is_empty() {
        tracing::warn!(dropped = ?stats.spans_dropped, "spans were lost");
    }
    if !stats.logs_dropped.is_empty() {
        tracing::warn!(dropped = ?stats.logs_dropped, "log records were lost");
    }
}

fn listen(config: &Config) -> Result<Option<SocketAddr>, CliError> {
    let text = config.http.listen.as_str();
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        CliError::usage(format!(
            "--listen `{text}`: write an address and a port, such as 127.0.0.1:9464, or off"
        ))
    })
}

/// What is done as processes come and go.
fn observer(board: &Arc<Board>, surroundings: Surroundings) -> Observer {
    let board = Arc::clone(board);
    Box::new(move |event| {
        surroundings.tell(event);
        match event {
            ProcessEvent::Began(_) => {}
            ProcessEvent::Ended(identity) => board.remove(identity.pid),
        }
    })
}

/// Reads the configuration again on SIGHUP and when its file changes. One that is wrong changes nothing.
fn follow_file(args: &DaemonArgs, control: &Control, background: &Background) -> Result<(), CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (args, control) = (args.clone(), control.clone());
    let _in_runtime = background.runtime().enter();
    let mut hangups = signal(SignalKind::hangup())
        .map_err(|e| CliError::failure(format!("cannot listen for signals: {e}")))?;
    background.runtime().spawn(async move {
        let mut seen = args.config.as_deref().and_then(version_of);
        loop {
            let asked = tokio::select! {
                received = hangups.recv() => received.is_some(),
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let Some(path) = &args.config else { continue };
            let now = version_of(path);
            if !asked && (now == seen || now.is_none()) {
                continue;
            }
            seen = now;
            match args.read() {
                Ok(config) => {
                    tracing::info!("configuration read again");
                    control.reconfigure(args.line(&config), config.rules());
                }
                Err(error) => tracing::error!("the configuration stays as it was: {error}"),
            }
        }
    });
    Ok(())
}

/// Tells a file from what it was before: in Kubernetes another one is put in its place.
fn version_of(path: &std::path::Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// gotrace's own state.
struct Own {
    control: Control,
    exporter: Option<Arc<Exporter>>,
    /// Spans that were lost at the last question.
    dropped: Mutex<u64>,
}

impl Watched for Own {
    fn agent(&self) -> Agent {
        let NodeState {
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
        } = self.control.state();
        let (cpu_seconds, resident_bytes) = own_usage();
        Agent {
            processes: [("events", traced.saturating_sub(sampled)), ("snapshot", sampled)].into(),
            totals: vec![
                ("gotrace_processes_ended_total", "Processes that are not traced any more.", ended),
                (
                    "gotrace_processes_refused_total",
                    "Go programs that could not be traced.",
                    looked_at.refused,
                ),
                (
                    "gotrace_processes_without_room_total",
                    "Processes traced by snapshots as there was no room for probes.",
                    without_room,
                ),
                (
                    "gotrace_programs_parsed_total",
                    "Executables that were read whole.",
                    looked_at.programs_parsed,
                ),
                (
                    "gotrace_level_changes_total",
                    "Changes of levels, to keep within budget and memory.",
                    level_changes,
                ),
            ],
            gauges: vec![
                (
                    "gotrace_processes_without_memory",
                    "Processes traced by snapshots for want of memory.",
                    cramped,
                ),
                ("gotrace_memory_kept_bytes", "Bytes that what is kept of all processes takes.", kept_bytes),
                ("gotrace_memory_limit_bytes", "Bytes that it may take.", kept_limit),
            ],
            probed_files: places,
            export: self.exporter.as_ref().map(|e| e.stats()),
            cpu_seconds,
            resident_bytes,
        }
    }

    fn live(&self) -> Health {
        match self.control.idle_for() {
            Some(idle) if idle > HANGS_AFTER => {
                Health::Bad(format!("the line has not moved for {} s", idle.as_secs()))
            }
            _ => Health::Good,
        }
    }

    fn ready(&self) -> Health {
        if self.control.state().looked_at.scans == 0 {
            return Health::Bad("the node's processes have not been looked at yet".into());
        }
        if let Some(stats) = self.exporter.as_ref().map(|e| e.stats()) {
            let total = stats.spans_dropped_total();
            let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *dropped, total);
            if let Some(trouble) = stats.collector_trouble.filter(|_| total > before) {
                return Health::Bad(format!("spans are being lost: {trouble}"));
            }
        }
        self.live()
    }
}

/// CPU seconds and resident bytes of gotrace itself; 0 where `/proc` does not tell.
fn own_usage() -> (f64, u64) {
    crate::process::usage(std::process::id())
}
