//! Servers that were not written here count their own requests: `gotrace requests` counts the same over the same time. Needs
//! root, and the servers where `cargo xtask setup` puts them.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use gotrace_tests::{
    gotrace::privileged,
    requests::{Report, Watch},
    server::Server,
};
use regex::Regex;
use serde_json::Value;

/// Clients at once, and how often each asks everything.
const CLIENTS: usize = 4;
const ROUNDS: usize = 25;
/// Between the last answer and the end of what the server does for it.
const SETTLING: Duration = Duration::from_millis(200);

/// A counter of the server's own, by what of its labels is wanted.
fn counter(
    server: &Server,
    name: &str,
    key: impl Fn(&dyn Fn(&str) -> String) -> String,
) -> Result<BTreeMap<String, u64>> {
    let line = Regex::new(&format!(r"^{name}\{{(.*)\}} (\S+)$"))?;
    let mut counts = BTreeMap::new();
    for text in server.get("/metrics")?.lines() {
        let Some(found) = line.captures(text) else { continue };
        let label = |name: &str| {
            let value = Regex::new(&format!("{name}=\"([^\"]*)\""))
                .ok()
                .and_then(|label| label.captures(&found[1]).map(|l| l[1].to_owned()));
            value.unwrap_or_default()
        };
        *counts.entry(key(&label)).or_default() += found[2].parse::<f64>()? as u64;
    }
    ensure!(!counts.is_empty(), "the server has no counter {name}");
    Ok(counts)
}

/// What came since then; what did not change is left out.
fn since(before: &BTreeMap<String, u64>, now: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut now = now;
    now.iter_mut().for_each(|(key, n)| *n -= before.get(key).copied().unwrap_or(0));
    now.retain(|_, n| *n > 0);
    now
}

/// What gotrace counted, by a key of each route and status.
fn counted(report: &Report, key: impl Fn(&Value, &str) -> Option<String>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for route in report.summary["routes"].as_array().into_iter().flatten() {
        for (status, n) in route["by_status"].as_object().into_iter().flatten() {
            if let (Some(key), Some(n)) = (key(route, status), n.as_u64()) {
                *counts.entry(key).or_default() += n;
            }
        }
    }
    counts
}

/// All clients ask all of this.
fn ask(server: &Server, requests: &[(&str, &str, &str, u16)]) -> Result<()> {
    let client = || -> Result<()> {
        for (method, path, body, expected) in (0..ROUNDS).flat_map(|_| requests) {
            let (status, answer) = server.ask(method, path, body)?;
            ensure!(status == *expected, "{method} {path} is answered with {status}: {answer}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("it does not panic"))
    })?;
    thread::sleep(SETTLING);
    Ok(())
}

/// Calls of etcd by method and code, as both count them.
fn etcd(server: &Server) -> Result<()> {
    const NAMES: [&str; 4] = ["OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT"];
    let own = || {
        counter(server, "grpc_server_handled_total", |label| {
            format!("/{}/{} {}", label("grpc_service"), label("grpc_method"), label("grpc_code"))
        })
    };
    // Through its gateway from JSON, which is a client of its own server.
    let text = "Zm9v";
    let put = format!("{{\"key\":\"{text}\",\"value\":\"{text}\"}}");
    let key = format!("{{\"key\":\"{text}\"}}");
    let requests = [
        ("POST", "/v3/kv/put", put.as_str(), 200),
        ("POST", "/v3/kv/range", &key, 200),
        ("POST", "/v3/kv/range", &key, 200),
        // Without a key: InvalidArgument.
        ("POST", "/v3/kv/range", "{}", 400),
        ("POST", "/v3/lease/grant", "{\"TTL\":60}", 200),
        ("POST", "/v3/kv/deleterange", &key, 200),
        ("POST", "/v3/maintenance/status", "{}", 200),
    ];
    // Its connection to itself is made.
    server.ask("POST", "/v3/maintenance/status", "{}")?;
    let watch = Watch::start(server.pid(), &[]);
    let before = own()?;
    ask(server, &requests)?;
    let own = since(&before, own()?);
    let report = watch.finish();
    let ours = counted(&report, |route, status| {
        let code = NAMES.get(status.parse::<usize>().ok()?)?.replace('_', "");
        let grpc = route["protocol"] == "grpc" && route["method"].is_null();
        grpc.then(|| format!("{} {code}", route["route"].as_str().unwrap_or("none")))
    });
    let own: BTreeMap<String, u64> =
        own.into_iter().map(|(key, n)| (key.replace("InvalidArgument", "INVALIDARGUMENT"), n)).collect();
    println!("  by etcd: {own:?}");
    println!("  by gotrace: {ours:?}");
    let expected = (CLIENTS * ROUNDS) as u64;
    ensure!(
        own.len() == 6 && own.values().all(|n| *n == expected || *n == 2 * expected),
        "etcd counts {own:?}"
    );
    ensure!(ours == own, "gotrace counts {ours:?}, etcd {own:?}");
    let lost = report.lost();
    ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}

#[test]
fn calls_of_etcd_are_counted_as_it_counts_them() {
    if !privileged("live_requests_foreign") {
        return;
    }
    let server = Server::etcd().expect("etcd starts");
    etcd(&server).unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn calls_of_etcd_over_tls_are_counted_as_it_counts_them() {
    if !privileged("live_requests_foreign") {
        return;
    }
    let server = Server::secure_etcd().expect("etcd starts");
    etcd(&server).unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn requests_of_prometheus_are_counted_as_it_counts_them() {
    if !privileged("live_requests_foreign") {
        return;
    }
    let server = Server::quiet_prometheus().expect("prometheus starts");
    prometheus(&server).unwrap_or_else(|e| panic!("{e:#}"));
}

fn prometheus(server: &Server) -> Result<()> {
    let own = || counter(server, "prometheus_http_requests_total", |label| label("code"));
    let requests = [
        ("GET", "/-/healthy", "", 200),
        ("GET", "/api/v1/query?query=up", "", 200),
        ("GET", "/api/v1/query?query=up(", "", 400),
        ("GET", "/api/v1/labels", "", 200),
        ("GET", "/api/v1/label/x/values", "", 200),
        ("GET", "/", "", 302),
        ("GET", "/metrics", "", 200),
    ];
    let watch = Watch::start(server.pid(), &[]);
    let before = own()?;
    ask(server, &requests)?;
    let mut own = since(&before, own()?);
    // An answer does not count itself.
    *own.get_mut("200").context("it has answered")? += 1;
    thread::sleep(SETTLING);
    let report = watch.finish();
    let ours = counted(&report, |route, status| {
        route["protocol"].as_str().is_some_and(|p| p.starts_with("http")).then(|| status.to_owned())
    });
    println!("  by prometheus: {own:?}");
    println!("  by gotrace: {ours:?}");
    ensure!(
        own.values().sum::<u64>() >= (CLIENTS * ROUNDS * requests.len()) as u64,
        "prometheus counts {own:?}"
    );
    ensure!(ours == own, "gotrace counts {ours:?}, prometheus {own:?}");
    let lost = report.lost();
    ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}
