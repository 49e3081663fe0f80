//! Spans and resources as OTLP messages: names, attributes and links.
//!
//! Input: the sinks' model. Output: `opentelemetry-proto` messages, which the file sink writes as JSON
//! and against which the encoder of the hot path ([`super::encode`]) is tested. Draws nothing: ids,
//! times and names come from the model as they are. What is unknown is left out.
//!
//! | attribute | of | type |
//! |---|---|---|
//! | `code.function.name`, `code.file.path`, `code.line.number` | a goroutine's entry; a wait's site | string, string, int |
//! | `network.peer.{address,port}` | wait for a connection | string, int |
//! | `gotrace.own_code.{function.name,file.path,line.number}` | wait, where it is another place than the site | string, string, int |
//! | `gotrace.goroutine.id` | both | int |
//! | `gotrace.goroutine.parent.id` | goroutine; left out when the runtime made it | int |
//! | `gotrace.created_by.{function.name,file.path,line.number}` | goroutine | string, string, int |
//! | `gotrace.wait.total`, `gotrace.run.total` | goroutine | int, nanoseconds |
//! | `gotrace.wait.count` | goroutine | int |
//! | `gotrace.wait.total.<reason>`, spaces as `_` | goroutine, waits of at least the threshold | int, nanoseconds |
//! | `gotrace.time.{running,run_queue,syscall,blocked}` | goroutine whose life was seen at level `full`; they add up to it | int, nanoseconds |
//! | `gotrace.wait.reason` | wait | string |
//! | `gotrace.wait.scheduling_delay` | wait | int, nanoseconds |
//! | `gotrace.waker.kind`: `goroutine`, `netpoll`, `timer`, `gc`, `unknown` | wait | string |
//! | `gotrace.waker.goroutine.id` | wait, when a goroutine woke it | int |
//! | `gotrace.link.kind`: `creator`, `waker`, `goroutine` | link | string |
//!
//! Those of requests: [`super::requests`].

use std::net::SocketAddr;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    resource::v1 as resource,
    trace::v1::{self as trace, span::SpanKind},
};

use super::requests;
use gotrace_model::{
    GoroutineSpan, LIFE_NAMES, Location, Resource, Span, SpanContext, Value, WaitSpan, Waker,
    metrics::{CODE, CREATED_BY, OWN_CODE, PlaceLabels},
};

/// The scope's name.
pub(super) const SCOPE: &str = "gotrace";
/// The scope's version: gotrace's.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Sampled (0x01), and known not to be remote (0x100): both ends of gotrace's links are its own spans.
pub(super) const FLAGS: u32 = 0x101;

/// An attribute with a text.
pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

/// An attribute with a whole number; what is above `i64::MAX` (292 years in nanoseconds) is cut.
pub(super) fn int(key: &str, value: u64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(clamp(value)))
}

/// OTLP's integers are signed.
pub(super) fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// An attribute with any value.
pub(super) fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The attributes of a place; an unknown file or line is left out.
pub(super) fn place(attributes: &mut Vec<KeyValue>, keys: &PlaceLabels, location: &Location) {
    let Location { function, file, line } = location;
    attributes.push(text(keys.function, function));
    if !file.is_empty() {
        attributes.push(text(keys.file, file));
    }
    if *line != 0 {
        attributes.push(int(keys.line, u64::from(*line)));
    }
}

/// The resource of a process.
pub(super) fn resource(resource: &Resource) -> resource::Resource {
    let Resource { attributes, .. } = resource;
    let attributes = attributes.iter().map(|(key, value)| attribute_of(key, value)).collect();
    resource::Resource { attributes, ..Default::default() }
}

/// An attribute of the model.
pub(super) fn attribute_of(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(t) => any_value::Value::StringValue(t.to_string()),
        Value::Int(i) => any_value::Value::IntValue(*i),
        Value::Double(d) => any_value::Value::DoubleValue(*d),
        Value::List(list) => any_value::Value::ArrayValue(ArrayValue {
            values: list
                .iter()
                .map(|t| AnyValue { value: Some(any_value::Value::StringValue(t.to_string())) })
                .collect(),
        }),
    };
    attribute(key, value)
}

/// gotrace as the scope of what it sends.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope { name: SCOPE.into(), version: VERSION.into(), ..Default::default() }
}

/// A request with spans of one process.
pub(super) fn trace_request(
    process: &Resource,
    spans: Vec<trace::Span>,
) -> opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest {
    opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest {
        resource_spans: vec![trace::ResourceSpans {
            resource: Some(resource(process)),
            scope_spans: vec![trace::ScopeSpans { scope: Some(scope()), spans, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

/// A span.
pub(super) fn span(span: &Span) -> trace::Span {
    match span {
        Span::Goroutine(s) => goroutine(s),
        Span::Wait(s) => wait(s),
        Span::Request(_, request) => requests::request(request),
        Span::RequestWait(_, request, n) => requests::wait(request, *n),
    }
}

fn goroutine(span: &GoroutineSpan) -> trace::Span {
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
    let mut attributes = Vec::with_capacity(17 + waits_by_reason.len());
    place(&mut attributes, &CODE, entry);
    attributes.push(int("gotrace.goroutine.id", *goid));
    if *parent_goid != 0 {
        attributes.push(int("gotrace.goroutine.parent.id", *parent_goid));
    }
    if let Some(location) = created_by {
        place(&mut attributes, &CREATED_BY, location);
    }
    for (key, value) in [
        ("gotrace.wait.total", wait_total_ns),
        ("gotrace.run.total", run_total_ns),
        ("gotrace.wait.count", wait_count),
        ("gotrace.time.on_cpu", cpu_ns),
        ("gotrace.time.throttled", throttled_ns),
    ] {
        if let Some(value) = value {
            attributes.push(int(key, *value));
        }
    }
    for (key, ns) in life.iter().flat_map(|life| LIFE_NAMES.into_iter().zip(*life)) {
        attributes.push(int(key, ns));
    }
    for (reason, total) in waits_by_reason {
        attributes.push(int(&reason_key(reason), *total));
    }
    trace::Span {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        parent_span_id: parent.map(|p| p.to_vec()).unwrap_or_default(),
        flags: FLAGS,
        name: entry.function.to_string(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: *start_unix_nano,
        end_time_unix_nano: *end_unix_nano,
        attributes,
        links: creator_link.iter().map(|c| link(c, "creator")).collect(),
        ..Default::default()
    }
}

fn wait(span: &WaitSpan) -> trace::Span {
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
    let mut attributes = Vec::with_capacity(8);
    if let Some(location) = site {
        place(&mut attributes, &CODE, location);
    }
    if let Some(location) = own_code {
        place(&mut attributes, &OWN_CODE, location);
    }
    attributes.push(int("gotrace.goroutine.id", *goid));
    attributes.push(text("gotrace.wait.reason", reason));
    if let Some(delay) = scheduling_delay_ns {
        attributes.push(int("gotrace.wait.scheduling_delay", *delay));
    }
    if let Some(peer) = peer {
        attributes.extend(peer_of(peer));
    }
    attributes.push(text("gotrace.waker.kind", waker_kind(waker)));
    let mut links = Vec::new();
    if let Waker::Goroutine(id, context) = waker {
        attributes.push(int("gotrace.waker.goroutine.id", *id));
        links.push(link(context, "waker"));
    }
    trace::Span {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        parent_span_id: parent.to_vec(),
        flags: FLAGS,
        name: reason.to_string(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: *start_unix_nano,
        end_time_unix_nano: *end_unix_nano,
        attributes,
        links,
        ..Default::default()
    }
}

/// OpenTelemetry's names for the other end of a connection.
pub(super) const PEER_ADDRESS: &str = "network.peer.address";
pub(super) const PEER_PORT: &str = "network.peer.port";

/// The other end of a connection.
pub(super) fn peer_of(peer: &SocketAddr) -> [KeyValue; 2] {
    [text(PEER_ADDRESS, &peer.ip().to_string()), int(PEER_PORT, u64::from(peer.port()))]
}

/// How a waker is named.
pub(super) const fn waker_kind(waker: &Waker) -> &'static str {
    match waker {
        Waker::Unknown => "unknown",
        Waker::Goroutine(..) => "goroutine",
        Waker::Netpoll => "netpoll",
        Waker::Timer => "timer",
        Waker::Gc => "gc",
    }
}

/// `gotrace.wait.total.chan_receive`.
pub(super) fn reason_key(reason: &str) -> String {
    format!("gotrace.wait.total.{}", reason.replace(' ', "_"))
}

pub(super) fn link(context: &SpanContext, kind: &str) -> trace::span::Link {
    trace::span::Link {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        attributes: vec![text("gotrace.link.kind", kind)],
        flags: FLAGS,
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
