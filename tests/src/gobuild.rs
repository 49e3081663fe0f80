//! Builds the Go programs under `tests/go` with every Go version and in every build mode of the
//! matrix, once: results are kept in `target/fixtures`, named by what went into them.
//!
//! Input: the sources, and the Go toolchains that the machine's `go` fetches itself (`GOTOOLCHAIN`).
//! Refuses, with the command that helps, where `go` is missing or older than 1.21.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// The Go versions of the matrix, oldest first: the newest patch release of each minor one.
pub const VERSIONS: [&str; 9] =
    ["1.19.13", "1.20.14", "1.21.13", "1.22.12", "1.23.12", "1.24.11", "1.25.5", "1.26.6", "1.27.3"];

/// The versions on which every build mode is tried: the oldest, one in the middle, the newest.
pub const CORNER_VERSIONS: [&str; 3] = ["1.19.13", "1.24.11", "1.27.3"];

/// The oldest minor version of Go for which a program's `go.mod` is meant, where an `old.mod` lies beside it.
const NEW_MODULES: u32 = 26;
/// The Go program whose profile [`Mode::Pgo`] uses.
const PROFILED: &str = "account";

/// How a Go program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// `go build`, without cgo.
    Plain,
    /// `-ldflags='-s -w'`: neither symbol table nor DWARF.
    Stripped,
    /// `-buildmode=pie`.
    Pie,
    /// `-buildmode=pie -ldflags='-s -w'`.
    PieStripped,
    /// With cgo, linked dynamically against the C library by the C linker.
    Cgo,
    /// With cgo, linked statically by the C linker.
    Static,
    /// `-race`.
    Race,
    /// With a profile that is hot in the scheduler (Go 1.21 and later).
    Pgo,
    /// `-trimpath`.
    Trimpath,
    /// `-gcflags=all=-l`: nothing inlined.
    NoInline,
    /// `-cover -coverpkg=std -ldflags='-s -w'`: counters in the standard library, and nothing that tells them apart. Not
    /// one of [`Self::ALL`].
    Cover,
    /// `-tags=big`: a file of 60 MB, of the one program that has the tag (`harm`). Not one of [`Self::ALL`].
    Big,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Plain,
        Self::Stripped,
        Self::Pie,
        Self::PieStripped,
        Self::Cgo,
        Self::Static,
        Self::Race,
        Self::Pgo,
        Self::Trimpath,
        Self::NoInline,
    ];

    /// A short name for file names and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Stripped => "stripped",
            Self::Pie => "pie",
            Self::PieStripped => "pie-stripped",
            Self::Cgo => "cgo",
            Self::Static => "static",
            Self::Race => "race",
            Self::Pgo => "pgo",
            Self::Trimpath => "trimpath",
            Self::NoInline => "noinline",
            Self::Cover => "cover",
            Self::Big => "big",
        }
    }

    /// Whether this machine can build `version` for `arch` in this mode: PGO came with Go 1.21, and
    /// the modes that need a C compiler are built for the machine's own architecture only.
    #[must_use]
    pub fn exists(self, version: &str, arch: Arch) -> bool {
        match self {
            Self::Pgo => minor(version) >= 21,
            Self::Cgo | Self::Static | Self::Race => arch == Arch::HOST,
            _ => true,
        }
    }

    fn cgo(self) -> bool {
        matches!(self, Self::Cgo | Self::Static | Self::Race)
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Pgo => &[],
            Self::Stripped => &["-ldflags=-s -w"],
            Self::Pie => &["-buildmode=pie"],
            Self::PieStripped => &["-buildmode=pie", "-ldflags=-s -w"],
            Self::Cgo => &["-ldflags=-linkmode=external"],
            Self::Static => &["-tags=netgo,osusergo", "-ldflags=-linkmode=external -extldflags=-static"],
            Self::Race => &["-race"],
            Self::Trimpath => &["-trimpath"],
            Self::NoInline => &["-gcflags=all=-l"],
            Self::Cover => &["-cover", "-coverpkg=std", "-ldflags=-s -w"],
            Self::Big => &["-tags=big"],
        }
    }
}

/// An architecture that gotrace knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// The machine's own.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// Go's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// The minor version: 24 of `1.24.11`; 0 where there is none.
#[must_use]
pub fn minor(version: &str) -> u32 {
    version.trim_start_matches("go").split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0)
}

/// The workspace's top directory.
#[must_use]
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Cargo's target directory.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Where `cargo xtask setup` puts what it fetches: `$GOTRACE_CACHE`, else `~/.cache/gotrace`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os("GOTRACE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache/gotrace"),
        PathBuf::from,
    )
}

/// Where that version's toolchain lies (`GOROOT`).
///
/// # Errors
/// Where `go` is missing or cannot fetch it.
pub fn toolchain(version: &str) -> Result<PathBuf> {
    let mut go = Command::new("go");
    let done = go.args(["env", "GOROOT"]).env("GOTOOLCHAIN", format!("go{version}")).output();
    let done = done.context("running `go env`")?;
    ensure!(done.status.success(), "`go env`: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).trim().into())
}

/// The binary of the Go program `tests/go/<program>`, built if it was not there yet.
///
/// # Errors
/// Where `go` is missing or the program does not compile, with the compiler's words; where the mode
/// does not exist for this version or architecture.
pub fn build(program: &str, version: &str, mode: Mode, arch: Arch) -> Result<PathBuf> {
    build_from(&workspace().join("tests/go").join(program), program, version, mode, arch)
}

/// As [`build`], of sources that lie elsewhere.
///
/// # Errors
/// As [`build`].
pub fn build_from(source: &Path, program: &str, version: &str, mode: Mode, arch: Arch) -> Result<PathBuf> {
    ensure!(mode.exists(version, arch), "Go {version} has no mode {} for {}", mode.name(), arch.name());
    let hash = source_hash(source).with_context(|| format!("reading {}", source.display()))?;
    let dir = target_dir().join("fixtures").join(program);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let out = dir.join(format!("go{version}-{}-{}-{hash}", mode.name(), arch.name()));
    if out.exists() {
        return Ok(out);
    }
    // Two test binaries may want the same program at once.
    let lock = Lock::take(&beside(&out, "lock"))?;
    if !out.exists() {
        let fresh = beside(&out, "new");
        let profile = match mode {
            Mode::Pgo => Some(profile(version)?),
            _ => None,
        };
        go_build(source, version, mode, arch, profile.as_deref(), &fresh)?;
        fs::rename(&fresh, &out).with_context(|| format!("moving the built {}", out.display()))?;
    }
    drop(lock);
    Ok(out)
}

/// A file's name with something behind it. What stands behind the last dot of a version is no extension: builds of
/// all modes shared one lock, and one that waited for another waited for itself.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn go_build(
    source: &Path,
    version: &str,
    mode: Mode,
    arch: Arch,
    profile: Option<&Path>,
    out: &Path,
) -> Result<()> {
    let mut go = Command::new("go");
    go.current_dir(source)
        .args(["build", "-buildvcs=false", "-o"])
        .arg(out)
        .args(mode.flags())
        .env("GOTOOLCHAIN", format!("go{version}"))
        .env("GOARCH", arch.name())
        .env("GOOS", "linux")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", if mode.cgo() { "1" } else { "0" })
        .env_remove("GOFLAGS");
    if minor(version) < NEW_MODULES && source.join("old.mod").exists() {
        go.arg("-modfile=old.mod");
    }
    if minor(version) >= 21 {
        match profile {
            Some(p) => go.arg(format!("-pgo={}", p.display())),
            None => go.arg("-pgo=off"),
        };
    }
    let done = go.arg(".").output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            anyhow::anyhow!("`go` is not in PATH: `cargo xtask setup` installs what the tests need")
        }
        _ => anyhow::anyhow!("starting `go build`: {e}"),
    })?;
    if !done.status.success() {
        bail!(
            "`go build` of {} with Go {version}, mode {}, {} failed ({}):\n{}\
             the machine's go must be 1.21 or newer, so that it can fetch other versions; \
             `cargo xtask setup` sees to it",
            source.display(),
            mode.name(),
            arch.name(),
            done.status,
            String::from_utf8_lossy(&done.stderr),
        );
    }
    Ok(())
}

/// A CPU profile, with that version, of the program that can run hot in the scheduler. It serves every
/// program: what is hot in it are the runtime's functions.
fn profile(version: &str) -> Result<PathBuf> {
    let source = workspace().join("tests/go").join(PROFILED);
    let hash = source_hash(&source).with_context(|| format!("reading {}", source.display()))?;
    let plain = build(PROFILED, version, Mode::Plain, Arch::HOST)?;
    let out = target_dir().join("fixtures").join(PROFILED).join(format!("go{version}-{hash}.pgo"));
    // Builds of several programs may want it at once.
    let _lock = Lock::take(&beside(&out, "lock"))?;
    if out.exists() {
        return Ok(out);
    }
    let fresh = beside(&out, "new");
    let done = Command::new(&plain)
        .args(["-now", "-scenario", "pingpong,churn,births", "-rate", "0", "-n", "300000", "-cpuprofile"])
        .arg(&fresh)
        .output()
        .with_context(|| format!("running {} for a profile", plain.display()))?;
    ensure!(
        done.status.success(),
        "{} ended with {} while it was profiled:\n{}",
        plain.display(),
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    fs::rename(&fresh, &out).with_context(|| format!("moving the profile {}", out.display()))?;
    Ok(out)
}

/// Names and contents of the sources, hashed to 16 hex digits.
fn source_hash(dir: &Path) -> io::Result<String> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "go" || e == "mod" || e == "sum") {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        hash.update(path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default());
        hash.update([0]);
        hash.update(fs::read(&path)?);
        hash.update([0]);
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

/// A lock between processes, held until dropped. Its file stays.
struct Lock {
    _file: fs::File,
}

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("making {}", path.display()))?;
        // SAFETY: flock takes no pointer, and the descriptor is open for as long as `file` lives.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("locking {}", path.display()));
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_says_where_it_exists() {
        assert!(!Mode::Pgo.exists("1.19.13", Arch::HOST));
        assert!(Mode::Pgo.exists("1.21.13", Arch::HOST));
        let other = if Arch::HOST == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
        assert!(!Mode::Race.exists("1.27.3", other));
        assert!(Mode::PieStripped.exists("1.19.13", other));
    }

    #[test]
    fn the_hash_depends_on_names_and_contents() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let hash = || source_hash(dir.path()).expect("readable");
        fs::write(dir.path().join("a.go"), "x").expect("writable");
        let first = hash();
        fs::write(dir.path().join("note.txt"), "y").expect("writable");
        assert_eq!(first, hash(), "only what is compiled counts");
        fs::write(dir.path().join("a.go"), "y").expect("writable");
        let second = hash();
        assert_ne!(first, second);
        fs::rename(dir.path().join("a.go"), dir.path().join("b.go")).expect("writable");
        assert_ne!(second, hash());
    }

    #[test]
    fn minor_versions() {
        assert_eq!(minor("1.24.11"), 24);
        assert_eq!(minor("go1.19.13"), 19);
        assert_eq!(minor("devel"), 0);
    }
}
