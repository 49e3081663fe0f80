//! Work that failed for want of something, and may go well a moment later: it is done again, after pauses. What fails
//! in the end is told in the log, by whoever else it is passed over: a file of `/proc` that could not be opened for
//! want of a descriptor is not one that is not there.

use std::{
    fmt, io,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Times that work is done, and the first pause between two; each one is twice as long.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_micros(500);
/// Lines in the log are so far apart at least.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// Whether the system had nothing left just now, or gave up for a signal.
#[must_use]
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

/// Does it again while it fails for what may pass, or with EIO, which files of `/proc` do not know; what fails in the
/// end, so that something is not seen, is logged.
///
/// # Errors
/// Those of the last time.
pub fn again<T>(what: impl fmt::Display, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let may_pass = |e: &io::Error| is_passing(e) || e.raw_os_error() == Some(libc::EIO);
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match work() {
            Err(error) if may_pass(&error) => thread::sleep(pause),
            result => return result,
        }
        pause *= 2;
    }
    work().inspect_err(|error| {
        if may_pass(error) {
            log(what, error);
        }
    })
}

/// Where descriptors are short, there are many such lines.
fn log(what: impl fmt::Display, error: &io::Error) {
    static NEXT_NS: AtomicU64 = AtomicU64::new(0);
    static LEFT_OUT: AtomicU64 = AtomicU64::new(0);
    // Not gotrace's own clock, which may be what reads a file of `/proc` here.
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let now = ns(BEGAN.get_or_init(Instant::now).elapsed());
    let next = NEXT_NS.load(Ordering::Relaxed);
    let after = now.saturating_add(ns(BETWEEN_LINES));
    if now < next || NEXT_NS.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let more = LEFT_OUT.swap(0, Ordering::Relaxed);
    tracing::warn!(failures_not_logged = more, "cannot read {what}: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else_is() {
        let tries = |errors: &[i32]| {
            let mut count = 0;
            let result = again("a file", || {
                count += 1;
                errors.get(count - 1).map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(*errno)))
            });
            (count, result.map_err(|e| e.raw_os_error()))
        };
        assert_eq!(tries(&[]), (1, Ok(())));
        assert_eq!(tries(&[libc::EMFILE, libc::EAGAIN, libc::EIO]), (4, Ok(())));
        assert_eq!(tries(&[libc::ENOENT]), (1, Err(Some(libc::ENOENT))));
        assert_eq!(tries(&[libc::ENOMEM; 20]), (TRIES as usize, Err(Some(libc::ENOMEM))));
    }
}
