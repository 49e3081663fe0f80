//! A file system whose server takes its time: it lists one file, lets it be opened and mapped, and answers no read of it
//! until it is let go of; or it has a program for a file, and answers everything until it is told to be silent.
//!
//! Speaks FUSE (include/uapi/linux/fuse.h) over `/dev/fuse` itself, in a mount that only this machine's root sees. Input:
//! a directory. Output: a mount, which goes when it is dropped. Errors: what mount(2) answers.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};

/// Bytes of a file that is never read.
const SIZE: usize = 1 << 16;
const FILE: u64 = 2;

/// Requests, by number.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INTERRUPT: u32 = 36;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;

/// The mount.
#[derive(Debug)]
pub struct Served {
    at: PathBuf,
    silent: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    /// Mounts one that answers no read.
    ///
    /// # Errors
    /// What the system answers.
    pub fn mute(at: &Path) -> Result<Self> {
        Self::mount(at, None)
    }

    /// Mounts one with this content for its file, which may be run.
    ///
    /// # Errors
    /// What the system answers.
    pub fn program(at: &Path, content: Vec<u8>) -> Result<Self> {
        Self::mount(at, Some(content))
    }

    /// From now on it answers nothing.
    pub fn be_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    fn mount(at: &Path, content: Option<Vec<u8>>) -> Result<Self> {
        let device =
            OpenOptions::new().read(true).write(true).open("/dev/fuse").context("opening /dev/fuse")?;
        let target = CString::new(at.as_os_str().as_encoded_bytes())?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options)?;
        // SAFETY: the pointers are of strings that end with a zero byte and live until mount returns.
        let mounted = unsafe {
            let (source, kind) = (c"silent".as_ptr(), c"fuse.silent".as_ptr());
            let flags = libc::MS_NOSUID | libc::MS_NODEV;
            libc::mount(source, target.as_ptr(), kind, flags, options.as_ptr().cast())
        };
        ensure!(mounted == 0, "mounting on {}: {}", at.display(), std::io::Error::last_os_error());
        let silent = Arc::<AtomicBool>::default();
        let is_silent = Arc::clone(&silent);
        let thread = thread::spawn(move || serve(device, content.as_deref(), &is_silent));
        Ok(Self { at: at.to_owned(), silent, thread: Some(thread) })
    }

    /// Its only file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.at.join("file")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let Ok(target) = CString::new(self.at.as_os_str().as_encoded_bytes()) else { return };
        // SAFETY: the string lives. Whoever waits for an answer is woken with an error.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE) };
        // SAFETY: as above.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        // The server ends with its last mount, when the last mapping is gone.
        drop(self.thread.take());
    }
}

fn serve(mut device: File, content: Option<&[u8]>, silent: &AtomicBool) {
    let size = content.map_or(SIZE, <[u8]>::len) as u64;
    let mut request = vec![0; 1 << 20];
    while let Ok(length) = device.read(&mut request) {
        let Some(head) = request.get(..40.min(length)).filter(|head| head.len() == 40) else { break };
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap_or_default());
        let (code, unique, node) = (word(4), long(8), long(16));
        if silent.load(Ordering::Relaxed) {
            continue;
        }
        let answer = match (code, content) {
            // Nothing is answered to these, nor to a read of what has no content.
            (FORGET | INTERRUPT, _) | (READ, None) => continue,
            (READ, Some(content)) => {
                let asked = |at: usize| {
                    request
                        .get(at..at + 4)
                        .map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap_or_default()))
                };
                let from =
                    usize::try_from(u64::from(asked(48)) | u64::from(asked(52)) << 32).unwrap_or(usize::MAX);
                let rest = content.get(from..).unwrap_or_default();
                rest[..rest.len().min(asked(56) as usize)].to_vec()
            }
            // Version 7.31, and buffers as large as may be.
            (INIT, _) => [7u32, 31, 1 << 20, 0, 0, 1 << 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
                .map(u32::to_ne_bytes)
                .concat(),
            (LOOKUP, _) => {
                let valid = [FILE, 1, 3600, 3600, 0].map(u64::to_ne_bytes).concat();
                [valid, attributes(FILE, size)].concat()
            }
            (GETATTR, _) => [[3600u64, 0].map(u64::to_ne_bytes).concat(), attributes(node, size)].concat(),
            (OPEN | OPENDIR, _) => [1u64, 0].map(u64::to_ne_bytes).concat(),
            _ => {
                let refused = [16u32.to_ne_bytes().to_vec(), (-libc::ENOSYS).to_ne_bytes().to_vec()].concat();
                let _ = device.write_all(&[refused, unique.to_ne_bytes().to_vec()].concat());
                continue;
            }
        };
        let length = u32::try_from(16 + answer.len()).unwrap_or(u32::MAX);
        let head =
            [length.to_ne_bytes().to_vec(), 0u32.to_ne_bytes().to_vec(), unique.to_ne_bytes().to_vec()];
        let _ = device.write_all(&[head.concat(), answer].concat());
    }
}

/// `struct fuse_attr`.
fn attributes(node: u64, of_file: u64) -> Vec<u8> {
    let (mode, size) = if node == FILE { (0o100_755u32, of_file) } else { (0o040_755, 4096) };
    let longs = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let words = [0u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
    [longs, words].concat()
}
