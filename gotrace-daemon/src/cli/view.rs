//! `gotrace view`: a recording in the live table, or as plain lines where stdout is no terminal.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufReader, IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use clap::Args;

use super::{
    CliError, Exit, Stdout,
    convert::{open, told_end},
    diagnostics::HoldBack,
    is_broken_pipe, recorded,
};
use crate::units::address;
use gotrace_agent::{
    recording::{Block, End, Listener, ReadError, Reader, Replay},
    tracee::{Outputs, Tracee},
};
use gotrace_export::text;
use gotrace_model::{Interval, Summary, printable::printable};
use gotrace_ui::{Film, play};

/// Arguments of `view`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Keys: space plays and pauses, ← and → seek by 10 s, Home goes to the beginning, + and - change the
speed, ↑ and ↓ scroll, d shows changes since now, e exports, q quits. Needs neither
privileges nor the program.

Examples:
  gotrace view run.gtr
  gotrace view run.gtr --speed 10
  gotrace view run.gtr --http 9465           on a page for browsers
  gotrace view run.gtr | less                all intervals as plain lines")]
pub struct ViewArgs {
    /// Recording to replay
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Playback speed, as a multiple of real time
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Include the Go runtime's own goroutines
    #[arg(long)]
    system: bool,
    /// Instead of the live table, serve the page, as of the end of the recording, at this address, or at
    /// this port of 127.0.0.1 (0: any), until Ctrl-C
    #[arg(long, value_parser = address, value_name = "ADDRESS|PORT", conflicts_with_all = ["speed", "system"])]
    http: Option<SocketAddr>,
}

fn speed(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|n| (0.1..=1000.0).contains(n))
        .ok_or("expected a number from 0.1 to 1000".into())
}

/// Shows a recording.
pub(super) fn run(args: &ViewArgs) -> Result<Exit, CliError> {
    let mut shown = Shown::open(args)?;
    if let Some(address) = args.http {
        recorded::serve(std::iter::from_fn(|| shown.interval()), address)?;
        return told_end(&args.file, shown.end.unwrap_or(Ok(End::default())));
    }
    if !io::stdout().is_terminal() {
        return lines(&mut shown, args);
    }
    let name = args.file.display().to_string();
    let hold_back = HoldBack::begin();
    let result = play(printable(&name).into_owned(), args.speed, args.system, &mut shown);
    drop(hold_back);
    result?;
    told_end(&args.file, shown.end.unwrap_or(Ok(End::default())))
}

fn lines(shown: &mut Shown<'_>, args: &ViewArgs) -> Result<Exit, CliError> {
    let mut out = Stdout::lock();
    while let Some(interval) = shown.interval() {
        match text::interval(&mut out, &interval, args.system) {
            Err(error) if is_broken_pipe(&error) => return Ok(Exit::DONE),
            done => done?,
        }
    }
    match out.flush() {
        Err(error) if !is_broken_pipe(&error) => return Err(error.into()),
        _ => {}
    }
    told_end(&args.file, shown.end.take().unwrap_or(Ok(End::default())))
}

/// A recording that is read as far as it is shown.
struct Shown<'a> {
    args: &'a ViewArgs,
    reader: Reader<BufReader<File>>,
    replay: Replay,
    ready: Ready,
    /// How reading ended, once it has.
    end: Option<Result<End, ReadError>>,
}

impl<'a> Shown<'a> {
    fn open(args: &'a ViewArgs) -> Result<Self, CliError> {
        let reader = open(&args.file)?;
        Ok(Self { args, reader, replay: Replay::default(), ready: Ready::default(), end: None })
    }

    fn interval(&mut self) -> Option<Arc<Interval>> {
        while self.ready.0.is_empty() && self.end.is_none() {
            self.advance();
        }
        self.ready.0.pop_front()
    }

    fn advance(&mut self) {
        self.end = match self.reader.next_block() {
            Ok(Block::Inputs { at, bytes, .. }) => {
                self.replay.apply(at, &bytes, &mut self.ready).err().map(Err)
            }
            Ok(Block::End(end)) => Some(Ok(end)),
            Err(error) => Some(Err(error)),
        };
    }
}

impl Film for Shown<'_> {
    fn next_interval(&mut self) -> io::Result<Option<Arc<Interval>>> {
        Ok(self.interval())
    }

    fn rewind(&mut self) -> io::Result<()> {
        *self = Self::open(self.args).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(())
    }
}

/// Intervals that were computed and not shown yet.
#[derive(Default)]
struct Ready(VecDeque<Arc<Interval>>);

impl Listener for Ready {
    fn began(&mut self, _: &Tracee) {}

    fn told(&mut self, out: &mut Outputs) {
        self.0.extend(std::mem::take(out).intervals);
    }

    fn ended(&mut self, _: Summary) {}
}
