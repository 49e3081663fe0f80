//! `gotrace attach`: follows a running process.

use super::{AttachArgs, CliError, Exit};
use crate::process::Target;

/// Follows the process until it ends, the time is over, or the user has enough.
///
/// # Errors
/// When the process cannot be traced.
pub fn run(args: AttachArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    args.trace.export_config()?;
    let _target = Target::open(args.pid)?;
    Err(CliError::failure("attaching is not available yet in this version"))
}
