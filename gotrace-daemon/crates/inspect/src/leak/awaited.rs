//! Known places in libraries at which goroutines wait, by plain names: a database connection, a semaphore.
//!
//! Input: the functions of a stack, innermost first, as Go's tracebacks name them. Output: what the goroutine waits for
//! there; nothing where a function that is not of one of these libraries is inside of the place: then it is that
//! function that waits. Versions of modules, vendoring and type arguments make no difference. Each name is held
//! against two versions of its library by `tests/tests/live_places.rs`.

use std::borrow::Cow;

use crate::heap::Members;

/// What goroutines wait for at a known place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Awaited {
    /// A connection of a `database/sql.DB`.
    SqlConnection,
    /// A connection of a `pgxpool.Pool`.
    PgxConnection,
    /// A connection of a Redis client's pool.
    RedisConnection,
    /// A connection of a `net/http.Transport`.
    HttpConnection,
    /// A `golang.org/x/sync/semaphore.Weighted`.
    Semaphore,
    /// The limit of a `golang.org/x/sync/errgroup.Group`.
    ErrgroupSlot,
    /// Room in a full channel of empty elements, which counts as a semaphore does.
    Token,
    /// A `golang.org/x/time/rate.Limiter`.
    RateLimiter,
    /// A function in C.
    CgoCall,
    /// The resolver of names.
    Dns,
}

/// A function at which goroutines wait, without versions.
const PLACES: [(&str, Awaited); 14] = [
    ("database/sql.(*DB).conn", Awaited::SqlConnection),
    ("github.com/jackc/pgx/pgxpool.(*Pool).Acquire", Awaited::PgxConnection),
    ("github.com/redis/go-redis/internal/pool.(*ConnPool).waitTurn", Awaited::RedisConnection),
    ("github.com/redis/go-redis/internal/pool.(*ConnPool).getConn", Awaited::RedisConnection),
    ("github.com/go-redis/redis/internal/pool.(*ConnPool).waitTurn", Awaited::RedisConnection),
    ("net/http.(*Transport).getConn", Awaited::HttpConnection),
    ("golang.org/x/sync/semaphore.(*Weighted).Acquire", Awaited::Semaphore),
    ("golang.org/x/sync/errgroup.(*Group).Go", Awaited::ErrgroupSlot),
    ("golang.org/x/time/rate.(*Limiter).wait", Awaited::RateLimiter),
    ("golang.org/x/time/rate.(*Limiter).WaitN", Awaited::RateLimiter),
    ("net.(*Resolver).lookupIPAddr", Awaited::Dns),
    ("net.(*Resolver).exchange", Awaited::Dns),
    ("net.doBlockingWithCtx", Awaited::Dns),
    ("net._C_getaddrinfo", Awaited::Dns),
];

/// What pools of `pgxpool` are made of.
const PUDDLE: &str = "github.com/jackc/puddle.(*Pool).";

/// Packages, without versions, whose functions may be between a place and the runtime.
const BETWEEN: [&str; 12] = [
    "database/sql",
    "net",
    "net/http",
    "internal/singleflight",
    "context",
    "github.com/jackc/pgx/pgxpool",
    "github.com/jackc/puddle",
    "github.com/redis/go-redis/internal",
    "github.com/redis/go-redis/internal/pool",
    "github.com/go-redis/redis/internal/pool",
    "golang.org/x/sync/semaphore",
    "golang.org/x/time/rate",
];

/// Goroutines of libraries, by what they run: they refer to members of a pool for as long as somebody else keeps them.
const SERVANTS: [&str; 6] = [
    "database/sql.(*Rows).awaitDone",
    "database/sql.(*Tx).awaitDone",
    "database/sql.(*DB).connectionOpener",
    "net/http.(*persistConn).readLoop",
    "net/http.(*persistConn).writeLoop",
    "github.com/jackc/pgx/pgxpool.(*Pool).backgroundHealthCheck",
];

impl Awaited {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::SqlConnection,
        Self::PgxConnection,
        Self::RedisConnection,
        Self::HttpConnection,
        Self::Semaphore,
        Self::ErrgroupSlot,
        Self::Token,
        Self::RateLimiter,
        Self::CgoCall,
        Self::Dns,
    ];

    /// By the functions of a stack, innermost first.
    pub fn of<'a>(functions: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for function in functions {
            if function == "runtime.cgocall" {
                found = Some(Self::CgoCall);
                continue;
            }
            if found == Some(Self::CgoCall) && !function.starts_with("net.") {
                break;
            }
            if is_machinery(function) {
                continue;
            }
            let name = plain(function);
            match PLACES.iter().find(|(place, _)| is_in(&name, place)) {
                Some(&(_, awaited)) => found = Some(awaited),
                None if BETWEEN.contains(&package(&name)) => {}
                None => break,
            }
        }
        found
    }

    /// What is said of those that wait there.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::SqlConnection | Self::PgxConnection => "waits for a database connection",
            Self::RedisConnection => "waits for a Redis connection",
            Self::HttpConnection => "waits for a free HTTP connection",
            Self::Semaphore | Self::Token => "waits for a semaphore",
            Self::ErrgroupSlot => "waits for an errgroup slot",
            Self::RateLimiter => "waits for a rate limiter",
            Self::CgoCall => "waits for a cgo call",
            Self::Dns => "waits for DNS",
        }
    }

    /// What each of them wants, and what several keep.
    #[must_use]
    pub const fn wanted(self) -> (&'static str, &'static str) {
        match self {
            Self::SqlConnection | Self::PgxConnection => ("a database connection", "connections"),
            Self::RedisConnection => ("a Redis connection", "connections"),
            Self::HttpConnection => ("a free HTTP connection", "connections"),
            Self::Semaphore => ("a semaphore", "units"),
            Self::Token => ("a semaphore (a full channel of empty elements)", "tokens"),
            Self::ErrgroupSlot => ("an errgroup slot", "slots"),
            Self::RateLimiter => ("a rate limiter", "tokens"),
            Self::CgoCall => ("a cgo call", "calls"),
            Self::Dns => ("DNS", "answers"),
        }
    }

    /// How members of the pool are recognized; `None` for what is no pool: it ends by itself, or nobody of this program can
    /// end it.
    #[must_use]
    pub const fn members(self) -> Option<Members> {
        match self {
            Self::SqlConnection => Some(Members::Stamped(&[0])),
            Self::PgxConnection => Some(Members::Stamped(&[1, 2])),
            Self::HttpConnection => Some(Members::Third),
            Self::RedisConnection | Self::Semaphore | Self::ErrgroupSlot | Self::Token => {
                Some(Members::Itself)
            }
            Self::RateLimiter | Self::CgoCall | Self::Dns => None,
        }
    }

    /// Whether the first argument of a function is the pool.
    #[must_use]
    pub fn is_called_with_pool(self, function: &str) -> bool {
        let name = plain(function);
        match self {
            Self::PgxConnection => {
                ["Acquire", "acquire"].iter().any(|f| name.strip_prefix(PUDDLE) == Some(*f))
            }
            _ => PLACES.iter().any(|&(place, awaited)| awaited == self && name == place),
        }
    }

    /// The function inside of which those are that may keep a member, if that is known.
    #[must_use]
    pub const fn keeps_inside(self) -> Option<&'static str> {
        match self {
            Self::RedisConnection => Some("github.com/redis/go-redis.(*baseClient).withConn"),
            _ => None,
        }
    }

    /// Whether its members are recognized: who keeps one of these is known, not only who may.
    #[must_use]
    pub const fn has_members(self) -> bool {
        matches!(self.members(), Some(Members::Stamped(_) | Members::Third))
    }
}

/// Whether a goroutine that runs this function belongs to a library that has pools.
#[must_use]
pub fn is_servant(function: &str) -> bool {
    let name = plain(function);
    SERVANTS.iter().any(|servant| is_in(&name, servant))
}

/// Whether a function is the one with this plain name, or a closure in it.
#[must_use]
pub fn is_function(function: &str, plain_name: &str) -> bool {
    is_in(&plain(function), plain_name)
}

/// What is between any place and the runtime. A lock is not: who waits for one is told otherwise.
fn is_machinery(function: &str) -> bool {
    let of = |package: &str| function.strip_prefix(package).is_some_and(|rest| rest.starts_with(['.', '/']));
    of("runtime")
        || of("internal/runtime")
        || of("internal/poll")
        || ["sync.(*Cond).", "sync.runtime_", "sync.(*WaitGroup)."].iter().any(|p| function.starts_with(p))
        || function == "time.Sleep"
}

/// Whether a function is that one or a closure in it.
fn is_in(name: &str, function: &str) -> bool {
    name.strip_prefix(function).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The package of a plain name.
fn package(name: &str) -> &str {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name.get(last..).and_then(|rest| rest.find('.')).map_or(name.len(), |dot| last + dot);
    name.get(..dot).unwrap_or(name)
}

/// A function's name without major versions in its path, type arguments, and what it is vendored in.
fn plain(function: &str) -> Cow<'_, str> {
    let own = function.rfind("/vendor/").map_or(0, |at| at + "/vendor/".len());
    let name = function.get(own..).unwrap_or(function);
    let name = name.strip_prefix("vendor/").unwrap_or(name);
    if !name.contains("/v") && !name.contains("[...]") {
        return Cow::Borrowed(name);
    }
    let slash = name.rfind('/').unwrap_or(0);
    let is_version = |part: &str| {
        part.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let (path, symbol) = name.split_at(slash);
    let symbol = symbol.strip_prefix('/').unwrap_or(symbol);
    // The last element of the path may be the version: `puddle/v2.(*Pool)`.
    let (last, rest) = symbol.split_once('.').unwrap_or((symbol, ""));
    let mut parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && !is_version(p)).collect();
    if !is_version(last) {
        parts.push(last);
    }
    Cow::Owned(format!("{}.{}", parts.join("/"), rest.replace("[...]", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_versions_type_arguments_or_vendors() {
        for (function, name) in [
            ("database/sql.(*DB).conn", "database/sql.(*DB).conn"),
            ("github.com/jackc/puddle/v2.(*Pool[...]).Acquire", "github.com/jackc/puddle.(*Pool).Acquire"),
            (
                "github.com/redis/go-redis/v9/internal/pool.(*ConnPool).waitTurn",
                "github.com/redis/go-redis/internal/pool.(*ConnPool).waitTurn",
            ),
            (
                "example.com/a/vendor/golang.org/x/time/rate.(*Limiter).wait",
                "golang.org/x/time/rate.(*Limiter).wait",
            ),
            ("vendor/golang.org/x/net/dns.f", "golang.org/x/net/dns.f"),
            ("example.com/very/vast.f", "example.com/very/vast.f"),
            ("main.f[...]", "main.f"),
        ] {
            assert_eq!(plain(function), name);
        }
        assert_eq!(package("golang.org/x/sync/errgroup.(*Group).Go"), "golang.org/x/sync/errgroup");
        assert_eq!(package("net.(*Resolver).exchange"), "net");
    }

    #[test]
    fn a_place_is_told_where_nothing_else_is_inside_of_it() {
        let of = |functions: &[&str]| Awaited::of(functions.iter().copied());
        let conn = ["database/sql.(*DB).conn", "database/sql.(*DB).query", "main.caller"];
        assert_eq!(
            of(&[&["runtime.gopark", "runtime.selectgo"], &conn[..]].concat()),
            Some(Awaited::SqlConnection)
        );
        // The driver connects, or a lock is waited for.
        assert_eq!(of(&[&["runtime.gopark", "main.fake.Connect"], &conn[..]].concat()), None);
        assert_eq!(of(&[&["runtime.gopark", "sync.(*Mutex).Lock"], &conn[..]].concat()), None);
        // The outermost of several is meant.
        let pgx = [
            "runtime.gopark",
            "golang.org/x/sync/semaphore.(*Weighted).Acquire",
            "github.com/jackc/puddle/v2.(*Pool[...]).acquire",
            "github.com/jackc/pgx/v5/pgxpool.(*Pool).Acquire",
            "main.main",
        ];
        assert_eq!(of(&pgx), Some(Awaited::PgxConnection));
        assert_eq!(of(&pgx[..2]), Some(Awaited::Semaphore));
        assert_eq!(
            of(&["runtime.cgocall", "main._Cfunc_sleep", "database/sql.(*DB).conn"]),
            Some(Awaited::CgoCall)
        );
        assert_eq!(of(&["runtime.cgocall", "net._C_getaddrinfo", "net.cgoLookupIP"]), Some(Awaited::Dns));
        assert_eq!(of(&["runtime.gopark", "main.f"]), None);
        assert!(is_servant("database/sql.(*Rows).awaitDone") && !is_servant("net/http.(*conn).serve"));
    }
}
