//! `gotrace completions SHELL`: hidden; `cargo xtask dist` calls it.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliError, Exit, Stdout};

/// Arguments of `completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "gotrace", &mut script);
    let mut out = Stdout::lock();
    std::io::Write::write_all(&mut out, &script)?;
    std::io::Write::flush(&mut out)?;
    Ok(Exit::DONE)
}
