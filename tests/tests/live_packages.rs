//! The packages that users install, made of the binary under test: the archive and the Debian package, each installed
//! into a root file system with nothing else in it, the container image, which runs by runc as a sidecar would, and the
//! chart's package; and `gotrace demo`, which is what users try first. Needs root, runc, dpkg and helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    bare::BareRoot,
    container::{Container, Hierarchy, Shape, run_image},
    demo::{Demo as RunningDemo, unpack_demo},
    fixture::{PATIENCE, read_lines},
    gobuild::cache_dir,
    gotrace::{binary, left_out, privileged},
    manifests,
    running::Running,
    terminal::OnTerminal,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn output_of(program: &str, arguments: &[&str], within: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(within).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The file that ends so.
fn find(directory: &Path, end: &str) -> PathBuf {
    let mut files = fs::read_dir(directory).expect("a directory").map(|e| e.expect("an entry").path());
    files.find(|p| p.to_string_lossy().ends_with(end)).unwrap_or_else(|| panic!("no file *{end}"))
}

/// Makes the packages, of a binary without debug information, as that of a release has none; returns its place.
fn make(directory: &Path) -> PathBuf {
    let stripped = directory.join("gotrace");
    fs::copy(binary().expect("built"), &stripped).expect("copied");
    output_of("strip", &["--strip-debug", "gotrace"], directory);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new("cargo")
        .current_dir(workspace)
        .args(["run", "--quiet", "--locked", "--package", "xtask", "--", "dist", "--binary"])
        .arg(&stripped)
        .arg("--output")
        .arg(directory)
        .status()
        .expect("cargo runs");
    assert!(status.success());
    stripped
}

#[test]
fn packages_hold_what_they_should_and_the_image_runs() {
    if !privileged("live_packages") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let made = directory.path();
    let binary = make(made);
    output_of("sha256sum", &["--check", "--quiet", "SHA256SUMS"], made);
    materials(&find(made, ".cdx.json"), &binary);
    debian(&find(made, ".deb"), made);
    let layer = image(&find(made, ".image.tar"), made);
    thread::scope(|scope| {
        // Mostly waits.
        scope.spawn(|| unpacked(&find(made, ".tar.gz")));
        scope.spawn(|| installed(&find(made, ".deb")));
        sidecar(&layer);
        chart(&find(made, ".tgz"));
    });
}

/// The bill of materials has the binary, each crate that the notices name, and what all of it is under.
fn materials(file: &Path, binary: &Path) {
    let said: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON");
    assert_eq!((&said["bomFormat"], &said["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let hash = Sha256::digest(fs::read(binary).expect("a file"));
    let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(said["metadata"]["component"]["hashes"][0]["content"], hash);
    let components = said["components"].as_array().expect("components");
    for component in components {
        assert!(
            component["licenses"][0]["expression"].as_str().is_some_and(|l| !l.contains('/')),
            "{component}"
        );
        let is_crate = component["purl"].as_str().expect("an address").starts_with("pkg:cargo/");
        assert_eq!(
            component["hashes"][0]["content"].as_str().map(str::len),
            is_crate.then_some(64),
            "{component}"
        );
    }
    for name in ["glibc", "std", "aya", "aya-ebpf", "tokio", "object"] {
        assert!(components.iter().any(|c| c["name"] == name), "no {name}");
    }
    // For tests and tools alone.
    for name in ["trycmd", "proptest"] {
        assert!(components.iter().all(|c| c["name"] != name), "{name}");
    }
}

fn debian(package: &Path, made: &Path) {
    let package = package.to_string_lossy();
    let contents = output_of("dpkg-deb", &["--contents", &package], made);
    for file in [
        "-rwxr-xr-x root/root",
        "./usr/bin/gotrace",
        "./usr/lib/systemd/system/gotrace.service",
        "./etc/gotrace/gotrace.yaml",
        "./usr/share/man/man1/gotrace.1.gz",
        "./usr/share/man/man1/gotrace-attach.1.gz",
        "./usr/share/bash-completion/completions/gotrace",
    ] {
        assert!(contents.contains(file), "{file} is not in\n{contents}");
    }
    assert!(!contents.contains("rwxrwx") && !contents.contains("drwx------"), "{contents}");
    let tree = made.join("unpacked");
    output_of("dpkg-deb", &["--raw-extract", &package, &tree.to_string_lossy()], made);
    let unit = fs::read_to_string(tree.join("usr/lib/systemd/system/gotrace.service")).expect("the unit");
    let started = unit.lines().find_map(|l| l.strip_prefix("ExecStart=/")).expect("it starts something");
    for path in started.split(' ').filter(|w| w.starts_with("usr/") || w.starts_with("/etc/")) {
        assert!(tree.join(path.trim_start_matches('/')).exists(), "the unit names {path}");
    }
    assert_eq!(
        fs::read_to_string(tree.join("DEBIAN/conffiles")).expect("read"),
        "/etc/gotrace/gotrace.yaml\n"
    );
    let version = output_of(&tree.join("usr/bin/gotrace").to_string_lossy(), &["--version"], made);
    assert!(version.starts_with("gotrace "), "{version}");
}

/// Checks the image as image-spec has it; returns its layer.
fn image(image: &Path, made: &Path) -> PathBuf {
    let layout = made.join("layout");
    fs::create_dir(&layout).expect("made");
    output_of("tar", &["-xf", &image.to_string_lossy()], &layout);
    let blob = |descriptor: &Value| {
        let digest =
            descriptor["digest"].as_str().expect("a digest").strip_prefix("sha256:").expect("sha256");
        let path = layout.join("blobs/sha256").join(digest);
        let bytes = fs::read(&path).expect("the blob");
        assert_eq!(hex::encode(Sha256::digest(&bytes)), digest);
        assert_eq!(descriptor["size"], bytes.len());
        (path, bytes)
    };
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
    let index = json(&fs::read(layout.join("index.json")).expect("an index"));
    let manifest = json(&blob(&index["manifests"][0]).1);
    let config = json(&blob(&manifest["config"]).1);
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/bin/gotrace"]));
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 1);
    let (path, packed) = blob(&layers[0]);
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).expect("gzip");
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&unpacked)));
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([diff_id]));
    let files = output_of("tar", &["-tf", &path.to_string_lossy()], &layout);
    for file in ["./usr/bin/gotrace", "./etc/gotrace/sidecar.yaml", "./etc/ssl/certs/ca-certificates.crt"] {
        assert!(files.lines().any(|l| l == file), "{file} is not in\n{files}");
    }
    assert!(!files.contains("/bin/sh"), "{files}");
    path
}

/// As on Fargate: the same PID namespace, SYS_PTRACE and no other capability, a read-only file system.
fn sidecar(layer: &Path) {
    let programs = tempfile::tempdir().expect("a directory");
    let demo = unpack_demo(programs.path()).expect("the demo is there");
    let (task, a) = ("cd189a933e5849daa93386466019ab50", "a".repeat(64));
    let cgroup = format!("/ecs/{task}/{a}");
    let shape =
        Shape { cgroup: &cgroup, hierarchy: Hierarchy::Host, hidden: true, bound: &[], pid_namespace: None };
    let target = Container::start(&demo, &["-for", "60s"], &shape).expect("it starts");
    let own = format!("/ecs/{task}/{}", "b".repeat(64));
    let shape = Shape { cgroup: &own, pid_namespace: Some(target.pid()), ..shape };
    let (status, told) =
        run_image(layer, &["/usr/bin/gotrace", "dump", "--pid", "1", "--group"], &["CAP_SYS_PTRACE"], &shape)
            .expect("runc runs it");
    assert!(status.success() && told.contains("main."), "{status}: {told}");
    let attach = [
        "/usr/bin/gotrace",
        "attach",
        "--pid",
        "1",
        "--duration",
        "2s",
        "--format",
        "json",
        "--interval",
        "1s",
    ];
    let (status, told) = run_image(layer, &attach, &["CAP_SYS_PTRACE"], &shape).expect("runc runs it");
    assert!(status.success() && told.contains(r#""engine":"snapshot""#), "{status}: {told}");
    let (status, told) =
        run_image(layer, &["/usr/bin/gotrace", "dump", "--pid", "1"], &[], &shape).expect("runc runs it");
    assert!(!status.success() && told.contains("SYS_PTRACE"), "without the capability: {status}: {told}");
}

/// What a command prints that succeeds.
fn printed(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What gotrace says, where it is installed, of a Go program outside.
fn tells_of_a_program_outside(root: &BareRoot, gotrace: &str) {
    let run = |arguments: &[&str]| printed(root.command(gotrace).args(arguments));
    let version = concat!("gotrace ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(run(&["--version"]), version);
    let program = RunningDemo::start("600s").expect("it starts");
    let pid = program.pid().to_string();
    let line = |text: &str| text.lines().any(|l| l.split_whitespace().next() == Some(&pid));
    let listed = run(&["ps"]);
    assert!(line(&listed), "no {pid} in\n{listed}");
    let dump = run(&["dump", &pid]);
    assert!(dump.contains("\nmain.openShop(...)\n\t") && dump.contains("/main.go:"), "{dump}");
}

/// The archive, unpacked where nothing else is: gotrace finds there what it finds here, and the first thing that a user
/// tries has its answer.
fn unpacked(archive: &Path) {
    let root = BareRoot::new().expect("a directory");
    output_of("tar", &["-xf", &archive.to_string_lossy()], root.path());
    let name = archive.file_name().and_then(|name| name.to_str()).expect("text").trim_end_matches(".tar.gz");
    let gotrace = format!("/{name}/gotrace");
    tells_of_a_program_outside(&root, &gotrace);
    let checks = |report: &Value| {
        let checks = report["checks"].as_array().expect("checks").clone();
        checks.into_iter().map(|c| (c["name"].to_string(), c["state"].to_string())).collect::<Vec<_>>()
    };
    let json = |command: &mut Command| {
        let output = command.args(["doctor", "--format", "json"]).output().expect("it starts");
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).expect("JSON"))
    };
    let (there, here) =
        (json(&mut root.command(&gotrace)), json(&mut Command::new(binary().expect("built"))));
    assert_eq!((there.0, checks(&there.1)), (here.0, checks(&here.1)));
    let mut demo = root.command(&gotrace);
    demo.args(["demo", "--duration", "2s", "--export", "/tmp/trace.jsonl"]);
    shows_the_leak(&mut demo, &root.path().join("tmp"), "trace.jsonl");
}

/// The Debian package, installed by dpkg where nothing else is: not even a shell, so that the package's scripts run on this
/// machine, as they must allow (`--force-script-chrootless`).
fn installed(package: &Path) {
    let root = BareRoot::new().expect("a directory");
    let state = root.path().join("var/lib/dpkg");
    fs::create_dir_all(state.join("info")).expect("made");
    fs::create_dir(state.join("updates")).expect("made");
    fs::write(state.join("status"), "").expect("written");
    let dpkg = |arguments: &[&str]| {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", root.path().display())).arg("--force-script-chrootless");
        dpkg.args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        printed(&mut dpkg)
    };
    dpkg(&["--install", &package.to_string_lossy()]);
    assert!(dpkg(&["--status", "gotrace"]).contains("\nStatus: install ok installed\n"));
    assert_eq!(dpkg(&["--verify", "gotrace"]), "", "files that are not those of the package");
    tells_of_a_program_outside(&root, "/usr/bin/gotrace");

    let help = printed(root.command("/usr/bin/gotrace").arg("--help"));
    let commands =
        help.split_once("Commands:\n").and_then(|(_, rest)| rest.split_once("\n\n")).expect("a list").0;
    let commands: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().filter(|name| *name != "help"))
        .collect();
    assert!(commands.len() > 15 && commands.contains(&"demo"), "{commands:?}");
    for command in commands {
        let page = root.path().join(format!("usr/share/man/man1/gotrace-{command}.1.gz"));
        let page = printed(Command::new("gzip").arg("-dc").arg(page));
        assert!(page.contains(&format!("\n.TH gotrace-{command} 1")), "{page}");
    }
    verify_unit(root.path());

    dpkg(&["--purge", "gotrace"]);
    for file in ["usr/bin/gotrace", "etc/gotrace", "usr/lib/systemd/system/gotrace.service"] {
        assert!(!root.path().join(file).exists(), "{file} is left");
    }
}

/// Has systemd judge the installed unit, with the program that it starts in its place.
fn verify_unit(root: &Path) {
    let installed = fs::read_to_string(root.join("usr/lib/systemd/system/gotrace.service")).expect("a unit");
    let started = format!("ExecStart={}/usr/bin/gotrace ", root.display());
    let unit = root.join("tmp/gotrace.service");
    assert!(installed.contains("ExecStart=/usr/bin/gotrace "), "{installed}");
    fs::write(&unit, installed.replace("ExecStart=/usr/bin/gotrace ", &started)).expect("written");
    let Ok(judged) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output() else {
        return left_out("live_packages", "systemd-analyze is not here: the unit is not verified");
    };
    let told = String::from_utf8_lossy(&judged.stderr);
    let wrong: Vec<&str> = told.lines().filter(|line| line.contains("gotrace.service")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The chart's package is the chart: helm takes it, and renders the same of it.
fn chart(package: &Path) {
    let helm = cache_dir().join("cluster/helm");
    assert!(helm.exists(), "{} is not there: `cargo xtask setup` puts it there", helm.display());
    let helm = |arguments: &[&str], chart: &Path| printed(Command::new(&helm).args(arguments).arg(chart));
    helm(&["lint", "--strict"], package);
    let about = helm(&["show", "chart"], package);
    let version = concat!("\nversion: ", env!("CARGO_PKG_VERSION"), "\n");
    assert!(about.contains(version) && about.contains("\nname: gotrace\n"), "{about}");
    let render = ["template", "gotrace", "--namespace", "gotrace", "--kube-version", "1.36.3"];
    let (packed, sources) =
        (helm(&render, package), helm(&render, &manifests::directory().join("kubernetes/chart")));
    assert!(packed.contains("kind: DaemonSet") && packed == sources, "{packed}");
}

/// Which process `gotrace demo` says that it started.
fn shop(said: &str) -> u32 {
    let behind = said.split_once("runs as process ").expect("it says which").1;
    behind.split('.').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

/// Whether that process runs, or one that has its pid by now.
fn is_there(pid: u32) -> bool {
    // One that has ended and that nobody has waited for has no executable.
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// `gotrace demo`, which is read as it goes.
struct Demo {
    gotrace: Running,
    lines: Receiver<String>,
    said: String,
}

impl Demo {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let lines = read_lines(child.stdout.take().expect("a pipe"));
        Self { gotrace: Running(child), lines, said: String::new() }
    }

    /// Reads until a line begins so.
    fn wait_for(&mut self, beginning: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{e}:\n{}", self.said));
            self.said += &(line.clone() + "\n");
            if line.starts_with(beginning) {
                return;
            }
        }
    }

    /// Waits for its end, and reads the rest.
    fn end(mut self) -> (ExitStatus, String) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.said += &(line + "\n");
        }
        (self.gotrace.0.wait().expect("it ends"), self.said)
    }
}

/// gotrace, with a directory for temporary files.
fn gotrace_with(temporary: &Path) -> Command {
    let mut command = Command::new(binary().expect("built"));
    command.env("TMPDIR", temporary);
    command
}

#[test]
fn the_demo_shows_the_leak() {
    if !privileged("live_packages") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let export = directory.path().join("trace.jsonl");
    let mut demo = gotrace_with(directory.path());
    demo.args(["demo", "--duration", "2s", "--export"]).arg(&export);
    shows_the_leak(&mut demo, directory.path(), "trace.jsonl");
    let trace = fs::read_to_string(export).expect("written");
    assert!(trace.contains("main.leakyHandler"), "{trace}");
}

/// Runs a demo whose temporary directory is this one, until it had the time to prove the leak: it says so, its program has
/// ended, and only what it exports is left.
fn shows_the_leak(demo: &mut Command, temporary: &Path, exported: &str) {
    let begin = Instant::now();
    loop {
        let output = demo.stdin(Stdio::null()).output().expect("it starts");
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{said}{error}");
        assert!(!is_there(shop(&said)), "{said}");
        let left: Vec<_> = fs::read_dir(temporary).expect("a directory").flatten().collect();
        assert!(left.len() == 1 && left[0].file_name() == exported, "{left:?}");
        for part in
            ["$ gotrace ps\n", "$ gotrace check ", "$ gotrace attach ", "; stopped after --duration\n"]
        {
            assert!(said.contains(part), "{part} in\n{said}");
        }
        let proven = said.contains("\n  unreachable ") && said.contains("LEAK? ");
        if proven && said.contains(" main.waitForever  created by main.leakyHandler (main.go:118)\n") {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "no leak in\n{said}{error}");
    }
}

#[test]
fn a_demo_that_is_ended_leaves_nothing_behind() {
    if !privileged("live_packages") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let is_empty = || fs::read_dir(directory.path()).expect("a directory").next().is_none();
    // At once, while another gotrace runs, and while that one has probes in the program.
    for (signal, when) in [
        (libc::SIGHUP, "main.waitForever"),
        (libc::SIGTERM, "$ gotrace check"),
        (libc::SIGINT, "$ gotrace attach"),
    ] {
        let mut demo = Demo::start(gotrace_with(directory.path()).args(["demo", "--duration", "600s"]));
        demo.wait_for(when);
        let pid = shop(&demo.said);
        assert!(is_there(pid) && !is_empty(), "{}", demo.said);
        demo.gotrace.signal(signal);
        let (status, said) = demo.end();
        assert_eq!(status.code(), Some(0), "signal {signal}: {status}:\n{said}");
        assert!(!is_there(pid), "signal {signal}: the program runs on:\n{said}");
        assert!(is_empty(), "signal {signal}: its directory is left:\n{said}");
    }
    // The kernel ends the program for one that cannot.
    let mut demo = Demo::start(gotrace_with(directory.path()).arg("demo"));
    demo.wait_for("main.waitForever");
    demo.gotrace.signal(libc::SIGKILL);
    let pid = shop(&demo.said);
    demo.gotrace.0.wait().expect("it ends");
    let begin = Instant::now();
    while is_there(pid) {
        assert!(begin.elapsed() < PATIENCE, "the program runs on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn on_a_terminal_the_demo_runs_until_ctrl_c() {
    if !privileged("live_packages") {
        return;
    }
    let mut demo = OnTerminal::start(&["demo", "--duration", "1s"]);
    demo.wait_for("In another terminal:");
    demo.wait_to_see("--html leak.html");
    let pid = shop(&demo.shown());
    let executable = fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    assert_eq!(executable.file_name().and_then(|name| name.to_str()), Some("shop"));
    let screen = demo.screen();
    for command in [format!(" attach {pid} --level full"), format!(" leaks {pid} --watch 30s")] {
        assert!(screen.contains(&command), "{command} in\n{screen}");
    }
    demo.press("\x03");
    assert_eq!(demo.end().code(), Some(0), "{}", demo.shown());
    assert!(!is_there(pid) && !executable.parent().expect("a directory").exists(), "{}", demo.shown());
    assert!(demo.is_cooked());
}

#[test]
fn a_demo_that_cannot_be_shown_says_why() {
    if !privileged("live_packages") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mount = "mount --make-rprivate / && mount -t tmpfs -o noexec none \"$TMPDIR\" && \"$0\" demo; code=$?; \
                 ls \"$TMPDIR\"; exit $code";
    let mut noexec = Command::new("unshare");
    noexec.args(["--mount", "sh", "-c", mount]).arg(binary().expect("built")).env("TMPDIR", directory.path());
    let mut isolated = Command::new("unshare");
    isolated.arg("--net").arg(binary().expect("built")).arg("demo").env("TMPDIR", directory.path());
    let mut nowhere = gotrace_with(&directory.path().join("nowhere"));
    for (command, why, what) in [
        (&mut noexec, "its file system is mounted noexec", "help: set TMPDIR to a directory on another"),
        (nowhere.arg("demo"), "No such file or directory", "help: set TMPDIR to another directory"),
        (&mut isolated, "cannot reach itself at 127.0.0.1", "help: in a network namespace of its own"),
    ] {
        let output = command.stdin(Stdio::null()).output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && error.contains(why) && error.contains(what), "{error}");
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Whoever may not read other users' processes may read this one, unless the kernel allows it to ancestors alone; what
/// eBPF lacks is said.
#[test]
fn without_root_the_demo_says_what_is_missing() {
    if !privileged("live_packages") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let gotrace = directory.path().join("gotrace");
    fs::copy(binary().expect("built"), &gotrace).expect("copied");
    std::os::unix::fs::chown(directory.path(), Some(65534), None).expect("given away");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]);
    let command = command.arg(&gotrace).args(["demo", "--duration", "1s"]).env("TMPDIR", directory.path());
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if matches!(scope.trim(), "" | "0") {
        assert_eq!(output.status.code(), Some(0), "{said}{error}");
        assert!(error.contains("warning: eBPF does not work on this host"), "{said}{error}");
        assert!(said.contains("main.waitForever  created by main.leakyHandler"), "{said}{error}");
    } else {
        assert_eq!(output.status.code(), Some(3), "{said}{error}");
        assert!(error.contains("\nhelp: ") && error.contains("ptrace_scope"), "{said}{error}");
    }
    assert!(!is_there(shop(&said)), "{said}");
    let left: Vec<_> = fs::read_dir(directory.path()).expect("a directory").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
