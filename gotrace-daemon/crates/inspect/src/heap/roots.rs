//! What keeps objects alive beside variables and stacks: what the runtime holds outside of its heap
//! (`runtime/mgcmark.go`, `markroot`).
//!
//! - specials, listed by span: a finalizer keeps its function and what its object refers to, a weak handle
//!   makes its object strong again for whoever holds the handle, a cleanup keeps its function and argument;
//! - finalizers and cleanups that wait to be run: blocks outside of the heap, which variables of the runtime lead
//!   to (`finq`, `gcCleanups`). No symbol is needed: what a variable points to is taken where it has the shape of
//!   such a block. Nothing else outside of the heap keeps anything alive.

use foldhash::fast::FixedState;
use hashbrown::HashSet;

use super::{
    layout::{Layout, SpecialKind},
    mark::Marker,
    modules::{Module, Range, Variables},
    spans::Spans,
    variables,
};
use crate::snapshot::{Pieces, half_at, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// Specials of a program that are followed.
const MAX_SPECIALS: usize = 1 << 22;
/// Bytes of a block of finalizers (`runtime/mfinal.go`, `finBlock`), and of one of cleanups (`runtime/mcleanup.go`,
/// `cleanupBlock`), which is aligned to as many.
const FINALIZERS: usize = 4096;
const CLEANUPS: usize = 512;
/// `alllink`, `next`, `cnt`; then the finalizers, of five words.
const FINALIZERS_AT: usize = 24;
const FINALIZER: usize = 40;
/// `next` and a count for the runtime's lock-free lists, `alllink`, `n`; then the cleanups.
const CLEANUPS_LINK: usize = 16;
const CLEANUPS_COUNT: usize = 24;
const CLEANUPS_AT: usize = 32;
/// Blocks that are followed.
const MAX_BLOCKS: usize = 1 << 14;
/// Words of variables that may be addresses of blocks.
const MAX_WORDS: usize = 1 << 22;
/// Bytes that the values of a finalizer's function may have (`nret`).
const MAX_RESULTS: u64 = 1 << 20;

/// How many of each there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Specials {
    pub finalizers: u64,
    pub weak: u64,
    pub cleanups: u64,
    /// Lists that were longer than is followed, or not readable.
    pub cut: u64,
}

/// Takes in everything that is kept beside objects.
pub(super) fn specials(
    memory: &dyn ReadMemory,
    layout: &Layout,
    marker: &Marker,
) -> Result<Specials, ProcessError> {
    let mut found = Specials::default();
    // A list that leads back into itself ends there.
    let mut seen: HashSet<u64, FixedState> = HashSet::default();
    // (special, its span), all lists one step at a time.
    let mut open: Vec<(u64, usize)> = marker
        .table
        .entries
        .iter()
        .enumerate()
        .filter(|(_, e)| e.span.specials > 0xffff && e.span.specials.is_multiple_of(8))
        .map(|(n, e)| (e.span.specials, n))
        .collect();
    let len = layout.special_len;
    let mut pieces = Pieces::default();
    let mut objects: Vec<(u64, u64)> = Vec::new();
    while !open.is_empty() {
        open.sort_unstable();
        let items: Vec<(u64, u32)> = open.iter().map(|&(at, _)| (at, len as u32)).collect();
        let done = pieces.read(memory, &items, 64)?;
        let mut next = open.split_off(done);
        for (i, (_, n)) in open.into_iter().enumerate() {
            let Some(bytes) = pieces.item(i, len).filter(|_| seen.len() < MAX_SPECIALS) else {
                found.cut += 1;
                continue;
            };
            let (following, offset, kind) = layout.special(bytes);
            let rest = bytes.get(layout.special_rest()..).unwrap_or_default();
            let entry = &marker.table.entries[n];
            let base = entry.span.base.saturating_add(offset);
            match kind {
                SpecialKind::Finalizer => {
                    found.finalizers += 1;
                    marker.words(rest);
                    // The object itself is not kept: its finalizer runs when nothing else does.
                    if let Some(place) = marker.table.find(base).filter(|_| !entry.span.noscan) {
                        objects.push(marker.table.object(place));
                    }
                }
                SpecialKind::WeakHandle => {
                    found.weak += 1;
                    marker.words(rest.get(..8).unwrap_or_default());
                    marker.word(base);
                }
                SpecialKind::Cleanup => {
                    found.cleanups += 1;
                    marker.words(rest);
                }
                SpecialKind::Other => {}
            }
            if following > 0xffff && following.is_multiple_of(8) && seen.insert(following) {
                next.push((following, n));
            }
        }
        open = next;
    }
    objects.sort_unstable();
    marker.ranges(memory, &objects)?;
    Ok(found)
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// The next of the list of all, and of another list; 0 for none.
    links: [u64; 2],
    /// Where finalizers or cleanups are in it that wait.
    from: usize,
    to: usize,
}

fn may_be_pointer(word: u64) -> bool {
    word > 0xffff && word < 1 << 52 && word.is_multiple_of(8)
}

/// A block of finalizers, by its shape. One that is just being queued may not be filled in yet.
fn finalizers(bytes: &[u8]) -> Option<Block> {
    let (links, count) = ([word_at(bytes, 0), word_at(bytes, 8)], half_at(bytes, 16) as usize);
    let to = FINALIZERS_AT + count.checked_mul(FINALIZER)?;
    let linked = links.iter().all(|&l| l == 0 || may_be_pointer(l)) && half_at(bytes, 20) == 0;
    if !linked || to > bytes.len() {
        return None;
    }
    let mut waiting = (FINALIZERS_AT..to).step_by(FINALIZER);
    let all = waiting.all(|at| {
        // Function, object, bytes of results, type of the argument, type of the pointer.
        let word = |n: usize| word_at(bytes, at + 8 * n);
        word(2) < MAX_RESULTS && [word(0), word(3), word(4)].into_iter().all(|w| w == 0 || may_be_pointer(w))
    });
    all.then_some(Block { links, from: FINALIZERS_AT, to })
}

/// A block of cleanups, by its shape. `size`: bytes of a cleanup.
fn cleanups(bytes: &[u8], size: usize) -> Option<Block> {
    let (link, count) = (word_at(bytes, CLEANUPS_LINK), half_at(bytes, CLEANUPS_COUNT) as usize);
    let to = CLEANUPS_AT + count.checked_mul(size)?;
    let linked = link == 0 || may_be_pointer(link) && link.is_multiple_of(CLEANUPS as u64);
    let within = linked && to <= CLEANUPS && half_at(bytes, CLEANUPS_COUNT + 4) == 0;
    within.then_some(Block { links: [link, 0], from: CLEANUPS_AT, to })
}

/// Bytes of a cleanup that waits to be run; `None` where the version has no blocks of them.
const fn cleanup_size(minor: u32) -> Option<usize> {
    match minor {
        ..=24 => None,
        25 => Some(8),
        _ => Some(24),
    }
}

/// How many blocks there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    pub taken: u64,
    /// There were more than are followed.
    pub cut: bool,
}

/// Takes in what waits in blocks of finalizers and cleanups; gives their number.
pub(super) fn blocks(
    memory: &dyn ReadMemory,
    marker: &Marker,
    spans: &Spans,
    modules: &[Module],
    minor: u32,
) -> Result<Blocks, ProcessError> {
    let within = |(begin, len): Range, at: u64| at >= begin && at - begin < len;
    let own = |at: u64| {
        let of = |m: &Module| [m.data, m.bss, m.noptrdata, m.noptrbss].into_iter().any(|r| within(r, at));
        modules.iter().any(of)
    };
    let manual = |at: u64| {
        let n = spans.manual.partition_point(|&(base, _)| base <= at);
        n.checked_sub(1).is_some_and(|n| within(spans.manual[n], at))
    };
    let wanted = |at: u64| {
        may_be_pointer(at)
            && !marker.table.has_page(at)
            && !own(at)
            && !manual(at)
            && spans.records.binary_search(&at).is_err()
    };
    let aligned = |at: u64| at.is_multiple_of(CLEANUPS as u64);
    let size = cleanup_size(minor);
    let mut open: Vec<u64> = Vec::new();
    for module in modules {
        // The lists of finalizers are no pointers to the collector; that of cleanups is one.
        for range in [module.noptrdata, module.noptrbss] {
            let all = Variables { range, mask: None };
            variables::each(memory, all, &mut |_, word| {
                open.extend(Some(word).filter(|&w| wanted(w)));
                open.len() < MAX_WORDS
            })?;
        }
        for of in module.variables().into_iter().filter(|_| size.is_some()) {
            variables::each(memory, of, &mut |_, word| {
                open.extend(Some(word).filter(|&w| aligned(w) && wanted(w)));
                open.len() < MAX_WORDS
            })?;
        }
    }
    let mut found = Blocks { taken: 0, cut: open.len() >= MAX_WORDS };
    let mut seen: HashSet<u64, FixedState> = HashSet::default();
    let mut bytes = vec![0; FINALIZERS];
    while let Some(at) = open.pop() {
        if !seen.insert(at) {
            continue;
        }
        if found.taken >= MAX_BLOCKS as u64 {
            found.cut = true;
            break;
        }
        let mut block = if memory.read_at(at, &mut bytes)? { finalizers(&bytes) } else { None };
        if block.is_none()
            && let Some(size) = size.filter(|_| aligned(at))
        {
            let is_read = memory.read_at(at, bytes.get_mut(..CLEANUPS).unwrap_or_default())?;
            block = if is_read { cleanups(&bytes[..CLEANUPS], size) } else { None };
        }
        let Some(block) = block else { continue };
        found.taken += u64::from(block.to > block.from);
        open.extend(block.links.into_iter().filter(|&w| wanted(w)));
        marker.words(bytes.get(block.from..block.to).unwrap_or_default());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(words: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; FINALIZERS];
        for &(at, word) in words {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn finalizers_that_wait_are_told_by_their_shape() {
        let (function, object, kind) = (0x4a_0000, 0xc000_0010_0007, 0x50_0000);
        let two = [(0, 0x7f00_0000_1000), (16, 2), (24, function), (32, object), (48, kind), (56, kind)];
        // The second is not filled in yet.
        let expected = Block { links: [0x7f00_0000_1000, 0], from: 24, to: 104 };
        assert_eq!(finalizers(&block(&two)), Some(expected));
        assert_eq!(finalizers(&block(&[])), Some(Block { links: [0, 0], from: 24, to: 24 }), "an empty one");
        for (at, word) in [(0, 12), (8, 1 << 60), (16, 102), (16, 1 << 32), (24, 7), (40, u64::MAX), (56, 1)]
        {
            let mut words = two.to_vec();
            words.push((at, word));
            assert_eq!(finalizers(&block(&words)), None, "{word:#x} at {at}");
        }
    }

    #[test]
    fn cleanups_that_wait_are_told_by_their_shape() {
        // The links of lock-free lists hold a count beside the address.
        let words = [(0, u64::MAX - 7), (8, 3), (16, 0x7f00_0000_1200), (24, 20)];
        let bytes = block(&words);
        let expected = Block { links: [0x7f00_0000_1200, 0], from: 32, to: 512 };
        assert_eq!(cleanups(&bytes[..CLEANUPS], 24), Some(expected));
        for (at, word) in [(16, 0x7f00_0000_1208), (24, 21), (24, 1 << 32)] {
            let mut words = words.to_vec();
            words.push((at, word));
            assert_eq!(cleanups(&block(&words)[..CLEANUPS], 24), None, "{word:#x} at {at}");
        }
    }
}
