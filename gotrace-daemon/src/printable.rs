//! Names that others chose, made fit to be printed: a program, a dump file or a file name may hold what a
//! terminal would obey.
//!
//! Input is any text; output is the same with one U+FFFD for each control character and for each character
//! that turns the direction of what follows. Applied where names are read (functions and files of a
//! program, its build information, dumps) and where paths are printed.

use std::borrow::Cow;

/// The text, fit to be printed in one line.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect())
}

/// The same, in any number of lines.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    let acts = |c| c != '\n' && acts(c);
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect())
}

/// Whether a terminal does something else with it than show it (control characters; Unicode's bidirectional
/// embeddings, overrides and isolates).
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        assert_eq!(
            printable("main.\x1b[2Jf\r\n\u{9b}x\u{202e}"),
            "main.\u{fffd}[2Jf\u{fffd}\u{fffd}\u{fffd}x\u{fffd}"
        );
        assert_eq!(printable_lines("a\nb\tc"), "a\nb\u{fffd}c");
        for name in ["main.(*T[...]).Größe", "/src/日本/main.go", ""] {
            assert!(matches!(printable(name), Cow::Borrowed(n) if n == name));
        }
    }
}
