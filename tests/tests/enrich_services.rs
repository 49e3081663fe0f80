//! Metadata services as they are documented, and as they should not be: slow, wrong and absent. Stand-ins
//! on the loopback address answer with the examples of the services' own documentation.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::State as Extract,
    http::{Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use gotrace_metadata::{
    Addresses, CloudConfig, EnrichConfig, Enricher, Known, KubernetesConfig, Placement, Provider, State,
    Switch,
};
use gotrace_model::Value;
use gotrace_tests::fixture::PATIENCE;

/// Requests as the stand-in is to answer them: `METHOD path`, needed header, answer.
type Rules = Vec<(&'static str, Option<(&'static str, &'static str)>, String)>;

/// How the stand-in behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Obedient,
    /// Takes longer than gotrace waits.
    Slow,
    /// Says what is not documented.
    Wrong,
    /// Sends more than gotrace reads.
    Endless,
    /// Sends elsewhere.
    Redirect,
}

struct Inner {
    rules: Rules,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<String>>,
    refused: AtomicUsize,
}

/// A service on the loopback address.
struct StandIn {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl StandIn {
    async fn start(rules: Rules) -> Self {
        let inner = Arc::new(Inner {
            rules,
            mood: Mutex::new(Mood::Obedient),
            asked: Mutex::default(),
            refused: AtomicUsize::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, address }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn set(&self, mood: Mood) {
        *self.inner.mood.lock().expect("whole") = mood;
    }

    fn asked(&self) -> Vec<String> {
        self.inner.asked.lock().expect("whole").clone()
    }

    /// Requests without what the service wants to see.
    fn refused(&self) -> usize {
        self.inner.refused.load(Ordering::Relaxed)
    }
}

async fn answer(Extract(inner): Extract<Arc<Inner>>, request: Request<Body>) -> Response {
    let asked = format!("{} {}", request.method(), request.uri());
    inner.asked.lock().expect("whole").push(asked.clone());
    let mood = *inner.mood.lock().expect("whole");
    match mood {
        Mood::Obedient => {}
        Mood::Slow => tokio::time::sleep(10 * PATIENCE).await,
        Mood::Wrong => return "<html>a captive portal</html>".into_response(),
        Mood::Endless => return vec![b'x'; 2 << 20].into_response(),
        Mood::Redirect => {
            return (StatusCode::FOUND, [(header::LOCATION, "http://127.0.0.1:1/")]).into_response();
        }
    }
    let Some((_, needed, text)) = inner.rules.iter().find(|(rule, ..)| *rule == asked) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let Some((name, value)) = needed
        && request.headers().get(*name).is_none_or(|v| v != value)
    {
        inner.refused.fetch_add(1, Ordering::Relaxed);
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if request.method() == Method::PUT
        && request.headers().keys().all(|n| !n.as_str().contains("ttl-seconds"))
    {
        return StatusCode::BAD_REQUEST.into_response();
    }
    text.clone().into_response()
}

/// Nobody is asked but who is named.
fn nobody() -> EnrichConfig {
    EnrichConfig {
        kubernetes: KubernetesConfig { watch: Switch::Off, ..KubernetesConfig::default() },
        ecs: Switch::Off,
        eci: Switch::Off,
        cloud: CloudConfig::Off,
        pod_labels: Vec::new(),
        addresses: Addresses::default(),
    }
}

async fn until(enricher: &Enricher, placement: &Placement, name: &str) -> Known {
    let begin = Instant::now();
    loop {
        let known = enricher.known(placement);
        if known.attributes.contains_key(name) {
            return known;
        }
        assert!(begin.elapsed() < PATIENCE, "{name} never came: {:?}", enricher.sources());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_failing(enricher: &Enricher, name: &str) -> String {
    let begin = Instant::now();
    loop {
        let found = enricher.sources().into_iter().find(|s| s.name == name);
        if let Some(State::Failing(why)) = found.as_ref().map(|s| s.state.clone()) {
            return why;
        }
        assert!(begin.elapsed() < PATIENCE, "{found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn texts(known: &Known) -> HashMap<String, String> {
    known
        .attributes
        .iter()
        .filter_map(|(name, value)| match value {
            Value::Text(text) => Some((name.to_string(), text.to_string())),
            _ => None,
        })
        .collect()
}

fn wanted(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn aws() -> Rules {
    // "Instance identity documents", Amazon EC2 User Guide.
    let document = r#"{"devpayProductCodes": null, "marketplaceProductCodes": ["1abc2defghijklm3nopqrs4tu"],
        "availabilityZone": "us-west-2b", "privateIp": "10.158.112.84", "version": "2017-09-30",
        "instanceId": "i-1234567890abcdef0", "billingProducts": null, "instanceType": "t2.micro",
        "accountId": "123456789012", "imageId": "ami-5fb8c835", "pendingTime": "2016-11-19T16:32:11Z",
        "architecture": "x86_64", "kernelId": null, "ramdiskId": null, "region": "us-west-2"}"#;
    vec![
        ("PUT /latest/api/token", None, "AQAEAHOLD==".into()),
        (
            "GET /latest/dynamic/instance-identity/document",
            Some(("x-aws-ec2-metadata-token", "AQAEAHOLD==")),
            document.into(),
        ),
    ]
}

fn gcp() -> Rules {
    let needed = Some(("metadata-flavor", "Google"));
    vec![
        ("GET /computeMetadata/v1/instance/id", needed, "1234567890123456789".into()),
        ("GET /computeMetadata/v1/instance/zone", needed, "projects/123456789/zones/us-central1-a".into()),
        ("GET /computeMetadata/v1/project/project-id", needed, "my-project".into()),
        ("GET /computeMetadata/v1/instance/attributes/cluster-name", needed, "prod".into()),
    ]
}

fn azure() -> Rules {
    // "Azure Instance Metadata Service", sample response, shortened.
    let compute = r#"{"azEnvironment": "AZUREPUBLICCLOUD", "isHostCompatibilityLayerVm": "true", "location": "westus",
        "name": "examplevmname", "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d",
        "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6", "vmSize": "Standard_A3", "zone": ""}"#;
    vec![(
        "GET /metadata/instance/compute?api-version=2021-02-01&format=json",
        Some(("metadata", "true")),
        compute.into(),
    )]
}

fn alibaba() -> Rules {
    let needed = Some(("x-aliyun-ecs-metadata-token", "TOKEN"));
    vec![
        ("PUT /latest/api/token", None, "TOKEN".into()),
        ("GET /latest/meta-data/instance-id", needed, "i-bp13znx0m0me8cquu".into()),
        ("GET /latest/meta-data/region-id", needed, "cn-hangzhou".into()),
        ("GET /latest/meta-data/zone-id", needed, "cn-hangzhou-i".into()),
        ("GET /latest/meta-data/owner-account-id", needed, "1234567890123456".into()),
    ]
}

fn in_cloud(provider: Provider, url: &str) -> EnrichConfig {
    let addresses = Addresses { link_local: url.to_owned(), alibaba: url.to_owned(), ..Addresses::default() };
    EnrichConfig { cloud: CloudConfig::Provider(provider), addresses, ..nobody() }
}

#[tokio::test]
async fn every_cloud_says_where_the_machine_is() {
    let told =
        |provider: &str, platform: &str, region: &str, account: &str, id: &str, more: &[(&str, &str)]| {
            let mut all = wanted(&[
                ("cloud.provider", provider),
                ("cloud.platform", platform),
                ("cloud.region", region),
                ("cloud.account.id", account),
                ("host.id", id),
            ]);
            all.extend(wanted(more));
            all
        };
    for (provider, rules, wanted) in [
        (
            Provider::Aws,
            aws(),
            told(
                "aws",
                "aws_ec2",
                "us-west-2",
                "123456789012",
                "i-1234567890abcdef0",
                &[("cloud.availability_zone", "us-west-2b")],
            ),
        ),
        (
            Provider::Gcp,
            gcp(),
            told(
                "gcp",
                "gcp_kubernetes_engine",
                "us-central1",
                "my-project",
                "1234567890123456789",
                &[("cloud.availability_zone", "us-central1-a"), ("k8s.cluster.name", "prod")],
            ),
        ),
        (
            Provider::Azure,
            azure(),
            told(
                "azure",
                "azure.vm",
                "westus",
                "8d10da13-8125-4ba9-a717-bf7490507b3d",
                "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
                &[],
            ),
        ),
        (
            Provider::Alibaba,
            alibaba(),
            told(
                "alibaba_cloud",
                "alibaba_cloud_ecs",
                "cn-hangzhou",
                "1234567890123456",
                "i-bp13znx0m0me8cquu",
                &[("cloud.availability_zone", "cn-hangzhou-i")],
            ),
        ),
    ] {
        let service = StandIn::start(rules).await;
        let enricher =
            Enricher::start(&in_cloud(provider, &service.url()), &tokio::runtime::Handle::current());
        let known = until(&enricher, &Placement::default(), "cloud.provider").await;
        assert_eq!(texts(&known), wanted, "{provider:?}");
        assert_eq!(service.refused(), 0, "{provider:?} was asked without its header: {:?}", service.asked());
        // What is known is not asked for again.
        let asked = service.asked().len();
        for _ in 0..1_000 {
            let _ = enricher.known(&Placement::default());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(service.asked().len(), asked);
    }
}

#[tokio::test]
async fn a_cluster_that_google_does_not_name_is_none() {
    let rules = gcp().into_iter().filter(|(rule, ..)| !rule.contains("cluster-name")).collect();
    let service = StandIn::start(rules).await;
    let enricher =
        Enricher::start(&in_cloud(Provider::Gcp, &service.url()), &tokio::runtime::Handle::current());
    let known = texts(&until(&enricher, &Placement::default(), "cloud.provider").await);
    assert_eq!(known["cloud.platform"], "gcp_compute_engine");
    assert!(!known.contains_key("k8s.cluster.name"));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_misbehave_leave_nothing_and_are_asked_again() {
    for (mood, why) in [
        (Mood::Slow, "no answer within 2s"),
        (Mood::Wrong, "unexpected response"),
        (Mood::Endless, "more than 1048576 bytes"),
        (Mood::Redirect, "status 302"),
    ] {
        let service = StandIn::start(aws()).await;
        service.set(mood);
        let enricher =
            Enricher::start(&in_cloud(Provider::Aws, &service.url()), &tokio::runtime::Handle::current());
        let nothing = enricher.known(&Placement::default());
        let told = until_failing(&enricher, "cloud").await;
        assert!(told.contains(why), "{mood:?}: {told}");
        assert!(enricher.known(&Placement::default()).attributes.is_empty());
        assert!(enricher.changed(&Placement::default(), nothing.version).is_none());
        // What comes late is put on from then on.
        service.set(Mood::Obedient);
        until(&enricher, &Placement::default(), "cloud.provider").await;
        let later = enricher.changed(&Placement::default(), nothing.version).expect("something new");
        assert_eq!(texts(&later)["host.id"], "i-1234567890abcdef0");
        assert!(enricher.changed(&Placement::default(), later.version).is_none());
    }
}

#[tokio::test]
async fn services_that_are_absent_are_asked_again() {
    // A port that was free a moment ago.
    let address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("an address");
        listener.local_addr().expect("an address")
    };
    let url = format!("http://{address}");
    let enricher = Enricher::start(&in_cloud(Provider::Azure, &url), &tokio::runtime::Handle::current());
    let told = until_failing(&enricher, "cloud").await;
    assert!(told.contains("refused"), "{told}");
    let all = EnrichConfig {
        ecs: Switch::On,
        eci: Switch::On,
        addresses: Addresses { alibaba: url.clone(), ecs_agent: url, ..Addresses::default() },
        ..nobody()
    };
    let enricher = Enricher::start(&all, &tokio::runtime::Handle::current());
    for name in ["ecs", "eci"] {
        let told = until_failing(&enricher, name).await;
        assert!(told.contains("refused"), "{name}: {told}");
    }
}

#[tokio::test]
async fn nobody_is_asked_where_there_is_no_sign_of_anyone() {
    let service = StandIn::start(aws()).await;
    let url = service.url();
    let config = EnrichConfig {
        addresses: Addresses { alibaba: url.clone(), ecs_agent: url, ..Addresses::default() },
        cloud: CloudConfig::Off,
        ..EnrichConfig::default()
    };
    let enricher = Enricher::start(&config, &tokio::runtime::Handle::current());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(service.asked(), Vec::<String>::new());
    for source in enricher.sources() {
        assert!(matches!(source.state, State::Absent(_)), "{source:?}");
    }
}

/// "Amazon ECS task metadata v4 JSON response for tasks on Fargate", Amazon ECS Developer Guide, shortened.
const FARGATE: &str = r#"{
    "Cluster": "arn:aws:ecs:us-west-2:111122223333:cluster/MyEmptyCluster",
    "TaskARN": "arn:aws:ecs:us-west-2:111122223333:task/MyEmptyCluster/bfa2636268144d039771334145e490c5",
    "Family": "sample-fargate", "Revision": "5", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
    "Limits": {"CPU": 0.25, "Memory": 512}, "PullStartedAt": "2023-07-21T15:45:33.532811081Z",
    "AvailabilityZone": "us-west-2d", "LaunchType": "FARGATE", "ServiceName": "",
    "Containers": [
        {"DockerId": "bfa2636268144d039771334145e490c5-1117626119", "Name": "curl-image", "DockerName": "curl-image",
         "Image": "curlimages/curl:8.1", "ImageID": "sha256:daf3f46a2639", "Labels": {"com.amazonaws.ecs.cluster": "x"},
         "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING", "Limits": {"CPU": 128}, "Type": "NORMAL",
         "ContainerARN": "arn:aws:ecs:us-west-2:111122223333:container/MyEmptyCluster/bfa26362/da6cccf7"},
        {"Name": "not-yet", "DockerName": "not-yet", "Image": "x", "Type": "NORMAL"}]}"#;

#[tokio::test]
async fn a_sidecar_on_fargate_knows_its_task() {
    let service = StandIn::start(vec![("GET /v4/abc/task", None, FARGATE.into())]).await;
    let config = EnrichConfig {
        ecs: Switch::Auto,
        addresses: Addresses { ecs_task: Some(format!("{}/v4/abc", service.url())), ..Addresses::default() },
        ..nobody()
    };
    let enricher = Enricher::start(&config, &tokio::runtime::Handle::current());
    let task = [
        ("cloud.provider", "aws"),
        ("cloud.platform", "aws_ecs"),
        ("cloud.region", "us-west-2"),
        ("cloud.account.id", "111122223333"),
        ("cloud.availability_zone", "us-west-2d"),
        ("aws.ecs.cluster.arn", "arn:aws:ecs:us-west-2:111122223333:cluster/MyEmptyCluster"),
        (
            "aws.ecs.task.arn",
            "arn:aws:ecs:us-west-2:111122223333:task/MyEmptyCluster/bfa2636268144d039771334145e490c5",
        ),
        ("aws.ecs.task.id", "bfa2636268144d039771334145e490c5"),
        ("aws.ecs.task.family", "sample-fargate"),
        ("aws.ecs.task.revision", "5"),
        ("aws.ecs.launchtype", "fargate"),
    ];
    // A process whose container is not visible still belongs to the task: nothing else runs there.
    let known = until(&enricher, &Placement::default(), "aws.ecs.task.arn").await;
    assert_eq!(texts(&known), wanted(&task));
    let cgroup = "0::/ecs/bfa2636268144d039771334145e490c5/bfa2636268144d039771334145e490c5-1117626119\n";
    let placement = Placement::parse(cgroup, "");
    let mut all = wanted(&task);
    all.extend(wanted(&[
        ("container.id", "bfa2636268144d039771334145e490c5-1117626119"),
        ("container.name", "curl-image"),
        ("container.image.name", "curlimages/curl"),
        (
            "aws.ecs.container.arn",
            "arn:aws:ecs:us-west-2:111122223333:container/MyEmptyCluster/bfa26362/da6cccf7",
        ),
    ]));
    let known = enricher.known(&placement);
    assert_eq!(texts(&known), all);
    assert_eq!(known.attributes["container.image.tags"], Value::List(vec!["8.1".into()]));
}

#[tokio::test]
async fn the_node_agent_on_ec2_asks_the_container_agent_once() {
    let id = "9581a69a761a557fbfce1d0f6745e4af5b9dbfb86b6b2c5c4df156f1a5932ff1";
    let task = "cd189a933e5849daa93386466019ab50";
    // "Amazon ECS container introspection", Amazon ECS Developer Guide.
    let tasks = format!(
        r#"{{"Tasks": [{{"Arn": "arn:aws:ecs:us-east-1:123456789012:task/default/{task}", "DesiredStatus": "RUNNING",
            "KnownStatus": "RUNNING", "Family": "hello_world", "Version": "8", "Containers": [
            {{"DockerId": "{id}", "DockerName": "ecs-hello_world-8-mysql-fcae8ac8f9f1d89d8301", "Name": "mysql"}}]}}]}}"#
    );
    let metadata =
        r#"{"Cluster": "default", "ContainerInstanceArn": "x", "Version": "Amazon ECS Agent - v1.14.1"}"#;
    let service =
        StandIn::start(vec![("GET /v1/metadata", None, metadata.into()), ("GET /v1/tasks", None, tasks)])
            .await;
    let config = EnrichConfig {
        ecs: Switch::Auto,
        addresses: Addresses { ecs_agent: service.url(), ..Addresses::default() },
        ..nobody()
    };
    let enricher = Enricher::start(&config, &tokio::runtime::Handle::current());
    let _ = enricher.known(&Placement::default());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(service.asked(), Vec::<String>::new(), "asked although no process runs in a task");
    let placement = Placement::parse(&format!("5:cpu:/ecs/{task}/{id}\n"), "");
    let known = texts(&until(&enricher, &placement, "aws.ecs.task.arn").await);
    assert_eq!(known["container.name"], "mysql");
    assert_eq!(known["container.id"], id);
    assert_eq!(known["aws.ecs.cluster.arn"], "arn:aws:ecs:us-east-1:123456789012:cluster/default");
    assert_eq!(known["aws.ecs.task.revision"], "8");
    assert_eq!(known["aws.ecs.launchtype"], "ec2");
    // A process that runs in no task is not of that task.
    assert!(!texts(&enricher.known(&Placement::default())).contains_key("aws.ecs.task.arn"));
    // A flood of processes in a task that nobody knows brings no flood of requests.
    let unknown = Placement::parse(&format!("5:cpu:/ecs/{task}/{}\n", "0".repeat(64)), "");
    for _ in 0..1_000 {
        let _ = enricher.known(&unknown);
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(service.asked().len(), 2, "{:?}", service.asked());
}

#[tokio::test]
async fn an_elastic_container_instance_says_which_it_is() {
    let service = StandIn::start(vec![
        ("GET /latest/meta-data/instance-id", None, "eci-bp1d6b2c7sqpshk5****".into()),
        ("GET /latest/meta-data/hostname", None, "shop\n".into()),
        ("GET /latest/meta-data/region-id", None, "cn-hangzhou".into()),
        ("GET /latest/meta-data/zone-id", None, "cn-hangzhou-i".into()),
    ])
    .await;
    let config = EnrichConfig {
        eci: Switch::On,
        addresses: Addresses { alibaba: service.url(), ..Addresses::default() },
        ..nobody()
    };
    let enricher = Enricher::start(&config, &tokio::runtime::Handle::current());
    let known = until(&enricher, &Placement::default(), "cloud.provider").await;
    // An item that the instance does not have (404) is left out.
    assert_eq!(
        texts(&known),
        wanted(&[
            ("cloud.provider", "alibaba_cloud"),
            ("cloud.platform", "alibaba_cloud_eci"),
            ("cloud.region", "cn-hangzhou"),
            ("cloud.availability_zone", "cn-hangzhou-i"),
            ("host.id", "eci-bp1d6b2c7sqpshk5****"),
            ("host.name", "shop"),
        ])
    );
}
