//! The line on a whole node: takes in who the scout has found, gives up who the rules no longer take or
//! what cannot be followed, puts late metadata on resources, keeps one process's flood from the others.

use std::{
    collections::BTreeMap,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use gotrace_common::flags;

use super::{
    Engine, Line, LineConfig, LineError, Step,
    scout::{Counts, Found, Order, Scout},
    spending::Spending,
    traced::Traced,
};
use crate::{
    process::{Clock, Identity, Rules, Target, start_ticks},
    sink::model::{Interval, Value},
};

/// Processes that are taken in before the ring is looked at again.
const TAKEN_AT_ONCE: usize = 4;
/// Time between two looks whether processes run what they ran, where executions are told, and where not.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY_WITHOUT_NOTICES: Duration = Duration::from_secs(1);
/// Processes whose metadata is kept without a look whether they still live.
const METADATA: usize = 1024;
/// Time between two states that are shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);
/// How long a process that flooded the ring must be calm before it may use all of it again.
const CALM_FOR: Duration = Duration::from_secs(2);

type Attributes = BTreeMap<Arc<str>, Value>;
type Metadata = Arc<Attributes>;

/// What the line is told while it runs.
pub(super) enum Change {
    Config(Box<LineConfig>, Arc<Rules>),
    Metadata(u32, u64, Metadata),
}

/// Tells a running line of changes. Can be cloned and given to other threads.
#[derive(Clone)]
pub struct Control {
    changes: Sender<Change>,
    shown: Arc<Shown>,
}

/// What the line shows of itself while it runs.
#[derive(Debug, Default)]
struct Shown {
    state: Mutex<NodeState>,
    /// When the line last turned, monotonic; 0 before its first turn.
    turned_ns: AtomicU64,
}

impl Control {
    /// From now on trace in this way, and those that these rules take. What holds while the kernel side is
    /// loaded (engine, sizes) stays as it is.
    pub fn reconfigure(&self, config: LineConfig, rules: Rules) {
        // Refused when the line has ended.
        let _ = self.changes.send(Change::Config(Box::new(config), Arc::new(rules)));
    }

    /// What there is on the node, as of a second ago at most.
    #[must_use]
    pub fn state(&self) -> NodeState {
        // A plain value: a panic elsewhere leaves it whole.
        *self.shown.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago the line looked at the ring and the processes; `None` before the first time.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        let turned_ns = self.shown.turned_ns.load(Ordering::Relaxed);
        let ago = Clock::now_monotonic_ns().saturating_sub(turned_ns);
        (turned_ns != 0).then_some(Duration::from_nanos(ago))
    }

    /// Others know this of a process, given by its pid and start ([`Identity::start_ticks`]): the rules may
    /// take it now or no longer, and its spans and metrics carry it from now on. What the process says of
    /// itself stays; a later call adds to an earlier one.
    pub fn metadata(&self, pid: u32, start_ticks: u64, attributes: BTreeMap<Arc<str>, Value>) {
        let _ = self.changes.send(Change::Metadata(pid, start_ticks, Arc::new(attributes)));
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
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

/// State of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
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
    /// What the scout has looked at.
    pub looked_at: Counts,
}

/// What the line of a node has beside the others'.
pub(super) struct Node {
    scout: Scout,
    changes: Receiver<Change>,
    shown: Arc<Shown>,
    next_shown: Instant,
    metadata: BTreeMap<(u32, u64), Metadata>,
    /// Entries at which those of processes that have ended are looked for.
    metadata_limit: usize,
    observer: Option<Observer>,
    next_look: Instant,
    pub ended: u64,
    without_room: u64,
    looked_at: Counts,
}

impl Node {
    /// Where discovery takes its orders.
    pub(super) fn orders(&self) -> &Sender<Order> {
        &self.scout.orders
    }
}

impl Line {
    /// From now on all Go programs of the node are traced that the rules take.
    ///
    /// # Errors
    /// [`LineError::Ring`] when the system gives no thread.
    pub fn watch_node(&mut self, rules: Rules, observer: Option<Observer>) -> Result<Control, LineError> {
        let told = self.probes.as_ref().is_some_and(|p| p.sees_executions);
        let scout = Scout::start(&self.config, Arc::new(rules), told, self.probes.is_none())
            .map_err(LineError::Ring)?;
        let (sender, changes) = channel();
        let control = Control { changes: sender, shown: Arc::default() };
        self.node = Some(Node {
            scout,
            changes,
            shown: Arc::clone(&control.shown),
            next_shown: Instant::now(),
            metadata: BTreeMap::new(),
            metadata_limit: METADATA,
            observer,
            next_look: Instant::now(),
            ended: 0,
            without_room: 0,
            looked_at: Counts::default(),
        });
        Ok(control)
    }

    /// Can be read when the scout has found somebody.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.node.as_ref().map(|node| node.scout.news())
    }

    /// Shows that the line turns, and what there is.
    fn show(&mut self, now: Instant) {
        let Some(node) = &mut self.node else { return };
        node.shown.turned_ns.store(Clock::now_monotonic_ns(), Ordering::Relaxed);
        if now < node.next_shown {
            return;
        }
        node.next_shown = now + SHOW_EVERY;
        let state = self.node_state();
        if let Some(node) = &self.node {
            *node.shown.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        }
    }

    /// What there is on the node.
    fn node_state(&self) -> NodeState {
        let (ended, without_room, looked_at) =
            self.node.as_ref().map_or_else(Default::default, |n| (n.ended, n.without_room, n.looked_at));
        NodeState {
            traced: self.traced.len() as u64,
            sampled: self.traced.iter().filter(|t| t.is_sampled()).count() as u64,
            without_room,
            places: self.probes.as_ref().map_or(0, |p| p.files() as u64),
            ended,
            level_changes: self.spending.changes + self.keeping.changes,
            cramped: self.keeping.cramped(),
            kept_bytes: self.keeping.bytes,
            kept_limit: self.config.memory,
            looked_at,
        }
    }

    /// Whether it is time to look what became of the processes.
    pub(super) fn looks_now(&mut self, somebody_ended: bool, now: Instant) -> bool {
        let told = self.probes.as_ref().is_some_and(|p| p.sees_executions);
        let Some(node) = &mut self.node else { return true };
        let due = now >= node.next_look;
        if due {
            node.next_look = now + if told { LOOK_EVERY } else { LOOK_EVERY_WITHOUT_NOTICES };
        }
        due || somebody_ended || self.traced.iter().any(|t| t.executed_another_program() || t.has_failed())
    }

    /// A process that is not traced, or not any more, has executed a program.
    pub(super) fn tell_scout(&self, pid: u32) {
        if let Some(node) = &self.node {
            // Refused when the scout has ended, and has said why.
            let _ = node.scout.orders.send(Order::Executed(pid));
        }
    }

    /// Does what is to be done on a node.
    pub(super) fn tend_node(
        &mut self,
        now: Instant,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) -> Result<(), LineError> {
        if let Some(node) = &self.node {
            // Before it is looked whether there are any: none that come meanwhile are missed.
            node.scout.read_news(false);
        }
        for taken in 1..=TAKEN_AT_ONCE {
            let Some(node) = &mut self.node else { return Ok(()) };
            let Ok(found) = node.scout.found.try_recv() else { break };
            if taken == TAKEN_AT_ONCE {
                node.scout.read_news(true);
            }
            match found {
                Found::Process { traced, fresh } => self.take_in(*traced, fresh, report)?,
                Found::Left(pid, start) => self.leave(pid, start, report)?,
                Found::Counts(counts) => node.looked_at = counts,
                Found::Shareable(file) => self.share_probes(file),
                Found::Outsider(file) => self.stop_sharing(file),
            }
        }
        while let Some(change) = self.node.as_ref().and_then(|n| n.changes.try_recv().ok()) {
            match change {
                Change::Config(config, rules) => self.adopt(*config, rules),
                Change::Metadata(pid, start, metadata) => self.learn(pid, start, metadata),
            }
        }
        self.show(now);
        self.tend_sharing(now);
        self.tend_memory(now);
        Ok(())
    }

    /// Begins to trace a process that the scout has prepared.
    fn take_in(
        &mut self,
        mut traced: Traced,
        fresh: bool,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) -> Result<(), LineError> {
        let pid = traced.pid();
        // The one that had the pid before, or ran another program in it, has not been noticed yet.
        while let Some(index) = self.traced.iter().position(|t| t.pid() == pid) {
            self.end_one(index, "the process executed another program", report)?;
        }
        // There is something to be done for a while.
        self.without_records = 0;
        // It has taken time to get here.
        if traced.what_became_of_it().is_some() {
            self.tell_scout(pid);
            return Ok(());
        }
        let number = self.next_process;
        self.next_process += 1;
        let step = self.step_for(&traced);
        let slot = if traced.is_sampled() { None } else { self.probes.as_mut().and_then(|p| p.take_slot()) };
        traced.join(number, slot);
        self.name_execution(&mut traced);
        if slot.is_none() && !traced.is_sampled() {
            if let Some(node) = &mut self.node {
                node.without_room += 1;
            }
            tracing::warn!(
                pid,
                processes = self.config.processes,
                "traced by snapshots: as many processes have probes as there is room for (processes)"
            );
            traced.become_sampled();
            traced.lowered = Some("room");
        }
        // Those that run the same file have its probes at this step.
        match step {
            Some(Step::Snapshot) if slot.is_some() => traced.become_sampled(),
            Some(Step::Probes(level)) => traced.level = level,
            _ if slot.is_some() && self.has_too_many_neighbours(&traced) => {
                self.join_without_probes(&mut traced);
            }
            _ => {}
        }
        if slot.is_some() && traced.lowered.is_none() && traced.step() != Step::Probes(self.config.level) {
            traced.lowered = Some("budget");
        }
        if let (Some(probes), Some(slot), false) = (&mut self.probes, slot, traced.is_sampled())
            && let Err(error) = probes.put_in_place(&mut traced)
        {
            probes.give_slot_back(slot);
            traced.join(number, None);
            if traced.has_ended() {
                return Ok(());
            }
            if error.is_executed() {
                self.tell_scout(pid);
                return Ok(());
            }
            if self.config.engine == Engine::Events {
                tracing::warn!(pid, "not traced: {error}");
                return Ok(());
            }
            tracing::warn!(pid, "traced by snapshots: {error}");
            if error.is_not_safe() {
                traced.lowered = Some("file");
            }
            traced.become_sampled();
        }
        traced.begin(&self.config, fresh);
        tracing::info!(
            pid,
            executable = %traced.target().executable.display(),
            engine = traced.engine(),
            level = traced.level_name(),
            "traced"
        );
        if let Some(node) = &mut self.node {
            if let Some(observer) = &mut node.observer {
                observer(&ProcessEvent::Began(traced.target()));
            }
            let identity = &traced.target().identity;
            if let Some(metadata) = node.metadata.get(&(pid, identity.start_ticks)) {
                traced.learn(metadata);
            }
        }
        self.traced.push(traced);
        Ok(())
    }

    fn leave(
        &mut self,
        pid: u32,
        start: u64,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) -> Result<(), LineError> {
        let index =
            self.traced.iter().position(|t| t.pid() == pid && t.target().identity.start_ticks == start);
        match index {
            Some(index) => self.end_one(index, "the rules no longer take it", report),
            None => Ok(()),
        }
    }

    /// Ends the tracing of one process, whatever it does itself.
    fn end_one(
        &mut self,
        index: usize,
        why: &str,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) -> Result<(), LineError> {
        let Some(traced) = self.traced.get(index) else { return Ok(()) };
        if let Some(probes) = &mut self.probes {
            probes.kernel.forget(traced.pid());
        }
        self.drain_all()?;
        let traced = self.traced.remove(index);
        self.end(traced, why, report);
        Ok(())
    }

    /// Traces in another way from now on.
    fn adopt(&mut self, mut config: LineConfig, rules: Arc<Rules>) {
        let now = &self.config;
        let fixed =
            (config.engine, config.ring_bytes, config.goroutines, config.processes, config.kernel_log_level);
        if fixed != (now.engine, now.ring_bytes, now.goroutines, now.processes, now.kernel_log_level) {
            tracing::warn!(
                "engine, ring_bytes, max_goroutines, processes and kernel_log change when gotrace is started anew"
            );
        }
        config.engine = now.engine;
        config.ring_bytes = now.ring_bytes;
        config.goroutines = now.goroutines;
        config.processes = now.processes;
        config.kernel_log_level = now.kernel_log_level;
        // At another level, or without a budget, all begin anew.
        let anew = config.level != now.level || config.budget.is_none();
        self.config = config;
        for traced in &mut self.traced {
            traced.follow_config(&self.config);
            if let (Some(probes), false) = (&mut self.probes, traced.is_sampled())
                && let Err(error) = probes.kernel.configure(traced.pid(), traced.config)
            {
                tracing::warn!(pid = traced.pid(), "traced as before: {error}");
            }
        }
        if anew {
            self.spending = Spending::default();
            let anew = self.traced.iter().filter(|t| t.slot.is_some() && !t.cramped);
            let pids: Vec<u32> = anew.map(Traced::pid).collect();
            for pid in pids {
                self.set_step(pid, Step::Probes(self.config.level));
            }
        }
        if let Some(node) = &self.node {
            let _ = node.scout.orders.send(Order::Config(Box::new(self.config.clone()), rules));
        }
    }

    /// Others know something of a process.
    fn learn(&mut self, pid: u32, start: u64, metadata: Metadata) {
        let Some(node) = &mut self.node else { return };
        let mut both: Attributes =
            node.metadata.get(&(pid, start)).map(|m| (**m).clone()).unwrap_or_default();
        both.extend(metadata.iter().map(|(name, value)| (Arc::clone(name), value.clone())));
        let both = Arc::new(both);
        for traced in
            self.traced.iter_mut().filter(|t| t.pid() == pid && t.target().identity.start_ticks == start)
        {
            traced.learn(&both);
        }
        if node.metadata.len() >= node.metadata_limit {
            // Also of those that are not traced, yet: they may have ended without anybody's notice.
            node.metadata.retain(|(pid, start), _| start_ticks(*pid) == Some(*start));
            node.metadata_limit = METADATA.max(node.metadata.len() * 2);
        }
        node.metadata.insert((pid, start), Arc::clone(&both));
        let _ = node.scout.orders.send(Order::Metadata(pid, start, both));
    }

    /// A process has ended, or was given up.
    pub(super) fn note_end(&mut self, traced: &Traced) {
        let Some(node) = &mut self.node else { return };
        node.ended += 1;
        let identity = &traced.target().identity;
        node.metadata.remove(&(identity.pid, identity.start_ticks));
        if let Some(observer) = &mut node.observer {
            observer(&ProcessEvent::Ended(identity));
        }
    }

    /// Who fills the ring must leave its upper half to the others, until it has been calm for a while.
    /// `bytes`: what was drained just now.
    pub(super) fn share_ring(&mut self, bytes: u64, now: Instant) {
        let crowded = bytes > u64::from(self.config.ring_bytes) / 4 && self.traced.len() > 1;
        let Some(probes) = &mut self.probes else { return };
        for traced in &mut self.traced {
            let own = std::mem::take(&mut traced.drained_bytes);
            let floods = traced.config.flags & flags::FLOODS != 0;
            if crowded && own > bytes / 2 {
                traced.flooded = Some(now);
            }
            let wanted = traced.flooded.is_some_and(|at| now.duration_since(at) < CALM_FOR);
            if wanted == floods || traced.is_sampled() {
                continue;
            }
            traced.config.flags ^= flags::FLOODS;
            if wanted {
                tracing::info!(
                    pid = traced.pid(),
                    "most of what comes is its: it leaves half of the ring to the others"
                );
            }
            if let Err(error) = probes.kernel.configure(traced.pid(), traced.config) {
                tracing::debug!(pid = traced.pid(), %error, "its share of the ring stays as it was");
            }
        }
    }
}
