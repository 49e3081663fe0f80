//! `gotrace daemon`: the node agent.
//!
//! Reads the configuration, starts exporter and pages, runs the line over the whole node, takes a changed
//! configuration while it runs, and flushes at its end.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
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
use crate::config::{self, Config, Http};
use gotrace_agent::pipeline::{Control, Engine, Line, NodeState, Observer, ProcessEvent, Stop};
use gotrace_export::{
    api::{Access, Api},
    otlp::{ExportStats, Exporter, SpoolStats},
    prometheus::{Agent, Board, Health, Server, Site, Watched},
};
use gotrace_kernel as kernel;
use gotrace_model::{Coverage, Resource};
use gotrace_process::{Threads, Trouble, drop_privileges};

/// Time between two looks whether the configuration file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Time between two looks at gotrace's own threads, and how long the runtime and the page may be silent.
const SUPERVISE_EVERY: Duration = Duration::from_secs(1);
const SERVES_WITHIN: Duration = Duration::from_secs(30);
/// Threads that a process may hold up: a restart would not mend that.
const HELD_UP: [&str; 2] = ["snapshots", "proofs"];

/// Arguments of `daemon`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Discovers Go processes on this node, attaches to those that the configuration's rules match, and
exports spans and metrics. SIGHUP or a change of the file reloads the configuration; SIGTERM sends
the remaining data and exits. Without --config every Go process is traced, and only Prometheus
metrics are served, on 127.0.0.1:9464.

Examples:
  gotrace daemon
  gotrace daemon --config /etc/gotrace.yaml
  gotrace daemon --config gotrace.yaml --check-config
  gotrace daemon --config gotrace.yaml --budget 0.5%")]
pub struct DaemonArgs {
    /// Configuration file (YAML); deploy/gotrace.example.yaml shows every field
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    pub check_config: bool,
    /// Limit the probes' overhead to this share of each process's CPU time (but allow at least 0.5% of a
    /// core), or off for no limit. Overrides the configuration's limits.budget [default: 1%]
    #[arg(long, value_name = "SHARE", value_parser = args::share)]
    pub budget: Option<BudgetArg>,
    /// Address that /livez, /readyz, /metrics and the API are served on, or off. Overrides the configuration's
    /// http.listen [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Socket on which gotrace's own commands on this node ask the daemon, or off. Overrides the
    /// configuration's http.socket [default: /run/gotrace/gotrace.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl From<config::Error> for CliError {
    fn from(e: config::Error) -> Self {
        match e {
            config::Error::Read { .. } | config::Error::Token { .. } => Self::failure(e.to_string()),
            config::Error::Wrong { .. } | config::Error::Otlp(_) => Self::usage(e.to_string())
                .help("deploy/gotrace.example.yaml shows every field; check a file with --check-config"),
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
        if let Some(socket) = &self.socket {
            config.http.socket.clone_from(socket);
            config.http.socket().map_err(|why| CliError::usage(format!("--{why}")))?;
        }
        Ok(config)
    }

    /// The line's configuration, with what flags say.
    fn line(&self, config: &Config) -> gotrace_agent::pipeline::LineConfig {
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
    let admission = Admission::new(&config.http)?;
    if args.check_config {
        if let Some(path) = &args.config {
            writeln!(io::stdout(), "{} is valid", path.display())?;
        }
        return Ok(Exit::DONE);
    }
    let perf_events = config.line().engine != Engine::Snapshot && kernel::settled_way().wants_admin();
    match drop_privileges(perf_events) {
        Ok(left) => tracing::info!("keeping capabilities: {left}"),
        Err(error) => tracing::warn!(%error, "cannot drop capabilities that are not needed"),
    }
    let background = Background::with_export(export)?;
    let stop = Stop::default();
    background.stop_on(&stop, &[libc::SIGINT, libc::SIGTERM])?;
    let board = Arc::new(Board::default());
    let mut line = Line::new(args.line(&config), background.exporter())?;
    if let Some(refusal) = line.fallback() {
        tracing::warn!(
            "eBPF does not work on this host ({refusal}): using the snapshot engine, without spans, wait durations and \
             goroutines that live for less than trace.interval; `gotrace doctor` shows what is missing"
        );
    }
    let surroundings = Surroundings::default();
    let control = line.watch_node(config.rules(), Some(observer(&board, surroundings.clone())))?;
    surroundings.follow(&config, &control, background.runtime());
    let servers = serve(&config, listen, &board, &control, &admission.access, &background)?;
    follow_file(args, config.clone(), &control, (surroundings, admission), &background)?;
    supervise(control.threads().clone(), &background);
    let result = line.run(&stop, None, &mut |interval| board.show(interval));
    tracing::info!("shutting down: {}", stop.why().unwrap_or("tracing failed"));
    for server in servers {
        server.stop(background.runtime());
    }
    // The probes go while the last data is sent.
    line.let_exporter_go();
    let detach = gotrace_process::Background::start("gotrace-finish", move || drop(line.finish()));
    let stats = background.finish_within(config.grace());
    say_coverage(&control.state().coverage);
    if let Some(stats) = stats {
        say_what_became(&stats);
    }
    detach.join().ok_or_else(|| CliError::failure("cannot remove the probes: the thread panicked"))?;
    result?;
    Ok(Exit::DONE)
}

/// Serves the pages and the API at the address, and on the socket for commands of this node. Without the socket there is
/// all else.
fn serve(
    config: &Config,
    listen: Option<SocketAddr>,
    board: &Arc<Board>,
    control: &Control,
    access: &Access,
    background: &Background,
) -> Result<Vec<Server>, CliError> {
    let watched =
        Own { control: control.clone(), exporter: background.exporter(), dropped: Mutex::default() };
    let api = Api::new(Arc::new(control.captures().clone()), Arc::clone(board), access.clone());
    let site = Site::new(Arc::clone(board), Arc::new(watched), api);
    let beat = || (background.runtime(), control.threads().register("page", SERVES_WITHIN));
    let mut servers = Vec::new();
    if let Some(address) = listen {
        let server = Server::start(address, &site, beat()).map_err(|e| CliError::failure(e.to_string()))?;
        tracing::info!("serving health and metrics on {}/metrics", server.place());
        servers.push(server);
    }
    if let Some(path) = config.http.socket().map_err(CliError::usage)? {
        match Server::start_on_socket(path, &site, beat()) {
            Ok(server) => {
                tracing::info!("answering gotrace's commands on {}", server.place());
                servers.push(server);
            }
            Err(error) => tracing::info!("{error}; gotrace's commands on this node look for themselves"),
        }
    }
    Ok(servers)
}

/// What became of the programs that the node executed.
fn say_coverage(coverage: &Coverage) {
    let named = |counts: &mut dyn Iterator<Item = (&'static str, u64)>| -> String {
        let named: Vec<String> =
            counts.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        if named.is_empty() { "none".into() } else { named.join(", ") }
    };
    tracing::info!(
        seen = coverage.seen,
        lost = coverage.lost,
        pending = coverage.pending(),
        refused = named(&mut coverage.refused()),
        "programs executed: {}",
        named(&mut coverage.covered())
    );
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
            "unsent data kept in {} for the next start",
            directory.display()
        );
    }
    if !stats.spans_dropped.is_empty() {
        tracing::warn!(dropped = ?stats.spans_dropped, "spans were lost");
    }
    if !stats.points_dropped.is_empty() {
        tracing::warn!(dropped = ?stats.points_dropped, "metric points were lost");
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
            "--listen `{text}`: expected an address and a port, such as 127.0.0.1:9464, or off"
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
fn follow_file(
    args: &DaemonArgs,
    started: Config,
    control: &Control,
    (surroundings, mut admission): (Surroundings, Admission),
    background: &Background,
) -> Result<(), CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (args, control, runtime) = (args.clone(), control.clone(), background.runtime().clone());
    let _in_runtime = background.runtime().enter();
    let mut hangups =
        signal(SignalKind::hangup()).map_err(|e| CliError::failure(format!("cannot handle signals: {e}")))?;
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
                admission.follow_token();
                continue;
            }
            seen = now;
            match args.read().and_then(|config| Ok((Admission::new(&config.http)?, config))) {
                Ok((new, config)) => {
                    tracing::info!("configuration reloaded");
                    admission.replace(new);
                    let waiting = started.changed_until_restart(&config);
                    if !waiting.is_empty() {
                        tracing::warn!("these changes take effect after a restart: {}", waiting.join(", "));
                    }
                    surroundings.follow(&config, &control, &runtime);
                    control.reconfigure(args.line(&config), config.rules());
                }
                Err(error) => {
                    tracing::error!("invalid configuration rejected, keeping the running one: {error}");
                }
            }
        }
    });
    Ok(())
}

/// Who may ask the API, as the configuration and the file of the token say.
struct Admission {
    access: Access,
    http: Http,
    /// Of the token's file, from before it was read.
    version: Option<Version>,
}

impl Admission {
    fn new(http: &Http) -> Result<Self, config::Error> {
        let version = http.token_file.as_deref().and_then(version_of);
        let access = Access::default();
        access.set(http.access()?);
        Ok(Self { access, http: http.clone(), version })
    }

    /// From now on others may, with the API that is served.
    fn replace(&mut self, new: Self) {
        self.access.set((*new.access.rules()).clone());
        (self.http, self.version) = (new.http, new.version);
    }

    /// Reads the token again where its file has changed.
    fn follow_token(&mut self) {
        let now = self.http.token_file.as_deref().and_then(version_of);
        if std::mem::replace(&mut self.version, now) == now {
            return;
        }
        match self.http.access() {
            Ok(rules) => {
                self.access.set(rules);
                tracing::info!("token of the API reloaded");
            }
            Err(error) => tracing::error!("keeping the token that was read before: {error}"),
        }
    }
}

/// Tells a file from what it was before: in Kubernetes another one is put in its place.
fn version_of(path: &std::path::Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// When a file was written, its length and its inode.
type Version = (SystemTime, u64, u64);

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
            coverage,
        } = self.control.state();
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
            coverage: Some(coverage),
            threads: self.control.threads().state().iter().map(|(name, t)| (*name, t.is_none())).collect(),
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
        trouble_of(self.control.threads(), |name| !HELD_UP.contains(&name))
    }

    fn ready(&self) -> Health {
        if self.control.state().looked_at.scans == 0 {
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
        trouble_of(self.control.threads(), |_| true)
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

/// Says when a thread of gotrace itself is in trouble, and when it is well again; shows that the exporter's runtime moves.
fn supervise(threads: Threads, background: &Background) {
    background.runtime().spawn(async move {
        let beat = threads.register("export", SERVES_WITHIN);
        let mut said: BTreeMap<&'static str, Trouble> = BTreeMap::new();
        loop {
            beat.beat();
            for (name, trouble) in threads.state() {
                match trouble {
                    Some(trouble) if !said.contains_key(name) => {
                        tracing::error!("thread {name} {trouble}");
                        said.insert(name, trouble);
                    }
                    None if said.remove(name).is_some() => {
                        tracing::warn!("thread {name} has recovered");
                    }
                    _ => {}
                }
            }
            tokio::time::sleep(SUPERVISE_EVERY).await;
        }
    });
}

/// CPU seconds and resident bytes of gotrace itself; 0 where `/proc` does not tell.
fn own_usage() -> (f64, u64) {
    gotrace_process::usage(std::process::id())
}
