//! Snapshots for the table: taken by [`Workers`], held against the table in parts, so that the ring never
//! waits for a million goroutines.
//!
//! The order makes it right: deaths are remembered from before the snapshot begins, and it is held against
//! the table once the ring was found empty after it ended. Takes no more than a share of one core: the
//! longer a snapshot takes, the fewer there are.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use gotrace_common::{Histogram, ROW_SYSCALL};

use crate::{
    level::Level,
    snapshot::{Live, Options, Snapshot, SnapshotError, Status},
    table::{Look, Sighting, Table},
};

/// How long a record may be on its way: the probe has read the clock, and its thread was made to wait
/// before the record was in the ring.
const SETTLE: Duration = Duration::from_millis(20);
/// Sightings that are taken at once, some milliseconds.
const PART: usize = 1 << 16;
/// After a snapshot that missed goroutines, or did not see all, the next one comes sooner.
const SOON: Duration = Duration::from_millis(200);
/// A program that has only just begun has no goroutines for a moment.
const AT_ONCE: Duration = Duration::from_millis(5);

/// How often, and what of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the beginning of one to that of the next; `None`: one that sees all is enough.
    pub every: Option<Duration>,
    /// The next one begins no sooner than after so many times its duration.
    pub share: u32,
    /// Whether probes tell of births and deaths too.
    pub events: bool,
    /// Level of the events.
    pub level: Level,
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

pub(super) type Work = Box<dyn FnOnce() + Send>;

/// Threads that take snapshots, for all processes. They end when nobody has orders any more.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    orders: Sender<Work>,
}

impl Workers {
    /// Starts so many threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str, count: usize) -> std::io::Result<Self> {
        let (orders, wanted) = channel::<Work>();
        let wanted = Arc::new(Mutex::new(wanted));
        for _ in 0..count {
            let wanted = Arc::clone(&wanted);
            thread::Builder::new().name(name.into()).spawn(move || {
                loop {
                    let work = wanted.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = work else { break };
                    // A panic was printed, and whoever waits for the result learns that there is none.
                    let _ = catch_unwind(AssertUnwindSafe(work));
                }
            })?;
        }
        Ok(Self { orders })
    }

    /// Has this done; whether there is somebody to do it.
    pub fn order(&self, work: Work) -> bool {
        self.orders.send(work).is_ok()
    }
}

/// Takes snapshots of one process.
#[derive(Debug)]
pub(super) struct Snapshots {
    pace: Pace,
    state: State,
    /// When the last one was ordered.
    ordered: Instant,
    workers: Workers,
    /// `None` while a worker has it.
    live: Option<Live>,
    results: Receiver<(Live, Result<Taken, SnapshotError>)>,
    /// Whether the one that is being taken is to be thrown away.
    stale: bool,
    durations: Histogram,
    failed: u32,
}

impl Snapshots {
    /// `first`: when the first one is due.
    pub fn start(live: Live, pace: Pace, first: Instant, workers: &Workers) -> Self {
        Self {
            pace,
            state: State::Resting(Some(first)),
            ordered: first,
            workers: workers.clone(),
            live: Some(live),
            // Replaced with each order.
            results: channel().1,
            stale: false,
            durations: Histogram::default(),
            failed: 0,
        }
    }

    /// Gives the next one to the workers; whether that could be done.
    fn order(&mut self) -> bool {
        let Some(mut live) = self.live.take() else { return false };
        let (results, taken) = channel();
        self.results = taken;
        let pace = self.pace;
        let margin = if pace.events { SETTLE } else { Duration::ZERO };
        let work = move || {
            // Looks at each goroutine a second time, which tells torn ones.
            let options = Options { stacks: false, waits: true, labels: false, arguments: false };
            // A goroutine that has hit the probe of its death lives on for a moment.
            thread::sleep(margin);
            let taken = live.take(options).map(|snapshot| condense(&snapshot, pace));
            // Refused when the process is not traced any more.
            let _ = results.send((live, taken));
        };
        self.workers.order(Box::new(work))
    }

    /// From now on snapshots come in this way. The one that is being taken is thrown away, as it was made
    /// for another.
    pub fn set_pace(&mut self, pace: Pace, table: &mut Table) {
        self.pace = pace;
        match &self.state {
            State::Resting(_) => self.hurry(),
            State::Ordered => {
                self.stale = true;
                table.forget_exits();
            }
            State::Settling { .. } | State::Applying { .. } => {
                table.forget_exits();
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

    /// How long snapshots took.
    pub fn durations(&self) -> Histogram {
        self.durations
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
        table: &mut Table,
        now: Instant,
        drained: bool,
    ) -> Result<Progress, SnapshotError> {
        match &mut self.state {
            State::Resting(Some(due)) if *due <= now => {
                self.ordered = now;
                if self.order() {
                    table.watch_exits();
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
                Err(TryRecvError::Disconnected) => self.state = State::Resting(None),
            },
            State::Ordered => match self.results.try_recv() {
                Ok((live, Ok(taken))) => {
                    self.live = Some(live);
                    self.failed = 0;
                    self.durations.add(taken.duration_ns);
                    let until = if self.pace.events { now + SETTLE } else { now };
                    self.state = State::Settling { taken, until };
                }
                Ok((live, Err(error))) => {
                    self.live = Some(live);
                    table.forget_exits();
                    return self.failed(error, now);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    table.forget_exits();
                    self.state = State::Resting(None);
                }
            },
            State::Settling { taken, until } if *until <= now && drained => {
                table.begin_reconcile(taken.look);
                let (look, duration_ns) = (taken.look, taken.duration_ns);
                let sightings = std::mem::take(&mut taken.sightings);
                self.state = State::Applying { taken: Taken { look, sightings, duration_ns }, done: 0 };
                return Ok(Progress::Part);
            }
            State::Settling { .. } => {}
            State::Applying { taken, done } => {
                let end = (*done + PART).min(taken.sightings.len());
                table.sight(taken.sightings.get(*done..end).unwrap_or_default());
                *done = end;
                if end < taken.sightings.len() {
                    return Ok(Progress::Part);
                }
                table.end_reconcile();
                let at_least = Duration::from_nanos(taken.duration_ns) * self.pace.share;
                let after = self.pace.after(table);
                self.state = State::Resting(after.map(|after| self.ordered + after.max(at_least)));
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Nothing)
    }

    fn failed(&mut self, error: SnapshotError, now: Instant) -> Result<Progress, SnapshotError> {
        self.failed += 1;
        let again = match &error {
            SnapshotError::NotStarted if self.failed < 400 => Some(AT_ONCE),
            // A program that is being executed, or that moved everything at once.
            SnapshotError::Implausible { .. } if self.failed < 4 => Some(SOON),
            _ => None,
        };
        self.state = State::Resting(again.map(|after| now + after));
        if again.is_none() {
            return Err(error);
        }
        tracing::debug!(%error, "a snapshot failed, and is taken again");
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

fn condense(snapshot: &Snapshot, pace: Pace) -> Taken {
    let Pace { events, level, .. } = pace;
    let syscall = u8::try_from(ROW_SYSCALL).unwrap_or(u8::MAX);
    let sightings = snapshot.goroutines.iter().map(|g| Sighting {
        goid: g.goid,
        parent_goid: g.parent_goid.unwrap_or(0),
        created_pc: g.created_pc,
        entry_pc: g.entry_pc,
        wait: match g.status {
            status if status.is_waiting() && (!events || level >= Level::Waits) => Some(g.wait_reason),
            Status::Syscall if !events || level >= Level::Full => Some(syscall),
            _ => None,
        },
    });
    Taken {
        look: Look {
            began_ns: snapshot.monotonic_ns,
            ended_ns: snapshot.monotonic_ns.saturating_add(snapshot.duration_ns),
            complete: snapshot.counts.implausible == 0 && snapshot.counts.unreadable == 0,
        },
        sightings: sightings.collect(),
        duration_ns: snapshot.duration_ns,
    }
}
