//! Starting a program that waits, before its first instruction, until the probes are in place.
//!
//! A child is forked at once and waits on a pipe; its pid is known, so that probes can be keyed by it
//! and put on the file that it is going to execute. [`Spawned::release`] lets it execute the command.
//! It dies when gotrace dies before that, and lives on when gotrace dies after. Standard streams,
//! process group and environment are inherited untouched.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, PermissionsExt},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    ptr,
    sync::Arc,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid},
};

use super::{ProcessError, Target};

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Nothing by this name.
    #[error("cannot execute {command}: {}", if *.searched { "not found in PATH" } else { "no such file" })]
    NotFound {
        /// As given.
        command: String,
        /// Whether `PATH` was searched.
        searched: bool,
    },
    /// The kernel refused to execute it.
    #[error("cannot execute {command}: {source}")]
    NotExecutable {
        /// The file.
        command: String,
        /// The refusal.
        source: io::Error,
    },
    /// An argument cannot be passed on.
    #[error("an argument of {command} contains a NUL byte")]
    NulByte {
        /// As given.
        command: String,
    },
    /// No process could be made, or its pipe broke.
    #[error("cannot start {command}: cannot {what}: {source}")]
    System {
        /// As given.
        command: String,
        /// What was tried.
        what: &'static str,
        /// The refusal.
        source: io::Error,
    },
}

impl SpawnError {
    /// As shells have it: 127 not found, 126 found but not executable; 2 and 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::NotExecutable { .. } => 126,
            Self::NulByte { .. } => 2,
            Self::System { .. } => 1,
        }
    }

    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { searched: true, .. } => {
                "check the spelling, or give a path (./NAME for a file in this directory)".into()
            }
            Self::NotFound { .. } => "check the path".into(),
            Self::NotExecutable { source, .. } => match source.raw_os_error() {
                Some(libc::EACCES) => {
                    "make it executable (chmod +x), and check that its file system is not mounted noexec"
                        .into()
                }
                Some(libc::ENOEXEC) => {
                    "it is neither an executable for this machine nor a script that begins with #!".into()
                }
                Some(libc::ENOENT) => "the interpreter of the script does not exist".into(),
                _ => return None,
            },
            Self::NulByte { .. } | Self::System { .. } => return None,
        })
    }
}

/// What the file to execute is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutableKind {
    /// An ELF file; whether it is a Go program only `gobin` can say.
    Elf,
    /// A script, which its interpreter executes.
    Script,
    /// Not readable (execute-only), or none of these.
    Other,
}

/// A started process that waits before executing its command, then executes it.
#[derive(Debug)]
pub struct Spawned {
    command: String,
    arguments: Vec<String>,
    executable: PathBuf,
    kind: ExecutableKind,
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    gate: Option<File>,
    failure: Option<File>,
    ended: Option<ExitStatus>,
}

impl Spawned {
    /// Finds `command` as `execvp` does and starts a process that waits to execute it.
    ///
    /// # Errors
    /// See [`SpawnError`]; nothing was started then.
    pub fn prepare(command: &OsStr, arguments: &[OsString]) -> Result<Self, SpawnError> {
        let name = command.to_string_lossy().into_owned();
        let executable = resolve(command)?;
        let kind = kind_of(&executable);
        let c_string =
            |s: &OsStr| CString::new(s.as_bytes()).map_err(|_| SpawnError::NulByte { command: name.clone() });
        let path = c_string(executable.as_os_str())?;
        let mut owned = vec![c_string(command)?];
        for argument in arguments {
            owned.push(c_string(argument)?);
        }
        let mut argv: Vec<*const libc::c_char> = owned.iter().map(|a| a.as_ptr()).collect();
        argv.push(ptr::null());

        let system = |what: &'static str| {
            let command = name.clone();
            move |e: Errno| SpawnError::System { command, what, source: e.into() }
        };
        let (gate_read, gate_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system("create a pipe"))?;
        let (failure_read, failure_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system("create a pipe"))?;
        let plan = ChildPlan {
            path: path.as_ptr(),
            argv: argv.as_ptr(),
            gate_read: gate_read.as_raw_fd(),
            gate_write: gate_write.as_raw_fd(),
            failure_write: failure_write.as_raw_fd(),
        };
        let raw = fork_and_wait(&plan).map_err(|source| SpawnError::System {
            command: name.clone(),
            what: "fork",
            source,
        })?;
        // fork(2) returned neither -1 nor 0.
        let pid = Pid::from_raw(raw).ok_or_else(|| system("fork")(Errno::CHILD))?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                drop(gate_write);
                let _ = waitpid(Some(pid), WaitOptions::empty());
                return Err(system("open a handle on it (pidfd_open)")(e));
            }
        };
        Ok(Self {
            arguments: std::iter::once(command)
                .chain(arguments.iter().map(OsString::as_os_str))
                .map(|a| a.to_string_lossy().into_owned())
                .collect(),
            command: name,
            executable,
            kind,
            pid,
            pidfd: Arc::new(pidfd),
            gate: Some(gate_write.into()),
            failure: Some(failure_read.into()),
            ended: None,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// The file that it is going to execute: absolute, without symbolic links. This is the file to
    /// put probes on.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// What that file is.
    #[must_use]
    pub fn kind(&self) -> ExecutableKind {
        self.kind
    }

    /// A handle to signal and to watch it, good until [`Self::wait`] and after.
    #[must_use]
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// The process as it is going to be: its own identity, but already with the file and arguments
    /// that it will have. Works before [`Self::release`], and for a program that ends at once after.
    ///
    /// # Errors
    /// As [`Target::open`], and when the file cannot be read.
    pub fn target(&self) -> Result<Target, ProcessError> {
        let pid = self.pid();
        let file = File::open(&self.executable).map_err(|source| ProcessError::Io {
            pid,
            what: format!("read {}", self.executable.display()),
            source,
        })?;
        let mut target = Target::open(pid)?;
        target.become_program(self.executable.clone(), file, self.arguments.clone());
        Ok(target)
    }

    /// Lets it execute the command; returns when it has.
    ///
    /// # Errors
    /// When it could not execute it: the process is gone then, and the error has its exit code.
    pub fn release(&mut self) -> Result<(), SpawnError> {
        let Some(mut gate) = self.gate.take() else { return Ok(()) };
        // A child that was killed meanwhile has closed its end; wait() tells how it ended.
        let _ = gate.write_all(&[1]);
        drop(gate);
        let Some(mut failure) = self.failure.take() else { return Ok(()) };
        let mut errno = [0; 4];
        match failure.read_exact(&mut errno) {
            // Closed without a word: by the execution, or by death.
            Err(_) => Ok(()),
            Ok(()) => {
                let _ = self.wait();
                Err(SpawnError::NotExecutable {
                    command: self.command.clone(),
                    source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
                })
            }
        }
    }

    /// Waits until it has ended and collects its status. Blocks the thread. A pidfd of it that is
    /// watched elsewhere stays valid and readable.
    ///
    /// # Errors
    /// When the status was collected by someone else.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        self.gate = None;
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    let status = ExitStatus::from_raw(status.as_raw());
                    self.ended = Some(status);
                    return Ok(status);
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A status as shells have it: the exit code, or 128 + the signal's number.
    #[must_use]
    pub fn exit_code(status: ExitStatus) -> u8 {
        let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
        u8::try_from(code & 0xff).unwrap_or(1)
    }
}

impl Drop for Spawned {
    /// A child that still waits ends without executing anything; one that runs is left alone.
    fn drop(&mut self) {
        if self.gate.take().is_some() && self.ended.is_none() {
            let _ = self.wait();
        }
    }
}

/// Everything the child needs, made before the fork: it may not allocate after.
struct ChildPlan {
    path: *const libc::c_char,
    argv: *const *const libc::c_char,
    gate_read: RawFd,
    gate_write: RawFd,
    failure_write: RawFd,
}

/// Forks; the child does as [`run_child`] says, the parent gets its pid.
fn fork_and_wait(plan: &ChildPlan) -> io::Result<libc::pid_t> {
    // SAFETY: sigset_t is plain data, for which zero is a valid value; the calls get pointers to
    // live locals. In the child only async-signal-safe functions are called (see run_child), as the
    // other threads' locks may be held for ever there.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        // Blocked until the child has dropped gotrace's handlers: it must not run one of them.
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        let pid = libc::fork();
        let error = io::Error::last_os_error();
        if pid == 0 {
            run_child(plan, &old);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, ptr::null_mut());
        if pid < 0 { Err(error) } else { Ok(pid) }
    }
}

/// The child: default signals, wait for the byte, execute.
///
/// # Safety
/// To be called in a forked child only, with pointers in `plan` to NUL-terminated data that live.
unsafe fn run_child(plan: &ChildPlan, mask: &libc::sigset_t) -> ! {
    // SAFETY: only async-signal-safe functions (signal-safety(7)), on descriptors and pointers that
    // the parent made before the fork.
    unsafe {
        libc::close(plan.gate_write);
        for signal in 1..=64 {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &raw mut action) == 0 {
                let ignored = action.sa_sigaction == libc::SIG_IGN;
                // Ignored stays ignored (nohup), except what Rust's runtime itself ignores.
                if !ignored || signal == libc::SIGPIPE {
                    action.sa_sigaction = libc::SIG_DFL;
                    action.sa_flags = 0;
                    libc::sigaction(signal, &raw const action, ptr::null_mut());
                }
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut());
        let mut byte = 0u8;
        loop {
            let n = libc::read(plan.gate_read, (&raw mut byte).cast(), 1);
            if n == 1 {
                break;
            }
            if n == 0 || *libc::__errno_location() != libc::EINTR {
                libc::_exit(127);
            }
        }
        libc::execv(plan.path, plan.argv);
        let errno = *libc::__errno_location();
        libc::write(plan.failure_write, (&raw const errno).cast(), 4);
        libc::_exit(127);
    }
}

/// The file that `execvp` would execute.
fn resolve(command: &OsStr) -> Result<PathBuf, SpawnError> {
    let name = || command.to_string_lossy().into_owned();
    let searched = !command.as_bytes().contains(&b'/');
    let mut refused = None;
    let candidates: Vec<PathBuf> = if command.is_empty() {
        Vec::new()
    } else if searched {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        std::env::split_paths(&path).map(|d| d.join(command)).collect()
    } else {
        vec![command.into()]
    };
    for candidate in candidates {
        let metadata = match candidate.metadata() {
            Ok(metadata) => metadata,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => continue,
            Err(e) => {
                refused.get_or_insert((candidate, e));
                continue;
            }
        };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            return candidate
                .canonicalize()
                .map_err(|source| SpawnError::NotExecutable { command: name(), source });
        }
        let reason = if metadata.is_dir() { libc::EISDIR } else { libc::EACCES };
        refused.get_or_insert((candidate, io::Error::from_raw_os_error(reason)));
    }
    Err(match refused {
        Some((file, source)) => SpawnError::NotExecutable { command: file.display().to_string(), source },
        None => SpawnError::NotFound { command: name(), searched },
    })
}

fn kind_of(path: &Path) -> ExecutableKind {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|f| f.read_at(&mut start, 0)).unwrap_or(0);
    match &start[..read] {
        b"\x7fELF" => ExecutableKind::Elf,
        [b'#', b'!', ..] => ExecutableKind::Script,
        _ => ExecutableKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(command: &str, arguments: &[&str]) -> Result<Spawned, SpawnError> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Spawned::prepare(OsStr::new(command), &arguments)
    }

    #[test]
    fn waits_for_its_release_then_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("mark");
        let mut child =
            prepare("sh", &["-c", "echo ran > \"$1\"; exit 7", "sh", mark.to_str().expect("UTF-8")])
                .expect("sh exists");
        let target = child.target().expect("it waits");
        assert_eq!(target.executable, std::fs::canonicalize("/bin/sh").expect("exists"));
        assert_eq!(target.arguments().expect("known")[..2], ["sh", "-c"]);
        assert!(*target.exe_bytes().expect("readable") == *std::fs::read("/bin/sh").expect("readable"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!mark.exists());
        let watch = target.watch().expect("it waits");
        child.release().expect("executable");
        let status = child.wait().expect("our child");
        assert_eq!(Spawned::exit_code(status), 7);
        assert_eq!(child.wait().expect("remembered"), status);
        assert!(watch.has_ended());
        assert_eq!(std::fs::read_to_string(&mark).expect("written"), "ran\n");
        assert_eq!(target.identity.pid, child.pid());
    }

    #[test]
    fn a_child_that_is_not_released_runs_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("mark");
        let child = prepare("touch", &[mark.to_str().expect("UTF-8")]).expect("touch exists");
        let watch = child.target().expect("it waits").watch().expect("it waits");
        drop(child);
        assert!(watch.has_ended());
        assert!(!mark.exists());
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let mut killed = prepare("sh", &["-c", "kill -TERM $$"]).expect("sh exists");
        killed.release().expect("executable");
        assert_eq!(Spawned::exit_code(killed.wait().expect("our child")), 143);

        assert_eq!(prepare("no-such-command-here", &[]).expect_err("absent").exit_code(), 127);
        assert_eq!(prepare("./no/such/file", &[]).expect_err("absent").exit_code(), 127);
        assert_eq!(prepare("", &[]).expect_err("absent").exit_code(), 127);
        assert_eq!(prepare("/", &[]).expect_err("a directory").exit_code(), 126);

        let directory = tempfile::tempdir().expect("a directory");
        for (content, mode, code) in
            [("x", 0o644, 126), ("no program", 0o755, 126), ("#!/no/such/interpreter\n", 0o755, 127)]
        {
            let file = directory.path().join("file");
            std::fs::write(&file, content).expect("written");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
            let error = match prepare(file.to_str().expect("UTF-8"), &[]) {
                Err(e) => e,
                Ok(mut child) => child.release().expect_err("cannot be executed"),
            };
            assert_eq!(error.exit_code(), code, "{content} {error}");
            assert!(error.help().is_some());
        }
    }

    #[test]
    fn scripts_are_told_from_programs() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("script");
        std::fs::write(&file, "#!/bin/sh\nexit 3\n").expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("set");
        let mut child = prepare(file.to_str().expect("UTF-8"), &[]).expect("executable");
        assert_eq!(child.kind(), ExecutableKind::Script);
        child.release().expect("executable");
        assert_eq!(Spawned::exit_code(child.wait().expect("our child")), 3);
        assert_eq!(prepare("sh", &[]).expect("exists").kind(), ExecutableKind::Elf);
    }

    #[test]
    fn a_nul_byte_is_refused() {
        assert!(matches!(prepare("sh", &["a\0b"]), Err(SpawnError::NulByte { .. })));
    }
}
