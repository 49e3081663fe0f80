//! One traced process: its program, table, symbols and probes.

use std::{collections::BTreeMap, os::fd::BorrowedFd, sync::Arc, time::Instant};

use gotrace_common::{EntryFilter, ProcessConfig, flags};

use super::{
    LineConfig, LineError, behind::Behind, examining::Examining, holds::Held, in_hand::Process,
    live::LiveTracee, probes::SharedFile, programs::Parsed, requests::WatchedRequests, seed::Snapshots,
    spending::Look, text::Text,
};
use crate::{
    decode::{Create, Event, plain_creation},
    recording::Recorder,
    tracee::{Counted, Input, Lowered, Origin, Outputs, ProbeCost, Step, Tracee},
};
use gotrace_go::{Binary, Event as ProbeEvent, Source};
use gotrace_inspect::{leak::Reason, snapshot::Live};
use gotrace_metadata::{GoFacts, ResourceOptions, resource};
use gotrace_model::{Interval, Level, Resource, Value};
use gotrace_process::{Clock, Executable, Target, Watch};

/// Births with an impossible entry address that are put down to chance before tracing is given up.
const IMPLAUSIBLE_LIMIT: u64 = 3;
/// A process that is traced.
pub struct Traced {
    /// Its row in the kernel side's arrays; `None` without probes from the beginning.
    pub(super) slot: Option<u32>,
    pub(super) target: Target,
    pub(super) watch: Watch,
    /// What is known of it.
    pub(super) tracee: LiveTracee,
    pub(super) bias_known: bool,
    /// What the process itself and the host tell; its resource is this with what others know.
    pub(super) base: Arc<Resource>,
    pub(super) resource_options: ResourceOptions,
    parsed: Parsed,
    /// Its file, as all that run it see it; `None` when it cannot be looked at.
    shared_file: Option<SharedFile>,
    /// What the kernel side is told of it.
    pub(super) config: ProcessConfig,
    /// `None` where its requests are not traced.
    pub(super) watched: Option<WatchedRequests>,
    /// Whether it is to be told anew.
    pub(super) config_changed: bool,
    /// Whether what it keeps of the process's goroutines is old.
    pub(super) stale: bool,
    /// Whether the kernel side counts its executions, and `config` names the one that is traced.
    pub(super) generation_known: bool,
    /// How many programs before this one it executed that had their stacks in the same place.
    repeat: u32,
    /// Whether it was said that it makes more spans than it may have exported.
    said_too_many_spans: bool,
    executed: bool,
    pub(super) yet_to_execute: bool,
    expects_execution: bool,
    /// Whether it has executed the program that it waited for, and its probes are to be verified.
    begun: bool,
    pub(super) behind: Option<Behind>,
    /// `None` until it begins, and where the program cannot be examined.
    pub(super) examining: Option<Examining>,
    pub(super) examining_begun: bool,
    /// Until the thread that takes snapshots has it.
    pub(super) live: Option<Live>,
    pub(super) snapshots: Option<Snapshots>,
    /// `None` when there are to be none.
    pub(super) first_snapshot: Option<Instant>,
    /// Whether a snapshot was held against the table since the last report.
    pub(super) fresh: bool,
    /// Bytes that came of it in the last reading of the ring.
    pub(super) drained_bytes: u64,
    /// When it last filled the ring.
    pub(super) flooded: Option<Instant>,
    /// What the last look at its spending saw.
    pub(super) looked: Option<Look>,
    /// Other processes of its file that have probes of their own, each of which makes its hits dearer.
    pub(super) neighbours: u32,
    /// Whether it is traced by snapshots for want of memory, and may have no more goroutines.
    pub(super) cramped: bool,
    pub(super) capped: bool,
    /// What clients of the socket want of it.
    pub(super) held: Held,
    /// Records that came of it since the last look at memory.
    pub(super) records: u64,
    /// Bytes that were kept of it at the last measurement.
    pub(super) kept_bytes: u64,
    /// Why it cannot be followed any more.
    failure: Option<String>,
}

/// A process as OpenTelemetry's resource, as far as it and the host tell.
pub(super) fn describe(target: &Target, binary: &Binary, options: ResourceOptions) -> Resource {
    let go = GoFacts {
        version: Some(&binary.go_version().text),
        module_version: binary.build().module_version.as_deref(),
        build_id: binary.build().go_build_id.as_deref(),
    };
    resource(target, go, options)
}

impl Traced {
    /// Plans the probes of the process's program; puts nothing in place. `first`: it is the one that the
    /// user has named.
    pub(super) fn prepare(
        target: Target,
        parsed: Parsed,
        line: &LineConfig,
        first: bool,
        sampled: bool,
    ) -> Result<Self, LineError> {
        let pid = target.pid();
        let watch = target.watch()?;
        let executable = || target.executable.display().to_string();
        let binary = &parsed.program.binary;
        let plan = binary.plan(line.level);
        let of_waits = (line.level >= Level::Waits).then_some([ProbeEvent::Park, ProbeEvent::Run]);
        let missing: Vec<&str> = [ProbeEvent::Create, ProbeEvent::Exit]
            .into_iter()
            .chain(of_waits.into_iter().flatten())
            .filter(|event| plan.probes.iter().all(|p| p.event != *event))
            .map(ProbeEvent::name)
            .collect();
        if !missing.is_empty() && !sampled {
            return Err(LineError::NoProbe { pid, executable: executable(), what: missing.join(", ") });
        }
        for warning in plan.warnings.iter().filter(|_| !sampled) {
            tracing::warn!(pid, "{warning}");
        }
        let resource = Arc::new(describe(&target, binary, line.resource));
        // What it is going to execute is not mapped yet.
        let bias =
            if binary.build().pie && target.is_yet_to_execute() { None } else { load_bias(&target, binary) };
        let watched = WatchedRequests::of(line, &target, &parsed.program)?;
        let config = ProcessConfig {
            // Number, slot and file are given when it joins the line.
            process: 0,
            slot: 0,
            level: line.level as u8,
            stack_depth: line.stack_depth,
            coroutine_reason: binary.coroutine_reason().unwrap_or(0),
            io_reason: binary.io_reason(),
            // Those of requests come when all probes are in place.
            flags: u32::from(binary.has_parent_goid_before_gopc()) * flags::PARENT_GOID
                + u32::from(binary.go_version().minor >= 21) * flags::STOP_REASON,
            min_wait_ns: u64::try_from(line.min_wait.as_nanos()).unwrap_or(u64::MAX),
            layout: binary.g_layout(),
            reserved: 0,
            gc_reasons: binary.gc_reasons(),
            file: 0,
            generation: 0,
            closures: closures(binary, bias),
        };
        let binary = Arc::clone(binary);
        let file = local_file(&target);
        let behind = Behind::new(line, &binary, file.clone(), first);
        let origin = Origin {
            pid,
            resource: Arc::clone(&resource),
            key: target.identity.key(watch.stack_start(), 0),
            clock: Clock::measure(),
            reasons: Arc::clone(&parsed.program.reasons),
            settings: line.settings(),
            sampled,
            suppressions: line.suppressions.clone(),
            room: line.goroutines_each,
        };
        // It may come to any level.
        let tracee = Tracee::new(origin, ProbeCost::new(&binary.plan(Level::Full)));
        Ok(Self {
            slot: None,
            bias_known: bias.is_some(),
            tracee: LiveTracee::new(tracee, binary, file, bias.unwrap_or(0)),
            base: resource,
            resource_options: line.resource,
            watch,
            shared_file: target
                .executable_file()
                .node()
                .ok()
                .map(|node| SharedFile { node, content: parsed.program.content }),
            parsed,
            config,
            watched,
            config_changed: false,
            stale: false,
            generation_known: false,
            repeat: 0,
            said_too_many_spans: false,
            executed: false,
            yet_to_execute: target.is_yet_to_execute(),
            expects_execution: target.is_yet_to_execute(),
            begun: false,
            behind,
            examining: None,
            examining_begun: false,
            live: None,
            snapshots: None,
            first_snapshot: None,
            fresh: false,
            drained_bytes: 0,
            flooded: None,
            looked: None,
            neighbours: 0,
            cramped: false,
            capped: false,
            held: Held::default(),
            records: 0,
            kept_bytes: 0,
            failure: None,
            target,
        })
    }

    /// It has its place in the line and, unless it is sampled, in the kernel side's arrays.
    pub(super) fn join(&mut self, number: u32, slot: Option<u32>) {
        self.tracee.tell(&Input::Join { number, probes: slot.is_some() });
        self.generation_known &= self.slot == slot;
        self.slot = slot;
        self.config.process = number;
        self.config.slot = slot.unwrap_or(0);
    }

    /// So many programs before this one had their stacks in the same place.
    pub(super) fn set_repeat(&mut self, repeat: u32) {
        self.repeat = repeat;
        self.name();
    }

    fn name(&mut self) {
        let key = self.target.identity.key(self.watch.stack_start(), self.repeat);
        self.tracee.tell(&Input::Key(key));
    }

    /// Whether its probes were put in place before its program began, and it has begun since this was last asked.
    pub(super) fn is_to_be_verified(&mut self) -> bool {
        !self.is_sampled() && std::mem::take(&mut self.begun)
    }

    /// Others know this of it: its spans and metrics carry it from now on.
    pub(super) fn learn(&mut self, metadata: &BTreeMap<Arc<str>, Value>) {
        self.tracee.tell(&Input::Resource(self.base.with_metadata(metadata).attributes));
    }

    /// Why less is traced of it than is wanted.
    pub(super) fn lower(&mut self, lowered: Option<Lowered>) {
        if self.tracee.lowered() != lowered {
            self.tracee.tell(&Input::Lowered(lowered));
        }
    }

    /// Its level is another one than before.
    pub(super) fn level_changed(&mut self, before: Step, line: &LineConfig) {
        if before.level() == Some(self.tracee.level()) {
            return;
        }
        self.tracee.tell(&Input::LevelSet { now_ns: Clock::now_monotonic_ns() });
        self.change_pace(line);
    }

    /// Its probes are gone: snapshots tell of it from now on.
    pub(super) fn stop_events(&mut self, line: &LineConfig) {
        self.tracee.tell(&Input::EventsStopped { now_ns: Clock::now_monotonic_ns() });
        self.change_pace(line);
    }

    /// Its probes are in place again, since `now_ns` (monotonic).
    pub(super) fn resume_events(&mut self, now_ns: u64, line: &LineConfig) {
        self.tracee.tell(&Input::EventsResumed { now_ns });
        self.change_pace(line);
    }

    fn change_pace(&mut self, line: &LineConfig) {
        let pace = self.pace(line);
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.set_pace(pace, &mut self.tracee);
        }
    }

    /// It cannot be followed any more.
    pub(super) fn fail(&mut self, error: &LineError) {
        tracing::warn!(pid = self.pid(), "stopped tracing: {error}");
        self.failure.get_or_insert_with(|| error.to_string());
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Its program, and the file as it was when that was parsed.
    pub(super) fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// What its file has where probes go.
    pub(super) fn text(&self) -> &Text {
        &self.parsed.program.text
    }

    /// Its file, as all that run it see it.
    pub(super) fn shared_file(&self) -> Option<SharedFile> {
        self.shared_file
    }

    /// There are no probes after all.
    pub(super) fn become_sampled(&mut self) {
        self.tracee.tell(&Input::Sampled);
    }

    /// The probes are in place, or there are none: tracing begins now. `beginning`: so has its program.
    pub(super) fn begin(
        &mut self,
        line: &LineConfig,
        beginning: bool,
        clock: Clock,
        recorder: Option<&Recorder>,
    ) {
        // It may have been prepared under another configuration, and before the wall clock was set.
        self.tracee.tell(&Input::Settings(line.settings()));
        self.tracee.tell(&Input::MinWait { ns: self.config.min_wait_ns });
        self.tell_wrappers();
        self.set_clock(clock);
        self.begin_requests();
        let cpu_ns = self.watch.cpu_time_ns();
        self.tracee.tell(&Input::Begin { now_ns: Clock::now_monotonic_ns(), cpu_ns });
        if let Some(recorder) = recorder {
            self.tracee.record_to(recorder);
        }
        self.expect_snapshots(line, beginning);
        if !self.yet_to_execute {
            self.pin();
        }
    }

    /// The wall clock is this far from that of the events from now on.
    pub(super) fn set_clock(&mut self, clock: Clock) {
        let (offset_ns, error_ns) = (clock.offset_ns(), clock.error_ns());
        self.tracee.tell(&Input::Clock { offset_ns, error_ns });
    }

    /// It runs its program: what is to be known of its end is prepared.
    fn pin(&mut self) {
        if let Some(behind) = &mut self.behind {
            behind.pin(&self.watch);
        }
    }

    /// Whether a snapshot has been held against the table since this was asked.
    pub(super) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.fresh)
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.tracee.is_sampled()
    }

    /// Where its figures come from.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.tracee.engine()
    }

    /// How much is known of it: the level, or that it is sampled.
    #[must_use]
    pub fn level_name(&self) -> &'static str {
        self.tracee.level_name()
    }

    /// Its number within the line.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.tracee.number()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.target.pid()
    }

    /// Its process id, and its start.
    pub(super) fn process(&self) -> Process {
        (self.pid(), self.target.identity.start_ticks)
    }

    /// Its program.
    #[must_use]
    pub fn binary(&self) -> &Arc<Binary> {
        self.tracee.symbolizer().binary()
    }

    /// The process itself.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// It as OpenTelemetry's resource.
    #[must_use]
    pub fn resource(&self) -> &Arc<Resource> {
        self.tracee.resource()
    }

    /// Takes an event, which was decoded from these bytes; what it comes to goes to `out`.
    pub(super) fn handle(&mut self, event: &Event<'_>, bytes: &[u8], out: &mut Outputs) {
        self.records += 1;
        match event {
            Event::Exec { .. } => {
                // The one that it waited for is none.
                self.begun = std::mem::take(&mut self.expects_execution);
                self.executed = !self.begun;
                return;
            }
            Event::Create(create) | Event::CreateClosure(create, _) if !self.bias_known => {
                self.find_bias(create.entry_pc);
            }
            _ => {}
        }
        if let Event::CreateClosure(create, words) = event {
            // Nothing else of the process's memory goes any further.
            let entry_pc = self.tracee.runs(create.entry_pc, words);
            let made = Event::Create(Create { entry_pc, ..*create });
            return self.take(&made, &plain_creation(bytes, entry_pc), out);
        }
        self.take(event, bytes, out);
    }

    fn take(&mut self, event: &Event<'_>, bytes: &[u8], out: &mut Outputs) {
        let believed = self.tracee.event(event, bytes, out);
        if let (Some(behind), true) = (&mut self.behind, believed) {
            match event {
                Event::Create(made) => {
                    behind.born(made.goid, made.parent_goid, made.entry_pc, made.created_pc);
                }
                Event::Wait(wait) => behind.waited(wait.goid, wait.frames.iter()),
                _ => {}
            }
        }
    }

    pub(super) fn begin_open_waits(&mut self) {
        self.tracee.tell(&Input::BeginOpenWaits);
        if let Some(behind) = &mut self.behind {
            behind.begin_waits();
        }
        if let Some(examining) = &mut self.examining {
            examining.begin_waits();
        }
    }

    /// Looks at the stacks, if it is to be known who is left behind.
    pub(super) fn look_at_stacks(&mut self) {
        if self.yet_to_execute {
            return;
        }
        if let Some(mut behind) = self.behind.take() {
            behind.look(self);
            self.behind = Some(behind);
        }
    }

    /// A goroutine has waited since `start_ns`, as of `now_ns`.
    pub(super) fn open_wait(&mut self, goid: u64, start_ns: u64, reason: u8, now_ns: u64) {
        if self.examining.as_ref().is_some_and(Examining::proves)
            && Reason::from_name(&self.tracee.reason(reason)).is_for_others()
            && let Some(examining) = &mut self.examining
        {
            examining.waits(start_ns, now_ns);
        }
        self.tracee.tell(&Input::OpenWait { goid, start_ns, reason });
    }

    /// The state now, and what changed since the last call: to be counted so much of it by the kernel side.
    pub(super) fn report(&mut self, counted: Counted) -> Arc<Interval> {
        if self.tracee.makes_too_many_spans() && !std::mem::replace(&mut self.said_too_many_spans, true) {
            tracing::warn!(
                pid = self.pid(),
                "the process exceeds spans.max_per_second: sampling its traces (counted in gotrace.spans.sampled_out)"
            );
        }
        self.tracee.report(counted)
    }

    /// A program that was traced before it ran was not mapped yet. Its first goroutine is
    /// `runtime.main`; otherwise the map tells.
    fn find_bias(&mut self, entry_pc: u64) {
        let binary = self.tracee.symbolizer().binary();
        let from_main = binary.function_address("runtime.main").map(|main| entry_pc.wrapping_sub(main));
        let bias = load_bias(&self.target, binary).or(from_main.filter(|bias| bias % 4096 == 0));
        if let Some(bias) = bias {
            self.know_bias(bias);
        }
    }

    /// Where its program is mapped became known.
    pub(super) fn know_bias(&mut self, bias: u64) {
        let closures = closures(self.binary(), Some(bias));
        // The address of a span's type is known now, too.
        self.config_changed |= self.config.closures != closures || self.traces_requests();
        self.config.closures = closures;
        self.tracee.set_bias(bias);
        self.bias_known = true;
        self.tell_wrappers();
    }

    fn tell_wrappers(&mut self) {
        let symbolizer = self.tracee.symbolizer();
        let bias = symbolizer.bias();
        let entries: Vec<u64> =
            symbolizer.binary().closure_wrappers().map(|entry| entry.wrapping_add(bias)).collect();
        if self.bias_known && !entries.is_empty() {
            self.tracee.tell(&Input::Wrappers(entries));
        }
    }

    pub(super) fn check_plausible(&self) -> Result<(), LineError> {
        let implausible = self.tracee.implausible();
        if implausible < IMPLAUSIBLE_LIMIT {
            return Ok(());
        }
        Err(self.implausible_because(format!(
            "{implausible} goroutines start at addresses that are no function entry"
        )))
    }

    pub(super) fn implausible_because(&self, why: String) -> LineError {
        let binary = self.tracee.symbolizer().binary();
        let from_dwarf = binary.offsets().0.values().any(|o| o.source == Source::Dwarf);
        LineError::Implausible {
            pid: self.pid(),
            go_version: binary.go_version().text.clone(),
            source_: if from_dwarf { "DWARF" } else { "built-in" }.into(),
            why,
        }
    }

    /// Whether it has ended, or is about to: its executable is taken away a little before.
    pub(super) fn has_ended(&self) -> bool {
        self.watch.is_ending()
    }

    /// `None` while it runs what it ran when tracing began.
    pub(super) fn what_became_of_it(&mut self) -> Option<String> {
        if self.failure.is_some() {
            return self.failure.clone();
        }
        if self.executed || (!self.yet_to_execute && self.watch.has_executed_another_program()) {
            self.executed = !self.watch.has_ended();
            return Some("the process executed another program".into());
        }
        self.watch.has_ended().then(|| "the process ended".into())
    }

    /// The process that waited for its probes has executed its program.
    pub(super) fn has_begun(&mut self) -> Result<(), LineError> {
        self.yet_to_execute = false;
        self.watch.accept_program()?;
        self.name();
        self.pin();
        Ok(())
    }

    pub(super) fn executed_another_program(&self) -> bool {
        self.executed
    }

    /// The descriptor that can be read when it has ended.
    pub(super) fn ending(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

/// Entries whose creation the kernel side tells with words of the closure: any, as long as it is not known where the
/// program is mapped.
fn closures(binary: &Binary, bias: Option<u64>) -> EntryFilter {
    let wrappers = binary.closure_wrappers();
    match bias {
        None if wrappers.len() > 0 => EntryFilter::ALL,
        _ => wrappers.fold(EntryFilter::default(), |mut filter, entry| {
            filter.insert(entry.wrapping_add(bias.unwrap_or(0)));
            filter
        }),
    }
}

/// Where the process's executable is mapped, as the distance from its link-time addresses; `None` when that cannot be
/// read, or it runs another one.
pub(super) fn load_bias(target: &Target, binary: &Binary) -> Option<u64> {
    if !binary.build().pie {
        return Some(0);
    }
    let mappings = target.executable_mappings().ok()?;
    mappings.iter().find_map(|m| binary.load_bias(m.start, m.file_offset))
}

/// Its executable, to look into wrappers by; the ring's thread waits for no server of files.
pub(super) fn local_file(target: &Target) -> Option<Arc<Executable>> {
    let file = target.executable_file();
    matches!(file.served_by(), Ok(None)).then(|| Arc::clone(file))
}
