//! Every goroutine and every wait that the Go program writes down, gotrace reports: each once, with
//! the right parent, place, times, reason and waker, for every Go version and in every build mode.
//! Needs root and `go`.

use gotrace_tests::{
    compare::Counted,
    gobuild::{Arch, CORNER_VERSIONS, Mode, VERSIONS, build},
    gotrace::privileged,
    live::exact,
};

/// Runs all of them, and says of each how it went before it fails for any.
fn all(test: &str, cases: impl Iterator<Item = (&'static str, Mode)>) {
    if !privileged(test) {
        return;
    }
    let mut failed = Vec::new();
    for (version, mode) in cases {
        let name = format!("go{version} {}", mode.name());
        let got = build("account", version, mode, Arch::HOST).and_then(|program| exact(&program));
        match got {
            Ok(Counted { goroutines, waits }) => {
                eprintln!("{name}: {goroutines} goroutines and {waits} waits agree");
            }
            Err(e) => {
                eprintln!("{name}: {e:#}");
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "the accounts disagree: {failed:?}");
}

#[test]
fn every_version_stripped() {
    all("live_account", VERSIONS.into_iter().map(|v| (v, Mode::Stripped)));
}

#[test]
fn every_mode() {
    let pairs = CORNER_VERSIONS
        .into_iter()
        .flat_map(|v| Mode::ALL.into_iter().map(move |m| (v, m)))
        .filter(|&(v, m)| m != Mode::Stripped && m != Mode::Pgo && m.exists(v, Arch::HOST));
    all("live_account", pairs);
}

/// What a profile makes the compiler do to the scheduler differs by version.
#[test]
fn every_version_with_a_profile() {
    let pairs = VERSIONS.into_iter().map(|v| (v, Mode::Pgo));
    all("live_account", pairs.filter(|&(v, m)| m.exists(v, Arch::HOST)));
}
