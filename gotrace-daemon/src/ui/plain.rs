//! An interval as plain lines, for a pipe or a file and for the summary: no colour, no cursor, fixed
//! columns. Names are printed whole, without control characters.

use std::fmt::Write;

use super::state::{header, rows};
use crate::sink::model::Interval;

/// The lines, each with its end. `began_unix_nano`: when the run began.
#[must_use]
pub fn plain(interval: &Interval, began_unix_nano: u64) -> String {
    let head = header(interval, began_unix_nano);
    let with_waits = interval.level != "lifecycle";
    let lost = if head.lost.is_empty() { "0" } else { &head.lost };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} · {}", clean(&head.process), head.elapsed);
    let _ = writeln!(text, "alive {}  born/s {}  died/s {}  lost {lost}", head.alive, head.born, head.died);
    if with_waits && !head.waiting.is_empty() {
        let _ = writeln!(text, "waiting: {}", clean(&head.waiting));
    }
    let _ = write!(text, "{:>7} {:>7} {:>7}", "alive", "born/s", "died/s");
    if with_waits {
        let _ = write!(text, " {:>7} {:>7} {:>7}", "p50", "p99", "max");
    }
    let _ = writeln!(text, " {:>7}  goroutines", "oldest");
    for row in rows(interval) {
        let _ = write!(text, "{:>7} {:>7} {:>7}", row.alive, row.born, row.died);
        if with_waits {
            let _ = write!(text, " {:>7} {:>7} {:>7}", row.p50, row.p99, row.max);
        }
        let _ = write!(text, " {:>7}  {} ({})", row.oldest, clean(&row.entry), clean(&row.created_by));
        if with_waits && !row.waiting.is_empty() {
            let _ = write!(text, " waiting: {}", clean(&row.waiting));
        }
        text.push('\n');
    }
    text
}

/// A name comes from a file that may be hostile: it must not steer the terminal.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{sink::model::Location, ui::state::tests::interval};

    #[test]
    fn lines_hold_whole_names_and_no_escapes() {
        let mut interval = interval();
        interval.sites[0].entry =
            Arc::new(Location { function: "evil\x1b[2J".into(), file: "".into(), line: 0 });
        let text = plain(&interval, interval.start_unix_nano);
        assert!(
            text.contains("github.com/example/shop/internal/inventory.(*Pool).worker.func1 (main.go:30)")
        );
        assert!(!text.contains('\x1b'));
        assert_eq!(text.lines().count(), 6);
        interval.level = "lifecycle";
        assert!(!plain(&interval, 0).contains("p50"));
    }
}
