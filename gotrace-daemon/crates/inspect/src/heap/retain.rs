//! What leaked goroutines keep alive: marks on from their stacks, after everything that can run has been
//! marked from.
//!
//! What is reached from one group of goroutines alone counts as that group's; what is reached from two, or
//! from leaked ones of no group, only for the total. Sizes are those of the runtime's size classes.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    HeapError, Prover,
    mark::Marker,
    pass::{Marked, let_run},
    stacks::{self, Look},
    table::Place,
    waiting::Candidate,
};
use crate::snapshot::word_at;
use gotrace_process::ReadMemory;

/// Reached from more than one group.
const SHARED: u8 = u8::MAX;
/// Groups that are told apart.
const MAX_GROUPS: usize = SHARED as usize - 1;
/// A larger object is read in parts of this many bytes.
const PART: u64 = 1 << 16;

/// Bytes of the heap that leaked goroutines keep alive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// By group: what that group alone keeps alive; `None` where there are too many groups.
    pub by_group: Vec<Option<u64>>,
    /// What all of them keep alive together; `None` where it was not looked for.
    pub leaked_bytes: Option<u64>,
    /// The same and what is reached from what can run.
    pub heap_bytes: Option<u64>,
}

/// For each object that leaked goroutines reach, by its span: the number of its group, from 1.
struct Labels(HashMap<u32, Box<[u8]>, FixedState>);

impl Labels {
    /// Labels an object; what must be followed again, if that says something new.
    fn reach(&mut self, marker: &Marker, place: Place, label: u8) -> bool {
        if marker.has(place) {
            return false;
        }
        let count = marker.table.entry(place).map_or(0, |e| e.span.count as usize);
        let of = self.0.entry(place.entry).or_insert_with(|| vec![0; count].into_boxed_slice());
        let Some(known) = of.get_mut(place.index as usize) else { return false };
        if *known == label || *known == SHARED {
            return false;
        }
        *known = if *known == 0 { label } else { SHARED };
        true
    }

    fn of(&self, place: Place) -> u8 {
        self.0.get(&place.entry).and_then(|l| l.get(place.index as usize)).copied().unwrap_or(0)
    }
}

impl Prover {
    /// What the proven goroutines of each of these groups keep alive, as of the last pass. Leaves no marks
    /// behind: it can be asked once after a pass.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn retained(&mut self, memory: &dyn ReadMemory, groups: &[Vec<u64>]) -> Result<Retained, HeapError> {
        let Some(Marked { mut marker, leaked, .. }) = self.last.take() else {
            return Ok(Retained::default());
        };
        let mut group_of: HashMap<u64, usize, FixedState> = HashMap::default();
        for (n, goids) in groups.iter().enumerate() {
            group_of.extend(goids.iter().map(|&goid| (goid, n)));
        }
        // Those that are not told as leaked may run.
        let is_told = |c: &Candidate| group_of.contains_key(&c.standing.goid);
        let others: Vec<u32> = (0..).zip(&leaked).filter(|(_, c)| !is_told(c)).map(|(n, _)| n).collect();
        let_run(&mut self.engine, memory, &mut marker, &leaked, &others, Look::First)?;
        let (live, _) = marker.reached();

        let mut labels = Labels(HashMap::default());
        let mut open: Vec<Place> = Vec::new();
        let (mut bytes, mut words) = (Vec::new(), Vec::new());
        for candidate in leaked.iter().filter(|c| is_told(c)) {
            let s = &candidate.standing;
            let group = group_of.get(&s.goid).copied().unwrap_or(MAX_GROUPS);
            let label = if group < MAX_GROUPS { group as u8 + 1 } else { SHARED };
            words.clear();
            stacks::words(&mut self.engine, memory, s, &mut words)?;
            for &word in &words {
                reach_word(&marker, &mut labels, word, label, &mut open);
            }
            let g = marker.table.find(s.g).map(|p| marker.table.object(p));
            let records =
                candidate.records.iter().filter_map(|&r| Some(marker.table.object(marker.table.find(r)?)));
            for (address, len) in g.into_iter().chain(records) {
                let mut at = 0;
                while at < len {
                    bytes.resize(usize::try_from((len - at).min(PART)).unwrap_or(0), 0);
                    if memory.read_at(address + at, &mut bytes)? {
                        reach(&marker, &mut labels, &bytes, label, &mut open);
                    }
                    at += PART;
                }
            }
        }
        follow(memory, &marker, &mut labels, open)?;

        let mut by_group = vec![0_u64; groups.len().min(MAX_GROUPS)];
        let mut leaked = 0;
        for (&entry, of) in &labels.0 {
            let size = marker.table.entries.get(entry as usize).map_or(0, |e| e.span.size);
            for &label in of.iter().filter(|&&l| l != 0) {
                leaked += size;
                if let Some(sum) = by_group.get_mut(usize::from(label) - 1) {
                    *sum += size;
                }
            }
        }
        let known = |n: usize| by_group.get(n).copied();
        Ok(Retained {
            by_group: (0..groups.len()).map(known).collect(),
            leaked_bytes: Some(leaked),
            heap_bytes: Some(live + leaked),
        })
    }
}

fn reach(marker: &Marker, labels: &mut Labels, bytes: &[u8], label: u8, open: &mut Vec<Place>) {
    bytes.chunks_exact(8).for_each(|chunk| reach_word(marker, labels, word_at(chunk, 0), label, open));
}

fn reach_word(marker: &Marker, labels: &mut Labels, word: u64, label: u8, open: &mut Vec<Place>) {
    let Some(place) = marker.table.find(word) else { return };
    if labels.reach(marker, place, label) && marker.table.entry(place).is_some_and(|e| !e.span.noscan) {
        open.push(place);
    }
}

/// Follows objects, one step at a time for all of them.
fn follow(
    memory: &dyn ReadMemory,
    marker: &Marker,
    labels: &mut Labels,
    mut open: Vec<Place>,
) -> Result<(), HeapError> {
    while !open.is_empty() {
        open.sort_unstable_by_key(|p| (p.entry, p.index));
        open.dedup();
        let mut next = Vec::new();
        marker.objects.read(memory, &marker.table, &open, &mut |owner, word| {
            let label = labels.of(owner);
            reach_word(marker, labels, word, label, &mut next);
        })?;
        open = next;
    }
    Ok(())
}
