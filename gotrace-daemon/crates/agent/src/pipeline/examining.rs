//! Leaks and stalls are looked for while a process is traced: now and then a look at where everybody stands, and, where
//! goroutines have waited for others for long, passes over its heap until enough agree.
//!
//! It is the [`Examination`] that `gotrace leaks` makes, for as long as the process is traced; this decides when. One
//! thread does it for all processes, one step at a time, and rests between two passes of a process for so many times as
//! long as one took, so that they take a small share of one core. Input: what the table knows of waits and of births
//! and deaths. Output: findings, which [`super::findings`] tells. A finding of a proven leak goes only when it is
//! refuted, which is counted.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use super::{
    LineConfig, Traced,
    alone::alone,
    findings::{name_entries, recorded},
    in_hand::Process,
    workers::Workers,
};
use crate::tracee::{Input, Outputs};
use gotrace_inspect::{
    examine::{Examination, Limits, Pace, Step},
    leak::{Finding, Reason, Verdict},
    snapshot::SnapshotError,
};
use gotrace_process::{Clock, ProcessError, give_memory_back};

/// When proofs are made, and what they may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofPace {
    /// Only where goroutines have waited for others for so long.
    pub after: Duration,
    /// From the end of one proof to the beginning of the next.
    pub every: Duration,
    /// A pass is followed by a rest of so many times its duration.
    pub rest: u32,
    /// Bytes a second that are read at most; `None` for as many as there are.
    pub max_read_rate: Option<u64>,
}

/// How often it is looked, and what that may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspicionPace {
    /// From one look to the next; longer where a look takes long.
    pub every: Duration,
    /// A goroutine that has not moved for so long may be stuck.
    pub stuck_after: Duration,
}

/// The next look comes no sooner than after so many times what this one took: 0.5 % of a core.
const REST: u32 = 200;
/// The same of what was searched beside it to explain what was found: who holds a lock, who keeps a pool's members.
const REST_AFTER_SEARCH: u32 = 20;
/// Where no goroutine is born or dies, it is looked so many times more seldom.
const SELDOM: u32 = 8;
/// Looks that are kept; beyond, old ones are thinned out. More than what is left of a year.
const MAX_LOOKS: usize = 128;
/// Goroutines whose references are looked for.
const MAX_SUSPECTS: usize = 20_000;
/// How long a proof that somebody asked for is kept for them.
const ASKED_FOR: Duration = Duration::from_secs(30);
/// Findings of one process that are told: of proven leaks, and of others.
const MAX_LEAKS: usize = 256;
const MAX_SUSPECTED: usize = 64;

/// What came of a step.
enum Came {
    /// A look, and how long that alone took.
    Looked(Result<Vec<Finding>, SnapshotError>, Duration),
    /// Another pass is wanted, after a rest of this long at least.
    More(Duration),
    /// A proof is complete.
    Proven(Result<Vec<Finding>, SnapshotError>),
    /// No pass can be made any more.
    Failed,
}

struct Answer {
    examination: Box<Examination>,
    took: Duration,
    came: Came,
}

/// What became of a proof that was asked for, until that is told.
#[derive(Debug, Default)]
enum Asked {
    /// None was.
    #[default]
    No,
    /// It is to be made, or is being made.
    Ordered,
    /// When it was done.
    Made(Instant),
    Failed(String),
}

/// Looks after the examination of one process.
pub(super) struct Examining {
    process: Process,
    looks: Option<SuspicionPace>,
    proofs: Option<ProofPace>,
    workers: Workers,
    /// `None` while the worker has it, or where it can no longer be examined.
    examination: Option<Box<Examination>>,
    results: Option<Receiver<Answer>>,
    /// When to look; `None` for never.
    look_due: Option<Instant>,
    /// When to make a pass.
    pass_due: Option<Instant>,
    /// Whether a proof is under way.
    proving: bool,
    /// Births and deaths at the last look, and when it was ordered.
    looked: Option<(u64, Instant)>,
    /// When the proof that is being made began, and the last one that was completed.
    begun: Option<Instant>,
    completed: Option<Instant>,
    /// Goroutines that have only just begun to wait, as of the last reading.
    young: u64,
    /// What looks are remembered with, as of the last.
    bytes: usize,
    refuted: u64,
    /// What became of a proof that somebody asked for.
    asked: Asked,
    /// Goroutines that are proven to be leaked, and not told.
    left_out: u64,
    /// Bytes that it may take.
    room: u64,
    /// Whether it was said that this is not enough.
    cramped: bool,
}

impl Examining {
    /// `None` where the program cannot be examined, which is said.
    fn new(
        traced: &Traced,
        looks: Option<SuspicionPace>,
        proofs: Option<ProofPace>,
        workers: &Workers,
    ) -> Option<Self> {
        let now = Instant::now();
        let limits = Limits {
            stuck_after_ns: stuck_after_ns(looks),
            max_suspects: MAX_SUSPECTS,
            max_looks: MAX_LOOKS,
            tells_peers: false,
        };
        let pace = proofs.map(|p| Pace { max_read_rate: p.max_read_rate, ..Pace::default() });
        let binary = Arc::clone(traced.tracee.symbolizer().shared_binary());
        let examination = Examination::new(traced.target(), binary, limits, pace)
            .inspect_err(|error| {
                tracing::info!(pid = traced.pid(), "leak detection disabled for this process: {error}");
            })
            .ok()?;
        let proves = examination.prover().is_some();
        Some(Self {
            process: traced.process(),
            looks,
            proofs,
            workers: workers.clone(),
            examination: Some(Box::new(examination)),
            results: None,
            look_due: looks.map(|_| now),
            pass_due: proofs.filter(|_| proves).map(|p| now + p.after),
            proving: false,
            looked: None,
            begun: None,
            completed: None,
            young: 0,
            bytes: 0,
            refuted: 0,
            asked: Asked::default(),
            left_out: 0,
            room: u64::MAX,
            cramped: false,
        })
    }

    /// From now on it is examined in this way; `false` where that takes another examination.
    fn set_pace(&mut self, looks: Option<SuspicionPace>, proofs: Option<ProofPace>) -> bool {
        let now = Instant::now();
        if proofs.is_some() && self.proofs.is_none() {
            return false;
        }
        if looks != self.looks {
            let due = looks.map(|pace| now + pace.every);
            self.look_due = self.look_due.map_or(due, |known| due.map(|due| due.min(known)));
            self.looks = looks;
        }
        match proofs {
            Some(pace) if self.proofs != proofs && !self.proving => {
                self.pass_due = self.pass_due.map(|due| due.min(now + pace.after.min(pace.every)));
            }
            Some(_) => {}
            None => (self.pass_due, self.proving) = (None, false),
        }
        self.proofs = proofs;
        true
    }

    /// Nobody is called stuck where it is not looked.
    fn stuck_after_ns(&self) -> u64 {
        stuck_after_ns(self.looks)
    }

    /// When the last proof began that was completed.
    pub fn completed(&self) -> Option<Instant> {
        self.completed
    }

    /// Goroutines that are proven to be leaked, and not told.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Somebody wants a proof now. Whether it is made.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn ask(&mut self, now: Instant) -> Result<bool, String> {
        if self.examination.is_none() && self.results.is_none() {
            return Err("it cannot be examined: the log says why".into());
        }
        match std::mem::take(&mut self.asked) {
            Asked::Made(at) if now < at + ASKED_FOR => return Ok(true),
            Asked::Failed(why) => return Err(why),
            // It may be due by now, after a rest.
            Asked::Ordered => {}
            Asked::No | Asked::Made(_) if self.proving => {}
            Asked::No | Asked::Made(_) => self.pass_due = Some(now),
        }
        self.asked = Asked::Ordered;
        Ok(false)
    }

    fn asked_came_to(&mut self, asked: Asked) {
        if matches!(self.asked, Asked::Ordered) {
            self.asked = asked;
        }
    }

    /// Proofs that were refuted.
    pub fn refuted(&self) -> u64 {
        self.refuted
    }

    /// Bytes that looks are remembered with.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether proofs are made.
    pub fn proves(&self) -> bool {
        self.proofs.is_some()
    }

    /// A reading of who waits begins.
    pub fn begin_waits(&mut self) {
        self.young = 0;
    }

    /// Somebody waits for others, since then.
    pub fn waits(&mut self, since_ns: u64, now_ns: u64) {
        let after = self.proofs.map_or(Duration::ZERO, |p| p.after);
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.young += u64::from(now_ns.saturating_sub(since_ns) < after);
    }

    /// Whether something is due, or under way.
    fn has_business(&self, now: Instant) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        self.results.is_some() || self.examination.is_some() && (due(self.look_due) || due(self.pass_due))
    }

    /// Orders what is due, and takes in what is done: the findings, where there are new ones. `turnover`: births and
    /// deaths so far. `known`: whether goroutines are proven to be leaked.
    fn tend(
        &mut self,
        now: Instant,
        turnover: u64,
        waiting_for_others: u64,
        known: bool,
    ) -> Option<Vec<Finding>> {
        if let Some(results) = &self.results {
            let answer = match results.try_recv() {
                Ok(answer) => answer,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => {
                    self.results = None;
                    return self.stop("the check panicked; see the message above");
                }
            };
            self.results = None;
            return self.take_in(answer, now);
        }
        if let (Some(due), Some(pace)) = (self.pass_due.filter(|due| now >= *due), self.proofs) {
            let asked = matches!(self.asked, Asked::Ordered);
            if self.proving || asked || waiting_for_others > self.young || known {
                self.order_pass();
                return None;
            }
            self.pass_due = Some(now.max(due) + pace.after.min(pace.every).max(Duration::from_secs(1)));
        }
        if let (true, Some(pace)) = (self.look_due.is_some_and(|due| now >= due), self.looks) {
            let quiet =
                self.looked.is_some_and(|(then, at)| then == turnover && now < at + pace.every * SELDOM);
            if quiet {
                self.look_due = Some(now + pace.every);
            } else {
                self.looked = Some((turnover, now));
                self.order(look);
            }
        }
        None
    }

    fn order_pass(&mut self) {
        if !std::mem::replace(&mut self.proving, true) {
            self.begun = Some(Instant::now());
        }
        self.order(pass);
    }

    fn order(&mut self, step: fn(&mut Examination) -> Came) {
        let Some(mut examination) = self.examination.take() else { return };
        let (results, taken) = channel();
        examination.set_room(self.room);
        examination.set_pace(self.stuck_after_ns(), self.proofs.and_then(|p| p.max_read_rate));
        let work = move || {
            let _alone = alone(examination.listed());
            let begin = Instant::now();
            let came = step(&mut examination);
            // Refused when the process is not traced any more.
            let _ = results.send(Answer { examination, took: begin.elapsed(), came });
        };
        self.workers.order(self.process, Box::new(work));
        self.results = Some(taken);
    }

    fn take_in(&mut self, Answer { examination, took, came }: Answer, now: Instant) -> Option<Vec<Finding>> {
        self.bytes = examination.watch().bytes();
        self.refuted = examination.proof_summary().map_or(0, |s| s.refuted);
        self.examination = Some(examination);
        let every = self.looks.map_or(Duration::MAX, |pace| pace.every);
        let found = match came {
            Came::Looked(found, looked) => {
                let rest = (looked * REST).max(took.saturating_sub(looked) * REST_AFTER_SEARCH);
                self.look_due = now.checked_add(every.max(rest));
                found
            }
            Came::More(rest) => {
                let times = self.proofs.map_or(0, |pace| pace.rest);
                self.pass_due = Some(now + rest.max(took * times));
                return None;
            }
            Came::Proven(found) => {
                self.proving = false;
                self.completed = self.begun;
                self.pass_due = self.proofs.map(|pace| now + pace.every);
                self.asked_came_to(match &found {
                    Ok(_) => Asked::Made(now),
                    Err(error) => Asked::Failed(error.to_string()),
                });
                found
            }
            Came::Failed => {
                // Where there was no memory for it there may be some another time.
                let failure = self.examination.as_ref().map(|e| e.proof_failure());
                let again = matches!(failure, Some(None));
                let why = failure.flatten().unwrap_or("its heap cannot be read just now").to_owned();
                self.asked_came_to(Asked::Failed(why));
                let pace = self.proofs.filter(|_| again);
                (self.proving, self.pass_due) = (false, pace.map(|pace| now + pace.every));
                return None;
            }
        };
        match found {
            Ok(mut found) => {
                found.retain(|f| self.looks.is_some() || f.verdict == Verdict::Unreachable);
                let (mut leaks, mut others) = (0, 0);
                self.left_out = 0;
                found.retain(|f| {
                    let (n, most) = match f.verdict {
                        Verdict::Unreachable => (&mut leaks, MAX_LEAKS),
                        _ => (&mut others, MAX_SUSPECTED),
                    };
                    *n += 1;
                    if *n > most && f.verdict == Verdict::Unreachable {
                        self.left_out += f.goids.len() as u64;
                    }
                    *n <= most
                });
                Some(found)
            }
            Err(error @ (SnapshotError::NotStarted | SnapshotError::Implausible { .. })) => {
                tracing::debug!(%error, "a snapshot failed and will be retried");
                None
            }
            Err(error @ SnapshotError::TooMany { .. }) => {
                if !std::mem::replace(&mut self.cramped, true) {
                    tracing::warn!(
                        pid = self.process.0,
                        "leaks are not looked for in this process for now: {error}"
                    );
                }
                None
            }
            // That is said by those who look at it next, and what was found was so at its end.
            Err(SnapshotError::Process(ProcessError::Gone { .. })) => {
                self.examination = None;
                None
            }
            Err(error) => self.stop(&error.to_string()),
        }
    }

    /// It is not examined any more. What was found before is told no longer: nothing would tell that it has become
    /// wrong.
    fn stop(&mut self, why: &str) -> Option<Vec<Finding>> {
        tracing::warn!(pid = self.process.0, "leak detection stopped for this process: {why}");
        self.examination = None;
        Some(Vec::new())
    }
}

fn stuck_after_ns(looks: Option<SuspicionPace>) -> u64 {
    looks.map_or(u64::MAX, |pace| u64::try_from(pace.stuck_after.as_nanos()).unwrap_or(u64::MAX))
}

/// A look, and what it comes to with those before.
fn look(examination: &mut Examination) -> Came {
    let begin = Instant::now();
    let (found, looked) = conclude(examination, true);
    Came::Looked(found, looked.map_or_else(|| begin.elapsed(), |at| at.duration_since(begin)))
}

/// A pass, and if that was the last, what came of all of them.
fn pass(examination: &mut Examination) -> Came {
    match examination.pass() {
        Some(Ok(Step::More(rest))) => Came::More(rest),
        Some(Ok(Step::Done)) => {
            let (found, _) = conclude(examination, false);
            examination.drop_evidence();
            give_memory_back();
            Came::Proven(found)
        }
        Some(Err(_)) | None => Came::Failed,
    }
}

/// What all of it comes to, and when the look was done, unless it failed.
fn conclude(
    examination: &mut Examination,
    search: bool,
) -> (Result<Vec<Finding>, SnapshotError>, Option<Instant>) {
    let look = |examination: &mut Examination| {
        let snapshot = examination.look()?;
        if search {
            examination.search(&snapshot)?;
        }
        Ok(snapshot)
    };
    let mut snapshot = match look(examination) {
        Ok(snapshot) => snapshot,
        Err(error) => return (Err(error), None),
    };
    let looked = Instant::now();
    if search && examination.watch().looks() < 2 {
        return (Ok(Vec::new()), Some(looked));
    }
    let mut findings = examination.conclude(&mut snapshot).findings;
    name_entries(&mut findings, examination.names());
    (Ok(findings), Some(looked))
}

impl Traced {
    /// It is examined in this way from now on. Without looks nobody is suspected, and without proofs nobody is told as
    /// leaked.
    pub(super) fn follow_examination(&mut self, looks: Option<SuspicionPace>, proofs: Option<ProofPace>) {
        let wanted = looks.is_some() || proofs.is_some();
        let Some(examining) = &mut self.examining else { return };
        if wanted && examining.set_pace(looks, proofs) {
            // What nobody looks after any more is not told: nothing would tell that it holds no longer.
            self.tracee.tell(&Input::KeepFindings { proven: proofs.is_some(), suspected: looks.is_some() });
        } else {
            self.examining = None;
            self.examining_begun = false;
            self.tracee.tell(&Input::NoFindings);
        }
    }

    /// Looks after the examination, which may take `room` bytes; what is new goes to `out`.
    pub(super) fn tend_examination(
        &mut self,
        now: Instant,
        (line, room): (&LineConfig, u64),
        workers: &Workers,
        out: &mut Outputs,
    ) {
        if line.suspicions.is_none() && line.proofs.is_none()
            || self.yet_to_execute
            || !self.tracee.table().is_seeded()
        {
            return;
        }
        if !std::mem::replace(&mut self.examining_begun, true) {
            self.examining = Examining::new(self, line.suspicions, line.proofs, workers);
        }
        let Some(examining) = self.examining.as_mut().filter(|e| e.has_business(now)) else { return };
        examining.room = room;
        let tracee = &self.tracee;
        let waiting: u64 = tracee
            .table()
            .waiting()
            .filter(|(reason, _)| Reason::from_name(&tracee.reason(*reason)).is_provable())
            .map(|(_, n)| n)
            .sum();
        let totals = tracee.table().totals();
        let found = examining.tend(now, totals.born + totals.died, waiting, tracee.has_proven());
        let refuted = examining.refuted();
        if refuted != tracee.refuted() {
            self.tracee.tell(&Input::Refuted(refuted));
        }
        if let Some(found) = found {
            let found = found.iter().map(recorded).collect();
            self.tracee.apply(&Input::Found { now_ns: Clock::now_monotonic_ns(), found }, out);
        }
    }
}
