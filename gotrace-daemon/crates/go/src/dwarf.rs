//! Offsets of fields from debug information (DWARF 4 and 5), which is exact for the very binary.
//!
//! Release binaries carry tens of megabytes of it, mostly compressed. Only units named `runtime` are
//! read, one at a time, straight from the decompressor, and reading stops when all structures are found.
//! Whatever is wrong with debug information makes it absent.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, Read},
};

use flate2::read::ZlibDecoder;
use gimli::{
    AttributeValue, DebugAbbrev, DebugInfo, DebugStr, EndianSlice, LittleEndian, UnitHeader,
    constants::{self, DW_TAG_member, DW_TAG_structure_type},
};
use object::{
    elf::{ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, SHF_COMPRESSED},
    read::{CompressedData, CompressionFormat},
};

use super::{
    bytes::{slice, u32_at, u64_at},
    elf::Elf,
};

/// Largest unit that is read; the runtime's holds all types of the program.
const MAX_UNIT: u64 = 48 << 20;
/// Most that is decompressed of tables that must be held whole.
const MAX_TABLE: u64 = 16 << 20;
/// As many units as are looked at.
const MAX_UNITS: usize = 1 << 20;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Structures and the fields wanted of each.
const STRUCTURES: [(&str, &[&str]); 12] = [
    (
        "runtime.g",
        &[
            "stack",
            "m",
            "sched",
            "syscallsp",
            "syscallpc",
            "syscallbp",
            "atomicstatus",
            "goid",
            "schedlink",
            "waitsince",
            "waitreason",
            "coroexit",
            "lockedm",
            "parentGoid",
            "gopc",
            "startpc",
            "waiting",
            "labels",
            "coroarg",
            "trackingSeq",
            "timer",
            "sleepWhen",
        ],
    ),
    ("runtime.m", &["g0", "procid", "waitlock", "curg", "p", "id"]),
    ("runtime.gobuf", &["sp", "pc", "lr", "bp"]),
    ("runtime.stack", &["lo", "hi"]),
    ("runtime.sudog", &["g", "elem", "waitlink", "c"]),
    ("runtime.hchan", &["qcount", "dataqsiz", "elemsize", "closed", "recvq", "sendq"]),
    ("runtime.pollDesc", &["fd", "rg", "wg", "rd", "wd"]),
    ("runtime.timer", &["when"]),
    (
        "runtime.mspan",
        &[
            "startAddr",
            "npages",
            "nelems",
            "spanclass",
            "state",
            "elemsize",
            "specials",
            "freeindex",
            "allocBits",
            "largeType",
        ],
    ),
    ("runtime.special", &["next", "offset", "kind"]),
    ("runtime.moduledata", &["types", "etypes"]),
    (OPTIONAL, &["vu"]),
];

/// A structure that versions before Go 1.26 do not have.
const OPTIONAL: &str = "runtime.maybeTraceablePtr";

/// Offsets by structure and field (`runtime.g`, `goid`).
type Found = HashMap<(&'static str, &'static str), u32>;

/// Looks for the offset of each named field (`g.sched.pc`); those not found are absent.
pub(super) fn offsets(elf: &Elf<'_>, fields: &[&'static str]) -> HashMap<&'static str, u32> {
    let found = read(elf).unwrap_or_default();
    let of = |structure: &str, field: &str| {
        let (name, fields) =
            STRUCTURES.iter().find(|(n, _)| n.strip_prefix("runtime.") == Some(structure))?;
        let field = fields.iter().find(|f| **f == field)?;
        found.get(&(*name, *field)).copied()
    };
    fields
        .iter()
        .filter_map(|&name| {
            let mut parts = name.split('.');
            let outer = of(parts.next()?, parts.next()?)?;
            let inner = match (name.split('.').nth(1)?, parts.next()) {
                (_, None) => 0,
                ("sched", Some(field)) => of("gobuf", field)?,
                ("stack", Some(field)) => of("stack", field)?,
                ("elem" | "c", Some(field)) => of("maybeTraceablePtr", field)?,
                _ => return None,
            };
            Some((name, outer.checked_add(inner)?))
        })
        .collect()
}

fn read(elf: &Elf<'_>) -> Option<Found> {
    let mut found = Found::new();
    let abbreviations = table(elf, ".debug_abbrev")?;
    let strings = table(elf, ".debug_str").unwrap_or_default();
    let abbreviations = DebugAbbrev::new(&abbreviations, LittleEndian);
    let strings = DebugStr::new(&strings, LittleEndian);
    let mut units = Units::new(elf)?;
    let mut buffer = Vec::new();
    for _ in 0..MAX_UNITS {
        let Some(unit) = units.next(&mut buffer) else { break };
        // What one unit has wrong does not concern the next.
        let _ = DebugInfo::new(unit, LittleEndian).units().next().and_then(|header| {
            header.map_or(Ok(()), |h| read_unit(&h, &abbreviations, &strings, &mut found))
        });
        let wanted = || STRUCTURES.iter().filter(|(name, _)| *name != OPTIONAL);
        if wanted().all(|(name, _)| found.keys().any(|(n, _)| n == name)) {
            break;
        }
    }
    Some(found)
}

/// Reads a unit if it is named `runtime`.
fn read_unit(
    header: &UnitHeader<Slice<'_>>,
    abbreviations: &DebugAbbrev<Slice<'_>>,
    strings: &DebugStr<Slice<'_>>,
    found: &mut Found,
) -> gimli::Result<()> {
    let name_of = |value: AttributeValue<Slice<'_>>| match value {
        AttributeValue::String(name) => Some(name.slice().to_vec()),
        AttributeValue::DebugStrRef(at) => strings.get_str(at).ok().map(|s| s.slice().to_vec()),
        _ => None,
    };
    let abbreviations = header.abbreviations(abbreviations)?;
    let mut entries = header.entries_raw(&abbreviations, None)?;
    let mut is_runtime = false;
    let mut structure: Option<(&'static str, &'static [&'static str])> = None;
    while !entries.is_empty() {
        let depth = entries.next_depth();
        let Some(abbreviation) = entries.read_abbreviation()? else { continue };
        let wanted = match depth {
            0 => true,
            1 => abbreviation.tag() == DW_TAG_structure_type,
            2 => structure.is_some() && abbreviation.tag() == DW_TAG_member,
            _ => false,
        };
        if depth <= 1 {
            structure = None;
        }
        if !wanted {
            entries.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        let (mut name, mut location) = (None, None);
        for &specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(specification)?;
            match attribute.name() {
                constants::DW_AT_name => name = name_of(attribute.value()),
                constants::DW_AT_data_member_location => location = attribute.udata_value(),
                _ => {}
            }
        }
        let Some(name) = name else { continue };
        match depth {
            0 => {
                is_runtime = name == b"runtime";
                if !is_runtime {
                    return Ok(());
                }
            }
            1 => structure = STRUCTURES.into_iter().find(|(n, _)| n.as_bytes() == name),
            _ => {
                if let Some((structure, fields)) = structure
                    && let Some(field) = fields.iter().find(|f| f.as_bytes() == name)
                    && let Some(location) = location.and_then(|l| u32::try_from(l).ok())
                {
                    found.insert((structure, field), location);
                }
            }
        }
        if !is_runtime {
            return Ok(());
        }
    }
    Ok(())
}

/// Contents of a debug section as they are in the file.
enum Contents<'a> {
    Plain(&'a [u8]),
    /// Compressed bytes and their length once decompressed.
    Zlib(&'a [u8], u64),
    Zstandard(&'a [u8], u64),
}

/// A debug section by its name, also in its old compressed form (`.zdebug_info`).
fn section<'a>(elf: &Elf<'a>, name: &str) -> Option<Contents<'a>> {
    if let Some(section) = elf.section(name) {
        if section.flags & SHF_COMPRESSED.0 == 0 {
            return Some(Contents::Plain(section.data));
        }
        let kind = u32_at(section.data, 0)?;
        let size = u64_at(section.data, 8)?;
        let data = section.data.get(24..)?;
        return match object::elf::CompressionType(kind) {
            ELFCOMPRESS_ZLIB => Some(Contents::Zlib(data, size)),
            ELFCOMPRESS_ZSTD => Some(Contents::Zstandard(data, size)),
            _ => None,
        };
    }
    let old = elf.section(&name.replacen(".debug", ".zdebug", 1))?;
    if slice(old.data, 0, 4)? != b"ZLIB" {
        return None;
    }
    let size = u64::from_be_bytes(*old.data.get(4..)?.first_chunk()?);
    Some(Contents::Zlib(old.data.get(12..)?, size))
}

/// A whole section, decompressed.
fn table<'a>(elf: &Elf<'a>, name: &str) -> Option<Cow<'a, [u8]>> {
    match section(elf, name)? {
        Contents::Plain(data) => Some(Cow::Borrowed(data)),
        Contents::Zlib(data, size) => {
            let mut out = Vec::new();
            ZlibDecoder::new(data).take(size.min(MAX_TABLE)).read_to_end(&mut out).ok()?;
            Some(Cow::Owned(out))
        }
        Contents::Zstandard(data, size) => Some(Cow::Owned(zstandard(data, size, MAX_TABLE)?)),
    }
}

fn zstandard(data: &[u8], size: u64, most: u64) -> Option<Vec<u8>> {
    // The format's densest block holds 128 KiB in 4 bytes; no debug information comes near it, and a
    // forged size must not make us allocate what is not there.
    let plausible = (data.len() as u64).saturating_mul(512);
    if size > most || size > plausible {
        return None;
    }
    let data = CompressedData { format: CompressionFormat::Zstandard, data, uncompressed_size: size };
    Some(data.decompress().ok()?.into_owned())
}

/// Units of `.debug_info`, one after the other.
enum Units<'a> {
    Plain(&'a [u8]),
    Owned(Vec<u8>, usize),
    Stream(Box<io::Take<ZlibDecoder<&'a [u8]>>>),
}

impl<'a> Units<'a> {
    fn new(elf: &Elf<'a>) -> Option<Self> {
        Some(match section(elf, ".debug_info")? {
            Contents::Plain(data) => Self::Plain(data),
            Contents::Zlib(data, size) => Self::Stream(Box::new(ZlibDecoder::new(data).take(size))),
            Contents::Zstandard(data, size) => Self::Owned(zstandard(data, size, MAX_UNIT)?, 0),
        })
    }

    /// The next unit, its length field included; `None` at the end and where there is no sense any more.
    fn next<'b>(&'b mut self, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        match self {
            Self::Plain(rest) => {
                let (unit, others) = rest.split_at_checked(unit_size(rest)?)?;
                *rest = others;
                Some(unit)
            }
            Self::Owned(data, at) => {
                let rest = data.get(*at..)?;
                let size = unit_size(rest)?;
                *at += size;
                rest.get(..size)
            }
            Self::Stream(stream) => {
                buffer.clear();
                stream.by_ref().take(12).read_to_end(buffer).ok()?;
                let size = unit_size(buffer)?;
                let rest = (size as u64).checked_sub(buffer.len() as u64)?;
                stream.by_ref().take(rest).read_to_end(buffer).ok()?;
                buffer.get(..size)
            }
        }
    }
}

/// Size of the unit that begins here, its length field included.
fn unit_size(data: &[u8]) -> Option<usize> {
    let size = match u32_at(data, 0)? {
        u32::MAX => u64_at(data, 4)?.checked_add(12)?,
        n => u64::from(n) + 4,
    };
    usize::try_from(size).ok().filter(|_| size <= MAX_UNIT)
}
