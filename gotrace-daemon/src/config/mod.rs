//! The daemon's configuration file: YAML in, what the line, the exporter and the pages are told out.
//!
//! Each field's comment is its documentation, and `deploy/gotrace.example.yaml` shows them all. An unknown
//! field, a value of the wrong kind or out of range is an error that names file, line and column. What is
//! left out has its default; what flags say wins.

mod metadata;
mod values;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

pub use metadata::{Asked, Cloud, Metadata};

use crate::{
    enrich::EnrichConfig,
    level::Level,
    pipeline::{self, Budget, Follow, LeftBehind, LineConfig, ProofPace, SuspicionPace},
    process::{Pattern, ResourceOptions, Rule, Rules},
    sink::otlp::{
        ConfigError, Environment, ExportConfig, OtlpConfig, OtlpFlags, SpoolConfig, Temporality,
        config::metric_interval_from_env,
    },
};
use values::{Bytes, Rate, Share, Size, Span, text};

/// Largest configuration file.
const MAX_BYTES: u64 = 1 << 20;
/// What the spool may take when nothing is said.
const DEFAULT_SPOOL: u64 = 512 << 20;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How to trace.
    pub trace: Trace,
    /// Who is traced.
    pub rules: RulesConfig,
    /// What tracing may cost.
    pub limits: Limits,
    /// What goes into spans.
    pub spans: Spans,
    /// Whom to ask about containers, pods and clouds.
    pub metadata: Metadata,
    /// Where OTLP goes.
    pub otlp: Otlp,
    /// The pages for health and Prometheus.
    pub http: Http,
}

/// How to trace.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Trace {
    /// `auto` (events, or where the kernel refuses eBPF, snapshots), `events`, or `snapshot`.
    pub engine: Engine,
    /// The most that is traced of a process: `lifecycle`, `waits`, `full`.
    #[serde(deserialize_with = "text")]
    pub level: Level,
    /// Waits at least this long are recorded one by one; shorter ones are counted.
    pub min_wait: Span,
    /// Frames kept of the stack of a wait, 0 to 32.
    pub stack_depth: u8,
    /// Time between two reports of a process.
    pub interval: Span,
    /// Time between two snapshots that a process's table is held against; 0 for the first one only.
    pub reconcile: Span,
    /// Size of the ring buffer between kernel and gotrace.
    pub ring_bytes: Bytes,
    /// What the probes say of their own work: 0 nothing, 4 each event that is dropped, 5 more.
    pub kernel_log: u8,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            engine: Engine::Auto,
            level: Level::Waits,
            min_wait: Span(Duration::from_millis(1)),
            stack_depth: 8,
            interval: Span(Duration::from_secs(10)),
            reconcile: Span(Duration::from_secs(60)),
            ring_bytes: Bytes(8 << 20),
            kernel_log: 0,
        }
    }
}

/// Where figures come from.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Events, or where the kernel refuses eBPF, snapshots.
    #[default]
    Auto,
    /// Events.
    Events,
    /// Snapshots.
    Snapshot,
}

/// Who is traced.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct RulesConfig {
    /// A process is taken when one of these matches it; all are when there are none.
    pub include: Vec<RuleConfig>,
    /// And when none of these does.
    pub exclude: Vec<RuleConfig>,
    /// Processes that are younger are left alone until they are so old.
    pub min_age: Span,
}

/// Conditions that must all hold; of the patterns of one, any.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
    /// Path of the executable in its own mount namespace; without `/` its file name.
    pub executable: Vec<PatternText>,
    /// Arguments, joined by spaces.
    pub command_line: Vec<PatternText>,
    /// Effective user ids.
    pub uid: Vec<u32>,
    /// Container ids.
    pub container: Vec<PatternText>,
    /// Kubernetes namespaces.
    pub namespace: Vec<PatternText>,
    /// Kubernetes pods.
    pub pod: Vec<PatternText>,
    /// Kubernetes labels of the pod, by name.
    pub labels: BTreeMap<String, PatternText>,
}

/// A pattern, checked while the file is read.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(transparent)]
pub struct PatternText(#[serde(deserialize_with = "text")] Pattern);

impl RulesConfig {
    fn rules(&self) -> Rules {
        let all = |rules: &[RuleConfig]| rules.iter().map(RuleConfig::rule).collect();
        Rules { include: all(&self.include), exclude: all(&self.exclude), min_age: self.min_age.0 }
    }
}

impl RuleConfig {
    fn rule(&self) -> Rule {
        let Self { executable, command_line, uid, container, namespace, pod, labels } = self;
        let patterns = |texts: &[PatternText]| texts.iter().map(|t| t.0.clone()).collect::<Vec<_>>();
        let named = [("container.id", container), ("k8s.namespace.name", namespace), ("k8s.pod.name", pod)];
        let mut metadata: BTreeMap<String, Vec<Pattern>> = named
            .into_iter()
            .filter(|(_, texts)| !texts.is_empty())
            .map(|(name, texts)| (name.to_owned(), patterns(texts)))
            .collect();
        for (name, value) in labels {
            metadata.insert(format!("k8s.pod.label.{name}"), vec![value.0.clone()]);
        }
        Rule {
            executable: patterns(executable),
            command_line: patterns(command_line),
            uid: uid.clone(),
            metadata,
        }
    }
}

/// What tracing may cost.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Share of a process's CPU time that its probes may take, such as `1%`; `off` for as much as it takes.
    pub budget: Share,
    /// Processes that have probes at once; more are traced by snapshots. Each takes 75 KB of kernel memory
    /// on each CPU.
    pub processes: u32,
    /// Goroutines that are kept of one process at once, some 200 bytes each.
    pub goroutines_per_process: usize,
    /// Bytes that what is kept of all processes may take; beyond, the least interesting are traced by snapshots.
    pub memory: Size,
    /// Goroutines of all processes that the kernel side keeps waits of at once, 160 bytes each.
    pub max_goroutines: u32,
    /// Time between two looks at where everybody stands, which tell who may never finish; 0 for none.
    pub suspect_every: Span,
    /// Leaks are proven from the heap where goroutines have waited for others for so long; who stands longer
    /// may also be called stuck.
    pub prove_after: Span,
    /// From the end of one proof of a process to the beginning of the next; 0 for no proofs.
    pub prove_every: Span,
    /// A pass over the heap is followed by a rest of so many times its duration; 20: a twentieth of a core.
    pub proof_rest: u32,
    /// Bytes of a process's memory that proofs read in a second at most, such as `256M`; `off` for no bound.
    pub max_read_rate: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            budget: Share(Some(0.01)),
            processes: 64,
            goroutines_per_process: 200_000,
            memory: Size(64 << 20),
            max_goroutines: 1 << 17,
            suspect_every: Span(Duration::from_secs(60)),
            prove_after: Span(Duration::from_secs(600)),
            prove_every: Span(Duration::from_secs(1800)),
            proof_rest: 20,
            max_read_rate: Rate(Some(1 << 28)),
        }
    }
}

/// What goes into spans.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Spans {
    /// A goroutine made by one older than this begins a new trace.
    pub trace_root_age: Span,
    /// Share of the traces that are exported, 0 to 1.
    pub ratio: f64,
    /// Put a program's arguments into its resource. They can hold secrets.
    pub resource_command_args: bool,
}

impl Default for Spans {
    fn default() -> Self {
        Self { trace_root_age: Span(Duration::from_secs(10)), ratio: 1.0, resource_command_args: false }
    }
}

/// Where OTLP goes. What is left out comes from the standard `OTEL_EXPORTER_OTLP_*` variables.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// The collector, such as `http://localhost:4317`.
    pub endpoint: Option<String>,
    /// `grpc` or `http/protobuf`.
    pub protocol: Option<String>,
    /// Sent with each request.
    pub headers: BTreeMap<String, String>,
    /// `none` or `gzip`.
    pub compression: Option<String>,
    /// Time for one request.
    pub timeout: Option<Span>,
    /// No TLS for an endpoint that names no scheme.
    pub insecure: bool,
    /// PEM certificates to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM certificate to show to the collector.
    pub cert: Option<PathBuf>,
    /// PEM key of that certificate.
    pub key: Option<PathBuf>,
    /// Also write OTLP JSON lines to this file.
    pub export: Option<PathBuf>,
    /// Time that the last data may take to get out when gotrace is told to end.
    pub grace: Option<Span>,
    /// Where on disk waits what the collector does not take.
    pub spool: Spool,
}

/// What the collector does not take waits on disk.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// A directory of this gotrace alone, made when it is not there; without one what waits is in memory.
    pub directory: Option<PathBuf>,
    /// Bytes that it may take; 512M when nothing is said. What waits is packed.
    pub size: Option<Size>,
}

impl Spool {
    fn config(&self) -> Option<SpoolConfig> {
        let Self { directory, size } = self;
        let size = size.map_or(DEFAULT_SPOOL, |size| size.0);
        directory.clone().map(|directory| SpoolConfig { directory, size })
    }
}

/// The pages for health and Prometheus.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port; `off` for none. Anybody who reaches it can read names of programs and functions.
    pub listen: String,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".into() }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// From 1; 0 where it cannot be told.
        line: u64,
        /// From 1; 0 where it cannot be told.
        column: u64,
        /// What is wrong.
        what: String,
    },
    /// A setting of OTLP, from the file or a variable, cannot be followed.
    #[error(transparent)]
    Otlp(#[from] ConfigError),
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`], with the place of what is wrong.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |error| Error::Read { path: path.into(), error };
        if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
            return Err(failed(io::Error::other(format!("larger than {MAX_BYTES} bytes"))));
        }
        Self::parse(&fs::read_to_string(path).map_err(failed)?, path)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`Error::Wrong`]
    pub fn parse(yaml: &str, path: &Path) -> Result<Self, Error> {
        let empty = yaml.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---"
        });
        if empty {
            return Ok(Self::default());
        }
        let config: Self = serde_saphyr::from_str(yaml).map_err(|error| {
            let place = error.location();
            Error::Wrong {
                path: path.into(),
                line: place.map_or(0, |l| l.line()),
                column: place.map_or(0, |l| l.column()),
                what: values::message(&error),
            }
        })?;
        config.check().map_err(|(field, what)| {
            let (line, column) = values::place_of(yaml, field);
            Error::Wrong { path: path.into(), line, column, what }
        })?;
        Ok(config)
    }

    /// What the types alone do not tell: the field, and what is wrong with it.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { trace, limits, spans, otlp, http, rules: _, metadata: _ } = self;
        let within = |field, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err((field, format!("{field} must be from {low} to {high}")))
            }
        };
        within("stack_depth", trace.stack_depth.into(), 0, 32)?;
        within("kernel_log", trace.kernel_log.into(), 0, 5)?;
        within("processes", limits.processes.into(), 1, 4096)?;
        within("goroutines_per_process", limits.goroutines_per_process as u64, 1000, 1 << 26)?;
        within("memory", limits.memory.0 >> 20, 8, 1 << 20)
            .map_err(|(field, _)| (field, "memory must be from 8M to 1024G".into()))?;
        within("proof_rest", limits.proof_rest.into(), 1, 1000)?;
        within("max_goroutines", limits.max_goroutines.into(), 1, 1 << 24)?;
        if trace.interval.0 < Duration::from_millis(100) || trace.interval.0 > Duration::from_secs(3600) {
            return Err(("interval", "interval must be from 100ms to 1h".into()));
        }
        if !(0.0..=1.0).contains(&spans.ratio) {
            return Err(("ratio", "ratio must be from 0 to 1".into()));
        }
        if http.listen != "off" && http.listen.parse::<std::net::SocketAddr>().is_err() {
            return Err((
                "listen",
                "listen must be an address and a port, such as 127.0.0.1:9464, or off".into(),
            ));
        }
        let Spool { directory, size } = &otlp.spool;
        match (directory, size) {
            (Some(directory), _) if !directory.is_absolute() => {
                return Err(("directory", "directory must be a path from / on".into()));
            }
            (None, Some(_)) => return Err(("size", "size needs a directory beside it".into())),
            (_, Some(Size(size))) if !(16 << 20..=1 << 40).contains(size) => {
                return Err(("size", "size must be from 16M to 1024G".into()));
            }
            _ => {}
        }
        OtlpConfig::from_flags_and_env(&otlp.flags(), &|_| None)
            .map_err(|error| ("otlp", format!("otlp: {error}")))?;
        Ok(())
    }

    /// Who is traced.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.rules.rules()
    }

    /// Whom to ask about what surrounds a process.
    #[must_use]
    pub fn enrich(&self) -> EnrichConfig {
        self.metadata.enrich(&self.rules)
    }

    /// Whether a rule asks for what surrounds a process.
    #[must_use]
    pub fn judges_by_metadata(&self) -> bool {
        self.rules.include.iter().chain(&self.rules.exclude).any(|rule| !rule.rule().metadata.is_empty())
    }

    /// How the line traces.
    #[must_use]
    pub fn line(&self) -> LineConfig {
        let Self { trace, limits, spans, .. } = self;
        LineConfig {
            engine: match trace.engine {
                Engine::Auto => pipeline::Engine::Auto,
                Engine::Events => pipeline::Engine::Events,
                Engine::Snapshot => pipeline::Engine::Snapshot,
            },
            level: trace.level,
            min_wait: trace.min_wait.0,
            stack_depth: trace.stack_depth,
            interval: trace.interval.0,
            reconcile: Some(trace.reconcile.0).filter(|every| !every.is_zero()),
            trace_root_age: spans.trace_root_age.0,
            span_ratio: spans.ratio,
            ring_bytes: trace.ring_bytes.0,
            goroutines: limits.max_goroutines,
            follow: Follow::Node,
            processes: limits.processes,
            goroutines_each: limits.goroutines_per_process,
            memory: limits.memory.0,
            budget: limits.budget.0.map(Budget::of_share),
            resource: ResourceOptions { command_args: spans.resource_command_args },
            kernel_log_level: trace.kernel_log,
            suspicions: (!limits.suspect_every.0.is_zero()).then_some(SuspicionPace {
                every: limits.suspect_every.0,
                stuck_after: limits.prove_after.0,
            }),
            proofs: (!limits.prove_every.0.is_zero()).then_some(ProofPace {
                after: limits.prove_after.0,
                every: limits.prove_every.0,
                rest: limits.proof_rest,
                max_read_rate: limits.max_read_rate.0,
            }),
            left_behind: LeftBehind::Nobody,
            record: None,
        }
    }

    /// What is exported and where.
    ///
    /// # Errors
    /// [`Error::Otlp`] when a variable cannot be followed.
    pub fn export(&self, environment: Environment<'_>) -> Result<ExportConfig, Error> {
        Ok(ExportConfig {
            otlp: OtlpConfig::from_flags_and_env(&self.otlp.flags(), environment)?,
            file: self.otlp.export.clone(),
            temporality: Temporality::from_env(environment)?,
            metric_interval: metric_interval_from_env(environment)?,
            spool: self.otlp.spool.config(),
        })
    }

    /// How long the last data may take at the end.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.otlp.grace.map_or(Duration::from_secs(5), |grace| grace.0)
    }
}

impl Otlp {
    fn flags(&self) -> OtlpFlags {
        let Self {
            endpoint,
            protocol,
            headers,
            compression,
            timeout,
            insecure,
            ca,
            cert,
            key,
            export: _,
            grace: _,
            spool: _,
        } = self.clone();
        OtlpFlags {
            endpoint,
            protocol,
            headers: headers.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            insecure,
            ca,
            client_certificate: cert,
            client_key: key,
            compression,
            timeout: timeout.map(|t| t.0),
        }
    }
}

#[cfg(test)]
mod tests;
