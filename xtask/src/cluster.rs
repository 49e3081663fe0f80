//! What the tests run real clusters and containers with: runc, etcd, kube-apiserver and helm.
//!
//! Leaves `cluster/{etcd,kube-apiserver,helm}` in the cache directory. etcd comes out of Debian's newest
//! package; no package registry has a built kube-apiserver or helm, so both are built from the
//! Go module proxy, kube-apiserver through a module of our own, because `go install` refuses a module that
//! replaces others. That takes some minutes, once.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    kernels::Apt,
    util::{apt_install, cache_dir, capture, run},
};

/// Kubernetes, as `k8s.io/kubernetes` and, with 0 for 1, its staging modules are numbered.
const KUBERNETES_MINOR: &str = "36.3";
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.22.0";
/// The Go that builds them.
const GO: &str = "go1.26.6";

/// What containers and the chart are tested with.
pub fn setup() -> Result<()> {
    apt_install(&["runc", "util-linux"])?;
    let place = place()?;
    let helm = place.join("helm");
    if !helm.exists() {
        println!("building helm");
        let bin = place.join("bin");
        run(go(&place).args(["install", "-trimpath", "-ldflags=-s -w", HELM]).env("GOBIN", &bin))?;
        fs::rename(bin.join("helm"), &helm)?;
        fs::remove_dir_all(&bin)?;
    }
    forget_build_cache(&place)
}

fn place() -> Result<PathBuf> {
    let place = cache_dir().join("cluster");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    Ok(place)
}

/// What a cluster is made of, which takes some minutes to build, once: only for the tests that have one.
pub fn setup_server() -> Result<()> {
    let place = place()?;
    let etcd = place.join("etcd");
    if !etcd.exists() {
        println!("fetching etcd");
        // The newest that Debian has: the API server wants a newer one than the stable release's.
        let tree = Apt::open()?.unpacked("etcd-server")?;
        fs::rename(tree.path().join("usr/bin/etcd"), &etcd)
            .context("etcd is not in the package etcd-server")?;
    }
    let server = place.join("kube-apiserver");
    if !server.exists() {
        build_server(&place, &server)?;
    }
    forget_build_cache(&place)
}

fn forget_build_cache(place: &Path) -> Result<()> {
    let cache = build_cache(place);
    if cache.exists() {
        // Gigabytes that are used once.
        fs::remove_dir_all(&cache)?;
    }
    Ok(())
}

fn build_cache(place: &Path) -> PathBuf {
    place.join("go-build")
}

fn go(place: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(place)
        .env("GOTOOLCHAIN", GO)
        .env("GOCACHE", build_cache(place))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false -modcacherw");
    go
}

fn build_server(place: &Path, wanted: &Path) -> Result<()> {
    let version = format!("v1.{KUBERNETES_MINOR}");
    println!("building kube-apiserver {version}: this takes some minutes, once");
    let module = place.join("module");
    if module.exists() {
        fs::remove_dir_all(&module)?;
    }
    fs::create_dir_all(&module)?;
    fs::write(module.join("go.mod"), "module none\n")?;
    let told = capture(go(place).current_dir(&module).args([
        "mod",
        "download",
        "-json",
        &format!("k8s.io/kubernetes@{version}"),
    ]))?;
    let told: serde_json::Value = serde_json::from_str(&told).context("what `go mod download` says")?;
    let its = told["GoMod"].as_str().context("`go mod download` names no go.mod")?;
    let its = fs::read_to_string(its).with_context(|| format!("reading {its}"))?;
    fs::write(module.join("go.mod"), own_module(&its, &version)?)?;
    run(go(place).current_dir(&module).args(["mod", "tidy"]))?;
    let names = "k8s.io/component-base/version";
    let flags = format!("-ldflags=-s -w -X {names}.gitVersion={version} -X {names}.gitTreeState=clean");
    let fresh = module.join("kube-apiserver");
    run(go(place)
        .current_dir(&module)
        .args(["build", "-trimpath", &flags, "-o"])
        .arg(&fresh)
        .arg("k8s.io/kubernetes/cmd/kube-apiserver"))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    fs::rename(&fresh, wanted)?;
    fs::remove_dir_all(&module)?;
    Ok(())
}

/// A module that needs Kubernetes and has its staging modules from where they are published.
fn own_module(its: &str, version: &str) -> Result<String> {
    let staging = format!("v0.{KUBERNETES_MINOR}");
    let mut text = String::from("module apiserver\n\n");
    for line in its.lines().filter(|l| l.starts_with("go ") || l.starts_with("godebug ")) {
        text += &format!("{line}\n");
    }
    text += &format!("require k8s.io/kubernetes {version}\nreplace (\n");
    let replaced: Vec<&str> = its
        .lines()
        .filter_map(|l| l.trim().split_once(" => ./staging/").map(|(name, _)| name.trim()))
        .collect();
    ensure!(replaced.len() > 10, "Kubernetes {version} is not laid out as expected");
    for name in replaced {
        let name = name.trim_start_matches("replace ").trim();
        text += &format!("\t{name} => {name} {staging}\n");
    }
    text += ")\ntool k8s.io/kubernetes/cmd/kube-apiserver\n";
    Ok(text)
}
