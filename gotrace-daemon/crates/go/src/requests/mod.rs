//! Request servers in a binary: where their requests begin and end, and how to read what they are.
//!
//! Probe points are found as those of the runtime are; layouts come from the binary's own type descriptors
//! (`types`), so that no table of versions of `net/http`, gRPC or OpenTelemetry is needed. What is not
//! found is told with the reason.

mod functions;
mod layout;
mod plan;
mod points;
mod routers;
mod types;

use std::{borrow::Cow, collections::BTreeMap};

use gotrace_common::request::{CodeRange, LIBRARIES};

use serde::Serialize;

use super::{Binary, Error, elf::Elf, moduledata, plan::Planner, scan::Scan, symtab::Symbols};

/// What a binary has that serves requests, or records spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Server {
    /// `net/http`, HTTP/1.1; its begin is that of HTTP/2 too.
    #[serde(rename = "net/http")]
    Http,
    /// HTTP/2 of `net/http`.
    #[serde(rename = "net/http HTTP/2")]
    Http2,
    /// `golang.org/x/net/http2`.
    #[serde(rename = "golang.org/x/net/http2")]
    XHttp2,
    /// gRPC.
    #[serde(rename = "google.golang.org/grpc")]
    Grpc,
    /// The program's own spans, by the OpenTelemetry SDK.
    #[serde(rename = "go.opentelemetry.io/otel/sdk")]
    OpenTelemetry,
    /// A router behind one of those of HTTP, which tells the routes of its requests: gin.
    #[serde(rename = "github.com/gin-gonic/gin")]
    Gin,
    /// The same: echo.
    #[serde(rename = "github.com/labstack/echo")]
    Echo,
    /// The same: chi.
    #[serde(rename = "github.com/go-chi/chi")]
    Chi,
    /// The same: gorilla/mux.
    #[serde(rename = "github.com/gorilla/mux")]
    Gorilla,
    /// Functions that the user has named.
    #[serde(rename = "function")]
    Function,
}

impl Server {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "net/http",
            Self::Http2 => "net/http HTTP/2",
            Self::XHttp2 => "golang.org/x/net/http2",
            Self::Grpc => "google.golang.org/grpc",
            Self::OpenTelemetry => "go.opentelemetry.io/otel/sdk",
            Self::Gin => "github.com/gin-gonic/gin",
            Self::Echo => "github.com/labstack/echo",
            Self::Chi => "github.com/go-chi/chi",
            Self::Gorilla => "github.com/gorilla/mux",
            Self::Function => "function",
        }
    }

    /// Whether it tells routes of others' requests, and serves none itself.
    #[must_use]
    pub const fn is_router(self) -> bool {
        matches!(self, Self::Gin | Self::Echo | Self::Chi | Self::Gorilla)
    }
}

/// What a hit of a request's probe means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// A request begins.
    Begin,
    /// The same, with what the request is made of.
    #[serde(rename = "begin")]
    WrappedBegin,
    /// A router looks for the request's path.
    Lookup,
    /// The request's route is about to be found, in a copy of it where a middleware made one; with a router but that of
    /// `net/http` it is known.
    Route,
    /// The same, with a value that may be the route.
    #[serde(rename = "route")]
    RouteValue,
    /// A function is called as a handler of it.
    Handler,
    /// The handler takes over the connection.
    Hijack,
    /// A request of `net/http` is answered as a call of gRPC's, or becomes a connection of HTTP/2's.
    Carried,
    /// A goroutine panics, which may serve one; of a named function, a panic is recovered.
    Panic,
    /// The handler is done.
    End,
}

impl Moment {
    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin | Self::WrappedBegin => "begin",
            Self::Lookup => "lookup",
            Self::Route | Self::RouteValue => "route",
            Self::Handler => "handler",
            Self::Hijack => "hijack",
            Self::Carried => "carried",
            Self::Panic => "panic",
            Self::End => "end",
        }
    }
}

/// Where a request can be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Whose request.
    pub server: Server,
    /// What a hit means.
    pub moment: Moment,
    /// Function that holds the instruction.
    pub function: Cow<'static, str>,
    /// Link-time address of the instruction.
    pub address: u64,
    /// Its offset in the file.
    pub file_offset: u64,
    /// The instruction.
    pub instruction: String,
    /// Whether the kernel emulates it.
    pub emulated: bool,
    /// What is in which argument register there ([`super::Arch::argument_register`]), by name.
    pub values: &'static [(&'static str, u8)],
}

/// How to read a field: bytes to go on from where a value points; after each but the last of them a pointer
/// is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct FieldPath(pub Vec<u32>);

/// How entries of an `http.Header` lie in memory: maps of buckets with eight entries each up to Go 1.23, Swiss
/// maps with groups of eight from Go 1.24 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderMap {
    /// Swiss maps.
    pub swiss: bool,
    /// Bytes of a bucket, whose last word points to the next, or of a group.
    pub size: u32,
    /// Where the first key is in it, a string.
    pub keys: u32,
    /// From a key to the next.
    pub key_stride: u32,
    /// Where the first element is in it, a slice of strings.
    pub elements: u32,
    /// From an element to the next.
    pub element_stride: u32,
}

/// How requests of `net/http` can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Routes {
    /// By `Request.Pattern`, at the request's end (Go 1.23 and later).
    Pattern,
    /// By the pattern that `Request.pat` points to (Go 1.22).
    Pat,
    /// By the handler's function alone.
    Handler,
}

/// Code by which goroutines that the runtime and servers start for themselves are told from those that are started for a
/// request, as [`gotrace_common::RequestConfig`] has it; link-time addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeRanges {
    /// Of these.
    pub libraries: [CodeRange; LIBRARIES],
    /// What of that starts goroutines for handlers.
    pub handler_starts: CodeRange,
}

/// What a binary tells of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// What it has that serves requests, in order; empty: nothing that is known.
    pub servers: Vec<Server>,
    /// Where to probe, by server and moment.
    pub points: Vec<Point>,
    /// Fields by what they are, as `http.request.url.path`; named by the value that they are reached from.
    pub fields: BTreeMap<&'static str, FieldPath>,
    /// How `http.Request.Header` lies in memory.
    pub headers: Option<HeaderMap>,
    /// Link-time address of the type of a recording span, which tells it from one that is not sampled.
    pub span_type: Option<u64>,
    /// The same of gorilla/mux's routes, which tells them from other values of a request's.
    pub route_type: Option<u64>,
    /// How requests of `net/http` can be told apart, and why; `None` without `net/http`.
    pub routes: Option<(Routes, &'static str)>,
    /// The code of the runtime and of servers.
    pub code: CodeRanges,
    /// What was not found, and why: sentences.
    pub missing: Vec<String>,
    /// Functions that the user has named and whose calls cannot be traced, and why: sentences.
    pub refused: Vec<String>,
}

impl Requests {
    /// Whether `golang.org/x/net/http2` leaves the work to `net/http`.
    fn is_wrapped(&self) -> bool {
        self.points.iter().any(|point| point.moment == Moment::WrappedBegin)
    }
}

impl Binary {
    /// What the executable tells of its requests. Input is the bytes that this was parsed from, and functions of which each
    /// call is one, named as tracebacks print them (`main.(*Queue).work`, `main.each[...]`). Takes as long as parsing: for a
    /// question now and then.
    ///
    /// # Errors
    /// As [`Binary::parse`].
    pub fn requests(&self, executable: &[u8], functions: &[String]) -> Result<Requests, Error> {
        let elf = Elf::parse(executable)?;
        let minor = self.version.minor;
        let found = moduledata::find(&elf, minor)?;
        let names: Vec<_> = points::names().chain(routers::names()).collect();
        let prefixes = [&points::PREFIXES[..], &routers::PREFIXES].concat();
        let scan = Scan::of(&found, &names, &prefixes)?;
        let planner = Planner {
            elf: &elf,
            found: &found,
            scan: &scan,
            symbols: &Symbols::default(),
            minor,
            goid: u32::from(self.layout.goid),
        };
        let mut requests = Requests::default();
        functions::find(&planner, functions, &mut requests);
        points::find(&planner, &mut requests);
        routers::find(&planner, &mut requests);
        if !requests.servers.is_empty() {
            requests.code = functions::libraries(&planner);
            let old_mux = self
                .build
                .settings
                .get("DefaultGODEBUG")
                .is_some_and(|all| all.split(',').any(|s| s == "httpmuxgo121=1"));
            layout::read(&elf, found.module, minor, old_mux, &mut requests);
        }
        Ok(requests)
    }
}
