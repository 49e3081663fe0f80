//! A root file system with nothing in it but what a test puts there, and `/proc`, `/sys` and `/dev` of this machine: a
//! machine on which nothing is installed.
//!
//! A command runs in it by chroot, in a mount namespace of its own and in this machine's PID namespace, so that it sees
//! programs outside. The mounts end with the namespace. Needs root and util-linux.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

/// Mounts, and runs a command by its path within.
const ENTER: &str = "mount --make-rprivate / && for d in proc sys dev; do mount --rbind /$d \"$0/$d\" || exit 1; done \
     && exec chroot \"$0\" \"$@\"";

/// Such a file system; removed when dropped.
#[derive(Debug)]
pub struct BareRoot(tempfile::TempDir);

impl BareRoot {
    /// One in which there is nothing yet.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory")?;
        for name in ["proc", "sys", "dev", "tmp"] {
            fs::create_dir(directory.path().join(name)).with_context(|| format!("making /{name}"))?;
        }
        fs::set_permissions(directory.path().join("tmp"), Permissions::from_mode(0o1777))?;
        Ok(Self(directory))
    }

    /// Where it is, seen from outside.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A command that runs `program`, a path within it, without input and with an environment of its own.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["--mount", "sh", "-c", ENTER]).arg(self.path()).arg(program).stdin(Stdio::null());
        command
    }
}
