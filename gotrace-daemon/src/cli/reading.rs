//! Reads a process that is traced for the live table, when its user asks for what reports do not have.

use std::sync::Arc;

use super::{
    CliError, dump,
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

/// What the look for holders of locks may take.
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
        let look = |target: &Target, live: &mut Live| explained(target, live, goid);
        let (found, room) = self.captures.look(self.pid, look).map_err(said)?;
        drop(room);
        give_memory_back();
        found.map_err(|error| error.to_string())
    }
}

/// A process that somebody else traces: it is read here all the same, which takes no probes.
pub(super) struct Apart {
    pub(super) pid: u32,
}

impl Apart {
    fn look<T>(&self, look: impl FnOnce(&Target, &mut Live) -> Result<T, CliError>) -> Result<T, String> {
        let pid = self.pid;
        let open = || {
            let target = Target::open(pid)?;
            let binary = dump::parse(&target, &target.exe_bytes()?)
                .map_err(|error| CliError::failure(format!("cannot read process {pid}: {error}")))?;
            let mut live = Live::new(&target, Arc::new(binary)).map_err(|e| dump::error(pid, &e))?;
            look(&target, &mut live)
        };
        let told = open().map_err(|error: CliError| error.to_string());
        give_memory_back();
        told
    }

    fn take(&self, live: &mut Live, target: &Target, waits: bool) -> Result<Captured, CliError> {
        let options = Options { waits, ..Options::default() };
        Ok(Captured {
            snapshot: live.take(options).map_err(|e| dump::error(self.pid, &e))?,
            names: live.names(target),
            executable: target.executable.display().to_string(),
            build_id: String::new(),
            mapping: None,
        })
    }
}

impl Reader for Apart {
    fn goroutines(&self) -> Result<Goroutines, String> {
        self.look(|target, live| Ok(reading::goroutines(&mut self.take(live, target, false)?)))
    }

    fn locks(&self) -> Result<Locks, String> {
        self.look(|target, live| {
            let mut captured = self.take(live, target, true)?;
            let graph = wait_graph(live, &captured.snapshot, ROOM_BYTES)?;
            Ok(reading::locks(&mut captured, &graph))
        })
    }

    fn why(&self, goid: u64) -> Result<Vec<String>, String> {
        self.look(|target, live| explained(target, live, goid))
    }
}

/// What `gotrace why` says of a goroutine.
fn explained(target: &Target, live: &mut Live, goid: u64) -> Result<Vec<String>, CliError> {
    let mut text = Vec::new();
    why::explain((target, live), goid, None, WhyFormat::Text, &mut text)?;
    Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
}

/// Why a process was not read.
fn said(error: CaptureError) -> String {
    match error {
        CaptureError::NotTraced => "the process has ended".into(),
        CaptureError::Later(why) | CaptureError::Unavailable(why) | CaptureError::Failed(why) => why,
    }
}
