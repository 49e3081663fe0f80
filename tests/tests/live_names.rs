//! Goroutines that were started through a func value, a method value, an interface or a closure are named for what they
//! run by everything that follows a program: `attach`, `exec`, their export and recordings, by events and by snapshots.
//! A `go` statement with several targets is one site for each. Needs root and `go`.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use gotrace_tests::{
    fixture::PATIENCE,
    gobuild::{Arch, CORNER_VERSIONS, Mode, build},
    gotrace::{Gotrace, binary, privileged},
    running::Running,
};
use serde_json::Value;

/// Who starts what in the case: the function with the `go` statement, and what the goroutine runs.
const SITES: [(&str, &str); 6] = [
    ("main.names", "main.quick.run"),
    ("main.names", "main.receiver"),
    ("main.spawn", "main.names.func1"),
    ("main.spawn", "main.quick.run"),
    ("main.spawn", "main.receiver"),
    ("main.spawnJob", "main.quick.run"),
];

/// By who has the `go` statement and what runs: how many are alive, and how many were born.
type Sites = BTreeMap<(String, String), (u64, u64)>;

/// The sites of an interval or summary whose goroutines the case started.
fn sites(of: &Value) -> Sites {
    let text = |place: &Value| place["function"].as_str().unwrap_or("?").to_owned();
    let mut sites = BTreeMap::new();
    for site in of["sites"].as_array().expect("sites") {
        let by = text(&site["created_by"]);
        if SITES.iter().any(|(known, _)| *known == by) {
            let counts = ["alive", "born"].map(|field| site[field].as_u64().unwrap_or_default());
            let twice = sites.insert((by, text(&site["entry"])), counts.into());
            assert_eq!(twice, None, "one row: {site}");
        }
    }
    sites
}

/// Whether these are the sites of the case and no others.
fn has_all(sites: &Sites) -> bool {
    sites.keys().map(|(by, entry)| (by.as_str(), entry.as_str())).eq(SITES)
}

/// Tells, of one interval after the other, when some 20 rounds have begun.
fn until_many() -> impl Fn(&Value) -> bool {
    let born = Cell::new(0);
    move |interval| {
        born.set(born.get() + sites(interval).values().map(|(_, new)| new).sum::<u64>());
        born.get() >= 20 * SITES.len() as u64
    }
}

/// Who has the `go` statement and what runs, by attributes, where the case has such a statement.
fn site_of(attributes: &BTreeMap<String, String>) -> Option<(&str, &str)> {
    let of = |name: &str| attributes.get(name).map_or("", String::as_str);
    let (by, entry) = (of("gotrace.created_by.function.name"), of("code.function.name"));
    SITES.iter().any(|(known, _)| *known == by).then_some((by, entry))
}

/// The versions, and ways to build, that are tried.
fn programs() -> impl Iterator<Item = (&'static str, Mode)> {
    let stripped = CORNER_VERSIONS.into_iter().map(|version| (version, Mode::Stripped));
    stripped.chain([("1.27.3", Mode::PieStripped), ("1.24.11", Mode::NoInline), ("1.27.3", Mode::Race)])
}

/// Whether as many were born at each site, but for those of two rounds.
fn are_even(sites: &Sites) -> bool {
    let born = sites.values().map(|(_, born)| *born);
    let (least, most) = (born.clone().min().unwrap_or(0), born.max().unwrap_or(0));
    least > 0 && most - least <= 2
}

#[test]
fn exec_splits_a_site_by_what_its_goroutines_run() {
    if !privileged("live_names") {
        return;
    }
    for (version, mode) in programs() {
        let program = build("cases", version, mode, Arch::HOST).expect("it builds");
        let what = format!("Go {version}, {}", mode.name());
        let recording = tempfile::NamedTempFile::new().expect("a file");
        let record = recording.path().to_str().expect("a plain path");
        let command = [program.to_str().expect("a plain path"), "spawns"];
        let mut gotrace =
            Gotrace::exec(&["--interval", "200ms", "--record", record], &command).expect("it is run");
        gotrace
            .read_until("20 rounds have begun", PATIENCE, until_many())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        gotrace.interrupt();
        let outcome = gotrace.wait().expect("gotrace ends");
        let summary = outcome.summary().expect("a summary");
        let found = sites(summary);
        assert!(has_all(&found) && are_even(&found), "{what}: {found:#?}");
        assert_eq!(outcome.lost().ok(), Some(0), "{what}: {summary}");
        // From birth on: a row that was there stays.
        let mut before = Sites::new();
        for interval in outcome.lines.iter().filter_map(|line| line.get("interval")) {
            let now = sites(interval);
            assert!(before.keys().all(|key| now.contains_key(key)), "{what}: {before:#?} became {now:#?}");
            before = now;
        }

        let spans = outcome.export.spans.iter().filter(|span| !span.is_wait());
        let spans: BTreeSet<_> =
            spans.filter_map(|s| Some((site_of(&s.attributes)?, s.name.as_str()))).collect();
        assert!(spans.iter().all(|((_, entry), name)| entry == name), "{what}: {spans:#?}");
        let spans: BTreeSet<_> = spans.into_iter().map(|(site, _)| site).collect();
        let series: BTreeSet<_> = outcome.export.series.iter().filter_map(site_of).collect();
        let all = BTreeSet::from(SITES);
        assert!(spans == all && series == all, "{what}: spans of {spans:#?}, series of {series:#?}");

        let output = Command::new(binary().expect("built"))
            .args(["convert", "--format", "json"])
            .arg(recording.path())
            .output()
            .expect("gotrace runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(sites(&last["summary"]), found, "{what}: a replay");
    }
}

#[test]
fn attach_names_those_before_and_after_alike() {
    if !privileged("live_names") {
        return;
    }
    for (version, mode) in programs() {
        let program = build("cases", version, mode, Arch::HOST).expect("it builds");
        for (case, engine) in [("names", "events"), ("names", "snapshot"), ("spawns", "events")] {
            let running = Running::start(&program, case);
            let what = format!("Go {version}, {}: {case} by {engine}", mode.name());
            let more = ["--interval", "200ms", "--reconcile", "200ms", "--engine", engine];
            let mut gotrace = Gotrace::attach(running.pid(), &more).expect("gotrace attaches");
            let many = until_many();
            let whole = |interval: &Value| match case {
                "names" => has_all(&sites(interval)),
                _ => many(interval),
            };
            gotrace
                .read_until("all sites are there", PATIENCE, whole)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            gotrace.interrupt();
            let outcome = gotrace.wait().expect("gotrace ends");
            let found = sites(outcome.summary().expect("a summary"));
            assert!(has_all(&found), "{what}: {found:#?}");
            assert!(case != "names" || found.values().all(|(alive, _)| *alive == 1), "{what}: {found:#?}");
            assert!(case == "names" || are_even(&found), "{what}: {found:#?}");
        }
    }
}
