//! What user space tells the kernel side about a process, and what the kernel side keeps of each
//! goroutine.

/// Births and deaths.
pub const LEVEL_LIFECYCLE: u8 = 1;
/// And waits.
pub const LEVEL_WAITS: u8 = 2;
/// And wakes, scheduling delay, coroutine switches and system calls.
pub const LEVEL_FULL: u8 = 3;

/// Most goroutines of one list that a wake by the garbage collector is followed through.
pub const MAX_WAKE_LIST: u32 = 64;

/// Bits of [`ProcessConfig::flags`].
pub mod flags {
    /// `g.parentGoid` exists and lies 8 bytes before `g.gopc` (Go 1.21 and later); else the creator
    /// is read from `m.curg`.
    pub const PARENT_GOID: u32 = 1;
    /// Most of what the ring holds is this process's: it must leave the upper half of it to others.
    pub const FLOODS: u32 = 2;
    /// The process has yet to execute the program that it is traced as. Any other execution switches it off:
    /// what runs then has goroutines of its own, and the same ids.
    pub const EXPECTS_EXECUTION: u32 = 4;
}

/// Offsets in the runtime's structures, in bytes (`runtime/runtime2.go`, `netpoll.go`, `coro.go`).
///
/// Held by every Go version from 1.18 to 1.27, and checked when the plan is made:
/// `g.waitreason == g.goid + 24`, `g.startpc == g.gopc + 16`, `g.sched.pc == g.sched.sp + 8`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GLayout {
    /// `g.goid`
    pub goid: u16,
    /// `g.gopc`
    pub gopc: u16,
    /// `g.m`
    pub m: u16,
    /// `m.curg`
    pub curg: u16,
    /// `g.sched.pc`
    pub sched_pc: u16,
    /// `g.sched.bp`
    pub sched_bp: u16,
    /// `g.schedlink`
    pub schedlink: u16,
    /// `g.coroarg`; 0 before Go 1.23
    pub coroarg: u16,
    /// `g.coroexit`; 0 before Go 1.23
    pub coroexit: u16,
    /// `pollDesc.rg`
    pub poll_rg: u16,
    /// `pollDesc.wg`
    pub poll_wg: u16,
    /// `g.atomicstatus`
    pub status: u16,
}

/// Value of the map `PROCESSES`, keyed by thread group id (64 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessConfig {
    /// Number of the process, never reused while the agent runs, never 0.
    pub process: u32,
    /// Row of the process in `COUNTERS`; rows of histograms begin at `slot * REASON_ROWS`.
    pub slot: u32,
    /// One of `LEVEL_*`; 0 switches the process off.
    pub level: u8,
    /// Frames to walk, 0 to [`crate::DEEP_FRAMES`].
    pub stack_depth: u8,
    /// Wait reason number of a coroutine switch, for this Go version; 0 where there is none.
    pub coroutine_reason: u8,
    /// Reserved, 0.
    pub reserved: u8,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Waits at least this long become records.
    pub min_wait_ns: u64,
    /// Where things are.
    pub layout: GLayout,
    /// Bit n: a wait with reason n that the scheduler itself ends is ended by the collector.
    pub gc_reasons: u64,
    /// Number of the executable whose probes the process listens to (their cookie); 0 for those that were
    /// put in place for it alone.
    pub file: u32,
    /// Reserved, 0.
    pub reserved2: u32,
}

/// Key of the map `GOROUTINES` (16 bytes): a goroutine is a process and a goid, never an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct GoroutineKey {
    /// Goroutine id.
    pub goid: u64,
    /// [`ProcessConfig::process`]
    pub process: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Value of the map `GOROUTINES` (72 bytes): made at a goroutine's first park, removed at its exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GoroutineState {
    /// When it parked; 0 while it does not wait.
    pub park_ns: u64,
    /// When it became runnable; 0 when not seen.
    pub wake_ns: u64,
    /// Who woke it; 0 when no goroutine did.
    pub waker_goid: u64,
    /// When it entered a system call; 0 outside.
    pub syscall_ns: u64,
    /// Sum of its waits.
    pub wait_total_ns: u64,
    /// Sum of its scheduling delays.
    pub schedule_total_ns: u64,
    /// Number of its waits.
    pub wait_count: u64,
    /// Address of its `g` at the park.
    pub g: u64,
    /// Wait reason of the park.
    pub reason: u8,
    /// [`crate::WakerKind`]
    pub waker: u8,
    /// Reserved, 0.
    pub reserved: [u8; 6],
}

const _: () = {
    assert!(size_of::<GLayout>() == 24);
    assert!(size_of::<ProcessConfig>() == 64);
    assert!(size_of::<GoroutineKey>() == 16);
    assert!(size_of::<GoroutineState>() == 72);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), no padding (sizes asserted above), every bit pattern valid.
    unsafe impl aya::Pod for super::ProcessConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GoroutineKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GoroutineState {}
}
