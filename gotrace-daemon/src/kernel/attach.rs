//! Attaching programs to the places of a probe plan, and detaching them, many at a time.

use std::{num::NonZeroU32, path::Path, thread};

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

/// Probes that are in place. They are removed when this is dropped or [`Attachment::detach`]ed.
#[derive(Debug, Default)]
pub struct Attachment {
    links: Vec<UProbeLink>,
}

impl Attachment {
    /// How many probes are in place.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Removes the probes. The kernel waits for a grace period at each, so they are removed side by side.
    pub fn detach(mut self) {
        self.detach_all();
    }

    fn detach_all(&mut self) {
        let links = std::mem::take(&mut self.links);
        thread::scope(|scope| {
            for link in links {
                scope.spawn(move || {
                    if let Err(error) = link.detach() {
                        tracing::warn!(%error, "a probe could not be removed; it goes when gotrace ends");
                    }
                });
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
        let (uprobe_scope, cookie) = match scope {
            Scope::Process(pid) => (UProbeScope::OneProcess(pid), None),
            Scope::File(number) => (UProbeScope::AllProcesses, Some(u64::from(number.get()))),
        };
        let mut attachment = Attachment::default();
        for probe in probes {
            let name = program_for(probe)?;
            let link = (|| -> Result<UProbeLink, ProgramError> {
                let program = uprobe(&mut self.ebpf, name)?;
                if self.loaded.insert(name, ()).is_none() {
                    program.load()?;
                }
                let location = UProbeAttachLocation::AbsoluteOffset(probe.file_offset);
                let id = program.attach(UProbeAttachPoint { location, cookie }, file, uprobe_scope)?;
                program.take_link(id)
            })()
            .map_err(|e| {
                Error::from_loader(
                    format!(
                        "probe {} at {:#x} of {} (program {name})",
                        probe.function,
                        probe.file_offset,
                        file.display()
                    ),
                    &e,
                )
            })?;
            attachment.links.push(link);
        }
        Ok(attachment)
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
