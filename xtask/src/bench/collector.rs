//! What an OpenTelemetry Collector with `deploy/collector/gotrace.yaml` takes for gotrace's spans and metrics: the
//! figures of the capacity plan (`gotrace-daemon/docs/capacity.md`).

use std::{fs, net::TcpListener, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Binaries, Extent, agent::cpu_seconds, median, process::Speaking, report::Report};
use crate::{collector, util::root};

/// Measures a collector between gotrace's exporter and a receiver.
pub fn measure(binaries: &Binaries, extent: Extent, target: &Path, report: &mut Report) -> Result<()> {
    let otelcol = collector::setup()?;
    let mut sender = Speaking::start(&mut Command::new(&binaries.collector))?;
    let backend = sender.json()?["backend"].as_str().context("the sender's own address")?.to_owned();
    let wire = sender.json()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let changes = target.join("bench-collector.yaml");
    fs::write(
        &changes,
        format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
             exporters: {{otlp: {{endpoint: '{backend}', tls: {{insecure: true}}}}}}\n\
             service: {{telemetry: {{metrics: {{level: none}}}}}}\n"
        ),
    )?;
    let collector = Speaking::start(
        Command::new(otelcol)
            .arg("--config")
            .arg(root().join("deploy/collector/gotrace.yaml"))
            .arg("--config")
            .arg(&changes)
            .env("MY_POD_IP", "127.0.0.1")
            .env("OTLP_BACKEND", &backend),
    )?;
    for (what, count, label) in [("spans", extent.spans, "spans"), ("reports", extent.spans / 5000, "points")]
    {
        let mut cpu = Vec::new();
        for _ in 0..3 {
            let before = cpu_seconds(collector.pid())?;
            // The first requests come before it listens, and are sent again.
            sender.tell(&format!("http://127.0.0.1:{port} {what} {count}"))?;
            let measured = sender.json()?;
            let arrived = of(&measured, "arrived")?;
            // gotrace's own few are passed on too.
            let all = arrived > 0.0 && arrived >= of(&measured, "sent")?;
            ensure!(all, "not all were passed on: {measured}");
            cpu.push((cpu_seconds(collector.pid())? - before) * 1e6 / arrived);
        }
        let name = format!("collector: processor time for a million {label}");
        report.add(name, "s", median(cpu), None, None);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", collector.pid()))?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
    report.add("collector: most memory", "MiB", kib / 1024.0, None, None);
    for (name, field, unit) in [
        ("a span on the wire", "bytes_per_span", "bytes"),
        ("a span on the wire, gzip", "gzip_bytes_per_span", "bytes"),
        ("a report of a process with 12 sites and 6 reasons", "points_per_report", "points"),
        ("a point on the wire", "bytes_per_point", "bytes"),
        ("a point on the wire, gzip", "gzip_bytes_per_point", "bytes"),
    ] {
        report.add(name, unit, of(&wire, field)?, None, None);
    }
    Ok(())
}

fn of(measured: &Value, name: &str) -> Result<f64> {
    measured[name].as_f64().with_context(|| format!("no {name} in {measured}"))
}
