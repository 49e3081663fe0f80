//! The arguments of `dump` and `diff`. Each field's comment is its help text.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, builder::PossibleValuesParser, value_parser};
use regex::Regex;

use super::TextOrJson;
use crate::snapshot::Status;
use crate::units as values;

/// Arguments of `dump`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace dump --pid 1234
  gotrace dump --pid 1234 --group
  gotrace dump --pid 1234 --reason select,sleep --function main.worker
  gotrace dump --pid 1234 --format json -o before.json
  gotrace dump --pid 1234 --format pprof -o goroutines.pb.gz
  go tool pprof goroutines.pb.gz
  gotrace dump --pid 1234 --format svg -o goroutines.svg

Reads the process's memory; it is neither stopped nor changed, and eBPF is not needed.")]
pub struct DumpArgs {
    /// The process whose goroutines to show
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: u32,
    /// How to write them
    #[arg(long, value_enum, default_value_t = DumpFormat::Text, value_name = "FORMAT")]
    pub format: DumpFormat,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Count goroutines that are alike (stack, state, reason, creation), the most first; for text
    /// and json
    #[arg(long)]
    pub group: bool,
    /// What functions were called with, as Go's own traceback prints it; for text and json, not grouped
    #[arg(long, conflicts_with = "group")]
    pub args: bool,
    /// The runtime's own goroutines too
    #[arg(long, help_heading = "Filters")]
    pub system: bool,
    /// Those in one of these states: running, runnable, waiting, syscall, preempted, copystack, leaked
    #[arg(
        long,
        value_name = "STATE",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(Status::ALL.map(Status::name)),
        hide_possible_values = true,
        help_heading = "Filters"
    )]
    pub state: Vec<String>,
    /// Those that wait for one of these reasons, as tracebacks say it ("chan receive", select)
    #[arg(long, value_name = "REASON", value_delimiter = ',', help_heading = "Filters")]
    pub reason: Vec<String>,
    /// Those with a function in their stack that matches, or whose entry function does
    #[arg(long, value_name = "REGEX", value_parser = regex, help_heading = "Filters")]
    pub function: Option<Regex>,
    /// This one, the runtime's own too; can be given several times
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        value_parser = value_parser!(u64).range(1..),
        help_heading = "Filters"
    )]
    pub goid: Vec<u64>,
    /// Those that are at least this old. Takes that long: looks who is there, waits, and looks again
    #[arg(long, value_name = "TIME", value_parser = min_age, help_heading = "Filters")]
    pub min_age: Option<Duration>,
}

/// How `dump` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpFormat {
    /// As Go's own traceback
    Text,
    /// One object a line (schema gotrace.dump/1)
    Json,
    /// A goroutine profile for `go tool pprof`
    Pprof,
    /// A line a stack, for flame graph tools
    Folded,
    /// For <https://www.speedscope.app>
    Speedscope,
    /// A flame graph
    Svg,
}

/// Arguments of `diff`.
#[derive(Clone, Debug, Args)]
#[command(before_help = "\
Examples:
  gotrace diff before.json after.json
  gotrace diff before.json pid:1234
  gotrace diff before.json --pid 1234 --format json

Dumps are files that `gotrace dump --format json` wrote, grouped or not, or pid:PID for a running
process now.")]
pub struct DiffArgs {
    /// The first dump: a file, or pid:PID
    #[arg(value_name = "A")]
    pub before: String,
    /// The second
    #[arg(value_name = "B", required_unless_present = "pid", conflicts_with = "pid")]
    pub after: Option<String>,
    /// Compare with this process now
    #[arg(short, long, value_name = "PID", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,
    /// Text for people, or one object a line (schema gotrace.diff/1)
    #[arg(long, value_enum, default_value_t = TextOrJson::Text, value_name = "FORMAT")]
    pub format: TextOrJson,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The runtime's own goroutines too, where the dumps have them
    #[arg(long)]
    pub system: bool,
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|e| e.to_string())
}

fn min_age(text: &str) -> Result<Duration, String> {
    let age = values::duration_above_zero(text)?;
    if age > Duration::from_secs(86400) {
        return Err("it takes that long to find out, and a day is the limit".into());
    }
    Ok(age)
}
