//! Pods as the API tells them, and what is said about their processes.

use serde_json::json;

use super::super::pod::Pod;
use crate::{Placement, attributes::Attributes};
use gotrace_model::Value;

const UID: &str = "3f2b1c4e-0000-4000-8000-0123456789ab";

fn id() -> String {
    "ab".repeat(32)
}

fn made(object: serde_json::Value) -> Pod {
    super::pod(serde_json::from_value(object).expect("a pod"), &["team".to_owned()]).expect("has a uid")
}

fn shop(labels: serde_json::Value, annotations: serde_json::Value, owner: serde_json::Value) -> Pod {
    made(json!({
        "metadata": {
            "name": "shop-6d4cf56db6-abcde", "namespace": "sales", "uid": UID,
            "labels": labels, "annotations": annotations, "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": "node-a",
            "initContainers": [{"name": "init", "image": "init:1"}],
            "containers": [{"name": "web", "image": "registry:5000/shop:v7"}, {"name": "log", "image": "log"}],
        },
        "status": {"containerStatuses": [
            {"name": "web", "image": "shop", "imageID": "", "ready": true, "restartCount": 0,
             "containerID": format!("containerd://{}", id())},
            {"name": "log", "image": "log", "imageID": "", "ready": false, "restartCount": 0, "containerID": ""},
        ]},
    }))
}

fn owner(kind: &str, name: &str) -> serde_json::Value {
    json!({"apiVersion": "x/v1", "kind": kind, "name": name, "uid": "u-1", "controller": true})
}

fn text(attributes: &Attributes, name: &str) -> Option<String> {
    match attributes.get(name)? {
        Value::Text(text) => Some(text.to_string()),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_process_is_described_by_its_pod() {
    let pod = shop(
        json!({"app": "shop", "pod-template-hash": "6d4cf56db6", "team": "blue"}),
        json!({}),
        owner("ReplicaSet", "shop-6d4cf56db6"),
    );
    let placement = Placement::parse(&format!("0::/kubepods/pod{UID}/{}", id()), "");
    let attributes = pod.attributes(&placement);
    for (name, value) in [
        ("k8s.namespace.name", "sales"),
        ("k8s.pod.name", "shop-6d4cf56db6-abcde"),
        ("k8s.pod.uid", UID),
        ("k8s.node.name", "node-a"),
        ("k8s.container.name", "web"),
        ("k8s.deployment.name", "shop"),
        ("k8s.replicaset.name", "shop-6d4cf56db6"),
        ("k8s.pod.label.team", "blue"),
        ("container.name", "web"),
        ("container.runtime.name", "containerd"),
        ("container.image.name", "registry:5000/shop"),
    ] {
        assert_eq!(text(&attributes, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(attributes["container.image.tags"], Value::List(vec!["v7".into()]));
    assert!(!attributes.contains_key("k8s.pod.label.app"));
    // Which container of the pod it is may be unknown.
    let somewhere = pod.attributes(&Placement { pod_uid: Some(UID.into()), ..Placement::default() });
    assert_eq!(text(&somewhere, "k8s.pod.name").as_deref(), Some("shop-6d4cf56db6-abcde"));
    assert_eq!(text(&somewhere, "k8s.container.name"), None);
}

#[test]
fn the_service_is_named_by_precedence() {
    let named = |labels, annotations, owner| shop(labels, annotations, owner).service();
    let deployment = || owner("ReplicaSet", "shop-6d4cf56db6");
    let all = json!({"app": "a", "k8s-app": "k", "app.kubernetes.io/name": "n", "app.kubernetes.io/instance": "i",
        "app.kubernetes.io/version": "2.0"});
    let annotations = json!({"resource.opentelemetry.io/service.name": "told",
        "resource.opentelemetry.io/service.namespace": "space", "resource.opentelemetry.io/service.version": "3.0",
        "resource.opentelemetry.io/deployment.environment.name": "prod",
        "resource.opentelemetry.io/k8s.pod.uid": "forged", "resource.opentelemetry.io/process.pid": "1"});
    let told = named(all.clone(), annotations.clone(), deployment());
    assert_eq!(
        (told.name.as_deref(), told.namespace.as_deref(), told.version.as_deref()),
        (Some("told"), Some("space"), Some("3.0"))
    );
    let attributes = shop(all.clone(), annotations, deployment()).attributes(&Placement::default());
    assert_eq!(text(&attributes, "deployment.environment.name").as_deref(), Some("prod"));
    assert_eq!(text(&attributes, "k8s.pod.uid").as_deref(), Some(UID));
    assert!(!attributes.contains_key("process.pid") && !attributes.contains_key("service.name"));
    let by_label = named(all, json!({}), deployment());
    assert_eq!(
        (by_label.name.as_deref(), by_label.namespace.as_deref(), by_label.version.as_deref()),
        (Some("i"), Some("sales"), Some("2.0"))
    );
    for (labels, wanted) in [
        (json!({"app": "a", "k8s-app": "k", "app.kubernetes.io/name": "n"}), "n"),
        (json!({"app": "a", "k8s-app": "k"}), "a"),
        (json!({"app": "", "k8s-app": "k"}), "k"),
        (json!({"pod-template-hash": "6d4cf56db6"}), "shop"),
    ] {
        assert_eq!(named(labels, json!({}), deployment()).name.as_deref(), Some(wanted));
    }
}

#[test]
fn every_kind_of_maker_has_its_attribute() {
    let none = || json!({});
    for (owner, wanted) in [
        (owner("StatefulSet", "db"), &[("k8s.statefulset.name", "db")][..]),
        (owner("DaemonSet", "log"), &[("k8s.daemonset.name", "log")]),
        (owner("Job", "once"), &[("k8s.job.name", "once")]),
        (
            owner("Job", "backup-29012345"),
            &[("k8s.cronjob.name", "backup"), ("k8s.job.name", "backup-29012345")],
        ),
        // Its template's hash is not known: nothing is guessed.
        (owner("ReplicaSet", "shop-6d4cf56db6"), &[("k8s.replicaset.name", "shop-6d4cf56db6")]),
        (owner("Rollout", "own"), &[]),
        (owner("Node", "node-a"), &[]),
    ] {
        let pod = shop(none(), none(), owner.clone());
        let attributes = pod.attributes(&Placement::default());
        let found: Vec<(String, String)> = attributes
            .keys()
            .filter(|k| !["k8s.namespace", "k8s.pod", "k8s.node"].iter().any(|p| k.starts_with(p)))
            .map(|k| (k.to_string(), text(&attributes, k).expect("a text")))
            .collect();
        let wanted: Vec<(String, String)> =
            wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(found, wanted, "{owner}");
    }
    let rollout = shop(none(), none(), owner("Rollout", "own"));
    assert_eq!(rollout.service().name.as_deref(), Some("own"));
    let bare = shop(none(), none(), json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u"}));
    assert_eq!(bare.service().name.as_deref(), Some("shop-6d4cf56db6-abcde"));
}

#[test]
fn a_static_pod_is_found_by_its_hash() {
    let hash = "0123456789abcdef0123456789abcdef";
    let pod = shop(json!({}), json!({"kubernetes.io/config.hash": hash}), owner("Node", "node-a"));
    assert_eq!(pod.static_hash.as_deref(), Some(hash));
}

#[test]
fn half_told_pods_are_taken() {
    let bare = |object| super::pod(serde_json::from_value(object).expect("a pod"), &[]);
    assert!(bare(json!({})).is_none());
    assert!(bare(json!({"metadata": {"uid": ""}})).is_none());
    assert!(bare(json!({"metadata": {"uid": "u"}})).is_some());
    let odd = bare(
        json!({"metadata": {"uid": "u"}, "spec": {"containers": []}, "status": {"containerStatuses": [
        {"name": "unknown", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": "x"}]}}),
    );
    assert!(odd.expect("taken").containers.is_empty());
}
