//! `gotrace attach`: follows a running process.

use super::{AttachArgs, CliError, Exit, trace};
use gotrace_agent::pipeline::{LeftBehind, Line, Stop};
use gotrace_process::Target;

/// Follows the process until it ends, the time is over, or the user has enough.
///
/// # Errors
/// When the process cannot be traced, or results cannot be written.
pub fn run(args: AttachArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    let suppressions = trace::suppressions(args.trace.suppress.as_deref())?;
    let target = Target::open(args.target.pid()?)?;
    let background = trace::Background::start(&args.trace)?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut config = args.trace.line_config(false, LeftBehind::Nobody, args.budget.budget());
    config.suppressions = suppressions;
    let mut line = Line::new(config, background.exporter())?;
    let recorder = args.trace.recorder(&args.budget)?;
    if let Some(recorder) = &recorder {
        line.record_to(recorder.clone());
        if args.trace.recording.keep.is_some() {
            let recorder = recorder.clone();
            background.on_signal(libc::SIGUSR1, move || recorder.ask())?;
        }
    }
    let mut display = trace::Display::new(&args.trace, false);
    line.trace(target)?;
    trace::say_engine(&line, &args.trace, false);
    if let Some(traced) = line.first() {
        display.began(traced, &stop)?;
    }
    let result = trace::run(&mut line, &stop, args.trace.duration, &mut display);
    trace::finish(line, background, display, recorder)?;
    result?;
    Ok(Exit::DONE)
}
