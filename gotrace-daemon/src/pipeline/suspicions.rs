//! Suspicions of leak while a process is traced: now and then a look at where everybody stands, from which
//! [`crate::leak`] judges which goroutines will probably not finish.
//!
//! As `gotrace leaks --watch` does, for as long as the process is traced: looks of long ago are thinned out.
//! Who refers to what suspects wait on is looked for after a look, and must hold after the next one too.
//! What is proven ([`super::proofs`]) is told there, not here.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use super::{
    Traced,
    proofs::{Places, tell_places},
    seed::Workers,
};
use crate::{
    heap::PASSES,
    leak::{Finding, Settings, Unreached, Verdict, Watch, judge, suspects},
    process::Clock,
    sink::model::{LogRecord, Severity, Suspected, Value},
    snapshot::{Live, Options, References, Snapshot, SnapshotError, StackFrame, Suspect},
};

/// How often it is looked, and what that may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspicionPace {
    /// From one look to the next; longer where a look takes long.
    pub every: Duration,
    /// A goroutine that has not moved for so long may be stuck.
    pub stuck_after: Duration,
}

/// The next look comes no sooner than after so many times what this one took: half a hundredth of a core.
const REST: u32 = 200;
/// Where no goroutine is born or dies, it is looked so many times more seldom.
const SELDOM: u32 = 8;
/// Looks that are kept; beyond, old ones are thinned out. More than what is left of a year.
const MAX_LOOKS: usize = 128;
/// Goroutines whose references are looked for.
const MAX_SUSPECTS: usize = 20_000;
/// Findings of one process that are told.
const MAX_FOUND: usize = 64;
/// Places whose log records are remembered; more are told without.
const MAX_TOLD: usize = 4096;
/// A log record is sent again when there are so many times as many as at the last.
const GROWTH_STEP: u64 = 2;
/// Goids that are named.
const NAMED: usize = 16;

/// What the looks of one process need.
struct Job {
    live: Live,
    watch: Watch,
    /// Who refers to what suspects for channels and for locks waited on, as of after the last look.
    held: (References, References),
}

impl Job {
    /// A look, and what it comes to with those before. `proven`: whom not to suspect.
    fn step(&mut self, proven: &Unreached) -> Result<Vec<Finding>, SnapshotError> {
        let options = Options { labels: false, ..Options::default() };
        let snapshot = self.live.take(options)?;
        self.watch.observe(&snapshot);
        if self.watch.looks() >= MAX_LOOKS {
            self.watch.thin();
        }
        let (others, locks) = suspects(&self.watch, &snapshot);
        let now = (self.references(&snapshot, &others)?, self.references(&snapshot, &locks)?);
        let before = std::mem::replace(&mut self.held, now);
        let held = (before.0.agree(&self.held.0), before.1.agree(&self.held.1));
        if self.watch.looks() < 2 {
            return Ok(Vec::new());
        }
        let mut findings = judge(&self.watch, &snapshot, (&held.0, &held.1), proven);
        findings.retain(|f| f.verdict != Verdict::Unreachable);
        findings.truncate(MAX_FOUND);
        Ok(findings)
    }

    fn references(&mut self, snapshot: &Snapshot, suspects: &[Suspect]) -> Result<References, SnapshotError> {
        if suspects.is_empty() {
            return Ok(References { complete: true, ..References::default() });
        }
        if suspects.len() > MAX_SUSPECTS {
            return Ok(References::default());
        }
        Ok(self.live.find_references(snapshot, suspects)?)
    }
}

struct Answer {
    job: Box<Job>,
    took: Duration,
    bytes: usize,
    found: Result<Vec<Finding>, SnapshotError>,
}

/// A place under a verdict: entry, creation site, stack.
type Key = (Verdict, u64, u64, Vec<StackFrame>);

/// Looks after the suspicions against one process's goroutines.
pub(super) struct Suspicions {
    every: Duration,
    workers: Workers,
    /// `None` while the worker has it, or where it can no longer be looked.
    job: Option<Box<Job>>,
    results: Option<Receiver<Answer>>,
    due: Instant,
    /// Births and deaths at the last look, and when it was ordered.
    looked: Option<(u64, Instant)>,
    /// What looks are remembered with, as of the last.
    bytes: usize,
    found: Vec<Finding>,
    /// How many there were at the last log record.
    told: HashMap<Key, u64>,
}

impl Suspicions {
    /// `None` where it cannot be looked at this program, which has been said.
    fn new(traced: &Traced, pace: SuspicionPace, workers: &Workers) -> Option<Self> {
        let binary = Arc::clone(traced.symbolizer.shared_binary());
        let settings =
            Settings { stuck_after_ns: u64::try_from(pace.stuck_after.as_nanos()).unwrap_or(u64::MAX) };
        let watch = Watch::new(settings, binary.wait_reasons());
        let live = Live::new(traced.target(), binary)
            .inspect_err(
                |error| tracing::debug!(pid = traced.pid(), %error, "nobody is suspected to be leaked"),
            )
            .ok()?;
        Some(Self {
            every: pace.every,
            workers: workers.clone(),
            job: Some(Box::new(Job { live, watch, held: Default::default() })),
            results: None,
            due: Instant::now(),
            looked: None,
            bytes: 0,
            found: Vec::new(),
            told: HashMap::new(),
        })
    }

    /// Orders what is due, and takes in what is done; whether something was. `turnover`: births and deaths so
    /// far. `proven`: goroutines that are proven to be leaked.
    fn tend(&mut self, now: Instant, turnover: u64, proven: impl FnOnce() -> Vec<u64>) -> bool {
        let Some(results) = &self.results else {
            if now < self.due || self.job.is_none() {
                return false;
            }
            let quiet =
                self.looked.is_some_and(|(then, at)| then == turnover && now < at + self.every * SELDOM);
            if quiet {
                self.due = now + self.every;
            } else {
                self.looked = Some((turnover, now));
                self.order(proven());
            }
            return false;
        };
        let Answer { job, took, bytes, found } = match results.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return false,
            Err(TryRecvError::Disconnected) => {
                // It panicked, and has said so.
                self.results = None;
                return false;
            }
        };
        self.results = None;
        self.bytes = bytes;
        match found {
            Ok(found) => {
                self.found = found;
                self.due = now + self.every.max(took * REST);
                self.job = Some(job);
                true
            }
            Err(error @ (SnapshotError::NotStarted | SnapshotError::Implausible { .. })) => {
                tracing::debug!(%error, "a look failed, and is made again");
                self.due = now + self.every;
                self.job = Some(job);
                false
            }
            Err(error) => {
                // That the process is gone is said by those who look at it next.
                tracing::debug!(%error, "nobody is suspected any more");
                false
            }
        }
    }

    fn order(&mut self, proven: Vec<u64>) {
        let Some(mut job) = self.job.take() else { return };
        let (results, taken) = channel();
        let proven =
            Unreached { goids: proven.into_iter().map(|goid| (goid, PASSES)).collect(), needed: PASSES };
        let ordered = self.workers.order(Box::new(move || {
            let begin = Instant::now();
            let found = job.step(&proven);
            // Refused when the process is not traced any more.
            let _ = results.send(Answer { bytes: job.watch.bytes(), took: begin.elapsed(), job, found });
        }));
        self.results = ordered.then_some(taken);
    }

    /// Bytes that looks are remembered with.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The findings that are new, or have grown.
    fn news(&mut self) -> Vec<usize> {
        let mut news = Vec::new();
        for (n, found) in self.found.iter().enumerate() {
            let count = found.count() as u64;
            let key = (found.verdict, found.entry_pc, found.created_pc, found.stack.clone());
            if self.told.len() >= MAX_TOLD && !self.told.contains_key(&key) {
                continue;
            }
            let told = self.told.entry(key).or_insert(0);
            if count == 0 || count < told.saturating_mul(GROWTH_STEP) {
                continue;
            }
            *told = count;
            news.push(n);
        }
        news
    }
}

impl Traced {
    /// Looks after suspicions; log records of what is new.
    pub(super) fn tend_suspicions(
        &mut self,
        now: Instant,
        pace: Option<SuspicionPace>,
        workers: &Workers,
    ) -> Vec<LogRecord> {
        let Some(pace) = pace else { return Vec::new() };
        if self.yet_to_execute || !self.table.is_seeded() {
            return Vec::new();
        }
        if !std::mem::replace(&mut self.suspicions_begun, true) {
            self.suspicions = Suspicions::new(self, pace, workers);
        }
        let Some(mut suspicions) = self.suspicions.take() else { return Vec::new() };
        let mut records = Vec::new();
        let totals = self.table.totals();
        let turnover = totals.born + totals.died;
        if suspicions
            .tend(now, turnover, || self.proofs.as_ref().map(|p| p.proven_goids()).unwrap_or_default())
        {
            for n in suspicions.news() {
                if let Some(found) = suspicions.found.get(n) {
                    let suspected = self.suspected(found);
                    records.push(self.suspicion(suspected));
                }
            }
        }
        self.suspicions = Some(suspicions);
        records
    }

    /// Who is suspected to be leaked, the worst first.
    pub(super) fn suspects(&mut self) -> Vec<Suspected> {
        let Some(suspicions) = self.suspicions.take() else { return Vec::new() };
        let suspects = suspicions.found.iter().map(|found| self.suspected(found)).collect();
        self.suspicions = Some(suspicions);
        suspects
    }

    fn suspected(&mut self, found: &Finding) -> Suspected {
        let reason = match found.wait_reason {
            Some(reason) => self.reason(reason),
            None => Arc::from("unspecified"),
        };
        let frames: Vec<u64> = found.stack.iter().copied().map(StackFrame::pc).collect();
        let Self { symbolizer, .. } = self;
        Suspected {
            verdict: found.verdict.name(),
            entry: symbolizer.entry(found.entry_pc),
            created_by: (found.created_pc != 0).then(|| symbolizer.call(found.created_pc)),
            waits_at: symbolizer.wait_site(&frames),
            reason,
            count: found.count() as u64,
            growth_per_second: found.growth.map(|g| (g.low, g.high)),
            standing_ns: found.oldest.at_least_ns,
            why: found.why.as_str().into(),
            goids: found.goids.iter().copied().take(NAMED).collect(),
        }
    }

    fn suspicion(&self, suspected: Suspected) -> LogRecord {
        let Suspected { verdict, entry, count, growth_per_second, standing_ns, why, goids, .. } = &suspected;
        let number = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let mut attributes = vec![
            ("gotrace.leak.verdict", Value::Text(Arc::from(*verdict))),
            ("gotrace.leak.suspects", number(*count)),
            ("gotrace.leak.standing", Value::Double(*standing_ns as f64 / 1e9)),
        ];
        if let Some((low, high)) = growth_per_second {
            attributes.push(("gotrace.leak.growth", Value::Double(*low)));
            attributes.push(("gotrace.leak.growth.high", Value::Double(*high)));
        }
        let mut body = format!(
            "{count} goroutine{} of {} {} ({verdict}; {})",
            if *count == 1 { "" } else { "s" },
            entry.function,
            if *verdict == Verdict::Deadlock.name() { "will never run again" } else { "may never finish" },
            suspected.reason,
        );
        let places = Places {
            entry,
            created_by: suspected.created_by.as_ref(),
            waits_at: suspected.waits_at.as_ref(),
            reason: &suspected.reason,
        };
        tell_places(places, &mut body, &mut attributes);
        body += &format!(": {why}");
        let named: Vec<Arc<str>> = goids.iter().map(|g| Arc::from(g.to_string())).collect();
        attributes.push(("gotrace.goroutine.ids", Value::List(named)));
        LogRecord {
            resource: Arc::clone(&self.resource),
            name: if *verdict == Verdict::Deadlock.name() {
                "gotrace.deadlock.detected"
            } else {
                "gotrace.leak.suspected"
            },
            time_unix_nano: self.clock.unix_nano(Clock::now_monotonic_ns()),
            severity: Severity::Warn,
            body,
            attributes,
        }
    }
}
