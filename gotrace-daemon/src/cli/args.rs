//! The arguments of the subcommands. Each field's comment is its help text.

use std::{ffi::OsString, fmt, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};

use super::CliError;
use crate::{
    level::Level,
    pipeline::{Budget, LeftBehind},
    sink::otlp::{
        ExportConfig, OtlpConfig, OtlpFlags, SeriesBounds, Temporality, config::metric_interval_from_env,
    },
    units as values,
};

/// Arguments of `attach`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace attach --pid 1234
  gotrace attach --pid 1234 --level full --duration 30s --format json > intervals.json
  gotrace attach --pid 1234 --otlp http://localhost:4317
  gotrace attach --pid 1234 --duration 1m --quiet --export spans.json

The program keeps running, and is neither stopped nor changed. Ctrl-C (in the live table also q
or Esc) detaches and prints a summary.")]
pub struct AttachArgs {
    /// The process to follow
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: u32,
    /// Percent of the process's CPU time that its probes may take, but at least 5 ms of each second; none
    /// for as much as they take. Beyond, less is traced (waits, lifecycle, then snapshots without
    /// probes), which is said at once, and more again when there is room
    #[arg(long, value_parser = percent, default_value = "5%", value_name = "PERCENT|none")]
    pub budget: BudgetArg,
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
#[command(before_help = "\
Examples:
  gotrace exec -- ./server --port 8080
  gotrace exec --export spans.json -- ./service.test -test.run TestPool
  gotrace exec --follow-children --export spans.json -- go test ./...
  gotrace exec --fail-on left_behind -- go test ./...

Signals, standard streams and the exit status of the command pass through. gotrace's own results
go to stderr, as stdout belongs to the command.")]
pub struct ExecArgs {
    /// Trace the Go programs, too, that the command starts
    #[arg(long)]
    pub follow_children: bool,
    /// Tell which goroutines the program leaves behind when it ends (left_behind, at level full), or which
    /// were proven to be unreachable while it ran (unreachable), and end with exit code 10 if it succeeded but
    /// there were some. With `go test` each test program is judged, from its goroutine 1 on
    #[arg(long, value_enum, value_delimiter = ',', hide_possible_values = true, value_name = "VERDICT,…")]
    pub fail_on: Vec<FailOn>,
    /// Percent of the program's CPU time that its probes may take, but at least 5 ms of each second;
    /// beyond, less is traced. What --fail-on asks for cannot be judged then: unless there are findings
    /// all the same, exec ends with 1
    #[arg(long, value_parser = percent, default_value = "none", value_name = "PERCENT|none")]
    pub budget: BudgetArg,
    /// Where to leave what was found, for the gotrace that started `go test`
    #[arg(long, value_name = "DIRECTORY", hide = true, requires = "fail_on")]
    pub left_behind_to: Option<PathBuf>,
    /// How to trace and what to do with it.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// The command, and its arguments behind it
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// What fails a command that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    /// Goroutines that are alive when the program ends
    #[value(name = "left_behind")]
    LeftBehind,
    /// Goroutines of which it was proven while the program ran that they can never run again
    #[value(name = "unreachable")]
    Unreachable,
}

/// Arguments of `inspect`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace inspect ./server
  gotrace inspect --pid 1234 --level full
  gotrace inspect ./server --format json | jq .probes")]
pub struct InspectArgs {
    /// The executable
    #[arg(value_name = "PATH", required_unless_present = "pid", conflicts_with = "pid")]
    pub path: Option<PathBuf>,
    /// The process whose executable to look at
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,
    /// Text for people, or one JSON object (schema gotrace.inspect/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
    /// The level whose probes to plan: lifecycle, waits, full
    #[arg(long, value_parser = values::level, default_value = "full", value_name = "LEVEL")]
    pub level: Level,
}

/// Arguments of `doctor`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace doctor
  gotrace doctor --format json | jq '.checks[] | select(.state != \"ok\")'

Tells by trying: makes a ring buffer, loads programs, puts a probe on gotrace itself, reads the
memory of a child. Ends with 0 when the events engine works here, with 3 when only snapshots or
nothing does.")]
pub struct DoctorArgs {
    /// Text for people, or one JSON object (schema gotrace.doctor/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
}

/// What `attach` and `exec` have in common.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Detail: lifecycle (births, deaths), waits (and every wait), full (and wakers, scheduling
    /// delay, system calls)
    #[arg(long, value_parser = values::level, default_value = "waits", value_name = "LEVEL")]
    pub level: Level,
    /// End after this time (10s, 2m, 1h30m)
    #[arg(long, value_parser = values::duration_above_zero, value_name = "TIME")]
    pub duration: Option<Duration>,
    /// Live table (plain lines where stdout is no terminal), or one JSON object a line (schema
    /// gotrace.attach/1)
    #[arg(long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub format: Format,
    /// Record waits at least this long one by one; shorter ones are counted in histograms. 0 records
    /// every wait
    #[arg(long, value_parser = values::duration, default_value = "1ms", value_name = "TIME")]
    pub min_wait: Duration,
    /// Frames kept of the stack of a wait, 0 to 32
    #[arg(long, value_parser = value_parser!(u8).range(0..=32), default_value_t = 8, value_name = "N")]
    pub stack_depth: u8,
    /// Time between two reports
    #[arg(long, value_parser = values::interval, default_value = "1s", value_name = "TIME")]
    pub interval: Duration,
    /// Show nothing; with --format json the header and the summary only
    #[arg(short, long)]
    pub quiet: bool,
    /// Write OTLP JSON lines to this file, as the OpenTelemetry file exporter does
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Where to send OTLP.
    #[command(flatten)]
    pub otlp: OtlpArgs,
    /// A goroutine made by one older than this begins a new trace
    #[arg(long, value_parser = values::duration, default_value = "10s", value_name = "TIME", help_heading = "Spans")]
    pub trace_root_age: Duration,
    /// Share of the traces that are exported, 0 to 1
    #[arg(long, value_parser = values::ratio, default_value = "1.0", value_name = "RATIO", help_heading = "Spans")]
    pub span_ratio: f64,
    /// Export goroutines that lived at least so long in any case
    #[arg(long, value_parser = values::duration, value_name = "TIME", help_heading = "Spans")]
    pub keep_longer_than: Option<Duration>,
    /// Export waits of at least this, and the goroutines that waited so long, in any case
    #[arg(long, value_parser = values::duration, value_name = "TIME", help_heading = "Spans")]
    pub keep_wait_over: Option<Duration>,
    /// Export no more spans of a process in a second; beyond, the share of its traces is made smaller
    #[arg(long, value_parser = values::count, value_name = "N", help_heading = "Spans")]
    pub max_spans_per_second: Option<u32>,
    /// Put the program's arguments into its resource. They can hold secrets
    #[arg(long, help_heading = "Spans")]
    pub resource_command_args: bool,
    /// Where figures come from
    #[arg(long, value_enum, default_value_t = Engine::Auto, value_name = "ENGINE", help_heading = "Engine")]
    pub engine: Engine,
    /// Time between two snapshots of all goroutines that the table is held against, so that what was lost
    /// is mended; more when they take long, at most 1% of a core. 0 for the first one only
    #[arg(long, value_parser = values::duration, default_value = "10s", value_name = "TIME", help_heading = "Engine")]
    pub reconcile: Duration,
    /// Look at where everybody stands this often, to tell who may never finish: growing, stuck, orphaned,
    /// deadlock; longer where a look takes long. 0 for never
    #[arg(long, value_parser = values::duration, default_value = "15s", value_name = "TIME", help_heading = "Leaks")]
    pub suspect_every: Duration,
    /// Prove from the heap which goroutines can never run again, where some have waited for others for this
    /// long; the process is not stopped, and the passes take a twentieth of a core at most. Who stands
    /// longer than this may also be called stuck
    #[arg(long, value_parser = values::duration, default_value = "60s", value_name = "TIME", help_heading = "Leaks")]
    pub prove_after: Duration,
    /// From the end of one proof to the beginning of the next
    #[arg(long, value_parser = values::duration_above_zero, default_value = "5m", value_name = "TIME", help_heading = "Leaks")]
    pub prove_every: Duration,
    /// Read at most so much of the process's memory a second (64M, 1G)
    #[arg(long, value_parser = values::bytes, value_name = "BYTES", help_heading = "Leaks")]
    pub max_read_rate: Option<u64>,
    /// Do not prove leaks
    #[arg(long, help_heading = "Leaks")]
    pub no_proof: bool,
    /// Size of the ring buffer between kernel and gotrace (65536 or 64K to 1G)
    #[arg(long, value_parser = values::ring_bytes, default_value = "8M", value_name = "BYTES", help_heading = "Engine")]
    pub ring_bytes: u32,
    /// Write every record that the kernel delivered to this file
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    pub record: Option<PathBuf>,
    /// Goroutines that waits are kept for at once
    #[arg(long, value_parser = value_parser!(u32).range(1..=1 << 24), default_value_t = 1 << 17, value_name = "N", help_heading = "Engine")]
    pub max_goroutines: u32,
    /// What the probes say of their own work, on stderr: 0 nothing (and free), 4 each event that is
    /// dropped and why, 5 also hits in processes that are not traced
    #[arg(long, value_parser = value_parser!(u8).range(0..=5), default_value_t = 0, value_name = "N", help_heading = "Engine")]
    pub kernel_log: u8,
}

/// Where to send OTLP. What is left out comes from the `OTEL_EXPORTER_OTLP_*` variables.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "OTLP")]
pub struct OtlpArgs {
    /// Send spans and metrics to this collector (http://localhost:4317). The standard
    /// OTEL_EXPORTER_OTLP_* variables work too; flags win
    #[arg(long, value_name = "ENDPOINT")]
    pub otlp: Option<String>,
    /// How to speak to it: grpc or http/protobuf [default: grpc at port 4317 or without a port, else
    /// http/protobuf]
    #[arg(long, value_name = "PROTOCOL", value_parser = ["grpc", "http/protobuf"], hide_possible_values = true)]
    pub otlp_protocol: Option<String>,
    /// Send this header with each request; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::header)]
    pub otlp_header: Vec<String>,
    /// none or gzip [default: none]
    #[arg(long, value_name = "COMPRESSION", value_parser = ["none", "gzip"], hide_possible_values = true)]
    pub otlp_compression: Option<String>,
    /// Time for one request [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::duration_above_zero)]
    pub otlp_timeout: Option<Duration>,
    /// No TLS for an endpoint that names no scheme
    #[arg(long)]
    pub otlp_insecure: bool,
    /// PEM certificates to trust, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub otlp_ca: Option<PathBuf>,
    /// PEM certificate to show to the collector
    #[arg(long, value_name = "FILE", requires = "otlp_key")]
    pub otlp_cert: Option<PathBuf>,
    /// PEM key of that certificate
    #[arg(long, value_name = "FILE", requires = "otlp_cert")]
    pub otlp_key: Option<PathBuf>,
}

/// How `attach` and `exec` show intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Refreshed in place on a terminal, plain lines into a pipe
    Table,
    /// One object a line
    Json,
}

/// How `inspect` and `doctor` answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextOrJson {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Where figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// events, or where the kernel refuses eBPF, snapshot
    Auto,
    /// eBPF probes see each birth, wait and death; snapshots add who was there before
    Events,
    /// No eBPF: the process's memory is read each --interval; births and deaths are the differences
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

impl TraceArgs {
    /// Refuses what makes no sense, before anything is touched.
    ///
    /// # Errors
    /// When flags contradict each other, or a flag or variable of OTLP cannot be followed.
    pub fn check(&self) -> Result<(), CliError> {
        if self.engine == Engine::Snapshot && self.record.is_some() {
            return Err(
                CliError::usage("--record needs the events engine").help("leave --engine snapshot out")
            );
        }
        self.export_config().map(|_| ())
    }

    /// What to export and where, from the flags and the standard variables.
    ///
    /// # Errors
    /// When a flag or variable cannot be followed.
    pub fn export_config(&self) -> Result<ExportConfig, CliError> {
        let environment = |name: &str| std::env::var(name).ok();
        let usage = |e: crate::sink::otlp::ConfigError| CliError::usage(e.to_string());
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
