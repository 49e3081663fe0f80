//! Kubernetes: this node's pods, by a watch, as attributes of their processes.
//!
//! `pod` is what is kept of a pod and what it says as attributes; `convert` makes it of the API's object;
//! `watch` keeps the list up to date. A process finds its pod by the uid in its cgroup path or by its
//! container's id. Nothing is ever asked for a process or an event: one watch a node, and one request for
//! each ReplicaSet, once.

mod convert;
mod pod;
mod watch;

use std::{path::Path, sync::Arc};

use tokio::task::JoinSet;

pub use pod::{Container, Pod, ReplicaSet, Workload};

use super::{EnrichConfig, Switch, cache::Cache, downward, source::State};

/// Where a service account's token is mounted ("Accessing the Kubernetes API from a Pod").
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Whether pods are watched; else why not.
pub(super) fn is_wanted(config: &EnrichConfig) -> Result<(), String> {
    let kubernetes = &config.kubernetes;
    match kubernetes.watch {
        Switch::Off => return Err("disabled".into()),
        Switch::On => {}
        Switch::Auto if kubernetes.kubeconfig.is_some() => {}
        Switch::Auto => {
            if !Path::new(TOKEN).exists() {
                return Err(format!("no service account ({TOKEN} does not exist)"));
            }
        }
    }
    if downward::node_name(config).is_none() {
        return Err("node name unknown: set the variable K8S_NODE_NAME from spec.nodeName".into());
    }
    Ok(())
}

/// Starts the watch, if there is to be one.
pub(super) fn start(config: &EnrichConfig, cache: &Arc<Cache>, tasks: &mut JoinSet<()>) {
    if let Err(why) = is_wanted(config) {
        let state =
            if config.kubernetes.watch == Switch::On { State::Failing(why) } else { State::Absent(why) };
        cache.set_state("kubernetes", state);
        return;
    }
    let Some(node_name) = downward::node_name(config) else { return };
    let _ = rustls::crypto::ring::default_provider().install_default();
    cache.set_state("kubernetes", State::Waiting);
    let watch = watch::Watch::new(config, node_name, Arc::clone(cache));
    tasks.spawn(watch.run());
}
