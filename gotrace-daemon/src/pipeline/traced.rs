//! One traced process: its program, table, symbols and probes.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::BorrowedFd,
    sync::Arc,
    time::Instant,
};

use foldhash::fast::FixedState;
use gotrace_common::{ProcessConfig, flags};

use super::{
    LineConfig, LineError,
    behind::Behind,
    cost::ProbeCost,
    probes::SharedFile,
    programs::Parsed,
    proofs::Proofs,
    sampling::Sampler,
    seed::Snapshots,
    spending::{LevelTimes, Look},
    suspicions::Suspicions,
    text::Text,
};
use crate::{
    decode::{Event, OpenWait},
    gobin::{Binary, Event as ProbeEvent, Plan, Source},
    ids::ProcessKey,
    leak::Reason,
    level::Level,
    process::{Clock, FileNode, GoFacts, Target, Watch, resource},
    sink::model::{LevelChange, Resource, Span, Value},
    snapshot::Live,
    symbolize::Symbolizer,
    table::{Output, Table},
};

/// Births with an impossible entry address that are put down to chance before tracing is given up.
const IMPLAUSIBLE_LIMIT: u64 = 3;
/// A process that is traced.
pub struct Traced {
    pub(super) number: u32,
    /// Its row in the kernel side's arrays; `None` without probes from the beginning.
    pub(super) slot: Option<u32>,
    pub(super) target: Target,
    pub(super) watch: Watch,
    pub(super) cost: ProbeCost,
    pub(super) symbolizer: Symbolizer,
    pub(super) bias_known: bool,
    pub(super) table: Table,
    pub(super) resource: Arc<Resource>,
    /// What the process itself and the host tell; `resource` is this with what others know.
    base: Arc<Resource>,
    pub(super) key: ProcessKey,
    pub(super) clock: Clock,
    parsed: Parsed,
    /// Its file, as all that run it see it; `None` when it cannot be looked at.
    shared_file: Option<SharedFile>,
    /// What the kernel side is told of it.
    pub(super) config: ProcessConfig,
    /// Whether the kernel side counts its executions, and `config` names the one that is traced.
    pub(super) generation_known: bool,
    /// How many programs before this one it executed that had their stacks in the same place.
    repeat: u32,
    pub(super) level: Level,
    /// The highest level that it has had.
    pub(super) highest: Level,
    pub(super) began_ns: u64,
    pub(super) reported_ns: u64,
    pub(super) reported: (u64, u64),
    plausible_entries: HashSet<u64, FixedState>,
    pub(super) implausible: u64,
    pub(super) spans: u64,
    pub(super) sampler: Sampler,
    outputs: Vec<Output>,
    executed: bool,
    pub(super) yet_to_execute: bool,
    expects_execution: bool,
    /// Whether it has executed the program that it waited for, and its probes are to be verified.
    begun: bool,
    pub(super) behind: Option<Behind>,
    /// `None` until they begin, and where nothing can be proven.
    pub(super) proofs: Option<Proofs>,
    pub(super) proofs_begun: bool,
    /// `None` until they begin, and where nobody can be suspected.
    pub(super) suspicions: Option<Suspicions>,
    pub(super) suspicions_begun: bool,
    /// Whether births and deaths come from snapshots only.
    pub(super) sampled: bool,
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
    /// Why its level is lower than is wanted.
    pub(super) lowered: Option<&'static str>,
    /// Other processes of its file that have probes of their own, each of which makes its hits dearer.
    pub(super) neighbours: u32,
    /// How long it had which level.
    pub(super) times: LevelTimes,
    /// The last change of its level, until it is reported.
    pub(super) level_change: Option<LevelChange>,
    /// Whether it is traced by snapshots for want of memory, and may have no more goroutines.
    pub(super) cramped: bool,
    pub(super) capped: bool,
    /// Records that came of it since the last look at memory.
    pub(super) records: u64,
    /// Bytes that were kept of it at the last measurement.
    pub(super) kept_bytes: u64,
    /// Why it cannot be followed any more.
    failure: Option<String>,
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
        let missing: Vec<&str> = [ProbeEvent::Create, ProbeEvent::Exit]
            .into_iter()
            .chain(
                (line.level >= Level::Waits)
                    .then_some([ProbeEvent::Park, ProbeEvent::Run])
                    .into_iter()
                    .flatten(),
            )
            .filter(|event| plan.probes.iter().all(|p| p.event != *event))
            .map(ProbeEvent::name)
            .collect();
        if !missing.is_empty() && !sampled {
            return Err(LineError::NoProbe { pid, executable: executable(), what: missing.join(", ") });
        }
        for warning in plan.warnings.iter().filter(|_| !sampled) {
            tracing::warn!(pid, "{warning}");
        }
        let config = ProcessConfig {
            // Number, slot and file are given when it joins the line.
            process: 0,
            slot: 0,
            level: line.level as u8,
            stack_depth: line.stack_depth,
            coroutine_reason: binary.coroutine_reason().unwrap_or(0),
            reserved: 0,
            flags: if binary.has_parent_goid_before_gopc() { flags::PARENT_GOID } else { 0 },
            min_wait_ns: u64::try_from(line.min_wait.as_nanos()).unwrap_or(u64::MAX),
            layout: binary.g_layout(),
            gc_reasons: binary.gc_reasons(),
            file: 0,
            generation: 0,
        };
        let go = GoFacts {
            version: Some(&binary.go_version().text),
            module_version: binary.build().module_version.as_deref(),
            build_id: binary.build().go_build_id.as_deref(),
        };
        let resource = Arc::new(resource(&target, go, line.resource));
        let bias = load_bias(&target, binary);
        let binary = Arc::clone(binary);
        let file = target.executable_file().try_clone().ok().map(Arc::new);
        let behind = Behind::new(line, &binary, file.clone(), first);
        Ok(Self {
            number: 0,
            slot: None,
            cost: ProbeCost::new(&plan),
            bias_known: bias.is_some(),
            symbolizer: Symbolizer::new(binary, file, bias.unwrap_or(0)),
            table: Table::new(u64::try_from(line.trace_root_age.as_nanos()).unwrap_or(u64::MAX))
                .with_room_for(line.goroutines_each),
            base: Arc::clone(&resource),
            resource,
            key: target.identity.key(watch.stack_start(), 0),
            watch,
            clock: Clock::measure(),
            shared_file: FileNode::of(target.executable_file())
                .ok()
                .map(|node| SharedFile { node, content: parsed.program.content }),
            parsed,
            config,
            generation_known: false,
            repeat: 0,
            level: line.level,
            highest: line.level,
            began_ns: 0,
            reported_ns: 0,
            reported: (0, 0),
            plausible_entries: HashSet::default(),
            implausible: 0,
            spans: 0,
            sampler: Sampler::default(),
            outputs: Vec::new(),
            executed: false,
            yet_to_execute: target.is_yet_to_execute(),
            expects_execution: target.is_yet_to_execute(),
            begun: false,
            behind,
            proofs: None,
            proofs_begun: false,
            suspicions: None,
            suspicions_begun: false,
            sampled,
            live: None,
            snapshots: None,
            first_snapshot: None,
            fresh: false,
            drained_bytes: 0,
            flooded: None,
            looked: None,
            lowered: None,
            neighbours: 0,
            times: LevelTimes::default(),
            level_change: None,
            cramped: false,
            capped: false,
            records: 0,
            kept_bytes: 0,
            failure: None,
            target,
        })
    }

    /// It has its place in the line and, unless it is sampled, in the kernel side's arrays.
    pub(super) fn join(&mut self, number: u32, slot: Option<u32>) {
        self.number = number;
        self.generation_known &= self.slot == slot;
        self.slot = slot;
        self.config.process = number;
        self.config.slot = slot.unwrap_or(0);
    }

    /// So many programs before this one had their stacks in the same place.
    pub(super) fn set_repeat(&mut self, repeat: u32) {
        self.repeat = repeat;
        self.key = self.target.identity.key(self.watch.stack_start(), repeat);
    }

    /// Whether its probes were put in place before its program began, and it has begun since this was last asked.
    pub(super) fn is_to_be_verified(&mut self) -> bool {
        !self.sampled && std::mem::take(&mut self.begun)
    }

    /// Others know this of it: its spans and metrics carry it from now on.
    pub(super) fn learn(&mut self, metadata: &BTreeMap<Arc<str>, Value>) {
        self.resource = Arc::new(self.base.with_metadata(metadata));
    }

    /// Takes on what the configuration says of a process's tracing, its level aside.
    pub(super) fn follow_config(&mut self, line: &LineConfig) {
        self.config.min_wait_ns = u64::try_from(line.min_wait.as_nanos()).unwrap_or(u64::MAX);
        self.config.stack_depth = line.stack_depth;
    }

    /// Its level is another one than before.
    pub(super) fn level_changed(&mut self, before: Level, line: &LineConfig) {
        if self.level == before {
            return;
        }
        if self.level < Level::Waits {
            self.table.forget_parks();
        }
        self.change_pace(line);
        self.times.change(Clock::now_monotonic_ns(), self.level_name());
    }

    /// Its probes are gone: snapshots tell of it from now on.
    pub(super) fn stop_events(&mut self, line: &LineConfig) {
        self.sampled = true;
        self.table.become_sampled();
        self.table.forget_parks();
        self.change_pace(line);
        self.times.change(Clock::now_monotonic_ns(), self.level_name());
    }

    /// Its probes are in place again, since `now_ns` (monotonic).
    pub(super) fn resume_events(&mut self, now_ns: u64, line: &LineConfig) {
        self.sampled = false;
        self.table.become_traced(now_ns);
        self.change_pace(line);
        self.times.change(now_ns, self.level_name());
    }

    fn change_pace(&mut self, line: &LineConfig) {
        let pace = self.pace(line);
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.set_pace(pace, &mut self.table);
        }
    }

    /// It cannot be followed any more.
    pub(super) fn fail(&mut self, error: &LineError) {
        tracing::warn!(pid = self.pid(), "not traced any more: {error}");
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

    /// The probes of a level, with those of the levels below.
    pub(super) fn plan(&self, level: Level) -> Plan {
        self.parsed.program.binary.plan(level)
    }

    /// There are no probes after all.
    pub(super) fn become_sampled(&mut self) {
        self.sampled = true;
    }

    /// The probes are in place, or there are none: tracing begins now. `beginning`: so has its program.
    pub(super) fn begin(&mut self, line: &LineConfig, beginning: bool) {
        self.cost.begin(self.watch.cpu_time_ns());
        self.began_ns = Clock::now_monotonic_ns();
        self.reported_ns = self.began_ns;
        self.table.begin(self.began_ns);
        self.times.change(self.began_ns, self.level_name());
        self.expect_snapshots(line, beginning);
    }

    /// Whether a snapshot has been held against the table since this was asked.
    pub(super) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.fresh)
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// Where its figures come from.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        if self.sampled { "snapshot" } else { "events" }
    }

    /// How much is known of it: the level, or that it is sampled.
    #[must_use]
    pub fn level_name(&self) -> &'static str {
        if self.sampled { "sampled" } else { self.level.name() }
    }

    /// Its number within the line.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.target.pid()
    }

    /// Its program.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        self.symbolizer.binary()
    }

    /// The process itself.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// It as OpenTelemetry's resource.
    #[must_use]
    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    pub(super) fn reason(&self, reason: u8) -> Arc<str> {
        // 256 entries.
        self.parsed
            .program
            .reasons
            .get(usize::from(reason))
            .cloned()
            .unwrap_or_else(|| Arc::from("unspecified"))
    }

    /// Takes an event; what ended goes to `spans`.
    pub(super) fn handle(&mut self, event: &Event<'_>, line: &LineConfig, spans: &mut Vec<Span>) {
        self.records += 1;
        if let Event::Create(create) = event {
            if !self.bias_known {
                self.find_bias(create.entry_pc);
            }
            if !self.plausible_entries.contains(&create.entry_pc) {
                if self.symbolizer.is_function_entry(create.entry_pc) {
                    self.plausible_entries.insert(create.entry_pc);
                } else {
                    self.implausible += 1;
                    return;
                }
            }
        }
        if let Event::Exec { .. } = event {
            // The one that it waited for is none.
            self.begun = std::mem::take(&mut self.expects_execution);
            self.executed = !self.begun;
            return;
        }
        if let (Event::Create(create), Some(behind)) = (event, &mut self.behind) {
            behind.born(create.goid, create.parent_goid, create.entry_pc, create.created_pc);
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        self.table.set_long_wait(line.sampling.long_wait_ns());
        self.table.apply(event, &mut outputs);
        for output in outputs.drain(..) {
            if let (Output::Waited(waited), Some(behind)) = (&output, &mut self.behind) {
                behind.waited(waited.goid, &waited.frames);
            }
            let root = match &output {
                Output::Ended(e) => e.root,
                Output::Waited(w) => w.root,
            };
            if !self.sampler.takes(&line.sampling, self.key.trace_id(root), &output) {
                continue;
            }
            self.spans += 1;
            spans.push(match output {
                Output::Ended(ended) => Span::Goroutine(self.goroutine_span(ended)),
                Output::Waited(waited) => Span::Wait(self.wait_span(waited)),
            });
        }
        self.outputs = outputs;
    }

    pub(super) fn begin_open_waits(&mut self) {
        self.table.begin_open_waits();
        if let Some(behind) = &mut self.behind {
            behind.begin_waits();
        }
        if let Some(proofs) = &mut self.proofs {
            proofs.begin_waits();
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

    pub(super) fn open_wait(&mut self, wait: &OpenWait) {
        if self.proofs.is_some()
            && Reason::from_name(&self.reason(wait.reason)).is_for_others()
            && let Some(proofs) = &mut self.proofs
        {
            proofs.waits(wait.start_ns, wait.time_ns);
        }
        self.table.apply(&Event::OpenWait(*wait), &mut Vec::new());
    }

    /// A program that was traced before it ran was not mapped yet. Its first goroutine is
    /// `runtime.main`; otherwise the map tells.
    fn find_bias(&mut self, entry_pc: u64) {
        let binary = self.symbolizer.binary();
        let from_main = binary.function_address("runtime.main").map(|main| entry_pc.wrapping_sub(main));
        let bias = load_bias(&self.target, binary).or(from_main.filter(|bias| bias % 4096 == 0));
        if let Some(bias) = bias {
            self.symbolizer.set_bias(bias);
            self.bias_known = true;
        }
    }

    pub(super) fn check_plausible(&self) -> Result<(), LineError> {
        if self.implausible < IMPLAUSIBLE_LIMIT || !self.plausible_entries.is_empty() {
            return Ok(());
        }
        Err(self.implausible_because(format!(
            "{} goroutines began at addresses where no function begins",
            self.implausible
        )))
    }

    pub(super) fn implausible_because(&self, why: String) -> LineError {
        let binary = self.symbolizer.binary();
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
        self.key = self.target.identity.key(self.watch.stack_start(), self.repeat);
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

/// Where the process's executable is mapped, as the distance from its link-time addresses; `None` when that cannot be
/// read, or is yet to come.
pub(super) fn load_bias(target: &Target, binary: &Binary) -> Option<u64> {
    if !binary.build().pie {
        return Some(0);
    }
    if target.is_yet_to_execute() {
        return None;
    }
    let mappings = target.executable_mappings().ok()?;
    mappings.iter().find_map(|m| binary.load_bias(m.start, m.file_offset))
}
