//! `gotrace dump`: every goroutine of a process now.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    path::PathBuf,
    sync::Arc,
    thread,
};

use object::Object as _;

use super::{CliError, DumpArgs, DumpFormat, Exit, output::Stdout};
use crate::{
    gobin::Binary,
    private,
    process::Target,
    sink::dump::{
        self, Dump, Filter, Header, Mapped, folded, json, pprof, select::MinAge, speedscope, svg, text,
    },
    snapshot::{Live, Names, Options, Snapshot, SnapshotError, Status},
};

/// Takes a snapshot and writes it.
///
/// # Errors
/// When the process cannot be read, is no Go program (4), or is gone (5).
pub fn run(args: &DumpArgs) -> Result<Exit, CliError> {
    let groupable = matches!(args.format, DumpFormat::Text | DumpFormat::Json);
    if args.group && !groupable {
        return Err(CliError::usage("--group is for the formats text and json")
            .help("the other formats count goroutines that are alike anyway"));
    }
    if args.args && !groupable {
        return Err(CliError::usage("--args is for the formats text and json")
            .help("the other formats put goroutines together whatever they were called with"));
    }
    if args.format == DumpFormat::Pprof && args.output.is_none() && io::stdout().is_terminal() {
        return Err(
            CliError::usage("a profile is not for a terminal").help("name a file: -o goroutines.pb.gz")
        );
    }
    let mut process = Process::open(args.pid)?;
    let filter = filter(args, &mut process)?;
    let snapshot = process.take(Options { arguments: args.args, ..Options::default() })?;
    let mut names = process.names();
    let dump = Dump::new(process.header(), &snapshot, &filter, &mut names);
    for goid in &filter.goids {
        if snapshot.goroutine(*goid).is_none() {
            tracing::warn!(pid = args.pid, goid, "there is no such goroutine");
        }
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
    Ok(Exit::DONE)
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
            return Err(CliError::usage(format!("--reason {reason:?}: {version} has no such wait reason"))
                .help(format!("it has {}", known.join(", "))));
        }
    }
    let mut goids = args.goid.clone();
    goids.sort_unstable();
    goids.dedup();
    let min_age = match args.min_age {
        None => None,
        Some(age) => {
            let options = Options { stacks: false, waits: false, labels: false, arguments: false };
            let first = process.take(options)?;
            if io::stderr().is_terminal() {
                eprintln!("waiting {age:?} to see which goroutines are that old");
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
        let binary = Binary::parse(&bytes)
            .map_err(|e| CliError::new(Exit::UNSUPPORTED, format!("process {pid}: {executable}: {e}")))?;
        for warning in binary.warnings() {
            tracing::warn!(pid, "{warning}");
        }
        let build_id =
            object::File::parse(&*bytes).ok().and_then(|f| f.build_id().ok().flatten().map(build_id_text));
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
        }
    }
}

/// GNU build ids have 20 bytes; a longer one is none.
fn build_id_text(id: &[u8]) -> String {
    hex::encode(id.get(..64).unwrap_or(id))
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
    done.map_err(|e| CliError::failure(format!("cannot write the results to {}: {e}", path.display())))
}

pub(super) fn error(pid: u32, e: &SnapshotError) -> CliError {
    let what = match e {
        SnapshotError::Process(_) => e.to_string(),
        _ => format!("process {pid}: {e}"),
    };
    CliError::new(Exit(e.exit_code()), what).maybe_help(e.help())
}
