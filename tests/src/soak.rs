//! Marks the heap of a real server again and again while it works, and watches whatever was called unreachable:
//! nothing of that may ever run again.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use gotrace_go::Binary;
use gotrace_inspect::{heap::Prover, snapshot::Live};
use gotrace_process::Target;

use crate::{
    server::{Server, request},
    traceback::parse,
};

/// Threads that make requests.
const CLIENTS: usize = 4;
/// From one pass to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// A request: method, path, body.
pub type Request = (&'static str, String, String);

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Soaked {
    /// Passes over its heap.
    pub passes: u32,
    /// How long it has worked.
    pub took: Duration,
    /// Requests that it answered.
    pub answered: u64,
    /// Most goroutines that a pass looked at as able to be leaked.
    pub candidates: u64,
    /// Goroutines that were called unreachable by enough passes.
    pub proven: BTreeSet<u64>,
}

/// Works a server with requests that `load` gives by number, and makes a pass a second meanwhile, until what came of
/// it is `enough`.
///
/// # Errors
/// Where what was called unreachable runs or vanishes, with its goid; where the server or its heap cannot be read.
pub fn soak(server: &Server, enough: impl Fn(&Soaked) -> bool, load: fn(u64) -> Request) -> Result<Soaked> {
    let (stop, answered, next) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let port = server.port();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let (method, path, body) = load(next.fetch_add(1, Ordering::Relaxed));
            // A server under load may refuse one.
            if request(port, method, &path, &body).is_ok() {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let soaked = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(work);
        }
        let watched = watch(server, &answered, enough);
        stop.store(true, Ordering::Relaxed);
        watched
    })?;
    // They are still there by the server's own word, and wait.
    let still = parse(&server.get("/debug/pprof/goroutine?debug=2")?);
    for goid in &soaked.proven {
        let state = still.get(goid).map(|g| g.state.clone());
        ensure!(
            state.as_deref().is_some_and(|s| s != "running" && s != "runnable"),
            "goroutine {goid} was called unreachable, and is {state:?} by the server's own word"
        );
    }
    Ok(soaked)
}

fn watch(server: &Server, answered: &AtomicU64, enough: impl Fn(&Soaked) -> bool) -> Result<Soaked> {
    let target = Target::open(server.pid())?;
    let binary = Arc::new(Binary::parse(&target.exe_bytes()?)?);
    let live = Live::new(&target, Arc::clone(&binary))?;
    let mut prover = Prover::new(binary, live.bias())?;
    let (begin, mut soaked) = (Instant::now(), Soaked::default());
    while !enough(&soaked) {
        let pass = Instant::now();
        let refuted = prover.refuted(live.memory())?;
        ensure!(refuted.is_empty(), "called unreachable, and ran or vanished: {refuted:?}");
        soaked.proven.extend(prover.pass(live.memory())?.proven().map(|p| p.goid()));
        soaked.passes += 1;
        (soaked.answered, soaked.took) = (answered.load(Ordering::Relaxed), begin.elapsed());
        let last = prover.evidence().last().copied().unwrap_or_default();
        soaked.candidates = soaked.candidates.max(last.candidates);
        thread::sleep(INTERVAL.saturating_sub(pass.elapsed()));
    }
    let refuted = prover.refuted(live.memory())?;
    ensure!(refuted.is_empty(), "called unreachable, and ran or vanished: {refuted:?}");
    Ok(soaked)
}

/// Requests to etcd: writes, reads, ranges, leases, compactions of nothing.
#[must_use]
pub fn etcd_load(n: u64) -> Request {
    // "key" in base64, with a number that stays within it.
    let key = format!("a2V5{:04}", n % 1000);
    match n % 5 {
        0 | 1 => {
            ("POST", "/v3/kv/put".into(), format!(r#"{{"key":"{key}","value":"{:08}"}}"#, n % 100_000_000))
        }
        2 => ("POST", "/v3/kv/range".into(), format!(r#"{{"key":"{key}"}}"#)),
        3 => ("POST", "/v3/kv/range".into(), r#"{"key":"a2V5","range_end":"a2V6","limit":"100"}"#.into()),
        _ => ("POST", "/v3/lease/grant".into(), r#"{"TTL":"2"}"#.into()),
    }
}

/// Requests to Prometheus: queries over what it has scraped of itself, metadata, metrics.
#[must_use]
pub fn prometheus_load(n: u64) -> Request {
    let path = match n % 4 {
        0 => "/api/v1/query?query=sum(rate(prometheus_http_requests_total[30s]))by(handler)".into(),
        1 => format!("/api/v1/query?query=topk(5,go_goroutines)&n={n}"),
        2 => "/api/v1/labels".into(),
        _ => "/metrics".into(),
    };
    ("GET", path, String::new())
}
