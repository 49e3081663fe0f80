//! The API's objects as what is kept of them.
//!
//! Pure. A ReplicaSet that a Deployment made carries the Deployment's name and the hash of the template,
//! which is also the pod's label `pod-template-hash`; a Job that a CronJob made carries its name and the
//! minute it was due (`pkg/controller/deployment/sync.go`, `pkg/controller/cronjob/utils.go`). The first is
//! verified by the ReplicaSet itself where it may be read ([`owner_of_replica_set`]).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{api::core::v1 as api, apimachinery::pkg::apis::meta::v1::OwnerReference};

use super::pod::{Container, Pod, ReplicaSet, Workload};
use crate::container::Runtime;

/// Keeps of a pod what is used. `None` when it has no uid.
pub(super) fn pod(pod: api::Pod, exported_labels: &[String]) -> Option<Pod> {
    let api::Pod { metadata, spec, status } = pod;
    let uid = metadata.uid.filter(|uid| !uid.is_empty())?;
    let labels = texts(metadata.labels.unwrap_or_default());
    let annotations = texts(metadata.annotations.unwrap_or_default());
    let mut containers = Vec::new();
    let mut node = None;
    if let Some(spec) = spec {
        node = spec.node_name.map(Into::into);
        let specified = spec.init_containers.into_iter().flatten().chain(spec.containers);
        let mut add = |name: String, image: Option<String>| {
            containers.push(Container {
                name: name.into(),
                id: None,
                runtime: None,
                image: image.unwrap_or_default().into(),
            });
        };
        for container in specified {
            add(container.name, container.image);
        }
        for container in spec.ephemeral_containers.into_iter().flatten() {
            add(container.name, container.image);
        }
    }
    if let Some(status) = status {
        let all =
            [status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses];
        for status in all.into_iter().flatten().flatten() {
            if let Some(container) = containers.iter_mut().find(|c| *c.name == *status.name) {
                // `containerd://<id>`.
                if let Some((scheme, id)) = status.container_id.as_deref().and_then(|id| id.split_once("://"))
                {
                    container.runtime = Runtime::of_scheme(scheme);
                    container.id = (!id.is_empty()).then(|| id.into());
                }
            }
        }
    }
    let mut pod = Pod::new(
        uid.into(),
        metadata.name.unwrap_or_default().into(),
        metadata.namespace.unwrap_or_default().into(),
        node,
        labels,
        &annotations,
        containers,
        exported_labels,
    );
    let owner = metadata.owner_references.into_iter().flatten().find(|o| o.controller == Some(true));
    if let Some(owner) = owner {
        set_owner(&mut pod, owner);
    }
    Some(pod)
}

fn texts(map: BTreeMap<String, String>) -> BTreeMap<Arc<str>, Arc<str>> {
    map.into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

fn workload(kind: &str, name: &str) -> Workload {
    Workload { kind: kind.into(), name: name.into(), job: None }
}

fn set_owner(pod: &mut Pod, owner: OwnerReference) {
    let OwnerReference { kind, name, uid, .. } = owner;
    match kind.as_str() {
        // A static pod is made by its node.
        "Node" => {}
        "ReplicaSet" => {
            let hash = pod.labels.get("pod-template-hash");
            let deployment = hash.and_then(|hash| name.strip_suffix(&**hash)?.strip_suffix('-'));
            pod.workload = Some(match deployment {
                Some(deployment) => workload("Deployment", deployment),
                None => workload("ReplicaSet", &name),
            });
            pod.replica_set = Some(ReplicaSet { uid: uid.into(), name: name.into() });
        }
        "Job" => {
            pod.workload = Some(match cron_job(&name) {
                Some(cron_job) => {
                    Workload { job: Some(name.as_str().into()), ..workload("CronJob", cron_job) }
                }
                None => workload("Job", &name),
            });
        }
        _ => pod.workload = Some(workload(&kind, &name)),
    }
}

/// `backup-29012345` is made by `backup`: minutes since 1970 have eight digits until 2160.
fn cron_job(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    (minute.len() == 8 && minute.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty()).then_some(name)
}

/// What made a ReplicaSet; itself when nothing did.
pub(super) fn owner_of_replica_set(name: &str, owners: Option<Vec<OwnerReference>>) -> Workload {
    match owners.into_iter().flatten().find(|o| o.controller == Some(true)) {
        Some(owner) => workload(&owner.kind, &owner.name),
        None => workload("ReplicaSet", name),
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
