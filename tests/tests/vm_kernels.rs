//! The same static binary with its embedded eBPF object attaches on every supported kernel and
//! architecture, by links where the kernel has them, its account agrees with the Go program's there, and so do the
//! stacks that it dumps, and what is told of a program within a CPU quota. On arm64, which no other test runs on, leaks are
//! proven too; there and on the oldest kernel requests are told.
//! Needs `go` and qemu, not root.

use std::collections::BTreeSet;

use gotrace_tests::{
    compare::{Rules, compare},
    cpu,
    dump::{Dump, disagreements},
    export::Export,
    fixture::Account,
    gobuild::{Arch, Mode, build},
    gotrace::links_in,
    patterns::Told,
    requests::{
        Own, Report,
        judge::{identity, left_open, pairs, record},
        server_for,
    },
    traceback::{self, Goroutine},
    vm::{Left, Programs, SERIES, boot, tail},
};
use serde_json::Value;

/// The kernels on which leaks are proven: on an architecture that no test runs on otherwise.
const PROVEN: [(Arch, &str); 1] = [(Arch::Arm64, "6.12")];
/// The kernels on which requests are told: the oldest, and that architecture.
const SERVED: [(Arch, &str); 2] = [(Arch::Amd64, "5.10"), (Arch::Arm64, "6.12")];
/// Of the leaked goroutines, at least so many in a hundred are found at once.
const LEAST: usize = 75;

/// Whether the kernel has links of many uprobes, for all threads of a process: what doctor finds by trying, and
/// how `attach` then puts its probes in place.
fn judge_links(left: &Left, expected: bool) -> Result<&'static str, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let found = links_in(file("doctor")).map_err(|e| format!("{e:#}: {}", file("doctor")))?;
    let said = if expected { "attaching probes by links" } else { "attaching probes by perf events" };
    if found == expected && file("stderr").contains(said) {
        return Ok(if expected { "by links" } else { "by perf events" });
    }
    Err(format!("links expected: {expected}; doctor:\n{}\nattach:\n{}", file("doctor"), file("stderr")))
}

/// Whether a check of doctor's is all right.
fn is_well(left: &Left, check: &str) -> Result<bool, String> {
    let doctor = left.files.get("doctor").map_or("", String::as_str);
    let report: Value = serde_json::from_str(doctor).map_err(|e| format!("{e}: {doctor}"))?;
    let mut checks = report["checks"].as_array().into_iter().flatten();
    Ok(checks.any(|found| found["name"] == check && found["state"] == "ok"))
}

/// Whether the kernel's verifier takes every program, with all that it can do switched on.
fn judge_programs(left: &Left) -> Result<(), String> {
    if is_well(left, "eBPF programs")? {
        return Ok(());
    }
    let doctor = left.files.get("doctor").map_or("", String::as_str);
    Err(format!("the kernel refuses programs; doctor:\n{doctor}"))
}

/// Whether the kernel tells CPU time: what doctor finds by trying, and what spans then have.
fn judge_cpu_time(left: &Left) -> Result<(), String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    if is_well(left, "CPU time")? && file("export").contains("gotrace.time.on_cpu") {
        return Ok(());
    }
    Err(format!(
        "CPU time of goroutines is not told; doctor:\n{}\nattach:\n{}",
        file("doctor"),
        file("stderr")
    ))
}

/// Holds the accounts of one machine against each other.
fn judge(left: &Left) -> Result<String, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let about = || {
        format!(
            "statuses {:?}\nstderr:\n{}\nconsole:\n{}",
            left.statuses,
            tail(file("stderr"), 30),
            tail(&left.console, 15)
        )
    };
    for who in ["fixture", "gotrace"] {
        if left.statuses.get(who).map(String::as_str) != Some("0") {
            return Err(format!("{who} did not end well; {}", about()));
        }
    }
    let account = Account::parse(file("account")).map_err(|e| format!("{e:#}; {}", about()))?;
    let export = Export::parse(file("export")).map_err(|e| format!("{e:#}; {}", about()))?;
    // An emulated machine keeps goroutines waiting for a core, and its clocks drift against each other.
    let rules =
        Rules { clock_ns: 10_000_000, around_ns: 45_000_000, threshold_ns: 5_000_000, stray_ns: 45_000_000 };
    match compare(&account, &export.spans, rules) {
        Ok(counted) if counted.goroutines > 0 => Ok(format!(
            "{} goroutines and {} waits agree ({:.0?})",
            counted.goroutines, counted.waits, left.took
        )),
        Ok(_) => Err(format!("nothing to compare; {}", about())),
        // An emulated page may not be readable at the moment of a hit: then gotrace says so.
        Err(wrong) if wrong.len() as u64 <= lost(file("stdout")) => {
            Ok(format!("what disagrees is counted as lost: {}", wrong.join(", ")))
        }
        Err(wrong) => Err(format!(
            "{} disagreements:\n  {}\ngotrace's last line:\n  {}",
            wrong.len(),
            wrong.join("\n  "),
            tail(file("stdout"), 1)
        )),
    }
}

/// How many events the summary says were lost.
fn lost(stdout: &str) -> u64 {
    let summary: Option<serde_json::Value> = stdout.lines().last().and_then(|l| serde_json::from_str(l).ok());
    let lost = summary.as_ref().and_then(|s| s["summary"]["lost"].as_object());
    lost.map_or(0, |kinds| kinds.values().filter_map(serde_json::Value::as_u64).sum())
}

/// Holds the dump of one machine against both tracebacks of the program: its own, and on SIGQUIT.
fn judge_dump(left: &Left) -> Result<String, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let about = || format!("statuses {:?}\n{}", left.statuses, tail(file("dump-stderr"), 30));
    if left.statuses.get("dump").map(String::as_str) != Some("0") {
        return Err(format!("gotrace dump did not end well; {}", about()));
    }
    let mut wrong = Vec::new();
    let mut frames = 0;
    for (name, whole) in [("own", false), ("quit", true)] {
        let mut dump = Dump::parse(file("dump"), whole).map_err(|e| format!("{e:#}; {}", about()))?;
        if dump.unread() != 0 {
            return Err(format!("a program that stands still is dumped with {}", dump.summary));
        }
        let mut theirs = traceback::parse(file(name));
        if !whole {
            // It printed this while it ran.
            theirs.remove(&1);
        }
        if theirs.len() < 40 {
            return Err(format!("{name} has only {} goroutines; {}", theirs.len(), about()));
        }
        if whole && dump.goroutines.len() != theirs.len() {
            wrong.push(format!("{} goroutines, not {}", dump.goroutines.len(), theirs.len()));
        }
        // It sleeps and parks as it likes, between the one and the other too.
        let scavenges = |g: &Goroutine| g.frames.iter().any(|f| f.function == "runtime.bgscavenge");
        if let Some(goid) = theirs.iter().find(|(_, g)| scavenges(g)).map(|(goid, _)| *goid) {
            theirs.remove(&goid);
            dump.goroutines.remove(&goid);
        }
        frames += disagreements(&dump.goroutines, &theirs, whole, &mut wrong);
    }
    if wrong.is_empty() {
        return Ok(format!("{frames} dumped frames agree"));
    }
    Err(format!("{} disagreements of the dump:\n  {}", wrong.len(), wrong.join("\n  ")))
}

/// Holds what was proven on one machine against the program's own account and its runtime's.
fn judge_proof(left: &Left) -> Result<String, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let about = || format!("statuses {:?}\n{}", left.statuses, tail(file("leaks-stderr"), 30));
    if left.statuses.get("leaks").map(String::as_str) != Some("0") {
        return Err(format!("gotrace leaks did not end well; {}", about()));
    }
    let told = Told::parse(file("patterns")).map_err(|e| format!("{e:#}; {}", about()))?;
    let lines = file("leaks").lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    let lines = lines.map_err(|e| format!("what gotrace leaks printed: {e}; {}", about()))?;
    let found: BTreeSet<u64> = lines
        .iter()
        .filter(|l| l["verdict"] == "unreachable")
        .flat_map(|l| l["goids"].as_array().cloned().unwrap_or_default())
        .filter_map(|goid| goid.as_u64())
        .collect();
    let wrong: Vec<_> = found.iter().filter(|g| !told.leaked.contains_key(g)).collect();
    let profile = told.profile.unwrap_or_default();
    let theirs = profile.iter().filter(|g| found.contains(g)).count();
    let summary = lines.last().map_or(&Value::Null, |l| &l["summary"]["proof"]);
    if !wrong.is_empty() || summary["refuted"] != 0 || told.left.as_deref() != Some(&[]) {
        return Err(format!("called unreachable, and can run: {wrong:?}; {:?}; {summary}", told.left));
    }
    let kinds: BTreeSet<&String> = told.leaked.values().collect();
    if kinds.len() < 14 || told.healthy.len() < 14 || found.len() * 100 < told.leaked.len() * LEAST {
        return Err(format!("{} of {} leaked ones found; {}", found.len(), told.leaked.len(), about()));
    }
    Ok(format!(
        "{} of {} leaked goroutines proven, {theirs} of the runtime's own {}",
        found.len(),
        told.leaked.len(),
        profile.len()
    ))
}

/// Holds what was told of a server's requests on one machine against its own account.
fn judge_requests(left: &Left) -> Result<String, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let about = || format!("statuses {:?}\n{}", left.statuses, tail(file("requests-stderr"), 30));
    if left.statuses.get("requests").map(String::as_str) != Some("0") {
        return Err(format!("gotrace requests did not end well; {}", about()));
    }
    let lines = |name: &str| -> Result<Vec<Value>, String> {
        let lines = file(name).lines().map(serde_json::from_str).collect::<Result<_, _>>();
        lines.map_err(|e| format!("{name}: {e}; {}", about()))
    };
    let own = lines("served")?.into_iter().filter(|line| line.get("kind").is_some());
    let own: Vec<Own> = own.filter_map(|line| serde_json::from_value(line).ok()).collect();
    let mut report = Report::default();
    lines("requests")?.into_iter().for_each(|line| report.take(line));
    let (paired, mut wrong) = pairs(&own, &report.ended);
    wrong.extend(report.ended.iter().flat_map(record));
    wrong.extend(paired.iter().flat_map(|(own, seen)| identity(own, seen)));
    wrong.extend(left_open(&report));
    let waits = report.ended.iter().flat_map(|r| r["waits"].as_array().cloned().unwrap_or_default());
    let peers = waits.filter(|wait| !wait["peer"].is_null()).count();
    if own.len() < 20 || peers == 0 {
        wrong.push(format!("{} requests of its own, {peers} waits with a peer", own.len()));
    }
    if wrong.is_empty() {
        return Ok(format!("{} requests agree", paired.len()));
    }
    Err(format!("{} disagreements of requests:\n  {}\n{}", wrong.len(), wrong.join("\n  "), about()))
}

/// Holds what was told of a program within a CPU quota on one machine against the clocks of its threads, and against what
/// its control group says.
fn judge_quota(left: &Left) -> Result<String, String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    let about = || {
        let said = ["used", "cpu", "quota", "cpu-stderr"].map(|name| tail(file(name), 30));
        format!("statuses {:?}\n{}", left.statuses, said.join("\n"))
    };
    if left.statuses.get("cpu").map(String::as_str) != Some("0") {
        return Err(format!("gotrace attach did not end well; {}", about()));
    }
    let last = |name: &str| file(name).lines().last().and_then(|l| serde_json::from_str(l).ok());
    let own: Value = last("used").ok_or_else(about)?;
    let seen = last("cpu").map(|line: Value| line["summary"].clone()).ok_or_else(about)?;
    let of_group = |name: &str| -> u64 {
        let line = file("quota").lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().parse().unwrap_or(0)
    };
    let elapsed = own["elapsed"].as_u64().unwrap_or(0);
    let (cpu, throttled) = (cpu::sum(&seen, "cpu_ns", |_| true), cpu::sum(&seen, "throttled_ns", |_| true));
    let group = of_group("throttled_usec ") * 1000;
    let process = own["process"].as_u64().unwrap_or(0);
    let told = format!(
        "of {} ms on two CPUs {} ms were used and {} ms throttled, {} ms by the group ({} of {} periods)",
        elapsed / 1_000_000,
        cpu / 1_000_000,
        throttled / 1_000_000,
        group / 1_000_000,
        of_group("nr_throttled "),
        of_group("nr_periods ")
    );
    // A probe takes long on an emulated processor, and what it takes is the thread's, and no goroutine's. The group counts
    // the time of its queues, on each of which more than one thread may stand still.
    let is_right = cpu > process / 2
        && cpu < process + process / 20
        && group > 0
        && throttled > group * 7 / 10
        && throttled < group * 2;
    if is_right {
        Ok(told)
    } else {
        Err(format!("{told}, {} ms by the process; {}", process / 1_000_000, about()))
    }
}

/// Nobody died who was executed under the daemon.
fn judge_harm(left: &Left) -> Result<(), String> {
    let file = |name: &str| left.files.get(name).map_or("", String::as_str);
    match left.statuses.get("harm").map(String::as_str) {
        Some("0") => Ok(()),
        died => {
            Err(format!("{died:?} of 16 programs died:\n{}\n{}", file("harm"), tail(file("harm-daemon"), 30)))
        }
    }
}

fn every_kernel(arch: Arch, version: &str) {
    let fixture = build("account", version, Mode::Stripped, arch).expect("the fixture builds");
    let stacks = build("stacks", version, Mode::Stripped, arch).expect("the program builds");
    let cpu = build("cpu", version, Mode::Stripped, arch).expect("the program builds");
    let patterns = build("leakpatterns", version, Mode::Stripped, arch).expect("the program builds");
    let harm = build("harm", version, Mode::Stripped, arch).expect("the program builds");
    let older = build("harm", "1.26.6", Mode::Stripped, arch).expect("the program builds");
    let requests = server_for(arch, "1.27", version, Mode::Stripped);
    let mut failed = Vec::new();
    for series in SERIES {
        let name = format!("kernel {series} {} go{version}", arch.name());
        let proven = PROVEN.contains(&(arch, series));
        let patterns = proven.then_some(&*patterns);
        let served = SERVED.contains(&(arch, series));
        let requests = served.then_some(&*requests);
        let programs = Programs {
            fixture: &fixture,
            stacks: &stacks,
            cpu: &cpu,
            patterns,
            requests,
            harm: [&harm, &older],
        };
        // What the dump, the proof and the links have wrong is wrong for good; what rests on clocks, apart.
        let run = || {
            let left = boot(series, arch, programs).map_err(|e| format!("{e:#}"))?;
            let mut more = String::new();
            if proven {
                more = format!("; {}", judge_proof(&left)?);
            }
            if served {
                more += &format!("; {}", judge_requests(&left)?);
            }
            judge_programs(&left)?;
            let by = judge_links(&left, ["6.12", "7"].contains(&series))?;
            let dump = judge_dump(&left)?;
            judge_harm(&left)?;
            judge_cpu_time(&left)?;
            let by_clocks = judge(&left).and_then(|account| Ok((account, judge_quota(&left)?)));
            Ok::<_, String>(
                by_clocks.map(|(a, quota)| format!("{} {by}: {a}; {quota}; {dump}{more}", left.kernel)),
            )
        };
        // An emulated machine may stand still in the midst of what the account arranged. Twice in a row is no chance.
        let judged = run().and_then(|account| {
            account.or_else(|e| {
                eprintln!("{name}: DISAGREES, once more: {e}");
                run().and_then(|account| account)
            })
        });
        match judged {
            Ok(line) => eprintln!("{name}: {line}"),
            Err(e) => {
                eprintln!("{name}: {e}");
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn amd64() {
    every_kernel(Arch::Amd64, "1.27.3");
}

#[test]
fn arm64() {
    every_kernel(Arch::Arm64, "1.27.3");
}
