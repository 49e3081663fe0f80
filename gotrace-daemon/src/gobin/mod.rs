//! What a Go executable says about itself: bytes in, probe plan out.
//!
//! Input is a whole ELF file in memory (64-bit, little-endian, amd64 or arm64, built by Go 1.18 or
//! later, stripped or not); output is a [`Binary`], which keeps only what later lookups need. Nothing
//! here does I/O, knows of processes or of eBPF. Every read is checked: no input, however hostile, can
//! make it panic, loop without bound or allocate more than a small multiple of the input's size.
//!
//! It refuses what it cannot get right: other machines and byte orders, programs without Go's function
//! table, Go before 1.18, shared libraries, structures whose fields are not where the kernel side
//! expects them.

mod error;
mod model;

use gotrace_common::GLayout;

pub use error::Error;
pub use model::{
    Arch, BuildInfo, Event, Frame, Function, GoVersion, Offset, Offsets, Operand, Plan, Probe, Source,
};

use crate::level::Level;

/// What was learned of a Go executable.
#[derive(Debug)]
pub struct Binary {
    version: GoVersion,
    build: BuildInfo,
    arch: Arch,
    offsets: Offsets,
    layout: GLayout,
}

impl Binary {
    /// Reads an executable.
    ///
    /// # Errors
    /// An [`Error`] that says what is wrong with the file.
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        if data.get(..4) != Some(b"\x7fELF") {
            return Err(Error::NotElf);
        }
        Err(Error::unsupported("this build of gotrace cannot read Go executables"))
    }

    /// The version of Go that built it.
    #[must_use]
    pub fn go_version(&self) -> &GoVersion {
        &self.version
    }

    /// How it was built.
    #[must_use]
    pub fn build(&self) -> &BuildInfo {
        &self.build
    }

    /// Its architecture.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Offsets in the runtime's structures.
    #[must_use]
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// The offsets that the kernel side needs.
    #[must_use]
    pub fn g_layout(&self) -> GLayout {
        self.layout
    }

    /// Whether the layout is the newest that gotrace knows and the binary is newer still. It must not be
    /// used before a live check has found plausible values in the process.
    #[must_use]
    pub fn layout_is_extrapolated(&self) -> bool {
        false
    }

    /// Whether `g.parentGoid` exists and lies 8 bytes before `g.gopc`
    /// ([`gotrace_common::flags::PARENT_GOID`]).
    #[must_use]
    pub fn has_parent_goid_before_gopc(&self) -> bool {
        false
    }

    /// Where to probe for a level, and what that will not see.
    #[must_use]
    pub fn plan(&self, _level: Level) -> Plan {
        Plan::default()
    }

    /// Names of the wait reasons, by number; `""` for number 0, which is no reason.
    #[must_use]
    pub fn wait_reasons(&self) -> &'static [&'static str] {
        &[]
    }

    /// Number of the wait reason of a coroutine switch; `None` where there is none.
    #[must_use]
    pub fn coroutine_reason(&self) -> Option<u8> {
        None
    }

    /// Bit n: a wait with reason n that the scheduler itself ends is ended by the collector.
    #[must_use]
    pub fn gc_reasons(&self) -> u64 {
        0
    }

    /// The frames of a program counter (link-time address), innermost first: inlined ones, then the
    /// function itself. A return address is looked up at the call before it. Empty outside of Go code.
    #[must_use]
    pub fn lookup(&self, _pc: u64, _is_return_address: bool) -> Vec<Frame> {
        Vec::new()
    }

    /// The function at a link-time address.
    #[must_use]
    pub fn function_at(&self, _pc: u64) -> Option<Function> {
        None
    }

    /// Link-time address of a function by its full name. Takes a walk over all functions.
    #[must_use]
    pub fn function_address(&self, _name: &str) -> Option<u64> {
        None
    }

    /// Mapped address less link-time address, from where a part of this file is mapped: begin of the
    /// mapping and the file offset that is mapped there. `None` when no loadable segment has that offset.
    #[must_use]
    pub fn load_bias(&self, _mapping_start: u64, _mapping_file_offset: u64) -> Option<u64> {
        None
    }
}
