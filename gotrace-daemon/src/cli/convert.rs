//! `gotrace convert`: a recording as what the run itself would have written.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{CliError, Exit, is_broken_pipe};
use gotrace_agent::{
    recording::{End, Head, Listener, ReadError, Reader, replay},
    tracee::{Outputs, Tracee},
};
use gotrace_export::{
    json,
    otlp::{OtlpFile, SeriesBounds, Temporality},
};
use gotrace_model::{Resource, Summary};
use gotrace_process::private;

/// Arguments of `convert`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Needs neither privileges nor the program. A truncated or damaged recording is converted up to that
point; gotrace then reports the position and exits with 1.

Examples:
  gotrace convert run.gtr -o run.otlp.jsonl  spans, metrics and log records, as --export writes them
  gotrace convert run.gtr -o run.json        intervals, as --format json writes them
  gotrace convert run.gtr | jq .interval.alive")]
pub struct ConvertArgs {
    /// Recording to convert
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Output file; its extension selects the format: .jsonl for otlp, .json for json [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Output format, whatever the extension: otlp (OTLP JSON lines, as --export writes) or json (schema
    /// gotrace.attach/1)
    #[arg(long, value_enum, hide_possible_values = true, value_name = "otlp|json")]
    format: Option<ConvertFormat>,
}

/// What a recording is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConvertFormat {
    /// OTLP JSON lines.
    Otlp,
    /// One object a line.
    Json,
}

/// Converts.
pub(super) fn run(args: &ConvertArgs) -> Result<Exit, CliError> {
    let format = args.format()?;
    let mut reader = open(&args.file)?;
    let path = args.output.as_deref().unwrap_or(Path::new("/dev/stdout"));
    let cannot = |error: io::Error| {
        CliError::failure(format!("cannot write to {}: {error}", path.display()))
            .help("choose another file with -o")
    };
    let result = match format {
        ConvertFormat::Otlp => {
            let (temporality, every, series) = metrics(reader.head());
            let file = OtlpFile::create(path, temporality, every, series).map_err(cannot)?;
            let mut lines = OtlpLines(file);
            let result = replay(&mut reader, &mut lines);
            if let Some(error) = lines.0.finish().file_error {
                return Err(CliError::failure(error));
            }
            result
        }
        ConvertFormat::Json => {
            let out = BufWriter::new(private::create(path).map_err(cannot)?);
            let mut lines = JsonLines { out, announced: Vec::new(), failed: None };
            let result = replay(&mut reader, &mut lines);
            match lines.failed.map_or_else(|| lines.out.flush(), Err) {
                Err(error) if is_broken_pipe(&error) => return Ok(Exit::DONE),
                done => done.map_err(cannot)?,
            }
            result
        }
    };
    told_end(&args.file, result)
}

/// What the end of reading means for the exit code.
pub(super) fn told_end(path: &Path, result: Result<End, ReadError>) -> Result<Exit, CliError> {
    match result {
        Ok(end) => {
            if end.why == "max_size" {
                tracing::warn!(
                    "{}: recording stopped at --max-size, before the end of the run",
                    path.display()
                );
            }
            Ok(Exit::DONE)
        }
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// Opens a recording.
pub(super) fn open(path: &Path) -> Result<Reader<BufReader<File>>, CliError> {
    let file = File::open(path)
        .map_err(|error| CliError::failure(format!("cannot read {}: {error}", path.display())))?;
    Reader::new(BufReader::new(file)).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &ReadError) -> CliError {
    let what = CliError::failure(format!("{}: {error}", path.display()));
    if error.is_partial() { what.help("everything before that position was converted") } else { what }
}

impl ConvertArgs {
    fn format(&self) -> Result<ConvertFormat, CliError> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let Some(output) = &self.output else { return Ok(ConvertFormat::Json) };
        match output.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl") => Ok(ConvertFormat::Otlp),
            Some("json") => Ok(ConvertFormat::Json),
            _ => Err(CliError::usage(format!(
                "cannot tell the output format of {}: unknown file extension",
                output.display()
            ))
            .help("use .jsonl or .json, or give --format otlp or --format json")),
        }
    }
}

/// How the run exported metrics.
fn metrics(head: &Head) -> (Temporality, Option<Duration>, SeriesBounds) {
    let given = &head.metrics;
    let bound = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let series = match given.series {
        (0, _) | (_, 0) => SeriesBounds::default(),
        (per_process, all) => {
            SeriesBounds { per_process: bound(per_process), all: bound(all), ..SeriesBounds::default() }
        }
    };
    let temporality = Temporality::from_name(&given.temporality).unwrap_or_default();
    (temporality, given.every_ns.map(Duration::from_nanos), series)
}

struct OtlpLines(OtlpFile);

impl Listener for OtlpLines {
    fn began(&mut self, _: &Tracee) {}

    fn told(&mut self, out: &mut Outputs) {
        let Outputs { spans, logs, intervals } = std::mem::take(out);
        self.0.spans(&spans);
        logs.iter().for_each(|record| self.0.log(record));
        intervals.into_iter().for_each(|interval| self.0.interval(interval));
    }

    fn ended(&mut self, _: Summary) {}

    fn is_done(&self) -> bool {
        self.0.has_failed()
    }
}

struct JsonLines<W> {
    out: W,
    /// Those that have had their header.
    announced: Vec<Arc<Resource>>,
    failed: Option<io::Error>,
}

impl<W: Write> JsonLines<W> {
    fn write(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = write(self).err();
        }
    }

    fn announce(
        &mut self,
        resource: &Arc<Resource>,
        pid: u32,
        kind: (&str, &str),
        time_unix_nano: u64,
    ) -> io::Result<()> {
        if self.announced.iter().any(|known| Arc::ptr_eq(known, resource)) {
            return Ok(());
        }
        // A later one of the same process takes the place of the earlier.
        self.announced.retain(|known| known.process() != resource.process());
        self.announced.push(Arc::clone(resource));
        json::header_at(&mut self.out, resource, pid, kind, time_unix_nano)
    }
}

impl<W: Write> Listener for JsonLines<W> {
    fn began(&mut self, tracee: &Tracee) {
        self.write(|lines| {
            let kind = (tracee.engine(), tracee.level_name());
            lines.announce(tracee.resource(), tracee.pid(), kind, tracee.began_unix_nano())
        });
    }

    fn told(&mut self, out: &mut Outputs) {
        for interval in std::mem::take(out).intervals {
            self.write(|lines| {
                let kind = (interval.engine, interval.level);
                lines.announce(&interval.resource, interval.pid, kind, interval.start_unix_nano)?;
                json::interval(&mut lines.out, &interval)
            });
        }
    }

    fn ended(&mut self, summary: Summary) {
        self.write(|lines| {
            let process = summary.last.resource.process();
            lines.announced.retain(|known| known.process() != process);
            json::summary(&mut lines.out, &summary)
        });
    }

    fn is_done(&self) -> bool {
        self.failed.is_some()
    }
}
