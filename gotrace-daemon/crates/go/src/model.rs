//! What this room tells others: facts on a binary, its probe plan, its frames. Plain data.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::requests::{Moment, Server};

/// Where a fact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The symbol table.
    Symtab,
    /// Go's own function table, which stripping leaves in place.
    Pclntab,
    /// Debug information.
    Dwarf,
    /// gotrace's table of Go versions.
    Table,
    /// Decoded instructions.
    Code,
    /// ELF headers.
    Elf,
    /// Go's build information.
    #[serde(rename = "buildinfo")]
    BuildInfo,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symtab => "symtab",
            Self::Pclntab => "pclntab",
            Self::Dwarf => "dwarf",
            Self::Table => "table",
            Self::Code => "code",
            Self::Elf => "elf",
            Self::BuildInfo => "buildinfo",
        })
    }
}

/// Processor architecture of a binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// Go's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Name of the n-th integer argument register of Go's register ABI; `None` where an argument is on the stack.
    #[must_use]
    pub fn argument_register(self, n: u8) -> Option<&'static str> {
        const AMD64: [&str; 9] = ["RAX", "RBX", "RCX", "RDI", "RSI", "R8", "R9", "R10", "R11"];
        const ARM64: [&str; 16] = [
            "X0", "X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8", "X9", "X10", "X11", "X12", "X13", "X14",
            "X15",
        ];
        let names = match self {
            Self::Amd64 => &AMD64[..],
            Self::Arm64 => &ARM64[..],
        };
        names.get(usize::from(n)).copied()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Version of Go that built a binary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GoVersion {
    /// 24 in `go1.24.3`.
    pub minor: u32,
    /// 3 in `go1.24.3`; 0 when there is none.
    pub patch: u32,
    /// As the binary has it, experiments included.
    pub text: String,
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a binary says about how it was built. `None`: the binary does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// Import path of the main package (`example.com/cmd/server`).
    pub path: Option<String>,
    /// Path of the main module.
    pub module: Option<String>,
    /// Version of the main module; `(devel)` when built from a checkout.
    pub module_version: Option<String>,
    /// `build` lines of the build information (`-race`, `GOOS`, `vcs.revision`, …).
    pub settings: BTreeMap<String, String>,
    /// Go's build id.
    pub go_build_id: Option<String>,
    /// Loaded at an address that changes with each start.
    pub pie: bool,
    /// Without symbol table.
    pub stripped: bool,
    /// With debug information.
    pub dwarf: bool,
    /// C code is linked in.
    pub cgo: Option<bool>,
    /// Built with the race detector.
    pub race: Option<bool>,
    /// Needs no shared library.
    pub static_: bool,
    /// Built with `-trimpath`.
    pub trimpath: Option<bool>,
    /// `exe`, `pie`, …
    pub buildmode: Option<String>,
}

/// Offset of a field in one of the runtime's structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Offset {
    /// Bytes from the structure's beginning.
    pub value: u32,
    /// Where it was learned.
    pub source: Source,
}

/// Offsets of fields by name (`g.goid`, `m.curg`, `pollDesc.rg`). A field that the version of Go does
/// not have is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Offsets(pub BTreeMap<&'static str, Offset>);

impl Offsets {
    /// Offset of a field in bytes; `None` when this version of Go does not have it.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<u32> {
        self.0.get(field).map(|o| o.value)
    }
}

/// Which of the kernel side's programs a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A goroutine was made by a `go` statement. The operand is the new `g`.
    Create,
    /// A goroutine was made by `iter.Pull`. The operand is the new `g`.
    CreateCoroutine,
    /// A goroutine ended. The operand is its `g`.
    Exit,
    /// A goroutine parked. The operand is its `g`.
    Park,
    /// A goroutine is put on a thread. The operand is its `g`.
    Run,
    /// A goroutine is made runnable. The operand is its `g`.
    Ready,
    /// A descriptor is ready. The operand is its `pollDesc`; the mode is in the register after it.
    Netpoll,
    /// A list of goroutines is made runnable. The operand points to the list's head.
    InjectList,
    /// A goroutine yields or is preempted. The operand is its `g`.
    Yield,
    /// A goroutine switches to another directly. The operand is the `g` that switches.
    Coroutine,
    /// A goroutine enters a system call.
    SyscallEnter,
    /// A goroutine leaves a system call.
    SyscallExit,
    /// The world is about to be stopped. The operand is the reason (Go 1.21).
    StopWorld,
    /// Goroutines that have a processor may go on.
    StartWorld,
    /// All processors are woken.
    WorldStarted,
    /// A goroutine that allocates begins to do the collector's work. The operand is its `g`.
    AssistBegin,
    /// It has done its share.
    AssistEnd,
    /// Something becomes known of a request: see [`Requests::probes`](super::requests::Requests::probes).
    Request(Server, Moment),
}

impl Event {
    /// All events but those of requests, in the order of a goroutine's life.
    pub const ALL: [Self; 17] = [
        Self::Create,
        Self::CreateCoroutine,
        Self::Exit,
        Self::Park,
        Self::Run,
        Self::Ready,
        Self::Netpoll,
        Self::InjectList,
        Self::Yield,
        Self::Coroutine,
        Self::SyscallEnter,
        Self::SyscallExit,
        Self::StopWorld,
        Self::StartWorld,
        Self::WorldStarted,
        Self::AssistBegin,
        Self::AssistEnd,
    ];

    /// The name that outputs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::CreateCoroutine => "create_coroutine",
            Self::Exit => "exit",
            Self::Park => "park",
            Self::Run => "run",
            Self::Ready => "ready",
            Self::Netpoll => "netpoll",
            Self::InjectList => "inject_list",
            Self::Yield => "yield",
            Self::Coroutine => "coroutine",
            Self::SyscallEnter => "syscall_enter",
            Self::SyscallExit => "syscall_exit",
            Self::StopWorld => "stop_world",
            Self::StartWorld => "start_world",
            Self::WorldStarted => "world_started",
            Self::AssistBegin => "assist_begin",
            Self::AssistEnd => "assist_end",
            Self::Request(_, Moment::Begin) => "request_begin",
            Self::Request(_, Moment::End) => "request_end",
            Self::Request(..) => "request_step",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a probe finds its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The n-th integer argument register of Go's register ABI ([`Arch::argument_register`]): 0 to 2 in probes on
    /// the runtime.
    Argument(u8),
    /// The first captured variable of a closure: `*(RDX + 8)`, arm64 `*(X26 + 8)`.
    ClosureContext,
    /// The current `g`: `R14`, arm64 `X28`.
    CurrentG,
    /// At a call of `runtime.casgstatus`: the `g` is the first argument, and the event has happened only
    /// when the second and third say that a dead goroutine becomes runnable.
    StatusChange,
}

/// Where to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What a hit means.
    pub event: Event,
    /// Function that holds the instruction.
    pub function: String,
    /// Link-time address of the instruction.
    pub address: u64,
    /// Its offset in the file: what a uprobe is attached to.
    pub file_offset: u64,
    /// The instruction.
    pub instruction: String,
    /// Whether the kernel emulates it; if not, each hit is single-stepped, about ten times as slow.
    pub emulated: bool,
    /// Where the value is.
    pub operand: Operand,
}

/// The probes of a level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where to probe, in the order of [`Event`].
    pub probes: Vec<Probe>,
    /// What these probes will not see, or see slowly.
    pub warnings: Vec<String>,
}

/// A logical frame of a program counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Function, as Go's tracebacks print it: `main.worker`, `main.f[...]`.
    pub function: String,
    /// File as the compiler recorded it; empty when unknown.
    pub file: String,
    /// Line, from 1; 0 when unknown.
    pub line: u32,
    /// Whether the compiler put the function into its caller, the next frame.
    pub inlined: bool,
    /// Whether Go's own traceback leaves the frame out at its default level.
    pub internal: bool,
    /// Whether the compiler made the function (method wrappers, the closure of a `go f(x)`). Go's
    /// traceback shows it when it called `runtime.gopanic`, `sigpanic` or `panicwrap`: the next inner
    /// frame, which this lookup may not know.
    pub wrapper: bool,
    /// What [`Frame::internal`] would be were it no wrapper.
    pub(super) hidden: bool,
}

impl Frame {
    /// Whether Go's own traceback leaves the frame out at its default level, given the function that it
    /// called, the next inner frame of the stack (`None`: it is the innermost).
    #[must_use]
    pub fn is_internal_below(&self, callee: Option<&str>) -> bool {
        let panicked = matches!(callee, Some("runtime.gopanic" | "runtime.sigpanic" | "runtime.panicwrap"));
        if self.wrapper && !panicked {
            return true;
        }
        // `panic` is shown wherever it was called, but not where a goroutine stands in it.
        if self.function == "runtime.gopanic" { callee.is_none() } else { self.hidden }
    }
}

/// A function of the binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// First address, link time.
    pub entry: u64,
    /// First address after it.
    pub end: u64,
    /// Name, type arguments in full.
    pub name: String,
}
