//! Spans to a collector between: sends them to an address, receives what the collector passes on.
//!
//! Prints `{"backend": "http://…"}`, where the collector is to pass on to. For each line `ADDRESS COUNT` that
//! it reads it exports so many spans to the address over gRPC, waits until as many have been passed on or a
//! minute is over, and prints `{"sent", "arrived", "seconds", "bytes_per_span", "gzip_bytes_per_span"}`: spans
//! that the collector took, spans that it passed on, until the last one, and what a span takes on the wire in
//! full requests.

use std::time::{Duration, Instant};

use gotrace_tests::{
    receiver::{Receiver, Wire},
    spans_rate::{bytes_per_span, export},
};
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let backend = Receiver::start_counting(Wire::Grpc).await;
    println!("{}", json!({ "backend": backend.endpoint() }));
    let (bytes, gzip_bytes) = bytes_per_span().await;
    // The receiver has threads of its own while this one waits.
    for line in std::io::stdin().lines() {
        let line = line?;
        let (address, count) = line.split_once(' ').unwrap_or((&line, "100000"));
        let before = backend.span_count();
        let begin = Instant::now();
        let stats = export(address, Wire::Grpc, count.parse()?).await;
        let mut arrived = 0;
        while arrived < stats.spans_sent && begin.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            arrived = backend.span_count() - before;
        }
        println!(
            "{}",
            json!({
                "sent": stats.spans_sent,
                "arrived": arrived,
                "seconds": begin.elapsed().as_secs_f64(),
                "bytes_per_span": bytes,
                "gzip_bytes_per_span": gzip_bytes,
            })
        );
    }
    Ok(())
}
