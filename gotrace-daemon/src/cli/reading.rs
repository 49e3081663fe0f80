//! Reads a process that is traced for the live table, when its user asks for what reports do not have.

use super::why::{self, WhyFormat};
use gotrace_agent::pipeline::Captures;
use gotrace_export::{
    api::{CaptureError, Processes as _},
    reading::{self, Goroutines, Locks},
};
use gotrace_process::give_memory_back;
use gotrace_ui::Reader;

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
        let mut text = Vec::new();
        let (found, room) = self
            .captures
            .look(self.pid, |target, live| {
                why::explain((target, live), goid, None, WhyFormat::Text, &mut text)
            })
            .map_err(said)?;
        drop(room);
        give_memory_back();
        found.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }
}

/// Why a process was not read.
fn said(error: CaptureError) -> String {
    match error {
        CaptureError::NotTraced => "the process has ended".into(),
        CaptureError::Later(why) | CaptureError::Unavailable(why) | CaptureError::Failed(why) => why,
    }
}
