//! `gotrace attach`: follows a running process.
//!
//! Where a daemon of this node has probes in it already, that one is asked, unless something is wanted that it does not do.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use clap::Parser as _;

use super::{
    AttachArgs, Cli, CliError, Command, Engine, Exit, Format, TraceArgs,
    args::RecordingArgs,
    asked::{Daemon, Follow, Form, Probed},
    followed,
    output::Stdout,
    served, trace,
};
use gotrace_agent::pipeline::{LeftBehind, Line, Stop};
use gotrace_export::otlp::ExportConfig;
use gotrace_process::Target;

/// A daemon reports no more often.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the process until it ends, the time is over, or the user has enough.
///
/// # Errors
/// When the process cannot be traced, or results cannot be written.
pub fn run(args: AttachArgs) -> Result<Exit, CliError> {
    args.trace.check()?;
    let suppressions = trace::suppressions(args.trace.suppress.as_deref())?;
    let pid = args.target.pid()?;
    let target = Target::open(pid)?;
    match args.needs_own_probes() {
        Some(_) if args.trace.engine == Engine::Snapshot => {}
        Some(flag) => args.ask.warn_of_probes(pid, flag),
        None => {
            if let Some((daemon, probed)) = args.ask.daemon_with_probes(pid)
                && let Some(exit) = follow(&args, pid, &daemon, &probed)?
            {
                return Ok(exit);
            }
        }
    }
    let background = trace::Background::start(&args.trace)?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let mut config = args.trace.line_config(false, LeftBehind::Nobody, args.budget.budget());
    config.suppressions = suppressions;
    let mut line = Line::new(config, background.exporter())?;
    let recorder = args.trace.recorder(&args.budget)?;
    if let Some(recorder) = &recorder {
        line.record_to(recorder.clone());
        if args.trace.recording.keep.is_some() {
            let recorder = recorder.clone();
            background.on_signal(libc::SIGUSR1, move || recorder.ask())?;
        }
    }
    let mut display = trace::Display::new(&args.trace, false);
    let mut server = None;
    if let Some(address) = args.http {
        let (serves, board) = served::line(&mut line, address, &background)?;
        display = display.with_page(board, serves.place());
        server = Some(serves);
    }
    line.trace(target)?;
    trace::say_engine(&line, &args.trace, false);
    display.began(&line, &stop)?;
    let result = trace::run(&mut line, &stop, args.trace.duration, &mut display);
    if let Some(server) = server {
        server.stop(background.runtime());
    }
    trace::finish(line, background, display, recorder)?;
    result?;
    Ok(Exit::DONE)
}

/// Has the daemon tell of the process; `None` where it does not, and of that is told.
fn follow(
    args: &AttachArgs,
    pid: u32,
    daemon: &Daemon,
    Probed { level }: &Probed,
) -> Result<Option<Exit>, CliError> {
    let background = trace::Background::with_export(ExportConfig::default())?;
    let stop = Stop::default();
    background.stop_on_signals(&stop)?;
    let wanted = args.trace.level;
    followed::say_from(daemon, pid, level, wanted);
    let table = args.trace.format == Format::Table;
    let follow = Follow {
        pid,
        level: wanted,
        every: args.trace.interval,
        form: if table { Form::Text } else { Form::Json },
        system: args.trace.system,
    };
    let deadline = args.trace.duration.map(|duration| Instant::now() + duration);
    let until = (&stop, deadline);
    let ended = if table && io::stdout().is_terminal() {
        followed::show(daemon, follow, level, until)?
    } else {
        daemon.follow(follow, until, &mut Stdout::lock())?
    };
    let Some(ended) = ended else { return Ok(None) };
    followed::say_ended(ended);
    Ok(Some(Exit::DONE))
}

impl AttachArgs {
    /// The flag that a daemon's reports cannot follow; `None` where there is none. Every flag is named here: one that is new
    /// does not compile until it is written what it needs.
    fn needs_own_probes(&self) -> Option<&'static str> {
        let plain = Cli::try_parse_from(["gotrace", "attach", "1"]).ok();
        let Some(Command::Attach(plain)) = plain.and_then(|cli| cli.command) else {
            return Some("the flags");
        };
        let TraceArgs {
            level: _,
            duration: _,
            format: _,
            system: _,
            // Of spans, which `export` and `otlp` are for.
            trace_root_age: _,
            span_ratio: _,
            keep_longer_than: _,
            keep_wait_over: _,
            max_spans_per_second: _,
            resource_command_args: _,
            otlp: _,
            export: _,
            min_wait,
            stack_depth,
            interval,
            requests,
            functions: _,
            paths: _,
            quiet,
            engine,
            reconcile,
            suspect_every,
            prove_after,
            prove_every,
            max_read_rate,
            no_proof,
            suppress,
            ring_bytes,
            recording: RecordingArgs { record, max_size: _, when_full: _, keep: _ },
            max_goroutines,
            kernel_log,
        } = &self.trace;
        let exports = self.trace.export_config().is_ok_and(|e| e.otlp.is_some() || e.file.is_some());
        let usual = &plain.trace;
        [
            ("a recording", record.is_some()),
            ("the export of spans and metrics", exports),
            ("--http", self.http.is_some()),
            ("--budget", self.budget != plain.budget),
            ("--min-wait", *min_wait != usual.min_wait),
            ("--stack-depth", *stack_depth != usual.stack_depth),
            ("--interval below 1s", *interval < LEAST_INTERVAL),
            ("--requests", requests.is_some()),
            ("--quiet", *quiet),
            ("--engine", *engine != usual.engine),
            ("--reconcile", *reconcile != usual.reconcile),
            ("--suspect-every", *suspect_every != usual.suspect_every),
            ("--prove-after", *prove_after != usual.prove_after),
            ("--prove-every", *prove_every != usual.prove_every),
            ("--max-read-rate", max_read_rate.is_some()),
            ("--no-proof", *no_proof),
            ("--suppress", suppress.is_some()),
            ("--ring-bytes", *ring_bytes != usual.ring_bytes),
            ("--max-goroutines", *max_goroutines != usual.max_goroutines),
            ("--kernel-log", *kernel_log != usual.kernel_log),
        ]
        .into_iter()
        .find_map(|(flag, needs)| needs.then_some(flag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_asked_for_what_it_can_tell() {
        let of = |more: &[&str]| {
            let cli =
                Cli::try_parse_from(["gotrace", "attach", "1"].iter().chain(more)).expect("valid arguments");
            let Some(Command::Attach(args)) = cli.command else { panic!("attach") };
            args.needs_own_probes()
        };
        for asked in [
            &[][..],
            &["--level", "full", "--duration", "9s", "--format", "json", "--interval", "2s", "--system"],
        ] {
            assert_eq!(of(asked), None, "{asked:?}");
        }
        for (own, why) in [
            (&["--export", "a.jsonl"][..], "the export of spans and metrics"),
            (&["--otlp", "http://localhost:4317"], "the export of spans and metrics"),
            (&["--record", "a.gtr"], "a recording"),
            (&["--budget", "none"], "--budget"),
            (&["--http", "9465"], "--http"),
            (&["--interval", "500ms"], "--interval below 1s"),
            (&["--stack-depth", "0"], "--stack-depth"),
            (&["--engine", "snapshot"], "--engine"),
            (&["--quiet"], "--quiet"),
        ] {
            assert_eq!(of(own), Some(why));
        }
    }
}
