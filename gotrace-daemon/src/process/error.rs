//! What can be wrong with a process that is to be traced, and what the user can do about it.

use std::io;

use super::permission::{Access, Obstacle, in_own_pid_namespace, obstacles};

/// Why a process cannot be traced or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// No process has this pid, or it ended meanwhile.
    #[error("process {pid} does not exist, or has ended")]
    Gone {
        /// The pid asked for.
        pid: u32,
    },
    /// It ended, and its parent has not collected its status.
    #[error("process {pid} has ended and only waits for its parent to collect its status (zombie)")]
    Zombie {
        /// The pid asked for.
        pid: u32,
    },
    /// A thread of the kernel has no executable.
    #[error("process {pid} ({comm}) is a kernel thread, not a program")]
    KernelThread {
        /// The pid asked for.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// The number names a thread, not a process.
    #[error("{pid} is a thread of process {tgid}, not a process")]
    Thread {
        /// The number asked for.
        pid: u32,
        /// The process that the thread belongs to.
        tgid: u32,
    },
    /// The kernel refused.
    #[error("process {pid}{}: {what}: permission refused", of_user(*.uid))]
    NotPermitted {
        /// The process.
        pid: u32,
        /// Its effective user id; [`u32::MAX`] when that was not known yet.
        uid: u32,
        /// What was tried.
        what: String,
        /// What stands in the way, as far as it can be told.
        obstacles: Vec<Obstacle>,
    },
    /// `/proc` shows other processes than the ones that gotrace can name.
    #[error(
        "/proc belongs to another PID namespace: it calls gotrace process {shown}, the kernel calls it {own}"
    )]
    ForeignProc {
        /// gotrace's pid in `/proc`.
        shown: String,
        /// gotrace's pid in its own namespace.
        own: u32,
    },
    /// `/proc` cannot be read at all.
    #[error("/proc is not mounted, or cannot be read: {source}")]
    NoProc {
        /// The refusal.
        source: io::Error,
    },
    /// The executable is larger than gotrace reads into memory.
    #[error(
        "process {pid}: its executable {path} has {size_bytes} bytes; gotrace reads at most {limit_bytes}"
    )]
    ExecutableTooLarge {
        /// The process.
        pid: u32,
        /// The executable's path as the kernel shows it.
        path: String,
        /// Its size.
        size_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// Memory that is not there, or was unmapped while reading.
    #[error("process {pid}: {length} bytes of memory at {address:#x} cannot be read: {source}")]
    Memory {
        /// The process.
        pid: u32,
        /// Where.
        address: u64,
        /// How much.
        length: usize,
        /// The refusal.
        source: io::Error,
    },
    /// Anything else that the system refused.
    #[error("process {pid}: {what}: {source}")]
    Io {
        /// The process.
        pid: u32,
        /// What was tried.
        what: String,
        /// The refusal.
        source: io::Error,
    },
}

fn of_user(uid: u32) -> String {
    if uid == u32::MAX { String::new() } else { format!(" (user {uid})") }
}

impl ProcessError {
    /// Sorts an error of the system: the process is gone, permission is missing, or something else.
    pub(super) fn from_io(pid: u32, uid: u32, what: impl Into<String>, source: io::Error) -> Self {
        Self::of_access(pid, uid, Access::Look, what, source)
    }

    /// The same of reading its memory.
    pub(super) fn from_memory(pid: u32, uid: u32, what: impl Into<String>, source: io::Error) -> Self {
        Self::of_access(pid, uid, Access::Memory, what, source)
    }

    fn of_access(pid: u32, uid: u32, access: Access, what: impl Into<String>, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ESRCH) => Self::Gone { pid },
            Some(libc::EPERM | libc::EACCES) => {
                Self::NotPermitted { pid, uid, what: what.into(), obstacles: obstacles(pid, access) }
            }
            _ => Self::Io { pid, what: what.into(), source },
        }
    }

    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Gone { .. } if in_own_pid_namespace() => {
                "gotrace is in a PID namespace of its own, and sees the processes of that one only: use the pid \
                 that the process has there, share the process's (shareProcessNamespace: true, docker --pid), or \
                 run on the host (hostPID: true)"
                    .into()
            }
            Self::Gone { .. } => "list the Go programs with `ps -e`; in a container, use the pid that the \
                                  process has in gotrace's own PID namespace, or share the target's"
                .into(),
            Self::Zombie { .. } => "there is nothing left to trace; look at its parent instead".into(),
            Self::KernelThread { .. } => "name a process that runs a Go program".into(),
            Self::Thread { tgid, .. } => format!("use --pid {tgid}"),
            Self::NotPermitted { obstacles, .. } if !obstacles.is_empty() => {
                obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; and ")
            }
            Self::NotPermitted { .. } => {
                "run gotrace with CAP_SYS_PTRACE, which root has unless a container takes it away; `gotrace \
                 doctor` tells what is missing"
                    .into()
            }
            Self::ForeignProc { .. } => {
                "mount the /proc of gotrace's own PID namespace, or start gotrace in \
                                         the namespace of the mounted one (docker: --pid=host; Kubernetes: \
                                         hostPID: true)"
                    .into()
            }
            Self::NoProc { .. } => "mount it: mount -t proc proc /proc".into(),
            Self::ExecutableTooLarge { .. } => {
                "this is far beyond any known Go program; check that the pid is the right one".into()
            }
            Self::Memory { .. } => {
                "if it comes again, the executable on disk may not be the one that runs".into()
            }
            Self::Io { .. } => return None,
        })
    }

    /// gotrace's exit code: 3 permission, 4 nothing that can be traced, 5 the target is gone, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Gone { .. } | Self::Zombie { .. } => 5,
            Self::KernelThread { .. } | Self::ExecutableTooLarge { .. } => 4,
            Self::NotPermitted { .. } => 3,
            Self::Thread { .. } => 2,
            Self::ForeignProc { .. } | Self::NoProc { .. } | Self::Memory { .. } | Self::Io { .. } => 1,
        }
    }
}
