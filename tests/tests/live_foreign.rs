//! Real servers that were not written here, with their own profile endpoint as the truth: every goroutine
//! that stands still between two of their own tracebacks is in the dump that was taken in between, with the
//! same state, frames, lines and creator. Needs root, and the servers where `cargo xtask setup` puts them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use gotrace_tests::{
    dump::{Dump, disagreements},
    gotrace::privileged,
    server::Server,
    traceback::{Goroutine, parse},
};

/// Least goroutines that must have stood still: a server has that many that do nothing.
const LEAST: usize = 10;

/// What a server says of its goroutines itself.
fn tracebacks(server: &Server) -> Result<BTreeMap<u64, Goroutine>> {
    Ok(parse(&server.get("/debug/pprof/goroutine?debug=2")?))
}

/// Takes a dump between two tracebacks, and judges it by what stood still. Gives the number of
/// goroutines and frames that agree.
fn judge(server: &Server) -> Result<(usize, usize)> {
    let before = tracebacks(server)?;
    let dump = Dump::take(server.pid(), &[], false)?;
    let after = tracebacks(server)?;
    let mut wrong = Vec::new();
    // What was alive before and after must be there, though it moved.
    let alive = before.keys().filter(|goid| after.contains_key(goid));
    let missing = alive.filter(|goid| !dump.goroutines.contains_key(goid));
    wrong.extend(missing.map(|goid| format!("goroutine {goid} is missing")));
    let mut still = after;
    still.retain(|goid, goroutine| {
        goroutine.state != "running" && before.get(goid).is_some_and(|earlier| earlier == goroutine)
    });
    ensure!(still.len() >= LEAST, "only {} goroutines stood still", still.len());
    let frames = disagreements(&dump.goroutines, &still, false, &mut wrong);
    ensure!(wrong.is_empty(), "{} disagreements:\n  {}", wrong.len(), wrong.join("\n  "));
    ensure!(dump.unread() == 0, "stacks were cut short: {}", dump.summary);
    Ok((still.len(), frames))
}

/// Up to ten times: a server has not begun everything when it first answers, and a goroutine may move between two
/// tracebacks and come back, unseen by both.
fn agrees(server: &Server, name: &str) {
    for attempt in 1..=10 {
        match judge(server) {
            Ok((goroutines, frames)) => {
                eprintln!("{name}: {goroutines} goroutines with {frames} frames agree");
                return;
            }
            Err(e) => eprintln!("{name}, attempt {attempt}: {e:#}"),
        }
    }
    panic!("{name}: no dump agrees with the server's own tracebacks");
}

#[test]
fn prometheus() {
    if !privileged("live_foreign") {
        return;
    }
    let server = Server::prometheus().expect("prometheus starts");
    agrees(&server, "prometheus");
}

#[test]
fn etcd() {
    if !privileged("live_foreign") {
        return;
    }
    let server = Server::etcd().expect("etcd starts");
    agrees(&server, "etcd");
}
