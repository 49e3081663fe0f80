//! Fields of requests, responses, streams and spans, from the binary's type descriptors.

use super::{
    super::elf::Elf,
    FieldPath, Requests, Routes, Server, routers,
    types::{Struct, Types},
};

/// A field to look for: what outputs call it, and its path by the names of fields.
pub(super) type Field = (&'static str, &'static [&'static str]);

/// In the order of [`SERVER_REQUEST`].
pub(super) const REQUEST: [Field; 5] = [
    ("http.request.method", &["Method"]),
    ("http.request.header", &["Header"]),
    ("http.request.proto_major", &["ProtoMajor"]),
    ("http.request.ctx", &["ctx"]),
    ("http.request.url.path", &["URL", "Path"]),
];
/// What it is made of from Go 1.27 on, of HTTP/2.
pub(super) const SERVER_REQUEST: [Field; 5] = [
    ("http2.server_request.method", &["Method"]),
    ("http2.server_request.header", &["Header"]),
    ("http2.server_request.proto_major", &["ProtoMajor"]),
    ("http2.server_request.context", &["Context"]),
    ("http2.server_request.url.path", &["URL", "Path"]),
];
const HOST: [Field; 1] = [("http.request.host", &["Host"])];
const RESPONSE: [Field; 3] = [
    ("http.response.status", &["status"]),
    ("http.response.request", &["req"]),
    ("http.response.written", &["written"]),
];
/// The state is another's as soon as the writer is done.
const HTTP2: [Field; 1] = [("http2.writer.status", &["rws", "status"])];
const X_HTTP2: [Field; 1] = [("x_http2.writer.status", &["rws", "status"])];
/// Up to gRPC 1.68.
const STREAM: [Field; 2] = [("grpc.stream.method", &["method"]), ("grpc.stream.transport", &["st"])];
/// Its stream is a pointer up to 1.71, and lies within it later.
const SERVER_STREAM: [Field; 2] =
    [("grpc.stream.method", &["Stream", "method"]), ("grpc.stream.transport", &["st"])];
const STATUS: [Field; 1] = [("grpc.status.code", &["s", "Code"])];
const SPAN: [Field; 9] = [
    ("otel.span.trace_id", &["spanContext", "traceID"]),
    ("otel.span.span_id", &["spanContext", "spanID"]),
    ("otel.span.parent_trace_id", &["parent", "traceID"]),
    ("otel.span.parent_span_id", &["parent", "spanID"]),
    ("otel.span.parent_remote", &["parent", "remote"]),
    ("otel.span.kind", &["spanKind"]),
    ("otel.span.status", &["status", "Code"]),
    ("otel.span.name", &["name"]),
    ("otel.span.start_time", &["startTime"]),
];

const TRANSPORT: &str = "google.golang.org/grpc/internal/transport";

/// All structures that are looked for.
const STRUCTS: [&str; 14] = [
    "http.Request",
    "http.response",
    "http.http2responseWriter",
    "http2.responseWriter",
    "http2.ServerRequest",
    "transport.Stream",
    "transport.ServerStream",
    "status.Status",
    "trace.recordingSpan",
    "gin.Context",
    "echo.Context",
    "echo.context",
    "chi.Context",
    "mux.Route",
];

/// Adds what the descriptors tell of the servers that were found.
pub(super) fn read(elf: &Elf<'_>, module: Option<u64>, minor: u32, old_mux: bool, requests: &mut Requests) {
    // The offset of a field was packed with a flag before.
    let types = (minor >= 19).then(|| Types::find(elf, module, minor, &STRUCTS)).flatten();
    let mut reader = Reader { types: types.as_ref(), requests };
    if reader.types.is_none() {
        let why = match (minor, module) {
            (..19, _) => "they are not read before Go 1.19",
            (_, None) => "the binary has no module data",
            _ => "the module data do not tell where they are",
        };
        reader.requests.missing.push(format!("offsets of fields: no type descriptors: {why}"));
    }
    for server in reader.requests.servers.clone() {
        match server {
            Server::Function => {}
            Server::Http => {
                if let Some(request) = reader.structure("http.Request", "net/http", &REQUEST) {
                    reader.structure("http.Request", "net/http", &HOST);
                    reader.headers(request);
                    reader.requests.routes = Some(reader.routes(request, old_mux));
                } else {
                    let why = "the layout of http.Request was not found";
                    reader.requests.routes = Some((Routes::Handler, why));
                }
                reader.structure("http.response", "net/http", &RESPONSE);
            }
            Server::Http2 => {
                let names = [
                    ("http.http2responseWriter", "net/http"),
                    ("http2.responseWriter", "net/http/internal/http2"),
                ];
                reader.first_of(&names, &[&HTTP2, &HTTP2]);
            }
            Server::XHttp2 if reader.requests.is_wrapped() => {
                reader.structure("http2.ServerRequest", "net/http/internal/http2", &SERVER_REQUEST);
            }
            Server::XHttp2 => {
                reader.structure("http2.responseWriter", "golang.org/x/net/http2", &X_HTTP2);
            }
            Server::Grpc => {
                let names = [("transport.ServerStream", TRANSPORT), ("transport.Stream", TRANSPORT)];
                reader.first_of(&names, &[&SERVER_STREAM, &STREAM]);
                reader.structure("status.Status", "google.golang.org/grpc/internal/status", &STATUS);
            }
            Server::OpenTelemetry => {
                let package = "go.opentelemetry.io/otel/sdk/trace";
                if let Some(span) = reader.structure("trace.recordingSpan", package, &SPAN) {
                    reader.requests.span_type = reader.types.and_then(|types| types.pointer_to(span));
                    if reader.requests.span_type.is_none() {
                        reader.requests.missing.push(format!("the type of *{package}.recordingSpan"));
                    }
                }
            }
            Server::Gin | Server::Echo | Server::Chi | Server::Gorilla => routers::read(&mut reader, server),
        }
    }
}

pub(super) struct Reader<'a, 'r> {
    pub types: Option<&'a Types<'a>>,
    pub requests: &'r mut Requests,
}

impl Reader<'_, '_> {
    /// Fields of a structure, which is returned. Without descriptors the reason stands already.
    fn structure(&mut self, name: &'static str, package: &str, fields: &[Field]) -> Option<Struct> {
        self.first_of(&[(name, package)], &[fields])
    }

    /// The same as the first of these has them of which there is all.
    pub fn either(&mut self, name: &'static str, package: &str, fields: &[&[Field]]) -> Option<Struct> {
        let types = self.types?;
        let found = types.named(name, package);
        let is_there = |fields: &&&[Field]| {
            found.is_some_and(|found| fields.iter().all(|(_, path)| types.path(found, path).is_ok()))
        };
        let fields = fields.iter().find(is_there).or(fields.first())?;
        self.structure(name, package, fields)
    }

    /// The same of the first of some structures that the binary has.
    fn first_of(&mut self, names: &[(&'static str, &str)], fields: &[&[Field]]) -> Option<Struct> {
        let types = self.types?;
        let mut all = names.iter().zip(fields);
        let found =
            all.find_map(|(&(name, package), fields)| Some((types.named(name, package)?, name, fields)));
        let Some((found, name, fields)) = found else {
            let (name, package) = names.first()?;
            self.requests.missing.push(format!("fields of {name}: no such type of {package} is described"));
            return None;
        };
        for &(field, path) in *fields {
            match types.path(found, path) {
                Ok(steps) => {
                    self.requests.fields.insert(field, FieldPath(steps));
                }
                Err(n) => {
                    let known = path.get(..=n).unwrap_or(path).join(".");
                    self.requests.missing.push(format!("{field}: {name} has no field {known}"));
                }
            }
        }
        Some(found)
    }

    fn headers(&mut self, request: Struct) {
        let map = self.types.and_then(|types| types.map(request, "Header"));
        if map.is_none() {
            let why = "http.Request.Header is not laid out as any known map";
            self.requests.missing.push(format!("headers of requests: {why}"));
        }
        self.requests.headers = map;
    }

    /// How requests can be told apart; adds the field that tells it.
    fn routes(&mut self, request: Struct, old_mux: bool) -> (Routes, &'static str) {
        let Some(types) = self.types else { return (Routes::Handler, "there are no type descriptors") };
        let named: [(Field, Routes, &str); 2] = [
            (
                ("http.request.pattern", &["Pattern"]),
                Routes::Pattern,
                "by Request.Pattern, where a ServeMux sets it",
            ),
            (
                ("http.request.pattern", &["pat", "str"]),
                Routes::Pat,
                "by the pattern behind Request.pat, where a ServeMux sets it",
            ),
        ];
        let found = named.into_iter().find_map(|((name, path), routes, how)| {
            Some((name, types.path(request, path).ok()?, routes, how))
        });
        let Some((name, steps, routes, how)) = found else {
            return (Routes::Handler, "by the handler's function only: this net/http has no Request.Pattern");
        };
        self.requests.fields.insert(name, FieldPath(steps));
        if old_mux {
            return (
                Routes::Handler,
                "by the handler's function only: its ServeMux is the old one, which sets no pattern (GODEBUG \
                 httpmuxgo121=1, as go.mod or the program says)",
            );
        }
        (routes, how)
    }
}
