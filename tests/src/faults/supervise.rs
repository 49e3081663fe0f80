//! Runs a command and lets one of its system calls fail, or records from which places it makes them.
//!
//! Input: an [`Order`]. The command's standard streams are the supervisor's, and so are the signals SIGINT, SIGTERM and
//! SIGUSR1. Output: the report, a file of lines `CALL TEXT`, one for each place in the order in which they were
//! reached first; with an error to be injected, a line is the place at which it was, written at once. When the
//! supervisor is killed, so is the command.
//!
//! Everything is done by one thread, since the kernel knows a tracer by its thread.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs, io,
    io::Write as _,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Command, ExitStatus},
    sync::atomic::{AtomicI32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    filter,
    place::{Image, Place},
    registers::Registers,
};

/// The first argument of the process that puts the filter on itself and becomes the command; before it, the number of
/// the one call that is looked at, or `all`.
pub const INNER: &str = "--filtered";

/// A system call that fails.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The number of the call.
    pub call: u32,
    /// [`Place::id`] of where it is made.
    pub place: String,
    /// The error.
    pub error: i32,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where to write the report.
    pub report: PathBuf,
    /// What fails; `None` to record all places.
    pub fault: Option<Fault>,
    /// The command.
    pub command: Vec<OsString>,
}

/// The process that runs as the command.
static CHILD: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: i32) {
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 {
        // SAFETY: kill takes no pointers, and may be called in a signal handler.
        unsafe { libc::kill(child, signal) };
    }
}

/// Becomes the command, under the filter.
///
/// # Errors
/// Whenever it returns.
pub fn become_filtered(only: &str, command: &[OsString]) -> Result<std::convert::Infallible> {
    filter::install(only.parse().ok()).context("putting the filter in place")?;
    let (program, arguments) = command.split_first().context("a command")?;
    Err(Command::new(program).args(arguments).exec())
        .with_context(|| format!("executing {}", program.display()))
}

struct Supervisor {
    order: Order,
    child: i32,
    report: fs::File,
    /// Threads that have begun, and whether they run the command's executable.
    threads: HashMap<i32, Option<bool>>,
    image: Option<Image>,
    seen: HashSet<Place>,
    /// Threads that close a descriptor, and are to be told that it failed.
    closing: HashSet<i32>,
    done: bool,
}

/// Does it; how the command ended.
///
/// # Errors
/// When it cannot be started or traced.
pub fn run(order: Order) -> Result<ExitStatus> {
    let only = order.fault.as_ref().map_or_else(|| "all".to_owned(), |f| f.call.to_string());
    let mut command = Command::new(std::env::current_exe()?);
    command.args([INNER, &only]).args(&order.command);
    let traced = || {
        // SAFETY: asks to be traced by the parent; no pointers.
        if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call and nothing else.
    unsafe { command.pre_exec(traced) };
    let report = fs::File::create(&order.report).context("making the report")?;
    let child = command.spawn().context("starting the command")?.id().cast_signed();
    CHILD.store(child, Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1] {
        // SAFETY: the handler does what one may do in a handler.
        unsafe { libc::signal(signal, pass_on as *const () as libc::sighandler_t) };
    }
    let mut this = Supervisor {
        order,
        child,
        report,
        threads: HashMap::new(),
        image: None,
        seen: HashSet::new(),
        closing: HashSet::new(),
        done: false,
    };
    this.begin()?;
    loop {
        if let Some(status) = this.next()? {
            return Ok(status);
        }
    }
}

fn wait(pid: i32) -> io::Result<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: the status is a local.
        let thread = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if thread > 0 {
            return Ok((thread, status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Lets a thread go on; one that is gone meanwhile is no error.
fn go_on(request: libc::c_uint, thread: i32, signal: i32) {
    // SAFETY: no pointers.
    unsafe { libc::ptrace(request, thread, 0, signal as usize) };
}

impl Supervisor {
    /// The stop after the first execution, of this executable.
    fn begin(&mut self) -> Result<()> {
        let (_, status) = wait(self.child).context("waiting for the command")?;
        ensure!(libc::WIFSTOPPED(status), "the command ended before it began");
        let options = libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACESYSGOOD
            | libc::PTRACE_O_EXITKILL;
        // SAFETY: no pointers.
        let set = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, self.child, 0, options as usize) };
        ensure!(set != -1, "setting options: {}", io::Error::last_os_error());
        self.threads.insert(self.child, Some(false));
        go_on(libc::PTRACE_CONT, self.child, 0);
        Ok(())
    }

    /// Waits for one event; how the command ended, when it has.
    fn next(&mut self) -> Result<Option<ExitStatus>> {
        let (thread, status) = wait(-1).context("waiting for the command")?;
        if !libc::WIFSTOPPED(status) {
            self.threads.remove(&thread);
            // Whoever it has left behind is killed with the supervisor.
            return Ok((thread == self.child).then(|| ExitStatus::from_raw(status)));
        }
        let signal = libc::WSTOPSIG(status);
        let is_new = !self.threads.contains_key(&thread);
        self.threads.entry(thread).or_insert(None);
        match status >> 16 {
            libc::PTRACE_EVENT_SECCOMP => return self.calls(thread).map(|()| None),
            libc::PTRACE_EVENT_EXEC => self.executed(thread)?,
            0 if signal == libc::SIGTRAP | 0x80 => self.closed(thread)?,
            0 if !(is_new && signal == libc::SIGSTOP) => {
                go_on(libc::PTRACE_CONT, thread, signal);
                return Ok(None);
            }
            _ => {}
        }
        go_on(libc::PTRACE_CONT, thread, 0);
        Ok(None)
    }

    fn executed(&mut self, thread: i32) -> Result<()> {
        self.threads.insert(thread, None);
        if thread == self.child && self.image.is_none() {
            let path = fs::read_link(format!("/proc/{thread}/exe")).context("the command is gone")?;
            self.image = Some(Image::new(&path, thread)?);
        }
        Ok(())
    }

    /// Whether a thread runs the command's executable.
    fn is_of_command(&mut self, thread: i32) -> bool {
        let Some(image) = &self.image else { return false };
        let known = self.threads.entry(thread).or_insert(None);
        let same = || fs::read_link(format!("/proc/{thread}/exe")).is_ok_and(|path| path == image.path());
        *known.get_or_insert_with(same)
    }

    /// A thread is about to make a call.
    fn calls(&mut self, thread: i32) -> Result<()> {
        if self.done || !self.is_of_command(thread) {
            go_on(libc::PTRACE_CONT, thread, 0);
            return Ok(());
        }
        let Some(image) = &mut self.image else { bail!("no executable") };
        // It may be killed at any time.
        let Ok(registers) = Registers::of(thread) else { return Ok(()) };
        let mut request = libc::PTRACE_CONT;
        if let Some(place) = image.place(thread, &registers) {
            match &self.order.fault {
                None => {
                    if !self.seen.contains(&place) {
                        writeln!(self.report, "{} {}", place.call, place.text)?;
                        self.seen.insert(place);
                    }
                }
                Some(fault) if fault.place == place.id() => {
                    self.done = true;
                    if i64::from(place.call) == libc::SYS_close {
                        self.closing.insert(thread);
                        request = libc::PTRACE_SYSCALL;
                    } else {
                        registers.fail(thread, fault.error).context("injecting an error")?;
                    }
                    writeln!(self.report, "{} {}", place.call, place.text)?;
                }
                Some(_) => {}
            }
        }
        go_on(request, thread, 0);
        Ok(())
    }

    /// A thread has made a call that it is to be told has failed.
    fn closed(&mut self, thread: i32) -> Result<()> {
        if let Some(fault) = self.order.fault.as_ref().filter(|_| self.closing.remove(&thread)) {
            Registers::of(thread).and_then(|r| r.fail(thread, fault.error)).context("injecting an error")?;
        }
        Ok(())
    }
}
