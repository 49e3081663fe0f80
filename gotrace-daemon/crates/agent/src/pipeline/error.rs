//! Why a process cannot be traced, and what the user can do about it.

use gotrace_go as gobin;
use gotrace_inspect::snapshot::SnapshotError;
use gotrace_kernel as kernel;
use gotrace_process::ProcessError;

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its program is not one that gotrace traces.
    #[error("cannot trace process {pid}: {executable}: {error}")]
    Program {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// Why not.
        error: gobin::Error,
    },
    /// The plan lacks the probes without which there is nothing to show.
    #[error("cannot trace process {pid}: {executable} has no probe point for {what}")]
    NoProbe {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// The events that cannot be seen.
        what: String,
    },
    /// A function that was named is not in the program, or cannot be seen there.
    #[error("cannot trace calls in process {pid} ({executable}): {why}")]
    NoFunction {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// Which one, and why.
        why: String,
    },
    /// What is to be known of its program does not fit into memory.
    #[error(
        "cannot trace process {pid}: the function tables of {executable} take {bytes} bytes; with those of other programs \
         they exceed limits.memory ({limit} bytes)"
    )]
    NoMemory {
        /// The process.
        pid: u32,
        /// Its program.
        executable: String,
        /// What its tables take.
        bytes: u64,
        /// What all may take.
        limit: u64,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// As many processes are traced as there is room for.
    #[error("cannot trace process {pid}: already tracing {limit} processes, the limit")]
    TooMany {
        /// The process.
        pid: u32,
        /// The limit.
        limit: u32,
    },
    /// What the probes read makes no sense.
    #[error(
        "cannot trace process {pid}: the runtime structures of {go_version} are not laid out as expected ({source_} \
         offsets): {why}"
    )]
    Implausible {
        /// The process.
        pid: u32,
        /// Its version of Go.
        go_version: String,
        /// Where the offsets came from.
        source_: String,
        /// What was found.
        why: String,
    },
    /// The program does not tell what its goroutines can be read by.
    #[error("cannot read the goroutines of process {pid}: {error}")]
    Unreadable {
        /// The process.
        pid: u32,
        /// Why not.
        error: SnapshotError,
    },
    /// The system gives no thread.
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
    /// The thread that looks for programs is no more.
    #[error("process discovery panicked; see the message above")]
    Discovery,
    /// Waiting for the ring failed.
    #[error("cannot wait for events: {0}")]
    Ring(std::io::Error),
}

impl LineError {
    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Process(e) => e.exit_code(),
            Self::Program { .. } | Self::NoProbe { .. } | Self::Implausible { .. } => 4,
            Self::NoFunction { .. } => 2,
            Self::Kernel(e) => e.exit_code(),
            Self::Unreadable { error, .. } => error.exit_code(),
            Self::TooMany { .. }
            | Self::NoMemory { .. }
            | Self::Ring(_)
            | Self::Threads(_)
            | Self::Discovery => 1,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Process(e) => e.help(),
            Self::Kernel(e) => Some(e.help().into()),
            Self::Program { error, .. } => Some(error.help().into()),
            Self::NoProbe { .. } => Some("`gotrace inspect` shows the probe points found in the file".into()),
            Self::NoFunction { .. } => Some("a name is as in a traceback: main.handle, main.(*Queue).work".into()),
            Self::Implausible { .. } => Some(
                "compare the offsets that `gotrace inspect` shows; a modified Go runtime cannot be traced, nor a process \
                 whose executable on disk was replaced"
                    .into(),
            ),
            Self::Unreadable { error, .. } => error.help(),
            Self::TooMany { .. } => None,
            Self::NoMemory { .. } => {
                Some("raise limits.memory, and the container's memory limit with it; or exclude programs by rules".into())
            }
            Self::Threads(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                Some("raise the limit of open files (ulimit -n, LimitNOFILE=); gotrace needs about 40".into())
            }
            Self::Threads(_) => Some(
                "raise the limit of threads (pids.max of the cgroup, TasksMax=, ulimit -u); gotrace needs about ten"
                    .into(),
            ),
            Self::Discovery => Some("this is a bug in gotrace; please report it with the message".into()),
            Self::Ring(_) => None,
        }
    }
}
