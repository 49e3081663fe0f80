//! What was counted of a process's requests, by route and status, and which are open.

use gotrace_common::{
    Histogram, RouteKey,
    request::{self, Times},
};
use gotrace_model::{
    printable::printable,
    requests::{BLOCKED_NAMES, TimeSpent},
};
use serde::{Deserialize, Serialize};

use super::super::serial;

/// What requests are told apart by, as the kernel side does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteId {
    /// One of [`gotrace_common::request::protocol`].
    pub protocol: u8,
    /// HTTP's method.
    pub method: String,
    /// The route's text.
    pub route: String,
    /// Where there is none: the address of the function that served it, or 0.
    pub handler: u64,
}

impl RouteId {
    /// Of a key of the kernel side's. Text that is not UTF-8, or cannot be printed, is replaced.
    #[must_use]
    pub fn of(key: &RouteKey) -> Self {
        let text = |bytes: &[u8]| printable(&String::from_utf8_lossy(bytes)).into_owned();
        let end = key.method.iter().position(|b| *b == 0).unwrap_or(key.method.len());
        let kept = key.route.get(..usize::from(key.length)).unwrap_or(&key.route);
        let mut route = text(kept);
        if usize::from(key.length) > key.route.len() {
            route.push('…');
        }
        Self {
            protocol: key.protocol,
            method: text(key.method.get(..end).unwrap_or_default()),
            route,
            handler: key.handler,
        }
    }
}

/// What the kernel side counted of a route with one status, since attaching.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouteCount {
    /// The route.
    pub id: RouteId,
    /// The status, as [`RouteKey::status`] has it.
    pub status: u16,
    /// How long requests took.
    #[serde(with = "serial::histogram")]
    pub durations: Histogram,
    /// What they spent their time on.
    pub times: Times,
}

/// A request that was open when that was looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenSeen {
    /// The route, as far as it is known by now.
    pub id: RouteId,
    /// The goroutine that it began on.
    pub goid: u64,
    /// When it began.
    pub start_ns: u64,
    /// What its goroutine has spent the time on, up to its last change of state.
    pub times: Times,
    /// The state that its goroutine is in ([`gotrace_common::request::state`]), the class of its wait reason, and since when.
    pub state: (u32, u32, u64),
    /// Whether it has been open for so long that it is told.
    pub slow: bool,
}

impl OpenSeen {
    /// The state that its goroutine is in, and what it has spent its time on with it.
    pub(super) fn now(&self, now_ns: u64) -> (TimeSpent, &'static str) {
        let (state, class, since_ns) = self.state;
        let class = usize::try_from(class).unwrap_or(usize::MAX).min(request::BLOCKED_CLASSES - 1);
        let (part, what) = match state {
            request::state::RUNNING => (request::time::ON_CPU, "running"),
            request::state::RUNNABLE => (request::time::RUN_QUEUE, "runnable"),
            request::state::SYSCALL => (request::time::SYSCALL, "syscall"),
            request::state::ASSIST => (request::time::GC_ASSIST, "GC assist"),
            _ => (request::time::BLOCKED + class, BLOCKED_NAMES[class]),
        };
        let mut times = self.times;
        if let Some(spent) = times.get_mut(part) {
            *spent = spent.saturating_add(now_ns.saturating_sub(since_ns));
        }
        (TimeSpent(times), what)
    }
}

/// More of a request that is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenDetail {
    /// The goroutine that it began on.
    pub goid: u64,
    /// When it began.
    pub start_ns: u64,
    /// What it asked for, without what looks like a secret.
    pub path: Option<String>,
    /// Return addresses of its goroutine, innermost first; none where it runs.
    pub frames: Vec<u64>,
}

/// What was counted of a process's requests when that was looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RequestCounts {
    /// When.
    pub now_ns: u64,
    /// By route and status.
    pub routes: Vec<RouteCount>,
    /// Those that are open.
    pub open: Vec<OpenSeen>,
}
