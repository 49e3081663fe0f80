//! `gotrace exec`: starts a command with the probes in place.

use std::{io, thread, time::Duration};

use super::{CliError, ExecArgs, Exit, Format, args::FailOn, go_test, guard, say, trace};
use gotrace_agent::pipeline::{Line, LineError, ProofPace, Stop};
use gotrace_process::{Forwarder, Spawned};

/// Proofs where a proof decides over the run: one after the other, from the beginning on.
const AT_ONCE: ProofPace = ProofPace {
    after: Duration::from_millis(100),
    every: Duration::from_millis(500),
    rest: 2,
    max_read_rate: None,
};

/// Runs the command and ends with its exit status.
///
/// # Errors
/// When it cannot be started, with the exit code of a shell: 127 or 126; when it cannot be traced
/// though it is a Go program. What goes wrong later is said, and is the exit status of a command that
/// ended well.
pub fn run(mut args: ExecArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    let format = args.trace.format;
    if args.left_behind_to.is_some() {
        // Of what is for others nothing is shown.
        args.trace.format = Format::Table;
    }
    if args.follow_children && args.trace.engine == super::args::Engine::Snapshot {
        return Err(CliError::usage("--follow-children needs the events engine").help(
            "omit --engine, or trace a single program: gotrace exec --engine snapshot -- ./package.test",
        ));
    }
    let Some((command, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no command given"));
    };
    let acceptance = args.baseline.acceptance(args.trace.suppress.as_deref())?;
    if let Some(run) = go_test::Run::of(&args) {
        return run.run();
    }
    // Forks, so it comes before there are threads.
    let mut child = Spawned::prepare(command, arguments)?;
    let pid = child.pid();
    let background = trace::Background::start(&args.trace)?;
    // The program that runs a test is a child of `go test`.
    let follow_children = args.follow_children || args.fails_on(FailOn::LeftBehind);
    let unreachable = args.fails_on(FailOn::Unreachable);
    let mut config = args.trace.line_config(follow_children, args.left_behind(), args.budget.budget());
    config.suppressions = acceptance.suppressions.clone();
    if unreachable {
        config.proofs = Some(ProofPace { max_read_rate: args.trace.max_read_rate, ..AT_ONCE });
    }
    let mut line = Line::new(config, background.exporter())?;
    let recorder = args.trace.recorder(&args.budget)?;
    recorder.iter().for_each(|recorder| line.record_to(recorder.clone()));
    let ended = Stop::default();
    let mut display = trace::Display::new(&args.trace, true);
    match child.target().map_err(LineError::from).and_then(|target| line.trace(target)) {
        Ok(()) => {
            trace::say_engine(&line, &args.trace, follow_children);
            display.began(&line, &ended)?;
        }
        Err(error @ LineError::Program { .. }) => {
            let children = if follow_children { "; only Go programs that it starts are traced" } else { "" };
            CliError::warn(&format!("the command runs untraced: {error}{children}"));
            line.follow(pid);
        }
        // Dropping the child ends it before it has executed anything.
        Err(error) => return Err(error.into()),
    }
    // Before the command begins: without a thread to wait for it, it is not to.
    let (give, given) = std::sync::mpsc::channel::<Spawned>();
    let waiter = {
        let ended = ended.clone();
        let wait = move || {
            let status = given.recv().map_err(io::Error::other).and_then(|mut child| child.wait());
            ended.set_because("the command ended");
            status
        };
        thread::Builder::new().name("gotrace-wait".into()).spawn(wait).map_err(LineError::Threads)?
    };
    let forwarder = Forwarder::start(child.pidfd())
        .map_err(|e| CliError::failure(format!("cannot forward signals to the command: {e}")))?;
    child.release()?;
    if let Err(error) = line.has_begun(pid) {
        tracing::debug!(%error, "the command exited at once");
    }
    // It waits for that alone.
    let _ = give.send(child);
    let result = if line.tracing() > 0 || follow_children {
        trace::run(&mut line, &ended, args.trace.duration, &mut display)
    } else {
        Ok(())
    };
    // With --duration the tracing may end first: the probes go, the command goes on.
    let left = line.take_left_behind();
    let proven = line.take_proven();
    let finished = trace::finish(line, background, display, recorder);
    let status = waiter
        .join()
        .map_err(|_| CliError::failure("cannot wait for the command: the thread panicked"))?
        .map_err(|e| CliError::failure(format!("cannot get the exit status of process {pid}: {e}")))?;
    drop(forwarder);
    // The command ran, and its status is what matters; what went wrong with tracing is said.
    let mut exit = Exit(Spawned::exit_code(status));
    let result = match result {
        // A Go program may execute another program: the command's own affair.
        Err(error @ LineError::Program { .. }) => {
            CliError::warn(&format!("the command runs untraced: {error}"));
            Ok(())
        }
        result => result,
    };
    for error in [result.map_err(CliError::from).err(), finished.err()].into_iter().flatten() {
        if !error.is_quiet() {
            say(&format!("{error}\n"));
        }
        if exit == Exit::DONE {
            exit = error.exit();
        }
    }
    let left = args.fails_on(FailOn::LeftBehind).then_some(left);
    let proven = unreachable.then_some(proven.as_slice());
    let programs = guard::judge(left, proven, &acceptance, format)?;
    match &args.left_behind_to {
        // Who started this gotrace tells of all of them.
        Some(directory) => {
            go_test::leave(directory, pid, &programs)?;
            Ok(exit)
        }
        None if args.fail_on.is_empty() => Ok(exit),
        None => guard::conclude(&args, &programs, exit),
    }
}
