//! Attaching programs to the places of a probe plan, and detaching them, many at a time.

use std::{num::NonZeroU32, os::fd::OwnedFd, path::Path, sync::Arc, thread};

use aya::programs::{
    Link as _, ProgramError, RawTracePoint, UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};

use gotrace_common::program;

use super::{Error, Kernel, Way, error::again, way};
use gotrace_go::{
    Event, Operand, Probe,
    requests::{Moment, Server},
};
use gotrace_process::Guard;

/// Probes that are removed side by side.
const REMOVED_AT_ONCE: usize = 16;

/// Whom a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One process; others that run the same file do not notice.
    Process(NonZeroU32),
    /// Every process that runs the file, now and later. The number is the attachment's ([`ProcessConfig::file`]),
    /// not 0. Takes cookies ([`Kernel::has_cookies`]).
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
                    tracing::warn!(%error, "cannot remove a probe; the kernel removes it when gotrace exits");
                }
            }
        }
    }
}

/// Probes that are in place. They are removed when this is dropped or [`Attachment::detach`]ed.
#[derive(Debug, Default)]
pub struct Attachment {
    holds: Vec<Hold>,
    /// Keeps the file as it is; let go of when the probes are removed, not before.
    guard: Option<Arc<Guard>>,
}

impl Attachment {
    /// Removes the probes. The kernel waits for a grace period at each link, so they go side by side.
    pub fn detach(mut self) {
        self.detach_all();
    }

    /// Has the file's guard live as long as the probes are in place.
    #[must_use]
    pub fn guarded_by(mut self, guard: Arc<Guard>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Lets the file go before the probes are removed: they can come into no address space any more.
    pub fn unguard(&mut self) {
        self.guard = None;
    }

    /// What keeps the file as it is.
    #[must_use]
    pub fn guard(&self) -> Option<&Arc<Guard>> {
        self.guard.as_ref()
    }

    fn detach_all(&mut self) {
        let mut holds = std::mem::take(&mut self.holds);
        while !holds.is_empty() {
            let rest = holds.split_off(holds.len().min(REMOVED_AT_ONCE));
            thread::scope(|scope| {
                for hold in std::mem::replace(&mut holds, rest) {
                    // Without a thread the closure is dropped, and the probe with it.
                    drop(thread::Builder::new().spawn_scoped(scope, move || hold.release()));
                }
            });
        }
        self.guard = None;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.detach_all();
    }
}

impl Kernel {
    /// Puts the probes in place. `file` is the executable as this program can open it, such as
    /// `/proc/PID/exe`. When one fails, those before it are removed. `between`: called now and then, as it may take seconds.
    ///
    /// # Errors
    /// [`Error::Permission`], or [`Error::Failed`] with the probe that the kernel refused.
    pub fn attach(
        &mut self,
        file: &Path,
        scope: Scope,
        probes: &[Probe],
        mut between: impl FnMut(),
    ) -> Result<Attachment, Error> {
        let mut attachment = Attachment::default();
        if let Some(programs) = self.multi.as_mut().filter(|_| way() == Way::Links) {
            let (pid, number) = match scope {
                Scope::Process(pid) => (Some(pid), 0),
                Scope::File(number) => (None, number.get()),
            };
            // A link holds all of a level: the cookie of each place names what is run there.
            let mut places = DISPATCHERS.map(|name| (name, Vec::<(u64, u64)>::new()));
            for probe in probes {
                let program = program_for(probe)?;
                places[dispatcher_of(program)].1.push((probe.file_offset, cookie(number, program)));
            }
            for (name, places) in places.iter().filter(|(_, places)| !places.is_empty()) {
                attachment.holds.push(Hold::Link(programs.link(name, file, places, pid)?));
                between();
            }
            return Ok(attachment);
        }
        for probe in probes {
            let link = self.attach_by_perf_event(file, scope, probe)?;
            attachment.holds.push(Hold::PerfEvent(link));
            between();
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
            Scope::File(number) => {
                (UProbeScope::AllProcesses, Some(cookie(number.get(), program_for(probe)?)))
            }
        };
        let name = name_of(program_for(probe)?);
        let attach = || -> Result<UProbeLink, ProgramError> {
            let program = uprobe(&mut self.ebpf, name)?;
            if !self.loaded.contains_key(name) {
                program.load()?;
                self.loaded.insert(name, ());
            }
            let location = UProbeAttachLocation::AbsoluteOffset(probe.file_offset);
            let id = program.attach(UProbeAttachPoint { location, cookie }, file, scope)?;
            program.take_link(id)
        };
        again(attach).map_err(|e| {
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
        self.attach_tracepoint("process_exec", "sched_process_exec")
    }

    /// Forgets threads when they end, from now on. Where that cannot be, each takes room until its process has ended.
    ///
    /// # Errors
    /// As [`Self::watch_executions`].
    pub fn watch_thread_ends(&mut self) -> Result<(), Error> {
        self.attach_tracepoint("thread_exit", "sched_process_exit")
    }

    /// Counts the processor time of threads from now on.
    pub(super) fn watch_threads(&mut self) -> Result<(), Error> {
        self.watch_thread_ends()?;
        self.attach_tracepoint("thread_switch", "sched_switch")
    }

    /// Once for each.
    fn attach_tracepoint(&mut self, name: &'static str, tracepoint: &str) -> Result<(), Error> {
        if self.loaded.contains_key(name) {
            return Ok(());
        }
        let what = || format!("attach to the raw tracepoint {tracepoint}");
        let program = self.ebpf.program_mut(name).ok_or_else(|| Error::Object(format!("program {name}")))?;
        let program: &mut RawTracePoint = program.try_into().map_err(|e| Error::from_loader(what(), &e))?;
        match again(|| program.load()) {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(e) => return Err(Error::from_loader(what(), &e)),
        }
        program.attach(tracepoint).map_err(|e| Error::from_loader(what(), &e))?;
        self.loaded.insert(name, ());
        Ok(())
    }
}

fn uprobe<'a>(ebpf: &'a mut aya::Ebpf, name: &'static str) -> Result<&'a mut UProbe, ProgramError> {
    // A name that the object lacks fails the next line's conversion and the test that loads them all.
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    program.try_into()
}

/// Programs that run each place's own: of births, deaths and the collector, of waits, of all else, of requests, of
/// functions that the user has named.
const DISPATCHERS: [&str; 5] =
    ["dispatch_lifecycle", "dispatch_waits", "dispatch_full", "dispatch_requests", "dispatch_functions"];

fn dispatcher_of(program: u32) -> usize {
    match program {
        program::PARK | program::RUN => 1,
        program::READY
        | program::READY_CLOSURE
        | program::NETPOLL
        | program::INJECT_LIST
        | program::GIVE_WAY
        | program::COROUTINE_SWITCH
        | program::SYSCALL_ENTER
        | program::SYSCALL_EXIT => 2,
        program::FUNCTION_BEGIN.. => 4,
        program::HTTP_BEGIN.. => 3,
        _ => 0,
    }
}

/// What a place's cookie says: the number of a file-wide attachment, or 0, and the program of the place.
fn cookie(attachment: u32, program: u32) -> u64 {
    u64::from(attachment) << 32 | u64::from(program)
}

fn name_of(program: u32) -> &'static str {
    // All that `program_for` returns are among them.
    program::NAMES.get(program as usize).copied().unwrap_or_default()
}

/// The program that reads this probe's operand, by its number.
fn program_for(probe: &Probe) -> Result<u32, Error> {
    Ok(match (probe.event, probe.operand) {
        (Event::Create, Operand::Argument(0)) => program::CREATE_0,
        (Event::Create, Operand::Argument(1)) => program::CREATE_1,
        (Event::Create, Operand::Argument(2)) => program::CREATE_2,
        (Event::Create, Operand::StatusChange) => program::CREATE_BY_STATUS,
        (Event::CreateCoroutine, Operand::Argument(0)) => program::CREATE_COROUTINE_0,
        (Event::CreateCoroutine, Operand::Argument(1)) => program::CREATE_COROUTINE_1,
        (Event::CreateCoroutine, Operand::Argument(2)) => program::CREATE_COROUTINE_2,
        (Event::Exit, Operand::Argument(0)) => program::EXIT,
        (Event::Park, Operand::Argument(0)) => program::PARK,
        (Event::Run, Operand::Argument(0)) => program::RUN,
        (Event::Ready, Operand::Argument(0)) => program::READY,
        (Event::Ready, Operand::ClosureContext) => program::READY_CLOSURE,
        (Event::Netpoll, _) => program::NETPOLL,
        (Event::InjectList, _) => program::INJECT_LIST,
        (Event::Yield, Operand::Argument(0)) => program::GIVE_WAY,
        (Event::Coroutine, Operand::Argument(0)) => program::COROUTINE_SWITCH,
        (Event::SyscallEnter, Operand::CurrentG) => program::SYSCALL_ENTER,
        (Event::SyscallExit, Operand::CurrentG) => program::SYSCALL_EXIT,
        (Event::StopWorld, Operand::Argument(0)) => program::STOP_WORLD,
        (Event::StartWorld, Operand::CurrentG) => program::START_WORLD,
        (Event::WorldStarted, Operand::CurrentG) => program::WORLD_STARTED,
        (Event::AssistBegin, Operand::Argument(0)) => program::ASSIST_BEGIN,
        (Event::AssistEnd, Operand::CurrentG) => program::ASSIST_END,
        (Event::Request(server, moment), _) => match (server, moment) {
            (Server::Http, Moment::Begin) => program::HTTP_BEGIN,
            (Server::Http, Moment::Route) => program::HTTP_ROUTE,
            (Server::Http, Moment::Handler) => program::HTTP_HANDLER,
            (Server::Http, Moment::Hijack) => program::HTTP_HIJACK,
            (Server::Http, Moment::Panic) => program::PANIC,
            (Server::Http, Moment::End) => program::HTTP1_END,
            (Server::Http2, Moment::End) => program::HTTP2_END,
            (Server::XHttp2, Moment::Begin) => program::X_HTTP2_BEGIN,
            (Server::XHttp2, Moment::WrappedBegin) => program::WRAPPED_HTTP2_BEGIN,
            (Server::XHttp2, Moment::Carried) => program::HTTP_CARRIES_HTTP2,
            (Server::XHttp2, Moment::End) => program::X_HTTP2_END,
            (Server::Grpc, Moment::Carried) => program::HTTP_CARRIES_GRPC,
            (Server::Grpc, Moment::Begin) => program::GRPC_BEGIN,
            (Server::Grpc, Moment::End) => program::GRPC_END,
            (Server::OpenTelemetry, Moment::Begin) => program::SPAN_BEGIN,
            (Server::OpenTelemetry, Moment::End) => program::SPAN_END,
            (Server::Gin, Moment::Route) => program::GIN_ROUTE,
            (Server::Echo, Moment::Lookup) => program::ECHO_LOOKUP,
            (Server::Echo, Moment::Route) => program::ECHO_ROUTE,
            (Server::Chi, Moment::Route) => program::CHI_ROUTE,
            (Server::Gorilla, Moment::Route) => program::GORILLA_ROUTE,
            (Server::Gorilla, Moment::RouteValue) => program::GORILLA_VALUE,
            (Server::Function, Moment::Begin) => program::FUNCTION_BEGIN,
            (Server::Function, Moment::End) => program::FUNCTION_END,
            (Server::Function, Moment::Panic) => program::FUNCTION_RECOVERED,
            _ => return Err(Error::Object(format!("program for {} of {}", moment.name(), server.name()))),
        },
        (event, operand) => return Err(Error::Object(format!("program for {event:?} with {operand:?}"))),
    })
}
