//! The static arm64 binary, cross-built for the virtual machines and for distribution.
//!
//! Takes rustup's standard library for that target where rustup has it, else Debian's: `rustc-web` with
//! the arm64 `libstd-rust-web-dev` unpacked beside it into a sysroot of its own. C parts are compiled and
//! everything is linked by Debian's `gcc-aarch64-linux-gnu`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    kernels::Apt,
    util::{apt_install, cache_dir, capture, root, run},
};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const HOST: &str = "x86_64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";

/// Where [`build`] leaves the binary, stripped.
pub fn binary() -> PathBuf {
    root().join("target/arm64/gotrace")
}

/// Installs what [`build`] needs.
pub fn setup() -> Result<()> {
    apt_install(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "binutils-aarch64-linux-gnu"])?;
    if rustup_has_it() {
        return Ok(());
    }
    apt_install(&["rustc-web", "cargo-web", "libstd-rust-web-dev"])?;
    let version = debian_version()?;
    let sysroot = sysroot(&version);
    if sysroot.exists() {
        return Ok(());
    }
    println!("fetching the arm64 standard library of rustc-web {version}");
    let tree = Apt::open()?.unpacked(&format!("libstd-rust-web-dev:arm64={version}"))?;
    let new = sysroot.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    let rustlib = new.join("lib/rustlib");
    fs::create_dir_all(&rustlib)?;
    // The same file system: the unpacked tree lies in the cache directory too.
    fs::rename(tree.path().join("usr/lib/rustlib").join(TARGET), rustlib.join(TARGET))
        .context("the package libstd-rust-web-dev:arm64 is not laid out as expected")?;
    symlink(Path::new("/usr/lib/rustlib").join(HOST), rustlib.join(HOST))?;
    fs::rename(&new, &sysroot)?;
    Ok(())
}

/// Builds the static binary, in the profile of the tests.
pub fn build() -> Result<PathBuf> {
    setup()?;
    let mut flags = "-C target-feature=+crt-static".to_owned();
    let mut cargo;
    if rustup_has_it() {
        cargo = Command::new("cargo");
    } else {
        cargo = Command::new("/usr/bin/cargo");
        cargo.env("RUSTC", "/usr/bin/rustc").env_remove("RUSTUP_TOOLCHAIN");
        flags += &format!(" --sysroot {}", sysroot(&debian_version()?).display());
    }
    let dir = root().join("target/arm64");
    run(cargo
        .current_dir(root())
        .args(["build", "--locked", "-p", "gotrace-daemon", "--bin", "gotrace", "--target", TARGET])
        .arg("--target-dir")
        .arg(&dir)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags)
        .env("CC_aarch64_unknown_linux_gnu", LINKER)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET"))?;
    let built = dir.join(TARGET).join("debug/gotrace");
    run(Command::new("aarch64-linux-gnu-strip").arg("-o").arg(binary()).arg(&built))?;
    Ok(binary())
}

fn rustup_has_it() -> bool {
    capture(Command::new("rustup").args(["target", "list", "--installed"]))
        .is_ok_and(|list| list.lines().any(|l| l.trim() == TARGET))
}

fn debian_version() -> Result<String> {
    let version =
        capture(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "libstd-rust-web-dev"]))?;
    ensure!(!version.is_empty(), "dpkg knows no version of libstd-rust-web-dev");
    Ok(version.trim().to_owned())
}

fn sysroot(version: &str) -> PathBuf {
    cache_dir().join(format!("sysroot-arm64-{version}"))
}
