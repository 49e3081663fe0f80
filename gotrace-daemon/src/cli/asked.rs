//! Asks the `gotrace daemon` of this node over its socket, so that a command needs no probes of its own.
//!
//! Input: paths of the daemon's API. Output: its answers, or that there is nobody to ask: no socket, one that a daemon has
//! left, or one that only others may open is no daemon, without a word; one that hangs, refuses or breaks off is told of,
//! and the command goes on alone. Invariants: nothing here lasts longer than [`WITHIN`] without an answer; an answer has a
//! bound; whoever listens must be root or the user of this process, and in the same PID namespace, or pids would mean
//! other processes.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use super::{CliError, trace};
use crate::config::SOCKET;

/// So long is waited for an answer.
const WITHIN: Duration = Duration::from_secs(3);
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

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no daemon, or it is for others.
    Nobody,
    /// There is one, and it cannot be asked.
    Told(String),
}

impl AskArgs {
    /// The daemon of this node, if there is one. One that cannot be asked is told of.
    pub(super) fn daemon(&self) -> Option<Daemon> {
        let path = if self.no_daemon { None } else { socket() }?;
        match Daemon::find(&path) {
            Ok(daemon) => Some(daemon),
            Err(Trouble::Nobody) => None,
            Err(Trouble::Told(why)) => {
                warn(&path, &why);
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

fn warn(path: &Path, why: &str) {
    CliError::warn(&format!(
        "the gotrace daemon on {} {why}: going on without it; --no-daemon does not ask",
        path.display()
    ));
}

impl Daemon {
    fn find(path: &Path) -> Result<Self, Trouble> {
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
                let why = match trouble {
                    Trouble::Nobody => "is gone".to_owned(),
                    Trouble::Told(why) => why,
                };
                warn(&self.path, &why);
                None
            }
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
    let broken = |error: hyper::Error| Trouble::Told(format!("broke off: {error}"));
    let (stream, _) = connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the sender.
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|e| Trouble::Told(format!("cannot be asked: {e}")))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    let body = body.map_err(|e| Trouble::Told(format!("broke off: {e}")))?.to_bytes();
    if status != StatusCode::OK {
        let why = String::from_utf8_lossy(&body).trim_end().to_owned();
        return Err(Trouble::Told(format!("answers {}: {why}", status.as_u16())));
    }
    serde_json::from_slice(&body).map_err(|e| Trouble::Told(format!("answers no JSON: {e}")))
}
