//! What is read of processes with very many goroutines is read of one after the other: each time it takes hundreds of
//! mebibytes for a moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// From so many goroutines on.
const MANY: u64 = 1 << 17;

static ALONE: Mutex<()> = Mutex::new(());

/// Waits until no other such process is being read, if this one has so many goroutines, by the length of the runtime's
/// list. Nobody else is until what this gives is dropped.
pub(super) fn alone(listed: u64) -> Option<MutexGuard<'static, ()>> {
    (listed >= MANY).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}
