//! From an address to the object that holds it: a map of the heap's pages to spans, and within a span by
//! its objects' size.

use super::layout::{PAGE, Span};

/// Pages of a block of the map: 64 MiB, as the runtime takes memory.
const BLOCK: u64 = 8192;
/// Blocks that heaps may be spread over: all user addresses of amd64.
const MAX_BLOCKS: u64 = 1 << 21;
/// Pages of all spans together that are believed: 512 GiB.
const MAX_PAGES: u64 = 1 << 26;
const NONE: u32 = u32::MAX;

/// A span and where its objects' bits are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub span: Span,
    /// Number of its first object, a multiple of 64.
    pub first: u64,
}

/// What it takes to tell which object of a span an address is in: half a line of the processor's cache, as every
/// pointer asks for another span's.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Hot {
    base: u64,
    /// Number of its first object.
    first: u64,
    /// Of an object; 0 where one may be longer than this tells.
    size: u32,
    /// 2^32 divided by the size, rounded up.
    inverse: u32,
    count: u32,
    noscan: bool,
}

impl Entry {
    /// Numbers of the words of bits that are its objects'.
    pub fn words(&self) -> std::ops::Range<usize> {
        let begin = (self.first / 64) as usize;
        begin..begin + (self.span.count as usize).div_ceil(64)
    }
}

impl Hot {
    fn new(span: &Span, first: u64) -> Self {
        // The longest span of several objects has 80 KiB: beyond 4 GiB is one.
        let size = u32::try_from(span.size).ok().filter(|&s| s > 1 && span.count > 1).unwrap_or(0);
        let inverse = (1_u64 << 32).div_ceil(u64::from(size.max(2)));
        Self { base: span.base, first, size, inverse: inverse as u32, count: span.count, noscan: span.noscan }
    }

    /// Number of the object in the span that an address of the span is in; behind the last of them where it is in
    /// none. `None` where the span has one object.
    #[inline]
    fn index(&self, address: u64) -> Option<u32> {
        if self.size == 0 {
            return None;
        }
        let (offset, size) = (address.wrapping_sub(self.base), u64::from(self.size));
        let guess = offset.wrapping_mul(u64::from(self.inverse)) >> 32;
        if offset.wrapping_sub(guess.wrapping_mul(size)) < size {
            return Some(guess as u32);
        }
        Some(u32::try_from(offset / size).unwrap_or(u32::MAX))
    }
}

/// All spans of objects at about one time.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub entries: Vec<Entry>,
    hot: Vec<Hot>,
    /// Addresses of the first and behind the last.
    pub low: u64,
    pub high: u64,
    /// Numbers of objects are below this.
    pub objects: u64,
    /// First page of a block's part of `pages`, by block.
    blocks: Vec<u32>,
    pages: Vec<u32>,
}

/// An object: its span's place in [`Table::entries`], and which one of the span it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub entry: u32,
    pub index: u32,
}

impl Table {
    /// `spans`: by address, none over another. `None` when they are spread too wide to be a heap.
    pub fn new(spans: &[Span]) -> Option<Self> {
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return Some(Self::default()) };
        let low = first.base / (BLOCK * PAGE) * (BLOCK * PAGE);
        let high = last.base + last.bytes;
        let blocks = (high - low).div_ceil(BLOCK * PAGE);
        let pages = spans.iter().fold(0_u64, |sum, s| sum.saturating_add(s.bytes / PAGE));
        if blocks > MAX_BLOCKS || pages > MAX_PAGES {
            return None;
        }
        let mut this = Self {
            entries: Vec::with_capacity(spans.len()),
            hot: Vec::with_capacity(spans.len()),
            low,
            high,
            objects: 0,
            blocks: vec![NONE; usize::try_from(blocks).ok()?],
            pages: Vec::new(),
        };
        for &span in spans {
            let n = u32::try_from(this.entries.len()).ok()?;
            let first = this.objects;
            this.objects += u64::from(span.count).next_multiple_of(64);
            this.entries.push(Entry { span, first });
            this.hot.push(Hot::new(&span, first));
            let begin = (span.base - low) / PAGE;
            // Of a large object's span, all pages are mapped too: interior pointers keep it.
            for page in begin..begin + span.bytes / PAGE {
                let block = this.blocks.get_mut((page / BLOCK) as usize)?;
                if *block == NONE {
                    *block = u32::try_from(this.pages.len()).ok()?;
                    this.pages.resize(this.pages.len() + BLOCK as usize, NONE);
                }
                let at = *block as usize + (page % BLOCK) as usize;
                *this.pages.get_mut(at)? = n;
            }
        }
        Some(this)
    }

    /// The place in [`Self::entries`] of the span on the page of an address; beyond all of them where there is none.
    #[inline]
    pub fn span_of(&self, address: u64) -> u32 {
        // Below the lowest address this is beyond all blocks.
        let page = address.wrapping_sub(self.low) / PAGE;
        let Some(&block) = self.blocks.get((page / BLOCK) as usize) else { return NONE };
        if block == NONE {
            return NONE;
        }
        self.pages.get(block as usize + (page % BLOCK) as usize).copied().unwrap_or(NONE)
    }

    /// The number of the object of a span that an address of the span points into; [`Self::objects`] where it points
    /// to none.
    #[inline]
    pub fn number_of(&self, entry: u32, address: u64) -> u64 {
        let Some(hot) = self.hot.get(entry as usize) else { return self.objects };
        match hot.index(address) {
            Some(index) if index < hot.count => hot.first + u64::from(index),
            Some(_) => self.objects,
            None => self.alone(entry, address).map_or(self.objects, |index| hot.first + u64::from(index)),
        }
    }

    /// Whether the objects of a span have no pointers.
    #[inline]
    pub fn is_noscan(&self, entry: u32) -> bool {
        self.hot.get(entry as usize).is_none_or(|hot| hot.noscan)
    }

    /// Of a span of one object.
    fn alone(&self, entry: u32, address: u64) -> Option<u32> {
        let span = &self.entries.get(entry as usize)?.span;
        let index = address.wrapping_sub(span.base) / span.size;
        u32::try_from(index).ok().filter(|&index| index < span.count)
    }

    /// The object that an address points into.
    #[inline]
    pub fn find(&self, address: u64) -> Option<Place> {
        let entry = self.span_of(address);
        let hot = self.hot.get(entry as usize)?;
        let index = match hot.index(address) {
            Some(index) => index,
            None => self.alone(entry, address)?,
        };
        (index < hot.count).then_some(Place { entry, index })
    }

    /// A span by its place.
    pub fn entry(&self, place: Place) -> Option<&Entry> {
        self.entries.get(place.entry as usize)
    }

    /// Number of an object.
    pub fn number(&self, place: Place) -> u64 {
        self.entry(place).map_or(0, |e| e.first + u64::from(place.index))
    }

    /// First address and size of an object.
    pub fn object(&self, place: Place) -> (u64, u64) {
        self.entry(place)
            .map_or((0, 0), |e| (e.span.base + u64::from(place.index) * e.span.size, e.span.size))
    }

    /// Whether there is a span of objects, in use or not filled in yet, on the page of an address.
    pub fn has_page(&self, address: u64) -> bool {
        self.span_of(address) != NONE
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Pointers;
    use super::*;

    fn span(base: u64, pages: u64, size: u64, count: u32) -> Span {
        Span {
            base,
            bytes: pages * PAGE,
            size,
            count,
            noscan: false,
            specials: 0,
            free_index: count,
            alloc_bits: 0,
            pointers: Pointers::Unknown,
        }
    }

    #[test]
    fn every_address_of_an_object_leads_to_it() {
        let base = 0xc000_0000_0000;
        let sizes = [8, 16, 24, 48, 96, 112, 416, 1152, 3072, 6784, 8192];
        let spans: Vec<Span> = sizes
            .iter()
            .enumerate()
            .map(|(n, &size)| span(base + n as u64 * 10 * PAGE, 8, size, (8 * PAGE / size) as u32))
            .collect();
        let table = Table::new(&spans).expect("a heap");
        for (n, s) in spans.iter().enumerate() {
            for offset in 0..s.bytes {
                let found = table.find(s.base + offset);
                let index = offset / s.size;
                let expected =
                    (index < u64::from(s.count)).then_some(Place { entry: n as u32, index: index as u32 });
                assert_eq!(found, expected, "size {} at {offset}", s.size);
            }
            assert_eq!(table.find(s.base + s.bytes), None, "between spans");
        }
        assert_eq!(table.find(base - 1), None);
        assert_eq!(table.find(0), None);
        assert_eq!(table.find(u64::MAX), None);
    }

    #[test]
    fn numbers_of_objects_do_not_collide() {
        let spans =
            [span(1 << 40, 1, 8192, 1), span((1 << 40) + PAGE, 1, 48, 170), span(1 << 45, 3, 24576, 1)];
        let table = Table::new(&spans).expect("a heap");
        let mut numbers = std::collections::BTreeSet::new();
        for s in &spans {
            for n in 0..u64::from(s.count) {
                let place = table.find(s.base + n * s.size + s.size / 2).expect("an object");
                assert_eq!(table.object(place), (s.base + n * s.size, s.size));
                assert!(numbers.insert(table.number(place)));
                assert!(table.number(place) < table.objects);
            }
        }
    }

    #[test]
    fn what_is_spread_too_wide_is_no_heap() {
        assert!(Table::new(&[span(PAGE, 1, 8, 8), span((1 << 52) - PAGE, 1, 8, 8)]).is_none());
    }
}
