//! `/processes/{pid}/debug/pprof/`: what `net/http/pprof` would offer. A goroutine profile is a snapshot of the process's
//! memory, taken at the request on a thread of its own, which writes it while the client reads; one of leaked goroutines
//! has those of it that are proven to be leaked.

use std::{
    collections::BTreeSet,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{
        HeaderName, HeaderValue, StatusCode, Uri, Version,
        header::{CONTENT_DISPOSITION, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{
    Api, CaptureError, Processes, Proof, Stays, TEXT, ask::ask, later, not_traced, plain, refused, stream,
};
use crate::{
    contention,
    dump::{Captured, Dump, Filter, Kind, count, group, incomplete, json, pprof, text},
};
use gotrace_inspect::snapshot::{Names, Status};
use gotrace_process::{contained, give_memory_back};

/// Captures at once, of all processes: each takes memory.
pub(super) const MAX_CAPTURES: usize = 2;
/// How long a request waits for others of these.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// How long a client waits for a process to be read. Below what the server gives an answer.
const CAPTURE_WITHIN: Duration = Duration::from_secs(20);

/// What of the process is not in an answer, where there is something.
pub(super) const INCOMPLETE: HeaderName = HeaderName::from_static("gotrace-incomplete");

/// Seconds since the proof began that a profile of leaked goroutines is of.
const PROOF_AGE: HeaderName = HeaderName::from_static("gotrace-proof-age");
/// JSON, one object a line.
pub(super) const LINES: &str = "application/x-ndjson";
/// What is no text.
pub(super) const BYTES: &str = "application/octet-stream";
/// How long a client waits for a proof that is made for it, and how often it is looked for.
const PROOF_WITHIN: Duration = Duration::from_secs(10);
const PROOF_LOOK_EVERY: Duration = Duration::from_millis(250);

/// What is not answered, and why.
const NOT_BUILT: [(&str, &str); 4] = [
    ("profile", "gotrace takes no CPU profiles"),
    ("wall", "gotrace takes no wall clock profiles"),
    ("mutex", "gotrace does not see the stacks that unlock; block has waits for mutexes"),
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
pub(super) struct Slot {
    claim: Claim,
    _room: OwnedSemaphorePermit,
}

impl Slot {
    /// Which one.
    pub const fn pid(&self) -> u32 {
        self.claim.1
    }
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

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `debug=0`
    Protobuf,
    /// `debug=1`
    Counted,
    /// `debug=2`
    Traceback,
    /// Lines of JSON (`gotrace.dump/1`), one for those that are alike.
    Groups,
}

/// What of a process's goroutines is wanted.
enum Wanted {
    All,
    /// Those that are proven to be leaked.
    Leaked(Proof),
}

impl Wanted {
    fn name(&self) -> &'static str {
        self.kind().name()
    }

    fn kind(&self) -> Kind {
        match self {
            Self::All => Kind::Goroutine,
            Self::Leaked(_) => Kind::Leaked,
        }
    }

    /// Marks what is wanted, and says what of it is not there.
    fn find(&mut self, captured: &mut Captured) -> Option<String> {
        let mut missing = Vec::from_iter(incomplete(&captured.snapshot.counts));
        if let Self::Leaked(Proof { goids, left_out, .. }) = self {
            *left_out = captured.mark_leaked(goids).saturating_add(*left_out);
            missing.extend((*left_out > 0).then(|| format!("leaked goroutines not told: {left_out}")));
        }
        (!missing.is_empty()).then(|| missing.join(", "))
    }

    fn write(&self, format: Format, out: &mut dyn Write, captured: &mut Captured) -> std::io::Result<()> {
        let (mut note, mut filter) = (String::new(), Filter::default());
        if let Self::Leaked(Proof { goids, age, left_out, .. }) = self {
            let age = age.unwrap_or_default().as_secs();
            note = format!("proven by heap scans that began {age} s ago");
            if *left_out > 0 {
                note += &format!("; incomplete: {left_out} more are not told");
            }
            // As Go's has it, a traceback is of all.
            if format != Format::Traceback {
                filter.states = vec![Status::Leaked];
                // None would be any, and there is no goroutine 0.
                filter.goids = if goids.is_empty() { vec![0] } else { goids.clone() };
            }
        }
        let how = match format {
            Format::Protobuf => pprof::write,
            Format::Counted => count::write,
            Format::Traceback => text::write,
            Format::Groups => groups_as_lines,
        };
        captured.write(out, (self.kind(), &note), &filter, how)
    }
}

fn groups_as_lines(out: &mut dyn Write, dump: &Dump<'_>, names: &mut Names) -> std::io::Result<()> {
    json::write_groups(out, dump, &group::groups(&dump.goroutines), names)
}

/// The value of a name in a query; empty where it has none.
pub(super) fn value<'a>(query: &'a str, name: &str) -> &'a str {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find_map(|(key, value)| (key == name).then_some(value)).unwrap_or_default()
}

/// How a profile is to be written, and the difference of how many seconds is asked for; otherwise why neither.
pub(super) fn format_of(query: &str) -> Result<(Format, Option<u32>), &'static str> {
    let format = match value(query, "debug") {
        "" | "0" => Format::Protobuf,
        "1" => Format::Counted,
        "2" => Format::Traceback,
        _ => return Err("debug must be 0, 1 or 2"),
    };
    let seconds = match value(query, "seconds") {
        "" => return Ok((format, None)),
        seconds => seconds.parse().ok().filter(|seconds| *seconds > 0),
    };
    match seconds {
        None => Err("seconds must be a whole number above 0"),
        Some(_) if format != Format::Protobuf => Err("seconds and debug cannot be combined"),
        Some(seconds) => Ok((format, Some(seconds))),
    }
}

/// What there is.
pub(super) async fn index(State(api): State<Arc<Api>>, Path(pid): Path<String>) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    let base = format!("/processes/{}/debug/pprof", traced.pid);
    let mut text = format!(
        "{base}/goroutine           stacks of all goroutines now, for go tool pprof\n\
         {base}/goroutine?debug=1   the same as text, equal stacks together\n\
         {base}/goroutine?debug=2   the same as a Go traceback\n\
         {base}/goroutineleak       of those that are proven to be leaked, as of the last proof\n\
         {base}/goroutineleak?fresh=1   the same, with a proof that is made now\n\
         {base}/block               where goroutines waited since tracing began: channels, select, mutexes, WaitGroups, Cond\n\
         {base}/block?all=1         with sleep and network too\n\
         {base}/block?seconds=10    what of that came within 10 s\n"
    );
    text.push_str("\nnot available yet:");
    NOT_BUILT.iter().for_each(|(name, _)| text.extend([" ", name]));
    plain(StatusCode::OK, text)
}

/// Goroutines that are alike, the most first, as of now.
pub(super) async fn groups(
    State(api): State<Arc<Api>>,
    Path(pid): Path<String>,
    version: Version,
    Extension(stays): Extension<Stays>,
) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    match too_old(version) {
        Some(response) => response,
        None => goroutines(&api, traced.pid, Format::Groups, Wanted::All, &stays).await,
    }
}

/// The answer to a client that cannot tell a part of an answer from all of it.
pub(super) fn too_old(version: Version) -> Option<Response> {
    (version < Version::HTTP_11).then(|| {
        let why = "ask with HTTP/1.1: before it a part of an answer cannot be told from all of it (nginx: \
                   proxy_http_version 1.1)";
        plain(StatusCode::HTTP_VERSION_NOT_SUPPORTED, why)
    })
}

/// A profile by its name.
pub(super) async fn profile(
    State(api): State<Arc<Api>>,
    Path((pid, profile)): Path<(String, String)>,
    (uri, version): (Uri, Version),
    Extension(stays): Extension<Stays>,
) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    let query = uri.query().unwrap_or_default();
    let kind = match &*profile {
        "block" => Some(contention::Kind::Block { all: value(query, "all") == "1" }),
        _ => None,
    };
    if kind.is_some() || matches!(&*profile, "goroutine" | "goroutineleak") {
        let (format, seconds) = match format_of(query) {
            Ok(asked) => asked,
            Err(why) => return plain(StatusCode::BAD_REQUEST, why),
        };
        if let Some(kind) = kind {
            return super::contention::answer(&api, &traced, kind, (format, seconds), &stays).await;
        }
        if seconds.is_some() {
            let why = "gotrace does not compute the difference of two profiles of goroutines: leave out seconds, and \
                       compare two with `go tool pprof -base`";
            return plain(StatusCode::NOT_IMPLEMENTED, why);
        }
        if let Some(response) = too_old(version) {
            return response;
        }
        if profile == "goroutine" {
            return goroutines(&api, traced.pid, format, Wanted::All, &stays).await;
        }
        let proof = match proof(&api, traced.pid, value(query, "fresh") == "1", &stays).await {
            Ok(proof) => proof,
            Err(response) => return response,
        };
        let age = proof.age.unwrap_or_default().as_secs();
        let mut response = goroutines(&api, traced.pid, format, Wanted::Leaked(proof), &stays).await;
        if response.status() == StatusCode::OK {
            response.headers_mut().insert(PROOF_AGE, age.into());
        }
        return response;
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

/// What is proven of a process; otherwise the answer.
async fn proof(api: &Api, pid: u32, fresh: bool, stays: &Stays) -> Result<Proof, Response> {
    let begun = Instant::now();
    if fresh {
        stays.stay();
    }
    loop {
        let told = ask(|answer| api.processes.proof(pid, fresh, answer)).await;
        let proof = told.map_err(|error| refused(pid, error))?;
        if proof.fresh || !fresh && proof.age.is_some() {
            return Ok(proof);
        }
        if !fresh {
            let why = format!(
                "no proof has been completed of process {pid} yet: one is made once goroutines have been blocked for \
                 limits.prove_after; ?fresh=1 makes one now"
            );
            return Err(later(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        if begun.elapsed() >= PROOF_WITHIN {
            let why =
                format!("a proof of process {pid} is being made: ask again in {} s", PROOF_WITHIN.as_secs());
            let mut response = plain(StatusCode::ACCEPTED, why);
            response.headers_mut().insert(RETRY_AFTER, PROOF_WITHIN.as_secs().into());
            return Err(response);
        }
        tokio::time::sleep(PROOF_LOOK_EVERY).await;
    }
}

async fn goroutines(api: &Api, pid: u32, format: Format, wanted: Wanted, stays: &Stays) -> Response {
    let name = wanted.name();
    let read = read(api, pid, stays, move |processes, slot, ready, pipe| {
        capture(processes, (slot, format, wanted), ready, pipe);
    });
    let (incomplete, body) = match read.await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let mut response = match format {
        Format::Protobuf => {
            ([(CONTENT_TYPE, BYTES), (CONTENT_DISPOSITION, &*attachment(name))], body).into_response()
        }
        Format::Counted | Format::Traceback => ([(CONTENT_TYPE, TEXT)], body).into_response(),
        Format::Groups => ([(CONTENT_TYPE, LINES)], body).into_response(),
    };
    if let Some(incomplete) = incomplete.and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(INCOMPLETE, incomplete);
    }
    response
}

/// Says what of the process is not there, or why it was not read.
pub(super) type Ready = oneshot::Sender<Result<Option<String>, CaptureError>>;

/// Has a thread read a process and write an answer, when it is its turn: what of the process is not there, and the
/// answer's body; otherwise the answer.
pub(super) async fn read(
    api: &Api,
    pid: u32,
    stays: &Stays,
    work: impl FnOnce(&dyn Processes, Slot, Ready, stream::Pipe) + Send + 'static,
) -> Result<(Option<String>, Body), Response> {
    let slot = match api.captures.enter(pid).await {
        Ok(slot) => slot,
        Err(why) => return Err(later(StatusCode::TOO_MANY_REQUESTS, why)),
    };
    stays.stay();
    let (ready, taken) = oneshot::channel();
    let (pipe, stream) = stream::pipe();
    let processes = Arc::clone(&api.processes);
    let work = move || work(&*processes, slot, ready, pipe);
    // Not the runtime's own threads for work that blocks: it panics where the system gives none.
    if let Err(error) = thread::Builder::new().name("gotrace-capture".into()).spawn(work) {
        tracing::debug!(pid, %error, "no thread for a capture");
        let why = format!("cannot start a thread ({error}): try again");
        return Err(later(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    match timeout(CAPTURE_WITHIN, taken).await {
        Ok(Ok(Ok(incomplete))) => Ok((incomplete, Body::new(stream))),
        Ok(Ok(Err(error))) => Err(refused(pid, error)),
        Ok(Err(_)) => {
            let why = "gotrace panicked while it read the process, which is a bug: please report it with the message in its log";
            Err(plain(StatusCode::INTERNAL_SERVER_ERROR, why))
        }
        Err(_) => {
            let seconds = CAPTURE_WITHIN.as_secs();
            let why = format!(
                "process {pid} could not be read within {seconds} s: try again when gotrace is less busy"
            );
            Err(later(StatusCode::GATEWAY_TIMEOUT, why))
        }
    }
}

/// How browsers name what they save.
pub(super) fn attachment(profile: &str) -> String {
    format!("attachment; filename=\"{profile}\"")
}

/// Reads a process and writes what is there.
fn capture(
    processes: &dyn Processes,
    (slot, format, mut wanted): (Slot, Format, Wanted),
    ready: Ready,
    mut pipe: stream::Pipe,
) {
    let pid = slot.pid();
    // A panic was printed; without an answer the client is told of it.
    let Ok(captured) = contained(|| processes.capture(pid)) else { return };
    // Who has an answer may ask again: what this holds goes before that. A refusal says that nobody waits any more.
    match captured {
        Ok((mut captured, room)) => {
            let incomplete = wanted.find(&mut captured);
            let waits = ready.send(Ok(incomplete)).is_ok();
            let written =
                waits && matches!(contained(|| wanted.write(format, &mut pipe, &mut captured)), Ok(Ok(())));
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
