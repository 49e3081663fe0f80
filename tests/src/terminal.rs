//! gotrace on a terminal: what is sent to it, and what a user sees.
//!
//! What is sent to a terminal is the difference to what it shows, so what a user sees is read off an emulated screen,
//! never out of the bytes.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{fixture::PATIENCE, gotrace::binary};

const ROWS: u16 = 24;
const COLUMNS: u16 = 100;

/// gotrace on a terminal of its own. Ended by its pid when dropped.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    master: File,
    sent: Arc<Mutex<Vec<u8>>>,
    /// Whether nobody looks any more.
    gone: Arc<AtomicBool>,
}

impl OnTerminal {
    /// Starts it with these arguments.
    ///
    /// # Panics
    /// Where there is no terminal or no gotrace; as all that follow, where what is waited for never comes.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// The same with these variables.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let (mut master, mut slave) = (0, 0);
        let size = libc::winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: both descriptors are written by the call; name and settings may be null.
        let result = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                &raw const size,
            )
        };
        assert_eq!(result, 0, "a terminal");
        // Whoever has the master open keeps the terminal from hanging up.
        // SAFETY: no memory is involved; the descriptor has just been made.
        assert_eq!(unsafe { libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC) }, 0);
        // SAFETY: the call has just made these descriptors; nobody else owns them.
        let (master, slave) =
            unsafe { (File::from(OwnedFd::from_raw_fd(master)), File::from(OwnedFd::from_raw_fd(slave))) };
        let mut command = Command::new(binary().expect("built"));
        command.args(arguments).env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
        for set in [Command::stdin, Command::stdout, Command::stderr] {
            set(&mut command, slave.try_clone().expect("a descriptor"));
        }
        // SAFETY: setsid and ioctl may be called between fork and exec, and touch no memory.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("it starts");
        drop((slave, command));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let mut reader = master.try_clone().expect("a descriptor");
        let kept = Arc::clone(&sent);
        let gone = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&gone);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !over.load(Ordering::Relaxed) {
                let mut ready = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one descriptor, which is open, in a live structure.
                if unsafe { libc::poll(&raw mut ready, 1, 20) } == 0 {
                    continue;
                }
                // An error is the end: nobody has the other side open any more.
                let Ok(n @ 1..) = reader.read(&mut bytes) else { return };
                kept.lock().expect("whole").extend_from_slice(&bytes[..n]);
            }
        });
        Self { child, master, sent, gone }
    }

    /// Closes the terminal, as when a connection breaks off, and waits for gotrace's end.
    ///
    /// # Panics
    /// Where it does not come.
    pub fn hang_up(mut self) -> ExitStatus {
        self.gone.store(true, Ordering::Relaxed);
        self.master = File::open("/dev/null").expect("it is there");
        self.end()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Presses keys.
    ///
    /// # Panics
    /// Where the terminal is gone.
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("a key");
    }

    /// Everything sent so far, control sequences and all.
    ///
    /// # Panics
    /// Where the reader has.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.sent.lock().expect("whole")).into_owned()
    }

    /// What a user sees now.
    ///
    /// # Panics
    /// Where the reader has.
    #[must_use]
    pub fn screen(&self) -> String {
        let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
        terminal.process(&self.sent.lock().expect("whole"));
        terminal.screen().contents()
    }

    /// Until `text` is sent.
    pub fn wait_for(&self, text: &str) {
        Self::wait(text, || self.shown());
    }

    /// Until `text` stands on the screen.
    pub fn wait_to_see(&self, text: &str) {
        Self::wait(text, || self.screen());
    }

    fn wait(text: &str, now: impl Fn() -> String) {
        let begin = Instant::now();
        while !now().contains(text) {
            assert!(begin.elapsed() < PATIENCE, "{text:?} never came:\n{}", now());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it does not come.
    pub fn end(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end:\n{}", self.shown());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether lines are edited and echoed, as a shell left it.
    ///
    /// # Panics
    /// Where it is no terminal any more.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        // SAFETY: zeroes are a value of this plain structure, which the call fills.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is a terminal's and open; `settings` is live.
        let result = unsafe { libc::tcgetattr(self.master.as_raw_fd(), &raw mut settings) };
        assert_eq!(result, 0);
        settings.c_lflag & (libc::ICANON | libc::ECHO) == libc::ICANON | libc::ECHO
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
