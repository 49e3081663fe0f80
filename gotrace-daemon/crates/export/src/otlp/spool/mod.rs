//! What the collector does not take now waits on disk: a bounded queue of encoded requests that outlives
//! gotrace.
//!
//! ```text
//! worker ──push──▶ thread: pack, append ──▶ files ──▶ thread: take ──▶ drainer: send, repeat ──done──▶ thread
//! ```
//!
//! A thread of its own does all that touches the disk; whoever pushes waits for nothing but memory, which
//! the dispatcher bounds. A request is marked as done when the collector has answered for it, and its file
//! removed when all of it are: after a crash only what was under way is sent twice. What is written
//! survives gotrace's own end at once, and the machine's after the file is full or gotrace has ended in
//! order (`fdatasync`). Where the directory cannot be used (another gotrace has it, no room, not writable)
//! requests wait in memory as if there were none, and it is tried again every [`TRY_EVERY`].

#[doc(hidden)]
pub mod fuzzing;
mod segment;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc::UnboundedSender, oneshot};

use super::{
    batch::Request,
    config::{Signal, SpoolConfig},
    room::Room,
    stats::{Account, Dropped, SpoolStats},
};
use gotrace_model::Resource;
use store::{Lost, Store};
pub(super) use store::{Record, Ticket};

/// Time between two tries of a directory that could not be used or written.
pub const TRY_EVERY: Duration = Duration::from_secs(10);

/// What the thread is asked for.
enum Command {
    Push(Signal, Request, Back),
    Take(Signal, oneshot::Sender<Option<Record>>),
    Done(Ticket),
    Close(oneshot::Sender<()>),
}

/// Where a request goes that could not be written.
enum Back {
    Waits(oneshot::Sender<Result<(), Request>>),
    Queue(UnboundedSender<Request>),
}

/// What the thread and those who ask share, for one signal.
#[derive(Debug, Default)]
struct Shared {
    /// Whether anything waits that comes before what is new.
    behind: AtomicBool,
    /// Requests that are to be written.
    pushing: AtomicUsize,
    /// Something was written, or found.
    written: Notify,
}

/// The spool, as workers see it.
#[derive(Clone)]
pub(super) struct Spool {
    commands: Sender<Command>,
    shared: Arc<[Shared; Signal::ALL.len()]>,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").finish_non_exhaustive()
    }
}

impl Spool {
    /// Starts the thread, which opens the directory. `queued_bytes`: what requests in memory take; those
    /// that are written are taken off.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        config: SpoolConfig,
        queued_bytes: Arc<Room>,
        account: Arc<Account>,
    ) -> std::io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let shared: Arc<[Shared; Signal::ALL.len()]> = Arc::default();
        // Until the thread has looked: what is new comes behind what an earlier gotrace left.
        shared.iter().for_each(|s| s.behind.store(true, Ordering::Release));
        let thread = Worker {
            config,
            shared: Arc::clone(&shared),
            queued_bytes,
            account,
            store: None,
            next_try: Instant::now(),
            processes: HashMap::new(),
            trouble: None,
        };
        std::thread::Builder::new().name("gotrace-spool".into()).spawn(move || thread.run(&receiver))?;
        Ok(Self { commands, shared })
    }

    /// Whether what is new must wait behind what is here.
    pub fn is_behind(&self, signal: Signal) -> bool {
        self.shared[signal as usize].behind.load(Ordering::Acquire)
    }

    fn command(&self, signal: Signal, request: Request, back: Back) -> Result<(), Request> {
        let shared = &self.shared[signal as usize];
        shared.pushing.fetch_add(1, Ordering::AcqRel);
        shared.behind.store(true, Ordering::Release);
        match self.commands.send(Command::Push(signal, request, back)) {
            Err(mpsc::SendError(Command::Push(_, request, _))) => Err(request),
            _ => Ok(()),
        }
    }

    /// Writes a request; gives it back when that cannot be done.
    pub async fn push(&self, signal: Signal, request: Request) -> Result<(), Request> {
        let (tell, told) = oneshot::channel();
        self.command(signal, request, Back::Waits(tell))?;
        // The thread answers, unless it has ended, which only a panic makes it do: then it is counted there.
        told.await.unwrap_or(Ok(()))
    }

    /// The same without waiting: what cannot be written goes to `back`.
    pub fn hand_over(
        &self,
        signal: Signal,
        request: Request,
        back: &UnboundedSender<Request>,
    ) -> Result<(), Request> {
        self.command(signal, request, Back::Queue(back.clone()))
    }

    /// The oldest that waits; `None` when there is none.
    pub async fn take(&self, signal: Signal) -> Option<Record> {
        let (tell, told) = oneshot::channel();
        self.commands.send(Command::Take(signal, tell)).ok()?;
        told.await.ok().flatten()
    }

    /// Something may wait that did not before.
    pub async fn written(&self, signal: Signal) {
        self.shared[signal as usize].written.notified().await;
    }

    /// A request is not needed any more.
    pub fn done(&self, ticket: Ticket) {
        // Refused when the thread has ended.
        let _ = self.commands.send(Command::Done(ticket));
    }

    /// Hands all to the disk and gives the directory back.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        if self.commands.send(Command::Close(tell)).is_ok() {
            let _ = told.await;
        }
    }
}

/// The thread.
struct Worker {
    config: SpoolConfig,
    shared: Arc<[Shared; Signal::ALL.len()]>,
    queued_bytes: Arc<Room>,
    account: Arc<Account>,
    /// `None` while the directory cannot be used.
    store: Option<Store>,
    /// When it is tried again to open it, or to write.
    next_try: Instant,
    /// Those whose requests are here, to count what becomes of these.
    processes: HashMap<u64, Weak<Resource>>,
    trouble: Option<String>,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            // Also when there is always something to do.
            if self.store.is_none() && Instant::now() >= self.next_try {
                self.open();
            }
            let command = match &self.store {
                Some(_) => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                None => commands.recv_timeout(self.next_try.saturating_duration_since(Instant::now())),
            };
            match command {
                Ok(Command::Push(signal, request, back)) => self.push(signal, request, back),
                Ok(Command::Take(signal, answer)) => {
                    let Self { store, account, processes, .. } = &mut self;
                    let record =
                        store.as_mut().and_then(|s| s.take(signal, &mut |l| count(account, processes, l)));
                    self.settle(signal);
                    // Whoever asked may have been told to end since: it waits until the next start.
                    let _ = answer.send(record);
                }
                Ok(Command::Done(ticket)) => {
                    if let Some(store) = &mut self.store {
                        store.done(ticket);
                    }
                    Signal::ALL.into_iter().for_each(|signal| self.settle(signal));
                }
                Ok(Command::Close(answer)) => {
                    if let Some(store) = self.store.take() {
                        store.sync();
                    }
                    self.next_try = Instant::now() + Duration::from_secs(3600);
                    let _ = answer.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn open(&mut self) {
        let Self { config: SpoolConfig { directory, size }, account, processes, .. } = self;
        match Store::open(directory, *size, &mut |l| count(account, processes, l)) {
            Ok(store) => {
                let waiting = Signal::ALL.map(|signal| store.items(signal));
                if waiting.iter().any(|n| *n > 0) {
                    tracing::info!(
                        spans = waiting[0],
                        points = waiting[1],
                        records = waiting[2],
                        "sending the data left in {} first",
                        directory.display()
                    );
                } else if self.trouble.is_some() {
                    tracing::info!("spool {} is usable now", directory.display());
                }
                self.store = Some(store);
                self.trouble = None;
            }
            Err(error) => {
                let text = format!(
                    "cannot use the spool {}: {error}; data waits for the collector in memory only; retrying every {} s",
                    directory.display(),
                    TRY_EVERY.as_secs()
                );
                self.fails(text);
            }
        }
        for signal in Signal::ALL {
            self.settle(signal);
            self.shared[signal as usize].written.notify_one();
        }
    }

    fn fails(&mut self, text: String) {
        self.account.warn("spool", &text);
        self.trouble = Some(text);
        self.next_try = Instant::now() + TRY_EVERY;
    }

    fn push(&mut self, signal: Signal, request: Request, back: Back) {
        let resting = self.trouble.is_some() && Instant::now() < self.next_try;
        let result = match &mut self.store {
            Some(store) if !resting => {
                let Request { resource, count: items, bytes } = &request;
                let process = resource.process();
                self.processes.insert(process, Arc::downgrade(resource));
                if self.processes.len() > 1024 {
                    self.processes.retain(|_, resource| resource.strong_count() > 0);
                }
                let (account, processes) = (&self.account, &self.processes);
                store.push(signal, process, *items, bytes, &mut |l| count(account, processes, l))
            }
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        match result {
            Ok(()) => self.trouble = None,
            Err(_) if resting || self.store.is_none() => {}
            Err(error) => {
                let text = format!(
                    "cannot write to the spool {}: {error}; data waits for the collector in memory only; retrying in {} s",
                    self.config.directory.display(),
                    TRY_EVERY.as_secs()
                );
                self.fails(text);
            }
        }
        self.shared[signal as usize].pushing.fetch_sub(1, Ordering::AcqRel);
        self.settle(signal);
        let written = match self.trouble {
            None if self.store.is_some() => {
                self.queued_bytes.give_back(&request.resource, request.bytes.len());
                self.shared[signal as usize].written.notify_one();
                Ok(())
            }
            _ => Err(request),
        };
        match (back, written) {
            (Back::Waits(tell), written) => {
                let _ = tell.send(written);
            }
            (Back::Queue(_), Ok(())) => {}
            (Back::Queue(queue), Err(request)) => {
                if let Err(tokio::sync::mpsc::error::SendError(request)) = queue.send(request) {
                    self.queued_bytes.give_back(&request.resource, request.bytes.len());
                    self.account.dropped(signal, Dropped::Unreachable, &request.resource, request.count);
                }
            }
        }
    }

    /// Says what there is now.
    fn settle(&self, signal: Signal) {
        let shared = &self.shared[signal as usize];
        let holds = self.store.as_ref().is_some_and(|store| store.holds(signal));
        shared.behind.store(holds || shared.pushing.load(Ordering::Acquire) > 0, Ordering::Release);
        let of = |signal| self.store.as_ref().map_or(0, |s| s.items(signal));
        self.account.spool(SpoolStats {
            directory: self.config.directory.clone(),
            limit: self.config.size,
            bytes: self.store.as_ref().map_or(0, Store::bytes),
            spans: of(Signal::Traces),
            points: of(Signal::Metrics),
            logs: of(Signal::Logs),
            trouble: self.trouble.clone(),
        });
    }
}

fn count(account: &Account, processes: &HashMap<u64, Weak<Resource>>, lost: Lost) {
    let Lost { signal, why, process, count } = lost;
    match process.and_then(|p| processes.get(&p)).and_then(Weak::upgrade) {
        Some(resource) => account.dropped(signal, why, &resource, count),
        None => account.lost(signal, why, count),
    }
    let text = match why {
        Dropped::SpoolFull => "spool full: dropping the oldest data".to_owned(),
        _ => format!("spool damaged: cannot read {count} of {}", signal.name()),
    };
    account.warn(why.name(), &text);
}
