//! One traced process right of its sources: table, symbols, level, meters, findings; what becomes of them when
//! something reaches it from outside ([`Input`]), and what that comes to ([`Outputs`]).
//!
//! A state machine without I/O and without a clock: the same inputs in the same order give the same outputs, whether a
//! living process gives them or a recording ([`crate::recording`]). Nothing changes a tracee but [`Tracee::apply`] and
//! its faster form for decoded records, `Tracee::event`. No input makes it fail.

mod collector;
mod cost;
mod covered;
mod findings;
mod input;
mod mode;
mod places;
mod report;
mod requests;
mod sampling;
pub(crate) mod serial;
mod spans;
mod symbols;

use std::{collections::BTreeMap, sync::Arc};

use gotrace_common::Histogram;
use gotrace_inspect::leak::Suppressions;
use gotrace_model::{Interval, Level, LogRecord, Resource, Span, Value, ids::ProcessKey};
use gotrace_process::Clock;
use serde::{Deserialize, Serialize};

use crate::{
    decode::{Assist, Event, OpenWait, decode},
    table::{GoroutineState, Output, SiteKey, Stacks, Table, TableState},
};
pub use collector::CollectorState;
pub(crate) use cost::ProbeCost;
pub use covered::CoveredTime;
pub use findings::identity;
use findings::{Findings, suppressions};
pub(crate) use findings::{known, percent};
pub use input::{Counted, Found, FoundHolder, FoundPart, Input, Known, PeersState, Settings, WaitPlace, Why};
use mode::Mode;
pub use mode::{Lowered, Step, StepChange};
pub use requests::{
    OpenDetail, OpenSeen, RequestCounts, RequestsState, RouteCount, RouteId,
    paths::{redacted, text as path_text},
};
use sampling::Sampler;
pub use sampling::SpanSampling;
use symbols::Symbols;
pub use symbols::{Frame, Names, NoNames, Symbol};

/// Goroutines of one input when a state is written.
const PART: usize = 1 << 14;

/// What inputs come to.
#[derive(Debug, Default)]
pub struct Outputs {
    /// What ended and is exported.
    pub spans: Vec<Span>,
    /// What is told once.
    pub logs: Vec<LogRecord>,
    /// Reports.
    pub intervals: Vec<Arc<Interval>>,
}

/// What a tracee is made from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its process id.
    pub pid: u32,
    /// It as OpenTelemetry's resource.
    pub resource: Arc<Resource>,
    /// What ids are made of.
    pub key: ProcessKey,
    /// From the events' clock to that of the world.
    pub clock: Clock,
    /// Names of wait reasons, by number.
    pub reasons: Arc<[Arc<str>]>,
    /// How it is to be traced.
    pub settings: Settings,
    /// Whether it is traced by snapshots alone.
    pub sampled: bool,
    /// Findings that are known and may stay.
    pub suppressions: Suppressions,
    /// Goroutines that there is room for.
    pub room: usize,
}

/// One traced process.
#[derive(Debug)]
pub struct Tracee {
    facts: Facts,
    resource: Arc<Resource>,
    table: Table,
    symbols: Symbols,
    findings: Findings,
    collector: Box<CollectorState>,
    /// `None` where requests are not traced.
    requests: Option<Box<RequestsState>>,
    suppressions: Suppressions,
    /// For what the table gives out, so that nothing is allocated for it.
    outputs: Vec<Output>,
}

/// What is written as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Facts {
    number: u32,
    pid: u32,
    /// Whether it has a row in the kernel side's arrays.
    probes: bool,
    key: ProcessKey,
    #[serde(with = "serial::clock")]
    clock: Clock,
    reasons: Arc<[Arc<str>]>,
    settings: Settings,
    mode: Mode,
    began_ns: u64,
    reported_ns: u64,
    /// Births and deaths at the last report.
    reported: (u64, u64),
    /// Births at addresses where no function begins.
    implausible: u64,
    spans: u64,
    sampler: Sampler,
    cost: ProbeCost,
    #[serde(with = "serial::histogram")]
    snapshots: Histogram,
}

/// A tracee without its goroutines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TraceeState {
    facts: Facts,
    resource: BTreeMap<Arc<str>, Value>,
    table: TableState,
    symbols: Vec<Symbol>,
    findings: Findings,
    suppressions: Vec<Known>,
}

impl TraceeState {
    /// The tracee's number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.facts.number
    }
}

impl Tracee {
    /// Nothing is known of its goroutines yet.
    pub(crate) fn new(origin: Origin, cost: ProbeCost) -> Self {
        let Origin { pid, resource, key, clock, reasons, settings, sampled, suppressions, room } = origin;
        let mut table = Table::new(settings.trace_root_age_ns).with_room_for(room);
        table.set_long_wait(settings.sampling.long_wait_ns());
        if sampled {
            table.become_sampled();
        }
        let facts = Facts {
            number: 0,
            pid,
            probes: false,
            key,
            clock,
            reasons,
            mode: Mode::new(settings.level, sampled),
            settings,
            began_ns: 0,
            reported_ns: 0,
            reported: (0, 0),
            implausible: 0,
            spans: 0,
            sampler: Sampler::default(),
            cost,
            snapshots: Histogram::default(),
        };
        Self {
            facts,
            resource,
            table,
            symbols: Symbols::default(),
            findings: Findings::default(),
            collector: Box::default(),
            requests: None,
            suppressions,
            outputs: Vec::new(),
        }
    }

    /// The tracee that this is the state of; its goroutines come by [`Input::Goroutines`].
    #[must_use]
    pub fn from_state(state: TraceeState) -> Self {
        let TraceeState { facts, resource, table, symbols, findings, suppressions: all } = state;
        let mut known = Symbols::default();
        symbols.into_iter().for_each(|symbol| known.learn(symbol));
        Self {
            facts,
            resource: Arc::new(Resource::new(resource)),
            table: Table::from_state(table),
            symbols: known,
            findings,
            collector: Box::default(),
            requests: None,
            suppressions: suppressions(&all),
            outputs: Vec::new(),
        }
    }

    /// Gives what [`Self::from_state`] and [`Self::apply`] make the same tracee of, to one function after the other.
    pub(crate) fn write_state(&self, mut write: impl FnMut(&Input<'_>)) {
        write(&Input::State(Box::new(TraceeState {
            facts: self.facts.clone(),
            resource: self.resource.attributes.clone(),
            table: self.table.state(),
            symbols: self.symbols.all(),
            findings: self.findings.clone(),
            suppressions: known(&self.suppressions),
        })));
        let wrappers: Vec<u64> = self.table.wrappers().collect();
        if !wrappers.is_empty() {
            write(&Input::Wrappers(wrappers));
        }
        if *self.collector != CollectorState::default() {
            write(&Input::Collector(self.collector.clone()));
        }
        if let Some(stacks) = self.table.stacks_state() {
            write(&Input::Stacks(Box::new(stacks)));
        }
        if let Some(requests) = &self.requests {
            write(&Input::Requests(requests.clone()));
            write(&Input::RequestsCovered(requests.covered));
        }
        let (known, stacks) = self.table.stacks_seen().of_peers();
        let waits = self.requests.as_ref().map(|requests| requests.peers()).unwrap_or_default();
        let peers = PeersState { known, stacks, waits };
        if peers != PeersState::default() {
            write(&Input::Peers(Box::new(peers)));
        }
        let mut part: Vec<GoroutineState> = Vec::new();
        for goroutine in self.table.goroutines() {
            part.push(goroutine);
            if part.len() == PART {
                write(&Input::Goroutines(std::mem::take(&mut part)));
            }
        }
        if !part.is_empty() {
            write(&Input::Goroutines(part));
        }
        self.table.cpu_times(PART, |times| write(&Input::CpuTimes(times)));
    }

    /// Whether an open request was told of, by goroutine and beginning.
    pub(crate) fn has_told(&self, open: (u64, u64)) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.has_told(open))
    }

    /// Takes what reaches it; what that comes to goes to `out`. `names` answers what is not known yet.
    pub fn apply(&mut self, input: &Input<'_>, names: &dyn Names, out: &mut Outputs) {
        let Self { facts, table, .. } = self;
        match input {
            Input::State(_) => {}
            Input::Goroutines(goroutines) => goroutines.iter().for_each(|g| table.restore(g)),
            Input::Symbols(symbols) => symbols.iter().for_each(|s| self.symbols.learn(s.clone())),
            Input::Record(bytes) => {
                if let Ok(event) = decode(bytes) {
                    self.event(&event, names, out);
                }
            }
            Input::BeginOpenWaits => table.begin_open_waits(),
            Input::OpenWait { goid, start_ns, reason } => {
                let (goid, start_ns, reason) = (*goid, *start_ns, *reason);
                let wait = OpenWait { process: facts.number, time_ns: 0, goid, start_ns, reason, g: 0 };
                table.apply(&Event::OpenWait(wait), &mut self.outputs);
            }
            Input::WatchExits => table.watch_exits(),
            Input::ForgetExits => table.forget_exits(),
            Input::SnapshotTook(duration_ns) => facts.snapshots.add(*duration_ns),
            Input::BeginReconcile(look) => table.begin_reconcile(*look),
            Input::Sightings(sightings) => table.sight(sightings, facts.mode.level >= Level::Full),
            Input::EndReconcile => table.end_reconcile(),
            Input::Join { number, probes } => (facts.number, facts.probes) = (*number, *probes),
            Input::Key(key) => facts.key = *key,
            Input::Begin { now_ns, cpu_ns } => {
                facts.cost.begin(*cpu_ns);
                (facts.began_ns, facts.reported_ns) = (*now_ns, *now_ns);
                table.begin(*now_ns);
                facts.mode.mark(*now_ns);
            }
            Input::Moved => self.symbols.forget(),
            Input::Resource(attributes) => {
                self.resource = Arc::new(self.resource.replaced(attributes.clone()));
            }
            Input::Settings(settings) => {
                facts.settings = *settings;
                table.set_trace_root_age(settings.trace_root_age_ns);
                table.set_long_wait(settings.sampling.long_wait_ns());
            }
            Input::Level(level) => {
                facts.mode.level = *level;
                facts.mode.highest = facts.mode.highest.max(*level);
            }
            Input::LevelSet { now_ns } => {
                if facts.mode.level < Level::Waits {
                    table.forget_parks();
                }
                facts.mode.mark(*now_ns);
            }
            Input::Sampled => {
                self.collector.interrupt();
                facts.mode.sampled = true;
                table.become_sampled();
            }
            Input::EventsStopped { now_ns } => {
                self.collector.interrupt();
                facts.mode.sampled = true;
                table.become_sampled();
                table.forget_parks();
                facts.mode.mark(*now_ns);
            }
            Input::EventsResumed { now_ns } => {
                self.collector.resume(*now_ns);
                facts.mode.sampled = false;
                table.become_traced(*now_ns);
                facts.mode.mark(*now_ns);
            }
            Input::Lowered(lowered) => facts.mode.lowered = *lowered,
            Input::Changed(change) => facts.mode.change = Some(*change),
            Input::TellChange { now_ns, from, to, why } => {
                out.logs.push(self.level_changed(*now_ns, *from, *to, *why));
            }
            Input::Room(goroutines) => table.set_room(usize::try_from(*goroutines).unwrap_or(usize::MAX)),
            Input::GiveBack => table.give_back(),
            Input::Found { now_ns, found } => self.find(*now_ns, found.clone(), names, &mut out.logs),
            Input::Refuted(refuted) => self.findings.refuted = *refuted,
            Input::KeepFindings { proven, suspected } => self.findings.keep(*proven, *suspected),
            Input::NoFindings => self.findings = Findings::default(),
            Input::Report(counted) => {
                let interval = self.interval(counted, names);
                out.intervals.push(Arc::new(interval));
            }
            Input::End { .. } => {}
            Input::Suppressions(all) => self.suppressions = suppressions(all),
            Input::Wrappers(entries) => table.set_wrappers(entries),
            Input::CpuTimes(times) => table.restore_cpu(times),
            Input::Collector(state) => self.collector = state.clone(),
            Input::Stacks(state) => *table.stacks() = Stacks::from_state(state),
            Input::Peers(peers) => {
                table.stacks().restore_peers(&peers.known, &peers.stacks);
                if let Some(requests) = &mut self.requests {
                    requests.restore_peers(&peers.waits);
                }
            }
            Input::MinWait { ns } => table.stacks().set_min_wait_ns(*ns),
            Input::Requests(state) => self.requests = Some(state.clone()),
            Input::RequestCounts(counts) => {
                if let Some(requests) = &mut self.requests {
                    requests.count((**counts).clone());
                }
            }
            Input::OpenDetails(details) => {
                if let Some(requests) = &mut self.requests {
                    requests.details.clone_from(details);
                }
            }
            Input::RequestsPaused { paused, .. } => {
                if let Some(requests) = &mut self.requests {
                    requests.covered.paused = *paused;
                }
            }
            Input::RequestsCovered(covered) => {
                if let Some(requests) = &mut self.requests {
                    requests.covered = *covered;
                }
            }
            Input::Clock { offset_ns, error_ns } => facts.clock = Clock::from_offset(*offset_ns, *error_ns),
        }
        if let Input::Begin { now_ns, .. }
        | Input::LevelSet { now_ns }
        | Input::EventsStopped { now_ns }
        | Input::EventsResumed { now_ns }
        | Input::RequestsPaused { now_ns, .. } = input
            && let Some(requests) = &mut self.requests
        {
            let allowed = self.facts.mode.step() == Step::Probes(Level::Full);
            requests.covered.mark(*now_ns, allowed && !requests.covered.paused);
        }
    }

    /// Takes an event of the process; whether it could be believed.
    pub(crate) fn event(&mut self, event: &Event<'_>, names: &dyn Names, out: &mut Outputs) -> bool {
        if let Event::Create(create) | Event::CreateClosure(create, _) = event
            && !self.symbols.is_function_entry(create.entry_pc, names)
        {
            self.facts.implausible += 1;
            return false;
        }
        match event {
            Event::Pause(pause) => {
                self.collector.pause(pause, &mut self.symbols, names);
                return true;
            }
            Event::Assist(assist) => {
                let Assist { created_pc, entry_pc, .. } = *assist;
                let site = self.table.creation_site(assist.goid).unwrap_or(SiteKey { created_pc, entry_pc });
                self.collector.assist(assist, site);
                return true;
            }
            Event::Request(request) => {
                self.request_ended(request, names, out);
                return true;
            }
            Event::Wait(wait) => {
                if let Some(requests) = &mut self.requests {
                    requests.waited(wait, &self.table);
                }
            }
            _ => {}
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        self.table.apply(event, &mut outputs);
        for output in outputs.drain(..) {
            let root = match &output {
                Output::Ended(e) => e.root,
                Output::Waited(w) => w.root,
            };
            let Facts { sampler, settings, key, spans, .. } = &mut self.facts;
            if !sampler.takes(&settings.sampling, key.trace_id(root), &output) {
                continue;
            }
            *spans += 1;
            out.spans.push(match output {
                Output::Ended(ended) => Span::Goroutine(self.goroutine_span(ended, names)),
                Output::Waited(waited) => Span::Wait(self.wait_span(waited, names)),
            });
        }
        self.outputs = outputs;
        true
    }

    /// From now on new symbols are kept until they are taken.
    pub(crate) fn keep_fresh_symbols(&mut self) {
        self.symbols.keep_fresh();
    }

    /// New symbols since this was last asked.
    pub(crate) fn take_fresh_symbols(&mut self) -> Vec<Symbol> {
        self.symbols.take_fresh()
    }

    /// Its number among those of the same run.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.facts.number
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.facts.pid
    }

    /// It as OpenTelemetry's resource.
    #[must_use]
    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// From the events' clock to that of the world.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.facts.clock
    }

    /// When tracing began.
    #[must_use]
    pub fn began_unix_nano(&self) -> u64 {
        self.facts.clock.unix_nano(self.facts.began_ns)
    }

    /// Bytes that what is known of its requests takes.
    pub(crate) fn requests_bytes(&self) -> usize {
        self.requests.as_deref().map_or(0, RequestsState::bytes)
    }

    /// Its goroutines.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The level of its events, where there are any.
    #[must_use]
    pub fn level(&self) -> Level {
        self.facts.mode.level
    }

    /// The highest level that it has had.
    #[must_use]
    pub fn highest(&self) -> Level {
        self.facts.mode.highest
    }

    /// How it is traced now.
    #[must_use]
    pub fn step(&self) -> Step {
        self.facts.mode.step()
    }

    /// Whether births and deaths come from snapshots only.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.facts.mode.sampled
    }

    /// Why less is traced of it than is wanted.
    #[must_use]
    pub fn lowered(&self) -> Option<Lowered> {
        self.facts.mode.lowered
    }

    /// Whether its level was changed, and that is yet to be reported.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.facts.mode.change.is_some()
    }

    /// Where its figures come from.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        if self.is_sampled() { "snapshot" } else { "events" }
    }

    /// How much is known of it: the level, or that it is sampled.
    #[must_use]
    pub fn level_name(&self) -> &'static str {
        self.step().level_name()
    }

    /// Births at addresses where no function begins, while none was believed.
    pub(crate) fn implausible(&self) -> u64 {
        if self.symbols.knows_functions() { 0 } else { self.facts.implausible }
    }

    /// Whether it makes more spans than it may have exported.
    pub(crate) fn makes_too_many_spans(&self) -> bool {
        self.facts.sampler.is_exceeded()
    }

    /// What its probes cost.
    pub(crate) fn cost(&self) -> &ProbeCost {
        &self.facts.cost
    }

    /// Whether goroutines are proven to be leaked.
    pub(crate) fn has_proven(&self) -> bool {
        self.findings.has_proven()
    }

    /// Proofs that turned out wrong.
    pub(crate) fn refuted(&self) -> u64 {
        self.findings.refuted
    }

    /// The name of a wait reason.
    pub(crate) fn reason(&self, reason: u8) -> Arc<str> {
        self.facts.reasons.get(usize::from(reason)).cloned().unwrap_or_else(|| Arc::from("unspecified"))
    }
}
