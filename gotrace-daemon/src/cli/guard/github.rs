//! Annotations of GitHub Actions: a workflow command a finding that fails the run, at the place where its goroutines
//! were created (`::error file=…,line=…,title=…::…`).
//!
//! Input: programs that were judged ([`Suite`]). Output: lines. Paths are given as from the root of the checkout where the files lie
//! in it. What was suppressed, and what is in the baseline, is no annotation; a finding that does not fail the run is a
//! warning.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::Suite;

/// The root of the checkout.
pub(super) struct Root(Option<PathBuf>);

impl Root {
    /// `GITHUB_WORKSPACE`, or the directory that gotrace runs in.
    pub fn of_environment() -> Self {
        let workspace = std::env::var_os("GITHUB_WORKSPACE").filter(|w| !w.is_empty()).map(PathBuf::from);
        Self(workspace.or_else(|| std::env::current_dir().ok()))
    }

    fn relative<'a>(&self, file: &'a str) -> &'a str {
        let below = self.0.as_ref().and_then(|root| Path::new(file).strip_prefix(root).ok());
        below.and_then(Path::to_str).unwrap_or(file)
    }
}

/// Writes them.
///
/// # Errors
/// What the writer says.
pub(super) fn write(out: &mut impl Write, suites: &[Suite], root: &Root) -> io::Result<()> {
    for suite in suites {
        for outcome in &suite.outcomes {
            let level = if outcome.fails { "error" } else { "warning" };
            for found in outcome.findings.iter().filter(|f| !f.accepted.is_accepted()) {
                let place = found.file.as_deref().map_or_else(String::new, |file| {
                    format!("file={},line={},", property(root.relative(file)), found.line)
                });
                let title = property(&format!("gotrace: {}", found.identity.verdict.name()));
                writeln!(out, "::{level} {place}title={title}::{}", data(&found.sentence()))?;
            }
            let title = property(&format!("gotrace: {}", outcome.what));
            for told in &outcome.conditions {
                writeln!(out, "::{level} title={title}::{}", data(&told.sentence))?;
            }
            if let Some(why) = &outcome.unjudged {
                writeln!(out, "::warning title=gotrace::{}", data(why))?;
            }
        }
    }
    out.flush()
}

/// What stands behind the colons (`@actions/core`, command.ts, escapeData).
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// The value of a property (the same, escapeProperty).
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::guard::tests::{found, program};

    #[test]
    fn what_fails_is_an_error_at_its_place() {
        let mut hostile = found("shop.evil\n::set-env name=x::", None, Some(false));
        hostile.file = Some("/elsewhere/a,b:c.go".into());
        let findings = vec![
            found("shop.worker", None, None),
            found("shop.known", None, Some(true)),
            found("shop.fine", Some("by design"), None),
            hostile,
        ];
        let mut out = Vec::new();
        let root = Root(Some("/src".into()));
        write(&mut out, &[Suite::of(&program(findings, 0, true))], &root).expect("a vector takes everything");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(
            lines[0],
            "::error file=shop/shop.go,line=12,title=gotrace%3A left_behind::2 goroutines of shop.worker left behind by \
             shop.TestX: chan receive; created by shop.Start (shop.go:12)"
        );
        assert!(lines[1].starts_with("::error file=/elsewhere/a%2Cb%3Ac.go,line=12,"), "{text}");
        assert!(lines[1].contains("shop.evil%0A::set-env"), "{text}");
        assert!(lines[2].starts_with("::warning title=gotrace::pid 7 "), "{text}");
    }
}
