//! Spans and metrics to a collector between: sends them to an address, receives what the collector passes on.
//!
//! Prints `{"backend": "http://…"}`, where the collector is to pass on to, and what things take on the wire in full
//! requests: `{"bytes_per_span", "gzip_bytes_per_span", "points_per_report", "bytes_per_point",
//! "gzip_bytes_per_point"}`. For each line `ADDRESS spans COUNT` or `ADDRESS reports COUNT` (of the metrics of a hundred
//! processes) that it reads it exports so many over gRPC, waits until all have been passed on or a minute is over, and
//! prints `{"sent", "arrived", "seconds"}`: spans or points that the collector took, that it passed on, until the
//! last one.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gotrace_tests::{
    receiver::{Receiver, Wire},
    spans_rate::{bytes_per_point, bytes_per_span, export, export_metrics},
};
use serde_json::json;

/// Processes whose metrics are reported.
const PROCESSES: usize = 100;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let backend = Receiver::start_counting(Wire::Grpc).await;
    println!("{}", json!({ "backend": backend.endpoint() }));
    let (bytes, gzip_bytes) = bytes_per_span().await;
    let (points, point_bytes, gzip_point_bytes) = bytes_per_point().await;
    println!(
        "{}",
        json!({
            "bytes_per_span": bytes,
            "gzip_bytes_per_span": gzip_bytes,
            "points_per_report": points,
            "bytes_per_point": point_bytes,
            "gzip_bytes_per_point": gzip_point_bytes,
        })
    );
    // The receiver has threads of its own while this one waits.
    for line in std::io::stdin().lines() {
        let line = line?;
        let [address, what, count] = line.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("ADDRESS spans|reports COUNT, not {line:?}");
        };
        let count: usize = count.parse().context("how many")?;
        let spans = what == "spans";
        let received = || if spans { backend.span_count() } else { backend.point_count() };
        let before = received();
        let begin = Instant::now();
        let sent = if spans {
            export(address, Wire::Grpc, count).await.spans_sent
        } else {
            export_metrics(address, Wire::Grpc, PROCESSES, count as u64).await.points_sent
        };
        let mut arrived = 0;
        while arrived < sent && begin.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            arrived = received() - before;
        }
        println!("{}", json!({ "sent": sent, "arrived": arrived, "seconds": begin.elapsed().as_secs_f64() }));
    }
    Ok(())
}
