//! What gotrace and a helper say to each other: a request by a socket, with a file where it is about one; pieces, a path
//! and bytes by memory that both have.

use std::{io, os::fd::BorrowedFd, ptr::NonNull, sync::atomic::AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::memory::Remote;

/// Shared memory: progress, the pieces that are wanted, the bytes.
pub const PIECES_AT: usize = 64;
pub const BYTES_AT: usize = PIECES_AT + MAX_PIECES * size_of::<Remote>();
pub const MAX_BYTES: usize = 1 << 20;
pub const SHARED: usize = BYTES_AT + MAX_BYTES;
/// Pieces of one request; the kernel allows `UIO_MAXIOV`.
pub const MAX_PIECES: usize = 1024;
/// What a helper is asked for.
#[derive(Clone, Copy)]
pub enum Request {
    /// Pieces of this process's memory.
    Memory { pid: u32, pieces: usize },
    /// Bytes of the file that comes with it.
    File { offset: Option<u64>, len: usize },
    /// Bytes of the file that comes with it, which is to be opened for that.
    Served { offset: u64, len: usize },
    /// The type of the file system that the file which comes with it is on.
    FileSystem,
    /// The file at the path of so many bytes, in the root of the process whose `/proc` directory comes with it.
    InRoot { path: usize },
}

impl Request {
    pub const LEN: usize = 24;

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (kind, pid, count, offset) = match self {
            Self::Memory { pid, pieces } => (0_u32, pid, pieces, 0),
            Self::File { offset: Some(offset), len } => (1, 0, len, offset),
            Self::File { offset: None, len } => (2, 0, len, 0),
            Self::Served { offset, len } => (3, 0, len, offset),
            Self::FileSystem => (4, 0, 0, 0),
            Self::InRoot { path } => (5, 0, path, 0),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&pid.to_ne_bytes());
        bytes[8..16].copy_from_slice(&(count as u64).to_ne_bytes());
        bytes[16..].copy_from_slice(&offset.to_ne_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let offset = u64::from_ne_bytes(rest.try_into().ok()?);
        let count = usize::try_from(u64::from_ne_bytes(*count)).ok()?;
        Some(match u32::from_ne_bytes(*kind) {
            0 => Self::Memory { pid: u32::from_ne_bytes(*pid), pieces: count.min(MAX_PIECES) },
            1 => Self::File { offset: Some(offset), len: count.min(MAX_BYTES) },
            2 => Self::File { offset: None, len: count.min(MAX_BYTES) },
            3 => Self::Served { offset, len: count.min(MAX_BYTES) },
            4 => Self::FileSystem,
            5 => Self::InRoot { path: count.min(MAX_BYTES) },
            _ => return None,
        })
    }
}

/// Memory that gotrace and a helper share.
pub struct Shared(NonNull<u8>);

// SAFETY: it is plain memory, and of the two processes that have it only one uses it at a time, as the messages
// between them say; the counter of progress is atomic.
unsafe impl Send for Shared {}

impl Shared {
    pub fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, which nothing else refers to.
        let address = unsafe { mmap(std::ptr::null_mut(), SHARED, protection, flags, file, 0) }?;
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::other("mapped at 0"))
    }

    pub fn progress(&self) -> &AtomicU64 {
        // SAFETY: within the mapping, whose beginning is aligned to a page, and only ever used as this.
        unsafe { self.0.cast::<AtomicU64>().as_ref() }
    }

    pub fn write_pieces(&mut self, pieces: &[Remote]) {
        let count = pieces.len().min(MAX_PIECES);
        // SAFETY: within the mapping and aligned, as `PIECES_AT` is; the other process does not use it now.
        unsafe {
            let to = self.0.cast::<Remote>().add(PIECES_AT / size_of::<Remote>());
            std::ptr::copy_nonoverlapping(pieces.as_ptr(), to.as_ptr(), count);
        }
    }

    pub fn pieces(&self, count: usize) -> Vec<Remote> {
        // SAFETY: as above; any bytes are a value of `Remote`.
        unsafe {
            let from = self.0.cast::<Remote>().add(PIECES_AT / size_of::<Remote>());
            std::slice::from_raw_parts(from.as_ptr(), count.min(MAX_PIECES)).to_vec()
        }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping; the other process does not use it now.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr().add(BYTES_AT), MAX_BYTES) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: what `map` made, of which no reference lives longer than the borrow of `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), SHARED) };
    }
}
