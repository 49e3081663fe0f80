//! One examination of a process on the command line: what `leaks` and `check` have in common.
//!
//! Input: a pid, and for how long. Output: the last look, findings with what is known of them beforehand, and why it
//! could not go on, if so. What is done between looks is the caller's.

use std::{
    cell::Cell,
    io::{self, IsTerminal as _},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CliError, Exit, say, trace};
use gotrace_export::leaks::{Header, When};
use gotrace_go::Binary;
use gotrace_inspect::{
    examine::{Conclusion, Examination, Limits, Pace, Step},
    leak::{Acceptance, Finding, Identity, Verdict},
    snapshot::{Live, Snapshot, SnapshotError},
};
use gotrace_process::{CpuQuota, Identity as ProcessIdentity, Target};

/// Between two looks where there is no watch.
const SHORT: Duration = Duration::from_millis(300);
/// Looks at least this far apart.
const SHORTEST: Duration = Duration::from_millis(200);
/// And at most, unless said otherwise.
const LONGEST: Duration = Duration::from_secs(10);
/// As many looks as a watch has, where the bounds allow it.
const LOOKS: u32 = 16;
/// Time between looks, at least, in durations of a look: so that gotrace takes a tenth of a CPU at most.
const REST: u32 = 10;
/// Nothing is called stuck earlier, unless said otherwise.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// Goroutines whose references are looked for.
const MAX_SUSPECTS: usize = 200_000;

/// Verdicts that can be come to while a process runs.
pub(super) fn verdict(name: &str) -> Result<Verdict, String> {
    const EXPECTED: &str = "expected unreachable, deadlock, stalled, growing, stuck or orphaned";
    match Verdict::from_name(name) {
        Some(Verdict::LeftBehind) => Err("left_behind is for `gotrace exec` only".into()),
        Some(verdict) => Ok(verdict),
        None => Err(EXPECTED.into()),
    }
}

/// How long a goroutine must not have run to be stuck, where the user does not say.
pub(super) fn stuck_after(watch: Option<Duration>) -> Duration {
    watch.map_or(STUCK_AFTER, |w| (w / 2).min(STUCK_AFTER))
}

/// A running Go program.
pub(super) struct Program {
    pub pid: u32,
    target: Target,
    pub executable: String,
    pub binary: Arc<Binary>,
}

impl Program {
    /// Reads the executable of a process. What that cannot tell is warned of.
    pub fn open(pid: u32) -> Result<Self, CliError> {
        Self::of(Target::open(pid)?)
    }

    /// The same of one that is open.
    pub fn of(target: Target) -> Result<Self, CliError> {
        let pid = target.pid();
        let executable = target.executable.display().to_string();
        let binary = super::dump::parse(&target, &target.exe_bytes()?).map_err(|e| {
            CliError::new(Exit::UNSUPPORTED, format!("cannot read process {pid}: {executable}: {e}"))
        })?;
        for warning in binary.warnings() {
            tracing::warn!(pid, "{warning}");
        }
        if binary.layout_is_extrapolated() {
            tracing::warn!(
                pid,
                "{} is newer than this gotrace supports: cannot tell whether goroutines have run; deadlock on nil \
                 channels is the only verdict",
                binary.go_version().text
            );
        }
        Ok(Self { pid, target, executable, binary: Arc::new(binary) })
    }

    /// The same with its tables packed.
    pub fn packed(mut self) -> Self {
        if let Some(binary) = Arc::get_mut(&mut self.binary) {
            binary.pack();
        }
        self
    }

    /// Limits of its CPU time, and what they have cost so far; `None` where that is not known.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.target.identity
    }

    /// Its CPU quotas; `None` where they are not known.
    pub fn cpu_quotas(&self) -> Option<Vec<CpuQuota>> {
        self.target.cpu_quotas()
    }

    /// Has this read it, beside an examination.
    ///
    /// # Errors
    /// When it cannot be read, or what `look` says.
    pub fn look<T>(
        &self,
        look: impl FnOnce(&Target, &mut Live) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let live = Live::new(&self.target, Arc::clone(&self.binary));
        look(&self.target, &mut live.map_err(|e| super::dump::error(self.pid, &e))?)
    }

    /// Prepares to examine it. `proofs`: how its heap is scanned, if it is.
    pub fn examine(&self, stuck_after: Duration, proofs: Option<Pace>) -> Result<Process, CliError> {
        let limits = Limits {
            stuck_after_ns: u64::try_from(stuck_after.as_nanos()).unwrap_or(u64::MAX),
            max_suspects: MAX_SUSPECTS,
            max_looks: usize::MAX,
            tells_peers: true,
        };
        let examination = Examination::new(&self.target, Arc::clone(&self.binary), limits, proofs);
        let examination = examination.map_err(|e| super::dump::error(self.pid, &e))?;
        Ok(Process { pid: self.pid, examination, progress: io::stderr().is_terminal() })
    }

    /// What is said of it beside findings, as of no look yet.
    pub fn header(&self, when: When) -> Header<'_> {
        Header {
            pid: self.pid,
            executable: &self.executable,
            go_version: &self.binary.go_version().text,
            engine: "snapshot",
            time_unix_nano: 0,
            duration_ns: 0,
            looks: 1,
            goroutines: 0,
            came_and_exited: (0, 0),
            when,
            references_complete: true,
            proof: None,
            outside: None,
        }
    }
}

/// When the first look began, by both clocks.
#[derive(Clone, Copy)]
pub(super) struct Begin {
    unix_nano: u64,
    monotonic_ns: u64,
}

impl Begin {
    pub fn of(first: &Snapshot) -> Self {
        Self { unix_nano: first.time_unix_nano, monotonic_ns: first.monotonic_ns }
    }

    /// A header with the figures of a watch that began then.
    pub fn header<'a>(self, header: Header<'a>, last: &Snapshot, looks: usize, complete: bool) -> Header<'a> {
        Header {
            time_unix_nano: self.unix_nano,
            duration_ns: (last.monotonic_ns + last.duration_ns).saturating_sub(self.monotonic_ns),
            looks,
            goroutines: last.counts.goroutines.saturating_sub(last.counts.system),
            references_complete: complete,
            ..header
        }
    }
}

/// The process that is looked at.
pub(super) struct Process {
    pid: u32,
    pub examination: Examination,
    /// Whether the user is told how far a watch is.
    pub progress: bool,
}

/// The watch could not go on.
pub(super) struct Ended {
    last: Snapshot,
    error: CliError,
}

/// What a watch came to.
pub(super) struct Concluded {
    pub last: Snapshot,
    pub findings: Vec<Finding>,
    pub references_complete: bool,
    /// Why the process could not be looked at any more.
    pub gone: Option<CliError>,
}

impl Process {
    pub fn look(&mut self) -> Result<Snapshot, CliError> {
        self.examination.look().map_err(|e| self.error(&e))
    }

    pub fn error(&self, e: &SnapshotError) -> CliError {
        super::dump::error(self.pid, e)
    }

    /// Looks until the time is over; gives the last look. `until_next`: waits until the next look is due, and says
    /// whether there is to be none.
    pub fn watch(
        &mut self,
        first: Snapshot,
        length: Option<Duration>,
        interval: Option<Duration>,
        mut until_next: impl FnMut(&mut Examination, Instant) -> bool,
    ) -> Result<Snapshot, Box<Ended>> {
        let mut last = first;
        let Some(length) = length else {
            std::thread::sleep(SHORT);
            return Ok(last);
        };
        let wanted = interval.unwrap_or_else(|| (length / LOOKS).clamp(SHORTEST, LONGEST));
        let begin = Instant::now();
        let progress = self.progress;
        let mut next = begin + wanted;
        while next <= begin + length && !until_next(&mut self.examination, next) {
            let looked = Instant::now();
            match self.look() {
                Ok(snapshot) => last = snapshot,
                Err(error) => return Err(Box::new(Ended { last, error })),
            }
            self.examination.check();
            if progress {
                let (seen, count) =
                    (self.examination.watch().looks(), last.counts.goroutines - last.counts.system);
                let left = (begin + length).saturating_duration_since(Instant::now()).as_secs();
                say(&format!("\r\x1b[K{seen} snapshots, {count} goroutines, {left} s left (Ctrl-C to stop)"));
            }
            next += wanted.max(looked.elapsed() * REST);
            // A process that was stopped for a while is not looked at more often afterwards.
            next = next.max(Instant::now());
        }
        if progress {
            say("\r\x1b[K");
        }
        Ok(last)
    }

    /// What a watch comes to; of a process that is gone, as far as it is known.
    pub fn conclude(&mut self, seen: Result<Snapshot, Box<Ended>>) -> Result<Concluded, CliError> {
        match seen {
            Ok(last) => {
                let (last, Conclusion { findings, references_complete }) = self.look_again(last)?;
                Ok(Concluded { last, findings, references_complete, gone: None })
            }
            Err(ended) => {
                let Ended { last, error } = *ended;
                let findings = self.examination.conclude_without(&last);
                Ok(Concluded { last, findings, references_complete: false, gone: Some(error) })
            }
        }
    }

    /// Looks for references, looks again, and once more, so that what is found has stood still meanwhile.
    fn look_again(&mut self, mut last: Snapshot) -> Result<(Snapshot, Conclusion), CliError> {
        // Never two at once: there may be a million goroutines in each.
        if self.examination.watch().looks() < 2 {
            drop(last);
            last = self.look()?;
        }
        for _ in 0..2 {
            self.examination.search(&last).map_err(|e| self.error(&e))?;
            drop(last);
            last = self.look()?;
        }
        let conclusion = self.examination.conclude(&mut last);
        Ok((last, conclusion))
    }

    /// Says to findings what is known of them beforehand, and gives what they are known by.
    pub fn accept(&mut self, findings: &mut [Finding], acceptance: &Acceptance) -> Vec<Identity> {
        let accept = |finding: &mut Finding| {
            let identity = Identity::of(finding, self.examination.names());
            finding.accepted = acceptance.of(&identity);
            identity
        };
        findings.iter_mut().map(accept).collect()
    }

    /// A goroutine that ran through all scans of the heap, so that its registers are not known and nothing is proven;
    /// warned of.
    pub fn never_stopped(&self) -> Option<u64> {
        let goid = self.examination.prover().and_then(|p| p.proof().never_stopped)?;
        tracing::warn!(
            pid = self.pid,
            goid,
            "goroutine {goid} ran during all heap scans, so that its registers are not known: nothing is reported as \
             unreachable"
        );
        Some(goid)
    }
}

/// Whether a proof is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proved {
    /// The scans agree, there are enough of them, or there is nobody.
    Complete,
    /// More are needed.
    Unfinished,
    /// None are made, or no more.
    Unprovable,
}

/// Makes passes over the heap, one at least, until they agree, there are enough, the time has come, or the user wants no
/// more. `made`: how many there were before.
pub(super) fn prove(
    examination: &mut Examination,
    interrupted: &Interrupts,
    until: Option<Instant>,
    made: &mut u32,
) -> Proved {
    let progress = io::stderr().is_terminal();
    let proved = loop {
        let Some(Ok(step)) = examination.pass() else { break Proved::Unprovable };
        *made += 1;
        if progress {
            let so_far = examination.prover().map_or(0, |p| p.proof().unreachable.len());
            say(&format!("\r\x1b[K{made} heap scans, {so_far} goroutines unreachable so far"));
        }
        let Step::More(rest) = step else { break Proved::Complete };
        let over = until.is_some_and(|until| Instant::now() >= until);
        if interrupted.wait_until(Instant::now() + rest) || over {
            break Proved::Unfinished;
        }
    };
    if progress {
        say("\r\x1b[K");
    }
    proved
}

/// Ctrl-C and the like, for as long as it lives.
pub(super) struct Interrupts {
    runtime: tokio::runtime::Runtime,
    told: Arc<tokio::sync::Notify>,
    /// Whether one came, after which nothing is waited for any more.
    ended: Cell<bool>,
}

impl Interrupts {
    pub fn listen() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |e: io::Error| CliError::failure(format!("cannot handle signals: {e}"));
        let runtime = trace::runtime("gotrace-signals", 1)?;
        let told = Arc::new(tokio::sync::Notify::new());
        {
            let _in_runtime = runtime.enter();
            for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
                let mut signals = signal(kind).map_err(failed)?;
                let told = Arc::clone(&told);
                runtime.spawn(async move {
                    while signals.recv().await.is_some() {
                        told.notify_one();
                    }
                });
            }
        }
        Ok(Self { runtime, told, ended: Cell::new(false) })
    }

    /// Whether the user wanted to end before the time came.
    pub fn wait_until(&self, time: Instant) -> bool {
        if !self.ended.get() {
            let told = async { tokio::time::timeout_at(time.into(), self.told.notified()).await.is_ok() };
            self.ended.set(self.runtime.block_on(told));
        }
        self.ended.get()
    }

    /// Whether the user has wanted to end.
    pub fn came(&self) -> bool {
        self.ended.get()
    }
}
