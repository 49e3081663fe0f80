//! What a run of the line is told at its beginning, and how it is told to end.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};

use super::{Budget, LeftBehind, ProofPace, SpanSampling, SuspicionPace};
use crate::tracee::Settings;
use gotrace_inspect::leak::Suppressions;
use gotrace_metadata::ResourceOptions;
use gotrace_model::Level;

/// Where figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// eBPF probes, or where the kernel refuses them, snapshots.
    Auto,
    /// eBPF probes.
    Events,
    /// Snapshots of the process's memory.
    Snapshot,
}

/// Who is traced beside those that are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Nobody.
    Nobody,
    /// Go programs that descendants of the first process execute.
    Descendants,
    /// Go programs of the whole node that the rules take; one set of probes a file serves all its processes.
    Node,
}

/// From when on a request is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// From the 99th percentile of its route on, at least [`Slow::LEAST`]; for a route with few requests from
    /// [`Slow::UNKNOWN`] on.
    Auto,
    /// From this time on.
    From(Duration),
}

impl Slow {
    /// No route's own threshold is below this.
    pub const LEAST: Duration = Duration::from_millis(1);
    /// The threshold of a route whose 99th percentile is not known.
    pub const UNKNOWN: Duration = Duration::from_millis(100);
    /// Requests of a route from which on its 99th percentile is known.
    pub const KNOWN_FROM: u64 = 200;
}

/// How requests are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRequests {
    /// When they are slow.
    pub slow: Slow,
    /// Whether they are all that is wanted: a program that serves none that can be traced is refused, before anything is
    /// put in place, and between turns nothing is traced.
    pub required: bool,
    /// Functions of which each call is a request, named as tracebacks print them.
    pub functions: Arc<[String]>,
    /// Whether the paths that slow requests asked for are read and told.
    pub paths: bool,
}

/// How to trace.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// With what.
    pub engine: Engine,
    /// How much.
    pub level: Level,
    /// Waits at least this long become spans.
    pub min_wait: Duration,
    /// Frames of a wait's stack, at most [`gotrace_common::DEEP_FRAMES`].
    pub stack_depth: u8,
    /// Time between two reports.
    pub interval: Duration,
    /// Time between two snapshots that the table is held against; `None` for the first one only.
    pub reconcile: Option<Duration>,
    /// Goroutines made by one older than this begin a trace.
    pub trace_root_age: Duration,
    /// Which spans are exported.
    pub sampling: SpanSampling,
    /// Bytes of the ring.
    pub ring_bytes: u32,
    /// Goroutines that waits are kept for at once.
    pub goroutines: u32,
    /// Who is traced beside those that are named.
    pub follow: Follow,
    /// Processes that have probes at once. Each takes 75 KB of kernel memory on each CPU for its histograms.
    pub processes: u32,
    /// Goroutines that are kept of one process at once, some 200 bytes each; births beyond are counted as
    /// lost.
    pub goroutines_each: usize,
    /// Bytes that what is kept of all processes may take on a node.
    pub memory: u64,
    /// What probes may take of a process's CPU time; `None` for as much as they take.
    pub budget: Option<Budget>,
    /// What to put into the resource.
    pub resource: ResourceOptions,
    /// Level of the kernel side's own diagnostics, 0 to 5.
    pub kernel_log_level: u8,
    /// When goroutines are looked at that may be leaked; `None` for never.
    pub suspicions: Option<SuspicionPace>,
    /// When leaks are proven from the heap; `None` for never.
    pub proofs: Option<ProofPace>,
    /// Whose goroutines to tell that are left behind at the end.
    pub left_behind: LeftBehind,
    /// How requests are traced; `None` where they are not. They take level `full`.
    pub requests: Option<TraceRequests>,
    /// Findings that are known and may stay.
    pub suppressions: Suppressions,
    /// Directory in which it is remembered over which processes gotrace died; `None` for nowhere.
    pub state: Option<PathBuf>,
}

impl LineConfig {
    /// What of it concerns a tracee.
    pub(super) fn settings(&self) -> Settings {
        let Self { sampling, level, budget, trace_root_age, .. } = self;
        Settings {
            sampling: *sampling,
            level: *level,
            budget: budget.map(Budget::share),
            trace_root_age_ns: u64::try_from(trace_root_age.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

/// Set by whoever wants the line to end: a signal, a key, a child that exited.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Asked>);

#[derive(Debug)]
struct Asked {
    why: OnceLock<&'static str>,
    /// Can be read once somebody has asked; `None` where the system gave none, and whoever waits looks now and then.
    notice: Option<OwnedFd>,
}

impl Default for Asked {
    fn default() -> Self {
        Self { why: OnceLock::new(), notice: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok() }
    }
}

impl Stop {
    /// Asks the line to end, as the user or the system wants it.
    pub fn set(&self) {
        self.set_because("interrupted");
    }

    /// Asks the line to end. The first one who asks gives the reason.
    pub fn set_because(&self, why: &'static str) {
        // Refused when someone has asked before.
        let _ = self.0.why.set(why);
        if let Some(notice) = &self.0.notice {
            // It is never full: nobody asks so often.
            let _ = rustix::io::write(notice, &1u64.to_ne_bytes());
        }
    }

    /// Why the line is to end; `None` when nobody asked.
    #[must_use]
    pub fn why(&self) -> Option<&'static str> {
        self.0.why.get().copied()
    }

    /// Can be read once somebody has asked.
    pub(super) fn notice(&self) -> Option<BorrowedFd<'_>> {
        self.0.notice.as_ref().map(AsFd::as_fd)
    }
}
