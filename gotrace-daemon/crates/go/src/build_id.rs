//! The GNU build id of an executable, which profiles name it by. Bytes in, text out; anything else is `None`.

use std::fmt::Write as _;

use object::Object as _;

/// GNU build ids have 20 bytes; of a longer one so many are told.
const MAX_BYTES: usize = 64;

/// The GNU build id of an ELF file in hexadecimal digits; `None` where it has none.
#[must_use]
pub fn gnu_build_id(bytes: &[u8]) -> Option<String> {
    let file = object::File::parse(bytes).ok()?;
    let id = file.build_id().ok().flatten()?;
    let mut text = String::new();
    for byte in id.get(..MAX_BYTES).unwrap_or(id) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::gnu_build_id;

    /// An ELF file of a header and one section with a note.
    fn with_note(id: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4, id.len() as u32, 3] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(b"GNU\0");
        note.extend_from_slice(id);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2u16, 62] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        file.extend_from_slice(&1u32.to_le_bytes());
        // Entry, program headers behind this one, no section headers, flags.
        for word in [0u64, 64, 0] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 0, 0] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        // PT_NOTE
        for half in [4u32, 4] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        let size = note.len() as u64;
        for word in [120, 0, 0, size, size, 4] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&note);
        file
    }

    #[test]
    fn a_build_id_is_told_in_hexadecimal_digits() {
        assert_eq!(gnu_build_id(&with_note(&[0x01, 0xab, 0xff, 0x00])).as_deref(), Some("01abff00"));
        assert_eq!(gnu_build_id(&with_note(&[7; 100])).map(|id| id.len()), Some(128));
    }

    #[test]
    fn what_is_no_elf_file_has_none() {
        for junk in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &with_note(&[1; 20])[..100]] {
            assert_eq!(gnu_build_id(junk), None);
        }
    }
}
