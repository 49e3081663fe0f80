//! The tables of a program, whole or compressed, with checked reads from both.
//!
//! A node runs dozens of Go programs, whose function tables take a third of each executable. They are asked a few times
//! a second, and always the same few functions: kept compressed in blocks, with the last blocks unpacked, they take a
//! third. Input: bytes. Output: the same bytes, piece by piece; outside of them `None`.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    io::Read as _,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use flate2::{Compression, bufread::DeflateDecoder, write::DeflateEncoder};

use super::bytes::{slice, uvarint_of};

/// Bytes that are compressed together.
const BLOCK: usize = 16 << 10;
/// Blocks that are kept unpacked.
const RECENT: usize = 8;

/// A table: bytes that are all there, or packed.
#[derive(Debug)]
pub(super) enum Table {
    Whole(Box<[u8]>),
    Packed(Packed),
}

impl Table {
    /// To read from.
    pub fn bytes(&self) -> Bytes<'_> {
        match self {
            Self::Whole(bytes) => Bytes::Whole(bytes),
            Self::Packed(packed) => Bytes::Packed(packed),
        }
    }

    /// Bytes of memory that it takes.
    pub fn takes(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Packed(packed) => {
                packed.blocks.iter().map(|b| b.bytes.len() + size_of::<Block>()).sum::<usize>()
                    + RECENT * BLOCK
            }
        }
    }

    /// Compresses what is whole, where that makes it smaller. `searched`: what is looked through again and again, and
    /// stays as it is.
    pub fn pack(&mut self, searched: &Range<usize>) {
        if let Self::Whole(bytes) = self {
            let packed = Self::Packed(Packed::new(bytes, searched));
            if packed.takes() < bytes.len() {
                *self = packed;
            }
        }
    }
}

/// A block, compressed or as it is.
struct Block {
    bytes: Box<[u8]>,
    compressed: bool,
}

/// Compressed bytes.
pub(super) struct Packed {
    blocks: Box<[Block]>,
    length: usize,
    /// The last that were unpacked, the latest first.
    recent: Mutex<VecDeque<(usize, Arc<[u8]>)>>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Packed {
    fn new(bytes: &[u8], searched: &Range<usize>) -> Self {
        let block = |(n, raw): (usize, &[u8])| {
            let begin = n * BLOCK;
            let stays = begin < searched.end && searched.start < begin + raw.len();
            let packed = if stays { None } else { compress(raw).filter(|p| p.len() < raw.len()) };
            Block { compressed: packed.is_some(), bytes: packed.unwrap_or_else(|| raw.to_vec()).into() }
        };
        Self {
            blocks: bytes.chunks(BLOCK).enumerate().map(block).collect(),
            length: bytes.len(),
            recent: Mutex::default(),
        }
    }

    /// A block, unpacked.
    fn block(&self, n: usize) -> Option<Piece<'_>> {
        let block = self.blocks.get(n)?;
        if !block.compressed {
            return Some(Piece::There(&block.bytes));
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = recent.iter().position(|(of, _)| *of == n) {
            let (_, bytes) = recent.get(at)?;
            let bytes = Arc::clone(bytes);
            // The latest stays where it is: most reads are of one block.
            if at > 0 {
                let found = recent.remove(at)?;
                recent.push_front(found);
            }
            return Some(Piece::Unpacked(bytes));
        }
        let mut bytes = Vec::with_capacity(BLOCK);
        DeflateDecoder::new(&*block.bytes).take(BLOCK as u64).read_to_end(&mut bytes).ok()?;
        let bytes: Arc<[u8]> = bytes.into();
        recent.truncate(RECENT - 1);
        recent.push_front((n, Arc::clone(&bytes)));
        Some(Piece::Unpacked(bytes))
    }

    fn copy_to(&self, mut at: usize, out: &mut [u8]) -> Option<()> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let block = self.block(at / BLOCK)?;
            let from = block.bytes().get(at % BLOCK..).filter(|from| !from.is_empty())?;
            let count = from.len().min(rest.len());
            rest.get_mut(..count)?.copy_from_slice(from.get(..count)?);
            (done, at) = (done + count, at + count);
        }
        Some(())
    }
}

fn compress(raw: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(BLOCK), Compression::fast());
    encoder.write_all(raw).ok()?;
    encoder.finish().ok()
}

/// Consecutive bytes.
enum Piece<'a> {
    There(&'a [u8]),
    Unpacked(Arc<[u8]>),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::There(bytes) => bytes,
            Self::Unpacked(bytes) => bytes,
        }
    }
}

/// Bytes to read from. Each read gives `None` outside of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bytes<'a> {
    Whole(&'a [u8]),
    Packed(&'a Packed),
}

impl<'a> Bytes<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Packed(packed) => packed.length,
        }
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        match self {
            Self::Whole(bytes) => bytes.get(at..)?.first_chunk().copied(),
            Self::Packed(packed) => {
                let mut array = [0; N];
                packed.copy_to(at, &mut array).map(|()| array)
            }
        }
    }

    /// The byte at an offset.
    pub fn u8_at(self, at: usize) -> Option<u8> {
        self.array(at).map(|[byte]| byte)
    }

    /// The 32-bit value at an offset.
    pub fn u32_at(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// The 64-bit value at an offset.
    pub fn u64_at(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// `len` bytes from an offset.
    pub fn slice(self, at: usize, len: usize) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Whole(bytes) => slice(bytes, at, len).map(Cow::Borrowed),
            Self::Packed(packed) => {
                if at.checked_add(len)? > packed.length {
                    return None;
                }
                let mut copy = vec![0; len];
                packed.copy_to(at, &mut copy).map(|()| Cow::Owned(copy))
            }
        }
    }

    /// The bytes from an offset to the next zero byte, which must exist before `end`.
    pub fn cstr(self, at: usize, end: usize) -> Option<Cow<'a, [u8]>> {
        let end = end.min(self.len());
        match self {
            Self::Whole(bytes) => {
                let rest = bytes.get(at..end)?;
                rest.get(..rest.iter().position(|&b| b == 0)?).map(Cow::Borrowed)
            }
            Self::Packed(packed) => {
                let (mut at, mut text) = (at, Vec::new());
                while at < end {
                    let block = packed.block(at / BLOCK)?;
                    let piece = block.bytes().get(at % BLOCK..)?;
                    let piece = piece.get(..piece.len().min(end - at)).filter(|piece| !piece.is_empty())?;
                    if let Some(zero) = piece.iter().position(|&b| b == 0) {
                        text.extend_from_slice(piece.get(..zero)?);
                        return Some(Cow::Owned(text));
                    }
                    text.extend_from_slice(piece);
                    at += piece.len();
                }
                None
            }
        }
    }

    /// To read byte by byte from an offset.
    pub fn from(self, at: usize) -> Cursor<'a> {
        Cursor { bytes: self, at, piece: Piece::There(&[]), begin: 0 }
    }
}

/// Reads byte by byte.
pub(super) struct Cursor<'a> {
    bytes: Bytes<'a>,
    at: usize,
    piece: Piece<'a>,
    /// Where the piece begins.
    begin: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let in_piece = self.at.checked_sub(self.begin).and_then(|at| self.piece.bytes().get(at).copied());
        let byte = match in_piece {
            Some(byte) => byte,
            None => {
                (self.piece, self.begin) = match self.bytes {
                    Bytes::Whole(bytes) => (Piece::There(bytes), 0),
                    Bytes::Packed(packed) => (packed.block(self.at / BLOCK)?, self.at / BLOCK * BLOCK),
                };
                *self.piece.bytes().get(self.at - self.begin)?
            }
        };
        self.at += 1;
        Some(byte)
    }

    /// An unsigned varint of at most 32 bits, as Go's tables use.
    pub fn uvarint(&mut self) -> Option<u32> {
        uvarint_of(|| self.byte())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three blocks and a half, of which the second does not get smaller.
    fn table() -> Vec<u8> {
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        (0..3 * BLOCK + BLOCK / 2).map(|i| if i / BLOCK == 1 { random() } else { (i / 300) as u8 }).collect()
    }

    #[test]
    fn packed_bytes_are_the_same() {
        let whole = table();
        let packed = Packed::new(&whole, &(2 * BLOCK..2 * BLOCK + 8));
        let compressed: Vec<bool> = packed.blocks.iter().map(|b| b.compressed).collect();
        assert_eq!(compressed, [true, false, false, true]);
        let (a, b) = (Bytes::Whole(&whole), Bytes::Packed(&packed));
        assert_eq!(a.len(), b.len());
        let places =
            (0..whole.len()).step_by(97).chain(BLOCK - 9..BLOCK + 9).chain(whole.len() - 9..whole.len() + 9);
        for at in places.chain([usize::MAX, usize::MAX - 3]) {
            assert_eq!(
                (a.u8_at(at), a.u32_at(at), a.u64_at(at)),
                (b.u8_at(at), b.u32_at(at), b.u64_at(at)),
                "{at}"
            );
            for len in [0, 1, 700, BLOCK + 1, 3 * BLOCK, usize::MAX] {
                // Of nothing behind the end the whole has nothing, and the packed nothing either.
                assert_eq!(a.slice(at, len), b.slice(at, len), "{at} {len}");
            }
            for end in [at.saturating_add(5), at.saturating_add(BLOCK + 5), usize::MAX] {
                assert_eq!(a.cstr(at, end), b.cstr(at, end), "{at} {end}");
            }
            let numbers = |bytes: Bytes<'_>| {
                let mut cursor = bytes.from(at);
                (0..40).map(|_| cursor.uvarint()).collect::<Vec<_>>()
            };
            assert_eq!(numbers(a), numbers(b), "{at}");
        }
    }

    #[test]
    fn what_does_not_get_smaller_stays_whole() {
        let mut small = Table::Whole(vec![0; BLOCK].into());
        small.pack(&(0..0));
        assert!(matches!(small, Table::Whole(_)));
        let mut large = Table::Whole(vec![7; 64 * BLOCK].into());
        large.pack(&(0..0));
        assert!(matches!(large, Table::Packed(_)));
        assert!(large.takes() < 64 * BLOCK / 3, "{}", large.takes());
    }
}
