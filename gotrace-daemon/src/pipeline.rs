//! The whole line: ring, decoder, table, symbols, exporter, and the readings in between. The only room
//! that knows all of it.
//!
//! One thread drains the ring and does everything up to the exporter's bounded queue, so that events
//! are in order and nothing is locked. It never waits for anything but the ring.

mod behind;
mod cost;
mod report;
mod traced;

use std::{
    num::NonZeroU32,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use gotrace_common::ROW_SYSCALL;

use crate::{
    decode::{Event, OpenWait, decode},
    eventlog::EventLog,
    gobin,
    kernel::{self, Calibration, Kernel, Ring, Scope},
    level::Level,
    process::{Clock, ProcessError, ResourceOptions, Target},
    sink::{
        model::{Interval, Span, Summary},
        otlp::Exporter,
    },
};
pub use behind::{LeftBehind, LeftProcess};
pub use traced::Traced;

/// How long the ring may be left alone. At half full the kernel side wakes the reader before that.
const DRAIN_EVERY: Duration = Duration::from_millis(10);
/// Records handled before other duties are looked at.
const DRAIN_LIMIT: usize = 1 << 16;
/// How long the end of a very short run waits for what a probe costs.
const CALIBRATION_WITHIN: Duration = Duration::from_millis(100);
/// Spans handed to the exporter at once.
const SPAN_BATCH: usize = 1024;

/// How to trace.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// How much.
    pub level: Level,
    /// Waits at least this long become spans.
    pub min_wait: Duration,
    /// Frames of a wait's stack, at most [`gotrace_common::DEEP_FRAMES`].
    pub stack_depth: u8,
    /// Time between two reports.
    pub interval: Duration,
    /// Goroutines made by one older than this begin a trace.
    pub trace_root_age: Duration,
    /// Share of the traces that are exported, 0 to 1.
    pub span_ratio: f64,
    /// Bytes of the ring.
    pub ring_bytes: u32,
    /// Goroutines that waits are kept for at once.
    pub goroutines: u32,
    /// Whether Go programs that descendants of the first process execute are traced too.
    pub follow_children: bool,
    /// What to put into the resource.
    pub resource: ResourceOptions,
    /// Level of the kernel side's own diagnostics, 0 to 5.
    pub kernel_log_level: u8,
    /// Whose goroutines to tell that are left behind at the end.
    pub left_behind: LeftBehind,
    /// A file that every record is written to.
    pub record: Option<PathBuf>,
}

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its program is not one that gotrace traces.
    #[error("process {pid}: {executable}: {error}")]
    Program {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// Why not.
        error: gobin::Error,
    },
    /// The plan lacks the probes without which there is nothing to show.
    #[error("process {pid}: {executable} has no place to probe for {what}")]
    NoProbe {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// The events that cannot be seen.
        what: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// As many processes are traced as there is room for.
    #[error("process {pid} is not traced: {limit} processes are traced already")]
    TooMany {
        /// The process.
        pid: u32,
        /// The limit.
        limit: u32,
    },
    /// What the probes read makes no sense.
    #[error(
        "process {pid}: {go_version}: the runtime's structures are not laid out as gotrace expects ({source_} \
         offsets): {seen} goroutines began at addresses where no function begins"
    )]
    Implausible {
        /// The process.
        pid: u32,
        /// Its version of Go.
        go_version: String,
        /// Where the offsets came from.
        source_: String,
        /// How many.
        seen: u64,
    },
    /// The event log cannot be written.
    #[error("cannot record events to {path}: {error}")]
    Record {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Waiting for the ring failed.
    #[error("cannot wait for events: {0}")]
    Ring(std::io::Error),
}

impl LineError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Process(e) => e.exit_code(),
            Self::Program { .. } | Self::NoProbe { .. } | Self::Implausible { .. } => 4,
            Self::Kernel(e) => e.exit_code(),
            Self::TooMany { .. } | Self::Record { .. } | Self::Ring(_) => 1,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Process(e) => e.help(),
            Self::Kernel(e) => Some(e.help().into()),
            Self::Program { error, .. } => Some(error.help().into()),
            Self::NoProbe { .. } => Some("`gotrace inspect` shows what was found in the file".into()),
            Self::Implausible { .. } => Some(
                "`gotrace inspect` shows the offsets; a build of Go that changes them cannot be traced"
                    .into(),
            ),
            Self::TooMany { .. } => None,
            Self::Record { .. } => Some("choose another place with --record".into()),
            Self::Ring(_) => None,
        }
    }
}

/// Set by whoever wants the line to end: a signal, a key, a child that exited.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<OnceLock<&'static str>>);

impl Stop {
    /// Asks the line to end, as the user or the system wants it.
    pub fn set(&self) {
        self.set_because("interrupted");
    }

    /// Asks the line to end. The first one who asks gives the reason.
    pub fn set_because(&self, why: &'static str) {
        // Refused when someone has asked before.
        let _ = self.0.set(why);
    }

    /// Why the line is to end; `None` when nobody asked.
    #[must_use]
    pub fn why(&self) -> Option<&'static str> {
        self.0.get().copied()
    }
}

/// The line.
pub struct Line {
    config: LineConfig,
    kernel: Kernel,
    ring: Ring,
    calibration: Calibration,
    exporter: Option<Arc<Exporter>>,
    log: Option<EventLog>,
    traced: Vec<Traced>,
    summaries: Vec<Summary>,
    left: Vec<LeftProcess>,
    next_process: u32,
    /// The first process, whose descendants are followed.
    root_pid: Option<u32>,
    /// Records that could not be decoded, or are of no process that is traced.
    undecodable: u64,
    stray: u64,
}

impl Line {
    /// Loads the kernel side. Nothing is traced yet.
    ///
    /// # Errors
    /// [`LineError::Kernel`], [`LineError::Record`].
    pub fn new(config: LineConfig, exporter: Option<Arc<Exporter>>) -> Result<Self, LineError> {
        let options = kernel::Options {
            ring_bytes: config.ring_bytes,
            goroutines: if config.level == Level::Lifecycle { 1 } else { config.goroutines },
            processes: if config.follow_children { 64 } else { 2 },
            follow_all: config.follow_children,
            log_level: config.kernel_log_level,
        };
        let log = match &config.record {
            None => None,
            Some(path) => Some(
                EventLog::create(path)
                    .map_err(|error| LineError::Record { path: path.display().to_string(), error })?,
            ),
        };
        let mut kernel = Kernel::load(&options)?;
        if config.follow_children {
            kernel.watch_executions()?;
        }
        let ring = kernel.ring()?;
        Ok(Self {
            config,
            kernel,
            ring,
            calibration: Calibration::start(),
            exporter,
            log,
            traced: Vec::new(),
            summaries: Vec::new(),
            left: Vec::new(),
            next_process: 1,
            root_pid: None,
            undecodable: 0,
            stray: 0,
        })
    }

    /// Puts the probes in place for a process and begins to trace it.
    ///
    /// # Errors
    /// See [`LineError`]; nothing is left in place then.
    pub fn trace(&mut self, target: Target) -> Result<&Traced, LineError> {
        let pid = target.pid();
        let limit = if self.config.follow_children { 64 } else { 2 };
        let slot = (0..limit)
            .find(|slot| self.traced.iter().all(|t| t.slot() != *slot))
            .ok_or(LineError::TooMany { pid, limit })?;
        let mut traced = Traced::prepare(target, &self.config, self.next_process, slot)?;
        self.next_process += 1;
        self.kernel.configure(pid, traced.process_config())?;
        let scope = NonZeroU32::new(pid).map_or(Scope::File, Scope::Process);
        match self.kernel.attach(traced.probe_path(), scope, traced.probes()) {
            Ok(attachment) => traced.attached(attachment, &self.kernel),
            Err(error) => {
                self.kernel.forget(pid);
                // The kernel says so in many ways.
                return Err(if traced.has_ended() {
                    ProcessError::Gone { pid }.into()
                } else {
                    error.into()
                });
            }
        }
        self.root_pid.get_or_insert(pid);
        self.traced.push(traced);
        // Just pushed.
        self.traced.last().ok_or(LineError::TooMany { pid, limit })
    }

    /// The descendants of this process are followed, though it is not traced itself.
    pub fn follow(&mut self, pid: u32) {
        self.root_pid.get_or_insert(pid);
    }

    /// A process that waited to execute its program until its probes were in place has executed it.
    ///
    /// # Errors
    /// [`LineError::Process`] when it is gone already; what it did is in the ring all the same.
    pub fn has_begun(&mut self, pid: u32) -> Result<(), LineError> {
        match self.traced.iter_mut().find(|t| t.pid() == pid) {
            Some(traced) => traced.has_begun(),
            None => Ok(()),
        }
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
        loop {
            let now = Instant::now();
            let until = deadline.map_or(next_report, |d| d.min(next_report)).saturating_duration_since(now);
            self.ring.wait(until.min(DRAIN_EVERY)).map_err(LineError::Ring)?;
            let busy = self.drain()? == DRAIN_LIMIT;
            let now = Instant::now();
            if now >= next_report {
                self.report_all(report);
                next_report = (next_report + self.config.interval).max(now);
            }
            let why = stop.why().or_else(|| deadline.is_some_and(|d| now >= d).then_some("duration"));
            if let Some(why) = why {
                // A process that has ended by itself was not interrupted.
                self.look_after_processes(report)?;
                self.end_all(why, report)?;
                return Ok(());
            }
            if !busy {
                self.traced.iter_mut().for_each(Traced::look_at_stacks);
                self.look_after_processes(report)?;
                if self.traced.is_empty() && !self.config.follow_children {
                    return Ok(());
                }
            }
        }
    }

    /// What each traced process came to, in the order of their ends; and whether the event log, if one
    /// was wanted, is complete ([`LineError::Record`]).
    pub fn finish(self) -> (Vec<Summary>, Result<(), LineError>) {
        let Self { summaries, log, config, .. } = self;
        let recorded = match (log, config.record) {
            (Some(log), Some(path)) => {
                log.finish().map_err(|error| LineError::Record { path: path.display().to_string(), error })
            }
            _ => Ok(()),
        };
        (summaries, recorded)
    }

    /// What processes that have ended left behind, if that was wanted, in the order of their ends.
    pub fn take_left_behind(&mut self) -> Vec<LeftProcess> {
        std::mem::take(&mut self.left)
    }

    /// Takes what is in the ring; returns how many records that were.
    fn drain(&mut self) -> Result<usize, LineError> {
        self.kernel.log_diagnostics();
        let Self { ring, traced, exporter, log, undecodable, stray, config, .. } = self;
        let mut spans: Vec<Span> = Vec::new();
        let mut executions = Vec::new();
        let count = ring.drain(DRAIN_LIMIT, |bytes| {
            if let Some(log) = log.as_mut() {
                log.write(bytes);
            }
            let event = match decode(bytes) {
                Ok(event) => event,
                Err(error) => {
                    *undecodable += 1;
                    tracing::debug!(%error, "a record was not understood");
                    return;
                }
            };
            if let Event::Exec { process: 0, pid, .. } = event {
                executions.push(pid);
                return;
            }
            let Some(traced) = traced.iter_mut().find(|t| t.number() == event.process()) else {
                *stray += 1;
                return;
            };
            traced.handle(&event, config, &mut spans);
            if spans.len() >= SPAN_BATCH {
                export(exporter.as_deref(), &mut spans);
            }
        });
        export(exporter.as_deref(), &mut spans);
        for traced in &self.traced {
            traced.check_plausible()?;
        }
        for pid in executions {
            self.follow_execution(pid);
        }
        Ok(count)
    }

    /// A process that was not traced executed a program: it is traced from now on if it descends from
    /// the first one and the program is Go's.
    fn follow_execution(&mut self, pid: u32) {
        let Some(root) = self.root_pid else { return };
        if !self.config.follow_children || !descends_from(pid, root) {
            return;
        }
        let wanted = |target: &Target| self.config.left_behind.follows(&target.executable);
        let target = match Target::open(pid) {
            Ok(target) if !wanted(&target) => return,
            target => target,
        };
        match target.map_err(LineError::from).and_then(|target| self.trace(target).map(|_| ())) {
            Ok(()) => {}
            // Most programs are not Go's, and many are gone before they can be looked at.
            Err(error @ (LineError::Program { .. } | LineError::Process(_))) => {
                tracing::debug!(pid, %error, "a child is not traced");
            }
            Err(error) => tracing::warn!(pid, %error, "a child is not traced"),
        }
    }

    /// Ends what has ended, and follows a process into the program that it executed.
    fn look_after_processes(&mut self, report: &mut dyn FnMut(&Arc<Interval>)) -> Result<(), LineError> {
        let mut i = 0;
        while i < self.traced.len() {
            let Some(why) = self.traced[i].what_became_of_it() else {
                i += 1;
                continue;
            };
            // What it did before its end is in the ring.
            while self.drain()? == DRAIN_LIMIT {}
            let traced = self.traced.remove(i);
            let executed = traced.executed_another_program();
            let pid = traced.pid();
            self.end(traced, &why, report);
            if executed {
                match Target::open(pid).map_err(LineError::from).and_then(|t| self.trace(t).map(|_| ())) {
                    Ok(()) => {
                        tracing::info!(pid, "the process executed another Go program, which is traced now");
                    }
                    Err(error) if self.config.follow_children => {
                        tracing::debug!(pid, %error, "not traced any more");
                    }
                    Err(LineError::Process(ProcessError::Gone { .. } | ProcessError::Zombie { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn end_all(&mut self, why: &str, report: &mut dyn FnMut(&Arc<Interval>)) -> Result<(), LineError> {
        // No new events, then what is left of the old ones.
        for traced in &mut self.traced {
            self.kernel.forget(traced.pid());
        }
        while self.drain()? == DRAIN_LIMIT {}
        for traced in std::mem::take(&mut self.traced) {
            self.end(traced, why, report);
        }
        Ok(())
    }

    fn end(&mut self, mut traced: Traced, why: &str, report: &mut dyn FnMut(&Arc<Interval>)) {
        self.kernel.forget(traced.pid());
        read_open_waits(&self.kernel, std::slice::from_mut(&mut traced));
        let cost = self.calibration.cost(CALIBRATION_WITHIN);
        let last = Arc::new(traced.interval(&self.kernel, cost, self.undecodable, self.stray));
        report(&last);
        if let Some(exporter) = &self.exporter {
            exporter.interval(&last);
        }
        if let Some(behind) = traced.behind.take().filter(|_| traced.has_ended()) {
            self.left.push(behind.conclude(&traced, !last.lost.is_empty()));
        }
        self.summaries.push(traced.summary(&last, why));
        traced.detach();
    }

    fn report_all(&mut self, report: &mut dyn FnMut(&Arc<Interval>)) {
        if self.config.level > Level::Lifecycle {
            read_open_waits(&self.kernel, &mut self.traced);
        }
        let cost = self.calibration.cost(Duration::ZERO);
        for traced in &mut self.traced {
            let interval = Arc::new(traced.interval(&self.kernel, cost, self.undecodable, self.stray));
            if let Some(exporter) = &self.exporter {
                exporter.interval(&interval);
            }
            report(&interval);
        }
    }
}

fn export(exporter: Option<&Exporter>, spans: &mut Vec<Span>) {
    if spans.is_empty() {
        return;
    }
    match exporter {
        Some(exporter) => exporter.spans(std::mem::take(spans)),
        None => spans.clear(),
    }
}

/// Tells the tables who waits now.
fn read_open_waits(kernel: &Kernel, traced: &mut [Traced]) {
    for traced in traced.iter_mut() {
        traced.begin_open_waits();
    }
    let time_ns = Clock::now_monotonic_ns();
    let result = kernel.goroutines(|key, state| {
        let (start_ns, reason) = match (state.park_ns, state.syscall_ns) {
            (0, 0) => return,
            (0, syscall_ns) => (syscall_ns, u8::try_from(ROW_SYSCALL).unwrap_or(u8::MAX)),
            (park_ns, _) => (park_ns, state.reason),
        };
        if let Some(traced) = traced.iter_mut().find(|t| t.number() == key.process) {
            let wait =
                OpenWait { process: key.process, time_ns, goid: key.goid, start_ns, reason, g: state.g };
            traced.open_wait(&wait);
            if let Some(behind) = &mut traced.behind {
                behind.waits(key.goid, start_ns, reason, state.wake_ns != 0);
            }
        }
    });
    if let Err(error) = result {
        tracing::warn!(%error, "who waits now is not known");
    }
}

/// Whether `pid` has `ancestor` among its parents.
fn descends_from(mut pid: u32, ancestor: u32) -> bool {
    // Deeper trees exist only to confuse.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        let Some(parent) = crate::process::parent_of(pid) else { return false };
        pid = parent;
    }
    false
}
