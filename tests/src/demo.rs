//! The Go program of `gotrace demo`, kept compiled (`gotrace-daemon/demo`): what needs a Go program but no Go toolchain
//! runs on it. Ended by its pid when dropped.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Its bytes, for this machine's architecture.
///
/// # Errors
/// On another architecture than amd64 and arm64, or when it cannot be read.
pub fn demo_program() -> Result<Vec<u8>> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("the demo's Go program is kept for amd64 and arm64, and this machine is {other}"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../gotrace-daemon/demo/demo.{arch}.gz"));
    let packed = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut program = Vec::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut program)
        .with_context(|| format!("unpacking {}", path.display()))?;
    Ok(program)
}

/// Writes it, executable, into a directory.
///
/// # Errors
/// As [`demo_program`], or when it cannot be written.
pub fn unpack_demo(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("demo");
    fs::write(&path, demo_program()?).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// It, running.
#[derive(Debug)]
pub struct Demo {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Demo {
    /// Starts it for so long, `5s`.
    ///
    /// # Errors
    /// When it cannot be unpacked or started.
    pub fn start(for_: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let child = Command::new(unpack_demo(directory.path())?)
            .args(["-for", for_])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the demo's program")?;
        Ok(Self { child, _directory: directory })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Both fail only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
