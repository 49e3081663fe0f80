//! Requests of traced processes, as the kernel side counts them: read for each report, together with those that are open;
//! and when a request is slow, which follows from what was counted where it is not given.

use std::{collections::HashMap, time::Duration};

use gotrace_common::{
    Account, Histogram, OpenRequest, RequestConfig, RequestKey, RouteKey,
    request::{self, BLOCKED_CLASSES, FieldPath, NO_STEP, ROUTE_BYTES},
};
use gotrace_go::{Plan, requests::Requests};
use gotrace_kernel::Kernel;
use gotrace_model::{Level, Quantile, requests::BLOCKED_NAMES};
use gotrace_process::{Clock, ImageMemory};

use super::{LineConfig, Slow, Traced, probes::Probes};
use crate::tracee::{Input, OpenSeen, RequestCounts, RequestsState, RouteCount, RouteId};

/// Slow requests that are told of a route within a second, where the threshold is the route's own.
const PER_SECOND: u64 = 20;
/// Open requests of a process that are told of, the oldest.
const MAX_OPEN: usize = 1 << 10;
/// One that has been open for less is no news.
const LEAST_OPEN_NS: u64 = 100_000_000;
/// A threshold is told to the kernel side anew when it has changed by an eighth.
const STEADY: u64 = 8;

/// Requests that can be open at once, of all processes.
const OPEN_REQUESTS: u32 = 1 << 14;

/// How requests of a process are traced.
#[derive(Debug)]
pub(super) struct WatchedRequests {
    slow: Slow,
    /// Of which routes the kernel side was told when a request is slow, and when.
    thresholds: HashMap<RouteKey, u64>,
}

impl WatchedRequests {
    /// `None` where they are not wanted, and where the program has none that can be.
    pub fn of(line: &LineConfig, requests: &Requests) -> Option<Self> {
        let slow = line.requests.filter(|_| !requests.probes().is_empty())?;
        Some(Self { slow, thresholds: HashMap::new() })
    }
}

impl LineConfig {
    /// Requests that the kernel side is to have room for.
    pub(super) fn open_requests(&self) -> u32 {
        if self.requests.is_some() { OPEN_REQUESTS } else { 0 }
    }
}

impl Traced {
    /// The probes of a level, with those of the levels below; requests are of the highest.
    pub(super) fn plan(&self, level: Level) -> Plan {
        let mut plan = self.parsed().program.binary.plan(level);
        if level == Level::Full {
            plan.probes.extend(self.requests().probes());
        }
        plan
    }

    /// What its program tells of its requests; nothing where those are not traced.
    #[must_use]
    pub fn requests(&self) -> &Requests {
        &self.parsed().program.requests
    }

    /// Whether its requests are traced.
    pub(super) fn traces_requests(&self) -> bool {
        self.watched.is_some()
    }

    /// Tracing begins.
    pub(super) fn begin_requests(&mut self) {
        if let Some(watched) = &self.watched {
            // Who names a time wants all of them.
            let per_second = (watched.slow == Slow::Auto).then_some(PER_SECOND);
            self.tracee.tell(&Input::Requests(Box::new(RequestsState::new(per_second))));
        }
    }

    /// The ends of its requests are not seen from now on.
    pub(super) fn forget_open_requests(&self, kernel: &mut Kernel) {
        if self.traces_requests() {
            let number = self.number();
            kernel.forget_requests(|process| process == number, false);
        }
    }

    /// How the kernel side reads its requests; `None` where they are not traced.
    pub(super) fn request_config(&self) -> Option<RequestConfig> {
        let slow = self.watched.as_ref()?.slow;
        let mut config = self.requests().config();
        for (class, reason) in config.classes.iter_mut().zip(self.parsed().program.reasons.iter()) {
            let class_of = BLOCKED_NAMES.iter().position(|name| **name == **reason);
            *class = u8::try_from(class_of.unwrap_or(BLOCKED_CLASSES - 1)).unwrap_or(0);
        }
        (config.threshold_ns, config.least_ns) = match slow {
            Slow::Auto => (nanoseconds(Slow::UNKNOWN), nanoseconds(Slow::LEAST)),
            Slow::From(time) => (nanoseconds(time), nanoseconds(time)),
        };
        Some(config)
    }

    /// The kernel side is told when requests are slow of the routes of which that is known.
    fn set_thresholds(&mut self, kernel: &mut Kernel, counted: &[(RouteKey, Histogram)]) {
        let pid = self.pid();
        let Some(WatchedRequests { slow: Slow::Auto, thresholds }) = &mut self.watched else { return };
        let mut routes: Vec<(RouteKey, Histogram)> = Vec::new();
        for (key, durations) in counted {
            let key = RouteKey { status: 0, ..*key };
            match routes.iter_mut().find(|(other, _)| *other == key) {
                Some((_, sum)) => sum.merge(durations),
                None => routes.push((key, *durations)),
            }
        }
        for (key, durations) in routes.iter().filter(|(_, durations)| durations.count >= Slow::KNOWN_FROM) {
            let Some(p99) = Quantile::of(durations, 0.99) else { continue };
            let threshold_ns = p99.at_most_ns.max(nanoseconds(Slow::LEAST));
            let told = thresholds.get(key).copied().unwrap_or(nanoseconds(Slow::UNKNOWN));
            if threshold_ns.abs_diff(told) <= told / STEADY {
                continue;
            }
            match kernel.set_threshold(*key, threshold_ns) {
                Ok(()) => drop(thresholds.insert(*key, threshold_ns)),
                Err(error) => tracing::debug!(pid, %error, "a route keeps its threshold"),
            }
        }
    }

    /// From when on a request of this route is slow.
    fn threshold_ns(&self, id: &RouteId) -> u64 {
        let own = |watched: &WatchedRequests| match watched.slow {
            Slow::From(time) => Some(nanoseconds(time)),
            Slow::Auto => {
                watched.thresholds.iter().find(|(key, _)| RouteId::of(key) == *id).map(|(_, ns)| *ns)
            }
        };
        self.watched.as_ref().and_then(own).unwrap_or(nanoseconds(Slow::UNKNOWN))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells the tracees what was counted of their requests, and which are open.
pub(super) fn read_requests(probes: Option<&mut Probes>, traced: &mut [Traced]) {
    let Some(Probes { kernel, .. }) = probes else { return };
    if !traced.iter().any(Traced::traces_requests) {
        return;
    }
    let mut routes: Vec<_> = kernel.routes().collect();
    routes
        .sort_by_key(|(key, _)| (key.process, key.protocol, key.method, key.route, key.handler, key.status));
    let mut open: Vec<_> = kernel.open_requests().collect();
    open.sort_by_key(|(key, open, _)| (key.process, open.start_ns, key.id));
    for traced in traced.iter_mut().filter(|traced| traced.traces_requests()) {
        let number = traced.number();
        let mut own = Vec::new();
        let mut counts = RequestCounts { now_ns: Clock::now_monotonic_ns(), ..RequestCounts::default() };
        for (key, times) in routes.iter().filter(|(key, _)| key.process == number) {
            let mut durations = times.durations;
            durations.count = durations.buckets.iter().sum();
            own.push((*key, durations));
            counts.routes.push(RouteCount {
                id: RouteId::of(key),
                status: key.status,
                durations,
                times: times.times,
            });
        }
        traced.set_thresholds(kernel, &own);
        let memory = traced.watch.image().and_then(|image| image.memory().ok());
        for (key, open, account) in open.iter().filter(|(key, ..)| key.process == number).take(MAX_OPEN) {
            counts.open.extend(seen(
                traced,
                kernel,
                memory.as_ref(),
                counts.now_ns,
                (key, open, account.as_ref()),
            ));
        }
        traced.tracee.tell(&Input::RequestCounts(Box::new(counts)));
    }
}

/// An open request; `None` where it has ended meanwhile.
fn seen(
    traced: &Traced,
    kernel: &Kernel,
    memory: Option<&ImageMemory>,
    now_ns: u64,
    (key, open, account): (&RequestKey, &OpenRequest, Option<&Account>),
) -> Option<OpenSeen> {
    let named = memory.map(|memory| name(traced, memory, open)).unwrap_or_default();
    // What was read is its own only as long as it goes on.
    if !kernel.is_open(key, open.start_ns) {
        return None;
    }
    let mut route = RouteKey { protocol: open.protocol, ..named };
    if route.length == 0 {
        route.handler = open.handler;
    }
    let id = RouteId::of(&route);
    let slow = now_ns.saturating_sub(open.start_ns) >= traced.threshold_ns(&id).max(LEAST_OPEN_NS);
    Some(OpenSeen {
        id,
        goid: open.goid,
        start_ns: open.start_ns,
        times: account.map(|account| std::array::from_fn(|n| account.times[n].saturating_sub(open.base[n]))),
        state: account.map_or((request::state::RUNNING, 0, now_ns), |account| {
            (account.state, account.class, account.since_ns)
        }),
        slow,
    })
}

/// Method and route of an open request, read from the process's memory as the kernel side reads those that end.
fn name(traced: &Traced, memory: &ImageMemory, open: &OpenRequest) -> RouteKey {
    let mut key = RouteKey::default();
    let Some(config) = traced.request_config() else { return key };
    let reader = Reader(memory);
    if open.protocol == request::protocol::GRPC {
        if let Some((text, length)) = reader.text(open.object, config.grpc_method) {
            (key.route, key.length) = (text, length);
        }
        return key;
    }
    if let Some((text, _)) = reader.text::<8>(open.object, config.method) {
        key.method = text;
    }
    let header = |object| reader.follow(object, config.header).and_then(|at| reader.word(at));
    let copied = open.routed != 0 && header(open.routed) == header(open.object);
    if let Some((text, length)) = reader.text(if copied { open.routed } else { open.object }, config.pattern)
    {
        (key.route, key.length) = (text, length);
    }
    key
}

/// Reads the process's memory.
struct Reader<'a>(&'a ImageMemory);

impl Reader<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.0.read_at(&mut bytes, address).ok()? == bytes.len()).then(|| u64::from_ne_bytes(bytes))
    }

    fn follow(&self, base: u64, path: FieldPath) -> Option<u64> {
        let [first, rest @ ..] = path.steps;
        if first == NO_STEP || base == 0 {
            return None;
        }
        let mut address = base.checked_add(first.into())?;
        for step in rest.into_iter().filter(|step| *step != NO_STEP) {
            address = self.word(address).filter(|at| *at != 0)?.checked_add(step.into())?;
        }
        Some(address)
    }

    /// A string, as far as there is room, and how long it is as [`RouteKey::length`] has it.
    fn text<const N: usize>(&self, base: u64, path: FieldPath) -> Option<([u8; N], u8)> {
        let at = self.follow(base, path)?;
        let (pointer, length) = (self.word(at)?, self.word(at.checked_add(8)?)?);
        let mut text = [0; N];
        let kept = usize::try_from(length).ok()?.min(N);
        if self.0.read_at(text.get_mut(..kept)?, pointer).ok()? != kept {
            return None;
        }
        let told =
            if length > ROUTE_BYTES as u64 { u8::MAX } else { u8::try_from(length).unwrap_or(u8::MAX) };
        Some((text, told))
    }
}
