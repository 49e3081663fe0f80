//! Bits that several threads set: one an object.
//!
//! All accesses are in one order that all threads see, with the flags of [`super::mark`] that say where
//! there is something to do: a bit that is set while another thread looks is seen by it, or queued again.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// What is known of 64 objects, next to each other: looking at a pointer asks for most of it.
#[derive(Debug, Default)]
#[repr(align(32))]
pub(super) struct Group {
    /// Reached.
    pub marks: Word,
    /// Reached, and not looked through yet.
    pub open: Word,
    /// Free: not to be reached.
    pub free: Word,
    /// Free, and a word looked like a pointer to it.
    pub doubted: Word,
}

/// 64 bits, of numbers modulo 64.
#[derive(Debug, Default)]
pub(super) struct Word(AtomicU64);

impl Word {
    /// Adds a number; whether it was not there.
    #[inline]
    pub fn set(&self, number: u64) -> bool {
        let bit = 1 << (number % 64);
        self.0.load(SeqCst) & bit == 0 && self.0.fetch_or(bit, SeqCst) & bit == 0
    }

    /// Takes a number out.
    pub fn clear(&self, number: u64) {
        self.0.fetch_and(!(1 << (number % 64)), SeqCst);
    }

    /// Whether a number is there.
    #[inline]
    pub fn has(&self, number: u64) -> bool {
        self.get() & 1 << (number % 64) != 0
    }

    /// All, the lowest in the lowest bit.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(SeqCst)
    }

    /// Takes all out, and gives those that were there.
    pub fn take(&self) -> u64 {
        if self.get() == 0 { 0 } else { self.0.swap(0, SeqCst) }
    }

    /// Takes all out but these.
    pub fn keep(&self, bits: u64) {
        self.0.fetch_and(bits, SeqCst);
    }

    /// Adds several.
    pub fn add(&self, bits: u64) {
        self.0.fetch_or(bits, SeqCst);
    }
}

/// A set of numbers below a bound.
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<Word>);

impl Bits {
    /// An empty set of numbers below `bound`.
    pub fn new(bound: u64) -> Self {
        let words = usize::try_from(bound.div_ceil(64)).unwrap_or(usize::MAX);
        Self((0..words).map(|_| Word::default()).collect())
    }

    /// Adds a number; whether it was not there.
    #[inline]
    pub fn set(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word.set(number))
    }

    /// Whether a number is there.
    pub fn has(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word.has(number))
    }

    /// 64 numbers, the lowest in the lowest bit.
    pub fn word(&self, n: usize) -> u64 {
        self.0.get(n).map_or(0, Word::get)
    }
}
