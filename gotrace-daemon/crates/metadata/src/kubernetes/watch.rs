//! Keeps this node's pods up to date: one list, then one watch, as long as the agent runs.
//!
//! A connection that breaks is made again from where it was; after an error come growing pauses; every
//! [`RESYNC`] the whole list is read anew, whatever the watch said. The list is taken as the API server's
//! own cache has it (`resourceVersion=0`), so that ten thousand agents that start together do not all
//! reach etcd; the watch then brings what is newer. Needs leave to list and watch pods; with leave to get
//! ReplicaSets and the namespace `kube-system` it also knows the Deployment for sure and
//! `k8s.cluster.uid`, and does without where that is refused.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{self as api, Namespace},
};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    convert::{self, owner_of_replica_set},
    pod::{Pod, Workload},
};
use crate::{
    EnrichConfig,
    attributes::{Attributes, set},
    cache::{Cache, MAX_PODS},
    source::{Backoff, State, jitter},
};

/// The source's name.
const NAME: &str = "kubernetes";
/// Time between two complete lists.
const RESYNC: Duration = Duration::from_secs(1_800);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a single request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what was refused, or is not there, is not asked for again.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// Requests for ReplicaSets at a time.
const MAX_LOOKUPS: usize = 4;
/// ReplicaSets whose makers are remembered; a node has some hundred pods at most.
const MAX_REPLICA_SETS: usize = 4_096;

/// Who made a ReplicaSet, as far as known.
#[derive(Clone, Debug)]
enum Maker {
    Asked,
    Known(Workload),
    /// Not to be asked before then.
    Refused(Instant),
}

/// What a request beside the watch brought.
enum Found {
    Cluster(Result<String, kube::Error>),
    ReplicaSet { uid: Arc<str>, result: Result<Workload, kube::Error> },
}

/// See the module.
pub(super) struct Watch {
    node_name: String,
    kubeconfig: Option<PathBuf>,
    resync: Duration,
    exported_labels: Vec<String>,
    cache: Arc<Cache>,
    makers: HashMap<Arc<str>, Maker>,
    waiting: VecDeque<Arc<Pod>>,
    /// Reading ReplicaSets at all was refused, until then.
    refused_until: Option<Instant>,
    healthy: bool,
}

impl Watch {
    pub fn new(config: &EnrichConfig, node_name: String, cache: Arc<Cache>) -> Self {
        Self {
            node_name,
            kubeconfig: config.kubernetes.kubeconfig.clone(),
            resync: config.kubernetes.resync.unwrap_or(RESYNC),
            exported_labels: config.pod_labels.clone(),
            cache,
            makers: HashMap::new(),
            waiting: VecDeque::new(),
            refused_until: None,
            healthy: false,
        }
    }

    /// Watches until it is dropped.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            if let Err(why) = self.session(&mut backoff).await {
                self.fails(why);
                sleep(backoff.pause()).await;
            }
        }
    }

    fn fails(&mut self, why: String) {
        self.healthy = false;
        self.cache.set_state(NAME, State::Failing(why));
    }

    fn works(&mut self, backoff: &mut Backoff) {
        if !self.healthy {
            self.healthy = true;
            *backoff = Backoff::new();
            self.cache.set_state(NAME, State::Known);
        }
    }

    async fn client(&self) -> Result<Client, String> {
        let mut config = match &self.kubeconfig {
            None => Config::incluster().map_err(|e| format!("cannot use the service account: {e}"))?,
            Some(path) => {
                let unusable = |e: &dyn std::fmt::Display| format!("cannot use {}: {e}", path.display());
                let file = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| unusable(&e))?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // The API server is within the cluster.
        config.proxy_url = None;
        Client::try_from(config).map_err(|e| format!("cannot reach the API server: {e}"))
    }

    /// One client and one list with its watch; ends when the list is to be read anew.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), String> {
        let client = self.client().await?;
        let config =
            watcher::Config::default().any_semantic().fields(&format!("spec.nodeName={}", self.node_name));
        let mut stream = pin!(watcher::watcher(Api::<api::Pod>::all(client.clone()), config));
        let end = Instant::now() + jitter(self.resync);
        let mut listed = HashSet::new();
        let mut requests = JoinSet::new();
        requests.spawn(ask_cluster(client.clone()));
        loop {
            while requests.len() < MAX_LOOKUPS
                && let Some(pod) = self.waiting.pop_front()
            {
                if let Some(set) = &pod.replica_set {
                    let uid = Arc::clone(&set.uid);
                    requests.spawn(ask_replica_set(
                        client.clone(),
                        pod.namespace.to_string(),
                        set.name.to_string(),
                        uid,
                    ));
                }
            }
            tokio::select! {
                event = stream.next() => match event {
                    None => return Err("the watch ended".into()),
                    Some(Ok(event)) => {
                        self.take(event, &mut listed);
                        self.works(backoff);
                    }
                    // The stream takes up where it was when it is polled again.
                    Some(Err(error)) => {
                        self.fails(explain(&error));
                        sleep(backoff.pause()).await;
                    }
                },
                Some(Ok(found)) = requests.join_next() => self.found(found),
                () = sleep_until(end) => return Ok(()),
            }
        }
    }

    fn take(&mut self, event: Event<api::Pod>, listed: &mut HashSet<Arc<str>>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                if let Some(uid) = self.apply(pod) {
                    listed.insert(uid);
                }
            }
            Event::InitDone => self.cache.only_pods(&std::mem::take(listed)),
            Event::Apply(pod) => drop(self.apply(pod)),
            Event::Delete(pod) => {
                if let Some(uid) = pod.metadata.uid {
                    self.cache.pod_gone(&uid);
                }
            }
        }
    }

    fn apply(&mut self, pod: api::Pod) -> Option<Arc<str>> {
        let mut pod = convert::pod(pod, &self.exported_labels)?;
        let uid = Arc::clone(&pod.uid);
        let unknown = self.name_maker(&mut pod);
        if !self.cache.apply_pod(pod.clone()) {
            tracing::warn!(pod = &*pod.name, "more than {MAX_PODS} pods on this node: ignoring this one");
            return Some(uid);
        }
        if unknown {
            self.waiting.push_back(Arc::new(pod));
        }
        Some(uid)
    }

    /// Names the pod's maker where its ReplicaSet's is known; whether it has yet to be asked for.
    fn name_maker(&mut self, pod: &mut Pod) -> bool {
        let Some(set) = &pod.replica_set else { return false };
        let now = Instant::now();
        match self.makers.get(&set.uid) {
            Some(Maker::Known(workload)) => {
                pod.workload = Some(workload.clone());
                return false;
            }
            Some(Maker::Asked) => return false,
            Some(Maker::Refused(until)) if now < *until => return false,
            Some(Maker::Refused(_)) | None => {}
        }
        if self.refused_until.is_some_and(|until| now < until) {
            return false;
        }
        if self.makers.len() >= MAX_REPLICA_SETS {
            self.makers.clear();
        }
        self.makers.insert(Arc::clone(&set.uid), Maker::Asked);
        true
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Cluster(Ok(uid)) => {
                let mut attributes = Attributes::new();
                set(&mut attributes, "k8s.cluster.uid", &uid);
                self.cache.set_node(NAME, attributes);
            }
            Found::Cluster(Err(error)) => tracing::debug!("cannot get the cluster uid: {error}"),
            Found::ReplicaSet { uid, result: Ok(workload) } => {
                self.makers.insert(Arc::clone(&uid), Maker::Known(workload.clone()));
                for pod in self.cache.pods_of_replica_set(&uid) {
                    self.cache.apply_pod(Pod { workload: Some(workload.clone()), ..Pod::clone(&pod) });
                }
            }
            Found::ReplicaSet { uid, result: Err(error) } => {
                tracing::debug!("cannot get a ReplicaSet; deriving its Deployment from its name: {error}");
                let until = Instant::now() + REFUSED_PAUSE;
                if is_forbidden(&error) {
                    self.refused_until = Some(until);
                    self.waiting.clear();
                    self.makers.retain(|_, maker| !matches!(maker, Maker::Asked));
                }
                self.makers.insert(uid, Maker::Refused(until));
            }
        }
    }
}

async fn ask_cluster(client: Client) -> Found {
    let namespaces: Api<Namespace> = Api::all(client);
    Found::Cluster(
        in_time(namespaces.get_metadata("kube-system")).await.map(|o| o.metadata.uid.unwrap_or_default()),
    )
}

async fn ask_replica_set(client: Client, namespace: String, name: String, uid: Arc<str>) -> Found {
    let sets: Api<ReplicaSet> = Api::namespaced(client, &namespace);
    let result = in_time(sets.get_metadata(&name)).await;
    let result = result.map(|object| owner_of_replica_set(&name, object.metadata.owner_references));
    Found::ReplicaSet { uid, result }
}

async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// What is wrong, and what to do.
fn explain(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause)) = error else {
        return error.to_string();
    };
    match cause {
        kube::Error::Api(status) if status.code == 403 => format!(
            "the API server forbids watching pods ({}): bind the ClusterRole of the manifests to this service \
             account",
            status.message
        ),
        kube::Error::Api(status) if status.code == 401 => {
            "the API server does not know this service account's token".into()
        }
        cause => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(cause);
            while let Some(this) = source {
                let this_text = this.to_string();
                if !text.contains(&this_text) {
                    text.push_str(": ");
                    text.push_str(&this_text);
                }
                source = this.source();
            }
            text
        }
    }
}
