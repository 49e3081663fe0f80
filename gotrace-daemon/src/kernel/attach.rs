//! Attaching programs to the places of a probe plan, and detaching them, many at a time.

use std::{num::NonZeroU32, os::fd::OwnedFd, path::Path, thread};

use aya::programs::{
    Link as _, ProgramError, RawTracePoint, UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};

use super::{Error, Kernel};
use crate::gobin::{Event, Operand, Probe};

/// Whom a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One process; others that run the same file do not notice.
    Process(NonZeroU32),
    /// Every process that runs the file, now and later. Those that are not traced pay for a lookup. The
    /// number is the file's ([`ProcessConfig::file`]), not 0.
    ///
    /// [`ProcessConfig::file`]: gotrace_common::ProcessConfig::file
    File(NonZeroU32),
}

/// What holds probes in place.
#[derive(Debug)]
enum Hold {
    /// A perf event, for one.
    PerfEvent(UProbeLink),
    /// A link, for those of one program.
    Link(OwnedFd),
}

impl Hold {
    /// Removes the probes. The kernel waits until nobody runs their program any more.
    fn release(self) {
        match self {
            Self::Link(link) => drop(link),
            Self::PerfEvent(link) => {
                if let Err(error) = link.detach() {
                    tracing::warn!(%error, "a probe could not be removed; it goes when gotrace ends");
                }
            }
        }
    }
}

/// Probes that are in place. They are removed when this is dropped or [`Attachment::detach`]ed.
#[derive(Debug, Default)]
pub struct Attachment {
    holds: Vec<Hold>,
}

impl Attachment {
    /// Removes the probes. The kernel waits for a grace period at each link, so they go side by side.
    pub fn detach(mut self) {
        self.detach_all();
    }

    fn detach_all(&mut self) {
        let holds = std::mem::take(&mut self.holds);
        thread::scope(|scope| {
            for hold in holds {
                scope.spawn(move || hold.release());
            }
        });
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.detach_all();
    }
}

impl Kernel {
    /// Puts the probes in place. `file` is the executable as this program can open it, such as
    /// `/proc/PID/exe`. When one fails, those before it are removed.
    ///
    /// # Errors
    /// [`Error::Permission`], or [`Error::Failed`] with the probe that the kernel refused.
    pub fn attach(&mut self, file: &Path, scope: Scope, probes: &[Probe]) -> Result<Attachment, Error> {
        let mut attachment = Attachment::default();
        if let Some(programs) = &mut self.multi {
            let (pid, cookie) = match scope {
                Scope::Process(pid) => (Some(pid), 0),
                Scope::File(number) => (None, u64::from(number.get())),
            };
            // A link holds all places of a program.
            let mut places: Vec<(&str, Vec<u64>)> = Vec::new();
            for probe in probes {
                let name = program_for(probe)?;
                match places.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, offsets)) => offsets.push(probe.file_offset),
                    None => places.push((name, vec![probe.file_offset])),
                }
            }
            for (name, offsets) in places {
                let link = programs.link(name, file, &offsets, cookie, pid)?;
                attachment.holds.push(Hold::Link(link));
            }
            return Ok(attachment);
        }
        for probe in probes {
            let link = self.attach_by_perf_event(file, scope, probe)?;
            attachment.holds.push(Hold::PerfEvent(link));
        }
        Ok(attachment)
    }

    fn attach_by_perf_event(
        &mut self,
        file: &Path,
        scope: Scope,
        probe: &Probe,
    ) -> Result<UProbeLink, Error> {
        let (scope, cookie) = match scope {
            Scope::Process(pid) => (UProbeScope::OneProcess(pid), None),
            Scope::File(number) => (UProbeScope::AllProcesses, Some(u64::from(number.get()))),
        };
        let name = program_for(probe)?;
        let mut attach = || -> Result<UProbeLink, ProgramError> {
            let program = uprobe(&mut self.ebpf, name)?;
            if self.loaded.insert(name, ()).is_none() {
                program.load()?;
            }
            let location = UProbeAttachLocation::AbsoluteOffset(probe.file_offset);
            let id = program.attach(UProbeAttachPoint { location, cookie }, file, scope)?;
            program.take_link(id)
        };
        attach().map_err(|e| {
            let (function, offset) = (&probe.function, probe.file_offset);
            let what = format!("probe {function} at {offset:#x} of {} (program {name})", file.display());
            Error::from_loader(what, &e)
        })
    }

    /// Reports executions of programs as records. Not needed for a single process, which can be
    /// watched otherwise.
    ///
    /// # Errors
    /// [`Error::Permission`], or [`Error::Failed`] where raw tracepoints are missing.
    pub fn watch_executions(&mut self) -> Result<(), Error> {
        let what = "attach to the raw tracepoint sched_process_exec";
        let program = self
            .ebpf
            .program_mut("process_exec")
            .ok_or_else(|| Error::Object("program process_exec".into()))?;
        let program: &mut RawTracePoint = program.try_into().map_err(|e| Error::from_loader(what, &e))?;
        program.load().map_err(|e| Error::from_loader(what, &e))?;
        program.attach("sched_process_exec").map_err(|e| Error::from_loader(what, &e))?;
        Ok(())
    }
}

fn uprobe<'a>(ebpf: &'a mut aya::Ebpf, name: &'static str) -> Result<&'a mut UProbe, ProgramError> {
    // A name that the object lacks fails the next line's conversion and the test that loads them all.
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    program.try_into()
}

/// The program that reads this probe's operand.
fn program_for(probe: &Probe) -> Result<&'static str, Error> {
    Ok(match (probe.event, probe.operand) {
        (Event::Create, Operand::Argument(0)) => "create_0",
        (Event::Create, Operand::Argument(1)) => "create_1",
        (Event::Create, Operand::Argument(2)) => "create_2",
        (Event::Create, Operand::StatusChange) => "create_by_status",
        (Event::CreateCoroutine, Operand::Argument(0)) => "create_coroutine_0",
        (Event::CreateCoroutine, Operand::Argument(1)) => "create_coroutine_1",
        (Event::CreateCoroutine, Operand::Argument(2)) => "create_coroutine_2",
        (Event::Exit, Operand::Argument(0)) => "exit",
        (Event::Park, Operand::Argument(0)) => "park",
        (Event::Run, Operand::Argument(0)) => "run",
        (Event::Ready, Operand::Argument(0)) => "ready",
        (Event::Ready, Operand::ClosureContext) => "ready_closure",
        (Event::Netpoll, _) => "netpoll",
        (Event::InjectList, _) => "inject_list",
        (Event::Yield, Operand::Argument(0)) => "give_way",
        (Event::Coroutine, Operand::Argument(0)) => "coroutine_switch",
        (Event::SyscallEnter, Operand::CurrentG) => "syscall_enter",
        (Event::SyscallExit, Operand::CurrentG) => "syscall_exit",
        (event, operand) => return Err(Error::Object(format!("program for {event:?} with {operand:?}"))),
    })
}
