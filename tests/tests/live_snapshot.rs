//! Every goroutine of a running program as it says itself: goids, states, wait reasons, every frame with
//! file and line, creator and parent equal the runtime's own traceback, for every Go version and in every
//! build mode; locks by address and pprof labels as the program has them. Needs root and `go`.

use gotrace_tests::{
    gobuild::{Arch, CORNER_VERSIONS, Mode, VERSIONS, build},
    gotrace::privileged,
    stacks::{check, check_emulated},
};

/// Runs all of them, and says of each how it went before it fails for any.
fn all(arch: Arch, cases: impl Iterator<Item = (&'static str, Mode)>) {
    if !privileged("live_snapshot") {
        return;
    }
    let mut failed = Vec::new();
    for (version, mode) in cases {
        let name = format!("go{version} {}", mode.name());
        match build("stacks", version, mode, arch)
            .and_then(|program| if arch == Arch::HOST { check(&program) } else { check_emulated(&program) })
        {
            Ok(agreed) => {
                eprintln!("{name}: {} goroutines with {} frames agree", agreed.goroutines, agreed.frames);
            }
            Err(e) => {
                eprintln!("{name}: {e:#}");
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "the snapshots disagree: {failed:?}");
}

#[test]
fn every_version_stripped() {
    all(Arch::HOST, VERSIONS.into_iter().map(|v| (v, Mode::Stripped)));
}

#[test]
fn every_mode() {
    let pairs = CORNER_VERSIONS
        .into_iter()
        .flat_map(|v| Mode::ALL.into_iter().map(move |m| (v, m)))
        // The profile is that of a program with other scenarios.
        .filter(|&(v, m)| m != Mode::Stripped && m != Mode::Pgo && m.exists(v, Arch::HOST));
    all(Arch::HOST, pairs);
}

/// In an emulator, where that is not the machine's own.
#[test]
fn every_version_on_arm64() {
    all(Arch::Arm64, VERSIONS.into_iter().map(|v| (v, Mode::Stripped)));
}
