//! `gotrace dump`: every goroutine of a process now.

use std::{io::Write, sync::Arc};

use super::{CliError, DumpArgs, Exit, output::Stdout};
use crate::{
    gobin::Binary,
    process::Target,
    sink::dump::{Header, Selection, json},
    snapshot::{Live, Options},
};

/// Takes a snapshot and writes it.
///
/// # Errors
/// When the process cannot be read, is no Go program (4), or is gone (5).
pub fn run(args: &DumpArgs) -> Result<Exit, CliError> {
    let target = Target::open(args.pid)?;
    let executable = target.executable.display().to_string();
    let binary = Binary::parse(&target.exe_bytes()?)
        .map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("process {}: {executable}: {e}", args.pid)))?;
    for warning in binary.warnings() {
        tracing::warn!(pid = args.pid, "{warning}");
    }
    let binary = Arc::new(binary);
    let mut live = Live::new(&target, Arc::clone(&binary)).map_err(|e| error(args.pid, &e))?;
    let snapshot = live.take(Options::default()).map_err(|e| error(args.pid, &e))?;
    let mut names = live.names(&target);
    let header = Header { executable: &executable, go_version: &binary.go_version().text };
    let mut out = Stdout::lock();
    json::write(&mut out, header, &snapshot, &mut names, Selection { system: args.system })?;
    out.flush()?;
    Ok(Exit::DONE)
}

pub(super) fn error(pid: u32, e: &crate::snapshot::SnapshotError) -> CliError {
    let what = match e {
        crate::snapshot::SnapshotError::Process(_) => e.to_string(),
        _ => format!("process {pid}: {e}"),
    };
    CliError::new(Exit(e.exit_code()), what).maybe_help(e.help())
}
