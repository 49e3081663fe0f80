//! `gotrace doctor`: what this host allows.

use super::{CliError, DoctorArgs, Exit};

pub(super) fn run(_args: &DoctorArgs) -> Result<Exit, CliError> {
    Err(CliError::failure("not available yet in this version"))
}
