//! Figures, the bars that they are held against, and how both are shown.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// Its ratio to the baseline at most this.
    RatioAtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

/// A figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
    /// What it is compared with, in the same unit.
    baseline: Option<f64>,
    /// Value by baseline.
    ratio: Option<f64>,
    /// What must be true of it, in words.
    bar: Option<String>,
    /// Whether it is.
    held: Option<bool>,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report(Vec<Figure>);

impl Report {
    /// Adds a figure.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        baseline: Option<f64>,
        bar: Option<Bar>,
    ) {
        let ratio = baseline.filter(|b| *b > 0.0).map(|b| value / b);
        let held = bar.map(|bar| match bar {
            Bar::RatioAtMost(most) => ratio.is_some_and(|r| r <= most),
            Bar::AtLeast(least) => value >= least,
            Bar::AtMost(most) => value <= most,
        });
        let bar = bar.map(|bar| match bar {
            Bar::RatioAtMost(most) => format!("ratio <= {most}"),
            Bar::AtLeast(least) => format!(">= {least}"),
            Bar::AtMost(most) => format!("<= {most}"),
        });
        self.0.push(Figure { name: name.into(), unit, value, baseline, ratio, bar, held });
    }

    /// Writes it as JSON: a list of figures.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.0).context("writing the figures as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        let head = ["figure", "value", "unit", "baseline", "ratio"];
        writeln!(f, "{:name$} {:>12} {:10} {:>12} {:>7}  bar", head[0], head[1], head[2], head[3], head[4])?;
        for Figure { name: text, unit, value, baseline, ratio, bar, held } in &self.0 {
            let baseline = baseline.map_or_else(String::new, number);
            let ratio = ratio.map_or_else(String::new, |r| format!("{r:.3}"));
            let verdict = match held {
                None => String::new(),
                Some(true) => format!("{}: held", bar.as_deref().unwrap_or_default()),
                Some(false) => format!("{}: MISSED", bar.as_deref().unwrap_or_default()),
            };
            let value = number(*value);
            let line = format!("{text:name$} {value:>12} {unit:10} {baseline:>12} {ratio:>7}  {verdict}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// With as many digits as mean something.
fn number(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_held_or_missed() {
        let mut report = Report::default();
        report.add("a", "ns", 10.0, Some(100.0), Some(Bar::RatioAtMost(0.125)));
        report.add("b", "ns", 13.0, Some(100.0), Some(Bar::RatioAtMost(0.125)));
        report.add("c", "ns", 13.0, None, Some(Bar::RatioAtMost(0.125)));
        report.add("d", "1/s", 5.0, None, Some(Bar::AtLeast(5.0)));
        report.add("e", "MiB", 5.1, None, Some(Bar::AtMost(5.0)));
        report.add("f", "ms", 5.1, None, None);
        let held: Vec<_> = report.0.iter().map(|figure| figure.held).collect();
        assert_eq!(held, [Some(true), Some(false), Some(false), Some(true), Some(false), None]);
        assert!(report.to_string().contains("ratio <= 0.125: MISSED"));
    }
}
