//! What the scans of `gotrace leaks` saw, in a file.

use std::{
    io::{self, BufWriter, Write as _},
    path::Path,
};

use super::CliError;
use gotrace_export::leaks::evidence;
use gotrace_inspect::{examine::ProofSummary, heap::Prover};
use gotrace_process::private;

/// Writes what the passes saw.
pub(super) fn write_evidence(
    path: &Path,
    pid: u32,
    prover: &Prover,
    summary: &ProofSummary,
) -> Result<(), CliError> {
    let failed =
        |e: io::Error| CliError::failure(format!("cannot write evidence to {}: {e}", path.display()));
    let mut out = BufWriter::new(private::create(path).map_err(failed)?);
    evidence::write(&mut out, pid, prover, summary).map_err(failed)?;
    out.flush().map_err(failed)
}
