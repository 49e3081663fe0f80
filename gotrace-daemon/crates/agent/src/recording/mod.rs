//! Recordings: everything that reaches tracees, in its order, in a file that is read on any machine, without the
//! program and without rights. A replay ([`replay`]) computes what the run computed.
//!
//! ```text
//! file:   magic, version (u32), blocks
//! block:  kind (u32), length of what follows the head (u32), its length unpacked (u32), CRC-32 of the
//!         three and of what follows (u32); then that, packed (raw deflate)
//! kinds:  1 head: JSON ([`Head`]); first
//!         2 inputs: one after the other the tracee's number and the input, in postcard's encoding
//!         3 the same; the first ones are the state of all tracees: reading may begin here
//!         4 end: JSON ([`End`]); last
//! ```
//!
//! Numbers are little endian. Blocks of other kinds are skipped. A crash loses the block that was being written; what
//! is in front of a place that is cut or altered is read, and the error says where that is ([`ReadError`]). Lengths are
//! bounded ([`MAX_BLOCK`]), so that a made-up file can neither fill the memory nor go on for ever.

mod read;
mod replay;
mod sink;
mod write;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use read::{Block, ReadError, Reader, inputs};
pub use replay::{Listener, Replay, replay};
pub use write::{Limit, Recorder, RecordingError};

/// What a recording begins with. No text file does, and what changes line ends damages it.
const MAGIC: &[u8; 8] = b"\x89GTR\r\n\x1a\n";
/// The version of the format that this is.
pub const VERSION: u32 = 1;
/// Bytes of a block, unpacked and packed.
pub const MAX_BLOCK: usize = 16 << 20;
/// Bytes of a block's head.
const BLOCK_HEAD: usize = 16;

/// Kinds of blocks.
mod kind {
    pub const HEAD: u32 = 1;
    pub const INPUTS: u32 = 2;
    pub const STATE: u32 = 3;
    pub const END: u32 = 4;
}

/// What a recording is of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Head {
    /// The version of gotrace.
    pub gotrace: String,
    /// When it was begun, Unix epoch.
    pub created_unix_nano: u64,
    /// The host's kernel and architecture, as of uname(2).
    pub kernel: String,
    /// See there.
    pub architecture: String,
    /// How it was traced, by the names of flags.
    pub configuration: BTreeMap<String, String>,
    /// How metrics were exported.
    pub metrics: MetricsExport,
}

/// How metrics were exported, where anything was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsExport {
    /// `cumulative`, `delta` or `lowmemory`.
    pub temporality: String,
    /// Time between two reports; `None` for the default.
    pub every_ns: Option<u64>,
    /// Series of one process, and of all.
    pub series: (u64, u64),
}

/// How a recording came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Why nothing more was recorded: `ended`, `max_size`, `signal`, `finding`.
    pub why: String,
}

#[cfg(test)]
mod tests;
