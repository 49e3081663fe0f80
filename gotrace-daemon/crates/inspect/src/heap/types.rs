//! Where pointers are in the values of a type: the runtime's descriptions of types (`internal/abi`, `Type`), which
//! it writes before larger objects from Go 1.22 on.
//!
//! Input: addresses from the heap, which may be anything. Believed is only what lies among a module's own
//! descriptions, which never change; what `reflect` makes, and masks that are not built yet, are not known.

use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::modules::{Module, Range};
use crate::snapshot::word_at;
use gotrace_process::{ProcessError, ReadMemory};

/// As much of a description as is needed: `Size_`, `PtrBytes`, `TFlag`, `Kind_`, `GCData`.
const TYPE: usize = 48;
const POINTER_BYTES: usize = 8;
const FLAGS: usize = 20;
const KIND: usize = 23;
const GC_DATA: usize = 32;
/// `GCData` is the address of a pointer to the mask (from Go 1.24 on), or what is described is no type of the
/// program (before).
const ON_DEMAND: u8 = 1 << 4;
/// `GCData` is a program that writes the mask (up to Go 1.23).
const PROGRAM: u8 = 1 << 6;
/// Longer masks are not believed: a value of 128 MiB.
const MAX_POINTER_BYTES: u64 = 128 << 20;
/// Types that are remembered.
const MAX_KNOWN: usize = 1 << 16;

/// Which words of a value hold pointers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mask {
    /// Words of a value; values of an array lie that far apart.
    size: usize,
    /// A bit a word.
    bits: Vec<u64>,
    /// All of them are pointers.
    all: bool,
}

impl Mask {
    /// From the bits as memory has them; `None` for what no type can be.
    fn new(size: u64, pointers: u64, bytes: &[u8]) -> Option<Self> {
        let sane = size.is_multiple_of(8) && pointers.is_multiple_of(8) && pointers > 0 && pointers <= size;
        let (size, count) = sane
            .then_some(())
            .and_then(|()| Some((usize::try_from(size / 8).ok()?, usize::try_from(pointers / 8).ok()?)))?;
        let mut bits: Vec<u64> = bytes
            .chunks(8)
            .map(|c| c.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
            .collect();
        bits.truncate(count.div_ceil(64));
        if let Some(last) = bits.last_mut().filter(|_| count % 64 != 0) {
            *last &= (1 << (count % 64)) - 1;
        }
        let set: usize = bits.iter().map(|b| b.count_ones() as usize).sum();
        (bits.len() == count.div_ceil(64)).then_some(Self { size, bits, all: set == size })
    }

    /// Bytes of a value.
    pub fn size(&self) -> u64 {
        8 * self.size as u64
    }

    /// Tells the pointers of values that lie one behind the other, and how far into `bytes` each is. `from`: how
    /// many bytes of the values are before `bytes`.
    pub fn each(&self, from: u64, bytes: &[u8], mut tell: impl FnMut(usize, u64)) {
        if self.all {
            for (n, chunk) in bytes.chunks_exact(8).enumerate() {
                tell(8 * n, word_at(chunk, 0));
            }
            return;
        }
        let first = usize::try_from(from / 8).unwrap_or(usize::MAX / 2);
        let end = first + bytes.len() / 8;
        let mut base = first / self.size * self.size;
        while base < end {
            for (n, &bits) in self.bits.iter().enumerate() {
                let at = base + 64 * n;
                if at >= end {
                    break;
                }
                let mut bits = bits;
                while bits != 0 {
                    let word = at + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    if word >= first && word < end {
                        tell(8 * (word - first), word_at(bytes, 8 * (word - first)));
                    }
                }
            }
            base += self.size;
        }
    }
}

/// The descriptions of a program's types, as far as they were needed.
#[derive(Debug, Default)]
pub(super) struct Types {
    /// Minor version of Go.
    minor: u32,
    /// Where descriptions are.
    ranges: Vec<Range>,
    /// Where the modules' variables are: no mask is there.
    variables: Vec<Range>,
    known: RwLock<HashMap<u64, Option<Arc<Mask>>, FixedState>>,
}

impl Types {
    /// Of a version.
    pub fn new(minor: u32) -> Self {
        Self { minor, ..Self::default() }
    }

    /// Takes in where modules are; a plugin may have come. What was not known is looked for again.
    pub fn know(&mut self, modules: &[Module]) {
        self.ranges = modules.iter().map(|m| m.types).collect();
        self.variables = modules.iter().flat_map(|m| [m.data, m.bss, m.noptrdata, m.noptrbss]).collect();
        self.known.get_mut().unwrap_or_else(PoisonError::into_inner).retain(|_, mask| mask.is_some());
    }

    /// Where pointers are in values of the type that is described at an address; `None` where it is not known.
    pub fn mask(&self, memory: &dyn ReadMemory, address: u64) -> Result<Option<Arc<Mask>>, ProcessError> {
        if !self.is_described(address) {
            return Ok(None);
        }
        if let Some(known) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            return Ok(known.clone());
        }
        let mask = self.read(memory, address)?.map(Arc::new);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX_KNOWN {
            known.insert(address, mask.clone());
        }
        Ok(mask)
    }

    fn is_described(&self, address: u64) -> bool {
        address.is_multiple_of(8) && self.range_of(address).is_some()
    }

    /// The module's descriptions that an address lies among.
    pub fn range_of(&self, address: u64) -> Option<Range> {
        self.ranges.iter().copied().find(|&(begin, len)| address >= begin && address - begin < len)
    }

    fn read(&self, memory: &dyn ReadMemory, address: u64) -> Result<Option<Mask>, ProcessError> {
        let mut bytes = [0; TYPE];
        if !memory.read_at(address, &mut bytes)? {
            return Ok(None);
        }
        let (size, pointers) = (word_at(&bytes, 0), word_at(&bytes, POINTER_BYTES));
        let mut data = word_at(&bytes, GC_DATA);
        if pointers > MAX_POINTER_BYTES {
            return Ok(None);
        }
        if bytes[FLAGS] & ON_DEMAND != 0 {
            let mut built = [0; 8];
            if self.minor < 24 || !memory.read_at(data, &mut built)? {
                return Ok(None);
            }
            data = word_at(&built, 0);
            // While it is being built, the address of a variable stands there (`runtime.inProgress`).
            let variable = self.variables.iter().any(|&(begin, len)| data >= begin && data - begin < len);
            if data == 0 || variable {
                return Ok(None);
            }
        } else if self.minor < 24 && bytes[KIND] & PROGRAM != 0 {
            return Ok(None);
        }
        let mut mask = vec![0; usize::try_from(pointers.div_ceil(64)).unwrap_or(0)];
        if !memory.read_at(data, &mut mask)? {
            return Ok(None);
        }
        Ok(Mask::new(size, pointers, &mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(mask: &Mask, from: u64, words: &[u64]) -> Vec<(usize, u64)> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut told = Vec::new();
        mask.each(from, &bytes, |at, word| told.push((at, word)));
        told
    }

    #[test]
    fn values_lie_one_behind_the_other() {
        // Of three words, the second holds a pointer.
        let mask = Mask::new(24, 16, &[0b10]).expect("a type");
        assert_eq!(mask.size(), 24);
        let words: Vec<u64> = (0..8).collect();
        assert_eq!(told(&mask, 0, &words), [(8, 1), (32, 4), (56, 7)]);
        // From the third word of the second value on.
        assert_eq!(told(&mask, 40, &words), [(16, 2), (40, 5)]);
        assert_eq!(told(&mask, 0, &words[..1]), []);
        // A mask of more than one word; bits behind the last pointer mean nothing.
        let mut bytes = [0_u8; 16];
        (bytes[0], bytes[8], bytes[15]) = (1, 2, 0x80);
        let mask = Mask::new(8 * 100, 8 * 66, &bytes).expect("a type");
        let words: Vec<u64> = (0..201).collect();
        assert_eq!(told(&mask, 0, &words), [(0, 0), (520, 65), (800, 100), (1320, 165), (1600, 200)]);
        assert_eq!(told(&mask, 520, &words[..36]), [(0, 0), (280, 35)]);
        // Nothing but pointers.
        let mask = Mask::new(16, 16, &[3]).expect("a type");
        assert_eq!(told(&mask, 8, &[5, 6, 7]), [(0, 5), (8, 6), (16, 7)]);
    }

    #[test]
    fn what_no_type_can_be_has_no_mask() {
        for (size, pointers) in [(0, 0), (8, 0), (8, 16), (12, 8), (16, 12), (u64::MAX, 8)] {
            assert_eq!(Mask::new(size, pointers, &[1]), None, "{size} {pointers}");
        }
        assert_eq!(Mask::new(8 * 100, 8 * 100, &[1]), None, "cut off");
    }
}
