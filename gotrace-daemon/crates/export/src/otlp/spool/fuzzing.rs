//! For the fuzzer alone: a spool's directory as it is found at a start.

use std::path::Path;

use super::store::Store;
use crate::otlp::config::Signal;

/// Takes all that waits there, and has it done.
///
/// # Panics
/// When it takes more than can be in a file.
pub fn take_all(directory: &Path) {
    let Ok(mut store) = Store::open(directory, 1 << 30, &mut |_| {}) else { return };
    let mut records = 0;
    while let Some(record) = store.take(Signal::Traces, &mut |_| {}) {
        store.done(record.ticket);
        records += 1;
        assert!(records < 1 << 20, "there is no end");
    }
}
