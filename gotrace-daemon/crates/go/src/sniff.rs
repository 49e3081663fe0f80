//! Whether a file is worth reading whole: a few of its bytes tell that most programs are not Go's.
//!
//! Input: a way to read pieces of the file. Output: `false` only where the table of sections is there and
//! names nothing of Go, and no note is Go's, which has a name of its own; whatever is damaged or missing makes it `true`, and [`super::Binary::parse`] decides.

use object::elf;

use super::bytes::{cstr, u16_at, u32_at, u64_at};

/// Sections of a sane executable are some dozens.
const MAX_SECTIONS: usize = 4096;
const SECTION_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Bytes of notes that are looked at.
const MAX_NOTES: u64 = 4096;
/// Bytes of section names that are looked at.
const MAX_NAMES: u64 = 1 << 20;

/// Whether the file may be a Go program. `read(offset, length)`: that piece of the file, `None` where it has
/// none.
#[must_use]
pub fn may_be_go(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> bool {
    let Some(header) = read(0, 64) else { return false };
    if header.get(..4) != Some(&elf::ELFMAG) {
        return false;
    }
    names(&header, read)
        .is_none_or(|names| names.iter().any(|n| n.starts_with(b".go.") || n.ends_with(b".gopclntab")))
        || has_note(&header, read).unwrap_or(true)
}

/// Whether a note is Go's build id; `None` where the segments cannot be told.
fn has_note(header: &[u8], read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<bool> {
    // e_phoff, e_phentsize, e_phnum.
    let offset = u64_at(header, 32)?;
    let count = usize::from(u16_at(header, 56)?);
    if usize::from(u16_at(header, 54)?) != PROGRAM_HEADER {
        return None;
    }
    let table = read(offset, count * PROGRAM_HEADER)?;
    let notes = table
        .chunks_exact(PROGRAM_HEADER)
        .filter(|entry| u32_at(entry, 0).is_some_and(|kind| elf::ProgramType(kind) == elf::PT_NOTE))
        .filter_map(|entry| {
            let length = usize::try_from(u64_at(entry, 32)?.min(MAX_NOTES)).ok()?;
            read(u64_at(entry, 8)?, length)
        });
    // The type, 4, and the name.
    Some(notes.into_iter().any(|notes| notes.windows(8).any(|note| note == b"\x04\0\0\0Go\0\0")))
}

/// Names of all sections; `None` where they cannot be told.
fn names(header: &[u8], read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    // e_shoff, e_shentsize, e_shnum, e_shstrndx of a 64-bit header (elf(5)).
    let offset = u64_at(header, 40)?;
    let count = usize::from(u16_at(header, 60)?);
    let strings = usize::from(u16_at(header, 62)?);
    if offset == 0 || count == 0 || count > MAX_SECTIONS || usize::from(u16_at(header, 58)?) != SECTION_HEADER
    {
        return None;
    }
    let table = read(offset, count * SECTION_HEADER)?;
    let section = |index: usize| table.get(index * SECTION_HEADER..(index + 1) * SECTION_HEADER);
    let of_names = section(strings)?;
    let (at, length) = (u64_at(of_names, 24)?, u64_at(of_names, 32)?);
    let text = read(at, usize::try_from(length.min(MAX_NAMES)).ok()?)?;
    (0..count).map(|index| Some(cstr(&text, u32_at(section(index)?, 0)? as usize)?.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniff(file: &[u8]) -> bool {
        may_be_go(&|offset, length| {
            let offset = usize::try_from(offset).ok()?;
            file.get(offset..offset.checked_add(length)?).map(<[u8]>::to_vec)
        })
    }

    /// A file with sections of these names.
    fn file(names: &[&str]) -> Vec<u8> {
        let mut text = vec![0];
        let mut headers = vec![0; SECTION_HEADER];
        for name in names {
            let mut header = vec![0; SECTION_HEADER];
            header[..4].copy_from_slice(&u32::try_from(text.len()).expect("short").to_le_bytes());
            text.extend_from_slice(name.as_bytes());
            text.push(0);
            headers.extend(header);
        }
        headers[24..32].copy_from_slice(&64u64.to_le_bytes());
        headers[32..40].copy_from_slice(&(text.len() as u64).to_le_bytes());
        let mut file = vec![0; 64];
        file[..4].copy_from_slice(&elf::ELFMAG);
        file[40..48].copy_from_slice(&(64 + text.len() as u64).to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&u16::try_from(names.len() + 1).expect("few").to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file.extend(text);
        file.extend(headers);
        file
    }

    #[test]
    fn only_what_is_surely_not_go_is_refused() {
        assert!(sniff(&file(&[".text", ".go.buildinfo"])));
        assert!(sniff(&file(&[".data.rel.ro.gopclntab"])));
        assert!(!sniff(&file(&[".text", ".data"])));
        assert!(!sniff(b"#!/bin/sh\n"));
        assert!(!sniff(&[]));
        let mut cut = file(&[".text"]);
        cut.truncate(cut.len() - 1);
        assert!(sniff(&cut), "a damaged table decides nothing");
        let mut none = file(&[".text"]);
        none[60..62].fill(0);
        assert!(sniff(&none));
        // Sections may have other names; the note is found by its segment.
        let mut renamed = file(&[".text", ".renamed"]);
        let end = renamed.len() as u64;
        renamed[32..40].copy_from_slice(&end.to_le_bytes());
        renamed[56..58].copy_from_slice(&1u16.to_le_bytes());
        let mut segment = [0; PROGRAM_HEADER];
        segment[0] = 4;
        segment[8..16].copy_from_slice(&(end + PROGRAM_HEADER as u64).to_le_bytes());
        segment[32] = 24;
        renamed.extend(segment);
        assert!(!sniff(&[&renamed[..], &[0; 24]].concat()));
        assert!(sniff(&[&renamed[..], b"\x04\0\0\0\x08\0\0\0\x04\0\0\0Go\0\0abcdefgh"].concat()));
        for at in 32..64 {
            let mut odd = file(&[".text"]);
            odd[at] = 0xff;
            let _ = sniff(&odd);
        }
    }
}
