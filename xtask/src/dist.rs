//! `cargo xtask dist`: what users download: a statically linked gotrace, its man pages and shell
//! completions, licences and documents, as a directory and as an archive that comes out the same, bit
//! for bit, from the same sources, compiler and C library; the same as a Debian package and a container
//! image, and the Helm chart ([`packages`]); and what it is made of ([`sbom`]).
//!
//! Leaves `target/dist/gotrace-<version>-<arch>/`, the same as `.tar.gz`, the `.deb`, the image, the chart's `.tgz`, the
//! bill of materials (`.cdx.json`), and `SHA256SUMS`. Builds for the machine's own architecture.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;

use crate::{
    licences, packages, sbom,
    util::{capture, root, run},
};

/// What goes along: where it lies in the workspace, and where in the archive.
const DOCUMENTS: [(&str, &str); 23] = [
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("deploy/gotrace.example.yaml", "gotrace.example.yaml"),
    ("gotrace-daemon/docs/README.md", "docs/README.md"),
    ("gotrace-daemon/docs/alerts.md", "docs/alerts.md"),
    ("gotrace-daemon/docs/capacity.md", "docs/capacity.md"),
    ("gotrace-daemon/docs/comparison.md", "docs/comparison.md"),
    ("gotrace-daemon/docs/daemon.md", "docs/daemon.md"),
    ("gotrace-daemon/docs/dump.md", "docs/dump.md"),
    ("gotrace-daemon/docs/formats.md", "docs/formats.md"),
    ("gotrace-daemon/docs/guide.md", "docs/guide.md"),
    ("gotrace-daemon/docs/guide/growing.md", "docs/guide/growing.md"),
    ("gotrace-daemon/docs/guide/hung.md", "docs/guide/hung.md"),
    ("gotrace-daemon/docs/guide/leak.md", "docs/guide/leak.md"),
    ("gotrace-daemon/docs/guide/slow.md", "docs/guide/slow.md"),
    ("gotrace-daemon/docs/guide/stuck.md", "docs/guide/stuck.md"),
    ("gotrace-daemon/docs/guide/throttled.md", "docs/guide/throttled.md"),
    ("gotrace-daemon/docs/leaks.md", "docs/leaks.md"),
    ("gotrace-daemon/docs/safety.md", "docs/safety.md"),
    ("gotrace-daemon/docs/telemetry.md", "docs/telemetry.md"),
    ("gotrace-daemon/docs/troubleshooting.md", "docs/troubleshooting.md"),
];

/// What to make packages of.
#[derive(Debug, Args)]
pub struct Options {
    /// Package this binary instead of building one for release
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where they go [default: target/dist]
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Runs `cargo xtask dist`.
pub fn main(options: &Options) -> Result<()> {
    let arch = env::consts::ARCH;
    let build = root().join("target");
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => compile(&build, &format!("{arch}-unknown-linux-gnu"))?,
    };
    refuse_dynamic(&binary)?;

    let name = format!("gotrace-{}-{arch}", env!("CARGO_PKG_VERSION"));
    let dist = options.output.clone().unwrap_or_else(|| build.join("dist"));
    let directory = dist.join(&name);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory.join("completions"))?;
    fs::create_dir_all(directory.join("docs/guide"))?;
    copy(&binary, &directory.join("gotrace"))?;
    for (from, to) in DOCUMENTS {
        copy(&root().join(from), &directory.join(to))?;
    }
    fs::write(directory.join("THIRD-PARTY-LICENSES"), licences::notices()?)?;
    run(Command::new(&binary).arg("man").arg(directory.join("man")))?;
    for (shell, file) in [("bash", "gotrace.bash"), ("zsh", "_gotrace"), ("fish", "gotrace.fish")] {
        let script = capture(Command::new(&binary).args(["completions", shell]))?;
        fs::write(directory.join("completions").join(file), script)?;
    }

    let archive = || -> Result<PathBuf> {
        let archive = dist.join(format!("{name}.tar.gz"));
        let bytes = packages::compress(&packages::archive(&dist, &[&name], &packages::time()?)?)?;
        fs::write(&archive, &bytes).with_context(|| format!("writing {}", archive.display()))?;
        Ok(archive)
    };
    // Compressing takes the time.
    let (archive, deb, image) = thread::scope(|scope| {
        let archive = scope.spawn(archive);
        let deb = scope.spawn(|| packages::deb(&binary, &directory, &dist));
        let image = packages::image(&binary, &directory, &dist);
        (archive.join(), deb.join(), image)
    });
    let panicked = |_| anyhow!("a thread panicked");
    let sbom = dist.join(format!("{name}.cdx.json"));
    fs::write(&sbom, sbom::document(&packages::sha256(&fs::read(&binary)?))?)
        .with_context(|| format!("writing {}", sbom.display()))?;
    let made = [archive.map_err(panicked)??, deb.map_err(panicked)??, image?, packages::chart(&dist)?, sbom];
    let mut sums = String::new();
    for file in &made {
        let bytes = fs::read(file)?;
        let name = file.file_name().and_then(|n| n.to_str()).context("a file's name")?;
        let sum = packages::sha256(&bytes);
        println!("{} ({} KiB)\nSHA-256 {sum}", file.display(), bytes.len() / 1024);
        sums += &format!("{sum}  {name}\n");
    }
    fs::write(dist.join("SHA256SUMS"), sums)?;
    Ok(())
}

/// Builds the binary; it names no directory of the machine that built it.
fn compile(build: &Path, target: &str) -> Result<PathBuf> {
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        format!("--remap-path-prefix={}=/gotrace", root().display()),
    ]
    .join("\x1f");
    run(Command::new("cargo")
        .current_dir(root())
        .args(["build", "--release", "--locked", "--package", "gotrace-daemon", "--target", target])
        .arg("--target-dir")
        .arg(build)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // Function names stay, for the backtrace of a bug report.
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env_remove("RUSTFLAGS"))?;
    Ok(build.join(target).join("release/gotrace"))
}

/// A binary that needs a loader or libraries would not start in every container.
fn refuse_dynamic(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| format!("reading {}", binary.display()))?;
    let number = |at: usize, length: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        field.iter().rev().try_fold(0usize, |n, b| n.checked_mul(256)?.checked_add(usize::from(*b)))
    };
    // ELF64, little endian: e_phoff, e_phentsize, e_phnum; p_type 3 is PT_INTERP.
    let interpreters = || {
        let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|i| number(offset + i * size, 4))
            .try_fold(0, |n, kind| Some(n + usize::from(kind? == 3)))
    };
    match interpreters() {
        Some(0) => Ok(()),
        Some(_) => bail!("{} is linked dynamically", binary.display()),
        None => bail!("{} is no ELF file", binary.display()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
