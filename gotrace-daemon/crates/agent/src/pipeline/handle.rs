//! A running line as other threads see it: what there is, what they may ask of it, and who is told of processes that
//! come and go.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Captures, Line, in_hand::InHand, known::Counts, scout::Order, traced::Traced};
use gotrace_model::Coverage;
use gotrace_process::{Beat, Identity, Target, Threads};

/// The line turns at least once a second; so long without a turn it hangs.
const TURNS_WITHIN: Duration = Duration::from_secs(15);
/// Time between two states that are shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// A running line, for other threads. Cheap to clone.
#[derive(Clone)]
pub struct LineHandle {
    shown: Arc<Mutex<LineState>>,
    threads: Threads,
    captures: Captures,
}

impl LineHandle {
    /// What there is, as of a second ago at most.
    #[must_use]
    pub fn state(&self) -> LineState {
        // A plain value: a panic elsewhere leaves it whole.
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// gotrace's own threads, watched: `pipeline`, `discovery`, `snapshots`, `proofs`, and whoever registers.
    #[must_use]
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The processes that are traced now, to be read beside the line.
    #[must_use]
    pub fn captures(&self) -> &Captures {
        &self.captures
    }
}

impl std::fmt::Debug for LineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LineHandle").finish_non_exhaustive()
    }
}

/// A process came or went.
#[derive(Debug)]
pub enum ProcessEvent<'a> {
    /// It is traced from now on.
    Began(&'a Target),
    /// It is not any more.
    Ended(&'a Identity),
}

/// Is told of processes that come and go, on the line's thread: must not wait.
pub type Observer = Box<dyn FnMut(&ProcessEvent<'_>) + Send>;

/// State of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineState {
    /// Processes that are traced now.
    pub traced: u64,
    /// Among them those without probes.
    pub sampled: u64,
    /// Among those the ones for which there was no room.
    pub without_room: u64,
    /// Files that have probes.
    pub places: u64,
    /// Processes that ended, or were given up, since the beginning.
    pub ended: u64,
    /// Changes of levels, made to keep within the budget.
    pub level_changes: u64,
    /// Processes that are traced by snapshots for want of memory.
    pub cramped: u64,
    /// Bytes that what is kept of all processes takes, and may take.
    pub kept_bytes: u64,
    /// See there.
    pub kept_limit: u64,
    /// What the scout has looked at, on a node.
    pub looked_at: Counts,
    /// The account of executions, on a node.
    pub coverage: Coverage,
}

/// The line's own end of it.
pub(super) struct Shown {
    pub handle: LineHandle,
    beat: Beat,
    next: Instant,
    observer: Option<Observer>,
    ended: u64,
}

impl Shown {
    /// `memory`: what the line may keep.
    pub fn new(threads: &Threads, in_hand: InHand, memory: u64) -> Self {
        let shown = Arc::new(Mutex::new(LineState { kept_limit: memory, ..LineState::default() }));
        let captures = Captures::new(in_hand, Arc::clone(&shown));
        Self {
            handle: LineHandle { shown, threads: threads.clone(), captures },
            beat: threads.register("pipeline", TURNS_WITHIN),
            next: Instant::now(),
            observer: None,
            ended: 0,
        }
    }

    /// A process is traced from now on.
    pub fn began(&mut self, traced: &Traced) {
        self.handle.captures.began(traced);
        self.tell(&ProcessEvent::Began(traced.target()));
    }

    /// It is not any more.
    pub fn ended(&mut self, traced: &Traced) {
        self.ended += 1;
        self.handle.captures.ended(traced);
        self.tell(&ProcessEvent::Ended(&traced.target().identity));
    }

    fn tell(&mut self, event: &ProcessEvent<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(event);
        }
    }
}

impl Line {
    /// What other threads see of it, and ask.
    #[must_use]
    pub fn handle(&self) -> LineHandle {
        self.shown.handle.clone()
    }

    /// From now on this is told of processes that come and go.
    pub fn observe(&mut self, observer: Observer) {
        self.shown.observer = Some(observer);
    }

    /// Shows that the line turns, and what there is.
    pub(super) fn show(&mut self, now: Instant) {
        self.shown.beat.beat();
        if now >= self.shown.next {
            self.shown.next = now + SHOW_EVERY;
            self.show_state();
        }
    }

    /// Shows what there is, to whoever asks and, on a node, to the exporter.
    pub(super) fn show_state(&mut self) {
        if let Some(node) = &self.node {
            let lost = self.probes.as_ref().map_or(0, |p| p.kernel.executions_lost());
            if node.coverage.lost_by_kernel(lost) {
                // Those that still run are found so.
                let _ = node.scout.orders.send(Order::Look);
            }
        }
        let state = self.state();
        *self.shown.handle.shown.lock().unwrap_or_else(PoisonError::into_inner) = state;
        if let (Some(exporter), Some(_)) = (&self.exporter, &self.node) {
            exporter.coverage(state.coverage);
        }
    }

    fn state(&self) -> LineState {
        let node = self.node.as_ref();
        LineState {
            traced: self.traced.len() as u64,
            sampled: self.traced.iter().filter(|t| t.is_sampled()).count() as u64,
            without_room: node.map_or(0, |n| n.without_room),
            places: self.probes.as_ref().map_or(0, |p| p.files() as u64),
            ended: self.shown.ended,
            level_changes: self.spending.changes + self.keeping.changes,
            cramped: self.keeping.cramped(),
            kept_bytes: self.keeping.bytes + self.keeping.programs,
            kept_limit: self.config.memory,
            looked_at: node.map(|n| n.looked_at).unwrap_or_default(),
            coverage: node.map(|n| n.coverage.get()).unwrap_or_default(),
        }
    }
}
