//! What can be wrong with a process that is to be traced, and what the user can do about it.

use std::io;

use super::permission::{Access, Obstacle, in_own_pid_namespace, obstacles};

/// Why a process cannot be traced or read.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No process has this pid, or it ended meanwhile.
    #[error("process {pid} does not exist or has exited")]
    Gone {
        /// The pid asked for.
        pid: u32,
    },
    /// It ended, and its parent has not collected its status.
    #[error("process {pid} has exited and is a zombie")]
    Zombie {
        /// The pid asked for.
        pid: u32,
    },
    /// Its first thread has ended by itself while others run on: the kernel shows nothing of it under its pid.
    #[error(
        "cannot read process {pid}: its main thread has exited (pthread_exit) while {others} others run, and the kernel \
         hides the memory and the executable of such a process"
    )]
    LeaderEnded {
        /// The pid asked for.
        pid: u32,
        /// Threads that run on.
        others: usize,
    },
    /// It lives, and `/proc` does not show it.
    #[error("cannot read process {pid}: /proc is mounted with hidepid, which hides processes of other users")]
    Hidden {
        /// The pid asked for.
        pid: u32,
    },
    /// A thread of the kernel has no executable.
    #[error("process {pid} ({comm}) is a kernel thread")]
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
    #[error("process {pid}{}: cannot {what}: permission denied", of_user(*.uid))]
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
        "/proc belongs to another PID namespace: gotrace is process {shown} there, but {own} in its own namespace"
    )]
    ForeignProc {
        /// gotrace's pid in `/proc`.
        shown: String,
        /// gotrace's pid in its own namespace.
        own: u32,
    },
    /// `/proc` cannot be read at all.
    #[error("cannot read /proc: {source}")]
    NoProc {
        /// The refusal.
        source: io::Error,
    },
    /// The executable is larger than gotrace looks at, or, where it can change while it is looked at, than it reads into
    /// memory.
    #[error(
        "process {pid}: its executable {path} is too large: {size_bytes} bytes; the limit for such a file is {limit_bytes}"
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
    #[error("process {pid}: cannot read {length} bytes of memory at {address:#x}: {source}")]
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
    #[error("process {pid}: cannot {what}: {source}")]
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
                "gotrace runs in its own PID namespace and sees only the processes in it: use the pid in that namespace, \
                 share the namespace of the process (shareProcessNamespace: true, docker --pid), or run on the host \
                 (hostPID: true)"
                    .into()
            }
            Self::Gone { .. } => "check the pid with `gotrace top` or `ps -e`; in a container, use the pid in gotrace's PID \
                                  namespace, or share the namespace of the process"
                .into(),
            Self::Zombie { .. } => "there is nothing left to trace; check its parent instead".into(),
            Self::KernelThread { .. } => "give the pid of a Go program".into(),
            Self::LeaderEnded { .. } => "the Go runtime never does that; check the pid".into(),
            Self::Hidden { .. } => {
                "run gotrace as root, with CAP_SYS_PTRACE, or in the group of the mount option gid="
                    .into()
            }
            Self::Thread { tgid, .. } => format!("use --pid {tgid}"),
            Self::NotPermitted { obstacles, .. } if !obstacles.is_empty() => {
                obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; and ")
            }
            Self::NotPermitted { .. } => {
                "run gotrace with CAP_SYS_PTRACE (root has it, except in most containers); `gotrace doctor` shows what is \
                 missing"
                    .into()
            }
            Self::ForeignProc { .. } => {
                "mount the /proc of gotrace's own PID namespace, or start gotrace in the PID namespace of /proc \
                                         (docker: --pid=host; Kubernetes: hostPID: true)"
                    .into()
            }
            Self::NoProc { .. } => "mount it with: mount -t proc proc /proc".into(),
            Self::ExecutableTooLarge { .. } => {
                "no known Go program is that large; check the pid".into()
            }
            Self::Memory { pid, source, .. } | Self::Io { pid, source, .. }
                if source.kind() == io::ErrorKind::TimedOut
                    || (matches!(self, Self::Memory { .. }) && source.raw_os_error().is_none()) =>
            {
                format!("its file systems are in /proc/{pid}/mounts; see whether their servers answer")
            }
            Self::Memory { .. } => {
                "if this happens again, the executable on disk may have been replaced".into()
            }
            Self::Io { .. } => return None,
        })
    }

    /// gotrace's exit code: 3 permission, 4 nothing that can be traced, 5 the target is gone, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Gone { .. } | Self::Zombie { .. } => 5,
            Self::KernelThread { .. } | Self::ExecutableTooLarge { .. } | Self::LeaderEnded { .. } => 4,
            Self::NotPermitted { .. } | Self::Hidden { .. } => 3,
            Self::Thread { .. } => 2,
            Self::ForeignProc { .. } | Self::NoProc { .. } | Self::Memory { .. } | Self::Io { .. } => 1,
        }
    }
}
