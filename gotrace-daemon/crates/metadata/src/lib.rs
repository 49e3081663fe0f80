//! What surrounds a process: its container, pod, task, machine and cloud, as resource attributes.
//!
//! The only room that speaks HTTP to others. Each source asks in a task of its own, within a stated time
//! ([`ANSWER_TIMEOUT`] a request), degrades to nothing and is asked again with growing pauses. What was
//! answered lies in a cache; the line only ever looks into that cache ([`Enricher::known`],
//! [`Enricher::changed`]) and never waits.
//!
//! ```text
//! /proc/PID/{cgroup,mountinfo} ──▶ Placement ──┐
//! API server, ECS, ECI, cloud ──▶ tasks ──▶ cache ──▶ Known: attributes, service names, a version
//! ```
//!
//! [`Attendant`] does so for many processes, and tells of each change; the daemon passes that on to the line
//! (`pipeline::Control::metadata`), which puts it on resources ([`gotrace_model::Resource::with_metadata`])
//! and judges by it.
//!
//! Refuses: environment variables and arguments of a process (never read here), redirects, proxies,
//! answers of more than a mebibyte, and addresses that a traced process names.

mod attend;
mod attributes;
mod cache;
pub mod claims;
pub mod cloud;
pub mod container;
mod downward;
mod eci;
pub mod ecs;
mod http;
mod image;
pub mod kubernetes;
pub mod redact;
mod resource;
mod source;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::watch, task::JoinSet};

pub use attend::Attendant;
pub use attributes::{Attributes, Known, Service};
use cache::Cache;
pub use cloud::Provider;
pub use container::{Placement, Runtime};
pub use http::ANSWER_TIMEOUT;
pub use kubernetes::{Pod, Workload};
pub use resource::{GoFacts, ResourceOptions, resource};
pub use source::{SourceState, State};

/// Whom to ask. The default finds out by itself and asks only who is there: nothing is asked on a machine
/// that is in no cloud, no cluster and no task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnrichConfig {
    /// Kubernetes.
    pub kubernetes: KubernetesConfig,
    /// ECS: the task's own metadata, and the container agent's list on EC2.
    pub ecs: Switch,
    /// Alibaba's Elastic Container Instance.
    pub eci: Switch,
    /// The cloud's instance metadata.
    pub cloud: CloudConfig,
    /// Pod labels to add as `k8s.pod.label.<key>`. None by default.
    pub pod_labels: Vec<String>,
    /// Where the services are; for tests and for machines that have them elsewhere.
    pub addresses: Addresses,
}

/// On, off, or as gotrace's own environment tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// When there are signs of it.
    #[default]
    Auto,
    /// Ask, and ask again.
    On,
    /// Never ask.
    Off,
}

/// How pods become known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Watch this node's pods. `Auto`: when a service account's token is mounted (or [`Self::kubeconfig`]
    /// is set) and the node's name is known.
    pub watch: Switch,
    /// This node's name; `None`: variable `K8S_NODE_NAME`.
    pub node_name: Option<String>,
    /// A kubeconfig file; `None`: the service account in the container.
    pub kubeconfig: Option<PathBuf>,
    /// `k8s.cluster.name`, which the API server does not know; `None`: variable `K8S_CLUSTER_NAME`, else
    /// what the cloud says.
    pub cluster_name: Option<String>,
    /// Time between two complete lists of the node's pods (default 30 min).
    pub resync: Option<Duration>,
}

/// Which cloud to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CloudConfig {
    /// The one that the machine's firmware names (`/sys/class/dmi/id`), or none.
    #[default]
    Auto,
    /// This one.
    Provider(Provider),
    /// None.
    Off,
}

/// Where the services answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IMDS of AWS, metadata servers of GCP and Azure.
    pub link_local: String,
    /// Metadata server of Alibaba Cloud, of ECS and ECI alike.
    pub alibaba: String,
    /// The ECS container agent's introspection API on an EC2 instance.
    pub ecs_agent: String,
    /// The task's own metadata; `None`: variable `ECS_CONTAINER_METADATA_URI_V4`.
    pub ecs_task: Option<String>,
    /// Directory of the downward API's volume with files `labels` and `annotations`.
    pub pod_info: PathBuf,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            link_local: "http://169.254.169.254".into(),
            alibaba: "http://100.100.100.200".into(),
            ecs_agent: "http://127.0.0.1:51678".into(),
            ecs_task: None,
            pod_info: "/etc/podinfo".into(),
        }
    }
}

/// Answers what surrounds a process, at once, from what is known by now.
#[derive(Debug)]
pub struct Enricher {
    cache: Arc<Cache>,
    /// Ended when dropped.
    _tasks: JoinSet<()>,
}

impl Enricher {
    /// One that asks nobody: containers are told by `/proc` alone.
    #[must_use]
    pub fn idle() -> Self {
        Self { cache: Arc::new(Cache::default()), _tasks: JoinSet::new() }
    }

    /// Starts asking on `runtime`. Returns at once; nothing has to be there.
    #[must_use]
    pub fn start(config: &EnrichConfig, runtime: &Handle) -> Self {
        let _entered = runtime.enter();
        let cache = Arc::new(Cache::default());
        let mut tasks = JoinSet::new();
        source::start(config, &cache, &mut tasks);
        Self { cache, _tasks: tasks }
    }

    /// What is known of a process's surroundings now.
    #[must_use]
    pub fn known(&self, placement: &Placement) -> Known {
        self.cache.known(placement)
    }

    /// The same when it is newer than `seen` ([`Known::version`]); `None` when there is nothing new, or
    /// its pod is gone: what was known stays true of it.
    #[must_use]
    pub fn changed(&self, placement: &Placement, seen: u64) -> Option<Known> {
        (self.cache.version(placement) > seen).then(|| self.cache.known(placement))
    }

    /// Tells when anything at all became known: the number grows.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.cache.changes()
    }

    /// The pod of a process, with its labels, for rules. `None` when it has none, or it is not known yet.
    #[must_use]
    pub fn pod(&self, placement: &Placement) -> Option<Arc<Pod>> {
        self.cache.pod(placement)
    }

    /// How each source is doing, for health pages. Empty when nobody is asked.
    #[must_use]
    pub fn sources(&self) -> Vec<SourceState> {
        self.cache.sources()
    }
}
