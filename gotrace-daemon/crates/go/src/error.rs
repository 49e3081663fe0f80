//! Why a file cannot be read as a Go executable.

use thiserror::Error;

/// Why a file cannot be read as a Go executable. The caller knows the file's name and adds it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The file does not begin with an ELF header.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file without a Go runtime, or one whose Go parts were removed.
    #[error(
        "not a Go program: {why} (if it is one, it may be packed or obfuscated: trace the unpacked file; Go code in a \
         shared library, -buildmode=c-shared, is not supported)"
    )]
    NotGo {
        /// What was looked for and not found.
        why: &'static str,
    },
    /// A Go executable, or an ELF file, of a kind that gotrace does not trace.
    #[error("not supported: {what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The file contradicts itself or is cut short.
    #[error("malformed: {what} (at file offset {at:#x})")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the file's beginning.
        at: u64,
    },
}

/// Why a loader is no Go program.
const LOADER: &str = "it is the dynamic loader, started as `ld.so PROGRAM`: gotrace sees only the loader's file; \
                      start the program directly";

impl Error {
    /// The same of a dynamic loader, which may have loaded a Go program.
    #[must_use]
    pub fn of_loader(self) -> Self {
        match self {
            Self::NotGo { .. } => Self::NotGo { why: LOADER },
            error => error,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NotElf => "give the executable of a Go program, not a script or another kind of file",
            Self::NotGo { .. } => {
                "gotrace supports programs built with the standard Go compiler; check with `go version FILE`"
            }
            Self::Unsupported { .. } => {
                "gotrace supports executables built with Go 1.19 to 1.27 or later for amd64 and arm64"
            }
            Self::Malformed { .. } => "the file may be truncated or damaged: copy or build it again",
        }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}
