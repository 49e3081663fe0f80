//! `/api/v1/events`: what changes, as server-sent events, for as long as a client listens.
//!
//! Input: the processes that are traced and their last reports, looked at once a second for each client. Output: first
//! the whole list, then each process that has a new report and each that is not traced any more; a comment where there is
//! no news for a while. Nothing is queued: a client that is slow is told less often, of how it is then. Bounded: so many
//! clients at a time; one that takes nothing for as long as an answer may take is let go ([`Stays`]).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{Sender, channel},
    },
    time::{Instant, sleep},
};

use super::{
    Api, Stays, Traced, later, now_unix_nano,
    processes::{self, Latest},
    stream::Endless,
};
use gotrace_model::printable::write_json;

/// Clients at a time.
const MAX_CLIENTS: usize = 16;
/// How often is looked for news.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After so long without news a client is told that there is none.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Who may listen now.
#[derive(Clone, Debug)]
pub(super) struct Clients(Arc<Semaphore>);

impl Default for Clients {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CLIENTS)))
    }
}

/// Tells a client until it is gone.
pub(super) async fn events(State(api): State<Arc<Api>>, Extension(stays): Extension<Stays>) -> Response {
    let Ok(turn) = Arc::clone(&api.clients.0).try_acquire_owned() else {
        let why =
            format!("{MAX_CLIENTS} clients are told of events already: ask /api/v1/processes now and then");
        return later(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    let (sender, receiver) = channel(1);
    tokio::spawn(tell(api, stays, sender, turn));
    ([(CONTENT_TYPE, "text/event-stream")], Body::new(Endless(receiver))).into_response()
}

async fn tell(api: Arc<Api>, stays: Stays, sender: Sender<Bytes>, _turn: OwnedSemaphorePermit) {
    let rules = api.access.rules();
    let (mut told, mut last) = (Told::default(), Instant::now());
    // Whoever may not ask any more is told nothing: whoever still may asks again.
    while Arc::ptr_eq(&rules, &api.access.rules()) {
        let mut news = told.news(&api.processes.traced(), &api.latest(), now_unix_nano());
        if news.is_empty() && last.elapsed() >= HEARTBEAT {
            news.extend_from_slice(b":\n\n");
        }
        if !news.is_empty() {
            // It waits here until the client has taken what came before.
            if sender.send(news.into()).await.is_err() {
                return;
            }
            stays.moved();
            last = Instant::now();
        }
        tokio::select! {
            () = sender.closed() => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// What a client has been told.
#[derive(Debug, Default)]
struct Told {
    begun: bool,
    /// Of each process since when it is traced, and the end of the last report that was told, by pid.
    processes: BTreeMap<u32, (u64, Option<u64>)>,
}

impl Told {
    /// What is new to it.
    fn news(&mut self, traced: &[Traced], latest: &Latest, now: u64) -> Vec<u8> {
        let mut news = Vec::new();
        let begun = std::mem::replace(&mut self.begun, true);
        if !begun {
            event(&mut news, "processes", now, &processes::list(traced, latest, now));
        }
        let mut before = std::mem::take(&mut self.processes);
        for one in traced {
            let interval = latest.get(&one.resource.process());
            let state = (one.since_unix_nano, interval.map(|interval| interval.end_unix_nano));
            if before.remove(&one.pid) != Some(state) && begun {
                event(&mut news, "process", now, &processes::process(one, interval));
            }
            self.processes.insert(one.pid, state);
        }
        for (pid, (since, _)) in before {
            event(&mut news, "ended", now, &json!({ "pid": pid, "since_unix_nano": since }));
        }
        news
    }
}

/// An event as a client reads it; JSON is one line.
fn event(news: &mut Vec<u8>, name: &str, id: u64, data: &Json) {
    news.extend_from_slice(format!("event: {name}\nid: {id}\ndata: ").as_bytes());
    // A vector takes everything.
    let _ = write_json(news, data);
    news.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use gotrace_model::{Resource, samples};

    fn traced(pid: u32, since_unix_nano: u64) -> Traced {
        let resource = Arc::new(Resource::default());
        Traced {
            pid,
            start_ticks: 70,
            since_unix_nano,
            engine: "events",
            level: "waits",
            resource,
            recorded: false,
        }
    }

    fn names(news: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(news);
        assert!(text.is_empty() || text.ends_with("\n\n"), "{text}");
        text.lines().filter_map(|line| line.strip_prefix("event: ")).map(str::to_owned).collect()
    }

    #[test]
    fn a_client_is_told_what_is_new() {
        let (mut told, mut latest) = (Told::default(), Latest::new());
        let (first, second) = (traced(7, 1), traced(8, 1));
        let both = [first.clone(), second.clone()];
        assert_eq!(names(&told.news(&both, &latest, 5)), ["processes"]);
        assert!(told.news(&both, &latest, 6).is_empty(), "nothing is new");
        for resource in [&first.resource, &second.resource] {
            latest.insert(resource.process(), Arc::new(samples::interval(resource, 1, Vec::new())));
        }
        let news = told.news(&both, &latest, 7);
        assert_eq!(names(&news), ["process", "process"]);
        assert!(String::from_utf8_lossy(&news).contains("\nid: 7\ndata: {\""));
        // A pid that is another program's now.
        let again = [traced(7, 9)];
        assert_eq!(names(&told.news(&again, &latest, 8)), ["process", "ended"]);
        assert!(told.news(&again, &latest, 9).is_empty());
    }
}
