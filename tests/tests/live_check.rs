//! `gotrace check` on programs with a problem and on healthy ones: the verdict, the exit code, and what is said of what
//! was not checked. Needs root and `go`. What `leaks` finds in these programs is tested in `live_cases`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use gotrace_tests::{
    demo::unpack_demo,
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build},
    gotrace::{binary, privileged},
    quota::Quota,
    requests::{Program, server},
    running::Running,
};
use serde_json::Value;

fn program() -> PathBuf {
    build("cases", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds")
}

fn check(pid: u32, more: &[&str]) -> Output {
    Command::new(binary().expect("built"))
        .args(["check", &pid.to_string()])
        .args(more)
        .env_remove("GITHUB_ACTIONS")
        .stdin(Stdio::null())
        .output()
        .expect("it starts")
}

/// Checks again and again until what is wanted is seen: a busy machine may leave no time for all scans, of which the
/// report tells. Without it, the last one.
fn until(pid: u32, more: &[&str], seen: impl Fn(&Output) -> bool) -> Output {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = check(pid, more);
        if seen(&output) || Instant::now() >= deadline {
            return output;
        }
    }
}

fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
}

/// What `f` gives of each, all at the same time.
fn at_once<T: Copy + Send>(all: &[T], f: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for &one in all {
            let f = &f;
            scope.spawn(move || f(one));
        }
    });
}

#[test]
fn a_problem_is_found_and_fails() {
    if !privileged("live_check") {
        return;
    }
    let program = program();
    let cases =
        [("wrapped", "unreachable"), ("selflock", "stuck"), ("shared", "growing"), ("dry", "stalled")];
    at_once(&cases, |(name, verdict)| {
        let running = Running::start(&program, name);
        let of_verdict = format!("\"verdict\":\"{verdict}\"");
        let output = until(running.pid(), &["--format", "json"], |o| said(o).contains(&of_verdict));
        assert_eq!(output.status.code(), Some(10), "{name}: {}", said(&output));
        let lines = json(&output);
        assert_eq!(lines[0]["schema"], "gotrace.check/1");
        assert!(lines[1..].iter().any(|l| l["verdict"] == verdict), "{name}: {lines:#?}");
        let summary = &lines.last().expect("lines")["summary"];
        assert!(summary["problems"].as_u64() > Some(0), "{name}: {summary}");
        assert!(summary["verdict"].as_str().is_some_and(|v| v.contains("problem")), "{name}: {summary}");
        let checked = summary["checked"].as_array().expect("a list");
        let found = checked.iter().find(|c| c["what"] == verdict);
        assert!(found.is_some_and(|c| c["findings"].as_u64() > Some(0)), "{name}: {summary}");
    });
}

#[test]
fn a_healthy_program_has_none_and_it_is_said_what_was_checked() {
    if !privileged("live_check") {
        return;
    }
    let program = program();
    at_once(&["wrapped_ok", "lock_ok", "dry_ok", "idle_ok"], |name| {
        let running = Running::start(&program, name);
        let output = until(running.pid(), &[], |o| o.status.code() != Some(1));
        assert_eq!(output.status.code(), Some(0), "{name}: {}", said(&output));
        let said = text(&output.stdout);
        let first = said.lines().next().expect("lines");
        let file = program.file_name().expect("a name").to_string_lossy();
        assert_eq!(first, format!("pid {} ({file}): no problems found", running.pid()));
        for part in ["\nchecked:\n  unreachable  no leaked goroutines\n", "\nnot checked:\n", "\nnext:\n"] {
            assert!(said.contains(part), "{name}: {said}");
        }
    });
}

#[test]
fn known_findings_are_shown_and_do_not_fail() {
    if !privileged("live_check") {
        return;
    }
    let program = program();
    let running = Running::start(&program, "wrapped");
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (baseline, suppress, junit, report) =
        (path("known.json"), path("known.yaml"), path("check.xml"), path("report.md"));
    // Something else may not be checked in so short a time.
    let passes = |output: &Output| matches!(output.status.code(), Some(0 | 1));
    let with = |more: &[&str], wanted: &str| {
        let output = until(running.pid(), &[&["--watch", "3s"], more].concat(), |o| said(o).contains(wanted));
        assert!(said(&output).contains(wanted), "{wanted} in\n{}", said(&output));
        output
    };

    let output = with(&["--write-baseline", &baseline, "--junit", &junit], "wrote 1 finding to baseline");
    assert!(passes(&output), "{}", said(&output));
    let xml = fs::read_to_string(&junit).expect("written");
    let failure = "<failure message=\"4 goroutines of main.wrapped.func1 unreachable: chan send";
    assert!(xml.contains(failure), "{xml}");

    let output = with(&["--baseline", &baseline], "(plus 1 known)");
    assert!(passes(&output) && said(&output).contains("known: in the baseline"), "{}", said(&output));

    let known =
        "suppressions:\n- function: main.wrapped.func1\n  verdict: [unreachable]\n  reason: by design\n";
    fs::write(&suppress, known).expect("written");
    let output = with(&["--suppress", &suppress, "-o", &report], "(plus 1 known); see ");
    assert!(passes(&output) && output.stdout.is_empty(), "{}", said(&output));
    let written = fs::read_to_string(&report).expect("written");
    let file = program.file_name().expect("a name").to_string_lossy();
    let heading = format!("# `{file}` (pid {}): no problems found", running.pid());
    assert!(written.starts_with(&heading), "{written}");
    for part in [
        "\n## Known\n\n### unreachable: 4 goroutines of `main.wrapped.func1`\n\n```text\nunreachable ",
        "suppressed: by design",
        "\n## Checked\n",
        "\n## Not checked\n",
        "\n## Next\n",
    ] {
        assert!(written.contains(part), "{part} in\n{written}");
    }

    // Where it is no problem, it is a warning.
    let output = with(&["--fail-on", "deadlock", "--annotations", "github"], "(plus 1 warning)");
    assert!(passes(&output), "{}", said(&output));
    assert!(said(&output).contains("\nwarnings:\n"), "{}", said(&output));
    assert!(text(&output.stderr).contains("::warning file="), "{}", said(&output));
    assert_eq!(with(&[], ": 1 problem").status.code(), Some(10));
}

/// What the program chose is text on the page, and the page's policy allows nothing but its own style.
#[test]
fn the_page_is_one_file_that_runs_nothing() {
    if !privileged("live_check") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let name = "a<img src=x onerror=alert(1)>&amp;\"'";
    let hostile = directory.path().join(name);
    fs::copy(program(), &hostile).expect("copied");
    let running = Running::start(&hostile, "wrapped");
    let page = directory.path().join("leak.html");
    let path = page.display().to_string();
    until(running.pid(), &["--html", &path], |o| said(o).contains("unreachable "));
    let page = fs::read_to_string(&page).expect("written");
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"), "{page}");
    let policy = "content=\"default-src 'none'; style-src 'sha256-";
    for part in [
        policy,
        "<h2>Problems</h2>",
        "<summary>unreachable: 4 goroutines of main.wrapped.func1</summary>",
        "why: leaked: ",
        "<h2>Checked</h2>",
        "<h2>Not checked</h2>",
        "<h2>Locks and channels</h2>",
        "<td class=\"n\">3<td>3 × main.wrapped.func1 (",
        "<svg ",
        "a&lt;img src=x onerror=alert(1)&gt;&amp;amp;&quot;",
    ] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
    let tags: Vec<&str> = page.split('<').skip(1).map(|t| t.split([' ', '>']).next().unwrap_or(t)).collect();
    for tag in ["script", "img", "a", "link", "iframe", "form", "object"] {
        assert!(!tags.contains(&tag), "<{tag}> in\n{page}");
    }
    assert_eq!(page.matches("<style>").count(), 1, "{page}");
    assert!(!page.contains(" style=\""), "an attribute that the policy refuses:\n{page}");
}

#[test]
fn a_quota_that_is_used_up_is_a_warning() {
    if !privileged("live_check") {
        return;
    }
    let group = Quota::new(10).expect("a control group");
    let running = Running::start(&program(), "busy_ok");
    let of = |output: &Output| json(output).last().expect("lines")["summary"]["throttling"].clone();
    let before = check(running.pid(), &["--watch", "1s", "--format", "json"]);
    assert!(of(&before)["throttled_periods"].as_u64().unwrap_or(0) == 0, "{}", said(&before));
    group.limit(running.pid()).expect("moved");
    let throttled = |o: &Output| of(o)["throttled_periods"].as_u64() > Some(0);
    let output = until(running.pid(), &["--watch", "2s", "--format", "json"], throttled);
    let name = group.name();
    let told = of(&output);
    assert_eq!((&told["quota"], &told["cpus"]), (&true.into(), &0.1.into()), "{told}");
    assert!(told["group"].as_str().is_some_and(|g| g.ends_with(name)), "{told}");
    assert!(told["periods"].as_u64() >= told["throttled_periods"].as_u64(), "{told}");
    let output = until(running.pid(), &["--watch", "2s"], |o| said(o).contains("\nwarnings:\n  throttled "));
    for part in ["\nwarnings:\n  throttled ", "\n  throttling   1 finding\n"] {
        assert!(said(&output).contains(part), "{part} in\n{}", said(&output));
    }
    let words = said(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("the CPU quota of 0.1 CPUs (control group /"), "{words}");
    drop(running);
}

#[test]
fn slow_requests_are_told_with_what_made_them_slow() {
    if !privileged("live_check") {
        return;
    }
    let mut program = Program::start(&server("1.27.3", Mode::Stripped));
    let pid = program.pid();
    let over = AtomicBool::new(false);
    let directory = tempfile::tempdir().expect("a directory");
    let junit = directory.path().join("check.xml");
    let as_junit = ["--junit", junit.to_str().expect("text")];
    let options = ["--watch", "4s", "--requests=3ms", "--budget", "none", "--format", "json"];
    let (failed, warned) = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                program.run("run 4 sleep fast");
            }
        });
        let with = |fail_on: &str| {
            let more = [&options[..], &as_junit, &["--fail-on", fail_on]].concat();
            until(pid, &more, |output| {
                let routes = &json(output).last().map(|l| l["summary"]["requests"]["routes"].clone());
                routes.as_ref().and_then(Value::as_array).is_some_and(|routes| routes.len() >= 2)
            })
        };
        let failed = with("slow");
        let xml = fs::read_to_string(&junit).expect("it is there");
        let warned = with("unreachable");
        over.store(true, Relaxed);
        ((failed, xml), warned)
    });
    let (failed, xml) = failed;
    assert_eq!(failed.status.code(), Some(10), "{}", said(&failed));
    let lines = json(&failed);
    let summary = &lines.last().expect("a summary")["summary"];
    let requests = &summary["requests"];
    let route = |name: &str| {
        let routes = requests["routes"].as_array().expect("routes");
        let found = routes.iter().find(|r| r["route"].as_str().is_some_and(|r| r.contains(name)));
        found.unwrap_or_else(|| panic!("no {name}: {requests:#}")).clone()
    };
    let (sleeping, fast) = (route("sleep"), route("fast"));
    assert!(sleeping["slow"].as_u64() > Some(0) && sleeping["slow"] == sleeping["count"], "{sleeping:#}");
    assert_eq!(sleeping["why_slow"]["part"], "sleep", "{sleeping:#}");
    assert!(fast["count"].as_u64() > Some(0), "{fast:#}");
    let slowest = requests["slowest"].as_array().expect("the slowest");
    let slept = slowest.iter().find(|r| r["route"] == sleeping["route"]).expect("one of that route");
    assert!(slept["time_ns"]["blocked"]["sleep"].as_u64() > Some(3_000_000), "{slept:#}");
    assert!(summary["problems"].as_u64() > Some(0), "{summary:#}");
    let case = format!("name=\"slow: GET {}\"", sleeping["route"].as_str().expect("text"));
    assert!(xml.contains(&case) && xml.contains("<failure"), "{xml}");

    assert_eq!(warned.status.code(), Some(0), "{}", said(&warned));
    let lines = json(&warned);
    let summary = &lines.last().expect("a summary")["summary"];
    assert!(summary["warnings"].as_u64() > Some(0) && summary["problems"] == 0, "{summary:#}");
}

#[test]
fn requests_that_cannot_be_traced_are_never_clean() {
    if !privileged("live_check") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    // It has no server.
    let program = Running::start(&unpack_demo(directory.path()).expect("it is there"), "");
    let options = ["--watch", "1s", "--requests", "--fail-on", "slow"];
    let output = until(program.pid(), &options, |output| said(output).contains("slow requests: "));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("no problems found, but not everything was checked"), "{}", said(&output));
    assert!(text(&output.stdout).contains("slow requests: "), "{}", said(&output));
}

#[test]
fn a_stopped_program_is_not_said_to_be_healthy() {
    if !privileged("live_check") {
        return;
    }
    let program = program();
    let running = Running::start(&program, "lock_ok");
    thread::sleep(Duration::from_millis(300));
    running.signal(libc::SIGSTOP);
    let output = check(running.pid(), &["--watch", "3s", "--format", "json"]);
    running.signal(libc::SIGCONT);
    let lines = json(&output);
    assert_eq!(output.status.code(), Some(1), "{lines:#?}");
    let summary = &lines.last().expect("lines")["summary"];
    assert_eq!(summary["verdict"], "no problems found, but not everything was checked");
    assert_eq!((&summary["inconclusive"], &summary["problems"]), (&true.into(), &0.into()));
    let gaps = summary["not_checked"].as_array().expect("a list");
    let stopped = gaps.iter().find(|g| g["why"].as_str().is_some_and(|w| w.contains("was stopped")));
    assert!(stopped.is_some_and(|g| g["inconclusive"] == true), "{summary}");
}

#[test]
fn a_program_that_exits_meanwhile_is_gone() {
    if !privileged("live_check") {
        return;
    }
    let program = program();
    let running = Running::start(&program, "lock_ok");
    let pid = running.pid();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_secs(2));
        drop(running);
    });
    let output = check(pid, &["--watch", "600s"]);
    killer.join().expect("it ends");
    let (said, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(5), "{said}{error}");
    assert!(said.lines().next().is_some_and(|l| l.ends_with("but not everything was checked")), "{said}");
    assert!(said.contains("the process exited after") && !said.contains("\nchecked:"), "{said}");
    assert!(error.contains("error: ") && error.contains("the results are as of its exit"), "{error}");
}

#[test]
fn what_cannot_be_checked_is_an_error() {
    if !privileged("live_check") {
        return;
    }
    let mut sleep = Command::new("sleep").arg("60").spawn().expect("it starts");
    let output = check(sleep.id(), &[]);
    sleep.kill().expect("ours");
    sleep.wait().expect("it ends");
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("not a Go program"), "{}", text(&output.stderr));
    let output = check(sleep.id(), &[]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));

    let running = Running::start(&program(), "lock_ok");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]);
    let output = command.arg(binary().expect("built")).args(["check", &running.pid().to_string()]).output();
    let output = output.expect("it starts");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}
