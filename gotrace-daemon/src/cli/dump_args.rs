//! The arguments of `dump` and `diff`. Each field's comment is its help text.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, builder::PossibleValuesParser, value_parser};
use regex::Regex;

use super::{TextOrJson, target::TargetArgs};
use crate::units as values;
use gotrace_inspect::snapshot::Status;

/// Arguments of `dump`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Reads the memory of the process, which is never stopped or modified; needs no eBPF.

Examples:
  gotrace dump server
  gotrace dump 1234 --group
  gotrace dump 1234 --reason select,sleep --function main.worker
  gotrace dump 1234 --format json -o before.json
  gotrace dump 1234 --format pprof -o goroutines.pb.gz
  go tool pprof goroutines.pb.gz
  gotrace dump 1234 --format svg -o goroutines.svg")]
pub struct DumpArgs {
    /// Which process.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Output format
    #[arg(long, value_enum, default_value_t = DumpFormat::Text, value_name = "FORMAT")]
    pub format: DumpFormat,
    /// Write to FILE instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Group goroutines with the same stack, state, wait reason and creation site, largest group first;
    /// for text and json
    #[arg(long)]
    pub group: bool,
    /// Print function arguments as Go's own traceback does; for text and json, not with --group
    #[arg(long, conflicts_with = "group")]
    pub args: bool,
    /// Include the Go runtime's own goroutines
    #[arg(long, help_heading = "Filters")]
    pub system: bool,
    /// Only goroutines in one of these states: running, runnable, waiting, syscall, preempted, copystack,
    /// leaked
    #[arg(
        long,
        value_name = "STATE",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(Status::ALL.map(Status::name)),
        hide_possible_values = true,
        help_heading = "Filters"
    )]
    pub state: Vec<String>,
    /// Only goroutines with one of these wait reasons, as in tracebacks ("chan receive", select)
    #[arg(long, value_name = "REASON", value_delimiter = ',', help_heading = "Filters")]
    pub reason: Vec<String>,
    /// Only goroutines with a function in their stack that matches, or their entry function
    #[arg(long, value_name = "REGEX", value_parser = regex, help_heading = "Filters")]
    pub function: Option<Regex>,
    /// Only this goroutine, even one of the runtime's own; can be repeated
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        value_parser = value_parser!(u64).range(1..),
        help_heading = "Filters"
    )]
    pub goid: Vec<u64>,
    /// Only goroutines that are at least this old. Takes that long: takes a snapshot, waits, and takes
    /// another
    #[arg(long, value_name = "TIME", value_parser = min_age, help_heading = "Filters")]
    pub min_age: Option<Duration>,
}

/// How `dump` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpFormat {
    /// The format of Go's own traceback
    Text,
    /// One JSON object per line (schema gotrace.dump/1)
    Json,
    /// A goroutine profile for `go tool pprof`
    Pprof,
    /// Folded stacks, one per line, for flame graph tools
    Folded,
    /// For <https://www.speedscope.app>
    Speedscope,
    /// A flame graph
    Svg,
}

/// Arguments of `diff`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A dump is a file written by `gotrace dump --format json`, grouped or not, or pid:PID or
pod:[NAMESPACE/]POD for the current state of a running process.

Examples:
  gotrace diff before.json after.json
  gotrace diff before.json pid:1234
  gotrace diff before.json --pid 1234 --format json")]
pub struct DiffArgs {
    /// First dump: a file, pid:PID or pod:POD
    #[arg(value_name = "A")]
    pub before: String,
    /// Second dump: a file, pid:PID or pod:POD
    #[arg(value_name = "B", required_unless_present = "pid", conflicts_with = "pid")]
    pub after: Option<String>,
    /// Compare with the current state of this process
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,
    /// Output format: text, or one JSON object per line (schema gotrace.diff/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
    /// Write to FILE instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Include the Go runtime's own goroutines, if the dumps have them
    #[arg(long)]
    pub system: bool,
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|e| e.to_string())
}

fn min_age(text: &str) -> Result<Duration, String> {
    let age = values::duration_above_zero(text)?;
    if age > Duration::from_secs(86400) {
        return Err("the limit is one day, as the command takes that long".into());
    }
    Ok(age)
}
