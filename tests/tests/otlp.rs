//! The exporter against a collector in the test's own process: the ways over the wire, repetition,
//! refusal, partial success, a collector that is away, TLS, headers and compression.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use gotrace_export::otlp::{
    ExportConfig, ExportStats, Exporter, MAX_QUEUED_SPANS, OtlpConfig, OtlpFlags, StartError,
};
use gotrace_model::{Resource, Span, Value};
use gotrace_tests::{
    fixture::PATIENCE,
    receiver::{Receiver, Reply, Tls, Wire},
    spans_rate::sample,
};
use tokio::runtime::Handle;

const BOTH: [Wire; 2] = [Wire::Grpc, Wire::Http];
/// Longer than anything takes but what hangs.
const DEADLINE: Duration = PATIENCE;

fn resource(name: &str) -> Arc<Resource> {
    Arc::new(Resource::new(BTreeMap::from([("service.name".into(), Value::Text(name.into()))])))
}

fn flags(wire: Wire, endpoint: String) -> OtlpFlags {
    let protocol = if wire == Wire::Grpc { "grpc" } else { "http/protobuf" };
    OtlpFlags { endpoint: Some(endpoint), protocol: Some(protocol.into()), ..OtlpFlags::default() }
}

fn start_with(flags: &OtlpFlags, env: &[(&str, &str)]) -> Result<Exporter, StartError> {
    let env = |name: &str| env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
    let mut otlp = OtlpConfig::from_flags_and_env(flags, &env).expect("a configuration");
    if let Some(otlp) = &mut otlp {
        otlp.health = false;
    }
    Exporter::start(ExportConfig { otlp, ..ExportConfig::default() }, &Handle::current())
}

fn start(flags: &OtlpFlags) -> Exporter {
    start_with(flags, &[]).expect("started")
}

async fn send(exporter: Exporter, spans: Vec<Span>) -> ExportStats {
    exporter.spans(spans);
    exporter.shutdown(DEADLINE).await
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "not true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The trouble with the collector, once there is some.
async fn trouble(exporter: &Exporter) -> String {
    until("trouble is told", || exporter.stats().collector_trouble.is_some()).await;
    exporter.stats().collector_trouble.unwrap_or_default()
}

fn fail(code: tonic::Code, status: u16, after: Option<Duration>) -> Reply {
    Reply::Fail { code, status, after }
}

fn dropped(list: &[(&'static str, u64)]) -> BTreeMap<&'static str, u64> {
    list.iter().copied().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_span_of_every_process_arrives_once() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        let exporter = start(&flags(wire, receiver.endpoint()));
        let (a, b) = (resource("a"), resource("b"));
        for _ in 0..5 {
            exporter.spans(sample(&a, 1000));
            exporter.spans(sample(&b, 500));
            let mut mixed = sample(&a, 10);
            mixed.extend(sample(&b, 10));
            mixed.extend(sample(&a, 10));
            exporter.spans(mixed);
        }
        let stats = exporter.shutdown(DEADLINE).await;
        assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (7650, 0), "{wire:?}");
        let mut by_process = BTreeMap::<String, usize>::new();
        for request in receiver.traces() {
            for process in request.resource_spans {
                let name = format!("{:?}", process.resource.expect("a resource").attributes[0].value);
                let spans = process.scope_spans.iter().map(|s| s.spans.len()).sum::<usize>();
                assert_eq!(process.scope_spans[0].scope.as_ref().expect("a scope").name, "gotrace");
                *by_process.entry(name).or_default() += spans;
            }
        }
        assert_eq!(by_process.into_values().collect::<Vec<_>>(), [5100, 2550], "{wire:?}");
        assert_eq!(stats.requests, receiver.attempts().len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_worth_repeating_is_repeated_and_nothing_is_lost() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        receiver.reply([fail(tonic::Code::Unavailable, 503, None), fail(tonic::Code::Aborted, 502, None)]);
        let stats = send(start(&flags(wire, receiver.endpoint())), sample(&resource("a"), 10)).await;
        assert_eq!((stats.spans_sent, stats.retries), (10, 2), "{wire:?}");
        assert_eq!((receiver.span_count(), receiver.attempts().len()), (10, 3));
        assert_eq!(stats.collector_trouble, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collectors_wish_to_wait_is_followed() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        let after = Some(Duration::from_secs(2));
        receiver.reply([fail(tonic::Code::ResourceExhausted, 429, after)]);
        let begin = Instant::now();
        let exporter = start(&flags(wire, receiver.endpoint()));
        exporter.spans(sample(&resource("a"), 10));
        until("they are sent", || exporter.stats().spans_sent == 10).await;
        let stats = exporter.shutdown(DEADLINE).await;
        assert_eq!((stats.spans_sent, stats.retries), (10, 1), "{wire:?}");
        // Without the wish it would have come back within half a second.
        assert!(begin.elapsed() >= Duration::from_secs(2), "{wire:?}: {:?}", begin.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_cuts_a_pause_short_and_tries_a_last_time() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        receiver.reply([fail(tonic::Code::ResourceExhausted, 429, Some(Duration::from_secs(120)))]);
        let exporter = Arc::new(start(&flags(wire, receiver.endpoint())));
        exporter.spans(sample(&resource("a"), 10));
        trouble(&exporter).await;
        // The collector has been well since, and somebody else still holds the exporter.
        let held = Arc::clone(&exporter);
        let stats = exporter.shutdown(DEADLINE).await;
        assert_eq!((stats.spans_sent, stats.retries, receiver.span_count()), (10, 1, 10), "{wire:?}");
        held.spans(sample(&resource("a"), 3));
        assert_eq!(held.stats().spans_dropped, dropped(&[("unreachable", 3)]), "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_repetition_mends_is_counted_and_not_repeated() {
    for wire in BOTH {
        for (code, status) in [
            (tonic::Code::InvalidArgument, 400),
            (tonic::Code::Unauthenticated, 401),
            (tonic::Code::ResourceExhausted, 413),
            (tonic::Code::Unimplemented, 404),
        ] {
            let receiver = Receiver::start(wire).await;
            receiver.reply([fail(code, status, None)]);
            let stats = send(start(&flags(wire, receiver.endpoint())), sample(&resource("a"), 10)).await;
            assert_eq!(stats.spans_dropped, dropped(&[("refused", 10)]), "{wire:?} {code:?}");
            assert_eq!((receiver.attempts().len(), stats.retries), (1, 0));
            let trouble = stats.collector_trouble.expect("trouble");
            assert!(trouble.contains(&receiver.endpoint()), "{trouble}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_collector_rejects_of_a_request_is_counted() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        receiver.reply([Reply::Partial(3, "too old")]);
        let stats = send(start(&flags(wire, receiver.endpoint())), sample(&resource("a"), 10)).await;
        assert_eq!(stats.spans_sent, 7, "{wire:?}");
        assert_eq!(stats.spans_dropped, dropped(&[("rejected", 3)]));
        assert_eq!(receiver.attempts().len(), 1);
        assert!(stats.collector_trouble.expect("trouble").contains("too old"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_up_late_gets_everything() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        let (address, endpoint) = (receiver.address().to_string(), receiver.endpoint());
        receiver.stop().await;
        let exporter = start(&flags(wire, endpoint));
        exporter.spans(sample(&resource("a"), 5000));
        assert!(trouble(&exporter).await.contains("tracing continues"));
        let stats = exporter.stats();
        assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (0, 0), "{wire:?}");
        let receiver = Receiver::start_with(wire, &address, None, false).await;
        let stats = exporter.shutdown(DEADLINE).await;
        assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (5000, 0), "{wire:?}");
        assert_eq!(receiver.span_count(), 5000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_stays_down_costs_bounded_memory_and_no_time() {
    let receiver = Receiver::start(Wire::Grpc).await;
    let endpoint = receiver.endpoint();
    receiver.stop().await;
    let exporter = start(&flags(Wire::Grpc, endpoint));
    let resource = resource("a");
    let batch = sample(&resource, 10_000);
    // Whoever waited for the collector here, or at the end, would wait for ever.
    for _ in 0..30 {
        exporter.spans(batch.clone());
    }
    let stats = exporter.shutdown(Duration::from_secs(1)).await;
    assert_eq!(stats.spans_dropped_total(), 300_000);
    assert!(stats.spans_dropped["queue_full"] > 0 && stats.spans_dropped["unreachable"] > 0);
    let kept = 300_000 - stats.spans_dropped["queue_full"];
    // 32 MiB of encoded spans, and what waits to be encoded.
    assert!(kept <= (32 << 20) / 300 + MAX_QUEUED_SPANS as u64, "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_answer_is_asked_again_after_the_timeout() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        receiver.reply([Reply::TakeAfter(10 * PATIENCE)]);
        let flags =
            OtlpFlags { timeout: Some(Duration::from_millis(300)), ..flags(wire, receiver.endpoint()) };
        let stats = send(start(&flags), sample(&resource("a"), 10)).await;
        // On a busy machine the second may come too late as well.
        assert!(stats.spans_sent == 10 && stats.retries >= 1, "{wire:?}: {stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_compression_go_over_the_wire() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        let flags = OtlpFlags {
            headers: vec!["X-Tenant=seven".into()],
            compression: Some("gzip".into()),
            ..flags(wire, receiver.endpoint())
        };
        let env = [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-tenant=one")];
        let stats = send(start_with(&flags, &env).expect("started"), sample(&resource("a"), 100)).await;
        assert_eq!((stats.spans_sent, receiver.span_count()), (100, 100), "{wire:?}");
        let headers: BTreeMap<_, _> = receiver.attempts().remove(0).into_iter().collect();
        assert_eq!(headers["authorization"], "Bearer abc");
        assert_eq!(headers["x-tenant"], "seven");
        let (name, kind) = match wire {
            Wire::Grpc => ("grpc-encoding", "application/grpc"),
            Wire::Http => ("content-encoding", "application/x-protobuf"),
        };
        assert_eq!(headers[name], "gzip", "{wire:?}");
        assert_eq!(headers["content-type"], kind);
        assert!(headers["user-agent"].starts_with("gotrace/"), "{headers:?}");
    }
}

struct Certificates {
    directory: tempfile::TempDir,
    server: Tls,
}

impl Certificates {
    /// A certificate authority that signed a server's and a client's certificate.
    fn make(ask_clients: bool) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let directory = tempfile::tempdir().expect("a directory");
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("signed").pem();
        let issuer = Issuer::new(ca, ca_key);
        let signed = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
            (params.signed_by(&key, &issuer).expect("signed").pem(), key.serialize_pem())
        };
        let (certificate, key) = signed("localhost");
        let (client_certificate, client_key) = signed("client");
        let write =
            |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        write("ca.pem", &ca_pem);
        write("client.pem", &client_certificate);
        write("client.key", &client_key);
        let client_ca = ask_clients.then_some(ca_pem);
        Self { directory, server: Tls { certificate, key, client_ca } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_private_authority_and_client_certificates() {
    for wire in BOTH {
        let certificates = Certificates::make(true);
        let receiver =
            Receiver::start_with(wire, "127.0.0.1:0", Some(certificates.server.clone()), false).await;
        let endpoint = format!("https://localhost:{}", receiver.address().port());
        let whole = OtlpFlags {
            ca: Some(certificates.path("ca.pem")),
            client_certificate: Some(certificates.path("client.pem")),
            client_key: Some(certificates.path("client.key")),
            ..flags(wire, endpoint)
        };
        let stats = send(start(&whole), sample(&resource("a"), 10)).await;
        assert_eq!((stats.spans_sent, receiver.span_count()), (10, 10), "{wire:?}");

        let nameless =
            OtlpFlags { client_certificate: None, client_key: None, timeout: None, ..whole.clone() };
        let strange = OtlpFlags { ca: None, ..whole.clone() };
        for flags in [nameless, strange] {
            let exporter = start(&flags);
            exporter.spans(sample(&resource("a"), 10));
            let stats = exporter.shutdown(Duration::from_secs(2)).await;
            assert_eq!(stats.spans_dropped, dropped(&[("unreachable", 10)]), "{wire:?}");
        }
        assert_eq!(receiver.span_count(), 10);

        let missing = OtlpFlags { ca: Some("/nonexistent/ca.pem".into()), ..whole };
        let error = start_with(&missing, &[]).expect_err("no file").to_string();
        assert!(error.contains("/nonexistent/ca.pem") && error.contains("No such file"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_authority_is_named_in_the_warning() {
    for wire in BOTH {
        let certificates = Certificates::make(false);
        let receiver =
            Receiver::start_with(wire, "127.0.0.1:0", Some(certificates.server.clone()), false).await;
        let endpoint = format!("https://localhost:{}", receiver.address().port());
        let exporter = start(&flags(wire, endpoint));
        exporter.spans(sample(&resource("a"), 10));
        let trouble = trouble(&exporter).await;
        assert!(trouble.to_lowercase().contains("certificate"), "{wire:?}: {trouble}");
        exporter.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gotraces_own_health_goes_through_the_sdk() {
    for wire in BOTH {
        let receiver = Receiver::start(wire).await;
        let otlp = OtlpConfig::from_flags_and_env(&flags(wire, receiver.endpoint()), &|_| None);
        let config = ExportConfig { otlp: otlp.expect("valid"), ..ExportConfig::default() };
        let exporter = Exporter::start(config, &Handle::current()).expect("started");
        let stats = send(exporter, sample(&resource("a"), 10)).await;
        assert_eq!(stats.spans_sent, 10);
        let metrics = receiver.metrics();
        let health = metrics
            .iter()
            .flat_map(|r| &r.resource_metrics)
            .find(|r| format!("{:?}", r.resource).contains("\"gotrace\""))
            .unwrap_or_else(|| panic!("{wire:?}: no health in {metrics:?}"));
        let names: Vec<_> = health.scope_metrics[0].metrics.iter().map(|m| m.name.as_str()).collect();
        assert!(names.contains(&"gotrace.exporter.spans.sent"), "{names:?}");
    }
}
