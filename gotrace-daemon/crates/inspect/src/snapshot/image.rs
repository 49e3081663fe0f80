//! Saved memory: what a snapshot read, so that it can be read again without the process.
//!
//! A file is a gzip stream of: the magic `gotrimg1`; bias, number of regions; for each region, sorted by
//! address, its address and length; then the bytes of all regions one after the other. Numbers are 64-bit,
//! little-endian. An image holds memory of the process and may hold its secrets. Reading refuses files
//! that are not images, regions that overlap, and more than [`MAX_BYTES`].

use std::{
    io::{self, Read, Write},
    sync::{Mutex, PoisonError},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::SnapshotError;
use gotrace_process::{Piece, ProcessError, ReadMemory, read_one_by_one};

const MAGIC: [u8; 8] = *b"gotrimg1";
/// As much as is read of an image, uncompressed.
pub const MAX_BYTES: u64 = 1 << 30;

/// Pieces of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Mapped address less link-time address of the program.
    pub bias: u64,
    /// By address, apart from each other.
    regions: Vec<Region>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    address: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Reads an image from a file's contents.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(file: &[u8]) -> Result<Self, SnapshotError> {
        let wrong = |what: &str| SnapshotError::Image { what: what.to_owned() };
        let mut bytes = Vec::new();
        GzDecoder::new(file)
            .take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|e| SnapshotError::Image { what: format!("it cannot be decompressed: {e}") })?;
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or_else(|| wrong("it does not begin as one"))?;
        let mut number = || {
            let (first, others) = rest.split_first_chunk().ok_or_else(|| wrong("it ends too early"))?;
            rest = others;
            Ok::<_, SnapshotError>(u64::from_le_bytes(*first))
        };
        let bias = number()?;
        let count = number()?;
        let mut regions = Vec::new();
        let mut end = 0;
        for _ in 0..count {
            let (address, len) = (number()?, number()?);
            if address < end {
                return Err(wrong("its regions overlap"));
            }
            end = address.checked_add(len).ok_or_else(|| wrong("a region goes beyond the address space"))?;
            regions.push((address, len));
        }
        let mut image = Self { bias, regions: Vec::new() };
        for (address, len) in regions {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let (bytes, others) = rest.split_at_checked(len).ok_or_else(|| wrong("it ends too early"))?;
            image.regions.push(Region { address, bytes: bytes.to_vec() });
            rest = others;
        }
        Ok(image)
    }

    /// Writes an image as a file has it.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut out = GzEncoder::new(out, Compression::best());
        out.write_all(&MAGIC)?;
        out.write_all(&self.bias.to_le_bytes())?;
        out.write_all(&(self.regions.len() as u64).to_le_bytes())?;
        for region in &self.regions {
            out.write_all(&region.address.to_le_bytes())?;
            out.write_all(&(region.bytes.len() as u64).to_le_bytes())?;
        }
        for region in &self.regions {
            out.write_all(&region.bytes)?;
        }
        out.finish()?.flush()
    }

    /// All of its bytes, for tests that change them.
    pub fn bytes_mut(&mut self) -> impl Iterator<Item = &mut u8> {
        self.regions.iter_mut().flat_map(|r| r.bytes.iter_mut())
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.iter().map(|r| r.bytes.len()).sum()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes over what it holds at an address, for tests. What it does not hold stays away.
    pub fn set(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            let n = self.regions.partition_point(|r| r.address <= at);
            let region = n.checked_sub(1).and_then(|n| self.regions.get_mut(n));
            if let Some(place) = region.and_then(|r| r.bytes.get_mut(usize::try_from(at - r.address).ok()?)) {
                *place = *byte;
            }
        }
    }

    fn at(&self, address: u64, len: usize) -> Option<&[u8]> {
        let n = self.regions.partition_point(|r| r.address <= address).checked_sub(1)?;
        let region = self.regions.get(n)?;
        let offset = usize::try_from(address - region.address).ok()?;
        region.bytes.get(offset..offset.checked_add(len)?)
    }
}

impl ReadMemory for Image {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        read_one_by_one(pieces, buffer, failed, |address, to| {
            self.at(address, to.len()).map(|bytes| to.copy_from_slice(bytes)).is_some()
        });
        Ok(())
    }
}

/// Reads through to another memory, and keeps what was read.
pub struct Recording<'a> {
    inner: &'a dyn ReadMemory,
    read: Mutex<Vec<Region>>,
}

impl<'a> Recording<'a> {
    /// Keeps what is read of this memory.
    #[must_use]
    pub fn new(inner: &'a dyn ReadMemory) -> Self {
        Self { inner, read: Mutex::default() }
    }

    /// What was read; where it was read more than once, what was there at last.
    #[must_use]
    pub fn image(self, bias: u64) -> Image {
        let read = self.read.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut ranges: Vec<(u64, u64)> =
            read.iter().map(|r| (r.address, r.address + r.bytes.len() as u64)).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (begin, end) in ranges {
            match merged.last_mut() {
                Some(last) if begin <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((begin, end)),
            }
        }
        let empty = |(begin, end): (u64, u64)| Region {
            address: begin,
            bytes: vec![0; usize::try_from(end - begin).unwrap_or_default()],
        };
        let mut image = Image { bias, regions: merged.into_iter().map(empty).collect() };
        for region in read {
            image.set(region.address, &region.bytes);
        }
        image
    }
}

impl ReadMemory for Recording<'_> {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        self.inner.read_pieces(pieces, buffer, failed)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        for (n, piece) in pieces.iter().enumerate() {
            if failed.binary_search(&n).is_err()
                && let Some(bytes) = buffer.get(at..at + piece.len)
            {
                read.push(Region { address: piece.address, bytes: bytes.to_vec() });
            }
            at += piece.len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(regions: &[(u64, &[u8])]) -> Image {
        let regions = regions.iter().map(|&(address, b)| Region { address, bytes: b.to_vec() }).collect();
        Image { bias: 7, regions }
    }

    #[test]
    fn written_and_read_again() {
        let before = image(&[(16, b"abcdefgh"), (100, b"x")]);
        let mut file = Vec::new();
        before.write(&mut file).expect("a vector takes it");
        assert_eq!(Image::read(&file).expect("an image"), before);
        assert!(matches!(Image::read(b"no"), Err(SnapshotError::Image { .. })));
        for cut in 0..file.len() {
            assert!(Image::read(&file[..cut]).is_err(), "{cut}");
        }
        let mut overlapping = Vec::new();
        image(&[(16, b"abcdefgh"), (17, b"x")]).write(&mut overlapping).expect("a vector takes it");
        assert!(Image::read(&overlapping).is_err());
    }

    #[test]
    fn holds_what_was_read_of_another() {
        let memory = image(&[(16, b"abcdefghijklmnop"), (100, b"xyz")]);
        let recording = Recording::new(&memory);
        let pieces = [(16, 4), (18, 4), (24, 2), (40, 8), (100, 3)];
        let pieces = pieces.map(|(address, len)| Piece { address, len });
        let (mut buffer, mut failed) = (vec![0; 21], Vec::new());
        recording.read_pieces(&pieces, &mut buffer, &mut failed).expect("reads");
        assert_eq!(failed, [3]);
        let kept = recording.image(7);
        assert_eq!(kept, image(&[(16, b"abcdef"), (24, b"ij"), (100, b"xyz")]));
        let (mut again, mut missing) = (vec![0; 21], Vec::new());
        kept.read_pieces(&pieces, &mut again, &mut missing).expect("reads");
        assert_eq!((again, missing), (buffer, failed));
    }
}
