//! A configuration that is read again reaches processes that are traced already, and what must wait for the next
//! start is named. Needs root.

use std::process::{Child, Command, Stdio};

use gotrace_tests::{
    daemon::{Daemon, Metrics, Place, of},
    demo::unpack_demo,
    fixture::PATIENCE,
    gotrace::privileged,
};

/// The demo's shop, which leaks; ended when dropped.
struct Shop(Child);

impl Drop for Shop {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(daemon: &Daemon, what: &str, holds: impl Fn(&Metrics) -> bool) {
    daemon.until(what, PATIENCE, |d| Ok(holds(&d.metrics()?))).unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn what_was_off_at_the_start_is_switched_on_and_off_again() {
    if !privileged("live_reload") {
        return;
    }
    let place = Place::new().expect("a directory");
    let program = unpack_demo(place.path()).expect("the demo");
    let shop = Shop(Command::new(&program).stdout(Stdio::null()).spawn().expect("it starts"));
    let pid = shop.0.id();
    let off = "limits: {suspect_every: 0, prove_every: 0, budget: off}\n";
    let daemon = Daemon::start(&place.config("level: lifecycle", off), &[]).expect("it starts");
    until(&daemon, "it is traced", |m| m.is_at(pid, "lifecycle"));
    let export = place.path().join("export.jsonl");
    let on = format!(
        "limits: {{suspect_every: 500ms, prove_after: 500ms, prove_every: 1s, proof_rest: 1, budget: off}}\n\
         otlp: {{export: {}}}\n",
        export.display()
    );
    daemon.reconfigure(&place.config("level: waits, reconcile: 1s", &on)).expect("written");
    until(&daemon, "its level is raised", |m| m.is_at(pid, "waits"));
    let own = of(pid);
    until(&daemon, "leaks are proven", |m| m.sum("gotrace_leak_proven", &[&own]) > 0.0);
    // Looks tell that they grow, which is no finding beside the proven one.
    until(&daemon, "and seen to grow", |m| !m.values("gotrace_leak_growth_per_second", &[&own]).is_empty());
    until(&daemon, "waits are known", |m| {
        m.sum("gotrace_goroutine_wait_duration_seconds_count", &[&own]) > 50.0
    });
    let metrics = daemon.metrics().expect("a page");
    // The kernel's table was made for those that a later configuration may ask for.
    assert_eq!(metrics.sum("gotrace_events_lost_total", &[&own]), 0.0, "{}", metrics.0);
    let said = daemon.said();
    assert!(said.contains("these changes take effect after a restart: otlp.export"), "{said}");
    assert!(!export.exists());
    daemon.reconfigure(&place.config("level: waits, reconcile: 0", off)).expect("written");
    until(&daemon, "nothing is proven or suspected any more", |m| {
        m.values("gotrace_leak_proven", &[&own]).is_empty()
            && m.values("gotrace_leak_growth_per_second", &[&own]).is_empty()
    });
    let (status, _, said) = daemon.finish().expect("it ends");
    assert!(status.success(), "{status}: {said}");
}
