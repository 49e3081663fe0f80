//! Who is there: finds the node's Go programs, judges them by the rules and prepares them for the line, on a
//! thread of its own, so that the line never waits for a large executable.
//!
//! Input: a scan of `/proc` at the beginning and every so often, notices of executions (the kernel's
//! tracepoint through the line, or the process connector), new rules, metadata. Output: prepared processes,
//! and those that the rules no longer take. A process is a pid and its start: neither a reused pid nor
//! another program inherits anything.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};

use super::{LineConfig, LineError, programs::Programs, traced::Traced};
use crate::{
    process::{
        Connector, Facts, FileNode, Notice, ProcessError, Rules, Target, age, all_processes, is_gone,
        stack_start, start_ticks,
    },
    sink::model::Value,
};

/// Time between two scans where executions are told, and where they are not.
const SCAN_EVERY: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Prepared processes that may wait for the line.
const FOUND: usize = 16;
/// Bytes of a command line that rules look at.
const MAX_COMMAND_LINE: usize = 4096;

/// What the scout is told.
#[derive(Debug)]
pub(super) enum Order {
    /// This process has executed a program.
    Executed(u32),
    /// Notices were lost.
    Look,
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

/// What was looked at so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times that everybody was looked at.
    pub scans: u64,
    /// Files that were read whole.
    pub programs_parsed: u64,
    /// Processes that are Go programs, and that the rules take.
    pub taken: u64,
    /// Go programs that could not be traced.
    pub refused: u64,
    /// Processes that gotrace may not look at, so that it is not known whether they are Go programs; as of the
    /// last time that everybody was looked at.
    pub unreadable: u64,
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
    ) -> std::io::Result<Self> {
        let (orders, received) = channel();
        let (sender, found) = sync_channel(FOUND);
        let news = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut by = "the kernel's tracepoint sched_process_exec";
        let mut every = SCAN_EVERY;
        if !executions_told {
            match Connector::open() {
                Ok(connector) => {
                    by = "the process connector";
                    listen(connector, orders.clone())?;
                }
                Err(error) => {
                    tracing::info!(%error, "the process connector does not tell of executions");
                    by = "looking at /proc every second";
                    every = POLL_EVERY;
                }
            }
        }
        tracing::info!("new processes are noticed by {by}");
        let work = Work {
            config: config.clone(),
            rules,
            sampled,
            every,
            programs: Programs::default(),
            known: HashMap::new(),
            asked: HashSet::new(),
            metadata: HashMap::new(),
            waiting: Vec::new(),
            counts: Counts::default(),
            found: sender,
            news: Arc::clone(&news),
        };
        thread::Builder::new().name("gotrace-scout".into()).spawn(move || work.run(&received))?;
        Ok(Self { orders, found, news })
    }
}

/// Passes on what the connector tells, until nobody listens.
fn listen(connector: Connector, orders: Sender<Order>) -> std::io::Result<()> {
    thread::Builder::new().name("gotrace-connector".into()).spawn(move || {
        loop {
            let order = match connector.next() {
                Ok(Notice::Executed(pid)) => Order::Executed(pid),
                Ok(Notice::Lost) => Order::Look,
                Ok(Notice::Other | Notice::Answered(_)) => continue,
                Err(error) => {
                    tracing::warn!(%error, "the process connector is gone: new processes are noticed late");
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

/// A process that was looked at.
struct Known {
    start_ticks: u64,
    /// Where the stack of the program that it ran lies; 0 where it is not told.
    stack_start: u64,
    /// The memory of that program, of those that are taken: it tells whether it runs another one by now.
    memory: Option<Arc<File>>,
    /// The file that it runs.
    file: Option<FileNode>,
    /// Of those that are Go programs, and those that the rules left out.
    facts: Option<Facts>,
    taken: bool,
    /// Whether it may not be looked at.
    unreadable: bool,
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
    /// Too young yet, and when they are not.
    waiting: Vec<(Instant, u32)>,
    counts: Counts,
    found: SyncSender<Found>,
    news: Arc<OwnedFd>,
}

/// The line has gone.
struct Gone;

impl Work {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut next_scan = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_scan {
                if self.scan().is_err() {
                    return;
                }
                next_scan = Instant::now() + self.every;
            }
            let due = self.waiting.iter().map(|(at, _)| *at).min().map_or(next_scan, |at| at.min(next_scan));
            let order = orders.recv_timeout(due.saturating_duration_since(Instant::now()));
            let done = match order {
                Ok(Order::Executed(pid)) => self.look_at(pid, true),
                Ok(Order::Look) => {
                    next_scan = Instant::now();
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
                tracing::warn!(%error, "processes cannot be listed (/proc)");
                return Ok(());
            }
        };
        let there: HashSet<u32> = pids.iter().copied().collect();
        self.known.retain(|pid, _| there.contains(pid));
        self.metadata.retain(|(pid, _), _| there.contains(pid));
        for pid in pids {
            self.look_at(pid, false)?;
        }
        self.counts.scans += 1;
        self.counts.unreadable = self.known.values().filter(|known| known.unreadable).count() as u64;
        self.tell(Found::Counts(self.counts))
    }

    fn look_at_waiting(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.waiting).into_iter().partition(|(at, _)| *at <= now);
        self.waiting = later;
        let due: Vec<(Instant, u32)> = due;
        for (_, pid) in due {
            self.look_at(pid, false)?;
        }
        Ok(())
    }

    /// Looks at a process, unless it is known, and so is the program that it runs. `executed`: somebody says
    /// that it is another one than before. Several may say so of one execution, some when it was looked at
    /// already.
    fn look_at(&mut self, pid: u32, executed: bool) -> Result<(), Gone> {
        if pid == std::process::id() {
            return Ok(());
        }
        let Some(start) = start_ticks(pid) else { return Ok(()) };
        let stack_start = stack_start(pid);
        if let Some(known) = self.known.get(&pid)
            && known.start_ticks == start
            && match &known.memory {
                Some(memory) => !is_gone(memory, known.stack_start),
                None => known.stack_start == stack_start && !executed,
            }
        {
            return Ok(());
        }
        let mut known = Known {
            start_ticks: start,
            stack_start,
            memory: None,
            file: None,
            facts: None,
            taken: false,
            unreadable: false,
        };
        // Kernel threads, zombies, and those that may not be looked at.
        let target = match Target::open(pid) {
            Ok(target) if target.identity.start_ticks == start => target,
            Ok(_) => return Ok(()),
            Err(error) => {
                tracing::trace!(pid, %error, "not looked at");
                known.unreadable = matches!(error, ProcessError::NotPermitted { .. });
                self.known.insert(pid, known);
                return Ok(());
            }
        };
        known.file = FileNode::of(target.executable_file()).ok();
        let mut facts = facts(&target);
        if let Some(metadata) = self.metadata.get(&(pid, start)) {
            facts.metadata.clone_from(metadata);
        }
        if !self.rules.take(&facts) {
            tracing::trace!(pid, executable = %target.executable.display(), "left out by the rules");
            known.facts = Some(facts);
            let file = known.file;
            self.known.insert(pid, known);
            return self.tell_outsider(file);
        }
        if let Some(left) = self.too_young(start) {
            self.known.remove(&pid);
            self.waiting.push((Instant::now() + left, pid));
            return Ok(());
        }
        let executable = target.executable.clone();
        match self.prepare(target, executed) {
            Ok(traced) => {
                known.facts = Some(facts);
                known.taken = true;
                known.memory = traced.watch.memory().cloned();
                self.counts.taken += 1;
                self.known.insert(pid, known);
                self.tell(Found::Process { traced: Box::new(traced), fresh: executed })?;
            }
            Err(error) => {
                let file = known.file;
                self.known.insert(pid, known);
                self.say_refused(pid, &executable, &error);
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
        let parsed = self.programs.of(&target)?;
        let pid = target.pid();
        let mut traced = match Traced::prepare(target, parsed, &self.config, false, self.sampled) {
            Err(error @ LineError::NoProbe { .. }) => {
                tracing::warn!(pid, "traced by snapshots: {error}");
                let target = Target::open(pid)?;
                let parsed = self.programs.of(&target)?;
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

    fn say_refused(&mut self, pid: u32, executable: &Path, error: &LineError) {
        match error {
            // Most programs are not Go's, and many are gone before they can be looked at.
            LineError::Program {
                error: crate::gobin::Error::NotGo { .. } | crate::gobin::Error::NotElf,
                ..
            }
            | LineError::Process(crate::process::ProcessError::Gone { .. }) => {
                tracing::trace!(pid, executable = %executable.display(), "{error}");
            }
            error => {
                self.counts.refused += 1;
                tracing::warn!(pid, "not traced: {error}");
            }
        }
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
                    known.memory = None;
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
            self.known.remove(&pid);
            self.look_at(pid, false)?;
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

fn facts(target: &Target) -> Facts {
    let mut command_line = target.arguments().unwrap_or_default().join(" ");
    if command_line.len() > MAX_COMMAND_LINE {
        let end = (0..=MAX_COMMAND_LINE).rev().find(|i| command_line.is_char_boundary(*i)).unwrap_or(0);
        command_line.truncate(end);
    }
    Facts {
        executable: target.executable.clone(),
        command_line,
        uid: target.identity.uid,
        metadata: BTreeMap::new(),
    }
}
