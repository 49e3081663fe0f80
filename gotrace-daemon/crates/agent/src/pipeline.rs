//! The whole line: ring, decoder, table, symbols, exporter, and the readings in between: all of it.
//!
//! One thread drains the ring and does everything up to the exporter's bounded queue, so that events
//! are in order and nothing is locked. It never waits for anything but the ring.

mod alone;
mod behind;
mod budget;
mod captures;
mod config;
mod coverage;
mod error;
mod examining;
mod executions;
mod findings;
mod handle;
mod holds;
mod in_hand;
mod keeping;
mod known;
mod live;
mod memory;
mod node;
mod probes;
mod programs;
mod questions;
mod reload;
mod reports;
mod requests;
mod retry;
mod scout;
mod seed;
mod shares;
mod sharing;
mod snapshots;
mod spending;
mod text;
mod traced;
mod workers;

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

pub use crate::tracee::{SpanSampling, identity};
use crate::{
    decode::{Event, decode},
    recording::Recorder,
    tracee::Outputs,
};
pub use behind::{LeftBehind, LeftProcess};
pub use budget::{Budget, FLOOR_NS_PER_SECOND, Step};
pub use captures::Captures;
pub use config::{Engine, Follow, LineConfig, Slow, Stop, TraceRequests};
pub use error::LineError;
pub use examining::{ProofPace, SuspicionPace};
pub use findings::ProvenProcess;
use gotrace_export::otlp::Exporter;
use gotrace_kernel as kernel;
use gotrace_kernel::HitCost;
use gotrace_model::{Interval, Severity, Summary};
use gotrace_process::{
    NodeClock, ProcessError, Target, Threads, lease_notice, raise_open_files_limit, wait_for_any,
};
pub use handle::{LineHandle, LineState, Observer, ProcessEvent};
pub use known::Counts;
pub use node::Control;
pub use traced::Traced;

use executions::Executions;
use handle::Shown;
use in_hand::InHand;
use keeping::Keeping;
use node::Node;
use probes::Probes;
use programs::Programs;
use sharing::Sharing;
use spending::Spending;
use workers::Workers;

/// How long the ring may be left alone. At half full the kernel side wakes the reader before that.
const DRAIN_EVERY: Duration = Duration::from_millis(10);
/// The same where many processes are traced; where nothing came the last time, and for a while.
const DRAIN_NODE_EVERY: Duration = Duration::from_millis(40);
const DRAIN_SELDOM: Duration = Duration::from_millis(100);
const DRAIN_AT_REST: Duration = Duration::from_secs(1);
/// Turns without a record after which all are at rest.
const REST_AFTER: u32 = 10;
/// Longest that a piece of work of these threads takes: a snapshot, a pass over a heap that is read slowly.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(120);
const PROOF_WITHIN: Duration = Duration::from_secs(900);
/// Threads that take snapshots of all processes of a node.
const SNAPSHOT_WORKERS: usize = 2;
/// Records handled before other duties are looked at.
const DRAIN_LIMIT: usize = 1 << 16;
/// How long the end of a very short run waits for what a probe costs.
const CALIBRATION_WITHIN: Duration = Duration::from_millis(100);
/// How often a process is followed into another program while probes are put in place.
const EXECUTIONS_FOLLOWED: usize = 8;
/// Processes whose executions are known without a look whether they still live.
const EXECUTIONS: usize = 1024;
/// Spans handed to the exporter at once.
const SPAN_BATCH: usize = 1024;

/// The line.
pub struct Line {
    config: LineConfig,
    /// `None` where snapshots are all there is.
    probes: Option<Probes>,
    /// Why they are, when they were not asked for.
    fallback: Option<kernel::Error>,
    exporter: Option<Arc<Exporter>>,
    recorder: Option<Recorder>,
    traced: Vec<Traced>,
    summaries: Vec<Summary>,
    left: Vec<LeftProcess>,
    proven: Vec<ProvenProcess>,
    next_process: u32,
    has_traced: bool,
    /// What each process has executed, by pid and start.
    executions: HashMap<(u32, u64), Executions>,
    /// The first process, whose descendants are followed.
    root_pid: Option<u32>,
    programs: Programs,
    workers: Workers,
    /// Makes proofs of leak and looks for suspects; apart, as a pass takes long.
    provers: Workers,
    /// All of them, watched.
    threads: Threads,
    shown: Shown,
    in_hand: InHand,
    /// `None` unless all of the node is traced.
    node: Option<Node>,
    sharing: Sharing,
    spending: Spending,
    keeping: Keeping,
    /// From the clock of the events to that of the world, for all.
    clock: NodeClock,
    /// Readings of the ring that gave no record, in a row.
    without_records: u32,
    /// Records that could not be decoded, or are of no process that is traced.
    undecodable: u64,
    stray: u64,
}

impl Line {
    /// Loads the kernel side, unless there is to be none. Nothing is traced yet.
    ///
    /// # Errors
    /// [`LineError::Kernel`], unless snapshots may stand in.
    pub fn new(config: LineConfig, exporter: Option<Arc<Exporter>>) -> Result<Self, LineError> {
        raise_open_files_limit();
        let (probes, fallback) = match config.engine {
            Engine::Snapshot => (None, None),
            engine => match Probes::load(&config) {
                Ok(probes) => (Some(probes), None),
                Err(error) if engine == Engine::Auto => (None, Some(error)),
                Err(error) => return Err(error.into()),
            },
        };
        let workers = if config.follow == Follow::Node { SNAPSHOT_WORKERS } else { 1 };
        let threads = Threads::default();
        let in_hand = config.state.as_deref().map_or_else(InHand::default, |directory| {
            InHand::open(directory).unwrap_or_else(|error| {
                tracing::info!(
                    "cannot remember in {} which processes are being read: {error}",
                    directory.display()
                );
                InHand::default()
            })
        });
        let workers =
            Workers::start(("gotrace-snapshot", "snapshots"), workers, &threads, SNAPSHOT_WITHIN, &in_hand)
                .map_err(LineError::Threads)?;
        // A node's configuration may ask for them later.
        let provers = config.proofs.is_some() || config.suspicions.is_some() || config.follow == Follow::Node;
        let provers = Workers::start(
            ("gotrace-proof", "proofs"),
            usize::from(provers),
            &threads,
            PROOF_WITHIN,
            &in_hand,
        );
        let programs =
            if config.follow == Follow::Nobody { Programs::thorough() } else { Programs::default() };
        let programs = programs.with_requests(config.requests.as_ref());
        Ok(Self {
            shown: Shown::new(&threads, in_hand.clone(), config.memory),
            config,
            probes,
            fallback,
            exporter,
            recorder: None,
            traced: Vec::new(),
            summaries: Vec::new(),
            left: Vec::new(),
            proven: Vec::new(),
            next_process: 1,
            has_traced: false,
            executions: HashMap::new(),
            root_pid: None,
            programs,
            workers,
            provers: provers.map_err(LineError::Threads)?,
            threads,
            in_hand,
            node: None,
            sharing: Sharing::default(),
            spending: Spending::default(),
            keeping: Keeping::default(),
            clock: NodeClock::start(),
            without_records: 0,
            undecodable: 0,
            stray: 0,
        })
    }

    /// From now on processes that begin to be traced are recorded.
    pub fn record_to(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Why snapshots stand in for the events that were not asked to be done without, if they do.
    #[must_use]
    pub fn fallback(&self) -> Option<&kernel::Error> {
        self.fallback.as_ref()
    }

    /// Looks whether what a process holds makes sense, puts the probes in place and begins to trace it.
    ///
    /// # Errors
    /// See [`LineError`]; nothing is left in place then.
    pub fn trace(&mut self, target: Target) -> Result<(), LineError> {
        self.trace_at(target, false)
    }

    /// `beginning`: it has only just executed its program, which does not wait: there is nothing to be
    /// looked at yet, and each birth before the probes are in place is missed.
    fn trace_at(&mut self, mut target: Target, mut beginning: bool) -> Result<(), LineError> {
        let pid = target.pid();
        for _ in 0..EXECUTIONS_FOLLOWED {
            match self.try_trace(target, beginning) {
                Err(LineError::Kernel(error)) if error.is_executed() => {
                    target = Target::open(pid)?;
                    beginning = true;
                }
                result => return result,
            }
        }
        Err(kernel::Error::Executed { pid }.into())
    }

    fn try_trace(&mut self, target: Target, beginning: bool) -> Result<(), LineError> {
        let pid = target.pid();
        let first = !self.has_traced;
        let parsed = self.programs.of(&target, self.config.memory)?;
        let mut traced = Traced::prepare(target, parsed, &self.config, first, self.probes.is_none())?;
        if !beginning {
            traced.check_layout()?;
        }
        let slot = match &mut self.probes {
            None => None,
            Some(probes) => {
                let limit = self.config.processes;
                Some(probes.take_slot().ok_or(LineError::TooMany { pid, limit })?)
            }
        };
        traced.join(self.next_process, slot);
        self.name_execution(&mut traced);
        self.next_process += 1;
        let placed = self.probes.as_mut().map_or(Ok(()), |probes| probes.put_in_place(&mut traced));
        if let (Err(_), Some(probes), Some(slot)) = (&placed, &mut self.probes, slot) {
            probes.give_slot_back(slot);
        }
        match placed {
            Ok(()) => {}
            // The kernel says so in many ways.
            Err(_) if traced.has_ended() => return Err(ProcessError::Gone { pid }.into()),
            Err(error) if error.is_executed() => return Err(error.into()),
            Err(error) if self.config.engine == Engine::Auto && (first || error.is_not_safe()) => {
                if error.is_not_safe() {
                    // Others may be traced by events, and so may this one when it has executed another program.
                    traced.join(traced.number(), None);
                    traced.lower(Some(crate::tracee::Lowered::File));
                } else {
                    self.probes = None;
                }
                if first {
                    self.fallback = Some(error);
                } else {
                    tracing::warn!(pid, "falling back to snapshots: {error}");
                }
                traced.become_sampled();
                if !beginning {
                    traced.check_layout()?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        traced.begin(&self.config, beginning, self.clock.clock(), self.recorder.as_ref());
        self.shown.began(&traced);
        self.root_pid.get_or_insert(pid);
        self.has_traced = true;
        self.traced.push(traced);
        Ok(())
    }

    /// The descendants of this process are followed, though it is not traced itself.
    pub fn follow(&mut self, pid: u32) {
        self.root_pid.get_or_insert(pid);
    }

    /// The first process that is traced now.
    #[must_use]
    pub fn first(&self) -> Option<&Traced> {
        self.traced.first()
    }

    /// How many processes are traced now.
    #[must_use]
    pub fn tracing(&self) -> usize {
        self.traced.len()
    }

    /// Runs until `stop`, until `deadline`, or, unless children are followed, until the process has
    /// ended. Each report goes to `report`.
    ///
    /// # Errors
    /// [`LineError::Implausible`], [`LineError::Ring`]; the probes are removed by dropping the line.
    pub fn run(
        &mut self,
        stop: &Stop,
        deadline: Option<Instant>,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) -> Result<(), LineError> {
        let mut next_report = Instant::now() + self.config.interval;
        let mut at_once = false;
        loop {
            let now = Instant::now();
            let until = deadline.map_or(next_report, |d| d.min(next_report)).saturating_duration_since(now);
            let often = match self.without_records {
                // Snapshots are ordered, and taken in, at turns.
                REST_AFTER.. if self.node.is_some() => DRAIN_AT_REST.min(self.report_interval() / 4),
                1.. if self.node.is_some() => DRAIN_SELDOM,
                _ if self.node.is_some() => DRAIN_NODE_EVERY,
                _ => DRAIN_EVERY,
            };
            let time = if at_once { Duration::ZERO } else { until.min(often) };
            let somebody_ended = self.wait(time, stop)?;
            self.tend_probes();
            self.tend_clock();
            let busy = self.drain()? == DRAIN_LIMIT;
            let now = Instant::now();
            at_once = self.tend_snapshots(now, !busy)?;
            self.tend_examinations(now);
            if self.probes.is_none() && self.node.is_none() {
                // What there is to be said comes with each snapshot.
                self.report(Traced::take_fresh, report);
                next_report = now + self.config.interval;
            } else if now >= next_report {
                self.report_all(report);
                next_report = (next_report + self.config.interval).max(now);
            }
            let why = stop.why().or_else(|| deadline.is_some_and(|d| now >= d).then_some("duration"));
            if let Some(why) = why {
                // A process that has ended by itself was not interrupted.
                self.look_after_processes(report)?;
                if self.node.is_none() {
                    for traced in self.traced.iter_mut().filter(|t| t.is_sampled()) {
                        traced.look_once_more(&self.config, &self.workers)?;
                    }
                }
                self.end_all(why, report)?;
                self.show_state();
                return Ok(());
            }
            if !busy {
                self.traced.iter_mut().for_each(Traced::look_at_stacks);
                if self.looks_now(somebody_ended, now) {
                    self.look_after_processes(report)?;
                }
                if self.traced.is_empty() && self.config.follow == Follow::Nobody {
                    return Ok(());
                }
            }
            self.tend_budget(now, report);
            self.tend_node(now, report)?;
            self.answer_questions(now);
            self.tend_holds(now, report);
            self.show(now);
            self.tend_recorder(now);
            if let Some(probes) = &mut self.probes {
                probes.clean(now);
            }
        }
    }

    /// Looks after snapshots; whether there is more to do at once. A node's process that cannot be read is given up.
    fn tend_snapshots(&mut self, now: Instant, drained: bool) -> Result<bool, LineError> {
        let mut at_once = false;
        for traced in &mut self.traced {
            match traced.tend_snapshots(now, drained, &self.config, &self.workers) {
                Ok(more) => at_once |= more,
                Err(error) if self.node.is_some() => traced.fail(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(at_once)
    }

    /// Looks after the examinations of processes, and tells what is new.
    fn tend_examinations(&mut self, now: Instant) {
        let Self { traced, config, provers, recorder, keeping, .. } = self;
        let mut out = Outputs::default();
        for traced in traced {
            let known = out.logs.len();
            // What others do not keep; for a small process there is always enough.
            let others = (keeping.bytes + keeping.programs).saturating_sub(traced.kept_bytes);
            let room = config.memory.saturating_sub(others).max(config.memory / 8);
            traced.tend_examination(now, (config, room), provers, &mut out);
            for record in &out.logs[known..] {
                let pid = traced.pid();
                match record.severity {
                    Severity::Info => tracing::info!(pid, "{}", record.body),
                    _ => tracing::warn!(pid, "{}", record.body),
                }
            }
        }
        // What is known and may stay is no occasion.
        let found = out.logs.iter().any(|record| record.severity != Severity::Info);
        if let (Some(recorder), true) = (recorder, found) {
            recorder.note_finding();
        }
        self.hand_on(out);
    }

    /// Has written what is due of the recording.
    fn tend_recorder(&mut self, now: Instant) {
        let Some(recorder) = &self.recorder else { return };
        if recorder.wants_state(now) {
            self.traced.iter_mut().for_each(|traced| traced.tracee.record_state());
        }
        recorder.tend(now);
    }

    /// Gives what inputs came to to the exporter, reports aside.
    fn hand_on(&self, out: Outputs) {
        let Some(exporter) = &self.exporter else { return };
        let Outputs { spans, logs, intervals: _ } = out;
        exporter.spans(spans);
        for record in logs {
            exporter.log(&Arc::new(record));
        }
    }

    /// Until the ring wants to be read, on a node also until a process ends or was found or the line is to end, or
    /// the time is over. Whether one has ended, or was found.
    fn wait(&self, time: Duration, stop: &Stop) -> Result<bool, LineError> {
        let ends: Vec<BorrowedFd<'_>> = match &self.node {
            Some(_) => {
                let others = self.news().into_iter().chain(stop.notice()).chain(lease_notice());
                self.traced.iter().map(Traced::ending).chain(others).collect()
            }
            None => Vec::new(),
        };
        match &self.probes {
            Some(probes) => probes.ring.wait(time, &ends).map_err(LineError::Ring),
            None => wait_for_any(&ends, time).map_err(LineError::Ring),
        }
    }

    /// Gives nothing to the exporter any more, so that it can be flushed while probes are removed.
    pub fn let_exporter_go(&mut self) {
        self.exporter = None;
    }

    /// Waits until no probe is in place any more. What each traced process came to, in the order of their ends.
    #[must_use]
    pub fn finish(self) -> Vec<Summary> {
        let Self { summaries, probes, .. } = self;
        for thread in probes.map(Probes::into_detaching).unwrap_or_default() {
            // What could not be removed was logged, and goes when gotrace ends.
            let _ = thread.join();
        }
        summaries
    }

    /// Takes what is in the ring; returns how many records that were.
    fn drain(&mut self) -> Result<usize, LineError> {
        let Self { probes, traced, exporter, undecodable, stray, node, .. } = self;
        let Some(Probes { kernel, ring, .. }) = probes else {
            self.without_records = self.without_records.saturating_add(1);
            return Ok(0);
        };
        kernel.log_diagnostics();
        let mut out = Outputs::default();
        let mut executions = Vec::new();
        let mut total_bytes = 0;
        let count = ring.drain(DRAIN_LIMIT, |bytes| {
            let event = match decode(bytes) {
                Ok(event) => event,
                Err(error) => {
                    *undecodable += 1;
                    tracing::debug!(%error, "cannot decode an event");
                    return;
                }
            };
            if let Event::Exec { process, pid, .. } = event {
                executions.push((process, pid));
                if process == 0 {
                    return;
                }
            }
            // They are in the order of their numbers.
            let index = traced.binary_search_by_key(&event.process(), Traced::number);
            let Some(traced) = index.ok().and_then(|index| traced.get_mut(index)) else {
                // What a process did after it was given up is nobody's loss.
                *stray += u64::from(node.is_none());
                return;
            };
            total_bytes += bytes.len() as u64;
            traced.drained_bytes += bytes.len() as u64;
            traced.handle(&event, bytes, &mut out);
            if out.spans.len() >= SPAN_BATCH {
                export(exporter.as_deref(), &mut out);
            }
        });
        export(exporter.as_deref(), &mut out);
        for traced in self.traced.iter_mut().filter(|_| count > 0) {
            if std::mem::take(&mut traced.config_changed) {
                if let Err(error) = kernel.reconfigure(traced.pid(), traced.config) {
                    tracing::debug!(pid = traced.pid(), %error, "still told more of each goroutine than is needed");
                }
                if let Some(config) = traced.request_config()
                    && let Err(error) = kernel.configure_requests(traced.config.slot, config)
                {
                    tracing::warn!(pid = traced.pid(), %error, "spans of its own are not traced");
                }
            }
            match traced.check_plausible() {
                Ok(()) => {}
                Err(error) if self.node.is_some() => traced.fail(&error),
                Err(error) => return Err(error),
            }
        }
        for (process, pid) in executions {
            match self.config.follow {
                Follow::Descendants if process == 0 => self.follow_execution(pid),
                Follow::Nobody | Follow::Descendants => {}
                Follow::Node => self.tell_scout(pid),
            }
        }
        if self.config.follow != Follow::Nobody {
            self.share_ring(total_bytes, Instant::now());
        }
        self.without_records = if count == 0 { self.without_records.saturating_add(1) } else { 0 };
        Ok(count)
    }

    /// Takes everything that is in the ring.
    fn drain_all(&mut self) -> Result<(), LineError> {
        while self.drain()? == DRAIN_LIMIT {}
        Ok(())
    }

    fn end_all(&mut self, why: &str, report: &mut dyn FnMut(&Arc<Interval>)) -> Result<(), LineError> {
        // No new events, then what is left of the old ones.
        let pids: Vec<u32> = self.traced.iter().map(Traced::pid).collect();
        pids.into_iter().for_each(|pid| self.forget(pid));
        self.drain_all()?;
        for traced in std::mem::take(&mut self.traced) {
            self.end(traced, why, report);
        }
        Ok(())
    }

    fn cost(&mut self, within: Duration) -> Option<HitCost> {
        self.probes.as_mut().and_then(|p| p.calibration.cost(within))
    }

    fn forget(&mut self, pid: u32) {
        if let Some(probes) = &mut self.probes {
            probes.kernel.forget(pid);
        }
    }
}

fn export(exporter: Option<&Exporter>, out: &mut Outputs) {
    if out.spans.is_empty() {
        return;
    }
    match exporter {
        Some(exporter) => exporter.spans(std::mem::take(&mut out.spans)),
        None => out.spans.clear(),
    }
}
