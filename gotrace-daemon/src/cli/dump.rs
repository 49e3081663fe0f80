//! `gotrace dump`: every goroutine of a process now.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    path::PathBuf,
    sync::Arc,
    thread,
};

use super::{CliError, DumpArgs, DumpFormat, Exit, output::Stdout, say};
use gotrace_export::dump::{
    self, Dump, Filter, Header, Mapped, folded, json, pprof, select::MinAge, speedscope, svg, text,
};
use gotrace_go::Binary;
use gotrace_inspect::snapshot::{Live, Names, Options, Snapshot, SnapshotError, Status};
use gotrace_process::{ProcessError, Target, private};

/// What is said where there are too many sockets.
pub(super) const SOCKETS_CUT: &str =
    "the network namespace has more than 10000 sockets of a kind: the peers of some sockets are not known";

/// Takes a snapshot and writes it.
///
/// # Errors
/// When the process cannot be read, is no Go program (4), or is gone (5).
pub fn run(args: &DumpArgs) -> Result<Exit, CliError> {
    let groupable = matches!(args.format, DumpFormat::Text | DumpFormat::Json);
    if args.group && !groupable {
        return Err(CliError::usage("--group works only with --format text or json")
            .help("the other formats always group goroutines"));
    }
    if args.args && !groupable {
        return Err(CliError::usage("--args works only with --format text or json")
            .help("the other formats group goroutines regardless of arguments"));
    }
    if args.format == DumpFormat::Pprof && args.output.is_none() && io::stdout().is_terminal() {
        return Err(CliError::usage("not writing a binary profile to a terminal")
            .help("write it to a file: -o goroutines.pb.gz"));
    }
    let pid = args.target.pid()?;
    let mut process = Process::open(pid)?;
    let filter = filter(args, &mut process)?;
    let mut snapshot = process.take(Options { arguments: args.args, ..Options::default() })?;
    let mut names = process.names();
    let goids: Vec<u64> = filter.select(&snapshot, &mut names).iter().map(|g| g.goid).collect();
    if groupable && !args.group {
        process.live.look_outside(&mut snapshot, goids);
    }
    if snapshot.outside.sockets_cut {
        tracing::warn!(pid, "{SOCKETS_CUT}");
    }
    let dump = Dump::new(process.header(), &snapshot, &filter, &mut names);
    let missing: Vec<String> =
        filter.goids.iter().filter(|g| snapshot.goroutine(**g).is_none()).map(u64::to_string).collect();
    let no_such = (!missing.is_empty()).then(|| {
        let what = if missing.len() == 1 { "no goroutine" } else { "no goroutines" };
        CliError::failure(format!("process {pid} has {what} {}", missing.join(", ")))
            .help("`gotrace dump` lists all goroutines")
    });
    // Those of several that exist are shown.
    if missing.len() == filter.goids.len()
        && let Some(error) = no_such
    {
        return Err(error);
    }
    write_to(args.output.as_ref(), |out| match (args.format, args.group) {
        (DumpFormat::Text, false) => text::write(out, &dump, &mut names),
        (DumpFormat::Json, false) => json::write(out, &dump, &mut names),
        (DumpFormat::Text, true) => {
            text::write_groups(out, &dump, &dump::group::groups(&dump.goroutines), &mut names)
        }
        (DumpFormat::Json, true) => {
            json::write_groups(out, &dump, &dump::group::groups(&dump.goroutines), &mut names)
        }
        (DumpFormat::Pprof, _) => pprof::write(out, &dump, &mut names),
        (DumpFormat::Folded, _) => folded::write(out, &dump, &mut names),
        (DumpFormat::Speedscope, _) => speedscope::write(out, &dump, &mut names),
        (DumpFormat::Svg, _) => svg::write(out, &dump, &mut names),
    })?;
    no_such.map_or(Ok(Exit::DONE), Err)
}

/// What was asked for; takes its time when ages matter.
fn filter(args: &DumpArgs, process: &mut Process) -> Result<Filter, CliError> {
    let known = process.live.binary().wait_reasons();
    for reason in &args.reason {
        if !known.contains(&reason.as_str()) || reason.is_empty() {
            let mut known: Vec<_> =
                known.iter().filter(|r| !r.is_empty()).map(|r| format!("{r:?}")).collect();
            known.sort();
            let version = &process.live.binary().go_version().text;
            return Err(CliError::usage(format!("--reason {reason:?}: no such wait reason in {version}"))
                .help(format!("its wait reasons are {}", known.join(", "))));
        }
    }
    let mut goids = args.goid.clone();
    goids.sort_unstable();
    goids.dedup();
    let min_age = match args.min_age {
        None => None,
        Some(age) => {
            let options =
                Options { stacks: false, waits: false, labels: false, arguments: false, callees: false };
            let first = process.take(options)?;
            if io::stderr().is_terminal() {
                say(&format!("waiting {age:?} to find goroutines of that age\n"));
            }
            thread::sleep(age);
            Some(MinAge { age, goids: first.goroutines.iter().map(|g| g.goid).collect() })
        }
    };
    let states = Status::ALL.into_iter().filter(|s| args.state.iter().any(|wanted| wanted == s.name()));
    Ok(Filter {
        system: args.system,
        states: states.collect(),
        reasons: args.reason.clone(),
        function: args.function.clone(),
        goids,
        min_age,
    })
}

/// A process that snapshots are taken of, and what is said of it.
pub(super) struct Process {
    target: Target,
    live: Live,
    executable: String,
    build_id: String,
    mapping: Option<Mapped>,
    /// Whether the engine's warning was passed on.
    warned: bool,
}

impl Process {
    /// Reads its executable.
    pub fn open(pid: u32) -> Result<Self, CliError> {
        let target = Target::open(pid)?;
        let executable = target.executable.display().to_string();
        let bytes = target.exe_bytes()?;
        let binary = parse(&target, &bytes).map_err(|e| {
            CliError::new(Exit::UNSUPPORTED, format!("cannot read process {pid}: {executable}: {e}"))
        })?;
        for warning in binary.warnings() {
            tracing::warn!(pid, "{warning}");
        }
        let build_id = gotrace_go::gnu_build_id(&bytes);
        drop(bytes);
        let live = Live::new(&target, Arc::new(binary)).map_err(|e| error(pid, &e))?;
        let mapping = target.executable_mappings()?.into_iter().find(|m| m.executable);
        let mapping = mapping.map(|m| Mapped { start: m.start, end: m.end, file_offset: m.file_offset });
        Ok(Self { target, live, executable, build_id: build_id.unwrap_or_default(), mapping, warned: false })
    }

    /// Reads its goroutines now. What could not be seen is warned of.
    pub fn take(&mut self, options: Options) -> Result<Snapshot, CliError> {
        let pid = self.target.pid();
        let snapshot = self.live.take(options).map_err(|e| error(pid, &e))?;
        if let Some(warning) = self.live.warning().filter(|_| !self.warned) {
            tracing::warn!(pid, "{warning}");
            self.warned = true;
        }
        Ok(snapshot)
    }

    pub fn names(&self) -> Names {
        self.live.names(&self.target)
    }

    pub fn header(&self) -> Header<'_> {
        Header {
            executable: &self.executable,
            go_version: &self.live.binary().go_version().text,
            mapping: self.mapping,
            build_id: &self.build_id,
            ..Header::default()
        }
    }
}

/// Reads a process's executable; where it was started by the dynamic loader that is not the program.
pub(super) fn parse(target: &Target, bytes: &[u8]) -> Result<Binary, gotrace_go::Error> {
    Binary::parse(bytes).map_err(|error| if target.runs_loader() { error.of_loader() } else { error })
}

/// Writes results to a file, or stdout.
pub(super) fn write_to(
    file: Option<&PathBuf>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CliError> {
    let Some(path) = file else {
        let mut out = Stdout::lock();
        write(&mut out)?;
        return Ok(out.flush()?);
    };
    let done = private::create(path).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush()
    });
    done.map_err(|e| CliError::failure(format!("cannot write results to {}: {e}", path.display())))
}

pub(super) fn error(pid: u32, e: &SnapshotError) -> CliError {
    // Of a process that ends meanwhile much makes no sense.
    if let Err(gone @ (ProcessError::Gone { .. } | ProcessError::Zombie { .. })) = Target::open(pid) {
        return gone.into();
    }
    let what = match e {
        SnapshotError::Process(_) => e.to_string(),
        _ => format!("cannot read process {pid}: {e}"),
    };
    CliError::new(Exit(e.exit_code()), what).maybe_help(e.help())
}
