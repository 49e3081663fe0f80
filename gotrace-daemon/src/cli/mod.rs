//! The command line: one file a subcommand. Arguments become plain configuration; nothing here knows
//! how tracing is done.
//!
//! Input: the arguments and the environment. Output: results on stdout, everything else on stderr, and
//! an [`Exit`] code.

mod args;
mod attach;
mod binary;
mod completions;
mod daemon;
mod diagnostics;
mod diff;
mod doctor;
mod dump;
mod dump_args;
mod error;
mod exec;
mod go_test;
mod leaks;
mod man;
mod output;
mod surroundings;
mod top;
mod trace;
mod why;

use clap::{ColorChoice, Parser, Subcommand};

pub use args::{
    AttachArgs, DoctorArgs, Engine, ExecArgs, Format, InspectArgs, OtlpArgs, TextOrJson, TraceArgs,
};
pub use daemon::DaemonArgs;
pub use diagnostics::{Diagnostics, log};
pub use dump_args::{DiffArgs, DumpArgs, DumpFormat};
pub use error::{CliError, Exit};
pub use leaks::{GraphFormat, LeaksArgs};
pub use output::{Stdout, is_broken_pipe};
pub use top::TopArgs;
pub use why::{WhyArgs, WhyFormat};

/// Shows and traces the goroutines of running Go programs, from outside
///
/// No rebuild, no restart, no SDK in the program: gotrace puts eBPF probes on the Go runtime of a
/// running process, and reports which goroutines it has, who created them, what they wait for and
/// how long.
#[derive(Debug, Parser)]
#[command(
    name = "gotrace",
    version,
    color = ColorChoice::Auto,
    before_help = EXAMPLES,
    after_help = "Exit codes: 0 done, 1 failure, 2 usage, 3 permission or capability missing, \
                  4 not a Go program or not supported, 5 the target is gone, \
                  10 findings (with --fail-on).",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What gotrace says on stderr about its own work: error, warn, info, debug, trace, or a filter
    /// by module such as `gotrace::kernel=debug` [env: GOTRACE_LOG] [default: warn, of daemon info]
    #[arg(long, global = true, env = "GOTRACE_LOG", value_name = "FILTER", hide_env = true)]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What is logged where nothing else is said.
    #[must_use]
    pub fn default_log(&self) -> &'static str {
        if matches!(self.command, Command::Daemon(_)) { "info" } else { "warn" }
    }

    /// The log target of the kernel side's own messages, where they are asked for.
    #[must_use]
    pub fn probe_log_target(&self) -> Option<&'static str> {
        let trace = match &self.command {
            Command::Attach(args) => &args.trace,
            Command::Exec(args) => &args.trace,
            _ => return None,
        };
        (trace.kernel_log > 0).then_some(crate::kernel::PROBE_LOG_TARGET)
    }
}

const EXAMPLES: &str = "\
Examples:
  gotrace doctor                                what this host allows
  gotrace attach --pid 1234                     live table of a running program
  gotrace attach --pid 1234 --duration 10s --export spans.json
  gotrace dump --pid 1234                       every goroutine now, without eBPF
  gotrace leaks --pid 1234 --watch 60s          what will not finish, and why
  gotrace why --pid 1234 --goid 51              who holds what a goroutine waits on
  gotrace diff before.json pid:1234             what grew since that dump
  gotrace exec -- ./server --port 8080          from goroutine 1 on
  gotrace top                                   all Go programs of the node
  gotrace daemon --config gotrace.yaml          the same as an agent: OTLP, Prometheus, rules, budget
  gotrace inspect ./server                      what the binary tells";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow a running Go program: live table, spans, metrics
    Attach(AttachArgs),
    /// Start a program with the probes already in place
    Exec(ExecArgs),
    /// Show every goroutine of a running Go program now
    Dump(DumpArgs),
    /// Show goroutines that will not finish, and why that is believed
    Leaks(leaks::LeaksArgs),
    /// Show who still holds what a goroutine waits on
    Why(WhyArgs),
    /// Compare two dumps: which goroutines are new, more, fewer, gone
    Diff(DiffArgs),
    /// Trace all Go programs of the node, now and as they start: the node agent
    Daemon(DaemonArgs),
    /// Show all Go processes of the node in one table
    Top(TopArgs),
    /// Show what a Go binary tells, and where it would be probed
    Inspect(InspectArgs),
    /// Try what this host allows, and say what is missing and what to do
    Doctor(DoctorArgs),
    /// Print shell completions
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    /// Write man pages
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// Does what the command says.
///
/// # Errors
/// What went wrong, what the user can do, and the exit code.
pub fn run(cli: Cli) -> Result<Exit, CliError> {
    match cli.command {
        Command::Attach(args) => attach::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Dump(args) => dump::run(&args),
        Command::Leaks(args) => leaks::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Inspect(args) => binary::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}
