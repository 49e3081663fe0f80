//! What an OpenTelemetry Collector with `deploy/collector/gotrace.yaml` takes for gotrace's spans: the figures
//! of the capacity plan.

use std::{fs, net::TcpListener, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{Binaries, Extent, agent::cpu_seconds, median, process::Speaking, report::Report};
use crate::{collector, util::root};

/// Measures a collector between gotrace's exporter and a receiver.
pub fn measure(binaries: &Binaries, extent: Extent, target: &Path, report: &mut Report) -> Result<()> {
    let otelcol = collector::setup()?;
    let mut sender = Speaking::start(&mut Command::new(&binaries.collector))?;
    let backend = sender.json()?["backend"].as_str().context("the sender's own address")?.to_owned();
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
    let (mut cpu, mut plain, mut packed) = (Vec::new(), 0.0, 0.0);
    for _ in 0..3 {
        let before = cpu_seconds(collector.pid())?;
        // The first requests come before it listens, and are sent again.
        sender.tell(&format!("http://127.0.0.1:{port} {}", extent.spans))?;
        let measured = sender.json()?;
        let of = |name: &str| measured[name].as_f64().with_context(|| format!("no {name} in {measured}"));
        let arrived = of("arrived")?;
        ensure!(arrived > 0.0 && (arrived - of("sent")?).abs() < 0.5, "not all were passed on: {measured}");
        cpu.push((cpu_seconds(collector.pid())? - before) * 1e6 / arrived);
        (plain, packed) = (of("bytes_per_span")?, of("gzip_bytes_per_span")?);
    }
    report.add("collector: processor time for a million spans", "s", median(cpu), None, None);
    let status = fs::read_to_string(format!("/proc/{}/status", collector.pid()))?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
    report.add("collector: most memory", "MiB", kib / 1024.0, None, None);
    report.add("a span on the wire", "bytes", plain, None, None);
    report.add("a span on the wire, gzip", "bytes", packed, None, None);
    Ok(())
}
