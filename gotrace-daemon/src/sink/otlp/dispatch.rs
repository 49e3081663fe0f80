//! Encoded requests to the collector: a bounded queue, a few requests at a time, repetition with
//! back-off, and an account of what did not arrive.
//!
//! What waits is bounded by [`MAX_QUEUED_BYTES`], all signals together; a request that does not fit is
//! refused at once and counted. Metrics go one after the other, so that a collector sees their time in
//! order; of spans, [`IN_FLIGHT`] requests are under way at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use super::{
    batch::Request,
    config::Signal,
    retry::{Answer, Backoff, PATIENCE},
    stats::{Account, Dropped},
    transport::Transport,
};

/// Encoded bytes that may wait or be under way.
pub const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Requests with spans under way at once.
const IN_FLIGHT: usize = 4;

/// The giving end for one signal.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    signal: Signal,
    requests: mpsc::UnboundedSender<Request>,
    queued_bytes: Arc<AtomicUsize>,
    account: Arc<Account>,
}

impl Outbox {
    /// Queues a request, or counts it as dropped. Never blocks.
    pub fn send(&self, request: Request) {
        let size = request.bytes.len();
        let fits = self
            .queued_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n + size <= MAX_QUEUED_BYTES).then_some(n + size)
            })
            .is_ok();
        if !fits {
            self.account.dropped(self.signal, Dropped::QueueFull, &request.resource, request.count);
            return;
        }
        if let Err(mpsc::error::SendError(request)) = self.requests.send(request) {
            self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            self.account.dropped(self.signal, Dropped::Unreachable, &request.resource, request.count);
        }
    }
}

/// Makes a queue for a signal and the future that works it off. The future ends when the outbox is
/// dropped and all is sent, or when `cancel` turns true; what is left then is counted.
pub(super) fn dispatcher(
    signal: Signal,
    transport: Transport,
    queued_bytes: Arc<AtomicUsize>,
    account: Arc<Account>,
    cancel: watch::Receiver<bool>,
) -> (Outbox, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let outbox = Outbox {
        signal,
        requests: sender,
        queued_bytes: Arc::clone(&queued_bytes),
        account: Arc::clone(&account),
    };
    let worker = Worker { signal, transport, queued_bytes, account, cancel };
    (outbox, worker.run(receiver))
}

#[derive(Clone)]
struct Worker {
    signal: Signal,
    transport: Transport,
    queued_bytes: Arc<AtomicUsize>,
    account: Arc<Account>,
    cancel: watch::Receiver<bool>,
}

impl Worker {
    async fn run(self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let at_once = if self.signal == Signal::Traces { IN_FLIGHT } else { 1 };
        let slots = Arc::new(Semaphore::new(at_once));
        let mut cancel = self.cancel.clone();
        let mut under_way = JoinSet::new();
        loop {
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, requests.recv().await)
            };
            let (slot, request) = tokio::select! {
                biased;
                () = cancelled(&mut cancel) => break,
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
            self.give_up(&request, Dropped::Unreachable);
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Sends one request until it is taken, refused, or patience is over.
    async fn deliver(&self, request: Request) {
        let begun = Instant::now();
        let mut backoff = Backoff::default();
        let mut cancel = self.cancel.clone();
        let name = self.signal.name();
        loop {
            let answer = tokio::select! {
                biased;
                () = cancelled(&mut cancel) => {
                    return self.give_up(&request, Dropped::Unreachable);
                }
                answer = self.transport.send(request.bytes.clone()) => answer,
            };
            let endpoint = self.transport.endpoint();
            match answer {
                Answer::Taken { rejected, message } => {
                    let rejected = rejected.min(request.count);
                    self.account.sent(self.signal, request.count - rejected);
                    self.account.dropped(self.signal, Dropped::Rejected, &request.resource, rejected);
                    if rejected > 0 {
                        let text =
                            format!("the collector {endpoint} rejected {rejected} of {name}: {message}");
                        self.account.trouble("rejected", text);
                    } else if !message.is_empty() {
                        self.account.trouble("remark", format!("the collector {endpoint} says: {message}"));
                    }
                    return self.release(&request);
                }
                Answer::Refused { message } => {
                    let text = format!("the collector {endpoint} refuses {name}: {message}");
                    self.account.trouble("refused", text);
                    return self.give_up(&request, Dropped::Refused);
                }
                Answer::Again { after, message } => {
                    let text = format!(
                        "cannot send {name} to the collector {endpoint}: {message}; trying again, tracing goes on"
                    );
                    self.account.trouble("unreachable", text);
                    let wait = backoff.next(after, fastrand::f64());
                    if begun.elapsed() + wait > PATIENCE {
                        return self.give_up(&request, Dropped::Unreachable);
                    }
                    tokio::select! {
                        biased;
                        () = cancelled(&mut cancel) => {
                            return self.give_up(&request, Dropped::Unreachable);
                        }
                        () = tokio::time::sleep(wait) => self.account.retried(),
                    }
                }
            }
        }
    }

    fn give_up(&self, request: &Request, why: Dropped) {
        self.account.dropped(self.signal, why, &request.resource, request.count);
        self.release(request);
    }

    fn release(&self, request: &Request) {
        self.queued_bytes.fetch_sub(request.bytes.len(), Ordering::Relaxed);
    }
}

/// Ends when cancelled; never when the other end is gone without saying so.
async fn cancelled(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|c| *c).await.is_err() {
        std::future::pending::<()>().await;
    }
}
