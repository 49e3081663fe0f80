//! Files of a process, as the process itself would find them by their paths.
//!
//! What a path leads to is chosen by whoever made the process's file system: a container's image may hold a
//! symbolic link to any place. So every component is resolved beneath the process's own root (openat2(2),
//! `RESOLVE_IN_ROOT`), never in gotrace's: an absolute link stays within it, and `/proc`'s magic links lead
//! nowhere. Only regular files are opened; a device, a FIFO or a socket is not, as opening alone can have
//! effects. Input: an open `/proc/PID`, a path, a bound. Output: the bytes, or `None` where there is no such
//! file, it may not be read, or the kernel has no openat2 (before Linux 5.6; some seccomp filters): then
//! nothing is read.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};

use super::passing::again;

/// Opening is tried so often: the kernel gives up where something is renamed or mounted at that moment.
const TRIES: usize = 8;

/// The `/proc` directory of a process.
pub fn process(pid: u32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = format!("/proc/{pid}");
    again(&path, || Ok(openat(CWD, &path, flags, Mode::empty())?)).ok()
}

/// At most the first `limit` bytes of a file in the root of the process whose `/proc` directory this is.
pub fn read(process: impl AsFd, path: &str, limit: u64) -> Option<Vec<u8>> {
    again(path, || read_once(&process, path, limit)).ok().flatten()
}

/// `None` for what is no regular file.
fn read_once(process: impl AsFd, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let place = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(process, "root", place | OFlags::DIRECTORY, Mode::empty())?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = (0..TRIES)
        .map(|_| openat2(&root, path, place, Mode::empty(), within))
        .find(|found| !matches!(found, Err(Errno::AGAIN | Errno::INTR)))
        .unwrap_or(Err(Errno::AGAIN))?;
    // Looked at before it is opened: a watchdog starts to count, and a tape winds back, when they are.
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let read = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(CWD, format!("/proc/self/fd/{}", found.as_raw_fd()), read, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    /// A process that has this directory for its root, and does nothing.
    struct Confined(u32);

    impl Confined {
        fn within(root: &Path) -> Self {
            let path = std::ffi::CString::new(root.as_os_str().as_encoded_bytes()).expect("no zero byte");
            let (told, tell) = rustix::pipe::pipe().expect("a pipe");
            // SAFETY: the child of this process with threads makes system calls alone, and never returns.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: the pointers are of values that live; _exit and pause take none.
                unsafe {
                    if libc::chroot(path.as_ptr()) == 0 && libc::chdir(c"/".as_ptr()) == 0 {
                        libc::write(tell.as_raw_fd(), c"r".as_ptr().cast(), 1);
                        libc::pause();
                    }
                    libc::_exit(1);
                }
            }
            assert!(pid > 0, "it forks");
            drop(tell);
            let confined = Self(pid.unsigned_abs());
            let ready = File::from(told).read(&mut [0]).expect("readable");
            assert_eq!(ready, 1, "it has changed its root");
            confined
        }
    }

    impl Drop for Confined {
        fn drop(&mut self) {
            // SAFETY: a child of this test, which nobody else waits for.
            unsafe {
                libc::kill(self.0.cast_signed(), libc::SIGKILL);
                libc::waitpid(self.0.cast_signed(), std::ptr::null_mut(), 0);
            }
        }
    }

    #[test]
    fn nothing_outside_of_the_root_of_a_process_is_read() {
        if !rustix::process::geteuid().is_root() {
            crate::not_tested("files of a process in another root");
            return;
        }
        let host = tempfile::tempdir().expect("a directory");
        let secret = host.path().join("secret");
        fs::write(&secret, "the host's").expect("written");
        let root = host.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("made");
        let etc = |name: &str| root.join("etc").join(name);
        fs::write(etc("passwd"), "its own").expect("written");
        symlink("/etc/passwd", etc("absolute")).expect("made");
        symlink(&secret, etc("out")).expect("made");
        symlink("../../secret", etc("up")).expect("made");
        symlink(host.path(), etc("directory")).expect("made");
        let magic = format!("/proc/{}/root{}", std::process::id(), secret.display());
        symlink(magic, etc("magic")).expect("made");
        symlink("loop", etc("loop")).expect("made");
        let confined = Confined::within(&root);
        let read = |path: &str| read(process(confined.0).expect("it lives"), path, 1 << 20);
        assert_eq!(read("etc/passwd").as_deref(), Some(&b"its own"[..]));
        assert_eq!(read("etc/absolute").as_deref(), Some(&b"its own"[..]));
        assert_eq!(read("/etc/passwd").as_deref(), Some(&b"its own"[..]));
        for path in ["etc/out", "etc/up", "etc/directory/secret", "etc/magic", "etc/loop", "../secret"] {
            assert_eq!(read(path), None, "{path}");
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_a_bound_holds() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
        let file = directory.path().join("file");
        fs::write(&file, "0123456789").expect("written");
        let this = process(std::process::id()).expect("it lives");
        let read = |path: &Path| read(&this, path.to_str().expect("text"), 4);
        assert_eq!(read(&file).as_deref(), Some(&b"0123"[..]));
        // Neither hangs on what has no writer, nor reads what has no end.
        for path in [&fifo, directory.path(), Path::new("/dev/zero"), Path::new("/proc/self/exe")] {
            assert_eq!(read(path), None, "{}", path.display());
        }
    }
}
