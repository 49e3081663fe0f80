//! Slow requests as OTLP spans, in the caller's trace where the request names one, beneath the program's own span where it
//! makes one; and their long waits, as children.
//!
//! | attribute | of | type |
//! |---|---|---|
//! | `http.request.method`, `http.route`, `http.response.status_code`, `network.protocol.version` | HTTP | string, string, int, string |
//! | `url.path`, where paths are wanted, without what looks like a secret | HTTP | string |
//! | `rpc.system.name`, `rpc.method`, `rpc.response.status_code` | gRPC | string, string (`package.Service/Method`), string (`NOT_FOUND`) |
//! | `error.type` | a request that failed | string: the status, or how it ended |
//! | `code.function.name`, `code.file.path`, `code.line.number` | the handler, where no router told the route; the function that is the request; a wait's site | string, string, int |
//! | `gotrace.goroutine.id` | both | int |
//! | `gotrace.request.ended`: `normal`, `panic`, `hijacked`, `goroutine_exit`, `other_goroutine` | request | string |
//! | `gotrace.request.children`, `gotrace.request.children_left_running` | request that started goroutines: how many had ended when it did, and how many had not | int |
//! | `gotrace.request.waits_complete` | request, where waits are missing | bool, false |
//! | `gotrace.time.{on_cpu,descheduled,throttled,run_queue,world_stopped,syscall,gc_assist}`, `gotrace.time.blocked.<reason>`, spaces as `_` | request, where not 0; they add up to its duration | int, nanoseconds |
//! | `gotrace.wait.reason` | wait | string |
//! | `network.peer.address`, `network.peer.port` | wait for a connection | string, int |
//! | `gotrace.waker.kind`: `goroutine`, `netpoll`, `timer`, `gc`, `unknown`; `gotrace.waker.goroutine.id` | wait | string, int |
//! | `gotrace.wait.cause` | wait that a goroutine ended: what that one did meanwhile, and who ended what it waited for | list of strings |

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value},
    trace::v1::{self as trace, Status, span::SpanKind, status::StatusCode},
};

use super::convert::{FLAGS, attribute, int, link, peer_of, place, text};
use gotrace_model::{
    metrics::{CODE, OWN_CODE},
    requests::{Children, Ended, Protocol, Request, code_of_grpc},
};

/// The parent is another program's (`SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`).
const REMOTE: u32 = 0x200;

fn attributes_of(request: &Request) -> Vec<KeyValue> {
    let Request { name, status, .. } = request;
    let mut attributes = Vec::new();
    if name.protocol == Protocol::Grpc {
        attributes.push(text("rpc.system.name", "grpc"));
        if let Some(route) = &name.route {
            attributes.push(text("rpc.method", route.trim_start_matches('/')));
        }
        if let Some(code) = status.and_then(code_of_grpc) {
            attributes.push(text("rpc.response.status_code", code));
        }
    } else if !matches!(name.protocol, Protocol::Span | Protocol::Function) {
        if let Some(method) = name.known_method() {
            attributes.push(text("http.request.method", method));
        }
        if let Some(route) = &name.route {
            attributes.push(text("http.route", route));
        }
        if let Some(path) = &request.path {
            attributes.push(text("url.path", path));
        }
        if let Some(status) = status {
            attributes.push(int("http.response.status_code", (*status).into()));
        }
        let version = if name.protocol == Protocol::Http2 { "2" } else { "1.1" };
        attributes.push(text("network.protocol.version", version));
    }
    if let Some(error) = error_type(request) {
        attributes.push(text("error.type", &error));
    }
    if let (None, Some(handler)) = (&name.route, &name.handler) {
        place(&mut attributes, &CODE, handler);
    }
    attributes.push(int("gotrace.goroutine.id", request.goid));
    if let Some(ended) = request.ended {
        attributes.push(text("gotrace.request.ended", ended.name()));
    }
    if !request.waits_complete {
        attributes.push(attribute("gotrace.request.waits_complete", any_value::Value::BoolValue(false)));
    }
    if let Some(children) = request.children.filter(|children| *children != Children::default()) {
        attributes.push(int("gotrace.request.children", children.goroutines));
        attributes.push(int("gotrace.request.children_left_running", children.left_running));
    }
    for (state, ns) in request.time.states().filter(|(_, ns)| *ns > 0) {
        attributes.push(int(&format!("gotrace.time.{state}"), ns));
    }
    for (reason, ns) in request.time.blocked().filter(|(_, ns)| *ns > 0) {
        attributes.push(int(&format!("gotrace.time.blocked.{}", reason.replace(' ', "_")), ns));
    }
    attributes
}

/// Why a request counts as failed, on the server's side; `None` where it does not.
fn error_type(request: &Request) -> Option<String> {
    let protocol = request.name.protocol;
    match request.status {
        Some(status) if !protocol.is_error(status) => None,
        Some(status) if protocol == Protocol::Grpc => {
            Some(code_of_grpc(status).unwrap_or_default().to_owned())
        }
        Some(_) if protocol == Protocol::Span => Some("_OTHER".to_owned()),
        Some(status) => Some(status.to_string()),
        None => request
            .ended
            .filter(|ended| matches!(ended, Ended::Panic | Ended::GoroutineExit))
            .map(|ended| ended.name().to_owned()),
    }
}

/// The span of a request.
pub(super) fn request(request: &Request) -> trace::Span {
    let Request { context, parent_span_id, own_span, goroutine, name, .. } = request;
    let title = match (&name.route, name.protocol) {
        (Some(route), Protocol::Grpc) => route.trim_start_matches('/').to_owned(),
        (Some(span), Protocol::Span) => span.to_string(),
        (Some(route), _) => format!("{} {route}", name.known_method().unwrap_or("HTTP")),
        (None, Protocol::Span) => "span".to_owned(),
        (None, Protocol::Function) => name.text(),
        (None, _) => name.known_method().unwrap_or("HTTP").to_owned(),
    };
    let parent = parent_span_id.unwrap_or(goroutine.span_id);
    trace::Span {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        parent_span_id: parent.to_vec(),
        flags: if parent_span_id.is_some() && own_span.is_none() { FLAGS | REMOTE } else { FLAGS },
        name: title,
        // The program's own span is the server's.
        kind: if own_span.is_some() { SpanKind::Internal } else { SpanKind::Server }.into(),
        start_time_unix_nano: request.start_unix_nano,
        end_time_unix_nano: request.start_unix_nano.saturating_add(request.duration_ns),
        attributes: attributes_of(request),
        links: vec![link(goroutine, "goroutine")],
        status: error_type(request).map(|_| Status { code: StatusCode::Error.into(), ..Status::default() }),
        ..Default::default()
    }
}

/// The span of one of its waits; an empty one where there is none of this number.
pub(super) fn wait(request: &Request, n: usize) -> trace::Span {
    let Some(wait) = request.waits.get(n) else { return trace::Span::default() };
    let mut attributes = Vec::new();
    if let Some(site) = &wait.site {
        place(&mut attributes, &CODE, site);
    }
    if let Some(own) = wait.own_code.as_ref().filter(|own| wait.site.as_ref() != Some(own)) {
        place(&mut attributes, &OWN_CODE, own);
    }
    attributes.push(int("gotrace.goroutine.id", request.goid));
    attributes.push(text("gotrace.wait.reason", &wait.reason));
    if let Some(peer) = &wait.peer {
        attributes.extend(peer_of(peer));
    }
    attributes.push(text("gotrace.waker.kind", wait.ended_by));
    if let Some(goid) = wait.ended_by_goid {
        attributes.push(int("gotrace.waker.goroutine.id", goid));
    }
    if !wait.causes.is_empty() {
        let value = |text| AnyValue { value: Some(any_value::Value::StringValue(text)) };
        let values = wait.causes.iter().map(|cause| value(crate::requests::cause(cause))).collect();
        let list = any_value::Value::ArrayValue(ArrayValue { values });
        attributes.push(attribute("gotrace.wait.cause", list));
    }
    let start = request.start_unix_nano.saturating_add(wait.offset_ns);
    trace::Span {
        trace_id: request.context.trace_id.to_vec(),
        span_id: wait.span_id.to_vec(),
        parent_span_id: request.context.span_id.to_vec(),
        flags: FLAGS,
        name: wait.reason.to_string(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(wait.duration_ns),
        attributes,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use gotrace_model::{
        SpanContext,
        requests::{OwnSpan, RouteName, TimeSpent},
    };

    use super::*;

    fn sample(protocol: Protocol, route: &str) -> Request {
        Request {
            id: 1,
            context: SpanContext { trace_id: [1; 16], span_id: [2; 8] },
            parent_span_id: Some([3; 8]),
            path: None,
            own_span: None,
            goroutine: SpanContext { trace_id: [4; 16], span_id: [5; 8] },
            name: RouteName { protocol, method: None, route: Some(route.into()), handler: None },
            status: None,
            start_unix_nano: 10,
            duration_ns: 5,
            goid: 7,
            ended: Some(Ended::Normal),
            time: TimeSpent::default(),
            children: None,
            waits: Vec::new(),
            waits_complete: true,
            now: None,
        }
    }

    #[test]
    fn a_request_is_the_servers_span_where_the_program_has_none() {
        let seen = request(&sample(Protocol::Http1, "/x/{id}"));
        assert_eq!((seen.kind, seen.flags), (SpanKind::Server.into(), FLAGS | REMOTE));
        let own_span = Some(OwnSpan { parent_span_id: None });
        let seen = request(&Request { own_span, ..sample(Protocol::Http1, "/x/{id}") });
        assert_eq!((seen.kind, seen.flags), (SpanKind::Internal.into(), FLAGS));
        assert_eq!((seen.trace_id, seen.parent_span_id), (vec![1; 16], vec![3; 8]));
    }

    #[test]
    fn a_span_of_the_program_has_its_name_and_none_of_https_attributes() {
        let own_span = Some(OwnSpan { parent_span_id: None });
        let seen = request(&Request { own_span, status: Some(1), ..sample(Protocol::Span, "work off /tmp") });
        assert_eq!(seen.name, "work off /tmp");
        let names: Vec<_> = seen.attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(names, ["error.type", "gotrace.goroutine.id", "gotrace.request.ended"]);
        assert!(seen.status.is_some());
        let seen = request(&Request { own_span, status: Some(0), ..sample(Protocol::Span, "work") });
        assert!(seen.status.is_none());
    }
}
