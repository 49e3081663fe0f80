//! Errors as the command line prints them, one of each kind: a change of words shows as a difference of
//! `golden/errors.txt`. `GOTRACE_BLESS=1 cargo test` writes it anew.

use std::{fs, io, path::Path};

use gotrace_agent::pipeline::LineError;
use gotrace_go as go;
use gotrace_inspect::{heap::HeapError, snapshot::SnapshotError};
use gotrace_kernel as kernel;
use gotrace_process::{
    Obstacle::{
        Capability, FileSystem, NotDumpable, PtraceScope, Seccomp, SecurityModule, User, UserNamespace,
    },
    ProcessError, SpawnError,
};

use super::{CliError, Exit};

/// Compares with a file of `golden/`.
pub(super) fn golden(name: &str, text: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/golden").join(name);
    if std::env::var_os("GOTRACE_BLESS").is_some() {
        fs::write(&path, text).expect("the golden file");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    for (n, (now, before)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(now, before, "{name}, line {}", n + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{name}: lines");
}

fn processes() -> Vec<ProcessError> {
    let denied = || io::Error::from_raw_os_error(libc::EIO);
    let refused = |obstacles| ProcessError::NotPermitted {
        pid: 1234,
        uid: 1000,
        what: "read its memory (process_vm_readv, /proc/PID/mem)".into(),
        obstacles,
    };
    let obstacles = [
        User { own: 1000, target: 0 },
        Capability,
        NotDumpable,
        UserNamespace,
        PtraceScope(1),
        PtraceScope(2),
        PtraceScope(3),
        FileSystem,
        Seccomp,
        SecurityModule,
    ];
    let mut all = vec![
        ProcessError::Zombie { pid: 1234 },
        ProcessError::LeaderEnded { pid: 1234, others: 3 },
        ProcessError::Hidden { pid: 1234 },
        ProcessError::KernelThread { pid: 2, comm: "kthreadd".into() },
        ProcessError::Thread { pid: 1235, tgid: 1234 },
        ProcessError::ForeignProc { shown: "7".into(), own: 1 },
        ProcessError::NoProc { source: denied() },
        ProcessError::ExecutableTooLarge {
            pid: 1234,
            path: "/srv/shop".into(),
            size_bytes: 1 << 40,
            limit_bytes: 1 << 32,
        },
        ProcessError::Memory { pid: 1234, address: 0xc000, length: 8, source: denied() },
        ProcessError::Io { pid: 1234, what: "read /proc/PID/stat".into(), source: denied() },
        refused(Vec::new()),
    ];
    all.extend(obstacles.map(|obstacle| refused(vec![obstacle])));
    all
}

fn commands() -> Vec<SpawnError> {
    let command = || "./server".to_owned();
    let failed =
        |code| SpawnError::NotExecutable { command: command(), source: io::Error::from_raw_os_error(code) };
    vec![
        SpawnError::NotFound { command: "server".into(), searched: true },
        SpawnError::NotFound { command: command(), searched: false },
        failed(libc::EACCES),
        failed(libc::ENOEXEC),
        failed(libc::ENOENT),
        SpawnError::NulByte { command: command() },
        SpawnError::System {
            command: command(),
            what: "create a pipe",
            source: io::Error::from_raw_os_error(libc::EMFILE),
        },
    ]
}

fn kernels() -> Vec<kernel::Error> {
    let (what, reason) = (|| "load the program park".to_owned(), || "Invalid argument".to_owned());
    vec![
        kernel::Error::Permission { what: what() },
        kernel::Error::Unsupported { what: what(), reason: reason() },
        kernel::Error::Passing { what: what(), reason: reason() },
        kernel::Error::Failed { what: what(), reason: reason() },
        kernel::Error::NotSafe {
            pid: 1234,
            reason: "its executable has changed since it was parsed".into(),
            permission: false,
        },
        kernel::Error::NotSafe {
            pid: 1234,
            reason: "cannot open its memory to compare it with its executable".into(),
            permission: true,
        },
        kernel::Error::Executed { pid: 1234 },
        kernel::Error::Object("program park".into()),
    ]
}

fn lines() -> Vec<LineError> {
    let executable = || "/srv/shop".to_owned();
    let program = |error| LineError::Program { pid: 1234, executable: executable(), error };
    vec![
        program(go::Error::NotElf),
        program(go::Error::NotGo { why: "it has no Go sections" }),
        program(go::Error::Unsupported {
            what: "built with -buildmode=plugin; gotrace supports executables".into(),
        }),
        program(go::Error::Malformed { what: "the file ends within the ELF header", at: 64 }),
        LineError::NoProbe { pid: 1234, executable: executable(), what: "exit".into() },
        LineError::TooMany { pid: 1234, limit: 64 },
        LineError::NoMemory { pid: 1234, executable: executable(), bytes: 17_000_000, limit: 8 << 20 },
        LineError::Implausible {
            pid: 1234,
            go_version: "go1.24.3".into(),
            source_: "built-in".into(),
            why: "300 goroutines start at addresses that are no function entry".into(),
        },
        LineError::Unreadable { pid: 1234, error: SnapshotError::NoAllgs },
        LineError::Unreadable {
            pid: 1234,
            error: SnapshotError::NoField { field: "g.goid", version: "go1.24.3".into() },
        },
        LineError::Unreadable {
            pid: 1234,
            error: SnapshotError::Implausible {
                version: "go1.24.3".into(),
                why: "3 of 5 have no entry function".into(),
            },
        },
        LineError::Unreadable { pid: 1234, error: SnapshotError::NotStarted },
        LineError::Unreadable { pid: 1234, error: SnapshotError::Panicked },
        LineError::Threads(io::Error::from_raw_os_error(libc::EMFILE)),
        LineError::Threads(io::Error::from_raw_os_error(libc::EAGAIN)),
        LineError::Discovery,
        LineError::Ring(io::Error::from_raw_os_error(libc::EIO)),
    ]
}

#[test]
fn errors_read_as_written_down() {
    let mut all: Vec<CliError> = Vec::new();
    all.extend(processes().into_iter().map(CliError::from));
    // What helps against that depends on the PID namespace.
    all.push(CliError::new(Exit::GONE, ProcessError::Gone { pid: 1234 }.to_string()));
    all.extend(commands().into_iter().map(CliError::from));
    all.extend(kernels().into_iter().map(CliError::from));
    all.extend(lines().into_iter().map(CliError::from));
    all.extend([HeapError::NoModule].map(|e| CliError::failure(e.to_string())));
    let mut text = String::new();
    for error in all {
        text += &format!("{error}\n[exit code {}]\n\n", error.exit().0);
    }
    golden("errors.txt", text.as_bytes());
}
