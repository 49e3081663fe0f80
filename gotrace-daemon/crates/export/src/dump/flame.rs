//! Stacks merged by function, outermost first, as flame graphs want them: shared by `folded`, `speedscope`
//! and `svg`.
//!
//! Frames are those that Go's traceback shows; the innermost frame of all says what the goroutines do, in
//! brackets (`[chan receive]`). A goroutine without a stack has its entry function, if that is known.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Dump, doing};
use gotrace_inspect::snapshot::{Goroutine, Names, StackId, Status};

/// A function, or what goroutines do, in brackets and without a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Frame {
    pub name: Box<str>,
    /// Empty when unknown.
    pub file: Box<str>,
}

/// Merged stacks.
#[derive(Debug, Default)]
pub(super) struct Flame {
    /// By name.
    pub frames: Vec<Frame>,
    /// Numbers of frames, outermost first, sorted; with the number of goroutines.
    pub stacks: Vec<(Vec<u32>, u64)>,
}

impl Flame {
    pub fn new(dump: &Dump<'_>, names: &mut Names) -> Self {
        // By number first: names are looked at once for each distinct stack.
        type Key = (Option<StackId>, u64, Status, u8);
        let mut counts: HashMap<Key, (&Goroutine, u64), FixedState> = HashMap::default();
        for &g in &dump.goroutines {
            let entry = if g.stack.is_some() { 0 } else { g.entry_pc };
            counts.entry((g.stack, entry, g.status, g.wait_reason)).or_insert((g, 0)).1 += 1;
        }
        let mut table = Table::default();
        let mut stacks: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        for (goroutine, count) in counts.into_values() {
            let mut stack = Vec::new();
            let named = names.stack(dump.snapshot.frames(goroutine));
            let all = named.iter().all(|f| f.internal);
            for frame in named.iter().rev().filter(|f| all || !f.internal).map(|f| f.frame) {
                stack.push(table.number(&frame.function, &frame.file));
            }
            if stack.is_empty()
                && let Some(entry) = names.entry(goroutine.entry_pc)
            {
                stack.push(table.number(&entry.function, &entry.file));
            }
            stack.push(table.number(&format!("[{}]", doing(goroutine, names)), ""));
            *stacks.entry(stack).or_insert(0) += count;
        }
        table.sorted(stacks)
    }

    /// Number of goroutines.
    pub fn total(&self) -> u64 {
        self.stacks.iter().map(|(_, count)| count).sum()
    }
}

#[derive(Default)]
struct Table {
    frames: Vec<Frame>,
    numbers: HashMap<Frame, u32, FixedState>,
}

impl Table {
    fn number(&mut self, name: &str, file: &str) -> u32 {
        let frame = Frame { name: name.into(), file: file.into() };
        let next = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(frame.clone()).or_insert_with(|| {
            self.frames.push(frame);
            next
        })
    }

    /// Numbers the frames anew, by name, so that the result does not depend on the order of goroutines.
    fn sorted(self, stacks: BTreeMap<Vec<u32>, u64>) -> Flame {
        let mut order: Vec<(Frame, u32)> = self.frames.into_iter().zip(0..).collect();
        order.sort_unstable();
        let mut new: Vec<u32> = vec![0; order.len()];
        for (now, (_, before)) in (0..).zip(&order) {
            if let Some(place) = new.get_mut(*before as usize) {
                *place = now;
            }
        }
        let renumber = |n: u32| new.get(n as usize).copied().unwrap_or(n);
        let mut stacks: Vec<(Vec<u32>, u64)> =
            stacks.into_iter().map(|(s, count)| (s.into_iter().map(renumber).collect(), count)).collect();
        stacks.sort_unstable();
        Flame { frames: order.into_iter().map(|(f, _)| f).collect(), stacks }
    }
}
