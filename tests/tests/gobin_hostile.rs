//! Bad input: truncated and damaged executables, and what is none. Reading one ends with a result or an
//! error that names what is wrong; it never panics, hangs or allocates without measure, and neither does
//! looking up addresses in what it made of it.
//!
//! Input: real Go executables of several versions and modes, damaged by proptest.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, Instant},
};

use gotrace_fuzz::{places, use_program};
use gotrace_go::{Binary, Error};
use gotrace_tests::gobuild::{Arch, Mode, build};
use proptest::prelude::*;

/// Far above what any of these takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Sample {
    name: String,
    data: Vec<u8>,
    /// Where the structures are that reading follows.
    targets: Vec<usize>,
}

/// Executables of different layouts: symbols and DWARF, none, position-independent, arm64, old tables.
fn samples() -> &'static [Sample] {
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        [
            ("1.27.3", Mode::Plain, Arch::Amd64),
            ("1.27.3", Mode::Stripped, Arch::Amd64),
            ("1.24.11", Mode::PieStripped, Arch::Amd64),
            ("1.24.11", Mode::Cgo, Arch::Amd64),
            ("1.19.13", Mode::Plain, Arch::Amd64),
            ("1.27.3", Mode::Pie, Arch::Arm64),
        ]
        .into_iter()
        .map(|(version, mode, arch)| {
            let path = build("frames", version, mode, arch).expect("the fixture builds");
            let data = fs::read(path).expect("the fixture is readable");
            let name = format!("Go {version}, {}, {}", mode.name(), arch.name());
            let targets = places(&data);
            assert!(targets.len() > 3, "{name}: {targets:?}");
            Sample { name, data, targets }
        })
        .collect()
    })
}

fn word(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes"))
}

/// The same as the fuzzer's, in time.
fn use_it(data: &[u8], name: &str) -> Result<(), Error> {
    let begin = Instant::now();
    let result = use_program(data);
    let took = begin.elapsed();
    assert!(took < PATIENCE, "{name}: took {took:?}");
    result
}

#[test]
fn whole_ones_are_read() {
    for sample in samples() {
        use_it(&sample.data, &sample.name).unwrap_or_else(|e| panic!("{}: {e}", sample.name));
    }
}

#[test]
fn cut_at_every_byte_of_the_loaded_part() {
    for sample in samples() {
        let data = &sample.data;
        let headers = word(data, 32) as usize;
        let count = usize::from(u16::from_le_bytes([data[56], data[57]]));
        let loaded = (0..count)
            .map(|i| headers + 56 * i)
            .filter(|&at| data[at..at + 4] == [1, 0, 0, 0])
            .map(|at| word(data, at + 8) + word(data, at + 32))
            .max()
            .expect("segments") as usize;
        for len in 0..loaded {
            let error = Binary::parse(&data[..len]).map(|_| ()).expect_err("cut");
            match error {
                Error::NotElf => assert!(len < 4),
                Error::Malformed { .. } => {}
                other => panic!("{} cut at {len}: {other}", sample.name),
            }
        }
        // What follows is of use, but a program runs without it.
        for len in (loaded..data.len()).step_by(1 + (data.len() - loaded) / 300) {
            use_it(&data[..len], &sample.name)
                .unwrap_or_else(|e| panic!("{} cut at {len}: {e}", sample.name));
        }
    }
}

#[test]
fn cut_at_every_section() {
    for sample in samples() {
        for &at in &sample.targets {
            for len in [at.saturating_sub(1), at, at + 1, at + 15] {
                let _ = use_it(&sample.data[..len], &sample.name);
            }
        }
    }
}

#[test]
fn what_is_no_go_program_is_named() {
    let go = &samples()[0].data;
    let patched = |at: usize, bytes: &[u8]| {
        let mut data = go.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        Binary::parse(&data).map(|_| ()).expect_err("refused").to_string()
    };
    for (error, words) in [
        (patched(4, &[1]), "32-bit"),
        (patched(5, &[2]), "big-endian"),
        (patched(18, &[243, 0]), "machine 243"),
        (patched(16, &[4, 0]), "core dump"),
        (patched(16, &[1, 0]), "object file"),
        (patched(56, &[0, 0]), "no program headers"),
        (patched(32, &[0xff; 8]), "not inside the file"),
    ] {
        assert!(error.contains(words), "{error}");
    }
    // This test is an ELF executable for the right machine, and not by Go.
    let own = std::env::current_exe().and_then(fs::read).expect("readable");
    let error = Binary::parse(&own).map(|_| ()).expect_err("refused");
    assert!(matches!(error, Error::NotGo { .. }), "{error}");
    assert_eq!(Binary::parse(b"#!/bin/sh\n").map(|_| ()), Err(Error::NotElf));
}

#[test]
fn tables_that_are_gone_are_named() {
    for sample in samples() {
        for (magic, words) in [
            (&b"\xff Go buildinf:"[..], "build information"),
            (b"\xf1\xff\xff\xff\0\0", "function table"),
            (b"\xf0\xff\xff\xff\0\0", "function table"),
        ] {
            let mut data = sample.data.clone();
            let places: Vec<_> = data
                .windows(magic.len())
                .enumerate()
                .filter(|(_, w)| *w == magic)
                .map(|(at, _)| at)
                .collect();
            for &at in &places {
                data[at] = 0;
            }
            match use_it(&data, &sample.name) {
                Err(error) => assert!(error.to_string().contains(words), "{}: {error}", sample.name),
                Ok(()) => assert!(magic[0] < 0xff && !sample.name.contains("1.19") || places.is_empty()),
            }
        }
    }
}

/// A word that bounds checks get wrong.
fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 7),
        Just(1 << 63),
        Just(1 << 32),
        Just(0xffff_ffff),
        Just(0x7fff_ffff),
        0..0x1_0000_0000u64,
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// A few words near the structures that reading follows.
    #[test]
    fn damaged_structures(
        which in 0..6usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..2048usize, extreme(), 1..9usize), 1..6),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let sample = &samples()[which];
        let mut data = sample.data.clone();
        for (target, distance, value, width) in damage {
            let at = sample.targets[target.index(sample.targets.len())] + distance;
            let bytes = value.to_le_bytes();
            if let Some(place) = data.get_mut(at..at + width) {
                place.copy_from_slice(&bytes[..width]);
            }
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        let _ = use_it(&data, &sample.name);
    }

    /// Many bytes anywhere.
    #[test]
    fn damaged_anywhere(
        which in 0..6usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..2000),
    ) {
        let sample = &samples()[which];
        let mut data = sample.data.clone();
        let len = data.len();
        for (at, byte) in damage {
            data[at.index(len)] = byte;
        }
        let _ = use_it(&data, &sample.name);
    }

    /// Noise behind an ELF header.
    #[test]
    fn noise(mut data in prop::collection::vec(any::<u8>(), 64..4096), phnum in 0..40u16, place in 0..512u64) {
        data[..6].copy_from_slice(b"\x7fELF\x02\x01");
        data[16..20].copy_from_slice(&[2, 0, 62, 0]);
        data[32..40].copy_from_slice(&place.to_le_bytes());
        data[54..56].copy_from_slice(&56u16.to_le_bytes());
        data[56..58].copy_from_slice(&phnum.to_le_bytes());
        prop_assert!(use_it(&data, "noise").is_err());
    }
}
