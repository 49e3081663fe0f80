//! Proof of leak against the truth: every goroutine that is leaked by the program's own account, and none that
//! is healthy, is called unreachable, on every version of Go, in stripped programs; on Go 1.27 the runtime's own
//! profile agrees. Nothing is refuted on real servers at work. Needs root, `go`, and the servers where
//! `cargo xtask setup` puts them.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use gotrace_tests::{
    gobuild::{Arch, CORNER_VERSIONS, Mode, VERSIONS, build, minor},
    gotrace::privileged,
    leaks::{json, leaks},
    patterns::Patterns,
    server::Server,
    soak::{Soaked, etcd_load, prometheus_load, soak},
};
use serde_json::Value;

/// How often a pattern may be missed, in fresh processes: of a goroutine that runs, every word of its stack may be in
/// use, and what an older goroutine left there may name a channel by chance.
const TRIES: usize = 3;
/// Of the leaked goroutines of a process, at least so many in a hundred are found at once.
const LEAST: usize = 90;
/// How often the heap of a server at work is marked at least.
const PASSES: u32 = 15;
/// How long it may take until that has come about.
const LONGEST: Duration = Duration::from_secs(600);

/// Patterns that the runtime's own profile does not see: the value that is being sent lies in the closure that holds
/// the channel, and the runtime takes in where a value to be sent lies (`sudog.elem`).
const UNSEEN_BY_RUNTIME: [&str; 2] = ["fan-in", "first response wins"];

/// Patterns of which it may miss some by chance.
const UNSEEN_BY_CHANCE: usize = 6;

/// Patterns whose goroutines wait at several places for each other, and for nobody else.
const TOGETHER: [&str; 4] = [
    "abandoned pipeline",
    "groups that wait for each other",
    "group that waits for one that leaks",
    "ring of channels",
];

/// Goids of each finding with the verdict, and the last line.
fn unreachable(pid: u32) -> (Vec<BTreeSet<u64>>, Value) {
    let output = leaks(pid, &["--format", "json", "--fail-on", "unreachable"]).expect("gotrace runs");
    let lines = json(&output).expect("JSON");
    let goids = |l: &Value| -> BTreeSet<u64> {
        let all = l["goids"].as_array().expect("goids").iter();
        all.map(|g| g.as_u64().expect("a goid")).collect()
    };
    let found: Vec<BTreeSet<u64>> =
        lines.iter().filter(|l| l["verdict"] == "unreachable").map(goids).collect();
    assert_eq!(output.status.code(), Some(if found.is_empty() { 0 } else { 10 }));
    (found, lines.last().expect("a summary")["summary"].clone())
}

/// One process: nobody but the leaked is called unreachable, and the healthy really can be woken. Gives the patterns
/// of which a goroutine was missed.
fn judge(version: &str, mode: Mode, rotate: usize) -> BTreeMap<String, usize> {
    let name = format!("Go {version} {}, rotated by {rotate}", mode.name());
    let program = build("leakpatterns", version, mode, Arch::HOST).expect("it builds");
    let mut patterns = Patterns::start(&program, rotate).expect("it starts");
    let kinds: BTreeSet<&String> = patterns.told.leaked.values().collect();
    let twins: BTreeSet<&String> = patterns.told.healthy.values().collect();
    assert!(kinds.len() >= 60 && twins.len() >= 65, "{name}: {} and {}", kinds.len(), twins.len());

    let (findings, summary) = unreachable(patterns.pid());
    let found: BTreeSet<u64> = findings.iter().flatten().copied().collect();
    let wrong: Vec<_> = found
        .iter()
        .filter(|g| !patterns.told.leaked.contains_key(g))
        .map(|g| (g, patterns.told.healthy.get(g)))
        .collect();
    assert!(wrong.is_empty(), "{name}: called unreachable, and can run: {wrong:?}");
    assert_eq!(summary["proof"]["refuted"], 0, "{name}: {summary}");
    let mut missed = BTreeMap::new();
    for (_, pattern) in patterns.told.leaked.iter().filter(|(g, _)| !found.contains(g)) {
        *missed.entry(pattern.clone()).or_insert(0) += 1;
    }
    // Those that wait for each other are one finding, and no others are in it.
    for pattern in TOGETHER {
        let of: BTreeSet<u64> =
            patterns.told.leaked.iter().filter(|(_, p)| *p == pattern).map(|(&goid, _)| goid).collect();
        assert!(of.len() >= 2, "{name}: {pattern}");
        if of.is_subset(&found) {
            assert!(findings.contains(&of), "{name}: {pattern} {of:?} is not one finding: {findings:?}");
        }
    }
    println!(
        "{name}: {} of {} leaked goroutines found, missed {missed:?}",
        found.len(),
        patterns.told.leaked.len()
    );
    assert!(found.len() * 100 >= patterns.told.leaked.len() * LEAST, "{name}: missed {missed:?}");

    match patterns.profile().expect("it answers") {
        None => assert!(minor(version) < 27, "{name} has a profile of its own"),
        Some(profile) => {
            let more: Vec<_> = profile.iter().filter(|g| !patterns.told.leaked.contains_key(g)).collect();
            assert!(more.is_empty(), "{name}: the runtime calls leaked what can be woken: {more:?}");
            let seen = |p: &&String| !UNSEEN_BY_RUNTIME.contains(&p.as_str());
            // It misses some by chance, too: it stops some goroutines where it has to take in every word.
            let unseen: BTreeSet<&String> = patterns
                .told
                .leaked
                .iter()
                .filter(|(g, p)| seen(p) && !profile.contains(g))
                .map(|(_, p)| p)
                .collect();
            assert!(unseen.len() <= UNSEEN_BY_CHANCE, "{name}: the runtime does not see {unseen:?}");
            let agreed = patterns
                .told
                .leaked
                .iter()
                .filter(|(g, p)| seen(p) && found.contains(g) == profile.contains(g));
            let count = agreed.count();
            println!(
                "{name}: the runtime's own profile has {}; {count} agree; unseen {unseen:?}",
                profile.len()
            );
        }
    }
    let left = patterns.release().expect("it answers");
    assert!(left.is_empty(), "{name}: healthy by the account, and could not be woken: {left:?}");
    missed
}

/// Every pattern is found whole in one of a few processes.
fn judge_until_found(version: &str, mode: Mode, rotate: usize) {
    let mut open: Option<BTreeSet<String>> = None;
    for n in 0..TRIES {
        let missed: BTreeSet<String> = judge(version, mode, rotate + 9 * n).into_keys().collect();
        let still = match open {
            None => missed,
            Some(open) => open.intersection(&missed).cloned().collect(),
        };
        if still.is_empty() {
            return;
        }
        open = Some(still);
    }
    panic!("Go {version} {}: never found whole: {open:?}", mode.name());
}

#[test]
fn every_pattern_in_every_version_and_no_twin() {
    if !privileged("live_proof") {
        return;
    }
    for (n, version) in VERSIONS.into_iter().enumerate() {
        judge_until_found(version, Mode::Stripped, 3 * n);
    }
}

#[test]
fn every_pattern_in_other_modes_and_no_twin() {
    if !privileged("live_proof") {
        return;
    }
    for (n, version) in CORNER_VERSIONS.into_iter().enumerate() {
        // With the race detector everything takes longer, a pass too: more happens meanwhile.
        let modes = [Mode::Plain, Mode::PieStripped, Mode::Cgo, Mode::NoInline, Mode::Race];
        for (m, mode) in modes.into_iter().enumerate() {
            judge_until_found(version, mode, 5 * n + m);
        }
    }
}

/// Each of the ways to hold something, with each pattern, on the newest version.
#[test]
fn no_twin_however_it_is_held() {
    if !privileged("live_proof") {
        return;
    }
    for rotate in 0..13 {
        judge("1.27.3", Mode::Stripped, 2 * rotate + 1);
    }
}

#[test]
fn nothing_is_refuted_on_real_servers_at_work() {
    if !privileged("live_proof") {
        return;
    }
    let etcd = Server::etcd().expect("etcd starts");
    let prometheus = Server::prometheus().expect("prometheus starts");
    let (of_etcd, of_prometheus) = thread::scope(|scope| {
        let enough = |s: &Soaked, candidates: u64| {
            s.took > LONGEST || s.passes >= PASSES && s.answered > 500 && s.candidates > candidates
        };
        let other = scope.spawn(move || soak(&prometheus, |s| enough(s, 10), prometheus_load));
        (soak(&etcd, |s| enough(s, 20), etcd_load), other.join().expect("it does not panic"))
    });
    let worked = of_etcd.expect("nothing is refuted");
    println!("etcd: {worked:?}");
    assert!(worked.passes >= PASSES && worked.answered > 500 && worked.candidates > 20, "{worked:?}");
    let worked = of_prometheus.expect("nothing is refuted");
    println!("prometheus: {worked:?}");
    assert!(worked.passes >= PASSES && worked.answered > 500 && worked.candidates > 10, "{worked:?}");
}
