//! What `attach` and `exec` do alike: export, show, end.

use std::{
    io::{self, IsTerminal as _, Write},
    panic,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use super::{CliError, Format, TraceArgs, diagnostics::HoldBack, is_broken_pipe, reading::Reading};
use crate::config::read_suppressions;
use gotrace_agent::pipeline::{
    Budget, Captures, Engine, Follow, LeftBehind, Line, LineConfig, LineError, ProofPace, SpanSampling, Stop,
    SuspicionPace, TraceRequests, Traced,
};
use gotrace_agent::recording::{Recorder, RecordingError};
use gotrace_export::{
    json,
    otlp::{ExportConfig, ExportStats, Exporter},
    prometheus::Board,
    text,
};
use gotrace_inspect::leak::Suppressions;
use gotrace_metadata::ResourceOptions;
use gotrace_model::{Interval, Level, Resource, Summary, printable::printable};
use gotrace_process::{again, contained, room_for};
use gotrace_ui::{Shown, View};

/// Between two passes over the heap, in durations of a pass: a twentieth of a core at most.
const PROOF_REST: u32 = 20;
/// How long the last spans may take to reach the collector.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

impl TraceArgs {
    /// The line's configuration.
    pub(super) fn line_config(
        &self,
        follow_children: bool,
        left_behind: LeftBehind,
        budget: Option<Budget>,
    ) -> LineConfig {
        LineConfig {
            engine: match self.engine {
                // Only events tell who was there at the end.
                _ if left_behind != LeftBehind::Nobody => Engine::Events,
                super::args::Engine::Auto => Engine::Auto,
                super::args::Engine::Events => Engine::Events,
                super::args::Engine::Snapshot => Engine::Snapshot,
            },
            // A goroutine that somebody has woken is not left behind, and only the fullest level sees that.
            level: if left_behind != LeftBehind::Nobody || self.requests.is_some() {
                Level::Full
            } else {
                self.level
            },
            min_wait: self.min_wait,
            stack_depth: self.stack_depth,
            interval: self.interval,
            reconcile: Some(self.reconcile).filter(|every| !every.is_zero()),
            trace_root_age: self.trace_root_age,
            sampling: SpanSampling {
                ratio: self.span_ratio,
                keep_longer_than: self.keep_longer_than,
                keep_wait_over: self.keep_wait_over,
                max_per_second: self.max_spans_per_second,
            },
            ring_bytes: self.ring_bytes,
            goroutines: self.max_goroutines,
            follow: if follow_children { Follow::Descendants } else { Follow::Nobody },
            processes: if follow_children { 64 } else { 2 },
            goroutines_each: usize::MAX,
            memory: u64::MAX,
            budget,
            resource: ResourceOptions { command_args: self.resource_command_args },
            kernel_log_level: self.kernel_log,
            suspicions: (!self.suspect_every.is_zero())
                .then_some(SuspicionPace { every: self.suspect_every, stuck_after: self.prove_after }),
            proofs: (!self.no_proof).then_some(ProofPace {
                after: self.prove_after,
                every: self.prove_every,
                rest: PROOF_REST,
                max_read_rate: self.max_read_rate,
            }),
            left_behind,
            requests: self.requests.map(|slow| TraceRequests {
                slow,
                required: false,
                functions: self.functions.as_slice().into(),
                paths: self.paths,
            }),
            suppressions: Suppressions::default(),
            state: None,
        }
    }
}

/// The line's configuration for watching one process by events, at this level: no spans, no snapshots, no findings.
pub(super) fn events_alone(level: Level, interval: Duration, budget: Option<Budget>) -> LineConfig {
    LineConfig {
        // Snapshots show nothing of it.
        engine: Engine::Events,
        level,
        min_wait: Duration::from_secs(1),
        stack_depth: 0,
        interval,
        reconcile: None,
        trace_root_age: Duration::from_secs(10),
        sampling: SpanSampling::NONE,
        ring_bytes: 8 << 20,
        goroutines: if level == Level::Lifecycle { 1 } else { 1 << 17 },
        follow: Follow::Nobody,
        processes: 2,
        goroutines_each: usize::MAX,
        memory: u64::MAX,
        budget,
        resource: ResourceOptions { command_args: false },
        kernel_log_level: 0,
        suspicions: None,
        proofs: None,
        left_behind: LeftBehind::Nobody,
        requests: None,
        suppressions: Suppressions::default(),
        state: None,
    }
}

impl From<RecordingError> for CliError {
    fn from(e: RecordingError) -> Self {
        Self::failure(e.to_string()).help("free space on its file system, or choose another file")
    }
}

/// Reads the file of suppressions, if there is one.
pub(super) fn suppressions(file: Option<&Path>) -> Result<Suppressions, CliError> {
    let help = "each entry of `suppressions` needs a function and a reason, and can have a list of verdicts";
    let error = |e: crate::config::Error| CliError::usage(e.to_string()).help(help);
    file.map_or_else(|| Ok(Suppressions::default()), |file| read_suppressions(file).map_err(error))
}

impl From<LineError> for CliError {
    fn from(e: LineError) -> Self {
        Self::new(super::Exit(e.exit_code()), e.to_string()).maybe_help(e.help())
    }
}

/// Descriptors that a runtime takes, with signals that are listened for.
const RUNTIME_DESCRIPTORS: usize = 12;

/// A runtime with so many threads.
pub(super) fn runtime(name: &str, threads: usize) -> Result<Runtime, CliError> {
    // Without them it panics.
    let build = || room_for(threads, RUNTIME_DESCRIPTORS).and_then(|()| build_runtime(name, threads));
    again("what a runtime needs", build).map_err(|e| LineError::Threads(e).into())
}

/// What the system did not give in spite of the room for it is an error too, and no panic.
fn build_runtime(name: &str, threads: usize) -> io::Result<Runtime> {
    let build = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).thread_name(name).enable_all().build()
    };
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let built = contained(build);
    panic::set_hook(hook);
    built.unwrap_or_else(|why| {
        tracing::debug!("the runtime says {why}");
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    })
}

/// Background work of a run.
pub(super) struct Background {
    runtime: Runtime,
    exporter: Option<Arc<Exporter>>,
}

impl Background {
    /// Starts the exporter where something is to be exported.
    pub(super) fn start(args: &TraceArgs) -> Result<Self, CliError> {
        Self::with_export(args.export_config()?)
    }

    /// The same for this export.
    pub(super) fn with_export(config: ExportConfig) -> Result<Self, CliError> {
        let runtime = runtime("gotrace-export", 2)?;
        let exporter = if config.otlp.is_some() || config.file.is_some() {
            let exporter =
                Exporter::start(config, runtime.handle()).map_err(|e| CliError::failure(e.to_string()))?;
            Some(Arc::new(exporter))
        } else {
            None
        };
        Ok(Self { runtime, exporter })
    }

    /// Calls `then` at each signal of this kind.
    pub(super) fn on_signal(&self, kind: i32, then: impl Fn() + Send + 'static) -> Result<(), CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let _in_runtime = self.runtime.enter();
        let mut signals = signal(SignalKind::from_raw(kind))
            .map_err(|e| CliError::failure(format!("cannot handle signals: {e}")))?;
        self.runtime.spawn(async move {
            while signals.recv().await.is_some() {
                then();
            }
        });
        Ok(())
    }

    pub(super) fn exporter(&self) -> Option<Arc<Exporter>> {
        self.exporter.clone()
    }

    /// Where background work runs.
    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    /// Sets `stop` when the user or the system asks gotrace to end.
    pub(super) fn stop_on_signals(&self, stop: &Stop) -> Result<(), CliError> {
        self.stop_on(stop, &[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])
    }

    /// Sets `stop` at these signals.
    pub(super) fn stop_on(&self, stop: &Stop, kinds: &[i32]) -> Result<(), CliError> {
        for kind in kinds {
            let stop = stop.clone();
            self.on_signal(*kind, move || stop.set())?;
        }
        Ok(())
    }

    /// Sends what is left; `None` when nothing was to be exported.
    fn finish(self) -> Option<ExportStats> {
        self.finish_within(FLUSH_WITHIN)
    }

    /// The same in another time.
    pub(super) fn finish_within(self, time: Duration) -> Option<ExportStats> {
        let Self { runtime, exporter } = self;
        let stats = exporter.map(|exporter| runtime.block_on(exporter.shutdown(time)));
        // What still hangs on a connection was counted as lost: nobody waits for it.
        runtime.shutdown_background();
        stats
    }
}

/// Shows the run as it goes: a view on a terminal, lines into anything else.
pub(super) struct Display {
    quiet: bool,
    format: Format,
    /// Whether the runtime's own goroutines are shown.
    system: bool,
    /// `exec` leaves stdout to the command.
    to_stderr: bool,
    /// The terminal's, while it is taken.
    view: Option<(View, HoldBack)>,
    /// Processes that have had their header.
    announced: Vec<Arc<Resource>>,
    /// Where the page has its reports from, and its address.
    page: Option<(Arc<Board>, String)>,
}

impl Display {
    pub(super) fn new(args: &TraceArgs, to_stderr: bool) -> Self {
        let TraceArgs { quiet, format, system, .. } = *args;
        Self { quiet, format, system, to_stderr, view: None, announced: Vec::new(), page: None }
    }

    /// The same on a page.
    pub(super) fn with_page(mut self, board: Arc<Board>, address: String) -> Self {
        self.page = Some((board, address));
        self
    }

    fn out(&self) -> Box<dyn Write> {
        if self.to_stderr { Box::new(io::stderr().lock()) } else { Box::new(io::stdout().lock()) }
    }

    /// The probes of a process are in place. `stop` is for the user to set.
    pub(super) fn began(&mut self, line: &Line, stop: &Stop) -> io::Result<()> {
        let Some(traced) = line.first() else { return Ok(()) };
        match self.format {
            Format::Json => {
                self.announce(traced.resource(), traced.pid(), traced.engine(), traced.level_name())
            }
            Format::Table => {
                if !self.quiet && !self.to_stderr && io::stdout().is_terminal() {
                    self.take_terminal(traced, line.handle().captures().clone(), stop);
                }
                Ok(())
            }
        }
    }

    fn take_terminal(&mut self, traced: &Traced, captures: Captures, stop: &Stop) {
        let executable = traced.target().executable.display().to_string();
        let executable = printable(&executable);
        let about = format!(
            "pid {} · {executable} · engine {} · level {}",
            traced.pid(),
            traced.engine(),
            traced.level_name()
        );
        let hold_back = HoldBack::begin();
        let stop = stop.clone();
        let note = self.page.as_ref().map(|(_, address)| address.clone()).unwrap_or_default();
        let reader = Arc::new(Reading { captures, pid: traced.pid() });
        let shown = Shown { about, note, system: self.system, reader: Ok(reader) };
        match View::start(shown, move || stop.set()) {
            Ok(view) => self.view = Some((view, hold_back)),
            // Plain lines then.
            Err(error) => tracing::debug!(%error, "no live view"),
        }
    }

    fn announce(&mut self, resource: &Arc<Resource>, pid: u32, engine: &str, level: &str) -> io::Result<()> {
        if self.announced.iter().any(|r| Arc::ptr_eq(r, resource)) {
            return Ok(());
        }
        self.announced.push(Arc::clone(resource));
        json::header(&mut self.out(), resource, pid, engine, level)
    }

    fn report(&mut self, interval: &Arc<Interval>) -> io::Result<()> {
        if let Some((board, _)) = &self.page {
            board.show(interval);
        }
        if self.quiet {
            return Ok(());
        }
        if let Some((view, _)) = &self.view {
            view.show(interval);
            return Ok(());
        }
        match self.format {
            Format::Table if self.to_stderr => Ok(()),
            Format::Table => text::interval(&mut self.out(), interval, self.system),
            Format::Json => {
                self.announce(&interval.resource, interval.pid, interval.engine, interval.level)?;
                json::interval(&mut self.out(), interval)
            }
        }
    }

    /// Gives the terminal back, if it was taken.
    fn leave_terminal(&mut self) {
        if let Some((view, hold_back)) = self.view.take() {
            view.finish();
            drop(hold_back);
        }
    }

    fn finish(mut self, summaries: &[Summary]) -> io::Result<()> {
        let mut out = self.out();
        for summary in summaries {
            match self.format {
                Format::Json => {
                    let Summary { last, .. } = summary;
                    self.announce(&last.resource, last.pid, last.engine, last.level)?;
                    json::summary(&mut out, summary)?;
                }
                Format::Table if self.quiet => warn_of_losses(summary),
                Format::Table => text::summary(&mut out, summary, self.system)?,
            }
        }
        out.flush()
    }
}

/// Says which engine runs, and what that one cannot tell, where it is not the one that people expect.
pub(super) fn say_engine(line: &Line, args: &TraceArgs, follow_children: bool) {
    let Some(refusal) = line.fallback() else { return };
    let every = text::duration(u64::try_from(args.interval.as_nanos()).ok());
    let missed = format!(
        "using the snapshot engine every {every}, without spans, wait durations and goroutines that live for less than that"
    );
    let what = if refusal.is_not_safe() {
        format!("{refusal}: {missed}")
    } else {
        let children = if follow_children { "; programs that the command starts are not traced" } else { "" };
        format!(
            "eBPF does not work on this host ({refusal}): {missed}{children}; `gotrace doctor` shows what is missing"
        )
    };
    CliError::warn(&what);
}

/// Who wants to see nothing still wants to know that something is missing.
fn warn_of_losses(summary: &Summary) {
    let Summary { last, spans_dropped, points_dropped, logs_dropped, .. } = summary;
    for (what, lost) in [
        ("events", &last.lost),
        ("spans", spans_dropped),
        ("metric points", points_dropped),
        ("log records", logs_dropped),
    ] {
        if !lost.is_empty() {
            tracing::warn!(pid = last.pid, ?lost, "{what} were lost");
        }
    }
}

/// Runs the line until its end, showing each report.
pub(super) fn run(
    line: &mut Line,
    stop: &Stop,
    duration: Option<Duration>,
    display: &mut Display,
) -> Result<(), LineError> {
    let deadline = duration.map(|d| Instant::now() + d);
    let mut broken = false;
    let result = line.run(stop, deadline, &mut |interval| {
        if broken {
            return;
        }
        if let Err(error) = display.report(interval) {
            // A reader that went away (`| head`) ends the run; there is nobody to tell.
            broken = true;
            stop.set();
            if !is_broken_pipe(&error) {
                tracing::error!(%error, "cannot show results");
            }
        }
    });
    display.leave_terminal();
    result
}

/// Adds the exporter's account to the summaries, shows them, and turns an incomplete export file or
/// recording into an error.
pub(super) fn finish(
    line: Line,
    background: Background,
    display: Display,
    recorder: Option<Recorder>,
) -> Result<(), CliError> {
    let mut summaries = line.finish();
    let recorded = recorder.map_or(Ok(()), |recorder| recorder.finish());
    let stats = background.finish();
    if let (Some(stats), Some(last)) = (&stats, summaries.last_mut()) {
        last.spans_dropped.clone_from(&stats.spans_dropped);
        last.points_dropped.clone_from(&stats.points_dropped);
        last.logs_dropped.clone_from(&stats.logs_dropped);
    }
    match display.finish(&summaries) {
        Err(error) if !is_broken_pipe(&error) => return Err(error.into()),
        _ => {}
    }
    recorded?;
    match stats.and_then(|s| s.file_error) {
        Some(error) => {
            Err(CliError::failure(format!("cannot write the export file, which is incomplete: {error}"))
                .help("free space on its file system, or choose another file with --export"))
        }
        None => Ok(()),
    }
}
