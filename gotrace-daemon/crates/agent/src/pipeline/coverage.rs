//! The account of executions while it is kept: discovery counts what it sees and what that is, the pipeline what came of
//! those that are handed over to it. Output: [`Coverage`], at any moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::LineError;
use gotrace_model::{Coverage, Covered, Refused};
use gotrace_process::ProcessError;

/// The account, shared by those who keep it.
#[derive(Clone, Debug, Default)]
pub(super) struct Account(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    coverage: Coverage,
    /// What the kernel side has counted as lost; among [`Coverage::lost`].
    lost_by_kernel: u64,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Counts: a panic elsewhere leaves them usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An execution was seen.
    pub fn see(&self) {
        self.lock().coverage.seen += 1;
    }

    /// What became of one that was seen.
    pub fn cover(&self, covered: Covered) {
        self.lock().coverage.cover(covered);
    }

    /// A notice was lost, or several at once.
    pub fn lose(&self) {
        self.lock().coverage.lost += 1;
    }

    /// The kernel side has lost so many notices since it was loaded; whether that is more than before.
    pub fn lost_by_kernel(&self, lost: u64) -> bool {
        let mut kept = self.lock();
        let more = lost.saturating_sub(kept.lost_by_kernel);
        kept.lost_by_kernel += more;
        kept.coverage.lost += more;
        more > 0
    }

    /// The account now.
    pub fn get(&self) -> Coverage {
        self.lock().coverage
    }
}

/// What it means for the account that a process could not be opened.
pub(super) fn covered_by_process(error: &ProcessError) -> Covered {
    match error {
        ProcessError::Gone { .. } | ProcessError::Zombie { .. } => Covered::GoneUnknown,
        ProcessError::NotPermitted { .. } | ProcessError::Hidden { .. } => Covered::Unreadable,
        ProcessError::KernelThread { .. } | ProcessError::Thread { .. } => Covered::NotGo,
        ProcessError::LeaderEnded { .. } => Covered::Refused(Refused::FirstThreadEnded),
        ProcessError::ExecutableTooLarge { .. } => Covered::Refused(Refused::TooLarge),
        ProcessError::Memory { .. } => Covered::Refused(Refused::Unreadable),
        // Files and memory whose server does not answer.
        ProcessError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut => {
            Covered::Refused(Refused::Unreadable)
        }
        ProcessError::ForeignProc { .. } | ProcessError::NoProc { .. } | ProcessError::Io { .. } => {
            Covered::Refused(Refused::System)
        }
    }
}

/// What it means for the account that a process that runs on could not be prepared.
pub(super) fn covered_by(error: &LineError) -> Covered {
    match error {
        LineError::Program { error, .. } => match error {
            gotrace_go::Error::NotGo { .. } | gotrace_go::Error::NotElf => Covered::NotGo,
            gotrace_go::Error::Unsupported { .. } => Covered::Refused(Refused::NotSupported),
            gotrace_go::Error::Malformed { .. } => Covered::Refused(Refused::Malformed),
        },
        LineError::Process(error) => covered_by_process(error),
        LineError::Implausible { .. } => Covered::Refused(Refused::Layout),
        LineError::Unreadable { .. } => Covered::Refused(Refused::Unreadable),
        LineError::NoProbe { .. } | LineError::NoFunction { .. } | LineError::Kernel(_) => {
            Covered::Refused(Refused::Probes)
        }
        LineError::NoMemory { .. } => Covered::Refused(Refused::Memory),
        LineError::TooMany { .. } | LineError::Threads(_) | LineError::Discovery | LineError::Ring(_) => {
            Covered::Refused(Refused::System)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lost_is_counted_once() {
        let account = Account::default();
        account.lose();
        assert!(account.lost_by_kernel(3));
        assert!(!account.lost_by_kernel(3));
        assert!(account.lost_by_kernel(5));
        assert_eq!(account.get().lost, 6);
    }
}
