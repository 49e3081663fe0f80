//! Where and how to export: the `--otlp…` flags and the standard `OTEL_EXPORTER_OTLP_*` variables
//! become one plain configuration a signal.
//!
//! Flags win over variables, a signal's own variable wins over the general one. Input: strings as the
//! user typed them. Output: [`OtlpConfig`], or a [`ConfigError`] that names the flag or variable.
//! Refuses `http/json`: no file is read and no connection is made here.

use std::{path::PathBuf, time::Duration};

use super::SeriesBounds;

/// What the exporter has to do.
#[derive(Clone, Debug, Default)]
pub struct ExportConfig {
    /// A collector; `None`: nothing is sent.
    pub otlp: Option<OtlpConfig>,
    /// A file of OTLP JSON lines; truncated at start.
    pub file: Option<PathBuf>,
    /// How counters and histograms are reported.
    pub temporality: Temporality,
    /// Least time between two reports of a process's metrics; the last state is always reported.
    /// `None`: [`DEFAULT_METRIC_INTERVAL`].
    pub metric_interval: Option<Duration>,
    /// Where what the collector does not take waits on disk; `None`: in memory alone.
    pub spool: Option<SpoolConfig>,
    /// Bounds of the metrics' series.
    pub series: SeriesBounds,
}

/// A directory for what the collector does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The directory, of this gotrace alone; made when it is not there.
    pub directory: PathBuf,
    /// Bytes that its files may take, packed.
    pub size: u64,
}

/// Time between two reports of metrics when nothing else is said.
pub const DEFAULT_METRIC_INTERVAL: Duration = Duration::from_secs(10);

/// Time for one request when nothing else is said (the specification's default).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a counter tells what came since the start or since the last report
/// (`OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Everything since the start of tracing.
    #[default]
    Cumulative,
    /// Counters and histograms since the last report; up-down counters stay cumulative.
    Delta,
    /// Histograms since the last report; counters, which gotrace reads as totals, stay cumulative.
    LowMemory,
}

impl Temporality {
    /// The name that the variable has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cumulative => "cumulative",
            Self::Delta => "delta",
            Self::LowMemory => "lowmemory",
        }
    }

    /// By its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Cumulative, Self::Delta, Self::LowMemory].into_iter().find(|t| t.name() == name)
    }
}

/// What the command line says about OTLP; everything left out comes from the environment.
#[derive(Clone, Debug, Default)]
pub struct OtlpFlags {
    /// `--otlp ENDPOINT`: `http://host:4317`, `https://host:4318`, `host:4317`.
    pub endpoint: Option<String>,
    /// `--otlp-protocol grpc|http/protobuf`.
    pub protocol: Option<String>,
    /// `--otlp-header NAME=VALUE`, repeated.
    pub headers: Vec<String>,
    /// `--otlp-insecure`: no TLS for an endpoint that names no scheme.
    pub insecure: bool,
    /// `--otlp-ca FILE`: PEM certificates that the collector's certificate is checked against.
    pub ca: Option<PathBuf>,
    /// `--otlp-cert FILE`: PEM certificate that gotrace shows to the collector.
    pub client_certificate: Option<PathBuf>,
    /// `--otlp-key FILE`: PEM key of that certificate.
    pub client_key: Option<PathBuf>,
    /// `--otlp-compression gzip|none`.
    pub compression: Option<String>,
    /// `--otlp-timeout`.
    pub timeout: Option<Duration>,
}

/// A collector. A signal that is `None` is not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtlpConfig {
    /// Spans.
    pub traces: Option<SignalConfig>,
    /// Metrics.
    pub metrics: Option<SignalConfig>,
    /// Log records.
    pub logs: Option<SignalConfig>,
    /// Whether gotrace's own health is sent too, as a resource of its own.
    pub health: bool,
}

/// Where one signal goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalConfig {
    /// Full address: with the path for `http/protobuf`, without for `grpc`.
    pub endpoint: String,
    /// How requests are made.
    pub protocol: Protocol,
    /// Sent with each request, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether requests are compressed with gzip.
    pub gzip: bool,
    /// For one attempt.
    pub timeout: Duration,
    /// Certificates, used when the endpoint is `https`.
    pub tls: TlsFiles,
}

/// PEM files; `None`: the system's trusted certificates, no client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Trusted certificates, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Client certificate.
    pub client_certificate: Option<PathBuf>,
    /// Client key.
    pub client_key: Option<PathBuf>,
}

/// OTLP's ways over the wire that gotrace speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Protobuf in HTTP POST.
    HttpProtobuf,
}

/// The three kinds of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Log records.
    Logs,
}

impl Signal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    /// As messages name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }

    fn variable(self, name: &str) -> String {
        format!("OTEL_EXPORTER_OTLP_{}_{name}", self.name().to_ascii_uppercase())
    }
}

/// A flag or variable that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The endpoint is not an address.
    #[error("{source_name}: `{value}` is not a collector address ({why}); use `http://host:4317`")]
    Endpoint {
        /// Flag or variable.
        source_name: String,
        /// What it said.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The JSON encoding of OTLP.
    #[error(
        "{source_name}: `http/json` is not supported; use `grpc` or `http/protobuf`, or write JSON lines to a file with \
         --export"
    )]
    HttpJson {
        /// Flag or variable.
        source_name: String,
    },
    /// A value that is none of those known.
    #[error("{source_name}: `{value}` is not one of {known}")]
    Unknown {
        /// Flag or variable.
        source_name: String,
        /// What it said.
        value: String,
        /// What it may say.
        known: &'static str,
    },
    /// A header that is not `name=value` or holds what a header cannot.
    #[error("{source_name}: `{name}` is not a header; use NAME=VALUE, percent-encoded in variables")]
    Header {
        /// Flag or variable.
        source_name: String,
        /// The header's name; its value may be a secret.
        name: String,
    },
    /// One of certificate and key without the other.
    #[error("{signal}: a client certificate needs its key and a key its certificate; give both")]
    HalfIdentity {
        /// The signal concerned.
        signal: &'static str,
    },
}

/// Reads a variable by name; [`std::env::var`] for the real ones.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl OtlpConfig {
    /// Puts flags and variables together. `Ok(None)`: neither names a collector, nothing is sent.
    ///
    /// # Errors
    /// When a flag or variable cannot be followed; nothing wrong is passed over in silence.
    pub fn from_flags_and_env(
        flags: &OtlpFlags,
        environment: Environment<'_>,
    ) -> Result<Option<Self>, ConfigError> {
        // An empty variable is the same as none (OpenTelemetry specification, environment variables).
        let env = |name: &str| environment(name).filter(|v| !v.trim().is_empty());
        let signal = |signal: Signal| -> Result<Option<SignalConfig>, ConfigError> {
            let exporter = format!("OTEL_{}_EXPORTER", signal.name().to_ascii_uppercase());
            if flags.endpoint.is_none() && env(&exporter).is_some_and(|v| v.trim() == "none") {
                return Ok(None);
            }
            signal_config(flags, signal, &env)
        };
        let traces = signal(Signal::Traces)?;
        let metrics = signal(Signal::Metrics)?;
        let logs = signal(Signal::Logs)?;
        if traces.is_none() && metrics.is_none() && logs.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { traces, metrics, logs, health: true }))
    }
}

impl Temporality {
    /// From `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`; cumulative when it is not set.
    ///
    /// # Errors
    /// When the variable says something else than `cumulative`, `delta`, `lowmemory`.
    pub fn from_env(environment: Environment<'_>) -> Result<Self, ConfigError> {
        const NAME: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        match environment(NAME).map(|v| v.trim().to_ascii_lowercase()).as_deref() {
            None | Some("" | "cumulative") => Ok(Self::Cumulative),
            Some("delta") => Ok(Self::Delta),
            Some("lowmemory") => Ok(Self::LowMemory),
            Some(other) => Err(ConfigError::Unknown {
                source_name: NAME.into(),
                value: other.into(),
                known: "cumulative, delta, lowmemory",
            }),
        }
    }
}

/// Time between two reports of metrics by `OTEL_METRIC_EXPORT_INTERVAL` (milliseconds).
///
/// # Errors
/// When the variable is no number.
pub fn metric_interval_from_env(environment: Environment<'_>) -> Result<Option<Duration>, ConfigError> {
    const NAME: &str = "OTEL_METRIC_EXPORT_INTERVAL";
    match environment(NAME).filter(|v| !v.trim().is_empty()) {
        None => Ok(None),
        Some(v) => milliseconds(NAME.into(), &v).map(Some),
    }
}

fn signal_config(
    flags: &OtlpFlags,
    signal: Signal,
    env: Environment<'_>,
) -> Result<Option<SignalConfig>, ConfigError> {
    // A signal's own variable, else the general one, with the name of the one that spoke.
    let lookup = |name: &str| {
        let own = signal.variable(name);
        env(&own)
            .map(|v| (own, v))
            .or_else(|| {
                let general = format!("OTEL_EXPORTER_OTLP_{name}");
                env(&general).map(|v| (general, v))
            })
            .map(|(n, v)| (n, v.trim().to_owned()))
    };
    let flag_or = |flag: &str, value: &Option<String>, name: &str| {
        value.clone().map(|v| (flag.to_owned(), v)).or_else(|| lookup(name))
    };
    let own_endpoint = signal.variable("ENDPOINT");
    let Some((endpoint_source, endpoint)) = flag_or("--otlp", &flags.endpoint, "ENDPOINT") else {
        return Ok(None);
    };
    let insecure = flags.insecure
        || match lookup("INSECURE") {
            None => false,
            Some((source_name, value)) => boolean(source_name, &value)?,
        };
    let protocol = match flag_or("--otlp-protocol", &flags.protocol, "PROTOCOL") {
        None => None,
        Some((source_name, value)) => Some(match value.trim() {
            "grpc" => Protocol::Grpc,
            "http/protobuf" => Protocol::HttpProtobuf,
            "http/json" => return Err(ConfigError::HttpJson { source_name }),
            _ => {
                return Err(ConfigError::Unknown { source_name, value, known: "grpc, http/protobuf" });
            }
        }),
    };
    // What a signal's own variable says is the whole address; else the signal's path is appended.
    let complete = endpoint_source == own_endpoint;
    let (endpoint, protocol) =
        resolve_endpoint(endpoint_source, endpoint.trim(), protocol, insecure, complete, signal)?;
    let mut headers = Vec::new();
    if let Some((source_name, value)) = lookup("HEADERS") {
        for pair in value.split(',').filter(|p| !p.trim().is_empty()) {
            push_header(&mut headers, &source_name, pair, true)?;
        }
    }
    for pair in &flags.headers {
        push_header(&mut headers, "--otlp-header", pair, false)?;
    }
    let gzip = match flag_or("--otlp-compression", &flags.compression, "COMPRESSION") {
        None => false,
        Some((source_name, value)) => match value.as_str() {
            "gzip" => true,
            "none" => false,
            _ => return Err(ConfigError::Unknown { source_name, value, known: "gzip, none" }),
        },
    };
    let timeout = match (flags.timeout, lookup("TIMEOUT")) {
        (Some(t), _) => t,
        (None, Some((source_name, value))) => milliseconds(source_name, &value)?,
        (None, None) => DEFAULT_TIMEOUT,
    };
    let file =
        |flag: &Option<PathBuf>, name: &str| flag.clone().or_else(|| lookup(name).map(|(_, v)| v.into()));
    let tls = TlsFiles {
        ca: file(&flags.ca, "CERTIFICATE"),
        client_certificate: file(&flags.client_certificate, "CLIENT_CERTIFICATE"),
        client_key: file(&flags.client_key, "CLIENT_KEY"),
    };
    if tls.client_certificate.is_some() != tls.client_key.is_some() {
        return Err(ConfigError::HalfIdentity { signal: signal.name() });
    }
    Ok(Some(SignalConfig { endpoint, protocol, headers, gzip, timeout, tls }))
}

/// Makes a full address. Without a protocol, port 4317 means gRPC and anything else `http/protobuf`,
/// as the specification's default and the registered ports have it; a bare `host` means gRPC at 4317.
fn resolve_endpoint(
    source_name: String,
    value: &str,
    protocol: Option<Protocol>,
    insecure: bool,
    complete: bool,
    signal: Signal,
) -> Result<(String, Protocol), ConfigError> {
    let fail = |why| ConfigError::Endpoint { source_name: source_name.clone(), value: value.to_owned(), why };
    let mut text = value.to_owned();
    let bare = !value.contains("://");
    if bare {
        let authority = value.split('/').next().unwrap_or(value);
        let host = authority
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(authority, |(h, _)| h)
            .trim_matches(['[', ']']);
        let loopback = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        // Nobody runs TLS on a loopback address without saying so with `https://`.
        let scheme = if insecure || loopback { "http" } else { "https" };
        text = format!("{scheme}://{value}");
    }
    let uri: http::Uri = text.parse().map_err(|_| fail("not a URL"))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(fail("the scheme must be http or https")),
    }
    let authority = uri.authority().ok_or_else(|| fail("no host"))?;
    if authority.host().is_empty() {
        return Err(fail("no host"));
    }
    let port = authority.port_u16();
    if port.is_none() && authority.as_str().contains(':') && !authority.as_str().ends_with(']') {
        return Err(fail("the port is not a number up to 65535"));
    }
    let protocol = protocol.unwrap_or(match port {
        Some(4317) => Protocol::Grpc,
        None if bare => Protocol::Grpc,
        _ => Protocol::HttpProtobuf,
    });
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = match (port, bare, protocol) {
        (None, true, Protocol::Grpc) => format!("{authority}:4317"),
        (None, true, Protocol::HttpProtobuf) => format!("{authority}:4318"),
        _ => authority.to_string(),
    };
    let path = uri.path();
    let endpoint = match protocol {
        Protocol::Grpc => format!("{scheme}://{authority}"),
        Protocol::HttpProtobuf if complete => {
            format!("{scheme}://{authority}{}", if path.is_empty() { "/" } else { path })
        }
        Protocol::HttpProtobuf => {
            format!("{scheme}://{authority}{}/v1/{}", path.trim_end_matches('/'), signal.name())
        }
    };
    Ok((endpoint, protocol))
}

fn push_header(
    headers: &mut Vec<(String, String)>,
    source_name: &str,
    pair: &str,
    encoded: bool,
) -> Result<(), ConfigError> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let name = name.trim().to_ascii_lowercase();
    let fail = || ConfigError::Header { source_name: source_name.to_owned(), name: name.clone() };
    if !pair.contains('=') || http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(fail());
    }
    let value =
        if encoded { percent_decode(value.trim()).ok_or_else(fail)? } else { value.trim().to_owned() };
    if http::HeaderValue::from_str(&value).is_err() {
        return Err(fail());
    }
    headers.retain(|(n, _)| *n != name);
    headers.push((name, value));
    Ok(())
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

fn milliseconds(source_name: String, value: &str) -> Result<Duration, ConfigError> {
    match value.trim().parse::<u64>() {
        Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err(ConfigError::Unknown {
            source_name,
            value: value.to_owned(),
            known: "a whole number of milliseconds above 0",
        }),
    }
}

fn boolean(source_name: String, value: &str) -> Result<bool, ConfigError> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ConfigError::Unknown { source_name, value: value.to_owned(), known: "true, false" }),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
