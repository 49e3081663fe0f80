//! `gotrace requests --request FUNCTION` against a program that knows where the time of each call went, and of the goroutines
//! that calls started (`tests/go/calls`). Needs root and `go`.

use std::process::Command;

use gotrace_tests::{
    gobuild::{Arch, Mode, build},
    gotrace::{binary, privileged},
    requests::{
        Program, Watch,
        judge::{agrees, all, children, pairs},
    },
};

/// All kinds of calls.
const KINDS: &str =
    "sleep cpu recursion grows recovered panic deep_panic goexit method generic nested children behind";

const NAMED: [&str; 10] = [
    "--request",
    "main.handle",
    "--request",
    "main.recursive",
    "--request",
    "main.wide",
    "--request",
    "main.(*queue).work",
    "--request",
    "main.each[...]",
];

/// What does not agree in one process of a build.
fn judged(version: &str, mode: Mode) -> Vec<String> {
    let path = build("calls", version, mode, Arch::HOST).expect("the program builds");
    let mut program = Program::start(&path);
    let watch = Watch::start(program.pid(), &[&["--slow", "0ms"], &NAMED[..]].concat());
    let (own, _) = program.run(&format!("run 6 {KINDS}"));
    let report = watch.finish();
    let mut wrong = all(&own, &report, version, 1);
    wrong.extend(pairs(&own, &report.ended).0.into_iter().flat_map(|(own, seen)| children(own, seen)));
    wrong
}

#[test]
fn calls_are_cut_as_their_program_cuts_them() {
    if !privileged("live_calls") {
        return;
    }
    for (version, mode) in [
        ("1.19.13", Mode::Stripped),
        ("1.21.13", Mode::Stripped),
        ("1.27.3", Mode::Stripped),
        ("1.27.3", Mode::PieStripped),
    ] {
        agrees(&format!("Go {version}, {}", mode.name()), || judged(version, mode));
    }
}

/// What cannot be traced is refused before anything is put in place, with what may have been meant.
#[test]
fn functions_that_are_not_there_are_refused() {
    if !privileged("live_calls") {
        return;
    }
    let path = build("calls", "1.27.3", Mode::Stripped, Arch::HOST).expect("the program builds");
    let program = Program::start(&path);
    for (name, expected) in [
        ("main.handel", "there is no function main.handel; there is main.handle"),
        ("main.queue.work", "there is no function main.queue.work; there is main.(*queue).work"),
        ("main.nothing", "there is no function main.nothing"),
        ("main.(*own).add", "the compiler inlined it into main."),
    ] {
        let pid = program.pid().to_string();
        let mut gotrace = Command::new(binary().expect("gotrace"));
        let output = gotrace.args(["requests", "--pid", &pid, "--request", name]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(output.stdout.is_empty());
    }
}
