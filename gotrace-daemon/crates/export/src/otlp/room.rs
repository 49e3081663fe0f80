//! The room of a bounded queue, in shares: a process may hold so many times what is free, so that one alone takes most of
//! it, and leaves some to those that come later; the more processes have much, the less each gets (the dynamic threshold of
//! Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
//!
//! Input: whose it is, and how much. Output: what was granted; the rest is for the caller to count. Invariant: no more than
//! the limit is ever granted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gotrace_model::Resource;

/// A process holds at most so many times what is free: one alone has eight ninths.
const TIMES_FREE: usize = 8;

/// The room.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    /// By the resource's address, which what is in the queue keeps alive.
    by_process: HashMap<usize, usize>,
}

impl Room {
    pub fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::default() }
    }

    /// What is held.
    pub fn held(&self) -> usize {
        self.lock().total
    }

    /// Grants up to `wanted` to a process.
    pub fn take(&self, of: &Arc<Resource>, wanted: usize) -> usize {
        let mut held = self.lock();
        let granted = wanted.min(held.grantable(of, self.limit));
        held.grant(of, granted);
        granted
    }

    /// Grants a process all of it; what is held by all then.
    pub fn take_whole(&self, of: &Arc<Resource>, wanted: usize) -> Option<usize> {
        let mut held = self.lock();
        (wanted <= held.grantable(of, self.limit)).then(|| held.grant(of, wanted))
    }

    /// Takes back what was granted.
    pub fn give_back(&self, of: &Arc<Resource>, granted: usize) {
        let mut held = self.lock();
        held.total = held.total.saturating_sub(granted);
        let key = Arc::as_ptr(of) as usize;
        if let Some(own) = held.by_process.get_mut(&key) {
            *own = own.saturating_sub(granted);
            if *own == 0 {
                held.by_process.remove(&key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Numbers: a panic elsewhere leaves them usable.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// The most that leaves the process with no more than its share of what is free then.
    fn grantable(&self, of: &Arc<Resource>, limit: usize) -> usize {
        let own = self.by_process.get(&(Arc::as_ptr(of) as usize)).copied().unwrap_or(0);
        let free = limit.saturating_sub(self.total);
        (free * TIMES_FREE).saturating_sub(own) / (TIMES_FREE + 1)
    }

    fn grant(&mut self, of: &Arc<Resource>, granted: usize) -> usize {
        if granted > 0 {
            *self.by_process.entry(Arc::as_ptr(of) as usize).or_default() += granted;
            self.total += granted;
        }
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::samples;

    #[test]
    fn one_that_takes_all_it_gets_leaves_room_for_others() {
        let room = Room::new(9000);
        let [greedy, second, modest] = [(); 3].map(|()| samples::resource());
        assert_eq!(room.take(&greedy, 1 << 20), 8000);
        assert_eq!(room.take(&greedy, 1), 0);
        assert_eq!(room.take(&modest, 100), 100);
        assert_eq!(room.take_whole(&modest, 1000), None, "beyond what is free");
        assert_eq!(room.take_whole(&modest, 300), Some(8400));
        // Two that take all they get: neither gets the rest.
        assert_eq!(room.take(&second, 1 << 20), 600 * 8 / 9);
        assert!(room.held() < 9000);
        room.give_back(&greedy, 8000);
        room.give_back(&modest, 400);
        room.give_back(&second, 533);
        assert_eq!((room.held(), room.lock().by_process.len()), (0, 0));
    }
}
