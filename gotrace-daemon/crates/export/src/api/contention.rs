//! `/processes/{pid}/debug/pprof/block`: of the waits that gotrace has seen since tracing began. The process is
//! not read for it.

use std::{sync::Arc, thread, time::Duration};

use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_DISPOSITION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::sleep,
};

use super::{
    Api, Stays, TEXT, Traced,
    ask::ask,
    later, plain,
    pprof::{BYTES, Format, INCOMPLETE, attachment},
    refused,
};
use crate::contention::{Contention, Kind, Waits};
use gotrace_process::contained;

/// Answers at once: each takes memory.
const TURNS: usize = 4;
/// The longest difference: the server gives an answer 30 s.
const MAX_SECONDS: u32 = 25;

/// Who may be answered now.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TURNS)))
    }
}

/// A profile, and what of the process is not in it.
type Written = (Vec<u8>, Option<String>);

/// The profile of a process; `seconds`: what of it comes within so many.
pub(super) async fn answer(
    api: &Api,
    traced: &Traced,
    kind: Kind,
    (format, seconds): (Format, Option<u32>),
    stays: &Stays,
) -> Response {
    if seconds.is_some_and(|seconds| seconds > MAX_SECONDS) {
        return plain(StatusCode::BAD_REQUEST, format!("seconds must be {MAX_SECONDS} at most"));
    }
    let Ok(_turn) = api.contentions.0.try_acquire() else {
        let why = format!("{TURNS} profiles are being made for other requests: try again in a moment");
        return later(StatusCode::TOO_MANY_REQUESTS, why);
    };
    stays.stay();
    let pid = traced.pid;
    let waits = || ask(|answer| api.processes.waits(pid, answer));
    let told = match (waits().await, seconds) {
        (Ok(before), Some(seconds)) => {
            sleep(Duration::from_secs(seconds.into())).await;
            waits().await.map(|mut now| {
                now.subtract(&before);
                now
            })
        }
        (told, _) => told,
    };
    let waits = match told {
        Ok(waits) => waits,
        Err(error) => return refused(pid, error),
    };
    let executable = traced.resource.text("process.executable.path").unwrap_or_default().to_owned();
    let (ready, written) = oneshot::channel();
    let work = move || {
        // A panic was printed.
        if let Ok(written) = contained(|| write(kind, format, &waits, &executable)) {
            let _ = ready.send(written);
        }
    };
    if let Err(error) = thread::Builder::new().name("gotrace-profile".into()).spawn(work) {
        return later(StatusCode::SERVICE_UNAVAILABLE, format!("cannot start a thread ({error}): try again"));
    }
    let Ok((bytes, incomplete)) = written.await else {
        let why = "gotrace panicked while it wrote the profile, which is a bug: please report it with the message in its log";
        return plain(StatusCode::INTERNAL_SERVER_ERROR, why);
    };
    let mut response = match format {
        Format::Protobuf => {
            let name = attachment(kind.name());
            ([(CONTENT_TYPE, BYTES), (CONTENT_DISPOSITION, &*name)], bytes).into_response()
        }
        Format::Counted | Format::Traceback | Format::Groups => {
            ([(CONTENT_TYPE, TEXT)], bytes).into_response()
        }
    };
    if let Some(incomplete) = incomplete.and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(INCOMPLETE, incomplete);
    }
    response
}

fn write(kind: Kind, format: Format, waits: &Waits, executable: &str) -> Written {
    let profile = Contention::new(kind, waits);
    let mut bytes = Vec::new();
    // A vector takes everything.
    let _ = match format {
        Format::Protobuf => profile.write(&mut bytes, executable),
        Format::Counted | Format::Traceback | Format::Groups => profile.write_text(&mut bytes),
    };
    (bytes, profile.incomplete())
}
