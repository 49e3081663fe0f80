//! An input, read as numbers: zeros where it has ended.

/// What is left of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, fewer at the end.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(n.min(self.0.len()));
        self.0 = later;
        now
    }

    /// The next number of so many bytes.
    pub fn number(&mut self, bytes: usize) -> u64 {
        self.bytes(bytes).iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
    }

    /// The next number, as one below `end`, which is not 0.
    pub fn below(&mut self, bytes: usize, end: usize) -> usize {
        (self.number(bytes) % end as u64) as usize
    }
}
