//! What can go wrong between gotrace and the kernel.

use std::io;

use aya::programs::ProgramError;

/// Lines of what the verifier says that are passed on: its verdict is at the end.
const VERIFIER_LINES: usize = 20;

/// An error of the kernel room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a privileged operation.
    #[error("the kernel refuses to {what}: permission denied")]
    Permission {
        /// What was tried.
        what: String,
    },
    /// The kernel lacks a feature.
    #[error("cannot {what}: {reason}")]
    Unsupported {
        /// What was tried.
        what: String,
        /// What the kernel answered.
        reason: String,
    },
    /// Anything else that the kernel answered.
    #[error("cannot {what}: {reason}")]
    Failed {
        /// What was tried.
        what: String,
        /// What the kernel answered.
        reason: String,
    },
    /// Probes would not be safe there, so none are put in place.
    #[error("no probes in process {pid}: {reason}")]
    NotSafe {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
        /// Whether it is for want of a permission.
        permission: bool,
    },
    /// The process runs another program than the one that was to be traced: to be looked at anew.
    #[error("process {pid} executed another program meanwhile")]
    Executed {
        /// The process.
        pid: u32,
    },
    /// The embedded object is not what this program expects: a broken build.
    #[error("the embedded eBPF object has no {0}")]
    Object(String),
}

impl Error {
    /// Sorts an error of the loader by the operating system's error beneath it.
    pub(super) fn from_loader(what: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let what = what.into();
        if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
            return Self::refused(what, io_error, &verifier_log.to_string());
        }
        let mut reason = error.to_string();
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                if matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
                    return Self::Permission { what };
                }
                if matches!(io.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) {
                    return Self::Unsupported { what, reason: io.to_string() };
                }
                reason = io.to_string();
            }
            cause = error.source();
        }
        Self::Failed { what, reason }
    }

    /// A program that the kernel does not take, with what its verifier said: nothing where it was not asked.
    pub(super) fn refused(what: impl Into<String>, error: &io::Error, log: &str) -> Self {
        let said: Vec<&str> = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let said = said.get(said.len().saturating_sub(VERIFIER_LINES)..).unwrap_or_default();
        if said.is_empty() {
            return Self::from_loader(what, error);
        }
        Self::Failed {
            what: what.into(),
            reason: format!("{error}; the verifier says:\n{}", said.join("\n")),
        }
    }

    /// Whether the process runs another program by now.
    #[must_use]
    pub fn is_executed(&self) -> bool {
        matches!(self, Self::Executed { .. })
    }

    /// Whether it is about one process that probes would not be safe in.
    #[must_use]
    pub fn is_not_safe(&self) -> bool {
        matches!(self, Self::NotSafe { .. })
    }

    /// Exit code of the command line: 3 for a missing permission, 4 for a process that probes would not be safe in,
    /// else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Permission { .. } | Self::NotSafe { permission: true, .. } => 3,
            Self::NotSafe { .. } => 4,
            _ => 1,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Permission { .. } => {
                "run as root, or with the capabilities BPF and PERFMON (before Linux 6.6, SYS_ADMIN for both) and \
                 SYS_PTRACE (for other users' processes); `gotrace doctor` shows what is missing"
            }
            Self::NotSafe { permission: true, .. } => {
                "run as root, or with the capabilities LEASE and SYS_PTRACE; --engine snapshot traces without probes"
            }
            Self::NotSafe { .. } => {
                "--engine snapshot traces without probes; the default, --engine auto, does so by itself"
            }
            Self::Executed { .. } => "try again",
            Self::Unsupported { .. } => "`gotrace doctor` shows what this kernel can do",
            Self::Failed { .. } => "`gotrace doctor` tries each kernel feature by itself",
            Self::Object(_) => "build gotrace anew: the object and the program do not match",
        }
    }
}
