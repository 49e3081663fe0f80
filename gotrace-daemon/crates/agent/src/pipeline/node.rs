//! The line on a whole node: takes in who the scout has found, gives up who the rules no longer take or
//! what cannot be followed, puts late metadata on resources, keeps one process's flood from the others.

use std::{
    collections::BTreeMap,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use gotrace_common::flags;

use super::{
    Engine, Line, LineConfig, LineError, Step,
    coverage::Account,
    known::Counts,
    scout::{Found, Order, Scout},
    traced::Traced,
};
use crate::tracee::Lowered;
use gotrace_kernel as kernel;
use gotrace_model::{Covered, Interval, Refused, Value};
use gotrace_process::{Rules, start_ticks};

/// Processes that are taken in before the ring is looked at again.
const TAKEN_AT_ONCE: usize = 4;
/// Time between two looks whether processes run what they ran, where executions are told, and where not.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY_WITHOUT_NOTICES: Duration = Duration::from_secs(1);
/// Processes whose metadata is kept without a look whether they still live.
const METADATA: usize = 1024;
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
}

impl Control {
    /// From now on trace in this way, and those that these rules take. What holds while the kernel side is
    /// loaded (engine, sizes) stays as it is.
    pub fn reconfigure(&self, config: LineConfig, rules: Rules) {
        // Refused when the line has ended.
        let _ = self.changes.send(Change::Config(Box::new(config), Arc::new(rules)));
    }

    /// Others know this of a process, given by its pid and start ([`gotrace_process::Identity::start_ticks`]): the rules may
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

/// What the line of a node has beside the others'.
pub(super) struct Node {
    pub(super) scout: Scout,
    changes: Receiver<Change>,
    metadata: BTreeMap<(u32, u64), Metadata>,
    /// Entries at which those of processes that have ended are looked for.
    metadata_limit: usize,
    next_look: Instant,
    pub(super) without_room: u64,
    pub(super) looked_at: Counts,
    pub(super) coverage: Account,
}

impl Node {
    /// Where discovery takes its orders.
    pub(super) fn orders(&self) -> &Sender<Order> {
        &self.scout.orders
    }

    /// What others know of a process, by its pid and start.
    pub(super) fn metadata_of(&self, key: (u32, u64)) -> Option<&Attributes> {
        self.metadata.get(&key).map(|metadata| &**metadata)
    }
}

impl Line {
    /// From now on all Go programs of the node are traced that the rules take.
    ///
    /// # Errors
    /// [`LineError::Threads`].
    pub fn watch_node(&mut self, rules: Rules) -> Result<Control, LineError> {
        let told = self.probes.as_ref().is_some_and(|p| p.sees_executions);
        let coverage = Account::default();
        let sampled = self.probes.is_none();
        let scout = Scout::start(
            &self.config,
            Arc::new(rules),
            told,
            sampled,
            &self.threads,
            coverage.clone(),
            self.in_hand.clone(),
        )
        .map_err(LineError::Threads)?;
        let (sender, changes) = channel();
        self.node = Some(Node {
            scout,
            changes,
            metadata: BTreeMap::new(),
            metadata_limit: METADATA,
            next_look: Instant::now(),
            without_room: 0,
            looked_at: Counts::default(),
            coverage,
        });
        Ok(Control { changes: sender })
    }

    /// Can be read when the scout has found somebody.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.node.as_ref().map(|node| node.scout.news())
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

    /// The kernel tells that a process has executed a program.
    pub(super) fn tell_scout(&self, pid: u32) {
        if let Some(node) = &self.node {
            // Refused when the scout has ended, and has said why.
            let _ = node.scout.orders.send(Order::Executed(pid));
        }
    }

    /// A process that is not traced any more seems to have executed a program, of which the kernel tells itself where it
    /// can.
    pub(super) fn have_looked_at(&self, pid: u32) {
        if let Some(node) = &self.node {
            let _ = node.scout.orders.send(Order::LookAt(pid));
        }
    }

    /// What came of a process that discovery has handed over.
    fn cover(&self, covered: Covered) {
        if let Some(node) = &self.node {
            node.coverage.cover(covered);
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
            let found = match node.scout.found.try_recv() {
                Ok(found) => found,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(LineError::Discovery),
            };
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
            self.cover(Covered::Gone);
            self.have_looked_at(pid);
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
                "using snapshots: limits.processes reached for processes with probes"
            );
            traced.become_sampled();
            traced.lower(Some(Lowered::Room));
        }
        // Those that run the same file have its probes at this step.
        match step {
            Some(Step::Snapshot) if slot.is_some() => traced.become_sampled(),
            Some(step) if step != Step::Snapshot => traced.set_aim(step),
            _ if slot.is_some() && self.has_too_many_neighbours(&traced) => {
                self.join_without_probes(&mut traced);
            }
            _ => {}
        }
        if slot.is_some()
            && traced.tracee.lowered().is_none()
            && traced.step() < Step::Probes(traced.wanted_level(&self.config))
        {
            traced.lower(Some(Lowered::Budget));
        }
        let mut failed = None;
        if let (Some(probes), Some(slot), false) = (&mut self.probes, slot, traced.is_sampled())
            && let Err(error) = probes.put_in_place(&mut traced)
        {
            // With its slot, it is raised again when the kernel has what it takes.
            let passing = error.is_passing() && !traced.has_ended() && self.config.engine != Engine::Events;
            if !passing {
                probes.give_slot_back(slot);
                traced.join(number, None);
            }
            if traced.has_ended() {
                self.cover(Covered::Gone);
                return Ok(());
            }
            if error.is_executed() {
                self.cover(Covered::Gone);
                self.have_looked_at(pid);
                return Ok(());
            }
            if self.config.engine == Engine::Events {
                tracing::warn!(pid, "skipping process: {error}");
                self.cover(Covered::Refused(Refused::Probes));
                return Ok(());
            }
            tracing::warn!(pid, "falling back to snapshots: {error}");
            if error.is_not_safe() {
                traced.lower(Some(Lowered::File));
            }
            traced.become_sampled();
            failed = Some(error);
        }
        traced.begin(&self.config, fresh, self.clock.clock(), self.recorder.as_ref());
        self.cover(if traced.is_sampled() { Covered::Snapshot } else { Covered::Events });
        tracing::info!(
            pid,
            executable = %traced.target().executable.display(),
            engine = traced.engine(),
            level = traced.level_name(),
            "traced"
        );
        self.shown.began(&traced);
        if let Some(node) = &mut self.node {
            let identity = &traced.target().identity;
            if let Some(metadata) = node.metadata.get(&(pid, identity.start_ticks)) {
                traced.learn(metadata);
            }
        }
        let wanted = traced.aim();
        traced.tell_paused();
        self.traced.push(traced);
        if let Some(error) = failed.filter(kernel::Error::is_passing) {
            self.note_failure(pid, wanted, &error);
        }
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
            Some(index) => self.end_one(index, "the rules no longer match it", report),
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
        self.shown.ended(traced);
        let Some(node) = &mut self.node else { return };
        let identity = &traced.target().identity;
        node.metadata.remove(&(identity.pid, identity.start_ticks));
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
                    "throttled: it produces most events; the upper half of the ring is reserved for others"
                );
            }
            if let Err(error) = probes.kernel.configure(traced.pid(), traced.config) {
                tracing::debug!(pid = traced.pid(), %error, "cannot change its share of the ring");
            }
        }
    }
}
