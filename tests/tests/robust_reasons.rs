//! What is said of processes that cannot be traced, or hardly: the true reason, and by each command the same. Needs root,
//! `go` and util-linux.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build},
    gotrace::{binary, left_out, privileged},
};

fn gotrace(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary().expect("gotrace is built"));
    command.args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every command that reads a process's executable.
fn commands(pid: &str) -> [Vec<&str>; 4] {
    [
        vec!["inspect", "--pid", pid],
        vec!["dump", "--pid", pid],
        vec!["leaks", "--no-proof", "--pid", pid],
        vec!["attach", "--duration", "300ms", "--quiet", "--pid", pid],
    ]
}

/// A program that is ended when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program `bench` with bytes replaced wherever they are, under this name.
fn patched(place: &Place, name: &str, changes: &[(&[u8], &[u8])]) -> PathBuf {
    let path = place.program(name).expect("it builds");
    let mut bytes = fs::read(&path).expect("a file");
    for (from, to) in changes {
        assert_eq!(from.len(), to.len());
        let mut found = 0;
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
                found += 1;
            }
        }
        assert!(found > 0, "{}", String::from_utf8_lossy(from));
    }
    fs::write(&path, bytes).expect("written");
    path
}

#[test]
fn a_program_that_the_loader_started_is_named_as_that() {
    if !privileged("robust_reasons") {
        return;
    }
    let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(Path::new);
    let Some(loader) = loader.into_iter().find(|path| path.exists()) else {
        left_out("robust_reasons", "there is no dynamic loader");
        return;
    };
    let program = build("bench", "1.24.11", Mode::Cgo, Arch::HOST).expect("it builds");
    let mut command = Command::new(loader);
    command.arg(program).args(["-procs", "2"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut started = Started(command.spawn().expect("it starts"));
    let mut line = String::new();
    BufReader::new(started.0.stdout.take().expect("piped")).read_line(&mut line).expect("it says something");
    for command in commands(&started.0.id().to_string()) {
        let output = gotrace(&command);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(4), "{command:?}: {said}");
        assert!(said.contains("it is the dynamic loader, started as `ld.so PROGRAM`"), "{command:?}: {said}");
    }
}

#[test]
fn sections_that_have_other_names_are_done_without_by_all() {
    if !privileged("robust_reasons") {
        return;
    }
    let place = Place::new().expect("a directory");
    let renamed = patched(
        &place,
        "renamed",
        &[
            (b".gopclntab\0", b".xxpclntab\0"),
            (b".go.buildinfo\0", b".xx.buildinfo\0"),
            (b".note.go.buildid\0", b".note.xx.buildid\0"),
        ],
    );
    let program = Program::start(&renamed).expect("it starts");
    for command in commands(&program.pid().to_string()) {
        let output = gotrace(&command);
        assert!(output.status.success(), "{command:?}: {}", said(&output));
    }
    let daemon = Daemon::start(&place.config("level: lifecycle", ""), &[]).expect("it starts");
    daemon.until("it is traced", PATIENCE, |d| Ok(d.metrics()?.has(program.pid()))).expect("traced");
}

#[test]
fn a_version_that_is_none_of_gos_is_no_reason() {
    if !privileged("robust_reasons") {
        return;
    }
    let place = Place::new().expect("a directory");
    let program =
        Program::start(&patched(&place, "ours", &[(b"go1.24.11", b"acme-2024")])).expect("it starts");
    for command in commands(&program.pid().to_string()) {
        let output = gotrace(&command);
        assert!(output.status.success(), "{command:?}: {}", said(&output));
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if command[0] == "inspect" {
            assert!(out.contains("acme-2024"), "{out}");
            assert!(out.contains("by its debug information its runtime is that of Go 1.24"), "{out}");
        }
        assert!(command[0] != "dump" || out.contains("main.main"), "{out}");
    }
}

#[test]
fn counters_of_coverage_are_not_taken_for_the_list_of_goroutines() {
    if !privileged("robust_reasons") {
        return;
    }
    let program = build("bench", "1.24.11", Mode::Cover, Arch::HOST).expect("it builds");
    let program = Program::start(&program).expect("it starts");
    for command in commands(&program.pid().to_string()) {
        let output = gotrace(&command);
        assert!(output.status.success(), "{command:?}: {}", said(&output));
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(command[0] != "dump" || out.contains("main.main"), "{out}");
    }
}

#[test]
fn a_target_that_is_killed_meanwhile_is_gone() {
    if !privileged("robust_reasons") {
        return;
    }
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("it builds");
    let (mut gone, mut whole) = (0, 0);
    for round in 0..60u64 {
        let program = Program::start(&shop).expect("it starts");
        let pid = program.pid().to_string();
        let dump = thread::spawn(move || gotrace(&["dump", "--pid", &pid]));
        thread::sleep(Duration::from_micros(700 * (round % 30)));
        drop(program);
        let output = dump.join().expect("it ends");
        match output.status.code() {
            Some(0) => whole += 1,
            Some(5) => gone += 1,
            code => panic!("{round}: {code:?}: {}", said(&output)),
        }
    }
    println!("{gone} gone, {whole} whole");
}

#[test]
fn a_process_that_is_hidden_is_said_to_be() {
    if !privileged("robust_reasons") {
        return;
    }
    let place = Place::new().expect("a directory");
    let program = Program::start(&place.program("shop").expect("it builds")).expect("it starts");
    let script = "mount --make-rprivate / && mount -t proc -o hidepid=2 proc /proc && \
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$1\" dump --pid \"$2\"";
    // Where others may execute it.
    let copy = tempfile::Builder::new().prefix("gotrace").tempdir_in("/tmp").expect("a directory");
    let gotrace = copy.path().join("gotrace");
    fs::copy(binary().expect("gotrace is built"), &gotrace).expect("copied");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(copy.path(), open).expect("set");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&gotrace)
        .arg(program.pid().to_string())
        .stdin(Stdio::null())
        .output()
        .expect("unshare starts");
    let said = said(&output);
    assert!(output.status.code() == Some(3) && said.contains("mounted with hidepid"), "{output:?}");
}
