//! Spans as the bytes of `ScopeSpans.spans`, without messages in between.
//!
//! The hot path of the exporter: a message of `opentelemetry-proto` takes some thirty allocations a
//! span. Here a place's attributes are encoded once and copied afterwards, since millions of spans
//! share a few hundred places. What is written decodes to exactly what [`super::convert`] makes; the
//! tests hold the one against the other.

use std::{collections::HashMap, sync::Arc};

use prost::{Message as _, encoding::encode_varint, length_delimiter_len};

use super::convert::{self, FLAGS, PEER_ADDRESS, PEER_PORT};
use gotrace_model::{
    GoroutineSpan, LIFE_NAMES, Location, Span, SpanContext, WaitSpan, Waker,
    metrics::{CODE, CREATED_BY, OWN_CODE, PlaceLabels},
};

/// Places whose attributes are kept. When there are more, all are forgotten and kept anew: a program
/// has fewer, but for generated code without end.
const MAX_PLACES: usize = 8192;

/// Encodes spans.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// A span's content, before its length is known.
    content: Vec<u8>,
    entries: Places,
    creators: Places,
    own_code: Places,
    reasons: HashMap<Arc<str>, Box<str>>,
}

/// Encoded attributes by the place's address; the `Arc` keeps the address from being used again.
#[derive(Debug, Default)]
struct Places(HashMap<usize, Place, foldhash::fast::RandomState>);

type Place = (Arc<Location>, Box<[u8]>);

impl Places {
    fn write(&mut self, out: &mut Vec<u8>, keys: &PlaceLabels, location: &Arc<Location>) {
        let key = Arc::as_ptr(location) as usize;
        if let Some((_, bytes)) = self.0.get(&key) {
            out.extend_from_slice(bytes);
            return;
        }
        if self.0.len() >= MAX_PLACES {
            self.0.clear();
        }
        let begin = out.len();
        let Location { function, file, line } = &**location;
        text(out, SPAN_ATTRIBUTES, keys.function, function);
        if !file.is_empty() {
            text(out, SPAN_ATTRIBUTES, keys.file, file);
        }
        if *line != 0 {
            int(out, SPAN_ATTRIBUTES, keys.line, u64::from(*line));
        }
        self.0.insert(key, (Arc::clone(location), out[begin..].into()));
    }
}

// Tags of opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.
const SCOPE_SPANS_SPANS: u8 = 2;
const SPAN_TRACE_ID: u8 = 1;
const SPAN_SPAN_ID: u8 = 2;
const SPAN_PARENT_SPAN_ID: u8 = 4;
const SPAN_NAME: u8 = 5;
const SPAN_KIND: u8 = 6;
const SPAN_START: u8 = 7;
const SPAN_END: u8 = 8;
const SPAN_ATTRIBUTES: u8 = 9;
const SPAN_LINKS: u8 = 13;
const SPAN_FLAGS: u8 = 16;
const LINK_TRACE_ID: u8 = 1;
const LINK_SPAN_ID: u8 = 2;
const LINK_ATTRIBUTES: u8 = 4;
const LINK_FLAGS: u8 = 6;
const KEY_VALUE_KEY: u8 = 1;
const KEY_VALUE_VALUE: u8 = 2;
const ANY_VALUE_STRING: u8 = 1;
const ANY_VALUE_INT: u8 = 3;
/// `SPAN_KIND_INTERNAL`.
const KIND_INTERNAL: u8 = 1;

impl Encoder {
    /// Appends a span.
    pub fn span(&mut self, out: &mut Vec<u8>, span: &Span) {
        self.content.clear();
        match span {
            Span::Goroutine(span) => self.goroutine(span),
            Span::Wait(span) => self.wait(span),
            // Few: not worth an encoding of their own.
            Span::Request(..) | Span::RequestWait(..) => {
                self.content = convert::span(span).encode_to_vec();
            }
        }
        bytes(out, SCOPE_SPANS_SPANS, &self.content);
    }

    fn goroutine(&mut self, span: &GoroutineSpan) {
        let GoroutineSpan {
            resource: _,
            context,
            parent,
            creator_link,
            start_unix_nano,
            end_unix_nano,
            entry,
            created_by,
            goid,
            parent_goid,
            wait_total_ns,
            run_total_ns,
            wait_count,
            cpu_ns,
            throttled_ns,
            life,
            waits_by_reason,
        } = span;
        let out = &mut self.content;
        head(out, context, parent.as_ref(), &entry.function, *start_unix_nano, *end_unix_nano);
        self.entries.write(out, &CODE, entry);
        int(out, SPAN_ATTRIBUTES, "gotrace.goroutine.id", *goid);
        if *parent_goid != 0 {
            int(out, SPAN_ATTRIBUTES, "gotrace.goroutine.parent.id", *parent_goid);
        }
        if let Some(location) = created_by {
            self.creators.write(out, &CREATED_BY, location);
        }
        for (key, value) in [
            ("gotrace.wait.total", wait_total_ns),
            ("gotrace.run.total", run_total_ns),
            ("gotrace.wait.count", wait_count),
            ("gotrace.time.on_cpu", cpu_ns),
            ("gotrace.time.throttled", throttled_ns),
        ] {
            if let Some(value) = value {
                int(out, SPAN_ATTRIBUTES, key, *value);
            }
        }
        for (key, ns) in life.iter().flat_map(|life| LIFE_NAMES.into_iter().zip(*life)) {
            int(out, SPAN_ATTRIBUTES, key, ns);
        }
        for (reason, total) in waits_by_reason {
            if let Some(key) = self.reasons.get(reason) {
                int(out, SPAN_ATTRIBUTES, key, *total);
            } else {
                let key = convert::reason_key(reason);
                int(out, SPAN_ATTRIBUTES, &key, *total);
                // Go has some forty reasons; anything like a number in them is not kept.
                if self.reasons.len() < 256 {
                    self.reasons.insert(Arc::clone(reason), key.into());
                }
            }
        }
        if let Some(creator) = creator_link {
            link(out, creator, "creator");
        }
    }

    fn wait(&mut self, span: &WaitSpan) {
        let WaitSpan {
            resource: _,
            context,
            parent,
            goid,
            reason,
            start_unix_nano,
            end_unix_nano,
            scheduling_delay_ns,
            site,
            own_code,
            waker,
            peer,
        } = span;
        let out = &mut self.content;
        head(out, context, Some(parent), reason, *start_unix_nano, *end_unix_nano);
        if let Some(location) = site {
            self.entries.write(out, &CODE, location);
        }
        if let Some(location) = own_code {
            self.own_code.write(out, &OWN_CODE, location);
        }
        int(out, SPAN_ATTRIBUTES, "gotrace.goroutine.id", *goid);
        text(out, SPAN_ATTRIBUTES, "gotrace.wait.reason", reason);
        if let Some(delay) = scheduling_delay_ns {
            int(out, SPAN_ATTRIBUTES, "gotrace.wait.scheduling_delay", *delay);
        }
        if let Some(peer) = peer {
            text(out, SPAN_ATTRIBUTES, PEER_ADDRESS, &peer.ip().to_string());
            int(out, SPAN_ATTRIBUTES, PEER_PORT, u64::from(peer.port()));
        }
        text(out, SPAN_ATTRIBUTES, "gotrace.waker.kind", convert::waker_kind(waker));
        if let Waker::Goroutine(id, context) = waker {
            int(out, SPAN_ATTRIBUTES, "gotrace.waker.goroutine.id", *id);
            link(out, context, "waker");
        }
    }
}

fn head(
    out: &mut Vec<u8>,
    context: &SpanContext,
    parent: Option<&[u8; 8]>,
    name: &str,
    start: u64,
    end: u64,
) {
    let SpanContext { trace_id, span_id } = context;
    bytes(out, SPAN_TRACE_ID, trace_id);
    bytes(out, SPAN_SPAN_ID, span_id);
    if let Some(parent) = parent {
        bytes(out, SPAN_PARENT_SPAN_ID, parent);
    }
    bytes(out, SPAN_NAME, name.as_bytes());
    out.extend_from_slice(&[SPAN_KIND << 3, KIND_INTERNAL]);
    fixed64(out, SPAN_START, start);
    fixed64(out, SPAN_END, end);
    fixed32(out, SPAN_FLAGS, FLAGS);
}

fn link(out: &mut Vec<u8>, context: &SpanContext, kind: &str) {
    const KEY: &str = "gotrace.link.kind";
    let SpanContext { trace_id, span_id } = context;
    let attribute = key_value_len(KEY, text_len(kind));
    // Two ids, the attribute and the flags, each with its head.
    let length = (2 + trace_id.len()) + (2 + span_id.len()) + field_len(attribute) + 5;
    field(out, SPAN_LINKS, length);
    bytes(out, LINK_TRACE_ID, trace_id);
    bytes(out, LINK_SPAN_ID, span_id);
    text(out, LINK_ATTRIBUTES, KEY, kind);
    fixed32(out, LINK_FLAGS, FLAGS);
}

/// A text attribute as a field with the given tag.
fn text(out: &mut Vec<u8>, tag: u8, key: &str, value: &str) {
    let any = text_len(value);
    field(out, tag, key_value_len(key, any));
    bytes(out, KEY_VALUE_KEY, key.as_bytes());
    field(out, KEY_VALUE_VALUE, any);
    bytes(out, ANY_VALUE_STRING, value.as_bytes());
}

/// A whole number as a field with the given tag.
fn int(out: &mut Vec<u8>, tag: u8, key: &str, value: u64) {
    let value = value.min(i64::MAX as u64);
    let any = 1 + prost::encoding::encoded_len_varint(value);
    field(out, tag, key_value_len(key, any));
    bytes(out, KEY_VALUE_KEY, key.as_bytes());
    field(out, KEY_VALUE_VALUE, any);
    out.push(ANY_VALUE_INT << 3);
    encode_varint(value, out);
}

/// Bytes of an `AnyValue` with a text.
fn text_len(value: &str) -> usize {
    field_len(value.len())
}

/// Bytes of a `KeyValue` with a value of so many bytes.
fn key_value_len(key: &str, any: usize) -> usize {
    field_len(key.len()) + field_len(any)
}

/// Bytes of a length-delimited field with a tag below 16.
fn field_len(content: usize) -> usize {
    1 + length_delimiter_len(content) + content
}

/// The head of a length-delimited field with a tag below 16.
fn field(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag << 3 | 2);
    encode_varint(length as u64, out);
}

fn bytes(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    field(out, tag, value.len());
    out.extend_from_slice(value);
}

fn fixed64(out: &mut Vec<u8>, tag: u8, value: u64) {
    if value != 0 {
        out.push(tag << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn fixed32(out: &mut Vec<u8>, tag: u8, value: u32) {
    // A tag of 16 takes two bytes.
    encode_varint(u64::from(tag) << 3 | 5, out);
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::ScopeSpans;
    use prost::Message;

    use super::*;
    use gotrace_model::samples;

    fn decoded(encoder: &mut Encoder, spans: &[Span]) -> ScopeSpans {
        let mut out = Vec::new();
        for span in spans {
            encoder.span(&mut out, span);
        }
        ScopeSpans::decode(out.as_slice()).expect("a message")
    }

    fn check(encoder: &mut Encoder, spans: &[Span]) {
        let wanted: Vec<_> = spans.iter().map(convert::span).collect();
        assert_eq!(decoded(encoder, spans).spans, wanted);
    }

    #[test]
    fn bytes_decode_to_what_the_messages_say() {
        let all = samples::all(&samples::resource());
        let mut encoder = Encoder::default();
        check(&mut encoder, &all);
        // Once more, out of what is kept.
        check(&mut encoder, &all);
    }

    #[test]
    fn extremes_decode_too() {
        let resource = samples::resource();
        let mut encoder = Encoder::default();
        for number in [0, 1, 127, 128, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
            for length in [0, 1, 127, 128, 20_000] {
                let mut span = samples::goroutine(&resource, 18);
                let Span::Goroutine(s) = &mut span else { unreachable!("a goroutine") };
                s.goid = number;
                s.parent_goid = number;
                s.wait_total_ns = Some(number);
                s.life = Some([number; 4]);
                s.start_unix_nano = number;
                s.end_unix_nano = number;
                s.entry = samples::location(&"é".repeat(length), &"/".repeat(length), u32::MAX);
                s.waits_by_reason = vec![("x y".repeat(length).into(), number)];
                check(&mut encoder, &[span]);
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let resource = samples::resource();
        let mut encoder = Encoder::default();
        let mut out = Vec::new();
        for i in 0..20_000 {
            let mut span = samples::goroutine(&resource, 18);
            let Span::Goroutine(s) = &mut span else { unreachable!("a goroutine") };
            s.waits_by_reason = vec![(format!("reason {i}").into(), 1)];
            encoder.span(&mut out, &span);
            out.clear();
        }
        assert!(encoder.entries.0.len() <= MAX_PLACES && encoder.reasons.len() <= 256);
    }
}
