//! Sends what waits in the spool, the oldest first, until the collector has taken or refused it.
//!
//! There is no patience here: what waits is bounded by the spool's size. A request that is under way when
//! work has to end stays on disk.

use std::sync::{Arc, atomic::Ordering};

use tokio::{sync::oneshot, task::JoinSet};

use super::{
    dispatch::{Pauses, Verdict, Worker, cancelled},
    spool::{Record, Spool},
    stats::Dropped,
};

/// Works until cancelled, or until `ending` has come and nothing is left.
pub(super) async fn drain(worker: Worker, mut ending: oneshot::Receiver<()>) {
    let Some(spool) = worker.spool.clone() else { return };
    let slots = worker.slots();
    let mut cancel = worker.cancel.clone();
    let mut under_way = JoinSet::new();
    let mut ends = false;
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, spool.take(worker.signal).await)
        };
        let (slot, record) = tokio::select! {
            biased;
            () = cancelled(&mut cancel) => break,
            next = next => next,
        };
        while under_way.try_join_next().is_some() {}
        let Some(record) = record else {
            if ends {
                break;
            }
            tokio::select! {
                biased;
                () = cancelled(&mut cancel) => break,
                // What was written before is in the spool now, and is looked for once more.
                _ = &mut ending => ends = true,
                () = spool.written(worker.signal) => {}
            }
            continue;
        };
        let (worker, spool) = (worker.clone(), spool.clone());
        under_way.spawn(async move {
            deliver(&worker, &spool, record).await;
            drop(slot);
        });
    }
    while under_way.join_next().await.is_some() {}
}

async fn deliver(worker: &Worker, spool: &Spool, record: Record) {
    let Record { ticket, count, bytes, gone } = record;
    let signal = worker.signal;
    let mut pauses = Pauses::new(&worker.ending);
    let mut cancel = worker.cancel.clone();
    loop {
        let answer = tokio::select! {
            biased;
            () = cancelled(&mut cancel) => break,
            answer = worker.transport.send(bytes.clone()) => answer,
        };
        match worker.judge(answer, count) {
            Verdict::Taken { rejected } => {
                worker.account.lost(signal, Dropped::Rejected, rejected);
                return spool.done(ticket);
            }
            Verdict::Refused => {
                worker.account.lost(signal, Dropped::Refused, count);
                return spool.done(ticket);
            }
            Verdict::Again { .. } if gone.load(Ordering::Acquire) => break,
            Verdict::Again { after } => {
                let pause = pauses.next(after);
                tokio::select! {
                    biased;
                    () = cancelled(&mut cancel) => break,
                    () = pauses.wait(pause) => worker.account.retried(),
                }
            }
        }
    }
    // Otherwise it is still on disk.
    if gone.load(Ordering::Acquire) {
        worker.account.lost(signal, Dropped::SpoolFull, count);
    }
}
