//! The words of a program's variables that may be pointers: those of which the collector's own masks say so
//! (`runtime.moduledata`, `gcdatamask` and `gcbssmask`), or all where there are none.

use super::modules::{Range, Variables};
use crate::snapshot::word_at;
use gotrace_process::{ProcessError, ReadMemory};

/// Variables are read in parts of this many bytes, a multiple of 512.
const PART: u64 = 1 << 20;
/// What is not readable as a whole is read by pages of the kernel.
const KERNEL_PAGE: u64 = 4096;

/// How many bytes were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// Bytes that could be read.
    pub bytes: u64,
    /// Of those, the ones with a mask.
    pub exact: u64,
    /// Bytes that could not be read.
    pub unreadable: u64,
}

/// Tells words that may be pointers, and their addresses. `tell` ends it by giving `false`.
pub(super) fn each(
    memory: &dyn ReadMemory,
    variables: Variables,
    tell: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Looked, ProcessError> {
    let Variables { range: (begin, len), mask } = variables;
    let mut looked = Looked::default();
    // What a mask tells begins with the first variable, which is aligned.
    let mask = mask.filter(|_| begin.is_multiple_of(8));
    let (first, end) = (begin.saturating_add(7) & !7, begin.saturating_add(len) & !7);
    let (mut at, mut bytes, mut bits) = (first, Vec::new(), Vec::new());
    while at < end {
        let size = (end - at).min(PART);
        bytes.resize(usize::try_from(size).unwrap_or(0), 0);
        bits.resize(bytes.len().div_ceil(64), 0);
        let exact = match mask {
            Some(mask) => memory.read_at(mask.wrapping_add((at - first) / 64), &mut bits)?,
            None => false,
        };
        if memory.read_at(at, &mut bytes)? {
            looked.bytes += size;
            looked.exact += if exact { size } else { 0 };
            if !words(at, &bytes, exact.then_some(&bits[..]), tell) {
                return Ok(looked);
            }
        } else if !pages(memory, (at, size), &mut looked, tell)? {
            return Ok(looked);
        }
        at += size;
    }
    Ok(looked)
}

fn words(at: u64, bytes: &[u8], bits: Option<&[u8]>, tell: &mut dyn FnMut(u64, u64) -> bool) -> bool {
    let Some(bits) = bits else {
        let mut words = bytes.chunks_exact(8).enumerate();
        return words.all(|(n, chunk)| tell(at + 8 * n as u64, word_at(chunk, 0)));
    };
    for (n, &byte) in bits.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
            let offset = 8 * (8 * n + bit);
            if offset < bytes.len() && !tell(at + offset as u64, word_at(bytes, offset)) {
                return false;
            }
        }
    }
    true
}

fn pages(
    memory: &dyn ReadMemory,
    (begin, len): Range,
    looked: &mut Looked,
    tell: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<bool, ProcessError> {
    let mut page = [0; KERNEL_PAGE as usize];
    let (mut at, end) = (begin, begin.saturating_add(len));
    while at < end {
        let size = (KERNEL_PAGE - at % KERNEL_PAGE).min(end - at);
        let bytes = &mut page[..size as usize];
        if memory.read_at(at, bytes)? {
            looked.bytes += size;
            if !words(at, bytes, None, tell) {
                return Ok(false);
            }
        } else {
            looked.unreadable += size;
        }
        at += size;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_with_a_bit_are_told() {
        let bytes: Vec<u8> = (0..20_u64).flat_map(|n| (100 + n).to_le_bytes()).collect();
        let of = |bits: Option<&[u8]>, most: usize| {
            let mut told = Vec::new();
            words(0x1000, &bytes, bits, &mut |at, word| {
                told.push((at, word));
                told.len() < most
            });
            told
        };
        assert_eq!(
            of(Some(&[0b101, 0x80, 0xf8]), 99),
            [(0x1000, 100), (0x1010, 102), (0x1078, 115), (0x1098, 119)]
        );
        assert_eq!(of(Some(&[0b101, 0x80]), 2).len(), 2);
        assert_eq!(of(None, 99).len(), 20);
    }
}
