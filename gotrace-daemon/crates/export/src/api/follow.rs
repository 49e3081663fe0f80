//! `POST /api/v1/processes/PID/follow`, on the socket alone: the reports of a process as they come, at a level that is held
//! for as long as the client listens.
//!
//! Input: the level and the time between reports that are wanted, and reports as the [`Board`](super::Board) is shown them.
//! Output: a header, then each report, as lines of JSON (`gotrace.attach/1`), as text, or whole, for gotrace's own commands
//! of the same build ([`crate::reports`]). What is held goes back when the stream ends, whichever side ends it: the client,
//! the process, or a client that takes nothing for as long as an answer may take. Bounded: so many clients at a time, and
//! so many reports that wait for one; those that found no room are counted, and told.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{Receiver, Sender, channel},
    },
    time::timeout,
};

use super::{
    Api, Ends, Held, Stays, TEXT, Traced, later, not_traced, plain,
    pprof::{BYTES, LINES, value},
    refused,
    stream::Endless,
};
use crate::{json, prometheus::Followed, reports};
use gotrace_model::{Interval, Level, printable::write_json};

/// The end of the path.
pub(super) const PATH: &str = "/follow";
/// Clients at a time.
const MAX_CLIENTS: usize = 8;
/// Milliseconds between two reports: the least, and the most.
const EVERY_MS: std::ops::RangeInclusive<u64> = 1000..=3_600_000;
/// Without a report for so long, an empty line is sent: a client that is gone shows so.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What a client wants of a process while it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// At least this level, within the budget.
    pub level: Level,
    /// A report so often at least.
    pub every: Duration,
}

/// Who may listen now.
#[derive(Clone, Debug)]
pub(super) struct Followers(Arc<Semaphore>);

impl Default for Followers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CLIENTS)))
    }
}

/// How reports are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    /// With the runtime's own goroutines, or without.
    Text {
        system: bool,
    },
    /// Whole, for gotrace itself.
    Interval,
}

/// What a client asks for, or why that cannot be.
fn asked(query: &str) -> Result<(Wanted, Form), String> {
    let level = value(query, "level").parse()?;
    let every_ms = value(query, "every_ms").parse().ok().filter(|ms| EVERY_MS.contains(ms));
    let every_ms = every_ms
        .ok_or_else(|| format!("every_ms must be from {} to {}", EVERY_MS.start(), EVERY_MS.end()))?;
    let form = match value(query, "format") {
        "json" => Form::Json,
        "text" => Form::Text { system: value(query, "system") == "1" },
        "interval" => Form::Interval,
        _ => return Err("format must be json or text".into()),
    };
    Ok((Wanted { level, every: Duration::from_millis(every_ms) }, form))
}

/// Tells a client of a process until one of them is gone.
pub(super) async fn follow(
    State(api): State<Arc<Api>>,
    Path(pid): Path<String>,
    Extension(stays): Extension<Stays>,
    ends: Option<Extension<Ends>>,
    uri: Uri,
) -> Response {
    if !matches!(ends, Some(Extension(Ends::Socket))) {
        let why = "levels are held for commands on the daemon's socket alone (http.socket)";
        return plain(StatusCode::FORBIDDEN, why);
    }
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    let (wanted, form) = match asked(uri.query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(why) => return plain(StatusCode::BAD_REQUEST, why),
    };
    let Ok(turn) = Arc::clone(&api.followers.0).try_acquire_owned() else {
        return later(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{MAX_CLIENTS} clients follow processes already"),
        );
    };
    let Some(reports) = api.board.follow(traced.resource.process()) else {
        let why =
            format!("process {pid} has only just been found: its first report comes within trace.interval");
        return later(StatusCode::SERVICE_UNAVAILABLE, why);
    };
    let held = match api.processes.hold(traced.pid, wanted) {
        Ok(held) => held,
        Err(error) => return refused(traced.pid, error),
    };
    stays.stay();
    let (sender, receiver) = channel(1);
    tokio::spawn(tell(traced, form, (reports, sender), stays, (held, turn)));
    let content_type = match form {
        Form::Json => LINES,
        Form::Text { .. } => TEXT,
        Form::Interval => BYTES,
    };
    ([(CONTENT_TYPE, content_type)], Body::new(Endless(receiver))).into_response()
}

/// `_held`: until the client is gone, or the process.
async fn tell(
    traced: Traced,
    form: Form,
    (mut reports, sender): (Receiver<Followed>, Sender<Bytes>),
    stays: Stays,
    _held: (Held, OwnedSemaphorePermit),
) {
    let mut header = form == Form::Json;
    // At once, so that another build goes without waiting.
    if form == Form::Interval && sender.send(reports::header().into()).await.is_err() {
        return;
    }
    loop {
        let next = tokio::select! {
            () = sender.closed() => return,
            next = timeout(HEARTBEAT, reports.recv()) => next,
        };
        let lines = match next {
            // It is not traced any more.
            Ok(None) => return,
            Ok(Some(Followed { interval, missed })) => {
                let mut lines = Vec::new();
                if std::mem::take(&mut header) {
                    let how = (interval.engine, interval.level);
                    // A vector takes everything.
                    let _ = json::header(&mut lines, &interval.resource, traced.pid, how.0, how.1);
                }
                form.write(&mut lines, &interval, missed);
                lines
            }
            Err(_) if form == Form::Interval => reports::NO_NEWS.to_vec(),
            Err(_) => b"\n".to_vec(),
        };
        // It waits here until the client has taken what came before.
        if sender.send(lines.into()).await.is_err() {
            return;
        }
        stays.moved();
    }
}

impl Form {
    /// `missed`: reports that there was no room for before this one.
    fn write(self, lines: &mut Vec<u8>, interval: &Interval, missed: u64) {
        // A vector takes everything.
        let _ = match self {
            Self::Json => {
                if missed > 0 {
                    let _ = write_json(lines, &json!({ "reports_missed": missed }));
                    lines.push(b'\n');
                }
                json::interval(lines, interval)
            }
            Self::Text { system } => reports::lines(lines, interval, missed, system),
            Self::Interval => {
                // Nothing in a report fails to be written.
                *lines = reports::frame(interval, missed).unwrap_or_default();
                Ok(())
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin};

    use hyper::body::Body as _;

    use super::{
        super::{Access, Board, testing::Shops},
        *,
    };
    use crate::reports::{Reader, Told};
    use gotrace_model::samples;

    #[test]
    fn what_is_asked_for_must_make_sense() {
        let full = Wanted { level: Level::Full, every: Duration::from_secs(2) };
        assert_eq!(asked("level=full&every_ms=2000&format=json"), Ok((full, Form::Json)));
        let text = asked("format=text&system=1&level=full&every_ms=2000");
        assert_eq!(text, Ok((full, Form::Text { system: true })));
        for (query, says) in [
            ("every_ms=1000&format=json", "unknown level"),
            ("level=all&every_ms=1000&format=json", "unknown level"),
            ("level=full&format=json", "every_ms"),
            ("level=full&every_ms=999&format=json", "every_ms"),
            ("level=full&every_ms=-1&format=json", "every_ms"),
            ("level=full&every_ms=1000&format=xml", "format"),
        ] {
            assert!(asked(query).expect_err(query).contains(says), "{query}");
        }
    }

    /// What the next piece of an answer tells.
    async fn next_told(body: &mut Body, reader: &mut Reader) -> Option<Told> {
        loop {
            if let Some(told) = reader.next_told().expect("what a gotrace writes") {
                return Some(told);
            }
            let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
            reader.take(&frame.expect("no error").into_data().expect("bytes"));
        }
    }

    #[tokio::test]
    async fn whole_reports_are_told_behind_a_header_and_those_left_out_are_counted() {
        let shops = Arc::new(Shops::new([(7, Ok(()))]));
        let board = Arc::<Board>::default();
        let interval = Interval { resource: Arc::clone(&shops.resource), ..samples::whole() };
        let interval = Arc::new(interval);
        board.show(&interval);
        let api = Api::new(shops, Arc::clone(&board), Access::default());
        let uri = "/?level=full&every_ms=1000&format=interval".parse().expect("a path");
        let (pid, ends) = (Path("7".to_owned()), Some(Extension(Ends::Socket)));
        let answer = follow(State(Arc::new(api)), pid, Extension(Stays::default()), ends, uri).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes()), Some(BYTES.as_bytes()));
        let (mut body, mut reader) = (answer.into_body(), Reader::default());
        let begun = next_told(&mut body, &mut reader).await;
        assert!(matches!(begun, Some(Told::Begun)), "before there is a report: {begun:?}");
        // Nobody reads meanwhile: as many wait as may, and so many have no room.
        for _ in 0..20 {
            board.show(&interval);
        }
        for n in 0..16 {
            let Some(Told::Report { interval: told, missed: 0 }) = next_told(&mut body, &mut reader).await
            else {
                panic!("{n}")
            };
            assert_eq!(format!("{told:?}"), format!("{interval:?}"));
        }
        board.show(&interval);
        let next = next_told(&mut body, &mut reader).await;
        assert!(matches!(next, Some(Told::Report { missed: 4, .. })), "{next:?}");
        board.remove(7);
        assert!(next_told(&mut body, &mut reader).await.is_none(), "it is not traced any more");
    }
}
