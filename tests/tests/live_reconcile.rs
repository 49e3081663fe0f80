//! Snapshots beside events and in their stead: who was there before is known at once, what gets lost is
//! mended and counted, and without eBPF the same table comes from snapshots alone. Needs root and `go`.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use gotrace_tests::{
    fixture::{Fixture, PATIENCE},
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, Outcome, binary, privileged},
};
use serde_json::Value;

const PARKED: u64 = 3_000;

fn program(version: &str) -> PathBuf {
    build("account", version, Mode::Stripped, Arch::HOST).expect("the fixture builds")
}

/// The program, with so many goroutines parked.
fn parked(version: &str, n: u64) -> Fixture {
    let mut fixture =
        Fixture::start(&program(version), &["-scenario", "park", "-n", &n.to_string()]).expect("it starts");
    let done = fixture.run().expect("it parks them");
    assert_eq!(done["parked"], n);
    fixture
}

fn site<'a>(report: &'a Value, entry: &str) -> Option<&'a Value> {
    report["sites"].as_array().expect("sites").iter().find(|s| s["entry"]["function"] == entry)
}

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {of}"))
}

/// Alive but for the runtime's own; `main` is the program's.
fn users(report: &Value) -> u64 {
    let sites = report["sites"].as_array().expect("sites");
    let of_user = |s: &&Value| {
        let entry = s["entry"]["function"].as_str().unwrap_or("?");
        !entry.starts_with("runtime.") || entry == "runtime.main"
    };
    sites.iter().filter(of_user).map(|s| number(s, "alive")).sum()
}

fn first_interval(outcome: &Outcome) -> &Value {
    outcome.lines.iter().find_map(|l| l.get("interval")).expect("an interval")
}

/// The state after so many parked: as the program has it.
fn assert_parked(report: &Value, n: u64, what: &str) {
    let parked = site(report, "main.parked").unwrap_or_else(|| panic!("{what}: main.parked in {report}"));
    assert_eq!(number(parked, "alive"), n, "{what}");
    assert_eq!(parked["created_by"]["function"], "main.park", "{what}");
    assert!(
        parked["created_by"]["file"].as_str().is_some_and(|f| f.ends_with("bulk.go")),
        "{what}: {parked}"
    );
    assert_eq!(number(&parked["waiting"], "chan receive"), n, "{what}");
    assert_eq!(users(report), n + 1, "{what}: those and main");
    assert_eq!(report["alive_is_lower_bound"], false, "{what}");
}

#[test]
fn who_was_there_before_is_known_at_once() {
    if !privileged("live_reconcile") {
        return;
    }
    for version in ["1.19.13", "1.24.11", "1.27.3"] {
        let mut fixture = parked(version, PARKED);
        let gotrace = Gotrace::attach(fixture.pid(), &["--interval", "300ms"]).expect("gotrace attaches");
        thread::sleep(Duration::from_millis(1000));
        gotrace.interrupt();
        let outcome = gotrace.wait().expect("gotrace ends");
        assert!(outcome.status.success(), "{}", outcome.stderr);
        for report in [first_interval(&outcome), outcome.summary().expect("a summary")] {
            assert_parked(report, PARKED, version);
            let parked = site(report, "main.parked").expect("checked");
            assert_eq!((number(report, "born"), number(report, "died")), (0, 0), "{version}");
            assert_eq!(parked["oldest_is_lower_bound"], true, "{version}");
            assert!(number(parked, "oldest_ns") > 0, "{version}");
            assert_eq!(report["repaired"], serde_json::json!({}), "{version}");
        }
        assert!(outcome.export.spans.is_empty(), "{version}: births that nobody saw make no spans");
        fixture.finish().expect("it ends well");
        eprintln!("go{version}: {PARKED} that were there before are known at once");
    }
}

/// Stops gotrace itself, so that the ring fills.
fn hold(gotrace: &Gotrace, hold: bool) {
    let signal = if hold { libc::SIGSTOP } else { libc::SIGCONT };
    // SAFETY: kill takes no pointers; the pid is that of our own child, not yet waited for.
    unsafe { libc::kill(gotrace.pid().cast_signed(), signal) };
}

const TINY: [&str; 6] = ["--ring-bytes", "64K", "--reconcile", "500ms", "--interval", "300ms"];

#[test]
fn lost_births_are_mended_and_counted() {
    if !privileged("live_reconcile") {
        return;
    }
    let n = 50_000;
    let mut fixture =
        Fixture::start(&program("1.27.3"), &["-scenario", "park", "-n", &n.to_string()]).expect("it starts");
    let gotrace = Gotrace::attach(fixture.pid(), &TINY).expect("gotrace attaches");
    thread::sleep(Duration::from_millis(300));
    hold(&gotrace, true);
    fixture.run().expect("it parks them");
    hold(&gotrace, false);
    thread::sleep(Duration::from_millis(2500));
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("gotrace ends");
    let summary = outcome.summary().expect("a summary");
    let (lost, mended) = (number(&summary["lost"], "ring_create"), number(&summary["repaired"], "birth"));
    eprintln!("of {n} births {lost} were lost and {mended} mended");
    assert!(lost > n / 2, "the ring was too large for this test: {lost} lost");
    // A goroutine of the runtime may have been among the lost, and ended again.
    assert!(mended <= lost && lost - mended < 10, "lost {lost}, mended {mended}");
    let parked = site(summary, "main.parked").expect("they are known");
    assert_eq!((number(parked, "alive"), number(parked, "born")), (n, n));
    assert_eq!(users(summary), n + 1);
    fixture.finish().expect("it ends well");
}

#[test]
fn lost_deaths_are_mended_and_counted() {
    if !privileged("live_reconcile") {
        return;
    }
    let args = ["-scenario", "churn", "-rate", "100000", "-n", "200000"];
    let mut fixture = Fixture::start(&program("1.27.3"), &args).expect("it starts");
    let gotrace = {
        let mut more = vec!["--level", "lifecycle"];
        more.extend(TINY);
        Gotrace::attach(fixture.pid(), &more).expect("gotrace attaches")
    };
    fixture.go().expect("it goes");
    for _ in 0..8 {
        thread::sleep(Duration::from_millis(100));
        hold(&gotrace, true);
        thread::sleep(Duration::from_millis(100));
        hold(&gotrace, false);
    }
    fixture.done(PATIENCE).expect("it ends");
    thread::sleep(Duration::from_millis(2000));
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("gotrace ends");
    let summary = outcome.summary().expect("a summary");
    eprintln!("lost {}, mended {}", summary["lost"], summary["repaired"]);
    assert!(number(&summary["lost"], "ring_exit") > 0, "the ring was too large for this test");
    assert!(number(&summary["repaired"], "death") > 0, "{summary}");
    // Those that nobody ever met are not made up.
    let workers = site(summary, "main.churnWorker").expect("most were seen");
    assert_eq!(number(workers, "alive"), 0);
    assert_eq!(number(workers, "born"), number(workers, "died"));
    assert_eq!(users(summary), 1, "main");
    fixture.finish().expect("it ends well");
}

#[test]
fn snapshots_alone_show_the_same_table() {
    if !privileged("live_reconcile") {
        return;
    }
    for version in ["1.19.13", "1.27.3"] {
        let mut fixture =
            Fixture::start(&program(version), &["-scenario", "park", "-n", "3000"]).expect("it starts");
        let gotrace = Gotrace::attach(fixture.pid(), &["--engine", "snapshot", "--interval", "100ms"])
            .expect("gotrace attaches");
        thread::sleep(Duration::from_millis(300));
        fixture.run().expect("it parks them");
        thread::sleep(Duration::from_millis(500));
        gotrace.interrupt();
        let outcome = gotrace.wait().expect("gotrace ends");
        assert!(outcome.status.success(), "{}", outcome.stderr);
        let summary = outcome.summary().expect("a summary");
        assert_eq!((&summary["engine"], &summary["level"]), (&"snapshot".into(), &"sampled".into()));
        assert_parked(summary, PARKED, version);
        let parked = site(summary, "main.parked").expect("checked");
        assert_eq!((number(parked, "born"), number(parked, "died")), (PARKED, 0), "{version}: differences");
        for nothing in ["lost", "repaired", "events"] {
            assert_eq!(summary[nothing], serde_json::json!({}), "{version}: {nothing}");
        }
        assert!(number(&summary["snapshot_ns"], "count") >= 5, "{summary}");
        assert!(outcome.export.spans.is_empty(), "{version}: what is sampled makes no spans");
        fixture.finish().expect("it ends well");
    }
}

#[test]
fn deaths_between_snapshots_are_seen() {
    if !privileged("live_reconcile") {
        return;
    }
    let args = ["-scenario", "all", "-nap", "400ms"];
    let mut fixture = Fixture::start(&program("1.27.3"), &args).expect("it starts");
    let gotrace = Gotrace::attach(fixture.pid(), &["--engine", "snapshot", "--interval", "100ms"])
        .expect("gotrace attaches");
    thread::sleep(Duration::from_millis(300));
    fixture.run().expect("it runs");
    fixture.finish().expect("it ends well");
    let outcome = gotrace.wait().expect("gotrace ends");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let summary = outcome.summary().expect("a summary");
    assert_eq!(summary["ended"], "the process ended");
    let account = fixture.account().expect("an account");
    // Who naps lives through several snapshots, and nobody is seen who was not there.
    let leaf = |g: &&gotrace_tests::fixture::Goroutine| g.entry == "main.leaf";
    let leaves = account.goroutines.iter().filter(leaf).count() as u64;
    let site = site(summary, "main.leaf").expect("it was seen");
    assert!(leaves > 0);
    assert_eq!((number(site, "born"), number(site, "died")), (leaves, leaves));
}

/// gotrace without the capabilities that eBPF takes.
fn without_bpf(args: &[&str]) -> std::process::Output {
    const DROPPED: &str = "-sys_admin,-bpf,-perfmon";
    Command::new("setpriv")
        .args(["--bounding-set", DROPPED, "--inh-caps", DROPPED, "--"])
        .arg(binary().expect("built"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("setpriv (util-linux) starts")
}

#[test]
fn auto_falls_back_and_says_so() {
    if !privileged("live_reconcile") {
        return;
    }
    let fixture = parked("1.27.3", PARKED);
    let pid = fixture.pid().to_string();
    let attach = ["attach", "--pid", &pid, "--duration", "300ms", "--format", "json"];
    let output = without_bpf(&attach);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    for part in
        ["eBPF does not work here", "permission denied", "snapshot engine", "no spans", "gotrace doctor"]
    {
        assert!(stderr.contains(part), "{part:?} in {stderr}");
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut lines = stdout.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
    let header = lines.next().expect("a header");
    assert_eq!((&header["engine"], &header["level"]), (&"snapshot".into(), &"sampled".into()));
    let summary = lines.next_back().expect("a summary");
    assert_parked(&summary["summary"], PARKED, "fallback");

    let mut strict = attach.to_vec();
    strict.extend(["--engine", "events"]);
    let output = without_bpf(&strict);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "events and nothing else: {stderr}");

    let output = without_bpf(&["doctor", "--format", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&report["engine"], &report["engines"]),
        (&"snapshot".into(), &serde_json::json!(["snapshot"]))
    );
}

#[test]
fn exec_by_snapshots_begins_with_the_program() {
    if !privileged("live_reconcile") {
        return;
    }
    let program = program("1.27.3");
    let command = [program.to_str().expect("a plain path"), "-now", "-scenario", "all", "-nap", "200ms"];
    let gotrace =
        Gotrace::exec(&["--engine", "snapshot", "--interval", "100ms"], &command).expect("it is run");
    let outcome = gotrace.wait().expect("gotrace ends");
    assert!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
    let summary = outcome.summary().expect("a summary");
    assert!(number(summary, "born") > 10 && number(summary, "died") > 10, "{summary}");
    assert!(outcome.export.spans.is_empty());
}

#[test]
fn a_layout_that_does_not_fit_is_refused_before_a_word_is_printed() {
    if !privileged("live_reconcile") {
        return;
    }
    // A program that names another version of Go than the one whose structures it has.
    let bytes = std::fs::read(program("1.27.3")).expect("the program");
    let mut changed = bytes.clone();
    let (from, to) = (b"go1.27.3", b"go1.24.3");
    let mut found = 0;
    while let Some(at) = changed.windows(from.len()).position(|w| w == from) {
        changed[at..at + to.len()].copy_from_slice(to);
        found += 1;
    }
    assert!(found > 0);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lies");
    std::fs::write(&path, changed).expect("written");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let mut fixture = Fixture::start(&path, &["-scenario", "park", "-n", "100"]).expect("it starts");
    fixture.run().expect("it parks them");
    let pid = fixture.pid().to_string();
    for engine in ["events", "snapshot"] {
        let output = Command::new(binary().expect("built"))
            .args(["attach", "--pid", &pid, "--duration", "1s", "--format", "json", "--engine", engine])
            .stdin(Stdio::null())
            .output()
            .expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{engine}: {stderr}");
        assert!(output.stdout.is_empty(), "{engine}: a word was printed");
        assert!(stderr.contains("not laid out as gotrace expects") && stderr.contains("help: "), "{stderr}");
    }
    fixture.finish().expect("it ends well");
}
