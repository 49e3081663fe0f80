//! Requests that were open before the probes were in place: nobody saw them begin, but their goroutines are in the function
//! that serves one.
//!
//! Told are those that wait. Two snapshots of the process's memory are taken, and between them it is asked which requests
//! the probes have seen begin: what is in both, has not run in between, and is none of these, began before.

use std::{collections::HashMap, sync::Arc};

use crate::cli::{CliError, dump::error};
use gotrace_agent::pipeline::Line;
use gotrace_export::dump::json::own_code;
use gotrace_go::Frame;
use gotrace_inspect::snapshot::{Goroutine, Live, Names, Options, StackFrame};
use gotrace_model::{Location, requests::OpenBefore};
use gotrace_process::Target;

/// Functions whose frames stand below all that is done for a request, and whose they are.
const SERVERS: [(&str, &str); 4] = [
    ("net/http.serverHandler.ServeHTTP", "net/http"),
    ("golang.org/x/net/http2.(*serverConn).runHandler", "golang.org/x/net/http2"),
    ("net/http/internal/http2.(*serverConn).runHandler", "net/http"),
    ("google.golang.org/grpc.(*Server).handleStream", "google.golang.org/grpc"),
];

/// Finds them in the first process of a line, whose probes are in place; the most at one place first.
///
/// # Errors
/// When its memory cannot be read.
pub(super) fn find(line: &Line, pid: u32) -> Result<Vec<OpenBefore>, CliError> {
    let Some(traced) = line.first() else { return Ok(Vec::new()) };
    let target = Target::open(pid)?;
    let failed = |e| error(pid, &e);
    let mut live = Live::new(&target, Arc::clone(traced.binary())).map_err(failed)?;
    let mut names = live.names(&target);
    let options = Options { waits: false, labels: false, ..Options::default() };
    let before = live.take(options).map_err(failed)?;
    let serving = line.serving()?;
    let after = live.take(options).map_err(failed)?;
    let reasons = traced.binary().wait_reasons();
    let mut found: HashMap<_, OpenBefore> = HashMap::new();
    for goroutine in after.goroutines.iter().filter(|g| !serving.contains(&g.goid)) {
        let stack = after.frames(goroutine);
        if !before.goroutine(goroutine.goid).is_some_and(|was| is_unmoved(was, goroutine)) {
            continue;
        }
        let Some(server) = server(stack, &mut names) else { continue };
        let entry = found.entry((goroutine.stack, goroutine.wait_reason)).or_insert_with(|| OpenBefore {
            server,
            reason: reasons.get(usize::from(goroutine.wait_reason)).copied().unwrap_or("unknown").into(),
            stack: names.stack(stack).iter().map(|named| place(named.frame)).collect(),
            own_code: own_code(stack, &mut names).as_ref().map(place),
            goids: Vec::new(),
        });
        entry.goids.push(goroutine.goid);
    }
    let mut found: Vec<OpenBefore> = found.into_values().collect();
    found.sort_by(|a, b| b.goids.len().cmp(&a.goids.len()).then_with(|| a.goids.cmp(&b.goids)));
    Ok(found)
}

/// Whether a goroutine waited in both snapshots, and did not run in between.
fn is_unmoved(before: &Goroutine, after: &Goroutine) -> bool {
    let waits = before.status.is_waiting() && after.status.is_waiting();
    waits && after.park_mark != 0 && before.park_mark == after.park_mark
}

/// Who serves the request that a goroutine with this stack is in.
fn server(stack: &[StackFrame], names: &mut Names) -> Option<&'static str> {
    let named = names.stack(stack);
    let of = |function: &str| SERVERS.iter().find(|(name, _)| *name == function).map(|(_, server)| *server);
    named.iter().rev().find_map(|named| of(&named.frame.function))
}

fn place(frame: &Frame) -> Arc<Location> {
    let Frame { function, file, line, .. } = frame;
    Arc::new(Location { function: function.as_str().into(), file: file.as_str().into(), line: *line })
}
