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
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::Args;

use super::{
    CliError, Exit,
    args::{self, BudgetArg},
    served::{SERVES_WITHIN, Served},
    surroundings::Surroundings,
    trace::Background,
};
use crate::config::{self, Config, Http};
use gotrace_agent::pipeline::{Control, Engine, Line, Observer, ProcessEvent, Stop};
use gotrace_export::{
    api::Access,
    otlp::{ExportStats, SpoolStats},
    prometheus::{Board, Server},
};
use gotrace_kernel as kernel;
use gotrace_model::Coverage;
use gotrace_process::{Threads, Trouble, drop_privileges};

/// Time between two looks whether the configuration file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Time between two looks at gotrace's own threads.
const SUPERVISE_EVERY: Duration = Duration::from_secs(1);

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
    let board = Arc::new(Board::new(config.requests.routes()));
    let mut line = Line::new(args.line(&config), background.exporter())?;
    if let Some(refusal) = line.fallback() {
        tracing::warn!(
            "eBPF does not work on this host ({refusal}): using the snapshot engine, without spans, wait durations and \
             goroutines that live for less than trace.interval; `gotrace doctor` shows what is missing"
        );
    }
    let surroundings = Surroundings::default();
    line.observe(observer(&board, surroundings.clone()));
    let control = line.watch_node(config.rules())?;
    let handle = line.handle();
    surroundings.follow(&config, &control, background.runtime());
    let access = admission.access.clone();
    let served = Served::of_line(handle.clone(), Arc::clone(&board), (&background, true), access);
    let servers = serve(&config, listen, &served, &background)?;
    follow_file(args, config.clone(), &control, (surroundings, admission), &background)?;
    supervise(handle.threads().clone(), &background);
    let result = line.run(&stop, None, &mut |interval| board.show(interval));
    tracing::info!("shutting down: {}", stop.why().unwrap_or("tracing failed"));
    for server in servers {
        server.stop(background.runtime());
    }
    // The probes go while the last data is sent.
    line.let_exporter_go();
    let detach = gotrace_process::Background::start("gotrace-finish", move || drop(line.finish()));
    let stats = background.finish_within(config.grace());
    say_coverage(&handle.state().coverage);
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
    served: &Served,
    background: &Background,
) -> Result<Vec<Server>, CliError> {
    let mut servers = Vec::new();
    if let Some(address) = listen {
        let server = served.at(address, background).map_err(|error| {
            CliError::failure(format!("{error}; health and metrics are served there"))
                .help("choose another http.listen, or off")
        })?;
        tracing::info!("serving health and metrics on {}/metrics", server.place());
        servers.push(server);
    }
    if let Some(path) = config.http.socket().map_err(CliError::usage)? {
        match served.on_socket(path, background) {
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
