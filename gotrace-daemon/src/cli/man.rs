//! `gotrace man DIR`: hidden; `cargo xtask dist` calls it. One page a subcommand.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, CliError, Exit};

/// Arguments of `man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Directory to write the pages to; made when missing
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> Result<Exit, CliError> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|e| CliError::failure(format!("cannot write man pages to {}: {e}", directory.display())))?;
    Ok(Exit::DONE)
}
