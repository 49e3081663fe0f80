//! Reading no faster than wanted: a wrapper of memory that rests when it has read too much.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gotrace_process::{Piece, ProcessError, ReadMemory};

/// What may be read at once after a rest.
const BURST: Duration = Duration::from_millis(20);
/// Longest single rest; what is owed beyond it is owed on.
const LONGEST: Duration = Duration::from_secs(1);

/// Memory that is read at a bounded rate, by all threads together.
pub struct Throttled<'a> {
    inner: &'a dyn ReadMemory,
    /// `None` for as fast as can be.
    bytes_per_second: Option<u64>,
    /// When what was read so far is paid for.
    free_at: Mutex<Instant>,
}

impl<'a> Throttled<'a> {
    /// Reads through to another memory.
    #[must_use]
    pub fn new(inner: &'a dyn ReadMemory, bytes_per_second: Option<u64>) -> Self {
        Self { inner, bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }
}

impl ReadMemory for Throttled<'_> {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        let result = self.inner.read_pieces(pieces, buffer, failed);
        if let Some(rate) = self.bytes_per_second {
            let cost = Duration::from_secs_f64(buffer.len() as f64 / rate.max(1) as f64);
            let now = Instant::now();
            let rest = {
                let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
                *free_at = (*free_at).max(now) + cost;
                free_at.saturating_duration_since(now)
            };
            if rest > BURST {
                thread::sleep(rest.min(LONGEST));
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeros;

    impl ReadMemory for Zeros {
        fn read_pieces(
            &self,
            _: &[Piece],
            _: &mut [u8],
            failed: &mut Vec<usize>,
        ) -> Result<(), ProcessError> {
            failed.clear();
            Ok(())
        }
    }

    #[test]
    fn a_rate_is_kept() {
        let slow = Throttled::new(&Zeros, Some(10 << 20));
        let begin = Instant::now();
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..3 {
            slow.read_at(0, &mut buffer).expect("reads");
        }
        assert!(begin.elapsed() >= Duration::from_millis(250), "{:?}", begin.elapsed());
    }
}
