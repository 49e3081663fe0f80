//! The ELF container: segments, sections, relative relocations, notes.
//!
//! Segments are what the kernel maps, so they must be right; sections are a convenience that `strip` and
//! packers remove or damage, so whatever is wrong with them makes them absent, with a warning.

use object::elf;

use super::{
    Arch, Error,
    bytes::{cstr, slice, u16_at, u32_at, u64_at},
    names,
};

/// Loadable segments of a sane executable are about ten.
const MAX_SEGMENTS: usize = 64;

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub flags: u32,
    pub offset: u64,
    pub address: u64,
    pub file_size: u64,
    pub memory_size: u64,
}

/// A section. Its range in the file is inside the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    pub name: &'a [u8],
    pub flags: u64,
    pub address: u64,
    pub data: &'a [u8],
    pub link: u32,
    pub kind: u32,
}

/// An ELF executable.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    pub data: &'a [u8],
    pub arch: Arch,
    pub pie: bool,
    pub segments: Vec<Segment>,
    pub sections: Vec<Section<'a>>,
    pub warnings: Vec<String>,
    /// A program interpreter is named, so that shared libraries are loaded.
    pub interpreter: bool,
    dynamic: Option<(u64, u64)>,
    notes: Vec<(u64, u64)>,
}

const fn malformed(what: &'static str, at: usize) -> Error {
    Error::Malformed { what, at: at as u64 }
}

impl<'a> Elf<'a> {
    /// Reads the headers.
    pub fn parse(data: &'a [u8]) -> Result<Self, Error> {
        if data.get(..4) != Some(&elf::ELFMAG) {
            return Err(Error::NotElf);
        }
        let header = data.get(..64).ok_or(malformed("the file ends within the ELF header", data.len()))?;
        match header[4] {
            2 => {}
            1 => return Err(Error::unsupported("a 32-bit executable; gotrace supports amd64 and arm64")),
            _ => return Err(malformed("neither a 32-bit nor a 64-bit ELF file", 4)),
        }
        match header[5] {
            1 => {}
            2 => return Err(Error::unsupported("a big-endian executable; gotrace supports amd64 and arm64")),
            _ => return Err(malformed("neither little-endian nor big-endian", 5)),
        }
        let field = |at| u16_at(header, at).unwrap_or_default();
        let arch = match elf::Machine(field(18)) {
            elf::EM_X86_64 => Arch::Amd64,
            elf::EM_AARCH64 => Arch::Arm64,
            elf::Machine(n) => {
                return Err(Error::unsupported(format!(
                    "an executable for ELF machine {n}; gotrace supports amd64 (62) and arm64 (183)"
                )));
            }
        };
        let pie = match elf::FileType(field(16)) {
            elf::ET_EXEC => false,
            elf::ET_DYN => true,
            elf::ET_CORE => return Err(Error::unsupported("a core dump, not an executable")),
            elf::ET_REL => return Err(Error::unsupported("an object file, not an executable")),
            elf::FileType(n) => return Err(Error::unsupported(format!("an ELF file of type {n}"))),
        };
        let mut this = Self {
            data,
            arch,
            pie,
            segments: Vec::new(),
            sections: Vec::new(),
            warnings: Vec::new(),
            interpreter: false,
            dynamic: None,
            notes: Vec::new(),
        };
        this.read_segments(header)?;
        if let Err(why) = this.read_sections(header) {
            this.warnings.push(format!("the section headers are unusable ({why}); using the segments alone"));
        }
        Ok(this)
    }

    fn read_segments(&mut self, header: &[u8]) -> Result<(), Error> {
        let data = self.data;
        let at = usize::try_from(u64_at(header, 32).unwrap_or_default()).unwrap_or(usize::MAX);
        let size = usize::from(u16_at(header, 54).unwrap_or_default());
        let count = usize::from(u16_at(header, 56).unwrap_or_default());
        if count == 0 {
            return Err(malformed("no program headers", 56));
        }
        if size < 56 {
            return Err(malformed("program headers are too small", 54));
        }
        let table = count
            .checked_mul(size)
            .and_then(|len| slice(data, at, len))
            .ok_or(malformed("the program headers are not inside the file", at))?;
        for (i, entry) in table.chunks_exact(size).enumerate() {
            let at = at + i * size;
            let word = |o| u64_at(entry, o).unwrap_or_default();
            let (offset, address, file_size, memory_size) = (word(8), word(16), word(32), word(40));
            let kind = elf::ProgramType(u32_at(entry, 0).unwrap_or_default());
            match kind {
                elf::PT_LOAD => {
                    let in_file = offset.checked_add(file_size).is_some_and(|end| end <= data.len() as u64);
                    if !in_file {
                        return Err(malformed("a segment goes beyond the end of the file", at));
                    }
                    if file_size > memory_size || address.checked_add(memory_size).is_none() {
                        return Err(malformed("a segment has impossible sizes", at));
                    }
                    if self.segments.len() == MAX_SEGMENTS {
                        return Err(malformed("too many segments", at));
                    }
                    let flags = u32_at(entry, 4).unwrap_or_default();
                    self.segments.push(Segment { flags, offset, address, file_size, memory_size });
                }
                elf::PT_DYNAMIC => self.dynamic = Some((offset, file_size)),
                elf::PT_INTERP => self.interpreter = true,
                elf::PT_NOTE if self.notes.len() < MAX_SEGMENTS => self.notes.push((offset, file_size)),
                _ => {}
            }
        }
        if self.segments.is_empty() {
            return Err(malformed("no loadable segment", at));
        }
        Ok(())
    }

    fn read_sections(&mut self, header: &[u8]) -> Result<(), &'static str> {
        let data = self.data;
        let at = usize::try_from(u64_at(header, 40).unwrap_or_default()).unwrap_or(usize::MAX);
        let size = usize::from(u16_at(header, 58).unwrap_or_default());
        let mut count = usize::from(u16_at(header, 60).unwrap_or_default());
        let mut names = usize::from(u16_at(header, 62).unwrap_or_default());
        if at == 0 {
            return Ok(());
        }
        if size < 64 {
            return Err("they are too small");
        }
        // Numbers that do not fit the header are in the first section header.
        if count == 0 {
            count = slice(data, at, 64)
                .and_then(|s| usize::try_from(u64_at(s, 32)?).ok())
                .ok_or("they are outside of the file")?;
        }
        if names == usize::from(elf::SHN_XINDEX.0) {
            names = slice(data, at, 64)
                .and_then(|s| usize::try_from(u32_at(s, 40)?).ok())
                .ok_or("they are outside of the file")?;
        }
        let table = count
            .checked_mul(size)
            .and_then(|len| slice(data, at, len))
            .ok_or("they are outside of the file")?;
        let range = |entry: &[u8]| {
            let (offset, len) = (u64_at(entry, 24)?, u64_at(entry, 32)?);
            slice(data, usize::try_from(offset).ok()?, usize::try_from(len).ok()?)
        };
        let strings = names
            .checked_mul(size)
            .and_then(|o| slice(table, o, size))
            .and_then(range)
            .ok_or("their names are outside of the file")?;
        let mut cut = 0;
        for entry in table.chunks_exact(size).skip(1) {
            let kind = u32_at(entry, 4).unwrap_or_default();
            let name = u32_at(entry, 0).and_then(|n| cstr(strings, n as usize)).unwrap_or_default();
            let contents =
                if elf::SectionType(kind) == elf::SHT_NOBITS { Some(&[][..]) } else { range(entry) };
            let (kind, contents) = match contents {
                Some(c) => (kind, c),
                // Kept, so that indices stay right; absent for every search.
                None => {
                    cut += 1;
                    (elf::SHT_NULL.0, &[][..])
                }
            };
            self.sections.push(Section {
                name,
                flags: u64_at(entry, 8).unwrap_or_default(),
                address: u64_at(entry, 16).unwrap_or_default(),
                data: contents,
                link: u32_at(entry, 40).unwrap_or_default(),
                kind,
            });
        }
        if cut > 0 {
            self.warnings.push(format!("{cut} sections go beyond the end of the file and are not used"));
        }
        Ok(())
    }

    /// The section with a name that has contents in the file.
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections
            .iter()
            .find(|s| s.name == name.as_bytes() && s.kind != elf::SHT_NULL.0 && !s.data.is_empty())
    }

    /// The section that another one's `link` names.
    pub fn linked(&self, section: &Section<'_>) -> Option<&Section<'a>> {
        self.sections.get((section.link as usize).checked_sub(1)?)
    }

    /// File offset of a loaded address that has bytes in the file.
    pub fn offset_of(&self, address: u64) -> Option<usize> {
        let s = self.segments.iter().find(|s| contains(s.address, s.file_size, address))?;
        usize::try_from(s.offset + (address - s.address)).ok()
    }

    /// The bytes from a loaded address to the end of its segment.
    pub fn bytes_from(&self, address: u64) -> Option<&'a [u8]> {
        let s = self.segments.iter().find(|s| contains(s.address, s.file_size, address))?;
        let offset = usize::try_from(s.offset).ok()?;
        let all = slice(self.data, offset, usize::try_from(s.file_size).ok()?)?;
        all.get(usize::try_from(address - s.address).ok()?..)
    }

    /// Contents of a segment.
    pub fn contents(&self, segment: &Segment) -> &'a [u8] {
        usize::try_from(segment.offset)
            .ok()
            .and_then(|o| slice(self.data, o, usize::try_from(segment.file_size).ok()?))
            .unwrap_or_default()
    }

    /// Whether an address is in an executable segment.
    pub fn is_code(&self, address: u64) -> bool {
        self.segments
            .iter()
            .any(|s| s.flags & elf::PF_X.0 != 0 && contains(s.address, s.memory_size, address))
    }

    /// Whether an address is in a writable segment, also where the file has no bytes for it.
    pub fn is_data(&self, address: u64) -> bool {
        self.segments
            .iter()
            .any(|s| s.flags & elf::PF_W.0 != 0 && contains(s.address, s.memory_size, address))
    }

    /// Entries of the dynamic section.
    fn dynamic(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let data = self.data;
        let table = self
            .dynamic
            .and_then(|(o, n)| slice(data, usize::try_from(o).ok()?, usize::try_from(n).ok()?))
            .unwrap_or_default();
        table
            .chunks_exact(16)
            .map(|e| (u64_at(e, 0).unwrap_or_default(), u64_at(e, 8).unwrap_or_default()))
            .take_while(|&(tag, _)| tag != 0)
    }

    /// Whether a shared library is needed.
    pub fn needs_libraries(&self) -> bool {
        self.dynamic().any(|(tag, _)| tag == 1)
    }

    /// Relative relocations with addends: (address, value before the load bias is added). The packed
    /// form keeps its values in place, so that it needs no list.
    pub fn relative_relocations(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        const DT_RELA: u64 = 7;
        const DT_RELASZ: u64 = 8;
        let relative = match self.arch {
            Arch::Amd64 => elf::R_X86_64_RELATIVE.0,
            Arch::Arm64 => elf::R_AARCH64_RELATIVE.0,
        };
        let (mut address, mut size) = (0, 0);
        for (tag, value) in self.dynamic() {
            match tag {
                DT_RELA => address = value,
                DT_RELASZ => size = value,
                _ => {}
            }
        }
        let table = self.bytes_from(address).filter(|_| size > 0).unwrap_or_default();
        let table = table.get(..usize::try_from(size).unwrap_or(usize::MAX)).unwrap_or(table);
        table.chunks_exact(24).filter_map(move |e| {
            let (at, info, addend) = (u64_at(e, 0)?, u64_at(e, 8)?, u64_at(e, 16)?);
            (info & 0xffff_ffff == u64::from(relative)).then_some((at, addend))
        })
    }

    /// Go's build id, from its note.
    pub fn go_build_id(&self) -> Option<String> {
        const GO_BUILD_ID: u32 = 4;
        let read = |notes: &[u8]| {
            let mut at = 0;
            // Each note takes at least 12 bytes, so this ends.
            while let Some(head) = slice(notes, at, 12) {
                let size = |o| u32_at(head, o).map(|n| n as usize);
                let (name_size, value_size) = (size(0)?, size(4)?);
                let name = slice(notes, at + 12, name_size)?;
                let value_at = (at + 12).checked_add(name_size)?.checked_next_multiple_of(4)?;
                let value = slice(notes, value_at, value_size)?;
                if name == b"Go\0\0" && u32_at(head, 8)? == GO_BUILD_ID {
                    return Some(names::text_within(value, names::MAX_VERSION));
                }
                at = value_at.checked_add(value_size)?.checked_next_multiple_of(4)?;
            }
            None
        };
        self.notes
            .iter()
            .filter_map(|&(o, n)| slice(self.data, usize::try_from(o).ok()?, usize::try_from(n).ok()?))
            .chain(self.section(".note.go.buildid").map(|s| s.data))
            .find_map(read)
    }
}

const fn contains(begin: u64, size: u64, at: u64) -> bool {
    at >= begin && at - begin < size
}

/// See [`super::Binary::load_bias`].
pub(super) fn load_bias(segments: &[Segment], start: u64, file_offset: u64) -> Option<u64> {
    // The kernel maps whole pages: the mapping may begin before the segment does.
    const LARGEST_PAGE: u64 = 65536;
    let begins = |s: &&Segment| {
        s.offset >= file_offset
            && s.offset - file_offset < LARGEST_PAGE
            && s.offset % 4096 == s.address % 4096
            && s.offset / 4096 == file_offset / 4096
    };
    let segment = segments
        .iter()
        .find(begins)
        .or_else(|| segments.iter().find(|s| contains(s.offset, s.file_size, file_offset)))?;
    let address = segment.address.wrapping_add(file_offset.wrapping_sub(segment.offset));
    Some(start.wrapping_sub(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, address: u64, size: u64) -> Segment {
        Segment { flags: 5, offset, address, file_size: size, memory_size: size }
    }

    #[test]
    fn bias_from_any_mapping() {
        let segments = [segment(0, 0, 0x1234), segment(0x1234, 0x3234, 0x5000)];
        assert_eq!(load_bias(&segments, 0x7f00_0000_0000, 0), Some(0x7f00_0000_0000));
        // The second segment is mapped from the page that it begins in.
        assert_eq!(load_bias(&segments, 0x7f00_0000_3000, 0x1000), Some(0x7f00_0000_0000));
        // A mapping that was split later.
        assert_eq!(load_bias(&segments, 0x7f00_0000_5000, 0x3000), Some(0x7f00_0000_0000));
        assert_eq!(load_bias(&segments, 0x7f00_0000_5000, 0x3000_0000), None);
        let fixed = [segment(0, 0x40_0000, 0x5000)];
        assert_eq!(load_bias(&fixed, 0x40_0000, 0), Some(0));
    }

    #[test]
    fn other_files_are_named() {
        let mut header = [0u8; 64];
        assert_eq!(Elf::parse(&header).expect_err("zeros"), Error::NotElf);
        assert_eq!(Elf::parse(b"").expect_err("empty"), Error::NotElf);
        header[..4].copy_from_slice(b"\x7fELF");
        for (class, order, machine, word) in [
            (1, 1, 62, "32-bit"),
            (2, 2, 62, "big-endian"),
            (2, 1, 243, "machine 243"),
            (9, 1, 62, "neither"),
        ] {
            (header[4], header[5], header[18]) = (class, order, machine);
            header[16] = 2;
            let error = Elf::parse(&header).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = Elf::parse(&header[..40]).expect_err("short").to_string();
        assert!(error.contains("ends within"), "{error}");
    }
}
