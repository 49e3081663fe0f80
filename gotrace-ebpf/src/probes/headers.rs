//! The `traceparent` header of a request, out of Go's map of headers.

use gotrace_common::request::{HeaderMap, TRACEPARENT_BYTES};

use crate::go_abi::{read_text, read_word, read_words};

/// Groups or buckets that are looked at, those that overflow among them.
const MAX_GROUPS: u64 = 8;
/// Entries of one.
const ENTRIES: u64 = 8;
/// `HeaderMap::kind` of a Swiss map.
const SWISS: u16 = 2;
/// Slots of an old map hold an entry from this top hash on (`minTopHash`, runtime/map.go).
const MIN_TOP_HASH: u64 = 5;
/// Length of what is looked for: "Traceparent".
const KEY_LENGTH: u64 = 11;

/// Writes the header's value to `to`, where a request's map of headers has it.
///
/// # Safety
/// `to` must be valid for writing [`TRACEPARENT_BYTES`], filled with 0.
#[inline(always)]
pub unsafe fn traceparent(map: u64, layout: &HeaderMap, to: *mut u8) -> Option<()> {
    if layout.kind == 0 || map == 0 {
        return None;
    }
    let values = find(layout, map)?;
    let [pointer, length] = read_words::<2>(read_word(values)?)?;
    if length == TRACEPARENT_BYTES as u64 - 1 {
        // SAFETY: as the caller says.
        unsafe { read_text::<TRACEPARENT_BYTES>(to, pointer, length) };
    }
    Some(())
}

/// The address of the slice of values.
#[inline(always)]
fn find(layout: &HeaderMap, map: u64) -> Option<u64> {
    let size = u64::from(layout.size);
    let swiss = layout.kind == SWISS;
    let (mut group, groups);
    if swiss {
        // dirPtr, dirLen (internal/runtime/maps/map.go)
        let [directory, tables] = read_words::<2>(map + 16)?;
        if tables == 0 {
            (group, groups) = (directory, 1);
        } else {
            // table.groups: data, lengthMask
            let [data, mask] = read_words::<2>(read_word(directory)? + 16)?;
            (group, groups) = (data, mask + 1);
        }
    } else {
        // count, flags, B (runtime/map.go)
        let [head, buckets] = read_words::<2>(map + 8)?;
        (group, groups) = (buckets, 1 << (head >> 8 & 63));
    }
    let (mut first, mut seen) = (group, 0);
    let mut control = read_word(group)?;
    // One loop for all entries, so that the compiler does not unroll it.
    for n in 0..MAX_GROUPS * ENTRIES {
        let entry = n % ENTRIES;
        if n != 0 && entry == 0 {
            let overflow = if swiss { 0 } else { read_word(group + size - 8)? };
            if overflow != 0 {
                group = overflow;
            } else {
                seen += 1;
                if seen >= groups {
                    return None;
                }
                first += size;
                group = first;
            }
            control = read_word(group)?;
        }
        let slot = control >> (8 * entry) & 0xff;
        let full = if swiss { slot & 0x80 == 0 } else { slot >= MIN_TOP_HASH };
        if full && is_key(group + u64::from(layout.keys) + entry * u64::from(layout.key_stride)) {
            return Some(group + u64::from(layout.elements) + entry * u64::from(layout.element_stride));
        }
    }
    None
}

/// Whether a string is what is looked for.
#[inline(always)]
fn is_key(at: u64) -> bool {
    let Some([pointer, KEY_LENGTH]) = read_words::<2>(at) else { return false };
    let mut text = [0u64; 2];
    // SAFETY: as long as stated.
    unsafe { read_text::<16>((&raw mut text).cast(), pointer, KEY_LENGTH) };
    text == [u64::from_ne_bytes(*b"Tracepar"), u64::from_ne_bytes(*b"ent\0\0\0\0\0")]
}
