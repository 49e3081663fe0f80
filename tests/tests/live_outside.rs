//! What goroutines wait for outside of their process: sockets with peer and deadline, pipes, timers, system calls, file
//! locks, child processes; in C too. As `dump`, `why` and `leaks` tell it, on five versions of Go, stripped or not. Needs
//! root and `go`.

use std::{
    fs::File,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use gotrace_tests::{
    fixture::{PATIENCE, read_lines},
    gobuild::{Arch, Mode, build, minor},
    gotrace::{binary, privileged},
};
use serde_json::{Value, json};

const VERSIONS: [&str; 5] = ["1.19.13", "1.21.13", "1.23.12", "1.25.5", "1.27.3"];

/// The running program.
struct Outside {
    child: Child,
    /// The program, which may be a child of that.
    pid: u32,
    _stdin: ChildStdin,
    /// What it said.
    says: String,
}

impl Outside {
    fn start(program: &Path, args: &[&str]) -> Self {
        Self::start_by(Command::new(program).args(args))
    }

    /// In namespaces of its own, with another clock.
    fn start_apart(program: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--time",
            "--monotonic",
            "100000",
        ]);
        let mut this = Self::start_by(command.arg(program).args(args));
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", this.pid));
        this.pid = children.expect("it lives").trim().parse().expect("one child");
        this
    }

    fn start_by(command: &mut Command) -> Self {
        let mut child = command
            // Channels of timers as from Go 1.23 on, whatever the module says.
            .env("GODEBUG", "asynctimerchan=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdin = child.stdin.take().expect("a pipe");
        let lines = read_lines(child.stdout.take().expect("a pipe"));
        let ready = lines.recv_timeout(PATIENCE).expect("the program says nothing");
        let says = ready.strip_prefix("READY ").expect("it is ready").to_owned();
        Self { pid: child.id(), child, _stdin: stdin, says }
    }

    fn gotrace(&self, command: &str, more: &[&str]) -> String {
        let output = Command::new(binary().expect("gotrace"))
            .args([command, "--pid", &self.pid.to_string()])
            .args(more)
            .stdin(Stdio::null())
            .output()
            .expect("gotrace runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{command}: {}: {errors}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    fn dump(&self) -> Vec<Value> {
        let lines = self.gotrace("dump", &["--format", "json"]);
        lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    /// The goroutines of a dump in which all of these functions stand as they will, which `settled` tells.
    fn settled(&self, functions: &[&str], settled: impl Fn(&Value) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let dump = self.dump();
            let found: Vec<Value> = functions
                .iter()
                .filter_map(|f| dump.iter().find(|l| l["entry"]["function"] == *f).cloned())
                .collect();
            if found.len() == functions.len() && found.iter().all(&settled) {
                return found;
            }
            assert!(Instant::now() < deadline, "{functions:?}: {dump:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The heading that a text dump has for a goroutine.
    fn heading(&self, goroutine: &Value) -> String {
        let text = self.gotrace("dump", &["--goid", &goroutine["goid"].to_string()]);
        text.lines().next().expect("a heading").to_owned()
    }

    fn why(&self, goroutine: &Value) -> (String, Value) {
        let goid = goroutine["goid"].to_string();
        let text = self.gotrace("why", &["--goid", &goid]);
        let json = self.gotrace("why", &["--goid", &goid, "--format", "json"]);
        (text, serde_json::from_str(&json).expect("JSON"))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn each(check: impl Fn(&str, &Path)) {
    if !privileged("live_outside") {
        return;
    }
    for version in VERSIONS {
        for mode in [Mode::Plain, Mode::Stripped] {
            check(version, &build("outside", version, mode, Arch::HOST).expect("it builds"));
        }
    }
}

fn is_parked(goroutine: &Value) -> bool {
    goroutine["state"] == "waiting" && goroutine["waits_on"].as_array().is_some_and(|w| !w.is_empty())
}

fn within(value: &Value, seconds: i64) -> bool {
    value.as_i64().is_some_and(|ns| (1..=seconds * 1_000_000_000).contains(&ns))
}

#[test]
fn sockets_pipes_and_timers_are_told_with_peer_and_deadline() {
    each(|version, program| {
        let outside = Outside::start(program, &["net"]);
        let peer = outside.says.clone();
        let functions = [
            "main.fetch",
            "main.soon",
            "main.push",
            "main.unix",
            "main.pipe",
            "main.sleeper",
            "main.timeout",
            "main.blocked",
            "main.asker",
            "main.flusher",
            "main.accept",
        ];
        let found = outside.settled(&functions, is_parked);
        let [fetch, soon, push, unix, pipe, sleeper, timeout, blocked, asker, flusher, _] = &found[..] else {
            panic!("{found:?}")
        };
        let first = |g: &Value| g["waits_on"][0].clone();
        let none = json!({"set": false, "in_ns": null});

        let wait = first(fetch);
        let object = &wait["object"];
        assert_eq!((&object["type"], &object["peer"]), (&json!("tcp"), &json!(peer)), "{version}: {wait}");
        assert_eq!((&object["state"], &object["unread_bytes"]), (&json!("established"), &json!(0)));
        assert_eq!(wait["deadline"], none, "{version}: {wait}");
        let goid = &fetch["goid"];
        assert_eq!(
            outside.heading(fetch),
            format!(
                "goroutine {goid} [IO wait, read from {peer} (tcp, established, nothing unread), no deadline]:"
            ),
            "{version}"
        );

        let wait = first(soon);
        assert_eq!(wait["deadline"]["set"], true, "{version}: {wait}");
        assert!(within(&wait["deadline"]["in_ns"], 3000), "{version}: {wait}");
        let heading = outside.heading(soon);
        assert!(heading.ends_with(" min]:") && heading.contains("deadline in "), "{version}: {heading}");

        let wait = first(push);
        assert_eq!(wait["op"], "write", "{version}: {wait}");
        assert!(wait["object"]["unsent_bytes"].as_u64() > Some(0), "{version}: {wait}");
        assert!(within(&wait["deadline"]["in_ns"], 4000), "{version}: {wait}");

        let wait = first(unix);
        assert_eq!(
            (&wait["object"]["type"], &wait["deadline"]),
            (&json!("unix"), &none),
            "{version}: {wait}"
        );
        let wait = first(pipe);
        assert_eq!(
            (&wait["object"]["type"], &wait["deadline"]),
            (&json!("pipe"), &none),
            "{version}: {wait}"
        );

        assert!(within(&first(sleeper)["fires_in_ns"], 5000), "{version}: {sleeper}");
        assert!(outside.heading(sleeper).contains("[sleep, wakes in "), "{version}");
        let fires =
            timeout["waits_on"].as_array().expect("cases").iter().filter(|w| !w["fires_in_ns"].is_null());
        let fires: Vec<&Value> = fires.collect();
        if minor(version) >= 23 {
            assert!(fires.len() == 1 && within(&fires[0]["fires_in_ns"], 7000), "{version}: {timeout}");
        } else {
            assert!(fires.is_empty(), "{version}: {timeout}");
        }

        let accepts = outside.dump();
        let accepts = accepts.iter().filter(|l| l["entry"]["function"] == "main.accept").map(first);
        let mut listening = accepts.filter(|w| w["object"]["state"] == "listen");
        assert!(listening.any(|w| w["object"]["local"] == *peer), "{version}");

        let (text, json) = outside.why(fetch);
        let expected = format!(
            "not blocked on a lock or channel; read from {peer} (tcp, established, nothing unread), no deadline"
        );
        assert!(
            text.contains(&expected) && json["why"].as_str().is_some_and(|w| w.contains(&expected)),
            "{text}"
        );
        assert_eq!(json["waits_on"][0]["object"]["peer"], peer);
        // The last link of the chain is outside.
        let (text, json) = outside.why(blocked);
        let holds = format!("IO wait: read from {peer} (tcp, established, nothing unread), no deadline");
        assert!(text.contains(&holds), "{version}: {text}");
        assert_eq!(json["path"]["root"]["goid"], asker["goid"], "{version}: {json}");
        assert_eq!(json["path"]["root"]["waits_on"][0]["deadline"], none, "{version}: {json}");
        assert!(is_parked(flusher));
    });
}

#[test]
fn system_calls_are_told_with_lock_child_and_file() {
    each(|version, program| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
        let (lock, fifo) = (path("lock"), path("fifo"));
        let file = File::create(&lock).expect("a file");
        file.lock().expect("nobody else has it");
        let outside = Outside::start(program, &["calls", &lock, &fifo]);
        let functions = ["main.locker", "main.opener", "main.reader", "main.parent"];
        // The runtime may still wait for the threads.
        let in_call = |g: &Value| {
            let name = g["waits_on"][0]["name"].as_str().unwrap_or_default();
            g["state"] == "syscall" && matches!(name, "flock" | "openat" | "read" | "waitid" | "wait4")
        };
        let found = outside.settled(&functions, in_call);
        let [locker, opener, reader, parent] = &found[..] else { panic!("{found:?}") };
        let first = |g: &Value| g["waits_on"][0].clone();

        let wait = first(locker);
        let own = std::process::id();
        assert_eq!(
            (&wait["name"], &wait["object"]["path"]),
            (&json!("flock"), &json!(lock)),
            "{version}: {wait}"
        );
        assert_eq!(wait["held_by"]["pid"], own, "{version}: {wait}");
        let heading = outside.heading(locker);
        let expected = format!("flock {lock}, held by process {own} (");
        assert!(heading.contains(&expected), "{version}: {heading}");

        let wait = first(opener);
        assert_eq!(
            (&wait["name"], &wait["object"]["path"]),
            (&json!("openat"), &json!(fifo)),
            "{version}: {wait}"
        );
        let wait = first(reader);
        assert_eq!(
            (&wait["name"], &wait["object"]["type"]),
            (&json!("read"), &json!("pipe")),
            "{version}: {wait}"
        );

        let wait = first(parent);
        let child: u64 = outside.says.parse().expect("a pid");
        assert_eq!(wait["child"], json!({"pid": child, "process": "sleep"}), "{version}: {wait}");
        let heading = outside.heading(parent);
        let expected = format!("waits for child process {child} (sleep)");
        assert!(heading.contains(&expected), "{version}: {heading}");
        let (text, _) = outside.why(parent);
        assert!(text.contains(&expected), "{version}: {text}");
    });
}

#[test]
fn who_is_in_a_system_call_is_among_those_that_wait_at_level_waits_too() {
    if !privileged("live_outside") {
        return;
    }
    let program = build("outside", "1.27.3", Mode::Cgo, Arch::HOST).expect("it builds");
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().lock().expect("nobody else has it");
    let outside = Outside::start(&program, &["c", file.path().to_str().expect("text")]);
    outside.settled(&["main.inC"], |g| g["waits_on"][0]["name"] == "flock");
    for level in ["waits", "full"] {
        let pid = outside.pid.to_string();
        let arguments = ["attach", "--pid", &pid, "--level", level, "--duration", "1s", "--budget", "none"];
        let run = |more: &[&str]| {
            let mut command = Command::new(binary().expect("gotrace"));
            let output = command.args(arguments).args(more).stdin(Stdio::null()).output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text")
        };
        let text = run(&["--format", "json", "--quiet"]);
        let last: Value = serde_json::from_str(text.lines().last().expect("a summary")).expect("JSON");
        let sites = last["summary"]["sites"].as_array().expect("sites");
        let site = |function: &str| {
            let found = sites.iter().find(|s| s["entry"]["function"] == function);
            found.unwrap_or_else(|| panic!("{level}: {text}"))
        };
        assert_eq!(site("main.inC")["waiting"], json!({"syscall": 1}), "{level}: {text}");
        assert!(last["summary"]["waiting"]["syscall"].as_u64() >= Some(1), "{level}: {text}");
        assert_eq!(site("runtime.main")["created_by"], Value::Null, "{level}: {text}");
        let text = run(&[]);
        assert!(
            text.contains("main.inC  created by main.") && text.contains("waiting: 1 in syscall"),
            "{level}: {text}"
        );
        assert!(text.contains("runtime.main  created by the runtime"), "{level}: {text}");
    }
}

#[test]
fn a_call_in_c_tells_its_system_call() {
    if !privileged("live_outside") {
        return;
    }
    for version in ["1.19.13", "1.27.3"] {
        let program = build("outside", version, Mode::Cgo, Arch::HOST).expect("it builds");
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().lock().expect("nobody else has it");
        let path = file.path().to_str().expect("text");
        let outside = Outside::start(&program, &["c", path]);
        let in_call = |g: &Value| g["waits_on"][0]["name"] == "flock";
        let found = outside.settled(&["main.inC"], in_call);
        let heading = outside.heading(&found[0]);
        let expected = format!("in C: flock {path}, held by process {} (", std::process::id());
        assert!(heading.contains(&expected), "{version}: {heading}");
    }
}

#[test]
fn who_holds_a_lock_is_said_to_wait_for_its_peer() {
    if !privileged("live_outside") {
        return;
    }
    let program = build("outside", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
    let outside = Outside::start(&program, &["net"]);
    outside.settled(&["main.flusher", "main.put"], is_parked);
    let text = outside.gotrace("leaks", &["--watch", "6s", "--stuck-after", "2s"]);
    let expected =
        format!(": IO wait: read from {} (tcp, established, nothing unread), no deadline", outside.says);
    let holder = text.lines().find(|l| l.contains("(main.flusher)"));
    assert!(holder.is_some_and(|l| l.contains(&expected)), "{text}");
}

#[test]
fn namespaces_of_its_own_change_nothing() {
    if !privileged("live_outside") {
        return;
    }
    let program = build("outside", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
    let outside = Outside::start_apart(&program, &["net", "lo"]);
    let found = outside.settled(&["main.fetch", "main.soon", "main.sleeper"], is_parked);
    let first = |n: usize| found[n]["waits_on"][0].clone();
    assert_eq!(first(0)["object"]["peer"], outside.says, "{found:?}");
    assert!(within(&first(1)["deadline"]["in_ns"], 3000), "{found:?}");
    assert!(within(&first(2)["fires_in_ns"], 5000), "{found:?}");

    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let file = File::create(path("lock")).expect("a file");
    file.lock().expect("nobody else has it");
    let outside = Outside::start_apart(&program, &["calls", &path("lock"), &path("fifo")]);
    let in_call = |g: &Value| !g["waits_on"][0]["held_by"].is_null() || !g["waits_on"][0]["child"].is_null();
    let found = outside.settled(&["main.locker", "main.parent"], in_call);
    assert_eq!(found[0]["waits_on"][0]["held_by"]["pid"], std::process::id(), "{found:?}");
    let child = &found[1]["waits_on"][0]["child"];
    assert_eq!(child["process"], "sleep", "{found:?}");
    // By gotrace's own numbers.
    assert_ne!(child["pid"].to_string(), outside.says);
    let name = std::fs::read_to_string(format!("/proc/{}/comm", child["pid"])).expect("it lives");
    assert_eq!(name, "sleep\n");
}
