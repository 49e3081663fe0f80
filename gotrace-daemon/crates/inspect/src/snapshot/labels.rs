//! pprof labels of goroutines: what `g.labels` points to (`runtime/pprof/label.go`): a slice of keys and
//! values from Go 1.24 on, a map before (`runtime/map.go`).
//!
//! Goroutines inherit the pointer, so that there are few sets; each is read once a snapshot. Untrusted:
//! numbers and lengths are bounded, and what is out of bounds is counted and left out.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    Counts, LabelSet, LabelsId,
    layout::{Layout, word},
};
use gotrace_process::{ProcessError, ReadMemory};

/// Distinct sets that are read.
const MAX_SETS: usize = 1 << 16;
/// Labels of one set.
const MAX_LABELS: u64 = 256;
/// Bytes of one key or value.
const MAX_TEXT: u64 = 4096;
/// Bytes of all labels.
const MAX_BYTES: usize = 32 << 20;

/// A bucket of a `map[string]string`: eight tags, keys, values, and the next bucket.
const BUCKET: usize = 8 + 8 * 16 + 8 * 16 + 8;
/// Tags below this one mark empty places (`runtime/map.go`, `minTopHash`).
const MIN_TAG: u8 = 5;

type Pairs = Vec<(Box<str>, Box<str>)>;

/// Reads sets, and remembers them by address for one snapshot.
#[derive(Debug, Default)]
pub(super) struct Labels {
    known: HashMap<u64, Option<LabelsId>, FixedState>,
    bytes: usize,
}

impl Labels {
    /// Forgets the sets of the last snapshot.
    pub fn begin(&mut self) {
        self.known.clear();
        self.bytes = 0;
    }

    /// The set at an address; `None` when it cannot be read.
    pub fn get(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        address: u64,
        sets: &mut Vec<LabelSet>,
        counts: &mut Counts,
    ) -> Result<Option<LabelsId>, ProcessError> {
        let id = match self.known.get(&address) {
            Some(&id) => id,
            None => {
                let within = self.known.len() < MAX_SETS && self.bytes < MAX_BYTES;
                let read = match (within, layout.labels_are_a_map) {
                    (false, _) => None,
                    (true, true) => map(memory, address)?,
                    (true, false) => slice(memory, address)?,
                };
                let id = read.and_then(|pairs| {
                    self.bytes += pairs.iter().map(|(k, v)| k.len() + v.len() + 32).sum::<usize>();
                    sets.push(LabelSet(pairs));
                    LabelsId::new(sets.len() - 1)
                });
                if within {
                    self.known.insert(address, id);
                }
                id
            }
        };
        counts.labels_unreadable += u64::from(id.is_none());
        Ok(id)
    }
}

/// A slice of pairs of strings.
fn slice(memory: &dyn ReadMemory, address: u64) -> Result<Option<Pairs>, ProcessError> {
    let mut header = [0; 16];
    if !memory.read_at(address, &mut header)? {
        return Ok(None);
    }
    let (array, len) = (word(&header, 0), word(&header, 8));
    if len > MAX_LABELS {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize * 32];
    if len > 0 && !memory.read_at(array, &mut bytes)? {
        return Ok(None);
    }
    let mut pairs = Pairs::new();
    for entry in bytes.chunks_exact(32) {
        let (Some(key), Some(value)) = (text(memory, entry)?, text(memory, &entry[16..])?) else {
            return Ok(None);
        };
        pairs.push((key, value));
    }
    Ok(Some(pairs))
}

/// A `map[string]string`, sorted by key.
fn map(memory: &dyn ReadMemory, address: u64) -> Result<Option<Pairs>, ProcessError> {
    let mut pointer = [0; 8];
    let mut header = [0; 48];
    if !memory.read_at(address, &mut pointer)? {
        return Ok(None);
    }
    let pointer = u64::from_le_bytes(pointer);
    if pointer == 0 {
        return Ok(Some(Pairs::new()));
    }
    if !memory.read_at(pointer, &mut header)? {
        return Ok(None);
    }
    let (count, log2, buckets, old) = (word(&header, 0), header[9], word(&header, 16), word(&header, 24));
    // One that grows at the moment has entries in two places.
    if count > MAX_LABELS || log2 > 6 || old != 0 {
        return Ok(None);
    }
    let mut pairs = Pairs::new();
    let mut left = MAX_LABELS;
    for n in 0..1u64 << log2 {
        let mut at = buckets.wrapping_add(n * BUCKET as u64);
        while at != 0 && pairs.len() < count as usize {
            if left == 0 {
                return Ok(None);
            }
            left -= 1;
            let mut bucket = [0; BUCKET];
            if !memory.read_at(at, &mut bucket)? {
                return Ok(None);
            }
            for slot in (0..8).filter(|&slot| bucket[slot] >= MIN_TAG) {
                let key = text(memory, &bucket[8 + 16 * slot..])?;
                let value = text(memory, &bucket[136 + 16 * slot..])?;
                let (Some(key), Some(value)) = (key, value) else { return Ok(None) };
                pairs.push((key, value));
            }
            at = word(&bucket, BUCKET - 8);
        }
    }
    pairs.sort();
    Ok((pairs.len() as u64 == count).then_some(pairs))
}

/// The string whose header is at the beginning of these bytes.
fn text(memory: &dyn ReadMemory, header: &[u8]) -> Result<Option<Box<str>>, ProcessError> {
    let (address, len) = (word(header, 0), word(header, 8));
    if len > MAX_TEXT {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    if len > 0 && !memory.read_at(address, &mut bytes)? {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into()))
}
