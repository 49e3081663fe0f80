//! Suppressions: findings that are known and may stay, each with a reason. In the daemon's configuration under
//! `suppressions`, and with the same form in a file of their own (`--suppress FILE`), which can be committed.
//!
//! Input: YAML. Output: [`Suppressions`]. An entry without a reason, an unknown verdict and a pattern that is none are
//! errors that name file, line and column.

use std::{path::Path, str::FromStr, sync::Arc};

use serde::Deserialize;

use super::{Error, PatternText, parse, read, values::text};
use gotrace_inspect::leak::{Suppression, Suppressions, Verdict};

/// Findings that are known and may stay.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SuppressionConfig {
    /// The function that the goroutines run, that created them, or in which they wait.
    function: PatternText,
    /// Only these verdicts; all where it is left out.
    #[serde(default)]
    verdict: Vec<VerdictName>,
    /// Why they may stay.
    #[serde(deserialize_with = "text")]
    reason: Reason,
}

/// A verdict by its name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(transparent)]
struct VerdictName(#[serde(deserialize_with = "text")] Verdict);

/// Text that says something.
#[derive(Clone, Debug, PartialEq)]
struct Reason(Arc<str>);

impl FromStr for Reason {
    type Err = &'static str;

    fn from_str(reason: &str) -> Result<Self, Self::Err> {
        match reason.trim() {
            "" => Err("reason must say why the finding is accepted"),
            reason => Ok(Self(reason.into())),
        }
    }
}

/// A file of suppressions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    suppressions: Vec<SuppressionConfig>,
}

/// Those of a configuration.
pub(super) fn of(entries: &[SuppressionConfig]) -> Suppressions {
    let entry = |SuppressionConfig { function, verdict, reason }: &SuppressionConfig| Suppression {
        function: function.0.clone(),
        verdicts: verdict.iter().map(|v| v.0).collect(),
        reason: Arc::clone(&reason.0),
    };
    Suppressions(entries.iter().map(entry).collect())
}

/// Reads a file of suppressions.
///
/// # Errors
/// [`Error`], with the place of what is wrong.
pub fn read_suppressions(path: &Path) -> Result<Suppressions, Error> {
    let file: File = parse(&read(path)?, path)?;
    Ok(of(&file.suppressions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suppressions(yaml: &str) -> Result<Suppressions, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.yaml");
        std::fs::write(&path, yaml).expect("written");
        let short = |e: Error| e.to_string().replace(&*path.to_string_lossy(), "s.yaml");
        read_suppressions(&path).map_err(short)
    }

    #[test]
    fn a_file_says_function_verdict_and_reason() {
        let read = suppressions(
            "suppressions:\n\
             - function: go.opencensus.io/stats/view.(*worker).start\n  verdict: [left_behind, growing]\n  \
             reason: started by init, and has no stop\n\
             - {function: \"~Test\", reason: known}\n",
        )
        .expect("it is right");
        assert_eq!(read.0.len(), 2);
        assert_eq!(read.0[0].verdicts, [Verdict::LeftBehind, Verdict::Growing]);
        assert_eq!(&*read.0[0].reason, "started by init, and has no stop");
        assert!(read.0[0].function.matches("go.opencensus.io/stats/view.(*worker).start"));
        assert!(read.0[1].verdicts.is_empty());
        assert!(suppressions("# none\n").expect("empty").is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (yaml, said) in [
            ("suppressions:\n- {function: a.f}\n", "s.yaml:2:"),
            ("suppressions:\n- {function: a.f, reason: \" \"}\n", "must say why the finding is accepted"),
            ("suppressions:\n- {function: a.f, verdict: [leaked], reason: x}\n", "`leaked` is not a verdict"),
            ("suppressions:\n- {function: \"~(\", reason: x}\n", "is not a valid pattern"),
            ("suppressions:\n- {functions: a.f, reason: x}\n", "functions"),
            ("limits: {}\n", "limits"),
        ] {
            let error = suppressions(yaml).expect_err(yaml);
            assert!(error.starts_with("s.yaml:") && error.contains(said), "{yaml}: {error}");
        }
        assert!(read_suppressions(Path::new("/no/such/file")).is_err());
    }
}
