//! A process of gotrace's own that reads what need not answer: memory of other processes, what `/proc` makes of it, and
//! files that a user process or another machine serves.
//!
//! Whatever is looked at beforehand, a page can lie in a file of FUSE or NFS by the time it is read. Whoever reads it
//! then waits for a server that may never answer, and no signal ends that, SIGKILL neither. So another process waits,
//! which gotrace can do without: gotrace gives up, and leaves alone the process that is read.
//!
//! Input: addresses of a process, or a file. Output: the bytes, by shared memory. Invariants: no call takes longer than
//! five seconds after the last bytes came, and those that take longer than one second take no more than thirty in all; a
//! process that did not answer once, or answers so slowly, is not asked again for ten minutes, nor while a helper still
//! waits for it. Where the system gives no helper, and in programs that are
//! not gotrace, the caller reads itself.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, ftruncate, memfd_create},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, sendmsg, socketpair,
    },
};

mod serve;
mod wire;

pub(super) use self::wire::MAX_PIECES;
use self::wire::{MAX_BYTES, Request, SHARED, Shared};
use super::memory::{Remote, read_vectors};

/// How long nothing may come before a process is held not to answer.
const SILENT: Duration = Duration::from_secs(5);
/// A call that takes longer is slow, and what slow calls may take in all.
const SLOW: Duration = Duration::from_secs(1);
const SLOW_IN_ALL: Duration = Duration::from_secs(30);
/// How long it is left alone then.
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// Processes that are remembered as silent.
const MAX_SILENT: usize = 4096;
/// Helpers that wait for something to do.
const MAX_IDLE: usize = 4;
/// By what name a helper is started, and shown in a list of processes.
const NAME: &str = "gotrace-reader";

/// Makes this process a helper if it was started as one; does not return then. To be called first in `main`.
pub fn serve_if_asked() {
    if std::env::args_os().next().is_some_and(|name| name == NAME) {
        serve::serve();
        std::process::exit(0);
    }
}

/// From now on helpers read. Only for a program whose `main` calls [`serve_if_asked`].
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether this process is a helper of this one.
#[must_use]
pub fn is_helper(pid: u32) -> bool {
    // One that is being started is known before the lock is let go of.
    pool().pids.contains(&pid)
}

static ENABLED: AtomicBool = AtomicBool::new(false);
static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), given_up: Vec::new(), pids: Vec::new() });
static SLOW_ONES: Mutex<Option<HashMap<Process, SlowOne>>> = Mutex::new(None);

/// A process: its pid and when it started, in clock ticks.
pub(super) type Process = (u32, u64);

/// A process that kept gotrace waiting.
#[derive(Clone, Copy)]
struct SlowOne {
    /// In slow calls.
    waited: Duration,
    /// When it came to the end of gotrace's patience.
    left_alone: Option<Instant>,
    last: Instant,
}

struct Pool {
    idle: Vec<Helper>,
    /// Those that were let go of, until they are reaped, and the process that one still waits for.
    given_up: Vec<(Child, Option<Process>)>,
    /// All that there are.
    pids: Vec<u32>,
}

/// A helper that waits for requests.
struct Helper {
    child: Child,
    socket: OwnedFd,
    shared: Shared,
}

impl Helper {
    fn start() -> io::Result<Self> {
        let memory = memfd_create(NAME, MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, SHARED as u64)?;
        let shared = Shared::map(memory.as_fd())?;
        let (socket, its) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let _kept = super::privileges::keep_over_exec();
        let child = Command::new("/proc/self/exe")
            .arg0(NAME)
            .env_clear()
            .stdin(Stdio::from(its))
            .stdout(Stdio::from(memory))
            .stderr(Stdio::null())
            // A Ctrl-C is for gotrace.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, socket, shared })
    }

    /// Sends a request and waits for the answer: so many bytes are in the shared memory.
    fn ask(&mut self, request: Request, file: Option<BorrowedFd<'_>>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = file.map(|file| [file]);
        if let Some(files) = &files {
            control.push(SendAncillaryMessage::ScmRights(files));
        }
        let message = request.to_bytes();
        sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
        let mut seen = (self.shared.progress().load(Ordering::Relaxed), Instant::now());
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        loop {
            let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
            match poll(&mut fds, Some(&wait)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
            let progress = self.shared.progress().load(Ordering::Relaxed);
            if progress != seen.0 {
                seen = (progress, Instant::now());
            } else if seen.1.elapsed() >= SILENT {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let mut answer = [0; 8];
        let (_, read) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        let answer = match read {
            8 => i64::from_ne_bytes(answer),
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        match usize::try_from(answer) {
            Ok(n) => Ok(n),
            Err(_) => Err(Refused(i32::try_from(-answer).unwrap_or(libc::EIO)).into()),
        }
    }
}

/// What the system answered to the helper, and not to gotrace about the helper.
#[derive(Debug, thiserror::Error)]
#[error("{}", io::Error::from_raw_os_error(*.0))]
struct Refused(i32);

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::other(refused)
    }
}

impl Pool {
    fn take(&mut self) -> io::Result<Helper> {
        self.reap();
        let Self { idle, pids, .. } = self;
        if let Some(helper) = idle.pop() {
            return Ok(helper);
        }
        let helper = Helper::start()?;
        pids.push(helper.child.id());
        Ok(helper)
    }

    /// It is of no use any more; where it waits for a process it may not even end.
    fn give_up(&mut self, helper: Helper, waits_for: Option<Process>) {
        let mut child = helper.child;
        let _ = child.kill();
        self.given_up.push((child, waits_for));
    }

    fn reap(&mut self) {
        let Self { given_up, pids, .. } = self;
        given_up.retain_mut(|(child, _)| {
            let lives = matches!(child.try_wait(), Ok(None));
            if !lives {
                pids.retain(|pid| *pid != child.id());
            }
            lives
        });
    }

    /// Whether a helper still waits for this process: another one would wait beside it.
    fn waits_for(&mut self, process: Process) -> bool {
        self.reap();
        self.given_up.iter().any(|(_, waits_for)| *waits_for == Some(process))
    }
}

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    // Whole values: a panic elsewhere leaves none half made.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a helper answer, and hands what came to `take`. `None`: there is no helper, and the caller is to read itself.
fn ask(
    of: Process,
    prepare: impl Fn(&mut Shared) -> Request,
    file: Option<BorrowedFd<'_>>,
    take: impl FnOnce(&[u8]),
) -> Option<io::Result<usize>> {
    if !ENABLED.load(Ordering::Relaxed) {
        return None;
    }
    if is_silent(of) {
        return Some(Err(silent()));
    }
    // One that was killed, or that somebody stopped, is replaced.
    for _ in 0..2 {
        let helper = pool().take();
        let mut helper = match helper {
            Ok(helper) => helper,
            Err(error) => {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(
                        "cannot start a process that reads the memory of others: {error}; gotrace reads it itself, and \
                         hangs where memory is a file whose server does not answer"
                    );
                });
                return None;
            }
        };
        let request = prepare(&mut helper.shared);
        let begun = Instant::now();
        let answer = helper.ask(request, file);
        note_time(of, begun.elapsed());
        match answer {
            Ok(n) => {
                take(helper.shared.bytes().get(..n).unwrap_or_default());
                give_back(helper);
                return Some(Ok(n));
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                pool().give_up(helper, Some(of));
                note_silent(of);
                return Some(Err(silent()));
            }
            Err(error) => match error.downcast::<Refused>() {
                Ok(Refused(errno)) => {
                    give_back(helper);
                    return Some(Err(io::Error::from_raw_os_error(errno)));
                }
                Err(_) => pool().give_up(helper, None),
            },
        }
    }
    None
}

fn give_back(helper: Helper) {
    let mut pool = pool();
    if pool.idle.len() < MAX_IDLE {
        pool.idle.push(helper);
    } else {
        // The end of its socket ends it.
        pool.given_up.push((helper.child, None));
    }
}

fn silent() -> io::Error {
    let why = format!(
        "no answer within {} s, or {} s in all: it may be a file on FUSE or NFS whose server does not answer",
        SILENT.as_secs(),
        SLOW_IN_ALL.as_secs()
    );
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// Whether the process did not answer lately, or too slowly.
pub(super) fn is_silent(process: Process) -> bool {
    let known = SLOW_ONES.lock().unwrap_or_else(PoisonError::into_inner);
    let since = known.as_ref().and_then(|known| known.get(&process)?.left_alone);
    drop(known);
    since.is_some_and(|since| since.elapsed() < LEFT_ALONE || pool().waits_for(process))
}

fn note_silent(process: Process) {
    note(process, |one| one.left_alone = Some(Instant::now()));
}

/// Notes how long a call took.
fn note_time(process: Process, time: Duration) {
    if time < SLOW {
        return;
    }
    note(process, |one| {
        one.waited += time;
        if one.waited >= SLOW_IN_ALL {
            (one.waited, one.left_alone) = (Duration::ZERO, Some(Instant::now()));
        }
    });
}

fn note(process: Process, change: impl FnOnce(&mut SlowOne)) {
    let mut known = SLOW_ONES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known.retain(|_, one| one.last.elapsed() < LEFT_ALONE);
    if known.len() < MAX_SILENT || known.contains_key(&process) {
        let new = SlowOne { waited: Duration::ZERO, left_alone: None, last: Instant::now() };
        let one = known.entry(process).or_insert(new);
        one.last = Instant::now();
        change(one);
    }
}

/// As many bytes of these pieces as can be read, one behind the other, until the first that cannot.
///
/// # Errors
/// What the kernel says of the first piece; [`io::ErrorKind::TimedOut`] where nobody answers.
pub(super) fn read_memory(process: Process, pieces: &[Remote], buffer: &mut [u8]) -> io::Result<usize> {
    let (mut read, mut rest) = (0, pieces);
    // What is left of a piece that does not fit.
    let mut begun: Option<Remote> = None;
    while begun.is_some() || !rest.is_empty() {
        let (mut now, mut wanted) = (Vec::with_capacity(rest.len().min(MAX_PIECES)), 0);
        while wanted < MAX_BYTES && now.len() < MAX_PIECES {
            let Some(piece) = begun.take().or_else(|| {
                let (first, others) = rest.split_first()?;
                rest = others;
                Some(*first)
            }) else {
                break;
            };
            let (part, more) = piece.split(MAX_BYTES - wanted);
            wanted += part.len();
            now.push(part);
            begun = more;
        }
        let to = buffer.get_mut(read..read + wanted).ok_or(io::ErrorKind::InvalidInput)?;
        let prepare = |shared: &mut Shared| {
            shared.write_pieces(&now);
            Request::Memory { pid: process.0, pieces: now.len() }
        };
        let mut copied = 0;
        let answer = ask(process, prepare, None, |bytes| {
            copied = bytes.len().min(to.len());
            to[..copied].copy_from_slice(&bytes[..copied]);
        });
        let got = match answer {
            Some(Ok(_)) => copied,
            Some(Err(_)) if read > 0 => return Ok(read),
            Some(Err(error)) => return Err(error),
            None => match read_vectors(process.0, to, &now) {
                Ok(n) => n,
                Err(_) if read > 0 => return Ok(read),
                Err(error) => return Err(error),
            },
        };
        read += got;
        if got < wanted {
            break;
        }
    }
    Ok(read)
}

/// Reads some of a file of `/proc`: from where it was left off, or at an offset.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::TimedOut`] where nobody answers.
pub(super) fn read_file(
    of: Process,
    file: &File,
    offset: Option<u64>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let len = buffer.len().min(MAX_BYTES);
    let mut copied = 0;
    let answer = ask(
        of,
        |_| Request::File { offset, len },
        Some(file.as_fd()),
        |bytes| {
            copied = bytes.len().min(len);
            buffer[..copied].copy_from_slice(&bytes[..copied]);
        },
    );
    match (answer, offset) {
        (Some(answer), _) => answer.map(|_| copied),
        (None, Some(offset)) => file.read_at(buffer, offset),
        (None, None) => (&*file).read(buffer),
    }
}

/// Reads some of a file that is served, which is opened for that.
///
/// # Errors
/// What the system answers; [`io::ErrorKind::TimedOut`] where nobody does.
pub(super) fn read_served(of: Process, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let len = buffer.len().min(MAX_BYTES);
    let mut copied = 0;
    let answer = ask(
        of,
        |_| Request::Served { offset, len },
        Some(file.as_fd()),
        |bytes| {
            copied = bytes.len().min(len);
            buffer[..copied].copy_from_slice(&bytes[..copied]);
        },
    );
    answer.map_or_else(|| serve::open_and_read(file, offset, buffer), |answer| answer.map(|_| copied))
}

/// The type of the file system that a file is on, as statfs(2) has it.
///
/// # Errors
/// What the system answers; [`io::ErrorKind::TimedOut`] where nobody does.
pub(super) fn file_system(of: Process, file: &File) -> io::Result<u64> {
    match ask(of, |_| Request::FileSystem, Some(file.as_fd()), |_| {}) {
        Some(answer) => answer.map(|magic| magic as u64),
        None => serve::magic_of(file),
    }
}

/// At most the first 1 MiB of a regular file, by a path in the root of a process; `None` where it cannot be read.
pub(super) fn read_in_root(of: Process, directory: &OwnedFd, path: &str) -> Option<Vec<u8>> {
    let prepare = |shared: &mut Shared| {
        let bytes = path.as_bytes();
        shared.bytes()[..bytes.len()].copy_from_slice(bytes);
        Request::InRoot { path: bytes.len() }
    };
    let mut read = Vec::new();
    match ask(of, prepare, Some(directory.as_fd()), |bytes| read = bytes.to_vec()) {
        Some(answer) => answer.ok().map(|_| read),
        None => super::root::read(directory, path, MAX_BYTES as u64),
    }
}

/// A file of `/proc` whose reading may wait for others; read by a helper.
pub(super) struct Patient {
    of: Process,
    file: File,
}

impl Patient {
    pub fn new(of: Process, file: File) -> Self {
        Self { of, file }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_file(self.of, &self.file, None, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_answers_slowly_is_left_alone_when_it_took_too_long_in_all() {
        let slow = (u32::MAX, 1);
        for _ in 0..100 {
            note_time(slow, Duration::from_millis(999));
        }
        note_time(slow, Duration::from_secs(29));
        assert!(!is_silent(slow), "neither what is fast counts, nor is it too much");
        note_time(slow, Duration::from_secs(1));
        assert!(is_silent(slow) && !is_silent((u32::MAX, 2)));
    }
}
