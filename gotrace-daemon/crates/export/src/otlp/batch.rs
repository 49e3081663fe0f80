//! Spans of one process gathered into an encoded `ExportTraceServiceRequest`.
//!
//! Each span is encoded when it comes and the model's span can be freed; what waits is the wire's bytes.
//! A request ends when it is large or old enough.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;

use super::{convert, encode::Encoder};
use gotrace_model::{Resource, Span};

/// Spans in one request.
pub(super) const MAX_SPANS: u64 = 2048;
/// Bytes of spans in one request; collectors take 4 MiB by default.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// How long a span waits for others.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// An encoded request.
#[derive(Debug)]
pub(super) struct Request {
    /// The process.
    pub resource: Arc<Resource>,
    /// Spans or points.
    pub count: u64,
    /// The message.
    pub bytes: Bytes,
}

/// A request that is being filled.
#[derive(Debug)]
pub(super) struct Batch {
    resource: Arc<Resource>,
    count: u64,
    /// `ScopeSpans.spans`, one after the other.
    spans: Vec<u8>,
    begun: Instant,
}

impl Batch {
    pub fn new(resource: &Arc<Resource>) -> Self {
        Self { resource: Arc::clone(resource), count: 0, spans: Vec::new(), begun: Instant::now() }
    }

    /// Adds a span.
    pub fn push(&mut self, encoder: &mut Encoder, span: &Span) {
        encoder.span(&mut self.spans, span);
        self.count += 1;
    }

    /// Whether it is large enough to go.
    pub fn is_full(&self) -> bool {
        self.count >= MAX_SPANS || self.spans.len() >= MAX_BYTES
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// When it has to go.
    pub fn due(&self) -> Instant {
        self.begun + LINGER
    }

    /// Puts resource and scope around the spans.
    pub fn finish(self) -> Request {
        let Self { resource, count, spans, begun: _ } = self;
        let process = convert::resource(&resource);
        let scope = convert::scope();
        let (process_len, scope_len) = (process.encoded_len(), scope.encoded_len());
        let scope_spans_len = field_len(scope_len) + spans.len();
        let resource_spans_len = field_len(process_len) + field_len(scope_spans_len);
        let mut bytes = Vec::with_capacity(field_len(resource_spans_len));
        // ExportTraceServiceRequest.resource_spans = 1
        field(&mut bytes, 1, resource_spans_len);
        // ResourceSpans.resource = 1, .scope_spans = 2
        field(&mut bytes, 1, process_len);
        bytes.extend_from_slice(&process.encode_to_vec());
        field(&mut bytes, 2, scope_spans_len);
        // ScopeSpans.scope = 1, .spans = 2
        field(&mut bytes, 1, scope_len);
        bytes.extend_from_slice(&scope.encode_to_vec());
        bytes.extend_from_slice(&spans);
        Request { resource, count, bytes: bytes.into() }
    }
}

/// Bytes of a length-delimited field with a tag below 16.
fn field_len(content: usize) -> usize {
    1 + prost::length_delimiter_len(content) + content
}

/// The head of a length-delimited field with a tag below 16.
fn field(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag << 3 | 2);
    prost::encoding::encode_varint(length as u64, out);
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

    use super::*;
    use gotrace_model::samples;

    #[test]
    fn a_request_decodes_to_what_went_in() {
        let resource = samples::resource();
        let all = samples::all(&resource);
        let mut batch = Batch::new(&resource);
        let mut encoder = Encoder::default();
        for span in &all {
            batch.push(&mut encoder, span);
        }
        let request = batch.finish();
        assert_eq!(request.count, all.len() as u64);
        let decoded = ExportTraceServiceRequest::decode(request.bytes).expect("a message");
        let wanted = convert::trace_request(&resource, all.iter().map(convert::span).collect());
        assert_eq!(decoded, wanted);
    }

    #[test]
    fn a_request_is_full_by_spans() {
        let resource = samples::resource();
        let mut batch = Batch::new(&resource);
        let mut encoder = Encoder::default();
        let span = samples::bare_goroutine(&resource);
        while !batch.is_full() {
            batch.push(&mut encoder, &span);
        }
        assert_eq!(batch.count, MAX_SPANS);
        let wide = samples::goroutine(&resource, 18);
        let mut batch = Batch::new(&resource);
        while !batch.is_full() {
            batch.push(&mut encoder, &wide);
        }
        assert!(batch.spans.len() < MAX_BYTES + 2000);
    }

    #[test]
    fn a_request_is_bounded_in_bytes_whatever_names_a_program_has() {
        let long = |n: usize| format!("{n:03}{}", "n".repeat(gotrace_go::MAX_NAME - 3));
        let resource = samples::resource();
        let mut batch = Batch::new(&resource);
        let mut encoder = Encoder::default();
        for n in 0.. {
            let mut span = samples::goroutine(&resource, 18);
            let Span::Goroutine(s) = &mut span else { unreachable!("a goroutine") };
            s.entry = samples::location(&long(n % 100), &long(n % 7), 1);
            s.created_by = Some(samples::location(&long(n % 50), &long(n % 3), 2));
            batch.push(&mut encoder, &span);
            if batch.is_full() {
                break;
            }
        }
        assert!(batch.count < MAX_SPANS);
        assert!(batch.finish().bytes.len() < MAX_BYTES + (16 << 10));
    }
}
