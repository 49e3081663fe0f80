//! `deploy/collector/gotrace.yaml`: the OpenTelemetry Collector takes it, and with it passes on what gotrace
//! sends, span for span. Needs otelcol, which the stage that runs this builds.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gotrace_tests::{
    fixture::PATIENCE,
    gobuild::cache_dir,
    manifests, ports,
    receiver::{Receiver, Wire},
    spans_rate::export,
};

struct Collector(Child);

impl Drop for Collector {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn otelcol(backend: &str) -> Command {
    let program = cache_dir().join("cluster/otelcol");
    assert!(program.exists(), "{} is not there: the stage `cluster` builds it", program.display());
    let mut command = Command::new(program);
    command.env("MY_POD_IP", "127.0.0.1").env("OTLP_BACKEND", backend);
    command
}

#[test]
fn the_collector_takes_its_configuration() {
    let output = otelcol("127.0.0.1:4319")
        .arg("validate")
        .arg("--config")
        .arg(manifests::directory().join("collector/gotrace.yaml"))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_passes_on_every_span() {
    let backend = Receiver::start(Wire::Grpc).await;
    let [port] = ports::free().expect("a port");
    let directory = tempfile::tempdir().expect("a directory");
    let changes = directory.path().join("changes.yaml");
    // Another port, as others may have this one; no TLS to a receiver in this process.
    std::fs::write(
        &changes,
        format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
             exporters: {{otlp: {{tls: {{insecure: true}}}}}}\n\
             service: {{telemetry: {{metrics: {{level: none}}}}}}\n"
        ),
    )
    .expect("written");
    let _collector = Collector(
        otelcol(&backend.endpoint())
            .arg("--config")
            .arg(manifests::directory().join("collector/gotrace.yaml"))
            .arg("--config")
            .arg(&changes)
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it runs"),
    );
    let stats = export(&format!("http://127.0.0.1:{port}"), Wire::Grpc, 30_000).await;
    assert_eq!((stats.spans_sent, stats.spans_dropped_total()), (30_000, 0), "{stats:?}");
    let begin = Instant::now();
    while backend.span_count() < 30_000 && begin.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut ids: Vec<Vec<u8>> = backend.spans().into_iter().map(|span| span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 30_000);
}
