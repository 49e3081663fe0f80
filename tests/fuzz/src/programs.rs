//! Go executables with damage, and debug information.

use std::{fs, io::Read as _, path::Path, sync::OnceLock};

use flate2::read::GzDecoder;
use gotrace_go::{Binary, Error};
use gotrace_model::Level;

use crate::input::Input;

/// The demo's program, and where the structures are that reading follows.
struct Sample {
    data: Vec<u8>,
    places: Vec<usize>,
}

/// What the repository keeps of the demo's program, unpacked.
pub(crate) fn demo(architecture: usize) -> Vec<u8> {
    let name = ["demo.amd64.gz", "demo.arm64.gz"][architecture % 2];
    let packed = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../gotrace-daemon/demo").join(name));
    let mut data = Vec::new();
    GzDecoder::new(&packed.expect("committed")[..]).read_to_end(&mut data).expect("packed");
    data
}

fn sample(architecture: usize) -> &'static Sample {
    static SAMPLES: OnceLock<[Sample; 2]> = OnceLock::new();
    let samples = SAMPLES.get_or_init(|| {
        [0, 1].map(|architecture| {
            let data = demo(architecture);
            Sample { places: places(&data), data }
        })
    });
    &samples[architecture % 2]
}

/// File offsets of headers, of sections' contents, and of the tables that are found by their magic.
///
/// # Panics
/// When it is no whole ELF file.
#[must_use]
pub fn places(data: &[u8]) -> Vec<usize> {
    let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes")) as usize;
    let sections = word(40);
    let count = usize::from(u16::from_le_bytes([data[60], data[61]]));
    let mut found = vec![0, sections];
    found.extend((0..count).map(|i| word(sections + 64 * i + 24)));
    for magic in [&b"\xff Go buildinf:"[..], b"\xf1\xff\xff\xff\0\0", b"\xf0\xff\xff\xff\0\0"] {
        found.extend(data.windows(magic.len()).enumerate().filter(|(_, w)| *w == magic).map(|(at, _)| at));
    }
    found.retain(|&at| at + 16 < data.len());
    found
}

/// Reads what may be an executable, and uses what came of it.
///
/// # Errors
/// As [`Binary::parse`].
pub fn use_program(data: &[u8]) -> Result<(), Error> {
    let result = Binary::parse(data).map(|binary| {
        let plan = binary.plan(Level::Full);
        for probe in &plan.probes {
            assert!(probe.file_offset < data.len() as u64, "{probe:?}");
            let _ = binary.lookup(probe.address, false);
            let _ = binary.lookup(probe.address, true);
            let _ = binary.function_address(&probe.function);
        }
        let middle = plan.probes.first().map_or(0x40_1000, |p| p.address);
        for pc in [0, 1, u64::MAX, middle, middle ^ 0xfff, middle.wrapping_add(0x2_0000)] {
            let _ = binary.lookup(pc, pc & 1 == 0);
            let _ = binary.function_at(pc);
            let _ = binary.load_bias(pc, pc >> 3);
        }
        let _ = (binary.wait_reasons(), binary.gc_reasons(), binary.coroutine_reason());
        if let Ok(requests) = binary.requests(data, &["main.main".into(), "main.each[...]".into()]) {
            assert!(requests.points.iter().all(|p| p.file_offset < data.len() as u64), "{requests:?}");
        }
    });
    if let Err(error) = &result {
        assert!(!error.to_string().is_empty());
    }
    result
}

/// A byte for the architecture and whether it is cut, then damage: which place, how far behind it, how many bytes, those.
pub(crate) fn damaged(input: &[u8]) {
    let mut input = Input(input);
    let choice = input.number(1);
    let sample = sample(choice as usize);
    let mut data = sample.data.clone();
    if choice & 2 != 0 {
        data.truncate(input.below(3, sample.data.len()));
    }
    while !input.is_empty() && !data.is_empty() {
        let place = sample.places[input.below(1, sample.places.len())];
        let at = (place + input.number(3) as usize) % data.len();
        let length = 1 + input.below(1, 16);
        for (to, &from) in data[at..].iter_mut().zip(input.bytes(length)) {
            *to = from;
        }
    }
    let _ = use_program(&data);
}

/// Sections of debug information: for each of four a length in two bytes, then the bytes.
pub(crate) fn dwarf(input: &[u8]) {
    let _ = offsets(input);
}

fn offsets(input: &[u8]) -> usize {
    let mut input = Input(input);
    let names = [".debug_abbrev", ".debug_info", ".debug_str", ".zdebug_info"];
    let sections = names.map(|name| {
        let length = input.number(2) as usize;
        (name, input.bytes(length))
    });
    gotrace_go::fuzzing::debug_information(&elf(&sections))
}

/// A file for amd64 that is nothing but these sections.
fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut names, mut file) = (vec![0], vec![0; 64 + 56]);
    let mut headers = vec![[0_u64; 8]];
    let mut section = |name: &str, kind: u64, bytes: &[u8], names: &mut Vec<u8>| {
        headers.push([names.len() as u64 | kind << 32, 0, 0, file.len() as u64, bytes.len() as u64, 0, 1, 0]);
        names.extend(name.bytes().chain([0]));
        file.extend(bytes);
    };
    for (name, bytes) in sections.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        section(name, 1, bytes, &mut names);
    }
    let all = [&names[..], b".shstrtab\0"].concat();
    section(".shstrtab", 3, &all, &mut names);
    let (at, count) = (file.len() as u64, headers.len() as u16);
    file.extend(headers.iter().flatten().flat_map(|word| word.to_le_bytes()));
    file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Type, machine, version; no entry; the program header, then the section headers.
    file[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[40..48].copy_from_slice(&at.to_le_bytes());
    // A segment that is loaded, and empty.
    file[64] = 1;
    for (n, half) in [64, 56, 1, 64, count, count - 1].iter().enumerate() {
        file[52 + 2 * n..54 + 2 * n].copy_from_slice(&u16::to_le_bytes(*half));
    }
    file
}

#[cfg(test)]
mod tests {
    use super::offsets;

    #[test]
    fn kept_debug_information_is_read() {
        for name in ["version4", "zlib4"] {
            let path = format!("{}/corpus/dwarf/{name}", env!("CARGO_MANIFEST_DIR"));
            assert_eq!(offsets(&std::fs::read(path).expect("kept")), 3, "{name}");
        }
    }
}
