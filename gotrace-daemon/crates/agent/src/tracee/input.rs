//! Everything that reaches a tracee from outside: what a recording is made of.
//!
//! The order of variants and fields is the file's format ([`crate::recording`]): new variants go to the end, and a
//! variant that changes takes a new one, or a new version of the format. Times are those of the monotonic clock.

use core::net::SocketAddr;
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use gotrace_common::Histogram;
use gotrace_inspect::{
    heap::Evidence,
    leak::{Awaited, Verdict},
    snapshot::Status,
};
use gotrace_model::{Level, Value, ids::ProcessKey};
use serde::{Deserialize, Serialize};

use super::{
    CollectorState, CoveredTime, Lowered, SpanSampling, Step, StepChange, Symbol, TraceeState,
    requests::{OpenDetail, RequestCounts, RequestsState},
    serial,
};
use crate::table::{CpuTimes, GoroutineState, Look, PeerNumber, Peers, Sighting, StacksState};

/// Something that reaches a tracee.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Input<'a> {
    /// It is this, without its goroutines; it begins, or this is where it was.
    State(Box<TraceeState>),
    /// Some of its goroutines, behind [`Self::State`].
    Goroutines(Vec<GoroutineState>),
    /// What addresses stand for that the next input needs.
    Symbols(Vec<Symbol>),
    /// A record of the ring, as the kernel side wrote it.
    Record(#[serde(borrow, with = "serial::bytes")] &'a [u8]),
    /// A reading of who waits begins.
    BeginOpenWaits,
    /// A goroutine waits, since then.
    OpenWait {
        /// Which one.
        goid: u64,
        /// Since when.
        start_ns: u64,
        /// Number of the wait reason.
        reason: u8,
    },
    /// A snapshot is about to begin.
    WatchExits,
    /// There is no snapshot after all.
    ForgetExits,
    /// A snapshot took so long.
    SnapshotTook(u64),
    /// A snapshot is held against the table from now on.
    BeginReconcile(Look),
    /// Part of what it saw.
    Sightings(Cow<'a, [Sighting]>),
    /// That was all of it.
    EndReconcile,
    /// Its number, and whether it has a row in the kernel side's arrays.
    Join {
        /// Its number.
        number: u32,
        /// Whether it has.
        probes: bool,
    },
    /// What ids are made of.
    Key(ProcessKey),
    /// Tracing begins.
    Begin {
        /// When.
        now_ns: u64,
        /// Processor time that the process has used.
        cpu_ns: Option<u64>,
    },
    /// Its program lies elsewhere than was thought: no symbol holds.
    Moved,
    /// What its program tells of it, and others.
    Resource(BTreeMap<Arc<str>, Value>),
    /// How it is to be traced.
    Settings(Settings),
    /// Events of this level are wanted now.
    Level(Level),
    /// The level is in force, where it is another one.
    LevelSet {
        /// When.
        now_ns: u64,
    },
    /// There are to be no events.
    Sampled,
    /// There are no events from now on.
    EventsStopped {
        /// When.
        now_ns: u64,
    },
    /// There are events again.
    EventsResumed {
        /// When.
        now_ns: u64,
    },
    /// Why less is traced than is wanted.
    Lowered(Option<Lowered>),
    /// A change that is to be reported.
    Changed(StepChange),
    /// A change that is told by a log record.
    TellChange {
        /// When.
        now_ns: u64,
        /// The step before.
        from: Step,
        /// The step from now on.
        to: Step,
        /// Why.
        why: Why,
    },
    /// Goroutines that there is room for.
    Room(u64),
    /// What is kept of waits is given back.
    GiveBack,
    /// What an examination found: proven leaks, and who may never finish, the worst first.
    Found {
        /// When.
        now_ns: u64,
        /// The findings.
        found: Vec<Found>,
    },
    /// So many proofs turned out wrong, all in all.
    Refuted(u64),
    /// Of what was found only this is looked after from now on.
    KeepFindings {
        /// What is proven.
        proven: bool,
        /// What is suspected.
        suspected: bool,
    },
    /// Nothing is examined any more.
    NoFindings,
    /// A report is wanted.
    Report(Box<Counted>),
    /// It is not traced any more.
    End {
        /// Why.
        why: Cow<'a, str>,
    },
    /// Findings that are known and may stay; the first that matches counts.
    Suppressions(Vec<Known>),
    /// The wall clock is this far from the monotonic one from now on.
    Clock {
        /// Nanoseconds from the monotonic clock to Unix epoch.
        offset_ns: i128,
        /// How far off that may be.
        error_ns: u64,
    },
    /// Entries that are wrappers whose callee only a goroutine's closure or stack tells: one that was met while neither
    /// could be read has such an entry, until a snapshot tells more.
    Wrappers(Vec<u64>),
    /// What is known of its collector, behind [`Self::State`].
    Collector(Box<CollectorState>),
    /// What its goroutines have used of the processors, behind [`Self::Goroutines`].
    CpuTimes(CpuTimes),
    /// Waits by reason and stack, behind [`Self::State`].
    Stacks(Box<StacksState>),
    /// Shorter waits are not sent.
    MinWait {
        /// In nanoseconds.
        ns: u64,
    },
    /// Its requests are traced from now on, or this is what is known of them, behind [`Self::State`].
    Requests(Box<RequestsState>),
    /// What was counted of its requests, by route and status, and which are open; in front of a report.
    RequestCounts(Box<RequestCounts>),
    /// Its requests are given up while the level would allow them, or are no more.
    RequestsPaused {
        /// When.
        now_ns: u64,
        /// Whether they are given up.
        paused: bool,
    },
    /// For how long its requests were traced, behind [`Self::Requests`].
    RequestsCovered(CoveredTime),
    /// Whom its waits were for, behind [`Self::Stacks`] and [`Self::Requests`].
    Peers(Box<PeersState>),
    /// More of requests that are open; in front of [`Self::RequestCounts`].
    OpenDetails(Vec<OpenDetail>),
}

/// Ends of connections that goroutines waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersState {
    /// Those that are told apart.
    pub(crate) known: Peers,
    /// Stacks by number.
    pub(crate) stacks: Vec<(u32, PeerNumber)>,
    /// Waits of requests by number.
    pub(crate) waits: Vec<(u64, SocketAddr)>,
}

/// A finding that is known and may stay ([`gotrace_inspect::leak::Suppression`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The pattern for its functions.
    pub function: String,
    /// Names of its verdicts; all where there are none.
    pub verdicts: Vec<String>,
    /// Why.
    pub reason: Arc<str>,
}

/// What the configuration says of one tracee.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which spans are exported.
    pub sampling: SpanSampling,
    /// The level that is wanted.
    pub level: Level,
    /// What probes may take of its CPU time; `None` for as much as they take.
    pub budget: Option<f64>,
    /// Goroutines made by one older than this begin a trace.
    pub trace_root_age_ns: u64,
}

/// What the kernel side and the system have counted when a report is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// When.
    pub now_ns: u64,
    /// Hits of probes, by kind.
    pub hits: Vec<u64>,
    /// What the kernel side lost, by kind.
    pub lost: Vec<u64>,
    /// The kernel side's histograms that are not empty, by row.
    #[serde(with = "serial::rows")]
    pub histograms: Vec<(u8, Histogram)>,
    /// What a hit of a probe costs, emulated and single-stepped, in nanoseconds.
    pub cost_ns: Option<(f64, f64)>,
    /// Processor time that the process has used.
    pub cpu_ns: Option<u64>,
    /// Records that could not be decoded, and that were nobody's, of all processes.
    pub undecodable: u64,
    /// See there.
    pub stray: u64,
}

/// Why a level was changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Why {
    /// The probes took this share of the CPU time, and may take that.
    Budget {
        /// What they took.
        cost_share: f64,
        /// What they may.
        share: f64,
    },
    /// What is kept of all processes.
    Memory {
        /// Bytes that it takes.
        used: u64,
        /// Bytes that it may.
        limit: u64,
    },
}

/// Goroutines of one site that wait at one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WaitPlace {
    /// Entry of their function.
    pub entry_pc: u64,
    /// Return address of the `go` statement; 0 for none.
    pub created_pc: u64,
    /// Number of the wait reason; `None` where they do not wait.
    pub reason: Option<u8>,
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
}

/// Goroutines of one place under one verdict ([`gotrace_inspect::leak::Finding`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Why.
    #[serde(with = "serial::verdict")]
    pub verdict: Verdict,
    /// Where they wait.
    pub place: WaitPlace,
    /// What they wait for, where they stand at a known place.
    pub awaited: Option<Awaited>,
    /// Their ids.
    pub goids: Vec<u64>,
    /// Goroutines of other sites and places that belong to it.
    pub others: Vec<FoundPart>,
    /// Who holds what they wait for, the best known first.
    pub holders: Vec<FoundHolder>,
    /// How many more there are each second, a 95 % confidence interval.
    pub growth_per_second: Option<(f64, f64)>,
    /// How long the one that stands longest has stood, at least.
    pub standing_ns: u64,
    /// Bytes that they alone keep alive; `None` where that was not found out.
    pub retained_bytes: Option<u64>,
    /// A sentence.
    pub why: Arc<str>,
}

/// Goroutines of another site or place that belong to a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundPart {
    /// Where they wait.
    pub place: WaitPlace,
    /// Their ids.
    pub goids: Vec<u64>,
}

/// A goroutine that holds what others wait for, or may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundHolder {
    /// Its id.
    pub goid: u64,
    /// Entry of its function.
    pub entry_pc: u64,
    /// The frame of it that tells, a return address.
    pub frame_pc: u64,
    /// What it does.
    pub status: Status,
    /// Number of its wait reason; `None` when it does not wait.
    pub reason: Option<u8>,
    /// What it rests on.
    pub evidence: Evidence,
    /// The goroutine that holds what this one waits for itself.
    pub waits_for: Option<u64>,
}
