//! What `gotrace` says when it is given something that it cannot read or trace: what, on which file or
//! process, what to do, and the exit code of the contract. Runs without root and Go; what needs root is in
//! `live_bad_input`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{demo::demo_program, gotrace::binary};

/// Exit code and stderr; fails when it does not end.
fn gotrace(args: &[&str]) -> (i32, String) {
    let child = Command::new(binary().expect("built"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let output = child.wait_with_output().expect("it ends");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Writes a file and returns what `inspect` says of it.
fn inspected(directory: &Path, name: &str, bytes: &[u8]) -> (i32, String, PathBuf) {
    let path = directory.join(name);
    fs::write(&path, bytes).expect("written");
    let (code, stderr) = gotrace(&["inspect", path.to_str().expect("a path")]);
    (code, stderr, path)
}

#[test]
fn files_that_are_no_go_programs_are_named_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = demo_program().expect("kept beside its source");
    let changed = |at: usize, bytes: &[u8]| {
        let mut program = program.clone();
        program[at..at + bytes.len()].copy_from_slice(bytes);
        program
    };
    let test = fs::read(std::env::current_exe().expect("this test")).expect("readable");
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("empty", Vec::new(), "not an ELF file"),
        ("script", b"#!/bin/sh\necho\n".to_vec(), "not an ELF file"),
        ("rust", test, "not a Go program"),
        ("32-bit", changed(4, &[1]), "a 32-bit executable"),
        ("big-endian", changed(5, &[2]), "a big-endian executable"),
        ("riscv", changed(18, &[243, 0]), "machine 243"),
        ("no-sections-left", program[..64].to_vec(), "(at file offset 0x"),
        ("short", program[..4096].to_vec(), "(at file offset 0x"),
        ("half", program[..program.len() / 2].to_vec(), "(at file offset 0x"),
    ];
    for (name, bytes, why) in cases {
        let (code, stderr, path) = inspected(directory.path(), name, &bytes);
        assert_eq!(code, 4, "{name}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {}: ", path.display())), "{stderr}");
        assert!(stderr.contains(why) && stderr.contains("\nhelp: "), "{name}: {stderr}");
    }
    assert_eq!(inspected(directory.path(), "whole", &program).0, 0);
}

#[test]
fn what_is_no_file_is_refused_without_reading_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path().to_str().expect("a path");
    for (path, code) in [(directory, 4), ("/dev/zero", 4), ("/nonexistent/file", 1)] {
        let begin = Instant::now();
        let (found, stderr) = gotrace(&["inspect", path]);
        assert_eq!(found, code, "{stderr}");
        assert!(stderr.contains(path), "{stderr}");
        assert!(begin.elapsed() < Duration::from_secs(120));
    }
}

#[test]
fn pids_that_are_no_process_are_told_apart() {
    let mut gone = Command::new("true").spawn().expect("it starts");
    gone.wait().expect("it ends");
    let (code, stderr) = gotrace(&["attach", "--pid", &gone.id().to_string()]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("does not exist or has exited") && stderr.contains("help: "), "{stderr}");

    let mut zombie = Command::new("true").spawn().expect("it starts");
    let stat = format!("/proc/{}/stat", zombie.id());
    while !fs::read_to_string(&stat).expect("not collected").contains(") Z ") {
        thread::yield_now();
    }
    let (code, stderr) = gotrace(&["attach", "--pid", &zombie.id().to_string()]);
    zombie.wait().expect("it ended");
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("zombie"), "{stderr}");

    let (tell, told) = std::sync::mpsc::channel();
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let other = thread::spawn(move || {
        // SAFETY: gettid takes no arguments and cannot fail.
        tell.send(unsafe { libc::gettid() }).expect("someone listens");
        let _ = wait.recv();
    });
    let tid = told.recv().expect("told").to_string();
    let (code, stderr) = gotrace(&["attach", "--pid", &tid]);
    drop(end);
    other.join().expect("it ends");
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains(&format!("use --pid {}", std::process::id())), "{stderr}");

    // Where there are kernel threads to see, the second process is theirs.
    if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim() == "kthreadd") {
        let (code, stderr) = gotrace(&["attach", "--pid", "2"]);
        assert_eq!(code, 4, "{stderr}");
        assert!(stderr.contains("(kthreadd) is a kernel thread"), "{stderr}");
    }
}

#[test]
fn commands_that_cannot_be_executed_end_as_in_a_shell() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("not-executable");
    fs::write(&script, "#!/bin/sh\n").expect("written");
    for (command, code) in [
        ("/nonexistent/command", 127),
        (script.to_str().expect("a path"), 126),
        (directory.path().to_str().expect("a path"), 126),
    ] {
        let (found, stderr) = gotrace(&["exec", "--", command]);
        assert_eq!(found, code, "{stderr}");
        assert!(stderr.contains(command), "{stderr}");
    }
}

#[test]
fn a_wrong_configuration_is_told_with_file_line_and_column() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("gotrace.yaml");
    let check = |text: &str| {
        fs::write(&path, text).expect("written");
        gotrace(&["daemon", "--check-config", "--config", path.to_str().expect("a path")])
    };
    assert_eq!(check("trace:\n  level: full\n"), (0, String::new()));
    let (code, stderr) = check("trace:\n  level: full\nlimits:\n  budget: all\n");
    assert_eq!(code, 2, "{stderr}");
    let place = format!("error: {}:4:11: expected a share", path.display());
    assert!(stderr.starts_with(&place), "{stderr}");
    assert!(stderr.contains("\nhelp: "), "{stderr}");
    let (code, stderr) = gotrace(&["daemon", "--check-config", "--config", "/nowhere/gotrace.yaml"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("/nowhere/gotrace.yaml: No such file"), "{stderr}");
    let (code, stderr) = gotrace(&["daemon", "--budget", "0"]);
    assert_eq!(code, 2, "{stderr}");
}
