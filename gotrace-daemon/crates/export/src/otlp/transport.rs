//! One attempt to send one encoded request, over gRPC or HTTP.
//!
//! Input: the bytes of an `Export…ServiceRequest`. Output: an [`Answer`]. Requests are encoded once, by
//! whoever made them, and travel as bytes: a repetition costs no encoding, and all signals take the same
//! way. Does not repeat, does not queue, does not count.

use std::{error::Error as _, path::Path, time::SystemTime};

use bytes::{Buf, BufMut, Bytes};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
    trace::v1::ExportTraceServiceResponse,
};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{MetadataKey, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;

use super::{
    config::{Protocol, Signal, SignalConfig},
    retry::{Answer, grpc_is_retryable, http_is_retryable, retry_after},
};

/// The transport could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A PEM file could not be read.
    #[error("cannot read {what} from {path} for the collector {endpoint}: {error}")]
    Read {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: String,
        /// The collector.
        endpoint: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Certificates, keys or the address do not fit.
    #[error("cannot connect to the collector {endpoint}: {why}")]
    SetUp {
        /// The collector.
        endpoint: String,
        /// What is wrong.
        why: String,
    },
}

/// The largest answer that is read; more is cut off with the connection.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A way to a collector for one signal. Connects when first used, and again when the connection is lost.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    signal: Signal,
    config: SignalConfig,
    wire: Wire,
}

#[derive(Clone, Debug)]
enum Wire {
    Grpc(Channel),
    Http(reqwest::Client),
}

impl Transport {
    /// Reads the certificates. Must be called within a tokio runtime.
    pub fn new(signal: Signal, config: &SignalConfig) -> Result<Self, TransportError> {
        // reqwest takes the process's provider; one that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = PemFiles::read(config)?;
        let wire = match config.protocol {
            Protocol::Grpc => Wire::Grpc(channel(config, &tls)?),
            Protocol::HttpProtobuf => Wire::Http(client(config, &tls)?),
        };
        Ok(Self { signal, config: config.clone(), wire })
    }

    /// The collector's address, for messages.
    pub fn endpoint(&self) -> &str {
        &self.config.endpoint
    }

    /// The channel, when gRPC is spoken.
    pub fn channel(&self) -> Option<&Channel> {
        match &self.wire {
            Wire::Grpc(channel) => Some(channel),
            Wire::Http(_) => None,
        }
    }

    /// The client, when HTTP is spoken.
    pub fn client(&self) -> Option<&reqwest::Client> {
        match &self.wire {
            Wire::Grpc(_) => None,
            Wire::Http(client) => Some(client),
        }
    }

    /// What is configured.
    pub fn config(&self) -> &SignalConfig {
        &self.config
    }

    /// Sends a request once.
    pub async fn send(&self, request: Bytes) -> Answer {
        let attempt = async {
            match &self.wire {
                Wire::Grpc(channel) => self.send_grpc(channel.clone(), request).await,
                Wire::Http(client) => self.send_http(client, request).await,
            }
        };
        match tokio::time::timeout(self.config.timeout, attempt).await {
            Ok(answer) => answer,
            Err(_) => {
                Answer::Again { after: None, message: format!("no answer within {:?}", self.config.timeout) }
            }
        }
    }

    async fn send_grpc(&self, channel: Channel, request: Bytes) -> Answer {
        let path = match self.signal {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        };
        let mut client = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .accept_compressed(CompressionEncoding::Gzip);
        if self.config.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        if let Err(error) = client.ready().await {
            return Answer::Again { after: None, message: chain(&error) };
        }
        let mut request = tonic::Request::new(request);
        request.set_timeout(self.config.timeout);
        for (name, value) in &self.config.headers {
            // Checked when the configuration was read.
            if let (Ok(name), Ok(value)) =
                (MetadataKey::from_bytes(name.as_bytes()), MetadataValue::try_from(value))
            {
                request.metadata_mut().insert(name, value);
            }
        }
        match client.unary(request, http::uri::PathAndQuery::from_static(path), BytesCodec).await {
            Ok(response) => taken(self.signal, response.into_inner()),
            Err(status) => grpc_error(&status),
        }
    }

    async fn send_http(&self, client: &reqwest::Client, request: Bytes) -> Answer {
        let mut post = client
            .post(&self.config.endpoint)
            .header(http::header::CONTENT_TYPE, "application/x-protobuf")
            .timeout(self.config.timeout);
        for (name, value) in &self.config.headers {
            post = post.header(name, value);
        }
        post = if self.config.gzip {
            match gzip(&request) {
                Ok(body) => post.header(http::header::CONTENT_ENCODING, "gzip").body(body),
                Err(error) => return Answer::Refused { message: format!("cannot compress: {error}") },
            }
        } else {
            post.body(request)
        };
        let response = match post.send().await {
            Ok(response) => response,
            Err(error) if error.is_builder() => return Answer::Refused { message: chain(&error) },
            Err(error) => return Answer::Again { after: None, message: chain(&error) },
        };
        let status = response.status();
        let after = response
            .headers()
            .get(http::header::RETRY_AFTER)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| retry_after(v, SystemTime::now()));
        let protobuf = response
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"application/x-protobuf"));
        let body = match read_body(response).await {
            Ok(body) => body,
            // The head has said that it was taken.
            Err(_) if status.is_success() => Bytes::new(),
            Err(error) => error.into(),
        };
        if status.is_success() {
            return taken(self.signal, if protobuf { body } else { Bytes::new() });
        }
        let detail = if protobuf {
            tonic_types::Status::decode(body).map(|s| s.message).unwrap_or_default()
        } else {
            String::from_utf8_lossy(&body).trim().to_owned()
        };
        let message = if detail.is_empty() { status.to_string() } else { format!("{status}: {detail}") };
        if http_is_retryable(status.as_u16()) {
            Answer::Again { after, message }
        } else {
            Answer::Refused { message: with_hint(message, status.as_u16()) }
        }
    }
}

fn with_hint(message: String, status: u16) -> String {
    match status {
        401 | 403 => format!("{message} (check the authorization headers)"),
        404 | 405 => format!("{message} (check that this is an OTLP endpoint, and its path)"),
        413 => format!("{message} (the collector only accepts smaller requests)"),
        _ => message,
    }
}

/// What a gRPC status other than OK means.
fn grpc_error(status: &Status) -> Answer {
    let after =
        status.get_details_retry_info().and_then(|info| info.retry_delay).or_else(|| retry_pushback(status));
    let mut message = match status.source() {
        Some(source) => format!("{}: {}", status.code(), chain(source)),
        None => format!("{}: {}", status.code(), status.message()),
    };
    if status.code() == tonic::Code::Unimplemented {
        message.push_str(" (check that this is an OTLP gRPC endpoint; HTTP usually uses port 4318)");
    }
    if grpc_is_retryable(status.code(), after.is_some()) || is_transport(status) {
        Answer::Again { after, message }
    } else {
        Answer::Refused { message }
    }
}

/// `grpc-retry-pushback-ms`, gRPC's own way to say what RetryInfo says.
fn retry_pushback(status: &Status) -> Option<std::time::Duration> {
    let value = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?;
    value.parse().ok().map(std::time::Duration::from_millis)
}

/// A connection that broke under way comes as `UNKNOWN` with the transport's error as its source.
fn is_transport(status: &Status) -> bool {
    status.code() == tonic::Code::Unknown && status.source().is_some()
}

/// Reads an answer's body up to [`MAX_ANSWER_BYTES`].
async fn read_body(mut response: reqwest::Response) -> Result<Bytes, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| chain(&e))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err("the response is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// Reads partial success out of an answer. An answer that cannot be decoded still says "taken".
fn taken(signal: Signal, body: Bytes) -> Answer {
    let partial = match signal {
        Signal::Traces => ExportTraceServiceResponse::decode(body)
            .ok()
            .and_then(|r| r.partial_success)
            .map(|p| (p.rejected_spans, p.error_message)),
        Signal::Metrics => ExportMetricsServiceResponse::decode(body)
            .ok()
            .and_then(|r| r.partial_success)
            .map(|p| (p.rejected_data_points, p.error_message)),
        Signal::Logs => ExportLogsServiceResponse::decode(body)
            .ok()
            .and_then(|r| r.partial_success)
            .map(|p| (p.rejected_log_records, p.error_message)),
    };
    let (rejected, message) = partial.unwrap_or_default();
    Answer::Taken { rejected: u64::try_from(rejected).unwrap_or(0), message }
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Write;
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

struct PemFiles {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl PemFiles {
    fn read(config: &SignalConfig) -> Result<Self, TransportError> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|error| TransportError::Read {
                what,
                path: path.display().to_string(),
                endpoint: config.endpoint.clone(),
                error,
            })
        };
        let ca = config.tls.ca.as_deref().map(|p| read("trusted certificates", p)).transpose()?;
        let identity = match (&config.tls.client_certificate, &config.tls.client_key) {
            (Some(certificate), Some(key)) => {
                Some((read("the client certificate", certificate)?, read("the client key", key)?))
            }
            _ => None,
        };
        Ok(Self { ca, identity })
    }
}

fn set_up(config: &SignalConfig, error: &(dyn std::error::Error + 'static)) -> TransportError {
    TransportError::SetUp { endpoint: config.endpoint.clone(), why: chain(error) }
}

fn channel(config: &SignalConfig, tls: &PemFiles) -> Result<Channel, TransportError> {
    let mut endpoint = Endpoint::from_shared(config.endpoint.clone())
        .and_then(|e| e.user_agent(USER_AGENT))
        .map_err(|e| set_up(config, &e))?
        .connect_timeout(config.timeout)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .keep_alive_timeout(config.timeout)
        .http2_keep_alive_interval(std::time::Duration::from_secs(30));
    if config.endpoint.starts_with("https:") {
        let mut client = ClientTlsConfig::new();
        client = match &tls.ca {
            Some(pem) => client.ca_certificate(Certificate::from_pem(pem)),
            None => client.with_native_roots(),
        };
        if let Some((certificate, key)) = &tls.identity {
            client = client.identity(Identity::from_pem(certificate, key));
        }
        endpoint = endpoint.tls_config(client).map_err(|e| set_up(config, &e))?;
    }
    Ok(endpoint.connect_lazy())
}

fn client(config: &SignalConfig, tls: &PemFiles) -> Result<reqwest::Client, TransportError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(config.timeout)
        .redirect(reqwest::redirect::Policy::none());
    if config.endpoint.starts_with("https:") {
        if let Some(pem) = &tls.ca {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| set_up(config, &e))?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some((certificate, key)) = &tls.identity {
            let pem = [certificate.as_slice(), b"\n", key.as_slice()].concat();
            builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|e| set_up(config, &e))?);
        }
    }
    builder.build().map_err(|e| set_up(config, &e))
}

const USER_AGENT: &str = concat!("gotrace/", env!("CARGO_PKG_VERSION"));

/// An error with all its causes: the last one is what the user can mend.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Passes messages through as the bytes that they are.
#[derive(Clone, Copy, Debug)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
