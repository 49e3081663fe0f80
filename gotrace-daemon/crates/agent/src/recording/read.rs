//! Reads a recording block by block.
//!
//! Input: bytes from anywhere, of a file that may be cut, altered or made up. Output: blocks whose checksums are right,
//! then an end or an error that says where it stopped. Takes memory for one block.

use std::io::{self, Read};

use flate2::read::DeflateDecoder;

use super::{BLOCK_HEAD, End, Head, MAGIC, MAX_BLOCK, VERSION, kind};
use crate::tracee::Input;

/// Why a recording is read no further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says so.
    #[error("cannot read recording: {0}")]
    Io(#[from] io::Error),
    /// It begins like something else.
    #[error("not a gotrace recording")]
    NotARecording,
    /// A later format.
    #[error("unsupported recording format {found}; this gotrace reads format {VERSION}")]
    Version {
        /// The format.
        found: u32,
    },
    /// It ends within a block, or without the mark of its end.
    #[error("recording truncated at byte {at}: {what}")]
    Cut {
        /// Up to where it is whole.
        at: u64,
        /// What is missing.
        what: &'static str,
    },
    /// What is there is not what was written.
    #[error("recording damaged at byte {at}: {what}")]
    Damaged {
        /// Where the block begins.
        at: u64,
        /// What is wrong.
        what: String,
    },
}

impl ReadError {
    /// Whether what is in front was read, as opposed to a file that is none of gotrace's.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Cut { .. } | Self::Damaged { .. })
    }
}

/// A block.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Inputs, encoded.
    Inputs {
        /// Where in the file it begins.
        at: u64,
        /// Whether the state of all tracees comes first.
        has_state: bool,
        /// The inputs.
        bytes: Vec<u8>,
    },
    /// The recording is complete.
    End(End),
}

/// Reads a recording.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    head: Head,
    at: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn new(mut from: R) -> Result<Self, ReadError> {
        let mut begin = [0; 12];
        let got = fill(&mut from, &mut begin)?;
        let magic = begin.get(..got.min(MAGIC.len())).unwrap_or_default();
        if !MAGIC.starts_with(magic) || magic.is_empty() {
            return Err(ReadError::NotARecording);
        }
        if got < begin.len() {
            return Err(ReadError::Cut { at: 0, what: "the file header is incomplete" });
        }
        let found = word(&begin, 8);
        if found != VERSION {
            return Err(ReadError::Version { found });
        }
        let mut this = Self { from, head: Head::default(), at: begin.len() as u64 };
        let at = this.at;
        match this.block()? {
            Some((kind::HEAD, bytes)) => this.head = json(at, &bytes)?,
            Some(_) => return Err(damaged(at, "the first block is not the header")),
            None => return Err(ReadError::Cut { at, what: "the header is missing" }),
        }
        Ok(this)
    }

    /// What it is of.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The next block; what is of a kind that this version does not know is left out.
    ///
    /// # Errors
    /// [`ReadError::Cut`] when there is none, as the last one is [`Block::End`]; others of [`ReadError`].
    pub fn next_block(&mut self) -> Result<Block, ReadError> {
        loop {
            let at = self.at;
            let Some((kind, bytes)) = self.block()? else {
                let what = "the end marker is missing; gotrace crashed or is still writing";
                return Err(ReadError::Cut { at, what });
            };
            match kind {
                kind::INPUTS => return Ok(Block::Inputs { at, has_state: false, bytes }),
                kind::STATE => return Ok(Block::Inputs { at, has_state: true, bytes }),
                kind::END => return Ok(Block::End(json(at, &bytes)?)),
                _ => {}
            }
        }
    }

    /// The next block's kind, and what is in it; `None` where the file ends.
    fn block(&mut self) -> Result<Option<(u32, Vec<u8>)>, ReadError> {
        let at = self.at;
        let mut head = [0; BLOCK_HEAD];
        match fill(&mut self.from, &mut head)? {
            0 => return Ok(None),
            BLOCK_HEAD => {}
            _ => return Err(ReadError::Cut { at, what: "a block header is incomplete" }),
        }
        let [kind, packed, unpacked, checksum] = [0, 4, 8, 12].map(|offset| word(&head, offset));
        let (packed, unpacked) = (packed as usize, unpacked as usize);
        if packed > MAX_BLOCK || unpacked > MAX_BLOCK {
            return Err(damaged(at, "invalid block length"));
        }
        let mut bytes = vec![0; packed];
        if fill(&mut self.from, &mut bytes)? < packed {
            return Err(ReadError::Cut { at, what: "a block is incomplete" });
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..12]);
        crc.update(&bytes);
        if crc.finalize() != checksum {
            return Err(damaged(at, "wrong block checksum"));
        }
        self.at += (BLOCK_HEAD + packed) as u64;
        let mut inside = Vec::new();
        // One more byte than there may be shows that there are more.
        DeflateDecoder::new(&bytes[..])
            .take(unpacked as u64 + 1)
            .read_to_end(&mut inside)
            .map_err(|error| damaged(at, format!("cannot decompress a block: {error}")))?;
        if inside.len() != unpacked {
            return Err(damaged(at, "wrong uncompressed block length"));
        }
        Ok(Some((kind, inside)))
    }
}

/// The inputs of a block, each with its tracee's number; the block begins at `at`. Ends behind an error.
pub fn inputs(at: u64, bytes: &[u8]) -> impl Iterator<Item = Result<(u32, Input<'_>), ReadError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let decoded = postcard::take_from_bytes(std::mem::take(&mut rest));
        Some(match decoded {
            Ok((input, behind)) => {
                rest = behind;
                Ok(input)
            }
            Err(error) => Err(damaged(at, format!("cannot decode an input: {error}"))),
        })
    })
}

fn json<T: serde::de::DeserializeOwned>(at: u64, bytes: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(at, error.to_string()))
}

pub(super) fn damaged(at: u64, what: impl Into<String>) -> ReadError {
    ReadError::Damaged { at, what: what.into() }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes.get(offset..).and_then(<[u8]>::first_chunk::<4>);
    u32::from_le_bytes(word.copied().unwrap_or_default())
}

/// Reads until the buffer is full or the file ends; how much that was.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match from.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
