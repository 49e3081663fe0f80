//! Encoded requests to the collector: a bounded queue, a few requests at a time, repetition with
//! back-off, and an account of what did not arrive.
//!
//! What waits in memory is bounded by [`MAX_QUEUED_BYTES`], all signals together, and by each process's share of it
//! ([`Room`]); a request that does not fit is refused at once and counted. Metrics go one after the other, so that a collector sees their time
//! in order; of spans, [`IN_FLIGHT`] requests are under way at once.
//!
//! With a spool a request that the collector does not take at its first try goes to disk, and with it all
//! that comes until the spool is empty again; so do spans while half of the memory is used up. [`drain`]
//! sends what is there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    batch::Request,
    config::Signal,
    drain::drain,
    retry::{Answer, Backoff, PATIENCE},
    room::Room,
    spool::Spool,
    stats::{Account, Dropped},
    transport::Transport,
};

/// Encoded bytes that may wait in memory or be under way.
pub const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Requests with spans under way at once.
const IN_FLIGHT: usize = 4;

/// Turns to a time when work has to end: what is to be kept on disk may take until then.
pub(super) type Cancel = watch::Receiver<Option<tokio::time::Instant>>;
/// Turns to `true` when nothing more is given: what is left is tried at once, whatever pause was made.
pub(super) type Ending = watch::Receiver<bool>;

/// The pauses between the tries of one request.
pub(super) struct Pauses {
    backoff: Backoff,
    ending: Ending,
    hurried: bool,
}

impl Pauses {
    pub fn new(ending: &Ending) -> Self {
        Self { backoff: Backoff::default(), hurried: *ending.borrow(), ending: ending.clone() }
    }

    /// How long the next pause is.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        self.backoff.next(asked, fastrand::f64())
    }

    /// Makes a pause; the end cuts one short, once, and pauses begin anew as short as the first.
    pub async fn wait(&mut self, pause: Duration) {
        let Self { backoff, ending, hurried } = self;
        let ends = async {
            if ending.wait_for(|ending| *ending).await.is_err() {
                // Nobody will say so any more.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ends, if !*hurried => (*hurried, *backoff) = (true, Backoff::default()),
        }
    }
}

/// The giving end for one signal.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    signal: Signal,
    requests: mpsc::UnboundedSender<Request>,
    queued_bytes: Arc<Room>,
    account: Arc<Account>,
    spool: Option<Spool>,
}

impl Outbox {
    /// Queues a request, or counts it as dropped. Never blocks.
    pub fn send(&self, request: Request) {
        let size = request.bytes.len();
        let Some(queued) = self.queued_bytes.take_whole(&request.resource, size) else {
            self.account.dropped(self.signal, Dropped::QueueFull, &request.resource, request.count);
            return;
        };
        // Of metrics the order counts: the worker alone says which way they go.
        let crowded = |spool: &Spool| queued > MAX_QUEUED_BYTES / 2 || spool.is_behind(self.signal);
        let sent = match &self.spool {
            Some(spool) if self.signal == Signal::Traces && crowded(spool) => {
                spool.hand_over(self.signal, request, &self.requests)
            }
            _ => self.requests.send(request).map_err(|mpsc::error::SendError(request)| request),
        };
        if let Err(request) = sent {
            self.queued_bytes.give_back(&request.resource, size);
            self.account.dropped(self.signal, Dropped::Unreachable, &request.resource, request.count);
        }
    }
}

/// Makes a queue for a signal and the future that works it off. The future ends when the outbox is
/// dropped and all is sent, or when `cancel` turns; what is left in memory then is written to the spool, or
/// counted.
pub(super) fn dispatcher(
    signal: Signal,
    transport: Transport,
    queued_bytes: Arc<Room>,
    account: Arc<Account>,
    (cancel, ending): (Cancel, Ending),
    spool: Option<Spool>,
) -> (Outbox, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let outbox = Outbox {
        signal,
        requests: sender,
        queued_bytes: Arc::clone(&queued_bytes),
        account: Arc::clone(&account),
        spool: spool.clone(),
    };
    let worker = Worker { signal, transport, queued_bytes, account, cancel, ending, spool };
    let work = async move {
        let (tell, told) = oneshot::channel();
        let drainer = worker.clone();
        let memory = async {
            worker.run(receiver).await;
            let _ = tell.send(());
        };
        tokio::join!(memory, drain(drainer, told));
    };
    (outbox, work)
}

#[derive(Clone)]
pub(super) struct Worker {
    pub signal: Signal,
    pub transport: Transport,
    queued_bytes: Arc<Room>,
    pub account: Arc<Account>,
    pub cancel: Cancel,
    pub ending: Ending,
    pub spool: Option<Spool>,
}

impl Worker {
    /// Requests that may be under way at once.
    pub fn slots(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(if self.signal == Signal::Traces { IN_FLIGHT } else { 1 }))
    }

    async fn run(&self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let slots = self.slots();
        let mut cancel = self.cancel.clone();
        let mut under_way = JoinSet::new();
        loop {
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, requests.recv().await)
            };
            let (slot, request) = tokio::select! {
                biased;
                _ = cancelled(&mut cancel) => break,
                next = next => next,
            };
            let Some(request) = request else { break };
            let worker = self.clone();
            under_way.spawn(async move {
                worker.deliver(request).await;
                drop(slot);
            });
            while under_way.try_join_next().is_some() {}
        }
        requests.close();
        while let Ok(request) = requests.try_recv() {
            self.keep(request).await;
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Sends one request until it is taken, refused, on disk, or patience is over.
    async fn deliver(&self, request: Request) {
        let mut request = request;
        if self.spool.as_ref().is_some_and(|spool| spool.is_behind(self.signal)) {
            request = match self.spool(request).await {
                Ok(()) => return,
                Err(request) => request,
            };
        }
        let begun = Instant::now();
        let mut pauses = Pauses::new(&self.ending);
        let mut cancel = self.cancel.clone();
        loop {
            let answer = tokio::select! {
                biased;
                _ = cancelled(&mut cancel) => return self.keep(request).await,
                answer = self.transport.send(request.bytes.clone()) => answer,
            };
            match self.judge(answer, request.count) {
                Verdict::Taken { rejected } => {
                    self.account.dropped(self.signal, Dropped::Rejected, &request.resource, rejected);
                    return self.release(&request);
                }
                Verdict::Refused => return self.give_up(&request, Dropped::Refused),
                Verdict::Again { after } => {
                    request = match self.spool(request).await {
                        Ok(()) => return,
                        Err(request) => request,
                    };
                    let wait = pauses.next(after);
                    if begun.elapsed() + wait > PATIENCE {
                        return self.give_up(&request, Dropped::Unreachable);
                    }
                    tokio::select! {
                        biased;
                        _ = cancelled(&mut cancel) => return self.keep(request).await,
                        () = pauses.wait(wait) => self.account.retried(),
                    }
                }
            }
        }
    }

    /// Counts and tells what an answer means, but for what was rejected or refused.
    pub fn judge(&self, answer: Answer, count: u64) -> Verdict {
        let (endpoint, name) = (self.transport.endpoint(), self.signal.name());
        match answer {
            Answer::Taken { rejected, message } => {
                let rejected = rejected.min(count);
                self.account.sent(self.signal, count - rejected);
                if rejected > 0 {
                    let text = format!("the collector {endpoint} rejected {rejected} of {name}: {message}");
                    self.account.trouble("rejected", text);
                } else if !message.is_empty() {
                    self.account
                        .trouble("remark", format!("message from the collector {endpoint}: {message}"));
                }
                Verdict::Taken { rejected }
            }
            Answer::Refused { message } => {
                self.account
                    .trouble("refused", format!("the collector {endpoint} rejected {name}: {message}"));
                Verdict::Refused
            }
            Answer::Again { after, message } => {
                let kept = if self.spool.is_some() { " and keeping it on disk" } else { "" };
                let text = format!(
                    "cannot send {name} to the collector {endpoint}: {message}; retrying{kept}; tracing continues"
                );
                self.account.trouble("unreachable", text);
                Verdict::Again { after }
            }
        }
    }

    /// Writes a request to the spool; gives it back when there is none or it cannot be written.
    async fn spool(&self, request: Request) -> Result<(), Request> {
        match &self.spool {
            Some(spool) => spool.push(self.signal, request).await,
            None => Err(request),
        }
    }

    /// Work has to end: what the disk can have it gets, the rest is counted.
    async fn keep(&self, request: Request) {
        let until = *self.cancel.borrow();
        let (resource, count) = (Arc::clone(&request.resource), request.count);
        let kept = match until {
            Some(until) => tokio::time::timeout_at(until, self.spool(request)).await,
            None => Ok(self.spool(request).await),
        };
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(request)) => self.give_up(&request, Dropped::Unreachable),
            // The disk hangs.
            Err(_) => self.account.dropped(self.signal, Dropped::Unreachable, &resource, count),
        }
    }

    fn give_up(&self, request: &Request, why: Dropped) {
        self.account.dropped(self.signal, why, &request.resource, request.count);
        self.release(request);
    }

    fn release(&self, request: &Request) {
        self.queued_bytes.give_back(&request.resource, request.bytes.len());
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// Taken, but for so many.
    Taken { rejected: u64 },
    /// Refused for good.
    Refused,
    /// Worth repeating, when the collector wants it.
    Again { after: Option<Duration> },
}

/// Ends when cancelled; never when the other end is gone without saying so.
pub(super) async fn cancelled(cancel: &mut Cancel) {
    if cancel.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
}
