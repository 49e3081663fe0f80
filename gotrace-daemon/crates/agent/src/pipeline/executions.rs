//! What executions of programs mean for the line: probes that waited for one are verified, a process is followed into
//! another program, a child is traced from its own program on; and probes come off files that somebody is about to write.

use std::sync::Arc;

use super::{EXECUTIONS, Follow, Interval, Line, LineError, Traced};
use crate::tracee::Lowered;
use gotrace_process::{Image, ProcessError, Target, descends_from, start_ticks, take_lease_notice};

/// The programs that a process has executed.
#[derive(Debug, Default)]
pub(super) struct Executions {
    /// Where their stacks lay.
    stacks: Vec<u64>,
    /// The memory of the last one; `None` without permission.
    image: Option<Image>,
    /// How many before that one had their stacks in the same place.
    repeat: usize,
}

impl Line {
    /// A process that waited to execute its program until its probes were in place has executed it.
    ///
    /// # Errors
    /// [`LineError::Process`] when it is gone already; what it did is in the ring all the same.
    pub fn has_begun(&mut self, pid: u32) -> Result<(), LineError> {
        let Self { probes, traced, config, executions, .. } = self;
        let Some(traced) = traced.iter_mut().find(|t| t.pid() == pid) else { return Ok(()) };
        // What it was until now was no program of its own.
        executions.remove(&(pid, traced.target().identity.start_ticks));
        traced.has_begun()?;
        // The file that was opened has the probes, whatever its name meant when it was executed.
        if let (Some(probes), false, false) = (probes, traced.is_sampled(), traced.target().runs_its_file())
            // Not one that has ended, or executed the next program, meanwhile.
            && !traced.has_ended()
            && probes.is_at_its_execution(traced)
        {
            tracing::warn!(
                pid,
                "falling back to snapshots: the process executed a different file than the one that was parsed"
            );
            probes.remove(traced);
            traced.stop_events(config);
        }
        Ok(())
    }

    /// Verifies probes that were put in place before their program began, takes probes off files that somebody is
    /// about to write.
    pub(super) fn tend_probes(&mut self) {
        let Self { probes: Some(probes), traced, config, .. } = self else { return };
        for traced in traced.iter_mut() {
            if traced.is_to_be_verified()
                && let Err(error) = probes.verify(traced)
                && !traced.has_ended()
                && !traced.watch.has_executed_another_program()
            {
                tracing::warn!(pid = traced.pid(), "falling back to snapshots: {error}");
                probes.remove(traced);
                traced.stop_events(config);
                traced.lower(Some(Lowered::File));
            }
        }
        if !take_lease_notice() {
            return;
        }
        for number in probes.broken() {
            let Some(traced) = traced.iter_mut().find(|t| t.number() == number) else { continue };
            if traced.watch.has_ended() {
                probes.remove(traced);
                continue;
            }
            tracing::warn!(
                pid = traced.pid(),
                "removing its probes and falling back to snapshots: its executable is about to be written to"
            );
            probes.remove(traced);
            traced.stop_events(config);
            traced.lower(Some(Lowered::File));
        }
    }

    /// Ids are made of where the program's stack lies; a process that has had another program's there counts.
    pub(super) fn name_execution(&mut self, traced: &mut Traced) {
        let identity = &traced.target().identity;
        let process = (identity.pid, identity.start_ticks);
        if self.executions.len() >= EXECUTIONS && !self.executions.contains_key(&process) {
            self.executions.retain(|(pid, start), _| start_ticks(*pid) == Some(*start));
        }
        let known = self.executions.entry(process).or_default();
        let stack_start = traced.watch.stack_start();
        // The same program, which was given up and is taken again, keeps its ids.
        if known.image.as_ref().is_none_or(Image::is_gone) {
            known.repeat = known.stacks.iter().filter(|before| **before == stack_start).count();
            known.stacks.push(stack_start);
            known.image = traced.watch.image().cloned();
        }
        traced.set_repeat(u32::try_from(known.repeat).unwrap_or(u32::MAX));
    }

    /// A process that was not traced executed a program: it is traced if that is Go's and it descends from the first.
    pub(super) fn follow_execution(&mut self, pid: u32) {
        let Some(root) = self.root_pid else { return };
        if !descends_from(pid, root) {
            return;
        }
        let wanted = |target: &Target| self.config.left_behind.follows(&target.executable);
        let target = match Target::open(pid) {
            Ok(target) if !wanted(&target) => return,
            target => target,
        };
        match target.map_err(LineError::from).and_then(|target| self.trace_at(target, true)) {
            Ok(()) => {}
            // Most programs are not Go's, and many are gone before they can be looked at.
            Err(error @ (LineError::Program { .. } | LineError::Process(_))) => {
                tracing::debug!(pid, %error, "not tracing a child process");
            }
            Err(error) => tracing::warn!(pid, %error, "not tracing a child process"),
        }
    }

    /// Ends what has ended, and follows a process into the program that it executed.
    pub(super) fn look_after_processes(
        &mut self,
        report: &mut dyn FnMut(&Arc<Interval>),
    ) -> Result<(), LineError> {
        let mut i = 0;
        while i < self.traced.len() {
            let Some(why) = self.traced[i].what_became_of_it() else {
                i += 1;
                continue;
            };
            // What it did before its end is in the ring.
            self.drain_all()?;
            let traced = self.traced.remove(i);
            let executed = traced.executed_another_program();
            let pid = traced.pid();
            self.end(traced, &why, report);
            if executed && self.node.is_some() {
                self.have_looked_at(pid);
            } else if executed {
                match Target::open(pid).map_err(LineError::from).and_then(|t| self.trace_at(t, true)) {
                    Ok(()) => {
                        tracing::info!(pid, "the process executed another Go program; tracing that one");
                    }
                    Err(error) if self.config.follow != Follow::Nobody => {
                        tracing::debug!(pid, %error, "stopped tracing");
                    }
                    Err(LineError::Process(ProcessError::Gone { .. } | ProcessError::Zombie { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
