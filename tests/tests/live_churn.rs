//! Counts stay right under load: so many goroutines as the program started are reported as born and
//! died, or the missing ones are counted as lost. Needs root and `go`.

use gotrace_tests::{
    fixture::{Fixture, PATIENCE},
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, Outcome, privileged},
};

/// Goroutines of the site `function` in the last interval's totals, and what was lost.
fn totals(outcome: &Outcome) -> (u64, u64, u64) {
    let summary = outcome.summary().expect("a summary");
    let number =
        |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("no {name} in the summary {summary}"));
    (number("born"), number("died"), outcome.lost().expect("a summary"))
}

fn churn(rate: &str, n: u64) {
    if !privileged("live_churn") {
        return;
    }
    let program = build("account", "1.27.3", Mode::Stripped, Arch::HOST).expect("the fixture builds");
    let count = n.to_string();
    let args = ["-scenario", "churn", "-rate", rate, "-n", &count];
    let without = {
        let mut fixture = Fixture::start(&program, &args).expect("it starts");
        fixture.run().expect("it runs")["checksum"].clone()
    };
    let mut fixture = Fixture::start(&program, &args).expect("it starts");
    let gotrace = Gotrace::attach(fixture.pid(), &["--level", "lifecycle"]).expect("gotrace attaches");
    fixture.go().expect("it goes");
    let done = fixture.done(PATIENCE).expect("it ends");
    assert_eq!(done["checksum"], without, "the target's result");
    fixture.finish().expect("it ends well");
    let outcome = gotrace.wait().expect("gotrace ends");
    assert!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
    let (born, died, lost) = totals(&outcome);
    eprintln!(
        "churn of {n} at {rate}/s (achieved {}): born {born}, died {died}, lost {lost}",
        done["achieved_rate"]
    );
    // The runtime makes a few goroutines of its own; a lost record is a birth, a death or something else.
    let own = 40;
    assert!(born + lost >= n && born <= n + own, "born {born}, lost {lost}, of {n}");
    assert!(died + lost >= n && died <= n + own, "died {died}, lost {lost}, of {n}");
    if rate != "200000" {
        assert_eq!(lost, 0, "nothing may be lost at {rate}/s");
    }
}

#[test]
fn one_a_second() {
    churn("1", 4);
}

#[test]
fn a_thousand_a_second() {
    churn("1000", 3_000);
}

#[test]
fn two_hundred_thousand_a_second() {
    churn("200000", 600_000);
}
