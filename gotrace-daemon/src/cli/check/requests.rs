//! Requests that are traced beside the snapshots of a check, where the user asks for it.
//!
//! Probes are in place from [`Tracing::start`] to [`Tracing::finish`], within a budget, on a thread of their own. Output:
//! what came, or why it could not be traced.

use std::{
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::cli::{CliError, args::BudgetArg, trace::events_alone};
use gotrace_agent::pipeline::{Line, LineConfig, Slow, Stop, TraceRequests};
use gotrace_export::{check::Requested, requests::Gathered};
use gotrace_model::Level;
use gotrace_process::{Identity, ProcessError, Target, contained};

/// Between two reports.
const TICK: Duration = Duration::from_secs(1);
/// Waits of a slow request that are told.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// Frames of their stacks.
const STACK_DEPTH: u8 = 24;

/// Requests of one process are being traced.
pub(super) struct Tracing {
    stop: Stop,
    thread: JoinHandle<Result<Requested, String>>,
}

impl Tracing {
    /// Attaches the probes. Who asks for what took no time at all has all requests told.
    pub fn start(process: Identity, slow: Duration, budget: BudgetArg) -> Result<Self, CliError> {
        let stop = Stop::default();
        let asked = stop.clone();
        let work = move || {
            let traced = contained(|| trace(process, slow, budget, &asked));
            match traced {
                Ok(traced) => traced.map_err(|error| error.reason().to_owned()),
                Err(panic) => Err(format!("gotrace panicked, which is a bug; please report it: {panic}")),
            }
        };
        let thread = thread::Builder::new().name("gotrace-requests".into()).spawn(work);
        let thread = thread.map_err(|e| CliError::failure(format!("cannot start a thread: {e}")))?;
        Ok(Self { stop, thread })
    }

    /// Detaches them.
    pub fn finish(self) -> Result<Requested, String> {
        self.stop.set();
        self.thread
            .join()
            .unwrap_or_else(|_| Err("gotrace panicked, which is a bug; please report it".into()))
    }
}

fn trace(process: Identity, slow: Duration, budget: BudgetArg, stop: &Stop) -> Result<Requested, CliError> {
    let target = Target::open(process.pid)?;
    if target.identity.start_ticks != process.start_ticks {
        return Err(ProcessError::Gone { pid: process.pid }.into());
    }
    let requests =
        TraceRequests { slow: Slow::From(slow), required: true, functions: [].into(), paths: false };
    let config = LineConfig {
        min_wait: MIN_WAIT,
        stack_depth: STACK_DEPTH,
        requests: Some(requests),
        ..events_alone(Level::Full, TICK, budget.budget())
    };
    let mut line = Line::new(config, None)?;
    line.trace(target)?;
    let mut requested =
        Requested { slow_ns: u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX), ..Requested::default() };
    let ended = line.run(stop, None, &mut |interval| {
        for request in interval.requests.iter().flat_map(|requests| &requests.slow) {
            requested.keep(request);
        }
    });
    for summary in line.finish() {
        let mut whole = Gathered::default();
        whole.add(&summary.last, true);
        requested.gathered = whole;
        requested.probe_cost = summary.last.probe_cost_share;
    }
    ended?;
    Ok(requested)
}
