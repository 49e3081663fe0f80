//! The thread that turns spans and intervals into encoded requests for the collector.

use std::{collections::HashMap, sync::Arc, time::Instant};

use prost::Message;

use super::{
    batch::{Batch, Request},
    dispatch::Outbox,
    encode::Encoder,
    lane::{Received, Taker},
    logs,
    pace::{Due, Pace},
    stats::Account,
};
use gotrace_model::{LogRecord, Resource, Span};

/// What the thread works with.
pub(super) struct Collector {
    /// Where spans go; `None`: nowhere.
    pub traces: Option<Outbox>,
    /// Where metrics go; `None`: nowhere.
    pub metrics: Option<Outbox>,
    /// Where log records go; `None`: nowhere.
    pub logs: Option<Outbox>,
    /// When metrics go.
    pub pace: Pace,
    /// What is lost.
    pub account: Arc<Account>,
}

impl Collector {
    /// Works until the lane ends, then sends what is left.
    pub fn run(mut self, lane: &Taker) {
        let mut encoder = Encoder::default();
        // By the resource's address, which the batch keeps alive.
        let mut batches: HashMap<usize, Batch> = HashMap::new();
        loop {
            let until = batches.values().map(Batch::due).min();
            match lane.next(until) {
                Received::Spans(spans, runs) => {
                    for run in runs {
                        self.spans(&mut encoder, &mut batches, &spans[run]);
                    }
                }
                Received::Interval(interval) => {
                    let due = self.pace.take(interval, &self.account);
                    self.report(due);
                }
                Received::Log(record) => self.log(&record),
                Received::Nothing => {}
                Received::End => break,
            }
            let now = Instant::now();
            if batches.values().any(|b| b.due() <= now) {
                for (_, batch) in batches.extract_if(|_, b| b.due() <= now) {
                    self.send(batch);
                }
            }
        }
        for batch in batches.into_values() {
            self.send(batch);
        }
        let due = self.pace.finish(&self.account);
        self.report(due);
    }

    fn spans(&self, encoder: &mut Encoder, batches: &mut HashMap<usize, Batch>, spans: &[Span]) {
        if self.traces.is_none() {
            return;
        }
        // Spans come in runs of one process.
        let mut current: Option<(usize, Batch)> = None;
        for span in spans {
            let resource: &Arc<Resource> = span.resource();
            let key = Arc::as_ptr(resource) as usize;
            if current.as_ref().is_none_or(|(k, _)| *k != key) {
                if let Some((k, batch)) = current.take() {
                    batches.insert(k, batch);
                }
                let batch = batches.remove(&key).unwrap_or_else(|| Batch::new(resource));
                current = Some((key, batch));
            }
            if let Some((_, batch)) = &mut current {
                batch.push(encoder, span);
                if batch.is_full() {
                    self.send(std::mem::replace(batch, Batch::new(resource)));
                }
            }
        }
        if let Some((key, batch)) = current {
            batches.insert(key, batch);
        }
    }

    fn send(&self, batch: Batch) {
        if let Some(outbox) = &self.traces
            && !batch.is_empty()
        {
            outbox.send(batch.finish());
        }
    }

    fn log(&self, record: &LogRecord) {
        let Some(outbox) = &self.logs else { return };
        let bytes = logs::request(record).encode_to_vec().into();
        outbox.send(Request { resource: Arc::clone(&record.resource), count: 1, bytes });
    }

    fn report(&self, due: Vec<Due>) {
        let Some(outbox) = &self.metrics else { return };
        for Due { resource, request, points } in due {
            outbox.send(Request { resource, count: points, bytes: request.encode_to_vec().into() });
        }
    }
}
