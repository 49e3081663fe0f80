//! The Go program with the account compiles with every version and in every mode, computes the same
//! result wherever it runs, and its account is whole. Needs `go`; needs no root and no gotrace.

use std::{collections::BTreeMap, process::Command};

use gotrace_tests::gobuild::{Arch, CORNER_VERSIONS, Mode, VERSIONS, build};

/// Result of the exact scenarios as printed on the program's last line.
fn checksum(version: &str, mode: Mode) -> String {
    let program = build("account", version, mode, Arch::HOST).expect("the fixture builds");
    let out = Command::new(&program)
        .args(["-now", "-scenario", "all,storm", "-n", "200", "-nap", "1ms"])
        .output()
        .expect("the fixture runs");
    assert!(out.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    let done = text.lines().find_map(|l| l.strip_prefix("DONE ")).expect("a DONE line");
    let done: serde_json::Value = serde_json::from_str(done).expect("JSON");
    done["checksum"].as_str().expect("a checksum").to_owned()
}

#[test]
fn every_version_and_mode_builds_and_computes_the_same() {
    // What a program computes depends on what exists in it: coroutines came with Go 1.23, and calls
    // into C need cgo.
    let mut results: BTreeMap<(bool, bool), BTreeMap<String, Vec<String>>> = BTreeMap::new();
    let mut run = |version: &str, mode: Mode| {
        let class = (
            gotrace_tests::gobuild::minor(version) >= 23,
            matches!(mode, Mode::Cgo | Mode::Static | Mode::Race),
        );
        let name = format!("go{version} {}", mode.name());
        results.entry(class).or_default().entry(checksum(version, mode)).or_default().push(name);
    };
    for version in VERSIONS {
        run(version, Mode::Stripped);
    }
    for version in CORNER_VERSIONS {
        for mode in Mode::ALL.into_iter().filter(|m| m.exists(version, Arch::HOST)) {
            run(version, mode);
        }
    }
    for (class, sums) in results {
        assert_eq!(sums.len(), 1, "coroutines, cgo = {class:?}: {sums:#?}");
    }
}

#[test]
fn every_version_cross_builds() {
    let other = if Arch::HOST == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
    for version in VERSIONS {
        build("account", version, Mode::Stripped, other).expect("the fixture cross-builds");
    }
}
