//! The command line: one file a subcommand. Arguments become plain configuration; nothing here knows
//! how tracing is done.
//!
//! Input: the arguments and the environment. Output: results on stdout, everything else on stderr, and
//! an [`Exit`] code.

mod args;
mod asked;
mod attach;
mod baseline;
mod binary;
mod check;
mod completions;
mod convert;
mod daemon;
mod demo;
mod diagnostics;
mod diff;
mod doctor;
mod dump;
mod dump_args;
mod error;
mod examine;
mod exec;
mod followed;
mod gc;
mod go_test;
mod guard;
mod leaks;
mod man;
mod output;
#[cfg(test)]
mod printed_tests;
mod programs;
mod ps;
mod reading;
mod recorded;
mod recording;
mod requests;
mod served;
mod servers;
mod surroundings;
mod target;
mod temporary;
mod top;
mod trace;
mod view;
mod why;

use std::io::{self, IsTerminal as _};

use clap::{ColorChoice, CommandFactory as _, Parser, Subcommand};

pub use args::{
    AttachArgs, DoctorArgs, Engine, ExecArgs, Format, InspectArgs, OtlpArgs, TextOrJson, TraceArgs,
};
pub use daemon::DaemonArgs;
pub use diagnostics::{Diagnostics, log};
pub use dump_args::{DiffArgs, DumpArgs, DumpFormat};
pub use error::{CliError, Exit};
pub use leaks::{GraphFormat, LeaksArgs};
pub use output::{Stdout, is_broken_pipe, say};
pub use top::TopArgs;
pub use why::{WhyArgs, WhyFormat};

/// Trace the goroutines of running Go programs, from outside
///
/// No rebuild, no restart, no SDK: gotrace attaches eBPF probes to the Go runtime of a running
/// process and reports its goroutines, what created them, what they wait for and for how long.
#[derive(Debug, Parser)]
#[command(
    name = "gotrace",
    version,
    color = ColorChoice::Auto,
    after_help = AFTER_HELP,
    max_term_width = 100
)]
pub struct Cli {
    /// Log level of gotrace itself, on stderr: error, warn, info, debug, trace, or a filter by module
    /// such as `gotrace_kernel=debug` [env: GOTRACE_LOG] [default: warn, for daemon info]
    #[arg(long, global = true, env = "GOTRACE_LOG", value_name = "FILTER", hide_env = true)]
    pub log: Option<String>,
    /// What to do; on a terminal `ps` where nothing is said.
    #[command(subcommand)]
    command: Option<Command>,
}

impl Cli {
    /// What is logged where nothing else is said.
    #[must_use]
    pub fn default_log(&self) -> &'static str {
        if matches!(self.command, Some(Command::Daemon(_))) { "info" } else { "warn" }
    }

    /// The log target of the kernel side's own messages, where they are asked for.
    #[must_use]
    pub fn probe_log_target(&self) -> Option<&'static str> {
        let trace = match self.command.as_ref()? {
            Command::Attach(args) => &args.trace,
            Command::Exec(args) => &args.trace,
            Command::Record(args) => args.trace(),
            _ => return None,
        };
        (trace.kernel_log > 0).then_some(gotrace_kernel::PROBE_LOG_TARGET)
    }
}

const AFTER_HELP: &str = "\
Exit codes: 0 success, 1 failure, 2 usage error, 3 permission or capability missing, 4 not a Go
program or not supported, 5 the process is gone, 10 findings (check; others with --fail-on).

Examples:
  gotrace                                    the Go programs here, and what is wrong with each
  gotrace check server                       is something wrong? the verdict in ten seconds
  gotrace attach server                      live table of a running process
  gotrace attach 1234 --duration 10s --export spans.json
  gotrace record 1234 -o run.gtr             for later: gotrace view, gotrace convert
  gotrace dump pod:shop/till-7f9             print every goroutine, without eBPF
  gotrace leaks 1234 --watch 60s             find leaked and stuck goroutines
  gotrace why 1234 --goid 51                 what still references what a goroutine is blocked on
  gotrace diff before.json pid:1234          what grew since that dump
  gotrace gc 1234 --duration 1m              what the garbage collector costs
  gotrace exec -- ./server --port 8080       trace from the first goroutine on
  gotrace top                                all Go processes on this node
  gotrace daemon --config gotrace.yaml       node agent: OTLP, Prometheus, rules, budgets
  gotrace inspect ./server                   build info and probe points
  gotrace doctor                             check whether this host can run gotrace
  gotrace demo                               try it on a Go program that leaks

TARGET is a pid, the name of an executable, or pod:[NAMESPACE/]POD[/CONTAINER].";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace a running Go process: live table, spans, metrics
    Attach(AttachArgs),
    /// Run a command and trace it from its first goroutine on
    Exec(ExecArgs),
    /// Record a running Go process to a file, to analyze later and anywhere
    Record(recording::RecordArgs),
    /// Replay a recording in the live table: play, pause, seek
    View(view::ViewArgs),
    /// Convert a recording to the OTLP or JSON that the run would have written
    Convert(convert::ConvertArgs),
    /// Print every goroutine of a running Go process
    Dump(DumpArgs),
    /// Check a running Go process for leaks, deadlocks and stuck goroutines: the verdict in ten seconds
    Check(check::CheckArgs),
    /// Find leaked and stuck goroutines
    Leaks(leaks::LeaksArgs),
    /// Show what still references the channel or lock that a goroutine is blocked on
    Why(WhyArgs),
    /// Compare two dumps: which goroutines are new, more, fewer or gone
    Diff(DiffArgs),
    /// Show what the garbage collector costs, what else stops the world, and CPU throttling
    Gc(gc::GcArgs),
    /// Show where each request's time went, and because of whom
    Requests(requests::RequestsArgs),
    /// Run the node agent: trace all Go processes on this node, now and as they start
    Daemon(DaemonArgs),
    /// List the Go processes on this node and what is wrong with each, at a glance
    Ps(ps::PsArgs),
    /// Show all Go processes on this node in one table
    Top(TopArgs),
    /// Show build info and probe points of a Go binary
    Inspect(InspectArgs),
    /// Check whether this host can run gotrace
    Doctor(DoctorArgs),
    /// Start a small Go program that leaks, and show what gotrace says of it
    Demo(demo::DemoArgs),
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
    let command = match cli.command {
        Some(command) => command,
        None if io::stdout().is_terminal() => Command::Ps(ps::PsArgs::default()),
        None => {
            say(&Cli::command().render_help().to_string());
            return Ok(Exit::USAGE);
        }
    };
    match command {
        Command::Attach(args) => attach::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Record(args) => recording::run(args),
        Command::View(args) => view::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Leaks(args) => leaks::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Requests(args) => requests::run(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Inspect(args) => binary::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}
