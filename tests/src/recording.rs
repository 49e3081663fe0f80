//! What recordings are converted to, taken apart so that two can be compared byte for byte, however lines are cut.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// What an OTLP JSON lines file holds, as the bytes that stand in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Spans behind their resource, sorted.
    pub spans: Vec<String>,
    /// Lines with metrics: one report each; sorted.
    pub metrics: Vec<String>,
    /// Lines with log records: one each; sorted.
    pub logs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    resource_spans: Option<Vec<ResourceSpans<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    #[serde(borrow)]
    resource: &'a RawValue,
    #[serde(borrow)]
    scope_spans: Vec<ScopeSpans<'a>>,
}

#[derive(Deserialize)]
struct ScopeSpans<'a> {
    #[serde(borrow)]
    scope: &'a RawValue,
    #[serde(borrow)]
    spans: Vec<&'a RawValue>,
}

impl Exported {
    /// Takes a file's text apart.
    ///
    /// # Panics
    /// Where a line is none that gotrace writes.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let parsed: Line<'_> = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            match parsed.resource_spans {
                Some(processes) => {
                    for ResourceSpans { resource, scope_spans } in processes {
                        for ScopeSpans { scope, spans } in scope_spans {
                            this.spans.extend(spans.iter().map(|span| format!("{resource}{scope}{span}")));
                        }
                    }
                }
                None if line.starts_with("{\"resourceMetrics\"") => this.metrics.push(line.into()),
                None => this.logs.push(line.into()),
            }
        }
        for list in [&mut this.spans, &mut this.metrics, &mut this.logs] {
            list.sort();
        }
        this
    }

    /// Fails unless both hold the same, and says what only one of them has.
    ///
    /// # Panics
    /// Where they do not.
    pub fn assert_same(&self, expected: &Self) {
        let kinds = [
            ("span", &self.spans, &expected.spans),
            ("report", &self.metrics, &expected.metrics),
            ("log record", &self.logs, &expected.logs),
        ];
        for (kind, found, expected) in kinds {
            let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
            found.iter().for_each(|item| *counts.entry(item).or_default() += 1);
            expected.iter().for_each(|item| *counts.entry(item).or_default() -= 1);
            let differences: Vec<_> = counts.iter().filter(|(_, n)| **n != 0).take(4).collect();
            assert!(
                differences.is_empty(),
                "{} {kind}s found, {} expected; too many (+) or missing (-): {differences:#?}",
                found.len(),
                expected.len()
            );
        }
    }
}

/// The lines of `--format json` but for headers, which have the time at which they were printed.
#[must_use]
pub fn intervals(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with("{\"engine\"") && !line.contains("\"schema\":")).collect()
}
