//! Many small reads as few large ones: neighbours in memory become one piece.

use super::layout::word;
use gotrace_process::{Piece, ProcessError, ReadMemory};

/// Bytes that are read at once.
const MAX_BYTES: usize = 4 << 20;
/// The longest piece that neighbours are put together to.
const MAX_PIECE: usize = 64 << 10;
/// Words this far apart are read together with what lies between.
const WORD_GAP: u64 = 512;
/// Where an item was not readable.
pub(super) const UNREADABLE: u32 = u32::MAX;

/// Items read into one buffer.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    pieces: Vec<Piece>,
    /// First item of each piece.
    first: Vec<usize>,
    failed: Vec<usize>,
    /// Offset of each item in the buffer, or [`UNREADABLE`].
    pub at: Vec<u32>,
    pub buffer: Vec<u8>,
}

impl Pieces {
    /// Reads items (address, length), which are best sorted by address. Those whose gap is at most `gap`
    /// bytes become one piece. Reads as many as fit and returns that number, at least one if there is one.
    pub fn read(
        &mut self,
        memory: &dyn ReadMemory,
        items: &[(u64, u32)],
        gap: u64,
    ) -> Result<usize, ProcessError> {
        self.pieces.clear();
        self.first.clear();
        self.at.clear();
        let mut total = 0;
        for &(address, len) in items {
            let len = len as usize;
            let joined = self.pieces.last_mut().and_then(|last| {
                let offset = address.checked_sub(last.address)?;
                let end = last.address.checked_add(last.len as u64)?;
                let joins = address <= end.saturating_add(gap);
                let offset = usize::try_from(offset).ok()?;
                let grown = offset.checked_add(len)?.max(last.len);
                if !joins || grown > MAX_PIECE {
                    return None;
                }
                let at = total - last.len + offset;
                total += grown - last.len;
                last.len = grown;
                Some(at)
            });
            let at = match joined {
                Some(at) => at,
                None if total + len > MAX_BYTES && total > 0 => break,
                None => {
                    self.first.push(self.at.len());
                    self.pieces.push(Piece { address, len });
                    total += len;
                    total - len
                }
            };
            self.at.push(u32::try_from(at).unwrap_or(UNREADABLE));
        }
        self.buffer.resize(total, 0);
        memory.read_pieces(&self.pieces, &mut self.buffer, &mut self.failed)?;
        let failed = std::mem::take(&mut self.failed);
        for &piece in &failed {
            self.read_singly(memory, items, piece)?;
        }
        self.failed = failed;
        Ok(self.at.len())
    }

    /// One item of a piece not being readable must not cost its neighbours.
    fn read_singly(
        &mut self,
        memory: &dyn ReadMemory,
        items: &[(u64, u32)],
        piece: usize,
    ) -> Result<(), ProcessError> {
        let begin = self.first.get(piece).copied().unwrap_or_default();
        let end = self.first.get(piece + 1).copied().unwrap_or(self.at.len());
        let alone = end - begin == 1;
        for (place, &(address, len)) in self.at.iter_mut().zip(items).take(end).skip(begin) {
            let at = *place as usize;
            let target = self.buffer.get_mut(at..at + len as usize).unwrap_or_default();
            if alone || !memory.read_at(address, target)? {
                *place = UNREADABLE;
            }
        }
        Ok(())
    }

    /// The words at these addresses, in their order; `None` where one is not readable.
    pub fn words(
        &mut self,
        memory: &dyn ReadMemory,
        addresses: &[u64],
    ) -> Result<Vec<Option<u64>>, ProcessError> {
        let mut items: Vec<(u64, usize)> = addresses.iter().copied().zip(0..).collect();
        items.sort_unstable();
        let sorted: Vec<(u64, u32)> = items.iter().map(|&(address, _)| (address, 8)).collect();
        let mut words = vec![None; addresses.len()];
        let mut rest = 0;
        while rest < items.len() {
            let done = self.read(memory, &sorted[rest..], WORD_GAP)?;
            for i in 0..done {
                words[items[rest + i].1] = self.item(i, 8).map(|bytes| word(bytes, 0));
            }
            rest += done;
        }
        Ok(words)
    }

    /// The bytes of an item; `None` when it was not readable.
    pub fn item(&self, n: usize, len: usize) -> Option<&[u8]> {
        let at = *self.at.get(n)?;
        if at == UNREADABLE {
            return None;
        }
        self.buffer.get(at as usize..(at as usize).checked_add(len)?)
    }
}
