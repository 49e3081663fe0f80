//! Paths that requests asked for, without what looks like a secret.

use gotrace_common::request::{PATH_BYTES, Path};
use gotrace_metadata::redact;
use gotrace_model::printable::printable;

/// The same path without what looks like a secret, and as text. Of that again it is itself. One that there is no room for
/// ends with its last whole segment: a part of a secret does not look like one.
#[must_use]
pub fn redacted(path: &Path) -> Path {
    let Some(kept) = kept(path) else { return Path::default() };
    let mut is_cut = path.length > PATH_BYTES as u64;
    let mut text = String::from_utf8_lossy(kept).into_owned();
    if is_cut {
        cut(&mut text, PATH_BYTES);
    }
    text = redact::path(&text);
    if text.len() > PATH_BYTES {
        is_cut = true;
        cut(&mut text, PATH_BYTES);
    }
    let length = if is_cut { PATH_BYTES + 1 } else { text.len() };
    let mut to = Path { length: length as u64, ..Path::default() };
    if let Some(room) = to.text.get_mut(..text.len()) {
        room.copy_from_slice(text.as_bytes());
    }
    to
}

/// Takes off what is beyond the last slash within `most` bytes.
fn cut(text: &mut String, most: usize) {
    let within = text.as_bytes().get(..most).unwrap_or(text.as_bytes());
    let end = within.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    text.truncate(end);
}

/// The text of a path; `None` where it was not read. One that was cut ends in `…`.
#[must_use]
pub fn text(path: &Path) -> Option<String> {
    let kept = kept(path)?;
    let end = kept.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut text = printable(&String::from_utf8_lossy(kept.get(..end)?)).into_owned();
    if path.length > PATH_BYTES as u64 {
        text.push('…');
    }
    Some(text)
}

fn kept(path: &Path) -> Option<&[u8]> {
    let length = usize::try_from(path.length).unwrap_or(PATH_BYTES);
    path.text.get(..length.min(PATH_BYTES)).filter(|kept| !kept.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Path {
        let mut path = Path { length: text.len() as u64, ..Path::default() };
        let kept = text.len().min(PATH_BYTES);
        path.text[..kept].copy_from_slice(&text.as_bytes()[..kept]);
        path
    }

    fn told(of: &str) -> Option<String> {
        text(&redacted(&path(of)))
    }

    #[test]
    fn a_path_is_told_without_secrets() {
        assert_eq!(told("/users/42").as_deref(), Some("/users/42"));
        assert_eq!(told(""), None);
        assert_eq!(told("/reset-token/abc").as_deref(), Some("/reset-token/[redacted]"));
        assert_eq!(told("/a\u{1b}[2J").as_deref(), Some("/a\\u{1b}[2J"));
        let long = format!("/{}", "a/".repeat(70));
        assert_eq!(told(&long), Some(format!("{}…", &long[..PATH_BYTES - 1])));
        // A secret whose end was cut off does not look like one, and one has more letters when it was taken out.
        let secret = "0123456789abcdef".repeat(2);
        for more in [100, 110, 115] {
            let long = format!("/{}/{secret}", "a".repeat(more));
            assert_eq!(told(&long), Some(format!("/{}/…", "a".repeat(more))), "{more}");
        }
        assert_eq!(told(&"a".repeat(130)).as_deref(), Some("…"));
    }

    proptest! {
        #[test]
        fn what_is_recorded_is_what_was_told(bytes in proptest::collection::vec(any::<u8>(), 0..PATH_BYTES), more in 0..200u64) {
            let mut path = Path { length: bytes.len() as u64, ..Path::default() };
            path.text[..bytes.len()].copy_from_slice(&bytes);
            if bytes.len() == PATH_BYTES { path.length += more; }
            let once = redacted(&path);
            prop_assert_eq!(text(&redacted(&once)), text(&once));
        }

        #[test]
        fn no_text_is_too_much(text in "(/[a-z0-9é-]{0,40}){0,9}") {
            let once = redacted(&path(&text));
            prop_assert_eq!(super::text(&redacted(&once)), super::text(&once));
        }
    }
}
