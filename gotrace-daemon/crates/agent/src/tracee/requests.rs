//! Requests of a tracee: what the kernel side counted by route, and the slow ones with their waits and the causes of
//! those, which are looked for among the waits of the goroutines that ended them.

use core::net::SocketAddr;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use gotrace_common::{
    Histogram, ROW_SYSCALL, WakerKind,
    request::{self, Times},
};
use gotrace_model::{
    Location, Span, SpanContext,
    ids::ProcessKey,
    requests::{
        Cause, Children, Ended, Now, OwnSpan, Protocol, Request, RequestWait, Requests, Route, RouteName,
        TimeSpent,
    },
};
use serde::{Deserialize, Serialize};

use super::{CoveredTime, Facts, Names, Outputs, Tracee, serial, symbols::Symbols};
use crate::{
    decode::{RequestEnd, Wait},
    table::Table,
};

mod counts;
pub mod paths;

pub use counts::{OpenDetail, OpenSeen, RequestCounts, RouteCount, RouteId};

/// Waits of all goroutines that are remembered, so that those can be explained that they ended.
const MAX_PAST: usize = 1 << 16;
/// Frames of each that are kept.
const MAX_FRAMES: usize = 24;
/// Waits that are told of a request, the longest.
const MAX_WAITS: usize = 24;
/// Causes that are told of a wait, and goroutines that are followed for them.
const MAX_CAUSES: usize = 8;
/// Waits of a goroutine that are looked through.
const MAX_LOOKED: usize = 1 << 12;
/// Slow requests that are kept until the next report, and waits of them: some 20 and 30 MB.
const MAX_SLOW: usize = 1 << 15;
const MAX_SLOW_WAITS: usize = 1 << 16;
/// Routes that are kept apart; the kernel side has no room for more.
const MAX_ROUTES: usize = 1 << 12;

/// A wait that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Past {
    goid: u64,
    /// Number of the goroutine's wait before it.
    before: Option<u64>,
    start_ns: u64,
    wake_ns: u64,
    end_ns: u64,
    reason: u8,
    waker: u8,
    waker_goid: u64,
    /// Entry of its function, as it may have ended when it is asked for; 0 where that is not known.
    entry_pc: u64,
    /// Restored by [`RequestsState::restore_peers`].
    #[serde(skip)]
    peer: Option<SocketAddr>,
    frames: Vec<u64>,
}

impl Past {
    /// Until when it was blocked.
    fn blocked_until(&self) -> u64 {
        if self.wake_ns == 0 { self.end_ns } else { self.wake_ns.clamp(self.start_ns, self.end_ns) }
    }
}

/// What is known of a tracee's requests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RequestsState {
    /// Waits, the oldest first, numbered from `first` on.
    past: VecDeque<Past>,
    first: u64,
    /// Number of the last one of each goroutine.
    last: HashMap<u64, u64>,
    counts: RequestCounts,
    /// What was counted at the last report, by route and status.
    reported: BTreeMap<(RouteId, u16), (Sums, Times)>,
    /// Slow ones since attaching, and at the last report.
    slow: BTreeMap<RouteId, (u64, u64)>,
    /// What they spent their time on since attaching, and since the last report.
    #[serde(skip)]
    slow_times: BTreeMap<RouteId, (TimeSpent, TimeSpent)>,
    /// How many were told of a route within which second.
    told: BTreeMap<RouteId, (u64, u64)>,
    left_out: u64,
    /// How many may be told of a route within a second; `None` for all.
    per_second: Option<u64>,
    /// Numbers of open ones that were told: goid and beginning.
    told_open: BTreeSet<(u64, u64)>,
    next: u64,
    /// More of those that are open.
    #[serde(skip)]
    pub(super) details: Vec<OpenDetail>,
    /// For how long they were traced.
    #[serde(skip)]
    pub(super) covered: CoveredTime,
    /// To be told with the next report.
    #[serde(skip)]
    ended: Vec<Arc<Request>>,
    /// Their waits.
    #[serde(skip)]
    ended_waits: usize,
}

/// A histogram.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Sums(#[serde(with = "serial::histogram")] Histogram);

impl RequestsState {
    /// Nothing is known yet. `per_second`: slow requests of a route that are told of within a second; `None` for all.
    #[must_use]
    pub fn new(per_second: Option<u64>) -> Self {
        Self { per_second, ..Self::default() }
    }

    /// A wait of one of the process's goroutines has ended.
    pub(super) fn waited(&mut self, wait: &Wait<'_>, table: &Table) {
        if self.past.len() >= MAX_PAST
            && let Some(oldest) = self.past.pop_front()
        {
            if self.last.get(&oldest.goid) == Some(&self.first) {
                self.last.remove(&oldest.goid);
            }
            self.first += 1;
        }
        let number = self.first + self.past.len() as u64;
        self.past.push_back(Past {
            goid: wait.goid,
            before: self.last.insert(wait.goid, number),
            start_ns: wait.start_ns,
            wake_ns: wait.wake_ns,
            end_ns: wait.end_ns,
            reason: wait.reason,
            waker: wait.waker as u8,
            waker_goid: wait.waker_goid,
            entry_pc: table.creation_site(wait.goid).map_or(0, |site| site.entry_pc),
            peer: wait.socket.and_then(|socket| socket.peer),
            frames: wait.frames.iter().take(MAX_FRAMES).collect(),
        });
    }

    /// Waits of a goroutine that lie within a time, the last one first.
    fn waits(&self, goid: u64, from_ns: u64, to_ns: u64) -> impl Iterator<Item = &Past> {
        let at = |number: u64| self.past.get(usize::try_from(number.checked_sub(self.first)?).ok()?);
        let first = self.last.get(&goid).and_then(|n| at(*n));
        std::iter::successors(first, move |past| past.before.and_then(at))
            .take(MAX_LOOKED)
            .take_while(move |past| past.end_ns > from_ns)
            .filter(move |past| past.start_ns < to_ns)
    }

    /// Whether an open request was told of, by goroutine and beginning.
    pub(super) fn has_told(&self, open: (u64, u64)) -> bool {
        self.told_open.contains(&open)
    }

    /// Numbers of waits that were for a peer, and that.
    pub(super) fn peers(&self) -> Vec<(u64, SocketAddr)> {
        let numbered = (self.first..).zip(&self.past);
        numbered.filter_map(|(number, past)| Some((number, past.peer?))).collect()
    }

    /// What [`Self::peers`] gave.
    pub(super) fn restore_peers(&mut self, peers: &[(u64, SocketAddr)]) {
        for (number, peer) in peers {
            let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
            if let Some(past) = at.and_then(|at| self.past.get_mut(at)) {
                past.peer = Some(*peer);
            }
        }
    }

    /// What the kernel side has counted.
    pub(super) fn count(&mut self, mut counts: RequestCounts) {
        counts.routes.truncate(MAX_ROUTES);
        self.counts = counts;
    }

    /// Whether one more slow request of a route may be told; counts it.
    fn admits(&mut self, id: &RouteId, end_ns: u64, time: &TimeSpent) -> bool {
        if self.slow.len() < MAX_ROUTES || self.slow.contains_key(id) {
            self.slow.entry(id.clone()).or_default().0 += 1;
            let (since_attaching, since_report) = self.slow_times.entry(id.clone()).or_default();
            since_attaching.add(time);
            since_report.add(time);
        }
        let second = end_ns / 1_000_000_000;
        if self.told.len() >= MAX_ROUTES {
            self.told.retain(|_, (told, _)| *told == second);
        }
        let (of, count) = self.told.entry(id.clone()).or_insert((second, 0));
        if *of != second {
            (*of, *count) = (second, 0);
        }
        *count += 1;
        let has_room = self.ended.len() < MAX_SLOW && self.ended_waits < MAX_SLOW_WAITS;
        let admitted = self.per_second.is_none_or(|most| *count <= most) && has_room;
        self.left_out += u64::from(!admitted);
        admitted
    }
}

/// Who knows what addresses and goroutines stand for.
struct Known<'a> {
    symbols: &'a mut Symbols,
    names: &'a dyn Names,
    table: &'a Table,
    reasons: &'a [Arc<str>],
    key: &'a ProcessKey,
}

impl Known<'_> {
    fn reason(&self, reason: u8) -> Arc<str> {
        if u32::from(reason) == ROW_SYSCALL {
            return "syscall".into();
        }
        self.reasons.get(usize::from(reason)).cloned().unwrap_or_else(|| "unknown".into())
    }

    /// The calls of a wait's stack, those of inlined functions too.
    fn stack(&mut self, past: &Past) -> Vec<Arc<Location>> {
        self.frames(&past.frames)
    }

    fn frames(&mut self, frames: &[u64]) -> Vec<Arc<Location>> {
        let calls = frames.iter().flat_map(|pc| self.symbols.frames(*pc, self.names).to_vec());
        calls.map(|frame| frame.at).collect()
    }

    /// Where a wait is in the program's own code, as far as its stack goes.
    fn own_code(&mut self, past: &Past) -> Option<Arc<Location>> {
        self.symbols.own_code(&past.frames, self.names).map(|frame| frame.at)
    }

    /// `past`: a wait of it, if there is one.
    fn function(&mut self, goid: u64, past: Option<&Past>) -> Option<Arc<Location>> {
        let known = past.map(|past| past.entry_pc).filter(|pc| *pc != 0);
        let entry_pc = known.or_else(|| Some(self.table.creation_site(goid)?.entry_pc))?;
        Some(self.symbols.entry(entry_pc, self.names))
    }

    /// The route's name. Its text may have a method and a host: `GET example.com/users/{id}`.
    fn name(&mut self, id: &RouteId) -> RouteName {
        let protocol = match id.protocol {
            request::protocol::GRPC => Protocol::Grpc,
            request::protocol::SPAN => Protocol::Span,
            request::protocol::FUNCTION => Protocol::Function,
            request::protocol::HTTP2 => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let path_at = if protocol == Protocol::Span { None } else { id.route.find('/') };
        let path = path_at.and_then(|at| id.route.get(at..)).unwrap_or(&id.route);
        let handler = match id.handler {
            0 => None,
            at if self.symbols.is_function_entry(at, self.names) => Some(self.symbols.entry(at, self.names)),
            // Where it is probed, before it has called anything.
            at if protocol == Protocol::Function => {
                self.symbols.frames(at, self.names).last().map(|frame| Arc::clone(&frame.at))
            }
            _ => None,
        };
        RouteName {
            protocol,
            method: (!id.method.is_empty()).then(|| id.method.as_str().into()),
            route: (!path.is_empty()).then(|| path.into()),
            handler,
        }
    }
}

impl Tracee {
    /// A slow request has ended.
    pub(super) fn request_ended(&mut self, end: &RequestEnd, names: &dyn Names, out: &mut Outputs) {
        let Some(mut state) = self.requests.take() else { return };
        let id = RouteId::of(&end.key);
        let time = TimeSpent(end.times);
        if state.admits(&id, end.end_ns, &time) {
            let Facts { key, clock, reasons, .. } = &self.facts;
            let mut known = Known { symbols: &mut self.symbols, names, table: &self.table, reasons, key };
            let duration_ns = end.end_ns.saturating_sub(end.start_ns);
            let (mut waits, complete) = explain(&state, &mut known, end.goid, (end.start_ns, end.end_ns));
            waits.sort_by_key(|wait| wait.offset_ns);
            let (caller, own_span) = match end.has_own_span {
                true => OwnSpan::of(&end.caller).unzip(),
                false => (gotrace_model::requests::caller(&end.caller), None),
            };
            let own = SpanContext {
                trace_id: caller
                    .map_or_else(|| key.trace_id(self.table.trace_root(end.goid)), |c| c.trace_id),
                span_id: key.request_span_id(end.goid, end.start_ns),
            };
            state.next += 1;
            let request = Arc::new(Request {
                id: state.next,
                context: own,
                parent_span_id: caller.map(|c| c.span_id),
                own_span,
                goroutine: key.context(self.table.trace_root(end.goid), end.goid),
                name: known.name(&id),
                path: paths::text(&paths::redacted(&end.path)).map(Into::into),
                status: status(end.key.status),
                start_unix_nano: clock.unix_nano(end.start_ns),
                duration_ns,
                goid: end.goid,
                ended: Some(match end.ended {
                    request::ended::NORMAL => Ended::Normal,
                    request::ended::PANIC => Ended::Panic,
                    request::ended::HIJACKED => Ended::Hijacked,
                    request::ended::ELSEWHERE => Ended::OtherGoroutine,
                    _ => Ended::GoroutineExit,
                }),
                // Only a made-up record does not add up.
                waits_complete: complete && !end.waits_lost && time.total() == duration_ns,
                time,
                children: end.children.and_then(|children| of_children(&children)),
                waits,
                now: None,
            });
            state.told_open.remove(&(end.goid, end.start_ns));
            state.ended_waits += request.waits.len();
            state.ended.push(Arc::clone(&request));
            let span = |n| Span::RequestWait(Arc::clone(&self.resource), Arc::clone(&request), n);
            out.spans.extend((0..request.waits.len()).map(span));
            out.spans.push(Span::Request(Arc::clone(&self.resource), request));
        }
        self.requests = Some(state);
    }

    /// Requests since the last report; `None` where they are not traced.
    pub(super) fn requests(&mut self, now_ns: u64, names: &dyn Names) -> Option<Arc<Requests>> {
        let mut state = self.requests.take()?;
        let Facts { key, clock, reasons, .. } = &self.facts;
        let mut known = Known { symbols: &mut self.symbols, names, table: &self.table, reasons, key };
        let mut routes = routes(&mut state, &mut known);
        let mut slow = std::mem::take(&mut state.ended);
        state.ended_waits = 0;
        let counts = std::mem::take(&mut state.counts.open);
        let still: BTreeSet<_> = counts.iter().map(|open| (open.goid, open.start_ns)).collect();
        state.told_open.retain(|open| still.contains(open));
        let details = std::mem::take(&mut state.details);
        for open in counts {
            let name = known.name(&open.id);
            let age_ns = now_ns.saturating_sub(open.start_ns);
            let route = routes.of(name.clone());
            route.open += 1;
            route.oldest_open_ns = route.oldest_open_ns.max(Some(age_ns));
            let fresh = open.slow && state.told_open.len() < MAX_SLOW;
            if !fresh || !state.told_open.insert((open.goid, open.start_ns)) {
                continue;
            }
            state.next += 1;
            let detail = details.iter().find(|of| (of.goid, of.start_ns) == (open.goid, open.start_ns));
            let frames = detail.map_or(&[][..], |detail| &detail.frames);
            let (time, what) = open.now(state.counts.now_ns);
            let (mut waits, complete) =
                explain(&state, &mut known, open.goid, (open.start_ns, state.counts.now_ns));
            waits.sort_by_key(|wait| wait.offset_ns);
            slow.push(Arc::new(Request {
                id: state.next,
                context: SpanContext {
                    trace_id: key.trace_id(self.table.trace_root(open.goid)),
                    span_id: key.request_span_id(open.goid, open.start_ns),
                },
                parent_span_id: None,
                own_span: None,
                goroutine: key.context(self.table.trace_root(open.goid), open.goid),
                name,
                path: detail.and_then(|detail| detail.path.as_deref()).map(Into::into),
                status: None,
                start_unix_nano: clock.unix_nano(open.start_ns),
                duration_ns: state.counts.now_ns.saturating_sub(open.start_ns),
                goid: open.goid,
                ended: None,
                time,
                children: None,
                waits,
                waits_complete: complete,
                now: Some(Now {
                    state: what.into(),
                    stack: known.frames(frames),
                    own_code: known.symbols.own_code(frames, known.names).map(|frame| frame.at),
                }),
            }));
        }
        let left_out = std::mem::take(&mut state.left_out);
        let (covered, covered_total) = state.covered.report(now_ns);
        self.requests = Some(state);
        Some(Arc::new(Requests { routes: routes.sorted(), slow, left_out, covered, covered_total }))
    }
}

/// Goroutines that were started for a request; `None` where some were not followed, and where one ended as this was read.
fn of_children(children: &request::Children) -> Option<Children> {
    let request::Children { started, unseen, ending, times, ended } = *children;
    (unseen == 0 && ending == ended).then(|| Children {
        goroutines: ended,
        left_running: started.saturating_sub(ended),
        time: TimeSpent(times),
    })
}

/// The longest waits of a goroutine within a time, with their causes; and whether those are all.
fn explain(
    state: &RequestsState,
    known: &mut Known<'_>,
    goid: u64,
    (from_ns, to_ns): (u64, u64),
) -> (Vec<RequestWait>, bool) {
    let within = |past: &&Past| past.start_ns >= from_ns && past.end_ns <= to_ns;
    let mut waits: Vec<&Past> = state.waits(goid, from_ns, to_ns).filter(within).collect();
    let complete = waits.len() <= MAX_WAITS && state.first_ns() <= from_ns;
    waits.sort_by_key(|past| std::cmp::Reverse(past.end_ns - past.start_ns));
    waits.truncate(MAX_WAITS);
    let told = waits.into_iter().map(|past| {
        let waker = WakerKind::from_u8(past.waker);
        let by = (waker == WakerKind::Goroutine).then_some(past.waker_goid);
        let mut causes = Vec::new();
        if let Some(by) = by {
            causes_of(state, known, by, (past.start_ns, past.blocked_until()), &mut causes);
        }
        RequestWait {
            offset_ns: past.start_ns.saturating_sub(from_ns),
            span_id: known.key.wait_span_id(goid, past.start_ns),
            duration_ns: past.end_ns.saturating_sub(past.start_ns),
            reason: known.reason(past.reason),
            stack: known.stack(past),
            site: known.symbols.wait_site(&past.frames, known.names),
            own_code: known.own_code(past),
            peer: past.peer,
            ended_by: match waker {
                WakerKind::Goroutine => "goroutine",
                WakerKind::Netpoll => "netpoll",
                WakerKind::Timer => "timer",
                WakerKind::Gc => "gc",
                WakerKind::Unknown => "unknown",
            },
            ended_by_goid: by,
            causes,
        }
    });
    (told.collect(), complete)
}

/// What a goroutine did within a time, at whose end it woke another one: its longest wait then, where that was a good part
/// of it, and that it ran else, or waited for less than is told; and where yet another one ended a wait that was most of
/// it, what that one did.
fn causes_of(
    state: &RequestsState,
    known: &mut Known<'_>,
    mut goid: u64,
    (mut from_ns, mut to_ns): (u64, u64),
    causes: &mut Vec<Cause>,
) {
    while causes.len() < MAX_CAUSES {
        let overlap = |past: &Past| -> u64 {
            past.blocked_until().min(to_ns).saturating_sub(past.start_ns.max(from_ns))
        };
        let longest = state.waits(goid, from_ns, to_ns).max_by_key(|past| overlap(past));
        let function = known.function(goid, longest);
        let whole = to_ns.saturating_sub(from_ns);
        let waited = state.waits(goid, from_ns, to_ns).map(overlap).fold(0, u64::saturating_add);
        let longest = longest.filter(|past| overlap(past) >= whole / 8);
        if let Some(past) = longest {
            causes.push(Cause {
                goid,
                function: function.clone(),
                state: known.reason(past.reason),
                duration_ns: overlap(past),
                frame: known.own_code(past),
            });
        }
        let ran = whole.saturating_sub(waited);
        if longest.is_none() || ran > whole / 4 {
            causes.push(Cause { goid, function, state: "running".into(), duration_ns: ran, frame: None });
        }
        let Some(past) = longest.filter(|past| overlap(past) > whole / 2) else { return };
        let is_followed = causes.iter().any(|cause| cause.goid == past.waker_goid);
        if WakerKind::from_u8(past.waker) != WakerKind::Goroutine || is_followed {
            return;
        }
        (from_ns, to_ns) = (past.start_ns.max(from_ns), past.blocked_until().min(to_ns));
        goid = past.waker_goid;
    }
}

impl RequestsState {
    /// Bytes that all of it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        /// Of a request with its names, and of a wait with its stack.
        const REQUEST: usize = 600;
        const WAIT: usize = 450;
        self.past.capacity() * (size_of::<Past>() + 8 * 8)
            + self.last.capacity() * 2 * size_of::<u64>()
            + self.reported.len() * (size_of::<((RouteId, u16), (Sums, Times))>() + 64)
            + self.slow_times.len() * (size_of::<(RouteId, [TimeSpent; 2])>() + 64)
            + self.ended.len() * REQUEST
            + self.ended_waits * WAIT
    }

    /// From when on all waits are remembered.
    fn first_ns(&self) -> u64 {
        if self.past.len() < MAX_PAST { 0 } else { self.past.front().map_or(0, |past| past.end_ns) }
    }
}

/// All routes, with what came since the last report.
fn routes(state: &mut RequestsState, known: &mut Known<'_>) -> Routes {
    let mut routes = Routes::default();
    for count in &state.counts.routes {
        let route = routes.of(known.name(&count.id));
        let now = (Sums(count.durations), count.times);
        let before = state.reported.insert((count.id.clone(), count.status), now).unwrap_or_default();
        let durations = count.durations.since(&before.0.0);
        let times = TimeSpent(std::array::from_fn(|n| count.times[n].saturating_sub(before.1[n])));
        let status = status(count.status);
        // One that ended without a status has failed, but for a connection that was taken over.
        let failed = match status {
            Some(status) => route.name.protocol.is_error(status),
            None => count.status == request::status::FAILED,
        };
        if durations.count > 0 {
            *route.by_status.entry(status).or_default() += durations.count;
            route.errors += if failed { durations.count } else { 0 };
            route.durations.merge(&durations);
            route.times.add(&times);
        }
        route.total.by_status.entry(status).or_default().merge(&count.durations);
        route.total.errors += if failed { count.durations.count } else { 0 };
        route.total.durations.merge(&count.durations);
        route.total.times.add(&TimeSpent(count.times));
        // Once a route, not once a status.
        if let Some((slow, reported)) = state.slow.get_mut(&count.id) {
            route.slow += *slow - std::mem::replace(reported, *slow);
            route.total.slow = route.total.slow.max(*slow);
        }
        if let Some((since_attaching, since_report)) = state.slow_times.get_mut(&count.id) {
            route.slow_times.add(&std::mem::take(since_report));
            route.total.slow_times = *since_attaching;
        }
    }
    routes
}

/// Routes by their names.
#[derive(Default)]
struct Routes(BTreeMap<RouteName, Route>);

impl Routes {
    fn of(&mut self, name: RouteName) -> &mut Route {
        self.0.entry(name).or_insert_with_key(|name| Route::new(name.clone()))
    }

    /// All of them, the one that took the most time first.
    fn sorted(self) -> Vec<Route> {
        let mut routes: Vec<Route> = self.0.into_values().collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.total.durations.sum_ns));
        routes
    }
}

fn status(status: u16) -> Option<u16> {
    (!matches!(status, request::status::NONE | request::status::FAILED)).then_some(status)
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
