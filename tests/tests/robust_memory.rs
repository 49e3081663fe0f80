//! gotrace's own memory stays under a bound, however many goroutines a program has and however large its file is.
//! Needs root, `go` and a memory cgroup.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Result;
use gotrace_tests::{
    daemon::{Daemon, Place, Program},
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build},
    gotrace::{binary, privileged},
    memory::watch_parked,
};
use object::{Object as _, ObjectSection as _};

/// Goroutines of the program that is watched; a million are in `soak_memory`.
const GOROUTINES: u64 = 150_000;
/// What it may cost however many there are (the daemon's table of them is bounded), and what each may at the peak: all
/// looks, the proof, and what is said of it.
const BYTES: u64 = 32 << 20;
const BYTES_EACH: u64 = 400;

#[test]
fn the_daemon_proves_leaks_in_a_bounded_part_of_its_container() {
    if !privileged("robust_memory") {
        return;
    }
    let watched = watch_parked(GOROUTINES, Duration::from_secs(600)).expect("proven");
    let each = watched.peak.saturating_sub(watched.base + BYTES) / GOROUTINES;
    println!("{watched:?}: {each} bytes a goroutine");
    assert!(each <= BYTES_EACH, "{watched:?}: {each} bytes a goroutine");
}

/// The largest file that a program is tried with, and what reading it may cost in MiB.
const FILE: u64 = 400 << 20;
const FILE_MIB: u64 = 80;

#[test]
fn a_large_executable_is_not_read_whole() {
    if !privileged("robust_memory") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("large");
    fs::copy(build("parked", "1.27.3", Mode::Plain, Arch::HOST).expect("it builds"), &program)
        .expect("copied");
    // What lies behind its sections is the program's own: an archive that it reads, for example.
    File::options().write(true).open(&program).and_then(|f| f.set_len(FILE)).expect("it grows");
    let inspect = peak_of(&["inspect", &program.display().to_string()]);
    let mut child = Command::new(&program)
        .args(["-n", "10", "-leaked", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it is there");
    assert_eq!(line, "READY\n");
    let attach = peak_of(&["attach", "--pid", &child.id().to_string(), "--duration", "1s", "--quiet"]);
    drop(child.stdin.take());
    child.wait().expect("it ends with its input");
    println!("{} MiB: inspect {inspect} MiB, attach {attach} MiB", FILE >> 20);
    assert!(inspect <= FILE_MIB && attach <= FILE_MIB, "inspect {inspect} MiB, attach {attach} MiB");
}

/// The most memory that `gotrace` had with these arguments, in MiB.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it")]
fn peak_of(arguments: &[&str]) -> u64 {
    let mut command = Command::new(binary().expect("gotrace is built"));
    let child =
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    let pid = child.id().cast_signed();
    // SAFETY: all of it may be 0.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    // SAFETY: the pid is our own child's, not yet waited for, and both places are ours.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert!(waited == pid && status == 0, "{arguments:?} ended with {status}");
    u64::try_from(usage.ru_maxrss).expect("not negative") >> 10
}

/// More different programs than fit are refused with that reason, and the daemon goes on.
#[test]
fn programs_that_do_not_fit_are_refused() {
    if !privileged("robust_memory") {
        return;
    }
    const LIMIT: u64 = 8 << 20;
    let place = Place::new().expect("a directory");
    let shop = place.program("shop").expect("it builds");
    let bytes = fs::read(&shop).expect("readable");
    let file = object::File::parse(&*bytes).expect("ELF");
    let tables = file.section_by_name(".gopclntab").expect("Go has it").size();
    // They are kept compressed, to a third of this at best.
    let programs: Vec<Program> = (0..3 * LIMIT / tables + 2)
        .map(|n| {
            let path = place.path().join(format!("program-{n}"));
            // Another content, as what follows the sections differs.
            fs::write(&path, [&*bytes, n.to_string().as_bytes()].concat()).expect("written");
            fs::set_permissions(&path, fs::metadata(&shop).expect("there").permissions()).expect("changed");
            Program::start(&path).expect("it starts")
        })
        .collect();
    let config = place.config("level: lifecycle", "limits: {memory: 8M}\n");
    let daemon = Daemon::start(&config, &["--budget", "off"]).expect("it starts");
    let look = || -> Result<_> {
        let metrics = daemon.metrics()?;
        let traced = programs.iter().filter(|program| metrics.has(program.pid())).count();
        let reason = ["gotrace_refused_reason=\"memory\""];
        let refused: f64 = metrics.values("gotrace_processes_refused_total", &reason).iter().sum();
        Ok((traced, refused))
    };
    let all = programs.len() as f64;
    daemon
        .until("each is traced or refused", PATIENCE, |_| {
            look().map(|(traced, refused)| traced as f64 + refused >= all)
        })
        .expect("it looks at all");
    let (traced, refused) = look().expect("a page");
    println!("{traced} traced, {refused} refused");
    assert!(traced > 0 && refused > 0.0, "{traced} traced, {refused} refused");
    assert_eq!(daemon.get("/livez").expect("it answers").0, 200);
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success() && said.contains("they exceed limits.memory (8388608 bytes)"), "{said}");
    programs.into_iter().for_each(|program| program.finish().expect("it ends"));
}
