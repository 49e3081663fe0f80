//! What the kernel had not what it takes for (descriptors, memory) is tried again: the kernel side at the start, and
//! later each step of a process that could not be taken. Until then the process is traced as before, and says why
//! ([`Lowered::Kernel`]).
//!
//! Input: errors that pass ([`kernel::Error::is_passing`]). Output: further tries, after longer and longer rests. Errors
//! that do not pass are not tried again.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{Line, budget::Step};
use crate::tracee::Lowered;
use gotrace_kernel::{self as kernel, Kernel, Options};
use gotrace_process::room_for;

/// Rest before a step that could not be taken is tried again, and the longest.
const FIRST_REST: Duration = Duration::from_secs(10);
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Times that the kernel side is loaded while there is nothing left for it, and the first pause between two.
const LOAD_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Descriptors that a process and its probes take.
const SPARE_DESCRIPTORS: usize = 16;

/// A step that could not be taken.
pub(super) struct Failed {
    step: Step,
    due: Instant,
    rest: Duration,
}

/// Loads the kernel side, some times while there is nothing left for it, or nothing would be left beside it.
pub(super) fn load_kernel(options: &Options) -> Result<Kernel, kernel::Error> {
    let load = || {
        let kernel = Kernel::load(options)?;
        let what = "trace a process by events";
        room_for(0, SPARE_DESCRIPTORS)
            .map_err(|e| kernel::Error::Passing { what: what.into(), reason: e.to_string() })?;
        Ok(kernel)
    };
    let mut pause = FIRST_PAUSE;
    for _ in 1..LOAD_TRIES {
        match load() {
            Err(error @ kernel::Error::Passing { .. }) => {
                tracing::debug!("{error}; retrying");
                thread::sleep(pause);
                pause *= 2;
            }
            result => return result,
        }
    }
    load()
}

impl Line {
    /// A step could not be taken: it is taken later, where the reason passes. With a budget the governor sees to it.
    pub(super) fn note_failure(&mut self, pid: u32, step: Step, error: &kernel::Error) {
        let Some(traced) = self.traced.iter_mut().find(|t| t.pid() == pid) else { return };
        if !error.is_passing() {
            traced.lower(Some(Lowered::File));
            return;
        }
        if !traced.cramped {
            traced.lower(Some(Lowered::Kernel));
        }
        if self.config.budget.is_none() {
            let failed = &mut self.spending.failed;
            let rest = failed.get(&pid).map_or(FIRST_REST, |failed| (failed.rest * 2).min(LONGEST_REST));
            failed.insert(pid, Failed { step, due: Instant::now() + rest, rest });
        }
    }

    /// Tries steps again that could not be taken, where there is no budget whose governors do.
    pub(super) fn try_again(&mut self, now: Instant) {
        let due = |failed: &Failed| failed.due <= now;
        let pids: Vec<u32> =
            self.spending.failed.iter().filter(|(_, failed)| due(failed)).map(|(pid, _)| *pid).collect();
        for pid in pids {
            let Some(step) = self.spending.failed.get(&pid).map(|failed| failed.step) else { continue };
            let traced =
                self.traced.iter().find(|t| t.pid() == pid && t.tracee.lowered() == Some(Lowered::Kernel));
            if traced.is_some_and(|traced| traced.step() < step) {
                self.set_step(pid, step);
            }
            // Where it failed again it is due later.
            if self.spending.failed.get(&pid).is_some_and(due) {
                self.spending.failed.remove(&pid);
            }
        }
    }
}
