//! Where a program's variables are: the runtime's own list of modules (`runtime/symtab.go`, `moduledata`),
//! read from memory, where everything is relocated. A plugin is one more module.

use super::HeapError;
use crate::snapshot::{half_at, word_at};
use gotrace_process::{ProcessError, ReadMemory};

/// Offsets in `moduledata`, Go 1.18 to 1.27.
const MIN_PC: usize = 160;
const MAX_PC: usize = 168;
const NOPTRDATA: usize = 192;
const DATA: usize = 208;
const BSS: usize = 224;
const NOPTRBSS: usize = 240;
/// As much of one as is looked at; `next` is its last field, within this.
const SIZE: usize = 768;
/// Where `next` may be.
const NEXT: std::ops::Range<usize> = 400..SIZE;
/// Modules of a program: one and its plugins.
const MAX_MODULES: usize = 256;
/// The largest part of a program's variables that is believed.
const MAX_BYTES: u64 = 64 << 30;
/// Addresses of programs lie below this on both architectures.
const USER_SPACE: u64 = 1 << 52;

/// `len(mask)`, in bits, and the mask's address (`runtime.bitvector`): two of them, one behind the other.
const MASKS: std::ops::Range<usize> = 400..SIZE - 24;
/// Stands behind each mask (`runtime.progToPointerMask`).
const BEHIND_MASK: u8 = 0xa1;

/// First address and length.
pub(super) type Range = (u64, u64);

/// A part of a module's variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variables {
    pub range: Range,
    /// Address of a mask with a bit a word, that says which words are pointers.
    pub mask: Option<u64>,
}

/// The variables of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Where its module data is.
    pub address: u64,
    /// Variables with a value that hold pointers.
    pub data: Range,
    /// Variables without one.
    pub bss: Range,
    /// Variables that hold no pointers into the heap.
    pub noptrdata: Range,
    /// Such without a value.
    pub noptrbss: Range,
    /// Its functions.
    pub text: Range,
    /// Descriptions of its types.
    pub types: Range,
    /// Address of the mask of `data`; `None` where it is not known.
    pub data_mask: Option<u64>,
    /// Address of the mask of `bss`.
    pub bss_mask: Option<u64>,
}

impl Module {
    /// Variables that may hold pointers: with a value, and without.
    pub fn variables(&self) -> [Variables; 2] {
        [
            Variables { range: self.data, mask: self.data_mask },
            Variables { range: self.bss, mask: self.bss_mask },
        ]
    }
}

/// The modules, the program's own first. `first`: address of its module data in the living process; `types`: where
/// it says where descriptions of types begin and end.
pub(super) fn read(
    memory: &dyn ReadMemory,
    first: u64,
    types: (usize, usize),
    version: &str,
) -> Result<Vec<Module>, HeapError> {
    let mut modules: Vec<Module> = Vec::new();
    let mut open = vec![first];
    while let Some(address) = open.pop() {
        if modules.iter().any(|m| m.address == address) || modules.len() == MAX_MODULES {
            continue;
        }
        let Some(bytes) = bytes_of(memory, address)? else { continue };
        let Some(mut module) = parse(address, &bytes, types) else { continue };
        (module.data_mask, module.bss_mask) = masks(memory, &module, &bytes)?;
        modules.push(module);
        for at in NEXT.step_by(8) {
            let next = word_at(&bytes, at);
            if next.is_multiple_of(8) && next > 0xffff && next != address && begins_as_module(memory, next)? {
                open.push(next);
            }
        }
    }
    match modules.first() {
        Some(m) if m.address == first => Ok(modules),
        _ => Err(HeapError::Implausible {
            version: version.to_owned(),
            why: format!("no module data at {first:#x}"),
        }),
    }
}

/// All of it, or as much as is mapped behind it.
fn bytes_of(memory: &dyn ReadMemory, address: u64) -> Result<Option<Vec<u8>>, ProcessError> {
    for len in [SIZE, 512] {
        let mut bytes = vec![0; len];
        if memory.read_at(address, &mut bytes)? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn begins_as_module(memory: &dyn ReadMemory, address: u64) -> Result<bool, ProcessError> {
    let mut table = [0; 8];
    let mut magic = [0; 8];
    if !memory.read_at(address, &mut table)? {
        return Ok(false);
    }
    let table = u64::from_le_bytes(table);
    if table < 0x1000 || !table.is_multiple_of(8) || !memory.read_at(table, &mut magic)? {
        return Ok(false);
    }
    // `0xfffffff0` or `0xfffffff1`, two zeros, the instructions' alignment, the size of a pointer.
    Ok(half_at(&magic, 0) | 1 == 0xffff_fff1 && magic[4] == 0 && magic[5] == 0 && magic[7] == 8)
}

/// Addresses of the masks of its variables; `None` for what is not as a mask is.
fn masks(
    memory: &dyn ReadMemory,
    module: &Module,
    bytes: &[u8],
) -> Result<(Option<u64>, Option<u64>), ProcessError> {
    let words = |(_, len): Range| len / 8;
    for at in MASKS.step_by(8) {
        let number = |at: usize| u64::from(half_at(bytes, at));
        let fits = number(at) == words(module.data) && number(at + 16) == words(module.bss);
        if !fits || bytes.len() < at + 32 {
            continue;
        }
        let mut known = [None; 2];
        for (known, (range, at)) in known.iter_mut().zip([(module.data, at + 8), (module.bss, at + 24)]) {
            let mask = word_at(bytes, at);
            let mut behind = [0];
            if mask > 0xffff
                && mask < 1 << 52
                && memory.read_at(mask + words(range).div_ceil(8), &mut behind)?
                && behind[0] == BEHIND_MASK
            {
                *known = Some(mask);
            }
        }
        return Ok((known[0], known[1]));
    }
    Ok((None, None))
}

fn parse(address: u64, bytes: &[u8], (types, etypes): (usize, usize)) -> Option<Module> {
    let between = |from: usize, to: usize| {
        let (begin, end) = (word_at(bytes, from), word_at(bytes, to));
        let len = end.checked_sub(begin).filter(|&len| len <= MAX_BYTES && end < USER_SPACE)?;
        Some((begin, len))
    };
    let range = |at: usize| between(at, at + 8);
    if word_at(bytes, MIN_PC) >= word_at(bytes, MAX_PC) {
        return None;
    }
    Some(Module {
        address,
        data: range(DATA)?,
        bss: range(BSS)?,
        noptrdata: range(NOPTRDATA)?,
        noptrbss: range(NOPTRBSS)?,
        text: between(MIN_PC, MAX_PC)?,
        types: between(types, etypes)?,
        data_mask: None,
        bss_mask: None,
    })
}
