//! Where the runtime keeps what it knows of a span of its heap (`runtime/mheap.go`, `mspan`, `special`),
//! and whether a span that was read can be one.
//!
//! Offsets come from [`gotrace_go`]: debug information where there is some, else the table of versions,
//! which a test of the workspace holds against debug information. Refuses a version that is not known.

use super::HeapError;
use crate::snapshot::{half_at, word_at};
use gotrace_go::Binary;

/// Bytes of a page of the runtime's heap, on every architecture.
pub(super) const PAGE: u64 = 8192;
/// Objects up to this size have their map at the end of their span (`gc.MinSizeForMallocHeader`).
pub(super) const BITS_UP_TO: u64 = 512;
/// Bytes of that map: a bit a word of a page.
pub(super) const MAP: u64 = PAGE / 64;
/// Bytes of marks behind it (`runtime.spanInlineMarkBits`), where there are any; not for objects of one word.
const MARKS: u64 = 128;
/// User addresses of both architectures.
const MAX_ADDRESS: u64 = 1 << 52;
/// A span of small objects has no more (`runtime.mspan.nelems` is a `uint16`).
const MAX_ELEMENTS: u64 = u16::MAX as u64;
/// Pages of the largest object that is believed: 128 GiB.
const MAX_PAGES: u64 = 1 << 24;

/// What is kept beside an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpecialKind {
    Finalizer,
    WeakHandle,
    Cleanup,
    /// Of no consequence to what is reachable.
    Other,
}

/// Offsets in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    start: usize,
    pages: usize,
    elements: usize,
    /// `nelems` and `freeindex` are words, not a `uint16` (up to Go 1.21).
    wide_elements: bool,
    class: usize,
    state: usize,
    element_size: usize,
    specials: usize,
    free_index: usize,
    alloc_bits: usize,
    /// From Go 1.22 on, which then says beside each object where its pointers are.
    large_type: Option<usize>,
    /// As much of an `mspan` as is read.
    pub len: usize,
    special_next: usize,
    special_offset: usize,
    /// `special.offset` is a word, not a `uint16` (from Go 1.24 on).
    wide_offset: bool,
    special_kind: usize,
    kinds: (u8, Option<u8>, Option<u8>),
    /// As much of a special as is read: its own fields, and those of each kind.
    pub special_len: usize,
    /// Where a module's data says where its descriptions of types begin and end.
    pub types: (usize, usize),
}

/// A span in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// Its first address.
    pub base: u64,
    /// Its length.
    pub bytes: u64,
    /// Bytes of an object.
    pub size: u64,
    /// How many objects it has room for.
    pub count: u32,
    /// Whether its objects have no pointers.
    pub noscan: bool,
    /// First of what is kept beside its objects; 0 for none.
    pub specials: u64,
    /// Objects from this one on are free unless a bit says otherwise.
    pub free_index: u32,
    /// Where those bits are, one an object; 0 for none.
    pub alloc_bits: u64,
    /// Who says where pointers are in its objects.
    pub pointers: Pointers,
}

/// Who says where pointers are in the objects of a span (`runtime/mbitmap.go`, Go 1.22 to 1.27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pointers {
    /// Nobody: every word may be one.
    #[default]
    Unknown,
    /// A bit a word of the span, so far into it.
    Bits(u32),
    /// Each object's first word is its type.
    Header,
    /// All of it is of this type.
    Type(u64),
}

/// What an `mspan` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Objects.
    Objects(Span),
    /// The runtime's own: stacks, buffers. First address and length.
    Manual(u64, u64),
    /// Nothing.
    Free,
    /// What cannot be.
    Nonsense,
}

impl Layout {
    /// For a program.
    pub fn new(binary: &Binary) -> Result<Self, HeapError> {
        let version = binary.go_version();
        let unknown = || HeapError::Unknown { version: version.text.clone() };
        if binary.layout_is_extrapolated() {
            return Err(unknown());
        }
        let get = |field: &str| {
            binary.offsets().get(field).map(|o| o as usize).filter(|&o| o <= 4096).ok_or_else(unknown)
        };
        let specials = get("mspan.specials")?;
        let element_size = get("mspan.elemsize")?;
        let special_kind = get("special.kind")?;
        let large_type = get("mspan.largeType").ok();
        Ok(Self {
            start: get("mspan.startAddr")?,
            pages: get("mspan.npages")?,
            elements: get("mspan.nelems")?,
            wide_elements: version.minor <= 21,
            class: get("mspan.spanclass")?,
            state: get("mspan.state")?,
            element_size,
            specials,
            free_index: get("mspan.freeindex")?,
            alloc_bits: get("mspan.allocBits")?,
            large_type,
            len: specials.max(element_size).max(large_type.unwrap_or(0)) + 8,
            types: (get("moduledata.types")?, get("moduledata.etypes")?),
            special_next: get("special.next")?,
            special_offset: get("special.offset")?,
            wide_offset: version.minor >= 24,
            special_kind,
            kinds: binary.special_kinds(),
            // A finalizer has four words behind the fields of all, a cleanup as many.
            special_len: (special_kind + 8) / 8 * 8 + 32,
        })
    }

    /// What an `mspan` says.
    pub fn parse(&self, bytes: &[u8]) -> Holds {
        let at = |offset| word_at(bytes, offset);
        let (base, pages) = (at(self.start), at(self.pages));
        let state = bytes.get(self.state).copied();
        let placed = base != 0
            && base.is_multiple_of(PAGE)
            && (1..=MAX_PAGES).contains(&pages)
            && base.checked_add(pages * PAGE).is_some_and(|end| end <= MAX_ADDRESS);
        match state {
            Some(0) => Holds::Free,
            Some(2) if placed => Holds::Manual(base, pages * PAGE),
            Some(1) if placed => {
                let number = |offset| match self.wide_elements {
                    true => at(offset),
                    false => u64::from(half_at(bytes, offset) & 0xffff),
                };
                let count = number(self.elements);
                let size = at(self.element_size);
                let fits = size >= 8
                    && size.is_multiple_of(8)
                    && count <= MAX_ELEMENTS
                    && count.checked_mul(size).is_some_and(|all| all <= pages * PAGE);
                // Between being taken and being filled in it has no objects yet.
                if count == 0 || size == 0 {
                    return Holds::Free;
                }
                if !fits {
                    return Holds::Nonsense;
                }
                let class = bytes.get(self.class).copied().unwrap_or(0);
                // One object, of no size class, has a span to itself.
                let pointers = match self.large_type {
                    Some(at) if class & 1 == 0 && class >> 1 == 0 => Pointers::Type(word_at(bytes, at)),
                    Some(_) if class & 1 == 0 && size > BITS_UP_TO => Pointers::Header,
                    _ => Pointers::Unknown,
                };
                Holds::Objects(Span {
                    base,
                    bytes: pages * PAGE,
                    size,
                    count: u32::try_from(count).unwrap_or(0),
                    noscan: class & 1 == 1,
                    specials: at(self.specials),
                    free_index: u32::try_from(number(self.free_index)).unwrap_or(u32::MAX),
                    alloc_bits: at(self.alloc_bits),
                    pointers,
                })
            }
            _ => Holds::Nonsense,
        }
    }

    /// Finds out who says where pointers are in small objects: a map at the end of their span, behind which the
    /// collector may keep marks (`runtime.spanInlineMarkBits`, from Go 1.26 on, unless built without), as the
    /// number of objects in each span shows. Gives whether that is known.
    pub fn find_maps(&self, spans: &mut [Span]) -> bool {
        if self.large_type.is_none() {
            return false;
        }
        let small = |s: &&mut Span| !s.noscan && s.size <= BITS_UP_TO && s.bytes == PAGE;
        let fits = |s: &Span, marks: u64| {
            let behind = MAP + if s.size >= 16 { marks } else { 0 };
            (u64::from(s.count) == (PAGE - behind) / s.size).then_some(PAGE - behind)
        };
        let (mut all, mut plain, mut marked) = (0_u64, 0_u64, 0_u64);
        for s in spans.iter_mut().filter(small) {
            all += 1;
            plain += u64::from(fits(s, 0).is_some());
            marked += u64::from(fits(s, MARKS).is_some());
        }
        // A few may just be taken or given up. Where there are no such maps, there are no types before larger
        // objects either.
        if plain == marked || plain.max(marked) * 16 < all * 15 {
            spans.iter_mut().for_each(|s| s.pointers = Pointers::Unknown);
            return false;
        }
        let marks = if plain > marked { 0 } else { MARKS };
        for s in spans.iter_mut().filter(small) {
            if let Some(at) = fits(s, marks) {
                s.pointers = Pointers::Bits(u32::try_from(at).unwrap_or(0));
            }
        }
        true
    }

    /// What a special says: the next one, how far into the span its object is, its kind.
    pub fn special(&self, bytes: &[u8]) -> (u64, u64, SpecialKind) {
        let offset = match self.wide_offset {
            true => word_at(bytes, self.special_offset),
            false => u64::from(half_at(bytes, self.special_offset) & 0xffff),
        };
        let kind = bytes.get(self.special_kind).copied().unwrap_or(0);
        let (finalizer, weak, cleanup) = self.kinds;
        let kind = match kind {
            k if k == finalizer => SpecialKind::Finalizer,
            k if Some(k) == weak => SpecialKind::WeakHandle,
            k if Some(k) == cleanup => SpecialKind::Cleanup,
            _ => SpecialKind::Other,
        };
        (word_at(bytes, self.special_next), offset, kind)
    }

    /// Where the fields of a special begin that differ by kind.
    pub const fn special_rest(&self) -> usize {
        (self.special_kind + 8) / 8 * 8
    }
}

#[cfg(test)]
impl Layout {
    /// That of Go 1.24, for tests.
    pub fn for_tests() -> Self {
        Self {
            start: 24,
            pages: 32,
            elements: 50,
            wide_elements: false,
            class: 98,
            state: 99,
            element_size: 104,
            specials: 128,
            free_index: 48,
            alloc_bits: 64,
            large_type: Some(152),
            len: 160,
            types: (296, 304),
            special_next: 0,
            special_offset: 8,
            wide_offset: true,
            special_kind: 16,
            kinds: (1, Some(2), Some(6)),
            special_len: 56,
        }
    }
}
