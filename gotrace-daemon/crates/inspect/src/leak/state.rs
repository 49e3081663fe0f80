//! What a lock or a `sync.WaitGroup` says of itself, in a sentence (`sync`, Go 1.19 to 1.27).
//!
//! Input: its bytes, as they were at one time. The numbers may be torn where they change just then; of one that
//! everybody has waited for for long they do not.

use crate::snapshot::{ObjectKind, half_at, word_at};

/// As many bytes are looked at.
pub const STATE_BYTES: usize = 24;
/// A writer has come: it takes this from the count of readers (`sync.rwmutexMaxReaders`).
const MAX_READERS: i64 = 1 << 30;

/// What it says; `None` where that is nothing of use, or cannot be.
#[must_use]
pub fn state(kind: ObjectKind, bytes: &[u8; STATE_BYTES]) -> Option<String> {
    match kind {
        ObjectKind::WaitGroup => wait_group(word_at(bytes, 0)),
        ObjectKind::RwMutex => {
            let signed = |at: usize| i64::from(half_at(bytes, at).cast_signed());
            rw_mutex(signed(16), signed(20))
        }
        _ => None,
    }
}

/// The counter is the upper half.
fn wait_group(state: u64) -> Option<String> {
    let counter = ((state >> 32) as u32).cast_signed();
    match counter {
        1 => Some("one Done is missing".into()),
        2.. => Some(format!("{counter} Dones are missing")),
        _ => None,
    }
}

/// Readers, less [`MAX_READERS`] when a writer has come; and readers that writer waits for.
fn rw_mutex(count: i64, before_writer: i64) -> Option<String> {
    let readers = |n: i64, holds: &str, hold: &str| {
        if n == 1 { format!("one reader {holds}") } else { format!("{n} readers {hold}") }
    };
    if count >= 0 {
        return (count > 0)
            .then(|| format!("{} it, and no writer has come", readers(count, "holds", "hold")));
    }
    let all = count + MAX_READERS;
    let behind = all - before_writer.max(0);
    if all < 0 || behind < 0 {
        return None;
    }
    let waiting = match behind {
        0 => String::new(),
        n => format!("; {} behind the writer", readers(n, "waits", "wait")),
    };
    Some(match before_writer {
        1.. => format!(
            "{} it and a writer waits for that to end{waiting}",
            readers(before_writer, "holds", "hold")
        ),
        _ => format!("a writer holds it{waiting}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_tells_how_many_are_missing() {
        // Two waiters, and the flag of a synctest bubble among their bits.
        assert_eq!(wait_group(1 << 32 | 0x8000_0002).as_deref(), Some("one Done is missing"));
        assert_eq!(wait_group(7 << 32 | 1).as_deref(), Some("7 Dones are missing"));
        assert_eq!(wait_group(1), None);
        assert_eq!(wait_group(u64::MAX), None);
    }

    #[test]
    fn a_lock_tells_who_is_in_and_who_waits() {
        let max = MAX_READERS;
        for (count, before, said) in [
            (2, 0, Some("2 readers hold it, and no writer has come")),
            (0, 0, None),
            (
                2 - max,
                1,
                Some(
                    "one reader holds it and a writer waits for that to end; one reader waits behind the writer",
                ),
            ),
            (3 - max, 3, Some("3 readers hold it and a writer waits for that to end")),
            (-max, 0, Some("a writer holds it")),
            (2 - max, 0, Some("a writer holds it; 2 readers wait behind the writer")),
            (-2 * max, 0, None),
            (1 - max, 5, None),
        ] {
            assert_eq!(rw_mutex(count, before).as_deref(), said, "{count} {before}");
        }
    }
}
