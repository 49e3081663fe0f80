//! The slots that traced processes have in the kernel's maps, and how its one table of goroutines is shared out: no
//! process takes the room of others.
//!
//! A quarter of the table is kept free in equal parts, one for each process, and on a node one for the next to come. Each
//! process may have its part and whatever the others neither have nor are kept. Input: what each holds. Output: what
//! each may hold from now on. Until that is looked at again two processes that grow at the same moment may take the
//! same room; their parts are never taken.

use gotrace_kernel::Kernel;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    New,
    Taken,
    Used,
}

/// All slots.
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Goroutines that the kernel's table has room for.
    capacity: u64,
    /// Whether processes may come at any time.
    newcomers: bool,
}

impl Slots {
    pub fn new(processes: u32, goroutines: u32, newcomers: bool) -> Self {
        Self { slots: vec![Slot::New; processes as usize], capacity: goroutines.into(), newcomers }
    }

    /// A slot for a process, with nothing counted in it; `None` when all are taken.
    pub fn take(&mut self, kernel: &mut Kernel) -> Option<u32> {
        let free = |wanted| self.slots.iter().position(|s| *s == wanted);
        let index = free(Slot::New).or_else(|| free(Slot::Used))?;
        let slot = u32::try_from(index).ok()?;
        if self.slots.get(index) == Some(&Slot::Used)
            && let Err(error) = kernel.clear_slot(slot)
        {
            tracing::warn!(%error, "cannot clear a slot: its counters may include those of another process");
        }
        *self.slots.get_mut(index)? = Slot::Taken;
        self.share_out(kernel);
        Some(slot)
    }

    pub fn give_back(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            *slot = Slot::Used;
        }
    }

    /// Shares the kernel's table of goroutines out among the processes that have slots.
    pub fn share_out(&self, kernel: &mut Kernel) {
        let taken: Vec<u32> =
            (0..).zip(&self.slots).filter(|(_, slot)| **slot == Slot::Taken).map(|(n, _)| n).collect();
        let held: Result<Vec<u64>, _> = taken.iter().map(|slot| kernel.held(*slot)).collect();
        let shared = held.and_then(|held| {
            let shares = shares(self.capacity, &held, self.newcomers);
            taken.iter().zip(shares).try_for_each(|(slot, share)| kernel.share(*slot, share))
        });
        if let Err(error) = shared {
            tracing::warn!(%error, "a process may take the room of others in the kernel's table of goroutines");
        }
    }
}

/// What each process may hold, of a table of `capacity`, when they hold so many. `newcomer`: whether another may come.
fn shares(capacity: u64, held: &[u64], newcomer: bool) -> Vec<u64> {
    let parts = held.len() as u64 + u64::from(newcomer);
    let part = capacity / 4 / parts.max(1);
    let reserved = |held: u64| held.max(part);
    let all = held.iter().map(|&h| reserved(h)).sum::<u64>() + if newcomer { part } else { 0 };
    held.iter().map(|&h| capacity.saturating_sub(all - reserved(h)).max(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn who_is_alone_may_have_everything() {
        assert_eq!(shares(1000, &[0], false), [1000]);
        assert_eq!(shares(1000, &[1000], false), [1000]);
        assert_eq!(shares(1000, &[], true), [0; 0]);
    }

    #[test]
    fn a_part_is_kept_for_each_and_for_the_next() {
        assert_eq!(shares(1000, &[0, 0], false), [875, 875]);
        assert_eq!(shares(1000, &[900, 0], false), [875, 125]);
        assert_eq!(shares(900, &[0, 0], true), [750, 750]);
        assert_eq!(shares(800, &[700], true), [700]);
    }

    #[test]
    fn what_they_may_have_fits_however_much_they_hold() {
        for held in [[500, 500, 0], [1000, 0, 0], [333, 333, 333], [10, 20, 30]] {
            for (n, share) in shares(1000, &held, true).into_iter().enumerate() {
                let others: u64 =
                    held.iter().enumerate().filter(|(i, _)| *i != n).map(|(_, h)| h.max(&62)).sum();
                assert!(share == 62 || share + others + 62 <= 1000, "{held:?}: {share} of number {n}");
            }
        }
    }
}
