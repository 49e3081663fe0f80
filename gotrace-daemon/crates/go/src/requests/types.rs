//! Go's type descriptors, which every binary has, stripped or not: layouts of structures by the names of
//! their fields, as `reflect` reads them (`internal/abi/type.go`, Go 1.19 to 1.27).
//!
//! Types are found by their name and import path, without the linker's lists of them. Input is untrusted:
//! every address must lie among the descriptors, a path is as long as its caller wants it, and lists of
//! candidates are bounded. Position-independent executables have their pointers from the relocations.

use std::collections::HashMap;

use super::{
    super::{
        bytes::{slice, u8_at, u32_at, u64_at, uvarint},
        elf::Elf,
        versions,
    },
    HeaderMap,
};

/// Kinds of types (`reflect.Kind`).
const MAP: u8 = 21;
const POINTER: u8 = 22;
const STRUCT: u8 = 25;
const KIND: u8 = 31;
/// Offsets in descriptors.
const FLAGS: u64 = 20;
const NAME: u64 = 40;
/// What a pointer points to; the type of a map's keys.
const ELEMENT: u64 = 48;
const MAP_ELEMENT: u64 = 56;
const FIELDS: u64 = 56;
const FIELD_COUNT: u64 = 64;
const STRUCT_END: u64 = 80;
/// Where what differs between maps begins.
const MAP_TAIL: u64 = 80;
/// A flag: an import path follows the descriptor.
const UNCOMMON: u8 = 1;
/// Bytes of a field: pointers to its name and its type, its offset.
const FIELD: u64 = 24;
/// Larger structures are not looked into.
const MAX_FIELDS: u64 = 1024;
/// Types that share a name; a program has a few.
const MAX_SAME_NAME: usize = 64;
/// A structure's last field begins before this.
const MAX_OFFSET: u64 = 1 << 20;
/// Longest name that is compared.
const MAX_TEXT: usize = 4096;

/// A structure: the address of its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Struct(u64);

/// All type descriptors of a binary.
pub(super) struct Types<'a> {
    begin: u64,
    bytes: &'a [u8],
    /// Words that are set when the binary is loaded, ascending by address.
    relocated: Vec<(u64, u64)>,
    /// Types by the name of a pointer to them.
    named: HashMap<&'static str, Vec<Struct>>,
}

impl<'a> Types<'a> {
    /// The descriptors, and among them those of the wanted structures, named as `http.Request`. Without
    /// module data there are none.
    pub fn find(elf: &Elf<'a>, module: Option<u64>, minor: u32, wanted: &[&'static str]) -> Option<Self> {
        /// Every program has it.
        const KNOWN: &str = "runtime.TypeAssertionError";
        let mut relocated: Vec<_> = elf.relative_relocations().collect();
        relocated.sort_unstable_by_key(|&(at, _)| at);
        let module = module?;
        let contents = elf.bytes_from(module)?;
        let mut found = Self { begin: module, bytes: contents, relocated, named: HashMap::new() };
        let ranges: Vec<_> = versions::type_ranges(minor)
            .into_iter()
            .filter_map(|(begin, end)| {
                let begin = found.word(module.checked_add(begin)?)?;
                let len = found.word(module.checked_add(end)?)?.checked_sub(begin)?;
                Some((begin, elf.bytes_from(begin)?.get(..usize::try_from(len).ok()?)?))
            })
            .collect();
        let mut names = wanted.to_vec();
        names.push(KNOWN);
        for (begin, bytes) in ranges {
            (found.begin, found.bytes) = (begin, bytes);
            found.named = found.structs(&names);
            // That what was taken for descriptors is some.
            if found.named(KNOWN, "runtime").is_some() {
                return Some(found);
            }
        }
        None
    }

    /// The structure with a name, of the package with an import path.
    pub fn named(&self, name: &str, package: &str) -> Option<Struct> {
        let candidates = self.named.get(name)?;
        candidates.iter().copied().find(|&s| self.package(s) == Some(package.as_bytes()))
    }

    /// The descriptor of the pointer to a structure, which interface values hold; its link-time address.
    pub fn pointer_to(&self, target: Struct) -> Option<u64> {
        let at = self.half(target.0, 44).filter(|&offset| offset != 0)?;
        let address = self.begin.checked_add(at.into())?;
        (self.kind(address)? == POINTER && self.word(address + ELEMENT)? == target.0).then_some(address)
    }

    /// Where a field of a field is: bytes to go on from the beginning, and after each but the last of these a
    /// pointer is followed. The error is how many names there is something for.
    pub fn path(&self, from: Struct, names: &[&str]) -> Result<Vec<u32>, usize> {
        let mut path = vec![0u32];
        let mut at = Ok(from);
        for (n, name) in names.iter().enumerate() {
            let holder: Struct = at.map_err(|()| n)?;
            let (offset, kind) = self.field(holder, name).ok_or(n)?;
            let last = path.last_mut().ok_or(n)?;
            *last = last.checked_add(offset).ok_or(n)?;
            let pointed = (self.kind(kind) == Some(POINTER)).then(|| self.word(kind + ELEMENT)).flatten();
            at = self.as_struct(pointed.unwrap_or(kind)).ok_or(());
            if pointed.is_some() && n + 1 < names.len() {
                path.push(0);
            }
        }
        Ok(path)
    }

    /// How the map in a field lies, where keys are strings and elements slices.
    pub fn map(&self, holder: Struct, name: &str) -> Option<HeaderMap> {
        let (_, map) = self.field(holder, name)?;
        let size = |at: u64| u32::try_from(self.word(self.word(map + at)?)?).ok();
        let (key, element) = (size(ELEMENT)?, size(MAP_ELEMENT)?);
        if self.kind(map)? != MAP || (key, element) != (16, 24) {
            return None;
        }
        let tail = |n: u64| self.word(map.wrapping_add(MAP_TAIL + 8 * n));
        let half = |n: u64| u32::try_from(tail(n)?).ok().filter(|&v| v < 4096);
        // Eight entries in each: first bytes of hashes, keys, elements, a pointer to the next bucket.
        let bucket = 8 + 8 * (key + element) + 8;
        let first = tail(0)?;
        if first & 0xffff_ffff == u64::from(bucket << 16 | element << 8 | key) {
            return Some(HeaderMap {
                swiss: false,
                size: bucket,
                keys: 8,
                key_stride: key,
                elements: 8 + 8 * key,
                element_stride: element,
            });
        }
        // A word of control bytes, then eight slots; from Go 1.27 on the places are told one by one.
        let (size, second, third) = (half(0)?, half(1)?, half(2)?);
        let slot = key + element;
        if size == 8 + 8 * slot && second == slot && third == key {
            return Some(HeaderMap {
                swiss: true,
                size,
                keys: 8,
                key_stride: slot,
                elements: 8 + third,
                element_stride: slot,
            });
        }
        let found = HeaderMap {
            swiss: true,
            size,
            keys: second,
            key_stride: third,
            elements: half(3)?,
            element_stride: half(4)?,
        };
        let inside =
            |at: u32, stride: u32, len: u32| at >= 8 && stride >= len && at + 7 * stride + len <= size;
        let holds = inside(found.keys, found.key_stride, key)
            && inside(found.elements, found.element_stride, element)
            && size == 8 + 8 * slot;
        holds.then_some(found)
    }

    /// Structures by name: a walk over the bytes for the names, another for the descriptors that have them.
    fn structs(&self, wanted: &[&'static str]) -> HashMap<&'static str, Vec<Struct>> {
        let mut offsets: HashMap<u32, &'static str> = HashMap::new();
        let mut counts: HashMap<&'static str, usize> = HashMap::new();
        for (at, _) in self.bytes.iter().enumerate().filter(|&(at, &b)| b == b'*' && at >= 2) {
            let len = usize::from(self.bytes[at - 1]);
            let Some(text) = slice(self.bytes, at + 1, len.saturating_sub(1)) else { continue };
            if let Some(name) = wanted.iter().find(|w| w.as_bytes() == text)
                && let Ok(offset) = u32::try_from(at - 2)
            {
                let count = counts.entry(name).or_default();
                *count += 1;
                if *count <= MAX_SAME_NAME {
                    offsets.insert(offset, name);
                }
            }
        }
        let mut found: HashMap<&'static str, Vec<Struct>> = HashMap::new();
        if offsets.is_empty() {
            return found;
        }
        let first = usize::try_from(self.begin.wrapping_neg() % 8).unwrap_or_default();
        for (n, descriptor) in self.bytes.get(first..).unwrap_or_default().chunks_exact(8).enumerate() {
            let Some(name) = u32_at(descriptor, 0).and_then(|offset| offsets.get(&offset)) else { continue };
            let at = self.begin.wrapping_add((first + 8 * n) as u64);
            let Some(address) = at.checked_sub(NAME) else { continue };
            let target = match self.kind(address) {
                Some(POINTER) => self.word(address.saturating_add(ELEMENT)),
                _ => Some(address),
            };
            let Some(target) = target.and_then(|t| self.as_struct(t)) else { continue };
            let known = found.entry(name).or_default();
            if known.len() < MAX_SAME_NAME && !known.contains(&target) {
                known.push(target);
            }
        }
        found
    }

    fn as_struct(&self, address: u64) -> Option<Struct> {
        (self.kind(address)? == STRUCT).then_some(Struct(address))
    }

    fn kind(&self, address: u64) -> Option<u8> {
        // What follows a descriptor can be added without overflow then.
        self.at(address, 80)?;
        Some(u8_at(self.at(address, 48)?, 23)? & KIND)
    }

    /// A field's offset and type.
    fn field(&self, holder: Struct, name: &str) -> Option<(u32, u64)> {
        let fields = self.word(holder.0 + FIELDS)?;
        let count = self.word(holder.0 + FIELD_COUNT)?.min(MAX_FIELDS);
        let mut at = (0..count).map_while(|n| fields.checked_add(n * FIELD));
        let at = at.find(|&at| self.word(at).and_then(|text| self.text(text)) == Some(name.as_bytes()))?;
        let offset = self.word(at.checked_add(16)?)?;
        let kind = self.word(at.checked_add(8)?)?;
        self.kind(kind)?;
        Some((u32::try_from(offset).ok().filter(|&o| u64::from(o) < MAX_OFFSET)?, kind))
    }

    /// A structure's import path.
    fn package(&self, of: Struct) -> Option<&'a [u8]> {
        let flags = u8_at(self.at(of.0, 48)?, usize::try_from(FLAGS).ok()?)?;
        let offset = self.half(of.0, STRUCT_END).filter(|&offset| flags & UNCOMMON != 0 && offset != 0)?;
        self.text(self.begin.checked_add(offset.into())?)
    }

    /// The text of a name: flags, length, text.
    fn text(&self, address: u64) -> Option<&'a [u8]> {
        let from = usize::try_from(address.checked_sub(self.begin)?).ok()?;
        let mut at = from.checked_add(1)?;
        let len = uvarint(self.bytes, &mut at)? as usize;
        slice(self.bytes, at, len).filter(|text| text.len() <= MAX_TEXT)
    }

    fn at(&self, address: u64, len: usize) -> Option<&'a [u8]> {
        slice(self.bytes, usize::try_from(address.checked_sub(self.begin)?).ok()?, len)
    }

    fn half(&self, address: u64, offset: u64) -> Option<u32> {
        u32_at(self.at(address.checked_add(offset)?, 4)?, 0)
    }

    /// A word, as it is when the binary is loaded at its link-time address.
    fn word(&self, address: u64) -> Option<u64> {
        let inside = u64_at(self.at(address, 8)?, 0)?;
        let set = self.relocated.binary_search_by_key(&address, |&(at, _)| at).ok();
        Some(set.and_then(|n| self.relocated.get(n)).map_or(inside, |&(_, value)| value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u64 = 0x1000;

    /// Descriptors of `type T struct { next *T; x [4]byte; m U }` of package `a/b` and of `U`, with a pointer.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0u8; 0x400];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        let word = |n: u64| n.to_le_bytes();
        for (at, text) in [(0x10, "*b.T"), (0x20, "a/b"), (0x28, "next"), (0x30, "m"), (0x38, "u")] {
            put(at + 1, &[text.len() as u8]);
            put(at + 2, text.as_bytes());
        }
        // A pointer at 0x100, T at 0x180, U at 0x280; their fields behind them.
        put(0x100 + 23, &[POINTER]);
        put(0x100 + 40, &0x10u32.to_le_bytes());
        put(0x100 + 48, &word(BEGIN + 0x180));
        put(0x180 + 20, &[UNCOMMON]);
        put(0x180 + 23, &[STRUCT]);
        put(0x180 + 44, &0x100u32.to_le_bytes());
        put(0x180 + 56, &word(BEGIN + 0x200));
        put(0x180 + 64, &word(2));
        put(0x180 + 80, &0x20u32.to_le_bytes());
        for (n, (name, kind, offset)) in [(0x28, 0x100, 0), (0x30, 0x280, 16)].into_iter().enumerate() {
            let at = 0x200 + 24 * n;
            put(at, &word(BEGIN + name));
            put(at + 8, &word(BEGIN + kind));
            put(at + 16, &word(offset));
        }
        put(0x280 + 23, &[STRUCT]);
        put(0x280 + 56, &word(BEGIN + 0x300));
        put(0x280 + 64, &word(1));
        put(0x300, &word(BEGIN + 0x38));
        put(0x308, &word(BEGIN + 0x100));
        put(0x310, &word(8));
        bytes
    }

    fn types(bytes: &[u8]) -> Types<'_> {
        let mut types = Types { begin: BEGIN, bytes, relocated: Vec::new(), named: HashMap::new() };
        types.named = types.structs(&["b.T"]);
        types
    }

    #[test]
    fn structures_by_name_and_import_path() {
        let bytes = sample();
        let types = types(&bytes);
        let t = types.named("b.T", "a/b").expect("there is one");
        assert_eq!(types.named("b.T", "b"), None);
        assert_eq!(types.pointer_to(t), Some(BEGIN + 0x100));
        assert_eq!(types.path(t, &["next"]), Ok(vec![0]));
        assert_eq!(types.path(t, &["m", "u"]), Ok(vec![24]));
        assert_eq!(types.path(t, &["m", "u", "next", "m"]), Ok(vec![24, 0, 16]));
        assert_eq!(types.path(t, &["m", "x"]), Err(1));
        assert_eq!(types.map(t, "m"), None);
    }

    #[test]
    fn relocated_words_replace_those_of_the_file() {
        let mut bytes = sample();
        bytes[0x200..0x210].fill(0);
        let mut types = types(&bytes);
        let t = types.named("b.T", "a/b").expect("there is one");
        assert_eq!(types.path(t, &["next"]), Err(0));
        types.relocated = vec![(BEGIN + 0x200, BEGIN + 0x28), (BEGIN + 0x208, BEGIN + 0x100)];
        assert_eq!(types.path(t, &["next"]), Ok(vec![0]));
    }

    #[test]
    fn hostile_descriptors_end_with_nothing() {
        let bytes = sample();
        // Every word of it once as each of these: out of range, itself, huge, negative, overflowing.
        for at in (0..bytes.len() - 8).step_by(4) {
            for value in [0, 1, 0x1180, 0x13f9, u64::MAX, u64::MAX - 40, 1 << 63, 0x1100] {
                let mut bytes = bytes.clone();
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                let types = types(&bytes);
                for found in types.named.values().flatten() {
                    let _ = types.path(*found, &["m", "u", "next", "next", "next", "x"]);
                    let _ = (types.map(*found, "m"), types.pointer_to(*found), types.package(*found));
                }
            }
        }
        // A pointer to itself is no structure; one field list of all memory ends at its bound.
        let mut cyclic = bytes.clone();
        cyclic[0x100 + 48..0x100 + 56].copy_from_slice(&(BEGIN + 0x100).to_le_bytes());
        assert_eq!(types(&cyclic).named("b.T", "a/b"), None);
        let mut huge = bytes;
        huge[0x180 + 64..0x180 + 72].copy_from_slice(&u64::MAX.to_le_bytes());
        let types = types(&huge);
        let t = types.named("b.T", "a/b").expect("there is one");
        assert_eq!(types.path(t, &["absent"]), Err(0));
    }

    #[test]
    fn maps_of_three_kinds() {
        let base = sample();
        let read = |tail: &[u64]| {
            // The field `m` becomes a map; its key and element types have their sizes first.
            let mut bytes = base.clone();
            let mut put = |at: usize, n: u64| bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
            put(0x280 + 48, BEGIN + 0x360);
            put(0x280 + 56, BEGIN + 0x368);
            put(0x360, 16);
            put(0x368, 24);
            for (n, &value) in tail.iter().enumerate() {
                put(0x280 + 80 + 8 * n, value);
            }
            bytes[0x280 + 23] = MAP;
            let types = types(&bytes);
            types.map(types.named("b.T", "a/b").expect("there is one"), "m")
        };
        let words = |m: HeaderMap| (m.swiss, m.size, m.keys, m.key_stride, m.elements, m.element_stride);
        let old = 4 << 32 | 336 << 16 | 24 << 8 | 16;
        assert_eq!(read(&[old, 0, 0]).map(words), Some((false, 336, 8, 16, 136, 24)));
        assert_eq!(read(&[328, 40, 16]).map(words), Some((true, 328, 8, 40, 24, 40)));
        assert_eq!(read(&[328, 8, 40, 24, 40]).map(words), Some((true, 328, 8, 40, 24, 40)));
        assert_eq!(read(&[328, 8, 16, 136, 24]).map(words), Some((true, 328, 8, 16, 136, 24)));
        assert_eq!(read(&[328, 8, 40, 124, 40]), None);
        assert_eq!(read(&[u64::MAX, 8, 40, 24, 40]), None);
    }
}
