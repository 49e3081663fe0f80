//! Whatever gotrace does or suffers, the target computes what it would have computed. Needs root and
//! `go`.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    fixture::{Fixture, PATIENCE},
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, by_links, privileged},
};
use serde_json::Value;

fn program(version: &str) -> PathBuf {
    build("account", version, Mode::Stripped, Arch::HOST).expect("the fixture builds")
}

/// What the program computes when nobody watches.
fn alone(program: &Path, args: &[&str]) -> Value {
    Fixture::start(program, args).and_then(|mut f| f.run()).expect("it runs alone")["checksum"].clone()
}

#[test]
fn a_panic_storm_is_survived_and_counted() {
    if !privileged("live_hostile") {
        return;
    }
    let args = ["-scenario", "storm", "-n", "20000"];
    for version in ["1.19.13", "1.27.3"] {
        let program = program(version);
        let without = alone(&program, &args);
        let mut fixture = Fixture::start(&program, &args).expect("it starts");
        let gotrace = Gotrace::attach(fixture.pid(), &[]).expect("gotrace attaches");
        assert_eq!(fixture.run().expect("it runs")["checksum"], without, "go{version}");
        fixture.finish().expect("it ends well");
        let outcome = gotrace.wait().expect("gotrace ends");
        let summary = outcome.summary().expect("a summary").clone();
        let (born, lost) = (summary["born"].as_u64().unwrap_or(0), outcome.lost().expect("a summary"));
        assert!(born + lost >= 20_000, "go{version}: born {born}, lost {lost}");
        assert!(outcome.status.success(), "{}", outcome.stderr);
    }
}

#[test]
fn a_hundred_attachments_change_nothing() {
    if !privileged("live_hostile") {
        return;
    }
    let program = program("1.24.11");
    let args = ["-scenario", "pingpong,churn,storm", "-rate", "20000", "-n", "300000"];
    let without = alone(&program, &args);
    let mut fixture = Fixture::start(&program, &args).expect("it starts");
    fixture.go().expect("it goes");
    // The target may be done before the hundredth; it stays, and is attached to all the same.
    let (begin, pid) = (Instant::now(), fixture.pid());
    let attach = |cycle: usize, level: &str| {
        let gotrace = Gotrace::attach(pid, &["--quiet", "--level", level])
            .unwrap_or_else(|e| panic!("attachment {cycle}: {e:#}"));
        gotrace.interrupt();
        let outcome = gotrace.wait().expect("gotrace ends");
        assert!(outcome.status.success(), "cycle {cycle}: {}: {}", outcome.status, outcome.stderr);
    };
    // Four beside each other: one's probes come and go while another's are in the same places. Where they are
    // not links the kernel removes them one after the other: there all of them every tenth time.
    let links = by_links().expect("doctor tells");
    thread::scope(|scope| {
        for first in 0..4 {
            let attach = &attach;
            scope.spawn(move || {
                for cycle in (first..100).step_by(4) {
                    attach(cycle, if links || cycle % 10 == 0 { "full" } else { "lifecycle" });
                }
            });
        }
    });
    eprintln!("100 attachments took {:?}", begin.elapsed());
    let done = fixture.done(4 * PATIENCE).expect("it ends");
    assert_eq!(done["checksum"], without);
    fixture.finish().expect("it ends well");
}

#[test]
fn the_death_of_gotrace_is_not_felt() {
    if !privileged("live_hostile") {
        return;
    }
    let program = program("1.27.3");
    let args = ["-scenario", "pingpong,churn", "-rate", "50000", "-n", "200000"];
    let without = alone(&program, &args);
    let mut fixture = Fixture::start(&program, &args).expect("it starts");
    let gotrace = Gotrace::attach(fixture.pid(), &[]).expect("gotrace attaches");
    fixture.go().expect("it goes");
    thread::sleep(Duration::from_millis(500));
    gotrace.kill();
    drop(gotrace);
    let done = fixture.done(4 * PATIENCE).expect("it ends");
    assert_eq!(done["checksum"], without);
    // Another one can follow at once.
    let again = Gotrace::attach(fixture.pid(), &[]).expect("gotrace attaches again");
    fixture.finish().expect("it ends well");
    assert!(again.wait().expect("gotrace ends").status.success());
}
