//! Recordings that are kept (`recordings/*.gtr`) are converted to what is kept beside them, on any machine, without
//! root and without Go: what gotrace makes of events, snapshots and findings does not change unnoticed, and what an
//! earlier gotrace recorded is read by every later one.
//!
//! After a wanted change: `GOTRACE_BLESS=1 cargo test -p gotrace-tests --test recordings`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use gotrace_tests::{
    export::Export,
    gotrace::binary,
    live::places,
    recording::{Exported, intervals},
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
