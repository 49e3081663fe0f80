//! Passing signals on to the program that `gotrace exec` runs.
//!
//! A terminal sends its signals (Ctrl-C, Ctrl-\, Ctrl-Z, hang-up, a changed size) to the whole
//! foreground process group, in which the program is too: these are not sent a second time. They are
//! told by `si_code`, which is above 0 when the kernel itself sent the signal. A signal that a process
//! sent to gotrace is passed on. gotrace itself ends only when the program has.

use std::{
    fs::File,
    io::{self, Read},
    mem,
    os::fd::{AsFd, IntoRawFd, OwnedFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread::JoinHandle,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, getpid, kill_process, pidfd_send_signal},
};

/// Write end of the pipe that the handler speaks into; -1 when there is no forwarder.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Added to the signal's number when the kernel sent it.
const BY_KERNEL: u8 = 0x80;

const SIGNALS: [Signal; 9] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
    Signal::TSTP,
    Signal::CONT,
];

/// Passes signals on for as long as it lives. One at a time in a process.
#[derive(Debug)]
pub struct Forwarder {
    old: Vec<(i32, libc::sigaction)>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Begins to pass signals on to the process of `pidfd`. A signal that was ignored when gotrace was
    /// started (`nohup`) stays so.
    ///
    /// # Errors
    /// When no pipe or thread can be made, or another forwarder lives.
    pub fn start(pidfd: Arc<OwnedFd>) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        rustix::io::ioctl_fionbio(&read, false)?;
        let write = write.into_raw_fd();
        if PIPE.compare_exchange(-1, write, Ordering::AcqRel, Ordering::Acquire).is_err() {
            close(write);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "signals are already being forwarded"));
        }
        let mut this = Self { old: Vec::new(), thread: None };
        let thread =
            std::thread::Builder::new().name("signals".into()).spawn(move || pass_on(read.into(), &pidfd))?;
        this.thread = Some(thread);
        for signal in SIGNALS {
            let signal = signal.as_raw();
            // SAFETY: sigaction is plain data, for which zero is valid; `handler` has the signature
            // that SA_SIGINFO asks for and calls async-signal-safe functions only.
            unsafe {
                let mut old: libc::sigaction = mem::zeroed();
                if libc::sigaction(signal, ptr::null(), &raw mut old) != 0
                    || old.sa_sigaction == libc::SIG_IGN
                {
                    continue;
                }
                let mut new: libc::sigaction = mem::zeroed();
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handler;
                new.sa_sigaction = handler as usize;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
                libc::sigemptyset(&raw mut new.sa_mask);
                if libc::sigaction(signal, &raw const new, ptr::null_mut()) == 0 {
                    this.old.push((signal, old));
                }
            }
        }
        Ok(this)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        for (signal, old) in self.old.drain(..) {
            // SAFETY: `old` is what sigaction(2) returned for this signal.
            unsafe {
                libc::sigaction(signal, &raw const old, ptr::null_mut());
            }
        }
        let write = PIPE.swap(-1, Ordering::AcqRel);
        if write >= 0 {
            // A handler that is running on another thread may still hold the number. It writes one
            // byte to a descriptor that is gone (EBADF) unless another file takes the number within
            // these microseconds; give it time to finish.
            std::thread::sleep(std::time::Duration::from_millis(1));
            close(write);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let pipe = PIPE.load(Ordering::Acquire);
    if pipe < 0 {
        return;
    }
    // SAFETY: the kernel passes a valid siginfo_t to a handler with SA_SIGINFO. write(2) is
    // async-signal-safe; errno is put back, as the interrupted code may be about to look at it.
    unsafe {
        let by_kernel = !info.is_null() && (*info).si_code > 0;
        let errno = *libc::__errno_location();
        // Signal numbers are below 65.
        let byte = (signal as u8) | if by_kernel { BY_KERNEL } else { 0 };
        libc::write(pipe, (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

fn pass_on(mut pipe: File, pidfd: &OwnedFd) {
    let mut byte = [0];
    while matches!(pipe.read(&mut byte), Ok(1)) {
        let by_kernel = byte[0] & BY_KERNEL != 0;
        let Some(signal) = Signal::from_named_raw(i32::from(byte[0] & !BY_KERNEL)) else { continue };
        if !by_kernel {
            // Fails only when the program has ended, which is noticed elsewhere.
            let _ = pidfd_send_signal(pidfd.as_fd(), signal);
        }
        if signal == Signal::TSTP {
            // The handler has taken the place of stopping.
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }
}

fn close(fd: i32) {
    // SAFETY: called once, with a descriptor that only this module owns.
    unsafe {
        libc::close(fd);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::Target;

    /// One test: the handlers belong to the whole process.
    #[test]
    fn signals_of_processes_are_passed_on_and_dispositions_come_back() {
        let mut child = Command::new("sh")
            .args(["-c", "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.01; done"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().expect("piped")));
        let mut next = || lines.next().expect("a line").expect("readable");
        assert_eq!(next(), "ready");
        let pidfd = Arc::clone(&Target::open(child.id()).expect("lives").pidfd);
        let forwarder = Forwarder::start(Arc::clone(&pidfd)).expect("starts");
        assert!(Forwarder::start(pidfd).is_err());
        kill_process(getpid(), Signal::USR1).expect("sent");
        assert_eq!(next(), "usr1");
        kill_process(getpid(), Signal::TERM).expect("sent");
        assert_eq!(next(), "term");
        assert_eq!(child.wait().expect("ends").code(), Some(5));
        drop(forwarder);
        // SAFETY: sigaction is plain data and only read into.
        let now = unsafe {
            let mut now: libc::sigaction = mem::zeroed();
            libc::sigaction(libc::SIGTERM, ptr::null(), &raw mut now);
            now.sa_sigaction
        };
        assert_eq!(now, libc::SIG_DFL);
    }
}
