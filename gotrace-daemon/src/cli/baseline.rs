//! What `exec` and `leaks` hold findings against: suppressions, and the baseline of an earlier run.
//!
//! Input: the files that the user names. Output: an [`Acceptance`], or a new baseline. Errors name the file.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{CliError, args::BaselineArgs, output::create_shared, say, trace::suppressions};
use gotrace_inspect::leak::{Acceptance, Baseline, Identity};

/// Largest baseline that is read.
const MAX_BYTES: u64 = 64 << 20;

impl BaselineArgs {
    /// Reads the files. `suppress`: that of suppressions.
    ///
    /// # Errors
    /// When one cannot be read, or is not what it should be.
    pub fn acceptance(&self, suppress: Option<&Path>) -> Result<Acceptance, CliError> {
        Ok(Acceptance {
            suppressions: suppressions(suppress)?,
            baseline: self.baseline.as_deref().map(read).transpose()?,
        })
    }

    /// Writes the new baseline, if one is wanted; whether it is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, findings: impl IntoIterator<Item = Identity>) -> Result<bool, CliError> {
        let Some(path) = &self.write_baseline else { return Ok(false) };
        let baseline = Baseline::new(findings);
        create_shared(path)
            .and_then(|mut file| file.write_all(baseline.text().as_bytes()))
            .map_err(|e| CliError::failure(format!("cannot write baseline {}: {e}", path.display())))?;
        let s = if baseline.len() == 1 { "" } else { "s" };
        say(&format!("gotrace: wrote {} finding{s} to baseline {}\n", baseline.len(), path.display()));
        Ok(true)
    }
}

fn read(path: &Path) -> Result<Baseline, CliError> {
    let failed = |what: String| {
        CliError::usage(format!("cannot read baseline {}: {what}", path.display()))
            .help("create one with --write-baseline FILE")
    };
    let size = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(failed(format!("file is larger than {MAX_BYTES} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    Baseline::parse(&text).map_err(failed)
}

/// A path that means the same in another directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map_err(|e| CliError::failure(format!("cannot resolve the path {}: {e}", path.display())))
}
