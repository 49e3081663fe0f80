//! `gotrace attach`: follows a running process.

use super::{AttachArgs, CliError, Exit, trace};
use crate::{
    pipeline::{LeftBehind, Line, Stop},
    process::Target,
};

/// Follows the process until it ends, the time is over, or the user has enough.
///
/// # Errors
/// When the process cannot be traced, or results cannot be written.
pub fn run(args: AttachArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    let target = Target::open(args.pid)?;
    let background = trace::Background::start(&args.trace)?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let config = args.trace.line_config(false, LeftBehind::Nobody, args.budget.budget());
    let mut line = Line::new(config, background.exporter())?;
    let mut display = trace::Display::new(&args.trace, false);
    line.trace(target)?;
    trace::say_engine(&line, &args.trace, false);
    if let Some(traced) = line.first() {
        display.began(traced, &stop)?;
    }
    let result = trace::run(&mut line, &stop, args.trace.duration, &mut display);
    trace::finish(line, background, display)?;
    result?;
    Ok(Exit::DONE)
}
