//! `gotrace diff`: two dumps compared.

use std::{
    fs::File,
    io::{self, BufReader},
};

use super::{
    CliError, DiffArgs, Exit, TextOrJson,
    dump::{Process, write_to},
    target::TargetName,
};
use gotrace_export::dump::{
    Dump, Filter,
    diff::{Diff, write_text},
    read::{Places, ReadError, Tally},
};
use gotrace_inspect::snapshot::Options;

/// Reads two dumps and prints what differs. Ends with 0, whatever that is.
///
/// # Errors
/// When a file is not a whole dump (1), or a process cannot be read, as `dump`.
pub fn run(args: &DiffArgs) -> Result<Exit, CliError> {
    let after = match (&args.after, args.pid) {
        (Some(after), _) => after.clone(),
        (None, Some(pid)) => format!("pid:{pid}"),
        (None, None) => return Err(CliError::usage("no second dump or --pid given")),
    };
    let mut places = Places::default();
    let before = load(&args.before, args.system, &mut places)?;
    let after = load(&after, args.system, &mut places)?;
    if before.filter != after.filter && !(before.filter.is_null() || after.filter.is_null()) {
        tracing::warn!("the dumps were taken with different filters, which alone can explain differences");
    }
    let diff = Diff::new(&before, &after, &places);
    write_to(args.output.as_ref(), |out| match args.format {
        TextOrJson::Text => write_text(&diff, out),
        TextOrJson::Json => diff.write_json(out),
    })?;
    Ok(Exit::DONE)
}

/// A dump by what the command line calls it.
fn load(name: &str, system: bool, places: &mut Places) -> Result<Tally, CliError> {
    let pid = match name.strip_prefix("pid:") {
        Some(pid) => Some(pid.to_owned()),
        None if name.starts_with("pod:") => {
            let pod: TargetName = name.parse().map_err(CliError::usage)?;
            Some(pod.pid()?.to_string())
        }
        None => None,
    };
    if let Some(pid) = pid {
        let pid =
            pid.parse().ok().filter(|p| (1..=i32::MAX.unsigned_abs()).contains(p)).ok_or_else(|| {
                CliError::usage(format!("{name}: {pid:?} is not a process id"))
                    .help("use pid:1234, or ./pid:… for a file of that name")
            })?;
        let mut process = Process::open(pid)?;
        let options = Options { waits: false, labels: false, ..Options::default() };
        let snapshot = process.take(options)?;
        let filter = Filter { system, ..Filter::default() };
        let mut names = process.names();
        let dump = Dump::new(process.header(), &snapshot, &filter, &mut names);
        return Ok(Tally::of(name, &dump, &mut names, places));
    }
    let exit = |e: &io::Error| match e.kind() {
        io::ErrorKind::PermissionDenied => Exit::PERMISSION,
        _ => Exit::FAILURE,
    };
    let file = File::open(name).map_err(|e| {
        CliError::new(exit(&e), format!("cannot read {name}: {e}"))
            .help("give a file written by `gotrace dump --format json`, or a process as pid:1234")
    })?;
    Tally::read(name, &mut BufReader::with_capacity(1 << 18, file), system, places).map_err(|e| match &e {
        ReadError::Io { error, .. } => CliError::new(exit(error), e.to_string()),
        ReadError::Line { .. } => CliError::failure(e.to_string())
            .help("give a file written by `gotrace dump --format json`, or a process as pid:1234"),
    })
}
