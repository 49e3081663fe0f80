//! What keeps objects alive beside variables and stacks: what the runtime holds outside of its heap
//! (`runtime/mgcmark.go`, `markroot`).
//!
//! - specials, listed by span: a finalizer keeps its function and what its object refers to, a weak handle
//!   makes its object strong again for whoever holds the handle, a cleanup keeps its function and argument;
//! - finalizers and cleanups that wait to be run: blocks of 4 KiB outside of the heap, which variables
//!   without pointers lead to. No symbol is needed: every block that such a variable points to is taken.

use foldhash::fast::FixedState;
use hashbrown::HashSet;

use super::{
    layout::{Layout, SpecialKind},
    mark::Marker,
    modules::{Module, Range},
    spans::Spans,
};
use crate::{
    process::{ProcessError, ReadMemory},
    snapshot::{Pieces, word_at},
};

/// Specials of a program that are followed.
const MAX_SPECIALS: usize = 1 << 22;
/// Bytes of a block of finalizers or cleanups (`runtime/mfinal.go`, `runtime/mcleanup.go`).
const BLOCK: u64 = 4096;
/// Blocks that are followed.
const MAX_BLOCKS: usize = 1 << 14;
/// Variables without pointers that are looked through for blocks.
const MAX_VARIABLES: u64 = 64 << 20;
/// Words of a block that may link to the next one.
const LINKS: usize = 3;

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

/// Takes in the blocks outside of the heap that variables without pointers lead to; gives their number.
pub(super) fn blocks(
    memory: &dyn ReadMemory,
    marker: &Marker,
    spans: &Spans,
    modules: &[Module],
) -> Result<u64, ProcessError> {
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
        at > 0xffff
            && at < 1 << 52
            && at.is_multiple_of(8)
            && !marker.table.has_page(at)
            && !own(at)
            && !manual(at)
            && spans.records.binary_search(&at).is_err()
    };
    let mut seen: HashSet<u64, FixedState> = HashSet::default();
    let mut open: Vec<u64> = Vec::new();
    for (begin, len) in modules.iter().flat_map(|m| [m.noptrdata, m.noptrbss]) {
        let begin = begin.next_multiple_of(8);
        let mut bytes = vec![0; usize::try_from(len.min(MAX_VARIABLES)).unwrap_or(0) / 8 * 8];
        if !memory.read_at(begin, &mut bytes)? {
            continue;
        }
        let words = bytes.chunks_exact(8).map(|b| word_at(b, 0));
        open.extend(words.filter(|&w| wanted(w)));
    }
    let mut bytes = vec![0; BLOCK as usize];
    let mut count = 0;
    while let Some(at) = open.pop() {
        if seen.len() >= MAX_BLOCKS || !seen.insert(at) || !memory.read_at(at, &mut bytes)? {
            continue;
        }
        count += 1;
        open.extend((0..LINKS).map(|n| word_at(&bytes, 8 * n)).filter(|&w| wanted(w)));
        // What the runtime knows of spans names their first objects, and keeps none of them.
        let mut begin = 0;
        let first = spans.records.partition_point(|&r| r + 160 <= at);
        for &record in spans.records.iter().skip(first).take_while(|&&r| r < at + BLOCK) {
            let from = usize::try_from(record.saturating_sub(at)).unwrap_or(0);
            marker.words(bytes.get(begin..from.max(begin)).unwrap_or_default());
            begin =
                usize::try_from((record + 160).saturating_sub(at)).unwrap_or(0).min(bytes.len()).max(begin);
        }
        marker.words(bytes.get(begin..).unwrap_or_default());
    }
    Ok(count)
}
