//! The daemon's page in a real browser, on real Go programs: `gotrace-daemon/web/test/page.mjs` opens each view. Needs root,
//! `go`, and what `cargo xtask test --only setup,page` leaves.

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use gotrace_tests::{
    daemon::{Daemon, Place},
    demo::unpack_demo,
    fixture::PATIENCE,
    gobuild::{Arch, Mode, build, workspace},
    gotrace::privileged,
    requests::{Program, server},
    running::Running,
};

/// A name that would be markup where it is not text.
const HOSTILE: &str = "<img src=x onerror=hit=1>\"'&{{shop}}";
const TOKEN: &str = "0123456789abcdef-of-the-test";

struct Shop(Child);

impl Drop for Shop {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn each_view_shows_what_it_is_there_for() {
    if !privileged("live_page") {
        return;
    }
    let script = workspace().join("target/page/test/page.mjs");
    assert!(script.exists(), "{} is not there: run `cargo xtask test --only setup,page`", script.display());
    let place = Place::new().expect("a directory");
    let shop = Command::new(unpack_demo(place.path()).expect("the demo"))
        .env("OTEL_SERVICE_NAME", HOSTILE)
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let shop = Shop(shop);
    let path = place.path().join("web");
    fs::copy(server("1.24.11", Mode::Plain), &path).expect("copied");
    let mut web = Program::start(&path);
    let path = place.path().join("locks");
    fs::copy(build("cases", "1.24.11", Mode::Plain, Arch::HOST).expect("it builds"), &path).expect("copied");
    let locks = Running::start(&path, "holder");
    let limits = "limits: {suspect_every: 500ms, prove_after: 500ms, prove_every: 1s, proof_rest: 1, budget: off}\n\
                  requests: {mode: slow, slow: 3ms}\n";
    let daemon = Daemon::start(&place.config("level: full", limits), &[]).expect("it starts");
    let all = [shop.0.id(), web.pid(), locks.pid()];
    let traced = |d: &Daemon| d.metrics().map(|m| all.iter().all(|pid| m.has(*pid)));
    daemon.until("they are traced", PATIENCE, traced).unwrap_or_else(|e| panic!("{e:#}"));
    let own = format!("process_pid=\"{}\"", all[0]);
    daemon
        .until("leaks are proven", PATIENCE, |d| Ok(d.metrics()?.sum("gotrace_leak_proven", &[&own]) > 0.0))
        .unwrap_or_else(|e| panic!("{e:#}"));

    let mut token = tempfile::NamedTempFile::new().expect("a file");
    writeln!(token, "{TOKEN}").expect("written");
    let http = format!("http: {{token_file: {}, require_token: true}}\n", token.path().display());
    let elsewhere = Place::new().expect("a directory");
    let locked = Daemon::start(&elsewhere.config("level: lifecycle", &http), &[]).expect("it starts");

    let directory = workspace().join("target/page/screenshots");
    fs::create_dir_all(&directory).expect("made");
    let mut browser = Command::new("node")
        .arg(script)
        .arg(format!("http://{}/", daemon.address()))
        .args(all.map(|pid| pid.to_string()))
        .arg(&directory)
        .args([&format!("http://{}/", locked.address()), TOKEN])
        .spawn()
        .expect("node runs");
    // Requests while it looks.
    let status = loop {
        match browser.try_wait().expect("it is ours") {
            Some(status) => break status,
            None => drop(web.run("run 1 slow sleep mutex_sleeping fast")),
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}; screenshots are in {}", directory.display());
    for daemon in [daemon, locked] {
        let (status, _, said) = daemon.finish().expect("it ends");
        assert!(status.success(), "{status}: {said}");
    }
}
