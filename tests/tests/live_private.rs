//! What gotrace writes is for its user alone and goes where it seems to go; what a watched program says of itself
//! forges neither lines of a log nor what is exported, and makes neither large. Needs root, bash and no Go.

use std::{
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use gotrace_tests::{
    daemon::Daemon,
    demo::{Demo, unpack_demo},
    export::Export,
    gotrace::{binary, privileged},
};

const SOON: Duration = Duration::from_secs(30);

fn gotrace(args: &[&str]) -> Output {
    Command::new(binary().expect("built")).args(args).stdin(Stdio::null()).output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).mode() & 0o7777
}

/// Commands that write a file about a program, each with where the file's name comes.
const WRITERS: [&[&str]; 4] = [
    &["dump", "-o"],
    &["attach", "--duration", "300ms", "--quiet", "--export"],
    &["attach", "--duration", "300ms", "--quiet", "--record"],
    &["leaks", "--evidence"],
];

fn write(writer: &[&str], pid: u32, file: &Path) -> Output {
    let pid = pid.to_string();
    let args: Vec<&str> =
        writer.iter().copied().chain([file.to_str().expect("text"), "--pid", &pid]).collect();
    gotrace(&args)
}

#[test]
fn what_is_written_is_for_its_user_alone_and_never_through_a_link() {
    if !privileged("live_private") {
        return;
    }
    let demo = Demo::start("300s").expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    for (n, writer) in WRITERS.iter().enumerate() {
        let new = at(&format!("new{n}"));
        let output = write(writer, demo.pid(), &new);
        assert!(output.status.success(), "{writer:?}: {}", said(&output));
        assert_eq!(mode(&new), 0o600, "{writer:?}");
        let written = fs::metadata(&new).expect("there").len();
        assert!(written > 0, "{writer:?} wrote nothing");

        let old = at(&format!("old{n}"));
        fs::write(&old, "before").expect("written");
        fs::set_permissions(&old, Permissions::from_mode(0o666)).expect("set");
        assert!(write(writer, demo.pid(), &old).status.success(), "{writer:?}");
        assert_eq!(mode(&old), 0o600, "{writer:?}");

        let precious = at(&format!("precious{n}"));
        fs::write(&precious, "precious").expect("written");
        let link = at(&format!("link{n}"));
        symlink(&precious, &link).expect("made");
        let theirs = at(&format!("theirs{n}"));
        fs::write(&theirs, "theirs").expect("written");
        chown(&theirs, Some(12345), None).expect("given away");
        for (file, why, kept) in [
            (&link, "it is a symbolic link, which is not followed; use another file", &precious),
            (&theirs, "the file belongs to user 12345, and gotrace runs as user 0", &theirs),
        ] {
            let output = write(writer, demo.pid(), file);
            let (code, said) = (output.status.code(), said(&output));
            assert_eq!(code, Some(1), "{writer:?}: {said}");
            assert!(said.contains(why) && said.contains(file.to_str().expect("text")), "{writer:?}: {said}");
            let text = fs::read_to_string(kept).expect("text");
            assert!(["precious", "theirs"].contains(&&*text), "{writer:?}: {text}");
        }
    }
}

#[test]
fn devices_and_a_shells_pipes_keep_working() {
    if !privileged("live_private") {
        return;
    }
    let demo = Demo::start("300s").expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let run = |script: &str| {
        let output = Command::new("bash")
            .args(["-c", script, "bash"])
            .arg(binary().expect("built"))
            .arg(demo.pid().to_string())
            .current_dir(&directory)
            .output()
            .expect("bash starts");
        assert!(output.status.success(), "{script}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for script in [
        "$1 dump --pid $2 -o /dev/stdout",
        "$1 dump --pid $2 -o /dev/stdout | cat",
        "$1 dump --pid $2 -o /dev/fd/5 5>&1",
        // What reads is waited for by the last `cat`, which reads until all writers have gone.
        "{ $1 dump --pid $2 -o >(cat); } | cat",
        "mkfifo fifo; cat fifo & $1 dump --pid $2 -o fifo; wait",
        "echo kept > file; $1 dump --pid $2 -o /dev/stdout >> file; grep -q ^kept file && cat file",
    ] {
        let text = run(script);
        assert!(text.contains("goroutine 1 ["), "{script}: {text}");
    }
    assert_eq!(run("$1 dump --pid $2 -o /dev/null"), "");
    assert_eq!(mode(Path::new("/dev/null")), 0o666);
}

/// The demo's program under another name, ended by its pid.
struct Odd(Child);

impl Odd {
    fn start(program: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.args(["-for", "300s"]).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.envs(variables.iter().copied()).spawn().expect("it starts"))
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const FORGED: &str = "2026-01-01T00:00:00.000000Z ERROR gotrace: forged";

fn odd_program(directory: &Path) -> PathBuf {
    let program = unpack_demo(directory).expect("the demo is there");
    let mut name = format!("a\n{FORGED}\r\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\u{2028}").into_bytes();
    name.push(0xff);
    let odd = directory.join(std::ffi::OsStr::from_bytes(&name));
    fs::rename(program, &odd).expect("renamed");
    odd
}

/// Whether each line is one of gotrace's own or indented, and nothing in them acts on a terminal.
fn assert_harmless(text: &str) {
    let acts = |c: char| {
        c != '\n' && (c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    };
    assert!(!text.contains(acts), "{text:?}");
    assert!(
        !text.lines().any(|line| line.starts_with("2026-01-01T00") || line.starts_with("forged")),
        "{text}"
    );
}

#[test]
fn a_programs_path_forges_no_line_and_steers_no_terminal() {
    if !privileged("live_private") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = odd_program(directory.path());
    let odd =
        Odd::start(&program, &[("OTEL_SERVICE_NAME", "shop\u{1b}[2J\nforged 1\n\"} 1\ngotrace_forged 1")]);
    let config = format!(
        "trace: {{interval: 300ms, level: waits}}\nrules:\n  include:\n  - executable: [\"{}/**\"]\n",
        directory.path().display()
    );
    let daemon = Daemon::start(&config, &[]).expect("it starts");
    daemon.until("it is traced", SOON, |d| Ok(d.metrics()?.has(odd.0.id()))).expect("traced");
    let page = daemon.get("/metrics").expect("a page").1;
    let (status, _, log) = daemon.finish().expect("it ends");
    assert!(status.success(), "{log}");
    assert!(log.contains(&format!("/a\\n{FORGED}\\r\\u{{1b}}[2J")), "{log}");
    assert_harmless(&log);
    assert_harmless(&page);
    assert!(!page.lines().any(|line| line.starts_with("gotrace_forged")), "{page}");

    // On stdout and stderr of the other commands, too.
    let pid = odd.0.id().to_string();
    for args in [
        &["attach", "--duration", "300ms", "--pid", &pid][..],
        &["attach", "--duration", "300ms", "--format", "json", "--pid", &pid],
        &["dump", "--format", "json", "--pid", &pid],
        &["dump", "--format", "svg", "--pid", &pid],
        &["dump", "--format", "speedscope", "--pid", &pid],
        &["leaks", "--pid", &pid],
        &["leaks", "--format", "json", "--pid", &pid],
        &["leaks", "--graph", "dot", "--pid", &pid],
        &["inspect", "--pid", &pid],
        &["attach", "--pid", &pid, "--export", program.parent().and_then(Path::to_str).expect("text")],
    ] {
        let output = gotrace(args);
        assert_harmless(&String::from_utf8_lossy(&output.stdout));
        assert_harmless(&said(&output));
    }
    let output = gotrace(&["inspect", "/nowhere\nhelp: forged"]);
    assert!(!said(&output).lines().any(|line| line == "help: forged"), "{}", said(&output));
}

#[test]
fn what_a_process_says_of_itself_replaces_nothing_and_stays_small() {
    if !privileged("live_private") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = unpack_demo(directory.path()).expect("the demo is there");
    let mut claims = String::from(
        "service.instance.id=forged,container.id=forged,k8s.pod.name=forged,host.name=forged,service.namespace=shops",
    );
    for n in 0..1114 {
        claims.push_str(&format!(",key{n:04}={}", "v".repeat(90)));
    }
    let odd = Odd::start(&program, &[("OTEL_RESOURCE_ATTRIBUTES", &claims)]);
    let file = directory.path().join("export.jsonl");
    let output = write(&["attach", "--level", "full", "--duration", "1s", "--export"], odd.0.id(), &file);
    assert!(output.status.success(), "{}", said(&output));
    let text = fs::read_to_string(&file).expect("an export");
    let longest = text.lines().map(str::len).max().unwrap_or(0);
    assert!(!text.contains("forged") && longest < 1 << 20, "a line of {longest} bytes");
    let export = Export::parse(&text).expect("JSON lines");
    let resource = &export.spans.first().expect("a span").resource;
    assert_eq!(resource["service.namespace"], "shops");
    assert_eq!(resource["service.instance.id"].len(), 36);
    assert_eq!(resource.keys().filter(|k| k.starts_with("key")).count(), 63);
}
