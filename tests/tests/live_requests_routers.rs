//! `gotrace requests` against servers behind gin, echo, chi, gorilla/mux and `golang.org/x/net/http2`, old and new, which know
//! what they were asked (`tests/go/routers`). Needs root, `go`, and the libraries from Go's module proxy.

use std::{collections::BTreeMap, path::PathBuf};

use gotrace_tests::{
    gobuild::{Arch, Mode},
    gotrace::privileged,
    requests::{Program, Report, Watch, built},
};
use serde_json::Value;

/// Versions of Go, the `go.mod` and `go.sum` of `tests/go/routers`, and the file with echo: old routers, new ones, and the
/// next echo, each with an old Go and the newest, as far as they can.
const BUILDS: [(&str, &str, &str); 5] = [
    ("1.19.13", "old", "echo.go"),
    ("1.27.3", "old", "echo.go"),
    ("1.26.6", "go", "echo.go"),
    ("1.27.3", "go", "echo.go"),
    ("1.27.3", "echo5", "echo5.go"),
];
/// How often everything is asked at least.
const TIMES: u64 = 60;

fn program((version, module, echo): (&str, &str, &str)) -> PathBuf {
    let (requirements, sums) = (format!("{module}.mod"), format!("{module}.sum"));
    let files = [
        ("main.go", "main.go"),
        ("gin.go", "gin.go"),
        (echo, "echo.go"),
        ("chi.go", "chi.go"),
        ("gorilla.go", "gorilla.go"),
        ("http2.go", "http2.go"),
        (&*requirements, "go.mod"),
        (&*sums, "go.sum"),
    ];
    built("routers", &files, None, (version, Mode::Stripped, Arch::HOST))
}

/// How often each protocol, method and status was seen with each route; what is said of a route that no router told is told
/// as "null".
type Counts = BTreeMap<(String, String, String, u64), u64>;

fn key(of: &Value, status: u64) -> (String, String, String, u64) {
    let text = |name: &str| of[name].as_str().unwrap_or("null").to_owned();
    (text("protocol"), text("method"), text("route"), status)
}

/// As gotrace counted.
fn seen(report: &Report) -> Counts {
    let mut counts = Counts::new();
    for route in report.summary["routes"].as_array().into_iter().flatten() {
        for (status, n) in route["by_status"].as_object().into_iter().flatten() {
            let status = status.parse().unwrap_or(0);
            *counts.entry(key(route, status)).or_default() += n.as_u64().expect("a count");
        }
    }
    counts
}

/// As the program knows it.
fn own(line: &Value) -> Counts {
    let mut counts = Counts::new();
    for count in line["counts"].as_array().expect("counts") {
        let status = count["status"].as_u64().expect("a status");
        *counts.entry(key(count, status)).or_default() += count["count"].as_u64().expect("a count");
    }
    counts
}

#[test]
fn routes_are_those_that_routers_know() {
    if !privileged("live_requests_routers") {
        return;
    }
    for build in BUILDS {
        let mut program = Program::start(&program(build));
        let watch = Watch::start(program.pid(), &[]);
        program.tell(&format!("run {TIMES}"));
        let own = own(&program.answer());
        let report = watch.finish();
        let (seen, lost) = (seen(&report), report.lost());
        println!("{build:?}: {} requests of {} kinds", own.values().sum::<u64>(), own.len());
        let apart: Vec<_> =
            own.keys().chain(seen.keys()).filter(|key| own.get(key) != seen.get(key)).collect();
        for key in &apart {
            println!("  {key:?}: {:?}, seen {:?}", own.get(key), seen.get(key));
        }
        assert!(apart.is_empty() && lost.is_empty(), "{build:?}: {} apart; lost: {lost:?}", apart.len());
    }
}

/// While a request is open its route is found on the stack of the goroutine that serves it.
#[test]
fn routes_of_open_requests_are_those_that_routers_know() {
    if !privileged("live_requests_routers") {
        return;
    }
    for build in BUILDS {
        let mut program = Program::start(&program(build));
        let mut watch = Watch::start(program.pid(), &["--slow", "100ms"]);
        program.tell("hold");
        let held = program.answer();
        let mut own: BTreeMap<String, u64> = BTreeMap::new();
        for held in held["held"].as_array().expect("requests") {
            *own.entry(line(held)).or_default() += 1;
        }
        let all = own.values().sum::<u64>();
        watch.until("all that is held", |report| report.open.len() as u64 >= all);
        let report = watch.finish();
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for open in &report.open {
            *seen.entry(line(open)).or_default() += 1;
        }
        println!("{build:?}: {all} requests are held");
        assert!(own.len() > 8 && own == seen, "{build:?}:\n{own:#?}\n{seen:#?}");
    }
}

fn line(of: &Value) -> String {
    let text = |name: &str| of[name].as_str().unwrap_or("null").to_owned();
    format!("{} {} {}", text("protocol"), text("method"), text("route"))
}
