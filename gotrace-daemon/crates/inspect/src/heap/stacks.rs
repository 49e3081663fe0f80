//! Stacks as roots: of goroutines that wait or are in a system call, and have not run while their stack was read, the
//! words that they will still use; of all others, every word.

use super::{HeapError, mark::Marker};
use crate::snapshot::{Engine, G_HEAD, Pieces, Standing, Status, word_at};
use gotrace_process::ReadMemory;

/// Bytes of a `g` that is not in the heap.
const G_BYTES: u64 = 512;
/// Longer stacks are taken in as a whole.
const LONGEST: u64 = 4 << 20;
/// Goroutines whose stacks are looked at together, so that a million do not take a million's memory.
pub(super) const AT_ONCE: usize = 4096;

/// What was taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Bytes of stacks.
    pub bytes: u64,
    /// Stacks of which the words that are still used are known.
    pub exact: u64,
}

/// What is known of goroutines whose stacks are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// They are looked at again at the end of the pass: a stack that changes while it is read is no harm.
    First,
    /// They are not: where one has run while its stack was read, all of that is taken.
    Last,
}

/// Takes in the `g`s and the used parts of the stacks of goroutines: of those that wait or are in a system call, only
/// what they will still use.
pub(super) fn take_in(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    marker: &Marker,
    goroutines: &[Standing],
    look: Look,
) -> Result<Taken, HeapError> {
    let mut whole: Vec<(u64, u64)> = Vec::new();
    let mut outside: Vec<(u64, u64)> = Vec::new();
    let mut standing: Vec<(Standing, u32)> = Vec::new();
    for s in goroutines {
        let (from, len) = used(s);
        let stands = s.status.is_waiting() || s.status == Status::Syscall;
        if stands && s.sp.is_some() && s.mark != 0 && len <= LONGEST && !s.from_c {
            standing.push((*s, len as u32));
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
    standing.sort_unstable_by_key(|(s, _)| s.g);
    for part in standing.chunks(AT_ONCE) {
        exact(engine, memory, marker, part, look, &mut whole, &mut taken)?;
    }
    whole.sort_unstable();
    taken.bytes += marker.ranges(memory, &whole)?;
    marker.ranges(memory, &outside)?;
    Ok(taken)
}

/// Adds the words of one goroutine's stack: those that it will still use where they are known, else all.
pub(super) fn words(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    standing: &Standing,
    words: &mut Vec<u64>,
) -> Result<(), HeapError> {
    let (from, len) = used(standing);
    let (mut head, mut bytes) = ([0; G_HEAD], vec![0; usize::try_from(len.min(LONGEST)).unwrap_or(0)]);
    let begin = words.len();
    if !memory.read_at(from, &mut bytes)? {
        return Ok(());
    }
    let known = len <= LONGEST
        && memory.read_at(standing.g, &mut head)?
        && engine.live_words(memory, standing, &head, &bytes, words)?;
    if !known {
        words.truncate(begin);
        words.extend(bytes.chunks_exact(8).map(|c| word_at(c, 0)));
    }
    Ok(())
}

/// The part of a stack that may be in use: first address and length.
fn used(standing: &Standing) -> (u64, u64) {
    let (lo, hi) = standing.stack;
    let from = standing.sp.unwrap_or(lo) & !7;
    (from, hi.saturating_sub(from))
}

fn exact(
    engine: &mut Engine,
    memory: &dyn ReadMemory,
    marker: &Marker,
    standing: &[(Standing, u32)],
    look: Look,
    whole: &mut Vec<(u64, u64)>,
    taken: &mut Taken,
) -> Result<(), HeapError> {
    let mut heads = vec![None; standing.len()];
    let items: Vec<(u64, u32)> = standing.iter().map(|(s, _)| (s.g, G_HEAD as u32)).collect();
    let (mut first, mut pieces) = (0, Pieces::default());
    while first < items.len() {
        let done = pieces.read(memory, &items[first..], 512)?;
        for n in 0..done {
            heads[first + n] = pieces.item(n, G_HEAD).and_then(|b| <[u8; G_HEAD]>::try_from(b).ok());
        }
        first += done;
    }
    let mut order: Vec<usize> = (0..standing.len()).collect();
    order.sort_unstable_by_key(|&n| standing[n].0.sp);
    let items: Vec<(u64, u32)> =
        order.iter().map(|&n| (standing[n].0.sp.unwrap_or_default(), standing[n].1)).collect();
    let (mut first, mut words) = (0, Vec::new());
    // Those whose words are known, and how many of `words` there are behind theirs.
    let mut known: Vec<(Standing, usize)> = Vec::new();
    while first < items.len() {
        let done = pieces.read(memory, &items[first..], 0)?;
        words.clear();
        known.clear();
        for i in 0..done {
            let n = order[first + i];
            let (standing, len) = &standing[n];
            let begin = words.len();
            let is_known = match (pieces.item(i, *len as usize), &heads[n]) {
                (Some(stack), Some(head)) => engine.live_words(memory, standing, head, stack, &mut words)?,
                _ => false,
            };
            if is_known {
                known.push((*standing, words.len()));
            } else {
                words.truncate(begin);
                whole.push(used(standing));
            }
        }
        let unmoved = match look {
            Look::First => vec![true; known.len()],
            Look::Last => {
                let standings: Vec<Standing> = known.iter().map(|&(s, _)| s).collect();
                engine.unmoved(memory, &standings)?
            }
        };
        let mut begin = 0;
        for ((standing, end), unmoved) in known.iter().zip(unmoved) {
            if unmoved {
                taken.exact += 1;
                taken.bytes += used(standing).1;
                words.get(begin..*end).unwrap_or_default().iter().for_each(|&word| marker.word(word));
            } else {
                whole.push(used(standing));
            }
            begin = *end;
        }
        first += done;
    }
    Ok(())
}
