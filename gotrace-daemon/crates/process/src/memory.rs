//! Reading the memory of a process that keeps running. Never writes, and asks nobody but the kernel ([`Resident`]).

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
};

use super::{
    ProcessError, Target,
    helper::{self, MAX_PIECES, Process},
    passing::again,
    resident::{Resident, Served},
    target::open_again,
    watch::has_ended,
};

/// A piece of memory to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first address.
    pub address: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// Something that memory can be read from, by several threads: a living process, or one that was saved.
pub trait ReadMemory: Sync {
    /// Reads many pieces at once, one behind the other into `buffer`, which must have the length of all
    /// together. `failed` is cleared, and gets the indices, ascending, of the pieces of which anything was
    /// not readable; what the buffer holds for those means nothing.
    ///
    /// # Errors
    /// When nothing can be read at all: the process is gone, or the kernel refuses.
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError>;

    /// Why what is at `address` is not read though it is mapped; `None` where that is not so.
    fn withheld(&self, _address: u64, _len: usize) -> Option<ProcessError> {
        None
    }

    /// Fills `buffer` with what is at `address`; whether all of it was readable.
    ///
    /// # Errors
    /// As [`ReadMemory::read_pieces`].
    fn read_at(&self, address: u64, buffer: &mut [u8]) -> Result<bool, ProcessError> {
        let mut failed = Vec::new();
        self.read_pieces(&[Piece { address, len: buffer.len() }], buffer, &mut failed)?;
        Ok(failed.is_empty())
    }
}

/// Does [`ReadMemory::read_pieces`] one by one: `read` fills what it is given with what is at an address, and says whether
/// it could.
pub fn read_one_by_one(
    pieces: &[Piece],
    buffer: &mut [u8],
    failed: &mut Vec<usize>,
    mut read: impl FnMut(u64, &mut [u8]) -> bool,
) {
    failed.clear();
    let mut at = 0;
    for (n, piece) in pieces.iter().enumerate() {
        let target = buffer.get_mut(at..at + piece.len).unwrap_or_default();
        if target.len() != piece.len || !read(piece.address, target) {
            failed.push(n);
        }
        at += piece.len;
    }
}

/// The memory of one process. Reads are not atomic: the process runs on meanwhile.
#[derive(Debug)]
pub struct Memory {
    pid: u32,
    started: u64,
    uid: u32,
    pidfd: Arc<OwnedFd>,
    directory: Arc<OwnedFd>,
    /// `/proc/PID/mem`, opened when `process_vm_readv` turned out not to be allowed.
    file: OnceLock<File>,
    resident: Resident,
}

impl Memory {
    pub(super) fn new(target: &Target) -> Self {
        Self {
            pid: target.identity.pid,
            started: target.identity.start_ticks,
            uid: target.identity.uid,
            pidfd: Arc::clone(&target.pidfd),
            directory: Arc::clone(&target.directory),
            file: OnceLock::new(),
            resident: Resident::of(target.process()),
        }
    }

    /// Fills `buffer` with what is at `address`.
    ///
    /// # Errors
    /// When any of it is not mapped (a partial read is an error), or would have to be asked of a file system that need
    /// not answer, when the process is gone, or when the kernel refuses both `process_vm_readv` and `/proc/PID/mem`.
    pub fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> Result<(), ProcessError> {
        if let Some(error) = self.withheld(address, buffer.len()) {
            return Err(error);
        }
        if self.file.get().is_none() {
            let len = buffer.len();
            let pieces = [Remote::new(address, len)];
            match again("memory", || helper::read_memory(self.process(), &pieces, buffer)) {
                // The pid could have been reused only after the end: alive now means alive then.
                Ok(_) if has_ended(&self.pidfd) => return Err(ProcessError::Gone { pid: self.pid }),
                Ok(n) if n == len => return Ok(()),
                Ok(_) => return Err(self.error(address, len, io::Error::from_raw_os_error(libc::EFAULT))),
                // A container's filter may allow the file where it forbids the call.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EACCES)) => {}
                Err(e) => return Err(self.error(address, buffer.len(), e)),
            }
        }
        self.read_by_file(address, buffer).map_err(|e| self.error(address, buffer.len(), e))
    }

    /// The whole of a piece by `/proc/PID/mem`; a shorter one is `EFAULT`.
    fn read_by_file(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = self.file().map_err(io::Error::other)?;
        let mut read = 0;
        while read < buffer.len() {
            let at = address.wrapping_add(read as u64);
            match helper::read_file(self.process(), file, Some(at), &mut buffer[read..])? {
                0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                n => read += n,
            }
        }
        Ok(())
    }

    fn process(&self) -> Process {
        (self.pid, self.started)
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

    fn served(&self) -> Served {
        self.resident.served(&self.directory)
    }

    fn file(&self) -> Result<&File, ProcessError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = open_again(&*self.directory, "mem").map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT) => ProcessError::Gone { pid: self.pid },
            _ => ProcessError::from_memory(
                self.pid,
                self.uid,
                "read its memory (process_vm_readv, /proc/PID/mem)",
                e,
            ),
        })?;
        Ok(self.file.get_or_init(|| file))
    }

    fn error(&self, address: u64, length: usize, source: io::Error) -> ProcessError {
        if has_ended(&self.pidfd) || source.raw_os_error() == Some(libc::ESRCH) {
            return ProcessError::Gone { pid: self.pid };
        }
        ProcessError::Memory { pid: self.pid, address, length, source }
    }
}

impl ReadMemory for Memory {
    fn withheld(&self, address: u64, len: usize) -> Option<ProcessError> {
        if self.served().allows(address, len) {
            return None;
        }
        let source = io::Error::other(
            "the pages are not resident, and belong to a file on FUSE or NFS, whose server need not answer",
        );
        Some(self.error(address, len, source))
    }

    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        failed.clear();
        let served = self.served();
        let allowed = |piece: &Piece| served.allows(piece.address, piece.len);
        let (mut next, mut at) = (0, 0);
        let mut remote: Vec<Remote> = Vec::with_capacity(pieces.len().min(MAX_PIECES));
        while next < pieces.len() && self.file.get().is_none() {
            remote.clear();
            let mut wanted = 0;
            for piece in pieces[next..].iter().take(MAX_PIECES).take_while(|piece| allowed(piece)) {
                remote.push(Remote::new(piece.address, piece.len));
                wanted += piece.len;
            }
            if remote.is_empty() {
                failed.push(next);
                at += pieces[next].len;
                next += 1;
                continue;
            }
            let Some(local) = buffer.get_mut(at..at + wanted) else {
                let source = io::Error::from_raw_os_error(libc::EINVAL);
                return Err(self.error(pieces[next].address, wanted, source));
            };
            match again("memory", || helper::read_memory(self.process(), &remote, local)) {
                Ok(read) => {
                    let mut got = read;
                    let end = next + remote.len();
                    while next < end && got >= pieces[next].len {
                        got -= pieces[next].len;
                        at += pieces[next].len;
                        next += 1;
                    }
                    if next < end {
                        failed.push(next);
                        at += pieces[next].len;
                        next += 1;
                    }
                }
                Err(e) => match e.raw_os_error() {
                    // The first piece is not mapped, or has an address that no process can have.
                    Some(libc::EFAULT | libc::EINVAL | libc::EIO | libc::ENOMEM) => {
                        failed.push(next);
                        at += pieces[next].len;
                        next += 1;
                    }
                    // A container's filter may allow the file where it forbids the call.
                    Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => {
                        self.file()?;
                    }
                    _ => return Err(self.error(pieces[next].address, wanted, e)),
                },
            }
        }
        for (n, piece) in pieces.iter().enumerate().skip(next) {
            let local = buffer.get_mut(at..at + piece.len).unwrap_or_default();
            at += piece.len;
            if local.len() != piece.len || !allowed(piece) {
                failed.push(n);
                continue;
            }
            match self.read_by_file(piece.address, local) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(self.error(piece.address, piece.len, error));
                }
                Err(_) => failed.push(n),
            }
        }
        // The pid could have been reused only after the end: alive now means alive then.
        if has_ended(&self.pidfd) {
            return Err(ProcessError::Gone { pid: self.pid });
        }
        Ok(())
    }
}

/// A piece of another process's memory, as the kernel wants it described: `struct iovec`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Remote(libc::iovec);

impl Remote {
    pub fn new(address: u64, len: usize) -> Self {
        let base = usize::try_from(address).unwrap_or(usize::MAX);
        Self(libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: len })
    }

    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Its first bytes, and what is left of it.
    pub fn split(self, at: usize) -> (Self, Option<Self>) {
        if self.len() <= at {
            return (self, None);
        }
        let address = self.0.iov_base.addr();
        let rest = Self::new(address.saturating_add(at) as u64, self.len() - at);
        (Self::new(address as u64, at), Some(rest))
    }
}

/// One `process_vm_readv` of several pieces into one buffer; the number of bytes read.
pub(super) fn read_vectors(pid: u32, buffer: &mut [u8], remote: &[Remote]) -> io::Result<usize> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `local` describes `buffer`, which is exclusively borrowed; the kernel checks `remote`, which is laid out as
    // `struct iovec` and whose addresses are of the other process and never dereferenced here, and reads as many as it has.
    let read = unsafe {
        libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr().cast(), remote.len() as u64, 0)
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
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
    fn pieces_fail_one_by_one() {
        let target = Target::open(std::process::id()).expect("this process lives");
        let values: Vec<u64> = (0..3000).collect();
        let mut pieces: Vec<_> =
            values.iter().map(|v| Piece { address: &raw const *v as u64, len: 8 }).collect();
        for hole in [0, 7, 1023, 1024, 2999] {
            pieces[hole].address = if hole == 7 { u64::MAX - 4 } else { 16 };
        }
        let by_call = target.memory();
        let by_file = target.memory();
        by_file.file().expect("may be opened");
        for memory in [by_call, by_file] {
            let mut buffer = vec![0; 8 * pieces.len()];
            let mut failed = vec![77];
            memory.read_pieces(&pieces, &mut buffer, &mut failed).expect("alive");
            assert_eq!(failed, [0, 7, 1023, 1024, 2999]);
            for (n, bytes) in buffer.chunks_exact(8).enumerate().filter(|(n, _)| !failed.contains(n)) {
                assert_eq!(u64::from_le_bytes(bytes.try_into().expect("8 bytes")), n as u64);
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
