//! Findings and wait-for graphs written down, one file a format.
//!
//! Input: [`Finding`](gotrace_inspect::leak::Finding)s or a [`Graph`](gotrace_inspect::leak::Graph), and
//! [`Names`](gotrace_inspect::snapshot::Names) for their addresses. Output: bytes.

pub mod evidence;
pub mod graph;
pub mod json;
pub mod text;
pub(crate) mod values;
pub mod why;

pub use gotrace_inspect::examine::ProofSummary;

/// What is said beside the findings.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The process.
    pub pid: u32,
    /// The executable's path, as its own mount namespace has it.
    pub executable: &'a str,
    /// As the binary has it, experiments included.
    pub go_version: &'a str,
    /// Where the figures come from: `snapshot` or `events`.
    pub engine: &'static str,
    /// Begin of the first look, since Unix epoch.
    pub time_unix_nano: u64,
    /// From the begin of the first look to the end of the last.
    pub duration_ns: u64,
    /// Looks at the process.
    pub looks: usize,
    /// Goroutines at the last look, without the runtime's own.
    pub goroutines: u64,
    /// Goroutines that were seen to come after the first look, and to go.
    pub came_and_exited: (u64, u64),
    /// When it was looked at.
    pub when: When,
    /// Whether who refers to what could be looked for in all stacks and variables.
    pub references_complete: bool,
    /// What marking the heap came to; `None` where it was not marked.
    pub proof: Option<&'a ProofSummary>,
    /// What descriptors and system calls lead to; `None` where that was not looked up.
    pub outside: Option<&'a gotrace_inspect::snapshot::Outside>,
}

/// When a process was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Once: growing and stuck cannot be told.
    Once,
    /// Again and again.
    Watched,
    /// When it had ended.
    AtItsEnd,
}
