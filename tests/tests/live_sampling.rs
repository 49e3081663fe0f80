//! What sampling exports of a running Go program, and what it counts as left out. Needs root and `go`.

use std::collections::BTreeSet;

use gotrace_tests::{
    export::Span,
    fixture::Fixture,
    gobuild::{Arch, Mode, build},
    gotrace::{Gotrace, Outcome, privileged},
    live::EXACT,
};

const LONG_NS: u64 = 15_000_000;

/// Runs the program under gotrace with these flags.
fn run(more: &[&str]) -> (Outcome, BTreeSet<u64>) {
    let program = build("account", "1.27.3", Mode::Stripped, Arch::HOST).expect("it builds");
    let mut fixture = Fixture::start(&program, &EXACT).expect("it starts");
    let gotrace = Gotrace::attach(fixture.pid(), more).expect("gotrace attaches");
    fixture.run().expect("it runs");
    let account = fixture.account().expect("an account");
    fixture.finish().expect("it ends");
    let outcome = gotrace.wait().expect("gotrace ends");
    assert!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
    assert_eq!(outcome.lost().expect("a summary"), 0, "what is left out is not lost");
    let ended = account.goroutines.iter().filter(|g| g.last_ns.is_some() && g.kind != "cthread");
    (outcome, ended.map(|g| g.goid).filter(|goid| *goid != 1).collect())
}

fn left_out(outcome: &Outcome, why: &str) -> u64 {
    outcome.summary().expect("a summary")["spans_sampled_out"][why].as_u64().unwrap_or(0)
}

#[test]
fn who_waited_long_is_exported_in_any_case_and_nobody_else() {
    if !privileged("live_sampling") {
        return;
    }
    let (outcome, ended) = run(&["--span-ratio", "0", "--keep-wait-over", "15ms"]);
    let (waits, lives): (Vec<&Span>, Vec<&Span>) = outcome.export.spans.iter().partition(|s| s.is_wait());
    assert!(waits.len() > 20 && lives.len() > 10, "{} waits, {} goroutines", waits.len(), lives.len());
    let short = waits.iter().find(|w| w.end_ns - w.start_ns < LONG_NS);
    assert!(short.is_none(), "a short wait is exported: {short:?}");
    let waited: BTreeSet<u64> = waits.iter().map(|w| w.goid()).collect();
    let exported: BTreeSet<u64> = lives.iter().map(|l| l.goid()).collect();
    let with_life: BTreeSet<u64> = waited.intersection(&ended).copied().collect();
    assert_eq!(exported.intersection(&ended).copied().collect::<BTreeSet<_>>(), with_life);
    assert!(exported.is_subset(&waited), "{exported:?} and {waited:?}");
    assert!(left_out(&outcome, "ratio") > 0 && left_out(&outcome, "rate_limit") == 0);
}

#[test]
fn no_more_than_so_many_are_exported_in_a_second() {
    if !privileged("live_sampling") {
        return;
    }
    let (outcome, _) = run(&["--max-spans-per-second", "10"]);
    let mut by_second = std::collections::BTreeMap::new();
    for span in &outcome.export.spans {
        // Seconds are those of the kernel's clock, which begin elsewhere: two of them may meet in one of these.
        *by_second.entry(span.end_ns / 1_000_000_000).or_insert(0) += 1;
    }
    assert!(!by_second.is_empty() && by_second.values().all(|n| *n <= 20), "{by_second:?}");
    let (exported, all) = (outcome.export.spans.len() as u64, left_out(&outcome, "rate_limit"));
    assert!(all > exported, "{exported} exported, {all} left out");
}
