//! A snapshot written down, one file a format.
//!
//! Input: a [`Snapshot`](crate::snapshot::Snapshot), [`Names`](crate::snapshot::Names) for its addresses,
//! and a [`Header`] of what is known of the process. Output: bytes.

pub mod json;

/// What a dump says before the goroutines.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The executable's path, as its own mount namespace has it.
    pub executable: &'a str,
    /// As the binary has it, experiments included.
    pub go_version: &'a str,
}

/// What of a snapshot is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The runtime's own goroutines too.
    pub system: bool,
}
