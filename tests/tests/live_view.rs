//! The live table on a terminal: taken, refreshed, given back, however it ends. Needs root, and `go` for requests alone.

use gotrace_tests::{
    demo::Demo,
    gobuild::Mode,
    gotrace::privileged,
    http,
    requests::{Program, server},
    terminal::OnTerminal,
};

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

fn attach(pid: u32, more: &[&str]) -> OnTerminal {
    let pid = pid.to_string();
    OnTerminal::start(&[&["attach", "--budget", "none", "--interval", "200ms", "--pid", &pid], more].concat())
}

/// It has ended: the terminal is as before, and behind the view stands the summary.
fn check_end(mut view: OnTerminal, why: &str) {
    assert!(view.end().success(), "{}", view.shown());
    view.wait_for("spans   ");
    let shown = view.shown();
    let (_, after) = shown.rsplit_once(LEAVE).expect("the view was left");
    assert!(after.contains(&format!("; {why}")), "{after}");
    assert!(view.is_cooked());
}

#[test]
fn the_table_is_shown_in_place_and_left_by_key_and_signal() {
    if !privileged("live_view") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    for keys in ["q", "\x1b", "\x03"] {
        let mut view = attach(demo.pid(), &[]);
        view.wait_for(ENTER);
        for part in ["engine", "events", "alive", "created/s", "main.waitForever", "lost", "q quit"] {
            view.wait_to_see(part);
        }
        assert!(!view.is_cooked());
        view.press(keys);
        check_end(view, "interrupted");
    }
    let view = attach(demo.pid(), &[]);
    view.wait_to_see("main.waitForever");
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(view.pid().cast_signed(), libc::SIGTERM) };
    check_end(view, "interrupted");
}

#[test]
fn a_row_is_found_sorted_and_told_more_of() {
    if !privileged("live_view") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    let mut view = attach(demo.pid(), &["--level", "waits"]);
    view.wait_to_see("main.waitForever");
    view.press("s");
    view.wait_to_see("sort: cpu");
    view.press("/waitf");
    view.wait_to_see("/waitf");
    view.press("\r\r");
    for part in ["filter: waitf", "created by", "main.leakyHandler", "in all"] {
        view.wait_to_see(part);
    }
    // Back from the filter, from the details, and out.
    view.press("\x1b");
    view.wait_to_see("main.customer");
    // What grows since now: more wait for ever.
    view.press("d");
    view.wait_to_see("since ");
    view.wait_to_see("±alive");
    view.wait_to_see("d ends");
    view.press("d");
    view.wait_to_see("d mark");
    view.press("?");
    view.wait_to_see("sort by the next column");
    view.press("?q");
    check_end(view, "interrupted");
}

#[test]
fn goroutines_and_locks_are_read_when_they_are_asked_for() {
    if !privileged("live_view") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    let mut view = attach(demo.pid(), &["--http", "0"]);
    view.wait_to_see("main.waitForever");
    view.press("5");
    for part in
        ["goroutines at (own code)", "main.waitForever (main.go:", "main.main (main.go:", "R reads anew"]
    {
        view.wait_to_see(part);
    }
    // Who holds what one of the leaked ones waits for?
    view.press("/waitf\rW");
    view.wait_to_see("who holds what goroutine");
    view.wait_to_see("blocked in chan receive");
    // Back from that, and from the filter.
    view.press("\x1b\x1b");
    view.wait_to_see("main.janitor");
    view.press("4");
    for part in ["lock or channel", "unbuffered", "who holds or uses it"] {
        view.wait_to_see(part);
    }
    // The same process is on a page.
    let shown = view.shown();
    let at = shown.find("http://127.0.0.1:").expect("where the page is");
    let address: String =
        shown[at + 7..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    let get = |path: &str| http::get(&address, path, &["Host: localhost"]).expect("an answer").text();
    let processes = get("/api/v1/processes");
    assert!(processes.contains(&format!("\"pid\":{}", demo.pid())), "{processes}");
    let goroutines = get(&format!("/processes/{}/debug/pprof/goroutine?debug=1", demo.pid()));
    assert!(goroutines.contains("main.waitForever"), "{goroutines}");
    assert!(get("/").contains("<title>gotrace"));
    view.press("q");
    check_end(view, "interrupted");
}

#[test]
fn requests_are_shown_with_whom_they_waited_for() {
    if !privileged("live_view") {
        return;
    }
    let mut program = Program::start(&server("1.24.11", Mode::Plain));
    let mut view = attach(program.pid(), &["--level", "full", "--requests", "0ms"]);
    view.wait_to_see("level full");
    view.press("3");
    view.wait_to_see("requests by route");
    view.wait_to_see("none yet");
    let _ = program.run("run 5 mutex_sleeping user");
    view.wait_to_see("GET /mutex_sleeping");
    view.wait_to_see("GET /user/{id}");
    view.press("/mutex\r\r");
    for part in ["requests    5, 0 failed, 5 slow", "slowest     200", "sync.Mutex.Lock", "main.holder"] {
        view.wait_to_see(part);
    }
    view.press("q");
    check_end(view, "interrupted");
    let mut view = attach(program.pid(), &[]);
    view.wait_to_see("alive");
    view.press("3");
    view.wait_to_see("requests are not traced: gotrace attach --requests auto");
    view.press("q");
    check_end(view, "interrupted");
}

#[test]
fn the_table_ends_with_its_target() {
    if !privileged("live_view") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    let view = attach(demo.pid(), &[]);
    view.wait_to_see("main.waitForever");
    drop(demo);
    check_end(view, "the process exited");
}

#[test]
fn it_ends_with_its_terminal() {
    if !privileged("live_view") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    for arguments in [&["attach", "--budget", "none", "--pid"][..], &["top"]] {
        let pid = demo.pid().to_string();
        let with_pid = [arguments, &[&*pid]].concat();
        let view = OnTerminal::start(if arguments == ["top"] { arguments } else { &with_pid });
        view.wait_to_see("demo");
        // How does not matter: nobody is there who could be told.
        view.hang_up();
    }
}

#[test]
fn json_and_quiet_leave_the_terminal_alone() {
    if !privileged("live_view") {
        return;
    }
    let demo = Demo::start("1h").expect("it starts");
    let mut json = attach(demo.pid(), &["--format", "json", "--duration", "500ms"]);
    assert!(json.end().success());
    json.wait_for("\"summary\"");
    assert!(!json.shown().contains('\x1b'), "{}", json.shown());
    let mut quiet = attach(demo.pid(), &["--quiet", "--duration", "500ms"]);
    assert!(quiet.end().success());
    assert_eq!(quiet.shown(), "");
}
