//! What the sources have answered, looked up by where a process runs.
//!
//! Sources write, the line reads; neither waits for the other's requests, only for a lock that is held for
//! a few map operations. Each entry carries the number of the change that made it, so that a process
//! whose surroundings did not change costs a lookup and nothing else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use super::{
    attributes::{Attributes, Known, Service},
    container::Placement,
    kubernetes::Pod,
    source::{SourceState, State},
};

/// How long a pod that is gone is still known: its last processes outlive its entry in the API.
pub(super) const LINGER: Duration = Duration::from_secs(600);
/// Most pods that are kept. The kubelet's default limit is 110 a node.
pub(super) const MAX_PODS: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    inner: RwLock<Inner>,
    changes: watch::Sender<u64>,
    /// A process runs in a task that is not known.
    pub wanted_task: Notify,
}

impl Default for Cache {
    fn default() -> Self {
        Self { inner: RwLock::default(), changes: watch::Sender::new(0), wanted_task: Notify::new() }
    }
}

#[derive(Debug, Default)]
struct Inner {
    change: u64,
    /// Of the machine, by source.
    node: BTreeMap<&'static str, Attributes>,
    node_version: u64,
    pods: HashMap<Arc<str>, PodEntry>,
    /// Pod by container.
    containers: HashMap<Arc<str>, Arc<str>>,
    /// Pod by the hash in a static pod's path.
    hashes: HashMap<Arc<str>, Arc<str>>,
    /// The pod that gotrace is a sidecar in.
    own_pod: Option<PodEntry>,
    /// Of ECS tasks, by container.
    tasks: HashMap<Arc<str>, TaskEntry>,
    /// The task that gotrace is a sidecar in.
    own_task: Option<OwnTask>,
    sources: BTreeMap<&'static str, State>,
}

#[derive(Debug)]
struct PodEntry {
    pod: Arc<Pod>,
    version: u64,
    gone: Option<Instant>,
}

#[derive(Debug)]
struct TaskEntry {
    attributes: Attributes,
    version: u64,
}

/// What the whole of gotrace's own task shares.
#[derive(Debug)]
struct OwnTask {
    id: Arc<str>,
    /// Whether every process in sight belongs to it.
    alone: bool,
    attributes: Attributes,
    version: u64,
}

impl Inner {
    fn pod_entry(&self, placement: &Placement) -> Option<&PodEntry> {
        let uid = placement.pod_uid.as_ref();
        let by_uid = uid.and_then(|uid| self.pods.get(self.hashes.get(uid).unwrap_or(uid)));
        by_uid
            .or_else(|| {
                let ids = placement.container_id.iter().chain(placement.outer.iter().rev());
                ids.filter_map(|id| self.containers.get(id)).find_map(|uid| self.pods.get(uid))
            })
            .or_else(|| {
                // A sidecar sees its own pod's processes only.
                let own = self.own_pod.as_ref()?;
                uid.is_none_or(|uid| own.pod.uid.is_empty() || *uid == own.pod.uid).then_some(own)
            })
    }

    fn own_task(&self, placement: &Placement) -> Option<&OwnTask> {
        self.own_task
            .as_ref()
            .filter(|own| own.alone || placement.ecs_task.as_ref().is_some_and(|task| *task == own.id))
    }

    fn task_entry(&self, placement: &Placement) -> Option<&TaskEntry> {
        self.tasks.get(placement.container_id.as_ref()?)
    }

    fn version(&self, placement: &Placement) -> u64 {
        [
            Some(self.node_version),
            self.pod_entry(placement).map(|e| e.version),
            self.own_task(placement).map(|e| e.version),
            self.task_entry(placement).map(|e| e.version),
        ]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(0)
    }
}

impl Cache {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // Every write leaves the maps whole: a panic elsewhere does not spoil them.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something; `change` gets the number of the change and says whether there was one.
    fn write(&self, change: impl FnOnce(&mut RwLockWriteGuard<'_, Inner>, u64) -> bool) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let number = inner.change + 1;
        if change(&mut inner, number) {
            inner.change = number;
            drop(inner);
            self.changes.send_replace(number);
        }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn version(&self, placement: &Placement) -> u64 {
        self.read().version(placement)
    }

    pub fn known(&self, placement: &Placement) -> Known {
        let inner = self.read();
        let mut attributes = Attributes::new();
        for of_source in inner.node.values() {
            attributes.extend(of_source.clone());
        }
        if let Some(own) = inner.own_task(placement) {
            attributes.extend(own.attributes.clone());
        }
        match inner.task_entry(placement) {
            Some(task) => attributes.extend(task.attributes.clone()),
            None if placement.ecs_task.is_some() => self.wanted_task.notify_one(),
            None => {}
        }
        let mut service = Service::default();
        let mut told = placement.attributes();
        if let Some(PodEntry { pod, .. }) = inner.pod_entry(placement) {
            service = pod.service();
            attributes.extend(pod.attributes(placement));
            // The API's uid of a static pod, not its path's.
            told.remove("k8s.pod.uid");
        }
        attributes.extend(told);
        Known { attributes, service, version: inner.version(placement) }
    }

    pub fn pod(&self, placement: &Placement) -> Option<Arc<Pod>> {
        self.read().pod_entry(placement).map(|entry| Arc::clone(&entry.pod))
    }

    pub fn sources(&self) -> Vec<SourceState> {
        self.read().sources.iter().map(|(name, state)| SourceState { name, state: state.clone() }).collect()
    }

    /// How a source is doing.
    pub fn set_state(&self, source: &'static str, state: State) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let old = inner.sources.insert(source, state.clone());
        drop(inner);
        if old.as_ref() != Some(&state) {
            match state {
                State::Known => tracing::info!(source, "metadata available"),
                State::Failing(why) => tracing::warn!(source, "no metadata, will retry: {why}"),
                State::Absent(why) => tracing::debug!(source, "metadata source not used: {why}"),
                State::Waiting => {}
            }
        }
    }

    /// What a source knows of the whole machine.
    pub fn set_node(&self, source: &'static str, attributes: Attributes) {
        self.write(|inner, number| {
            let changed = inner.node.get(source) != Some(&attributes);
            if changed {
                inner.node.insert(source, attributes);
                inner.node_version = number;
            }
            changed
        });
    }

    /// The pod that gotrace is a sidecar in.
    pub fn set_own_pod(&self, pod: Pod) {
        self.write(|inner, version| {
            inner.own_pod = Some(PodEntry { pod: Arc::new(pod), version, gone: None });
            true
        });
    }

    /// A pod is there, or another than before. `false` when there are too many.
    pub fn apply_pod(&self, pod: Pod) -> bool {
        let mut fits = true;
        self.write(|inner, version| {
            let now = Instant::now();
            let gone_for_long = |entry: &PodEntry| entry.gone.is_some_and(|at| now - at > LINGER);
            if inner.pods.values().any(gone_for_long) {
                inner.pods.retain(|_, entry| !gone_for_long(entry));
                let Inner { pods, containers, hashes, .. } = &mut **inner;
                containers.retain(|_, uid| pods.contains_key(uid));
                hashes.retain(|_, uid| pods.contains_key(uid));
            }
            let full = inner.pods.len() >= MAX_PODS;
            match inner.pods.get_mut(&pod.uid) {
                Some(old) if *old.pod == pod => {
                    old.gone = None;
                    return false;
                }
                None if full => {
                    fits = false;
                    return false;
                }
                _ => {}
            }
            for id in pod.containers.iter().filter_map(|c| c.id.as_ref()) {
                inner.containers.insert(Arc::clone(id), Arc::clone(&pod.uid));
            }
            if let Some(hash) = &pod.static_hash {
                inner.hashes.insert(Arc::clone(hash), Arc::clone(&pod.uid));
            }
            inner.pods.insert(Arc::clone(&pod.uid), PodEntry { pod: Arc::new(pod), version, gone: None });
            true
        });
        fits
    }

    /// A pod is gone; what was known of it stays known for a while.
    pub fn pod_gone(&self, uid: &str) {
        self.write(|inner, _| {
            if let Some(entry) = inner.pods.get_mut(uid) {
                entry.gone.get_or_insert_with(Instant::now);
            }
            false
        });
    }

    /// All pods that there are; the others are gone.
    pub fn only_pods(&self, uids: &HashSet<Arc<str>>) {
        self.write(|inner, _| {
            for (uid, entry) in &mut inner.pods {
                if !uids.contains(uid) {
                    entry.gone.get_or_insert_with(Instant::now);
                }
            }
            false
        });
    }

    /// Pods whose controller is this ReplicaSet.
    pub fn pods_of_replica_set(&self, uid: &str) -> Vec<Arc<Pod>> {
        let inner = self.read();
        let of_it = |entry: &&PodEntry| entry.pod.replica_set.as_ref().is_some_and(|r| *r.uid == *uid);
        inner.pods.values().filter(of_it).map(|entry| Arc::clone(&entry.pod)).collect()
    }

    /// The containers of tasks that there are. Those that are missing are forgotten.
    pub fn set_tasks(&self, tasks: HashMap<Arc<str>, Attributes>) {
        self.write(|inner, number| {
            let mut changed = false;
            inner.tasks.retain(|id, _| tasks.contains_key(id));
            for (id, attributes) in tasks {
                if inner.tasks.get(&id).is_none_or(|old| old.attributes != attributes) {
                    inner.tasks.insert(id, TaskEntry { attributes, version: number });
                    changed = true;
                }
            }
            changed
        });
    }

    /// The task that gotrace itself runs in. `alone`: every process in sight belongs to it.
    pub fn set_own_task(&self, id: &str, alone: bool, attributes: Attributes) {
        self.write(|inner, version| {
            let same = inner
                .own_task
                .as_ref()
                .is_some_and(|own| *own.id == *id && own.alone == alone && own.attributes == attributes);
            if !same {
                inner.own_task = Some(OwnTask { id: id.into(), alone, attributes, version });
            }
            !same
        });
    }
}
