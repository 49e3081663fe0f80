//! What the table gives out: things that ended, in numbers. Names come later.

use core::net::SocketAddr;

use smallvec::SmallVec;

use super::CpuUse;
use crate::decode::Exit;

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
    /// Its whole life by state, where that was seen.
    pub life: Option<Life>,
    /// Whether one of its waits was long ([`super::Table::set_long_wait`]).
    pub waited_long: bool,
    /// Sums of the waits that were sent, by reason.
    pub waits_by_reason: SmallVec<[(u8, u64); 1]>,
}

/// What a goroutine did from its creation to its exit; the times add up to those between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// On a thread, outside of system calls.
    pub running_ns: u64,
    /// Runnable, and not on a thread.
    pub run_queue_ns: u64,
    /// In system calls.
    pub syscall_ns: u64,
    /// Blocked.
    pub blocked_ns: u64,
}

impl Life {
    /// Of a goroutine that lived for so long; `None` where its sums are not those of all its life.
    pub(super) fn of(exit: &Exit, lifetime_ns: u64) -> Option<Self> {
        let Exit { schedule_total_ns, blocked_total_ns, syscall_total_ns, whole, .. } = *exit;
        let off = schedule_total_ns.checked_add(blocked_total_ns)?.checked_add(syscall_total_ns)?;
        let running_ns = lifetime_ns.checked_sub(off).filter(|_| whole)?;
        Some(Self {
            running_ns,
            run_queue_ns: schedule_total_ns,
            syscall_ns: syscall_total_ns,
            blocked_ns: blocked_total_ns,
        })
    }
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
