//! `cargo xtask ebpf build|check`: the kernel side's objects.
//!
//! They are committed, so that nobody needs their toolchain to build gotrace. `build` makes them anew
//! and writes down what made them (`gotrace-daemon/ebpf/BUILD.json`). `check` proves that they belong to
//! the sources: the same sources, and, with the same compiler, the same bytes.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::util::{apt_install, cache_dir, capture, root, run};

const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
const DEBIAN_PACKAGES: [&str; 6] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "rust-web-src", "llvm-22-dev", "clang-22"];

/// What to do with the objects.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Action {
    /// Build them and write them to gotrace-daemon/ebpf/
    Build,
    /// Build them and compare them with the committed ones
    Check,
}

/// What made the committed objects.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    rustc: String,
    bpf_linker: String,
    llvm: String,
    sources_sha256: String,
    objects_sha256: BTreeMap<String, String>,
}

/// Runs `cargo xtask ebpf`.
pub fn main(action: Action) -> Result<()> {
    match action {
        Action::Build => build(),
        Action::Check => check(),
    }
}

/// Installs what is missing of the toolchain (Debian 12's packages, bpf-linker from crates.io).
pub fn setup() -> Result<()> {
    if toolchain().is_err() {
        apt_install(&DEBIAN_PACKAGES)?;
    }
    if !bpf_linker().is_file() {
        let flags = format!("-L {LLVM}/lib");
        run(Command::new("cargo")
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"])
            .args(["--features", "llvm-22", "--root"])
            .arg(tools())
            .env("PATH", prefixed_path(&[Path::new(LLVM).join("bin")])?)
            .env("RUSTFLAGS", flags))?;
    }
    Ok(())
}

fn tools() -> PathBuf {
    cache_dir().join("ebpf")
}

fn bpf_linker() -> PathBuf {
    tools().join("bin/bpf-linker")
}

/// The compiler: Debian's, which brings a `core` for the target, or a nightly that builds its own.
enum Toolchain {
    Debian,
    Nightly,
}

fn toolchain() -> Result<Toolchain> {
    if Path::new("/usr/bin/cargo").is_file() && Path::new("/usr/lib/rustlib/bpfel-unknown-none").is_dir() {
        return Ok(Toolchain::Debian);
    }
    let components =
        capture(Command::new("rustup").args(["component", "list", "--toolchain", "nightly", "--installed"]));
    if components.is_ok_and(|c| c.lines().any(|l| l.starts_with("rust-src"))) {
        return Ok(Toolchain::Nightly);
    }
    bail!(
        "no compiler for the eBPF target: `cargo xtask setup` installs Debian's ({}), or use \
         `rustup toolchain install nightly --component rust-src`",
        DEBIAN_PACKAGES.join(" ")
    )
}

impl Toolchain {
    fn cargo(&self) -> Command {
        match self {
            Self::Debian => {
                let mut cargo = Command::new("/usr/bin/cargo");
                // Unlocks the unstable features of these two crates only.
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "aya_ebpf,gotrace");
                cargo
            }
            Self::Nightly => {
                let mut cargo = Command::new("cargo");
                cargo.args(["+nightly", "-Zbuild-std=core"]);
                cargo
            }
        }
    }

    fn version(&self) -> Result<String> {
        let mut rustc = match self {
            Self::Debian => Command::new("/usr/bin/rustc"),
            Self::Nightly => {
                let mut rustc = Command::new("rustc");
                rustc.arg("+nightly");
                rustc
            }
        };
        Ok(capture(rustc.arg("--version"))?.trim().into())
    }
}

fn prefixed_path(first: &[PathBuf]) -> Result<std::ffi::OsString> {
    let old = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(first.iter().cloned().chain(env::split_paths(&old)))?)
}

/// Builds the objects for all architectures; returns their bytes.
fn compile() -> Result<(Record, BTreeMap<String, Vec<u8>>)> {
    setup()?;
    let toolchain = toolchain()?;
    let workspace = root();
    let target = workspace.join("target/ebpf");
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".cargo"),
        PathBuf::from,
    );
    let mut objects = BTreeMap::new();
    for architecture in ARCHITECTURES {
        let flags = [
            "-Clinker=bpf-linker".into(),
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            format!("--cfg=bpf_target_arch=\"{architecture}\""),
            format!("--remap-path-prefix={}=/gotrace", workspace.display()),
            format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        ]
        .join("\x1f");
        run(toolchain
            .cargo()
            .current_dir(workspace.join("gotrace-ebpf"))
            .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "--target-dir"])
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("PATH", prefixed_path(&[PathBuf::from(LLVM).join("bin"), tools().join("bin")])?))
        .with_context(|| format!("the eBPF object for {architecture} does not build"))?;
        let linked = target.join("bpfel-unknown-none/release/gotrace");
        let stripped = target.join(format!("gotrace.{architecture}.bpf.o"));
        run(Command::new(Path::new(LLVM).join("bin/llvm-strip"))
            .arg("-g")
            // Which line an instruction comes from: more than half of the object, and aya takes several times as much of
            // memory for it. The kernel shows it where it refuses a program, without the line's text.
            .args(["--remove-section", ".BTF.ext", "--remove-section", ".rel.BTF.ext"])
            .arg("-o")
            .arg(&stripped)
            .arg(&linked))?;
        name_without_hashes(&stripped)?;
        objects.insert(name_of(architecture), fs::read(&stripped)?);
    }
    let record = Record {
        rustc: toolchain.version()?,
        bpf_linker: capture(Command::new(bpf_linker()).arg("--version"))?.trim().into(),
        llvm: capture(Command::new(Path::new(LLVM).join("bin/llvm-config")).arg("--version"))?.trim().into(),
        sources_sha256: sources_sha256()?,
        objects_sha256: objects.iter().map(|(name, bytes)| (name.clone(), sha256(bytes))).collect(),
    };
    Ok((record, objects))
}

/// Takes out of an object's symbols the hashes of the crates that they belong to: those depend on the
/// directory that the workspace lies in.
fn name_without_hashes(object: &Path) -> Result<()> {
    let symbols =
        capture(Command::new(Path::new(LLVM).join("bin/llvm-nm")).arg("--just-symbol-name").arg(object))?;
    let mut objcopy = Command::new(Path::new(LLVM).join("bin/llvm-objcopy"));
    for symbol in symbols.lines().filter(|s| s.starts_with("_R")) {
        objcopy.arg(format!("--redefine-sym={symbol}={}", without_hashes(symbol)));
    }
    run(objcopy.arg(object))
}

/// A mangled name (Rust RFC 2603) without its crates' disambiguators: `Cs`, base 62, `_`.
fn without_hashes(symbol: &str) -> String {
    let mut parts = symbol.split("Cs");
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once('_').filter(|(hash, _)| hash.chars().all(|c| c.is_ascii_alphanumeric()));
        name += "C";
        name += rest.map_or(part, |(_, rest)| rest);
    }
    name
}

fn name_of(architecture: &str) -> String {
    format!("gotrace.{architecture}.bpf.o")
}

fn directory() -> PathBuf {
    root().join("gotrace-daemon/ebpf")
}

fn build() -> Result<()> {
    let (record, objects) = compile()?;
    for (name, bytes) in &objects {
        fs::write(directory().join(name), bytes)?;
        println!("{name}: {} bytes", bytes.len());
    }
    fs::write(directory().join("BUILD.json"), serde_json::to_string_pretty(&record)? + "\n")?;
    Ok(())
}

fn check() -> Result<()> {
    let path = directory().join("BUILD.json");
    let committed: Record = serde_json::from_str(
        &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?,
    )?;
    for (name, digest) in &committed.objects_sha256 {
        if sha256(&fs::read(directory().join(name))?) != *digest {
            bail!("{name} is not the object that BUILD.json speaks of: run `cargo xtask ebpf build`");
        }
    }
    if sources_sha256()? != committed.sources_sha256 {
        bail!("the eBPF sources have changed since the objects were built: run `cargo xtask ebpf build`");
    }
    let (built, _) = compile()?;
    let same_tools = (&built.rustc, &built.bpf_linker, &built.llvm)
        == (&committed.rustc, &committed.bpf_linker, &committed.llvm);
    if built.objects_sha256 == committed.objects_sha256 {
        println!("the committed eBPF objects are what the sources give ({})", built.rustc);
    } else if same_tools {
        bail!("the committed eBPF objects are not what the sources give: run `cargo xtask ebpf build`");
    } else {
        println!(
            "NOT COMPARED byte by byte: the committed eBPF objects were built by {} (LLVM {}), here is {} (LLVM {}); \
             the sources are the same and they build",
            committed.rustc, committed.llvm, built.rustc, built.llvm
        );
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One hash over everything that the objects are made of.
fn sources_sha256() -> Result<String> {
    let root = root();
    let mut files = Vec::new();
    for place in
        ["gotrace-ebpf/src", "gotrace-ebpf/Cargo.toml", "gotrace-ebpf/Cargo.lock", "gotrace-common/src"]
    {
        collect(&root.join(place), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(&root)?.to_string_lossy().into_owned();
        let bytes = fs::read(&file)?;
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(bytes.len().to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn symbols_lose_their_hashes() {
        let name = super::without_hashes("_RNvNtCs1UeUo4knYD4_7gotrace11diagnostics11say_dropped");
        assert_eq!(name, "_RNvNtC7gotrace11diagnostics11say_dropped");
        assert_eq!(super::without_hashes("park"), "park");
    }
}
