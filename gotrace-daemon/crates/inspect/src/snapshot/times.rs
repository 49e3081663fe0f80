//! Whether the elements of a channel are `time.Time`s, as those of timers and tickers are.
//!
//! Input: the description of a type in the process's memory (`internal/abi`, `StructType`, Go 1.19 to 1.27). It is
//! told by its package and the names of its fields, so that a stripped binary will do. What cannot be read may be one:
//! a goroutine that a timer wakes must not be taken for one that nobody wakes.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::layout::word;
use gotrace_process::{ProcessError, ReadMemory};

/// Bytes of a `time.Time`.
pub(super) const SIZE: u16 = 24;
/// `Kind_`, and the package's path, the fields and their number.
const KIND: usize = 23;
const STRUCT: u8 = 25;
const PACKAGE: usize = 48;
const FIELDS: usize = 56;
const COUNT: usize = 64;
const TYPE: usize = 72;
/// `Name`, `Typ`, `Offset`.
const FIELD: usize = 24;
const NAMES: [&[u8]; 3] = [b"wall", b"ext", b"loc"];
/// Types that are remembered.
const MAX_KNOWN: usize = 1 << 16;

/// Types that were looked at.
#[derive(Debug, Default)]
pub(super) struct Times(HashMap<u64, bool, FixedState>);

impl Times {
    /// Whether values of the type whose description is at an address are times, or may be.
    pub fn carries(&mut self, memory: &dyn ReadMemory, address: u64) -> Result<bool, ProcessError> {
        if let Some(&known) = self.0.get(&address) {
            return Ok(known);
        }
        let is_time = is_time(memory, address)?.unwrap_or(true);
        if self.0.len() < MAX_KNOWN {
            self.0.insert(address, is_time);
        }
        Ok(is_time)
    }
}

fn is_time(memory: &dyn ReadMemory, address: u64) -> Result<Option<bool>, ProcessError> {
    let mut bytes = [0; TYPE];
    if !address.is_multiple_of(8) || !memory.read_at(address, &mut bytes)? {
        return Ok(None);
    }
    if word(&bytes, 0) != u64::from(SIZE) {
        return Ok(None);
    }
    if bytes[KIND] & 31 != STRUCT || word(&bytes, COUNT) != NAMES.len() as u64 {
        return Ok(Some(false));
    }
    let mut fields = [0; FIELD * NAMES.len()];
    if !memory.read_at(word(&bytes, FIELDS), &mut fields)? {
        return Ok(None);
    }
    let names = std::iter::once((word(&bytes, PACKAGE), &b"time"[..]))
        .chain(fields.chunks_exact(FIELD).map(|f| word(f, 0)).zip(NAMES));
    for (at, expected) in names {
        // A byte of flags, the length, the text.
        let mut name = [0; 6];
        let Some(name) = name.get_mut(..2 + expected.len()) else { return Ok(None) };
        if !memory.read_at(at, name)? {
            return Ok(None);
        }
        if usize::from(name[1]) != expected.len() || name.get(2..) != Some(expected) {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}
