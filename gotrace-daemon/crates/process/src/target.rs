//! A process to trace, named so that a later process with the same pid is never taken for it.
//!
//! Everything is read relative to one open `/proc/PID` directory, which stays that of this process
//! when the pid is reused. Refuses kernel threads, zombies and thread ids.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    sync::Arc,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, readlinkat, statat},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    Content, Executable, Memory, Obstacle, OpenFiles, ProcessError, Watch,
    content::Unreadable,
    helper::{Patient, Process},
    image::Image,
    passing::again,
    proc_text::{MapLine, Stat, Status, escape_newlines, read_maps, split_deleted},
    resident::Resident,
    watch::has_ended,
};
use gotrace_model::ids::ProcessKey;

/// Bytes of a file of `/proc` that are read at most, and mappings of an executable that are kept.
const MAX_FILE_BYTES: u64 = 8 << 20;
const MAX_MAPPINGS: usize = 1 << 12;

/// How often a process is opened anew that executes a program meanwhile.
const OPEN_ATTEMPTS: usize = 8;

/// A directory of `/proc` that is only looked into.
pub(super) const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

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
    exe: Arc<Executable>,
    /// Of the program that it runs; `None` without permission.
    pub(super) image: Option<Image>,
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
            match Self::open_once(pid) {
                // All of it was read of one execution if the program that ran at the beginning runs at the end.
                Ok(target) if !target.image.as_ref().is_some_and(Image::is_gone) => return Ok(target),
                // What has no executable any more is on its way to become something else: that is the error.
                Ok(_) | Err(ProcessError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ProcessError::Gone { pid })
    }

    fn open_once(pid: u32) -> Result<Self, ProcessError> {
        let gone = || ProcessError::Gone { pid };
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let path = format!("/proc/{pid}");
        let directory = again(&path, || Ok(openat(CWD, &path, DIRECTORY, Mode::empty())?)).map_err(|e| {
            match e.raw_os_error() {
                // There are mounts of /proc that do not show it.
                Some(libc::ENOENT) if is_alive(raw) => ProcessError::Hidden { pid },
                Some(libc::ENOENT) => gone(),
                _ => ProcessError::from_io(pid, u32::MAX, "open its /proc directory", e),
            }
        })?;
        let directory = Arc::new(directory);
        // A thread's number opens no pidfd: look at the status first, so that the error says so.
        let status = read_status(&directory, pid).map_err(|e| match e {
            // With hidepid=2 its directory can be opened, and nothing is in it.
            ProcessError::Gone { .. } if is_alive(raw) => ProcessError::Hidden { pid },
            e => e,
        })?;
        if status.tgid != pid {
            return Err(ProcessError::Thread { pid, tgid: status.tgid });
        }
        let pidfd = again("a pidfd", || Ok(pidfd_open(raw, PidfdFlags::empty())?))
            .map_err(|e| ProcessError::from_io(pid, status.euid, "open a handle on it (pidfd_open)", e))?;
        // The directory still answers after the pidfd was opened: both are of the same process.
        let stat = read_stat(&directory, pid)?;
        if stat.flags & PF_KTHREAD != 0 {
            return Err(ProcessError::KernelThread { pid, comm: stat.comm });
        }
        if stat.has_ended() {
            return Err(match of_ended_leader(&directory, pid) {
                // Threads may have been made since the status was read.
                ProcessError::Gone { .. } if read_status(&directory, pid)?.threads <= 1 => {
                    ProcessError::Zombie { pid }
                }
                error => error,
            });
        }
        let refused = |what: &str, e: io::Error| match e.raw_os_error() {
            // The executable of a process that is ending is taken away before it becomes a zombie.
            Some(libc::ENOENT) => gone(),
            _ => ProcessError::from_io(pid, status.euid, what, e),
        };
        let image = Image::open((pid, stat.start_ticks), &directory);
        let link = again("exe", || Ok(readlinkat(&directory, "exe", Vec::new())?))
            .map_err(|e| refused("read the path of its executable (/proc/PID/exe)", e))?;
        let (executable, executable_deleted) = split_deleted(link.as_bytes());
        let exe = Executable::run_by((pid, stat.start_ticks), &directory)
            .map_err(|e| refused("find its executable (/proc/PID/exe)", e))?;
        let boot_id = read_own("/proc/sys/kernel/random/boot_id");
        let namespace =
            |name: &str| again(name, || Ok(statat(&directory, name, rustix::fs::AtFlags::empty())?)).ok();
        let own = |name: &str| again(name, || Ok(rustix::fs::stat(format!("/proc/self/{name}"))?)).ok();
        let differs = |name: &str| {
            Some((namespace(name)?, own(name)?)).map(|(a, b)| (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino))
        };
        Ok(Self {
            identity: Identity {
                pid,
                start_ticks: stat.start_ticks,
                boot_id: boot_id.trim().into(),
                pid_namespace: namespace("ns/pid").map(|s| s.st_ino),
                uid: status.euid,
            },
            executable,
            executable_deleted,
            comm: stat.comm,
            namespace_pids: status.namespace_pids.unwrap_or_else(|| vec![pid]),
            other_pid_namespace: differs("ns/pid"),
            other_mount_namespace: differs("ns/mnt"),
            exe: Arc::new(exe),
            image,
            future_arguments: None,
            directory,
            pidfd: Arc::new(pidfd),
        })
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
        let file = Arc::new(Executable::of(file));
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

    /// Whether what it runs is the dynamic loader, which has loaded a program that the kernel knows nothing of.
    #[must_use]
    pub fn runs_loader(&self) -> bool {
        let name = self.executable_name();
        name.starts_with("ld-linux")
            || name.starts_with("ld-musl")
            || name.starts_with("ld.so")
            || name.starts_with("ld-2.")
    }

    /// The file that it runs.
    #[must_use]
    pub fn executable_file(&self) -> &Arc<Executable> {
        &self.exe
    }

    /// The same, once it has been read from.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn readable_executable(&self) -> Result<&Arc<Executable>, ProcessError> {
        self.exe.read_at(&mut [0; 1], 0).map_err(|e| self.unreadable_executable(e))?;
        Ok(&self.exe)
    }

    /// The content of the executable.
    ///
    /// # Errors
    /// When it is too large, or cannot be read.
    pub fn exe_bytes(&self) -> Result<Content, ProcessError> {
        Content::of(self.readable_executable()?).map_err(|error| match error {
            Unreadable::Failed(e) => self.unreadable_executable(e),
            Unreadable::TooLarge(size_bytes, limit_bytes) => ProcessError::ExecutableTooLarge {
                pid: self.identity.pid,
                path: self.executable.display().to_string(),
                size_bytes,
                limit_bytes,
            },
        })
    }

    fn unreadable_executable(&self, error: io::Error) -> ProcessError {
        let what = format!("read its executable {}", self.executable.display());
        match error.raw_os_error() {
            Some(libc::EACCES) if matches!(self.exe.served_by(), Ok(Some(_))) => {
                let Identity { pid, uid, .. } = self.identity;
                ProcessError::NotPermitted { pid, uid, what, obstacles: vec![Obstacle::FileSystem] }
            }
            _ => self.error(&what, error),
        }
    }

    /// The mapped pieces of the executable, lowest address first. The load bias comes from the first
    /// one and the file's program headers.
    ///
    /// # Errors
    /// When it is gone or the kernel refuses to show its memory map.
    pub fn executable_mappings(&self) -> Result<Vec<Mapping>, ProcessError> {
        let what = "read its memory map (/proc/PID/maps)";
        // Compared by name: the device that the map shows is not stat's on overlayfs and btrfs.
        let link = again("exe", || Ok(readlinkat(&*self.directory, "exe", Vec::new())?));
        let link = link.map_err(|e| self.error(what, e))?;
        let shown = escape_newlines(link.as_bytes());
        let mut mappings = Vec::new();
        self.read_maps(|line| {
            if line.path == shown && mappings.len() < MAX_MAPPINGS {
                mappings.push(Mapping {
                    start: line.range.start,
                    end: line.range.end,
                    file_offset: line.offset,
                    executable: line.executable,
                });
            }
        })?;
        mappings.sort_by_key(|m| m.start);
        Ok(mappings)
    }

    fn read_maps(&self, f: impl FnMut(&MapLine<'_>)) -> Result<(), ProcessError> {
        let what = "read its memory map (/proc/PID/maps)";
        let result = open_again(&*self.directory, "maps")
            .and_then(|file| read_maps(Patient::new(self.process(), file), f));
        result.map_err(|e| self.error(what, e))
    }

    /// Its threads' ids.
    ///
    /// # Errors
    /// When it is gone.
    pub fn threads(&self) -> Result<Vec<u32>, ProcessError> {
        let what = "list its threads (/proc/PID/task)";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let refused = |e: rustix::io::Errno| self.error(what, e.into());
        let task = openat(&*self.directory, "task", flags, Mode::empty()).map_err(refused)?;
        let mut threads = Vec::new();
        for entry in rustix::fs::Dir::read_from(task).map_err(refused)? {
            let entry = entry.map_err(refused)?;
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
        let what = "read its arguments (/proc/PID/cmdline)";
        // They lie in its memory, which it may have put a file in the place of.
        self.check_resident(|stat| [stat.arguments.clone(), stat.environment.clone()])
            .map_err(|e| self.error(what, e))?;
        let bytes = self.read_in_memory("cmdline", what)?;
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
        // They lie in its memory, which it may have put a file in the place of.
        self.check_resident(|stat| [stat.environment.clone()]).ok()?;
        let bytes = self.read_in_memory("environ", "read its environment").ok()?;
        bytes
            .split(|&b| b == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Its control groups, as `/proc/PID/cgroup` lists them; `None` when it is gone.
    #[must_use]
    pub fn cgroup(&self) -> Option<String> {
        read_text(&self.directory, "cgroup")
    }

    /// The mounts of its namespace, as `/proc/PID/mountinfo` lists them, at most 1 MiB of it; `None` when it
    /// is gone or the kernel refuses.
    #[must_use]
    pub fn mount_info(&self) -> Option<String> {
        read_text(&self.directory, "mountinfo")
    }

    /// Whether what these are can be read without asking anybody but the kernel.
    fn check_resident<const N: usize>(&self, of: impl Fn(&Stat) -> [Range<u64>; N]) -> io::Result<()> {
        let Ok(stat) = read_stat(&self.directory, self.identity.pid) else { return Ok(()) };
        let served = Resident::of(self.process()).served(&self.directory);
        let allowed = |range: Range<u64>| {
            let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
            served.allows(range.start, length)
        };
        if of(&stat).into_iter().all(allowed) {
            return Ok(());
        }
        Err(io::Error::other("the pages belong to a file on FUSE or NFS, whose server need not answer"))
    }

    /// Whether a debugger is attached to it; `false` when it is gone.
    #[must_use]
    pub fn is_ptraced(&self) -> bool {
        read_status(&self.directory, self.identity.pid).is_ok_and(|status| status.tracer != 0)
    }

    /// Whether it runs the file that is held ([`Self::executable_file`]), by device and inode.
    #[must_use]
    pub fn runs_its_file(&self) -> bool {
        self.exe.is_run_by(&self.directory)
    }

    /// How far its `CLOCK_MONOTONIC` is ahead of the kernel's, in nanoseconds: time namespaces have clocks of their own.
    /// `None` where it is not known.
    #[must_use]
    pub fn monotonic_offset(&self) -> Option<i64> {
        super::clock::monotonic_offset(&*self.directory)
    }

    /// What its descriptors and system calls lead to.
    #[must_use]
    pub fn open_files(&self) -> OpenFiles {
        OpenFiles::new(
            self.identity.pid,
            Arc::clone(&self.directory),
            self.namespace_pids.len().saturating_sub(1),
        )
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
    pub fn read_in_its_root(&self, path: &str) -> Option<Vec<u8>> {
        super::helper::read_in_root(self.process(), &self.directory, path)
    }

    /// An error about this process, of something that the caller tried on it.
    #[must_use]
    pub fn cannot(&self, what: &str, source: io::Error) -> ProcessError {
        self.error(what, source)
    }

    pub(super) fn error(&self, what: &str, source: io::Error) -> ProcessError {
        let Identity { pid, uid, .. } = self.identity;
        if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) {
            // Its memory goes before it does, and files of its `/proc` directory with it.
            if has_ended(&self.pidfd) || self.image.as_ref().is_some_and(Image::is_gone) {
                return ProcessError::Gone { pid };
            }
            // Its first thread has let go of it before the others have: that directory shows what the first one has.
            match read_stat(&self.directory, pid) {
                Ok(stat) if !stat.is_ending() => {}
                Ok(_) => return of_ended_leader(&self.directory, pid),
                Err(error) => return error,
            }
        }
        ProcessError::from_io(pid, uid, what, source)
    }

    pub(super) fn process(&self) -> Process {
        (self.identity.pid, self.identity.start_ticks)
    }

    /// A text of `/proc` that lies in its memory.
    fn read_in_memory(&self, name: &str, what: &str) -> Result<Vec<u8>, ProcessError> {
        let read = || {
            let mut bytes = Vec::new();
            let file = Patient::new(self.process(), open_relative(&*self.directory, name)?);
            // It may say that its arguments and environment are as long as its memory.
            file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        again(name, read).map_err(|e| self.error(what, e))
    }
}

/// Of a process whose first thread has ended: it was killed or has exited, and its other threads are about to go, or
/// they run on.
fn of_ended_leader(directory: &OwnedFd, pid: u32) -> ProcessError {
    match read_status(directory, pid) {
        Ok(Status { threads: all @ 2.., .. }) if has_lasting_threads(directory) => {
            ProcessError::LeaderEnded { pid, others: all - 1 }
        }
        _ => ProcessError::Gone { pid },
    }
}

/// Whether a process has a thread that is not about to end: where the process ends, each of them has a SIGKILL pending
/// (`zap_other_threads`, `complete_signal` of the kernel's `kernel/signal.c`) until it exits.
fn has_lasting_threads(directory: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let task = again("task", || Ok(openat(directory, "task", flags, Mode::empty())?));
    let Ok(task) = task else { return false };
    let Ok(threads) = rustix::fs::Dir::read_from(&task) else { return false };
    threads.flatten().any(|thread| {
        let Ok(id) = thread.file_name().to_str() else { return false };
        let read = |name: &str| read_relative(&task, &format!("{id}/{name}")).ok();
        let runs = read("stat").and_then(|bytes| Stat::parse(&bytes)).is_some_and(|stat| !stat.is_ending());
        runs && read("status").and_then(|bytes| Status::parse(&bytes)).is_some_and(|status| !status.is_killed)
    })
}

/// Whether there is such a process, whatever `/proc` shows.
fn is_alive(pid: Pid) -> bool {
    pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|pidfd| !has_ended(&pidfd))
}

/// Refuses when `/proc` numbers processes in another way than the system calls do.
fn check_proc() -> Result<(), ProcessError> {
    let own = std::process::id();
    let shown = again("/proc/self", || Ok(readlinkat(CWD, "/proc/self", Vec::new())?));
    let shown = shown.map_err(|source| ProcessError::NoProc { source })?;
    let shown = shown.to_string_lossy();
    if shown.parse() != Ok(own) {
        return Err(ProcessError::ForeignProc { shown: shown.into_owned(), own });
    }
    Ok(())
}

pub(super) fn read_relative(directory: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    read_beginning(directory, name, MAX_FILE_BYTES)
}

/// At most the first 1 MiB of a text of `/proc`; `None` when it is gone or the kernel refuses.
pub(super) fn read_text(directory: impl AsFd, name: &str) -> Option<String> {
    let bytes = read_beginning(directory, name, 1 << 20).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The beginning of a file of `/proc`.
pub(super) fn read_beginning(directory: impl AsFd, name: &str, most: u64) -> io::Result<Vec<u8>> {
    again(name, || {
        let mut bytes = Vec::new();
        open_relative(&directory, name)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

/// A text of the kernel's that is there on every host; empty where it cannot be read.
pub(super) fn read_own(path: &str) -> String {
    again(path, || std::fs::read_to_string(path)).unwrap_or_default()
}

fn open_relative(directory: impl AsFd, name: &str) -> io::Result<File> {
    Ok(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// A file of `/proc`, opened.
pub(super) fn open_again(directory: impl AsFd, name: &str) -> io::Result<File> {
    again(name, || open_relative(&directory, name))
}

pub(super) fn read_stat(directory: &OwnedFd, pid: u32) -> Result<Stat, ProcessError> {
    let what = "read /proc/PID/stat";
    let bytes = read_relative(directory, "stat").map_err(|e| gone_or(pid, what, e))?;
    Stat::parse(&bytes).ok_or_else(|| gone_or(pid, what, io::Error::other("unexpected contents")))
}

fn read_status(directory: &OwnedFd, pid: u32) -> Result<Status, ProcessError> {
    let what = "read /proc/PID/status";
    let bytes = read_relative(directory, "status").map_err(|e| gone_or(pid, what, e))?;
    let status = Status::parse(&bytes);
    let status = status.ok_or_else(|| gone_or(pid, what, io::Error::other("unexpected contents")))?;
    // The kernel still answers for a process that was waited for while it did: as a thread of process 0.
    if status.tgid == 0 { Err(ProcessError::Gone { pid }) } else { Ok(status) }
}

fn gone_or(pid: u32, what: &str, source: io::Error) -> ProcessError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => ProcessError::Gone { pid },
        _ => ProcessError::from_io(pid, u32::MAX, what, source),
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
