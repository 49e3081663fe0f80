//! What can go wrong between gotrace and the kernel.

use std::{io, thread, time::Duration};

use aya::programs::ProgramError;

/// Lines of what the verifier says that are passed on: its verdict is at the end.
const VERIFIER_LINES: usize = 20;

/// An error of the kernel room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a privileged operation.
    #[error("cannot {what}: permission denied")]
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
    /// The kernel had no descriptor or memory left for it, or gave up: another time it may do it.
    #[error("cannot {what}: {reason}")]
    Passing {
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
    #[error("cannot attach probes to process {pid}: {reason}")]
    NotSafe {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
        /// Whether it is for want of a permission.
        permission: bool,
    },
    /// The process runs another program than the one that was to be traced: to be looked at anew.
    #[error("process {pid} has executed another program")]
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
        if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref()
            && !is_passing(io_error)
        {
            return Self::refused(what, io_error, &verifier_log.to_string());
        }
        let Some(io) = cause_of(error) else { return Self::Failed { what, reason: error.to_string() } };
        let reason = io.to_string();
        match io.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { what },
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => Self::Unsupported { what, reason },
            _ if is_passing(io) => Self::Passing { what, reason },
            _ => Self::Failed { what, reason },
        }
    }

    /// A program that the kernel does not take, with what its verifier said: nothing where it was not asked.
    pub(super) fn refused(what: impl Into<String>, error: &io::Error, log: &str) -> Self {
        let said: Vec<&str> = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let said = said.get(said.len().saturating_sub(VERIFIER_LINES)..).unwrap_or_default();
        if said.is_empty() || is_passing(error) {
            return Self::from_loader(what, error);
        }
        Self::Failed { what: what.into(), reason: format!("{error}; verifier log:\n{}", said.join("\n")) }
    }

    /// Whether it is to be tried again: another time it may go.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Passing { .. })
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
                "run as root, or with CAP_BPF and CAP_PERFMON (before Linux 6.6, CAP_SYS_ADMIN) and, for processes of other \
                 users, CAP_SYS_PTRACE; `gotrace doctor` shows what is missing"
            }
            Self::NotSafe { permission: true, .. } => {
                "run as root, or with CAP_LEASE and CAP_SYS_PTRACE; --engine snapshot traces without probes"
            }
            Self::NotSafe { .. } => {
                "use --engine snapshot to trace without probes; the default, --engine auto, does so automatically"
            }
            Self::Executed { .. } => "try again",
            Self::Passing { .. } => {
                "check the limit of open files (ulimit -n, LimitNOFILE=) and free memory: gotrace needs both for eBPF programs and maps"
            }
            Self::Unsupported { .. } => "`gotrace doctor` shows what this kernel supports",
            Self::Failed { .. } => "`gotrace doctor` checks each kernel feature separately",
            Self::Object(_) => "rebuild gotrace: the eBPF object does not match the program",
        }
    }
}

/// The error of the system beneath an error.
fn cause_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    if let Some(ProgramError::LoadError { io_error, .. }) = error.downcast_ref() {
        return Some(io_error);
    }
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .last()
}

/// Whether the system had nothing left just now, or gave up for a signal.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

/// Times that work is done which the kernel gives up for a signal that waits, and the first pause between two.
const TRIES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_micros(200);

/// Does it again, after pauses of twice the length each, where the kernel gave up: bpf(2) answers EAGAIN when it finds a
/// signal waiting while it verifies a program.
pub(super) fn again<T, E>(mut work: impl FnMut() -> Result<T, E>) -> Result<T, E>
where
    E: std::error::Error + 'static,
{
    let gave_up = |error: &E| {
        cause_of(error).is_some_and(|io| matches!(io.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)))
    };
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match work() {
            Err(error) if gave_up(&error) => thread::sleep(pause),
            result => return result,
        }
        pause *= 2;
    }
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn what_the_kernel_gave_up_is_done_again_and_nothing_else_is() {
        let tries = |errors: &[i32]| {
            let mut count = 0;
            let result = again(|| {
                count += 1;
                errors.get(count - 1).map_or(Ok(()), |number| Err(errno(*number)))
            });
            (count, result.map_err(|e| e.raw_os_error()))
        };
        assert_eq!(tries(&[]), (1, Ok(())));
        assert_eq!(tries(&[libc::EAGAIN, libc::EINTR, libc::EAGAIN]), (4, Ok(())));
        assert_eq!(tries(&[libc::EMFILE]), (1, Err(Some(libc::EMFILE))));
        assert_eq!(tries(&[libc::EAGAIN; 20]), (10, Err(Some(libc::EAGAIN))));
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for number in [libc::EAGAIN, libc::EINTR, libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert!(Error::from_loader("try", &errno(number)).is_passing(), "{number}");
            assert!(
                Error::refused("load", &errno(number), "what the verifier said").is_passing(),
                "{number}"
            );
        }
        for number in [libc::EPERM, libc::EINVAL, libc::ENOSYS] {
            assert!(!Error::from_loader("try", &errno(number)).is_passing(), "{number}");
        }
        let io_error = errno(libc::EMFILE);
        let error =
            ProgramError::LoadError { io_error, verifier_log: aya_obj::VerifierLog::new(String::new()) };
        assert!(Error::from_loader("load", &error).is_passing());
    }
}
