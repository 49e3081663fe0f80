//! `/api/v1/processes/{pid}/graph`: who waits for which lock and channel now, and who holds those locks, as the lines of
//! `gotrace.graph/1`. The process is read for it as for a profile of its goroutines: one request at a time.

use std::{
    io::{self, Write},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderValue, Version, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    Api, Processes, Stays, not_traced,
    pprof::{INCOMPLETE, LINES, Ready, Slot, read, too_old},
    stream::Pipe,
};
use crate::{
    dump::{Captured, incomplete},
    leaks::{graph, values::line},
};
use gotrace_inspect::{examine::WaitGraph, leak::LeftOut};
use gotrace_process::{contained, give_memory_back};

/// Ids that are told of each group.
const IDS: usize = 64;

/// Who waits for what, as of now.
pub(super) async fn graph(
    State(api): State<Arc<Api>>,
    Path(pid): Path<String>,
    version: Version,
    Extension(stays): Extension<Stays>,
) -> Response {
    let Some(traced) = api.process(&pid) else { return not_traced(&pid) };
    if let Some(response) = too_old(version) {
        return response;
    }
    let (incomplete, body) = match read(&api, traced.pid, &stays, answer).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let mut response = ([(CONTENT_TYPE, LINES)], body).into_response();
    if let Some(incomplete) = incomplete.and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(INCOMPLETE, incomplete);
    }
    response
}

/// Reads a process and writes what is there.
fn answer(processes: &dyn Processes, slot: Slot, ready: Ready, mut pipe: Pipe) {
    // A panic was printed; without an answer the client is told of it.
    let Ok(read) = contained(|| processes.graph(slot.pid())) else { return };
    // Who has an answer may ask again: what this holds goes before that.
    match read {
        Ok((mut captured, graph, room)) => {
            let missing = incomplete(&captured.snapshot.counts);
            let waits = ready.send(Ok(missing)).is_ok();
            let written =
                waits && matches!(contained(|| write(&mut pipe, &mut captured, &graph)), Ok(Ok(())));
            drop((captured, graph, room, slot));
            if written {
                let _ = pipe.end();
            }
            give_memory_back();
        }
        Err(error) => {
            drop(slot);
            let _ = ready.send(Err(error));
        }
    }
}

fn write(out: &mut dyn Write, captured: &mut Captured, found: &WaitGraph) -> io::Result<()> {
    let Captured { snapshot, names, executable, .. } = captured;
    let WaitGraph { graph, left_out, locks_not_searched, holders_unknown, references_complete } = found;
    let header = json!({
        "schema": graph::SCHEMA,
        "time_unix_nano": snapshot.time_unix_nano,
        "pid": snapshot.pid,
        "executable": executable,
        "go_version": names.binary().go_version().text,
        "engine": "snapshot",
        "duration_ns": snapshot.duration_ns,
        "references_complete": references_complete,
        "holders_unknown": holders_unknown,
        "locks_not_searched": locks_not_searched,
    });
    line(out, &header)?;
    graph::parts(out, graph, names, IDS)?;
    let LeftOut { objects, groups, goroutines } = left_out;
    let summary = json!({"summary": {
        "groups": graph.groups.len(),
        "objects": graph.objects.len(),
        "edges": graph.edges.len(),
        "goroutines": snapshot.counts.goroutines - snapshot.counts.system,
        "objects_left_out": objects,
        "groups_left_out": groups,
        "goroutines_left_out": goroutines,
        "waits_unreadable": snapshot.counts.waits_unreadable,
    }});
    line(out, &summary)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{CaptureError, testing::Shops, tests::serve};

    #[test]
    fn who_waits_for_what_is_told_and_what_is_left_out() {
        let mut shops = Shops::new([(7, Ok(())), (8, Err(CaptureError::Later("not now".into())))]);
        shops.unreadable = 2;
        let served = serve(shops);
        let answer = served.get("/api/v1/processes/7/graph");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.head.contains("content-type: application/x-ndjson"), "{}", answer.head);
        assert!(answer.head.contains("gotrace-incomplete: goroutines not read: 2"), "{}", answer.head);
        let lines: Vec<Value> =
            answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let of = |kind: &str| lines.iter().filter_map(|line| line.get(kind).cloned()).collect::<Vec<_>>();
        assert_eq!((&lines[0]["schema"], &lines[0]["pid"]), (&json!("gotrace.graph/1"), &json!(4711)));
        assert_eq!(
            (&lines[0]["holders_unknown"], &lines[0]["locks_not_searched"]),
            (&Value::Null, &json!(1))
        );
        let (groups, objects, edges) = (of("group"), of("object"), of("edge"));
        assert_eq!((groups.len(), objects.len()), (1, 2));
        assert!(groups.iter().all(|g| g["own_code"]["function"].is_string()), "{groups:?}");
        assert!(
            objects.iter().all(|o| o["kind"] == "chan" && o["waiting"].as_u64() > Some(0)),
            "{objects:?}"
        );
        assert!(edges.iter().all(|e| e["kind"] == "waits" && e["evidence"].is_null()), "{edges:?}");
        let summary = &of("summary")[0];
        let left: Vec<u64> = ["objects_left_out", "groups_left_out", "goroutines_left_out"]
            .iter()
            .map(|field| summary[field].as_u64().expect("a number"))
            .collect();
        assert!(left.iter().all(|&n| n > 0), "{summary}");
        for (path, status) in [("8", 503), ("9", 404)] {
            assert_eq!(served.get(&format!("/api/v1/processes/{path}/graph")).status, status, "{path}");
        }
        served.stop();
    }
}
