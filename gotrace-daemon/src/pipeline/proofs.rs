//! Proofs of leak while a process is traced: now and then, and only where goroutines have waited for others
//! for long, passes over its heap, until enough agree ([`crate::heap`]).
//!
//! One thread makes the passes of all processes, one at a time, and rests between two passes of a process
//! for so many times as long as one took, so that they take a small share of one core. What was proven is
//! looked at again each time: one that has run all the same is counted, and told as gotrace's error. What is
//! found is handed to the line, which puts it into reports and tells it once by a log record.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use super::{LineConfig, Traced, seed::Workers};
use crate::{
    heap::{HeapError, PASSES, Prover, Throttled},
    leak::Reason,
    printable::printable,
    process::{Clock, Memory},
    sink::model::{Interval, Leak, Location, LogRecord, Severity, Value},
    snapshot::{Live, Options, StackFrame},
};

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

/// The shortest rest between two passes, at random.
const REST: std::ops::Range<u64> = 15_000..60_000;
/// Passes of one proof at most: a goroutine whose stack is moved begins anew.
const MAX_PASSES: u32 = 2 * PASSES;
/// A log record is sent again when there are so many times as many as at the last.
const GROWTH_STEP: u64 = 2;
/// Sites and places that are told apart in one process.
const MAX_LEAKS: usize = 256;

/// Goroutines of one site that wait at one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    entry_pc: u64,
    created_pc: u64,
    reason: u8,
    frames: Vec<u64>,
}

/// By place: goids, and what these alone keep alive.
type Leaks = BTreeMap<Place, (Vec<u64>, Option<u64>)>;

/// What is proven.
#[derive(Clone, Debug, Default)]
struct Found {
    leaks: Leaks,
    refuted: Vec<u64>,
}

/// What the passes of one process need.
struct Job {
    pid: u32,
    prover: Prover,
    live: Live,
    memory: Memory,
    max_read_rate: Option<u64>,
    /// Goids that were refuted once, and are not believed any more.
    distrusted: BTreeSet<u64>,
}

enum Step {
    /// Another pass is wanted.
    More,
    /// Enough agree, or there is nobody.
    Done(Found),
}

impl Job {
    /// One pass, and if that was the last, what came of all of them. `made`: passes of this proof before it.
    fn step(&mut self, made: u32) -> Result<Step, HeapError> {
        let memory = Throttled::new(&self.memory, self.max_read_rate);
        let mut refuted = Vec::new();
        if made == 0 {
            refuted = self.prover.refuted(&memory)?;
        }
        let made = made + 1;
        let proof = self.prover.pass(&memory)?;
        let nobody = proof.unreachable.is_empty() && proof.void < proof.passes && made >= 2;
        if refuted.is_empty() && !nobody && made < MAX_PASSES && !(made >= PASSES && proof.is_settled()) {
            return Ok(Step::More);
        }
        self.distrusted.extend(&refuted);
        for goid in &refuted {
            tracing::error!(
                pid = self.pid,
                goid,
                "goroutine {goid} was proven unreachable and has run or vanished all the same: this is an error of \
                 gotrace; please report it with what `gotrace leaks --evidence` writes"
            );
        }
        let leaks = self.places()?;
        self.prover.drop_evidence();
        Ok(Step::Done(Found { leaks, refuted }))
    }

    fn places(&mut self) -> Result<Leaks, HeapError> {
        let proven: BTreeSet<u64> = self
            .prover
            .proof()
            .proven()
            .map(|(goid, _)| goid)
            .filter(|goid| !self.distrusted.contains(goid))
            .collect();
        let mut places = Leaks::new();
        if proven.is_empty() {
            return Ok(places);
        }
        let options = Options { stacks: true, waits: false, labels: false, arguments: false };
        let snapshot = self.live.take(options)?;
        for goroutine in snapshot.goroutines.iter().filter(|g| proven.contains(&g.goid)) {
            let place = Place {
                entry_pc: goroutine.entry_pc,
                created_pc: goroutine.created_pc,
                reason: goroutine.wait_reason,
                frames: snapshot.frames(goroutine).iter().copied().map(StackFrame::pc).collect(),
            };
            if places.len() < MAX_LEAKS || places.contains_key(&place) {
                places.entry(place).or_default().0.push(goroutine.goid);
            }
        }
        let groups: Vec<Vec<u64>> = places.values().map(|(goids, _)| goids.clone()).collect();
        let memory = Throttled::new(&self.memory, self.max_read_rate);
        let retained = self.prover.retained(&memory, &groups)?;
        for ((_, bytes), found) in places.values_mut().zip(retained.by_group) {
            *bytes = found;
        }
        Ok(places)
    }
}

/// What was proven of a process that is not traced any more.
#[derive(Clone, Debug)]
pub struct ProvenProcess {
    /// The process.
    pub pid: u32,
    /// Its executable's name.
    pub executable: String,
    /// Its last state, which has the leaks.
    pub last: Arc<Interval>,
    /// How long before the end the last proof began that was completed; `None` where none was.
    pub before_the_end: Option<Duration>,
}

/// Makes the proofs of one process.
pub(super) struct Proofs {
    pace: ProofPace,
    workers: Workers,
    /// `None` while the worker has it, or where nothing can be proven.
    job: Option<Box<Job>>,
    results: Option<Receiver<Answer>>,
    made: u32,
    due: Instant,
    /// When the proof that is being made began, and the last one that was completed.
    begun: Option<Instant>,
    completed: Option<Instant>,
    random: fastrand::Rng,
    found: Found,
    refuted: u64,
    /// How many there were at the last log record, by site and place.
    told: HashMap<Place, u64>,
    /// Goroutines that have only just begun to wait, as of the last reading.
    young: u64,
}

type Answer = (Box<Job>, Duration, Result<Step, HeapError>);

impl Proofs {
    /// `None` where nothing can be proven of this program, which is said.
    pub fn new(traced: &Traced, pace: ProofPace, workers: &Workers) -> Option<Self> {
        let pid = traced.pid();
        let binary = Arc::clone(traced.symbolizer.shared_binary());
        let live = Live::new(traced.target(), Arc::clone(&binary)).map_err(HeapError::from);
        let job = live.and_then(|live| {
            Ok(Box::new(Job {
                pid,
                prover: Prover::new(binary, live.bias())?,
                live,
                memory: traced.target().memory(),
                max_read_rate: pace.max_read_rate,
                distrusted: BTreeSet::new(),
            }))
        });
        match job {
            Ok(job) => Some(Self {
                pace,
                workers: workers.clone(),
                job: Some(job),
                results: None,
                made: 0,
                due: Instant::now() + pace.after,
                begun: None,
                completed: None,
                random: fastrand::Rng::new(),
                found: Found::default(),
                refuted: 0,
                told: HashMap::new(),
                young: 0,
            }),
            Err(error) => {
                tracing::info!(pid, "leaks are not proven: {error}");
                None
            }
        }
    }

    /// Goroutines that are proven to be leaked.
    pub fn proven_goids(&self) -> Vec<u64> {
        self.found.leaks.values().flat_map(|(goids, _)| goids).copied().collect()
    }

    /// A reading of who waits begins.
    pub fn begin_waits(&mut self) {
        self.young = 0;
    }

    /// Somebody waits for others, since then.
    pub fn waits(&mut self, since_ns: u64, now_ns: u64) {
        let after = u64::try_from(self.pace.after.as_nanos()).unwrap_or(u64::MAX);
        self.young += u64::from(now_ns.saturating_sub(since_ns) < after);
    }

    /// Whether something is due, or under way.
    pub fn has_business(&self, now: Instant) -> bool {
        self.results.is_some() || self.job.is_some() && now >= self.due
    }

    /// Orders what is due, and takes in what is done. Whether there is something new to be told.
    pub fn tend(&mut self, now: Instant, waiting_for_others: u64) -> bool {
        if let Some(results) = &self.results {
            let (job, took, step) = match results.try_recv() {
                Ok(answer) => answer,
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {
                    // It panicked, and has said so.
                    self.results = None;
                    return false;
                }
            };
            self.results = None;
            self.made += 1;
            return self.take_in(job, took, step, now);
        }
        if self.job.is_none() || now < self.due {
            return false;
        }
        if self.made == 0 && waiting_for_others <= self.young && self.found.leaks.is_empty() {
            self.due = now + self.pace.after.min(self.pace.every).max(Duration::from_secs(1));
            return false;
        }
        self.order();
        false
    }

    fn order(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        let (results, taken) = channel();
        let made = self.made;
        if made == 0 {
            self.begun = Some(Instant::now());
        }
        let ordered = self.workers.order(Box::new(move || {
            let begin = Instant::now();
            let step = job.step(made);
            // Refused when the process is not traced any more.
            let _ = results.send((job, begin.elapsed(), step));
        }));
        self.results = ordered.then_some(taken);
    }

    fn take_in(
        &mut self,
        job: Box<Job>,
        took: Duration,
        step: Result<Step, HeapError>,
        now: Instant,
    ) -> bool {
        match step {
            Ok(Step::More) => {
                let rest = Duration::from_micros(self.random.u64(REST));
                self.due = now + rest.max(took * self.pace.rest);
                self.job = Some(job);
                false
            }
            Ok(Step::Done(found)) => {
                self.made = 0;
                self.due = now + self.pace.every;
                self.completed = self.begun;
                self.refuted += found.refuted.len() as u64;
                self.found = found;
                self.job = Some(job);
                true
            }
            Err(error) => {
                // That the process is gone is said by those who look at it next.
                if !error.is_of_process() {
                    tracing::warn!(pid = job.pid, "leaks are not proven any more: {error}");
                }
                false
            }
        }
    }
}

impl Traced {
    /// Looks after proofs; log records of what is new.
    pub(super) fn tend_proofs(
        &mut self,
        now: Instant,
        line: &LineConfig,
        workers: &Workers,
    ) -> Vec<LogRecord> {
        let Some(pace) = line.proofs else { return Vec::new() };
        if self.yet_to_execute || !self.table.is_seeded() {
            return Vec::new();
        }
        if !std::mem::replace(&mut self.proofs_begun, true) {
            self.proofs = Proofs::new(self, pace, workers);
        }
        if !self.proofs.as_ref().is_some_and(|proofs| proofs.has_business(now)) {
            return Vec::new();
        }
        let waiting: u64 = self
            .table
            .waiting()
            .filter(|(reason, _)| Reason::from_name(&self.reason(*reason)).is_for_others())
            .map(|(_, n)| n)
            .sum();
        if self.proofs.as_mut().is_some_and(|proofs| proofs.tend(now, waiting)) {
            return self.tell_leaks();
        }
        Vec::new()
    }

    /// What is proven, the most goroutines first, and how many proofs were refuted.
    pub(super) fn leaks(&mut self) -> (Vec<Leak>, u64) {
        let Some(proofs) = self.proofs.take() else { return (Vec::new(), 0) };
        let mut leaks: Vec<Leak> =
            proofs.found.leaks.iter().map(|(place, found)| self.leak(place, found)).collect();
        leaks.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.entry.cmp(&b.entry)));
        let refuted = proofs.refuted;
        self.proofs = Some(proofs);
        (leaks, refuted)
    }

    /// What is left of proofs when it is not traced any more; `last`: its last state.
    pub(super) fn proven(&self, last: &Arc<Interval>) -> ProvenProcess {
        let executable = self.target.executable.file_name().unwrap_or_default();
        let completed = self.proofs.as_ref().and_then(|p| p.completed);
        ProvenProcess {
            pid: self.pid(),
            executable: printable(&executable.to_string_lossy()).into_owned(),
            last: Arc::clone(last),
            before_the_end: completed.map(|begun| begun.elapsed()),
        }
    }

    fn leak(&mut self, place: &Place, (goids, retained): &(Vec<u64>, Option<u64>)) -> Leak {
        let reason = self.reason(place.reason);
        let Self { symbolizer, .. } = self;
        Leak {
            entry: symbolizer.entry(place.entry_pc),
            created_by: (place.created_pc != 0).then(|| symbolizer.call(place.created_pc)),
            waits_at: symbolizer.wait_site(&place.frames),
            reason,
            count: goids.len() as u64,
            retained_bytes: *retained,
            goids: goids.clone(),
        }
    }

    /// Log records of leaks that are new, or have grown.
    fn tell_leaks(&mut self) -> Vec<LogRecord> {
        let Some(mut proofs) = self.proofs.take() else { return Vec::new() };
        let mut records = Vec::new();
        for (place, found) in &proofs.found.leaks {
            let count = found.0.len() as u64;
            let told = proofs.told.entry(place.clone()).or_insert(0);
            if count == 0 || count < told.saturating_mul(GROWTH_STEP) {
                continue;
            }
            *told = count;
            let leak = self.leak(place, found);
            records.push(self.confirmed(leak));
        }
        self.proofs = Some(proofs);
        records
    }

    fn confirmed(&self, leak: Leak) -> LogRecord {
        let Leak { entry, created_by, waits_at, reason, count, retained_bytes, goids } = leak;
        let number = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let mut attributes =
            vec![("gotrace.leak.proven", number(count)), ("gotrace.leak.passes", number(u64::from(PASSES)))];
        let mut body = format!(
            "{count} goroutine{} of {} can never run again: {PASSES} passes over the heap of the running process agree \
             that nothing that can run leads to what {} ({reason})",
            if count == 1 { "" } else { "s" },
            entry.function,
            if count == 1 { "it waits for" } else { "they wait for" },
        );
        let places = Places {
            entry: &entry,
            created_by: created_by.as_ref(),
            waits_at: waits_at.as_ref(),
            reason: &reason,
        };
        tell_places(places, &mut body, &mut attributes);
        if let Some(bytes) = retained_bytes {
            body += &format!("; they alone keep {bytes} bytes alive");
            attributes.push(("gotrace.leak.retained", number(bytes)));
        }
        let named: Vec<Arc<str>> = goids.iter().take(16).map(|g| Arc::from(g.to_string())).collect();
        attributes.push(("gotrace.goroutine.ids", Value::List(named)));
        LogRecord {
            resource: Arc::clone(&self.resource),
            name: "gotrace.leak.confirmed",
            time_unix_nano: self.clock.unix_nano(Clock::now_monotonic_ns()),
            severity: Severity::Warn,
            body,
            attributes,
        }
    }
}

/// What goroutines run, where they were made, and where and what for they wait.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub entry: &'a Arc<Location>,
    pub created_by: Option<&'a Arc<Location>>,
    pub waits_at: Option<&'a Arc<Location>>,
    pub reason: &'a Arc<str>,
}

/// Adds to a log record what goroutines run, where they were made, and where they wait.
pub(super) fn tell_places(
    places: Places<'_>,
    body: &mut String,
    attributes: &mut Vec<(&'static str, Value)>,
) {
    let Places { entry, created_by, waits_at, reason } = places;
    attributes.extend([
        ("gotrace.wait.reason", Value::Text(Arc::clone(reason))),
        ("code.function.name", Value::Text(Arc::clone(&entry.function))),
    ]);
    if let Some(made) = created_by {
        *body += &format!("; made by {} ({}:{})", made.function, made.file, made.line);
        attributes.extend([
            ("gotrace.created_by.function.name", Value::Text(Arc::clone(&made.function))),
            ("gotrace.created_by.file.path", Value::Text(Arc::clone(&made.file))),
            ("gotrace.created_by.line.number", Value::Int(i64::from(made.line))),
        ]);
    }
    if let Some(at) = waits_at {
        *body += &format!("; waiting in {} ({}:{})", at.function, at.file, at.line);
        attributes.extend([
            ("gotrace.wait.function.name", Value::Text(Arc::clone(&at.function))),
            ("gotrace.wait.file.path", Value::Text(Arc::clone(&at.file))),
            ("gotrace.wait.line.number", Value::Int(i64::from(at.line))),
        ]);
    }
}
