//! A process to trace, named so that a later process with the same pid is never taken for it.
//!
//! Everything is read relative to one open `/proc/PID` directory, which stays that of this process
//! when the pid is reused. Refuses kernel threads, zombies and thread ids.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use procfs::{
    FromBufRead, FromRead,
    process::{MMPermissions, MMapPath, MemoryMaps, Stat, Status},
};
use rustix::{
    fs::{CWD, Mode, OFlags, openat, readlinkat, statat},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{Memory, ProcessError, Watch, watch::is_gone};
use crate::ids::ProcessKey;

/// Largest executable that is read into memory (1 GiB). The largest Go programs known have a third.
pub const MAX_EXECUTABLE_BYTES: u64 = 1 << 30;

/// How often a process is opened anew that executes a program meanwhile.
const OPEN_ATTEMPTS: usize = 8;

/// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// What tells a process from every other one, also across reboots and reused pids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Process id in gotrace's PID namespace.
    pub pid: u32,
    /// Start, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Arc<str>,
    /// Inode of its PID namespace; `None` when it cannot be read.
    pub pid_namespace: Option<u64>,
    /// Effective user id.
    pub uid: u32,
}

impl Identity {
    /// The key that trace and span ids are derived from, of the program that it runs: given by where that
    /// one's stack begins ([`Watch::stack_start`](super::Watch::stack_start)), and how many of its programs before had
    /// theirs in the same place, as happens without address randomisation.
    #[must_use]
    pub fn key(&self, stack_start: u64, repeat: u32) -> ProcessKey {
        ProcessKey::new(&self.boot_id, self.pid, self.start_ticks, stack_start, repeat)
    }
}

/// A mapped piece of the executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Offset in the file of what is at `start`.
    pub file_offset: u64,
    /// Whether it is mapped for execution.
    pub executable: bool,
}

/// A living process, and what `/proc` says about it at the time of opening.
#[derive(Debug)]
pub struct Target {
    /// Who it is.
    pub identity: Identity,
    /// Its executable, as seen in its own mount namespace, without the kernel's ` (deleted)`.
    pub executable: PathBuf,
    /// Whether that file was deleted or replaced since. Its content can still be read.
    pub executable_deleted: bool,
    /// Its name as the kernel keeps it, at most 15 bytes.
    pub comm: String,
    /// Its pid in each PID namespace, gotrace's first, its own last.
    pub namespace_pids: Vec<u32>,
    /// Whether it lives in another PID namespace than gotrace; `None` when that cannot be read.
    pub other_pid_namespace: Option<bool>,
    /// Whether it lives in another mount namespace than gotrace; `None` when that cannot be read.
    pub other_mount_namespace: Option<bool>,
    exe: File,
    /// The memory of the program that it runs, and of no later one; `None` without permission.
    pub(super) memory: Option<Arc<File>>,
    /// Arguments that it is going to have; `None` where `/proc` has them.
    future_arguments: Option<Vec<String>>,
    pub(super) directory: Arc<OwnedFd>,
    pub(super) pidfd: Arc<OwnedFd>,
}

impl Target {
    /// Opens the process `pid` of gotrace's PID namespace.
    ///
    /// # Errors
    /// See [`ProcessError`]: gone, zombie, kernel thread, a thread's id, permission refused, `/proc` of
    /// another PID namespace.
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        check_proc()?;
        for _ in 0..OPEN_ATTEMPTS {
            let (target, stack_start) = Self::open_once(pid)?;
            // All of it was read of one execution if the program that ran at the beginning runs at the end.
            if !target.memory.as_deref().is_some_and(|memory| is_gone(memory, stack_start)) {
                return Ok(target);
            }
        }
        Err(ProcessError::Gone { pid })
    }

    fn open_once(pid: u32) -> Result<(Self, u64), ProcessError> {
        let gone = || ProcessError::Gone { pid };
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).map_err(|e| match e {
            rustix::io::Errno::NOENT => gone(),
            e => ProcessError::from_io(pid, u32::MAX, "open its /proc directory", e.into()),
        })?;
        let directory = Arc::new(directory);
        // A thread's number opens no pidfd: look at the status first, so that the error says so.
        let status = read_status(&directory, pid)?;
        if status.tgid.cast_unsigned() != pid {
            return Err(ProcessError::Thread { pid, tgid: status.tgid.cast_unsigned() });
        }
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|e| {
            ProcessError::from_io(pid, status.euid, "open a handle on it (pidfd_open)", e.into())
        })?;
        // The directory still answers after the pidfd was opened: both are of the same process.
        let stat = read_stat(&directory, pid)?;
        if stat.flags & PF_KTHREAD != 0 {
            return Err(ProcessError::KernelThread { pid, comm: stat.comm });
        }
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return Err(ProcessError::Zombie { pid });
        }
        let refused = |what: &str, e: rustix::io::Errno| match e {
            // The executable of a process that is ending is taken away before it becomes a zombie.
            rustix::io::Errno::NOENT => gone(),
            e => ProcessError::from_io(pid, status.euid, what, e.into()),
        };
        let memory = open_memory(&directory);
        let link = readlinkat(&directory, "exe", Vec::new())
            .map_err(|e| refused("read the path of its executable (/proc/PID/exe)", e))?;
        let (executable, executable_deleted) = split_deleted(link.as_bytes());
        let exe = openat(&directory, "exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| refused("open its executable (/proc/PID/exe)", e))?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = |name: &str| statat(&directory, name, rustix::fs::AtFlags::empty()).ok();
        let own = |name: &str| rustix::fs::stat(format!("/proc/self/{name}")).ok();
        let differs = |name: &str| {
            Some((namespace(name)?, own(name)?)).map(|(a, b)| (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino))
        };
        let target = Self {
            identity: Identity {
                pid,
                start_ticks: stat.starttime,
                boot_id: boot_id.trim().into(),
                pid_namespace: namespace("ns/pid").map(|s| s.st_ino),
                uid: status.euid,
            },
            executable,
            executable_deleted,
            comm: stat.comm,
            namespace_pids: status
                .nspid
                .map_or_else(|| vec![pid], |pids| pids.into_iter().map(i32::cast_unsigned).collect()),
            other_pid_namespace: differs("ns/pid"),
            other_mount_namespace: differs("ns/mnt"),
            exe: exe.into(),
            memory,
            future_arguments: None,
            directory,
            pidfd: Arc::new(pidfd),
        };
        Ok((target, stat.startstack))
    }

    /// Its process id in gotrace's PID namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Whether it is a process that gotrace started, described as the program that it is yet to execute.
    #[must_use]
    pub fn is_yet_to_execute(&self) -> bool {
        self.future_arguments.is_some()
    }

    /// Describes the process as what it is going to execute.
    pub(super) fn become_program(&mut self, executable: PathBuf, file: File, arguments: Vec<String>) {
        self.comm = executable
            .file_name()
            .map(|name| String::from_utf8_lossy(&name.as_bytes()[..name.len().min(15)]).into_owned())
            .unwrap_or_default();
        self.executable = executable;
        self.executable_deleted = false;
        self.exe = file;
        self.future_arguments = Some(arguments);
    }

    /// The executable's file name, for people.
    #[must_use]
    pub fn executable_name(&self) -> String {
        self.executable
            .file_name()
            .map_or_else(|| self.comm.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// An open handle on the executable.
    #[must_use]
    pub fn executable_file(&self) -> &File {
        &self.exe
    }

    /// The whole executable.
    ///
    /// # Errors
    /// When it has more than [`MAX_EXECUTABLE_BYTES`], or cannot be read.
    pub fn exe_bytes(&self) -> Result<Vec<u8>, ProcessError> {
        read_bounded(&self.exe, self.identity.pid, self.identity.uid, &self.executable)
    }

    /// The mapped pieces of the executable, lowest address first. The load bias comes from the first
    /// one and the file's program headers.
    ///
    /// # Errors
    /// When it is gone or the kernel refuses to show its memory map.
    pub fn executable_mappings(&self) -> Result<Vec<Mapping>, ProcessError> {
        let what = "read its memory map (/proc/PID/maps)";
        let bytes = self.read_file("maps", what)?;
        let text = String::from_utf8_lossy(&bytes);
        let maps = MemoryMaps::from_buf_read(text.as_bytes())
            .map_err(|e| self.error(what, io::Error::other(e.to_string())))?;
        // Compared by name: the device that the map shows is not stat's on overlayfs and btrfs.
        let link = readlinkat(&*self.directory, "exe", Vec::new()).map_err(|e| self.error(what, e.into()))?;
        let shown = PathBuf::from(String::from_utf8_lossy(&escape_newlines(link.as_bytes())).into_owned());
        let mut mappings: Vec<Mapping> = maps
            .0
            .into_iter()
            .filter(|m| matches!(&m.pathname, MMapPath::Path(p) if *p == shown))
            .map(|m| Mapping {
                start: m.address.0,
                end: m.address.1,
                file_offset: m.offset,
                executable: m.perms.contains(MMPermissions::EXECUTE),
            })
            .collect();
        mappings.sort_by_key(|m| m.start);
        Ok(mappings)
    }

    /// Its threads' ids.
    ///
    /// # Errors
    /// When it is gone.
    pub fn threads(&self) -> Result<Vec<u32>, ProcessError> {
        let what = "list its threads (/proc/PID/task)";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let gone = |e: rustix::io::Errno| match e {
            rustix::io::Errno::NOENT => ProcessError::Gone { pid: self.identity.pid },
            e => self.error(what, e.into()),
        };
        let task = openat(&*self.directory, "task", flags, Mode::empty()).map_err(gone)?;
        let mut threads = Vec::new();
        for entry in rustix::fs::Dir::read_from(task).map_err(gone)? {
            let entry = entry.map_err(gone)?;
            if let Some(id) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                threads.push(id);
            }
        }
        Ok(threads)
    }

    /// Its arguments, the program's name first, at most 65,536. Can hold secrets.
    ///
    /// # Errors
    /// When it is gone or the kernel refuses.
    pub fn arguments(&self) -> Result<Vec<String>, ProcessError> {
        if let Some(arguments) = &self.future_arguments {
            return Ok(arguments.clone());
        }
        let bytes = self.read_file("cmdline", "read its arguments (/proc/PID/cmdline)")?;
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let arguments = bytes.split(|&b| b == 0).take(1 << 16);
        Ok(arguments.map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
    }

    /// A variable of the environment that it was started with; `None` when it is not set or the
    /// environment cannot be read.
    #[must_use]
    pub fn environment_variable(&self, name: &str) -> Option<String> {
        let bytes = self.read_file("environ", "read its environment").ok()?;
        bytes
            .split(|&b| b == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Its control groups, as `/proc/PID/cgroup` lists them; `None` when it is gone.
    #[must_use]
    pub fn cgroup(&self) -> Option<String> {
        self.read_text("cgroup")
    }

    /// The mounts of its namespace, as `/proc/PID/mountinfo` lists them, at most 1 MiB of it; `None` when it
    /// is gone or the kernel refuses.
    #[must_use]
    pub fn mount_info(&self) -> Option<String> {
        self.read_text("mountinfo")
    }

    fn read_text(&self, name: &str) -> Option<String> {
        let file = openat(&*self.directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = Vec::new();
        File::from(file).take(1 << 20).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether a debugger is attached to it; `false` when it is gone.
    #[must_use]
    pub fn is_ptraced(&self) -> bool {
        read_status(&self.directory, self.identity.pid).is_ok_and(|status| status.tracerpid != 0)
    }

    /// Whether it runs the file that is held ([`Self::executable_file`]), by device and inode.
    #[must_use]
    pub fn runs_its_file(&self) -> bool {
        let held = rustix::fs::fstat(&self.exe);
        let runs = statat(&*self.directory, "exe", rustix::fs::AtFlags::empty());
        matches!((held, runs), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// Reads its memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory::new(self)
    }

    /// Tells when it ends or executes another program.
    ///
    /// # Errors
    /// When it is gone.
    pub fn watch(&self) -> Result<Watch, ProcessError> {
        Watch::new(self)
    }

    /// At most the first 1 MiB of a regular file of its own (`etc/passwd`), by a path in its own root.
    pub(super) fn read_in_its_root(&self, path: &str) -> Option<Vec<u8>> {
        super::root::read(&*self.directory, path, 1 << 20)
    }

    /// An error about this process, of something that the caller tried on it.
    #[must_use]
    pub fn cannot(&self, what: &str, source: io::Error) -> ProcessError {
        self.error(what, source)
    }

    pub(super) fn error(&self, what: &str, source: io::Error) -> ProcessError {
        ProcessError::from_io(self.identity.pid, self.identity.uid, what, source)
    }

    fn read_file(&self, name: &str, what: &str) -> Result<Vec<u8>, ProcessError> {
        read_relative(&self.directory, name).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT) => ProcessError::Gone { pid: self.identity.pid },
            _ => self.error(what, e),
        })
    }
}

/// Reads a file whose size is not to be trusted, up to the bound.
fn read_bounded(file: &File, pid: u32, uid: u32, path: &Path) -> Result<Vec<u8>, ProcessError> {
    let error = |e| ProcessError::from_io(pid, uid, format!("read its executable {}", path.display()), e);
    let too_large = |size_bytes| ProcessError::ExecutableTooLarge {
        pid,
        path: path.display().to_string(),
        size_bytes,
        limit_bytes: MAX_EXECUTABLE_BYTES,
    };
    let size = file.metadata().map_err(error)?.len();
    if size > MAX_EXECUTABLE_BYTES {
        return Err(too_large(size));
    }
    // Positioned reads: the handle is shared, and reading it twice must give the same.
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).map_err(error)?;
    Ok(bytes)
}

/// Refuses when `/proc` numbers processes in another way than the system calls do.
fn check_proc() -> Result<(), ProcessError> {
    let own = std::process::id();
    let shown =
        readlinkat(CWD, "/proc/self", Vec::new()).map_err(|e| ProcessError::NoProc { source: e.into() })?;
    let shown = shown.to_string_lossy();
    if shown.parse() != Ok(own) {
        return Err(ProcessError::ForeignProc { shown: shown.into_owned(), own });
    }
    Ok(())
}

pub(super) fn read_relative(directory: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    // A process may say that its arguments and environment are as long as its memory.
    let most = if name == "maps" { 64 << 20 } else { 8 << 20 };
    File::from(file).take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn read_stat(directory: &OwnedFd, pid: u32) -> Result<Stat, ProcessError> {
    let what = "read /proc/PID/stat";
    let bytes = read_relative(directory, "stat").map_err(|e| gone_or(pid, what, e))?;
    Stat::from_read(bytes.as_slice()).map_err(|e| gone_or(pid, what, io::Error::other(e.to_string())))
}

/// Opens the memory of the program that a process runs now; `None` without permission, or when it is gone.
pub(super) fn open_memory(directory: &OwnedFd) -> Option<Arc<File>> {
    let file = openat(directory, "mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some(Arc::new(file.into()))
}

fn read_status(directory: &OwnedFd, pid: u32) -> Result<Status, ProcessError> {
    let what = "read /proc/PID/status";
    let bytes = read_relative(directory, "status").map_err(|e| gone_or(pid, what, e))?;
    // A name need not be UTF-8; the parser wants it.
    let text = String::from_utf8_lossy(&bytes);
    Status::from_buf_read(text.as_bytes()).map_err(|e| gone_or(pid, what, io::Error::other(e.to_string())))
}

fn gone_or(pid: u32, what: &str, source: io::Error) -> ProcessError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => ProcessError::Gone { pid },
        _ => ProcessError::from_io(pid, u32::MAX, what, source),
    }
}

/// The kernel appends ` (deleted)` to the path of a file that has no name any more.
fn split_deleted(link: &[u8]) -> (PathBuf, bool) {
    match link.strip_suffix(b" (deleted)") {
        Some(path) => (OsString::from_vec(path.to_vec()).into(), true),
        None => (OsString::from_vec(link.to_vec()).into(), false),
    }
}

/// The map writes a newline in a name as `\012`, the link does not.
fn escape_newlines(name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for &b in name {
        if b == b'\n' {
            escaped.extend_from_slice(b"\\012");
        } else {
            escaped.push(b);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn describes_this_process() {
        let target = Target::open(std::process::id()).expect("this process lives");
        let exe = std::env::current_exe().expect("it has an executable");
        assert_eq!(target.executable, exe);
        assert!(!target.executable_deleted);
        assert_eq!(target.other_pid_namespace, Some(false));
        assert_eq!(target.exe_bytes().expect("readable"), std::fs::read(&exe).expect("readable"));
        let code = describes_this_process as fn() as usize as u64;
        let mappings = target.executable_mappings().expect("readable");
        assert_eq!(mappings[0].file_offset, 0);
        assert!(mappings.iter().any(|m| m.executable && (m.start..m.end).contains(&code)));
        assert!(target.threads().expect("has threads").contains(&std::process::id()));
        assert_eq!(target.arguments().expect("readable")[0], std::env::args().next().expect("has a name"));
        assert_eq!(target.environment_variable("PATH"), std::env::var("PATH").ok());
    }

    #[test]
    fn refuses_what_is_not_a_living_program() {
        assert!(matches!(Target::open(0), Err(ProcessError::Gone { pid: 0 })));
        assert!(matches!(Target::open(u32::MAX), Err(ProcessError::Gone { .. })));
        assert!(matches!(Target::open(1 << 30), Err(ProcessError::Gone { .. })));
        let mut child = Command::new("true").spawn().expect("true starts");
        while read_stat(&open_directory(child.id()), child.id()).expect("not collected").state != 'Z' {
            std::thread::yield_now();
        }
        assert!(matches!(Target::open(child.id()), Err(ProcessError::Zombie { .. })));
        child.wait().expect("true ends");
        assert!(matches!(Target::open(child.id()), Err(ProcessError::Gone { .. })));
    }

    #[test]
    fn names_the_process_of_a_thread() {
        let (send, receive) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(rustix::thread::gettid().as_raw_pid().cast_unsigned()).expect("received");
            let _ = wait.recv();
        });
        let tid = receive.recv().expect("sent");
        match Target::open(tid) {
            Err(ProcessError::Thread { tgid, .. }) => assert_eq!(tgid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(end);
        thread.join().expect("the thread ends");
    }

    #[test]
    fn a_deleted_executable_and_an_odd_name_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let name = std::ffi::OsStr::from_bytes(b"sl\xffe\nep");
        let path = directory.path().join(name);
        std::fs::copy("/bin/sleep", &path).expect("copied");
        let mut child = Command::new(&path).arg("60").spawn().expect("sleep starts");
        crate::process::wait_for_program(child.id());
        std::fs::remove_file(&path).expect("removed");
        let target = Target::open(child.id());
        let found = target
            .as_ref()
            .map(|t| (t.executable.clone(), t.executable_deleted, t.exe_bytes(), t.executable_mappings()));
        child.kill().expect("sleep can be ended");
        child.wait().expect("sleep ends");
        let (executable, deleted, bytes, mappings) = found.expect("opens");
        assert_eq!(executable, path);
        assert!(deleted);
        assert_eq!(bytes.expect("readable"), std::fs::read("/bin/sleep").expect("readable"));
        assert!(!mappings.expect("readable").is_empty());
        assert!(matches!(target.expect("opens").threads(), Err(ProcessError::Gone { .. })));
    }

    fn open_directory(pid: u32) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).expect("the process exists")
    }
}
