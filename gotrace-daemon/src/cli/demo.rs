//! `gotrace demo`: starts a small Go program that leaks, which is part of gotrace, and shows what gotrace says of it: at
//! a glance, as a verdict, and live. On a terminal the program runs on until Ctrl-C, to try other commands on.
//!
//! The program is that of `tests/go/demo`, compiled beforehand (`gotrace-daemon/demo`). It lies in a directory of this run
//! while it runs; both are gone when this ends, however it ends (SIGKILL leaves the directory). Each command that is shown
//! is a gotrace of its own; one that fails says why, and its exit code is that of the demo.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io::{self, IsTerminal as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use flate2::read::GzDecoder;
use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    process::Signal,
};

use super::{CliError, Exit, examine::Interrupts, say, temporary::Directory};
use crate::units as values;
use gotrace_model::printable::printable;
use gotrace_process::Tied;

/// The program, packed, for the machine that gotrace is built for.
#[cfg(target_arch = "x86_64")]
const PROGRAM: &[u8] = include_bytes!("../../demo/demo.amd64.gz");
/// The program, packed, for the machine that gotrace is built for.
#[cfg(target_arch = "aarch64")]
const PROGRAM: &[u8] = include_bytes!("../../demo/demo.arm64.gz");

/// What it is called.
const NAME: &str = "shop";
/// How long it runs at most: it leaks memory.
const OPEN: &str = "1h";
/// As long as it takes until there is a leak to see.
const LEAKS: Duration = Duration::from_secs(3);
/// Time between two looks at a child.
const POLL: Duration = Duration::from_millis(20);

/// Arguments of `demo`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The program is a small shop: customers order over the network, and a careless handler leaks a
goroutine now and then. `gotrace ps`, `gotrace check` and `gotrace attach` show what is wrong with
it. On a terminal it then runs until Ctrl-C, for an hour at most, to try other commands on.

It is part of gotrace, and is written to a new directory in $TMPDIR (else /tmp). At the end it is
stopped, and the directory is removed. It listens on 127.0.0.1 only.

Examples:
  gotrace demo
  gotrace demo --duration 30s --export trace.jsonl")]
pub struct DemoArgs {
    /// How long to show it live
    #[arg(long, value_parser = duration, default_value = "10s", value_name = "TIME")]
    duration: String,
    /// Also write what is traced to FILE, as OTLP JSON lines
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

/// As it was written, for the command that takes it.
fn duration(text: &str) -> Result<String, String> {
    values::duration_above_zero(text).map(|_| text.to_owned())
}

/// Starts the program and shows it.
///
/// # Errors
/// When it cannot be written, started or reached.
pub(super) fn run(args: &DemoArgs) -> Result<Exit, CliError> {
    let stop = Interrupts::listen()?;
    has_loopback().map_err(|e| {
        CliError::failure(format!("the demo's program cannot reach itself at 127.0.0.1: {e}"))
            .help("in a network namespace of its own, the loopback interface has to be up: ip link set lo up")
    })?;
    let directory = Directory::make()?;
    let mut shop = start(directory.path())?;
    let exit = show(args, &mut shop, &stop)?;
    let pid = shop.pid();
    drop((shop, directory));
    say(&format!("gotrace: stopped process {pid} and removed its executable\n"));
    Ok(exit)
}

/// Without it the program runs, but no customer gets in, and nothing leaks.
fn has_loopback() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    TcpStream::connect(listener.local_addr()?).map(drop)
}

/// Writes the program into the directory, and starts it.
fn start(directory: &Path) -> Result<Tied, CliError> {
    let place = printable(&directory.display().to_string()).into_owned();
    let failed = |what: &str, e: io::Error| {
        CliError::failure(format!("cannot {what} the demo's program in {place}: {e}"))
            .help("set TMPDIR to a directory where programs can be written and executed")
    };
    if statvfs(directory).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOEXEC)) {
        let noexec = io::Error::other("its file system is mounted noexec");
        return Err(failed("execute", noexec).help(
            "set TMPDIR to a directory on another file system, such as TMPDIR=$HOME gotrace demo (with sudo: sudo \
             TMPDIR=$HOME gotrace demo)",
        ));
    }
    let path = directory.join(NAME);
    unpack(&path).map_err(|e| failed("write", e))?;
    let mut command = Command::new(&path);
    // A Ctrl-C is for gotrace, which stops it.
    command.args(["-for", OPEN]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    Tied::start(&mut command, Signal::KILL).map_err(|e| failed("execute", e))
}

fn unpack(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?;
    io::copy(&mut GzDecoder::new(PROGRAM), &mut file)?;
    Ok(())
}

/// What the demo has to show.
fn show(args: &DemoArgs, shop: &mut Tied, stop: &Interrupts) -> Result<Exit, CliError> {
    let pid = &shop.pid().to_string();
    writeln!(
        io::stdout(),
        "A small Go program, {NAME}, runs as process {pid}. It leaks goroutines: each in\n\
         main.waitForever waits for an answer that never comes. What gotrace says of it:"
    )?;
    if stop.wait_until(Instant::now() + LEAKS) {
        return Ok(Exit::DONE);
    }
    if let Ok(Some(status)) = shop.ended() {
        return Err(CliError::failure(format!("the demo's program ended early: {status}")));
    }
    let on_terminal = io::stdout().is_terminal();
    // Of a program of one's own all may be seen, whatever it costs.
    let attach = ["attach", pid, "--duration", &args.duration, "--budget", "none"];
    let mut attach = attach.map(OsStr::new).to_vec();
    if let Some(file) = &args.export {
        attach.extend([OsStr::new("--export"), file.as_os_str()]);
    }
    if !on_terminal {
        // Each interval is a table of its own.
        attach.extend(["--interval", "1m"].map(OsStr::new));
    }
    let check = ["check", pid, "--watch", "5s"].map(OsStr::new);
    for arguments in [&[OsStr::new("ps")][..], &check, &attach] {
        if let Some(exit) = tell(arguments, stop)? {
            return Ok(exit);
        }
    }
    if let Some(file) = &args.export {
        let file = file.display().to_string();
        writeln!(io::stdout(), "\nThe trace is in {}: OTLP as JSON lines.", printable(&file))?;
    }
    if on_terminal {
        leave_open(shop, stop)?;
    }
    Ok(Exit::DONE)
}

/// Says what is run, and runs it; `Some` where the demo ends with that.
fn tell(arguments: &[&OsStr], stop: &Interrupts) -> Result<Option<Exit>, CliError> {
    let line: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    let mut out = io::stdout();
    writeln!(out, "\n$ gotrace {}", printable(&line.join(" ")))?;
    out.flush()?;
    let name = &line[0];
    let failed = |e: io::Error| CliError::failure(format!("cannot run gotrace {name}: {e}"));
    let mut command = Command::new("/proc/self/exe");
    let mut child = Tied::start(command.arg0("gotrace").args(arguments), Signal::TERM).map_err(failed)?;
    let status = loop {
        if let Some(status) = child.ended().map_err(failed)? {
            break status;
        }
        if stop.came() {
            thread::sleep(POLL);
        } else if stop.wait_until(Instant::now() + POLL) {
            child.terminate();
        }
    };
    if stop.came() {
        return Ok(Some(Exit::DONE));
    }
    match status.code() {
        Some(0) => Ok(None),
        // Findings are what the demo is for, and a busy machine may leave no time for a proof.
        Some(1 | 10) if name == "check" => Ok(None),
        // It has said why.
        Some(code) => Ok(Some(Exit(u8::try_from(code).unwrap_or(1)))),
        None => Err(CliError::failure(format!("gotrace {name} ended: {status}"))),
    }
}

/// Lets the program run on for whoever wants to try other commands.
fn leave_open(shop: &mut Tied, stop: &Interrupts) -> Result<(), CliError> {
    let pid = shop.pid();
    let mut out = io::stdout();
    writeln!(out, "\nThe program runs on until Ctrl-C, for an hour at most. In another terminal:")?;
    if let Some(directory) = own_directory() {
        writeln!(out, "  export PATH={}:$PATH", printable(&directory))?;
    }
    writeln!(
        out,
        "  gotrace attach {pid} --level full       watch it\n\
         \x20 gotrace leaks {pid} --watch 30s         the leak, proven\n\
         \x20 gotrace dump {pid} --group              every goroutine\n\
         \x20 gotrace check {pid} --html leak.html    a report to send"
    )?;
    out.flush()?;
    while !stop.wait_until(Instant::now() + 10 * POLL) && matches!(shop.ended(), Ok(None)) {}
    Ok(())
}

/// Where this gotrace is, if it was called by its path.
fn own_directory() -> Option<String> {
    let by_path = std::env::args().next()?.contains('/');
    let path = by_path.then(std::env::current_exe)?.ok()?;
    Some(path.parent()?.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_program_is_unpacked_for_its_user_alone_and_only_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(NAME);
        unpack(&path).expect("unpacked");
        let file = std::fs::read(&path).expect("there");
        // ELF; its machine is the one that this is built for.
        let own = std::fs::read("/proc/self/exe").expect("an executable");
        assert_eq!((&file[..4], &file[18..20]), (&b"\x7fELF"[..], &own[18..20]));
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        assert_eq!(unpack(&path).expect_err("there").kind(), io::ErrorKind::AlreadyExists);
    }
}
