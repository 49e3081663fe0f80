//! The bounded way from the pipeline to a background thread: one lane to the collector, one to the file.
//!
//! Giving never blocks: what does not fit is refused at once, and the caller counts it. The pipeline's
//! spans are shared, not copied, between the lanes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::sink::model::{Interval, LogRecord, Span};

/// Spans that may wait in one lane (about 20 MB).
pub const MAX_QUEUED_SPANS: usize = 65_536;
/// Intervals that may wait in one lane.
pub(super) const MAX_QUEUED_INTERVALS: usize = 256;
/// Log records that may wait in one lane.
pub(super) const MAX_QUEUED_LOGS: usize = 1024;

/// What a lane carries.
#[derive(Debug)]
enum Item {
    /// The first so many of these.
    Spans(Arc<Vec<Span>>, usize),
    Interval(Arc<Interval>),
    Log(Arc<LogRecord>),
}

/// What came out of a lane.
#[derive(Debug)]
pub(super) enum Received {
    /// Spans: the first so many.
    Spans(Arc<Vec<Span>>, usize),
    /// A process's state.
    Interval(Arc<Interval>),
    /// Something that happened.
    Log(Arc<LogRecord>),
    /// Nothing until the given moment.
    Nothing,
    /// The giving side has ended.
    End,
}

#[derive(Debug, Default)]
struct Load {
    spans: AtomicUsize,
    intervals: AtomicUsize,
    logs: AtomicUsize,
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
        self.0.spans.load(Ordering::Relaxed)
    }
}

/// Makes a lane.
pub(super) fn lane() -> (Giver, Taker) {
    let (sender, receiver) = mpsc::channel();
    let load = Arc::new(Load::default());
    (Giver { items: sender, load: Arc::clone(&load) }, Taker { items: receiver, load })
}

/// Takes up to `wanted` of what is left below `limit`.
fn reserve(load: &AtomicUsize, wanted: usize, limit: usize) -> usize {
    let mut granted = 0;
    let _ = load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
        granted = wanted.min(limit.saturating_sub(n));
        Some(n + granted)
    });
    granted
}

impl Giver {
    /// How many of the spans found room: the first ones.
    pub fn spans(&self, spans: &Arc<Vec<Span>>) -> usize {
        let granted = reserve(&self.load.spans, spans.len(), MAX_QUEUED_SPANS);
        if granted > 0 && self.items.send(Item::Spans(Arc::clone(spans), granted)).is_err() {
            return 0;
        }
        granted
    }

    /// Whether the interval found room. One that did not is made good by the next, whose totals hold it.
    pub fn interval(&self, interval: &Arc<Interval>) -> bool {
        reserve(&self.load.intervals, 1, MAX_QUEUED_INTERVALS) == 1
            && self.items.send(Item::Interval(Arc::clone(interval))).is_ok()
    }

    /// Whether the record found room.
    pub fn log(&self, record: &Arc<LogRecord>) -> bool {
        reserve(&self.load.logs, 1, MAX_QUEUED_LOGS) == 1
            && self.items.send(Item::Log(Arc::clone(record))).is_ok()
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
            Ok(Item::Spans(spans, count)) => {
                self.load.spans.fetch_sub(count, Ordering::Relaxed);
                Received::Spans(spans, count)
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
    use crate::sink::otlp::samples;

    #[test]
    fn a_full_lane_takes_what_fits_and_has_room_again_afterwards() {
        let resource = samples::resource();
        let (giver, taker) = lane();
        let many = Arc::new(vec![samples::bare_goroutine(&resource); 40_000]);
        assert_eq!(giver.spans(&many), 40_000);
        assert_eq!(giver.spans(&many), MAX_QUEUED_SPANS - 40_000);
        assert_eq!(giver.spans(&many), 0);
        let Received::Spans(spans, 40_000) = taker.next(None) else { panic!("the first batch") };
        assert_eq!(spans.len(), 40_000);
        assert_eq!(giver.spans(&many), 40_000);
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
        assert_eq!(giver.spans(&spans), 0);
        let (giver, taker) = lane();
        drop(giver);
        assert!(matches!(taker.next(None), Received::End));
    }
}
