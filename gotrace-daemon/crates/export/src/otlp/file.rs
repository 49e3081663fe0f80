//! The thread that writes OTLP JSON lines to a file.
//!
//! Lines are gathered and written whole. The first error ends the writing: the file is cut back to its
//! last whole line, the error is reported once, everything from then on is counted, and tracing goes
//! on. Refuses to block the pipeline: the lane in front of it is bounded.

use std::{
    fs::File,
    io::{Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    SeriesBounds,
    config::{DEFAULT_METRIC_INTERVAL, Signal, Temporality},
    convert, json_lines,
    lane::{Received, Taker},
    logs,
    pace::{Due, Pace},
    stats::{Account, Dropped, ExportStats},
};
use gotrace_model::{Interval, LogRecord, Resource, Span};
use gotrace_process::private;

/// Bytes gathered before they are written.
const MAX_BUFFER: usize = 256 << 10;
/// How long a line waits to be written.
const LINGER: Duration = Duration::from_secs(1);
/// Spans in one line.
const MAX_SPANS: usize = 512;

/// What the thread works with.
pub(super) struct FileWriter {
    path: PathBuf,
    file: File,
    /// `None`: the file is no regular file and cannot be cut back.
    good_bytes: Option<u64>,
    buffer: Vec<u8>,
    /// What is in the buffer.
    pending: Vec<(Signal, Arc<Resource>, u64)>,
    failed: bool,
    pace: Pace,
    account: Arc<Account>,
}

impl FileWriter {
    /// Makes the file, or empties it ([`private`]).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(path: &Path, pace: Pace, account: Arc<Account>) -> std::io::Result<Self> {
        let file = private::create(path)?;
        let good_bytes = file.metadata()?.is_file().then_some(0);
        Ok(Self {
            path: path.to_owned(),
            file,
            good_bytes,
            buffer: Vec::with_capacity(MAX_BUFFER + (64 << 10)),
            pending: Vec::new(),
            failed: false,
            pace,
            account,
        })
    }

    /// Works until the lane ends, then writes what is left.
    pub fn run(mut self, lane: &Taker) {
        let mut due: Option<Instant> = None;
        loop {
            match lane.next(due) {
                Received::Spans(spans, runs) => runs.into_iter().for_each(|run| self.spans(&spans[run])),
                Received::Interval(interval) => {
                    let due = self.pace.take(interval, &self.account);
                    self.report(due);
                }
                Received::Log(record) => self.log(&record),
                Received::Nothing => {}
                Received::End => break,
            }
            if self.buffer.len() >= MAX_BUFFER || due.is_some_and(|d| d <= Instant::now()) {
                self.write();
            }
            due = if self.buffer.is_empty() {
                None
            } else {
                due.filter(|d| *d > Instant::now()).or_else(|| Some(Instant::now() + LINGER))
            };
        }
        self.finish();
    }

    /// The last state of all, and what is left.
    fn finish(&mut self) {
        let due = self.pace.finish(&self.account);
        self.report(due);
        self.write();
    }

    fn write_when_full(&mut self) {
        if self.buffer.len() >= MAX_BUFFER {
            self.write();
        }
    }

    fn spans(&mut self, spans: &[Span]) {
        for run in spans.chunk_by(|a, b| Arc::ptr_eq(a.resource(), b.resource())) {
            for line in run.chunks(MAX_SPANS) {
                let resource = Arc::clone(line[0].resource());
                let count = line.len() as u64;
                if self.failed {
                    self.account.dropped(Signal::Traces, Dropped::FileError, &resource, count);
                    continue;
                }
                let request = convert::trace_request(&resource, line.iter().map(convert::span).collect());
                json_lines::traces(&mut self.buffer, &request);
                self.pending.push((Signal::Traces, resource, count));
                self.write_when_full();
            }
        }
    }

    fn log(&mut self, record: &LogRecord) {
        json_lines::logs(&mut self.buffer, &logs::request(record));
        self.pending.push((Signal::Logs, Arc::clone(&record.resource), 1));
        if self.failed {
            self.write();
        }
    }

    fn report(&mut self, due: Vec<Due>) {
        for Due { resource, request, points } in due {
            json_lines::metrics(&mut self.buffer, &request);
            self.pending.push((Signal::Metrics, resource, points));
        }
        if self.failed {
            self.write();
        }
    }

    /// Writes the buffer, or counts what is in it as lost.
    fn write(&mut self) {
        if !self.failed {
            match self.file.write_all(&self.buffer) {
                Ok(()) => {
                    if let Some(good) = &mut self.good_bytes {
                        *good += self.buffer.len() as u64;
                    }
                }
                Err(error) => self.fail(&error),
            }
        }
        for (signal, resource, count) in self.pending.drain(..) {
            if self.failed {
                self.account.dropped(signal, Dropped::FileError, &resource, count);
            } else {
                self.account.written(signal, count);
            }
        }
        self.buffer.clear();
    }

    fn fail(&mut self, error: &std::io::Error) {
        self.failed = true;
        if let Some(good) = self.good_bytes {
            // A half line would make the file unreadable; when even this fails the error below tells.
            let _ = self.file.set_len(good).and_then(|()| self.file.seek(std::io::SeekFrom::Start(good)));
        }
        let message = format!(
            "cannot write to {}: {error}; it is complete up to here and the rest is dropped; tracing continues",
            self.path.display()
        );
        if self.account.file_failed(message.clone()) {
            tracing::error!("{message}");
        }
    }
}

/// Writes OTLP JSON lines where there is no hurry: each call ends when it is written or gathered. The same spans,
/// points and log records give the same as an exporter's file.
pub struct OtlpFile(FileWriter);

impl OtlpFile {
    /// Makes the file, or empties it ([`private`]). `every`: least time between two reports of a process's metrics,
    /// `None` for the default.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(
        path: &Path,
        temporality: Temporality,
        every: Option<Duration>,
        series: SeriesBounds,
    ) -> std::io::Result<Self> {
        let pace = Pace::new(temporality, every.unwrap_or(DEFAULT_METRIC_INTERVAL), series);
        FileWriter::create(path, pace, Arc::default()).map(Self)
    }

    /// Takes finished spans.
    pub fn spans(&mut self, spans: &[Span]) {
        self.0.spans(spans);
    }

    /// Takes a process's state.
    pub fn interval(&mut self, interval: Arc<Interval>) {
        let due = self.0.pace.take(interval, &self.0.account);
        self.0.report(due);
        self.0.write_when_full();
    }

    /// Takes something that happened.
    pub fn log(&mut self, record: &LogRecord) {
        self.0.log(record);
        self.0.write_when_full();
    }

    /// Whether it can be written no further, which was said.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.failed
    }

    /// Writes what is left; what became of it all.
    #[must_use]
    pub fn finish(mut self) -> ExportStats {
        self.0.finish();
        self.0.account.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::{SeriesBounds, config::Temporality, lane};
    use gotrace_model::samples;

    fn run(path: &Path, spans: usize) -> crate::otlp::ExportStats {
        let account = Arc::new(Account::default());
        let pace = Pace::new(Temporality::Cumulative, Duration::from_secs(1), SeriesBounds::default());
        let writer = FileWriter::create(path, pace, Arc::clone(&account)).expect("made");
        let (giver, taker) = lane::lane();
        let resource = samples::resource();
        let many = Arc::new(vec![samples::goroutine(&resource, 18); spans]);
        giver.spans(&many, |_, lost| panic!("{lost} lost"));
        assert!(giver.interval(&Arc::new(samples::interval(&resource, 0, Vec::new()))));
        assert!(giver.log(&Arc::new(samples::log(&resource))));
        drop(giver);
        writer.run(&taker);
        account.stats()
    }

    #[test]
    fn every_span_is_in_a_whole_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("spans.jsonl");
        std::fs::write(&path, "what was here before").expect("written");
        let stats = run(&path, 3000);
        assert_eq!((stats.spans_written, stats.spans_dropped_total()), (3000, 0));
        let text = std::fs::read_to_string(&path).expect("text");
        let (mut spans, mut logs) = (0, 0);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            if let Some(list) = value["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array() {
                spans += list.len();
            } else if let Some(list) = value["resourceLogs"][0]["scopeLogs"][0]["logRecords"].as_array() {
                assert_eq!(list[0]["eventName"], "gotrace.leak.confirmed");
                logs += list.len();
            } else {
                assert!(value["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].is_array());
            }
        }
        assert_eq!((spans, logs, stats.logs_written), (3000, 1, 1));
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_full_disk_is_reported_once_and_what_is_lost_is_counted() {
        let stats = run(Path::new("/dev/full"), 3000);
        assert_eq!(stats.spans_written, 0);
        assert_eq!(stats.spans_dropped.get("file_error"), Some(&3000));
        assert!(stats.points_dropped["file_error"] > 0);
        let error = stats.file_error.expect("an error");
        assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
    }
}
