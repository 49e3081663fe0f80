//! Where requests begin and end: the functions, and what their arguments are.
//!
//! Arguments are those of the functions' signatures, in the order of Go's register ABI; an interface takes
//! two registers.

use std::iter;

use super::{
    super::{Operand, code::Place, plan::Planner},
    Moment, Point, Requests, Server,
};

/// A function to probe. Of those with the same server and moment, a binary has one, but for gRPC's two ways to end.
pub(super) struct Wanted {
    server: Server,
    moment: Moment,
    function: &'static str,
    /// Probed at the one call of this function, else near its entry.
    at_call: Option<&'static str>,
    values: &'static [(&'static str, u8)],
}

impl Wanted {
    /// Probed at the one call of a function instead.
    pub const fn at_call(self, callee: &'static str) -> Self {
        Self { at_call: Some(callee), ..self }
    }

    /// The function.
    pub const fn function(&self) -> &'static str {
        self.function
    }

    /// What is to be looked for.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        iter::once(self.function).chain(self.at_call)
    }
}

pub(super) const fn at_entry(
    server: Server,
    moment: Moment,
    function: &'static str,
    values: &'static [(&'static str, u8)],
) -> Wanted {
    Wanted { server, moment, function, at_call: None, values }
}

const WRITER: &[(&str, u8)] = &[("writer", 0)];
const STATUS: &[(&str, u8)] = &[("stream", 1), ("status", 2)];

/// Serves one request of HTTP/2; without it, that package leaves the work to `net/http` (from Go 1.27 on).
const X_HTTP2: &str = "golang.org/x/net/http2.(*serverConn).runHandler";

const WANTED: [Wanted; 22] = [
    at_entry(
        Server::Http,
        Moment::Begin,
        "net/http.serverHandler.ServeHTTP",
        &[("writer", 2), ("request", 3)],
    ),
    at_entry(Server::Http, Moment::Route, "net/http.(*ServeMux).ServeHTTP", &[("request", 3)]),
    at_entry(Server::Http, Moment::Handler, "net/http.HandlerFunc.ServeHTTP", &[("handler", 0)]),
    at_entry(Server::Http, Moment::Hijack, "net/http.(*response).Hijack", &[]),
    at_entry(Server::Http, Moment::Panic, "runtime.gopanic", &[]),
    at_entry(Server::Http, Moment::End, "net/http.(*response).finishRequest", &[("response", 0)]),
    at_entry(Server::Http2, Moment::End, "net/http.(*http2responseWriter).handlerDone", WRITER),
    at_entry(Server::Http2, Moment::End, "net/http/internal/http2.(*responseWriter).handlerDone", WRITER),
    at_entry(Server::XHttp2, Moment::Begin, X_HTTP2, &[("writer", 1), ("request", 2)]),
    at_entry(
        Server::XHttp2,
        Moment::WrappedBegin,
        "net/http/internal/http2.(*serverConn).runHandler",
        &[("writer", 1), ("server_request", 2)],
    ),
    // The one, or the other where that is inlined.
    at_entry(Server::XHttp2, Moment::Carried, "golang.org/x/net/http2.(*Server).ServeConn", &[]),
    at_entry(Server::XHttp2, Moment::Carried, "golang.org/x/net/http2.(*Server).serveConn", &[]),
    at_entry(Server::XHttp2, Moment::End, "golang.org/x/net/http2.(*responseWriter).handlerDone", WRITER),
    at_entry(Server::Grpc, Moment::Begin, "google.golang.org/grpc.(*Server).handleStream", &[("stream", 3)]),
    at_entry(
        Server::Grpc,
        Moment::End,
        "google.golang.org/grpc/internal/transport.(*http2Server).writeStatus",
        STATUS,
    ),
    at_entry(
        Server::Grpc,
        Moment::End,
        "google.golang.org/grpc/internal/transport.(*http2Server).WriteStatus",
        STATUS,
    ),
    at_entry(
        Server::Grpc,
        Moment::End,
        "google.golang.org/grpc/internal/transport.(*serverHandlerTransport).writeStatus",
        STATUS,
    ),
    at_entry(
        Server::Grpc,
        Moment::End,
        "google.golang.org/grpc/internal/transport.(*serverHandlerTransport).WriteStatus",
        STATUS,
    ),
    at_entry(Server::Grpc, Moment::Carried, "google.golang.org/grpc.(*Server).ServeHTTP", &[]),
    // With a span in the context's value, as interface: its type and itself.
    at_entry(
        Server::OpenTelemetry,
        Moment::Begin,
        "go.opentelemetry.io/otel/sdk/trace.(*tracer).Start",
        &[("type", 4), ("span", 5)],
    )
    .at_call("context.WithValue"),
    at_entry(
        Server::OpenTelemetry,
        Moment::End,
        "go.opentelemetry.io/otel/sdk/trace.(*recordingSpan).End",
        &[("span", 0)],
    ),
    // Where a goroutine goes on after a panic: on the scheduler's stack, when it is known with which frame.
    Wanted {
        server: Server::Function,
        moment: Moment::Panic,
        function: "runtime.recovery",
        at_call: Some("runtime.gogo"),
        values: &[],
    },
];

/// What the names of these functions, and of those whose calls are probed, begin with.
pub(super) const PREFIXES: [&str; 8] = [
    "runtime.gopanic",
    "runtime.recovery",
    "runtime.gogo",
    "net/http",
    "golang.org/x/net/http2.",
    "google.golang.org/grpc",
    "go.opentelemetry.io/otel/sdk/trace.",
    "context.WithValue",
];

/// All names to look for.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    WANTED.iter().flat_map(Wanted::names)
}

/// The servers that a binary has, and the points of each; what is missing of them.
pub(super) fn find(planner: &Planner<'_>, requests: &mut Requests) {
    let there = |w: &Wanted| {
        planner.scan.addresses.contains_key(w.function) || !planner.scan.holders(w.function).is_empty()
    };
    // All else is there without a server too, or not with each.
    let tells = |w: &Wanted| matches!(w.moment, Moment::Begin | Moment::WrappedBegin | Moment::End);
    let carries = |w: &Wanted| w.server == Server::XHttp2 && w.moment == Moment::Carried && there(w);
    let is_own = WANTED.iter().any(|w| w.function == X_HTTP2 && there(w));
    let is_wrapped = !is_own && WANTED.iter().any(carries);
    let applies = |w: &&Wanted| match (w.server, w.moment) {
        (_, Moment::WrappedBegin) => is_wrapped,
        (Server::XHttp2, Moment::Begin | Moment::End) => is_own,
        _ => true,
    };
    let wanted_here: Vec<&Wanted> = WANTED.iter().filter(applies).collect();
    for wanted in wanted_here.iter().filter(|w| tells(w) && there(w)) {
        if !requests.servers.contains(&wanted.server) {
            requests.servers.push(wanted.server);
        }
    }
    for wanted in wanted_here.iter().filter(|w| w.moment == Moment::WrappedBegin && !there(w)) {
        requests.missing.push(absent(wanted, "is not in the binary"));
    }
    let mut done: Vec<(Server, Moment)> = Vec::new();
    for wanted in wanted_here.iter().copied().filter(|w| requests.servers.contains(&w.server)) {
        let key = (wanted.server, wanted.moment);
        let holders = planner.scan.holders(wanted.function);
        if there(wanted) {
            done.push(key);
        } else {
            let others = WANTED.iter().filter(|o| (o.server, o.moment) == key);
            let last = others.clone().next_back().is_some_and(|o| std::ptr::eq(o, wanted));
            if last && !done.contains(&key) && tells(wanted) {
                requests.missing.push(absent(wanted, "is not in the binary"));
            }
            continue;
        }
        if !planner.scan.addresses.contains_key(wanted.function) {
            let is_other =
                |o: &Wanted| (o.server, o.moment) == key && planner.scan.addresses.contains_key(o.function);
            // Who calls it is hit in the other one.
            if !tells(wanted) && WANTED.iter().any(is_other) {
                continue;
            }
            let why = format!("has no code of its own: the compiler inlined it into {}", holders.join(", "));
            requests.missing.push(absent(wanted, &why));
            continue;
        }
        match point(planner, wanted) {
            Ok(point) => {
                if !point.emulated {
                    requests
                        .missing
                        .push(absent(wanted, "begins with an instruction that the kernel single-steps"));
                }
                requests.points.push(point);
            }
            Err(why) => requests.missing.push(absent(wanted, &why)),
        }
        // What tells only details is no loss.
        if !holders.is_empty() && tells(wanted) {
            let (server, moment) = (wanted.server.name(), wanted.moment.name());
            let into = holders.join(", ");
            requests.missing.push(format!(
                "some requests of {server} have no {moment}: the compiler inlined {} into {into}",
                wanted.function
            ));
        }
    }
}

/// The import path of a function's package.
pub(super) fn package(function: &str) -> &str {
    let last = function.rfind('/').map_or(0, |at| at + 1);
    let end = function.get(last..).and_then(|name| name.find('.'));
    end.and_then(|end| function.get(..last + end)).unwrap_or(function)
}

fn absent(wanted: &Wanted, why: &str) -> String {
    let (server, moment) = (wanted.server.name(), wanted.moment.name());
    format!("{server}: no {moment}: {} {why}", wanted.function)
}

pub(super) fn point(planner: &Planner<'_>, wanted: &Wanted) -> Result<Point, String> {
    let address = |name| planner.scan.addresses.get(name).copied();
    let name_of = |a| planner.name_of(a);
    let entry = address(wanted.function).ok_or("is not in the binary")?;
    let code = planner.code(entry, &name_of).ok_or("has no code")?;
    let place = match wanted.at_call {
        None => {
            let kept: Vec<_> = wanted.values.iter().map(|&(_, n)| Operand::Argument(n)).collect();
            code.entry(&kept).ok_or("cannot be decoded")?
        }
        Some(callee) => {
            let calls = address(callee).map(|target| code.calls(target)).unwrap_or_default();
            match <[_; 1]>::try_from(calls) {
                Ok([(place, _)]) => place,
                Err(calls) => return Err(format!("calls {callee} {} times, not once", calls.len())),
            }
        }
    };
    let Place { offset, instruction, emulated } = place;
    let address = entry.wrapping_add(offset as u64);
    let file_offset = planner.elf.offset_of(address).ok_or("is not in the file")? as u64;
    Ok(Point {
        server: wanted.server,
        moment: wanted.moment,
        function: wanted.function.into(),
        address,
        file_offset,
        instruction,
        emulated,
        values: wanted.values,
    })
}
