//! What the table gives out: things that ended, in numbers. Names come later.

use core::net::SocketAddr;

use smallvec::SmallVec;

use super::CpuUse;

/// Something that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A goroutine.
    Ended(Ended),
    /// A wait.
    Waited(Waited),
}

/// A goroutine's life. Times are those of the monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub goid: u64,
    /// Its creator; 0 when the runtime made it.
    pub parent_goid: u64,
    /// The goroutine with which its trace begins; itself when it begins one.
    pub root: u64,
    /// Where it begins a trace: the goroutine with which its creator's begins.
    pub creator_root: Option<u64>,
    /// Creation.
    pub birth_ns: u64,
    /// Exit.
    pub exit_ns: u64,
    /// Return address of the `go` statement.
    pub created_pc: u64,
    /// Entry of its function.
    pub entry_pc: u64,
    /// Sum of its waits, short ones included.
    pub wait_total_ns: u64,
    /// Number of its waits, short ones included.
    pub wait_count: u64,
    /// Processor time; 0 where it is not known.
    pub cpu: CpuUse,
    /// Whether one of its waits was long ([`super::Table::set_long_wait`]).
    pub waited_long: bool,
    /// Sums of the waits that were sent, by reason.
    pub waits_by_reason: SmallVec<[(u8, u64); 1]>,
}

/// A wait of at least the threshold. Times are those of the monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waited {
    /// Who waited.
    pub goid: u64,
    /// The goroutine with which its trace begins.
    pub root: u64,
    /// Number of the wait reason, or `ROW_SYSCALL`.
    pub reason: u8,
    /// Park.
    pub start_ns: u64,
    /// Next run.
    pub end_ns: u64,
    /// When it became runnable; `None` when not seen.
    pub wake_ns: Option<u64>,
    /// Who woke it.
    pub waker: Waker,
    /// Who is at the other end of the connection that it waited for.
    pub peer: Option<SocketAddr>,
    /// Program counters, innermost first.
    pub frames: SmallVec<[u64; 8]>,
}

/// Who ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in gotrace_common::WakerKind")]
pub enum Waker {
    Unknown,
    Goroutine { goid: u64, root: u64 },
    Netpoll,
    Timer,
    Gc,
}
