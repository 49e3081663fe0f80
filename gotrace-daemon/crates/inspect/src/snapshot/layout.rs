//! Where the fields are that a snapshot reads, for one program: offsets resolved once, and checked reads.

use super::SnapshotError;
use gotrace_go::{Arch, Binary, Offsets};

/// Offsets in bytes. Optional fields are `None` where the version of Go does not have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub arm64: bool,
    pub stack_lo: usize,
    pub stack_hi: usize,
    pub m: usize,
    pub sp: usize,
    pub pc: usize,
    pub lr: usize,
    pub syscall_sp: usize,
    pub syscall_pc: usize,
    pub status: usize,
    pub goid: usize,
    pub wait_since: usize,
    pub wait_reason: usize,
    pub locked_m: usize,
    pub parent: Option<usize>,
    pub created_pc: usize,
    pub entry_pc: usize,
    pub waiting: usize,
    pub labels: usize,
    /// Counts, modulo 256, how often it stopped running; see [`super::Goroutine::park_mark`].
    pub tracking_seq: Option<usize>,
    /// As much of a `g` as is read.
    pub g_len: usize,
    pub m_procid: usize,
    pub m_curg: usize,
    pub sudog_g: usize,
    pub sudog_elem: usize,
    pub sudog_waitlink: usize,
    pub sudog_c: usize,
    pub sudog_len: usize,
    pub chan_count: usize,
    pub chan_size: usize,
    pub chan_elem_size: usize,
    pub chan_closed: usize,
    /// `hchan.elemtype`, and `hchan.timer` before it (Go 1.23 and later).
    pub chan_elem_type: usize,
    pub chan_timer: Option<usize>,
    pub chan_recvq: usize,
    pub chan_sendq: usize,
    pub chan_len: usize,
    pub poll_fd: Option<usize>,
    pub poll_rg: Option<usize>,
    pub poll_wg: Option<usize>,
    /// Deadlines of a descriptor's readers and writers.
    pub poll_rd: Option<usize>,
    pub poll_wd: Option<usize>,
    pub timer_when: Option<usize>,
    pub g_timer: Option<usize>,
    pub g_sleep_when: Option<usize>,
    /// Labels are a map (up to Go 1.23), not a slice.
    pub labels_are_a_map: bool,
    /// A goroutine that waits for a lock does not point to its entry (up to Go 1.25).
    pub locks_are_apart: bool,
}

/// No structure of the runtime that is read is longer.
const LONGEST: usize = 4096;

impl Layout {
    /// Resolves the offsets of the binary's own version.
    pub fn new(binary: &Binary) -> Result<Self, SnapshotError> {
        Self::of(binary, binary.go_version().minor, binary.offsets())
    }

    /// Whether goroutines look the same by both; labels, which are not looked at to tell versions apart, may
    /// not.
    pub fn has_the_same_goroutines(&self, other: &Self) -> bool {
        let labels_are_a_map = other.labels_are_a_map;
        Self { labels_are_a_map, ..*self } == *other
    }

    /// Resolves offsets as a minor version has them.
    pub fn of(binary: &Binary, minor: u32, offsets: &Offsets) -> Result<Self, SnapshotError> {
        let get =
            |field: &'static str| {
                offsets.get(field).map(|o| o as usize).filter(|&o| o <= LONGEST).ok_or_else(|| {
                    SnapshotError::NoField { field, version: binary.go_version().text.clone() }
                })
            };
        let small = |field: &str| offsets.get(field).map(|o| o as usize).filter(|&o| o <= LONGEST);
        // No look at a process tells whether these are there.
        let certain = |field: &str| small(field).filter(|_| !binary.layout_is_extrapolated());
        let truth = |field: &'static str, plain: &'static str| match offsets.get(field) {
            // Two words from Go 1.26 on: the collector may clear the first, the second is always right.
            Some(o) => Ok(o as usize),
            None => get(plain),
        };
        let mut this = Self {
            arm64: binary.arch() == Arch::Arm64,
            stack_lo: get("g.stack.lo")?,
            stack_hi: get("g.stack.hi")?,
            m: get("g.m")?,
            sp: get("g.sched.sp")?,
            pc: get("g.sched.pc")?,
            lr: get("g.sched.lr")?,
            syscall_sp: get("g.syscallsp")?,
            syscall_pc: get("g.syscallpc")?,
            status: get("g.atomicstatus")?,
            goid: get("g.goid")?,
            wait_since: get("g.waitsince")?,
            wait_reason: get("g.waitreason")?,
            locked_m: get("g.lockedm")?,
            parent: offsets.get("g.parentGoid").map(|o| o as usize),
            created_pc: get("g.gopc")?,
            entry_pc: get("g.startpc")?,
            waiting: get("g.waiting")?,
            labels: get("g.labels")?,
            tracking_seq: certain("g.trackingSeq"),
            g_len: 0,
            m_procid: get("m.procid")?,
            m_curg: get("m.curg")?,
            sudog_g: get("sudog.g")?,
            sudog_elem: truth("sudog.elem.vu", "sudog.elem")?,
            sudog_waitlink: get("sudog.waitlink")?,
            sudog_c: truth("sudog.c.vu", "sudog.c")?,
            sudog_len: 0,
            chan_count: get("hchan.qcount")?,
            chan_size: get("hchan.dataqsiz")?,
            chan_elem_size: get("hchan.elemsize")?,
            chan_closed: get("hchan.closed")?,
            chan_elem_type: 0,
            chan_timer: None,
            chan_recvq: get("hchan.recvq")?,
            chan_sendq: get("hchan.sendq")?,
            chan_len: 0,
            poll_fd: small("pollDesc.fd"),
            poll_rg: small("pollDesc.rg"),
            poll_wg: small("pollDesc.wg"),
            poll_rd: certain("pollDesc.rd"),
            poll_wd: certain("pollDesc.wd"),
            timer_when: certain("timer.when"),
            g_timer: certain("g.timer"),
            g_sleep_when: certain("g.sleepWhen"),
            labels_are_a_map: minor <= 23,
            locks_are_apart: minor <= 25,
        };
        let g = [
            this.stack_lo,
            this.stack_hi,
            this.m,
            this.sp,
            this.pc,
            this.lr,
            this.syscall_sp,
            this.syscall_pc,
            this.status,
            this.goid,
            this.wait_since,
            this.wait_reason,
            this.locked_m,
            this.parent.unwrap_or(0),
            this.created_pc,
            this.entry_pc,
            this.waiting,
            this.labels,
            this.tracking_seq.unwrap_or(0),
        ];
        this.g_len = end(&g, 8);
        this.sudog_len = end(&[this.sudog_g, this.sudog_elem, this.sudog_waitlink, this.sudog_c], 8);
        // Before `recvq` are `elemtype`, `sendx`, `recvx`, of a word each (Go 1.19 to 1.27).
        this.chan_elem_type = this.chan_recvq.saturating_sub(24);
        this.chan_timer = this.chan_elem_type.checked_sub(8).filter(|_| minor >= 23);
        this.chan_len = end(&[this.chan_count, this.chan_size, this.chan_closed], 8)
            .max(end(&[this.chan_recvq, this.chan_sendq], 16));
        Ok(this)
    }
}

fn end(fields: &[usize], size: usize) -> usize {
    fields.iter().max().map_or(0, |last| last + size)
}

/// The word at an offset; 0 outside of the bytes.
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// The half word at an offset; 0 outside of the bytes.
pub(crate) fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}
