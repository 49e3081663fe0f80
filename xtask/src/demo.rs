//! `cargo xtask demo`: builds gotrace, and runs `gotrace demo`, which shows what gotrace says of a small Go program that
//! leaks. Its trace is left in `target/demo.otlp.jsonl`.
//!
//! Also: what the committed Go program (`gotrace-daemon/demo`) has to come with.
//!
//! Needs rustup's stable Rust, a C compiler and root; neither Go nor anything of the eBPF toolchain: the
//! Go program and the eBPF object are committed.

use std::{fs, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::util::{root, run};

/// Which package cargo is to build or run.
const GOTRACE: [&str; 3] = ["--locked", "--package", "gotrace-daemon"];

/// How to show it.
#[derive(Debug, Args)]
pub struct Options {
    /// How long to watch it live
    #[arg(long, default_value = "10s")]
    duration: String,
}

/// Runs `cargo xtask demo`; does not come back where it can be run.
pub fn main(options: &Options) -> Result<()> {
    println!("building gotrace");
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).arg("--manifest-path").arg(root().join("Cargo.toml")).args(GOTRACE);
        cargo
    };
    run(&mut cargo(&["build"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    // In place of this process, so that Ctrl-C finds gotrace alone.
    let failed = cargo(&["run", "--quiet"])
        .args(["--", "demo", "--duration", &options.duration, "--export"])
        .arg(target.join("demo.otlp.jsonl"))
        .exec();
    Err(failed).context("running cargo")
}

/// Where the Go program is, compiled.
fn programs() -> PathBuf {
    root().join("gotrace-daemon/demo")
}

/// The notices that it has to come with, which are committed beside it.
pub fn committed_notices() -> Result<String> {
    let path = programs().join("THIRD-PARTY");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// The version of Go whose runtime and standard library are in it, and their licence.
pub fn go() -> Result<(String, String)> {
    let notices = committed_notices()?;
    let told = notices.lines().find_map(|line| line.strip_prefix("go ")?.strip_suffix(')')?.split_once(" ("));
    let (version, licence) = told.context("the demo's THIRD-PARTY names no version of Go")?;
    Ok((version.to_owned(), licence.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::sha256;

    #[test]
    fn the_committed_programs_and_notices_are_those_of_one_build() {
        let sums = fs::read_to_string(programs().join("SHA256SUMS")).expect("a file");
        for arch in ["amd64", "arm64"] {
            let name = format!("demo.{arch}.gz");
            let sum = sha256(&fs::read(programs().join(&name)).expect("a file"));
            assert!(sums.lines().any(|line| line == format!("{sum}  {name}")), "{name}: {sum}");
        }
        let script = fs::read_to_string(root().join("tests/go/demo/build.sh")).expect("a file");
        let (version, licence) = go().expect("it names one");
        assert!(script.lines().any(|line| line == format!("version={version}")), "{version}");
        assert_eq!(licence, "BSD-3-Clause");
        assert!(committed_notices().expect("a file").contains("Copyright 2009 The Go Authors."));
    }
}
