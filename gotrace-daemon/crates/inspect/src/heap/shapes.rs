//! What a type is called and made of: the runtime's descriptions (`internal/abi`, `Type` and what follows it by
//! kind, Go 1.19 to 1.27), for people who ask what an object is.
//!
//! Input: addresses of descriptions among a module's own. What is not as it should be is not known.

use super::types::Types;
use crate::snapshot::{half_at, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// As much of a description as is looked at: the fields of all, and three words of those by kind.
const TYPE: usize = 72;
const FLAGS: usize = 20;
const KIND: usize = 23;
const NAME: usize = 40;
/// Kinds, in the low bits of `Kind_`.
const KINDS: u8 = 31;
/// The type of elements, of what has some; of a structure, the path of its package.
const ELEMENT: usize = 48;
/// Of a structure: pointer to the fields and their number.
const FIELDS: usize = 56;
/// `Name`, `Typ`, `Offset`.
const FIELD: usize = 24;
/// The name has a `*` before it that is not part of it.
const EXTRA_STAR: u8 = 1 << 1;
/// The longest name that is shown.
const MAX_NAME: usize = 256;
/// The most fields of a structure that are looked through.
const MAX_FIELDS: u64 = 1 << 12;
/// Structures in structures.
const MAX_DEPTH: usize = 16;

/// The kinds that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Array,
    Channel,
    Function,
    Interface,
    Map,
    Pointer,
    Slice,
    Structure,
    Other,
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// As the program's sources have it, with the last part of a package's path.
    pub name: String,
    /// Bytes of a value.
    pub size: u64,
    pub kind: Kind,
    /// Address of the description of its elements, or of what it points to.
    pub element: u64,
    fields: (u64, u64),
}

/// The type at an address; `None` where none is described.
pub(super) fn shape(
    memory: &dyn ReadMemory,
    types: &Types,
    address: u64,
) -> Result<Option<Shape>, ProcessError> {
    let mut bytes = [0; TYPE];
    let Some((begin, len)) = types.range_of(address).filter(|_| address.is_multiple_of(8)) else {
        return Ok(None);
    };
    if !memory.read_at(address, &mut bytes)? {
        return Ok(None);
    }
    let offset = u64::from(half_at(&bytes, NAME));
    let name = if offset < len { name(memory, begin + offset)? } else { None };
    let Some(name) = name else { return Ok(None) };
    let star = bytes[FLAGS] & EXTRA_STAR != 0;
    let name = name.strip_prefix('*').filter(|_| star).map_or_else(|| name.clone(), str::to_owned);
    let kind = match bytes[KIND] & KINDS {
        17 => Kind::Array,
        18 => Kind::Channel,
        19 => Kind::Function,
        20 => Kind::Interface,
        21 => Kind::Map,
        22 => Kind::Pointer,
        23 => Kind::Slice,
        25 => Kind::Structure,
        _ => Kind::Other,
    };
    Ok(Some(Shape {
        name,
        size: word_at(&bytes, 0),
        kind,
        element: word_at(&bytes, ELEMENT),
        fields: (word_at(&bytes, FIELDS), word_at(&bytes, FIELDS + 8)),
    }))
}

/// A name: a byte of flags, the length as a varint, the text (`internal/abi`, `Name`).
fn name(memory: &dyn ReadMemory, address: u64) -> Result<Option<String>, ProcessError> {
    let mut head = [0; 3];
    if address < 0x1000 || !memory.read_at(address, &mut head)? {
        return Ok(None);
    }
    let (length, skip) = match (head[1], head[2]) {
        (low, _) if low < 0x80 => (usize::from(low), 2),
        (low, high) => (usize::from(low & 0x7f) | usize::from(high & 0x7f) << 7, 3),
    };
    let mut text = vec![0; length.min(MAX_NAME)];
    if text.is_empty() || !memory.read_at(address + skip, &mut text)? {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// What lies at an offset in a value: how it is named from there (`.conn.done`, `[3].next`), the address of its type,
/// and how far into that the offset is.
pub(super) fn at(
    memory: &dyn ReadMemory,
    types: &Types,
    of: u64,
    offset: u64,
) -> Result<(String, u64, u64), ProcessError> {
    let (mut path, mut address, mut offset) = (String::new(), of, offset);
    for _ in 0..MAX_DEPTH {
        let Some(known) = shape(memory, types, address)? else { break };
        match known.kind {
            Kind::Array => {
                let size = shape(memory, types, known.element)?.map_or(0, |e| e.size);
                if size == 0 {
                    break;
                }
                path += &format!("[{}]", offset / size);
                (address, offset) = (known.element, offset % size);
            }
            Kind::Structure => {
                let Some((name, kind, from)) = field(memory, known.fields, offset)? else { break };
                path += &format!(".{name}");
                (address, offset) = (kind, offset - from);
            }
            _ => break,
        }
    }
    Ok((path, address, offset))
}

/// The field of a structure that an offset is in: name, type, where it begins.
fn field(
    memory: &dyn ReadMemory,
    (fields, count): (u64, u64),
    offset: u64,
) -> Result<Option<(String, u64, u64)>, ProcessError> {
    let mut bytes = vec![0; FIELD * usize::try_from(count.min(MAX_FIELDS)).unwrap_or(0)];
    if bytes.is_empty() || !memory.read_at(fields, &mut bytes)? {
        return Ok(None);
    }
    let starts = |b: &&[u8]| word_at(b, 16) <= offset;
    let Some(found) = bytes.chunks_exact(FIELD).take_while(starts).last() else { return Ok(None) };
    let name = name(memory, word_at(found, 0))?;
    Ok(name.map(|name| (name, word_at(found, 8), word_at(found, 16))))
}
