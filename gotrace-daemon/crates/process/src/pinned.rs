//! Keeps the memory of a process readable beyond its end, as it stood then.
//!
//! The kernel takes a process's memory away when it has no user any more, and a read of `/proc/PID/mem` is one while
//! it lasts. So one read of a single byte is begun that does not come to its end: where the byte is to go, gotrace has
//! a page of its own that is missing (`userfaultfd(2)`). For as long as that read lasts, other reads of the same
//! descriptor give all of the memory, also when every thread of the process has ended.
//!
//! The process notices nothing. It is not stopped, its end is not held up, and nothing of it is locked: the kernel has
//! copied the byte before it waits (`fs/proc/base.c`, mem_rw). Its memory is given back a little later, when
//! [`PinnedMemory`] is dropped, or gotrace ends however that comes about.
//!
//! Refused where `userfaultfd` is (CAP_SYS_PTRACE; `vm.unprivileged_userfaultfd`; a container's filter), and without
//! permission to read the process's memory.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::{
    Image, Piece, ProcessError, ReadMemory, Watch, memory::read_one_by_one, target::read_relative,
    watch::has_ended,
};

/// Between two tries to read a byte of a program that is just being laid out.
const RETRY: Duration = Duration::from_micros(200);
/// The byte is taken from the beginning of one of so many mappings.
const MAPPINGS: usize = 4;

// linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u32 = 0xc018_aa3f;
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// The memory of one program in one process.
#[derive(Debug)]
pub struct PinnedMemory {
    pid: u32,
    image: Image,
    memory: Arc<File>,
    /// Whoever reads into the page waits until this is closed.
    missing: Option<OwnedFd>,
    _page: Page,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl PinnedMemory {
    /// Pins the memory of the program that is watched. It may be just about to be laid out: the pin holds from a
    /// moment after that on.
    ///
    /// # Errors
    /// What the kernel answers, or [`io::ErrorKind::PermissionDenied`] where its memory may not be read.
    pub fn new(watch: &Watch) -> io::Result<Self> {
        let image = watch.image().ok_or(io::ErrorKind::PermissionDenied)?.clone();
        let memory = Arc::new(image.memory()?.into_file());
        let page = Page::new()?;
        // SAFETY: what it is given to handle is a page that nothing but the reader below looks at.
        let missing = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
        let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
        control(&missing, UFFDIO_API, &mut api)?;
        let to = page.0.as_ptr().expose_provenance();
        let mut register = UffdioRegister {
            start: to as u64,
            len: PAGE as u64,
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        control(&missing, UFFDIO_REGISTER, &mut register)?;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let (memory, directory, pidfd) = (Arc::clone(&memory), watch.directory(), watch.pidfd());
            let stop = Arc::clone(&stop);
            thread::Builder::new().name("gotrace-pin".into()).spawn(move || {
                block_signals();
                while !stop.load(Ordering::Acquire) && !has_ended(&pidfd) {
                    if mappings(&directory).into_iter().any(|address| read_byte(&memory, address, to)) {
                        return;
                    }
                    thread::sleep(RETRY);
                }
            })?
        };
        Ok(Self {
            pid: watch.pid(),
            image,
            memory,
            missing: Some(missing),
            _page: page,
            stop,
            reader: Some(reader),
        })
    }

    /// Whether the memory is still there; `false` where the pin came too late.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.image.is_gone()
    }
}

impl ReadMemory for PinnedMemory {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        read_one_by_one(pieces, buffer, failed, |address, to| self.memory.read_exact_at(to, address).is_ok());
        // Nothing is readable of one whose pin came too late.
        if failed.len() == pieces.len() && !pieces.is_empty() && self.image.is_gone() {
            return Err(ProcessError::Gone { pid: self.pid });
        }
        Ok(())
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The page is an ordinary one from now on, and the read comes to its end.
        self.missing = None;
        if let Some(reader) = self.reader.take() {
            // It cannot panic.
            let _ = reader.join();
        }
    }
}

/// Whole pages on any architecture: up to 64 KiB.
const PAGE: usize = 1 << 16;

/// A page of gotrace's own.
#[derive(Debug)]
struct Page(NonNull<libc::c_void>);

// SAFETY: it is memory that no thread looks at but by system calls.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn new() -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, of which nothing is known to Rust.
        let address = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, and nobody reads into it any more.
        unsafe { libc::munmap(self.0.as_ptr(), PAGE) };
    }
}

fn control<T>(fd: &OwnedFd, request: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: the structure that this request takes, exclusively borrowed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads a byte of a process into the page at `to`; whether there was one, after the page was let go.
fn read_byte(memory: &File, address: u64, to: usize) -> bool {
    let Ok(offset) = libc::off_t::try_from(address) else { return false };
    let to = ptr::with_exposed_provenance_mut(to);
    // SAFETY: the page of a `PinnedMemory`, which lives until this thread has ended.
    unsafe { libc::pread(memory.as_raw_fd(), to, 1, offset) == 1 }
}

/// A handler that ran here would wait for the page as well.
fn block_signals() {
    // SAFETY: sigset_t is plain data, for which zero is a valid value; the call gets a pointer to a live local.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
}

/// Where the first mappings that can be read begin.
fn mappings(directory: &OwnedFd) -> Vec<u64> {
    let text = read_relative(directory, "maps").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let begin = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let readable = rest.starts_with('r');
        u64::from_str_radix(range.split_once('-')?.0, 16).ok().filter(|_| readable)
    };
    text.lines().filter_map(begin).take(MAPPINGS).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
    };

    use super::*;
    use crate::{Target, wait_for_program};

    /// Whether this user may. Root may, on every kernel that gotrace is for.
    fn allowed() -> bool {
        // SAFETY: closed at once, with nothing to handle.
        let allowed = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }.is_ok();
        if !allowed {
            assert!(!rustix::process::geteuid().is_root(), "root is refused userfaultfd");
            crate::not_tested("memory beyond the end of its process");
        }
        allowed
    }

    #[test]
    fn memory_is_readable_beyond_the_end_and_given_back() {
        if !allowed() {
            return;
        }
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat starts");
        wait_for_program(child.id());
        let watch = Target::open(child.id()).and_then(|t| t.watch()).expect("it lives");
        let pinned = PinnedMemory::new(&watch).expect("allowed");
        // The pin must hold before it ends: its memory is told by what it does.
        let (mut input, mut output) =
            (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        input.write_all(b"x").expect("it reads");
        output.read_exact(&mut [0]).expect("it answers");
        let address = *mappings(&watch.directory()).first().expect("a mapping");
        let mut before = [0; 16];
        assert!(pinned.read_at(address, &mut before).expect("alive"));
        while !is_blocked(&pinned) {
            thread::yield_now();
        }
        drop(input);
        assert!(child.wait().expect("it ends by itself").success());
        assert!(watch.has_ended() && pinned.holds());
        let mut after = [0; 16];
        assert!(pinned.read_at(address, &mut after).expect("pinned"));
        assert_eq!(before, after);
        // An address that is none fails alone.
        let pieces = [Piece { address: 16, len: 8 }, Piece { address, len: 16 }];
        let (mut both, mut failed) = ([0; 24], Vec::new());
        pinned.read_pieces(&pieces, &mut both, &mut failed).expect("pinned");
        assert_eq!((failed.as_slice(), &both[8..]), (&[0][..], &before[..]));
        let image = pinned.image.clone();
        drop(pinned);
        assert!(image.is_gone(), "its memory is given back");
    }

    /// Whether the reader waits for the page.
    fn is_blocked(pinned: &PinnedMemory) -> bool {
        let missing = pinned.missing.as_ref().expect("pinned");
        let mut wanted = [libc::pollfd { fd: missing.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        // SAFETY: one live pollfd. (A descriptor that blocks says POLLERR, and never POLLIN.)
        unsafe { libc::fcntl(missing.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        // SAFETY: as above.
        unsafe { libc::poll(wanted.as_mut_ptr(), 1, 0) };
        wanted[0].revents & libc::POLLIN != 0
    }

    #[test]
    fn a_process_that_ended_before_cannot_be_pinned() {
        if !allowed() {
            return;
        }
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        wait_for_program(child.id());
        let watch = Target::open(child.id()).and_then(|t| t.watch()).expect("it lives");
        child.kill().expect("ends");
        child.wait().expect("ends");
        assert_eq!(PinnedMemory::new(&watch).expect_err("there is nothing").kind(), io::ErrorKind::NotFound);
    }
}
