//! Stacks as roots: of goroutines that wait and have not moved, the words that they will still use; of all
//! others, every word.

use super::{HeapError, mark::Marker};
use crate::{
    process::ReadMemory,
    snapshot::{Engine, G_HEAD, Pieces, Standing},
};

/// Bytes of a `g` that is not in the heap.
const G_BYTES: u64 = 512;
/// Longer stacks are taken in as a whole.
const LONGEST: u64 = 4 << 20;
/// Goroutines whose stacks are looked at together, so that a million do not take a million's memory.
const AT_ONCE: usize = 4096;

/// What was taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes of stacks.
    pub bytes: u64,
    /// Stacks of which the words that are still used are known.
    pub exact: u64,
}

/// Takes in the `g`s and the used parts of the stacks of goroutines. `exact`: of those that wait, only what they
/// will still use.
pub(super) fn take_in(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    marker: &Marker,
    goroutines: &[Standing],
    exact: bool,
) -> Result<Taken, HeapError> {
    let mut whole: Vec<(u64, u64)> = Vec::new();
    let mut outside: Vec<(u64, u64)> = Vec::new();
    let mut waiting: Vec<(Standing, u32)> = Vec::new();
    for s in goroutines {
        let (lo, hi) = s.stack;
        let from = s.sp.unwrap_or(lo) & !7;
        let len = hi.saturating_sub(from);
        if exact && s.sp.is_some() && s.status.is_waiting() && s.mark != 0 && len <= LONGEST && !s.from_c {
            waiting.push((*s, len as u32));
        } else {
            whole.push((from, len));
        }
        if marker.table.find(s.g).is_some() {
            marker.word(s.g);
        } else {
            outside.push((s.g, G_BYTES));
        }
    }
    let mut taken = Taken::default();
    // By address of their `g`s, which are read first.
    waiting.sort_unstable_by_key(|(s, _)| s.g);
    for part in waiting.chunks(AT_ONCE) {
        waits(engine, memory, marker, part, &mut whole, &mut taken)?;
    }
    whole.sort_unstable();
    taken.bytes += marker.ranges(memory, &whole)?;
    marker.ranges(memory, &outside)?;
    Ok(taken)
}

fn waits(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    marker: &Marker,
    waiting: &[(Standing, u32)],
    whole: &mut Vec<(u64, u64)>,
    taken: &mut Taken,
) -> Result<(), HeapError> {
    let mut heads = vec![None; waiting.len()];
    let items: Vec<(u64, u32)> = waiting.iter().map(|(s, _)| (s.g, G_HEAD as u32)).collect();
    let (mut first, mut pieces) = (0, Pieces::default());
    while first < items.len() {
        let done = pieces.read(memory, &items[first..], 512)?;
        for n in 0..done {
            heads[first + n] = pieces.item(n, G_HEAD).and_then(|b| <[u8; G_HEAD]>::try_from(b).ok());
        }
        first += done;
    }
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_unstable_by_key(|&n| waiting[n].0.sp);
    let items: Vec<(u64, u32)> =
        order.iter().map(|&n| (waiting[n].0.sp.unwrap_or_default(), waiting[n].1)).collect();
    let (mut first, mut words, mut bytes) = (0, Vec::new(), Vec::new());
    while first < items.len() {
        let done = pieces.read(memory, &items[first..], 0)?;
        for i in 0..done {
            let n = order[first + i];
            let (standing, len) = &waiting[n];
            let known = match (pieces.item(i, *len as usize), &heads[n]) {
                (Some(stack), Some(head)) => {
                    words.clear();
                    engine.live_words(memory, standing, head, stack, &mut words)?
                }
                _ => false,
            };
            if known {
                taken.exact += 1;
                taken.bytes += u64::from(*len);
                bytes.clear();
                bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
                marker.words(&bytes);
            } else {
                whole.push((items[first + i].0, u64::from(*len)));
            }
        }
        first += done;
    }
    Ok(())
}
