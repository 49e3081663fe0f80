//! The command `gotrace`: reads the arguments, sets up what gotrace says about its own work, prints
//! errors. Never a backtrace; a reader of stdout that goes away ends it quietly.

#![warn(clippy::print_stderr, clippy::print_stdout)]

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use clap::Parser;
use gotrace::cli::{self, Cli, CliError, Diagnostics, Exit};
use gotrace_export::otlp::SDK_LOG_TARGET;
use gotrace_process::helper;
use tracing_subscriber::{EnvFilter, filter::ParseError, util::SubscriberInitExt as _};

/// What is logged: as `--log` says, and what `--kernel-log` asks for.
fn filter(cli: &Cli) -> Result<EnvFilter, ParseError> {
    // The SDK repeats what the exporter says about the same collector, and the loader writes out whole objects where it has
    // no descriptor for them.
    let filter = EnvFilter::try_new(format!("{SDK_LOG_TARGET}=off,aya::bpf=error,{}", log(cli)))?;
    match cli.probe_log_target() {
        Some(target) => Ok(filter.add_directive(format!("{target}=trace").parse()?)),
        None => Ok(filter),
    }
}

fn log(cli: &Cli) -> &str {
    cli.log.as_deref().unwrap_or_else(|| cli.default_log())
}

fn main() -> ExitCode {
    helper::serve_if_asked();
    helper::enable();
    gotrace_process::bound_allocator();
    let cli = Cli::parse();
    let filter = match filter(&cli) {
        Ok(filter) => filter,
        Err(e) => {
            let error = CliError::usage(format!("--log (or GOTRACE_LOG) `{}`: {e}", log(&cli)))
                .help("use error, warn, info, debug, trace, or a filter such as gotrace_kernel=debug");
            cli::say(&format!("{error}\n"));
            return Exit::USAGE.into();
        }
    };
    let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    cli::log(filter, color, || Diagnostics).init();
    match cli::run(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            if !error.is_quiet() {
                cli::say(&format!("{error}\n"));
            }
            error.exit().into()
        }
    }
}
