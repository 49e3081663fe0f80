//! Go's build information: the version of Go, and the module information that `go version -m` prints.
//!
//! Input is the block that the linker leaves in a data segment (`debug/buildinfo`, Go 1.18 and later),
//! found by its section or by its magic.

use super::{
    BuildInfo, Error,
    bytes::{slice, u8_at, uvarint},
    elf::Elf,
    names,
};
use gotrace_model::printable::printable;

const MAGIC: &[u8] = b"\xff Go buildinf:";
const HEADER: usize = 32;
/// Flag bit: version and module information follow inline, as they do from Go 1.18 on.
const INLINE: u8 = 2;
/// Flag bit: the pointers that stood here before are big-endian.
const BIG_ENDIAN: u8 = 1;
/// No `go version -m` output comes near it.
const MAX_TEXT: usize = 16 << 20;

/// What a binary says of the Go that built it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// As the binary has it, experiments included.
    pub text: String,
    /// 24 and 3 in `go1.24.3`; `None` where it names no version, as a toolchain of one's own may.
    pub version: Option<(u32, u32)>,
}

/// Reads version and build information. ELF facts in the [`BuildInfo`] are left at their defaults.
pub(super) fn read(elf: &Elf<'_>) -> Result<(Named, BuildInfo), Error> {
    let mut old = false;
    let mut nameless = None;
    let mut try_at = |data: &[u8]| -> Option<(Named, BuildInfo)> {
        if data.get(..MAGIC.len())? != MAGIC {
            return None;
        }
        let (pointer_bytes, flags) = (u8_at(data, 14)?, u8_at(data, 15)?);
        if flags & INLINE == 0 {
            // Before Go 1.18 two pointers followed. A program that looks for the magic, as this one does, has it
            // among its own constants, with anything behind it.
            old |= matches!(pointer_bytes, 4 | 8) && flags <= BIG_ENDIAN;
            return None;
        }
        let mut at = HEADER;
        let text = std::str::from_utf8(sized(data, &mut at)?).ok()?;
        let version = parse_version(text);
        if text.is_empty() || text.len() > names::MAX_VERSION || text.contains(char::is_control) {
            return None;
        }
        let module = sized(data, &mut at).unwrap_or_default();
        let named = Named { text: names::text_within(text.as_bytes(), names::MAX_VERSION), version };
        if version.is_none() {
            // One that names a version is better.
            nameless.get_or_insert_with(|| (named, parse_module(module)));
            return None;
        }
        Some((named, parse_module(module)))
    };
    if let Some(found) = elf.section(".go.buildinfo").and_then(|s| try_at(s.data)) {
        return Ok(found);
    }
    // Writable segments first: a program that reads build information itself has the magic in its text.
    let (writable, others): (Vec<_>, Vec<_>) =
        elf.segments.iter().partition(|s| s.flags & object::elf::PF_W.0 != 0);
    for segment in writable.into_iter().chain(others) {
        let data = elf.contents(segment);
        // The linker aligns it to 16 bytes in memory.
        let first = usize::try_from(segment.address.wrapping_neg() % 16).unwrap_or_default();
        for at in (first..data.len()).step_by(16) {
            let candidate = data.get(at..).unwrap_or_default();
            if candidate.starts_with(MAGIC)
                && let Some(result) = try_at(candidate)
            {
                return Ok(result);
            }
        }
    }
    if let Some(found) = nameless {
        return Ok(found);
    }
    Err(if old {
        Error::unsupported("built with Go 1.17 or earlier; gotrace supports Go 1.18 and later")
    } else {
        Error::NotGo { why: "it has no Go build information" }
    })
}

/// Bytes that follow their length.
fn sized<'a>(data: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let len = uvarint(data, at)? as usize;
    let found = slice(data, *at, len).filter(|_| len <= MAX_TEXT)?;
    *at += len;
    Some(found)
}

/// `go1.24.3`, `go1.26rc1`, `go1.24.11 X:synctest`, `devel go1.28-abc Mon …`, `acme-go1.24.3`: minor and patch.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    text.match_indices("go1.").find_map(|(at, prefix)| {
        if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric()) {
            return None;
        }
        let rest = &text[at + prefix.len()..];
        let minor = rest.get(..digits(rest))?;
        let patch = rest[minor.len()..].strip_prefix('.').unwrap_or_default();
        let patch = patch.get(..digits(patch))?;
        Some((minor.parse().ok()?, patch.parse().unwrap_or_default()))
    })
}

fn parse_module(block: &[u8]) -> BuildInfo {
    let mut info = BuildInfo::default();
    // The text stands between two marks of 16 bytes, by which programs find it in memory.
    let Some(text) = block.len().checked_sub(16).filter(|&end| end > 16).and_then(|end| block.get(16..end))
    else {
        return info;
    };
    let text = String::from_utf8_lossy(text);
    for line in text.lines() {
        // Tabs are between fields.
        let line = line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
        let mut fields = line.split('\t');
        match (fields.next(), fields.next()) {
            (Some("path"), Some(path)) => info.path = Some(names::text(path.as_bytes())),
            (Some("mod"), Some(path)) => {
                info.module = Some(names::text(path.as_bytes()));
                let version = fields.next().filter(|v| !v.is_empty());
                info.module_version = version.map(|v| names::text_within(v.as_bytes(), names::MAX_VERSION));
            }
            (Some("build"), Some(setting)) => {
                if let Some((key, value)) = setting.split_once('=') {
                    info.settings.insert(unquote(key), unquote(value));
                }
            }
            _ => {}
        }
    }
    let flag = |name: &str| info.settings.get(name).map(|v| v == "true");
    // A flag that is off is not written down; that it is off is known when any flag is there.
    let known = info.settings.contains_key("GOOS");
    info.race = flag("-race").or(known.then_some(false));
    info.trimpath = flag("-trimpath").or(known.then_some(false));
    info.buildmode = info.settings.get("-buildmode").cloned();
    info
}

fn unquote(text: &str) -> String {
    let inner = text.strip_prefix(['"', '`']).and_then(|t| t.strip_suffix(['"', '`']));
    inner.unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, minor, patch) in [
            ("go1.24.3", 24, 3),
            ("go1.26rc1", 26, 0),
            ("go1.27", 27, 0),
            ("go1.24.11 X:synctest", 24, 11),
            ("go1.26.6-X:nodwarf5", 26, 6),
            ("devel go1.28-36cd880878 Tue", 28, 0),
            ("acme-go1.24.3+p1", 24, 3),
            ("ago1.2 (go1.22.1)", 22, 1),
        ] {
            assert_eq!(parse_version(text), Some((minor, patch)), "{text}");
        }
        for text in ["", "go2.1", "go1.", "go1.99999999999", "gccgo", "devel +1a2b3c", "mango1.2"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn module_information() {
        let text = "path\tmain/cmd\nmod\texample.com/m\tv1.2.3\th1:x\ndep\ta\tb\n\
                    build\t-buildmode=exe\nbuild\t-race=true\nbuild\tGOOS=linux\nbuild\tCGO_CFLAGS=\"-O2 -g\"\n";
        let block = [&[1u8; 16][..], text.as_bytes(), &[2; 16]].concat();
        let info = parse_module(&block);
        assert_eq!(info.module.as_deref(), Some("example.com/m"));
        assert_eq!(info.module_version.as_deref(), Some("v1.2.3"));
        assert_eq!((info.race, info.trimpath), (Some(true), Some(false)));
        assert_eq!(info.settings["CGO_CFLAGS"], "-O2 -g");
        assert_eq!(parse_module(b"short"), BuildInfo::default());
    }
}
