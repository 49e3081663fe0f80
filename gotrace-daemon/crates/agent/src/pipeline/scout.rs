//! Who is there: finds the node's Go programs, judges them by the rules and prepares them for the line, on a
//! thread of its own, so that the line never waits for a large executable.
//!
//! Input: a scan of `/proc` at the beginning and every so often, notices of executions (the kernel's
//! tracepoint through the line, or the process connector), new rules, metadata. Output: prepared processes,
//! and those that the rules no longer take. A process is a pid and its start: neither a reused pid nor
//! another program inherits anything.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};

use super::{
    LineConfig, LineError,
    coverage::{Account, covered_by, covered_by_process},
    in_hand::InHand,
    known::{Counts, Known, Look, Young, facts},
    programs::Programs,
    traced::Traced,
};
use gotrace_model::{Covered, Refused, Value};
use gotrace_process::{
    Beat, Connector, FileNode, Notice, ProcessError, Rules, Target, Threads, age, all_processes, contained,
    give_memory_back, has_executed, helper, stack_start, start_ticks,
};

/// Time between two scans where executions are told, and where they are not.
const SCAN_EVERY: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_secs(1);
/// A process that was forked so lately, and has executed nothing, is about to: it is looked at when it has.
const FORK_SETTLES: Duration = Duration::from_secs(2);
/// Longest that one look takes: a large executable on a slow disk, and the line that has no room for it.
const LOOKS_WITHIN: Duration = Duration::from_secs(120);
/// After so many processes that were taken, those among them are forgotten that have ended.
const TAKEN: u64 = 64;
/// Prepared processes that may wait for the line.
const FOUND: usize = 16;

/// What the scout is told.
#[derive(Debug)]
pub(super) enum Order {
    /// The kernel tells that this process has executed a program: once for each execution.
    Executed(u32),
    /// This process may have executed a program.
    LookAt(u32),
    /// Notices were lost.
    Look,
    /// There are none any more.
    Unnoticed,
    /// The rules, and how to trace, have changed.
    Config(Box<LineConfig>, Arc<Rules>),
    /// To be told whether the rules take every process that runs this file, and when that no longer holds.
    MayShare(FileNode),
    /// Others know this of a process.
    Metadata(u32, u64, Arc<BTreeMap<Arc<str>, Value>>),
}

/// What the scout has found.
pub(super) enum Found {
    /// A process to trace. `fresh`: it has only just executed its program.
    Process {
        /// It.
        traced: Box<Traced>,
        /// Whether its program has only just begun.
        fresh: bool,
    },
    /// The rules do not take this one any more: its pid and start.
    Left(u32, u64),
    /// The rules take every process that runs this file.
    Shareable(FileNode),
    /// A process runs this file, of which it was asked, that the rules do not take.
    Outsider(FileNode),
    /// What was looked at so far.
    Counts(Counts),
}

/// The line's end of it.
pub(super) struct Scout {
    pub orders: Sender<Order>,
    pub found: Receiver<Found>,
    news: Arc<OwnedFd>,
}

/// Makes the descriptor readable.
fn announce(news: &OwnedFd) {
    // Refused only where it is readable since so long that the count overflows.
    let _ = rustix::io::write(news, &1u64.to_ne_bytes());
}

impl Scout {
    /// Can be read when somebody was found, so that whoever waits for something else wakes up.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes the news as read. `more`: there may be some left.
    pub fn read_news(&self, more: bool) {
        if more {
            announce(&self.news);
        } else {
            // Without news it is refused.
            let _ = rustix::io::read(&self.news, &mut [0u8; 8]);
        }
    }

    /// Starts. `executions_told`: the line will say who executes programs. `sampled`: there are no probes.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        config: &LineConfig,
        rules: Arc<Rules>,
        executions_told: bool,
        sampled: bool,
        threads: &Threads,
        coverage: Account,
        in_hand: InHand,
    ) -> std::io::Result<Self> {
        let (orders, received) = channel();
        let (sender, found) = sync_channel(FOUND);
        let news = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut by = "the tracepoint sched_process_exec";
        let mut every = SCAN_EVERY;
        if !executions_told {
            match Connector::open() {
                Ok(connector) => {
                    by = "the process connector";
                    listen(connector, orders.clone(), coverage.clone())?;
                }
                Err(error) => {
                    tracing::info!(%error, "the process connector does not work on this host");
                    by = "polling /proc every second";
                    every = POLL_EVERY;
                }
            }
        }
        tracing::info!("discovering new processes by {by}");
        let work = Work {
            config: config.clone(),
            rules,
            sampled,
            every,
            programs: Programs::default().with_requests(config.requests.as_ref()),
            known: HashMap::new(),
            asked: HashSet::new(),
            metadata: HashMap::new(),
            waiting: Vec::new(),
            counts: Counts::default(),
            coverage,
            in_hand,
            found: sender,
            news: Arc::clone(&news),
            beat: threads.register("discovery", LOOKS_WITHIN),
        };
        thread::Builder::new().name("gotrace-scout".into()).spawn(move || work.run(&received))?;
        Ok(Self { orders, found, news })
    }
}

/// Passes on what the connector tells, until nobody listens.
fn listen(connector: Connector, orders: Sender<Order>, coverage: Account) -> std::io::Result<()> {
    thread::Builder::new().name("gotrace-connector".into()).spawn(move || {
        loop {
            let order = match connector.next() {
                Ok(Notice::Executed(pid)) => Order::Executed(pid),
                Ok(Notice::Lost) => {
                    coverage.lose();
                    Order::Look
                }
                Ok(Notice::Other | Notice::Answered(_)) => continue,
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the process connector failed: discovering new processes by polling /proc every second"
                    );
                    let _ = orders.send(Order::Unnoticed);
                    break;
                }
            };
            if orders.send(order).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

struct Work {
    config: LineConfig,
    rules: Arc<Rules>,
    sampled: bool,
    every: Duration,
    programs: Programs,
    known: HashMap<u32, Known>,
    /// Files of which it is to be told when a process runs them that the rules do not take.
    asked: HashSet<FileNode>,
    /// What others know, by pid and start.
    metadata: HashMap<(u32, u64), BTreeMap<Arc<str>, String>>,
    /// Too young yet.
    waiting: Vec<Young>,
    counts: Counts,
    coverage: Account,
    in_hand: InHand,
    found: SyncSender<Found>,
    news: Arc<OwnedFd>,
    beat: Beat,
}

/// The line has gone.
struct Gone;

impl Work {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut next_scan = Instant::now();
        loop {
            self.beat.beat();
            let now = Instant::now();
            if now >= next_scan {
                if self.scan().is_err() {
                    return;
                }
                next_scan = Instant::now() + self.every;
            }
            let due =
                self.waiting.iter().map(|young| young.at).min().map_or(next_scan, |at| at.min(next_scan));
            let order = orders.recv_timeout(due.saturating_duration_since(Instant::now()));
            let done = match order {
                Ok(Order::Executed(pid)) => self.look_at(pid, Look::Told),
                Ok(Order::LookAt(pid)) => self.look_at(pid, Look::Found),
                Ok(Order::Look) => {
                    next_scan = Instant::now();
                    Ok(())
                }
                Ok(Order::Unnoticed) => {
                    (self.every, next_scan) = (POLL_EVERY, Instant::now());
                    Ok(())
                }
                Ok(Order::Config(config, rules)) => {
                    (self.config, self.rules) = (*config, rules);
                    self.judge_again(None)
                }
                Ok(Order::MayShare(file)) => self.may_share(file),
                Ok(Order::Metadata(pid, start, metadata)) => self.learn(pid, start, &metadata),
                Err(RecvTimeoutError::Timeout) => self.look_at_waiting(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// Looks at everybody who is not known yet, and forgets those that are gone.
    fn scan(&mut self) -> Result<(), Gone> {
        let pids = match all_processes() {
            Ok(pids) => pids,
            Err(error) => {
                tracing::warn!(%error, "cannot list processes (/proc)");
                return Ok(());
            }
        };
        let there: HashSet<u32> = pids.iter().copied().collect();
        self.known.retain(|pid, _| there.contains(pid));
        self.metadata.retain(|(pid, _), _| there.contains(pid));
        for pid in pids {
            let look = self.known.get(&pid).map_or(Look::Found, Known::look);
            self.look_at(pid, look)?;
        }
        if self.programs.tidy() {
            give_memory_back();
        }
        self.counts.scans += 1;
        self.counts.unreadable = self.known.values().filter(|known| known.unreadable).count() as u64;
        self.tell(Found::Counts(self.counts))
    }

    fn look_at_waiting(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.waiting).into_iter().partition(|young| young.at <= now);
        self.waiting = later;
        let due: Vec<Young> = due;
        for young in due {
            self.look_at(young.pid, Look::Due(young))?;
        }
        Ok(())
    }

    /// Looks at a process; one that has gotrace panic is left alone, and refused.
    fn look_at(&mut self, pid: u32, look: Look) -> Result<(), Gone> {
        self.beat.beat();
        let start_ticks = start_ticks(pid).unwrap_or(0);
        match contained(|| self.look_closely_at(pid, look)) {
            Ok(looked) => looked,
            Err(panic) => {
                self.settle(look, Covered::Refused(Refused::Failed));
                tracing::error!(
                    pid,
                    "not tracing process: gotrace panicked while inspecting it, which is a bug; please report it: {panic}"
                );
                let stack_start = stack_start(pid);
                let untold = look == Look::Found;
                self.known.insert(pid, Known { start_ticks, stack_start, untold, ..Known::default() });
                Ok(())
            }
        }
    }

    /// An execution is seen now, unless it was before.
    fn see(&self, look: Look) {
        if !matches!(look, Look::Due(_)) {
            self.coverage.see();
        }
    }

    /// An execution is seen, and this has become of it. What is refused once more is in the account.
    fn settle(&self, look: Look, covered: Covered) {
        if matches!((look, covered), (Look::Retry(_), Covered::Refused(_))) {
            return;
        }
        self.see(look);
        self.coverage.cover(covered);
    }

    /// What ran is over; what was only looked for was never seen.
    fn is_over(&self, look: Look) {
        if matches!(look, Look::Told | Look::Due(_)) {
            self.settle(look, Covered::GoneUnknown);
        }
    }

    /// Whether a notice is of an execution that is known, or waits to be old enough, and what it means for the account: the
    /// first one of what was found before is of that, any other is of one that is over by now.
    fn take_notice(&self, look: Look, untold: &mut bool) {
        if look == Look::Told && !std::mem::take(untold) {
            self.is_over(look);
        }
    }

    /// Looks at a process, unless it is known, and so is the program that it runs. Several may say so of one execution,
    /// some when it was looked at already; the kernel says so once.
    fn look_closely_at(&mut self, pid: u32, look: Look) -> Result<(), Gone> {
        if pid == std::process::id() || helper::is_helper(pid) {
            return Ok(());
        }
        let told = look == Look::Told;
        let Some(start) = start_ticks(pid) else {
            self.is_over(look);
            return Ok(());
        };
        let stack_start = stack_start(pid);
        let untold = match look {
            Look::Told => false,
            Look::Found => true,
            Look::Again(untold) | Look::Retry(untold) => untold,
            Look::Due(young) if (young.start_ticks, young.stack_start) == (start, stack_start) => {
                young.untold
            }
            Look::Due(_) => {
                self.is_over(look);
                return Ok(());
            }
        };
        if let Some(mut known) = self.known.remove(&pid) {
            let same = known.start_ticks == start
                && match &known.image {
                    Some(image) => !image.is_gone(),
                    // Executed without address randomisation it looks the same.
                    None => known.stack_start == stack_start && (!told || known.untold),
                };
            if same && !matches!(look, Look::Retry(_)) {
                self.take_notice(look, &mut known.untold);
                self.known.insert(pid, known);
                return Ok(());
            }
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let young = waiting
            .iter_mut()
            .find(|young| (young.pid, young.start_ticks, young.stack_start) == (pid, start, stack_start));
        let waits = young.is_some();
        if let Some(young) = young {
            self.take_notice(look, &mut young.untold);
        }
        self.waiting = waiting;
        if waits || look == Look::Found && !has_executed(pid) && age(start) < FORK_SETTLES {
            return Ok(());
        }
        let mut known = Known { start_ticks: start, stack_start, untold, ..Known::default() };
        if self.in_hand.leaves_alone((pid, start)) {
            tracing::warn!(
                pid,
                "skipping process: gotrace was killed three times while it was reading this one"
            );
            self.settle(look, Covered::Refused(Refused::Failed));
            self.known.insert(pid, known);
            return Ok(());
        }
        let _held = self.in_hand.take((pid, start));
        // Kernel threads, zombies, and those that may not be looked at.
        let target = match Target::open(pid) {
            Ok(target) if target.identity.start_ticks == start => target,
            Ok(_) => {
                self.is_over(look);
                return Ok(());
            }
            Err(error) => {
                tracing::trace!(pid, %error, "skipped");
                let covered = covered_by_process(&error);
                known.refused_for(covered);
                match covered {
                    // Nothing is seen of it: what the kernel tells of it is news.
                    Covered::GoneUnknown | Covered::NotGo if look == Look::Found => known.untold = false,
                    Covered::GoneUnknown => self.is_over(look),
                    covered => self.settle(look, covered),
                }
                known.unreadable =
                    matches!(error, ProcessError::NotPermitted { .. } | ProcessError::Hidden { .. });
                self.known.insert(pid, known);
                return Ok(());
            }
        };
        known.file = target.executable_file().node().ok();
        let mut facts = facts(&target);
        if let Some(metadata) = self.metadata.get(&(pid, start)) {
            facts.metadata.clone_from(metadata);
        }
        if !self.rules.take(&facts) {
            tracing::trace!(pid, executable = %target.executable.display(), "not matched by the rules");
            self.settle(look, Covered::LeftOut);
            known.facts = Some(facts);
            let file = known.file;
            self.known.insert(pid, known);
            return self.tell_outsider(file);
        }
        if let Some(left) = self.too_young(start) {
            self.see(look);
            let at = Instant::now() + left;
            self.waiting.push(Young { pid, start_ticks: start, stack_start, untold, at });
            return Ok(());
        }
        let executable = target.executable.clone();
        let watch = target.watch();
        match self.prepare(target, told) {
            Ok(traced) => {
                known.facts = Some(facts);
                known.taken = true;
                known.image = traced.watch.image().cloned();
                self.counts.taken += 1;
                self.known.insert(pid, known);
                if self.counts.taken.is_multiple_of(TAKEN) {
                    // Those that have ended hold descriptors until the next scan.
                    self.known.retain(|pid, known| {
                        known.image.is_none() || start_ticks(*pid) == Some(known.start_ticks)
                    });
                }
                self.see(look);
                self.tell(Found::Process { traced: Box::new(traced), fresh: told })?;
            }
            Err(error) => {
                let over = watch.as_ref().is_ok_and(|w| w.is_ending() || w.has_executed_another_program());
                let covered = match covered_by(&error) {
                    Covered::NotGo => Covered::NotGo,
                    Covered::GoneUnknown => Covered::Gone,
                    _ if over || watch.is_err() => Covered::Gone,
                    covered => covered,
                };
                self.settle(look, covered);
                let file = known.file;
                known.refused_for(covered);
                self.known.insert(pid, known);
                match (look, covered) {
                    // Most programs are not Go's, and many are gone before they can be looked at.
                    (_, Covered::NotGo | Covered::Gone) | (Look::Retry(_), _) => {
                        tracing::trace!(pid, executable = %executable.display(), "{error}");
                    }
                    _ => tracing::warn!(pid, "skipping process: {error}"),
                }
                self.tell_outsider(file)?;
            }
        }
        let parsed = self.programs.parsed();
        if parsed != std::mem::replace(&mut self.counts.programs_parsed, parsed) {
            self.tell(Found::Counts(self.counts))?;
        }
        Ok(())
    }

    fn prepare(&mut self, target: Target, fresh: bool) -> Result<Traced, LineError> {
        let parsed = self.programs.of(&target, self.config.memory)?;
        let pid = target.pid();
        let mut traced = match Traced::prepare(target, parsed, &self.config, false, self.sampled) {
            Err(error @ LineError::NoProbe { .. }) => {
                tracing::warn!(pid, "falling back to snapshots: {error}");
                let target = Target::open(pid)?;
                let parsed = self.programs.of(&target, self.config.memory)?;
                Traced::prepare(target, parsed, &self.config, false, true)?
            }
            traced => traced?,
        };
        // A program that has only just begun is not laid out: what comes of it is looked at as it comes.
        if !fresh {
            traced.check_layout()?;
        }
        Ok(traced)
    }

    /// How long it takes until the process is old enough.
    fn too_young(&self, start: u64) -> Option<Duration> {
        if self.rules.min_age.is_zero() {
            return None;
        }
        self.rules.min_age.checked_sub(age(start)).filter(|left| !left.is_zero())
    }

    /// Somebody knows more of a process: what the rules make of it now.
    fn learn(&mut self, pid: u32, start: u64, metadata: &BTreeMap<Arc<str>, Value>) -> Result<(), Gone> {
        let known = self.metadata.entry((pid, start)).or_default();
        for (name, value) in metadata {
            if let Value::Text(text) = value {
                known.insert(Arc::clone(name), text.to_string());
            }
        }
        if let Some(Known { start_ticks, facts: Some(facts), .. }) = self.known.get_mut(&pid)
            && *start_ticks == start
        {
            facts.metadata.clone_from(known);
            return self.judge_again(Some(pid));
        }
        Ok(())
    }

    /// Judges a process, or all, by the rules of now.
    fn judge_again(&mut self, only: Option<u32>) -> Result<(), Gone> {
        let (mut left, mut anew) = (Vec::new(), Vec::new());
        for (pid, known) in &mut self.known {
            let Some(facts) = known.facts.as_ref().filter(|_| only.is_none_or(|only| only == *pid)) else {
                continue;
            };
            match (known.taken, self.rules.take(facts)) {
                (true, false) => {
                    known.taken = false;
                    known.image = None;
                    left.push((*pid, known.start_ticks, known.file));
                }
                (false, true) => anew.push(*pid),
                _ => {}
            }
        }
        for (pid, start, file) in left {
            self.tell_outsider(file)?;
            self.tell(Found::Left(pid, start))?;
        }
        for pid in anew {
            let untold = self.known.remove(&pid).is_some_and(|known| known.untold);
            self.look_at(pid, Look::Again(untold))?;
        }
        Ok(())
    }

    /// Answers whether the rules take every process that runs a file, where they do; from then on it is told when one
    /// comes that they do not take.
    fn may_share(&mut self, file: FileNode) -> Result<(), Gone> {
        self.asked.insert(file);
        let outsiders = self.known.values().any(|known| known.file == Some(file) && !known.taken);
        if outsiders { Ok(()) } else { self.tell(Found::Shareable(file)) }
    }

    /// A process of this file is not taken.
    fn tell_outsider(&self, file: Option<FileNode>) -> Result<(), Gone> {
        match file.filter(|file| self.asked.contains(file)) {
            Some(file) => self.tell(Found::Outsider(file)),
            None => Ok(()),
        }
    }

    fn tell(&self, found: Found) -> Result<(), Gone> {
        self.found.send(found).map_err(|_| Gone)?;
        announce(&self.news);
        Ok(())
    }
}
