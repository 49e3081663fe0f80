//! Snapshots beside events and in their stead: who was there before is known at once, what gets lost is
//! mended and counted, and without eBPF the same table comes from snapshots alone. Needs root and `go`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
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

/// Whether a snapshot has seen everybody.
fn is_whole(report: &Value) -> bool {
    report["alive_is_lower_bound"] == false
}

/// The first interval that says of itself that it has everybody.
fn first_whole(outcome: &Outcome) -> &Value {
    outcome.lines.iter().filter_map(|l| l.get("interval")).find(|i| is_whole(i)).expect("a whole interval")
}

/// How many of a function are alive.
fn alive(report: &Value, entry: &str) -> u64 {
    site(report, entry).map_or(0, |s| number(s, "alive"))
}

fn snapshots(report: &Value) -> u64 {
    number(&report["snapshot_ns"], "count")
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
        let mut gotrace = Gotrace::attach(fixture.pid(), &["--interval", "300ms"]).expect("gotrace attaches");
        gotrace.until("everybody is known", is_whole).expect("known");
        gotrace.interrupt();
        let outcome = gotrace.wait().expect("gotrace ends");
        assert!(outcome.status.success(), "{}", outcome.stderr);
        for report in [first_whole(&outcome), outcome.summary().expect("a summary")] {
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

/// Stops gotrace itself, so that the ring fills; comes back when all of it stands.
fn hold(gotrace: &Gotrace) {
    signal(gotrace, libc::SIGSTOP);
    let tasks = format!("/proc/{}/task", gotrace.pid());
    let stands = |stat: &str| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'));
    let begun = Instant::now();
    loop {
        let mut all = fs::read_dir(&tasks).expect("it lives").flatten();
        // A thread may end meanwhile.
        if all.all(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stands(&stat))) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not stand");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Lets it go on.
fn release(gotrace: &Gotrace) {
    signal(gotrace, libc::SIGCONT);
}

fn signal(gotrace: &Gotrace, signal: i32) {
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
    let mut gotrace = Gotrace::attach(fixture.pid(), &TINY).expect("gotrace attaches");
    gotrace.until("everybody is known", is_whole).expect("known");
    hold(&gotrace);
    fixture.run().expect("it parks them");
    release(&gotrace);
    gotrace
        .until("the lost ones are known", |i| alive(i, "main.parked") == n && users(i) == n + 1)
        .expect("mended");
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
    let mut gotrace = {
        let mut more = vec!["--level", "lifecycle"];
        more.extend(TINY);
        Gotrace::attach(fixture.pid(), &more).expect("gotrace attaches")
    };
    fixture.go().expect("it goes");
    // For as long as the program works, and gotrace stands last when it is done.
    let done = loop {
        hold(&gotrace);
        let done = fixture.done(Duration::from_millis(100));
        release(&gotrace);
        if let Ok(done) = done {
            break done;
        }
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(done["born"], 200_000);
    // What is left in the ring may make one alive once more, until a snapshot comes after it.
    let before = snapshots(&gotrace.until("it goes on", |_| true).expect("it does"));
    gotrace
        .until("the dead ones are gone", |i| {
            snapshots(i) >= before + 2 && alive(i, "main.churnWorker") == 0 && users(i) == 1
        })
        .expect("mended");
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
        let mut gotrace = Gotrace::attach(fixture.pid(), &["--engine", "snapshot", "--interval", "100ms"])
            .expect("gotrace attaches");
        gotrace.until("a snapshot is there", |i| snapshots(i) > 0).expect("taken");
        fixture.run().expect("it parks them");
        gotrace
            .until("they are known", |i| alive(i, "main.parked") == PARKED && snapshots(i) >= 5)
            .expect("known");
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
        assert!(snapshots(summary) >= 5, "{summary}");
        assert!(outcome.export.spans.is_empty(), "{version}: what is sampled makes no spans");
        fixture.finish().expect("it ends well");
    }
}

#[test]
fn deaths_between_snapshots_are_seen() {
    if !privileged("live_reconcile") {
        return;
    }
    // So long that snapshots every 100 ms meet who naps, on a machine that is busy too.
    let args = ["-scenario", "family", "-nap", "3s"];
    let mut fixture = Fixture::start(&program("1.27.3"), &args).expect("it starts");
    let mut gotrace = Gotrace::attach(fixture.pid(), &["--engine", "snapshot", "--interval", "100ms"])
        .expect("gotrace attaches");
    gotrace.until("a snapshot is there", |i| snapshots(i) > 0).expect("taken");
    fixture.run().expect("it runs");
    gotrace.until("they are gone", |i| alive(i, "main.leaf") == 0).expect("gone");
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
fn without_bpf() -> Command {
    const DROPPED: &str = "-sys_admin,-bpf,-perfmon";
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args(["--bounding-set", DROPPED, "--inh-caps", DROPPED, "--"])
        .arg(binary().expect("built"))
        .stdin(Stdio::null());
    setpriv
}

#[test]
fn auto_falls_back_and_says_so() {
    if !privileged("live_reconcile") {
        return;
    }
    let fixture = parked("1.27.3", PARKED);
    let mut gotrace =
        Gotrace::attach_by(without_bpf(), fixture.pid(), &["--interval", "100ms"]).expect("gotrace attaches");
    gotrace.until("everybody is known", is_whole).expect("known");
    gotrace.interrupt();
    let outcome = gotrace.wait().expect("gotrace ends");
    let stderr = &outcome.stderr;
    assert!(outcome.status.success(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    for part in [
        "eBPF does not work on this host",
        "permission denied",
        "snapshot engine",
        "without spans",
        "gotrace doctor",
    ] {
        assert!(stderr.contains(part), "{part:?} in {stderr}");
    }
    let summary = outcome.summary().expect("a summary");
    assert_eq!((&summary["engine"], &summary["level"]), (&"snapshot".into(), &"sampled".into()));
    assert_parked(summary, PARKED, "fallback");

    let pid = fixture.pid().to_string();
    let strict = ["attach", "--pid", &pid, "--duration", "300ms", "--format", "json", "--engine", "events"];
    let output = without_bpf().args(strict).output().expect("setpriv (util-linux) starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "events and nothing else: {stderr}");

    let output = without_bpf().args(["doctor", "--format", "json"]).output().expect("it starts");
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
        assert!(stderr.contains("not laid out as expected") && stderr.contains("help: "), "{stderr}");
    }
    fixture.finish().expect("it ends well");
}
