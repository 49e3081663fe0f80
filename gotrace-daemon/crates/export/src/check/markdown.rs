//! `check --format markdown`: a report for a ticket. The verdict is its heading; each finding has a heading and, in a
//! code fence, what `leaks` prints of it.
//!
//! What the program chose (names, paths, peers) stands in code spans and fences that it cannot end, or is escaped: it
//! makes no heading, no link, no HTML, and calls nobody by `@name`.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::{Report, Weight};
use crate::{
    leaks::text::{finding, looked, proof},
    text::duration,
};
use gotrace_inspect::snapshot::Names;
use gotrace_model::printable::printable;

/// Writes it.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut impl Write, report: Report<'_>, names: &mut Names) -> io::Result<()> {
    let Report { header, coverage, next, .. } = report;
    let name = header.executable.rsplit('/').next().unwrap_or(header.executable);
    writeln!(out, "# {} (pid {}): {}\n", code(name), header.pid, report.verdict())?;
    writeln!(out, "- executable: {}, {}", code(header.executable), code(header.go_version))?;
    writeln!(out, "- checked at {} for {}", utc(header.time_unix_nano), duration(Some(header.duration_ns)))?;
    writeln!(out, "- {}", looked(header))?;
    if let Some(line) = header.proof.and_then(proof) {
        writeln!(out, "- {line}")?;
    }
    for weight in Weight::ALL {
        let mut title = Some(match weight {
            Weight::Problem => "Problems",
            Weight::Warning => "Warnings",
            Weight::Known => "Known",
        });
        for found in report.of(weight) {
            if let Some(title) = title.take() {
                writeln!(out, "\n## {title}")?;
            }
            let count = found.count();
            let runs =
                names.runs(found.entry_pc, &found.stack).map_or("?".to_owned(), |f| f.function.clone());
            let s = if count == 1 { "" } else { "s" };
            writeln!(out, "\n### {}: {count} goroutine{s} of {}\n", found.verdict.name(), code(&runs))?;
            let mut block = Vec::new();
            finding(&mut block, found, header.outside, names)?;
            fenced(out, &String::from_utf8_lossy(&block))?;
        }
        for condition in report.conditions(weight) {
            if let Some(title) = title.take() {
                writeln!(out, "\n## {title}")?;
            }
            writeln!(out, "\n### {}\n\n{}", condition.name, escaped(&condition.sentence))?;
            if !condition.details.is_empty() {
                writeln!(out)?;
                fenced(out, &condition.details)?;
            }
        }
    }
    writeln!(out, "\n## Checked\n")?;
    for &verdict in &coverage.checked {
        writeln!(out, "- {}: {}", verdict.name(), report.result(verdict))?;
    }
    if let Some(throttling) = &coverage.throttling {
        writeln!(out, "- throttling: {}", escaped(&throttling.sentence()))?;
    } else if coverage.checked.is_empty() && report.requests.is_none() {
        writeln!(out, "- nothing")?;
    }
    if let Some(requests) = report.requests {
        writeln!(out, "- slow: {}", escaped(&requests.sentence()))?;
    }
    if !coverage.not_checked.is_empty() {
        writeln!(out, "\n## Not checked\n")?;
    }
    for item in &coverage.not_checked {
        writeln!(out, "- {}: {}", escaped(&item.what), escaped(&item.why))?;
    }
    if !next.is_empty() {
        writeln!(out, "\n## Next\n")?;
    }
    for (command, purpose) in next {
        writeln!(out, "- {}: {purpose}", code(command))?;
    }
    Ok(())
}

/// The longest run of backticks in a text.
fn backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// A text as code within a line.
fn code(text: &str) -> String {
    let text = printable(text);
    let delimiter = "`".repeat(backticks(&text) + 1);
    // One space on each side is taken away again, where there is one on both.
    let pad =
        if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) || text.is_empty() { " " } else { "" };
    format!("{delimiter}{pad}{text}{pad}{delimiter}")
}

/// Lines as a block of code, without the two columns that all of them begin with.
fn fenced(out: &mut impl Write, text: &str) -> io::Result<()> {
    let fence = "`".repeat(backticks(text).max(2) + 1);
    writeln!(out, "{fence}text")?;
    for line in text.lines() {
        writeln!(out, "{}", line.strip_prefix("  ").unwrap_or(line))?;
    }
    writeln!(out, "{fence}")
}

/// A text in which nothing is markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            // A backslash does not keep it from being a mention.
            '@' => escaped.push_str("@\u{2060}"),
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '!' | '>' => {
                let _ = write!(escaped, "\\{c}");
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// `2026-11-30 10:15:30 UTC`.
#[must_use]
pub fn utc(unix_nano: u64) -> String {
    let seconds = unix_nano / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that a leap day is the last one; 719,468 days are from March of the year 0 to 1970.
    let day = days + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_neither_code_nor_lines() {
        assert_eq!(code("main.f"), "`main.f`");
        assert_eq!(code("a`b``c"), "```a`b``c```");
        assert_eq!(code("`a"), "`` `a ``");
        assert_eq!(code("a\n# b"), "`a\\n# b`");
        let mut out = Vec::new();
        fenced(&mut out, "  main.f\n    ````\n").expect("a vector takes everything");
        assert_eq!(String::from_utf8_lossy(&out), "`````text\nmain.f\n  ````\n`````\n");
    }

    #[test]
    fn text_is_no_markup() {
        let text = escaped("go1.99 <img src=x> [a](b) @all #1 `x` _y_\n# z");
        assert!(!text.contains(['<', '\n']) && !text.contains("@all"), "{text}");
        for markup in ["[", "#", "`", "_"] {
            assert_eq!(text.matches(markup).count(), text.matches(&format!("\\{markup}")).count(), "{text}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000), text);
        }
    }
}
