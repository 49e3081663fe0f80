//! What others chose, made fit to be shown: a path, a name, an argument or an attribute of a program, or a dump
//! file, may hold what a terminal would obey, or the end of a line and what looks like another one.
//!
//! Input is any text. Output is the same with each character that acts written as an escape that can be
//! read (`\n`, `\u{1b}`): control characters (C0, C1), line and paragraph separators, and those that turn
//! the direction of what follows. Bytes that are no UTF-8 are U+FFFD by then. Doing it twice does no harm.
//!
//! Everything goes through here: names of a program where they are read (`gobin`), paths and labels where
//! they are printed, each field and message of the log (`cli::diagnostics`), errors on stderr, the
//! Prometheus page, and JSON ([`write_json`], which escapes as JSON does, so that nothing is changed).

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// What stands at the end of a text that was cut.
const CUT: char = '…';
/// What later lines of one message begin with: those of gotrace's own begin at the margin.
const INDENT: &str = "\n    ";

/// The text, fit to be printed in one line.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| None)
}

/// The same in any number of lines, each but the first indented: none of them can be taken for one that
/// gotrace began.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| (c == '\n').then_some(INDENT))
}

/// At most so many bytes of a text, whole characters; one that was cut ends in `…`, which counts.
#[must_use]
pub fn shortened(text: &str, bytes: usize) -> Cow<'_, str> {
    if text.len() <= bytes {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(bytes.saturating_sub(CUT.len_utf8()));
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

/// Writes a value as JSON in one line, without its end. What acts on a terminal is escaped (`\u009b`), and reads
/// back as what it was.
///
/// # Errors
/// What the writer says.
pub fn write_json(out: &mut (impl Write + ?Sized), value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Harmless(CompactFormatter)))?;
    Ok(())
}

/// Replaces what acts, by what `instead` says or by its escape.
fn escaped(text: &str, instead: impl Fn(char) -> Option<&'static str>) -> Cow<'_, str> {
    let Some(first) = text.find(acts) else { return Cow::Borrowed(text) };
    let (harmless, rest) = text.split_at(first);
    let mut shown = harmless.to_owned();
    for c in rest.chars() {
        match instead(c) {
            Some(other) => shown.push_str(other),
            None if acts(c) => shown.extend(c.escape_default()),
            None => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Whether a terminal or a reader of lines does something else with it than show it: control characters,
/// line and paragraph separators, Unicode's marks, embeddings, overrides and isolates of direction.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON whose texts are ASCII where they would act. JSON's own escapes are those of C0.
struct Harmless(CompactFormatter);

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !fragment.contains(acts) {
            return self.0.write_string_fragment(writer, fragment);
        }
        let mut text = String::with_capacity(fragment.len() + 8);
        for c in fragment.chars() {
            if acts(c) {
                // All of them have four digits at most; writing to a string cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            } else {
                text.push(c);
            }
        }
        self.0.write_string_fragment(writer, &text)
    }

    // JSON that was made before: what acts can be in its texts alone.
    fn write_raw_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        self.write_string_fragment(writer, fragment)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(
            printable("main.\x1b[2Jf\r\n\u{9b}x\u{202e}\u{2028}\t\u{7f}"),
            "main.\\u{1b}[2Jf\\r\\n\\u{9b}x\\u{202e}\\u{2028}\\t\\u{7f}"
        );
        assert_eq!(printable_lines("a\nb\tc\r"), "a\n    b\\tc\\r");
        for name in ["main.(*T[...]).Größe", "/src/日本/main.go", ""] {
            assert!(matches!(printable(name), Cow::Borrowed(n) if n == name));
        }
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(shortened("abcdef", 6), "abcdef");
        assert_eq!(shortened("abcdefg", 6), "abc…");
        assert_eq!(shortened("aéééé", 8), "aéé…");
        assert_eq!(shortened("abc", 0), "…");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_left(text in "\\PC*|[\\x00-\\u{2070}]*") {
            let once = printable(&text);
            prop_assert!(!once.contains(acts));
            prop_assert_eq!(&printable(&once), &once);
            let lines = printable_lines(&text);
            prop_assert!(!lines.replace('\n', "").contains(acts));
            prop_assert!(lines.lines().skip(1).all(|line| line.starts_with("    ")));
        }

        #[test]
        fn json_is_harmless_and_says_the_same(text in "\\PC*|[\\x00-\\u{2070}]*") {
            let mut json = Vec::new();
            write_json(&mut json, &serde_json::json!({ &*text: text })).expect("a vector takes it");
            let json = String::from_utf8(json).expect("text");
            prop_assert!(!json.contains(acts), "{}", json);
            let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(read[&*text].as_str(), Some(&*text));
        }
    }
}
