//! Leaked goroutines that wait for each other: if one of them ran, it could let another one run, as its stack leads
//! to what that one waits on. Nobody else can.
//!
//! Looked through is what only leaked goroutines refer to. What they have in common, but does not lead to anything
//! that one of them waits on, does not put them together. Bounded: where they hold too much, nothing is said.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{HeapError, Prover, mark::Marker, pass::Marked, stacks, table::Place, waiting::Candidate};
use gotrace_process::ReadMemory;

/// References that are remembered.
const MAX_EDGES: usize = 1 << 21;
/// Objects that are.
const MAX_OBJECTS: usize = 1 << 20;

/// Sets that are united.
#[derive(Debug, Default)]
struct Sets(Vec<u32>);

impl Sets {
    fn add(&mut self) -> u32 {
        let n = self.0.len() as u32;
        self.0.push(n);
        n
    }

    fn root(&mut self, n: u32) -> u32 {
        let mut at = n;
        while let Some(&up) = self.0.get(at as usize).filter(|&&up| up != at) {
            let above = self.0.get(up as usize).copied().unwrap_or(up);
            if let Some(slot) = self.0.get_mut(at as usize) {
                *slot = above;
            }
            at = above;
        }
        at
    }

    fn unite(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(slot) = self.0.get_mut(a.max(b) as usize) {
            *slot = a.min(b);
        }
    }
}

/// Objects that only leaked goroutines refer to, and who refers to whom.
#[derive(Debug, Default)]
struct Web {
    /// Number of each object here, by its number in the table.
    known: HashMap<u64, u32, FixedState>,
    /// From, to.
    edges: Vec<(u32, u32)>,
    cut: bool,
}

impl Web {
    /// The number of an object; whether it is new. `None` where it is not one of those, or there are too many.
    fn reach(&mut self, marker: &Marker, place: Place) -> Option<(u32, bool)> {
        if marker.has(place) || marker.skips(place) {
            return None;
        }
        let number = marker.table.number(place);
        if let Some(&n) = self.known.get(&number) {
            return Some((n, false));
        }
        if self.known.len() >= MAX_OBJECTS {
            self.cut = true;
            return None;
        }
        let n = self.known.len() as u32;
        self.known.insert(number, n);
        Some((n, true))
    }

    fn edge(&mut self, from: u32, to: u32) {
        if self.edges.len() >= MAX_EDGES {
            self.cut = true;
        } else {
            self.edges.push((from, to));
        }
    }

    /// Which objects lead to any of these.
    fn lead_to(&mut self, sought: Vec<u32>) -> Vec<bool> {
        self.edges.sort_unstable_by_key(|&(_, to)| to);
        let mut leads = vec![false; self.known.len()];
        let mut open = sought;
        while let Some(to) = open.pop() {
            let Some(seen) = leads.get_mut(to as usize) else { continue };
            if std::mem::replace(seen, true) {
                continue;
            }
            let first = self.edges.partition_point(|&(_, t)| t < to);
            open.extend(self.edges[first..].iter().take_while(|&&(_, t)| t == to).map(|&(from, _)| from));
        }
        leads
    }
}

impl Prover {
    /// Of these goroutines (by goid), which no pass could reach, those that wait for each other, in sets of at least two; as of
    /// the last pass. Empty where they hold more than is looked through.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn together(&mut self, memory: &dyn ReadMemory, goids: &[u64]) -> Result<Vec<Vec<u64>>, HeapError> {
        let Some(marked) = self.last.take() else { return Ok(Vec::new()) };
        let sets = self.sets(memory, &marked, goids);
        self.last = Some(marked);
        sets
    }

    fn sets(
        &mut self,
        memory: &dyn ReadMemory,
        Marked { marker, leaked, .. }: &Marked,
        goids: &[u64],
    ) -> Result<Vec<Vec<u64>>, HeapError> {
        let is_told = |c: &&Candidate| goids.binary_search(&c.standing.goid).is_ok();
        let told: Vec<&Candidate> = leaked.iter().filter(is_told).collect();
        let mut web = Web::default();
        let mut open: Vec<Place> = Vec::new();
        // Goroutine by its place in `told`, and what its stack refers to.
        let mut held: Vec<(u32, u32)> = Vec::new();
        let mut sought: Vec<u32> = Vec::new();
        let mut words = Vec::new();
        for (n, candidate) in (0..).zip(&told) {
            words.clear();
            stacks::words(&mut self.engine, memory, &candidate.standing, &mut words)?;
            let of = words.iter().map(|&w| (w, false));
            for (word, waits) in of.chain(candidate.waits_on.iter().map(|&a| (a, true))) {
                let Some(place) = marker.table.find(word) else { continue };
                let Some((object, new)) = web.reach(marker, place) else { continue };
                if new {
                    open.push(place);
                }
                held.push((n, object));
                if waits {
                    sought.push(object);
                }
            }
        }
        while !open.is_empty() && !web.cut {
            open.retain(|&p| marker.table.entry(p).is_some_and(|e| !e.span.noscan));
            open.sort_unstable_by_key(|p| (p.entry, p.index));
            let mut next = Vec::new();
            marker.objects.read(memory, &marker.table, &open, &mut |owner, word| {
                let Some(place) = marker.table.find(word).filter(|&p| p != owner) else { return };
                let Some(&from) = web.known.get(&marker.table.number(owner)) else { return };
                let Some((to, new)) = web.reach(marker, place) else { return };
                web.edge(from, to);
                if new {
                    next.push(place);
                }
            })?;
            open = next;
        }
        if web.cut {
            return Ok(Vec::new());
        }
        let leads = web.lead_to(sought);
        let leads = |object: u32| leads.get(object as usize).copied().unwrap_or(false);
        let mut sets = Sets::default();
        let objects: Vec<u32> = (0..web.known.len()).map(|_| sets.add()).collect();
        let goroutines: Vec<u32> = told.iter().map(|_| sets.add()).collect();
        for &(from, to) in web.edges.iter().filter(|&&(from, to)| leads(from) && leads(to)) {
            sets.unite(objects[from as usize], objects[to as usize]);
        }
        for &(n, object) in held.iter().filter(|&&(_, object)| leads(object)) {
            sets.unite(goroutines[n as usize], objects[object as usize]);
        }
        // Most are alone.
        let mut by_root: Vec<(u32, u64)> =
            goroutines.iter().zip(&told).map(|(&n, c)| (sets.root(n), c.standing.goid)).collect();
        by_root.sort_unstable();
        let sets = by_root.chunk_by(|(a, _), (b, _)| a == b).filter(|set| set.len() > 1);
        let mut together: Vec<Vec<u64>> =
            sets.map(|set| set.iter().map(|&(_, goid)| goid).collect()).collect();
        together.sort_unstable();
        Ok(together)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_nothing_sought_puts_nobody_together() {
        let mut web = Web { edges: vec![(0, 1), (1, 2), (3, 2), (4, 5), (2, 0)], ..Web::default() };
        web.known.extend((0..7).map(|n| (n, n as u32)));
        assert_eq!(web.lead_to(vec![2]), [true, true, true, true, false, false, false]);
        assert_eq!(web.lead_to(Vec::new()), [false; 7]);
    }

    #[test]
    fn sets_are_united_however_often() {
        let mut sets = Sets::default();
        let all: Vec<u32> = (0..6).map(|_| sets.add()).collect();
        for (a, b) in [(4, 2), (2, 4), (5, 4), (0, 1), (1, 0)] {
            sets.unite(all[a], all[b]);
        }
        let roots: Vec<u32> = all.iter().map(|&n| sets.root(n)).collect();
        assert_eq!(roots, [0, 0, 2, 3, 2, 2]);
    }
}
