//! What user space tells the kernel side about a process, and what the kernel side keeps of each
//! goroutine.

/// Births and deaths, and what the collector costs.
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
    /// Who stops the world says why (Go 1.21 and later).
    pub const STOP_REASON: u32 = 4;
    /// Thread switches are watched: what goroutines use of the processors is counted, from [`super::LEVEL_WAITS`] on.
    pub const CPU_TIME: u32 = 8;
    /// Requests are watched, at [`super::LEVEL_FULL`]: goroutines that serve one have an account.
    pub const REQUESTS: u32 = 16;
}

/// Processor time of a goroutine, or time throttled, that is not told yet, at which a record tells it.
pub const CPU_TOLD_NS: u32 = 1_000_000;

/// Programs by number: the lower half of a probe's cookie, by which the programs `dispatch_…` choose. [`program::NAMES`]
/// has the program that does the same alone.
pub mod program {
    /// `create_0`
    pub const CREATE_0: u32 = 0;
    /// `create_1`
    pub const CREATE_1: u32 = 1;
    /// `create_2`
    pub const CREATE_2: u32 = 2;
    /// `create_by_status`
    pub const CREATE_BY_STATUS: u32 = 3;
    /// `create_coroutine_0`
    pub const CREATE_COROUTINE_0: u32 = 4;
    /// `create_coroutine_1`
    pub const CREATE_COROUTINE_1: u32 = 5;
    /// `create_coroutine_2`
    pub const CREATE_COROUTINE_2: u32 = 6;
    /// `exit`
    pub const EXIT: u32 = 7;
    /// `park`
    pub const PARK: u32 = 8;
    /// `run`
    pub const RUN: u32 = 9;
    /// `ready`
    pub const READY: u32 = 10;
    /// `ready_closure`
    pub const READY_CLOSURE: u32 = 11;
    /// `netpoll`
    pub const NETPOLL: u32 = 12;
    /// `inject_list`
    pub const INJECT_LIST: u32 = 13;
    /// `give_way`
    pub const GIVE_WAY: u32 = 14;
    /// `coroutine_switch`
    pub const COROUTINE_SWITCH: u32 = 15;
    /// `syscall_enter`
    pub const SYSCALL_ENTER: u32 = 16;
    /// `syscall_exit`
    pub const SYSCALL_EXIT: u32 = 17;
    /// `stop_world`
    pub const STOP_WORLD: u32 = 18;
    /// `start_world`
    pub const START_WORLD: u32 = 19;
    /// `world_started`
    pub const WORLD_STARTED: u32 = 20;
    /// `assist_begin`
    pub const ASSIST_BEGIN: u32 = 21;
    /// `assist_end`
    pub const ASSIST_END: u32 = 22;
    /// `http_begin`
    pub const HTTP_BEGIN: u32 = 23;
    /// `http_route`
    pub const HTTP_ROUTE: u32 = 24;
    /// `http_handler`
    pub const HTTP_HANDLER: u32 = 25;
    /// `http_hijack`
    pub const HTTP_HIJACK: u32 = 26;
    /// `http1_end`
    pub const HTTP1_END: u32 = 27;
    /// `http2_end`
    pub const HTTP2_END: u32 = 28;
    /// `x_http2_end`
    pub const X_HTTP2_END: u32 = 29;
    /// `grpc_begin`
    pub const GRPC_BEGIN: u32 = 30;
    /// `grpc_end`
    pub const GRPC_END: u32 = 31;
    /// `panic`
    pub const PANIC: u32 = 32;
    /// `http_carries_grpc`
    pub const HTTP_CARRIES_GRPC: u32 = 33;
    /// `span_begin`
    pub const SPAN_BEGIN: u32 = 34;
    /// `span_end`
    pub const SPAN_END: u32 = 35;
    /// `x_http2_begin`
    pub const X_HTTP2_BEGIN: u32 = 36;
    /// `http_carries_http2`
    pub const HTTP_CARRIES_HTTP2: u32 = 37;
    /// `gin_route`
    pub const GIN_ROUTE: u32 = 38;
    /// `echo_lookup`
    pub const ECHO_LOOKUP: u32 = 39;
    /// `echo_route`
    pub const ECHO_ROUTE: u32 = 40;
    /// `chi_route`
    pub const CHI_ROUTE: u32 = 41;
    /// `gorilla_route`
    pub const GORILLA_ROUTE: u32 = 42;
    /// `gorilla_value`
    pub const GORILLA_VALUE: u32 = 43;
    /// `wrapped_http2_begin`
    pub const WRAPPED_HTTP2_BEGIN: u32 = 44;
    /// `function_begin`
    pub const FUNCTION_BEGIN: u32 = 45;
    /// `function_end`
    pub const FUNCTION_END: u32 = 46;
    /// `function_recovered`
    pub const FUNCTION_RECOVERED: u32 = 47;

    /// Names of the programs, by number.
    pub const NAMES: [&str; 48] = [
        "create_0",
        "create_1",
        "create_2",
        "create_by_status",
        "create_coroutine_0",
        "create_coroutine_1",
        "create_coroutine_2",
        "exit",
        "park",
        "run",
        "ready",
        "ready_closure",
        "netpoll",
        "inject_list",
        "give_way",
        "coroutine_switch",
        "syscall_enter",
        "syscall_exit",
        "stop_world",
        "start_world",
        "world_started",
        "assist_begin",
        "assist_end",
        "http_begin",
        "http_route",
        "http_handler",
        "http_hijack",
        "http1_end",
        "http2_end",
        "x_http2_end",
        "grpc_begin",
        "grpc_end",
        "panic",
        "http_carries_grpc",
        "span_begin",
        "span_end",
        "x_http2_begin",
        "http_carries_http2",
        "gin_route",
        "echo_lookup",
        "echo_route",
        "chi_route",
        "gorilla_route",
        "gorilla_value",
        "wrapped_http2_begin",
        "function_begin",
        "function_end",
        "function_recovered",
    ];
}

/// Offsets in the runtime's structures, in bytes (`runtime/runtime2.go`, `netpoll.go`, `coro.go`).
///
/// Held by every Go version from 1.18 to 1.27, and checked when the plan is made:
/// `g.waitreason == g.goid + 24`, `g.startpc == g.gopc + 16`, `g.sched.pc == g.sched.sp + 8`. Held too, and not
/// checked: `g.sched.ctxt == g.sched.pc + 16`; what is read there is believed only where it leads to a function.
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
    /// `m.waitlock`; 0 where that is not known
    pub waitlock: u16,
    /// `pollDesc.fd`
    pub poll_fd: u16,
}

/// Entries of goroutines that call what the goroutine's closure holds (64 bytes): all of them are in it, and of other
/// entries the fewer the fewer it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EntryFilter {
    bits: [u64; 8],
}

impl EntryFilter {
    /// It has all entries.
    pub const ALL: Self = Self { bits: [u64::MAX; 8] };

    /// Adds an entry, by its address in the process.
    pub const fn insert(&mut self, entry: u64) {
        let bit = Self::bit(entry);
        self.bits[bit / 64] |= 1 << (bit % 64);
    }

    /// Whether it may have the entry.
    #[inline(always)]
    #[must_use]
    pub const fn may_have(&self, entry: u64) -> bool {
        let bit = Self::bit(entry);
        self.bits[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Functions begin at multiples of 16; Fibonacci hashing spreads what is left over 512 bits.
    #[inline(always)]
    const fn bit(entry: u64) -> usize {
        ((entry >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55) as usize
    }
}

/// Value of the map `PROCESSES`, keyed by thread group id (136 bytes).
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
    /// Number of the wait reason `IO wait`, for this Go version.
    pub io_reason: u8,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Waits at least this long become records.
    pub min_wait_ns: u64,
    /// Where things are.
    pub layout: GLayout,
    /// Reserved, 0.
    pub reserved: u32,
    /// Bit n: a wait with reason n that the scheduler itself ends is ended by the collector.
    pub gc_reasons: u64,
    /// Number of the file-wide attachment that the process listens to (the upper half of its probes' cookies);
    /// 0 for probes that are scoped to the process.
    pub file: u32,
    /// The count of executions of this slot (map `EXECUTIONS`) that this entry is for, modulo 2^32. While the
    /// two differ a hit is ignored: the process runs another program than the one that this entry describes.
    pub generation: u32,
    /// Entries whose creation is told with words of the closure.
    pub closures: EntryFilter,
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

/// Value of the map `GOROUTINES` (112 bytes): made at a goroutine's first park, or run where processor time is counted;
/// removed at its exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GoroutineState {
    /// When it parked; 0 while it does not wait.
    pub park_ns: u64,
    /// When it became runnable; 0 when not seen.
    pub wake_ns: u64,
    /// Who woke it; 0 when no goroutine did.
    pub waker_goid: u64,
    /// When it entered the system call that it is in, or came back from the last one; 0 where neither was seen since it
    /// last ran anew.
    pub syscall_ns: u64,
    /// Sum of its waits.
    pub wait_total_ns: u64,
    /// Sum of the times in which it was runnable and did not run.
    pub schedule_total_ns: u64,
    /// Sum of the times between a park and becoming runnable, or running where that was not seen.
    pub blocked_total_ns: u64,
    /// Sum of its times in system calls, up to their ends.
    pub syscall_total_ns: u64,
    /// Processor time that it has used, up to its last park, yield or change of thread.
    pub cpu_ns: u64,
    /// For how long the thread that it was on stood still, as the CPU quota was used up.
    pub throttled_ns: u64,
    /// Address of its `g` at the park.
    pub g: u64,
    /// Address of `pollDesc.rg` or `.wg` that it parked on; 0 where it waits for something else than a descriptor.
    pub poll: u64,
    /// What was told of [`Self::cpu_ns`], modulo 2^32.
    pub cpu_told_ns: u32,
    /// What was told of [`Self::throttled_ns`], modulo 2^32.
    pub throttled_told_ns: u32,
    /// Number of its waits, at most `u32::MAX`.
    pub wait_count: u32,
    /// Wait reason of the park.
    pub reason: u8,
    /// [`crate::WakerKind`]
    pub waker: u8,
    /// 1 while it has an account ([`crate::Account`]).
    pub accounted: u8,
    /// [`Self::IN_SYSCALL`] and [`Self::WHOLE`].
    pub flags: u8,
}

impl GoroutineState {
    /// It is in a system call.
    pub const IN_SYSCALL: u8 = 1;
    /// The sums are those of its whole life, from its creation at level full on.
    pub const WHOLE: u8 = 2;
}

/// Value of the map `THREADS`, keyed by the thread's id in the initial PID namespace (96 bytes): made when the thread of a
/// traced process first runs a goroutine or does the collector's work, removed at its exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadState {
    /// The goroutine that it runs; 0 for none.
    pub goid: u64,
    /// Processor time that it has used since it is known, up to [`Self::since_ns`].
    pub cpu_ns: u64,
    /// Since when it has the processor that it has; 0 without one, and where that was not told.
    pub since_ns: u64,
    /// What the scheduler had counted for it when it last gave up a processor; 0 where it has not since it is known.
    pub counted_ns: u64,
    /// Its processor time when it began to run the goroutine.
    pub from_ns: u64,
    /// For how long it has stood still since it is known, as the CPU quota was used up.
    pub throttled_ns: u64,
    /// Since when it stands still for that, or waits in [`Self::queue`] for a processor; 0 where it does neither.
    pub throttled_since_ns: u64,
    /// The kernel's queue that it waits in, while that has quota left; 0 where it does not.
    pub queue: u64,
    /// For how long that had stood still by then.
    pub queue_throttled_ns: u64,
    /// For how long it had when it began to run the goroutine.
    pub throttled_from_ns: u64,
    /// Since when it does the collector's work for a goroutine that allocates; 0 where it does not.
    pub assist_ns: u64,
    /// [`ProcessConfig::process`]
    pub process: u32,
    /// [`ProcessConfig::slot`]
    pub slot: u32,
}

/// Where the kernel keeps whether a thread stands still as its CPU quota is used up, in bytes (20 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QuotaLayout {
    /// `task_struct.throttled` (Linux 6.18): the thread itself is marked; 0 where there is none. Then its queue is what
    /// tells.
    pub marked: u32,
    /// `task_struct.__state` (`state` before Linux 5.14)
    pub state: u32,
    /// `task_struct.se.cfs_rq`, the queue that the thread is in; 0 where none of this is known.
    pub queue: u32,
    /// `cfs_rq.throttle_count`: of how many control groups around the queue the quota is used up.
    pub throttle_count: u32,
    /// For how long that was so: `cfs_rq.throttled_clock_self_time`, `throttled_clock_pelt_time` (before Linux 6.6),
    /// `throttled_clock_task_time` (before 5.19).
    pub throttled_time: u32,
}

impl QuotaLayout {
    /// Nothing is known.
    pub const NONE: Self = Self { marked: 0, state: 0, queue: 0, throttle_count: 0, throttled_time: 0 };
}

/// Where the kernel keeps what a socket is connected to, in bytes (56 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SocketLayout {
    /// `task_struct.files`; 0 where none of this is known.
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_table: u32,
    /// `fdtable.max_fds`
    pub table_length: u32,
    /// `fdtable.fd`
    pub table_files: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `file.private_data`
    pub file_private: u32,
    /// `socket.sk`
    pub socket_sock: u32,
    /// `sock_common.skc_family`
    pub family: u32,
    /// `sock_common.skc_state`
    pub state: u32,
    /// `sock_common.skc_dport`
    pub port: u32,
    /// `sock_common.skc_num`
    pub local_port: u32,
    /// `sock_common.skc_daddr`
    pub address: u32,
    /// `sock_common.skc_v6_daddr`; 0 in a kernel without version 6.
    pub address6: u32,
}

impl SocketLayout {
    /// Nothing is known.
    pub const NONE: Self = Self {
        task_files: 0,
        files_table: 0,
        table_length: 0,
        table_files: 0,
        file_inode: 0,
        inode_mode: 0,
        file_private: 0,
        socket_sock: 0,
        family: 0,
        state: 0,
        port: 0,
        local_port: 0,
        address: 0,
        address6: 0,
    };
}

const _: () = {
    assert!(size_of::<QuotaLayout>() == 20);
    assert!(size_of::<SocketLayout>() == 56);
    assert!(size_of::<GLayout>() == 28);
    assert!(size_of::<EntryFilter>() == 64);
    assert!(size_of::<ProcessConfig>() == 136);
    assert!(size_of::<GoroutineKey>() == 16);
    assert!(size_of::<GoroutineState>() == 112);
    assert!(size_of::<ThreadState>() == 96);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), no padding (sizes asserted above), every bit pattern valid.
    unsafe impl aya::Pod for super::ProcessConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GoroutineKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GoroutineState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ThreadState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::QuotaLayout {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SocketLayout {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_what_was_put_in_and_little_else() {
        let mut filter = EntryFilter::default();
        let entries = (0..40).map(|n| 0x40_1000 + n * 0x1a0);
        assert!(entries.clone().all(|entry| !filter.may_have(entry)));
        entries.clone().for_each(|entry| filter.insert(entry));
        assert!(entries.clone().all(|entry| filter.may_have(entry)));
        let others = (0..1000).map(|n| 0x7f00_0000_0000 + n * 0x120);
        let taken = others.filter(|entry| filter.may_have(*entry)).count();
        assert!(taken < 160, "{taken} of 1000 others");
        assert!(EntryFilter::ALL.may_have(1));
    }
}
