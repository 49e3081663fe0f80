//! The guide as a rehearsal: the commands of its pages, as written, on programs that have what the page is about, print
//! what the page says. The rules are those of `guide.rs`. Needs root and `go`.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use gotrace_tests::{
    demo::unpack_demo,
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build, workspace},
    gotrace::{binary, privileged},
    guide::{PID, Rehearsal, Step, rehearsals},
    quota::Quota,
    running::Running,
};

/// A page each, below `guide/`.
const JOBS: [&str; 6] = ["growing", "hung", "leak", "slow", "stuck", "throttled"];

/// Programs that are looked at at the same time.
const AT_ONCE: usize = 4;

/// A program of its own in a directory of its own. Written before anything is started: who is started while a file is
/// open for writing has it open as well, and nobody can execute it.
fn prepare(rehearsal: &Rehearsal) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let shop = directory.path().join("shop");
    if rehearsal.program == "demo" {
        fs::rename(unpack_demo(directory.path()).expect("the demo"), shop).expect("renamed");
    } else {
        let program = build("cases", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
        fs::copy(program, shop).expect("copied");
    }
    directory
}

/// Starts the program that a rehearsal names.
fn start(rehearsal: &Rehearsal, directory: &Path) -> Running {
    let mut command = Command::new(directory.join("shop"));
    match rehearsal.program.split_once(' ') {
        None => assert_eq!(rehearsal.program, "demo"),
        Some((program, case)) => {
            assert_eq!(program, "cases");
            command.arg(case);
        }
    }
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts"))
}

/// Gives a command until it prints what the page says; what is wrong if it never does.
fn give(step: &Step, directory: &Path, numbers: &mut HashMap<String, String>) -> Option<String> {
    let arguments = step.command(numbers);
    let begin = Instant::now();
    for tries in 1.. {
        let mut command = Command::new(binary().expect("built"));
        let command = command.args(&arguments).current_dir(directory).env_remove("GITHUB_ACTIONS");
        let output = command.stdin(Stdio::null()).output().expect("it starts");
        let printed = String::from_utf8_lossy(&output.stdout);
        let missing = match step.compare(&printed) {
            Ok(shown) if matches!(output.status.code(), Some(0 | 10)) => {
                for (number, shown) in shown {
                    numbers.entry(number).or_insert(shown);
                }
                let seconds = begin.elapsed().as_secs_f64();
                println!("  {seconds:>4.0} s, {tries} tries: gotrace {}", arguments.join(" "));
                return None;
            }
            Ok(_) => output.status.to_string(),
            Err(missing) => format!("it does not print\n  {missing}"),
        };
        if begin.elapsed() > PATIENCE {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = step.line;
            return Some(format!("{line}: gotrace {}: {missing}\nbut\n{printed}{said}", arguments.join(" ")));
        }
    }
    unreachable!("there is always another try")
}

/// What a rehearsal finds wrong.
fn rehearse(rehearsal: &Rehearsal, directory: &Path) -> Option<String> {
    let quota = rehearsal.within_quota.then(|| Quota::new(10).expect("a control group"));
    let running = start(rehearsal, directory);
    if let Some(quota) = &quota {
        quota.limit(running.pid()).expect("moved");
    }
    let mut numbers = HashMap::from([(PID.to_owned(), running.pid().to_string())]);
    rehearsal.steps.iter().find_map(|step| give(step, directory, &mut numbers))
}

#[test]
fn the_commands_of_each_page_print_what_it_says() {
    if !privileged("live_guide") {
        return;
    }
    let documents = workspace().join("gotrace-daemon/docs");
    let read = |name: &str| fs::read_to_string(documents.join(name)).expect(name);
    let names = JOBS.map(|job| format!("guide/{job}.md"));
    let there = fs::read_dir(documents.join("guide")).expect("a directory").count();
    assert_eq!(there, JOBS.len(), "a page each");
    let mut all = Vec::new();
    for name in names.iter().map(String::as_str).chain(["guide.md"]) {
        let of_page = rehearsals(&read(name));
        let commands: usize = of_page.iter().map(|r| r.steps.len()).sum();
        assert!(commands >= 2, "{name} has {commands} commands");
        let prepared = of_page.into_iter().map(|rehearsal| (name, prepare(&rehearsal), rehearsal));
        all.extend(prepared);
    }
    let queue = Mutex::new(all);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        let mut wrong = Vec::new();
        while let Some((name, directory, rehearsal)) = next() {
            let begin = Instant::now();
            wrong.extend(rehearse(&rehearsal, directory.path()).map(|found| format!("{name}:{found}")));
            let seconds = begin.elapsed().as_secs_f64();
            println!("{name} on {}: {} commands, {seconds:.0} s", rehearsal.program, rehearsal.steps.len());
        }
        wrong
    };
    let wrong: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("it was judged")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
