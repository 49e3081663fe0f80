//! `gotrace exec`: starts a command with the probes in place.

use super::{CliError, ExecArgs, Exit};
use crate::process::{ExecutableKind, Forwarder, Spawned};

/// Runs the command and ends with its exit status.
///
/// # Errors
/// When it cannot be started, with the exit code of a shell: 127 or 126.
pub fn run(args: ExecArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    args.trace.export_config()?;
    let Some((command, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no command to execute"));
    };
    let mut child = Spawned::prepare(command, arguments)?;
    let forwarder = Forwarder::start(child.pidfd())
        .map_err(|e| CliError::failure(format!("cannot pass signals on to the command: {e}")))?;
    match child.kind() {
        ExecutableKind::Elf => eprintln!("gotrace: tracing is not available yet in this version"),
        ExecutableKind::Script | ExecutableKind::Other => {
            eprintln!(
                "gotrace: {} is not a Go program: it runs without probes",
                child.executable().display()
            );
        }
    }
    child.release()?;
    let status = child
        .wait()
        .map_err(|e| CliError::failure(format!("cannot learn how process {} ended: {e}", child.pid())))?;
    drop(forwarder);
    Ok(Exit(Spawned::exit_code(status)))
}
