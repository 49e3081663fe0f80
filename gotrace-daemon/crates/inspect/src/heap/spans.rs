//! The runtime's list of all spans (`runtime.mheap_.allspans`): where it is, and what it holds.
//!
//! No symbol names it in a stripped program; it is the only pointer, length and capacity among the
//! program's variables whose elements all look like spans. Refuses where not exactly one does.

use super::{
    HeapError,
    layout::{Holds, Layout, Span},
    modules::Module,
};
use crate::snapshot::{Pieces, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// Variables are searched in pieces of this many bytes.
const PIECE: u64 = 1 << 20;
/// As many bytes of variables are searched.
const MAX_SEARCHED: u64 = 256 << 20;
/// Elements that are looked at before a list is believed to be that of the spans.
const LOOKED_AT: usize = 256;
/// The longest list that is believed: so many spans have 2 TiB at least.
const MAX_SPANS: u64 = 1 << 28;
/// `mspan`s lie next to each other.
const GAP: u64 = 512;
/// How often the list is looked up again when it was moved meanwhile.
const TRIES: usize = 8;

/// What the list of spans held at about one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans {
    /// Spans of objects, by address, none over another.
    pub objects: Vec<Span>,
    /// The runtime's own memory in the heap: first address and length, by address.
    pub manual: Vec<(u64, u64)>,
    /// Addresses of the `mspan`s, ascending.
    pub records: Vec<u64>,
    /// Entries that could not be read, or were just being changed.
    pub unreadable: u64,
    /// Spans that lay over another one, which was being taken or given up.
    pub overlapping: u64,
    /// Whether it is known where pointers are in small objects.
    pub maps: bool,
}

/// Address of the list's pointer, which its length follows.
pub(super) fn find(
    memory: &dyn ReadMemory,
    layout: &Layout,
    module: &Module,
    version: &str,
) -> Result<u64, HeapError> {
    let mut found = Vec::new();
    let mut left = MAX_SEARCHED;
    for (begin, len) in [module.noptrbss, module.bss] {
        let begin = begin.saturating_add(7) & !7;
        let end = begin.saturating_add(len.min(left));
        left -= len.min(left);
        let mut at = begin;
        while at < end {
            // The last two words of a piece are the first of the next.
            let size = usize::try_from((end - at).min(PIECE + 16)).unwrap_or(0);
            let mut bytes = vec![0; size];
            if memory.read_at(at, &mut bytes)? {
                for n in 0..(size / 8).saturating_sub(2) {
                    let [pointer, length, capacity] = [0, 1, 2].map(|w| word_at(&bytes, 8 * (n + w)));
                    let sane = pointer > 0xffff
                        && pointer < 1 << 52
                        && pointer.is_multiple_of(8)
                        && (1..=MAX_SPANS).contains(&length)
                        && length <= capacity
                        && capacity < 1 << 32;
                    let address = at + 8 * n as u64;
                    if sane && found.last() != Some(&address) && are_spans(memory, layout, pointer, length)? {
                        found.push(address);
                    }
                }
            }
            at += PIECE;
        }
    }
    match found[..] {
        [one] => Ok(one),
        _ => Err(HeapError::Implausible {
            version: version.to_owned(),
            why: format!("{} of its variables look like the list of spans, expected one", found.len()),
        }),
    }
}

fn are_spans(
    memory: &dyn ReadMemory,
    layout: &Layout,
    pointer: u64,
    length: u64,
) -> Result<bool, ProcessError> {
    let count = usize::try_from(length).unwrap_or(usize::MAX).min(LOOKED_AT);
    let mut list = vec![0; 8 * count];
    let mut last = [0; 8];
    let end = pointer.saturating_add(8 * (length - 1));
    if !memory.read_at(pointer, &mut list)? || !memory.read_at(end, &mut last)? {
        return Ok(false);
    }
    let mut used = 0;
    let mut bytes = vec![0; layout.len];
    for at in (0..list.len()).step_by(8) {
        let span = word_at(&list, at);
        let readable = span > 0xffff && span.is_multiple_of(8) && memory.read_at(span, &mut bytes)?;
        match readable.then(|| layout.parse(&bytes)) {
            Some(Holds::Objects(_)) => used += 1,
            Some(Holds::Manual(..) | Holds::Free) => {}
            Some(Holds::Nonsense) | None => return Ok(false),
        }
    }
    Ok(used > 0)
}

/// Entries of the list; 0 where that cannot be read.
pub(super) fn count(memory: &dyn ReadMemory, list: u64) -> Result<u64, ProcessError> {
    let mut length = [0; 8];
    let readable = memory.read_at(list.wrapping_add(8), &mut length)?;
    Ok(if readable { u64::from_le_bytes(length).min(MAX_SPANS) } else { 0 })
}

/// Reads all spans. `list`: what [`find`] found.
pub(super) fn read(
    memory: &dyn ReadMemory,
    layout: &Layout,
    list: u64,
    version: &str,
) -> Result<Spans, HeapError> {
    let implausible = |why: String| HeapError::Implausible { version: version.to_owned(), why };
    let mut addresses = None;
    for _ in 0..TRIES {
        addresses = addresses_of(memory, list)?;
        if addresses.is_some() {
            break;
        }
    }
    let Some(mut records) = addresses else {
        return Err(implausible(format!("cannot read its list of spans at {list:#x}")));
    };
    records.sort_unstable();
    records.dedup();
    // In one piece, as it may be long; most entries are spans of objects.
    let mut spans = Spans { objects: Vec::with_capacity(records.len()), ..Spans::default() };
    let items: Vec<(u64, u32)> = records.iter().map(|&a| (a, layout.len as u32)).collect();
    let (mut rest, mut pieces) = (&items[..], Pieces::default());
    while !rest.is_empty() {
        let done = pieces.read(memory, rest, GAP)?;
        for n in 0..done {
            match pieces.item(n, layout.len).map(|b| layout.parse(b)) {
                Some(Holds::Objects(span)) => spans.objects.push(span),
                Some(Holds::Manual(base, bytes)) => spans.manual.push((base, bytes)),
                Some(Holds::Free) => {}
                Some(Holds::Nonsense) | None => spans.unreadable += 1,
            }
        }
        rest = &rest[done..];
    }
    spans.records = records;
    spans.objects.sort_unstable_by_key(|s| s.base);
    let (mut end, before) = (0, spans.objects.len());
    spans.objects.retain(|s| {
        let apart = s.base >= end;
        if apart {
            end = s.base + s.bytes;
        }
        apart
    });
    spans.overlapping = (before - spans.objects.len()) as u64;
    spans.maps = layout.find_maps(&mut spans.objects);
    spans.manual.sort_unstable();
    if spans.unreadable > spans.records.len() as u64 / 4 + 4 {
        return Err(implausible(format!(
            "{} of {} entries in its list of spans hold none",
            spans.unreadable,
            spans.records.len()
        )));
    }
    Ok(spans)
}

/// The list's entries; `None` when it was moved meanwhile.
fn addresses_of(memory: &dyn ReadMemory, list: u64) -> Result<Option<Vec<u64>>, ProcessError> {
    let mut header = [0; 16];
    if !memory.read_at(list, &mut header)? {
        return Ok(None);
    }
    let (pointer, length) = (word_at(&header, 0), word_at(&header, 8));
    if !(1..=MAX_SPANS).contains(&length) || !pointer.is_multiple_of(8) {
        return Ok(None);
    }
    let mut left = usize::try_from(length).unwrap_or(usize::MAX);
    let mut all = Vec::new();
    let mut bytes = vec![0; left.min(1 << 17) * 8];
    let mut at = pointer;
    while left > 0 {
        let now = &mut bytes[..left.min(1 << 17) * 8];
        if !memory.read_at(at, now)? {
            return Ok(None);
        }
        all.extend(now.chunks_exact(8).map(|b| word_at(b, 0)).filter(|a| a.is_multiple_of(8) && *a > 0xffff));
        at = at.wrapping_add(now.len() as u64);
        left -= now.len() / 8;
    }
    Ok(Some(all))
}
