//! Reads a process that is traced for the live table, when its user asks for what reports do not have.

use std::sync::LazyLock;

use super::{
    CliError, dump,
    examine::Program,
    why::{self, WhyFormat},
};
use gotrace_agent::pipeline::Captures;
use gotrace_export::{
    api::{CaptureError, Processes as _},
    dump::Captured,
    reading::{self, Goroutines, Locks},
};
use gotrace_inspect::{
    examine::wait_graph,
    snapshot::{Live, Options},
};
use gotrace_process::{Target, give_memory_back};
use gotrace_ui::Reader;

/// What marking a heap, and the look for holders of locks, may take.
const ROOM_BYTES: u64 = 256 << 20;

/// A process that is traced here.
pub(super) struct Reading {
    pub(super) captures: Captures,
    pub(super) pid: u32,
}

impl Reader for Reading {
    fn goroutines(&self) -> Result<Goroutines, String> {
        let (mut captured, room) = self.captures.capture(self.pid).map_err(said)?;
        let told = reading::goroutines(&mut captured);
        drop((captured, room));
        give_memory_back();
        Ok(told)
    }

    fn locks(&self) -> Result<Locks, String> {
        let (mut captured, graph, room) = self.captures.graph(self.pid).map_err(said)?;
        let told = reading::locks(&mut captured, &graph);
        drop((captured, graph, room));
        give_memory_back();
        Ok(told)
    }

    fn why(&self, goid: u64) -> Result<Vec<String>, String> {
        let look = |target: &Target, live: &mut Live, room| explained(target, live, goid, room);
        let (found, room) = self.captures.look(self.pid, look).map_err(said)?;
        drop(room);
        told(found)
    }
}

/// A process that somebody else traces, or nobody: it is read here, which takes no probes.
impl Reader for Program {
    fn goroutines(&self) -> Result<Goroutines, String> {
        told(self.look(|target, live| Ok(reading::goroutines(&mut take(target, live, false)?))))
    }

    fn locks(&self) -> Result<Locks, String> {
        told(self.look(|target, live| {
            let mut captured = take(target, live, true)?;
            let graph = wait_graph(live, &captured.snapshot, ROOM_BYTES)?;
            Ok(reading::locks(&mut captured, &graph))
        }))
    }

    fn why(&self, goid: u64) -> Result<Vec<String>, String> {
        told(self.look(|target, live| explained(target, live, goid, ROOM_BYTES)))
    }
}

/// The same of one whose executable is read when it is first asked for.
pub(super) struct Apart(LazyLock<Result<Program, String>, Opening>);

/// Reads the executable.
type Opening = Box<dyn FnOnce() -> Result<Program, String> + Send>;

impl Apart {
    pub(super) fn new(target: Target) -> Self {
        Self(LazyLock::new(Box::new(|| told(Program::of(target)))))
    }

    fn program(&self) -> Result<&Program, String> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

impl Reader for Apart {
    fn goroutines(&self) -> Result<Goroutines, String> {
        self.program()?.goroutines()
    }

    fn locks(&self) -> Result<Locks, String> {
        self.program()?.locks()
    }

    fn why(&self, goid: u64) -> Result<Vec<String>, String> {
        self.program()?.why(goid)
    }
}

fn take(target: &Target, live: &mut Live, waits: bool) -> Result<Captured, CliError> {
    let options = Options { waits, ..Options::default() };
    Ok(Captured {
        snapshot: live.take(options).map_err(|e| dump::error(target.pid(), &e))?,
        names: live.names(target),
        executable: target.executable.display().to_string(),
        build_id: String::new(),
        mapping: None,
    })
}

fn told<T>(read: Result<T, CliError>) -> Result<T, String> {
    give_memory_back();
    read.map_err(|error| error.to_string())
}

/// What `gotrace why` says of a goroutine.
fn explained(target: &Target, live: &mut Live, goid: u64, room: u64) -> Result<Vec<String>, CliError> {
    let mut text = Vec::new();
    why::explain((target, live), goid, (None, Some(room)), WhyFormat::Text, &mut text)?;
    Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
}

/// Why a process was not read.
fn said(error: CaptureError) -> String {
    match error {
        CaptureError::NotTraced => "the process has ended".into(),
        CaptureError::Later(why) | CaptureError::Unavailable(why) | CaptureError::Failed(why) => why,
    }
}
