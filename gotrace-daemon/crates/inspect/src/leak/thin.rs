//! A watch that goes on for weeks: looks of long ago are thinned out, and what nobody stands at any more is
//! forgotten, so that it does not grow. Errs on the safe side: goroutines seem to have stood for a shorter
//! time at least, and for a longer one at most.

use super::watch::{Group, Look, NONE, Watch};

/// Looks are no further apart than this part of their age.
const GAP: u64 = 8;

impl Watch {
    /// Forgets looks that are near to one another for their age: those that stay are no further apart than an
    /// eighth of it, so that as many stay as the logarithm of the time, some hundred for a year of minutes.
    /// The first and the last two stay. Also forgotten are places at which nobody stands, and nobody stood at
    /// a look that stays.
    pub fn thin(&mut self) {
        let now = self.looks.last().map_or(0, |l| l.begin_ns);
        // By old look: the number of the first kept one from there on.
        let mut kept: Vec<(usize, Look)> = Vec::new();
        let mut numbers = Vec::with_capacity(self.looks.len());
        let mut moved = 0;
        for (n, look) in self.looks.iter().enumerate() {
            numbers.push(kept.len());
            moved += look.moved;
            let is_near = |next: &Look| {
                let gap = kept.last().map(|(_, before)| next.begin_ns.saturating_sub(before.begin_ns));
                gap.is_some_and(|gap| gap <= now.saturating_sub(next.begin_ns) / GAP)
            };
            if !self.looks.get(n + 1).is_some_and(is_near) {
                kept.push((n, Look { moved: std::mem::take(&mut moved), ..*look }));
            }
        }
        let number = |look: usize| numbers.get(look).copied().unwrap_or(kept.len());
        for track in &mut self.tracks {
            for look in [&mut track.since, &mut track.born] {
                *look = u32::try_from(number(*look as usize)).unwrap_or(u32::MAX);
            }
        }
        for group in &mut self.groups {
            group.passed = u32::try_from(number(group.passed as usize)).unwrap_or(u32::MAX);
        }
        let groups = self.groups.iter_mut().map(|g| (&mut g.first_look, &mut g.settled));
        let sites = self.sites.iter_mut().map(|s| (&mut s.first_look, &mut s.alive));
        for (first, counts) in groups.chain(sites) {
            let at = |look: usize| look.checked_sub(*first).and_then(|n| counts.get(n)).copied().unwrap_or(0);
            *counts = kept.iter().filter(|(n, _)| *n >= *first).map(|(n, _)| at(*n)).collect();
            *first = number(*first);
        }
        self.looks = kept.into_iter().map(|(_, look)| look).collect();
        self.forget_places();
    }

    fn forget_places(&mut self) {
        let mut wanted: Vec<bool> =
            self.groups.iter().map(|g| g.settled.iter().any(|count| *count > 0)).collect();
        for track in &self.tracks {
            if let Some(wanted) = wanted.get_mut(track.group as usize) {
                *wanted = true;
            }
        }
        let mut stacks_used = vec![false; self.stacks.len()];
        for group in self.groups.iter().zip(&wanted).filter_map(|(g, wanted)| wanted.then_some(g)) {
            if let Some(used) = stacks_used.get_mut(group.stack as usize) {
                *used = true;
            }
        }
        // Of the last stacks nobody has asked yet.
        let asked = stacks_used.get(..self.awaited.len()).unwrap_or_default();
        renumber(&mut self.awaited, asked);
        let stacks = renumber(&mut self.stacks, &stacks_used);
        let groups = renumber(&mut self.groups, &wanted);
        for Group { stack, .. } in &mut self.groups {
            *stack = stacks.get(*stack as usize).copied().unwrap_or(NONE);
        }
        for track in &mut self.tracks {
            track.group = groups.get(track.group as usize).copied().unwrap_or(NONE);
        }
        self.index_places();
    }
}

/// Keeps those that are wanted; by old number, the new one.
fn renumber<T>(all: &mut Vec<T>, wanted: &[bool]) -> Vec<u32> {
    let mut next = 0;
    let numbers = wanted
        .iter()
        .map(|wanted| {
            let number = if *wanted { next } else { NONE };
            next += u32::from(*wanted);
            number
        })
        .collect();
    let mut wanted = wanted.iter();
    all.retain(|_| wanted.next().is_some_and(|wanted| *wanted));
    numbers
}
