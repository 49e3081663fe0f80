//! `cargo xtask setup`: installs what building the eBPF objects and running all tests needs, and
//! nothing that is there already. Wants Debian 12 or later (or Ubuntu), and root where packages are
//! missing.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    arm64, cluster, ebpf, kernels, page,
    util::{apt_install, cache_dir, capture, run},
};

/// The Go versions of the tests, as in `tests/src/gobuild.rs`.
pub const GO_VERSIONS: [&str; 9] =
    ["1.19.13", "1.20.14", "1.21.13", "1.22.12", "1.23.12", "1.24.11", "1.25.5", "1.26.6", "1.27.3"];

/// The Go version that fetches the others where the machine has none that can.
const GO_BOOTSTRAP: &str = "1.26.6";

/// Servers written in Go, with a profile endpoint, and Prometheus' tool that judges rules: Debian's package,
/// and the program in it.
const SERVERS: [(&str, &str); 3] =
    [("prometheus", "prometheus"), ("prometheus", "promtool"), ("etcd-server", "etcd")];

/// Runs `cargo xtask setup`.
pub fn main() -> Result<()> {
    compilers()?;
    go()?;
    ebpf::setup()?;
    servers()?;
    cluster::setup()?;
    page::setup()?;
    // What the trials of stage `harm` run programs by and from.
    apt_install(&["gosu", "strace", "bindfs"])?;
    // What judges the installed package's unit.
    apt_install(&["systemd"])?;
    if cfg!(target_arch = "x86_64") {
        kernels::setup()?;
        arm64::setup()?;
        // Snapshots of programs for arm64 are tested in an emulator of the processor alone.
        apt_install(&["qemu-user"])?;
    } else {
        println!("SKIPPED: the virtual machines are set up on x86-64 only");
    }
    Ok(())
}

/// What compiling gotrace itself needs beside rustup.
pub fn compilers() -> Result<()> {
    apt_install(&["gcc", "g++", "libc6-dev", "pkg-config", "git", "ca-certificates"])
}

/// Servers that the tests dump, out of Debian's packages. They are not installed: nothing is started, and
/// the machine keeps its own.
fn servers() -> Result<()> {
    let place = cache_dir().join("servers");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    for (package, program) in SERVERS {
        let wanted = place.join(program);
        if wanted.exists() {
            continue;
        }
        println!("fetching {program}");
        let fresh = place.join(format!("{program}.new"));
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        fs::create_dir_all(&fresh)?;
        let download = || run(Command::new("apt-get").current_dir(&fresh).args(["-qq", "download", package]));
        if download().is_err() {
            run(Command::new("apt-get").args(["-qq", "update"]))?;
            download()?;
        }
        let archive = fs::read_dir(&fresh)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("`apt-get download {package}` left no package"))?;
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&fresh))?;
        fs::rename(fresh.join("usr/bin").join(program), &wanted)
            .with_context(|| format!("{program} is not in {}", archive.display()))?;
        fs::remove_dir_all(&fresh)?;
    }
    Ok(())
}

/// A `go` that can fetch other versions of itself, and those versions.
fn go() -> Result<()> {
    if go_minor().is_none_or(|m| m < 21) {
        bootstrap_go()?;
    }
    for version in GO_VERSIONS {
        let wanted = format!("go{version}");
        let got = capture(Command::new("go").arg("version").env("GOTOOLCHAIN", &wanted))
            .with_context(|| format!("fetching the Go toolchain {wanted}"))?;
        if !got.contains(&wanted) {
            bail!("`GOTOOLCHAIN={wanted} go version` says {got}");
        }
    }
    Ok(())
}

fn go_minor() -> Option<u32> {
    let version = capture(Command::new("go").args(["env", "GOVERSION"])).ok()?;
    version.trim().strip_prefix("go1.")?.split('.').next()?.parse().ok()
}

/// Debian's Go fetches a newer one as the module that Go toolchains are published as; it is put first
/// in PATH for this run.
fn bootstrap_go() -> Result<()> {
    let bin = cache_dir().join("go/bin");
    if !bin.join("go").exists() {
        if go_minor().is_none() {
            apt_install(&["golang-go"])?;
        }
        let module = format!("golang.org/toolchain@v0.0.1-go{GO_BOOTSTRAP}.linux-{}", go_arch());
        println!("fetching {module}");
        let empty = cache_dir().join("go-bootstrap");
        fs::create_dir_all(&empty)?;
        let told = capture(
            Command::new("go")
                .current_dir(&empty)
                .args(["mod", "download", "-json", &module])
                .env("GOFLAGS", "-modcacherw"),
        )?;
        let told: serde_json::Value = serde_json::from_str(&told).context("what `go mod download` says")?;
        let dir = PathBuf::from(told["Dir"].as_str().context("`go mod download` names no directory")?);
        // A module carries no modes.
        run(Command::new("chmod").args(["-R", "+x"]).arg(dir.join("bin")).arg(dir.join("pkg/tool")))?;
        let link = cache_dir().join("go");
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(&dir, &link)?;
    }
    let old = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(bin).chain(env::split_paths(&old)))?;
    // SAFETY: xtask has one thread.
    unsafe { env::set_var("PATH", path) };
    if go_minor().is_none_or(|m| m < 21) {
        bail!("no Go of version 1.21 or newer: install one from https://go.dev/dl and put it in PATH");
    }
    Ok(())
}

fn go_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}
