//! Where a thread keeps what a goroutine that parks waits for (`m.waitlock`), from the code of `runtime.park_m`, which
//! calls `m.waitunlockf` with it, the field before, and then clears both. Not from a table: it has changed between patch
//! versions (1.23.9 and 1.23.12).

use super::code::{Code, Field};

/// The offset of `m.waitlock`; `None` where the function is not as it is known.
pub(super) fn find(park: &Code<'_>) -> Option<u32> {
    let fields = park.fields();
    let has = |offset: u32, stored: bool| {
        let covers = |field: &Field| field.offset <= offset && offset + 8 <= field.offset + field.length;
        fields.iter().any(|field| field.stored == stored && covers(field))
    };
    let used = |offset: u32| has(offset, false) && has(offset, true);
    let mut found = fields.iter().map(|field| field.offset).filter(|&first| used(first) && used(first + 8));
    let first = found.next()?;
    found.all(|other| other == first).then_some(first + 8)
}
