//! How Go's own tracebacks show functions (`runtime/traceback.go`, `showfuncinfo`, `printFuncName`).

use super::unwind::EntryKind;
use gotrace_model::printable::{printable, shortened};

/// Bytes of a name or path of a program that are kept; what is longer is cut, and ends in `…`. Every span, series
/// and line has some, so that this bounds those.
pub const MAX_NAME: usize = 512;
/// The same of a version or build id.
pub(super) const MAX_VERSION: usize = 128;

/// A name or path of the program, as anything that prints or exports it may have it.
pub(super) fn text(bytes: &[u8]) -> String {
    text_within(bytes, MAX_NAME)
}

/// At most so many bytes of it.
pub(super) fn text_within(bytes: &[u8], most: usize) -> String {
    // A little more, so that what is cut here is cut visibly.
    let some = bytes.get(..most + 4).unwrap_or(bytes);
    shortened(&whole(some), most).into_owned()
}

/// A function's whole name, type arguments and all; of what is in tables no longer than they may hold.
pub(super) fn whole(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes)).into_owned()
}

/// A function's name as tracebacks print it, from its whole name: type arguments are left out (`main.f[...]`).
pub(super) fn printed(name: &str) -> String {
    match (name.find('['), name.rfind(']')) {
        (Some(open), Some(close)) if open < close => {
            let (before, behind) = (shortened(&name[..open], MAX_NAME), &name[close + 1..]);
            shortened(&format!("{before}[...]{behind}"), MAX_NAME).into_owned()
        }
        _ => shortened(name, MAX_NAME).into_owned(),
    }
}

/// Whether Go's traceback shows a function at its default level, wrappers apart. `first`: it is the
/// innermost frame.
pub(super) fn shown(name: &str, first: bool) -> bool {
    if matches!(name, "runtime.runFinalizers" | "runtime.runCleanups")
        || (name == "runtime.gopanic" && !first)
    {
        return true;
    }
    name.contains('.') && name.strip_prefix("runtime.").is_none_or(exported)
}

/// What goroutines are whose first function has this name (`isSystemGoroutine`, Go 1.18 to 1.27).
pub(super) fn entry_kind(name: &[u8]) -> EntryKind {
    match name {
        b"runtime.main" | b"runtime.corostart" | b"runtime.handleAsyncEvent" => EntryKind::User,
        b"runtime.runfinq" | b"runtime.runFinalizers" | b"runtime.runCleanups" => EntryKind::Runner,
        _ if name.starts_with(b"runtime.") => EntryKind::System,
        _ => EntryKind::User,
    }
}

/// Exported functions of the runtime and exported methods of its exported types.
fn exported(name: &str) -> bool {
    let upper = |s: &str| s.starts_with(|c: char| c.is_ascii_uppercase());
    match name.rsplit_once('.') {
        None => upper(name),
        Some((receiver, method)) => {
            let receiver = receiver.strip_prefix("(*").and_then(|r| r.strip_suffix(')')).unwrap_or(receiver);
            upper(method) && upper(receiver)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visibility_is_that_of_a_traceback() {
        for (name, expected) in [
            ("main.main", true),
            ("runtime.gopark", false),
            ("runtime.GC", true),
            ("runtime.(*Pinner).Pin", true),
            ("runtime.(*mheap).Alloc", false),
            ("runtime.main.func1", false),
            ("runtime/debug.FreeOSMemory", true),
            ("runtime.runCleanups", true),
            ("_cgo_start", false),
        ] {
            assert_eq!(shown(name, true), expected, "{name}");
        }
        assert!(!shown("runtime.gopanic", true));
        assert!(shown("runtime.gopanic", false));
    }

    #[test]
    fn type_arguments_are_left_out() {
        assert_eq!(printed("main.f[go.shape.int]"), "main.f[...]");
        assert_eq!(printed("main.(*T[go.shape.[]int]).m.func1"), "main.(*T[...]).m.func1");
        assert_eq!(printed("main.g"), "main.g");
        assert_eq!(printed("a]b["), "a]b[");
        let long = format!("main.f[{}].func1", "x".repeat(4 * MAX_NAME));
        assert_eq!(printed(&long), "main.f[...].func1");
    }

    #[test]
    fn long_names_are_cut_visibly() {
        let long = "é".repeat(30_000);
        for cut in [text(long.as_bytes()), printed(&long), printed(&format!("{long}[a]{long}"))] {
            assert!(cut.len() <= MAX_NAME && cut.len() > MAX_NAME - 5, "{}", cut.len());
            assert!(cut.strip_suffix('…').is_some_and(|rest| rest.chars().all(|c| c == 'é')), "{cut}");
        }
        assert_eq!(text("é".repeat(MAX_NAME / 2).as_bytes()).len(), MAX_NAME);
        // Escapes count as what they are.
        assert!(text(&[0x1b; MAX_NAME]).len() <= MAX_NAME);
    }
}
