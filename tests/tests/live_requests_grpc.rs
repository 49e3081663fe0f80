//! `gotrace requests` against a gRPC server that knows where its time went (`tests/go/grpcserver`), at four versions of gRPC
//! and of Go, and by way of the server of `net/http`. Needs root, `go`, and the libraries from Go's module proxy.

use std::path::PathBuf;

use gotrace_tests::{
    gobuild::{Arch, Mode},
    gotrace::privileged,
    requests::{
        Own, Program, Report, Watch, built,
        judge::{KINDS, agrees, identity, left_open, pairs, record, times, wait},
    },
};
use serde_json::Value;

/// Version of Go, and the `go.mod` and `go.sum` of `tests/go/grpcserver`: what of gRPC and of the SDK they name.
const VERSIONS: [(&str, &str, &str); 4] = [
    ("1.19.13", "grpc1.56", "gRPC 1.56, SDK 1.16"),
    ("1.21.13", "grpc1.64", "gRPC 1.64, SDK 1.24"),
    ("1.24.11", "grpc1.71", "gRPC 1.71, SDK 1.34"),
    ("1.27.3", "go", "gRPC 1.85, SDK 1.47"),
];
/// What the server does around a handler takes longer than with `net/http`.
const FACTOR: u64 = 3;

fn program(version: &str, module: &str) -> PathBuf {
    let (requirements, sums) = (format!("{module}.mod"), format!("{module}.sum"));
    let files = [("main.go", "main.go"), (&*requirements, "go.mod"), (&*sums, "go.sum")];
    built("grpcserver", &files, None, (version, Mode::Stripped, Arch::HOST))
}

/// Requests of a process of which all were to be told.
fn ran(version: &str, module: &str, kinds: &str) -> (Vec<Own>, Report) {
    let mut program = Program::start(&program(version, module));
    let watch = Watch::start(program.pid(), &["--slow", "0ms"]);
    let (own, _) = program.run(&format!("run 12 {kinds}"));
    (own, watch.finish())
}

/// What the intervals count of a protocol.
fn counted(report: &Report, is_of: impl Fn(&Value) -> bool) -> u64 {
    let routes = report.intervals.iter().flat_map(|i| i["routes"].as_array().into_iter().flatten());
    routes.filter(|route| is_of(route)).filter_map(|route| route["count"].as_u64()).sum()
}

/// What is true of all records of a process.
fn whole(report: &Report, own: &[Own]) -> Vec<String> {
    let mut wrong: Vec<_> = report.ended.iter().chain(&report.open).flat_map(record).collect();
    wrong.extend(left_open(report));
    wrong.extend(report.others.iter().map(|line| format!("a line of no known kind: {line}")));
    let (counted, lost) = (counted(report, |_| true), report.lost());
    if counted != own.len() as u64 || !lost.is_empty() {
        wrong.push(format!("{counted} counted of {}; lost: {lost:?}", own.len()));
    }
    wrong
}

#[test]
fn calls_are_cut_as_their_program_cuts_them() {
    if !privileged("live_requests_grpc") {
        return;
    }
    for (version, module, what) in VERSIONS {
        agrees(what, || {
            let (own, report) = ran(version, module, "call missing stream late pooled");
            let (pairs, mut wrong) = pairs(&own, &report.ended);
            for (own, seen) in &pairs {
                wrong.extend(identity(own, seen));
                let kind = KINDS.iter().find(|kind| kind.name == own.kind).expect("a kind");
                wrong.extend(wait(kind, own, seen, version));
            }
            wrong.extend(times(&pairs, FACTOR));
            wrong.extend(whole(&report, &own));
            for method in ["Call", "Talk"] {
                let route = format!("/gotrace.test.Calls/{method}");
                let calls = counted(&report, |r| r["route"] == *route && r["protocol"] == "grpc");
                let ours = own.iter().filter(|own| own.route == route).count();
                if calls != ours as u64 {
                    wrong.push(format!("{calls} calls of {method} are counted, not {ours}"));
                }
            }
            wrong
        });
    }
}

/// Spans of the program's own SDK: parents of what is told of the requests that they are of, and requests themselves where
/// there is no other.
#[test]
fn spans_have_the_ids_names_and_parents_of_the_program() {
    if !privileged("live_requests_grpc") {
        return;
    }
    for (version, module, what) in VERSIONS {
        agrees(&format!("{what}, spans"), || {
            let (own, report) = ran(version, module, "spans spanned web call");
            let (pairs, mut wrong) = pairs(&own, &report.ended);
            for (own, seen) in &pairs {
                wrong.extend(identity(own, seen));
                let kind = KINDS.iter().find(|kind| kind.name == own.kind).expect("a kind");
                wrong.extend(wait(kind, own, seen, version));
            }
            wrong.extend(times(&pairs, FACTOR));
            wrong.extend(whole(&report, &own));
            let failed = own.iter().filter(|own| own.kind == "fails").count() as u64;
            let errors = |r: &Value| r["route"] == "fails" && r["errors"] == r["count"];
            if counted(&report, errors) != failed {
                wrong.push(format!("{failed} spans failed: {:?}", report.intervals));
            }
            wrong
        });
    }
}

/// What goes on after its goroutine has ended is counted as lost, and no request.
#[test]
fn spans_that_outlive_their_goroutine_are_lost() {
    if !privileged("live_requests_grpc") {
        return;
    }
    let (version, module, what) = VERSIONS[3];
    agrees(&format!("{what}, spans that are left"), || {
        let (_, report) = ran(version, module, "left");
        let mut wrong: Vec<_> = report.ended.iter().map(|seen| format!("a record: {seen}")).collect();
        wrong.extend(left_open(&report));
        let unended = report.summary["lost"]["request_unended"].as_u64();
        if unended != Some(12) || counted(&report, |_| true) != 0 {
            wrong.push(format!("12 spans were left: {}", report.summary));
        }
        wrong
    });
}

/// Over the server of `net/http` a call is a request of both; it is told once.
#[test]
fn calls_over_the_http_server_are_told_once() {
    if !privileged("live_requests_grpc") {
        return;
    }
    for (version, module, what) in [VERSIONS[0], VERSIONS[3]] {
        agrees(&format!("{what}, over net/http"), || {
            let (own, report) = ran(version, module, "handled");
            let mut wrong = whole(&report, &own);
            for own in &own {
                // One call after the other: the time tells them apart, whichever goroutine a record is of.
                let is_its = |seen: &&Value| {
                    let start = seen["start_unix_nano"].as_u64().expect("a time");
                    let duration = seen["duration_ns"].as_u64().expect("a time");
                    (start..start + duration).contains(&(own.start_unix_nano + own.total_ns / 2))
                };
                let its: Vec<_> = report.ended.iter().filter(is_its).collect();
                let [seen] = its[..] else {
                    wrong.push(format!("{own} has {} records: {its:?}", its.len()));
                    continue;
                };
                let expected = ("grpc", Value::Null, own.route.as_str().into(), Value::from(own.status));
                let said = (
                    seen["protocol"].as_str().unwrap_or(""),
                    &seen["method"],
                    &seen["route"],
                    &seen["status"],
                );
                if said != (expected.0, &expected.1, &expected.2, &expected.3) {
                    wrong.push(format!("{own} is {said:?}"));
                }
            }
            wrong
        });
    }
}
