//! A traced process and its snapshots: the check before anything is believed, when they begin, and what
//! their failing means where there are probes and where there are none.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    LineConfig, LineError,
    seed::{Pace, Progress, Snapshots},
    traced::Traced,
    workers::Workers,
};
use gotrace_inspect::snapshot::{Live, SnapshotError};
use gotrace_process::ProcessError;

/// How long a program may take to make its first goroutine before that is held to be impossible.
const START_WITHIN: Duration = Duration::from_secs(2);
/// How long a program is given to begin before a snapshot is taken of it.
const LAID_OUT_WITHIN: Duration = Duration::from_millis(50);
/// Bytes that one takes for each goroutine, for a moment; and so many goroutines there is always room for.
const TAKEN_EACH: u64 = 112;
const ALWAYS: u64 = 1 << 20;
/// Snapshots take at most one part in so many of a core's time, beside probes and without.
const SHARE_WITH_EVENTS: u32 = 100;
const SHARE_ALONE: u32 = 10;
/// How long the user waits for the last snapshot.
const LAST_LOOK_WITHIN: Duration = Duration::from_millis(200);

impl Traced {
    /// Tracing begins: decides when the first snapshot is due.
    pub(super) fn expect_snapshots(&mut self, line: &LineConfig, beginning: bool) {
        let now = Instant::now();
        self.first_snapshot = if self.is_sampled() {
            Some(now)
        } else if self.yet_to_execute {
            // Events tell everything from the first goroutine on.
            line.reconcile.map(|every| now + every)
        } else if beginning {
            Some(now + LAID_OUT_WITHIN)
        } else {
            self.live.is_some().then_some(now)
        };
    }

    /// Whether the living process's memory is laid out as the program's version has it; before anything
    /// is believed. A process that may not be read is traced by events all the same, which are checked
    /// as they come.
    pub(super) fn check_layout(&mut self) -> Result<(), LineError> {
        let pid = self.pid();
        let newer = |what: &str| {
            let binary = self.tracee.symbolizer().binary();
            if binary.layout_is_extrapolated() {
                tracing::warn!(
                    pid,
                    "{} is newer than this gotrace supports: {what}",
                    binary.go_version().text
                );
            }
        };
        let later = "using the newest known layout for as long as the results are plausible";
        if self.yet_to_execute {
            newer(later);
            return Ok(());
        }
        match self.read_layout() {
            Ok(live) => {
                match live.warning() {
                    // The kernel side reads by the newest layout.
                    Some(warning) if !self.is_sampled() => {
                        let why = format!("{warning}; only --engine snapshot works with that");
                        return Err(self.implausible_because(why));
                    }
                    Some(warning) => tracing::warn!(pid, "{warning}"),
                    None => newer("using the newest known layout, which matches its goroutines in memory"),
                }
                tracing::debug!(pid, "the layout of its goroutines matches its Go version");
                self.live = Some(live);
                Ok(())
            }
            Err(error @ SnapshotError::Process(ProcessError::Gone { .. })) => Err(self.unreadable(error)),
            Err(error @ (SnapshotError::Implausible { .. } | SnapshotError::NotStarted)) => {
                Err(self.unreadable(error))
            }
            Err(error) if self.is_sampled() => Err(self.unreadable(error)),
            Err(error) => {
                newer(later);
                tracing::warn!(
                    pid,
                    "no snapshots: goroutines created before gotrace attached appear only once they have waited, and lost \
                     events are not repaired: {error}"
                );
                Ok(())
            }
        }
    }

    fn read_layout(&self) -> Result<Live, SnapshotError> {
        let mut live = Live::new(&self.target, Arc::clone(self.tracee.symbolizer().shared_binary()))?;
        let begin = Instant::now();
        loop {
            match live.check_layout() {
                Ok(()) => return Ok(live),
                // A process that has only just been started is not laid out yet.
                Err(SnapshotError::NotStarted | SnapshotError::Implausible { .. })
                    if begin.elapsed() < START_WITHIN && !self.watch.has_ended() =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn unreadable(&self, error: SnapshotError) -> LineError {
        match error {
            SnapshotError::Process(error) => error.into(),
            SnapshotError::Implausible { why, .. } => self.implausible_because(why),
            error @ SnapshotError::NotStarted => self.implausible_because(error.to_string()),
            error => LineError::Unreadable { pid: self.pid(), error },
        }
    }

    /// Looks after snapshots; `drained`: whether the ring was found empty just now. Whether there is more
    /// to do at once.
    pub(super) fn tend_snapshots(
        &mut self,
        now: Instant,
        drained: bool,
        line: &LineConfig,
        workers: &Workers,
    ) -> Result<bool, LineError> {
        if self.snapshots.is_none() && !self.start_snapshots(now, line, workers)? {
            return Ok(false);
        }
        let Some(snapshots) = &mut self.snapshots else { return Ok(false) };
        match snapshots.tend(&mut self.tracee, now, drained) {
            Ok(Progress::Nothing) => Ok(false),
            Ok(Progress::Part) => Ok(true),
            Ok(Progress::Done) => {
                self.fresh = true;
                Ok(false)
            }
            Err(error) => {
                self.give_snapshots_up(error)?;
                Ok(false)
            }
        }
    }

    /// One snapshot more, so that the end is shown as it is; unless that takes long.
    pub(super) fn look_once_more(&mut self, line: &LineConfig, workers: &Workers) -> Result<(), LineError> {
        let Some(snapshots) = &mut self.snapshots else { return Ok(()) };
        snapshots.hurry();
        let begin = Instant::now();
        self.fresh = false;
        while !self.fresh && begin.elapsed() < LAST_LOOK_WITHIN && !self.watch.has_ended() {
            if !self.tend_snapshots(Instant::now(), true, line, workers)? {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// How often, and what of it, at the level of now.
    pub(super) fn pace(&self, line: &LineConfig) -> Pace {
        Pace {
            every: if self.is_sampled() { Some(line.interval) } else { line.reconcile },
            share: if self.is_sampled() { SHARE_ALONE } else { SHARE_WITH_EVENTS },
            events: !self.is_sampled(),
            level: self.tracee.level(),
            most: (line.memory / TAKEN_EACH).max(ALWAYS),
        }
    }

    fn start_snapshots(
        &mut self,
        now: Instant,
        line: &LineConfig,
        workers: &Workers,
    ) -> Result<bool, LineError> {
        let Some(first) = self.first_snapshot.filter(|first| *first <= now && !self.yet_to_execute) else {
            return Ok(false);
        };
        self.first_snapshot = None;
        let live = match self.live.take() {
            Some(live) => live,
            None => match Live::new(&self.target, Arc::clone(self.tracee.symbolizer().shared_binary())) {
                Ok(live) => live,
                Err(error) => {
                    self.give_snapshots_up(error)?;
                    return Ok(false);
                }
            },
        };
        if !self.bias_known {
            self.know_bias(live.bias());
        }
        let names = live.names(&self.target);
        self.snapshots =
            Some(Snapshots::start(self.process(), (live, names), self.pace(line), first, workers));
        Ok(true)
    }

    /// Events go on without; where there are none that is the end.
    fn give_snapshots_up(&mut self, error: SnapshotError) -> Result<(), LineError> {
        if self.watch.has_ended() || self.watch.has_executed_another_program() {
            return Ok(());
        }
        if self.is_sampled() {
            return Err(self.unreadable(error));
        }
        tracing::warn!(pid = self.pid(), "no more snapshots: lost events are not repaired: {error}");
        Ok(())
    }
}
