//! Bits that several threads set: one an object.
//!
//! All accesses are in one order that all threads see, with the flags of [`super::mark`] that say where
//! there is something to do: a bit that is set while another thread looks is seen by it, or queued again.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A set of numbers below a bound.
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    /// An empty set of numbers below `bound`.
    pub fn new(bound: u64) -> Self {
        let words = usize::try_from(bound.div_ceil(64)).unwrap_or(usize::MAX);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds a number; whether it was not there.
    #[inline]
    pub fn set(&self, number: u64) -> bool {
        let Some(word) = self.0.get((number / 64) as usize) else { return false };
        let bit = 1 << (number % 64);
        word.load(SeqCst) & bit == 0 && word.fetch_or(bit, SeqCst) & bit == 0
    }

    /// Takes a number out.
    pub fn clear(&self, number: u64) {
        if let Some(word) = self.0.get((number / 64) as usize) {
            word.fetch_and(!(1 << (number % 64)), SeqCst);
        }
    }

    /// Whether a number is there.
    pub fn has(&self, number: u64) -> bool {
        self.word((number / 64) as usize) & 1 << (number % 64) != 0
    }

    /// 64 numbers, the lowest in the lowest bit.
    pub fn word(&self, n: usize) -> u64 {
        self.0.get(n).map_or(0, |w| w.load(SeqCst))
    }

    /// Takes 64 numbers out, and gives those that were there.
    pub fn take(&self, n: usize) -> u64 {
        self.0.get(n).map_or(0, |w| if w.load(SeqCst) == 0 { 0 } else { w.swap(0, SeqCst) })
    }
}
