//! The pages over HTTP, and the [API](Api), on loopback unless another address is given, and on a socket of the file
//! system. Reads no bodies. The pages answer whoever connects; who may ask the rest is the API's affair. On the socket root
//! and the daemon's user are answered, and nobody else.
//!
//! Whoever may connect takes no more than a bound: of connections (one that is new has the oldest give way, so that
//! those who ask at once are answered whatever others hold open; last those that get a profile, so that nobody takes it
//! from them), of bytes of a request, of time for it and its answer; events, which have no end, of time in which their
//! client takes nothing. One request a connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{Request, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    runtime::Handle,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::timeout,
};

use super::{
    Board, Health, Watched,
    socket::{self, SocketError, SocketFile},
};
use crate::api::{Api, Ends, Stays};
use gotrace_process::Beat;

/// How long ending waits for answers that are under way.
const END_WITHIN: Duration = Duration::from_millis(200);

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// From the connection until its request is there, and until its answer is gone.
const READ_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// With more connections than this, the same page serves all who ask within this time.
const FEW_CONNECTIONS: usize = 8;
const PAGE_FOR: Duration = Duration::from_secs(1);
/// Between two beats, and after a connection that could not be had.
const BEAT_EVERY: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(50);

/// Why the pages cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct ServeError {
    address: SocketAddr,
    error: std::io::Error,
}

/// What is served: the pages and the API. Cheap to clone.
#[derive(Clone)]
pub struct Site {
    router: Router,
    open: Arc<AtomicUsize>,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}

/// The pages, while they are served.
#[derive(Debug)]
pub struct Server {
    at: At,
    task: JoinHandle<()>,
}

/// Where they are.
#[derive(Debug)]
enum At {
    Address(SocketAddr),
    Socket(SocketFile),
}

struct Pages {
    board: Arc<Board>,
    watched: Arc<dyn Watched>,
    open: Arc<AtomicUsize>,
    /// The page that was made last while there were many connections.
    recent: Mutex<Option<(Instant, Bytes)>>,
}

impl Site {
    /// Of what is on this board, and this API.
    #[must_use]
    pub fn new(board: Arc<Board>, watched: Arc<dyn Watched>, api: Api) -> Self {
        let open = Arc::new(AtomicUsize::new(0));
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .with_state(Arc::new(Pages { board, watched, open: Arc::clone(&open), recent: Mutex::default() }))
            .merge(api.router());
        Self { router, open }
    }
}

impl Server {
    /// Begins to serve at an address, and to beat.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start(
        address: SocketAddr,
        site: &Site,
        (runtime, beat): (&Handle, Beat),
    ) -> Result<Self, ServeError> {
        let failed = |error| ServeError { address, error };
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let Site { router, open } = site.clone();
        let task = runtime.spawn(serve(listener, router, open, beat, READ_WITHIN));
        Ok(Self { at: At::Address(address), task })
    }

    /// The same on a socket of the file system, for root and the user of this process.
    ///
    /// # Errors
    /// When the socket cannot be had.
    pub fn start_on_socket(
        path: &Path,
        site: &Site,
        (runtime, beat): (&Handle, Beat),
    ) -> Result<Self, SocketError> {
        let _within = runtime.enter();
        let (listener, file) = socket::listen(path)?;
        // How many ask here is no matter of the address.
        let task = runtime.spawn(serve(listener, site.router.clone(), Arc::default(), beat, READ_WITHIN));
        Ok(Self { at: At::Socket(file), task })
    }

    /// Its address, where it has one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.at {
            At::Address(address) => Some(address),
            At::Socket(_) => None,
        }
    }

    /// Where it is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.at {
            At::Address(address) => format!("http://{address}"),
            At::Socket(file) => file.path().display().to_string(),
        }
    }

    /// Ends it.
    pub fn stop(self, runtime: &Handle) {
        let Self { at, task } = self;
        task.abort();
        // A timer needs the runtime around it when it is made.
        let _ = runtime.block_on(async { tokio::time::timeout(END_WITHIN, task).await });
        drop(at);
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy)]
enum Client {
    Known(Ends),
    Unknown,
    /// It may ask nothing.
    Refused,
}

/// Where connections come from.
trait Listen: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Client)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Client)> {
        let (stream, peer) = Self::accept(self).await?;
        let ends = stream.local_addr().map(|local| Ends::Network { peer, local });
        Ok((stream, ends.map_or(Client::Unknown, Client::Known)))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Client)> {
        let (stream, _) = Self::accept(self).await?;
        let client =
            if socket::may_ask(stream.peer_cred()) { Client::Known(Ends::Socket) } else { Client::Refused };
        Ok((stream, client))
    }
}

/// Takes connections until it is dropped, and all of them with it.
async fn serve(
    listener: impl Listen,
    router: Router,
    open: Arc<AtomicUsize>,
    beat: Beat,
    read_within: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(read_within).max_buf_size(MAX_HEAD).keep_alive(false);
    let mut tasks = JoinSet::new();
    let mut oldest: VecDeque<(AbortHandle, Stays)> = VecDeque::new();
    loop {
        beat.beat();
        let accepted = timeout(BEAT_EVERY, listener.accept()).await;
        while tasks.try_join_next().is_some() {}
        oldest.retain(|(connection, _)| !connection.is_finished());
        open.store(oldest.len(), Ordering::Relaxed);
        let (stream, client) = match accepted {
            Err(_) => continue,
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        if oldest.len() >= MAX_CONNECTIONS {
            let first = oldest.iter().position(|(_, stays)| !stays.stays()).unwrap_or(0);
            if let Some((connection, _)) = oldest.remove(first) {
                connection.abort();
            }
        }
        let stays = Stays::default();
        let (told, moves) = (stays.clone(), stays.clone());
        let pages = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            // Where the ends are not known, the client is not known to be local.
            if let Client::Known(ends) = client {
                request.extensions_mut().insert(ends);
            }
            request.extensions_mut().insert(told.clone());
            let pages = pages.clone();
            async move {
                match client {
                    Client::Refused => Ok::<_, Infallible>(refuse()),
                    Client::Known(_) | Client::Unknown => pages.call(request).await,
                }
            }
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        // What is wrong with a connection is its client's affair.
        let task = tasks.spawn(async move {
            let mut connection = pin!(connection);
            // Events go on for as long as somebody takes them.
            while timeout(ANSWER_WITHIN, connection.as_mut()).await.is_err() && moves.has_moved() {}
        });
        oldest.push_back((task, stays));
    }
}

/// The answer on the socket to those who may not ask.
fn refuse() -> Response {
    let why = "only root and the user of the daemon are answered on this socket\n";
    (StatusCode::FORBIDDEN, [(CONTENT_TYPE, "text/plain; charset=utf-8")], why).into_response()
}

impl Pages {
    fn page(&self) -> Bytes {
        let make = || {
            let dropped = |resource: &_| self.watched.spans_dropped(resource);
            Bytes::from(self.board.page(&self.watched.agent(), dropped))
        };
        if self.open.load(Ordering::Relaxed) <= FEW_CONNECTIONS {
            return make();
        }
        // A panic elsewhere leaves a whole value.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match &*recent {
            Some((made, page)) if made.elapsed() < PAGE_FOR => page.clone(),
            _ => {
                let page = make();
                *recent = Some((Instant::now(), page.clone()));
                page
            }
        }
    }
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    let text = pages.page();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn livez(State(pages): State<Arc<Pages>>) -> Response {
    answer(pages.watched.live())
}

async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    answer(pages.watched.ready())
}

fn answer(health: Health) -> Response {
    match health {
        Health::Good => (StatusCode::OK, "ok\n").into_response(),
        Health::Bad(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::TcpStream,
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::{
        api::{Access, testing::Nobody},
        prometheus::Agent,
    };
    use gotrace_process::Threads;

    /// Longer than any of this takes unless it hangs.
    const PATIENCE: Duration = Duration::from_secs(120);

    struct Well;

    impl Watched for Well {
        fn agent(&self) -> Agent {
            Agent::default()
        }

        fn spans_dropped(
            &self,
            _: &Arc<gotrace_model::Resource>,
        ) -> std::collections::BTreeMap<&'static str, u64> {
            std::collections::BTreeMap::new()
        }

        fn live(&self) -> Health {
            Health::Good
        }

        fn ready(&self) -> Health {
            Health::Bad("a reason".into())
        }
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream
    }

    fn get(address: SocketAddr, path: &str) -> String {
        ask(connect(address), path)
    }

    fn ask(mut stream: impl Read + Write, path: &str) -> String {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: gotrace\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, and the end");
        answer
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    }

    #[test]
    fn who_asks_is_answered_whatever_others_hold_open() {
        let runtime = runtime();
        let beat = Threads::default().register("page", PATIENCE);
        let address = "127.0.0.1:0".parse().expect("an address");
        let api = Api::new(Arc::new(Nobody), Arc::default(), Access::default());
        let site = Site::new(Arc::default(), Arc::new(Well), api);
        let server = Server::start(address, &site, (runtime.handle(), beat)).expect("it serves");
        let address = server.address().expect("an address");
        let mut halves: Vec<TcpStream> = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            let mut stream = connect(address);
            // One that gave way already may be closed.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ");
            halves.push(stream);
        }
        assert!(get(address, "/livez").starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(get(address, "/readyz").ends_with("a reason\n"));
        assert!(get(address, "/metrics").contains("gotrace_probed_files 0"));
        // The first have given way: their ends come at once.
        let ended = |stream: &mut TcpStream| match stream.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        assert!(halves.iter_mut().take(MAX_CONNECTIONS).all(ended));
        server.stop(runtime.handle());
    }

    #[test]
    fn a_socket_serves_the_same_without_a_token_and_by_any_name() {
        let runtime = runtime();
        let beat = Threads::default().register("page", PATIENCE);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gotrace.sock");
        let access = Access::default();
        let token = crate::api::Token::new(b"0123456789abcdef").ok();
        access.set(crate::api::AccessRules { hosts: Vec::new(), token, require_token: true });
        let api = Api::new(Arc::new(Nobody), Arc::default(), access);
        let site = Site::new(Arc::default(), Arc::new(Well), api);
        let server = Server::start_on_socket(&path, &site, (runtime.handle(), beat)).expect("it serves");
        assert_eq!(server.place(), path.display().to_string());
        let get = |page: &str| {
            let stream = UnixStream::connect(&path).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time");
            ask(stream, page)
        };
        for page in ["/livez", "/metrics", "/api/v1/processes"] {
            let answer = get(page);
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{page}: {answer}");
        }
        server.stop(runtime.handle());
        assert!(!path.exists());
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let beat = Threads::default().register("page", PATIENCE);
        let open = Arc::default();
        runtime.spawn(serve(listener, Router::new(), open, beat, Duration::from_millis(50)));
        let mut half = connect(address);
        half.write_all(b"GET / HTTP/1.1\r\nHost: ").expect("it reads");
        let mut answer = Vec::new();
        let _ = half.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "in time");
        let mut large = connect(address);
        let _ = large.write_all(format!("GET / HTTP/1.1\r\nHost: {}", "x".repeat(200 << 10)).as_bytes());
        answer.clear();
        let _ = large.read_to_end(&mut answer);
        let said = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    }
}
