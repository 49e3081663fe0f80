//! Heaps made by hand, whole and torn: what is reached is what is reachable, and nothing that memory can
//! hold makes the marking crash, loop or grow without bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::{
    bits::Bits,
    layout::{Layout, PAGE},
    mark::Marker,
    modules::{self, Module},
    objects::Objects,
    roots, spans,
    spans::Spans,
    table::Table,
    types::Types,
};
use gotrace_process::{Piece, ProcessError, ReadMemory, read_one_by_one};

/// Memory by the beginning of each piece.
#[derive(Default)]
struct Ram(BTreeMap<u64, Vec<u8>>);

impl Ram {
    fn put(&mut self, address: u64, bytes: Vec<u8>) {
        self.0.insert(address, bytes);
    }

    fn set(&mut self, address: u64, word: u64) {
        let (&base, bytes) = self.0.range_mut(..=address).next_back().expect("mapped");
        let at = (address - base) as usize;
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

impl ReadMemory for Ram {
    fn read_pieces(
        &self,
        pieces: &[Piece],
        buffer: &mut [u8],
        failed: &mut Vec<usize>,
    ) -> Result<(), ProcessError> {
        // A piece may go over neighbours.
        let byte = |address: u64| {
            let (&base, bytes) = self.0.range(..=address).next_back()?;
            bytes.get((address - base) as usize)
        };
        read_one_by_one(pieces, buffer, failed, |address, to| {
            to.iter_mut().zip(address..).all(|(to, at)| byte(at).map(|&known| *to = known).is_some())
        });
        Ok(())
    }
}

const HEAP: u64 = 0xc0_0000_0000;
const MSPANS: u64 = 0x7f00_0000_0000;
const LIST: u64 = 0x7e00_0000_0000;
const BSS: u64 = 0x60_0000;

/// A process: spans of (pages, object size, without pointers), one behind the other.
fn process(shapes: &[(u64, u64, bool)]) -> (Ram, Module) {
    let mut ram = Ram::default();
    let (mut base, mut list) = (HEAP, Vec::new());
    for (n, &(pages, size, noscan)) in shapes.iter().enumerate() {
        let address = MSPANS + 160 * n as u64;
        let mut mspan = vec![0; 160];
        let mut set = |at: usize, word: u64| mspan[at..at + 8].copy_from_slice(&word.to_le_bytes());
        set(24, base);
        set(32, pages);
        set(104, size);
        let count = (pages * PAGE / size) as u16;
        mspan[48..50].copy_from_slice(&count.to_le_bytes());
        mspan[50..52].copy_from_slice(&count.to_le_bytes());
        mspan[98] = 10 | u8::from(noscan);
        mspan[99] = 1;
        list.extend(address.to_le_bytes());
        ram.put(address, mspan);
        ram.put(base, vec![0; (pages * PAGE) as usize]);
        base += pages * PAGE;
    }
    let count = shapes.len() as u64;
    ram.put(LIST, list);
    let mut bss: Vec<u8> = vec![0; 4096];
    for (at, word) in [(64, LIST), (72, count), (80, count + 3)] {
        bss[at..at + 8].copy_from_slice(&u64::to_le_bytes(word));
    }
    ram.put(BSS, bss);
    let none = (BSS + 4096, 0);
    let module = Module {
        address: 0,
        data: none,
        bss: none,
        noptrdata: none,
        noptrbss: (BSS, 4096),
        text: none,
        types: none,
        data_mask: None,
        bss_mask: None,
    };
    (ram, module)
}

fn read(ram: &Ram, module: &Module) -> Spans {
    let layout = Layout::for_tests();
    let list = spans::find(ram, &layout, module, "go1.24").expect("one list");
    spans::read(ram, &layout, list, "go1.24").expect("spans")
}

fn marker(spans: &Spans, offset: usize) -> Marker {
    let table = Table::new(&spans.objects).expect("a heap");
    let free = Bits::new(table.objects);
    Marker::new(table, &free, offset)
}

#[test]
fn what_is_reachable_is_reached_and_nothing_else() {
    let shapes = [
        (1, 48, false),
        (1, 112, false),
        (2, 16, true),
        (300, 300 * PAGE, false),
        (1, 416, false),
        (1, 8192, false),
    ];
    let (mut ram, module) = process(&shapes);
    let at = |span: usize, n: u64| {
        HEAP + shapes[..span].iter().map(|s| s.0 * PAGE).sum::<u64>() + n * shapes[span].1
    };
    // A ring of two, entered in the middle; from there to an object without pointers, whose words mean nothing;
    // to the end of a large one, and from there to one that is alone in its span.
    ram.set(at(0, 3) + 40, at(1, 5) + 8);
    ram.set(at(1, 5), at(0, 3) + 17);
    ram.set(at(1, 5) + 16, at(2, 9) + 1);
    ram.set(at(2, 9), at(4, 2));
    ram.set(at(1, 5) + 104, at(3, 0) + 77);
    ram.set(at(3, 0) + 300 * PAGE - 8, at(5, 0) + 8191);
    ram.set(at(5, 0) + 4096, at(4, 7) + 415);
    // Not reached.
    ram.set(at(4, 1), at(4, 3));
    for offset in [0, 1, 9000, 1 << 19] {
        let spans = read(&ram, &module);
        let marker = marker(&spans, offset);
        assert!(!marker.is_reached(at(0, 3)));
        marker.word(at(0, 3) + 47);
        marker.drain(&ram).expect("reads");
        for (span, n) in [(0, 3), (1, 5), (2, 9), (3, 0), (4, 7), (5, 0)] {
            assert!(marker.is_reached(at(span, n)), "{span} {n}");
        }
        for (span, n) in [(4, 2), (4, 1), (4, 3), (0, 0), (1, 4)] {
            assert!(!marker.is_reached(at(span, n)), "{span} {n}");
        }
        assert!(marker.is_reached(0x1234), "what is not in the heap counts as reached");
        assert_eq!(marker.reached(), (48 + 112 + 16 + 300 * PAGE + 416 + 8192, 6));
    }
}

/// Gives the spans of objects up to 512 bytes a map behind their objects, and behind that marks, with nothing in it.
fn with_maps(ram: &mut Ram, shapes: &[(u64, u64, bool)], behind: u64) {
    for (n, &(_, size, _)) in shapes.iter().enumerate().filter(|(_, s)| s.1 <= 512 && !s.2) {
        let count = (PAGE - behind) / size;
        ram.set(MSPANS + 160 * n as u64 + 48, count | count << 16);
    }
}

#[test]
fn only_what_maps_and_types_call_pointers_is_followed() {
    const TYPES: u64 = 0x50_0000;
    let shapes = [(1, 48, false), (1, 16, false), (1, 1024, false), (5, 5 * PAGE, false)];
    for behind in [128, 256] {
        let (mut ram, mut module) = process(&shapes);
        with_maps(&mut ram, &shapes, behind);
        let at = |span: usize, n: u64| {
            HEAP + shapes[..span].iter().map(|s| s.0 * PAGE).sum::<u64>() + n * shapes[span].1
        };
        // The last one is alone in its span, and has its type beside it: as the other, of three words, of which
        // the second is a pointer.
        ram.set(MSPANS + 3 * 160 + 96, 1 << 24);
        ram.set(MSPANS + 3 * 160 + 152, TYPES);
        let mut kind = vec![0; 64];
        for (at, word) in [(0, 24), (8, 16), (32, TYPES + 56), (56, 0b10)] {
            kind[at..at + 8].copy_from_slice(&u64::to_le_bytes(word));
        }
        ram.put(TYPES, kind);
        module.types = (TYPES, 64);
        // Bits of the third object of 48 bytes: words 12 to 17, of which 13 is a pointer; of the 11th, over two
        // words of the map (60 to 65), 63 and 64.
        let map = HEAP + PAGE - behind;
        ram.set(map, 1 << 13 | 1 << 63);
        ram.set(map + 8, 1);
        ram.set(at(0, 2), at(1, 1));
        ram.set(at(0, 2) + 8, at(0, 10));
        ram.set(at(0, 10) + 24, at(2, 3));
        ram.set(at(0, 10) + 32, at(3, 0) + 700);
        ram.set(at(0, 10) + 40, at(1, 2));
        // Without a bit, as it is being made: every word.
        ram.set(at(0, 20), at(1, 3));
        // With its type before it: the words at 16, 40, and so on.
        ram.set(at(2, 3), TYPES);
        ram.set(at(2, 3) + 8, at(1, 4));
        ram.set(at(2, 3) + 16, at(1, 5));
        ram.set(at(2, 3) + 40, at(1, 6));
        ram.set(at(2, 3) + 48, at(1, 7));
        // Of a type that is not described: every word.
        ram.set(at(2, 4), TYPES + 72);
        ram.set(at(2, 4) + 1016, at(1, 8));
        ram.set(at(3, 0), at(1, 9));
        ram.set(at(3, 0) + 8, at(1, 10));
        ram.set(at(3, 0) + 24 * 1000 + 8, at(1, 11));
        ram.set(at(3, 0) + 24 * 1000 + 16, at(1, 12));
        let mut types = Types::new(24);
        types.know(&[module]);
        let types = Arc::new(types);
        for offset in [0, 5000] {
            let spans = read(&ram, &module);
            assert!(spans.maps);
            let mut marker = marker(&spans, offset);
            marker.objects = Objects::new(Arc::clone(&types), 0, &[]);
            for root in [at(0, 2), at(0, 20), at(2, 4)] {
                marker.word(root);
            }
            marker.drain(&ram).expect("reads");
            let followed = [3, 5, 6, 8, 10, 11];
            for n in 1..13 {
                assert_eq!(marker.is_reached(at(1, n)), followed.contains(&n), "{n}, {behind} behind");
            }
            assert!(marker.is_reached(at(2, 3)) && marker.is_reached(at(3, 0)));
            // The same, looked up one by one.
            let places =
                [at(0, 2), at(0, 10), at(2, 3), at(3, 0)].map(|a| marker.table.find(a).expect("there"));
            let mut told = BTreeSet::new();
            let tell = &mut |_, word| _ = told.insert(word);
            marker.objects.read(&ram, &marker.table, &places, tell).expect("reads");
            told.remove(&0);
            let pointers = [at(0, 10), at(2, 3), at(3, 0) + 700, at(1, 5), at(1, 6), at(1, 10), at(1, 11)];
            assert_eq!(told, BTreeSet::from(pointers));
        }
    }
}

#[test]
fn where_counts_do_not_show_maps_every_word_counts() {
    let shapes = [(1, 48, false), (1, 1024, false)];
    let (mut ram, module) = process(&shapes);
    ram.set(HEAP, HEAP + PAGE);
    ram.set(HEAP + PAGE + 1016, HEAP + 96);
    let spans = read(&ram, &module);
    assert!(!spans.maps);
    let marker = marker(&spans, 0);
    marker.word(HEAP);
    marker.drain(&ram).expect("reads");
    assert!(marker.is_reached(HEAP + 96));
}

#[test]
fn what_is_skipped_leads_nowhere_until_it_is_let_run() {
    let (mut ram, module) = process(&[(1, 448, false)]);
    let at = |n: u64| HEAP + n * 448;
    ram.set(at(1), at(2));
    ram.set(at(2), at(3));
    let mut marker = marker(&read(&ram, &module), 0);
    marker.skip(at(2) + 100);
    marker.word(at(1));
    marker.drain(&ram).expect("reads");
    assert!(marker.is_reached(at(2)) && !marker.is_reached(at(3)));
    marker.unskip(at(2));
    marker.drain(&ram).expect("reads");
    assert!(marker.is_reached(at(3)));
}

#[test]
fn pointers_to_free_objects_mean_nothing_until_they_are_handed_out() {
    let (mut ram, module) = process(&[(1, 64, false)]);
    let at = |n: u64| HEAP + n * 64;
    // 5, 8 and 9 are free at first, and at last 5 and 8 are handed out, and lead on.
    ram.set(at(5), at(6));
    ram.set(at(6), at(8));
    ram.set(at(8), at(10));
    ram.set(at(10), at(9));
    ram.set(at(9), at(11));
    let table = Table::new(&read(&ram, &module).objects).expect("a heap");
    let free = Bits::new(table.objects);
    for n in [5, 8, 9] {
        free.set(n);
    }
    let marker = Marker::new(table, &free, 0);
    marker.word(at(5));
    marker.word(at(7));
    marker.drain(&ram).expect("reads");
    assert!(!marker.is_reached(at(6)) && marker.is_reached(at(7)));
    assert!(marker.is_reached(at(5)), "nobody waits on what is free: it was not read well");
    let now = Bits::new(128);
    now.set(9);
    assert_eq!(marker.settle_free(&now), 1);
    marker.drain(&ram).expect("reads");
    assert!(marker.is_reached(at(6)) && marker.is_reached(at(10)), "through others that were free at first");
    assert!(!marker.is_reached(at(11)));
}

#[test]
fn a_bound_of_a_stack_is_no_pointer() {
    let (mut ram, module) = process(&[(1, 448, false)]);
    let at = |n: u64| HEAP + n * 448;
    // The stack ends where the heap begins.
    ram.set(at(1), HEAP - 2048);
    ram.set(at(1) + 8, HEAP);
    ram.set(at(1) + 40, at(2));
    let mut known = marker(&read(&ram, &module), 0);
    known.objects = Objects::new(Arc::default(), 448, &[(HEAP - 8192, 8192)]);
    known.word(at(1));
    known.drain(&ram).expect("reads");
    assert!(!known.is_reached(HEAP) && known.is_reached(at(2)));
    let unknown = marker(&read(&ram, &module), 0);
    unknown.word(at(1));
    unknown.drain(&ram).expect("reads");
    assert!(unknown.is_reached(HEAP));
}

#[test]
fn finalizers_and_weak_pointers_keep_what_they_should() {
    let (mut ram, module) = process(&[(1, 64, false), (1, 64, false)]);
    let at = |n: u64| HEAP + n * 64;
    const SPECIALS: u64 = 0x7d00_0000_0000;
    // On object 1 a finalizer that calls 3; 1 refers to 2. On 5 a weak handle, which is 6. The list ends in itself.
    let mut bytes: Vec<u8> = Vec::new();
    for word in [SPECIALS + 64, 64, 1, at(3), 0, 0, 0, 0] {
        bytes.extend(u64::to_le_bytes(word));
    }
    for word in [SPECIALS, 5 * 64, 2, at(6), 0, 0, 0, 0] {
        bytes.extend(u64::to_le_bytes(word));
    }
    ram.put(SPECIALS, bytes);
    ram.set(MSPANS + 128, SPECIALS);
    ram.set(at(1), at(2));
    let marker = marker(&read(&ram, &module), 0);
    let found = roots::specials(&ram, &Layout::for_tests(), &marker).expect("reads");
    marker.drain(&ram).expect("reads");
    assert!(found.finalizers >= 1 && found.weak >= 1 && found.finalizers + found.weak <= 4, "{found:?}");
    for (n, reached) in [(1, false), (2, true), (3, true), (4, false), (5, true), (6, true)] {
        assert_eq!(marker.is_reached(at(n)), reached, "{n}");
    }
}

#[test]
fn two_lists_that_look_like_spans_are_one_too_many() {
    let (mut ram, module) = process(&[(1, 64, false)]);
    let found = spans::find(&ram, &Layout::for_tests(), &module, "go1.24").expect("one");
    assert_eq!(found, BSS + 64);
    for (at, word) in [(512, LIST), (520, 1), (528, 1)] {
        ram.set(BSS + at, word);
    }
    assert!(spans::find(&ram, &Layout::for_tests(), &module, "go1.24").is_err());
    ram.set(BSS + 72, 0);
    ram.set(BSS + 520, 0);
    assert!(spans::find(&ram, &Layout::for_tests(), &module, "go1.24").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Reaching is what a plain search over the same words reaches, whatever the words and the cut.
    #[test]
    fn marking_agrees_with_a_plain_search(
        words in prop::collection::vec((0_u64..8 * 1024, 0_u64..4 * PAGE + 64), 0..400),
        roots in prop::collection::vec(0_u64..4 * PAGE, 1..4),
        offset in 0_usize..1 << 20,
    ) {
        let shapes = [(1, 32, false), (1, 128, false), (1, 24, true), (1, 2048, false)];
        let (mut ram, module) = process(&shapes);
        for &(at, to) in &words {
            ram.set(HEAP + at / 2 * 8, HEAP + to);
        }
        let spans = read(&ram, &module);
        let marker = marker(&spans, offset);
        for &root in &roots {
            marker.word(HEAP + root);
        }
        marker.drain(&ram).expect("reads");
        let table = Table::new(&spans.objects).expect("a heap");
        let mut reached = BTreeSet::new();
        let mut open: Vec<u64> = roots.iter().map(|r| HEAP + r).collect();
        while let Some(word) = open.pop() {
            let Some(place) = table.find(word) else { continue };
            let (address, size) = table.object(place);
            if !reached.insert(address) || table.entry(place).is_some_and(|e| e.span.noscan) {
                continue;
            }
            for at in (0..size).step_by(8) {
                let mut word = [0; 8];
                prop_assert!(ram.read_at(address + at, &mut word).expect("reads"));
                open.push(u64::from_le_bytes(word));
            }
        }
        prop_assert_eq!(marker.reached().1, reached.len() as u64);
        for address in reached {
            prop_assert!(marker.is_reached(address));
        }
    }

    /// Whatever is in the runtime's structures, marking ends, and spans stay within what was read.
    #[test]
    fn torn_structures_do_no_harm(
        damage in prop::collection::vec((0_u64..160 * 6, prop_oneof![any::<u64>(), 0_u64..1 << 16, HEAP..HEAP + 8 * PAGE]), 0..60),
        holes in prop::collection::vec(0_usize..6, 0..3),
    ) {
        let shapes = [(1, 32, false), (1, 128, false), (2, 24, true), (1, 2048, false), (140, 140 * PAGE, false), (1, 448, false)];
        let (mut ram, module) = process(&shapes);
        let layout = Layout::for_tests();
        let list = spans::find(&ram, &layout, &module, "go1.24").expect("one list");
        for &(at, word) in &damage {
            ram.set(MSPANS + at / 160 * 160 + (at % 160).min(152) / 8 * 8, word);
        }
        let bases: Vec<u64> = ram.0.range(HEAP..HEAP + (1 << 30)).map(|(&b, _)| b).collect();
        for &hole in &holes {
            ram.0.remove(&bases[hole]);
        }
        if let Ok(spans) = spans::read(&ram, &layout, list, "go1.24") {
            for pair in spans.objects.windows(2) {
                prop_assert!(pair[0].base + pair[0].bytes <= pair[1].base);
            }
            if let Some(table) = Table::new(&spans.objects) {
                prop_assert!(table.objects <= 6 * 70_000);
                let free = super::free::read(&ram, &table).expect("reads");
                let marker = Marker::new(table, &free, 7);
                for n in 0..64 {
                    marker.word(HEAP + n * 1024);
                }
                roots::specials(&ram, &layout, &marker).expect("reads");
                roots::blocks(&ram, &marker, &spans, &[module], 26).expect("reads");
                marker.drain(&ram).expect("reads");
            }
        }
    }

    /// No module data, however wrong, leads on for ever.
    #[test]
    fn torn_module_data_does_no_harm(words in prop::collection::vec(prop_oneof![any::<u64>(), Just(BSS), 0_u64..4096], 96)) {
        let mut ram = Ram::default();
        ram.put(BSS, words.iter().flat_map(|w| w.to_le_bytes()).collect());
        if let Ok(found) = modules::read(&ram, BSS, Layout::for_tests().types, "go1.24") {
            prop_assert!(found.len() <= 2);
        }
    }
}
