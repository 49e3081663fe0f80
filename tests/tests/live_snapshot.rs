//! Every goroutine of a running program as it says itself: goids, states, wait reasons, every frame with
//! file and line, creator and parent equal the runtime's own traceback, for every Go version and in every
//! build mode; locks by address and pprof labels as the program has them. Needs root and `go`.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use gotrace_tests::{
    dump::{Dump, disagreements},
    gobuild::{Arch, CORNER_VERSIONS, Mode, VERSIONS, build},
    gotrace::privileged,
    stacks::{Stacks, check, check_emulated},
};

/// Processes in which something may disagree before it counts: between snapshot and traceback the runtime's own
/// scavenger may go from its sleep to its pause, once in many. A fault is in each of them.
const TRIES: usize = 3;

/// What comes of one of a few processes.
fn in_tries<T>(name: &str, mut one: impl FnMut() -> Result<T>) -> Result<T> {
    for n in 1..TRIES {
        match one() {
            Ok(agreed) => return Ok(agreed),
            Err(e) => eprintln!("{name}, process {n}: {e:#}"),
        }
    }
    one()
}

/// Runs all of them, and says of each how it went before it fails for any.
fn all(arch: Arch, cases: impl Iterator<Item = (&'static str, Mode)>) {
    if !privileged("live_snapshot") {
        return;
    }
    let mut failed = Vec::new();
    for (version, mode) in cases {
        let name = format!("go{version} {}", mode.name());
        match build("stacks", version, mode, arch).and_then(|program| {
            in_tries(&name, || match arch {
                // Every mode by two readers, every version by one.
                Arch::HOST => check(&program, mode != Mode::Stripped),
                _ => check_emulated(&program),
            })
        }) {
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
        .filter(|&(v, m)| m != Mode::Stripped && m.exists(v, Arch::HOST));
    all(Arch::HOST, pairs);
}

/// In an emulator, where that is not the machine's own.
#[test]
fn every_version_on_arm64() {
    all(Arch::Arm64, VERSIONS.into_iter().map(|v| (v, Mode::Stripped)));
}

/// Programs that say they were built by a version that is not known: the only known layout that fits is
/// found in the living process, whichever it is, and is named.
#[test]
fn a_version_that_is_not_known() {
    if !privileged("live_snapshot") {
        return;
    }
    let mut failed = Vec::new();
    for version in VERSIONS {
        match in_tries(version, || unknown(version)) {
            Ok(frames) => eprintln!("go{version}, which calls itself another: {frames} frames agree"),
            Err(e) => {
                eprintln!("go{version}: {e:#}");
                failed.push(version);
            }
        }
    }
    assert!(failed.is_empty(), "the snapshots disagree: {failed:?}");
}

/// Dumps the program built by a version, with a version of the same length written over that.
fn unknown(version: &str) -> Result<usize> {
    let minor = version.split('.').nth(1).context("a version")?;
    let lie = version.replacen(minor, "28", 1);
    let program = build("stacks", version, Mode::Stripped, Arch::HOST)?;
    let dir = tempfile::tempdir()?;
    let copy = dir.path().join("stacks");
    fs::copy(&program, &copy)?;
    overwrite(&copy, &format!("go{version}"), &format!("go{lie}"))?;
    let stacks = Stacks::start(&copy, None)?;
    let mut dump = Dump::take(stacks.pid(), &["--system"], true)?;
    let theirs = stacks.quit()?;
    ensure!(dump.header["go_version"] == format!("go{lie}"), "{}", dump.header);
    // The newest needs no other.
    let found = dump.warnings.contains("its goroutines look like those of Go 1.");
    ensure!(found == (minor.parse::<u32>()? < 26), "it said {:?}", dump.warnings);
    for (goid, ours) in &mut dump.goroutines {
        // Reasons have the numbers of another version.
        ours.state = theirs.get(goid).map(|g| g.state.clone()).unwrap_or_default();
    }
    ensure!(
        dump.goroutines.len() == theirs.len(),
        "{} goroutines, not {}",
        dump.goroutines.len(),
        theirs.len()
    );
    let mut wrong = Vec::new();
    let frames = disagreements(&dump.goroutines, &theirs, true, &mut wrong);
    ensure!(wrong.is_empty(), "{} disagreements:\n  {}", wrong.len(), wrong.join("\n  "));
    Ok(frames)
}

fn overwrite(file: &Path, from: &str, to: &str) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, w)| *w == from.as_bytes())
        .map(|(n, _)| n)
        .collect();
    ensure!(!places.is_empty() && from.len() == to.len(), "{from} is not in {}", file.display());
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    }
    Ok(fs::write(file, bytes)?)
}
