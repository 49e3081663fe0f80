//! gotrace's own long-lived threads: whether each still moves, and work that goes on where the system gives no thread.
//!
//! A thread that works beats; one that waits for orders rests. Invariants: to beat neither waits nor fails; a panic ends
//! a beat, and shows. Input: beats. Output: for each name whether all is well, or what is not.

use std::{
    collections::BTreeMap,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvError, SendError, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};

use super::Clock;

/// All that beat. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Threads(Arc<Mutex<Vec<Arc<Entry>>>>);

#[derive(Debug)]
struct Entry {
    name: &'static str,
    patience: Duration,
    /// Monotonic; 0 while it rests.
    beat_ns: AtomicU64,
    panicked: AtomicBool,
}

/// What is wrong with a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It panicked, and is no more.
    Panicked,
    /// It has been at work for so long without a beat.
    Silent(Duration),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked => f.write_str("panicked"),
            Self::Silent(time) => write!(f, "has been stuck for {} s", time.as_secs()),
        }
    }
}

impl Threads {
    /// A thread of this kind begins. At work it beats at least once in `patience`.
    #[must_use]
    pub fn register(&self, name: &'static str, patience: Duration) -> Beat {
        let beat_ns = AtomicU64::new(Clock::now_monotonic_ns());
        let entry = Arc::new(Entry { name, patience, beat_ns, panicked: AtomicBool::new(false) });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&entry));
        Beat { entry, threads: self.clone() }
    }

    /// Each kind of thread, and the worst that is wrong with one of it.
    #[must_use]
    pub fn state(&self) -> BTreeMap<&'static str, Option<Trouble>> {
        let now_ns = Clock::now_monotonic_ns();
        let mut state: BTreeMap<&'static str, Option<Trouble>> = BTreeMap::new();
        for entry in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let trouble = entry.trouble(now_ns);
            let worst = state.entry(entry.name).or_default();
            *worst = match (*worst, trouble) {
                (Some(Trouble::Panicked), _) | (_, None) => *worst,
                (Some(Trouble::Silent(a)), Some(Trouble::Silent(b))) => Some(Trouble::Silent(a.max(b))),
                (_, trouble) => trouble,
            };
        }
        state
    }
}

impl Entry {
    fn trouble(&self, now_ns: u64) -> Option<Trouble> {
        if self.panicked.load(Ordering::Relaxed) {
            return Some(Trouble::Panicked);
        }
        let beat_ns = self.beat_ns.load(Ordering::Relaxed);
        let silent = Duration::from_nanos(now_ns.saturating_sub(beat_ns));
        (beat_ns != 0 && silent > self.patience).then_some(Trouble::Silent(silent))
    }
}

/// One thread's. Dropped at the thread's end: in order, or by a panic.
#[derive(Debug)]
pub struct Beat {
    entry: Arc<Entry>,
    threads: Threads,
}

impl Beat {
    /// It is at work, and moves.
    pub fn beat(&self) {
        self.entry.beat_ns.store(Clock::now_monotonic_ns(), Ordering::Relaxed);
    }

    /// It waits for orders, however long.
    pub fn rest(&self) {
        self.entry.beat_ns.store(0, Ordering::Relaxed);
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        if thread::panicking() {
            self.entry.panicked.store(true, Ordering::Relaxed);
            return;
        }
        let mut all = self.threads.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
    }
}

/// Does some work that may panic; the panic's message then. What it has changed halfway is for the caller to drop.
///
/// # Errors
/// The message of the panic.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
    })
}

/// Whether so many threads more can be had, and so many descriptors.
///
/// # Errors
/// What the system answers.
pub fn room_for(count: usize, descriptors: usize) -> io::Result<()> {
    let held: io::Result<Vec<_>> = (0..descriptors).map(|_| Ok(eventfd(0, EventfdFlags::CLOEXEC)?)).collect();
    drop(held?);
    let together = Arc::new(Mutex::new(()));
    let held = together.lock().unwrap_or_else(PoisonError::into_inner);
    let threads: Vec<io::Result<JoinHandle<()>>> = (0..count)
        .map(|_| {
            let together = Arc::clone(&together);
            thread::Builder::new().spawn(move || drop(together.lock()))
        })
        .collect();
    drop(held);
    threads.into_iter().try_for_each(|thread| {
        // It does nothing that could panic.
        let _ = thread?.join();
        Ok(())
    })
}

/// Work on a thread of its own, or done already where the system gave none.
#[derive(Debug)]
pub enum Background<T> {
    /// It is under way.
    Thread(JoinHandle<Result<T, RecvError>>),
    /// It was done on the caller's thread.
    Done(T),
}

impl<T: Send + 'static> Background<T> {
    /// Does this on a thread of its own; where there is none to be had, on the caller's, before it returns.
    pub fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Self {
        // A closure that is given to a thread which does not come to be is lost.
        let (send, receive) = channel();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || receive.recv().map(|work: Work<T>| work()));
        let work: Work<T> = Box::new(work);
        match thread {
            Ok(thread) => match send.send(work) {
                Ok(()) => Self::Thread(thread),
                Err(SendError(work)) => Self::Done(work()),
            },
            Err(error) => {
                tracing::debug!(name, %error, "no thread");
                Self::Done(work())
            }
        }
    }

    /// What came of it; `None` where it panicked.
    pub fn join(self) -> Option<T> {
        match self {
            Self::Thread(thread) => thread.join().ok()?.ok(),
            Self::Done(result) => Some(result),
        }
    }

    /// Whether nothing would be waited for.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match self {
            Self::Thread(thread) => thread.is_finished(),
            Self::Done(_) => true,
        }
    }
}

type Work<T> = Box<dyn FnOnce() -> T + Send>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_panics_or_is_silent_is_named() {
        let threads = Threads::default();
        let patient = threads.register("patient", Duration::from_secs(3600));
        let silent = threads.register("silent", Duration::ZERO);
        let resting = threads.register("resting", Duration::ZERO);
        resting.rest();
        let dies = threads.register("dies", Duration::from_secs(3600));
        let _ = thread::spawn(move || {
            dies.beat();
            panic!("as it is to");
        })
        .join();
        drop(threads.register("ended", Duration::ZERO));
        while !matches!(threads.state()["silent"], Some(Trouble::Silent(_))) {
            thread::yield_now();
        }
        let state = threads.state();
        assert_eq!(state.keys().copied().collect::<Vec<_>>(), ["dies", "patient", "resting", "silent"]);
        assert_eq!(
            (state["dies"], state["patient"], state["resting"]),
            (Some(Trouble::Panicked), None, None)
        );
        silent.rest();
        patient.beat();
        assert_eq!(threads.state()["silent"], None, "it is well again");
    }

    #[test]
    fn a_panic_is_contained_and_told() {
        assert_eq!(contained(|| 7), Ok(7));
        assert_eq!(contained(|| -> u8 { panic!("not {}", "good") }), Err("not good".into()));
    }

    #[test]
    fn work_is_done_with_a_thread_and_its_end_is_told() {
        let work = Background::start("work", || 7);
        assert_eq!(work.join(), Some(7));
        assert_eq!(Background::start("work", || -> u8 { panic!("as it is to") }).join(), None);
        assert_eq!(Background::Done(8).join(), Some(8));
    }
}
