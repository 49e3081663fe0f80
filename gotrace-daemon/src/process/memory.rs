//! Reading the memory of a process that keeps running. Never writes.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Arc, OnceLock},
};

use rustix::fs::{Mode, OFlags, openat};

use super::{ProcessError, Target, watch::has_ended};

/// The memory of one process. Reads are not atomic: the process runs on meanwhile.
#[derive(Debug)]
pub struct Memory {
    pid: u32,
    uid: u32,
    pidfd: Arc<OwnedFd>,
    directory: Arc<OwnedFd>,
    /// `/proc/PID/mem`, opened when `process_vm_readv` turned out not to be allowed.
    file: OnceLock<File>,
}

impl Memory {
    pub(super) fn new(target: &Target) -> Self {
        Self {
            pid: target.identity.pid,
            uid: target.identity.uid,
            pidfd: Arc::clone(&target.pidfd),
            directory: Arc::clone(&target.directory),
            file: OnceLock::new(),
        }
    }

    /// Fills `buffer` with what is at `address`.
    ///
    /// # Errors
    /// When any of it is not mapped (a partial read is an error), when the process is gone, or when
    /// the kernel refuses both `process_vm_readv` and `/proc/PID/mem`.
    pub fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> Result<(), ProcessError> {
        if self.file.get().is_none() {
            match read_vm(self.pid, address, buffer) {
                // The pid could have been reused only after the end: alive now means alive then.
                Ok(()) if has_ended(&self.pidfd) => return Err(ProcessError::Gone { pid: self.pid }),
                Ok(()) => return Ok(()),
                // A container's filter may allow the file where it forbids the call.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EACCES)) => {}
                Err(e) => return Err(self.error(address, buffer.len(), e)),
            }
        }
        self.file()?.read_exact_at(buffer, address).map_err(|e| self.error(address, buffer.len(), e))
    }

    /// The little-endian word at `address`.
    ///
    /// # Errors
    /// As [`Self::read_exact_at`].
    pub fn read_u64(&self, address: u64) -> Result<u64, ProcessError> {
        let mut bytes = [0; 8];
        self.read_exact_at(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The little-endian half word at `address`.
    ///
    /// # Errors
    /// As [`Self::read_exact_at`].
    pub fn read_u32(&self, address: u64) -> Result<u32, ProcessError> {
        let mut bytes = [0; 4];
        self.read_exact_at(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn file(&self) -> Result<&File, ProcessError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = openat(&*self.directory, "mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
            |e| match e {
                rustix::io::Errno::NOENT => ProcessError::Gone { pid: self.pid },
                e => ProcessError::from_io(
                    self.pid,
                    self.uid,
                    "read its memory (process_vm_readv, /proc/PID/mem)",
                    e.into(),
                ),
            },
        )?;
        Ok(self.file.get_or_init(|| file.into()))
    }

    fn error(&self, address: u64, length: usize, source: io::Error) -> ProcessError {
        if has_ended(&self.pidfd) || source.raw_os_error() == Some(libc::ESRCH) {
            return ProcessError::Gone { pid: self.pid };
        }
        ProcessError::Memory { pid: self.pid, address, length, source }
    }
}

/// One `process_vm_readv` of the whole; a shorter result is `EFAULT`.
fn read_vm(pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    let base = usize::try_from(address).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: buffer.len() };
    // SAFETY: `local` describes `buffer`, which is exclusively borrowed; the kernel checks `remote`,
    // which is an address of the other process and is never dereferenced here.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(read) {
        Ok(n) if n == buffer.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process_both_ways_and_refuses_holes() {
        let target = Target::open(std::process::id()).expect("this process lives");
        let value: u64 = 0x0123_4567_89ab_cdef;
        let address = &raw const value as u64;
        let by_call = target.memory();
        assert_eq!(by_call.read_u64(address).expect("mapped"), value);
        assert!(by_call.file.get().is_none());
        let by_file = target.memory();
        by_file.file().expect("may be opened");
        assert_eq!(by_file.read_u32(address).expect("mapped"), 0x89ab_cdef);
        for memory in [by_call, by_file] {
            for hole in [0, 8, u64::MAX - 64, 0xffff_8000_0000_0000] {
                assert!(
                    matches!(memory.read_u64(hole), Err(ProcessError::Memory { length: 8, .. })),
                    "{hole:#x}"
                );
            }
        }
    }

    #[test]
    fn a_process_that_ended_is_gone_not_unreadable() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let memory = Target::open(child.id()).expect("lives").memory();
        child.kill().expect("ends");
        child.wait().expect("ends");
        assert!(matches!(memory.read_u64(4096), Err(ProcessError::Gone { .. })));
    }
}
