//! What is kept of a pod, and what it says about its processes.
//!
//! Pure. Names of the service follow "Specify resource attributes using Kubernetes annotations" of the
//! semantic conventions (annotation, `app.kubernetes.io/instance`, `app.kubernetes.io/name`, workload,
//! pod), with the older labels `app` and `k8s-app` before the workload.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    attributes::{Attributes, Service, set, set_some},
    claims::Claims,
    container::{Placement, Runtime},
    image,
};
use gotrace_model::Value;

/// Beginning of annotations that are resource attributes.
const ANNOTATION: &str = "resource.opentelemetry.io/";

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The API's uid; empty when a sidecar was not told.
    pub uid: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The node.
    pub node: Option<Arc<str>>,
    /// Its labels, for rules.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// What its annotations name as attributes.
    pub annotated: BTreeMap<Arc<str>, Arc<str>>,
    /// What made it; `None` when nothing did, or a sidecar was not told.
    pub workload: Option<Workload>,
    /// The ReplicaSet among its makers.
    pub replica_set: Option<ReplicaSet>,
    /// Containers, init containers and ephemeral containers.
    pub containers: Vec<Container>,
    /// Of a static pod: the hash in its cgroup's path.
    pub static_hash: Option<Arc<str>>,
    /// Labels that are exported.
    pub(super) exported_labels: Arc<[String]>,
}

/// What made a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, `ReplicaSet` or a kind of one's own.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Of a CronJob: the Job between.
    pub job: Option<Arc<str>>,
}

/// A pod's ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSet {
    /// Its uid.
    pub uid: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// As the pod's specification names it.
    pub name: Arc<str>,
    /// As its runtime names it; `None` before it runs.
    pub id: Option<Arc<str>>,
    /// Who runs it.
    pub runtime: Option<Runtime>,
    /// Its image.
    pub image: Arc<str>,
}

impl Pod {
    /// One whose makers are not known.
    #[allow(clippy::too_many_arguments, reason = "the parts of one record, each once")]
    pub(crate) fn new(
        uid: Arc<str>,
        name: Arc<str>,
        namespace: Arc<str>,
        node: Option<Arc<str>>,
        labels: BTreeMap<Arc<str>, Arc<str>>,
        annotations: &BTreeMap<Arc<str>, Arc<str>>,
        containers: Vec<Container>,
        exported_labels: &[String],
    ) -> Self {
        let annotated = annotations
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(ANNOTATION)?, value)))
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.to_string()));
        // What is measured, and tells the process or its place, is not theirs to say.
        let annotated = Claims::of(annotated).attributes;
        let annotated = annotated.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self {
            uid,
            name,
            namespace,
            node,
            labels,
            annotated,
            workload: None,
            replica_set: None,
            containers,
            static_hash: annotations.get("kubernetes.io/config.hash").cloned(),
            exported_labels: exported_labels.into(),
        }
    }

    /// What it says about the service.
    #[must_use]
    pub fn service(&self) -> Service {
        let annotated = |key: &str| self.annotated.get(key).cloned();
        let label = |key: &str| self.labels.get(key).filter(|v| !v.is_empty()).cloned();
        Service {
            name: annotated("service.name")
                .or_else(|| label("app.kubernetes.io/instance"))
                .or_else(|| label("app.kubernetes.io/name"))
                .or_else(|| label("app"))
                .or_else(|| label("k8s-app"))
                .or_else(|| self.workload.as_ref().map(|w| Arc::clone(&w.name)))
                .or_else(|| Some(Arc::clone(&self.name))),
            namespace: annotated("service.namespace")
                .or_else(|| Some(Arc::clone(&self.namespace)).filter(|n| !n.is_empty())),
            version: annotated("service.version").or_else(|| label("app.kubernetes.io/version")),
        }
    }

    /// The container that a process runs in.
    #[must_use]
    pub fn container(&self, placement: &Placement) -> Option<&Container> {
        let ids = || placement.container_id.iter().chain(placement.outer.iter().rev());
        ids()
            .find_map(|id| self.containers.iter().find(|c| c.id.as_ref() == Some(id)))
            .or_else(|| self.containers.iter().find(|c| placement.pod_container.as_ref() == Some(&c.name)))
    }

    /// What it says about a process of it.
    pub(crate) fn attributes(&self, placement: &Placement) -> Attributes {
        let mut attributes = Attributes::new();
        for (key, value) in self.annotated.iter().filter(|(key, _)| !key.starts_with("service.")) {
            set(&mut attributes, key, value);
        }
        for key in self.exported_labels.iter() {
            set_some(
                &mut attributes,
                &format!("k8s.pod.label.{key}"),
                self.labels.get(key.as_str()).map(|v| &**v),
            );
        }
        set(&mut attributes, "k8s.namespace.name", &self.namespace);
        set(&mut attributes, "k8s.pod.name", &self.name);
        set(&mut attributes, "k8s.pod.uid", &self.uid);
        set_some(&mut attributes, "k8s.node.name", self.node.as_deref());
        if let Some(set_of) = &self.replica_set {
            set(&mut attributes, "k8s.replicaset.name", &set_of.name);
        }
        if let Some(Workload { kind, name, job }) = &self.workload {
            let attribute = match &**kind {
                "Deployment" => Some("k8s.deployment.name"),
                "StatefulSet" => Some("k8s.statefulset.name"),
                "DaemonSet" => Some("k8s.daemonset.name"),
                "Job" => Some("k8s.job.name"),
                "CronJob" => Some("k8s.cronjob.name"),
                _ => None,
            };
            if let Some(attribute) = attribute {
                set(&mut attributes, attribute, name);
            }
            set_some(&mut attributes, "k8s.job.name", job.as_deref());
        }
        if let Some(container) = self.container(placement) {
            set(&mut attributes, "k8s.container.name", &container.name);
            set(&mut attributes, "container.name", &container.name);
            set_some(&mut attributes, "container.id", container.id.as_deref());
            if let Some(runtime) = container.runtime {
                attributes.insert("container.runtime.name".into(), Value::Text(runtime.name().into()));
            }
            image::describe(&mut attributes, &container.image);
        }
        attributes
    }
}
