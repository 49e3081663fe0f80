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
    /// How much it holds.
    bytes: usize,
    kept: Kept,
}

impl Ring {
    pub(super) fn new(map: Map, bytes: usize) -> Result<Self, Error> {
        let ring = RingBuf::try_from(map).map_err(|_| Error::Object("ring EVENTS".into()))?;
        Ok(Self { ring, bytes, kept: Kept::default() })
    }

    /// Takes records out of the ring, so that there is room for more, and keeps them for the next [`Self::drain`]: for
    /// whoever is busy for long with something else. What does not fit stays in the ring, and so does what comes meanwhile,
    /// beyond as much as the ring holds: programs may be faster than this.
    pub fn keep(&mut self) {
        let mut taken = 0;
        while taken < self.bytes && self.kept.has_room() {
            let Some(record) = self.ring.next() else { return };
            taken += record.len();
            self.kept.push(&record);
        }
    }

    /// Hands every record that is ready to `f`; returns how many there were, at most `limit`.
    pub fn drain(&mut self, limit: usize, mut f: impl FnMut(&[u8])) -> usize {
        let kept = self.kept.drain(limit, &mut f);
        for n in kept..limit {
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
        let timeout = if self.kept.is_empty() { timeout } else { Duration::ZERO };
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

/// Bytes of records that are kept; the last one may go beyond.
const MOST_KEPT: usize = 32 << 20;

/// Records that were taken out of the ring, in their order. Each is its length in bytes, and as many words as hold it, so
/// that it is aligned as it was there.
#[derive(Debug, Default)]
struct Kept {
    words: Vec<u64>,
    /// Where the next one begins.
    next: usize,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.next == self.words.len()
    }

    fn has_room(&self) -> bool {
        self.words.len() < MOST_KEPT / size_of::<u64>()
    }

    fn push(&mut self, record: &[u8]) {
        self.words.push(record.len() as u64);
        let whole = record.chunks(size_of::<u64>()).map(|chunk| {
            let mut word = [0; size_of::<u64>()];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        self.words.extend(whole);
    }

    /// Hands over at most so many, and says how many there were. Without any left, their memory is given back.
    fn drain(&mut self, limit: usize, f: &mut impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit && !self.is_empty() {
            let bytes = self.words[self.next] as usize;
            let words = bytes.div_ceil(size_of::<u64>());
            let record = &self.words[self.next + 1..][..words];
            self.next += 1 + words;
            count += 1;
            // SAFETY: any bytes of a slice of words are bytes; there are as many of them.
            f(unsafe { std::slice::from_raw_parts(record.as_ptr().cast(), bytes) });
        }
        if self.is_empty() {
            *self = Self::default();
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_out_in_its_order_and_as_it_was() {
        let mut kept = Kept::default();
        let records: Vec<Vec<u8>> = (0..40).map(|n| (0..n).collect()).collect();
        records.iter().for_each(|record| kept.push(record));
        let mut out = Vec::new();
        let mut take = |bytes: &[u8]| {
            assert_eq!(bytes.as_ptr() as usize % align_of::<u64>(), 0);
            out.push(bytes.to_vec());
        };
        assert_eq!(kept.drain(7, &mut take), 7);
        assert!(!kept.is_empty());
        assert_eq!(kept.drain(usize::MAX, &mut take), 33);
        assert!(kept.is_empty() && kept.words.capacity() == 0);
        assert_eq!(kept.drain(usize::MAX, &mut take), 0);
        assert_eq!(out, records);
    }

    #[test]
    fn it_is_bounded() {
        let mut kept = Kept::default();
        let record = [7; 1 << 16];
        let mut n = 0;
        while kept.has_room() {
            kept.push(&record);
            n += 1;
        }
        assert!((MOST_KEPT / record.len() - 1..=MOST_KEPT / record.len()).contains(&n), "{n}");
    }
}
