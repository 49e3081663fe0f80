//! Programs that gotrace starts for its own purposes, and that do not outlive it.
//!
//! Input: a command. Output: a child that ends when it is dropped, and by a signal from the kernel when gotrace ends
//! without that (SIGKILL). The kernel sends it when the thread that started the child ends, so that is to be the main
//! thread.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal},
};

/// Such a child.
#[derive(Debug)]
pub struct Tied(Child);

impl Tied {
    /// Starts it; `signal` is what it gets if gotrace ends first.
    ///
    /// # Errors
    /// The system's.
    pub fn start(command: &mut Command, signal: Signal) -> io::Result<Self> {
        let gotrace = getpid();
        // SAFETY: prctl and getppid may be called between fork and exec, and touch no memory.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(signal))?;
                // Nothing is sent for an end before that.
                if getppid() == Some(gotrace) { Ok(()) } else { Err(Errno::SRCH.into()) }
            });
        }
        command.spawn().map(Self)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        // Fails only where it has ended, which is what is wanted. It was not waited for, so the pid is its own.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _,
        sync::mpsc::channel,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    fn sleep() -> Tied {
        Tied::start(Command::new("sleep").arg("600"), Signal::TERM).expect("it starts")
    }

    fn end_of(tied: &mut Tied) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = tied.ended().expect("ours") {
                return status.signal();
            }
            assert!(begin.elapsed() < Duration::from_secs(120), "it never ends");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_ends_with_what_started_it() {
        let (give, given) = channel();
        let (end, until) = channel::<()>();
        let thread = thread::spawn(move || {
            give.send(sleep()).expect("awaited");
            let _ = until.recv();
        });
        let mut tied = given.recv().expect("started");
        assert!(tied.ended().expect("ours").is_none());
        drop(end);
        thread.join().expect("it ends");
        assert_eq!(end_of(&mut tied), Some(libc::SIGTERM));
    }

    #[test]
    fn it_ends_when_asked_and_when_dropped() {
        let mut tied = sleep();
        tied.terminate();
        assert_eq!(end_of(&mut tied), Some(libc::SIGTERM));
        let tied = sleep();
        let process = std::path::PathBuf::from(format!("/proc/{}", tied.pid()));
        assert!(process.exists());
        drop(tied);
        assert!(!process.exists());
    }
}
