//! `gotrace exec`: starts a command with the probes in place.

use std::thread;

use super::{CliError, ExecArgs, Exit, trace};
use crate::{
    pipeline::{Line, LineError, Stop},
    process::{Forwarder, Spawned},
};

/// Runs the command and ends with its exit status.
///
/// # Errors
/// When it cannot be started, with the exit code of a shell: 127 or 126; when it cannot be traced
/// though it is a Go program. What goes wrong later is said, and is the exit status of a command that
/// ended well.
pub fn run(args: ExecArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    let Some((command, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no command to execute"));
    };
    // Forks, so it comes before there are threads.
    let mut child = Spawned::prepare(command, arguments)?;
    let pid = child.pid();
    let background = trace::Background::start(&args.trace)?;
    let mut line = Line::new(args.trace.line_config(args.follow_children), background.exporter())?;
    let ended = Stop::default();
    let mut display = trace::Display::new(&args.trace, true);
    match child.target().map_err(LineError::from).and_then(|target| line.trace(target)) {
        Ok(traced) => display.began(traced, &ended)?,
        Err(error @ LineError::Program { .. }) => {
            let children = if args.follow_children { ", only Go programs that it starts" } else { "" };
            eprintln!("gotrace: {error}: it runs without probes{children}");
            line.follow(pid);
        }
        // Dropping the child ends it before it has executed anything.
        Err(error) => return Err(error.into()),
    }
    let forwarder = Forwarder::start(child.pidfd())
        .map_err(|e| CliError::failure(format!("cannot pass signals on to the command: {e}")))?;
    child.release()?;
    if let Err(error) = line.has_begun(pid) {
        tracing::debug!(%error, "the command ended at once");
    }
    let waiter = {
        let ended = ended.clone();
        thread::spawn(move || {
            let status = child.wait();
            ended.set_because("the command ended");
            status
        })
    };
    let result = if line.tracing() > 0 || args.follow_children {
        trace::run(&mut line, &ended, args.trace.duration, &mut display)
    } else {
        Ok(())
    };
    // With --duration the tracing may end first: the probes go, the command goes on.
    let finished = trace::finish(line, background, display);
    let status = waiter
        .join()
        .map_err(|_| CliError::failure("waiting for the command failed"))?
        .map_err(|e| CliError::failure(format!("cannot learn how process {pid} ended: {e}")))?;
    drop(forwarder);
    // The command ran, and its status is what matters; what went wrong with tracing is said.
    let mut exit = Exit(Spawned::exit_code(status));
    let result = match result {
        // A Go program may execute another program: the command's own affair.
        Err(error @ LineError::Program { .. }) => {
            eprintln!("gotrace: {error}: it runs without probes");
            Ok(())
        }
        result => result,
    };
    for error in [result.map_err(CliError::from).err(), finished.err()].into_iter().flatten() {
        if !error.is_quiet() {
            eprintln!("{error}");
        }
        if exit == Exit::DONE {
            exit = error.exit();
        }
    }
    Ok(exit)
}
