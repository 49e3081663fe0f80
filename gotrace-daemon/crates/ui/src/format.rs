//! Numbers and names for narrow columns.

/// At most 6 characters: `850ns`, `1.2µs`, `34ms`, `5.6s`, `3m12s`, `1h02m`, `12d`.
pub(super) fn duration(ns: u64) -> String {
    let fraction = |value: f64, unit: &str| {
        if value < 9.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
    };
    // Bounds are where the next unit is what rounding would show.
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..999_500 => fraction(ns as f64 / 1e3, "µs"),
        999_500..999_500_000 => fraction(ns as f64 / 1e6, "ms"),
        999_500_000..59_500_000_000 => fraction(ns as f64 / 1e9, "s"),
        _ => {
            let s = (ns + 500_000_000) / 1_000_000_000;
            match s {
                0..3_600 => format!("{}m{:02}s", s / 60, s % 60),
                3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
                _ => format!("{}d", s / 86_400),
            }
        }
    }
}

/// At most 6 characters: `99999`, `123k`, `4.5M`.
pub(super) fn count(n: u64) -> String {
    let scaled = |divisor: f64, unit: &str| {
        let value = n as f64 / divisor;
        if value < 99.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
    };
    match n {
        0..100_000 => n.to_string(),
        100_000..999_500 => scaled(1e3, "k"),
        999_500..999_500_000 => scaled(1e6, "M"),
        999_500_000..999_500_000_000 => scaled(1e9, "G"),
        _ => scaled(1e12, "T"),
    }
}

/// Over a shorter time nothing is said of rates.
const SHORTEST_NS: u64 = 50_000_000;

/// A rate a second: `0`, `0.3`, `12.5`, `1234`, `123k`; `-` where the interval is too short for one.
pub(super) fn rate(n: u64, interval_ns: u64) -> String {
    if interval_ns < SHORTEST_NS {
        return "-".into();
    }
    if n == 0 {
        return "0".into();
    }
    let rate = n as f64 * 1e9 / (interval_ns.max(1) as f64);
    if rate < 0.05 {
        "<0.1".into()
    } else if rate < 99.95 {
        format!("{rate:.1}")
    } else {
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "above 0; saturates")]
        let rate = rate.round() as u64;
        count(rate)
    }
}

/// A share as a percentage: `0.42%`, `12%`, `<0.01%`.
pub(super) fn share(share: f64) -> String {
    let percent = share * 100.0;
    if percent <= 0.0 {
        "0%".into()
    } else if percent < 0.01 {
        "<0.01%".into()
    } else if percent < 9.95 {
        format!("{percent:.2}%")
    } else {
        format!("{percent:.0}%")
    }
}

/// Shortens a name to `width` characters by leaving out its middle: a package's begin and a
/// function's end tell most.
pub(super) fn shorten(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    if width <= 1 {
        return "…".chars().take(width).collect();
    }
    // The end gets more: it holds the function's own name.
    let tail = (width - 1) * 3 / 5;
    let head = width - 1 - tail;
    let end = name.chars().skip(length - tail);
    name.chars().take(head).chain(['…']).chain(end).collect()
}

/// A line of words as lines of at most `width` characters, those behind the first indented; a word that is longer is cut
/// in pieces.
pub(super) fn wrap(line: &str, width: usize, indent: usize) -> Vec<String> {
    let indent = if width > 2 * indent { indent } else { 0 };
    let (mut lines, mut current, mut length) = (Vec::new(), String::new(), 0);
    for word in line.split_inclusive(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        while length + rest.len() > width && !rest.is_empty() {
            let trimmed = rest.last() == Some(&' ') && length + rest.len() == width + 1;
            if trimmed {
                rest.pop();
                continue;
            }
            // A word goes to the next line whole, if it has room there.
            let begins = length <= indent && (lines.is_empty() || length == indent);
            let fits = if begins { width.saturating_sub(length).max(1) } else { 0 };
            current.extend(rest.drain(..fits.min(rest.len())));
            lines.push(current.trim_end().to_owned());
            current = " ".repeat(indent);
            length = indent;
        }
        length += rest.len();
        current.extend(rest);
    }
    if length > indent || lines.is_empty() {
        lines.push(current.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_stay_short_and_change_units_where_they_should() {
        for (ns, text) in [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1.0µs"),
            (9_949, "9.9µs"),
            (9_960, "10µs"),
            (999_499, "999µs"),
            (999_500, "1.0ms"),
            (34_000_000, "34ms"),
            (5_600_000_000, "5.6s"),
            (59_600_000_000, "1m00s"),
            (192_000_000_000, "3m12s"),
            (3_725_000_000_000, "1h02m"),
            (86_400_000_000_000 * 12, "12d"),
        ] {
            assert_eq!(duration(ns), text);
        }
        assert!((0..63).all(|b| duration(1 << b).chars().count() <= 6));
        assert!((0..64).all(|b| count(1 << b).chars().count() <= 9));
    }

    #[test]
    fn counts_and_rates() {
        assert_eq!(count(99_999), "99999");
        assert_eq!(count(123_456), "123k");
        assert_eq!(count(4_500_000), "4.5M");
        assert_eq!((rate(0, 0), rate(3, 430_000)), ("-".into(), "-".into()));
        assert_eq!(rate(0, 1_000_000_000), "0");
        assert_eq!(rate(5, 2_000_000_000), "2.5");
        assert_eq!(rate(200_000, 1_000_000_000), "200k");
        assert_eq!(rate(1, 3_600_000_000_000), "<0.1");
    }

    #[test]
    fn lines_are_wrapped_at_words() {
        assert_eq!(
            wrap("why   it never runs again", 13, 6),
            ["why   it", "      never", "      runs", "      again"]
        );
        assert_eq!(wrap("why   it never runs again", 40, 6), ["why   it never runs again"]);
        assert_eq!(wrap("abcdefghij klm", 4, 0), ["abcd", "efgh", "ij", "klm"]);
        assert_eq!(wrap("", 4, 0), [""]);
        for width in 0..30 {
            let lines = wrap("goroutines  105 211 314 a-very-long-word-without-a-space 418", width, 12);
            assert!(lines.iter().all(|line| line.chars().count() <= width.max(1)), "{width}: {lines:?}");
        }
    }

    #[test]
    fn shares_are_percentages() {
        for (value, text) in [(0.0, "0%"), (0.00001, "<0.01%"), (0.0042, "0.42%"), (0.123, "12%")] {
            assert_eq!(share(value), text);
        }
    }

    #[test]
    fn names_keep_both_ends() {
        assert_eq!(shorten("main.worker", 11), "main.worker");
        assert_eq!(shorten("github.com/a/b/internal/pool.(*Pool).worker", 20), "github.c…ool).worker");
        assert_eq!(shorten("größer", 3), "g…r");
        assert_eq!(shorten("abc", 1), "…");
        assert_eq!(shorten("abc", 0), "");
    }
}
