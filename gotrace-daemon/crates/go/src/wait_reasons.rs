//! Why a goroutine waits: names of the runtime's wait reasons by number and version of Go
//! (`runtime/runtime2.go`, `waitReasonStrings`), as Go's own tracebacks print them.
//!
//! Numbers change between versions: 3 to 20 are others in Go 1.26 than in 1.25. Number 0 is no reason.

#[rustfmt::skip]
const SINCE_118: &[&str] = &[
    "", "GC assist marking", "IO wait", "chan receive (nil chan)", "chan send (nil chan)", "dumping heap",
    "garbage collection", "garbage collection scan", "panicwait", "select", "select (no cases)",
    "GC assist wait", "GC sweep wait", "GC scavenge wait", "chan receive", "chan send", "finalizer wait",
    "force gc (idle)", "semacquire", "sleep", "sync.Cond.Wait", "timer goroutine (idle)",
    "trace reader (blocked)", "wait for GC cycle", "GC worker (idle)", "preempted", "debug call",
];
#[rustfmt::skip]
const SINCE_120: &[&str] = &[
    "", "GC assist marking", "IO wait", "chan receive (nil chan)", "chan send (nil chan)", "dumping heap",
    "garbage collection", "garbage collection scan", "panicwait", "select", "select (no cases)",
    "GC assist wait", "GC sweep wait", "GC scavenge wait", "chan receive", "chan send", "finalizer wait",
    "force gc (idle)", "semacquire", "sleep", "sync.Cond.Wait", "sync.Mutex.Lock", "sync.RWMutex.RLock",
    "sync.RWMutex.Lock", "trace reader (blocked)", "wait for GC cycle", "GC worker (idle)",
    "GC worker (active)", "preempted", "debug call", "GC mark termination", "stopping the world",
];
#[rustfmt::skip]
const SINCE_122: &[&str] = &[
    "", "GC assist marking", "IO wait", "chan receive (nil chan)", "chan send (nil chan)", "dumping heap",
    "garbage collection", "garbage collection scan", "panicwait", "select", "select (no cases)",
    "GC assist wait", "GC sweep wait", "GC scavenge wait", "chan receive", "chan send", "finalizer wait",
    "force gc (idle)", "semacquire", "sleep", "sync.Cond.Wait", "sync.Mutex.Lock", "sync.RWMutex.RLock",
    "sync.RWMutex.Lock", "trace reader (blocked)", "wait for GC cycle", "GC worker (idle)",
    "GC worker (active)", "preempted", "debug call", "GC mark termination", "stopping the world",
    "flushing proc caches", "trace goroutine status", "trace proc status", "page trace flush", "coroutine",
];
#[rustfmt::skip]
const SINCE_123: &[&str] = &[
    "", "GC assist marking", "IO wait", "chan receive (nil chan)", "chan send (nil chan)", "dumping heap",
    "garbage collection", "garbage collection scan", "panicwait", "select", "select (no cases)",
    "GC assist wait", "GC sweep wait", "GC scavenge wait", "chan receive", "chan send", "finalizer wait",
    "force gc (idle)", "semacquire", "sleep", "sync.Cond.Wait", "sync.Mutex.Lock", "sync.RWMutex.RLock",
    "sync.RWMutex.Lock", "trace reader (blocked)", "wait for GC cycle", "GC worker (idle)",
    "GC worker (active)", "preempted", "debug call", "GC mark termination", "stopping the world",
    "flushing proc caches", "trace goroutine status", "trace proc status", "page trace flush", "coroutine",
    "GC weak to strong wait",
];
#[rustfmt::skip]
const SINCE_124: &[&str] = &[
    "", "GC assist marking", "IO wait", "chan receive (nil chan)", "chan send (nil chan)", "dumping heap",
    "garbage collection", "garbage collection scan", "panicwait", "select", "select (no cases)",
    "GC assist wait", "GC sweep wait", "GC scavenge wait", "chan receive", "chan send", "finalizer wait",
    "force gc (idle)", "semacquire", "sleep", "sync.Cond.Wait", "sync.Mutex.Lock", "sync.RWMutex.RLock",
    "sync.RWMutex.Lock", "sync.WaitGroup.Wait", "trace reader (blocked)", "wait for GC cycle",
    "GC worker (idle)", "GC worker (active)", "preempted", "debug call", "GC mark termination",
    "stopping the world", "flushing proc caches", "trace goroutine status", "trace proc status",
    "page trace flush", "coroutine", "GC weak to strong wait", "synctest.Run", "synctest.Wait",
    "chan receive (synctest)", "chan send (synctest)", "select (synctest)",
];
#[rustfmt::skip]
const SINCE_125: &[&str] = &[
    "", "GC assist marking", "IO wait", "chan receive (nil chan)", "chan send (nil chan)", "dumping heap",
    "garbage collection", "garbage collection scan", "panicwait", "select", "select (no cases)",
    "GC assist wait", "GC sweep wait", "GC scavenge wait", "chan receive", "chan send", "finalizer wait",
    "force gc (idle)", "GOMAXPROCS updater (idle)", "semacquire", "sleep", "sync.Cond.Wait",
    "sync.Mutex.Lock", "sync.RWMutex.RLock", "sync.RWMutex.Lock", "sync.WaitGroup.Wait",
    "trace reader (blocked)", "wait for GC cycle", "GC worker (idle)", "GC worker (active)", "preempted",
    "debug call", "GC mark termination", "stopping the world", "flushing proc caches",
    "trace goroutine status", "trace proc status", "page trace flush", "coroutine",
    "GC weak to strong wait", "synctest.Run", "synctest.Wait", "chan receive (durable)",
    "chan send (durable)", "select (durable)", "sync.WaitGroup.Wait (durable)", "cleanup wait",
];
#[rustfmt::skip]
const SINCE_126: &[&str] = &[
    "", "GC assist marking", "IO wait", "dumping heap", "garbage collection", "garbage collection scan",
    "panicwait", "GC assist wait", "GC sweep wait", "GC scavenge wait", "finalizer wait", "force gc (idle)",
    "GOMAXPROCS updater (idle)", "semacquire", "sleep", "chan receive (nil chan)", "chan send (nil chan)",
    "select (no cases)", "select", "chan receive", "chan send", "sync.Cond.Wait", "sync.Mutex.Lock",
    "sync.RWMutex.RLock", "sync.RWMutex.Lock", "sync.WaitGroup.Wait", "trace reader (blocked)",
    "wait for GC cycle", "GC worker (idle)", "GC worker (active)", "preempted", "debug call",
    "GC mark termination", "stopping the world", "flushing proc caches", "trace goroutine status",
    "trace proc status", "page trace flush", "coroutine", "GC weak to strong wait", "synctest.Run",
    "synctest.Wait", "chan receive (durable)", "chan send (durable)", "select (durable)",
    "sync.WaitGroup.Wait (durable)", "cleanup wait",
];

/// Names by number; those of the newest known version for a later one.
pub(super) const fn names(minor: u32) -> &'static [&'static str] {
    match minor {
        ..=19 => SINCE_118,
        20..=21 => SINCE_120,
        22 => SINCE_122,
        23 => SINCE_123,
        24 => SINCE_124,
        25 => SINCE_125,
        _ => SINCE_126,
    }
}

/// Number of a reason by name.
pub(super) fn number(minor: u32, name: &str) -> Option<u8> {
    names(minor).iter().position(|&n| n == name).and_then(|n| u8::try_from(n).ok())
}

/// Reasons that the garbage collector ends: its own workers and helpers, and goroutines that wait for it.
const ENDED_BY_COLLECTOR: [&str; 14] = [
    "GC assist marking",
    "GC assist wait",
    "GC sweep wait",
    "GC scavenge wait",
    "GC worker (idle)",
    "GC worker (active)",
    "GC mark termination",
    "GC weak to strong wait",
    "garbage collection",
    "garbage collection scan",
    "wait for GC cycle",
    "force gc (idle)",
    "finalizer wait",
    "cleanup wait",
];

/// Bit n: reason n is ended by the collector.
pub(super) fn ended_by_collector(minor: u32) -> u64 {
    ENDED_BY_COLLECTOR.iter().filter_map(|name| number(minor, name)).fold(0, |bits, n| bits | 1 << (n & 63))
}

/// Reasons for which only the runtime's own goroutines wait.
const SYSTEM: [&str; 9] = [
    "GC sweep wait",
    "GC scavenge wait",
    "GC worker (idle)",
    "GC worker (active)",
    "force gc (idle)",
    "finalizer wait",
    "cleanup wait",
    "GOMAXPROCS updater (idle)",
    "timer goroutine (idle)",
];

/// Whether only the runtime's own goroutines wait for this reason.
#[must_use]
pub fn is_system_reason(reason: &str) -> bool {
    SYSTEM.contains(&reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_in_lists_are_reasons() {
        for reason in ENDED_BY_COLLECTOR.iter().chain(&SYSTEM) {
            assert!((18..=29).any(|minor| number(minor, reason).is_some()), "{reason}");
        }
    }

    #[test]
    fn numbers_fit_the_histograms_and_differ() {
        for minor in 18..=29 {
            let names = names(minor);
            assert!(names.len() <= gotrace_common::ROW_OTHER as usize);
            assert_eq!(names[0], "");
            let distinct: std::collections::HashSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), names.len(), "Go 1.{minor}");
        }
    }

    #[test]
    fn renumbered_reasons() {
        assert_eq!(number(25, "chan receive"), Some(14));
        assert_eq!(number(26, "chan receive"), Some(19));
        assert_eq!(number(19, "sync.Mutex.Lock"), None);
        assert_eq!(number(22, "coroutine"), Some(36));
        assert_eq!(number(21, "coroutine"), None);
        assert_eq!(ended_by_collector(27) & 1 << 19, 0);
        assert_ne!(ended_by_collector(27) & 1 << 7, 0, "GC assist wait");
    }
}
