//! Profiles of waits and of leaked goroutines through the daemon's API, held against those that the program makes of itself
//! (`runtime/pprof`), and read by the real `go tool pprof`. Needs root and `go`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{ChildStdin, Command},
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    daemon::{Daemon, Place},
    fixture::PATIENCE,
    gobuild::{Arch, CORNER_VERSIONS, Mode, build},
    gotrace::privileged,
    http::{Answer, get},
    speaking::{Ended, start},
};

/// Rounds of waits.
const ROUNDS: u64 = 40;
/// Where the program waits once a round.
const KINDS: [&str; 7] = [
    "main.receives",
    "main.sends",
    "main.selects",
    "main.waitsForGroup",
    "main.waitsForCond",
    "main.locks",
    "main.readLocks",
];

/// The program that waits on command.
struct Program {
    child: Ended,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Program {
    fn start(path: &Path) -> Self {
        let (mut child, lines) = start(&mut Command::new(path));
        let stdin = child.0.stdin.take().expect("a pipe");
        let this = Self { child, stdin, lines };
        assert_eq!(this.line(), "READY");
        this
    }

    fn pid(&self) -> u32 {
        self.child.0.id()
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("an answer")
    }

    fn run(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("it listens");
        assert_eq!(self.line(), "DONE");
    }

    /// A profile that it makes of itself.
    fn own(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").expect("it listens");
        let mut text = String::new();
        loop {
            let line = self.line();
            if line == "END" {
                return text;
            }
            text += &(line + "\n");
        }
    }
}

fn program(place: &Place, version: &str) -> PathBuf {
    let built = build("contention", version, Mode::Plain, Arch::HOST).expect("a program");
    let path = place.path().join("contention");
    fs::copy(&built, &path).expect("copied");
    path
}

fn place() -> Option<Place> {
    privileged("live_profiles").then(|| Place::new().expect("a directory"))
}

/// It is traced, and its level is in place.
fn until_traced(daemon: &Daemon, pid: u32) {
    daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(pid))).unwrap_or_else(|e| panic!("{e:#}"));
}

fn ask(daemon: &Daemon, pid: u32, profile: &str) -> Answer {
    let path = format!("/processes/{pid}/debug/pprof/{profile}");
    get(daemon.address(), &path, &["Host: localhost"]).unwrap_or_else(|e| panic!("{path}: {e:#}"))
}

fn told(daemon: &Daemon, pid: u32, profile: &str) -> Answer {
    let answer = ask(daemon, pid, profile);
    assert_eq!(answer.status, 200, "{profile}: {}", answer.text());
    answer
}

/// What a profile as text has: the two figures of each stack of functions, innermost first.
fn stacks(text: &str) -> BTreeMap<Vec<String>, (u64, u64)> {
    let mut all = BTreeMap::new();
    let mut sum = (0, 0);
    let mut stack: Vec<String> = Vec::new();
    let mut add = |stack: &mut Vec<String>, sum: (u64, u64)| {
        if !stack.is_empty() {
            let known = all.entry(std::mem::take(stack)).or_insert((0, 0));
            *known = (known.0 + sum.0, known.1 + sum.1);
        }
    };
    for line in text.lines() {
        if let Some((figures, _)) = line.split_once(" @") {
            add(&mut stack, sum);
            let figures: Vec<u64> = figures.split(' ').filter_map(|n| n.parse().ok()).collect();
            // Of goroutines there is one.
            sum = (figures[0], *figures.last().expect("a figure"));
        } else if let Some(frame) = line.strip_prefix("#\t") {
            let mut words = frame.split_whitespace();
            let function = words.find(|word| !word.starts_with("0x")).unwrap_or_default();
            stack.push(function.split_once("+0x").map_or(function, |(name, _)| name).to_owned());
        }
    }
    add(&mut stack, sum);
    all
}

/// Those of the stacks in which the program waits once a round.
fn of_rounds(text: &str) -> BTreeMap<Vec<String>, (u64, u64)> {
    let mut stacks = stacks(text);
    stacks.retain(|stack, _| stack.iter().any(|function| KINDS.contains(&&**function)));
    stacks
}

fn pprof(args: &[&str], source: &str, saved: &Path) -> String {
    let output = Command::new("go")
        .args(["tool", "pprof"])
        .args(args)
        .arg(source)
        .env("PPROF_TMPDIR", saved)
        .output()
        .expect("go tool pprof runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "go tool pprof {args:?} {source}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn where_it_waited_is_what_the_program_itself_has() {
    for version in CORNER_VERSIONS {
        let Some(place) = place() else { return };
        let mut program = Program::start(&program(&place, version));
        let trace = "level: waits, min_wait: 1ms, stack_depth: 32";
        let budget = "limits: {budget: off}\n";
        let daemon = Daemon::start(&place.config(trace, budget), &[]).expect("it starts");
        let pid = program.pid();
        until_traced(&daemon, pid);
        program.run(&format!("run {ROUNDS}"));
        let own = of_rounds(&program.own("block"));
        assert_eq!(own.len(), KINDS.len(), "go{version}: {own:#?}");
        // The line may have some of it yet to read.
        let begun = Instant::now();
        let (block, ours) = loop {
            let block = told(&daemon, pid, "block?debug=1");
            let ours = of_rounds(&block.text());
            let count: u64 = ours.values().map(|(_, count)| count).sum();
            if count >= ROUNDS * KINDS.len() as u64 || begun.elapsed() > Duration::from_secs(20) {
                break (block, ours);
            }
        };
        for (stack, (delay, count)) in &own {
            let Some((our_delay, our_count)) = ours.get(stack) else {
                panic!("go{version}: {stack:#?} is not in\n{}", block.text());
            };
            assert_eq!((*count, *our_count), (ROUNDS, ROUNDS), "go{version}: {stack:?}");
            // Until it runs again, and not in cycles.
            assert!(
                *our_delay >= ROUNDS * 3_000_000,
                "go{version}: {stack:?}: {our_delay} ns; {delay} cycles"
            );
        }
        assert!(!block.head.contains("gotrace-incomplete: waits lost"), "{}", block.head);
        let all = told(&daemon, pid, "block?all=1&debug=1").text();
        assert!(all.contains("\tmain.sleeps\t") && !block.text().contains("\tmain.sleeps\t"), "{all}");
        difference(&daemon, &mut program, version);
        let saved = tempfile::tempdir().expect("a directory");
        let url = format!("http://{}/processes/{pid}/debug/pprof/block", daemon.address());
        let top = pprof(&["-top", "-sample_index=contentions"], &url, saved.path());
        for part in ["Type: contentions", "block profile of process", "main.receives", "main.round"] {
            assert!(top.contains(part), "go{version}: {part} in\n{top}");
        }
        let raw = pprof(&["-raw"], &url, saved.path());
        assert!(raw.contains("Samples:\ncontentions/count delay/nanoseconds"), "{raw}");
    }
}

/// What comes within a time is what the program did within it.
fn difference(daemon: &Daemon, program: &mut Program, version: &str) {
    let pid = program.pid();
    let saved = tempfile::tempdir().expect("a directory");
    let url = format!("http://{}/processes/{pid}/debug/pprof/block?seconds=6", daemon.address());
    let raw = thread::scope(|scope| {
        let raw = scope.spawn(|| pprof(&["-raw"], &url, saved.path()));
        thread::sleep(Duration::from_millis(2500));
        program.run("run 9");
        raw.join().expect("no panic")
    });
    // `  9   28000000: 1 2 3`, by the longest: seven kinds of nine.
    let nines = raw.lines().filter(|line| line.split_whitespace().next() == Some("9")).count();
    assert_eq!(nines, KINDS.len(), "go{version}: {raw}");
}

#[test]
fn what_is_not_seen_is_said() {
    for (trace, says) in
        [("level: lifecycle", "at level lifecycle"), ("engine: snapshot", "at level sampled")]
    {
        let Some(place) = place() else { return };
        let program = Program::start(&program(&place, "1.24.11"));
        let daemon =
            Daemon::start(&place.config(trace, "limits: {prove_every: 0}\n"), &[]).expect("it starts");
        until_traced(&daemon, program.pid());
        for profile in ["block", "block?debug=1", "block?seconds=1"] {
            let answer = ask(&daemon, program.pid(), profile);
            assert!(answer.status == 503 && answer.text().contains(says), "{profile}: {}", answer.text());
            assert!(answer.text().contains("from level waits on"), "{}", answer.text());
        }
        daemon
            .until("it is examined", PATIENCE, |d| {
                Ok(ask(d, program.pid(), "goroutineleak?fresh=1")
                    .text()
                    .contains("as limits.prove_every is 0"))
            })
            .unwrap_or_else(|e| panic!("{e:#}"));
        // Whom no rule takes nobody tells of.
        assert_eq!(ask(&daemon, std::process::id(), "block").status, 404);
        assert_eq!(ask(&daemon, std::process::id(), "goroutineleak").status, 404);
    }
}

#[test]
fn leaked_goroutines_are_those_that_nobody_can_wake() {
    const LEAKED: u64 = 5;
    for version in CORNER_VERSIONS {
        let Some(place) = place() else { return };
        let mut program = Program::start(&program(&place, version));
        let limits = "limits: {prove_after: 1h, budget: off}\n";
        let daemon = Daemon::start(&place.config("level: waits", limits), &[]).expect("it starts");
        let pid = program.pid();
        until_traced(&daemon, pid);
        program.run(&format!("leak {LEAKED}"));
        let early = ask(&daemon, pid, "goroutineleak");
        assert!(early.status == 503 && early.text().contains("?fresh=1 makes one now"), "{}", early.text());
        let deadline = Instant::now() + PATIENCE;
        let leaked = loop {
            let leaked = ask(&daemon, pid, "goroutineleak?fresh=1&debug=1");
            assert!(Instant::now() < deadline, "{}", leaked.text());
            match leaked.status {
                200 => break leaked,
                // Not examined yet, or not done yet.
                202 | 503 => thread::sleep(Duration::from_millis(500)),
                status => panic!("go{version}: {status}: {}", leaked.text()),
            }
        };
        assert!(leaked.head.contains("gotrace-proof-age: "), "{}", leaked.head);
        let text = leaked.text();
        assert!(text.starts_with(&format!("goroutineleak profile: total {LEAKED}\n")), "go{version}: {text}");
        let ours = stacks(&text);
        assert_eq!(ours.len(), 1, "go{version}: {ours:#?}");
        // Those of the last proof, until there is another.
        program.run("leak 3");
        assert!(
            told(&daemon, pid, "goroutineleak?debug=1")
                .text()
                .starts_with("goroutineleak profile: total 5\n")
        );
        let traceback = told(&daemon, pid, "goroutineleak?debug=2").text();
        assert_eq!(traceback.matches("chan receive (leaked)").count() as u64, LEAKED, "{traceback}");
        let saved = tempfile::tempdir().expect("a directory");
        let url = format!("http://{}/processes/{pid}/debug/pprof/goroutineleak", daemon.address());
        let raw = pprof(&["-raw"], &url, saved.path());
        assert!(raw.contains("Samples:\ngoroutineleak/count") && raw.contains("main.forever"), "{raw}");
        let own = program.own("leaked");
        if !own.is_empty() {
            let functions = |text: &str| stacks(text).into_keys().collect::<Vec<_>>();
            assert_eq!(functions(&own), functions(&text), "go{version}");
        }
    }
}
