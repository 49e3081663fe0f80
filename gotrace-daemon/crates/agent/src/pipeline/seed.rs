//! Snapshots for the table: taken by [`Workers`], held against the table in parts, so that the ring never
//! waits for a million goroutines.
//!
//! The order makes it right: deaths are remembered from before the snapshot begins, and it is held against
//! the table once the ring was found empty after it ended. Takes no more than a share of one core: the
//! longer a snapshot takes, the fewer there are.

use std::{
    borrow::Cow,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use gotrace_common::ROW_SYSCALL;

use super::{alone::alone, in_hand::Process, live::LiveTracee, workers::Workers};
use crate::{
    table::{Look, Sighting, Table},
    tracee::Input,
};
use gotrace_inspect::snapshot::{Live, Names, Options, Snapshot, SnapshotError, Status};
use gotrace_model::Level;

/// How long a record may be on its way: the probe has read the clock, and its thread was made to wait
/// before the record was in the ring.
const SETTLE: Duration = Duration::from_millis(20);
/// Sightings that are taken at once, some milliseconds.
const PART: usize = 1 << 16;
/// After a snapshot that missed goroutines, or did not see all, the next one comes sooner.
const SOON: Duration = Duration::from_millis(200);
/// So long after one for which there was no memory.
const AFTER_TOO_MANY: Duration = Duration::from_secs(60);
/// A program that has only just begun has no goroutines for a moment.
const AT_ONCE: Duration = Duration::from_millis(5);

/// How often, and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// From the beginning of one to that of the next; `None`: one that sees all is enough.
    pub every: Option<Duration>,
    /// The next one begins no sooner than after so many times its duration.
    pub share: u32,
    /// Whether probes tell of births and deaths too.
    pub events: bool,
    /// Level of the events.
    pub level: Level,
    /// Goroutines that there is memory for.
    pub most: u64,
}

/// What came of looking after snapshots.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing to be done now.
    Nothing,
    /// Part of a snapshot was taken: there is more at once.
    Part,
    /// A snapshot has been held against the table.
    Done,
}

#[derive(Debug)]
enum State {
    /// The next one is due then; `None` for never.
    Resting(Option<Instant>),
    /// The thread is at work.
    Ordered,
    /// Waits for the events of its time.
    Settling { taken: Taken, until: Instant },
    /// So many sightings were taken.
    Applying { taken: Taken, done: usize },
}

/// A snapshot, as the table wants it.
#[derive(Debug)]
struct Taken {
    look: Look,
    sightings: Vec<Sighting>,
    duration_ns: u64,
}

/// A process, and the names of its addresses.
type Named = (Live, Names);

/// Takes snapshots of one process.
#[derive(Debug)]
pub(super) struct Snapshots {
    process: Process,
    pace: Pace,
    state: State,
    /// When the last one was ordered.
    ordered: Instant,
    workers: Workers,
    /// `None` while a worker has it.
    live: Option<Named>,
    results: Receiver<(Named, Result<Taken, SnapshotError>)>,
    /// Whether the one that is being taken is to be thrown away.
    stale: bool,
    failed: u32,
}

impl Snapshots {
    /// `first`: when the first one is due.
    pub fn start(process: Process, live: Named, pace: Pace, first: Instant, workers: &Workers) -> Self {
        Self {
            process,
            pace,
            state: State::Resting(Some(first)),
            ordered: first,
            workers: workers.clone(),
            live: Some(live),
            // Replaced with each order.
            results: channel().1,
            stale: false,
            failed: 0,
        }
    }

    /// Gives the next one to the workers; whether that could be done.
    fn order(&mut self) -> bool {
        let Some((mut live, mut names)) = self.live.take() else { return false };
        let (results, taken) = channel();
        self.results = taken;
        let pace = self.pace;
        let margin = if pace.events { SETTLE } else { Duration::ZERO };
        let work = move || {
            // For callees each goroutine is looked at a second time, which tells torn ones.
            let options =
                Options { stacks: false, waits: false, labels: false, arguments: false, callees: true };
            // A goroutine that has hit the probe of its death lives on for a moment.
            thread::sleep(margin);
            let _alone = alone(live.listed());
            live.set_most(pace.most);
            let taken = live.take(options).map(|snapshot| condense(snapshot, pace, &mut names));
            // Refused when the process is not traced any more.
            let _ = results.send(((live, names), taken));
        };
        self.workers.order(self.process, Box::new(work));
        true
    }

    /// How they come.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// From now on snapshots come in this way. The one that is being taken is thrown away, as it was made
    /// for another.
    pub fn set_pace(&mut self, pace: Pace, tracee: &mut LiveTracee) {
        self.pace = pace;
        match &self.state {
            State::Resting(_) => self.hurry(),
            State::Ordered => {
                self.stale = true;
                tracee.tell(&Input::ForgetExits);
            }
            State::Settling { .. } | State::Applying { .. } => {
                tracee.tell(&Input::ForgetExits);
                self.state = State::Resting(Some(Instant::now()));
            }
        }
    }

    /// Bytes of the snapshot that is held against the table.
    pub fn bytes(&self) -> usize {
        match &self.state {
            State::Settling { taken, .. } | State::Applying { taken, .. } => {
                taken.sightings.capacity() * size_of::<Sighting>()
            }
            State::Resting(_) | State::Ordered => 0,
        }
    }

    /// The next one is due now, whatever it costs.
    pub fn hurry(&mut self) {
        if let State::Resting(Some(due)) = &mut self.state {
            *due = Instant::now();
        }
    }

    /// Does what is due. `drained`: whether the ring was found empty just now.
    ///
    /// # Errors
    /// The process can no longer be read, for whatever reason; there will be no more snapshots then.
    pub fn tend(
        &mut self,
        tracee: &mut LiveTracee,
        now: Instant,
        drained: bool,
    ) -> Result<Progress, SnapshotError> {
        match &mut self.state {
            State::Resting(Some(due)) if *due <= now => {
                self.ordered = now;
                if self.order() {
                    tracee.tell(&Input::WatchExits);
                    self.state = State::Ordered;
                } else {
                    self.state = State::Resting(None);
                }
            }
            State::Resting(_) => {}
            State::Ordered if self.stale => match self.results.try_recv() {
                Ok((live, _)) => {
                    self.live = Some(live);
                    self.stale = false;
                    self.state = State::Resting(Some(now));
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    self.state = State::Resting(None);
                    return Err(SnapshotError::Panicked);
                }
            },
            State::Ordered => match self.results.try_recv() {
                Ok((live, Ok(taken))) => {
                    self.live = Some(live);
                    self.failed = 0;
                    tracee.tell(&Input::SnapshotTook(taken.duration_ns));
                    let until = if self.pace.events { now + SETTLE } else { now };
                    self.state = State::Settling { taken, until };
                }
                Ok((live, Err(error))) => {
                    self.live = Some(live);
                    tracee.tell(&Input::ForgetExits);
                    return self.failed(tracee.pid(), error, now);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    tracee.tell(&Input::ForgetExits);
                    self.state = State::Resting(None);
                    return Err(SnapshotError::Panicked);
                }
            },
            State::Settling { taken, until } if *until <= now && drained => {
                tracee.tell(&Input::BeginReconcile(taken.look));
                let (look, duration_ns) = (taken.look, taken.duration_ns);
                let sightings = std::mem::take(&mut taken.sightings);
                self.state = State::Applying { taken: Taken { look, sightings, duration_ns }, done: 0 };
                return Ok(Progress::Part);
            }
            State::Settling { .. } => {}
            State::Applying { taken, done } => {
                let end = (*done + PART).min(taken.sightings.len());
                let part = taken.sightings.get(*done..end).unwrap_or_default();
                tracee.tell(&Input::Sightings(Cow::Borrowed(part)));
                *done = end;
                if end < taken.sightings.len() {
                    return Ok(Progress::Part);
                }
                tracee.tell(&Input::EndReconcile);
                let at_least = Duration::from_nanos(taken.duration_ns) * self.pace.share;
                let after = self.pace.after(tracee.table());
                self.state = State::Resting(after.map(|after| self.ordered + after.max(at_least)));
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Nothing)
    }

    fn failed(&mut self, pid: u32, error: SnapshotError, now: Instant) -> Result<Progress, SnapshotError> {
        self.failed += 1;
        let again = match &error {
            // Where snapshots are all there is, figures that stand still would be told as those of now.
            SnapshotError::TooMany { .. } if self.pace.events => Some(AFTER_TOO_MANY),
            SnapshotError::NotStarted if self.failed < 400 => Some(AT_ONCE),
            // A program that is being executed, or that moved everything at once.
            SnapshotError::Implausible { .. } if self.failed < 4 => Some(SOON),
            _ => None,
        };
        self.state = State::Resting(again.map(|after| now + after));
        if again.is_none() {
            return Err(error);
        }
        match error {
            SnapshotError::TooMany { .. } if self.failed == 1 => {
                tracing::warn!(pid, "no snapshots of its goroutines for now: {error}");
            }
            _ => tracing::debug!(pid, %error, "a snapshot failed and will be retried"),
        }
        Ok(Progress::Nothing)
    }
}

impl Pace {
    /// From the beginning of one snapshot to the next, before its cost is looked at.
    fn after(&self, table: &Table) -> Option<Duration> {
        let soon = table.doubts() || !table.is_seeded();
        match self.every {
            Some(every) if soon && self.events => Some(SOON.min(every)),
            Some(every) => Some(every),
            None if !table.is_seeded() => Some(SOON),
            None => None,
        }
    }
}

fn condense(snapshot: Snapshot, pace: Pace, names: &mut Names) -> Taken {
    let Pace { events, level, .. } = pace;
    let syscall = u8::try_from(ROW_SYSCALL).unwrap_or(u8::MAX);
    let Snapshot { goroutines, stacks, monotonic_ns, duration_ns, counts, .. } = snapshot;
    // In place, and of what that leaves the rest is given back: there may be a million.
    let sightings = goroutines.into_iter().map(|g| Sighting {
        goid: g.goid,
        parent_goid: g.parent_goid.unwrap_or(0),
        created_pc: g.created_pc,
        entry_pc: names.runs_entry(g.entry_pc, g.stack.map_or(&[], |id| stacks.frames(id))),
        wait: match g.status {
            _ if events && level < Level::Waits => None,
            status if status.is_waiting() => Some(g.wait_reason),
            Status::Syscall => Some(syscall),
            _ => None,
        },
    });
    let mut sightings: Vec<Sighting> = sightings.collect();
    sightings.shrink_to_fit();
    Taken {
        look: Look {
            began_ns: monotonic_ns,
            ended_ns: monotonic_ns.saturating_add(duration_ns),
            complete: counts.implausible == 0 && counts.unreadable == 0,
        },
        sightings,
        duration_ns,
    }
}
