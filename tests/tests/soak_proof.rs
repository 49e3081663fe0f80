//! The long form of what `live_proof` does with real servers: a pass a second over etcd and Prometheus while they
//! work, ten minutes each, and nothing that was called unreachable ever runs again. `GOTRACE_SOAK_SECONDS` sets
//! another length. Needs root, and the servers where `cargo xtask setup` puts them.

use std::time::Duration;

use gotrace_tests::{
    gotrace::privileged,
    server::Server,
    soak::{Soaked, etcd_load, prometheus_load, soak},
};

const SECONDS: u64 = 600;

fn long() -> Duration {
    let asked = std::env::var("GOTRACE_SOAK_SECONDS").map(|s| s.parse().expect("a number of seconds"));
    Duration::from_secs(asked.unwrap_or(SECONDS))
}

fn check(name: &str, soaked: &Soaked) {
    println!("{name}: {soaked:?}");
    let seconds = long().as_secs();
    assert!(u64::from(soaked.passes) >= seconds / 4 && soaked.answered > 20 * seconds, "{soaked:?}");
}

#[test]
fn etcd() {
    if privileged("soak_proof") {
        let server = Server::etcd().expect("etcd starts");
        check("etcd", &soak(&server, |s| s.took >= long(), etcd_load).expect("nothing is refuted"));
    }
}

#[test]
fn prometheus() {
    if privileged("soak_proof") {
        let server = Server::prometheus().expect("prometheus starts");
        check(
            "prometheus",
            &soak(&server, |s| s.took >= long(), prometheus_load).expect("nothing is refuted"),
        );
    }
}
