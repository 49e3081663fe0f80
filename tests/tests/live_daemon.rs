//! The node agent on real Go programs: it finds those that run and those that start, traces many at once,
//! takes a changed configuration, keeps within its budget, and loses nothing at its end. Needs root and
//! `go`.

use std::{
    io::BufRead as _,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use gotrace_tests::{
    daemon::{Daemon, Metrics, Place, Program, of},
    export::Export,
    fixture::PATIENCE,
    gotrace::{binary, by_links, privileged},
};

fn place() -> Option<Place> {
    privileged("live_daemon").then(|| Place::new().expect("a directory"))
}

fn start(place: &Place, name: &str) -> Program {
    Program::start(&place.program(name).expect("the program builds")).expect("it starts")
}

fn until(daemon: &Daemon, what: &str, holds: impl Fn(&Metrics) -> bool) -> Duration {
    daemon.until(what, PATIENCE, |d| Ok(holds(&d.metrics()?))).unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn those_that_run_and_those_that_start_are_found_and_others_left_alone() {
    let (Some(place), Some(elsewhere)) = (place(), place()) else { return };
    let mut old = start(&place, "shop");
    let other = start(&elsewhere, "shop");
    let config = place.config("level: waits", "");
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    until(&daemon, "the one that ran is traced", |m| m.has(old.pid()));
    let mut new = start(&place, "shop");
    let mut till = start(&place, "till");
    until(&daemon, "those that started are traced", |m| m.has(new.pid()) && m.has(till.pid()));
    let counts: Vec<u64> =
        [(&mut old, "churn 2000 1s"), (&mut new, "churn 1000 1s"), (&mut till, "churn 500 1s")]
            .into_iter()
            .map(|(program, command)| program.count(command).expect("it churns"))
            .collect();
    let all = [old.pid(), new.pid(), till.pid()];
    // Two processes of one file share its probes: each birth is counted once, and for its own process.
    until(&daemon, "all births are counted", |m| {
        all.iter().zip(&counts).all(|(pid, count)| m.churned(*pid) == *count as f64)
    });
    let metrics = daemon.metrics().expect("a page");
    assert_eq!(metrics.sum("gotrace_events_lost_total", &[]), 0.0, "{}", metrics.0);
    assert_eq!(metrics.sum("gotrace_programs_parsed_total", &[]), 1.0, "both files have one content");
    assert_eq!(metrics.sum("gotrace_probed_files", &[]), 2.0);
    assert!(!metrics.has(other.pid()), "the rules do not take it");
    assert!(!metrics.has(daemon.pid()));
    let new_pid = new.pid();
    new.finish().expect("it ends");
    until(&daemon, "the one that ended is gone", |m| !m.has(new_pid));
    until(&daemon, "that is counted", |m| m.sum("gotrace_processes_ended_total", &[]) == 1.0);
    let metrics = daemon.metrics().expect("a page");
    assert_eq!(metrics.sum("gotrace_probed_files", &[]), 2.0, "another process runs that file");
    till.finish().expect("it ends");
    until(&daemon, "probes that nobody needs are removed", |m| m.sum("gotrace_probed_files", &[]) == 1.0);
    let own = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    // BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH, LEASE; where probes are perf events, SYS_ADMIN.
    let kept = (1u64 << 39) | (1 << 38) | (1 << 28) | (1 << 19) | (1 << 2);
    let kept = if by_links().expect("doctor tells") { kept } else { kept | (1 << 21) };
    let older = (1u64 << 24) | (1 << 12);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let held = own.lines().find_map(|l| l.strip_prefix(set)).expect("a set");
        let held = u64::from_str_radix(held.trim(), 16).expect("a number");
        assert_eq!(held & !older & !kept, 0, "{set} {held:#x}");
    }
    assert!(own.contains("NoNewPrivs:\t1"), "{own}");
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
    old.count("churn 100 100ms").expect("the program lives on");
}

#[test]
fn a_hundred_processes_of_ten_files_of_one_content_cost_one_reading() {
    let Some(place) = place() else { return };
    let mut programs: Vec<Program> = (0..50).map(|n| start(&place, &format!("p{}", n % 10))).collect();
    let config = place.config("level: lifecycle", "limits: {processes: 80}\n");
    let daemon = Daemon::start(&config, &[]).expect("it starts");
    programs.extend((0..50).map(|n| start(&place, &format!("p{}", n % 10))));
    let took = until(&daemon, "all are traced", |m| programs.iter().all(|p| m.has(p.pid())));
    // For whom there is no room is traced by snapshots, and counted.
    until(&daemon, "80 have probes, 20 have not", |m| {
        m.sum("gotrace_processes", &["gotrace_engine=\"events\""]) == 80.0
            && m.sum("gotrace_processes", &["gotrace_engine=\"snapshot\""]) == 20.0
            && m.sum("gotrace_processes_without_room_total", &[]) == 20.0
    });
    let metrics = daemon.metrics().expect("a page");
    assert_eq!(metrics.sum("gotrace_programs_parsed_total", &[]), 1.0, "all files have one content");
    assert_eq!(metrics.sum("gotrace_probed_files", &[]), 10.0);
    let (status, ended_in, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
    eprintln!("100 processes traced {took:?} after the last had started; all probes removed in {ended_in:?}");
}

#[test]
fn a_process_that_executes_another_program_begins_anew() {
    let Some(place) = place() else { return };
    let till = place.program("till").expect("the program builds");
    let mut program = start(&place, "shop");
    let pid = program.pid();
    let daemon = Daemon::start(&place.config("level: waits", ""), &[]).expect("it starts");
    until(&daemon, "it is traced", |m| m.has(pid));
    let before = program.count("churn 1000 300ms").expect("it churns");
    until(&daemon, "its births are counted", |m| m.churned(pid) == before as f64);
    program.say(&format!("exec {}", till.display())).expect("it listens");
    program.answer().expect("the other program greets");
    until(&daemon, "the other program is traced", |m| {
        m.has(pid) && !m.values("target_info", &[&of(pid), "process_executable_name=\"till\""]).is_empty()
    });
    let after = program.count("churn 500 300ms").expect("it churns");
    until(&daemon, "only the other program's births are counted", |m| m.churned(pid) == after as f64);
    program.finish().expect("it ends");
    until(&daemon, "it is gone", |m| !m.has(pid));
}

#[test]
fn a_changed_configuration_is_taken_without_losing_what_is_known() {
    let Some(place) = place() else { return };
    let (mut shop, till) = (start(&place, "shop"), start(&place, "till"));
    let daemon = Daemon::start(&place.config("level: waits", ""), &[]).expect("it starts");
    until(&daemon, "both are traced", |m| m.has(shop.pid()) && m.has(till.pid()));
    let first = shop.count("churn 1000 300ms").expect("it churns");
    // By itself when the file changes.
    let exclude = "  exclude:\n  - executable: [till]\n";
    daemon.reconfigure(&place.config("level: lifecycle", exclude)).expect("written");
    until(&daemon, "the excluded one is gone", |m| !m.has(till.pid()));
    until(&daemon, "the level has changed", |m| m.is_at(shop.pid(), "lifecycle"));
    let second = shop.count("churn 1000 300ms").expect("it churns");
    until(&daemon, "what was known stays", |m| m.churned(shop.pid()) == (first + second) as f64);
    // One that is wrong changes nothing, and is told with its place.
    daemon.reconfigure("trace:\n  level: most\n").expect("written");
    daemon.signal(libc::SIGHUP);
    daemon
        .until("the error is told", PATIENCE, |d| Ok(d.said().contains("gotrace.yaml:2:10: ")))
        .expect("told");
    assert!(daemon.metrics().expect("a page").has(shop.pid()));
    // On SIGHUP.
    daemon.reconfigure(&place.config("level: full", "")).expect("written");
    daemon.signal(libc::SIGHUP);
    until(&daemon, "nobody is excluded any more", |m| m.has(till.pid()) && m.is_at(shop.pid(), "full"));
    let third = shop.count("churn 1000 300ms").expect("it churns");
    let all = (first + second + third) as f64;
    until(&daemon, "what was known stays", |m| m.churned(shop.pid()) == all);
    let metrics = daemon.metrics().expect("a page");
    assert_eq!(metrics.sum("gotrace_events_lost_total", &[]), 0.0, "{}", metrics.0);
}

#[test]
fn a_storm_is_brought_within_the_budget_and_what_was_lowered_is_restored() {
    let Some(place) = place() else { return };
    let (mut storm, mut calm) = (start(&place, "shop"), start(&place, "till"));
    let export = place.path().join("export.jsonl");
    let config = place.config("level: full", &format!("otlp: {{export: {}}}\n", export.display()));
    let daemon = Daemon::start(&config, &["--budget", "5%"]).expect("it starts");
    until(&daemon, "both are traced", |m| m.has(storm.pid()) && m.has(calm.pid()));
    storm.count("pingpong on").expect("it listens");
    let lowered = until(&daemon, "the storm's level is lowered", |m| m.is_at(storm.pid(), "lifecycle"));
    // The report after the next tells of a time without those probes.
    let within = |m: &Metrics| {
        m.values("gotrace_probe_cost_ratio", &[&of(storm.pid())]).iter().all(|cost| *cost <= 0.05)
    };
    let kept = lowered + until(&daemon, "it costs no more than it may", within);
    let count = calm.count("churn 100 2s").expect("it churns");
    until(&daemon, "another's goroutines are all seen", |m| m.churned(calm.pid()) == count as f64);
    let metrics = daemon.metrics().expect("a page");
    assert!(metrics.is_at(calm.pid(), "full"), "{}\n{}", metrics.0, daemon.said());
    assert!(within(&metrics), "still");
    let rounds = storm.count("pingpong off").expect("the storm ends");
    let restored = until(&daemon, "the level is restored", |m| m.is_at(storm.pid(), "full"));
    eprintln!(
        "{} parks: lowered after {lowered:?}, within the budget after {kept:?}, restored {restored:?} after the end",
        rounds * 2
    );
    let count = storm.count("churn 100 1s").expect("it churns");
    until(&daemon, "its goroutines are seen again", |m| m.churned(storm.pid()) == count as f64);
    assert!(daemon.said().contains("level changed"), "{}", daemon.said());
    daemon.finish().expect("it ends");
    let text = std::fs::read_to_string(&export).expect("an export");
    let records: Vec<&str> = text.lines().filter(|l| l.contains("\"gotrace.level.changed\"")).collect();
    assert!(records.len() >= 2 && records[0].contains("resourceLogs"), "down and up: {records:?}");
    assert!(records[0].contains("level changed from full to lifecycle"), "{}", records[0]);
}

#[test]
fn one_process_that_floods_the_ring_takes_nothing_from_another() {
    let Some(place) = place() else { return };
    let (mut flood, mut calm) = (start(&place, "shop"), start(&place, "till"));
    let config = place.config("level: lifecycle, ring_bytes: 256K", "");
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    until(&daemon, "both are traced", |m| m.has(flood.pid()) && m.has(calm.pid()));
    // It goes on until the test ends it.
    flood.say("births 1h").expect("it listens");
    let noticed = "the upper half of the ring is reserved for others";
    daemon.until_said(noticed, PATIENCE).unwrap_or_else(|e| panic!("{e:#}"));
    let count = calm.count("churn 300 3s").expect("it churns");
    until(&daemon, "all of the calm one's births are counted", |m| m.churned(calm.pid()) == count as f64);
    let metrics = daemon.metrics().expect("a page");
    assert_eq!(metrics.sum("gotrace_events_lost_total", &[&of(calm.pid())]), 0.0, "{}", metrics.0);
    eprintln!(
        "of the records of the flood beside it {} were lost",
        metrics.sum("gotrace_events_lost_total", &[&of(flood.pid())])
    );
}

#[test]
fn the_last_spans_get_out_when_it_is_told_to_end() {
    let Some(place) = place() else { return };
    let mut shop = start(&place, "shop");
    let export = place.path().join("spans.jsonl");
    let more = format!("otlp: {{export: {}}}\nspans: {{max_per_second: off}}\n", export.display());
    let config = place.config("level: lifecycle", &more);
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    until(&daemon, "it is traced", |m| m.has(shop.pid()));
    let count = shop.count("churn 5000 500ms").expect("it churns");
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
    let text = std::fs::read_to_string(&export).expect("an export");
    let export = Export::parse(&text).expect("JSON lines");
    let churned = export.spans.iter().filter(|s| s.name.starts_with("main.churn")).count();
    assert_eq!(churned as u64, count);
}

#[test]
fn without_tracepoints_the_process_connector_tells_of_new_processes() {
    let Some(place) = place() else { return };
    let daemon = Daemon::start(&place.config("engine: snapshot", ""), &[]).expect("it starts");
    assert!(
        daemon.said().contains("discovering new processes by the process connector"),
        "{}",
        daemon.said()
    );
    let mut shop = start(&place, "shop");
    let pid = shop.pid();
    until(&daemon, "a process that starts is found", |m| m.has(pid));
    shop.count("park 50").expect("it parks");
    until(&daemon, "its goroutines are seen", |m| {
        m.values("go_goroutine_count", &[&of(pid)]).first().is_some_and(|count| *count >= 50.0)
    });
    shop.finish().expect("it ends");
    until(&daemon, "and is gone when it has ended", |m| !m.has(pid));
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
}

#[test]
fn where_nothing_tells_of_new_processes_they_are_looked_for() {
    let Some(place) = place() else { return };
    // In a network of its own the connector does not answer, and the test cannot ask for pages.
    let mut command = Command::new("unshare");
    command.arg("--net").arg(binary().expect("built"));
    let config = place.config("engine: snapshot", "");
    let daemon = Daemon::start_unseen(command, &config).expect("it starts");
    let said = |what: &str| {
        daemon.until_said(what, PATIENCE).unwrap_or_else(|e| panic!("{e:#}"));
    };
    said("discovering new processes by polling /proc every second");
    let shop = start(&place, "shop");
    let pid = shop.pid();
    said(&format!("traced pid={pid} "));
    shop.finish().expect("it ends");
    said(&format!("the process ended pid={pid} "));
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
}

#[test]
fn top_shows_every_process_in_lines_and_as_json() {
    let Some(place) = place() else { return };
    let (mut shop, till) = (start(&place, "shop"), start(&place, "till"));
    shop.count("park 70").expect("it parks");
    let config = place.path().join("gotrace.yaml");
    std::fs::write(&config, place.config("level: waits", "")).expect("written");
    // Its lines up to the first that holds; then it is ended.
    let top = |format: &str, level: &[&str], holds: &dyn Fn(&[String]) -> bool| {
        let mut top = Command::new(binary().expect("built"))
            .args(["top", "--interval", "500ms", "--duration", "10m", "--format", format, "--config"])
            .arg(&config)
            .args(level)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut said = Vec::new();
        let mut lines = std::io::BufReader::new(top.stdout.take().expect("a pipe")).lines();
        while !holds(&said) {
            said.push(lines.next().unwrap_or_else(|| panic!("it ended: {said:#?}")).expect("text"));
        }
        // SAFETY: kill takes no pointers; the pid is our own child's, not yet waited for.
        unsafe { libc::kill(top.id().cast_signed(), libc::SIGINT) };
        said.extend(lines.map(|l| l.expect("text")));
        assert!(top.wait().expect("it ends").success());
        said
    };
    let of = |lines: &[String], pid: u32| {
        let begin = format!("{pid} ");
        lines.iter().rev().find(|l| l.trim_start().starts_with(&begin)).cloned().unwrap_or_default()
    };
    let (pid, other) = (shop.pid(), till.pid());
    top("table", &["--level", "waits"], &|lines| {
        let line = of(lines, pid);
        line.contains("shop")
            && line.contains("chan receive")
            && of(lines, other).contains("till")
            && of(lines, other).contains("events")
    });
    let value = |line: &String| serde_json::from_str::<Value>(line).expect("JSON");
    // The header is one, and both are there with a wait.
    let whole = |line: &Value| {
        let processes = line["processes"].as_array();
        processes.is_some_and(|p| p.len() == 2 && p[0]["top_wait"]["count"].as_u64() >= Some(70))
    };
    let json = top("json", &[], &|lines| lines.last().is_some_and(|l| whole(&value(l))));
    assert_eq!(value(&json[0])["schema"], "gotrace.top/1");
    let last = json.iter().rev().map(value).find(|l| whole(l)).expect("it was there");
    let processes = last["processes"].as_array().expect("processes");
    let first = &processes[0];
    assert_eq!(first["pid"], shop.pid(), "most goroutines first");
    assert!(first["alive"].as_u64() >= Some(70) && first["alive_is_lower_bound"] == false, "{first}");
    assert_eq!(first["place"], Value::Null);
    assert_eq!(first["engine"], "snapshot", "no level was asked for");
    assert_eq!(first["cpu_ns_per_second"], Value::Null, "switches of threads are not watched");
}

#[test]
fn one_process_that_parks_very_many_takes_no_room_of_another() {
    let Some(place) = place() else { return };
    let (mut hog, mut calm) = (start(&place, "shop"), start(&place, "till"));
    let config = place.config("level: waits, reconcile: 0s", "");
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    until(&daemon, "both are traced", |m| m.has(hog.pid()) && m.has(calm.pid()));
    hog.say("park 150000").expect("it listens");
    hog.answer().expect("all are parked");
    let count = calm.count("churn 1000 2s").expect("it churns");
    let sleeps = |m: &Metrics, pid| {
        let sleep = "gotrace_wait_reason=\"sleep\"";
        m.sum("gotrace_goroutine_wait_duration_seconds_count", &[&of(pid), sleep])
    };
    until(&daemon, "all of the other's waits are counted", |m| {
        sleeps(m, calm.pid()) >= count as f64 && m.churned(calm.pid()) == count as f64
    });
    let metrics = daemon.metrics().expect("a page");
    assert_eq!(metrics.sum("gotrace_events_lost_total", &[&of(calm.pid())]), 0.0, "{}", metrics.0);
    // What there was no room for is its own loss.
    let lost =
        metrics.sum("gotrace_events_lost_total", &[&of(hog.pid()), "gotrace_lost_kind=\"table_full\""]);
    assert!(lost > 0.0, "{}", metrics.0);
    eprintln!("of 150000 that parked in another process {lost} found no room");
    let hog_pid = hog.pid();
    hog.finish().expect("it ends");
    until(&daemon, "it is gone", |m| !m.has(hog_pid));
    // Whoever comes after it finds room again, and nothing of what it left.
    let mut next = start(&place, "shop");
    until(&daemon, "the next is traced", |m| m.has(next.pid()));
    next.say("park 10000").expect("it listens");
    next.answer().expect("all are parked");
    until(&daemon, "all of them are known to wait", |m| {
        m.sum("go_goroutine_count", &[&of(next.pid())]) >= 10_000.0
    });
    let metrics = daemon.metrics().expect("a page");
    for pid in [calm.pid(), next.pid()] {
        assert_eq!(metrics.sum("gotrace_events_lost_total", &[&of(pid)]), 0.0, "{}", metrics.0);
    }
}
