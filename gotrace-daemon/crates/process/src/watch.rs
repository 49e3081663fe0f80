//! Notice of a process's end (a pidfd, so that a reused pid cannot deceive) and of its executing another program (an
//! [`Image`], which stays that of the program that was running when it was opened).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Image, ProcessError, Target, executable::look, helper::Process, mounts::Device, passing::again,
    target::read_stat,
};

/// What changes when a process executes a program: the file, and where the kernel lays out the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Program {
    device: Device,
    inode: u64,
    /// Field 28 of `/proc/PID/stat`; 0 without permission. Random for each execution, so that
    /// executing the same file again is noticed too.
    stack_start: u64,
    /// Field 48 of `/proc/PID/stat`; 0 without permission.
    arguments_start: u64,
}

/// Watches one process.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    process: Process,
    pidfd: Arc<OwnedFd>,
    directory: Arc<OwnedFd>,
    program: Program,
    /// Of the program that is watched; `None` without permission.
    image: Option<Image>,
}

impl Watch {
    pub(super) fn new(target: &Target) -> Result<Self, ProcessError> {
        let program = program(&target.directory, target.identity.pid)?;
        Ok(Self {
            pid: target.identity.pid,
            process: target.process(),
            pidfd: Arc::clone(&target.pidfd),
            directory: Arc::clone(&target.directory),
            program,
            image: target.image().cloned(),
        })
    }

    /// Whether it has ended (a zombie has).
    #[must_use]
    pub fn has_ended(&self) -> bool {
        has_ended(&self.pidfd)
    }

    /// Waits until it ends, at most `timeout`. Returns whether it has ended. Blocks the thread.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        poll_end(&self.pidfd, timeout)
    }

    /// Returns when it has ended. Must run within a tokio runtime that has I/O enabled.
    ///
    /// # Errors
    /// When the runtime cannot watch another file descriptor.
    pub async fn ended(&self) -> io::Result<()> {
        // SAFETY: the descriptor is borrowed from `self.pidfd`, which lives, open, longer than `fd`.
        let fd = unsafe { AsyncFd::register_with_interest(self.pidfd.as_fd(), Interest::READABLE)? };
        // Never cleared: a pidfd stays readable.
        fd.readable().await?.retain_ready();
        Ok(())
    }

    /// Its pidfd, which can be read when it has ended.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its `/proc` directory.
    pub(super) fn directory(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.directory)
    }

    /// Its pidfd, to be shared.
    pub(super) fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// CPU time of all its threads so far, user and system, in nanoseconds; the kernel tells it in clock
    /// ticks (10 ms). `None` when it is gone.
    #[must_use]
    pub fn cpu_time_ns(&self) -> Option<u64> {
        let stat = read_stat(&self.directory, self.pid).ok()?;
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        (stat.utime + stat.stime).checked_mul(1_000_000_000)?.checked_div(ticks_per_second)
    }

    /// Whether it runs another program than when the watch began, or the same one anew. `false` when
    /// it has ended or is about to, as its memory goes before the end is told: ask [`Self::has_ended`].
    #[must_use]
    pub fn has_executed_another_program(&self) -> bool {
        let gone = self.image.as_ref().is_some_and(Image::is_gone);
        (gone || program(&self.directory, self.pid).is_ok_and(|now| now != self.program)) && !self.is_ending()
    }

    /// Of the program that is watched; `None` without permission.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// Whether it has ended or is about to: its executable is taken away a little before.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.has_ended()
            || matches!(look(&*self.directory, "exe"), Err(e) if e.raw_os_error() == Some(libc::ENOENT))
    }

    /// Where the stack of the program that is watched begins; 0 without permission.
    #[must_use]
    pub fn stack_start(&self) -> u64 {
        self.program.stack_start
    }

    /// Takes the program that runs now as the one to compare with, after its execution was handled.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn accept_program(&mut self) -> Result<(), ProcessError> {
        self.image = Image::open(self.process, &self.directory);
        self.program = program(&self.directory, self.pid)?;
        Ok(())
    }
}

/// Waits until one of these descriptors can be read (a pidfd: that process has ended), at most `timeout`;
/// whether one can. Blocks the thread.
///
/// # Errors
/// What poll(2) answers, but for interruptions.
pub fn wait_for_any(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<bool> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let wait = || match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    };
    again("descriptors", wait)
}

fn program(directory: &OwnedFd, pid: u32) -> Result<Program, ProcessError> {
    let stat = read_stat(directory, pid)?;
    let (exe, _) = look(directory, "exe").map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => ProcessError::Gone { pid },
        _ => ProcessError::from_io(pid, u32::MAX, "stat its executable (/proc/PID/exe)", e),
    })?;
    Ok(Program {
        device: exe.device,
        inode: exe.inode,
        stack_start: stat.stack_start,
        arguments_start: stat.arguments.start,
    })
}

pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    poll_end(pidfd, Duration::ZERO)
}

fn poll_end(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let deadline = std::time::Instant::now().checked_add(timeout);
    loop {
        let left = deadline
            .map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(std::time::Instant::now()));
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        let left_for_kernel = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&left_for_kernel)) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) => {}
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) if left.is_zero() => return false,
            // Nothing that poll(2) can refuse here but memory; the next call may have it.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn sees_the_end_before_and_after_it_is_collected() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let watch = Target::open(child.id()).expect("lives").watch().expect("lives");
        assert!(!watch.has_ended());
        assert!(!watch.wait_timeout(Duration::from_millis(5)));
        child.kill().expect("can be ended");
        assert!(watch.wait_timeout(Duration::from_secs(10)));
        child.wait().expect("ends");
        assert!(watch.has_ended());
        assert!(!watch.has_executed_another_program());
    }

    #[test]
    fn sees_the_end_from_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut child = Command::new("sleep").arg("0.05").spawn().expect("sleep starts");
        let watch = Target::open(child.id()).expect("lives").watch().expect("lives");
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(10), watch.ended())
                .await
                .expect("in time")
                .expect("watched");
        });
        child.wait().expect("ends");
    }

    #[test]
    fn one_that_is_ending_has_not_executed_another_program() {
        for _ in 0..100 {
            let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
            crate::wait_for_program(child.id());
            let watch = Target::open(child.id()).expect("lives").watch().expect("lives");
            child.kill().expect("can be ended");
            // Its memory goes before the end is told.
            while !watch.has_ended() {
                assert!(!watch.has_executed_another_program());
            }
            child.wait().expect("ends");
        }
    }

    #[test]
    fn sees_another_program_and_the_same_one_anew() {
        for next in ["exec sleep 60", "exec sh -c 'echo; read y; :'"] {
            let mut child = Command::new("sh")
                .args(["-c", &format!("read x; {next}")])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("sh starts");
            crate::wait_for_program(child.id());
            let watch = Target::open(child.id()).expect("lives").watch().expect("lives");
            assert!(!watch.has_executed_another_program());
            std::io::Write::write_all(child.stdin.as_mut().expect("piped"), b"go\n").expect("sh reads");
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while !watch.has_executed_another_program() {
                assert!(std::time::Instant::now() < deadline, "{next}");
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().expect("can be ended");
            child.wait().expect("ends");
        }
    }
}
