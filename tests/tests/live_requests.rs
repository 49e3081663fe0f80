//! `gotrace requests` against a server that knows where each of its requests' time went (`tests/go/requests`), with every Go
//! version and build mode. Needs root and `go`.

use gotrace_tests::{
    gobuild::{Mode, VERSIONS, minor},
    gotrace::privileged,
    quota::Quota,
    requests::{
        Own, Program, Report, Watch,
        judge::{agrees, all, counts, left_open, pairs, record, whole},
        server, server_in,
    },
};
use serde_json::Value;

/// All kinds of requests that end by themselves, and soon.
const KINDS: &str = "sleep mutex_sleeping mutex_computing channel select waitgroup cpu assist io syscall raw fast \
                     bare abort panic recovered goexit hijack gone timeout behind user copied stripped post failing \
                     nowhere http2 http2_abort streams";

/// One sentence where assists took other time than the runtime says, which counts by the clock on the wall: what others took
/// from a thread meanwhile is in it, and what they took at the probe before it begins to count is not. It counts those of
/// goroutines that serve no request too. (`live_collector` holds assists of all goroutines against it.)
fn assists(own: &[Own], report: &Report, line: &Value) -> Option<String> {
    let ours = line["assist_ns"].as_u64()?;
    let theirs = report.ended.iter().filter_map(|r| r["time_ns"]["gc_assist"].as_u64()).sum::<u64>();
    let n = own.iter().filter(|own| own.kind == "assist").count();
    println!(
        "  assist: {n} requests, {:.2} ms by the runtime, seen {:.2}",
        ours as f64 / 1e6,
        theirs as f64 / 1e6
    );
    let agree = theirs <= ours * 13 / 10 + 5_000_000 && theirs + 40_000_000 >= ours / 2 && theirs > 0;
    (!agree).then(|| format!("assists are {theirs} ns, {ours} by the runtime"))
}

/// What does not agree in one process of a build.
fn judged(version: &str, mode: Mode, language: Option<&str>) -> Vec<String> {
    let path = language.map_or_else(|| server(version, mode), |language| server_in(language, version, mode));
    let mut program = Program::start(&path);
    assert_eq!(program.ready["patterns"], minor(version) >= 22 && language.is_none(), "{}", program.ready);
    let watch = Watch::start(program.pid(), &["--slow", "0ms"]);
    let (own, line) = program.run(&format!("run 12 {KINDS}"));
    let report = watch.finish();
    let factor = if mode == Mode::Race { 3 } else { 1 };
    let mut wrong = all(&own, &report, version, factor);
    // The race detector's own memory is allocated in assists too.
    if mode != Mode::Race {
        wrong.extend(assists(&own, &report, &line));
    }
    for (own, seen) in pairs(&own, &report.ended).0 {
        // Where it is known who else worked for a request: not those who read from its connection.
        let [gone, left] = ["goroutines", "left_running"].map(|field| seen["children"][field].as_u64());
        let (ours, stay) = match own.kind.as_str() {
            "waitgroup" => (3, 0..=1),
            "behind" => (2, 2..=2),
            "timeout" => (1, 1..=1),
            "sleep" | "cpu" | "io" | "post" | "gone" | "user" | "http2" | "streams" => (0, 0..=0),
            _ => continue,
        };
        if gone.zip(left).is_none_or(|(gone, left)| gone + left != ours || !stay.contains(&left)) {
            wrong.push(format!(
                "{own}: it had {ours} children, of which {stay:?} stayed: {}",
                seen["children"]
            ));
        }
    }
    wrong
}

#[test]
fn requests_are_cut_as_their_program_cuts_them() {
    if !privileged("live_requests") {
        return;
    }
    for version in VERSIONS {
        agrees(&format!("Go {version}"), || judged(version, Mode::Stripped, None));
    }
}

#[test]
fn requests_are_cut_as_their_program_cuts_them_in_every_mode() {
    if !privileged("live_requests") {
        return;
    }
    for version in ["1.27.3", "1.19.13"] {
        for mode in [Mode::Plain, Mode::PieStripped, Mode::Cgo, Mode::Race, Mode::NoInline] {
            agrees(&format!("Go {version}, {}", mode.name()), || judged(version, mode, None));
        }
    }
}

/// The old mux sets no pattern: routes are not told, and everything else is.
#[test]
fn requests_of_the_old_mux_have_no_route() {
    if !privileged("live_requests") {
        return;
    }
    agrees("Go 1.27.3, language 1.19", || judged("1.27.3", Mode::Stripped, Some("1.19")));
}

/// Paths are read as requests begin, of HTTP/2 too, and of those that are open.
#[test]
fn paths_are_told_where_they_are_wanted() {
    if !privileged("live_requests") {
        return;
    }
    for version in ["1.19.13", "1.24.11", "1.27.3"] {
        agrees(&format!("Go {version}, paths"), || {
            let mut program = Program::start(&server(version, Mode::Stripped));
            let mut watch = Watch::start(program.pid(), &["--slow", "0ms", "--paths"]);
            program.tell("open");
            let open = program.answer();
            let is_its = |r: &Value| r["goid"] == open["goid"];
            watch.until("the request that does not end", |report| report.open.iter().any(is_its));
            let (own, _) =
                program.run("run 4 sleep user copied stripped post nowhere http2 timeout hijack panic");
            let report = watch.finish();
            let (pairs, mut wrong) = pairs(&own, &report.ended);
            let told = pairs.iter().map(|(own, seen)| (own.to_string(), own.path.as_str(), &seen["path"]));
            let of_open =
                report.open.iter().map(|seen| ("the open one".to_owned(), "/endless", &seen["path"]));
            for (whose, path, seen) in told.chain(of_open).filter(|(_, path, seen)| *seen != path) {
                wrong.push(format!("{whose} asked for {path}, seen {seen}"));
            }
            if pairs.len() < 40 || report.open.is_empty() {
                wrong.push(format!("{} requests were seen, {} open", pairs.len(), report.open.len()));
            }
            wrong
        });
    }
}

/// Only what is slow is told, and everything is counted; what does not end is told once while it lasts.
#[test]
fn fast_requests_leave_counts_alone() {
    if !privileged("live_requests") {
        return;
    }
    for version in ["1.19.13", "1.24.11", "1.27.3"] {
        agrees(&format!("Go {version}, slow ones"), || {
            let mut program = Program::start(&server(version, Mode::Stripped));
            let mut watch = Watch::start(program.pid(), &["--slow", "50ms"]);
            program.tell("open");
            let open = program.answer();
            let is_its = |r: &Value| r["goid"] == open["goid"];
            let (mut own, _) = program.run("run 20 fast fast fast sleep slow user http2");
            watch.until("the request that does not end", |report| report.open.iter().any(is_its));
            own.extend(program.run("release").0);
            watch.until("the end of that request", |report| report.ended.iter().any(is_its));
            let report = watch.finish();
            let slow = |own: &Own| ["slow", "endless"].contains(&own.kind.as_str());
            let slow_ones: Vec<_> = own.iter().filter(|own| slow(own)).cloned().collect();
            let (paired, mut wrong) = pairs(&slow_ones, &report.ended);
            wrong.extend(counts(&own, &report, slow));
            wrong.extend(left_open(&report));
            wrong.extend(report.ended.iter().chain(&report.open).flat_map(record));
            wrong.extend(
                paired.iter().filter(|(_, seen)| seen["waits_complete"] != true).map(|p| format!("{p:?}")),
            );
            // One that ends soon after the threshold may be met by a look at what is open.
            for (own, _) in paired {
                let is_its = |r: &&Value| {
                    let start = r["start_unix_nano"].as_u64().unwrap_or(0);
                    r["goid"] == own.goid && start.abs_diff(own.start_unix_nano) < 20_000_000
                };
                let open = report.open.iter().filter(is_its).count();
                if open > 1 || open == 0 && own.kind == "endless" {
                    wrong.push(format!("{own}: reported {open} times while it was open"));
                }
            }
            for seen in report.open.iter().filter(|r| is_its(r)) {
                if !seen["ended"].is_null() || seen["state"] != "chan receive" {
                    wrong.push(format!("it is open, and receives from a channel: {seen}"));
                }
                let waits = seen["stack"].as_array().is_some_and(|stack| stack.len() > 4);
                if seen["own_code"]["function"] != "main.staysUntilReleased" || !waits {
                    wrong.push(format!("it does so in a function of its own: {seen}"));
                }
            }
            wrong
        });
    }
}

/// What hangs when somebody comes to look is what they look for.
#[test]
fn requests_that_were_open_before_are_told_at_once() {
    if !privileged("live_requests") {
        return;
    }
    for version in VERSIONS {
        let mut program = Program::start(&server(version, Mode::Stripped));
        program.tell("open");
        let open = program.answer();
        let mut watch = Watch::start(program.pid(), &["--slow", "0ms"]);
        watch.until("those that were open before", |report| !report.before.is_empty());
        let (own, _) = program.run("run 3 sleep http2");
        let released = program.run("release").0;
        let report = watch.finish();
        let [before] = &report.before[..] else { panic!("Go {version}: {:?}", report.before) };
        println!("Go {version}: {before}");
        assert_eq!(before["goids"], serde_json::json!([open["goid"]]), "Go {version}: {before}");
        assert_eq!((&before["server"], &before["count"]), (&"net/http".into(), &1.into()), "{before}");
        assert_eq!((&before["state"], released.len()), (&"chan receive".into(), 1), "{before}");
        assert_eq!(before["own_code"]["function"], "main.staysUntilReleased", "Go {version}: {before}");
        // Its end is no request's that was traced.
        let (_, wrong) = pairs(&own, &report.ended);
        assert!(wrong.is_empty(), "Go {version}: {wrong:?}");
    }
}

/// Half a CPU for requests that want a whole one: what they do not get is told as such.
#[test]
fn what_the_quota_took_is_throttled() {
    if !privileged("live_requests") {
        return;
    }
    let quota = Quota::new(50).expect("a control group");
    for version in ["1.19.13", "1.27.3"] {
        agrees(&format!("Go {version}, half a CPU"), || {
            let mut program = Program::start(&server(version, Mode::Stripped));
            let watch = Watch::start(program.pid(), &["--slow", "0ms"]);
            quota.limit(program.pid()).expect("moved");
            let (own, _) = program.run("run 60 cpu");
            let report = watch.finish();
            let (pairs, mut wrong) = pairs(&own, &report.ended);
            wrong.extend(report.ended.iter().flat_map(record));
            let sum = |of: &dyn Fn(&(&Own, &Value)) -> u64| pairs.iter().map(of).sum::<u64>();
            let part = |name: &str| sum(&|(_, seen)| seen["time_ns"][name].as_u64().unwrap_or(0));
            let (cpu, throttled) = (part("on_cpu"), part("throttled"));
            let whole = sum(&|(_, seen)| whole(&seen["time_ns"]));
            let (ours, total) = (sum(&|(own, _)| own.phases["cpu"]), sum(&|(own, _)| own.total_ns));
            println!(
                "  on CPU {cpu} ns, {ours} by its own clock; throttled {throttled} ns, of {whole} in all"
            );
            if cpu.abs_diff(ours) > ours / 33 + 200_000 * own.len() as u64 {
                wrong.push(format!("on CPU {cpu} ns, {ours} by its own clock"));
            }
            // Half of the time it is on a CPU at most; where others want that too it waits for them instead.
            let waited = throttled + part("descheduled") + part("run_queue");
            if throttled == 0 || waited < total / 5 || throttled > total * 4 / 5 {
                wrong.push(format!("throttled {throttled} ns, waited for a CPU {waited} ns, of {total}"));
            }
            wrong
        });
    }
}
