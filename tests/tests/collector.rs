//! What gotrace sends, read by a collector that is not ours.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gotrace_export::otlp::{ExportConfig, ExportStats, Exporter, OtlpConfig, OtlpFlags};
use gotrace_model::{Resource, Value};
use gotrace_tests::{
    rotel::Rotel,
    spans_rate::{interval, sample},
};

async fn send(endpoint: &str, protocol: &str, gzip: bool) -> ExportStats {
    let flags = OtlpFlags {
        endpoint: Some(endpoint.into()),
        protocol: Some(protocol.into()),
        compression: gzip.then(|| "gzip".into()),
        ..OtlpFlags::default()
    };
    let otlp = OtlpConfig::from_flags_and_env(&flags, &|_| None).expect("a configuration");
    let config = ExportConfig { otlp, ..ExportConfig::default() };
    let exporter = Exporter::start(config, &tokio::runtime::Handle::current()).expect("started");
    let resource =
        Arc::new(Resource::new(BTreeMap::from([("service.name".into(), Value::Text("judged".into()))])));
    exporter.spans(sample(&resource, 4));
    exporter.interval(&Arc::new(interval(&resource)));
    exporter.shutdown(Duration::from_secs(10)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_metrics_are_read_by_another_collector() {
    for signal in ["traces", "metrics"] {
        let rotel = Rotel::start(signal).expect("rotel");
        for (endpoint, protocol, gzip) in [
            (&rotel.grpc, "grpc", false),
            (&rotel.http, "http/protobuf", false),
            (&rotel.grpc, "grpc", true),
            (&rotel.http, "http/protobuf", true),
        ] {
            let stats = send(endpoint, protocol, gzip).await;
            assert_eq!(stats.spans_sent, 4, "{protocol} {stats:?}\n{}", rotel.output());
            assert!(stats.points_sent > 3 && stats.points_dropped.is_empty(), "{stats:?}");
        }
        let wanted: &[&str] = match signal {
            "traces" => &[
                "judged",
                "example.com/shop/internal/worker.(*Pool).run1",
                "chan receive",
                "gotrace.wait.scheduling_delay",
                "gotrace.link.kind",
            ],
            _ => &["judged", "go.goroutine.count", "gotrace.goroutine.wait.duration", "gotrace.level"],
        };
        let output = rotel.wait_for(|text| wanted.iter().all(|w| text.contains(w)));
        for part in wanted {
            assert!(output.contains(part), "{part} is not in what rotel read:\n{output}");
        }
    }
}
