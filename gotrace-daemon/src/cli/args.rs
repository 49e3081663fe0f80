//! The arguments of the subcommands. Each field's comment is its help text.

use std::{ffi::OsString, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};
use serde::{Deserialize, Serialize};

use super::{CliError, asked::AskArgs, target::TargetArgs};
use crate::units as values;
use gotrace_agent::pipeline::Slow;
use gotrace_agent::pipeline::{Budget, LeftBehind};
use gotrace_export::otlp::{
    ExportConfig, OtlpConfig, OtlpFlags, SeriesBounds, Temporality, config::metric_interval_from_env,
};
use gotrace_inspect::leak::Verdict;
use gotrace_model::Level;

/// Arguments of `attach`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The process keeps running; it is never stopped or modified. Ctrl-C (or q or Esc in the live
table) detaches and prints a summary.

Where a gotrace daemon on this node traces the process with probes already, it is asked for the
level, and its reports are shown, without a summary: no second set of probes. That is not so with
--no-daemon, and with flags that need probes of gotrace's own (all but --level, --duration,
--interval from 1s on, --format and --system).

Examples:
  gotrace attach 1234
  gotrace attach server --level full --duration 30s --format json > intervals.json
  gotrace attach pod:shop/till-7f9 --otlp http://localhost:4317
  gotrace attach 1234 --duration 1m --quiet --export spans.json")]
pub struct AttachArgs {
    /// Which process.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Limit the probes' overhead to this percentage of the process's CPU time (but allow at least 5 ms
    /// per second), or none for no limit. Above it, the level is lowered to waits, to lifecycle and then
    /// to snapshots without probes, and raised again when overhead drops; each change is reported
    #[arg(long, value_parser = percent, default_value = "5%", value_name = "PERCENT|none")]
    pub budget: BudgetArg,
    /// Serve the page, the API with its profiles for `go tool pprof`, and metrics of this process at this
    /// address, or at this port of 127.0.0.1 (0: any), until the end. Only clients on this host are
    /// answered
    #[arg(long, value_parser = values::address, value_name = "ADDRESS|PORT")]
    pub http: Option<SocketAddr>,
    /// Whether the daemon is asked.
    #[command(flatten)]
    pub ask: AskArgs,
    /// How to trace and what to do with it.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// A budget, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetArg(Option<f64>);

impl BudgetArg {
    /// 5 %, which those have who only look.
    pub(super) const OF_ONLOOKERS: Self = Self(Some(0.05));

    /// For the line.
    pub(super) fn budget(self) -> Option<Budget> {
        self.0.map(Budget::of_share)
    }
}

impl fmt::Display for BudgetArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(share) => write!(f, "{}%", share * 100.0),
            None => f.write_str("none"),
        }
    }
}

/// A budget in percent.
pub(super) fn percent(text: &str) -> Result<BudgetArg, String> {
    values::percent(text).map(BudgetArg)
}

/// A budget as the configuration file has it, which takes shares too.
pub(super) fn share(text: &str) -> Result<BudgetArg, String> {
    values::budget(text).map(BudgetArg)
}

/// Arguments of `exec`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Signals, standard streams and the exit status of the command pass through. gotrace writes its own
results to stderr; stdout belongs to the command.

Examples:
  gotrace exec -- ./server --port 8080
  gotrace exec --export spans.json -- ./service.test -test.run TestPool
  gotrace exec --follow-children --export spans.json -- go test ./...
  gotrace exec --fail-on left_behind -- go test ./...
  gotrace exec --fail-on left_behind --baseline leaks.json --junit leaks.xml -- go test ./...")]
pub struct ExecArgs {
    /// Also trace Go programs that the command starts
    #[arg(long)]
    pub follow_children: bool,
    /// Exit with code 10 if the command succeeds but goroutines are still blocked when it exits
    /// (left_behind, which traces at level full) or were proven leaked while it ran (unreachable), and
    /// list them. Under `go test` every test binary is checked, from its first goroutine on
    #[arg(long, value_enum, value_delimiter = ',', hide_possible_values = true, value_name = "VERDICT,…")]
    pub fail_on: Vec<FailOn>,
    /// Known findings.
    #[command(flatten)]
    pub baseline: BaselineArgs,
    /// Also write the results of --fail-on to FILE as JUnit XML
    #[arg(long, value_name = "FILE", requires = "fail_on")]
    pub junit: Option<PathBuf>,
    /// Also report failures as GitHub Actions annotations [default: github if GITHUB_ACTIONS is true and
    /// --format is table]
    #[arg(long, value_enum, value_name = "github|none", hide_possible_values = true, requires = "fail_on")]
    pub annotations: Option<Annotations>,
    /// Limit the probes' overhead to this percentage of the program's CPU time (but allow at least 5 ms
    /// per second), or none for no limit. Above it the level is lowered; --fail-on is then inconclusive,
    /// and exec exits with 1 unless there are findings anyway
    #[arg(long, value_parser = percent, default_value = "none", value_name = "PERCENT|none")]
    pub budget: BudgetArg,
    /// Directory for findings, read by the gotrace that started `go test`
    #[arg(long, value_name = "DIRECTORY", hide = true, requires = "fail_on")]
    pub left_behind_to: Option<PathBuf>,
    /// How to trace and what to do with it.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Command to run, and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// What findings are held against.
#[derive(Clone, Debug, Default, Args)]
pub struct BaselineArgs {
    /// Fail only on findings that are not in this baseline
    #[arg(long, value_name = "FILE", requires = "fail_on")]
    pub baseline: Option<PathBuf>,
    /// Write this run's findings to FILE for use with --baseline, and do not fail on them
    #[arg(long, value_name = "FILE", requires = "fail_on")]
    pub write_baseline: Option<PathBuf>,
}

/// Who is told beside the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Annotations {
    /// GitHub Actions
    Github,
    /// No annotations
    None,
}

/// What fails a command that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailOn {
    /// Goroutines still blocked when the program exits
    #[value(name = "left_behind")]
    LeftBehind,
    /// Goroutines proven leaked while the program ran
    #[value(name = "unreachable")]
    Unreachable,
}

/// Arguments of `inspect`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  gotrace inspect ./server
  gotrace inspect 1234 --level full
  gotrace inspect ./server --format json | jq .probes")]
pub struct InspectArgs {
    /// Executable to inspect, or whose process: a pid, its name, or pod:[NAMESPACE/]POD[/CONTAINER]
    #[arg(value_name = "PATH|TARGET", required_unless_present = "pid", conflicts_with = "pid")]
    pub path: Option<PathBuf>,
    /// Inspect the executable of this process
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,
    /// Output format: text, or one JSON object (schema gotrace.inspect/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
    /// Show the probes of this level: lifecycle, waits or full
    #[arg(long, value_parser = values::level, default_value = "full", value_name = "LEVEL")]
    pub level: Level,
}

/// Arguments of `doctor`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Checks by doing: creates a ring buffer, loads the eBPF programs, attaches a probe to gotrace itself
and reads the memory of a child process. Exits with 0 if the events engine works on this host, with
3 if only snapshots work, or nothing does.

Examples:
  gotrace doctor
  gotrace doctor --format json | jq '.checks[] | select(.state != \"ok\")'")]
pub struct DoctorArgs {
    /// Output format: text, or one JSON object (schema gotrace.doctor/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
}

/// What `attach` and `exec` have in common.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Level of detail: lifecycle (creation and exit), waits (plus every wait) or full (plus wakers,
    /// scheduling latency and system calls)
    #[arg(long, value_parser = values::level, default_value = "waits", value_name = "LEVEL")]
    pub level: Level,
    /// Stop after this time (10s, 2m, 1h30m)
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Output format: live table (plain lines if stdout is not a terminal), or one JSON object per line
    /// (schema gotrace.attach/1)
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
    /// Record waits of at least this long individually; shorter ones are only counted in histograms. 0
    /// records every wait
    #[arg(long, value_parser = values::duration, default_value = "1ms", value_name = "TIME")]
    pub min_wait: Duration,
    /// Stack frames to keep per wait, 0 to 32
    #[arg(long, value_parser = value_parser!(u8).range(0..=32), default_value_t = 8, value_name = "N")]
    pub stack_depth: u8,
    /// Report interval
    #[arg(long, value_parser = values::interval, default_value = "1s", value_name = "TIME")]
    pub interval: Duration,
    /// Trace requests too, with --level full, and report those that are slow: from this time on (0ms: all),
    /// or auto; see `gotrace requests`
    #[arg(long, value_parser = values::slow, value_name = "TIME|auto")]
    pub requests: Option<Slow>,
    /// With --requests: take each call of this function for a request too; see `gotrace requests`
    #[arg(long = "request", value_name = "FUNCTION", requires = "requests")]
    pub functions: Vec<String>,
    /// With --requests: tell the path that each slow request asked for; see `gotrace requests`
    #[arg(long, requires = "requests")]
    pub paths: bool,
    /// Print nothing; with --format json only the header and the summary
    #[arg(short, long)]
    pub quiet: bool,
    /// Include the Go runtime's own goroutines; --format json always includes them
    #[arg(long)]
    pub system: bool,
    /// Write OTLP JSON lines to FILE, in the format of the OpenTelemetry file exporter
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Where to send OTLP.
    #[command(flatten)]
    pub otlp: OtlpArgs,
    /// Start a new trace at goroutines whose creator is older than this
    #[arg(long, value_parser = values::duration, default_value = "10s", value_name = "TIME", help_heading = "Spans")]
    pub trace_root_age: Duration,
    /// Fraction of traces to export, 0 to 1
    #[arg(long, value_parser = values::ratio, default_value = "1.0", value_name = "RATIO", help_heading = "Spans")]
    pub span_ratio: f64,
    /// Always export goroutines that lived at least this long
    #[arg(long, value_parser = values::duration, value_name = "TIME", help_heading = "Spans")]
    pub keep_longer_than: Option<Duration>,
    /// Always export waits of at least this long, and the goroutines that waited
    #[arg(long, value_parser = values::duration, value_name = "TIME", help_heading = "Spans")]
    pub keep_wait_over: Option<Duration>,
    /// Export at most this many spans per second and process; above it, fewer traces are sampled
    #[arg(long, value_parser = values::count, value_name = "N", help_heading = "Spans")]
    pub max_spans_per_second: Option<u32>,
    /// Export the program's arguments as a resource attribute. They can contain secrets
    #[arg(long, help_heading = "Spans")]
    pub resource_command_args: bool,
    /// Data source
    #[arg(long, value_enum, default_value_t = Engine::Auto, value_name = "ENGINE", help_heading = "Engine")]
    pub engine: Engine,
    /// Interval between snapshots of all goroutines, which repair what lost events left out; longer if
    /// snapshots are slow, so that they use at most 1% of a core. 0 takes only the first one
    #[arg(long, value_parser = values::duration, default_value = "10s", value_name = "TIME", help_heading = "Engine")]
    pub reconcile: Duration,
    /// Interval between snapshots for suspected leaks: growing, stuck, stalled, orphaned and deadlock;
    /// longer if a snapshot is slow. 0 turns them off
    #[arg(long, value_parser = values::duration, default_value = "15s", value_name = "TIME", help_heading = "Leaks")]
    pub suspect_every: Duration,
    /// Scan the heap for leaked goroutines once some have been blocked for this long, without stopping
    /// the process and with at most 5% of a core. Goroutines blocked for longer may also be reported as
    /// stuck
    #[arg(long, value_parser = values::duration, default_value = "60s", value_name = "TIME", help_heading = "Leaks")]
    pub prove_after: Duration,
    /// Interval between leak proofs
    #[arg(long, value_parser = values::duration_above_zero, default_value = "5m", value_name = "TIME", help_heading = "Leaks")]
    pub prove_every: Duration,
    /// Read at most this much of the process's memory per second (64M, 1G)
    #[arg(long, value_parser = values::bytes, value_name = "BYTES", help_heading = "Leaks")]
    pub max_read_rate: Option<u64>,
    /// Do not scan the heap for leaks
    #[arg(long, help_heading = "Leaks")]
    pub no_proof: bool,
    /// YAML file of known findings, each with a reason: shown as suppressed, and never a failure
    #[arg(long, value_name = "FILE", help_heading = "Leaks")]
    pub suppress: Option<PathBuf>,
    /// Size of the ring buffer between kernel and gotrace, a power of two from 64K to 1G
    #[arg(long, value_parser = values::ring_bytes, default_value = "8M", value_name = "BYTES", help_heading = "Engine")]
    pub ring_bytes: u32,
    /// What to record.
    #[command(flatten)]
    pub recording: RecordingArgs,
    /// Maximum number of goroutines whose waits are tracked at a time
    #[arg(long, value_parser = value_parser!(u32).range(1..=1 << 24), default_value_t = 1 << 17, value_name = "N", help_heading = "Engine")]
    pub max_goroutines: u32,
    /// Log level of the probes, on stderr: 0 for none (at no cost), 4 for every dropped event and why, 5
    /// for hits in processes that are not traced as well
    #[arg(long, value_parser = value_parser!(u8).range(0..=5), default_value_t = 0, value_name = "N", help_heading = "Engine")]
    pub kernel_log: u8,
}

/// What to record. Where there is none, the other flags make no sense ([`Self::check`]).
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Recording")]
pub struct RecordingArgs {
    /// Record the run to FILE, for `gotrace view` and `gotrace convert`; those need neither privileges nor
    /// the program
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Maximum size of the recording (64M, 1G)
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    pub max_size: Option<u64>,
    /// What to do at --max-size: stop recording (stop), or drop the oldest half (drop-oldest)
    #[arg(long, value_enum, default_value_t = WhenFull::Stop, hide_possible_values = true, value_name = "stop|drop-oldest")]
    pub when_full: WhenFull,
    /// Keep the recording in memory (256M, or --max-size), with at least this much of the recent past. It is
    /// written when a leak is found, at the end, and (not under exec) on SIGUSR1: to FILE, then to FILE with
    /// -2, -3, … in its name
    #[arg(long, value_name = "TIME", value_parser = values::duration_above_zero)]
    pub keep: Option<Duration>,
}

/// What happens to a recording that has its largest size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// Stop recording.
    #[default]
    Stop,
    /// Drop the oldest half.
    DropOldest,
}

/// Where to send OTLP. What is left out comes from the `OTEL_EXPORTER_OTLP_*` variables.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "OTLP")]
pub struct OtlpArgs {
    /// Send spans and metrics to this collector (http://localhost:4317). The standard
    /// OTEL_EXPORTER_OTLP_* variables work too; flags win
    #[arg(long, value_name = "ENDPOINT")]
    pub otlp: Option<String>,
    /// OTLP protocol: grpc or http/protobuf [default: grpc for port 4317 or no port, otherwise
    /// http/protobuf]
    #[arg(long, value_name = "PROTOCOL", value_parser = ["grpc", "http/protobuf"], hide_possible_values = true)]
    pub otlp_protocol: Option<String>,
    /// Header to send with each request; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::header)]
    pub otlp_header: Vec<String>,
    /// Compression: none or gzip [default: none]
    #[arg(long, value_name = "COMPRESSION", value_parser = ["none", "gzip"], hide_possible_values = true)]
    pub otlp_compression: Option<String>,
    /// Timeout of a request [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::duration_above_zero)]
    pub otlp_timeout: Option<Duration>,
    /// Do not use TLS for an endpoint without a scheme
    #[arg(long)]
    pub otlp_insecure: bool,
    /// PEM file of CA certificates to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    pub otlp_ca: Option<PathBuf>,
    /// PEM file of the client certificate
    #[arg(long, value_name = "FILE", requires = "otlp_key")]
    pub otlp_cert: Option<PathBuf>,
    /// PEM file of the client key
    #[arg(long, value_name = "FILE", requires = "otlp_cert")]
    pub otlp_key: Option<PathBuf>,
}

/// How `attach` and `exec` show intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Refreshed in place on a terminal, plain lines in a pipe
    Table,
    /// One JSON object per line
    Json,
}

/// How `inspect` and `doctor` answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextOrJson {
    /// Human-readable
    Text,
    /// Machine-readable
    Json,
}

/// Where figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// events, or snapshot if eBPF does not work on this host
    Auto,
    /// eBPF probes on every creation, wait and exit; snapshots add goroutines that already existed
    Events,
    /// No eBPF: read the process's memory every --interval, and compute creations and exits from the differences
    Snapshot,
}

impl ExecArgs {
    /// Whose goroutines are told that are left behind.
    #[must_use]
    pub fn left_behind(&self) -> LeftBehind {
        match (self.fails_on(FailOn::LeftBehind), self.follow_children) {
            (false, _) => LeftBehind::Nobody,
            (true, true) => LeftBehind::Everybody,
            (true, false) => LeftBehind::Tests,
        }
    }

    /// Whether such a finding fails the command.
    #[must_use]
    pub fn fails_on(&self, what: FailOn) -> bool {
        self.fail_on.contains(&what)
    }
}

impl FailOn {
    /// The verdict that does.
    pub(super) const fn verdict(self) -> Verdict {
        match self {
            Self::LeftBehind => Verdict::LeftBehind,
            Self::Unreachable => Verdict::Unreachable,
        }
    }

    /// The name that outputs and arguments use.
    pub(super) const fn name(self) -> &'static str {
        self.verdict().name()
    }
}

impl TraceArgs {
    /// Refuses what makes no sense, before anything is touched.
    ///
    /// # Errors
    /// When flags contradict each other, or a flag or variable of OTLP cannot be followed.
    pub fn check(&self) -> Result<(), CliError> {
        self.recording.check()?;
        self.export_config().map(|_| ())
    }

    /// What to export and where, from the flags and the standard variables.
    ///
    /// # Errors
    /// When a flag or variable cannot be followed.
    pub fn export_config(&self) -> Result<ExportConfig, CliError> {
        let environment = |name: &str| std::env::var(name).ok();
        let usage = |e: gotrace_export::otlp::ConfigError| CliError::usage(e.to_string());
        Ok(ExportConfig {
            spool: None,
            series: SeriesBounds::default(),
            otlp: OtlpConfig::from_flags_and_env(&self.otlp.flags(), &environment).map_err(usage)?,
            file: self.export.clone(),
            temporality: Temporality::from_env(&environment).map_err(usage)?,
            metric_interval: metric_interval_from_env(&environment).map_err(usage)?,
        })
    }
}

impl OtlpArgs {
    fn flags(&self) -> OtlpFlags {
        let Self {
            otlp,
            otlp_protocol,
            otlp_header,
            otlp_compression,
            otlp_timeout,
            otlp_insecure,
            otlp_ca,
            otlp_cert,
            otlp_key,
        } = self.clone();
        OtlpFlags {
            endpoint: otlp,
            protocol: otlp_protocol,
            headers: otlp_header,
            insecure: otlp_insecure,
            ca: otlp_ca,
            client_certificate: otlp_cert,
            client_key: otlp_key,
            compression: otlp_compression,
            timeout: otlp_timeout,
        }
    }
}
