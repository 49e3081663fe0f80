//! Routers behind the servers of HTTP: where each knows the route of a request, and how it is read there.
//!
//! A router takes a context from a pool for each request, and puts it back when the handlers are done: with that call it
//! has the context at hand, and the route in it. That of gorilla/mux has the route at hand as it puts it into a copy of the
//! request.

use super::{
    super::plan::Planner,
    Moment, Requests, Server,
    layout::{Field, Reader},
    points::{Wanted, at_entry, package, point},
};

const PUT: &str = "sync.(*Pool).Put";
const CONTEXT: &[(&str, u8)] = &[("context", 2)];

/// A router, of one of its import paths.
struct Router {
    server: Server,
    /// Which each program has that uses it.
    function: &'static str,
    /// What is probed; of each the first that there is.
    points: &'static [&'static [Wanted]],
    /// What is read there, as one of these has it.
    structure: &'static str,
    fields: &'static [&'static [Field]],
}

const fn at_put(server: Server, function: &'static str) -> Wanted {
    at_entry(server, Moment::Route, function, CONTEXT).at_call(PUT)
}

/// For old ones, which take the path itself for the route where they have none.
const fn echo_lookup(function: &'static str) -> Wanted {
    at_entry(Server::Echo, Moment::Lookup, function, &[("path", 3)])
}

const ECHO: &[&[Field]] = &[&[("echo.context.pattern", &["path"]), ("echo.context.request", &["request"])]];
const CHI: &[&[Field]] = &[&[
    ("chi.context.patterns", &["RoutePatterns"]),
    ("chi.context.last", &["routePattern"]),
    ("chi.context.parent", &["parentCtx"]),
]];

/// Of several versions the newer one first.
const ROUTERS: [Router; 8] = [
    Router {
        server: Server::Gin,
        function: "github.com/gin-gonic/gin.(*Engine).ServeHTTP",
        points: &[&[at_put(Server::Gin, "github.com/gin-gonic/gin.(*Engine).ServeHTTP")]],
        structure: "gin.Context",
        fields: &[&[("gin.context.pattern", &["fullPath"]), ("gin.context.request", &["Request"])]],
    },
    Router {
        server: Server::Echo,
        function: "github.com/labstack/echo/v5.(*Echo).ServeHTTP",
        points: &[&[at_put(Server::Echo, "github.com/labstack/echo/v5.(*Echo).serveHTTP.deferwrap1")]],
        structure: "echo.Context",
        fields: ECHO,
    },
    Router {
        server: Server::Echo,
        function: "github.com/labstack/echo/v4.(*Echo).ServeHTTP",
        points: &[
            &[at_put(Server::Echo, "github.com/labstack/echo/v4.(*Echo).ServeHTTP")],
            &[echo_lookup("github.com/labstack/echo/v4.(*Router).Find")],
        ],
        structure: "echo.context",
        fields: ECHO,
    },
    Router {
        server: Server::Echo,
        function: "github.com/labstack/echo.(*Echo).ServeHTTP",
        points: &[
            &[at_put(Server::Echo, "github.com/labstack/echo.(*Echo).ServeHTTP")],
            &[echo_lookup("github.com/labstack/echo.(*Router).Find")],
        ],
        structure: "echo.context",
        fields: ECHO,
    },
    Router {
        server: Server::Chi,
        function: "github.com/go-chi/chi/v5.(*Mux).ServeHTTP",
        points: &[&[at_put(Server::Chi, "github.com/go-chi/chi/v5.(*Mux).ServeHTTP")]],
        structure: "chi.Context",
        fields: CHI,
    },
    Router {
        server: Server::Chi,
        function: "github.com/go-chi/chi/v4.(*Mux).ServeHTTP",
        points: &[&[at_put(Server::Chi, "github.com/go-chi/chi/v4.(*Mux).ServeHTTP")]],
        structure: "chi.Context",
        fields: CHI,
    },
    Router {
        server: Server::Chi,
        function: "github.com/go-chi/chi.(*Mux).ServeHTTP",
        points: &[&[at_put(Server::Chi, "github.com/go-chi/chi.(*Mux).ServeHTTP")]],
        structure: "chi.Context",
        fields: CHI,
    },
    Router {
        server: Server::Gorilla,
        function: "github.com/gorilla/mux.(*Router).ServeHTTP",
        points: &[&[
            at_entry(
                Server::Gorilla,
                Moment::Route,
                "github.com/gorilla/mux.requestWithRoute",
                &[("request", 0), ("route", 1)],
            ),
            // Up to 1.7. With the route among others, as an interface: its type and itself.
            at_entry(
                Server::Gorilla,
                Moment::RouteValue,
                "github.com/gorilla/mux.contextSet",
                &[("request", 0), ("type", 3), ("route", 4)],
            ),
        ]],
        structure: "mux.Route",
        fields: &[
            &[("gorilla.route.template", &["routeConf", "regexp", "path", "template"])],
            // Up to 1.6.
            &[("gorilla.route.template", &["regexp", "path", "template"])],
        ],
    },
];

/// What the names of these functions begin with.
pub(super) const PREFIXES: [&str; 5] = [
    "github.com/gin-gonic/gin.",
    "github.com/labstack/echo",
    "github.com/go-chi/chi",
    "github.com/gorilla/mux.",
    PUT,
];

/// All names to look for.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let points = ROUTERS.iter().flat_map(|r| r.points.iter().copied().flatten()).flat_map(Wanted::names);
    ROUTERS.iter().map(|r| r.function).chain(points)
}

/// Adds the routers that a binary has, and the points of each; what is missing of them.
pub(super) fn find(planner: &Planner<'_>, requests: &mut Requests) {
    for router in ROUTERS.iter().filter(|r| planner.scan.addresses.contains_key(r.function)) {
        let name = package(router.function);
        if requests.servers.contains(&router.server) {
            requests
                .missing
                .push(format!("{name}: no route: there is a newer version of it in the binary too"));
            continue;
        }
        requests.servers.push(router.server);
        let points: Result<Vec<_>, String> = router.points.iter().map(|all| first(planner, all)).collect();
        match points {
            Ok(points) => requests.points.extend(points),
            Err(why) => requests.missing.push(format!("{name}: no route: {why}")),
        }
    }
}

/// The first of these points that there is, on an instruction that the kernel emulates; else why there is none.
fn first(planner: &Planner<'_>, all: &[Wanted]) -> Result<super::Point, String> {
    let mut why = Vec::new();
    for wanted in all {
        match point(planner, wanted) {
            Ok(point) if point.emulated => return Ok(point),
            Ok(_) => why.push(format!("{} has no place that the kernel emulates", wanted.function())),
            Err(error) => why.push(format!("{} {error}", wanted.function())),
        }
    }
    Err(why.join(", "))
}

/// Adds the fields that are read of a router.
pub(super) fn read(reader: &mut Reader<'_, '_>, server: Server) {
    // Of which of its versions the points are.
    let function = reader.requests.points.iter().find(|p| p.server == server).map(|p| p.function.clone());
    let router = function.and_then(|function| {
        ROUTERS.iter().find(|r| r.server == server && package(r.function) == package(&function))
    });
    let Some(router) = router else { return };
    let found = reader.either(router.structure, package(router.function), router.fields);
    if server == Server::Gorilla {
        reader.requests.route_type = found.and_then(|found| reader.types?.pointer_to(found));
    }
}
