//! Where a thread keeps what a goroutine that parks waits for (`m.waitlock`), from the code of `runtime.park_m`, which
//! calls `m.waitunlockf` with it, the field before, and then clears both. Not from a table: it has changed between patch
//! versions (1.23.9 and 1.23.12).

use super::code::{Code, Field};

/// A thread's structure is smaller.
const MAX_OFFSET: u32 = 1 << 14;

/// The offset of `m.waitlock`; `None` where the function is not as it is known.
pub(super) fn find(park: &Code<'_>) -> Option<u32> {
    let mut fields = park.fields();
    fields.retain(|field| field.offset < MAX_OFFSET);
    let has = |offset: u32, stored: bool| {
        let covers = |field: &Field| field.offset <= offset && offset + 8 <= field.offset + field.length;
        fields.iter().any(|field| field.stored == stored && covers(field))
    };
    let used = |offset: u32| has(offset, false) && has(offset, true);
    let mut found = fields.iter().map(|field| field.offset).filter(|&first| used(first) && used(first + 8));
    let first = found.next()?;
    found.all(|other| other == first).then_some(first + 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;

    fn found(bytes: &[u8]) -> Option<u32> {
        find(&Code { arch: Arch::Amd64, bytes, address: 0x1000, name_of: &|_| None })
    }

    /// `mov rcx,[rdx+at]; mov rbx,[rdx+at+8]; mov [rdx+at],rsi; mov [rdx+at+8],rdi`
    fn park(at: u32) -> Vec<u8> {
        let instruction = |code: [u8; 3], offset: u32| [&code[..], &offset.to_le_bytes()].concat();
        let next = at.wrapping_add(8);
        [
            ([0x48, 0x8b, 0x8a], at),
            ([0x48, 0x8b, 0x9a], next),
            ([0x48, 0x89, 0xb2], at),
            ([0x48, 0x89, 0xba], next),
        ]
        .map(|(code, offset)| instruction(code, offset))
        .concat()
    }

    #[test]
    fn it_is_the_second_of_two_that_are_loaded_and_cleared() {
        assert_eq!(found(&park(0x2e0)), Some(0x2e8));
        assert_eq!(found(&[park(0x2e0), park(0x300)].concat()), None, "which of them is not known");
        assert_eq!(found(&park(0x2e0)[..21]), None, "one is not cleared");
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn offsets_that_no_thread_has_are_none() {
        for at in [0x7fff_fff0, 0x7fff_fff8, 0xffff_fff0, 0xffff_fff8, 0x4000] {
            assert_eq!(found(&park(at)), None, "{at:#x}");
        }
    }
}
