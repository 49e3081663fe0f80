//! The daemon's API over HTTP: the processes that are traced as JSON and as events, targets for scrapers of profiles, of
//! each process what `net/http/pprof` would offer, for programs that have none, and a page for browsers.
//!
//! Input: [`Processes`], each one's last report on the [`Board`], requests that [`Access`] admits. Output: JSON, the page,
//! and profiles: of a snapshot that is taken at the request, of waits that were seen, of leaks that were proven. Invariants: a
//! process that no rule takes is never read; one capture a process at a time, and two in all; the threads that serve
//! `/livez` read no process.
//! Errors are plain text: what happened, and what to do.

mod access;
mod ask;
mod contention;
mod events;
mod findings;
mod follow;
mod graph;
pub mod openapi;
#[cfg(test)]
mod openapi_tests;
mod page;
#[cfg(test)]
mod page_tests;
mod pprof;
mod processes;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{
            ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};

pub use access::{Access, AccessRules, BadToken, Token};
pub use follow::Wanted;
pub use processes::SCHEMA;

use crate::{contention::Waits, dump::Captured, json, prometheus::Board};
use access::{Denied, is_for_another_site, is_link_to, is_of_a_script, without_port};
use gotrace_inspect::examine::WaitGraph;
use gotrace_model::{Resource, printable::write_json};
use processes::Latest;

/// A process that is traced, with probes or by snapshots.
#[derive(Clone, Debug)]
pub struct Traced {
    /// In gotrace's PID namespace.
    pub pid: u32,
    /// Its start in clock ticks since boot: with the pid it tells the process from all others.
    pub start_ticks: u64,
    /// Since when, Unix epoch.
    pub since_unix_nano: u64,
    /// As of then: `events` or `snapshot`.
    pub engine: &'static str,
    /// As of then.
    pub level: &'static str,
    /// What it and the host tell of it.
    pub resource: Arc<Resource>,
    /// Whether it is of a recording, and comes to nothing more.
    pub recorded: bool,
}

/// Why a process's goroutines cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaptureError {
    /// It is not traced, or has ended.
    NotTraced,
    /// It cannot be read now, but may be soon: why.
    Later(String),
    /// The configuration does not let it be known: what would.
    Unavailable(String),
    /// It cannot be read: why.
    Failed(String),
}

/// Whatever knows the processes that are traced, and reads them.
pub trait Processes: Send + Sync {
    /// All of them, by ascending pid.
    fn traced(&self) -> Vec<Traced>;
    /// One of them.
    fn find(&self, pid: u32) -> Option<Traced>;
    /// Reads all goroutines of one of them now, which takes its time; with the memory that was set aside for it.
    ///
    /// # Errors
    /// [`CaptureError`]
    fn capture(&self, pid: u32) -> Result<(Captured, Room), CaptureError>;
    /// Reads one of them as [`Processes::capture`] does, with what goroutines wait on, and finds who waits for whom.
    ///
    /// # Errors
    /// [`CaptureError`]
    fn graph(&self, pid: u32) -> Result<(Captured, WaitGraph, Room), CaptureError>;
    /// From now on at least this is wanted of one of them, until what is given back is dropped.
    ///
    /// # Errors
    /// [`CaptureError`]
    fn hold(&self, pid: u32, wanted: Wanted) -> Result<Held, CaptureError>;
    /// Where one of them waited since tracing began, soon.
    fn waits(&self, pid: u32, answer: Answer<Waits>);
    /// Which of its goroutines are proven to be leaked, soon. `fresh`: a proof is to be made for this question, unless
    /// one was since it was last asked so.
    fn proof(&self, pid: u32, fresh: bool, answer: Answer<Proof>);
}

/// Takes an answer, on a thread that it must not hold up.
pub type Answer<T> = Box<dyn FnOnce(Result<T, CaptureError>) + Send>;

/// What is proven of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Goroutines that never run again, by ascending id.
    pub goids: Vec<u64>,
    /// How many more there are that are not told.
    pub left_out: u64,
    /// How long ago the last proof began that was completed; `None` where none was.
    pub age: Option<Duration>,
    /// Whether one was completed that was asked for.
    pub fresh: bool,
}

/// What is wanted of a process until this is dropped.
pub type Held = Box<dyn Send>;

/// Memory that others do not get until this is dropped.
pub type Room = Box<dyn Send>;

/// The ends of a connection, which the server adds to each request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ends {
    /// Of the network.
    Network {
        /// The client's.
        peer: SocketAddr,
        /// gotrace's.
        local: SocketAddr,
    },
    /// A socket of the file system, whose client the server has admitted.
    Socket,
}

/// Whether a connection may have to give way to a new one, and when it has to end, which the server adds to each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stays(Arc<Marks>);

#[derive(Debug, Default)]
struct Marks {
    stays: AtomicBool,
    moved: AtomicBool,
}

impl Stays {
    /// It has what others had to wait for: it gives way last.
    pub fn stay(&self) {
        self.0.stays.store(true, Ordering::Relaxed);
    }

    /// Whether it gives way last.
    pub fn stays(&self) -> bool {
        self.0.stays.load(Ordering::Relaxed)
    }

    /// Its client has taken more of an answer without end.
    pub fn moved(&self) {
        self.0.moved.store(true, Ordering::Relaxed);
    }

    /// Whether it has since this was last asked.
    pub fn has_moved(&self) -> bool {
        self.0.moved.swap(false, Ordering::Relaxed)
    }
}

/// What answers.
pub struct Api {
    processes: Arc<dyn Processes>,
    board: Arc<Board>,
    access: Access,
    captures: pprof::Captures,
    contentions: contention::Turns,
    clients: events::Clients,
    followers: follow::Followers,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("access", &self.access).finish_non_exhaustive()
    }
}

impl Api {
    /// Of these processes, whose last reports are on this board, for those whom `access` admits.
    #[must_use]
    pub fn new(processes: Arc<dyn Processes>, board: Arc<Board>, access: Access) -> Self {
        Self {
            processes,
            board,
            access,
            captures: pprof::Captures::default(),
            contentions: contention::Turns::default(),
            clients: events::Clients::default(),
            followers: follow::Followers::default(),
        }
    }

    /// Its paths, and the answer to those that nobody has.
    pub(crate) fn router(self) -> Router {
        let api = Arc::new(self);
        page::router()
            .route("/api/v1/events", get(events::events))
            .route("/api/v1/findings", get(findings))
            .route("/api/v1/history", get(histories))
            .route(openapi::PATH, get(openapi::document))
            .route("/api/v1/processes", get(list))
            .route("/api/v1/processes/{pid}", get(latest))
            .route("/api/v1/processes/{pid}/findings", get(findings_of))
            .route("/api/v1/processes/{pid}/follow", post(follow::follow))
            .route("/api/v1/processes/{pid}/goroutines", get(pprof::groups))
            .route("/api/v1/processes/{pid}/graph", get(graph::graph))
            .route("/api/v1/processes/{pid}/history", get(history))
            .route("/api/v1/sd", get(targets))
            .route("/processes/{pid}/debug/pprof", get(pprof::index))
            .route("/processes/{pid}/debug/pprof/", get(pprof::index))
            .route("/processes/{pid}/debug/pprof/{profile}", get(pprof::profile))
            .fallback(no_such_page)
            .layer(from_fn_with_state(Arc::clone(&api), guard))
            .with_state(api)
    }

    fn latest(&self) -> Latest {
        let intervals = self.board.intervals();
        intervals.into_iter().map(|interval| (interval.resource.process(), interval)).collect()
    }

    /// The process that a path names, as the lists write it.
    fn process(&self, pid: &str) -> Option<Traced> {
        let number: u32 = pid.parse().ok()?;
        if number.to_string() == pid { self.processes.find(number) } else { None }
    }
}

/// Lets nobody ask who may not, and says how answers are to be treated.
async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let ends = request.extensions().get::<Ends>().copied();
    let (path, method, headers) = (request.uri().path(), request.method(), request.headers());
    let host = host_of(request.uri(), headers);
    let admitted = match ends {
        Some(Ends::Socket) => Ok(()),
        Some(Ends::Network { peer, .. }) => api.access.rules().admit(Some(peer.ip()), host, headers),
        None => api.access.rules().admit(None, host, headers),
    };
    // The page itself may be linked to: it asks for all else from where it is.
    let for_another_site = is_for_another_site(host, headers) && !is_link_to(path, headers);
    let is_get = *method == Method::GET;
    let of_socket = matches!(ends, Some(Ends::Socket)) && path.ends_with(follow::PATH);
    let is_answered = is_get || (*method == Method::POST && (path == page::LOGIN || of_socket));
    let mut response = match admitted {
        Ok(()) if for_another_site => plain(
            StatusCode::FORBIDDEN,
            "a browser asks for a page of another site: open the address in a tab of its own",
        ),
        // HEAD would have a process read for nothing.
        Ok(()) if !is_answered => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            response
        }
        Ok(()) => next.run(request).await,
        Err(Denied::Forbidden(why)) => plain(StatusCode::FORBIDDEN, why),
        // It asks for the token.
        Err(Denied::Unauthorized(_)) if is_get && page::has(path) => next.run(request).await,
        Err(Denied::Unauthorized(why)) => {
            let mut response = plain(StatusCode::UNAUTHORIZED, why);
            let schemes = ["Bearer realm=\"gotrace\"", "Basic realm=\"gotrace\""];
            // Where a script asks, a browser would ask for a password by itself.
            let told = if is_of_a_script(headers) { 1 } else { 2 };
            for scheme in schemes.iter().take(told) {
                response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The name that a request was sent to; `None` where there is none, or more than one.
fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    if let Some(authority) = uri.authority() {
        return Some(authority.as_str());
    }
    let mut hosts = headers.get_all(HOST).iter();
    hosts.next().filter(|_| hosts.next().is_none())?.to_str().ok()
}

fn now_unix_nano() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

async fn list(State(api): State<Arc<Api>>) -> Response {
    as_json(&processes::list(&api.processes.traced(), &api.latest(), now_unix_nano()))
}

async fn findings(State(api): State<Arc<Api>>) -> Response {
    as_json(&findings::list(&api.processes.traced(), &api.latest(), now_unix_nano()))
}

async fn findings_of(State(api): State<Arc<Api>>, Path(pid): Path<String>) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    as_json(&findings::list(&[traced], &api.latest(), now_unix_nano()))
}

async fn histories(State(api): State<Arc<Api>>) -> Response {
    as_json(&processes::histories(&api.processes.traced(), &api.board))
}

async fn history(State(api): State<Arc<Api>>, Path(pid): Path<String>) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    let history = api.board.history(traced.resource.process()).unwrap_or_default();
    as_json(&processes::history(&traced, &history, false))
}

async fn latest(State(api): State<Arc<Api>>, Path(pid): Path<String>) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    let Some(interval) = api.latest().remove(&traced.resource.process()) else {
        let why =
            format!("process {pid} has only just been found: its first report comes within trace.interval");
        return later(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    let mut line = Vec::new();
    match json::interval(&mut line, &interval) {
        Ok(()) => ([(CONTENT_TYPE, JSON)], line).into_response(),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write JSON: {error}")),
    }
}

async fn targets(State(api): State<Arc<Api>>, request: Request) -> Response {
    let ends = request.extensions().get::<Ends>().copied();
    let Some(address) = address_of(host_of(request.uri(), request.headers()), ends) else {
        return plain(StatusCode::BAD_REQUEST, "the request's Host is no address that targets could have");
    };
    as_json(&processes::targets(&api.processes.traced(), &api.latest(), &address))
}

/// The address that a request was sent to, with a port.
fn address_of(host: Option<&str>, ends: Option<Ends>) -> Option<String> {
    let is_one = |host: &&str| {
        let name = without_port(host);
        let address = name.starts_with('[') && name.ends_with(']');
        !name.is_empty()
            && (address || !name.contains(':'))
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
    };
    match host.filter(is_one) {
        Some(host) if without_port(host) == host => Some(format!("{host}:80")),
        Some(host) => Some(host.to_owned()),
        None => match ends? {
            Ends::Network { local, .. } => Some(local.to_string()),
            Ends::Socket => None,
        },
    }
}

async fn no_such_page() -> Response {
    let why = "there is no such page: there are / (for browsers), /metrics, /livez, /readyz, /api/v1/processes, \
               /api/v1/findings, /api/v1/history, /api/v1/events, /api/v1/sd, /api/v1/openapi.json and \
               /processes/PID/debug/pprof/";
    plain(StatusCode::NOT_FOUND, why)
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

fn as_json(value: &serde_json::Value) -> Response {
    let mut line = Vec::new();
    match write_json(&mut line, value) {
        Ok(()) => {
            line.push(b'\n');
            ([(CONTENT_TYPE, JSON)], line).into_response()
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write JSON: {error}")),
    }
}

/// A line for people.
fn plain(status: StatusCode, text: impl Display) -> Response {
    (status, [(CONTENT_TYPE, TEXT)], format!("{text}\n")).into_response()
}

/// The same, to one who may try again in a moment.
fn later(status: StatusCode, text: impl Display) -> Response {
    let mut response = plain(status, text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The answer to one whose process cannot be told of.
fn refused(pid: u32, error: CaptureError) -> Response {
    match error {
        CaptureError::NotTraced => not_traced(&pid.to_string()),
        CaptureError::Later(why) => later(StatusCode::SERVICE_UNAVAILABLE, why),
        CaptureError::Unavailable(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        CaptureError::Failed(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}

fn not_traced(pid: &str) -> Response {
    let pid: String = pid.chars().take(20).filter(char::is_ascii_alphanumeric).collect();
    let why = format!(
        "process {pid} is not traced: it is no Go program, no rule takes it, or it has ended; /api/v1/processes lists those \
         that are"
    );
    plain(StatusCode::NOT_FOUND, why)
}
