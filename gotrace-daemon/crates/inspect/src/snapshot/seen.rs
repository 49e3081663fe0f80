//! One `g` as it was read: the fields that matter, and whether they can be right.

use super::{
    Status,
    layout::{Layout, half, word},
    unwind::Start,
};

/// `_Gscan`: the collector looks at the stack.
const SCAN: u32 = 0x1000;
/// The largest stack that the runtime allows is 1 GB (`runtime.maxstacksize`), and it doubles.
const MAX_STACK: u64 = 2 << 30;
/// Goids come from a counter.
const MAX_GOID: u64 = 1 << 56;

/// The fields of a `g`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub goid: u64,
    pub status: Status,
    pub stack: (u64, u64),
    pub m: u64,
    pub sched: (u64, u64, u64),
    pub syscall: (u64, u64),
    pub wait_since: u64,
    pub wait_reason: u8,
    pub locked_m: u64,
    pub parent: Option<u64>,
    pub created_pc: u64,
    pub entry_pc: u64,
    pub waiting: u64,
    pub labels: u64,
    /// `None` where it is not known where the version keeps it.
    pub tracking_seq: Option<u8>,
}

/// What a `g` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Goroutine(Seen),
    /// Idle, dead, or kept for C threads.
    Nothing,
    /// What cannot be.
    Nonsense,
}

impl Seen {
    /// Reads the fields.
    pub fn parse(bytes: &[u8], layout: &Layout) -> Holds {
        let status = match half(bytes, layout.status) & !SCAN {
            1 => Status::Runnable,
            2 => Status::Running,
            3 => Status::Syscall,
            4 => Status::Waiting,
            8 => Status::CopyStack,
            9 => Status::Preempted,
            10 => Status::Leaked,
            // Idle, dead, dead and kept for C threads.
            0 | 6 | 11 => return Holds::Nothing,
            _ => return Holds::Nonsense,
        };
        let at = |offset| word(bytes, offset);
        let this = Self {
            goid: at(layout.goid),
            status,
            stack: (at(layout.stack_lo), at(layout.stack_hi)),
            m: at(layout.m),
            sched: (at(layout.pc), at(layout.sp), at(layout.lr)),
            syscall: (at(layout.syscall_pc), at(layout.syscall_sp)),
            wait_since: at(layout.wait_since),
            wait_reason: bytes.get(layout.wait_reason).copied().unwrap_or_default(),
            locked_m: at(layout.locked_m),
            parent: layout.parent.map(at),
            created_pc: at(layout.created_pc),
            entry_pc: at(layout.entry_pc),
            waiting: at(layout.waiting),
            labels: at(layout.labels),
            tracking_seq: layout.tracking_seq.and_then(|o| bytes.get(o)).copied(),
        };
        let (lo, hi) = this.stack;
        let plausible = this.goid != 0
            && this.goid < MAX_GOID
            && lo < hi
            && hi - lo <= MAX_STACK
            && this.parent.is_none_or(|p| p < MAX_GOID)
            && this.m.is_multiple_of(8)
            && this.waiting.is_multiple_of(8);
        if plausible { Holds::Goroutine(this) } else { Holds::Nonsense }
    }

    /// Whether nothing happened between two looks that could have changed the stack or what it waits on.
    pub fn stood_still(&self, later: &Self) -> bool {
        self.goid == later.goid
            && self.status == later.status
            && self.stack == later.stack
            && self.sched == later.sched
            && self.syscall == later.syscall
            && self.waiting == later.waiting
            && (!self.status.is_waiting() || self.wait_reason == later.wait_reason)
    }

    /// See [`super::Goroutine::park_mark`]. The distance from the stack's end stays when the stack is moved.
    pub fn park_mark(&self) -> u64 {
        let Some(moves) = self.tracking_seq else { return 0 };
        let depth = self.stack.1.wrapping_sub(self.sched.1);
        let status = if self.status.is_waiting() { Status::Waiting } else { self.status };
        let parts = [u64::from(moves), self.sched.0, depth, self.waiting, status as u64];
        // FNV-1a, a word at a time.
        let hash = parts.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, &p| {
            let h = (h ^ p).wrapping_mul(0x0100_0000_01b3);
            h ^ (h >> 32)
        });
        hash.max(1)
    }

    /// Differs when it ran, but for one chance in 256, and when its stack was moved; 0 where it cannot be told.
    pub fn standing_mark(&self) -> u64 {
        let Some(moves) = self.tracking_seq else { return 0 };
        let parts = [
            self.goid,
            u64::from(moves) | u64::from(self.wait_reason) << 8 | u64::from(self.status.is_waiting()) << 16,
            self.stack.0,
            self.stack.1,
            self.sched.0,
            self.sched.1,
            self.waiting,
        ];
        // FNV-1a, a word at a time.
        let hash = parts.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, &p| {
            let h = (h ^ p).wrapping_mul(0x0100_0000_01b3);
            h ^ (h >> 32)
        });
        hash.max(1)
    }

    /// Where its stack can be followed from; `None` when it runs, or when the stack pointer is not in the
    /// stack.
    pub fn start(&self) -> Option<Start> {
        let start = match self.status {
            Status::Running | Status::CopyStack => return None,
            _ if self.syscall.1 != 0 => {
                Start { pc: self.syscall.0, sp: self.syscall.1, lr: 0, in_syscall: true }
            }
            _ => Start { pc: self.sched.0, sp: self.sched.1, lr: self.sched.2, in_syscall: false },
        };
        let (lo, hi) = self.stack;
        (start.sp >= lo && start.sp < hi && start.sp.is_multiple_of(8)).then_some(start)
    }

    /// Whether it has no stack to be read because it runs.
    pub fn runs(&self) -> bool {
        matches!(self.status, Status::Running | Status::CopyStack)
    }
}
