//! Recordings that are kept (`recordings/*.gtr`) are converted to what is kept beside them, on any machine, without
//! root and without Go: what gotrace makes of events, snapshots and findings does not change unnoticed, and what an
//! earlier gotrace recorded is read by every later one.
//!
//! After a wanted change: `GOTRACE_BLESS=1 cargo test -p gotrace-tests --test recordings`.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use gotrace_tests::{
    export::Export,
    gotrace::binary,
    http,
    live::places,
    recording::{Exported, intervals},
    speaking::Ended,
    terminal::OnTerminal,
};

use serde_json::Value;

/// gotrace's own version in what it writes.
const VERSION: &str = concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"");

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

fn convert(recording: &Path, format: &str) -> String {
    let output = Command::new(binary().expect("built"))
        .args(["convert", "--format", format])
        .arg(recording)
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").replace(VERSION, "\"version\":\"\"")
}

#[test]
fn a_recording_is_on_the_page_as_of_its_end() {
    let file = fs::read_dir(directory()).expect("recordings").map(|entry| entry.expect("an entry").path());
    let file = file.filter(|path| path.extension().is_some_and(|ending| ending == "gtr")).min();
    let mut view = Command::new(binary().expect("built"))
        .args(["view", "--http", "0"])
        .arg(file.expect("a recording"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(view.stderr.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let view = Ended(view);
    let address = line.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next()).expect(&line);
    let get = |path: &str| http::get(address, path, &["Host: localhost"]).expect("an answer");
    let list = get("/api/v1/processes").json().expect("JSON");
    let process = &list["processes"][0];
    assert!(process["recorded"] == true && process["alive"].as_u64() > Some(0), "{list}");
    let history = get("/api/v1/history").json().expect("JSON");
    assert!(history["processes"][0]["alive"].as_array().is_some_and(|steps| !steps.is_empty()), "{history}");
    let refused = get(&format!("/processes/{}/debug/pprof/goroutine", process["pid"]));
    assert!(refused.status == 503 && refused.text().contains("not in a recording"), "{}", refused.text());
    drop(view);
}

#[test]
fn kept_recordings_give_what_is_kept_of_them() {
    let mut found = 0;
    for entry in fs::read_dir(directory()).expect("recordings") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "gtr") {
            continue;
        }
        found += 1;
        let (otlp, json) = (convert(&path, "otlp"), convert(&path, "json"));
        let kept = ["otlp.jsonl", "json"].map(|ending| path.with_extension(ending));
        if std::env::var_os("GOTRACE_BLESS").is_some() {
            fs::write(&kept[0], &otlp).expect("written");
            fs::write(&kept[1], &json).expect("written");
        }
        let [kept_otlp, kept_json] = kept.map(|path| fs::read_to_string(path).expect("what is kept"));
        Exported::parse(&otlp).assert_same(&Exported::parse(&kept_otlp));
        assert_eq!(intervals(&json), intervals(&kept_json), "{}", path.display());
    }
    assert!(found > 0, "recordings are kept");
}

#[test]
fn places_of_waits_are_those_of_the_spans() {
    let path = directory().join("places.gtr");
    let (otlp, json) = (convert(&path, "otlp"), convert(&path, "json"));
    let last: Value = serde_json::from_str(json.lines().last().expect("a line")).expect("JSON");
    places(&Export::parse(&otlp).expect("spans"), &last["summary"]).expect("they agree");
    // As `tests/go/demo` has them.
    let of = |function: &str, reason: &str| {
        let all = last["summary"]["waits_at"].as_array().expect("places");
        let found = all.iter().find(|p| p["frame"]["function"] == function && p["reason"] == reason);
        found.unwrap_or_else(|| panic!("{function}, {reason}")).clone()
    };
    let accept = of("main.openShop", "IO wait");
    assert_eq!((&accept["own"], &accept["stack_complete"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(accept["stack"][0]["function"], "runtime.gopark");
    assert!(accept["count"].as_u64() > Some(50), "{accept}");
    assert!(of("main.janitor", "sync.Cond.Wait")["max"].as_u64() >= Some(500_000_000));
    assert_eq!(of("runtime.bgsweep", "GC sweep wait")["system"], true);
    assert_eq!(last["summary"]["min_wait_ns"], 1_000_000);
}

#[test]
fn a_recording_is_played_paused_and_sought_through() {
    let path = directory().join("demo.gtr");
    let mut view = OnTerminal::start(&["view", path.to_str().expect("text")]);
    for part in ["main.waitForever", "playing ×1", "space play/pause"] {
        view.wait_to_see(part);
    }
    view.press(" ");
    view.wait_to_see("paused ×1");
    view.press("++");
    view.wait_to_see("paused ×4");
    // Ten seconds on is behind its end.
    view.press("\x1b[C");
    view.wait_to_see("end ×4");
    view.wait_to_see("· 7.0s");
    view.press("\x1b[D");
    view.wait_to_see("paused ×4");
    view.press(" ");
    view.wait_to_see("end ×4");
    view.press("q");
    assert!(view.end().success(), "{}", view.shown());
    assert!(view.is_cooked());
}

#[test]
fn requests_are_cut_exactly() {
    let path = directory().join("requests.gtr");
    let (otlp, json) = (convert(&path, "otlp"), convert(&path, "json"));
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let all: Vec<&Value> =
        lines.iter().filter_map(|line| line["interval"]["requests"]["slow"].as_array()).flatten().collect();
    let ended: Vec<&&Value> = all.iter().filter(|request| request["open"] == false).collect();
    // Its server was asked thrice for each of five routes.
    let mut routes: BTreeMap<&str, u64> = BTreeMap::new();
    for request in &ended {
        *routes.entry(request["route"].as_str().expect("a route")).or_default() += 1;
        let time = request["time_ns"].as_object().expect("times");
        let blocked = time["blocked"].as_object().expect("reasons").values();
        let sum: u64 = time.values().chain(blocked).filter_map(Value::as_u64).sum();
        assert_eq!(sum, request["duration_ns"].as_u64().expect("a time"), "{request}");
        assert_eq!(request["waits_complete"], true, "{request}");
    }
    let expected = ["/chan", "/cpu", "/db", "/kids", "/mutex"].map(|route| (route, 3));
    assert_eq!(routes, BTreeMap::from(expected));
    // Who waits for its children waits for the one that slept longest.
    let waits = ended.iter().flat_map(|request| request["waits"].as_array().into_iter().flatten());
    let of = |function: &str| -> Vec<&Value> {
        waits.clone().filter(|wait| wait["own_code"]["function"] == function).collect()
    };
    assert_eq!(["main.doKids", "main.doDB", "main.doChan"].map(|function| of(function).len()), [3, 3, 3]);
    for wait in of("main.doKids") {
        let cause = &wait["causes"][0];
        assert_eq!((&cause["function"], &cause["state"]), (&"main.doKids.func1".into(), &"sleep".into()));
    }
    for wait in of("main.doDB") {
        assert_eq!((&wait["reason"], &wait["ended_by"]["kind"]), (&"IO wait".into(), &"netpoll".into()));
    }
    // Each is a span of a server's, and each wait of it a child.
    let spans = Export::parse(&otlp).expect("spans").spans;
    let servers: Vec<_> = spans.iter().filter(|span| span.name.starts_with("GET /")).collect();
    assert_eq!(servers.len(), ended.len());
    let waits: usize = ended.iter().map(|request| request["waits"].as_array().map_or(0, Vec::len)).sum();
    let is_child = |id: &str| servers.iter().any(|server| server.span_id == id);
    assert_eq!(spans.iter().filter(|span| is_child(&span.parent_span_id)).count(), waits);
}
