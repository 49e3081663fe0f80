//! `/processes/{pid}/debug/pprof/`: what `net/http/pprof` would offer. A goroutine profile is a snapshot of the process's
//! memory, taken at the request on a thread of its own, which writes it while the client reads.

use std::{
    collections::BTreeSet,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{
        HeaderName, HeaderValue, StatusCode, Uri, Version,
        header::{CONTENT_DISPOSITION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{Api, CaptureError, Processes, Stays, TEXT, later, not_traced, plain, stream};
use crate::dump::{Captured, count, incomplete, pprof, text};
use gotrace_process::{contained, give_memory_back};

/// Captures at once, of all processes: each takes memory.
pub(super) const MAX_CAPTURES: usize = 2;
/// How long a request waits for others of these.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// How long a client waits for a process to be read. Below what the server gives an answer.
const CAPTURE_WITHIN: Duration = Duration::from_secs(20);

/// What of the process is not in an answer, where there is something.
const INCOMPLETE: HeaderName = HeaderName::from_static("gotrace-incomplete");

/// What is not answered, and why.
const NOT_BUILT: [(&str, &str); 6] = [
    ("goroutineleak", "`gotrace leaks` proves leaks, and /api/v1/processes/PID has those that were proven"),
    ("block", "/metrics and /api/v1/processes/PID have waits by reason"),
    ("mutex", "/metrics and /api/v1/processes/PID have waits by reason"),
    ("profile", "gotrace takes no CPU profiles"),
    ("wall", "gotrace takes no wall clock profiles"),
    ("trace", "gotrace writes no execution traces; `gotrace record` records what goroutines did"),
];

/// Which processes are being read, or are to be next.
#[derive(Debug)]
pub(super) struct Captures {
    busy: Busy,
    room: Arc<Semaphore>,
    /// As [`ROOM_WITHIN`].
    pub room_within: Duration,
}

type Busy = Arc<Mutex<BTreeSet<u32>>>;

/// No other request has this process read until this is dropped.
struct Claim(Busy, u32);

/// A process may be read, until this is dropped.
struct Slot {
    claim: Claim,
    _room: OwnedSemaphorePermit,
}

impl Default for Captures {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(MAX_CAPTURES));
        Self { busy: Busy::default(), room, room_within: ROOM_WITHIN }
    }
}

impl Captures {
    /// Waits until there is room for it.
    ///
    /// # Errors
    /// Why it cannot be read just now.
    async fn enter(&self, pid: u32) -> Result<Slot, String> {
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(pid) {
            return Err(format!("process {pid} is being read for another request: try again in a moment"));
        }
        let claim = Claim(Arc::clone(&self.busy), pid);
        // It is never closed.
        match timeout(self.room_within, Arc::clone(&self.room).acquire_owned()).await {
            Ok(Ok(_room)) => Ok(Slot { claim, _room }),
            Ok(Err(_)) | Err(_) => {
                Err(format!("{MAX_CAPTURES} other processes are being read: try again in a moment"))
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Self(busy, pid) = self;
        busy.lock().unwrap_or_else(PoisonError::into_inner).remove(pid);
    }
}

/// How a goroutine profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `debug=0`
    Protobuf,
    /// `debug=1`
    Counted,
    /// `debug=2`
    Traceback,
}

impl Format {
    fn write(self, out: &mut dyn Write, captured: &mut Captured) -> std::io::Result<()> {
        captured.write(
            out,
            match self {
                Self::Protobuf => pprof::write,
                Self::Counted => count::write,
                Self::Traceback => text::write,
            },
        )
    }
}

/// What is asked for; otherwise why not.
fn format_of(query: &str) -> Result<Format, (StatusCode, &'static str)> {
    let value = |name: &str| {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    };
    let (debug, seconds) = (value("debug").unwrap_or(""), value("seconds").unwrap_or(""));
    let format = match debug {
        "" | "0" => Format::Protobuf,
        "1" => Format::Counted,
        "2" => Format::Traceback,
        _ => return Err((StatusCode::BAD_REQUEST, "debug must be 0, 1 or 2")),
    };
    if seconds.is_empty() {
        return Ok(format);
    }
    if !seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0) {
        return Err((StatusCode::BAD_REQUEST, "seconds must be a whole number above 0"));
    }
    if format != Format::Protobuf {
        return Err((StatusCode::BAD_REQUEST, "seconds and debug cannot be combined"));
    }
    let why = "gotrace does not compute the difference of two profiles yet: leave out seconds, and compare two with \
               `go tool pprof -base`";
    Err((StatusCode::NOT_IMPLEMENTED, why))
}

/// What there is.
pub(super) async fn index(State(api): State<Arc<Api>>, Path(pid): Path<String>) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    let base = format!("/processes/{}/debug/pprof", traced.pid);
    let mut text = format!(
        "{base}/goroutine           stacks of all goroutines now, for go tool pprof\n\
         {base}/goroutine?debug=1   the same as text, equal stacks together\n\
         {base}/goroutine?debug=2   the same as a Go traceback\n"
    );
    text.push_str("\nnot available yet:");
    NOT_BUILT.iter().for_each(|(name, _)| text.extend([" ", name]));
    plain(StatusCode::OK, text)
}

/// A profile by its name.
pub(super) async fn profile(
    State(api): State<Arc<Api>>,
    Path((pid, profile)): Path<(String, String)>,
    (uri, version): (Uri, Version),
    Extension(stays): Extension<Stays>,
) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    if profile == "goroutine" {
        return match format_of(uri.query().unwrap_or_default()) {
            Ok(_) if version < Version::HTTP_11 => {
                let why = "ask with HTTP/1.1: before it a part of an answer cannot be told from all of it (nginx: \
                           proxy_http_version 1.1)";
                plain(StatusCode::HTTP_VERSION_NOT_SUPPORTED, why)
            }
            Ok(format) => goroutines(&api, traced.pid, format, &stays).await,
            Err((status, why)) => plain(status, why),
        };
    }
    match NOT_BUILT.iter().find(|(name, _)| *name == profile) {
        Some((name, instead)) => {
            plain(StatusCode::NOT_IMPLEMENTED, format!("{name} is not available yet: {instead}"))
        }
        None => plain(
            StatusCode::NOT_FOUND,
            format!("there is no such profile: /processes/{pid}/debug/pprof/ lists those that there are"),
        ),
    }
}

async fn goroutines(api: &Api, pid: u32, format: Format, stays: &Stays) -> Response {
    let slot = match api.captures.enter(pid).await {
        Ok(slot) => slot,
        Err(why) => return later(StatusCode::TOO_MANY_REQUESTS, why),
    };
    stays.stay();
    let (ready, taken) = oneshot::channel();
    let (pipe, stream) = stream::pipe();
    let processes = Arc::clone(&api.processes);
    let work = move || capture(&*processes, (slot, format), ready, pipe);
    // Not the runtime's own threads for work that blocks: it panics where the system gives none.
    if let Err(error) = thread::Builder::new().name("gotrace-capture".into()).spawn(work) {
        tracing::debug!(pid, %error, "no thread for a capture");
        return later(StatusCode::SERVICE_UNAVAILABLE, format!("cannot start a thread ({error}): try again"));
    }
    let incomplete = match timeout(CAPTURE_WITHIN, taken).await {
        Ok(Ok(Ok(incomplete))) => incomplete,
        Ok(Ok(Err(CaptureError::NotTraced))) => return not_traced(&pid.to_string()),
        Ok(Ok(Err(CaptureError::Later(why)))) => return later(StatusCode::SERVICE_UNAVAILABLE, why),
        Ok(Ok(Err(CaptureError::Failed(why)))) => return plain(StatusCode::INTERNAL_SERVER_ERROR, why),
        Ok(Err(_)) => {
            let why = "gotrace panicked while it read the process, which is a bug: please report it with the message in its log";
            return plain(StatusCode::INTERNAL_SERVER_ERROR, why);
        }
        Err(_) => {
            let seconds = CAPTURE_WITHIN.as_secs();
            let why = format!(
                "process {pid} could not be read within {seconds} s: try again when gotrace is less busy"
            );
            return later(StatusCode::GATEWAY_TIMEOUT, why);
        }
    };
    let body = Body::new(stream);
    let mut response = match format {
        Format::Protobuf => {
            let kind = (CONTENT_TYPE, "application/octet-stream");
            let name = (CONTENT_DISPOSITION, "attachment; filename=\"goroutine\"");
            ([kind, name], body).into_response()
        }
        Format::Counted | Format::Traceback => ([(CONTENT_TYPE, TEXT)], body).into_response(),
    };
    if let Some(incomplete) = incomplete.and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(INCOMPLETE, incomplete);
    }
    response
}

/// Reads a process and writes what is there.
fn capture(
    processes: &dyn Processes,
    (slot, format): (Slot, Format),
    ready: oneshot::Sender<Result<Option<String>, CaptureError>>,
    mut pipe: stream::Pipe,
) {
    let pid = slot.claim.1;
    // A panic was printed; without an answer the client is told of it.
    let Ok(captured) = contained(|| processes.capture(pid)) else { return };
    // Who has an answer may ask again: what this holds goes before that. A refusal says that nobody waits any more.
    match captured {
        Ok((mut captured, room)) => {
            let waits = ready.send(Ok(incomplete(&captured.snapshot.counts))).is_ok();
            let written = waits && matches!(contained(|| format.write(&mut pipe, &mut captured)), Ok(Ok(())));
            drop((captured, room, slot));
            if written {
                let _ = pipe.end();
            }
            give_memory_back();
        }
        Err(error) => {
            drop(slot);
            let _ = ready.send(Err(error));
        }
    }
}
