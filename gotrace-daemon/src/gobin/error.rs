//! Why a file cannot be read as a Go executable.

use thiserror::Error;

/// Why a file cannot be read as a Go executable. The caller knows the file's name and adds it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file does not begin with an ELF header.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF file without a Go runtime, or one whose Go parts were removed.
    #[error(
        "not a Go program: {why} (if it is one, it may be packed or obfuscated: trace the unpacked file; Go code in a \
         library that another program loads, -buildmode=c-shared, is not traced)"
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

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NotElf => "name the executable of a Go program, not a script or another kind of file",
            Self::NotGo { .. } => {
                "gotrace traces programs that Go's own compiler built; `go version FILE` tells whether it is one"
            }
            Self::Unsupported { .. } => {
                "gotrace traces Go 1.19 to 1.27 and later on amd64 and arm64, built as executables"
            }
            Self::Malformed { .. } => "the file may be cut short or damaged: copy or build it anew",
        }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}
