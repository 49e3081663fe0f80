//! An OTLP collector inside the test's own process: gRPC or HTTP, with or without TLS, obedient or not.
//!
//! It keeps what it was sent, and answers as it is told: take it, refuse it, take a part, or wait. Only
//! for tests and benchmarks: it keeps everything in memory.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use opentelemetry_proto::tonic::{
    metrics::v1::{Metric, metric::Data},
    trace::v1::Span,
};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tonic::{Request, Response, Status, codec::CompressionEncoding};
use tonic_types::{ErrorDetails, StatusExt};

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Taken.
    Take,
    /// Taken after a while.
    TakeAfter(Duration),
    /// Refused with a gRPC code and an HTTP status, perhaps with the wish to come back after a while.
    Fail {
        /// For gRPC.
        code: tonic::Code,
        /// For HTTP.
        status: u16,
        /// RetryInfo, or `Retry-After`.
        after: Option<Duration>,
    },
    /// Taken but for so many.
    Partial(i64, &'static str),
}

/// What the wire carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// PEM texts of a server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Who may come; `None`: everyone.
    pub client_ca: Option<String>,
}

#[derive(Debug, Default)]
struct Kept {
    traces: Vec<ExportTraceServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    /// Headers of each attempt, names in lower case.
    attempts: Vec<Vec<(String, String)>>,
    replies: VecDeque<Reply>,
    always: Option<Reply>,
}

#[derive(Debug, Default)]
struct State {
    kept: Mutex<Kept>,
    spans: AtomicU64,
    points: AtomicU64,
    count_only: bool,
}

/// A running collector; it ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    state: Arc<State>,
    address: SocketAddr,
    scheme: &'static str,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Starts one without TLS at a free port.
    pub async fn start(wire: Wire) -> Self {
        Self::start_with(wire, "127.0.0.1:0", None, false).await
    }

    /// Starts one that counts spans and keeps nothing.
    pub async fn start_counting(wire: Wire) -> Self {
        Self::start_with(wire, "127.0.0.1:0", None, true).await
    }

    /// Starts one.
    ///
    /// # Panics
    /// When the address is taken or the certificates are not usable.
    pub async fn start_with(wire: Wire, address: &str, tls: Option<Tls>, count_only: bool) -> Self {
        let state = Arc::new(State { count_only, ..State::default() });
        let listener = TcpListener::bind(address).await.expect("an address to listen at");
        let address = listener.local_addr().expect("an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = match wire {
            Wire::Grpc => tokio::spawn(grpc(listener, tls, Arc::clone(&state))),
            Wire::Http => tokio::spawn(http(listener, tls, Arc::clone(&state))),
        };
        Self { state, address, scheme, server }
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How the next requests are answered, one reply each; afterwards all are taken.
    pub fn reply(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.kept().replies.extend(replies);
    }

    /// How requests are answered when no single replies are left.
    pub fn always(&self, reply: Reply) {
        self.state.kept().always = Some(reply);
    }

    /// Requests taken.
    #[must_use]
    pub fn traces(&self) -> Vec<ExportTraceServiceRequest> {
        self.state.kept().traces.clone()
    }

    /// Requests taken.
    #[must_use]
    pub fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        self.state.kept().metrics.clone()
    }

    /// All spans taken.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        let kept = self.state.kept();
        let all = kept.traces.iter().flat_map(|r| &r.resource_spans).flat_map(|r| &r.scope_spans);
        all.flat_map(|s| s.spans.clone()).collect()
    }

    /// How many spans were taken.
    #[must_use]
    pub fn span_count(&self) -> u64 {
        self.state.spans.load(Ordering::Relaxed)
    }

    /// How many points of metrics were taken.
    #[must_use]
    pub fn point_count(&self) -> u64 {
        self.state.points.load(Ordering::Relaxed)
    }

    /// Headers of every attempt, also of those that were refused.
    #[must_use]
    pub fn attempts(&self) -> Vec<Vec<(String, String)>> {
        self.state.kept().attempts.clone()
    }

    /// Goes away, and gives the port back.
    pub async fn stop(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl State {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_reply(&self, headers: Vec<(String, String)>) -> Reply {
        let mut kept = self.kept();
        kept.attempts.push(headers);
        let next = kept.replies.pop_front();
        next.or_else(|| kept.always.clone()).unwrap_or(Reply::Take)
    }

    fn keep_traces(&self, request: ExportTraceServiceRequest) {
        let spans: usize =
            request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum();
        self.spans.fetch_add(spans as u64, Ordering::Relaxed);
        if !self.count_only {
            self.kept().traces.push(request);
        }
    }

    fn keep_metrics(&self, request: ExportMetricsServiceRequest) {
        let metrics = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
        let points: usize = metrics.map(points).sum();
        self.points.fetch_add(points as u64, Ordering::Relaxed);
        if !self.count_only {
            self.kept().metrics.push(request);
        }
    }
}

fn points(metric: &Metric) -> usize {
    match &metric.data {
        None => 0,
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.len(),
        Some(Data::Summary(summary)) => summary.data_points.len(),
    }
}

/// Decides on an answer: how many are rejected and why, or an error.
async fn decide(reply: Reply) -> Result<Option<(i64, String)>, (tonic::Code, u16, Option<Duration>)> {
    match reply {
        Reply::Take => Ok(None),
        Reply::TakeAfter(wait) => {
            tokio::time::sleep(wait).await;
            Ok(None)
        }
        Reply::Partial(rejected, message) => Ok(Some((rejected, message.to_owned()))),
        Reply::Fail { code, status, after } => Err((code, status, after)),
    }
}

struct Service(Arc<State>);

impl Service {
    async fn answer<T>(&self, request: &Request<T>) -> Result<Option<(i64, String)>, Status> {
        let headers = request
            .metadata()
            .iter()
            .filter_map(|entry| match entry {
                tonic::metadata::KeyAndValueRef::Ascii(k, v) => {
                    Some((k.to_string(), v.to_str().unwrap_or_default().to_owned()))
                }
                tonic::metadata::KeyAndValueRef::Binary(..) => None,
            })
            .collect();
        decide(self.0.next_reply(headers)).await.map_err(|(code, _, after)| match after {
            Some(after) => {
                Status::with_error_details(code, "told to", ErrorDetails::with_retry_info(Some(after)))
            }
            None => Status::new(code, "told to"),
        })
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let partial = self.answer(&request).await?;
        self.0.keep_traces(request.into_inner());
        Ok(Response::new(trace_response(partial)))
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let partial = self.answer(&request).await?;
        self.0.keep_metrics(request.into_inner());
        Ok(Response::new(metrics_response(partial)))
    }
}

fn trace_response(partial: Option<(i64, String)>) -> ExportTraceServiceResponse {
    ExportTraceServiceResponse {
        partial_success: partial.map(|(rejected_spans, error_message)| ExportTracePartialSuccess {
            rejected_spans,
            error_message,
        }),
    }
}

fn metrics_response(partial: Option<(i64, String)>) -> ExportMetricsServiceResponse {
    ExportMetricsServiceResponse {
        partial_success: partial.map(|(rejected_data_points, error_message)| ExportMetricsPartialSuccess {
            rejected_data_points,
            error_message,
        }),
    }
}

async fn grpc(listener: TcpListener, tls: Option<Tls>, state: Arc<State>) {
    let mut server = tonic::transport::Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    if let Some(Tls { certificate, key, client_ca }) = tls {
        let mut config = tonic::transport::ServerTlsConfig::new()
            .identity(tonic::transport::Identity::from_pem(certificate, key));
        if let Some(ca) = client_ca {
            config = config.client_ca_root(tonic::transport::Certificate::from_pem(ca));
        }
        server = server.tls_config(config).expect("usable certificates");
    }
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    server
        .add_service(
            TraceServiceServer::new(Service(Arc::clone(&state))).accept_compressed(CompressionEncoding::Gzip),
        )
        .add_service(MetricsServiceServer::new(Service(state)).accept_compressed(CompressionEncoding::Gzip))
        .serve_with_incoming(incoming)
        .await
        .expect("served");
}

type HttpState = axum::extract::State<Arc<State>>;

async fn http(listener: TcpListener, tls: Option<Tls>, state: Arc<State>) {
    let router = axum::Router::new()
        .route("/v1/traces", axum::routing::post(http_traces))
        .route("/v1/metrics", axum::routing::post(http_metrics))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(state);
    match tls {
        None => axum::serve(listener, router).await.expect("served"),
        Some(tls) => {
            let listener = TlsListener { listener, acceptor: acceptor(&tls) };
            axum::serve(listener, router).await.expect("served");
        }
    }
}

async fn http_traces(
    axum::extract::State(state): HttpState,
    headers: axum::http::HeaderMap,
    body: axum::body::Bytes,
) -> axum::response::Response {
    answer_http(&state, &headers, &body, State::keep_traces, trace_response).await
}

async fn http_metrics(
    axum::extract::State(state): HttpState,
    headers: axum::http::HeaderMap,
    body: axum::body::Bytes,
) -> axum::response::Response {
    answer_http(&state, &headers, &body, State::keep_metrics, metrics_response).await
}

async fn answer_http<Q: Message + Default, R: Message>(
    state: &State,
    headers: &axum::http::HeaderMap,
    body: &[u8],
    keep: fn(&State, Q),
    response: fn(Option<(i64, String)>) -> R,
) -> axum::response::Response {
    use axum::http::{HeaderName, StatusCode, header};
    use axum::response::IntoResponse;
    const PROTOBUF: (HeaderName, &str) = (header::CONTENT_TYPE, "application/x-protobuf");

    let list = headers
        .iter()
        .map(|(k, v)| (k.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    match decide(state.next_reply(list)).await {
        Err((code, status, after)) => {
            let status = StatusCode::from_u16(status).expect("an HTTP status");
            let body =
                tonic_types::Status { code: code as i32, message: "told to".into(), details: Vec::new() };
            let mut response = (status, [PROTOBUF], body.encode_to_vec()).into_response();
            if let Some(after) = after {
                response.headers_mut().insert(header::RETRY_AFTER, after.as_secs().into());
            }
            response
        }
        Ok(partial) => {
            let plain = if headers.get(header::CONTENT_ENCODING).is_some_and(|v| v == "gzip") {
                use std::io::Read;
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(body).read_to_end(&mut plain).expect("gzip");
                plain
            } else {
                body.to_vec()
            };
            match Q::decode(plain.as_slice()) {
                Ok(request) => keep(state, request),
                Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
            }
            ([PROTOBUF], response(partial).encode_to_vec()).into_response()
        }
    }
}

struct TlsListener {
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn acceptor(tls: &Tls) -> tokio_rustls::TlsAcceptor {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(|c| c.expect("a certificate")).collect()
    };
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).expect("a key");
    let builder = match &tls.client_ca {
        None => rustls::ServerConfig::builder().with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(ca) {
                roots.add(certificate).expect("a root");
            }
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build();
            rustls::ServerConfig::builder().with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let config = builder.with_single_cert(certificates(&tls.certificate), key).expect("a server");
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}
