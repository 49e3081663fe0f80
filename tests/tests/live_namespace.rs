//! A target in PID and mount namespaces of its own: seen from outside, as by an agent on the node, and
//! from within, as by a sidecar. Needs root, `go` and util-linux.

use gotrace_tests::{
    compare::Counted,
    fixture::Fixture,
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, privileged},
    live::{DEEP, EXACT, exact_with},
};

fn in_namespaces(attach: impl Fn(u32) -> anyhow::Result<Gotrace>) {
    let program = build("account", "1.27.3", Mode::Stripped, Arch::HOST).expect("the fixture builds");
    let fixture = Fixture::start_in_namespaces(&program, &EXACT).expect("it starts");
    let gotrace = attach(fixture.pid()).expect("gotrace attaches");
    let Counted { goroutines, waits } =
        exact_with(fixture, gotrace).unwrap_or_else(|e| panic!("the accounts disagree: {e:#}"));
    eprintln!("{goroutines} goroutines and {waits} waits agree");
}

#[test]
fn a_container_is_seen_from_the_node() {
    if privileged("live_namespace") {
        in_namespaces(|pid| Gotrace::attach(pid, &DEEP));
    }
}

#[test]
fn a_sidecar_sees_its_pod() {
    if privileged("live_namespace") {
        in_namespaces(|pid| Gotrace::attach_within(pid, &DEEP));
    }
}
