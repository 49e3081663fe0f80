//! The ring buffer's reading end.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    time::Duration,
};

use aya::maps::{Map, MapData, RingBuf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Error;

/// Reads records in the order in which the kernel side reserved them, which is causal: a birth comes
/// before the newborn's first event, a park before its wake, a wake before the run.
pub struct Ring {
    ring: RingBuf<MapData>,
}

impl Ring {
    pub(super) fn new(map: Map) -> Result<Self, Error> {
        let ring = RingBuf::try_from(map).map_err(|_| Error::Object("ring EVENTS".into()))?;
        Ok(Self { ring })
    }

    /// Hands every record that is ready to `f`; returns how many there were, at most `limit`.
    pub fn drain(&mut self, limit: usize, mut f: impl FnMut(&[u8])) -> usize {
        for n in 0..limit {
            match self.ring.next() {
                Some(record) => f(&record),
                None => return n,
            }
        }
        limit
    }

    /// Waits until the kernel side asks to be read (half of the ring is full, or a process executed
    /// another program), one of `others` can be read (a pidfd: that process has ended), or `timeout` is
    /// over. Whether one of `others` can be read.
    ///
    /// # Errors
    /// What poll(2) answers, but for interruptions.
    pub fn wait(&self, timeout: Duration, others: &[BorrowedFd<'_>]) -> io::Result<bool> {
        // SAFETY: the descriptor lives as long as the ring, which is borrowed here.
        let fd = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        let all = std::iter::once(fd.as_fd()).chain(others.iter().copied());
        let mut fds: Vec<_> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => Ok(fds.iter().skip(1).any(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
