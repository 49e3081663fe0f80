//! `gotrace inspect`: what a Go binary tells, and where it would be probed.

use std::{fs::File, io::Read, path::Path};

use super::{CliError, Exit, InspectArgs};
use crate::{
    gobin::Binary,
    process::{MAX_EXECUTABLE_BYTES, Target},
};

/// Reads the binary and prints what was found.
///
/// # Errors
/// When it cannot be read (1), is no Go program (4), or the process is gone (5).
pub fn run(args: InspectArgs) -> Result<Exit, CliError> {
    let (name, bytes) = match (&args.path, args.pid) {
        (Some(path), _) => (path.display().to_string(), read(path)?),
        (None, Some(pid)) => {
            let target = Target::open(pid)?;
            (format!("process {pid}: {}", target.executable.display()), target.exe_bytes()?)
        }
        (None, None) => return Err(CliError::usage("name an executable or a --pid")),
    };
    let _binary =
        Binary::parse(&bytes).map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("{name}: {e}")))?;
    Err(CliError::failure("showing a binary is not available yet in this version"))
}

/// The file, if it is one and not too large: a pipe or device would never end.
fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let error = |e: std::io::Error| {
        let exit = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::PERMISSION,
            _ => Exit::FAILURE,
        };
        CliError::new(exit, format!("cannot read {}: {e}", path.display()))
    };
    let metadata = std::fs::metadata(path).map_err(error)?;
    if !metadata.is_file() {
        return Err(CliError::new(Exit::UNSUPPORTED, format!("{} is not a regular file", path.display()))
            .help("name the executable of a Go program"));
    }
    if metadata.len() > MAX_EXECUTABLE_BYTES {
        return Err(CliError::new(
            Exit::UNSUPPORTED,
            format!(
                "{} has {} bytes; gotrace reads at most {MAX_EXECUTABLE_BYTES}",
                path.display(),
                metadata.len()
            ),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    File::open(path).map_err(error)?.take(MAX_EXECUTABLE_BYTES).read_to_end(&mut bytes).map_err(error)?;
    Ok(bytes)
}
