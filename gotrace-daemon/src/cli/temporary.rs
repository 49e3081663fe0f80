//! A directory of one run of gotrace: new, of its user alone, in `$TMPDIR` (else `/tmp`), and removed with what is in it
//! when it is dropped.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::CliError;

/// It.
pub(super) struct Directory(PathBuf);

impl Directory {
    /// Makes one.
    ///
    /// # Errors
    /// When it cannot be made there.
    pub fn make() -> Result<Self, CliError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let path = std::env::temp_dir().join(format!("gotrace-{}-{now}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| {
            CliError::failure(format!("cannot create temporary directory {}: {e}", path.display()))
                .help("set TMPDIR to another directory")
        })?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "cannot remove temporary directory");
        }
    }
}
