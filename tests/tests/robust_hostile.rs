//! Programs that would have gotrace fail: by names that `/proc` shows, by memory that never answers, by files that are
//! large. Each is read, or refused with its reason, and others are traced on. Needs root, `go` and util-linux.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::{fs::FileExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    fixture::PATIENCE,
    fuse::Served,
    gobuild::{Arch, Mode, build},
    gotrace::{binary, left_out, privileged},
};
use object::{Object as _, ObjectSymbol as _};

/// A program that is ended when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command; `None` where it has not ended after so long.
fn within(time: Duration, command: &mut Command) -> Option<Output> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let begun = Instant::now();
    while child.try_wait().expect("our child").is_none() {
        if begun.elapsed() > time {
            // Whether that helps is the question.
            let _ = child.kill();
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Some(child.wait_with_output().expect("it has ended"))
}

fn gotrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary().expect("gotrace is built"));
    command.args(arguments);
    command
}

/// Starts a program by a name of the root of a mount namespace of its own.
fn start_at_root(program: &Path, name: &str) -> Started {
    let root = tempfile::tempdir().expect("a directory");
    let script = "mount --make-rprivate / && mount -t tmpfs none \"$1\" && cp \"$2\" \"$1/$3\" && mkdir \"$1/old\" && \
                  cd \"$1\" && pivot_root . old && exec \"/$3\" -procs 2";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(root.path()).arg(program).arg(name);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("it says that it is there");
    assert!(line.starts_with('{'), "{line}");
    Started(child)
}

#[test]
fn a_path_that_begins_as_system_v_memory_blinds_nobody() {
    if !privileged("robust_hostile") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("it builds");
    let hostile = start_at_root(&shop, "SYSVx");
    let pid = hostile.0.id();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    assert!(maps.contains(" /SYSVx\n"), "{maps}");
    let dump = within(PATIENCE, &mut gotrace(&["dump", "--pid", &pid.to_string()])).expect("it ends");
    let said = String::from_utf8_lossy(&dump.stderr);
    assert!(dump.status.success() && !said.contains("panicked"), "{said}");
    assert!(String::from_utf8_lossy(&dump.stdout).contains("main.main"), "its goroutines are read");

    let config = place.config("level: lifecycle", "").replace("executable: [", "executable: [\"/SYSVx\", ");
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    let traced = |pid: u32| daemon.until("traced", PATIENCE, |d| Ok(d.metrics()?.has(pid))).expect("traced");
    traced(pid);
    // Who comes later is found.
    let program = Program::start(&shop).expect("it starts");
    traced(program.pid());
    assert_eq!(daemon.get("/livez").expect("it answers").0, 200);
    let metrics = daemon.metrics().expect("a page");
    for name in ["pipeline", "discovery", "snapshots", "export", "page"] {
        let label = format!("gotrace_thread=\"{name}\"");
        assert_eq!(metrics.values("gotrace_thread_up", &[&label]), [1.0], "{}", metrics.0);
    }
    let (_, _, said) = daemon.finish().expect("it ends");
    assert!(!said.contains("panicked"), "{said}");
}

/// A program whose list of goroutines lies in memory that may never answer.
struct Elsewhere {
    started: Started,
    /// Its executable.
    program: PathBuf,
    memory: File,
    /// Where the pointer to the list is, and what it was.
    list: u64,
    before: [u8; 8],
}

impl Elsewhere {
    /// The list lies in a file, or in memory that the program supplies itself.
    fn start(file: Option<&Path>) -> Self {
        let program = build("mapped", "1.24.11", Mode::Plain, Arch::HOST).expect("it builds");
        let mut command = Command::new(&program);
        command.args(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut started = Started(command.spawn().expect("it starts"));
        let pid = started.0.id();
        let mut line = String::new();
        let mut said = BufReader::new(started.0.stdout.take().expect("piped"));
        said.read_line(&mut line).expect("it says where");
        let address: u64 = line.trim().parse().unwrap_or_else(|_| panic!("{line}"));
        let bytes = fs::read(&program).expect("readable");
        let file = object::File::parse(&*bytes).expect("ELF");
        let list = file.symbols().find(|s| s.name() == Ok("runtime.allgptr")).expect("Go has it").address();
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("root's");
        let mut before = [0; 8];
        memory.read_exact_at(&mut before, list).expect("readable");
        memory.write_all_at(&address.to_le_bytes(), list).expect("writable");
        Self { started, program, memory, list, before }
    }

    fn put_back(&self) {
        self.memory.write_all_at(&self.before, self.list).expect("writable");
    }
}

#[test]
fn memory_that_is_not_known_to_be_served_is_given_up() {
    if !privileged("robust_hostile") {
        return;
    }
    let hostile = Elsewhere::start(None);
    let pid = hostile.started.0.id();
    let silent = "no answer within";
    let dump = within(PATIENCE, &mut gotrace(&["dump", "--pid", &pid.to_string()])).expect("it ends");
    let said = String::from_utf8_lossy(&dump.stderr);
    assert!(dump.status.code() == Some(1) && said.contains(silent), "{said}");
    println!("dump: {}", said.trim());
    // The daemon gives it up, and traces others; killed three times over it, it leaves it alone.
    let place = Place::new().expect("a directory");
    let state = place.path().join("state");
    let more = format!("state: {{directory: \"{}\"}}\n", state.display());
    let config = place.config("level: lifecycle", &more);
    let config =
        config.replace("executable: [", &format!("executable: [\"{}\", ", hostile.program.display()));
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    daemon.until_said(silent, PATIENCE).expect("it gives up");
    let program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let traced = |daemon: &Daemon| daemon.until("traced", PATIENCE, |d| Ok(d.metrics()?.has(program.pid())));
    traced(&daemon).expect("traced");
    assert_eq!(daemon.get("/livez").expect("it answers").0, 200);
    let (status, took, _) = daemon.finish().expect("it ends");
    assert!(status.success() && took < Duration::from_secs(10), "{status} {took:?}");
    let left_alone = "gotrace was killed three times while it was reading this one";
    for _ in 0..3 {
        let unseen = Command::new(binary().expect("built"));
        let mut daemon = Daemon::start_unseen(unseen, &config).expect("it starts");
        let begun = Instant::now();
        while !fs::read(state.join("in-hand")).is_ok_and(|b| b.windows(4).any(|w| w == pid.to_le_bytes())) {
            assert!(begun.elapsed() < PATIENCE, "it is not read: {}", daemon.said());
            thread::sleep(Duration::from_millis(5));
        }
        // The pid is also among those over which it died before.
        thread::sleep(Duration::from_secs(1));
        assert!(!daemon.said().contains(left_alone), "{}", daemon.said());
        daemon.kill().expect("it is killed");
    }
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    daemon.until_said(left_alone, PATIENCE).expect("it is left alone");
    traced(&daemon).expect("traced");
    let label = ["gotrace_refused_reason=\"failed\""];
    assert_eq!(daemon.metrics().expect("a page").values("gotrace_processes_refused_total", &label), [1.0]);
    daemon.finish().expect("it ends");
    // It goes on, and can be read when it answers.
    hostile.put_back();
    let dump = within(PATIENCE, &mut gotrace(&["dump", "--pid", &pid.to_string()])).expect("it ends");
    assert!(String::from_utf8_lossy(&dump.stdout).contains("main.parked"), "{dump:?}");
    program.finish().expect("it ends");
}

#[test]
fn memory_that_never_answers_holds_nobody_up() {
    if !privileged("robust_hostile") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let silent = Served::mute(directory.path()).expect("it can be mounted");
    let hostile = Elsewhere::start(Some(&silent.file()));
    let pid = hostile.started.0.id();
    for command in ["dump", "leaks"] {
        let ended = within(PATIENCE, &mut gotrace(&[command, "--pid", &pid.to_string()]));
        let Some(output) = ended else {
            drop(silent);
            panic!("{command} hangs");
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("need not answer"), "{command}: {said}");
        println!("{command}: {}", said.trim());
    }
    // Where nothing has to be asked of the file, mapping it is no matter.
    hostile.put_back();
    let dump = within(PATIENCE, &mut gotrace(&["dump", "--pid", &pid.to_string()])).expect("it ends");
    assert!(String::from_utf8_lossy(&dump.stdout).contains("main.parked"), "{dump:?}");
}

/// An executable that a server of files has, which answers nothing from some time on.
#[test]
fn an_executable_whose_server_is_silent_holds_nobody_up() {
    if !privileged("robust_hostile") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("it builds");
    let directory = tempfile::tempdir().expect("a directory");
    // Dropped after the mount: it may wait for a page.
    let before;
    let served =
        Served::program(directory.path(), fs::read(&shop).expect("readable")).expect("it is mounted");
    let config = place
        .config("level: lifecycle", "")
        .replace("executable: [", &format!("executable: [\"{}\", ", served.file().display()));
    // Traced while its server answers.
    before = Program::start(&served.file()).expect("it starts");
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    let traced = |daemon: &Daemon, pid: u32| {
        daemon.until("traced", PATIENCE, |d| Ok(d.metrics()?.has(pid))).expect("traced");
    };
    traced(&daemon, before.pid());
    let answers =
        within(PATIENCE, &mut gotrace(&["dump", "--pid", &before.pid().to_string()])).expect("it ends");
    assert!(String::from_utf8_lossy(&answers.stdout).contains("main.main"), "{answers:?}");

    served.be_silent();
    let bystander = Program::start(&shop).expect("it starts");
    traced(&daemon, bystander.pid());
    let (status, took, said) = daemon.finish().expect("it ends");
    assert!(status.success() && took < Duration::from_secs(10), "{status} {took:?}: {said}");

    // Found when it does not answer any more.
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    daemon.until_said("no answer within", PATIENCE).expect("it gives up");
    traced(&daemon, bystander.pid());
    assert_eq!(daemon.get("/livez").expect("it answers").0, 200);
    let reason = ["gotrace_refused_reason=\"unreadable\""];
    let refused = daemon.metrics().expect("a page").values("gotrace_processes_refused_total", &reason);
    assert_eq!(refused, [1.0]);
    let (status, took, said) = daemon.finish().expect("it ends");
    assert!(status.success() && took < Duration::from_secs(10), "{status} {took:?}: {said}");
    for command in ["dump", "attach"] {
        let mut command = gotrace(&[command, "--pid", &before.pid().to_string()]);
        let ended = within(PATIENCE, &mut command).expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(1) && said.contains("no answer within"), "{command:?}: {said}");
        println!("{}", said.trim());
    }
    bystander.finish().expect("it ends");
}

/// The most memory of its own that a command takes, in bytes.
fn peak(command: &mut Command) -> u64 {
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let (pid, mut most) = (child.id(), 0);
    let mut child = Started(child);
    while child.0.try_wait().expect("our child").is_none() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let own = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.trim().split(' ').next()?.parse().ok());
        most = most.max(own.unwrap_or(0u64));
        thread::sleep(Duration::from_millis(2));
    }
    most << 10
}

#[test]
fn a_large_executable_is_not_copied() {
    if !privileged("robust_hostile") {
        return;
    }
    let place = Place::new().expect("a directory");
    let large = place.program("large").expect("it builds");
    File::options().write(true).open(&large).and_then(|file| file.set_len(1 << 30)).expect("sparse");
    let program = Program::start(&large).expect("it starts");
    let pid = program.pid().to_string();
    for arguments in
        [&["inspect", "--pid", &pid][..], &["dump", "--pid", &pid], &["leaks", "--no-proof", "--pid", &pid]]
    {
        let ended = within(PATIENCE, &mut gotrace(arguments)).expect("it ends");
        assert!(ended.status.success(), "{ended:?}");
        let bytes = peak(&mut gotrace(arguments));
        println!("{}: {} MiB", arguments[0], bytes >> 20);
        assert!(bytes < 80 << 20, "{}: {bytes}", arguments[0]);
    }
    let more: &[&str] = &["--duration", "1s", "--quiet", "--pid", &pid];
    let bytes = peak(gotrace(&["attach"]).args(more));
    println!("attach: {} MiB", bytes >> 20);
    assert!(bytes < 80 << 20, "{bytes}");
}

/// Runs gotrace under limits of its system, as a shell sets them.
fn limited(limits: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")])
        .arg(binary().expect("built"))
        .args(arguments);
    command.process_group(0);
    command
}

#[test]
fn with_few_descriptors_it_ends_or_says_what_it_does_without() {
    if !privileged("robust_hostile") {
        return;
    }
    let place = Place::new().expect("a directory");
    let program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let pid = program.pid().to_string();
    for descriptors in [8, 12, 16, 20, 24, 26, 28, 30, 32, 36, 40] {
        let arguments = ["attach", "--pid", &pid, "--duration", "300ms", "--quiet"];
        let limits = format!("ulimit -n {descriptors}");
        let output = within(PATIENCE, &mut limited(&limits, &arguments)).expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{descriptors}: {:?} {}", output.status.code(), said.lines().next().unwrap_or_default());
        assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{descriptors}: {:?} {said}", output.status);
        assert!(!said.contains("panicked") && said.len() < 2048, "{descriptors}: {said}");
    }
}

/// A control group for at most so many threads; gone when dropped.
struct Group(std::path::PathBuf);

impl Group {
    fn new(threads: u32) -> Option<Self> {
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|p| p.join("cgroup.procs").exists())?;
        let path = root.join(format!("gotrace-robust-{}-{threads}", std::process::id()));
        // Where the controller is not handed on, it is by this.
        let _ = fs::write(root.join("cgroup.subtree_control"), "+pids");
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        fs::write(group.0.join("pids.max"), threads.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begun = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn with_few_threads_it_ends_or_does_without_them() {
    if !privileged("robust_hostile") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("it builds");
    let program = Program::start(&shop).expect("it starts");
    let pid = program.pid().to_string();
    let config = place.path().join("gotrace.yaml");
    fs::write(&config, place.config("level: waits", "")).expect("written");
    let config = config.display().to_string();
    for threads in 1..=20 {
        let Some(group) = Group::new(threads) else {
            left_out("robust_hostile", "no control group limits threads here");
            return;
        };
        let limits = format!("echo 0 > {}/cgroup.procs", group.0.display());
        let commands = [
            (&["attach", "--pid", &pid, "--duration", "300ms", "--quiet"][..], false),
            (&["exec", "--quiet", "--", "/bin/true"], false),
            (&["daemon", "--config", &config, "--listen", "127.0.0.1:0", "--socket", "off"], true),
        ];
        for (arguments, lasts) in commands {
            let mut command = limited(&limits, arguments);
            if lasts {
                // It is asked to end, once it may have come to work.
                command = Command::new("timeout");
                command.args(["--signal", "TERM", "--kill-after", "60", "1.5"]);
                let inner = limited(&limits, arguments);
                command.arg(inner.get_program()).args(inner.get_args());
            }
            let Some(output) = within(PATIENCE, &mut command) else {
                panic!("{threads}: {arguments:?} hangs")
            };
            let said = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            println!("{threads} {}: {code:?} {}", arguments[0], said.lines().last().unwrap_or_default());
            assert!(
                !said.contains("panicked") && !said.contains("abort"),
                "{threads} {}: {said}",
                arguments[0]
            );
            assert!(matches!(code, Some(0 | 1 | 3 | 124)), "{threads} {}: {code:?} {said}", arguments[0]);
        }
    }
    program.finish().expect("it ends well");
}
