//! Threads that look at processes: those that take snapshots, and those that search heaps.
//!
//! Each process gets its share of them. Of the work that waits, that of the process comes first which has had least of
//! their time lately; and where there are several threads, one of them does nothing for those that have had much. So a
//! process whose memory takes long to read waits behind the others, and never the others behind it for longer than one
//! piece of work.
//!
//! Input: pieces of work, each for a process. Output: none; the work sends what it finds. Errors: a piece of work that
//! panics is dropped with all it holds, so that whoever waits for it learns that nothing comes.

use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gotrace_process::Threads;

use super::in_hand::{InHand, Process};

/// What a process has had is halved so often.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Having had more than this lately is much.
const MUCH: Duration = Duration::from_secs(2);

type Work = Box<dyn FnOnce() + Send>;

/// A handle on the threads, for those who have work. They end with the last one.
#[derive(Clone, Debug)]
pub(super) struct Workers(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    news: Condvar,
}

#[derive(Default)]
struct Waiting {
    work: Vec<(Process, Work)>,
    /// What each process has had of the threads' time, and when that was last brought up to date.
    had: HashMap<Process, (Duration, Instant)>,
    closed: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("work", &self.work.len()).finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts so many threads, which are watched by a name of theirs: a piece of work takes no longer than `patience`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        (name, watched): (&str, &'static str),
        count: usize,
        threads: &Threads,
        patience: Duration,
        in_hand: &InHand,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let handle = Self(Arc::new(Handle(Arc::clone(&queue))));
        for n in 0..count {
            let (queue, in_hand) = (Arc::clone(&queue), in_hand.clone());
            let beat = threads.register(watched, patience);
            // One of several is kept free.
            let spared = n == 0 && count > 1;
            thread::Builder::new().name(name.into()).spawn(move || {
                loop {
                    beat.rest();
                    let Some((process, work)) = queue.next(spared) else { break };
                    beat.beat();
                    let held = in_hand.take(process);
                    let begin = Instant::now();
                    // A panic was printed, and whoever waits for the result learns that there is none.
                    let _ = catch_unwind(AssertUnwindSafe(work));
                    drop(held);
                    queue.lock().had(process, begin.elapsed(), Instant::now());
                }
            })?;
        }
        Ok(handle)
    }

    /// Has this done for a process.
    pub fn order(&self, process: Process, work: Work) {
        let Self(handle) = self;
        handle.0.lock().work.push((process, work));
        // The one that is woken may be the one that is to spare it.
        handle.0.news.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.news.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here panics halfway.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next piece of work; `None` when nobody has any more.
    fn next(&self, spared: bool) -> Option<(Process, Work)> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(next) = waiting.take(spared, Instant::now()) {
                return Some(next);
            }
            waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Waiting {
    /// What a process has had lately.
    fn lately(&self, process: Process, now: Instant) -> Duration {
        self.had.get(&process).map_or(Duration::ZERO, |(had, at)| {
            let half_lives = now.saturating_duration_since(*at).as_secs_f64() / HALF_LIFE.as_secs_f64();
            had.mul_f64((-half_lives).exp2())
        })
    }

    fn take(&mut self, spared: bool, now: Instant) -> Option<(Process, Work)> {
        let lately = |(n, (process, _)): (usize, &(Process, Work))| (self.lately(*process, now), n);
        let (had, first) = self.work.iter().enumerate().map(lately).min()?;
        (!spared || had <= MUCH).then(|| self.work.remove(first))
    }

    fn had(&mut self, process: Process, time: Duration, now: Instant) {
        let had = self.lately(process, now) + time;
        self.had.insert(process, (had, now));
        // Who has had next to nothing is like one who has had nothing.
        if self.had.len() > 1024 {
            let old: Vec<Process> = self.had.keys().copied().collect();
            for process in old {
                if self.lately(process, now) < MUCH / 1024 {
                    self.had.remove(&process);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const GREEDY: Process = (1, 10);
    const MODEST: Process = (2, 20);

    #[test]
    fn who_has_had_least_comes_first_and_those_alike_in_their_order() {
        let mut waiting = Waiting::default();
        let begin = Instant::now();
        waiting.had(GREEDY, Duration::from_secs(60), begin);
        for process in [GREEDY, MODEST, (3, 30)] {
            waiting.work.push((process, Box::new(|| {})));
        }
        let mut next = |spared, at| waiting.take(spared, at).map(|(process, _)| process);
        assert_eq!(next(false, begin), Some(MODEST));
        assert_eq!(next(true, begin), Some((3, 30)));
        assert_eq!(next(true, begin), None, "it is kept free of the greedy one");
        assert_eq!(next(true, begin + HALF_LIFE * 10), Some(GREEDY), "which was so long ago");
    }

    #[test]
    fn what_was_had_is_forgotten() {
        let mut waiting = Waiting::default();
        let begin = Instant::now();
        waiting.had(GREEDY, Duration::from_secs(8), begin);
        waiting.had(GREEDY, Duration::from_secs(1), begin + HALF_LIFE);
        assert_eq!(waiting.lately(GREEDY, begin + HALF_LIFE), Duration::from_secs(5));
        for pid in 10..2000 {
            waiting.had((pid, 0), Duration::ZERO, begin + HALF_LIFE);
        }
        assert!(waiting.had.len() < 1100 && waiting.had.contains_key(&GREEDY));
    }

    #[test]
    fn nobody_waits_behind_processes_that_take_for_ever() {
        let threads = Threads::default();
        let workers =
            Workers::start(("test", "test"), 2, &threads, Duration::from_secs(3600), &InHand::default())
                .expect("threads");
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (done, came) = channel();
        // Each has had much before, and takes until it is let go.
        let first = done.clone();
        for pid in 0..5 {
            let process = (100 + pid, 0);
            workers.0.0.lock().had(process, MUCH * 2, Instant::now());
            let (held, done) = (Arc::clone(&held), first.clone());
            workers.order(
                process,
                Box::new(move || {
                    let _ = held.lock().map(|held| held.recv());
                    let _ = done.send(process);
                }),
            );
        }
        for n in 0..10 {
            let done = done.clone();
            workers.order(MODEST, Box::new(move || done.send((2, n)).expect("somebody waits")));
            assert_eq!(came.recv().expect("it is done"), (2, n));
        }
        for _ in 0..5 {
            release.send(()).expect("somebody waits");
            assert!(came.recv().expect("it is done").0 >= 100);
        }
        // A panic is the end of that piece of work alone.
        let (lost, nothing) = channel::<()>();
        workers.order(
            MODEST,
            Box::new(move || {
                let _lost = lost;
                panic!("on purpose");
            }),
        );
        assert!(nothing.recv().is_err());
        workers.order(MODEST, Box::new(move || done.send(MODEST).expect("somebody waits")));
        assert_eq!(came.recv().expect("it is done"), MODEST);
    }
}
