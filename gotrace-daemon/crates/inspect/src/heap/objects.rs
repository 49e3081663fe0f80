//! Which words of an object may be pointers: those of which the runtime says so, where it says so beside each
//! object (Go 1.22 and later), else all of them but for a few that cannot be.
//!
//! Input: an object as it was read, with what is known of its span. Whatever is not as the runtime writes it is
//! taken whole: a map without a bit, a type that is not described, a rest of what was there before.

use std::sync::Arc;

use super::{
    layout::{MAP, Pointers, Span},
    table::{Place, Table},
    types::{Mask, Types},
};
use crate::snapshot::{Pieces, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// `stack.lo`, `stack.hi`, `stackguard0`, `stackguard1` at the beginning of a `g`.
const G_STACK_BYTES: usize = 32;
/// Before an object with a type: that (`gc.MallocHeaderSize`).
const HEADER: usize = 8;
/// Sizes of objects that a `runtime.p` may have.
const P_SIZES: std::ops::RangeInclusive<usize> = 8192..=32768;
/// Words of a `p`'s buffer of pointers that were overwritten (`runtime.wbBuf`), behind `next` and `end`.
const BUFFER: usize = 512;
/// So many bytes are read at once when objects are looked for.
const BATCH: u64 = 8 << 20;
/// A larger object is read in parts of this many bytes.
const PART: u64 = 1 << 16;

/// What tells pointers from other words.
#[derive(Debug, Default)]
pub(super) struct Objects {
    types: Arc<Types>,
    /// Bytes of an object that is as large as a `g`; 0 where that is not known.
    g_size: u64,
    /// The runtime's own memory in the heap, stacks among it: first address and length, by address.
    manual: Vec<(u64, u64)>,
}

/// The bits of an object's words in a piece of its span's map. `from`: how many words of the span are before the
/// piece; `first`: before the object; `count`: words of the object, at most 64.
pub(super) fn bits(map: &[u8], from: usize, first: usize, count: usize) -> u64 {
    let at = |n: usize| u128::from(word_at(map, 8 * n));
    let (n, shift) = (first.saturating_sub(from) / 64, first % 64);
    let both = at(n) | if map.len() >= 8 * n + 16 { at(n + 1) << 64 } else { 0 };
    let bits = (both >> shift) as u64;
    if count >= 64 { bits } else { bits & ((1 << count) - 1) }
}

/// The piece of a span's map that has an object's bits: how far into the span, its length, and how many words of
/// the span are before it; `None` where the span has no map.
pub(super) fn piece_of_map(span: &Span, index: u32) -> Option<(u64, usize, usize)> {
    let Pointers::Bits(at) = span.pointers else { return None };
    let word = u64::from(index) * span.size / 8;
    let from = word / 64 * 8;
    Some((u64::from(at) + from, (MAP - from.min(MAP)).min(16) as usize, (from * 8) as usize))
}

impl Objects {
    /// For a heap with types, where it has `g`s of a size (0 for unknown), and stacks.
    pub fn new(types: Arc<Types>, g_size: u64, manual: &[(u64, u64)]) -> Self {
        Self { types, g_size, manual: manual.to_vec() }
    }

    /// Descriptions of types.
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// Tells the words of an object of a span that may be pointers. `bits`: of the object, from its span's map;
    /// means nothing where the span has none. Gives whether only pointers were told.
    #[inline]
    pub fn each(
        &self,
        memory: &dyn ReadMemory,
        span: &Span,
        address: u64,
        bytes: &[u8],
        bits: u64,
        mut tell: impl FnMut(u64),
    ) -> Result<bool, ProcessError> {
        match span.pointers {
            Pointers::Bits(_) if bits != 0 => {
                let mut bits = bits;
                while bits != 0 {
                    tell(word_at(bytes, 8 * bits.trailing_zeros() as usize));
                    bits &= bits - 1;
                }
                return Ok(true);
            }
            Pointers::Header => {
                if let Some(mask) = self.mask(memory, word_at(bytes, 0), span.size)? {
                    mask.each(0, bytes.get(HEADER..).unwrap_or_default(), |_, word| tell(word));
                    return Ok(true);
                }
            }
            Pointers::Type(address) => {
                if let Some(mask) = self.mask(memory, address, span.size)? {
                    mask.each(0, bytes, |_, word| tell(word));
                    return Ok(true);
                }
            }
            Pointers::Bits(_) | Pointers::Unknown => {}
        }
        self.all(address, bytes, tell);
        Ok(false)
    }

    /// The mask for an object that has a span to itself, and is read in parts; `None` where every word of it may be
    /// a pointer.
    pub fn large(&self, memory: &dyn ReadMemory, span: &Span) -> Result<Option<Arc<Mask>>, ProcessError> {
        match span.pointers {
            Pointers::Type(address) => self.mask(memory, address, span.size),
            _ => Ok(None),
        }
    }

    fn mask(
        &self,
        memory: &dyn ReadMemory,
        address: u64,
        size: u64,
    ) -> Result<Option<Arc<Mask>>, ProcessError> {
        Ok(self.types.mask(memory, address)?.filter(|mask| mask.size() <= size))
    }

    /// Tells all words of an object, but for a few that cannot be pointers.
    fn all(&self, address: u64, bytes: &[u8], mut tell: impl FnMut(u64)) {
        let mut bytes = bytes;
        if bytes.len() as u64 == self.g_size && self.is_g(bytes) {
            bytes = bytes.get(G_STACK_BYTES..).unwrap_or_default();
        }
        if P_SIZES.contains(&bytes.len())
            && let Some(at) = buffer(address, bytes)
        {
            let behind = bytes.get(at + 8 * (BUFFER + 2)..).unwrap_or_default();
            bytes.get(..at).unwrap_or_default().chunks_exact(8).for_each(|c| tell(word_at(c, 0)));
            bytes = behind;
        }
        bytes.chunks_exact(8).for_each(|c| tell(word_at(c, 0)));
    }

    /// What a `g` says of its stack is no pointer: the end of a stack is where another span's first object may
    /// begin. Nothing but a `g` begins with the bounds of a stack; two more words say how far the stack may be
    /// used (`runtime/runtime2.go`, `g.stack`, `g.stackguard0`, `g.stackguard1`).
    fn is_g(&self, bytes: &[u8]) -> bool {
        let (lo, hi) = (word_at(bytes, 0), word_at(bytes, 8));
        let n = self.manual.partition_point(|&(base, _)| base <= lo);
        let stack = n.checked_sub(1).and_then(|n| self.manual.get(n));
        lo < hi && stack.is_some_and(|&(base, len)| lo - base < len && hi - base <= len)
    }

    /// Reads objects, which are best in the table's order, and tells their words that may be pointers.
    pub fn read(
        &self,
        memory: &dyn ReadMemory,
        table: &Table,
        places: &[Place],
        tell: &mut dyn FnMut(Place, u64),
    ) -> Result<(), ProcessError> {
        let mut batch = Batch::default();
        for of_span in places.chunk_by(|a, b| a.entry == b.entry) {
            let Some(span) = of_span.first().and_then(|&p| table.entry(p)).map(|e| e.span) else { continue };
            if batch.bytes + span.bytes.min(BATCH) > BATCH {
                self.tell(memory, table, &mut batch, tell)?;
            }
            for &place in of_span {
                let (address, size) = table.object(place);
                let mut at = 0;
                while at < size {
                    let len = (size - at).min(PART);
                    batch.items.push((address + at, len as u32));
                    batch.parts.push(Some((place, at)));
                    batch.bytes += len;
                    at += len;
                    if batch.bytes >= BATCH {
                        self.tell(memory, table, &mut batch, tell)?;
                    }
                }
            }
            if let Pointers::Bits(at) = span.pointers {
                batch.items.push((span.base + u64::from(at), MAP as u32));
                batch.parts.push(None);
                batch.bytes += MAP;
            }
        }
        self.tell(memory, table, &mut batch, tell)
    }

    fn tell(
        &self,
        memory: &dyn ReadMemory,
        table: &Table,
        batch: &mut Batch,
        tell: &mut dyn FnMut(Place, u64),
    ) -> Result<(), ProcessError> {
        let mut first = 0;
        while first < batch.items.len() {
            let done = batch.pieces.read(memory, &batch.items[first..], 512)?;
            let mut map: &[u8] = &[];
            // A span's map is behind its objects.
            for n in (0..done).rev() {
                let bytes = batch.pieces.item(n, batch.items[first + n].1 as usize);
                let Some((place, at)) = batch.parts[first + n] else {
                    map = bytes.unwrap_or_default();
                    continue;
                };
                let (Some(bytes), Some(entry)) = (bytes, table.entry(place)) else { continue };
                let (span, (address, size)) = (&entry.span, table.object(place));
                if size > PART {
                    match self.large(memory, span)? {
                        Some(mask) => mask.each(at, bytes, |_, word| tell(place, word)),
                        None => bytes.chunks_exact(8).for_each(|c| tell(place, word_at(c, 0))),
                    }
                    continue;
                }
                let of = match span.pointers {
                    Pointers::Bits(_) => {
                        bits(map, 0, (u64::from(place.index) * size / 8) as usize, (size / 8) as usize)
                    }
                    _ => 0,
                };
                self.each(memory, span, address, bytes, of, |word| tell(place, word))?;
            }
            first += done;
        }
        batch.items.clear();
        batch.parts.clear();
        batch.bytes = 0;
        Ok(())
    }
}

/// Objects that are read at once.
#[derive(Default)]
struct Batch {
    items: Vec<(u64, u32)>,
    /// The object, and how far into it; `None` for the map of the span of those before.
    parts: Vec<Option<(Place, u64)>>,
    bytes: u64,
    pieces: Pieces,
}

/// How far into a `runtime.p` its buffer of overwritten pointers is, which keeps nothing alive: what follows the
/// address of the buffer's end, which is in the same object.
fn buffer(address: u64, bytes: &[u8]) -> Option<usize> {
    let whole = bytes.len().checked_sub(8 * (BUFFER + 2))?;
    (0..=whole).step_by(8).find(|&at| {
        let end = (at + 8 * (BUFFER + 2)) as u64;
        let next = word_at(bytes, at);
        word_at(bytes, at + 8) == address + end && next <= address + end && next >= address + at as u64 + 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_an_object_may_begin_anywhere() {
        let mut map = [0_u8; 128];
        // Objects of 48 bytes: six bits each. The eleventh begins at bit 60.
        (map[7], map[8]) = (0b1010_0000, 0b01);
        assert_eq!(bits(&map, 0, 60, 6), 0b01_1010);
        assert_eq!(bits(&map[..16], 0, 60, 6), 0b01_1010);
        map[127] = 0x80;
        assert_eq!(bits(&map, 0, 1023, 1), 1);
        assert_eq!(bits(&map[120..], 960, 1018, 6), 0b10_0000);
        assert_eq!(bits(&[], 0, 60, 6), 0, "not read");
        map = [0xff; 128];
        assert_eq!(bits(&map, 0, 64, 64), u64::MAX);
    }

    #[test]
    fn a_buffer_of_overwritten_pointers_names_its_own_end() {
        let address = 0xc000_0000;
        let mut bytes = vec![0; 9472];
        assert_eq!(buffer(address, &bytes), None);
        let end = address + 1024 + 16 + 4096;
        bytes[1024..1032].copy_from_slice(&(end - 4096).to_le_bytes());
        bytes[1032..1040].copy_from_slice(&end.to_le_bytes());
        assert_eq!(buffer(address, &bytes), Some(1024));
        bytes[1024..1032].copy_from_slice(&(end + 8).to_le_bytes());
        assert_eq!(buffer(address, &bytes), None, "behind its end");
    }
}
