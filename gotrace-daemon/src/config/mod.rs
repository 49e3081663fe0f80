//! The daemon's configuration file: YAML in, what the line, the exporter and the pages are told out.
//!
//! Each field's comment is its documentation, and `deploy/gotrace.example.yaml` shows them all. An unknown
//! field, a value of the wrong kind or out of range is an error that names file, line and column. What is
//! left out has its default; what flags say wins.

mod http;
mod metadata;
mod otlp;
mod reload;
mod requests;
mod suppressions;
mod values;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};

pub use http::{Http, SOCKET};
pub use metadata::{Asked, Cloud, Metadata};
pub use otlp::{Otlp, Spool};
pub use requests::{Mode, Requests};
pub use suppressions::{SuppressionConfig, read_suppressions};

use gotrace_agent::pipeline::{
    self, Budget, Follow, LeftBehind, LineConfig, ProofPace, SpanSampling, SuspicionPace,
};
use gotrace_export::otlp::{ConfigError, Environment, ExportConfig};
use gotrace_metadata::{EnrichConfig, ResourceOptions};
use gotrace_model::Level;
use gotrace_process::{Pattern, Rule, Rules};
use values::{Bound, Bytes, Count, Rate, Share, Size, Span, text};

/// Largest file.
const MAX_BYTES: u64 = 1 << 20;

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
    /// Which requests are traced.
    pub requests: Requests,
    /// Whom to ask about containers, pods and clouds.
    pub metadata: Metadata,
    /// Findings that are known and may stay.
    pub suppressions: Vec<SuppressionConfig>,
    /// Where OTLP goes.
    pub otlp: Otlp,
    /// The pages for health and Prometheus, and the API.
    pub http: Http,
    /// What is remembered across restarts.
    pub state: State,
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
    /// for each copy of its histograms; CPUs share as many copies as fit into 20 MB for all.
    pub processes: u32,
    /// Goroutines that are kept of one process at once, some 200 bytes each.
    pub goroutines_per_process: usize,
    /// Bytes that what is kept of all processes may take; beyond, the least interesting are traced by snapshots.
    pub memory: Size,
    /// Goroutines of all processes that the kernel side keeps waits of at once, 192 bytes each.
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
            memory: Size(352 << 20),
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
    /// Goroutines that lived at least so long are exported in any case, or `off`.
    pub keep_longer_than: Bound,
    /// Waits of at least this, and the goroutines that waited so long, are exported in any case, or `off`.
    pub keep_wait_over: Bound,
    /// Most spans of a process in a second, or `off`; beyond, its share of the traces is made smaller.
    pub max_per_second: Count,
    /// Put a program's arguments into its resource. They can hold secrets.
    pub resource_command_args: bool,
}

impl Default for Spans {
    fn default() -> Self {
        Self {
            trace_root_age: Span(Duration::from_secs(10)),
            ratio: 1.0,
            keep_longer_than: Bound(None),
            keep_wait_over: Bound(None),
            max_per_second: Count(Some(1000)),
            resource_command_args: false,
        }
    }
}

/// What is remembered across restarts.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// A directory of gotrace's own, which is made where there is none, or `off`. It says which processes gotrace was
    /// reading when it was killed.
    pub directory: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { directory: "/run/gotrace".into() }
    }
}

impl State {
    fn directory(&self) -> Option<PathBuf> {
        Some(self.directory.clone()).filter(|directory| directory.as_os_str() != "off")
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {error}", path.display())]
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
    /// The file of the API's token cannot be used.
    #[error("cannot use http.token_file {}: {what}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
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
        Self::parse(&read(path)?, path)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`Error::Wrong`]
    pub fn parse(yaml: &str, path: &Path) -> Result<Self, Error> {
        let config: Self = parse(yaml, path)?;
        config.check().map_err(|(field, what)| {
            let (line, column) = values::place_of(yaml, field);
            Error::Wrong { path: path.into(), line, column, what }
        })?;
        Ok(config)
    }

    /// What the types alone do not tell: the field, and what is wrong with it.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { trace, limits, spans, requests, otlp, http, state, .. } = self;
        if requests.mode != Mode::Off && trace.level != Level::Full {
            return Err(("mode", "requests take trace.level full: set that, or requests.mode off".into()));
        }
        within("routes", requests.routes.into(), 1, 500)?;
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
        http.check()?;
        if state.directory().is_some_and(|directory| !directory.is_absolute()) {
            return Err(("directory", "directory must be an absolute path, or off".into()));
        }
        otlp.check()
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
            sampling: SpanSampling {
                ratio: spans.ratio,
                keep_longer_than: spans.keep_longer_than.0,
                keep_wait_over: spans.keep_wait_over.0,
                max_per_second: spans.max_per_second.0,
            },
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
            requests: self.requests.line(),
            suppressions: suppressions::of(&self.suppressions),
            state: self.state.directory(),
        }
    }

    /// What is exported and where.
    ///
    /// # Errors
    /// [`Error::Otlp`] when a variable cannot be followed.
    pub fn export(&self, environment: Environment<'_>) -> Result<ExportConfig, Error> {
        self.otlp.export_config(environment, self.requests.routes())
    }

    /// How long the last data may take at the end.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.otlp.grace.map_or(Duration::from_secs(5), |grace| grace.0)
    }
}

/// The text of a file.
fn read(path: &Path) -> Result<String, Error> {
    let failed = |error| Error::Read { path: path.into(), error };
    if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(failed(io::Error::other(format!("file is larger than {MAX_BYTES} bytes"))));
    }
    fs::read_to_string(path).map_err(failed)
}

/// What YAML says; the default where it says nothing.
fn parse<T: DeserializeOwned + Default>(yaml: &str, path: &Path) -> Result<T, Error> {
    let empty = yaml.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    });
    if empty {
        return Ok(T::default());
    }
    serde_saphyr::from_str(yaml).map_err(|error| {
        let place = error.location();
        Error::Wrong {
            path: path.into(),
            line: place.map_or(0, |l| l.line()),
            column: place.map_or(0, |l| l.column()),
            what: values::message(&error),
        }
    })
}

fn within(field: &'static str, value: u64, low: u64, high: u64) -> Result<(), (&'static str, String)> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err((field, format!("{field} must be from {low} to {high}")))
}

#[cfg(test)]
mod tests;
