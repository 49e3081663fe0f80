//! `cargo xtask licences`: whether everything that gotrace is made of may be part of it, and the
//! notices that a binary must carry.
//!
//! Reads what `cargo metadata` says of the crates that are built for Linux, tests and tools included,
//! the licence texts that lie beside their manifests, and what the page and the demo's Go program are built of. Refuses a crate whose licence expression
//! cannot be met from the lists below, and one that names no licence. A licence joins a list with its
//! reason, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    demo,
    page::{self, Bundled},
    util::{capture, root},
};

/// What a crate of the daemon, the tests or the tools may be under, and why.
const ALLOWED: [(&str, &str); 9] = [
    ("Apache-2.0", "gotrace's own"),
    ("Apache-2.0 WITH LLVM-exception", "gotrace's own, with less asked for"),
    ("MIT", "gotrace's own"),
    ("BSD-2-Clause", "asks for its notice only"),
    ("BSD-3-Clause", "asks for its notice only"),
    ("ISC", "asks for its notice only"),
    ("NCSA", "asks for its notice only; libFuzzer, which is in no binary that users get"),
    ("Unicode-3.0", "asks for its notice only; tables of characters"),
    ("Zlib", "asks for nothing of a binary"),
];

/// What a crate of the eBPF object may be under. The object tells the kernel "Dual MIT/GPL", so that it
/// may call helpers that are for GPL programs only; Apache-2.0 alone would not go with the kernel's GPL.
const ALLOWED_IN_OBJECT: [(&str, &str); 2] = [
    ("MIT", "compatible with the kernel's GPL-2.0"),
    ("Unicode-3.0", "a table within a build-time macro; nothing of it is in the object"),
];

/// What is built for these is looked at.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

/// A crate.
#[derive(Deserialize)]
pub struct Package {
    id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    /// `None`: a crate of the workspace.
    source: Option<String>,
}

impl Package {
    /// Its licence as an SPDX expression: what was written before there were expressions is MIT/Apache-2.0.
    pub fn licence(&self) -> Option<String> {
        self.license.as_ref().map(|licence| licence.replace('/', " OR "))
    }
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

/// Runs `cargo xtask licences`.
pub fn main() -> Result<()> {
    let mut refused = Vec::new();
    let mut seen = BTreeSet::new();
    let places = [("Cargo.toml", &ALLOWED[..]), ("gotrace-ebpf/Cargo.toml", &ALLOWED_IN_OBJECT[..])];
    for (manifest, allowed) in places {
        for package in packages(manifest)? {
            seen.insert(format!("{} {}", package.name, package.version));
            if let Err(why) = judge(package.license.as_deref(), allowed) {
                refused.push(format!("{manifest}: {} {}: {why}", package.name, package.version));
            }
        }
    }
    for Bundled { name, version, licence } in page::bundled()? {
        seen.insert(format!("{name} {version}"));
        if let Err(why) = judge(licence.as_deref(), &ALLOWED) {
            refused.push(format!("gotrace-daemon/web/package-lock.json: {name} {version}: {why}"));
        }
    }
    let (version, licence) = demo::go()?;
    seen.insert(format!("go {version}"));
    if let Err(why) = judge(Some(&licence), &ALLOWED) {
        refused.push(format!("gotrace-daemon/demo: go {version}: {why}"));
    }
    if !refused.is_empty() {
        refused.sort();
        refused.dedup();
        bail!("licences that are on no list of xtask/src/licences.rs:\n  {}", refused.join("\n  "));
    }
    println!("the licences of {} crates and packages allow what gotrace does with them", seen.len());
    Ok(())
}

/// The crates that are resolved for a manifest on any target.
fn packages(manifest: &str) -> Result<Vec<Package>> {
    let mut all: BTreeMap<String, Package> = BTreeMap::new();
    for target in TARGETS {
        let told = capture(
            Command::new("cargo")
                .current_dir(root())
                .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
                .args(["--manifest-path", manifest]),
        )?;
        let Metadata { packages, resolve } =
            serde_json::from_str(&told).context("what `cargo metadata` says")?;
        let resolved: BTreeSet<_> = resolve.nodes.into_iter().map(|n| n.id).collect();
        all.extend(packages.into_iter().filter(|p| resolved.contains(&p.id)).map(|p| (p.id.clone(), p)));
    }
    Ok(all.into_values().collect())
}

/// The crates of others that are linked into the binary, and into the eBPF object in it.
pub fn linked() -> Result<Vec<Package>> {
    let linked = capture(Command::new("cargo").current_dir(root()).args([
        "tree",
        "--locked",
        "--package",
        "gotrace-daemon",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    // "name v1.2.3", perhaps with a path or a mark of repetition behind it.
    let linked: BTreeSet<String> = linked
        .lines()
        .filter_map(|l| {
            let mut words = l.split_whitespace();
            Some(format!("{} {}", words.next()?, words.next()?.trim_start_matches('v')))
        })
        .collect();
    let mut all = BTreeMap::new();
    for manifest in ["Cargo.toml", "gotrace-ebpf/Cargo.toml"] {
        for package in packages(manifest)? {
            let in_binary =
                manifest != "Cargo.toml" || linked.contains(&format!("{} {}", package.name, package.version));
            if package.source.is_some() && in_binary {
                all.insert((package.name.clone(), package.version.clone()), package);
            }
        }
    }
    Ok(all.into_values().collect())
}

/// The notices of everything that is linked into the binary: each text once, behind the crates that
/// are under it.
pub fn notices() -> Result<String> {
    let mut by_text: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut list = BTreeSet::new();
    for package in linked()? {
        let Package { id: _, name, version, license, manifest_path, source: _ } = package;
        let this = format!("{name} {version}");
        list.insert(format!("{this} ({})", license.unwrap_or_default()));
        let directory = manifest_path.parent().context("a manifest lies in a directory")?;
        for text in texts(directory)? {
            by_text.entry(text).or_default().insert(this.clone());
        }
    }
    let mut notices = String::from(
        "gotrace is linked statically with the crates below, and with the GNU C library (LGPL-2.1-or-later,\n\
         https://www.gnu.org/software/libc/). gotrace's sources, and `cargo xtask dist`, let anyone link it\n\
         anew with a changed C library.\n\n",
    );
    for line in &list {
        notices += &format!("  {line}\n");
    }
    for (text, crates) in by_text {
        let crates: Vec<_> = crates.into_iter().collect();
        notices += &format!("\n{}\n{}\n\n{}\n", "=".repeat(80), crates.join(", "), text.trim_end());
    }
    for committed in [page::committed_notices()?, demo::committed_notices()?] {
        notices += &format!("\n{}\n{committed}", "=".repeat(80));
    }
    Ok(notices)
}

/// The licence texts and notices in a crate's directory.
fn texts(directory: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        let named = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];
        if path.is_file() && named.iter().any(|n| name.starts_with(n)) {
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&bytes).replace('\r', ""));
        }
    }
    Ok(texts)
}

/// Whether a licence expression can be met.
fn judge(expression: Option<&str>, allowed: &[(&str, &str)]) -> Result<(), String> {
    let expression = expression.ok_or("no licence is named")?;
    // What was written before there were expressions: MIT/Apache-2.0.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let met = either(&mut rest, allowed).filter(|_| rest.is_empty());
    match met {
        Some(true) => Ok(()),
        Some(false) => Err(expression.to_owned()),
        None => Err(format!("`{expression}` is no licence expression")),
    }
}

/// `a OR b`; `None` where this is no expression.
fn either(words: &mut &[&str], allowed: &[(&str, &str)]) -> Option<bool> {
    let mut met = both(words, allowed)?;
    while let [first, rest @ ..] = *words
        && first.eq_ignore_ascii_case("or")
    {
        *words = rest;
        met |= both(words, allowed)?;
    }
    Some(met)
}

/// `a AND b`, which binds closer.
fn both(words: &mut &[&str], allowed: &[(&str, &str)]) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while let [first, rest @ ..] = *words
        && first.eq_ignore_ascii_case("and")
    {
        *words = rest;
        met &= one(words, allowed)?;
    }
    Some(met)
}

/// A licence, one with an exception, or an expression in parentheses.
fn one(words: &mut &[&str], allowed: &[(&str, &str)]) -> Option<bool> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    match *first {
        "(" => {
            let met = either(words, allowed)?;
            let (close, rest) = words.split_first()?;
            *words = rest;
            (*close == ")").then_some(met)
        }
        ")" => None,
        word if ["OR", "AND", "WITH"].contains(&word.to_ascii_uppercase().as_str()) => None,
        word => {
            let mut licence = word.to_owned();
            if let [with, exception, rest @ ..] = *words
                && with.eq_ignore_ascii_case("with")
            {
                licence = format!("{word} WITH {exception}");
                *words = rest;
            }
            Some(allowed.iter().any(|(name, _)| *name == licence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_or_not() {
        for good in [
            "MIT",
            "Apache-2.0 OR GPL-3.0-only",
            "GPL-3.0-only/MIT",
            "(MIT OR GPL-3.0-only) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
            "Apache-2.0 WITH LLVM-exception",
            "MIT AND GPL-3.0-only OR ISC",
        ] {
            assert_eq!(judge(Some(good), &ALLOWED), Ok(()), "{good}");
        }
        for bad in [
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "(MIT OR ISC) AND GPL-3.0-only",
            "GPL-2.0-only WITH Classpath-exception-2.0",
            "",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT ISC",
        ] {
            assert!(judge(Some(bad), &ALLOWED).is_err(), "{bad}");
        }
        assert!(judge(None, &ALLOWED).is_err());
    }

    #[test]
    fn the_object_takes_nothing_that_is_apache_only() {
        assert!(judge(Some("Apache-2.0"), &ALLOWED_IN_OBJECT).is_err());
        assert!(judge(Some("Apache-2.0 OR MIT"), &ALLOWED_IN_OBJECT).is_ok());
    }
}
