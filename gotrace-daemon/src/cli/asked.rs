//! Asks the `gotrace daemon` of this node over its socket, so that a command needs no probes of its own.
//!
//! Input: paths of the daemon's API. Output: its answers, what it tells of a process for as long as somebody listens, or
//! that there is nobody to ask. No socket, one that a daemon has left, and one that only others may open are no daemon,
//! without a word; one that hangs, refuses or breaks off is told of, and the command goes on alone. Invariants: nothing
//! here waits for an answer longer than [`WITHIN`]; an answer has a bound; whoever listens must be root or the user of this
//! process, and in the same PID namespace, or pids would mean other processes.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Bytes, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::{
    net::UnixStream,
    runtime::Runtime,
    time::{sleep, timeout},
};

use super::{CliError, trace};
use crate::config::SOCKET;
use gotrace_agent::pipeline::Stop;
use gotrace_model::Level;
use gotrace_process::Target;

/// So long is waited for an answer.
const WITHIN: Duration = Duration::from_secs(3);
/// While a process is followed, something comes at least so often.
const SILENT: Duration = Duration::from_secs(30);
/// How often is looked whether the user has enough.
const TICK: Duration = Duration::from_millis(100);
/// Largest answer.
const MAX_BYTES: usize = 64 << 20;
/// Says where the socket is, where it is not at [`SOCKET`].
const VARIABLE: &str = "GOTRACE_SOCKET";

/// Whether a daemon is asked.
#[derive(Clone, Debug, Default, Args)]
pub struct AskArgs {
    /// Do not ask the gotrace daemon of this node (on /run/gotrace/gotrace.sock, or where GOTRACE_SOCKET
    /// says)
    #[arg(long)]
    no_daemon: bool,
}

/// The daemon of this node.
#[derive(Debug)]
pub(super) struct Daemon {
    runtime: Runtime,
    path: PathBuf,
    pid: u32,
}

/// How a daemon has a process in its hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probed {
    /// The level of now; `sampled` where the budget leaves no probes.
    pub level: String,
}

/// What is to be followed of a process, and how it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follow {
    pub pid: u32,
    pub level: Level,
    pub every: Duration,
    pub form: Form,
    /// The runtime's own goroutines too.
    pub system: bool,
}

/// How reports are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text,
    /// As [`gotrace_export::reports`] reads them.
    Interval,
}

/// Reports that a daemon writes.
#[derive(Debug)]
pub(super) struct Reports(Response<Incoming>);

/// How following ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is not traced any more.
    Gone,
    Duration,
    Stopped,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no daemon, or it is for others.
    Nobody,
    /// There is one, and it cannot be asked.
    Told(String),
    /// It does not know what it is asked for, as it says.
    Unknown(String),
}

impl AskArgs {
    /// Says of a command that puts probes into a process that a daemon has some in it already.
    /// `wanted_by`: what needs them.
    pub(super) fn warn_of_probes(&self, pid: u32, wanted_by: &str) {
        if let Some((daemon, Probed { level })) = self.daemon_with_probes(pid) {
            CliError::warn(&format!(
                "gotrace daemon (pid {}) traces process {pid} with probes already, at level {level}: {wanted_by} needs a second \
                 set of probes, which costs the program again",
                daemon.pid
            ));
        }
    }

    /// The daemon of this node, if it has probes in this process, and how.
    pub(super) fn daemon_with_probes(&self, pid: u32) -> Option<(Daemon, Probed)> {
        let daemon = self.daemon()?;
        let [list] = daemon.get(["/api/v1/processes"])?;
        let start_ticks = Target::open(pid).ok()?.identity.start_ticks;
        let is_it = |p: &&Json| p["pid"] == pid && p["start_ticks"] == start_ticks && has_probes(p);
        let process = list["processes"].as_array()?.iter().find(is_it)?;
        let level = process["level"].as_str()?.to_owned();
        Some((daemon, Probed { level }))
    }

    /// Says of a command that puts probes into all processes that a daemon has some in these already.
    pub(super) fn warn_of_probes_on_node(&self) {
        let Some(daemon) = self.daemon() else { return };
        let Some([list]) = daemon.get(["/api/v1/processes"]) else { return };
        let probed = list["processes"].as_array().into_iter().flatten().filter(|p| has_probes(p)).count();
        if probed > 0 {
            let (pid, processes) = (daemon.pid, if probed == 1 { "process" } else { "processes" });
            CliError::warn(&format!(
                "gotrace daemon (pid {pid}) traces programs of this node with probes already ({probed} {processes}): a second \
                 set of probes costs them again"
            ));
        }
    }

    /// The daemon of this node, if there is one. One that cannot be asked is told of.
    pub(super) fn daemon(&self) -> Option<Daemon> {
        let path = if self.no_daemon { None } else { socket() }?;
        match Daemon::find(&path) {
            Ok(daemon) => Some(daemon),
            Err(Trouble::Nobody) => None,
            Err(trouble) => {
                warn(&path, &trouble.in_words());
                None
            }
        }
    }
}

/// Where it is looked for.
fn socket() -> Option<PathBuf> {
    let path = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    (!path.as_os_str().is_empty() && path.as_os_str() != "off").then_some(path)
}

/// Whether a process of the list has probes, or would have but for the budget.
fn has_probes(process: &Json) -> bool {
    process["engine"] == "events" || process["level_lowered_by"] == "budget"
}

fn warn(path: &Path, why: &str) {
    CliError::warn(&format!(
        "the gotrace daemon on {} {why}: going on without it; --no-daemon does not ask",
        path.display()
    ));
}

impl Daemon {
    fn find(path: &Path) -> Result<Self, Trouble> {
        // Most nodes have none: nothing is begun for it.
        fs::symlink_metadata(path).map_err(|_| Trouble::Nobody)?;
        let runtime = trace::runtime("gotrace-ask", 1).map_err(|e| Trouble::Told(e.to_string()))?;
        let pid = runtime.block_on(within(async { connect(path).await.map(|(_, pid)| pid) }))?;
        Ok(Self { runtime, path: path.into(), pid })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// What it answers to these paths; `None`, of which is told, where it does not.
    pub(super) fn get<const N: usize>(&self, paths: [&str; N]) -> Option<[Json; N]> {
        let answers = within(async {
            let mut answers = [const { Json::Null }; N];
            for (answer, path) in answers.iter_mut().zip(paths) {
                *answer = get(&self.path, path).await?;
            }
            Ok(answers)
        });
        match self.runtime.block_on(answers) {
            Ok(answers) => Some(answers),
            Err(trouble) => {
                self.warn(trouble);
                None
            }
        }
    }
}

impl Daemon {
    /// Has a process traced at this level for as long as this lasts, and writes what comes of it. `None`, of which is told,
    /// where the daemon does not do that.
    ///
    /// # Errors
    /// When the results cannot be written, or the daemon breaks off.
    pub(super) fn follow(
        &self,
        wanted: Follow,
        until: (&Stop, Option<Instant>),
        out: &mut dyn Write,
    ) -> Result<Option<Ended>, CliError> {
        let reports = match self.reports(wanted) {
            Ok(reports) => reports,
            Err(trouble) => {
                self.warn(trouble);
                return Ok(None);
            }
        };
        let mut at_start = true;
        let ended = self.listen(reports, until, &mut |lines| {
            // An empty line says that there is no news.
            if !(at_start && *lines == *b"\n") {
                out.write_all(lines)?;
                out.flush()?;
                at_start = lines.ends_with(b"\n");
            }
            Ok::<_, CliError>(())
        })?;
        Ok(Some(ended))
    }

    /// Has a process traced at this level for as long as what is given back is there.
    pub(super) fn reports(&self, wanted: Follow) -> Result<Reports, Trouble> {
        let Follow { pid, level, every, form, system } = wanted;
        let format = match form {
            Form::Json => "json",
            Form::Text => "text",
            Form::Interval => "interval",
        };
        let (every_ms, system) = (every.as_millis(), u8::from(system));
        let path = format!(
            "/api/v1/processes/{pid}/follow?level={level}&every_ms={every_ms}&format={format}&system={system}"
        );
        self.runtime.block_on(within(answered(&self.path, Method::POST, &path))).map(Reports)
    }

    /// Hands on what comes until it ends.
    ///
    /// # Errors
    /// Those of `take`; and when the daemon breaks off.
    pub(super) fn listen<E: From<CliError>>(
        &self,
        Reports(mut answer): Reports,
        (stop, deadline): (&Stop, Option<Instant>),
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Ended, E> {
        self.runtime.block_on(async {
            let mut heard = Instant::now();
            loop {
                if stop.why().is_some() {
                    return Ok(Ended::Stopped);
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(Ended::Duration);
                }
                let frame = tokio::select! {
                    frame = answer.body_mut().frame() => frame,
                    () = sleep(TICK) => {
                        if heard.elapsed() < SILENT {
                            continue;
                        }
                        let seconds = SILENT.as_secs();
                        return Err(self.broke_off(&format!("has said nothing for {seconds} s")).into());
                    }
                };
                heard = Instant::now();
                match frame {
                    None => return Ok(Ended::Gone),
                    Some(Ok(frame)) => take(&frame.into_data().unwrap_or_default())?,
                    Some(Err(error)) => return Err(self.broke_off(&format!("broke off: {error}")).into()),
                }
            }
        })
    }

    /// Says why it is not asked on.
    pub(super) fn warn(&self, trouble: Trouble) {
        warn(&self.path, &trouble.in_words());
    }

    pub(super) fn broke_off(&self, why: &str) -> CliError {
        CliError::failure(format!("the gotrace daemon on {} {why}", self.path.display()))
            .help("start again; with --no-daemon gotrace attaches probes of its own")
    }
}

impl Trouble {
    fn in_words(self) -> String {
        match self {
            Self::Nobody => "is gone".to_owned(),
            Self::Told(why) | Self::Unknown(why) => why,
        }
    }
}

async fn within<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(WITHIN, work)
        .await
        .unwrap_or_else(|_| Err(Trouble::Told(format!("does not answer within {} s", WITHIN.as_secs()))))
}

/// A connection to it, and its process id.
async fn connect(path: &Path) -> Result<(UnixStream, u32), Trouble> {
    let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => Trouble::Nobody,
        _ => Trouble::Told(format!("cannot be asked: {error}")),
    })?;
    let server = stream.peer_cred().map_err(|e| Trouble::Told(format!("cannot be told from others: {e}")))?;
    let own = rustix::process::geteuid().as_raw();
    if server.uid() != 0 && server.uid() != own {
        return Err(Trouble::Told(format!(
            "belongs to user {}, and is neither root's nor one's own",
            server.uid()
        )));
    }
    let pid = server.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let (own, its) = (namespace("self"), namespace(&pid.to_string()));
    if own.is_none() || own != its {
        return Err(Trouble::Told("is in another PID namespace, or that cannot be read".into()));
    }
    Ok((stream, pid))
}

/// What it answers to a path.
async fn get(socket: &Path, path: &str) -> Result<Json, Trouble> {
    let body = read(answered(socket, Method::GET, path).await?).await?;
    serde_json::from_slice(&body).map_err(|e| Trouble::Told(format!("answers no JSON: {e}")))
}

/// A good answer, of which the body is to be read.
async fn answered(socket: &Path, method: Method, path: &str) -> Result<Response<Incoming>, Trouble> {
    let broken = |error: hyper::Error| Trouble::Told(format!("broke off: {error}"));
    let (stream, _) = connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the answer.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|e| Trouble::Told(format!("cannot be asked: {e}")))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    let body = read(answer).await?;
    let why = format!("answers {}: {}", status.as_u16(), String::from_utf8_lossy(&body).trim_end());
    Err(if status == StatusCode::BAD_REQUEST { Trouble::Unknown(why) } else { Trouble::Told(why) })
}

async fn read(answer: Response<Incoming>) -> Result<Bytes, Trouble> {
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    body.map(|body| body.to_bytes()).map_err(|e| Trouble::Told(format!("broke off: {e}")))
}
