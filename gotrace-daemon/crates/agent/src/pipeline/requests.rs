//! Requests of traced processes, as the kernel side counts them: read for each report, together with those that are open;
//! and when a request is slow, which follows from what was counted where it is not given.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use gotrace_common::{
    Account, GLayout, GoroutineKey, Histogram, OpenRequest, RequestConfig, RequestKey, RouteKey, RouteTimes,
    flags,
    request::{self, BLOCKED_CLASSES, FieldPath, NO_STEP, ROUTE_BYTES},
};
use gotrace_go::{Probe, requests::Requests};
use gotrace_kernel as kernel;
use gotrace_kernel::Kernel;
use gotrace_model::{Level, Quantile, requests::BLOCKED_NAMES};
use gotrace_process::{Clock, ImageMemory, Target};

use super::{
    Follow, Line, LineConfig, LineError, Slow, TraceRequests, Traced, probes::Probes, programs::Program,
};
use crate::tracee::{
    self, Input, OpenDetail, OpenSeen, RequestCounts, RequestsState, RouteCount, RouteId, Step,
};

mod open_routes;

use open_routes::OpenRoutes;

/// Slow requests that are told of a route within a second, where the threshold is the route's own.
const PER_SECOND: u64 = 20;
/// Open requests of a process that are told of, the oldest.
const MAX_OPEN: usize = 1 << 10;
/// Open requests of which the stack is read for a report, and frames of each.
const MAX_STACKS: usize = 64;
const MAX_FRAMES: usize = 32;
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
    /// How the kernel side reads them.
    config: RequestConfig,
    /// Whether they are given up while the level would allow them, and whether the tracee was told so.
    paused: bool,
    told_paused: bool,
    /// Of which routes the kernel side was told when a request is slow, and when.
    thresholds: HashMap<RouteKey, u64>,
    /// What routers have found of its open requests.
    open_routes: OpenRoutes,
}

impl WatchedRequests {
    /// `None` where they are not wanted, and where the program has none that can be, which is said of one that was named.
    ///
    /// # Errors
    /// [`LineError::NoProbe`] where such a program is of no use.
    pub fn of(line: &LineConfig, target: &Target, program: &Program) -> Result<Option<Self>, LineError> {
        let Some(&TraceRequests { slow, required, paths, .. }) = line.requests.as_ref() else {
            return Ok(None);
        };
        let (pid, requests) = (target.pid(), &program.requests);
        if !requests.refused.is_empty() {
            let (why, executable) = (requests.refused.join("; "), target.executable.display().to_string());
            if required {
                return Err(LineError::NoFunction { pid, executable, why });
            }
            if line.follow == Follow::Nobody {
                tracing::warn!(pid, "requests: in {executable} {why}");
            }
        }
        if requests.probes().is_empty() {
            let what = format!("requests: {}", requests.why_none());
            if required {
                let executable = target.executable.display().to_string();
                return Err(LineError::NoProbe { pid, executable, what });
            }
            if line.follow == Follow::Nobody {
                tracing::warn!(pid, "no {what}");
            }
            return Ok(None);
        }
        let mut config = requests.config();
        if !paths {
            config.request.path = FieldPath::NONE;
            config.server_request.path = FieldPath::NONE;
        }
        config.http2_released = u8::from(program.binary.go_version().minor >= 27);
        for (class, reason) in config.classes.iter_mut().zip(program.reasons.iter()) {
            let class_of = BLOCKED_NAMES.iter().position(|name| **name == **reason);
            *class = u8::try_from(class_of.unwrap_or(BLOCKED_CLASSES - 1)).unwrap_or(0);
        }
        (config.threshold_ns, config.least_ns) = match slow {
            Slow::Auto => (nanoseconds(Slow::UNKNOWN), nanoseconds(Slow::LEAST)),
            Slow::From(time) => (nanoseconds(time), nanoseconds(time)),
        };
        let (paused, told_paused) = (false, false);
        Ok(Some(Self {
            slow,
            config,
            paused,
            told_paused,
            thresholds: HashMap::new(),
            open_routes: OpenRoutes::default(),
        }))
    }

    /// From when on a request of this route is slow; its status is not looked at.
    fn threshold_ns(&self, route: &RouteKey) -> u64 {
        let own = self.thresholds.get(&RouteKey { status: 0, ..*route });
        own.copied().unwrap_or(self.config.threshold_ns)
    }
}

impl LineConfig {
    /// The step between turns of requests: nothing where they are all that is wanted.
    pub(super) fn between_turns(&self) -> Step {
        let alone = self.requests.as_ref().is_some_and(|requests| requests.required);
        if alone { Step::Snapshot } else { Step::Probes(Level::Full) }
    }

    /// Requests that the kernel side is to have room for.
    pub(super) fn open_requests(&self) -> u32 {
        if self.requests.is_some() { OPEN_REQUESTS } else { 0 }
    }
}

impl Traced {
    /// The probes of a step, with those of the steps below.
    pub(super) fn plan(&self, step: Step) -> Vec<Probe> {
        let Some(level) = step.level() else { return Vec::new() };
        let mut probes = self.parsed().program.binary.plan(level).probes;
        if step == Step::Requests {
            probes.extend(self.requests().probes());
        }
        probes
    }

    /// The highest step that is wanted of it.
    pub(super) fn most(&self, line: &LineConfig) -> Step {
        let level = self.wanted_level(line);
        if level == Level::Full && self.traces_requests() { Step::Requests } else { Step::Probes(level) }
    }

    /// The step that its probes are for, where it has any.
    pub(super) fn aim(&self) -> Step {
        let level = self.tracee.level();
        let requests = level == Level::Full && self.watched.as_ref().is_some_and(|watched| !watched.paused);
        if requests { Step::Requests } else { Step::Probes(level) }
    }

    /// Its probes are to be for this step; none where that has none.
    pub(super) fn set_aim(&mut self, step: Step) {
        let Some(level) = step.level() else { return };
        self.tracee.tell(&Input::Level(level));
        if let Some(watched) = &mut self.watched {
            watched.paused = step != Step::Requests;
        }
    }

    /// The tracee is told whether requests are given up, where that has changed.
    pub(super) fn tell_paused(&mut self) {
        let Some(WatchedRequests { paused, told_paused, .. }) = &mut self.watched else { return };
        if std::mem::replace(told_paused, *paused) != *paused {
            let (now_ns, paused) = (Clock::now_monotonic_ns(), *paused);
            self.tracee.tell(&Input::RequestsPaused { now_ns, paused });
        }
    }

    /// What the kernel side is told of its requests among the flags.
    pub(super) fn requests_flag(&self) -> u32 {
        if self.aim() == Step::Requests { flags::REQUESTS } else { 0 }
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

    /// What is known of those that are open is old: their ends were not seen, or will not be.
    pub(super) fn forget_open_requests(&self, kernel: &mut Kernel) {
        let number = self.number();
        if self.traces_requests()
            && let Err(error) = kernel.forget_requests(|process| process == number, false)
        {
            tracing::warn!(%error, "requests that are open now may be told with times that are too short");
        }
    }

    /// How the kernel side reads its requests; `None` where they are not traced.
    pub(super) fn request_config(&self) -> Option<RequestConfig> {
        let mut config = self.watched.as_ref()?.config;
        // Before a program is executed that is unknown; it is asked for again when it has been.
        let bias = self.bias_known.then(|| self.tracee.symbolizer().bias());
        let ranges = config.libraries.iter_mut().chain([&mut config.handler_starts]).flatten();
        let others = [&mut config.span.recorded, &mut config.routers.gorilla_route];
        for address in ranges.chain(others).filter(|address| **address != 0) {
            *address = bias.map_or(0, |bias| address.wrapping_add(bias));
        }
        Some(config)
    }

    /// The kernel side is told when requests are slow of the routes of which that is known.
    fn set_thresholds(&mut self, kernel: &mut Kernel, counted: &[(RouteKey, Histogram)]) {
        let pid = self.pid();
        let Some(WatchedRequests { slow: Slow::Auto, config, thresholds, .. }) = &mut self.watched else {
            return;
        };
        let mut routes: Vec<(RouteKey, Histogram)> = Vec::new();
        for (key, durations) in counted {
            let key = RouteKey { status: 0, ..*key };
            // They are in order: statuses of a route are side by side.
            match routes.last_mut() {
                Some((last, sum)) if *last == key => sum.merge(durations),
                _ => routes.push((key, *durations)),
            }
        }
        for (key, durations) in routes.iter().filter(|(_, durations)| durations.count >= Slow::KNOWN_FROM) {
            let Some(p99) = Quantile::of(durations, 0.99) else { continue };
            let threshold_ns = p99.at_most_ns.max(nanoseconds(Slow::LEAST));
            let told = thresholds.get(key).copied().unwrap_or(config.threshold_ns);
            if threshold_ns.abs_diff(told) <= told / STEADY {
                continue;
            }
            match kernel.set_threshold(*key, threshold_ns) {
                Ok(()) => drop(thresholds.insert(*key, threshold_ns)),
                Err(error) => tracing::debug!(pid, %error, "a route keeps its threshold"),
            }
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Line {
    /// Goroutines of the first process that serve a request which was seen to begin.
    ///
    /// # Errors
    /// When the kernel refuses to read its map.
    pub fn serving(&self) -> Result<HashSet<u64>, LineError> {
        let known = self.first().zip(self.probes.as_ref());
        Ok(known
            .map(|(first, probes)| probes.kernel.serving(first.number()))
            .transpose()?
            .unwrap_or_default())
    }
}

/// Tells the tracees what was counted of their requests, and which are open.
pub(super) fn read_requests(probes: Option<&mut Probes>, traced: &mut [Traced]) {
    let Some(Probes { kernel, .. }) = probes else { return };
    if !traced.iter().any(Traced::traces_requests) {
        return;
    }
    if let Err(error) = try_read(kernel, traced) {
        tracing::warn!(%error, "requests are not told with this report");
    }
}

fn try_read(kernel: &mut Kernel, traced: &mut [Traced]) -> Result<(), kernel::Error> {
    let mut routes: Vec<(RouteKey, RouteTimes)> = Vec::new();
    kernel.routes(|key, times| routes.push((*key, *times)))?;
    routes.sort_by_key(|(k, _)| (k.process, k.protocol, k.method, k.route, k.length, k.handler, k.status));
    let mut open = kernel.open_requests(Clock::now_monotonic_ns())?;
    // What is just being ended is as good as gone.
    open.retain(|(_, open, _)| open.start_ns != 0);
    let now_ns = Clock::now_monotonic_ns();
    open.sort_by_key(|(key, open, _)| (key.process, open.start_ns, key.id));
    let mut all: Vec<(usize, RequestCounts, Vec<RequestKey>)> = Vec::new();
    let mut words = open_routes::MAX_WORDS;
    for (n, traced) in traced.iter_mut().enumerate().filter(|(_, traced)| traced.traces_requests()) {
        let number = traced.number();
        let mut own = Vec::new();
        let mut counts = RequestCounts { now_ns, ..RequestCounts::default() };
        for (key, RouteTimes { durations, times }) in routes.iter().filter(|(key, _)| key.process == number) {
            let mut durations = *durations;
            durations.count = durations.buckets.iter().sum();
            own.push((*key, durations));
            counts.routes.push(RouteCount {
                id: RouteId::of(key),
                status: key.status,
                durations,
                times: *times,
            });
        }
        traced.set_thresholds(kernel, &own);
        let memory = traced.watch.image().and_then(|image| image.memory().ok());
        // What was open at the end of a turn may have ended since.
        let is_traced = traced.step() == Step::Requests;
        let own = open.iter().filter(|(key, ..)| is_traced && key.process == number).take(MAX_OPEN);
        let layout = traced.parsed().program.binary.g_layout();
        let mut details = Vec::new();
        let mut routes = traced.watched.as_mut().map(|watched| std::mem::take(&mut watched.open_routes));
        let seen = own.filter_map(|(key, open, account)| {
            let watched = traced.watched.as_ref()?;
            // Of one that does not run, for its stack.
            let g = || {
                let goroutine = GoroutineKey { goid: open.goid, process: number, reserved: 0 };
                let is_parked = matches!(account.state, request::state::BLOCKED | request::state::SYSCALL);
                is_parked.then(|| kernel.goroutine(&goroutine)).flatten().map(|state| state.g)
            };
            let is_http = matches!(open.protocol, request::protocol::HTTP1 | request::protocol::HTTP2);
            let routed =
                routes.as_mut().zip(memory.as_ref().filter(|_| is_http)).and_then(|(routes, memory)| {
                    let reader = Reader(memory);
                    let stack = || stack_of(&reader, &layout, g()?);
                    routes.of(&reader, &watched.config, (open, now_ns), &mut words, stack)
                });
            let seen = watched.seen(number, memory.as_ref(), now_ns, (open, account, routed));
            let id = (open.goid, open.start_ns);
            if seen.slow && !traced.tracee.has_told(id) {
                let g = if details.len() < MAX_STACKS { g() } else { None };
                let stack =
                    memory.as_ref().zip(g).and_then(|(memory, g)| stack(memory, &layout, g, open.goid));
                details.push(OpenDetail {
                    goid: open.goid,
                    start_ns: open.start_ns,
                    path: tracee::path_text(&tracee::redacted(&open.path)),
                    frames: stack.unwrap_or_default(),
                });
            }
            Some((*key, seen))
        });
        let (keys, seen) = seen.unzip();
        counts.open = seen;
        if let Some((watched, mut routes)) = traced.watched.as_mut().zip(routes) {
            routes.retain(&counts.open);
            watched.open_routes = routes;
        }
        if !details.is_empty() {
            traced.tracee.tell(&Input::OpenDetails(details));
        }
        all.push((n, counts, keys));
    }
    // What was read of one is its own only as long as it goes on.
    let still = if open.is_empty() { HashMap::new() } else { kernel.open_since()? };
    for (n, mut counts, keys) in all {
        let mut keys = keys.iter();
        counts.open.retain(|open| keys.next().and_then(|key| still.get(key)) == Some(&open.start_ns));
        if let Some(traced) = traced.get_mut(n) {
            traced.tracee.tell(&Input::RequestCounts(Box::new(counts)));
        }
    }
    Ok(())
}

impl WatchedRequests {
    /// An open request of the process with this number, and what was found on its stack of its route.
    fn seen(
        &self,
        process: u32,
        memory: Option<&ImageMemory>,
        now_ns: u64,
        (open, account, routed): (&OpenRequest, &Account, Option<open_routes::Found>),
    ) -> OpenSeen {
        let routed = routed.filter(|(_, length, depth)| open.yields_to((*length).into(), *depth));
        let routed = routed.map(|(route, length, named_depth)| OpenRequest {
            named: RouteKey { route, length, ..open.named },
            named_depth,
            ..*open
        });
        let open = routed.as_ref().unwrap_or(open);
        let named = memory.map(|memory| name(&self.config, memory, open)).unwrap_or_default();
        let mut route = RouteKey { process, protocol: open.protocol, ..named };
        if route.length == 0 {
            route.handler = open.handler;
        }
        let threshold_ns = self.threshold_ns(&route).max(LEAST_OPEN_NS);
        OpenSeen {
            id: RouteId::of(&route),
            goid: open.goid,
            start_ns: open.start_ns,
            times: std::array::from_fn(|n| account.times[n].saturating_sub(open.base[n])),
            state: (account.state, account.class, account.since_ns),
            slow: now_ns.saturating_sub(open.start_ns) >= threshold_ns,
        }
    }
}

/// Method and route of an open request, read from the process's memory as the kernel side reads those that end.
fn name(config: &RequestConfig, memory: &ImageMemory, open: &OpenRequest) -> RouteKey {
    let mut key = RouteKey::default();
    let reader = Reader(memory);
    if open.protocol == request::protocol::GRPC {
        if let Some((text, length)) = reader.text(open.object, config.grpc_method) {
            (key.route, key.length) = (text, length);
        }
        return key;
    }
    if open.protocol == request::protocol::SPAN {
        // A span that nobody ended may be gone, and another one in its place.
        let span = |at: u16| open.object.checked_add(at.into());
        let is_it = span(config.span.span_id).and_then(|at| reader.word(at)) == Some(open.own.span_id);
        let name = FieldPath { steps: [config.span.name, NO_STEP, NO_STEP] };
        if let Some((text, length)) = reader.text(open.object, name).filter(|_| is_it) {
            (key.route, key.length) = (text, length);
        }
        return key;
    }
    let header = |object| reader.follow(object, config.request.header).and_then(|at| reader.word(at));
    let of_object = header(open.object);
    let own = if open.header == 0 { of_object } else { Some(open.header) };
    let copied = open.routed != 0 && header(open.routed) == own;
    if open.header != 0 {
        key.method = open.method;
    } else if let Some((text, _)) = reader.text::<8>(open.object, config.request.method) {
        key.method = text;
    }
    let mut pattern = open.pattern;
    if pattern[1] == 0 && (copied || own == of_object) {
        let holder = if copied { open.routed } else { open.object };
        pattern = reader.follow(holder, config.pattern).and_then(|at| reader.words(at)).unwrap_or_default();
    }
    let [address, length] = pattern;
    if !open.yields_to(length, open.routed_depth) {
        (key.route, key.length) = (open.named.route, open.named.length);
    } else if let Some((text, length)) = reader.text_at(address, length) {
        (key.route, key.length) = (text, length);
    }
    key
}

/// From where to where the frames of a goroutine are that does not run.
fn stack_of(reader: &Reader<'_>, layout: &GLayout, g: u64) -> Option<(u64, u64)> {
    // g.stack.hi; g.sched.sp is before g.sched.pc.
    Some((reader.word(g.checked_add(u64::from(layout.sched_pc) - 8)?)?, reader.word(g.checked_add(8)?)?))
}

/// Return addresses of a goroutine that does not run, innermost first, by its frame pointers; `None` where it ran meanwhile.
fn stack(memory: &ImageMemory, layout: &GLayout, g: u64, goid: u64) -> Option<Vec<u64>> {
    let reader = Reader(memory);
    let field = |offset: u16| g.checked_add(offset.into()).and_then(|at| reader.word(at));
    let at = || Some((field(layout.sched_pc)?, field(layout.sched_bp)?));
    let (pc, mut frame) = at()?;
    let mut frames = vec![pc];
    while frames.len() < MAX_FRAMES {
        let Some([next, ret]) = reader.words(frame).filter(|[_, ret]| *ret != 0) else { break };
        frames.push(ret);
        // Stacks grow down: an older frame lies above.
        if next <= frame {
            break;
        }
        frame = next;
    }
    (field(layout.goid)? == goid && at()?.0 == pc).then_some(frames)
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
        let [address, length] = self.words(self.follow(base, path)?)?;
        self.text_at(address, length)
    }

    fn words(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.word(address)?, self.word(address.checked_add(8)?)?])
    }

    /// The same, from where it lies.
    fn text_at<const N: usize>(&self, pointer: u64, length: u64) -> Option<([u8; N], u8)> {
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
