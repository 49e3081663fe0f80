//! From the clock of the events to that of the world.
//!
//! The kernel side stamps events with `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`); spans want Unix epoch.
//! One measurement gives the distance of the two clocks; it is used for the whole run, so that
//! durations are never bent by a step of the wall clock.

/// Measurements of which the best is taken.
const TRIES: u32 = 64;

/// The distance from `CLOCK_MONOTONIC` to Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    offset_ns: i128,
    error_ns: u64,
}

impl Clock {
    /// Measures: the wall clock between two readings of the monotonic one, the closest pair of
    /// several.
    #[must_use]
    pub fn measure() -> Self {
        let mut best: Option<Self> = None;
        for _ in 0..TRIES {
            let before = now_ns(libc::CLOCK_MONOTONIC);
            let real = now_ns(libc::CLOCK_REALTIME);
            let after = now_ns(libc::CLOCK_MONOTONIC);
            let width = u64::try_from(after - before).unwrap_or(u64::MAX);
            let this = Self { offset_ns: real - (before + after) / 2, error_ns: width.div_ceil(2) };
            if best.is_none_or(|b| this.error_ns < b.error_ns) {
                best = Some(this);
            }
        }
        best.unwrap_or(Self { offset_ns: 0, error_ns: u64::MAX })
    }

    /// Unix epoch of a `CLOCK_MONOTONIC` time, both in nanoseconds.
    #[must_use]
    pub fn unix_nano(&self, monotonic_ns: u64) -> u64 {
        u64::try_from(i128::from(monotonic_ns) + self.offset_ns).unwrap_or(0)
    }

    /// `CLOCK_MONOTONIC` time of a Unix epoch time, both in nanoseconds; 0 when before boot.
    #[must_use]
    pub fn monotonic_ns(&self, unix_nano: u64) -> u64 {
        u64::try_from(i128::from(unix_nano) - self.offset_ns).unwrap_or(0)
    }

    /// How far off [`Self::unix_nano`] may be from the wall clock of the measurement, either way.
    #[must_use]
    pub fn error_ns(&self) -> u64 {
        self.error_ns
    }

    /// The monotonic clock now.
    #[must_use]
    pub fn now_monotonic_ns() -> u64 {
        u64::try_from(now_ns(libc::CLOCK_MONOTONIC)).unwrap_or(0)
    }
}

fn now_ns(clock: libc::clockid_t) -> i128 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live timespec. These two clocks exist on every Linux, so the call cannot fail.
    unsafe {
        libc::clock_gettime(clock, &raw mut t);
    }
    i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn agrees_with_the_wall_clock_within_its_error() {
        let clock = Clock::measure();
        assert!(clock.error_ns() < 1_000_000, "{}", clock.error_ns());
        let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let ours = u128::from(clock.unix_nano(Clock::now_monotonic_ns()));
        let after = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        // A millisecond on each side: an adjusted wall clock drifts from the monotonic one.
        assert!(before - 1_000_000 <= ours && ours <= after + 1_000_000, "{before} {ours} {after}");
    }

    #[test]
    fn goes_there_and_back() {
        let clock = Clock { offset_ns: 1_700_000_000_000_000_000, error_ns: 20 };
        assert_eq!(clock.unix_nano(5), 1_700_000_000_000_000_005);
        assert_eq!(clock.monotonic_ns(1_700_000_000_000_000_005), 5);
        assert_eq!(clock.monotonic_ns(5), 0);
    }
}
