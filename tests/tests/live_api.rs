//! The daemon's API on real Go programs: what it lists, goroutine profiles as the real `go tool pprof` and the program
//! itself have them, who may ask, and that many who ask at once harm neither daemon nor program. Needs root and `go`.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, ensure};
use gotrace_export::api::openapi::{PATH, violations};
use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    fixture::PATIENCE,
    gobuild::{Arch, CORNER_VERSIONS, Mode, build},
    gotrace::{binary, privileged},
    http::{Answer, get},
    stacks::Stacks,
    traceback,
};
use serde_json::Value;

fn place() -> Option<Place> {
    privileged("live_api").then(|| Place::new().expect("a directory"))
}

/// The program that parks goroutines in every way, in a place.
fn stacks(place: &Place, version: &str) -> (PathBuf, Stacks) {
    let built = build("stacks", version, Mode::Plain, Arch::HOST).expect("a program");
    let path = place.path().join("stacks");
    fs::copy(&built, &path).expect("copied");
    let stacks = Stacks::start(&path, None).expect("it starts");
    (path, stacks)
}

fn until_traced(daemon: &Daemon, pid: u32) {
    daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(pid))).unwrap_or_else(|e| panic!("{e:#}"));
}

fn ask(daemon: &Daemon, path: &str) -> Answer {
    get(daemon.address(), path, &["Host: localhost"]).unwrap_or_else(|e| panic!("{path}: {e:#}"))
}

/// A goroutine profile, which there must be.
fn profile(daemon: &Daemon, pid: u32, query: &str) -> Answer {
    let answer = ask(daemon, &format!("/processes/{pid}/debug/pprof/goroutine{query}"));
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    answer
}

/// What `go tool pprof -raw` has of a file or an address: how many goroutines have each stack of functions, and places.
fn raw(source: &str, saved: &Path) -> Result<BTreeMap<Vec<String>, u64>> {
    let output = Command::new("go")
        .args(["tool", "pprof", "-raw", "-symbolize=none", source])
        .env("PPROF_TMPDIR", saved)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "go tool pprof -raw {source}: {errors}");
    let text = String::from_utf8(output.stdout)?;
    let (_, samples) = text.split_once("\nSamples:\n").context("samples")?;
    let (samples, locations) = samples.split_once("\nLocations\n").context("locations")?;
    let (locations, _) = locations.split_once("\nMappings\n").unwrap_or((locations, ""));
    // `     2: 0x4e3bc4 M=1 main.f /src/main.go:122:0 s=0()`, and a line more for each function inlined there.
    let mut functions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut id = "";
    for line in locations.lines() {
        let mut words = line.split_whitespace();
        if let Some(number) = line.trim_start().split_once(": 0x").map(|(number, _)| number) {
            id = number;
            words.by_ref().take(3).for_each(drop);
        }
        let (function, place) = (words.next().unwrap_or("?"), words.next().unwrap_or("?"));
        functions.entry(id).or_default().push(format!("{function} {place}"));
    }
    let mut counts = BTreeMap::new();
    for line in samples.lines() {
        // Labels are on lines of their own.
        let Some((count, ids)) = line.split_once(": ").filter(|(n, _)| n.trim().parse::<u64>().is_ok())
        else {
            continue;
        };
        let stack = ids.split_whitespace().flat_map(|id| functions.get(id).cloned().unwrap_or_default());
        *counts.entry(stack.collect()).or_insert(0) += count.trim().parse::<u64>()?;
    }
    Ok(counts)
}

/// Frames that are compared of a profile as text: Go's has no more than 32 of a stack, up to Go 1.22.
const COMPARED: usize = 20;

/// The entries of a profile as text: how many goroutines have each stack of functions with places. Without that of the
/// main goroutine, which runs while it prints.
fn counted(text: &str) -> Result<(u64, BTreeMap<Vec<String>, u64>)> {
    let total = text.strip_prefix("goroutine profile: total ").and_then(|t| t.lines().next()?.parse().ok());
    let mut counts = BTreeMap::new();
    for block in text.lines().skip(1).collect::<Vec<_>>().split(|line| line.is_empty()) {
        let Some((count, _)) = block.first().and_then(|line| line.split_once(" @")) else { continue };
        let frames = block[1..].iter().map(|line| {
            let words: Vec<&str> = line.split('\t').filter(|word| !word.is_empty()).collect();
            match words[..] {
                // The offset is that of the compiled function.
                ["#", _, function, place] => {
                    format!("{} {place}", function.rsplit_once('+').unwrap_or_default().0)
                }
                _ => (*line).to_owned(),
            }
        });
        let mut frames: Vec<String> = frames.collect();
        frames.truncate(COMPARED);
        if !frames.iter().any(|frame| frame.starts_with("main.main ")) {
            *counts.entry(frames).or_insert(0) += count.parse::<u64>()?;
        }
    }
    Ok((total.context("a total")?, counts))
}

#[test]
fn profiles_are_those_of_go_and_of_the_program_itself() {
    for version in CORNER_VERSIONS {
        let (Some(place), Some(elsewhere)) = (place(), place()) else { return };
        let (path, mut program) = stacks(&place, version);
        let (_, other) = stacks(&elsewhere, version);
        let daemon = Daemon::start(&place.config("level: waits", ""), &[]).expect("it starts");
        let pid = program.pid();
        until_traced(&daemon, pid);
        compare(&daemon, &path, &mut program).unwrap_or_else(|e| panic!("go{version}: {e:#}"));
        // Whom no rule takes nobody reads.
        for pid in [other.pid(), daemon.pid(), 1] {
            for path in ["api/v1/processes/PID", "processes/PID/debug/pprof/"] {
                assert_eq!(ask(&daemon, &format!("/{}", path.replace("PID", &pid.to_string()))).status, 404);
            }
            for query in ["", "?debug=1", "?debug=2"] {
                let answer = ask(&daemon, &format!("/processes/{pid}/debug/pprof/goroutine{query}"));
                assert_eq!(answer.status, 404, "{}", answer.text());
                assert!(answer.text().contains("no rule takes it"), "{}", answer.text());
            }
        }
        drop(program);
        daemon
            .until("it is gone", PATIENCE, |d| {
                let answer = ask(d, &format!("/processes/{pid}/debug/pprof/goroutine"));
                assert!(matches!(answer.status, 200 | 404 | 429), "{}", answer.text());
                Ok(answer.status == 404)
            })
            .expect("gone");
        let (status, _, said) = daemon.finish().expect("it ends");
        assert!(status.success(), "{status}: {said}");
    }
}

fn compare(daemon: &Daemon, path: &Path, program: &mut Stacks) -> Result<()> {
    let pid = program.pid();
    let saved = tempfile::tempdir()?;
    // The real tool, over HTTP, against what `gotrace dump` writes.
    let url = format!("http://{}/processes/{pid}/debug/pprof/goroutine", daemon.address());
    let ours = raw(&url, saved.path())?;
    let file = saved.path().join("dump.pb.gz");
    let dump = Command::new(binary()?)
        .args(["dump", "--pid", &pid.to_string(), "--format", "pprof", "--output"])
        .arg(&file)
        .output()?;
    ensure!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let dumped = raw(file.to_str().context("a path")?, saved.path())?;
    ensure!(ours == dumped, "pprof has {ours:#?}\nand of the dump {dumped:#?}");
    ensure!(ours.keys().flatten().any(|f| f.starts_with("main.forever /")), "{ours:#?}");
    let own = program.own()?;
    ensure!(own.len() > 35 && ours.values().sum::<u64>() == own.len() as u64, "{} goroutines", own.len());
    let (total, ours) = counted(&profile(daemon, pid, "?debug=1").text())?;
    let (own_total, owns) = counted(&program.own_profile()?)?;
    ensure!(total == own_total, "{total} goroutines, and the program says {own_total}");
    for (stack, count) in &owns {
        ensure!(ours.get(stack) == Some(count), "the program has {count} of {stack:#?}\nand we {ours:#?}");
    }
    ensure!(ours == owns, "{ours:#?}");
    let ours = traceback::parse(&profile(daemon, pid, "?debug=2").text());
    ensure!(ours.keys().eq(own.keys()), "goids: {:?} and {:?}", ours.keys(), own.keys());
    for (goid, own) in own.iter().filter(|(goid, own)| **goid != 1 && own.elided_after.is_none()) {
        let ours = &ours[goid];
        // The runtime cuts deep ones off, up to Go 1.20 without a word.
        let same = ours.frames.len() == own.frames.len() || own.frames.len() >= 50;
        ensure!(same && ours.frames.starts_with(&own.frames), "goroutine {goid}: {ours:#?}\n{own:#?}");
        ensure!(
            (&ours.state, ours.locked) == (&own.state, own.locked),
            "goroutine {goid}: {ours:#?}\n{own:#?}"
        );
    }
    // What is listed, once the first snapshot was held against the table.
    daemon.until("all are counted", PATIENCE, |d| {
        let list = ask(d, "/api/v1/processes").json()?;
        let listed = list["processes"].as_array().context("a list")?;
        ensure!(list["schema"] == "gotrace.processes/1" && listed.len() == 1, "{list}");
        Ok(listed[0]["alive_is_lower_bound"] == false
            && listed[0]["alive"].as_u64() >= Some(own.len() as u64))
    })?;
    let list = ask(daemon, "/api/v1/processes").json()?;
    let listed = &list["processes"][0];
    for (field, value) in [
        ("pid", Value::from(pid)),
        ("executable", path.to_str().into()),
        ("service", "stacks".into()),
        ("engine", "events".into()),
        ("level", "waits".into()),
        ("level_wanted", "waits".into()),
        ("leaks_proven", 0.into()),
        ("pod", Value::Null),
    ] {
        ensure!(listed[field] == value, "{field}: {listed}");
    }
    let interval = ask(daemon, &format!("/api/v1/processes/{pid}")).json()?;
    let interval = &interval["interval"];
    ensure!(
        interval["pid"] == pid && interval["sites"].as_array().is_some_and(|s| !s.is_empty()),
        "{interval}"
    );
    ensure!(
        interval["start_unix_nano"].as_u64() > listed["since_unix_nano"].as_u64(),
        "{interval}\n{listed}"
    );
    // Scrapers are led to the same.
    let host = format!("Host: {}", daemon.address());
    let targets = get(daemon.address(), "/api/v1/sd", &[&host])?.json()?;
    let target = &targets[0];
    ensure!(target["labels"]["__meta_gotrace_pid"].as_str() == Some(&pid.to_string()), "{targets}");
    let prefix = target["labels"]["__profile_path_prefix__"].as_str().context("a prefix")?;
    let address = target["targets"][0].as_str().context("an address")?;
    let scraped = get(address, &format!("{prefix}/debug/pprof/goroutine"), &[&host])?;
    ensure!(scraped.status == 200 && scraped.body.starts_with(&[0x1f, 0x8b]), "{}", scraped.head);
    Ok(())
}

#[test]
fn a_process_that_executes_another_program_is_read_as_that() {
    let Some(place) = place() else { return };
    let shop = place.program("shop").expect("the program builds");
    let till = place.program("till").expect("the program builds");
    let mut program = Program::start(&shop).expect("it starts");
    let pid = program.pid();
    let daemon = Daemon::start(&place.config("level: waits", ""), &[]).expect("it starts");
    until_traced(&daemon, pid);
    assert!(profile(&daemon, pid, "?debug=2").text().contains("main.main("));
    program.say(&format!("exec {}", till.display())).expect("it listens");
    program.answer().expect("the other program greets");
    let listed = |d: &Daemon| -> Result<Value> {
        Ok(ask(d, "/api/v1/processes").json()?["processes"][0]["executable"].clone())
    };
    daemon
        .until("the other program is listed", PATIENCE, |d| {
            // At any time it is one or the other, or not there for a moment.
            let status = ask(d, &format!("/processes/{pid}/debug/pprof/goroutine")).status;
            ensure!(matches!(status, 200 | 404 | 503), "{status}");
            Ok(listed(d)? == till.to_str().context("a path")?)
        })
        .unwrap_or_else(|e| panic!("{e:#}"));
    assert!(profile(&daemon, pid, "?debug=2").text().contains("main.main("));
    program.finish().expect("it ends");
}

#[test]
fn without_probes_it_is_the_same() {
    let Some(place) = place() else { return };
    let (_, mut program) = stacks(&place, CORNER_VERSIONS[1]);
    let daemon = Daemon::start(&place.config("engine: snapshot", ""), &[]).expect("it starts");
    until_traced(&daemon, program.pid());
    let list = ask(&daemon, "/api/v1/processes").json().expect("a list");
    assert_eq!(
        (&list["processes"][0]["engine"], &list["processes"][0]["level"]),
        (&"snapshot".into(), &"sampled".into())
    );
    let ours = traceback::parse(&profile(&daemon, program.pid(), "?debug=2").text());
    assert!(ours.keys().eq(program.own().expect("its own").keys()));
}

/// An address of this host that is not loopback's; `None` where it has no other.
fn other_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: it is only asked which address would be.
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then(|| ip.to_string())
}

#[test]
fn only_those_who_may_are_answered() {
    let Some(place) = place() else { return };
    let mut program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let token_file = tempfile::NamedTempFile::new().expect("a file");
    let write = |token: &str| fs::write(token_file.path(), format!("{token}\n")).expect("written");
    let (first, second) = ("first-0123456789abcdef", "second-0123456789abcdefgh");
    write(first);
    let config = |more: &str| {
        let http = format!("http: {{token_file: {}, hosts: [node-a]{more}}}\n", token_file.path().display());
        place.config("level: lifecycle", &http)
    };
    let daemon = Daemon::start_on("0.0.0.0:0", &config("")).expect("it starts");
    until_traced(&daemon, program.pid());
    let port = daemon.address().rsplit(':').next().expect("a port").to_owned();
    let local = format!("127.0.0.1:{port}");
    let path = format!("/processes/{}/debug/pprof/goroutine?debug=2", program.pid());
    let status = |address: &str, headers: &[&str]| get(address, &path, headers).expect("an answer").status;
    for host in ["Host: localhost", "Host: 127.0.0.1:1", "Host: [::1]", "Host: node-a:9464"] {
        assert_eq!(status(&local, &[host]), 200, "{host}");
    }
    assert_eq!(status(&local, &["Host: evil.example"]), 403);
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    assert_eq!(status(&local, &["Host: evil.example", &bearer(first)]), 200);
    for page in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(get(&local, page, &["Host: evil.example"]).expect("an answer").status, 200);
    }
    match other_address() {
        None => eprintln!("this host has no address but loopback's: clients of others are not tried"),
        Some(other) => {
            let other = format!("{other}:{port}");
            assert_eq!(status(&other, &["Host: localhost"]), 401);
            assert_eq!(status(&other, &["Host: any", &bearer("wrong-0123456789abcdef")]), 401);
            assert_eq!(status(&other, &["Host: any", &bearer(first)]), 200);
            assert_eq!(get(&other, "/metrics", &["Host: any"]).expect("an answer").status, 200);
            // The real tool, with the token as a password.
            let saved = tempfile::tempdir().expect("a directory");
            let path = path.replace("?debug=2", "");
            let counts = raw(&format!("http://:{first}@{other}{path}"), saved.path()).expect("a profile");
            assert!(counts.values().sum::<u64>() > 0);
            raw(&format!("http://{other}{path}"), saved.path()).expect_err("without a token");
        }
    }
    // Another token, by itself when its file changes; then for all.
    write(second);
    let open = |token: &str| status(&local, &["Host: evil.example", &bearer(token)]);
    daemon.until("the token has changed", PATIENCE, |_| Ok(open(second) == 200)).expect("changed");
    assert_eq!(open(first), 403);
    daemon.reconfigure(&config(", require_token: true")).expect("written");
    let closed = || status(&local, &["Host: localhost"]) == 401;
    daemon.until("loopback is closed", PATIENCE, |_| Ok(closed())).expect("closed");
    assert_eq!(status(&local, &["Host: localhost", &bearer(second)]), 200);
    // One that cannot be read changes nothing.
    write("short");
    daemon.until_said("keeping the token that was read before", PATIENCE).expect("said");
    assert_eq!(status(&local, &["Host: localhost", &bearer(second)]), 200);
    let said = daemon.said();
    assert!(!said.contains(first) && !said.contains(second), "{said}");
    program.count("churn 10 10ms").expect("the program lives on");
}

#[test]
fn fifty_at_once_harm_nobody() {
    let Some(place) = place() else { return };
    let (_, mut program) = stacks(&place, CORNER_VERSIONS[1]);
    let shop = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let daemon = Daemon::start(&place.config("level: waits", ""), &[]).expect("it starts");
    let pids = [program.pid(), shop.pid()];
    pids.iter().for_each(|pid| until_traced(&daemon, *pid));
    let all: Vec<Answer> = thread::scope(|scope| {
        let asked: Vec<_> = (0..50)
            .map(|n| {
                let path = format!("/processes/{}/debug/pprof/goroutine?debug={}", pids[n % 2], n / 2 % 3);
                let daemon = &daemon;
                scope.spawn(move || ask(daemon, &path))
            })
            .collect();
        assert_eq!(daemon.get("/livez").expect("an answer").0, 200);
        asked.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let count = |status| all.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(200) + count(429), 50, "{:?}", all.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(count(200) >= 2, "{} answered", count(200));
    for answer in all.iter().filter(|answer| answer.status == 429) {
        assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
        assert!(answer.text().contains("try again"), "{}", answer.text());
    }
    eprintln!("of 50 at once {} were answered, {} were to try again", count(200), count(429));
    assert_eq!(daemon.get("/livez").expect("an answer").0, 200);
    for pid in pids {
        // One after the other all are answered.
        for _ in 0..5 {
            profile(&daemon, pid, "");
        }
    }
    assert!(program.own().expect("the program lives on").len() > 35);
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success() && !said.contains("panicked"), "{status}: {said}");
}

/// A client that asks and reads nothing holds no more than its own capture, and the daemon's end waits for neither.
#[test]
fn a_client_that_does_not_read_holds_up_nothing_but_itself() {
    let Some(place) = place() else { return };
    let mut shop = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let mut till = Program::start(&place.program("till").expect("it builds")).expect("it starts");
    const PARKED: u64 = 60_000;
    assert_eq!(shop.count(&format!("park {PARKED}")).expect("they wait"), PARKED);
    let config = place.config("level: lifecycle", "limits: {goroutines_per_process: 5000}\n");
    let daemon = Daemon::start(&config, &[]).expect("it starts");
    [shop.pid(), till.pid()].iter().for_each(|pid| until_traced(&daemon, *pid));
    // A table that is full is said to be; the profile has all.
    daemon
        .until("the table is full", PATIENCE, |d| {
            let list = ask(d, "/api/v1/processes").json()?;
            let all = list["processes"].as_array().context("a list")?;
            let of = all.iter().find(|p| p["pid"] == shop.pid()).context("the process")?;
            ensure!(of["alive"] != 5000 || of["alive_is_lower_bound"] == true, "{of}");
            Ok(of["alive"] == 5000)
        })
        .unwrap_or_else(|e| panic!("{e:#}"));
    let counted = profile(&daemon, shop.pid(), "?debug=1");
    let (total, counts) = self::counted(&counted.text()).expect("a profile");
    // The main goroutine is left out of what is compared.
    assert_eq!((total, counts.values().sum::<u64>() >= PARKED), (counts.values().sum::<u64>() + 1, true));
    assert!(!counted.head.contains("gotrace-incomplete"), "{}", counted.head);
    let mut slow = TcpStream::connect(daemon.address()).expect("it listens");
    let path = format!("/processes/{}/debug/pprof/goroutine?debug=2", shop.pid());
    write!(slow, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    assert_eq!(slow.read(&mut [0; 64]).expect("it begins"), 64);
    assert_eq!(ask(&daemon, &path).status, 429, "it is being read");
    for _ in 0..3 {
        profile(&daemon, till.pid(), "");
        for page in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(daemon.get(page).expect("an answer").0, 200, "{page}");
        }
    }
    daemon.reconfigure(&config.replace("lifecycle", "waits")).expect("written");
    daemon.until_said("configuration reloaded", PATIENCE).expect("reloaded");
    assert_eq!(ask(&daemon, &path).status, 429, "it still is");
    let (status, took, said) = daemon.finish().expect("it ends");
    assert!(status.success() && !said.contains("panicked"), "{status}: {said}");
    assert!(took.as_secs() < 10, "{took:?}: {said}");
    // Its client is not told that this was all.
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "{} bytes", rest.len());
    assert_eq!(shop.count("park 1").expect("the program lives on"), 1);
    till.count("churn 10 10ms").expect("the program lives on");
}

/// What the description says of answers holds for those of a real process.
#[test]
fn answers_are_as_the_description_says() {
    let Some(place) = place() else { return };
    let (_, stacks) = stacks(&place, "1.27.3");
    let pid = stacks.pid();
    let daemon =
        Daemon::start(&place.config("level: full", "limits: {budget: off}\n"), &[]).expect("it starts");
    until_traced(&daemon, pid);
    let reported = |d: &Daemon| Ok(ask(d, &format!("/api/v1/processes/{pid}")).status == 200);
    daemon.until("a report", PATIENCE, reported).unwrap_or_else(|e| panic!("{e:#}"));
    let document: Value = serde_json::from_str(&ask(&daemon, PATH).text()).expect("JSON");
    let mut held = Vec::new();
    for (path, how) in document["paths"].as_object().expect("paths") {
        let content = how["get"]["responses"]["200"]["content"].as_object();
        let Some((kind, content)) = content.and_then(|content| content.iter().next()) else { continue };
        if content["schema"]["$ref"].is_null() {
            continue;
        }
        let answer = ask(&daemon, &path.replace("{pid}", &pid.to_string()));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.head.contains(kind.as_str()), "{path}: {}", answer.head);
        for line in answer.text().lines() {
            let value: Value = serde_json::from_str(line).expect("JSON");
            let wrong = violations(&document, &content["schema"], &value);
            assert!(wrong.is_empty(), "{path}: {wrong:#?}");
        }
        held.push(path.as_str());
    }
    assert_eq!(held.len(), 9, "{held:?}");
    drop(stacks);
}
