//! Which descriptor a goroutine waits for in the network poller.
//!
//! No field of the `g` says so. While it waits, `runtime.netpollblock` keeps on its stack the address of the
//! word in the descriptor's `pollDesc` (`rg` or `wg`) that holds the `g` (`runtime/netpoll.go`, Go 1.18 to
//! 1.27). So: a word near the stack's end that points to a word that holds this goroutine's `g` is that
//! address; whether it is `rg` or `wg` is told by what the frames do. Input is untrusted: what does not fit
//! is not known, and the number of words is bounded.

use super::{
    Until,
    layout::{Layout, word},
    pieces::Pieces,
};
use gotrace_process::{ProcessError, ReadMemory};

/// Words from the stack pointer on among which it is: the frames of `gopark` and `netpollblock` are shorter.
const WORDS: usize = 32;
/// What was the stack's before, below where it is used.
const BELOW: u64 = 1 << 12;
/// No process has as many.
const MAX_DESCRIPTOR: u64 = 1 << 31;

/// What was found for a goroutine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Address of the `pollDesc`.
    pub address: u64,
    /// Number of the descriptor.
    pub number: u32,
    /// When the wait fails.
    pub deadline: Until,
}

/// A word of a `pollDesc` that holds the `g`, and what the descriptor is if that is the word for readers,
/// and if it is that for writers.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    reader: Option<Descriptor>,
    writer: Option<Descriptor>,
}

/// Looks for those of a batch.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// Of each goroutine that waits for one, its place in the batch and the first words of its stack.
    noted: Vec<(usize, [u64; WORDS])>,
    found: Vec<(usize, Found)>,
    /// Number of the word in which it was the last time: the same for all that come the same way.
    usual: Option<usize>,
    pieces: Pieces,
}

impl Descriptors {
    /// A new batch.
    pub fn begin(&mut self) {
        self.noted.clear();
        self.found.clear();
    }

    /// The n-th goroutine of the batch waits for a descriptor, and this is its stack from `sp` on, which ends at `hi`.
    pub fn note(&mut self, n: usize, stack: &[u8], (sp, hi): (u64, u64)) {
        // No `pollDesc` is there, but places that hold the `g` are.
        let own = sp.saturating_sub(BELOW)..hi;
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(stack.chunks_exact(8)) {
            *word = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            if own.contains(word) {
                *word = 0;
            }
        }
        self.noted.push((n, words));
    }

    /// Looks for the descriptors; `g_of`: address of the n-th `g`; `now`: the process's clock.
    pub fn resolve(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        g_of: impl Fn(usize) -> u64,
        now: Option<i64>,
    ) -> Result<(), ProcessError> {
        let Some((rg, wg)) = layout.poll_rg.zip(layout.poll_wg) else { return Ok(()) };
        let noted = std::mem::take(&mut self.noted);
        let mut open: Vec<usize> = (0..noted.len()).collect();
        if let Some(usual) = self.usual {
            self.look(memory, layout, (rg, wg), &noted, &mut open, usual..usual + 1, &g_of)?;
        }
        self.look(memory, layout, (rg, wg), &noted, &mut open, 0..WORDS, &g_of)?;
        self.noted = noted;
        self.found.sort_unstable_by_key(|&(n, _)| n);
        self.read_deadlines(memory, layout, now)
    }

    fn read_deadlines(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        now: Option<i64>,
    ) -> Result<(), ProcessError> {
        let Some((rd, wd)) = layout.poll_rd.zip(layout.poll_wd) else { return Ok(()) };
        let found = &mut self.found;
        let mut of: Vec<(&mut Descriptor, usize)> = found
            .iter_mut()
            .flat_map(|(_, f)| [(f.reader.as_mut(), rd), (f.writer.as_mut(), wd)])
            .filter_map(|(descriptor, field)| Some((descriptor?, field)))
            .collect();
        let addresses: Vec<u64> = of.iter().map(|(d, field)| d.address.wrapping_add(*field as u64)).collect();
        let words = self.pieces.words(memory, &addresses)?;
        for ((descriptor, _), word) in of.iter_mut().zip(words) {
            descriptor.deadline = word.map_or(Until::default(), |w| Until::deadline(w, now));
        }
        Ok(())
    }

    /// Looks at some words of those that are open, and closes them where it was one of these.
    #[expect(clippy::too_many_arguments, reason = "the parts of one loop")]
    fn look(
        &mut self,
        memory: &dyn ReadMemory,
        layout: &Layout,
        (rg, wg): (usize, usize),
        noted: &[(usize, [u64; WORDS])],
        open: &mut Vec<usize>,
        words: std::ops::Range<usize>,
        g_of: &impl Fn(usize) -> u64,
    ) -> Result<(), ProcessError> {
        // From the beginning of a `pollDesc`, if the word is its last, to the word's end.
        let before = rg.max(wg) as u64;
        let len = before as usize + 8;
        let mut candidates: Vec<(u64, usize, usize)> = Vec::new();
        for &i in open.iter() {
            for at in words.clone() {
                let address = noted[i].1[at];
                if address.is_multiple_of(8) && (0x1_0000..1 << 52).contains(&address) {
                    candidates.push((address - before, i, at));
                }
            }
        }
        candidates.sort_unstable();
        let items: Vec<(u64, u32)> = candidates.iter().map(|c| (c.0, len as u32)).collect();
        let mut closed = vec![false; noted.len()];
        let mut rest = 0;
        while rest < items.len() {
            let done = self.pieces.read(memory, &items[rest..], 256)?;
            for i in 0..done {
                let (begin, of, at) = candidates[rest + i];
                let n = noted[of].0;
                let Some(bytes) = self.pieces.item(i, len) else { continue };
                if closed[of] || word(bytes, before as usize) != g_of(n) {
                    continue;
                }
                let descriptor = |field: usize| {
                    let skip = before as usize - field;
                    let number = word(bytes, skip + layout.poll_fd?);
                    let number = u32::try_from(number).ok().filter(|n| u64::from(*n) < MAX_DESCRIPTOR)?;
                    Some(Descriptor { address: begin + skip as u64, number, deadline: Until::default() })
                };
                self.found.push((n, Found { reader: descriptor(rg), writer: descriptor(wg) }));
                closed[of] = true;
                self.usual = Some(at);
            }
            rest += done;
        }
        open.retain(|&i| !closed[i]);
        Ok(())
    }

    /// The descriptor that the n-th goroutine of the batch waits to read from, or to write to.
    pub fn of(&self, n: usize, writes: bool) -> Option<Descriptor> {
        let at = self.found.binary_search_by_key(&n, |&(of, _)| of).ok()?;
        let found = self.found.get(at)?.1;
        if writes { found.writer } else { found.reader }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_own_stack_are_no_descriptors() {
        let words = [0x7f00_0000_1010, 0xc000_2100, 0xc000_1f00, 0xc000_3000, 0xc000_0f00];
        let stack: Vec<u8> = words.iter().flat_map(|w: &u64| w.to_le_bytes()).collect();
        let mut descriptors = Descriptors::default();
        descriptors.note(3, &stack, (0xc000_2000, 0xc000_3000));
        let (n, noted) = descriptors.noted[0];
        assert_eq!((n, &noted[..6]), (3, &[0x7f00_0000_1010, 0, 0, 0xc000_3000, 0xc000_0f00, 0][..]));
    }
}
