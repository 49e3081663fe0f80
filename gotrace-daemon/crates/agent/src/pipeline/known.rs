//! What discovery keeps of the processes that it has looked at, and why it looks at one.
//!
//! Nothing is inherited by a later process with the same pid, nor by another program: a process is a pid and its start, an
//! execution also where its stack begins.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gotrace_model::{Covered, Refused};
use gotrace_process::{Facts, FileNode, Image, Target};

/// Bytes of a command line that rules look at.
const MAX_COMMAND_LINE: usize = 4096;

/// A process that was looked at.
#[derive(Default)]
pub(super) struct Known {
    pub start_ticks: u64,
    /// Where the stack of the program that it ran lies; 0 where it is not told.
    pub stack_start: u64,
    /// The memory of that program, of those that are taken: it tells whether it runs another one by now.
    pub image: Option<Image>,
    /// The file that it runs.
    pub file: Option<FileNode>,
    /// Of those that are Go programs, and those that the rules left out.
    pub facts: Option<Facts>,
    pub taken: bool,
    /// Whether it may not be looked at.
    pub unreadable: bool,
    /// Whether it was found before the kernel told of it: the notice may be on its way.
    pub untold: bool,
    /// When it is to be tried again, of those that were refused for what may pass.
    pub retry_at: Option<Instant>,
}

/// Time between two tries of one that was refused.
const RETRY_AFTER: Duration = Duration::from_secs(60);

impl Known {
    /// Whether that was its end, or what it was refused for may pass: for want of something, or of an answer.
    pub fn refused_for(&mut self, covered: Covered) {
        let may_pass =
            matches!(covered, Covered::Refused(Refused::System | Refused::Unreadable | Refused::Memory));
        self.retry_at = may_pass.then(|| Instant::now() + RETRY_AFTER);
    }

    /// Why a scan looks at it.
    pub fn look(&self) -> Look {
        let retry = self.retry_at.is_some_and(|at| at <= Instant::now());
        if retry { Look::Retry(self.untold) } else { Look::Found }
    }
}

/// What was looked at so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times that everybody was looked at.
    pub scans: u64,
    /// Files that were read whole.
    pub programs_parsed: u64,
    /// Processes that are Go programs, and that the rules take.
    pub taken: u64,
    /// Processes that gotrace may not look at, so that it is not known whether they are Go programs; as of the
    /// last time that everybody was looked at.
    pub unreadable: u64,
}

/// Why a process is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The kernel has told of an execution.
    Told,
    /// It is there.
    Found,
    /// The rules may take it now; whether the kernel has yet to tell of it.
    Again(bool),
    /// It was refused for what may have passed; whether the kernel has yet to tell of it.
    Retry(bool),
    /// It was too young, and is seen already.
    Due(Young),
}

/// A process that is too young for the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Young {
    pub pid: u32,
    pub start_ticks: u64,
    pub stack_start: u64,
    /// Whether the kernel has yet to tell of it.
    pub untold: bool,
    /// When it is not any more.
    pub at: Instant,
}

/// What the rules look at, but for what others know.
pub(super) fn facts(target: &Target) -> Facts {
    let mut command_line = target.arguments().unwrap_or_default().join(" ");
    if command_line.len() > MAX_COMMAND_LINE {
        let end = (0..=MAX_COMMAND_LINE).rev().find(|i| command_line.is_char_boundary(*i)).unwrap_or(0);
        command_line.truncate(end);
    }
    Facts {
        executable: target.executable.clone(),
        command_line,
        uid: target.identity.uid,
        metadata: BTreeMap::new(),
    }
}
