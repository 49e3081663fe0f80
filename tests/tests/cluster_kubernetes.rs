//! A real API server: pods of this node become known by one watch, with the leave that the manifests give
//! the agent and nothing more. Needs what `cargo xtask setup` puts into the cache directory.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gotrace_metadata::{
    CloudConfig, EnrichConfig, Enricher, Known, KubernetesConfig, Placement, State, Switch,
};
use gotrace_model::Value;
use gotrace_tests::{
    cluster::Cluster,
    container::{Container, Hierarchy, Shape},
    daemon::Daemon,
    demo::unpack_demo,
    export::Export,
    fixture::PATIENCE,
    gotrace::privileged,
    manifests,
};
use http::Method;
use serde_json::{Value as Json, json};

const NODE: &str = "node-a";

fn id(of: char) -> String {
    String::from(of).repeat(64)
}

fn agent(kubeconfig: PathBuf) -> Enricher {
    let config = EnrichConfig {
        kubernetes: KubernetesConfig {
            watch: Switch::On,
            node_name: Some(NODE.into()),
            kubeconfig: Some(kubeconfig),
            cluster_name: Some("test".into()),
            resync: None,
        },
        ecs: Switch::Off,
        eci: Switch::Off,
        cloud: CloudConfig::Off,
        ..EnrichConfig::default()
    };
    Enricher::start(&config, &tokio::runtime::Handle::current())
}

fn state(enricher: &Enricher) -> Option<State> {
    enricher.sources().into_iter().find(|s| s.name == "kubernetes").map(|s| s.state)
}

async fn until<T>(what: &str, enricher: &Enricher, look: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what} never came: {:?}", enricher.sources());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn text(known: &Known, name: &str) -> Option<String> {
    match known.attributes.get(name) {
        Some(Value::Text(text)) => Some(text.to_string()),
        _ => None,
    }
}

/// Makes what the manifests say the agent is allowed, and nothing else.
async fn give_leave(cluster: &Cluster) {
    for object in manifests::read(Path::new("kubernetes/gotrace.yaml")).expect("the manifests") {
        if ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"]
            .iter()
            .any(|k| object["kind"] == *k)
        {
            cluster.create(&manifests::collection(&object), &object).await.expect("made");
        }
    }
}

/// A pod of a Deployment, running, with its container's id.
async fn make_pod(cluster: &Cluster, name: &str, node: &str, container: &str, owner: Json) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "shop", "pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [owner]},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "registry:5000/shop:v7"}]},
    });
    let made = cluster.create("/api/v1/namespaces/default/pods", &pod).await.expect("made");
    let status = json!({"status": {"phase": "Running", "containerStatuses": [{
        "name": "web", "image": "registry:5000/shop:v7", "imageID": "x", "ready": true, "restartCount": 0,
        "containerID": format!("containerd://{container}"),
    }]}});
    let path = format!("/api/v1/namespaces/default/pods/{name}/status");
    cluster.send(Method::PATCH, &path, &status).await.expect("its status is taken");
    made["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

async fn make_replica_set(cluster: &Cluster, name: &str, owner: Json) -> Json {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "shop"}},
            "template": {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [{"name": "web", "image": "x"}]}}},
    });
    let made = cluster.create("/apis/apps/v1/namespaces/default/replicasets", &set).await.expect("made");
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": made["metadata"]["uid"], "controller": true})
}

fn owner(kind: &str, name: &str) -> Json {
    json!({"apiVersion": "x/v1", "kind": kind, "name": name, "uid": "11111111-2222-4333-8444-555555555555", "controller": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_this_node_are_known_by_one_watch() {
    if !privileged("cluster_kubernetes") {
        return;
    }
    let mut cluster = Cluster::start().await.expect("a cluster");
    give_leave(&cluster).await;
    let set = make_replica_set(&cluster, "shop-6d4cf56db6", owner("Deployment", "shop")).await;
    let uid = make_pod(&cluster, "shop-6d4cf56db6-aaaaa", NODE, &id('a'), set.clone()).await;
    make_pod(&cluster, "shop-6d4cf56db6-other", "node-b", &id('b'), set.clone()).await;
    let kubeconfig = cluster.kubeconfig_of("gotrace", "gotrace").await.expect("a token");

    let begin = Instant::now();
    let enricher = agent(kubeconfig);
    let here = Placement::parse(&format!("0::/kubepods/burstable/pod{uid}/{}", id('a')), "");
    let known = until("the pod", &enricher, || {
        Some(enricher.known(&here)).filter(|k| text(k, "k8s.pod.name").is_some())
    })
    .await;
    eprintln!("the first pod is known {:?} after the start", begin.elapsed());
    for (name, value) in [
        ("k8s.pod.name", "shop-6d4cf56db6-aaaaa"),
        ("k8s.pod.uid", uid.as_str()),
        ("k8s.namespace.name", "default"),
        ("k8s.node.name", NODE),
        ("k8s.cluster.name", "test"),
        ("k8s.deployment.name", "shop"),
        ("k8s.replicaset.name", "shop-6d4cf56db6"),
        ("k8s.container.name", "web"),
        ("container.image.name", "registry:5000/shop"),
        ("container.runtime.name", "containerd"),
        ("host.name", NODE),
    ] {
        assert_eq!(text(&known, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(known.service.name.as_deref(), Some("shop"));
    until("the cluster's uid", &enricher, || text(&enricher.known(&here), "k8s.cluster.uid")).await;
    assert_eq!(state(&enricher), Some(State::Known));
    // A pod of another node is none of ours, and its container is told by its path alone.
    let there = Placement::parse(&format!("0::/docker/{}", id('b')), "");
    assert_eq!(text(&enricher.known(&there), "k8s.pod.name"), None);
    assert!(enricher.pod(&there).is_none());
    assert_eq!(&*enricher.pod(&here).expect("known").labels["app"], "shop");

    // A thousand processes and their events ask nobody.
    let asked = (
        cluster.requests("pods").await.expect("counted"),
        cluster.requests("replicasets").await.expect("counted"),
    );
    let begin = Instant::now();
    for _ in 0..100_000 {
        assert!(enricher.changed(&here, u64::MAX).is_none());
    }
    eprintln!("looking whether anything changed takes {:?}", begin.elapsed() / 100_000);
    for _ in 0..1_000 {
        let _ = enricher.known(&here);
    }
    let now = (
        cluster.requests("pods").await.expect("counted"),
        cluster.requests("replicasets").await.expect("counted"),
    );
    assert_eq!(asked, now);

    // A label that changes is put on from then on; so is a pod that comes.
    let seen = enricher.known(&here).version;
    let label = json!({"metadata": {"annotations": {"resource.opentelemetry.io/service.name": "till"}}});
    cluster
        .send(Method::PATCH, "/api/v1/namespaces/default/pods/shop-6d4cf56db6-aaaaa", &label)
        .await
        .expect("taken");
    let later = until("the annotation", &enricher, || enricher.changed(&here, seen)).await;
    assert_eq!(later.service.name.as_deref(), Some("till"));
    let late = make_pod(&cluster, "shop-6d4cf56db6-ccccc", NODE, &id('c'), set).await;
    let by_container = Placement::parse(&format!("0::/../cri-containerd-{}.scope", id('c')), "");
    let known = until("the late pod", &enricher, || {
        Some(enricher.known(&by_container)).filter(|k| text(k, "k8s.container.name").is_some())
    })
    .await;
    assert_eq!(text(&known, "k8s.pod.uid"), Some(late));

    // The server goes away and comes back: what was known stays, what came meanwhile is found.
    cluster.stop_server();
    let begin = Instant::now();
    until("trouble", &enricher, || state(&enricher).filter(|s| matches!(s, State::Failing(_)))).await;
    eprintln!("the loss of the server is told after {:?}", begin.elapsed());
    assert_eq!(text(&enricher.known(&here), "k8s.pod.name").as_deref(), Some("shop-6d4cf56db6-aaaaa"));
    cluster.start_server().await.expect("it starts again");
    let own = make_replica_set(&cluster, "own-6d4cf56db6", owner("Rollout", "own")).await;
    make_pod(&cluster, "own-6d4cf56db6-ddddd", NODE, &id('d'), own).await;
    let here_too = Placement::parse(&format!("0::/docker/{}", id('d')), "");
    let begin = Instant::now();
    // The ReplicaSet itself says that no Deployment made it.
    until("the pod's real maker", &enricher, || {
        let pod = enricher.pod(&here_too)?;
        (&*pod.workload.as_ref()?.kind == "Rollout").then_some(())
    })
    .await;
    eprintln!("a pod that came after the restart is known {:?} after it was made", begin.elapsed());
    assert_eq!(text(&enricher.known(&here_too), "k8s.deployment.name"), None);
    assert_eq!(state(&enricher), Some(State::Known));

    // A pod that is deleted is still that of its last processes.
    let path = "/api/v1/namespaces/default/pods/own-6d4cf56db6-ddddd?gracePeriodSeconds=0";
    cluster.send(Method::DELETE, path, &Json::Null).await.expect("deleted");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(enricher.pod(&here_too).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_allowed_what_it_needs_and_nothing_more() {
    if !privileged("cluster_kubernetes") {
        return;
    }
    let cluster = Cluster::start().await.expect("a cluster");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gotrace"}});
    cluster.create("/api/v1/namespaces", &namespace).await.expect("made");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bare"}});
    cluster.create("/api/v1/namespaces/gotrace/serviceaccounts", &account).await.expect("made");
    let refused = agent(cluster.kubeconfig_of("gotrace", "bare").await.expect("a token"));
    let why = until("the refusal", &refused, || match state(&refused) {
        Some(State::Failing(why)) => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("forbids watching pods") && why.contains("ClusterRole"), "{why}");
    drop(refused);

    let path = cluster.directory().join("nobody.kubeconfig");
    let text = std::fs::read_to_string(cluster.kubeconfig_of("gotrace", "bare").await.expect("a token"))
        .expect("read");
    let mut file: Json = serde_json::from_str(&text).expect("JSON");
    file["users"][0]["user"]["token"] = json!("made up");
    std::fs::write(&path, file.to_string()).expect("written");
    let stranger = agent(path);
    let why = until("the refusal", &stranger, || match state(&stranger) {
        Some(State::Failing(why)) => Some(why),
        _ => None,
    })
    .await;
    assert!(why.contains("does not know this service account's token"), "{why}");
    drop(stranger);

    for object in manifests::read(Path::new("kubernetes/gotrace.yaml")).expect("the manifests") {
        if object["kind"] == "ClusterRole" {
            for rule in object["rules"].as_array().expect("rules") {
                for verb in rule["verbs"].as_array().expect("verbs") {
                    assert!(["get", "list", "watch"].iter().any(|v| verb == *v), "{rule}");
                }
                for resource in rule["resources"].as_array().expect("resources") {
                    assert!(["pods", "namespaces", "replicasets"].iter().any(|r| resource == *r), "{rule}");
                }
            }
        }
    }
}

/// Everything that is applied is taken by a real API server, which checks each field, and a mistake is not.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_the_manifests() {
    if !privileged("cluster_kubernetes") {
        return;
    }
    let cluster = Cluster::start().await.expect("a cluster");
    let strict = "dryRun=All&fieldValidation=Strict";
    let mut taken = 0;
    for file in ["kubernetes/gotrace.yaml", "eci/snapshot.yaml", "eci/events.yaml"] {
        for object in manifests::read(Path::new(file)).expect("the manifests") {
            let path = manifests::collection(&object);
            let dry = cluster.create(&format!("{path}?{strict}"), &object).await;
            dry.unwrap_or_else(|e| panic!("{file}: {}: {e:#}", object["kind"]));
            if object["kind"] == "Namespace" {
                cluster.create(&path, &object).await.expect("the namespace is made");
            }
            taken += 1;
        }
    }
    assert_eq!(taken, 8);
    let mut daemon_set = manifests::read(Path::new("kubernetes/gotrace.yaml"))
        .expect("the manifests")
        .into_iter()
        .find(|o| o["kind"] == "DaemonSet")
        .expect("a DaemonSet");
    let path = format!("{}?{strict}", manifests::collection(&daemon_set));
    daemon_set["spec"]["template"]["spec"]["hostPidd"] = json!(true);
    let refused = cluster.create(&path, &daemon_set).await.expect_err("a field that does not exist");
    assert!(format!("{refused:#}").contains("hostPidd"), "{refused:#}");
}

/// The daemon takes a container by its pod's namespace as soon as the API server tells of it, and puts pod
/// and workload on spans and metrics.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_follows_pods_and_names_them() {
    if !privileged("cluster_kubernetes") {
        return;
    }
    let mut cluster = Cluster::start().await.expect("a cluster");
    give_leave(&cluster).await;
    let set = make_replica_set(&cluster, "shop-6d4cf56db6", owner("Deployment", "shop")).await;
    let (ours, theirs) = (id('e'), id('f'));
    let uid = make_pod(&cluster, "shop-6d4cf56db6-eeeee", NODE, &ours, set).await;
    let kubeconfig = cluster.kubeconfig_of("gotrace", "gotrace").await.expect("a token");
    cluster.stop_server();

    let directory = tempfile::tempdir().expect("a directory");
    let program = unpack_demo(directory.path()).expect("the demo is there");
    let start = |cgroup: &str| {
        let shape =
            Shape { cgroup, hierarchy: Hierarchy::Host, hidden: true, bound: &[], pid_namespace: None };
        Container::start(&program, &["-for", "120s"], &shape).expect("it starts")
    };
    let pod = start(&format!("/kubepods/burstable/pod{uid}/{ours}"));
    let other = start(&format!("/docker/{theirs}"));
    let export = directory.path().join("spans.jsonl");
    let config = format!(
        "trace: {{level: waits, interval: 500ms}}\n\
         rules:\n  include:\n  - executable: [program]\n    namespace: [default]\n    labels: {{app: shop}}\n\
         metadata: {{kubernetes: on, node_name: {NODE}, kubeconfig: {}, cluster_name: test, ecs: off, eci: off, cloud: off}}\n\
         otlp: {{export: {}}}\n",
        kubeconfig.display(),
        export.display(),
    );
    let daemon = Daemon::start(&config, &[]).expect("it starts");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!daemon.metrics().expect("a page").has(pod.pid()), "its namespace is not known yet");

    cluster.start_server().await.expect("it starts again");
    let took = daemon
        .until("the pod's program is traced", PATIENCE, |d| Ok(d.metrics()?.has(pod.pid())))
        .unwrap_or_else(|e| panic!("{e:#}"));
    eprintln!("traced {took:?} after the API server was ready");
    let labels =
        ["k8s_pod_name=\"shop-6d4cf56db6-eeeee\"", "k8s_deployment_name=\"shop\"", "container_name=\"web\""];
    daemon
        .until("its pod is on the page", PATIENCE, |d| {
            Ok(!d.metrics()?.values("target_info", &labels).is_empty())
        })
        .unwrap_or_else(|e| panic!("{e:#}"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!daemon.metrics().expect("a page").has(other.pid()), "it is in no namespace");
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
    let exported =
        Export::parse(&std::fs::read_to_string(&export).expect("exported")).expect("OTLP JSON lines");
    let span = exported.spans.last().expect("the demo's goroutines end all the time");
    for (name, value) in [
        ("k8s.pod.name", "shop-6d4cf56db6-eeeee"),
        ("k8s.namespace.name", "default"),
        ("k8s.pod.label.app", "shop"),
        ("k8s.cluster.name", "test"),
        ("service.name", "shop"),
        ("service.namespace", "default"),
        ("container.image.name", "registry:5000/shop"),
        ("container.id", ours.as_str()),
        ("host.name", NODE),
    ] {
        assert_eq!(span.resource.get(name).map(String::as_str), Some(value), "{name}: {:?}", span.resource);
    }
}
