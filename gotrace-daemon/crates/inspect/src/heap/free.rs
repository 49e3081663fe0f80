//! Which objects of spans are free: what is still in them means nothing, though a word may look like a
//! pointer to them (`runtime/mbitmap.go`, `isFree`).
//!
//! A span's objects are handed out in their order: those from its free index on are free unless they were
//! in use when the collector last swept the span, for which it has a bit an object. An object may be handed
//! out after that was read: what looked like a pointer to a free object is kept, and looked up again at the
//! end of a pass.

use super::{bits::Bits, layout::Span, table::Table};
use crate::snapshot::Pieces;
use gotrace_process::{ProcessError, ReadMemory};

/// Bits lie next to each other.
const GAP: u64 = 256;

/// The objects of spans that are free, as numbers of [`Table::entries`]. What cannot be read is not free.
pub(super) fn read(memory: &dyn ReadMemory, table: &Table) -> Result<Bits, ProcessError> {
    let free = Bits::new(table.objects);
    let spans: Vec<(Span, u64)> = table.entries.iter().map(|e| (e.span, e.first)).collect();
    each(memory, &spans, |first, n| {
        free.set(first + u64::from(n));
    })?;
    Ok(free)
}

/// Tells the free objects of spans, with what was given beside their span.
pub(super) fn each(
    memory: &dyn ReadMemory,
    spans: &[(Span, u64)],
    mut tell: impl FnMut(u64, u32),
) -> Result<(), ProcessError> {
    // A span of one object is given up when that is free.
    let known = |s: &Span| s.count > 1 && s.free_index < s.count && s.alloc_bits > 0xffff;
    let mut wanted: Vec<&(Span, u64)> = spans.iter().filter(|(s, _)| known(s)).collect();
    wanted.sort_unstable_by_key(|(s, _)| s.alloc_bits);
    let items: Vec<(u64, u32)> = wanted.iter().map(|(s, _)| (s.alloc_bits, s.count.div_ceil(8))).collect();
    let (mut first, mut pieces) = (0, Pieces::default());
    while first < items.len() {
        let done = pieces.read(memory, &items[first..], GAP)?;
        for n in 0..done {
            let (span, given) = wanted[first + n];
            let Some(bits) = pieces.item(n, items[first + n].1 as usize) else { continue };
            for index in span.free_index..span.count {
                if bits.get(index as usize / 8).is_some_and(|byte| byte & 1 << (index % 8) == 0) {
                    tell(*given, index);
                }
            }
        }
        first += done;
    }
    Ok(())
}
