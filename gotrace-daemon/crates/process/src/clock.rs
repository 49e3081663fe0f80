//! From the clock of the events to that of the world.
//!
//! The kernel side stamps events with `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`); spans want Unix epoch. One measurement gives
//! the distance of the two clocks, one for all that is traced ([`NodeClock`]): it is made again each minute and after a
//! step of the wall clock. A duration is a difference of two times of the monotonic clock, which no step bends.
//!
//! A process in a time namespace of its own has another `CLOCK_MONOTONIC`; how far it is off is told by
//! `/proc/PID/timens_offsets`. gotrace's own times are the kernel's, whatever namespace it is in itself.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use rustix::fs::{AtFlags, CWD, statat};

use super::{passing::again, target::read_relative};

/// Measurements of which the best is taken.
const TRIES: u32 = 64;
/// Time between two measurements where nothing seems to have happened.
const MEASURE_EVERY_NS: i128 = 60_000_000_000;
/// A wall clock that is this far off was set, or has drifted for long.
const STEP_NS: u128 = 10_000_000;
/// Less than this is no other distance.
const GRAIN_NS: u128 = 10_000;

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
        Self::measure_by(&mut Reading::now)
    }

    fn measure_by(read: &mut dyn FnMut() -> Reading) -> Self {
        let mut best: Option<Self> = None;
        for _ in 0..TRIES {
            let this = read().clock();
            if best.is_none_or(|b| this.error_ns < b.error_ns) {
                best = Some(this);
            }
        }
        best.unwrap_or(Self { offset_ns: 0, error_ns: u64::MAX })
    }

    /// The distance as another run measured it ([`Self::offset_ns`], [`Self::error_ns`]).
    #[must_use]
    pub fn from_offset(offset_ns: i128, error_ns: u64) -> Self {
        Self { offset_ns, error_ns }
    }

    /// Nanoseconds from `CLOCK_MONOTONIC` to Unix epoch.
    #[must_use]
    pub fn offset_ns(&self) -> i128 {
        self.offset_ns
    }

    /// Unix epoch of a `CLOCK_MONOTONIC` time, both in nanoseconds.
    #[must_use]
    pub fn unix_nano(&self, monotonic_ns: u64) -> u64 {
        u64::try_from(i128::from(monotonic_ns).saturating_add(self.offset_ns)).unwrap_or(0)
    }

    /// `CLOCK_MONOTONIC` time of a Unix epoch time, both in nanoseconds; 0 when before boot.
    #[must_use]
    pub fn monotonic_ns(&self, unix_nano: u64) -> u64 {
        u64::try_from(i128::from(unix_nano).saturating_sub(self.offset_ns)).unwrap_or(0)
    }

    /// How far off [`Self::unix_nano`] may be from the wall clock of the measurement, either way.
    #[must_use]
    pub fn error_ns(&self) -> u64 {
        self.error_ns
    }

    /// The monotonic clock now.
    #[must_use]
    pub fn now_monotonic_ns() -> u64 {
        u64::try_from(monotonic_ns()).unwrap_or(0)
    }
}

/// The wall clock between two readings of the monotonic one.
#[derive(Clone, Copy, Debug)]
struct Reading {
    before: i128,
    real: i128,
    after: i128,
}

impl Reading {
    fn now() -> Self {
        Self { before: monotonic_ns(), real: now_ns(libc::CLOCK_REALTIME), after: monotonic_ns() }
    }

    fn clock(&self) -> Clock {
        let width = u64::try_from(self.after - self.before).unwrap_or(u64::MAX);
        Clock { offset_ns: self.real - (self.before + self.after) / 2, error_ns: width.div_ceil(2) }
    }
}

/// The distance of now, for all that is traced: measured again each minute, and when the wall clock was set.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    clock: Clock,
    measured_ns: i128,
}

impl NodeClock {
    /// Measures.
    #[must_use]
    pub fn start() -> Self {
        Self::start_by(&mut Reading::now)
    }

    fn start_by(read: &mut dyn FnMut() -> Reading) -> Self {
        let clock = Clock::measure_by(read);
        Self { clock, measured_ns: read().after }
    }

    /// The distance.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Measures again when it is time to; whether the distance is another one from now on. Costs three readings of clocks.
    pub fn tick(&mut self) -> bool {
        self.tick_by(&mut Reading::now)
    }

    fn tick_by(&mut self, read: &mut dyn FnMut() -> Reading) -> bool {
        let reading = read();
        let seen = reading.clock();
        let stepped = self.distance_to(&seen) > STEP_NS + u128::from(seen.error_ns);
        if !stepped && reading.after - self.measured_ns < MEASURE_EVERY_NS {
            return false;
        }
        let measured = Clock::measure_by(read);
        self.measured_ns = reading.after;
        let noise = u128::from(self.clock.error_ns) + u128::from(measured.error_ns);
        let changed = self.distance_to(&measured) > GRAIN_NS.max(noise);
        if changed {
            self.clock = measured;
        }
        changed
    }

    fn distance_to(&self, other: &Clock) -> u128 {
        (self.clock.offset_ns - other.offset_ns).unsigned_abs()
    }
}

/// How far the `CLOCK_MONOTONIC` of the process with this `/proc` directory is ahead of the kernel's, in nanoseconds;
/// `None` where it is not known.
pub(super) fn monotonic_offset(directory: impl AsFd) -> Option<i64> {
    let directory = directory.as_fd();
    let own = own_directory();
    match (namespace(directory, "time"), own.as_ref().and_then(|own| namespace(own.as_fd(), "time"))) {
        // Before Linux 5.6 there is only one.
        (None, None) => Some(0),
        (Some(theirs), Some(ours)) if theirs == ours => Some(own_offset()),
        _ => offset_in_namespace(directory),
    }
}

fn own_directory() -> Option<OwnedFd> {
    let open =
        || Ok(rustix::fs::openat(CWD, "/proc/self", super::target::DIRECTORY, rustix::fs::Mode::empty())?);
    again("/proc/self", open).ok()
}

/// How far gotrace's own `CLOCK_MONOTONIC` is ahead of the kernel's: a process with threads stays in its namespace.
fn own_offset() -> i64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| own_directory().and_then(|own| offset_in_namespace(own.as_fd())).unwrap_or(0))
}

/// The kernel's monotonic clock, which stamps events.
fn monotonic_ns() -> i128 {
    now_ns(libc::CLOCK_MONOTONIC) - i128::from(own_offset())
}

fn namespace(directory: BorrowedFd<'_>, name: &str) -> Option<(u64, u64)> {
    let name = format!("ns/{name}");
    let stat = again(&name, || Ok(statat(directory, &name, AtFlags::empty())?)).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

fn offset_in_namespace(directory: BorrowedFd<'_>) -> Option<i64> {
    // The file tells of the namespace of its children to come.
    if namespace(directory, "time")? != namespace(directory, "time_for_children")? {
        return None;
    }
    offset_of(&String::from_utf8_lossy(&read_relative(directory, "timens_offsets").ok()?))
}

/// `monotonic  SECONDS NANOSECONDS`.
pub(crate) fn offset_of(text: &str) -> Option<i64> {
    let mut fields = text.lines().find_map(|l| l.strip_prefix("monotonic"))?.split_whitespace();
    let (seconds, ns): (i64, i64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(ns)
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
    fn a_time_namespace_tells_its_offset() {
        let text = "monotonic         -40        0\nboottime           7 500000000\n";
        assert_eq!(offset_of(text), Some(-40_000_000_000));
        assert_eq!(offset_of("monotonic 1 500\n"), Some(1_000_000_500));
        assert_eq!(offset_of("boottime 1 1\n"), None);
        assert_eq!(offset_of("monotonic 99999999999999 1\n"), None);
        let own = std::fs::File::open("/proc/self").expect("a directory");
        assert_eq!(monotonic_offset(own), Some(own_offset()));
    }

    /// Clocks that a test sets: the monotonic one moves a little with each reading.
    struct Clocks {
        monotonic: i128,
        wall_offset: i128,
        width: i128,
    }

    impl Clocks {
        fn read(&mut self) -> Reading {
            let before = self.monotonic;
            self.monotonic += self.width;
            let middle = before + self.width / 2;
            Reading { before, real: middle + self.wall_offset, after: self.monotonic }
        }
    }

    #[test]
    fn a_step_is_followed_at_once_and_drift_each_minute() {
        const SECOND: i128 = 1_000_000_000;
        let mut clocks = Clocks { monotonic: 5 * SECOND, wall_offset: 1_700_000_000 * SECOND, width: 100 };
        let mut clock = NodeClock::start_by(&mut || clocks.read());
        let birth_ns = 4_000_000_000;
        assert_eq!(clock.clock().unix_nano(birth_ns), 1_700_000_004_000_000_000);
        for _ in 0..50 {
            clocks.monotonic += SECOND;
            assert!(!clock.tick_by(&mut || clocks.read()), "nothing has happened");
        }
        // Set an hour back: so are the dates of what happened before, and how long it took is the same.
        clocks.wall_offset -= 3600 * SECOND;
        assert!(clock.tick_by(&mut || clocks.read()));
        assert_eq!(clock.clock().unix_nano(birth_ns), 1_700_000_004_000_000_000 - 3_600_000_000_000);
        assert_eq!(clock.clock().unix_nano(birth_ns + 7) - clock.clock().unix_nano(birth_ns), 7);
        assert!(!clock.tick_by(&mut || clocks.read()));
        // What drifts is followed within a minute, and no sooner.
        clocks.wall_offset += 3_000_000;
        clocks.monotonic += 59 * SECOND;
        assert!(!clock.tick_by(&mut || clocks.read()));
        clocks.monotonic += 2 * SECOND;
        assert!(clock.tick_by(&mut || clocks.read()));
        assert_eq!(clock.clock().offset_ns(), clocks.wall_offset);
        // A reading that was interrupted is no step.
        clocks.width = 40_000_000;
        assert!(!clock.tick_by(&mut || clocks.read()));
    }

    #[test]
    fn goes_there_and_back() {
        let clock = Clock { offset_ns: 1_700_000_000_000_000_000, error_ns: 20 };
        assert_eq!(clock.unix_nano(5), 1_700_000_000_000_000_005);
        assert_eq!(clock.monotonic_ns(1_700_000_000_000_000_005), 5);
        assert_eq!(clock.monotonic_ns(5), 0);
    }
}
