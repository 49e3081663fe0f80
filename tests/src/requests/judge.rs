//! Holds the records of `gotrace requests` against what the program itself says of its requests.
//!
//! Every judgement gives sentences, one for each disagreement; none: they agree. What takes time is judged by medians, and
//! what others of the machine took from the program is known by gotrace's own account of it: where the program's clock says
//! more, that much is allowed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Own, Report};
use crate::compare::reason;

/// Processes of a build of which one must agree: what others of the machine do to one process, its own clocks do not know.
const TRIES: u32 = 2;
/// How far medians may be apart.
const APART: u64 = 100_000;
/// Between a handler and what is around it, by the thread's clock: the server's own work for a request.
const AROUND: u64 = 250_000;
/// How far clocks may be apart that are read by two processes.
const CLOCKS: u64 = 50_000;
/// What the partner of a request does at least while that waits: on a busy machine a good part of it before that.
const MEANT: u64 = 1_500_000;
/// A wait that must be told.
const LONG: u64 = 2_000_000;

/// Who ends the wait of a kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The program's `partner`.
    Partner,
    /// A timer.
    Timer,
    /// The network.
    Network,
    /// Whoever it is, it is not judged.
    Anyone,
}

/// What is known of all requests of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Neutral name of the wait's reason ([`reason`]); empty where it does not wait.
    pub reason: &'static str,
    /// The function of the program that waits; empty where it is another's.
    pub frame: &'static str,
    /// Who ends the wait.
    pub by: By,
    /// What the partner did meanwhile; empty where it is not judged.
    pub cause: &'static str,
}

const fn kind(
    name: &'static str,
    reason: &'static str,
    frame: &'static str,
    by: By,
    cause: &'static str,
) -> Kind {
    Kind { name, reason, frame, by, cause }
}

/// All kinds.
pub const KINDS: [Kind; 51] = [
    kind("sleep", "sleep", "main.sleeps", By::Timer, ""),
    kind("mutex_sleeping", "mutex", "main.locks", By::Partner, "sleep"),
    kind("mutex_computing", "mutex", "main.locks", By::Partner, "running"),
    kind("channel", "chan receive", "main.receives", By::Partner, "sleep"),
    kind("select", "select", "main.selects", By::Partner, "sleep"),
    kind("waitgroup", "waitgroup", "main.waits", By::Partner, "sleep"),
    kind("cpu", "", "", By::Anyone, ""),
    kind("assist", "", "", By::Anyone, ""),
    kind("io", "io", "main.reads", By::Network, ""),
    kind("syscall", "", "", By::Anyone, ""),
    kind("raw", "", "", By::Anyone, ""),
    kind("fast", "", "", By::Anyone, ""),
    kind("slow", "sleep", "main.sleepsLong", By::Timer, ""),
    kind("bare", "sleep", "main.sleeps", By::Timer, ""),
    kind("abort", "sleep", "main.sleeps", By::Timer, ""),
    kind("panic", "sleep", "main.sleeps", By::Timer, ""),
    kind("recovered", "sleep", "main.sleeps", By::Timer, ""),
    kind("goexit", "sleep", "main.sleeps", By::Timer, ""),
    kind("hijack", "sleep", "main.sleeps", By::Timer, ""),
    kind("gone", "chan receive", "main.staysUntilGone", By::Anyone, ""),
    kind("timeout", "select", "", By::Anyone, ""),
    kind("behind", "sleep", "main.sleeps", By::Timer, ""),
    kind("user", "sleep", "main.sleeps", By::Timer, ""),
    kind("copied", "sleep", "main.sleeps", By::Timer, ""),
    kind("stripped", "sleep", "main.sleeps", By::Timer, ""),
    kind("post", "sleep", "main.sleeps", By::Timer, ""),
    kind("failing", "sleep", "main.sleeps", By::Timer, ""),
    kind("nowhere", "", "", By::Anyone, ""),
    kind("http2", "sleep", "main.sleeps", By::Timer, ""),
    kind("http2_abort", "sleep", "main.sleeps", By::Timer, ""),
    kind("streams", "sleep", "main.sleeps", By::Timer, ""),
    kind("endless", "chan receive", "main.staysUntilReleased", By::Anyone, ""),
    // Calls of gRPC, and spans.
    kind("call", "sleep", "main.sleeps", By::Timer, ""),
    kind("missing", "sleep", "main.sleeps", By::Timer, ""),
    kind("stream", "sleep", "main.sleeps", By::Timer, ""),
    kind("late", "chan receive", "main.staysUntilLate", By::Anyone, ""),
    kind("pooled", "sleep", "main.sleeps", By::Timer, ""),
    kind("spanned", "sleep", "main.sleeps", By::Timer, ""),
    kind("web", "sleep", "main.sleeps", By::Timer, ""),
    kind("outer", "sleep", "main.sleeps", By::Timer, ""),
    kind("remote", "sleep", "main.sleeps", By::Timer, ""),
    kind("job", "sleep", "main.sleeps", By::Timer, ""),
    kind("fails", "sleep", "main.sleeps", By::Timer, ""),
    kind("moved", "sleep", "main.sleeps", By::Timer, ""),
    // Calls of functions.
    kind("recursion", "sleep", "main.sleeps", By::Timer, ""),
    kind("grows", "", "", By::Anyone, ""),
    kind("deep_panic", "sleep", "main.sleeps", By::Timer, ""),
    kind("method", "sleep", "main.sleeps", By::Timer, ""),
    kind("generic", "sleep", "main.sleeps", By::Timer, ""),
    kind("nested", "sleep", "main.sleeps", By::Timer, ""),
    kind("children", "", "", By::Anyone, ""),
];

/// A number of a record, 0 where there is none.
fn number(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap_or(0)
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or("")
}

/// What goroutines waited for.
fn blocked(time: &Value) -> u64 {
    time["blocked"].as_object().into_iter().flat_map(Map::values).filter_map(Value::as_u64).sum()
}

/// All parts together.
#[must_use]
pub fn whole(time: &Value) -> u64 {
    let parts = time.as_object().into_iter().flat_map(Map::values).filter_map(Value::as_u64);
    parts.sum::<u64>() + blocked(time)
}

/// What is wrong with a record by itself.
#[must_use]
pub fn record(seen: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: String| {
        if !holds {
            wrong.push(format!("{what}: {seen}"));
        }
    };
    let parts = ["on_cpu", "descheduled", "throttled", "run_queue", "world_stopped", "syscall", "gc_assist"];
    for part in parts {
        check(seen["time_ns"][part].is_u64(), format!("time_ns has no {part}"));
    }
    check(seen["time_ns"]["blocked"].is_object(), "time_ns has no blocked".into());
    for field in ["id", "start_unix_nano", "duration_ns", "goid"] {
        check(seen[field].is_u64(), format!("{field} is no number"));
    }
    let (sum, duration) = (whole(&seen["time_ns"]), number(seen, "duration_ns"));
    check(sum == duration, format!("its parts are {sum} ns of {duration}"));
    check(seen["waits_complete"].is_boolean(), "waits_complete is neither true nor false".into());
    check(text(seen, "span_id").len() == 16, "span_id is none".into());
    for (field, length) in [("trace_id", 32), ("parent_span_id", 16)] {
        let holds = seen[field].is_null() || text(seen, field).len() == length;
        check(holds, format!("{field} is neither null nor of {length} digits"));
    }
    check(seen["path"].is_null(), "it has a path that was not asked for".into());
    let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
    let mut end = 0;
    for wait in seen["waits"].as_array().into_iter().flatten() {
        let (offset, long) = (number(wait, "offset_ns"), number(wait, "duration_ns"));
        check(offset >= end, format!("a wait at {offset} begins before the one before it ends"));
        end = offset + long;
        check(end <= duration, format!("a wait ends at {end}, behind its request"));
        *by_reason.entry(text(wait, "reason")).or_default() += long;
    }
    for (why, sum) in by_reason {
        let time = &seen["time_ns"];
        let blocked = time["blocked"][why].as_u64().or(time["blocked"]["other"].as_u64());
        let all = if why == "syscall" { time["syscall"].as_u64() } else { blocked };
        // A wait may last until its goroutine runs.
        let most = all.unwrap_or(0) + number(&seen["time_ns"], "run_queue");
        let most = most + number(&seen["time_ns"], "world_stopped");
        check(sum <= most, format!("waits of {why} are {sum} ns, of {most} in sum"));
    }
    wrong
}

/// Which record is of which request, and what is missing, told twice, or not the program's.
#[must_use]
pub fn pairs<'a>(own: &'a [Own], seen: &'a [Value]) -> (Vec<(&'a Own, &'a Value)>, Vec<String>) {
    let (mut pairs, mut wrong) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    for own in own {
        let spans = own.protocol == "otel";
        let named = |seen: &Value| match own.span_id.is_empty() {
            // The program's own span is the parent.
            false => text(seen, "parent_span_id") == own.span_id,
            true => !own.trace_id.is_empty() && text(seen, "trace_id") == own.trace_id,
        };
        // Else by the goroutine, and the time: the clocks of both are not read at once.
        let meant = |seen: &Value| {
            let (start, duration) = (number(seen, "start_unix_nano"), number(seen, "duration_ns"));
            let within = (start..start + duration + CLOCKS).contains(&(own.start_unix_nano + CLOCKS));
            seen["trace_id"].is_null() && number(seen, "goid") == own.goid && within
        };
        let of = |is_its: &dyn Fn(&Value) -> bool| {
            let all = seen.iter().enumerate().filter(|(_, seen)| (seen["protocol"] == "otel") == spans);
            all.filter(|(_, seen)| is_its(seen)).collect::<Vec<_>>()
        };
        let mut its = of(&named);
        if its.is_empty() && own.span_id.is_empty() {
            its = of(&meant);
        }
        match its[..] {
            [(n, seen)] if taken.insert(n) => pairs.push((own, seen)),
            [(_, seen)] => wrong.push(format!("a record is of {own} and of another: {seen}")),
            [] => wrong.push(format!("{own} has no record")),
            _ => wrong.push(format!("{own} has {} records: {its:?}", its.len())),
        }
    }
    let strange = seen.iter().enumerate().filter(|(n, _)| !taken.contains(n));
    wrong.extend(strange.map(|(_, seen)| format!("a record of no request: {seen}")));
    (pairs, wrong)
}

/// What a record says of who it was.
#[must_use]
pub fn identity(own: &Own, seen: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |field: &str, expected: Value| {
        if seen[field] != expected {
            wrong.push(format!("{own}: {field} is {}, not {expected}", seen[field]));
        }
    };
    let given = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    check("protocol", own.protocol.as_str().into());
    check("method", given(&own.method));
    check("route", given(&own.route));
    check("goid", own.goid.into());
    check("ended", own.ended.as_str().into());
    // The header is read when a request ends normally.
    if own.ended == "normal" || own.protocol == "otel" || !seen["trace_id"].is_null() {
        check("trace_id", given(&own.trace_id));
        if own.span_id.is_empty() {
            check("parent_span_id", given(&own.parent_span_id));
            check("own_span", Value::Null);
        } else {
            check("parent_span_id", own.span_id.as_str().into());
            check("own_span", json!({ "parent_span_id": given(&own.parent_span_id) }));
        }
    }
    // One whose client went away, or whose handler panicked, may have set none.
    if own.protocol == "function" {
        check("status", Value::Null);
        let handler = text(&seen["handler"], "function");
        if handler != own.function {
            wrong.push(format!("{own}: its function is {handler}, not {}", own.function));
        }
    } else if own.ended == "normal" && own.kind != "gone" {
        check("status", own.status.into());
    }
    // A mux without patterns has called a function.
    if own.protocol.starts_with("http") && own.route.is_empty() && own.kind != "nowhere" {
        let handler = text(&seen["handler"], "function");
        if !handler.starts_with("main.") {
            wrong.push(format!("{own}: its handler is {handler}"));
        }
    }
    let (ours, start) = (own.start_unix_nano, number(seen, "start_unix_nano"));
    if start > ours + 1_000_000 {
        wrong.push(format!("{own}: begins {} ns after its handler", start - ours));
    }
    // A span's own times are taken around what is seen of it.
    let more = if own.protocol == "otel" { 3 * CLOCKS } else { 1_000 };
    if number(seen, "duration_ns") + more < own.total_ns {
        wrong.push(format!("{own}: {} ns, of which its handler took {}", seen["duration_ns"], own.total_ns));
    }
    wrong
}

/// What a record says of the wait that its request is made of.
#[must_use]
pub fn wait(kind: &Kind, own: &Own, seen: &Value, go_version: &str) -> Vec<String> {
    let ours = own.phases.get("wait").copied().unwrap_or(own.total_ns);
    // On a busy machine whoever was waited for may have been first, or others had the CPU before it waited.
    let others = number(&seen["time_ns"], "descheduled") + number(&seen["time_ns"], "throttled");
    if kind.reason.is_empty() || ours < LONG + others {
        return Vec::new();
    }
    let why = reason(kind.reason, go_version);
    let waits = seen["waits"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(longest) =
        waits.iter().filter(|w| text(w, "reason") == why).max_by_key(|w| number(w, "duration_ns"))
    else {
        return vec![format!("{own}: waits for {why} {ours} ns, which its record does not have: {seen}")];
    };
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!("{own}: {what}: {}, {}", longest["ended_by"], longest["causes"]));
        }
    };
    let frames = longest["stack"].as_array().map_or(&[][..], Vec::as_slice);
    let function = frames.iter().map(|f| text(f, "function")).find(|f| f.starts_with("main."));
    let names = frames.iter().map(|f| text(f, "function")).collect::<Vec<_>>().join(" < ");
    let known = kind.frame.is_empty() || function == Some(kind.frame);
    check(known, &format!("does not wait in {} but {names}", kind.frame));
    for field in ["site", "own_code"] {
        let at = text(&longest[field], "function");
        check(kind.frame.is_empty() || at == kind.frame, &format!("{field} is {at}, not {}", kind.frame));
    }
    let by = text(&longest["ended_by"], "kind");
    match kind.by {
        By::Partner => {
            let ended = longest["ended_by"]["goid"] == own.partner && by == "goroutine";
            check(ended, &format!("not ended by goroutine {}", own.partner));
        }
        By::Timer => check(by == "timer", "not ended by a timer"),
        By::Network => check(by == "netpoll", "not ended by the network"),
        By::Anyone => {}
    }
    if !own.peer.is_empty() {
        check(longest["peer"] == own.peer.as_str(), &format!("its peer is {}", own.peer));
    }
    if !kind.cause.is_empty() {
        let causes = longest["causes"].as_array().map_or(&[][..], Vec::as_slice);
        let its = causes.iter().filter(|c| number(c, "goid") == own.partner);
        let explained: u64 = its.clone().map(|c| number(c, "duration_ns")).sum();
        check(explained <= number(longest, "duration_ns") + APART, "is explained by more than it took");
        // On a busy machine both may wait for a processor after that.
        let meant: u64 =
            its.filter(|c| text(c, "state") == kind.cause).map(|c| number(c, "duration_ns")).sum();
        check(meant >= MEANT, &format!("goroutine {} did {} for {meant} ns only", own.partner, kind.cause));
    }
    wrong
}

/// Own and seen, and how much more the program's clock may say, of one phase of one request.
fn phase(own: &Own, seen: &Value) -> Vec<(&'static str, u64, u64, u64)> {
    let time = &seen["time_ns"];
    let part = |name: &str| number(time, name);
    let queued = part("run_queue") + part("world_stopped");
    let others = part("descheduled") + part("throttled");
    let mut all = Vec::new();
    let mut add = |name: &'static str, seen: u64, more: u64| {
        if let Some(&own) = own.phases.get(name) {
            all.push((name, own, seen, more));
        }
    };
    if own.kind == "streams" {
        // They have other waits than their own: for each other.
        let waits = seen["waits"].as_array().into_iter().flatten().filter(|w| w["reason"] == "sleep");
        add("wait", waits.map(|w| number(w, "duration_ns")).sum(), others);
    } else {
        add("wait", blocked(time) + queued, others);
    }
    add("syscall", part("syscall") + queued, others);
    add("descheduled", part("descheduled"), part("throttled") + part("on_cpu"));
    add("cpu", part("on_cpu"), 0);
    all
}

/// The middle one.
fn median(mut of: Vec<i64>) -> i64 {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

/// How far apart, and zero where others explain it.
fn apart(own: u64, seen: u64, more: u64) -> i64 {
    let seen = if own > seen { own.min(seen + more) } else { seen };
    seen.cast_signed() - own.cast_signed()
}

/// Times of all requests of each kind, by medians; `factor` more is allowed where the program is slow by itself.
#[must_use]
pub fn times(pairs: &[(&Own, &Value)], factor: u64) -> Vec<String> {
    // Own, seen, and what others explain.
    type Times = Vec<(u64, u64, u64)>;
    let mut by_kind: BTreeMap<(&str, &str), Times> = BTreeMap::new();
    for (own, seen) in pairs {
        // The handler's end is before the request's: what others take between them is theirs.
        let time = &seen["time_ns"];
        let others = ["descheduled", "throttled", "run_queue", "world_stopped"];
        let others: u64 = others.iter().map(|part| number(time, part)).sum();
        let duration = number(seen, "duration_ns").saturating_sub(own.total_ns);
        let around = duration.min(duration.saturating_sub(others) + APART / 2);
        by_kind.entry((&own.kind, "whole")).or_default().push((own.total_ns, own.total_ns + around, 0));
        for (name, ours, theirs, more) in phase(own, seen) {
            by_kind.entry((&own.kind, name)).or_default().push((ours, theirs, more));
        }
    }
    let mut wrong = Vec::new();
    for ((kind, name), all) in by_kind {
        let differences: Vec<_> = all.iter().map(|&(own, seen, more)| apart(own, seen, more)).collect();
        let own = median(all.iter().map(|(own, ..)| own.cast_signed()).collect());
        let (least, most) = (differences.iter().min(), differences.iter().max());
        let middle = median(differences.clone());
        let allowed = match name {
            "cpu" => own.unsigned_abs() / 33 + AROUND,
            // These end with their goroutine, and the rest with their handler.
            "whole" if ["streams", "abort", "panic", "goexit", "hijack"].contains(&kind) => APART * 20,
            _ => APART,
        };
        println!(
            "  {kind:<16} {name:<12} {:>3}  own {:>9.3} ms, seen - own {:>8.1} us (from {:.1} to {:.1})",
            all.len(),
            own as f64 / 1e6,
            middle as f64 / 1e3,
            least.copied().unwrap_or(0) as f64 / 1e3,
            most.copied().unwrap_or(0) as f64 / 1e3,
        );
        if middle.unsigned_abs() > allowed * factor {
            wrong.push(format!("{kind}: {name} is {own} ns by its own clock, seen {middle} ns more"));
        }
    }
    wrong
}

/// What the intervals count, against all requests of the program.
#[must_use]
pub fn counts(own: &[Own], report: &Report, slow: impl Fn(&Own) -> bool) -> Vec<String> {
    type Key = (String, Option<String>, Option<String>);
    let mut seen: BTreeMap<Key, [u64; 3]> = BTreeMap::new();
    let mut expected: BTreeMap<Key, [u64; 3]> = BTreeMap::new();
    let mut may_fail: BTreeMap<Key, u64> = BTreeMap::new();
    for route in report.intervals.iter().flat_map(|i| i["routes"].as_array().into_iter().flatten()) {
        let named = |field: &str| route[field].as_str().map(str::to_owned);
        let key = (text(route, "protocol").to_owned(), named("method"), named("route"));
        let counts = seen.entry(key).or_default();
        for (n, field) in ["count", "errors", "slow"].into_iter().enumerate() {
            counts[n] += number(route, field);
        }
    }
    for own in own {
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let key = (own.protocol.clone(), named(&own.method), named(&own.route));
        let counts = expected.entry(key.clone()).or_default();
        let failed = own.protocol.starts_with("http") && own.status >= 500 && own.ended == "normal";
        // Whether a request without a status, or a code of gRPC's, is an error is not said.
        *may_fail.entry(key).or_default() += u64::from(own.ended != "normal" || own.protocol == "grpc");
        counts[0] += 1;
        counts[1] += u64::from(failed);
        counts[2] += u64::from(slow(own));
    }
    seen.retain(|_, counts| *counts != [0; 3]);
    let keys: BTreeSet<_> = seen.keys().chain(expected.keys()).collect();
    let mut wrong = Vec::new();
    for key in keys {
        let none = [0; 3];
        let (seen, own) = (seen.get(key).unwrap_or(&none), expected.get(key).unwrap_or(&none));
        let more = may_fail.get(key).copied().unwrap_or(0);
        if seen[0] != own[0] || seen[2] != own[2] || seen[1] < own[1] || seen[1] > own[1] + more {
            wrong.push(format!("{key:?}: count, errors, slow are {seen:?}, not {own:?}"));
        }
    }
    wrong
}

/// Sums of all intervals against those of all records, where every request has one.
#[must_use]
pub fn sums(report: &Report) -> Vec<String> {
    let add = |sums: &mut BTreeMap<String, u64>, time: &Value| {
        let blocked = time["blocked"].as_object().into_iter().flatten();
        let plain = time.as_object().into_iter().flatten();
        for (name, ns) in plain.chain(blocked) {
            *sums.entry(name.clone()).or_default() += ns.as_u64().unwrap_or(0);
        }
    };
    let (mut records, mut intervals) = (BTreeMap::new(), BTreeMap::new());
    report.ended.iter().for_each(|r| add(&mut records, &r["time_ns"]));
    let routes = report.intervals.iter().flat_map(|i| i["routes"].as_array().into_iter().flatten());
    routes.for_each(|route| add(&mut intervals, &route["time_ns"]));
    let names: BTreeSet<_> = records.keys().chain(intervals.keys()).collect();
    let of = |sums: &BTreeMap<String, u64>, name: &str| sums.get(name).copied().unwrap_or(0);
    let differ = names.iter().filter(|name| of(&records, name) != of(&intervals, name));
    differ
        .map(|name| {
            let (records, intervals) = (of(&records, name), of(&intervals, name));
            format!("{name}: records have {records} ns, intervals {intervals}")
        })
        .collect()
}

/// What a record says of the goroutines that its request started, where the program has waited until they were gone.
#[must_use]
pub fn children(own: &Own, seen: &Value) -> Vec<String> {
    let (told, time) = (&seen["children"], &seen["children"]["time_ns"]);
    let counted = (told["goroutines"].as_u64(), told["left_running"].as_u64());
    let expected = (Some(own.children - own.left_running), Some(own.left_running));
    if counted != expected {
        return vec![format!("{own}: it had {expected:?} children, gone and left: {told}")];
    }
    // Others may have their CPU for a while, in which they are runnable or descheduled.
    let slept = blocked(time) + number(time, "run_queue");
    let [on_cpu, sleep, cpu] = [number(time, "on_cpu"), own.child_sleep_ns, own.child_cpu_ns];
    let around = AROUND * own.children;
    let agree = slept + around >= sleep
        && blocked(time) <= sleep + around
        && on_cpu + cpu / 33 >= cpu
        && on_cpu <= cpu + cpu / 33 + around;
    let says = || {
        format!("{own}: its children slept {sleep} ns and computed {cpu}, seen {slept} and {on_cpu}: {told}")
    };
    (!agree).then(says).into_iter().collect()
}

/// Requests that are open at the end, where all have ended.
#[must_use]
pub fn left_open(report: &Report) -> Vec<String> {
    let routes = report.intervals.last().and_then(|i| i["routes"].as_array());
    let open = routes.into_iter().flatten().filter(|route| number(route, "open") > 0);
    open.map(|route| format!("all have ended, and some are open: {route}")).collect()
}

/// Everything of a run in which every request was to be told.
#[must_use]
pub fn all(own: &[Own], report: &Report, go_version: &str, factor: u64) -> Vec<String> {
    let (pairs, mut wrong) = pairs(own, &report.ended);
    wrong.extend(report.ended.iter().chain(&report.open).flat_map(record));
    wrong.extend(report.before.iter().map(|before| format!("nothing was open before, but {before}")));
    for (own, seen) in &pairs {
        wrong.extend(identity(own, seen));
        if let Some(kind) = KINDS.iter().find(|kind| kind.name == own.kind) {
            wrong.extend(wait(kind, own, seen, go_version));
        } else {
            wrong.push(format!("{own}: no such kind is known"));
        }
        if seen["waits_complete"] != true {
            wrong.push(format!("{own}: not complete: {seen}"));
        }
    }
    wrong.extend(times(&pairs, factor));
    wrong.extend(counts(own, report, |_| true));
    wrong.extend(sums(report));
    wrong.extend(left_open(report));
    let lost = report.lost();
    if !lost.is_empty() {
        wrong.push(format!("lost: {lost:?}"));
    }
    if report.summary.is_null() {
        wrong.push("there is no summary".into());
    }
    wrong.extend(report.others.iter().map(|line| format!("a line of no known kind: {line}")));
    wrong
}

/// Sentences, one a line; of those that differ in numbers alone the first, and how many there are.
#[must_use]
pub fn said(wrong: &[String]) -> String {
    let mut groups: BTreeMap<String, (&String, usize)> = BTreeMap::new();
    for sentence in wrong {
        let key = sentence.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
        groups.entry(key).or_insert((sentence, 0)).1 += 1;
    }
    let line =
        |(first, n): &(&String, usize)| format!("{n} × {}", first.chars().take(1000).collect::<String>());
    groups.values().map(line).collect::<Vec<_>>().join("\n")
}

/// Judges a process, and another one where the first did not agree, which is said aloud.
///
/// # Panics
/// Where none of them agrees.
pub fn agrees(what: &str, judged: impl Fn() -> Vec<String>) {
    for n in 1..=TRIES {
        println!("{what}, process {n}");
        let wrong = judged();
        if wrong.is_empty() {
            return;
        }
        println!("{what}, process {n}: {} disagreements:\n{}", wrong.len(), said(&wrong));
        assert!(n < TRIES, "{what}: {}", said(&wrong));
    }
}

#[cfg(test)]
mod tests;
