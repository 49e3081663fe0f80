//! Keeps an executable from being changed while probes are in it.
//!
//! A breakpoint that the kernel puts into a file's pages is right for one content only. So nothing here is named by
//! a path: the file is the descriptor that was opened (and parsed), and while probes are in it its content cannot
//! change: it cannot be written at all (a read-only mount), or a read lease on it says when somebody is about to
//! write ([`Guard`]). ETXTBSY does not do that: between two programs nothing holds it, and some kernels lack it.
//!
//! Refuses ([`Unguarded`]) files that a user process or another machine serves: to put a probe in place the kernel
//! reads the file's page under a lock that every fork of the node needs, and such a server need not answer.
//!
//! Input: an [`Executable`]. Output: a [`Guard`], which the probes own.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::event::{EventfdFlags, eventfd};

use super::{
    executable::{Executable, by_descriptor},
    passing::again,
    target::read_own,
};

/// Why no probe may be put into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unguarded {
    /// It lies on a file system whose server need not answer.
    Served {
        /// The type of the file system.
        by: String,
    },
    /// It can be written, and a read lease is not to be had.
    NoLease {
        /// Why not.
        why: String,
        /// Whether it is for want of CAP_LEASE.
        permission: bool,
    },
    /// It cannot be looked at.
    Failed {
        /// What the system said.
        why: String,
    },
}

impl fmt::Display for Unguarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served { by } => write!(
                f,
                "its executable is on {by}, where a server that hangs would block every fork on this host"
            ),
            Self::NoLease { why, .. } => {
                write!(
                    f,
                    "its executable could be modified while it has probes: cannot take a read lease on it ({why})"
                )
            }
            Self::Failed { why } => write!(f, "cannot read its executable: {why}"),
        }
    }
}

/// Keeps a file as it is while probes are in it. Dropping it lets a writer that waits go on.
#[derive(Debug)]
pub struct Guard {
    /// An open file description of its own, which the lease belongs to.
    file: File,
    leased: bool,
}

impl Guard {
    /// Takes a read lease on the file, unless it cannot be written.
    ///
    /// # Errors
    /// See [`Unguarded`].
    pub fn new(file: &Executable) -> Result<Self, Unguarded> {
        let failed = |e: io::Error| Unguarded::Failed { why: e.to_string() };
        if let Some(by) = file.served_by().map_err(failed)? {
            return Err(Unguarded::Served { by: by.to_owned() });
        }
        let file = file.open().map_err(failed)?;
        match lease(&file) {
            Ok(()) => Ok(Self { file, leased: true }),
            Err(_) if is_read_only(&file) => Ok(Self { file, leased: false }),
            Err(error) => {
                let permission = matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM));
                let why = match error.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => "requires CAP_LEASE".into(),
                    Some(libc::EAGAIN) => "the file is open for writing".into(),
                    Some(libc::EINVAL) => "not supported by its file system".into(),
                    _ => error.to_string(),
                };
                Err(Unguarded::NoLease { why, permission })
            }
        }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the kernel is to attach to: the file, whatever its name means by now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        by_descriptor(&self.file)
    }

    /// Whether it is a lease that keeps the file; else it cannot be written at all.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.leased
    }

    /// Whether somebody waits to write the file: the probes are to come off and the guard to be dropped.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        if !self.leased {
            return false;
        }
        // SAFETY: no pointer is passed, and the descriptor is open.
        let lease = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) };
        lease != libc::F_RDLCK
    }
}

/// Not in libc for every target; the same on all (include/uapi/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;
/// The kernel breaks a lease by force after this time; with less there would be none to take probes off.
const LEAST_BREAK_SECONDS: u64 = 5;

/// Takes a read lease, of which a break is told by [`take_notice`].
fn lease(file: &File) -> io::Result<()> {
    let Notice { signal, .. } = notice()?;
    let break_time = read_own("/proc/sys/fs/lease-break-time");
    if break_time.trim().parse().is_ok_and(|seconds: u64| seconds < LEAST_BREAK_SECONDS) {
        return Err(io::Error::other(format!("fs.lease-break-time is below {LEAST_BREAK_SECONDS} s")));
    }
    let fd = file.as_raw_fd();
    // SAFETY: no pointer is passed, and the descriptor is open.
    let set = |command, argument: libc::c_int| match unsafe { libc::fcntl(fd, command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // First: the signal that is sent without this ends a process.
    set(F_SETSIG, *signal)?;
    set(libc::F_SETLEASE, libc::F_RDLCK)
}

/// How breaks of leases are told.
struct Notice {
    signal: libc::c_int,
    event: OwnedFd,
}

static BROKEN: AtomicBool = AtomicBool::new(false);

fn notice() -> io::Result<&'static Notice> {
    static NOTICE: Mutex<Option<&Notice>> = Mutex::new(None);
    // A failure is not kept: another time it may go.
    let mut kept = NOTICE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(notice) = *kept {
        return Ok(notice);
    }
    let event =
        again("breaks of leases", || Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))?;
    let write = event.as_raw_fd();
    // One that neither libc nor Go nor a common library takes.
    let signal = libc::SIGRTMIN() + 5;
    let told = move || {
        BROKEN.store(true, Ordering::Release);
        let one = 1u64.to_ne_bytes();
        // SAFETY: write(2) may be called in a handler; the descriptor is never closed, as nothing drops what is leaked
        // below. A counter that is full is readable, which is what is wanted.
        let _ = unsafe { libc::write(write, one.as_ptr().cast(), one.len()) };
    };
    // SAFETY: the handler stores to an atomic and calls write(2), both safe in a signal handler. Where it is not taken,
    // it is never called.
    unsafe { signal_hook_registry::register(signal, told)? };
    let notice = &*Box::leak(Box::new(Notice { signal, event }));
    *kept = Some(notice);
    Ok(notice)
}

/// Can be read when a lease is to be broken; `None` where none was ever taken.
#[must_use]
pub fn lease_notice() -> Option<std::os::fd::BorrowedFd<'static>> {
    notice().ok().map(|n| std::os::fd::AsFd::as_fd(&n.event))
}

/// Whether any lease was broken since this was last asked. Costs nothing where none was.
#[must_use]
pub fn take_lease_notice() -> bool {
    if !BROKEN.swap(false, Ordering::AcqRel) {
        return false;
    }
    if let Ok(notice) = notice() {
        // Without a count it is refused.
        let _ = rustix::io::read(&notice.event, &mut [0u8; 8]);
    }
    true
}

fn is_read_only(file: &File) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        os::unix::fs::OpenOptionsExt as _,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn a_writer_is_told_of_and_waits_until_the_guard_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("program");
        fs::write(&path, "content").expect("written");
        let file = Executable::of(File::open(&path).expect("readable"));
        // Children of other tests may have it open until they execute their program.
        let begin = std::time::Instant::now();
        let guard = loop {
            match Guard::new(&file) {
                Ok(guard) => break guard,
                Err(_) if begin.elapsed().as_secs() < 120 => std::thread::yield_now(),
                Err(error) => panic!("no lease: {error:?}"),
            }
        };
        assert!(!guard.is_broken());
        let at_once = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(at_once.expect_err("must wait").raw_os_error(), Some(libc::EWOULDBLOCK));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !guard.is_broken() {
            assert!(Instant::now() < deadline, "nothing was told");
            std::thread::sleep(Duration::from_millis(1));
        }
        let writer = std::thread::spawn(move || OpenOptions::new().write(true).open(path));
        drop(guard);
        writer.join().expect("ends").expect("may write now");
    }

    #[test]
    fn a_file_that_is_open_for_writing_cannot_be_guarded() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reading = Executable::of(File::open(file.path()).expect("readable"));
        let refused = Guard::new(&reading).expect_err("somebody can write");
        assert!(matches!(&refused, Unguarded::NoLease { permission: false, .. }), "{refused}");
    }
}
