//! The bounded way from the pipeline to a background thread: one lane to the collector, one to the file.
//!
//! Giving never blocks: what does not fit is refused at once, and the caller counts it; of spans each process has its
//! share of the room ([`Room`]). The pipeline's spans are shared, not copied, between the lanes.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use gotrace_model::{Interval, LogRecord, Resource, Span};

use super::room::Room;

/// Spans that may wait in one lane (about 20 MB).
pub const MAX_QUEUED_SPANS: usize = 65_536;
/// Intervals that may wait in one lane.
pub(super) const MAX_QUEUED_INTERVALS: usize = 256;
/// Log records that may wait in one lane.
pub(super) const MAX_QUEUED_LOGS: usize = 1024;

/// What a lane carries.
#[derive(Debug)]
enum Item {
    /// Those of these that were granted room, in runs of one process.
    Spans(Arc<Vec<Span>>, Vec<Range<usize>>),
    Interval(Arc<Interval>),
    Log(Arc<LogRecord>),
}

/// What came out of a lane.
#[derive(Debug)]
pub(super) enum Received {
    /// Some of these spans, in runs of one process.
    Spans(Arc<Vec<Span>>, Vec<Range<usize>>),
    /// A process's state.
    Interval(Arc<Interval>),
    /// Something that happened.
    Log(Arc<LogRecord>),
    /// Nothing until the given moment.
    Nothing,
    /// The giving side has ended.
    End,
}

#[derive(Debug)]
struct Load {
    spans: Room,
    intervals: AtomicUsize,
    logs: AtomicUsize,
}

impl Load {
    /// Makes the room of these spans free.
    fn give_back(&self, spans: &[Span], runs: Vec<Range<usize>>) -> Vec<Range<usize>> {
        for run in &runs {
            self.spans.give_back(spans[run.start].resource(), run.len());
        }
        runs
    }
}

/// The pipeline's end.
#[derive(Debug)]
pub(super) struct Giver {
    items: mpsc::Sender<Item>,
    load: Arc<Load>,
}

/// The thread's end.
#[derive(Debug)]
pub(super) struct Taker {
    items: mpsc::Receiver<Item>,
    load: Arc<Load>,
}

/// Reads how much waits, also after the giving end is gone.
#[derive(Clone, Debug)]
pub(super) struct Gauge(Arc<Load>);

impl Gauge {
    /// Spans that wait.
    pub fn spans(&self) -> usize {
        self.0.spans.held()
    }
}

/// Makes a lane.
pub(super) fn lane() -> (Giver, Taker) {
    let (sender, receiver) = mpsc::channel();
    let load = Arc::new(Load {
        spans: Room::new(MAX_QUEUED_SPANS),
        intervals: AtomicUsize::new(0),
        logs: AtomicUsize::new(0),
    });
    (Giver { items: sender, load: Arc::clone(&load) }, Taker { items: receiver, load })
}

/// Takes one of what is left below `limit`, if any is.
fn reserve(load: &AtomicUsize, limit: usize) -> bool {
    load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
}

impl Giver {
    /// Gives spans, and tells of which process how many found no room.
    pub fn spans(&self, spans: &Arc<Vec<Span>>, mut lost: impl FnMut(&Arc<Resource>, usize)) {
        let (mut runs, mut at) = (Vec::new(), 0);
        for run in spans.chunk_by(|a, b| Arc::ptr_eq(a.resource(), b.resource())) {
            let of = run[0].resource();
            let granted = self.load.spans.take(of, run.len());
            if granted > 0 {
                runs.push(at..at + granted);
            }
            if granted < run.len() {
                lost(of, run.len() - granted);
            }
            at += run.len();
        }
        if !runs.is_empty()
            && let Err(mpsc::SendError(Item::Spans(spans, runs))) =
                self.items.send(Item::Spans(Arc::clone(spans), runs))
        {
            for run in self.load.give_back(&spans, runs) {
                lost(spans[run.start].resource(), run.len());
            }
        }
    }

    /// Whether the interval found room. One that did not is made good by the next, whose totals hold it.
    pub fn interval(&self, interval: &Arc<Interval>) -> bool {
        reserve(&self.load.intervals, MAX_QUEUED_INTERVALS)
            && self.items.send(Item::Interval(Arc::clone(interval))).is_ok()
    }

    /// Whether the record found room.
    pub fn log(&self, record: &Arc<LogRecord>) -> bool {
        reserve(&self.load.logs, MAX_QUEUED_LOGS) && self.items.send(Item::Log(Arc::clone(record))).is_ok()
    }

    /// A view of the load.
    pub fn gauge(&self) -> Gauge {
        Gauge(Arc::clone(&self.load))
    }
}

impl Taker {
    /// Waits for the next item until `until`. The item's room is free from now on.
    pub fn next(&self, until: Option<Instant>) -> Received {
        let item = match until {
            None => self.items.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            Some(until) => {
                let wait = until.saturating_duration_since(Instant::now());
                self.items.recv_timeout(wait.max(Duration::from_millis(1)))
            }
        };
        match item {
            Ok(Item::Spans(spans, runs)) => {
                let runs = self.load.give_back(&spans, runs);
                Received::Spans(spans, runs)
            }
            Ok(Item::Interval(interval)) => {
                self.load.intervals.fetch_sub(1, Ordering::Relaxed);
                Received::Interval(interval)
            }
            Ok(Item::Log(record)) => {
                self.load.logs.fetch_sub(1, Ordering::Relaxed);
                Received::Log(record)
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Received::Nothing,
            Err(mpsc::RecvTimeoutError::Disconnected) => Received::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::samples;

    #[test]
    fn a_full_lane_takes_what_fits_and_has_room_again_afterwards() {
        let resource = samples::resource();
        let (giver, taker) = lane();
        let give = |of: &[(&Arc<Resource>, usize)]| {
            let spans = of.iter().flat_map(|(of, n)| vec![samples::bare_goroutine(of); *n]).collect();
            let mut lost = Vec::new();
            giver.spans(&Arc::new(spans), |_, n| lost.push(n));
            lost
        };
        let of_all = MAX_QUEUED_SPANS * 8 / 9;
        assert_eq!(give(&[(&resource, 40_000)]), [0; 0]);
        assert_eq!(give(&[(&resource, 40_000)]), [80_000 - of_all]);
        // Another process's spans find room between those that find none.
        let other = samples::resource();
        assert_eq!(give(&[(&resource, 5), (&other, 100), (&resource, 7)]), [5, 7]);
        let run = || match taker.next(None) {
            Received::Spans(_, runs) => <[_; 1]>::try_from(runs).expect("one run")[0].clone(),
            other => panic!("spans, not {other:?}"),
        };
        assert_eq!([run(), run(), run()], [0..40_000, 0..of_all - 40_000, 5..105]);
        assert_eq!(give(&[(&resource, 40_000)]), [0; 0]);
        let interval = Arc::new(samples::interval(&resource, 0, Vec::new()));
        let taken = (0..400).filter(|_| giver.interval(&interval)).count();
        assert_eq!(taken, MAX_QUEUED_INTERVALS);
    }

    #[test]
    fn a_lane_without_a_taker_takes_nothing_and_one_without_a_giver_ends() {
        let spans = Arc::new(vec![samples::bare_goroutine(&samples::resource())]);
        let (giver, taker) = lane();
        assert!(matches!(taker.next(Some(Instant::now())), Received::Nothing));
        drop(taker);
        let mut lost = 0;
        giver.spans(&spans, |_, n| lost += n);
        assert_eq!((lost, giver.gauge().spans()), (1, 0));
        let (giver, taker) = lane();
        drop(giver);
        assert!(matches!(taker.next(None), Received::End));
    }
}
