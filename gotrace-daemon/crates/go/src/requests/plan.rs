//! What the kernel side is to know of a binary's requests: probes, and how fields are reached.

use gotrace_common::{
    RequestConfig,
    request::{
        ContextLayout, FieldPath as KernelPath, HeaderMap as KernelMap, MountedLayout, NO_STEP,
        RequestFields, RouterLayouts, SpanLayout,
    },
};

use super::{
    super::{Event, Operand, Probe},
    FieldPath, Moment, Point, Requests, Routes, Server,
    layout::{Field, REQUEST, SERVER_REQUEST},
};

impl Requests {
    /// Whether requests of a server can be traced: where they begin and end is known.
    #[must_use]
    pub fn can_trace(&self, server: Server) -> bool {
        if server == Server::Function {
            return self.servers.contains(&server);
        }
        let is_it = |p: &Point, server, moment| p.server == server && p.moment == moment && p.emulated;
        let has = |server, moment| self.points.iter().any(|p| is_it(p, server, moment));
        if server.is_router() {
            return self.can_trace(Server::Http) && self.can_read(server);
        }
        // Those of HTTP/2 begin where all of HTTP do.
        let begins = has(server, Moment::Begin)
            || matches!(server, Server::Http2 | Server::XHttp2) && has(Server::Http, Moment::Begin);
        let is_read = server != Server::OpenTelemetry || self.spans().is_some();
        // Where net/http does the work they end there.
        let ends =
            has(server, Moment::End) || has(server, Moment::WrappedBegin) && has(Server::Http2, Moment::End);
        begins && ends && is_read
    }

    /// Whether what a router knows can be read.
    fn can_read(&self, router: Server) -> bool {
        let RouterLayouts { gin, echo, chi, gorilla_template, .. } = self.routers();
        match router {
            Server::Gin => gin != RouterLayouts::NONE.gin,
            Server::Echo => echo != RouterLayouts::NONE.echo,
            Server::Chi => {
                let context = self.request_fields(&REQUEST).context;
                ![chi.patterns, chi.last, chi.parent, context].contains(&NO_STEP)
            }
            _ => gorilla_template != KernelPath::NONE,
        }
    }

    /// How what routers know is read, of those alone that have a point.
    fn routers(&self) -> RouterLayouts {
        let field = |server, name| {
            let is_there = self.points.iter().any(|p| p.server == server && p.emulated);
            self.fields.get(name).filter(|_| is_there).and_then(path)
        };
        let near = |server, name| match field(server, name) {
            Some(KernelPath { steps: [at, NO_STEP, _] }) => at,
            _ => NO_STEP,
        };
        let context = |server, pattern, request| {
            let layout = ContextLayout { pattern: near(server, pattern), request: near(server, request) };
            let is_whole = layout.pattern != NO_STEP && layout.request != NO_STEP;
            if is_whole { layout } else { RouterLayouts::NONE.gin }
        };
        RouterLayouts {
            gorilla_route: self.route_type.unwrap_or(0),
            gorilla_template: field(Server::Gorilla, "gorilla.route.template").unwrap_or_default(),
            gin: context(Server::Gin, "gin.context.pattern", "gin.context.request"),
            echo: context(Server::Echo, "echo.context.pattern", "echo.context.request"),
            chi: MountedLayout {
                patterns: near(Server::Chi, "chi.context.patterns"),
                last: near(Server::Chi, "chi.context.last"),
                parent: near(Server::Chi, "chi.context.parent"),
            },
            reserved: 0,
        }
    }

    /// How spans of the SDK are read; the type's address is that at link time. `None` where anything of it is not known.
    fn spans(&self) -> Option<SpanLayout> {
        let field = |name| match self.fields.get(name)?.0.as_slice() {
            [at] => u16::try_from(*at).ok(),
            _ => None,
        };
        Some(SpanLayout {
            recorded: self.span_type?,
            trace_id: field("otel.span.trace_id")?,
            span_id: field("otel.span.span_id")?,
            parent_trace_id: field("otel.span.parent_trace_id")?,
            parent_span_id: field("otel.span.parent_span_id")?,
            parent_remote: field("otel.span.parent_remote")?,
            kind: field("otel.span.kind")?,
            name: field("otel.span.name")?,
            status: field("otel.span.status")?,
        })
    }

    /// Whether what a request is made of can be read.
    fn reads_server_requests(&self) -> bool {
        let RequestFields { method, header, proto_major, .. } = self.request_fields(&SERVER_REQUEST);
        ![method, header, proto_major].contains(&KernelPath::NONE)
    }

    /// How what is read of a request as it begins is reached, by the names of the fields.
    fn request_fields(&self, fields: &[Field; 5]) -> RequestFields {
        let [method, header, proto_major, context, url_path] =
            fields.map(|(name, _)| self.fields.get(name).and_then(path).unwrap_or_default());
        let context = if context.steps[1] == NO_STEP { context.steps[0] } else { NO_STEP };
        RequestFields { method, path: url_path, header, proto_major, context }
    }

    /// Why there are no requests that can be traced, where there are none.
    #[must_use]
    pub fn why_none(&self) -> String {
        match self.missing.as_slice() {
            [] => {
                "neither a server of net/http or gRPC nor OpenTelemetry's SDK is in its executable".to_owned()
            }
            missing => missing.join("; "),
        }
    }

    /// The probes of servers whose requests can be traced: on instructions that the kernel emulates, but for returns of
    /// functions that the user has named.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let by_handler = self.routes.is_some_and(|(routes, _)| routes == Routes::Handler);
        let wanted = |p: &Point| match (p.server, p.moment) {
            // Where the mux tells the route nobody asks for the function.
            (Server::Http, Moment::Handler) => by_handler,
            (Server::Http, Moment::Route) => !by_handler,
            (_, Moment::WrappedBegin) => self.reads_server_requests(),
            _ => true,
        };
        let can_be = |p: &Point| p.emulated || p.server == Server::Function;
        let points = self.points.iter().filter(|p| can_be(p) && self.can_trace(p.server) && wanted(p));
        points
            .map(|p| Probe {
                event: Event::Request(p.server, p.moment),
                function: p.function.clone().into_owned(),
                address: p.address,
                file_offset: p.file_offset,
                instruction: p.instruction.clone(),
                emulated: p.emulated,
                operand: Operand::CurrentG,
            })
            .collect()
    }

    /// How the kernel side reads requests; without thresholds and classes of wait reasons, and with addresses as at link time.
    #[must_use]
    pub fn config(&self) -> RequestConfig {
        let field = |name| self.fields.get(name).and_then(path).unwrap_or_default();
        let patterns = self.routes.is_some_and(|(routes, _)| routes != Routes::Handler);
        RequestConfig {
            span: self.spans().filter(|_| self.can_trace(Server::OpenTelemetry)).unwrap_or_default(),
            routers: self.routers(),
            request: self.request_fields(&REQUEST),
            server_request: self.request_fields(&SERVER_REQUEST),
            pattern: if patterns { field("http.request.pattern") } else { KernelPath::NONE },
            http1_status: field("http.response.status"),
            http2_status: field("http2.writer.status"),
            x_http2_status: field("x_http2.writer.status"),
            grpc_method: field("grpc.stream.method"),
            grpc_code: field("grpc.status.code"),
            libraries: self.code.libraries,
            handler_starts: self.code.handler_starts,
            headers: self.headers.and_then(|map| headers(&map)).unwrap_or_default(),
            ..RequestConfig::default()
        }
    }
}

/// `None` where it has more steps, or longer ones, than the kernel side can go.
fn path(path: &FieldPath) -> Option<KernelPath> {
    let mut steps = [NO_STEP; 3];
    if path.0.is_empty() || path.0.len() > steps.len() {
        return None;
    }
    for (to, step) in steps.iter_mut().zip(&path.0) {
        *to = u16::try_from(*step).ok().filter(|step| *step != NO_STEP)?;
    }
    Some(KernelPath { steps })
}

fn headers(map: &super::HeaderMap) -> Option<KernelMap> {
    let short = |n: u32| u16::try_from(n).ok();
    Some(KernelMap {
        kind: if map.swiss { 2 } else { 1 },
        size: short(map.size)?,
        keys: short(map.keys)?,
        key_stride: short(map.key_stride)?,
        elements: short(map.elements)?,
        element_stride: short(map.element_stride)?,
        reserved: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_the_kernel_side_cannot_go_is_none() {
        let steps = |steps: &[u32]| path(&FieldPath(steps.to_vec())).map(|path| path.steps);
        assert_eq!(steps(&[8]), Some([8, NO_STEP, NO_STEP]));
        assert_eq!(steps(&[0, 16, 40]), Some([0, 16, 40]));
        for far in [&[][..], &[65_535], &[70_000], &[0, 1, 2, 3]] {
            assert_eq!(steps(far), None, "{far:?}");
        }
    }
}
