//! `cargo xtask page build|check`: the page's bundle, which Vite makes of `gotrace-daemon/web`.
//!
//! It is committed (`dist/`), so that nobody needs Node to build gotrace. `check` makes it anew, of the packages that
//! `package-lock.json` names with their hashes, and compares. Both work on a copy in `target/page`, which the test in the
//! browser runs from, and leave the sources' directory without packages.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde::Deserialize;

use crate::util::{apt_install, cache_dir, capture, root, run};

/// What Vite needs at least, and what is fetched where the machine has less.
const NODE_MAJOR: u32 = 20;
const NODE: &str = "22.20.0";

/// What is committed and made anew, below `gotrace-daemon/web`.
const MADE: [&str; 2] = ["dist", "THIRD-PARTY"];
/// What it is made of, and its test.
const SOURCES: [&str; 8] = [
    "index.html",
    "package.json",
    "package-lock.json",
    "public",
    "src",
    "test",
    "tsconfig.json",
    "vite.config.js",
];

/// What to do with the page's bundle.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Action {
    /// Build it and write it to gotrace-daemon/web/dist/
    Build,
    /// Build it and compare it with the committed one
    Check,
}

/// Runs `cargo xtask page`.
pub fn main(action: Action) -> Result<()> {
    node()?;
    match action {
        Action::Build => {
            build()?;
            for name in MADE {
                let committed = sources().join(name);
                if committed.is_dir() {
                    fs::remove_dir_all(&committed)?;
                }
                copy(&place().join(name), &committed)?;
            }
            Ok(())
        }
        Action::Check => check(),
    }
}

/// A browser, and Node.
pub fn setup() -> Result<()> {
    let browsers = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];
    if !browsers.iter().any(|path| Path::new(path).exists()) {
        apt_install(&["chromium"])?;
    }
    node()
}

fn node_major() -> Option<u32> {
    let version = capture(Command::new("node").arg("--version")).ok()?;
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// A `node` that is new enough, first in PATH for this run; Debian's fetches a newer one as the package that npm has of it.
fn node() -> Result<()> {
    if node_major().is_some_and(|major| major >= NODE_MAJOR)
        && capture(Command::new("npm").arg("--version")).is_ok()
    {
        return Ok(());
    }
    if capture(Command::new("npm").arg("--version")).is_err() {
        apt_install(&["nodejs", "npm"])?;
    }
    let directory = cache_dir().join("node");
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let package = format!("node-linux-{arch}");
    let bin = directory.join("node_modules").join(&package).join("bin");
    if node_major().is_none_or(|major| major < NODE_MAJOR) {
        if !bin.join("node").exists() {
            fs::create_dir_all(&directory)?;
            println!("fetching Node {NODE}");
            let prefix = ["install", "--no-audit", "--no-fund", "--prefix"];
            run(Command::new("npm").args(prefix).arg(&directory).arg(format!("{package}@{NODE}")))?;
        }
        let old = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(std::iter::once(bin).chain(env::split_paths(&old)))?;
        // SAFETY: xtask has one thread while it sets up.
        unsafe { env::set_var("PATH", path) };
    }
    match node_major() {
        Some(major) if major >= NODE_MAJOR => Ok(()),
        _ => bail!(
            "no Node of version {NODE_MAJOR} or newer: install one from https://nodejs.org and put it in PATH"
        ),
    }
}

fn sources() -> PathBuf {
    root().join("gotrace-daemon/web")
}

/// Where it is built, and where what runs in the browser does.
pub fn place() -> PathBuf {
    root().join("target/page")
}

/// Builds the bundle from the sources.
pub fn build() -> Result<()> {
    let place = place();
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    for name in SOURCES {
        let to = place.join(name);
        if to.is_dir() {
            fs::remove_dir_all(&to)?;
        }
        copy(&sources().join(name), &to)?;
    }
    let npm = |arguments: &[&str]| run(Command::new("npm").current_dir(&place).args(arguments));
    // Packages that are there stay, as long as they are those of the lock file.
    let lock = fs::read(place.join("package-lock.json"))?;
    let installed = place.join("node_modules/.lock-of-gotrace");
    if fs::read(&installed).ok() != Some(lock.clone()) {
        npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"])?;
        fs::write(installed, lock)?;
    }
    npm(&["run", "--silent", "build"])?;
    fs::write(place.join("THIRD-PARTY"), notices(&place.join("node_modules"))?)?;
    Ok(())
}

/// Whether the committed bundle is that of the sources.
pub fn check() -> Result<()> {
    build()?;
    for name in MADE {
        let (fresh, committed) = (files(&place().join(name))?, files(&sources().join(name))?);
        let differ =
            fresh.keys().chain(committed.keys()).find(|path| fresh.get(*path) != committed.get(*path));
        if let Some(path) = differ {
            let path = joined(Path::new(name), path);
            bail!(
                "gotrace-daemon/web/{} is not what its sources make: run `cargo xtask page build` and commit the result",
                path.display()
            );
        }
    }
    println!("the committed page is that of its sources");
    Ok(())
}

/// The files below a path, or the one that it is, with their contents.
fn files(path: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    if path.is_file() {
        found.insert(PathBuf::new(), fs::read(path)?);
        return Ok(found);
    }
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        let entry = entry?;
        for (below, bytes) in files(&entry.path())? {
            found.insert(joined(Path::new(&entry.file_name()), &below), bytes);
        }
    }
    Ok(found)
}

/// A path below another one, or that one.
fn joined(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { path.to_path_buf() } else { path.join(below) }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for (below, bytes) in files(from)? {
        let to = joined(to, &below);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&to, bytes).with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(())
}

/// A package whose code is in the bundle.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundled {
    pub name: String,
    pub version: String,
    pub licence: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    packages: BTreeMap<String, Locked>,
}

#[derive(Deserialize)]
struct Locked {
    version: Option<String>,
    license: Option<String>,
    #[serde(default)]
    dev: bool,
}

/// Packages that are not for building and testing alone.
pub fn bundled() -> Result<Vec<Bundled>> {
    parse(&fs::read(sources().join("package-lock.json"))?)
}

fn parse(lock: &[u8]) -> Result<Vec<Bundled>> {
    let Lock { packages } = serde_json::from_slice(lock).context("package-lock.json")?;
    let bundled = packages.into_iter().filter_map(|(path, Locked { version, license, dev })| {
        // The empty path is the page itself.
        let name = path.rsplit_once("node_modules/")?.1.to_owned();
        (!dev).then(|| Bundled { name, version: version.unwrap_or_default(), licence: license })
    });
    Ok(bundled.collect())
}

/// The notices that the bundle has to come with, which are committed beside it.
pub fn committed_notices() -> Result<String> {
    let path = sources().join("THIRD-PARTY");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn notices(packages: &Path) -> Result<String> {
    let mut text = String::from("The page's script has code of these packages.\n");
    for Bundled { name, version, licence } in bundled()? {
        let directory = packages.join(&name);
        let notice = fs::read_to_string(directory.join("LICENSE"))
            .with_context(|| format!("{name} has no file LICENSE in {}", directory.display()))?;
        text += &format!("\n{name} {version} ({})\n\n{}\n", licence.unwrap_or_default(), notice.trim_end());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_building_alone_is_not_in_the_bundle() {
        let lock = br#"{"packages": {
            "": {"license": "MIT"},
            "node_modules/preact": {"version": "1.2.3", "license": "MIT"},
            "node_modules/vite": {"version": "4.5.6", "license": "MIT", "dev": true},
            "node_modules/a/node_modules/@b/c": {"version": "1.0.0"}
        }}"#;
        let names: Vec<_> =
            parse(lock).expect("a lock file").into_iter().map(|p| (p.name, p.licence)).collect();
        assert_eq!(names, [("@b/c".into(), None), ("preact".into(), Some("MIT".into()))]);
    }

    #[test]
    fn the_committed_notices_name_what_is_bundled() {
        let notices = committed_notices().expect("a file");
        for Bundled { name, version, licence } in bundled().expect("a lock file") {
            let line = format!("{name} {version} ({})", licence.unwrap_or_default());
            assert!(notices.lines().any(|l| l == line), "{line}");
        }
    }
}
