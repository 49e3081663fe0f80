//! Prints, one JSON object a line, how many spans a second reach a collector in the same process.
//!
//! Argument: number of spans a measurement (default 500,000).

use gotrace_tests::{
    receiver::Wire,
    spans_rate::{gotrace, sdk},
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(500_000), |a| a.parse())?;
    for _ in 0..3 {
        for rate in [gotrace(Wire::Grpc, count).await, gotrace(Wire::Http, count).await, sdk(count).await] {
            println!("{}", serde_json::to_string(&rate)?);
        }
    }
    Ok(())
}
