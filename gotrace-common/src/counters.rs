//! What the kernel side counts, per process and per CPU.

/// Probe hits by event, index into [`Counters::hits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Hit {
    /// A goroutine was made.
    Create = 0,
    /// A goroutine ended.
    Exit = 1,
    /// A goroutine parked.
    Park = 2,
    /// A goroutine was put on a thread.
    Run = 3,
    /// A goroutine was made runnable by another, or by a timer.
    Ready = 4,
    /// Goroutines were made runnable by the network poller.
    Netpoll = 5,
    /// Goroutines were made runnable as a list.
    InjectList = 6,
    /// A goroutine yielded or was preempted.
    Yield = 7,
    /// A goroutine switched to another directly.
    Coroutine = 8,
    /// A goroutine entered a system call.
    SyscallEnter = 9,
    /// A goroutine left a system call.
    SyscallExit = 10,
    /// The world was stopped.
    StopWorld = 11,
    /// The world was started again: two hits each time.
    StartWorld = 12,
    /// A goroutine that allocates began to do the collector's work.
    AssistBegin = 13,
    /// It has done its share.
    AssistEnd = 14,
    /// A thread that is known was switched away from its processor: no probe, but a call at the kernel's own.
    Switch = 15,
    /// A request began.
    RequestBegin = 16,
    /// Something became known of an open request: it came to a mux or handler, its connection was taken over, it panicked.
    RequestStep = 17,
    /// A request ended.
    RequestEnd = 18,
}

impl Hit {
    /// How many there are.
    pub const COUNT: usize = 19;
    /// Name of each, as outputs show it.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "create",
        "exit",
        "park",
        "run",
        "ready",
        "netpoll",
        "inject_list",
        "yield",
        "coroutine",
        "syscall_enter",
        "syscall_exit",
        "stop_world",
        "start_world",
        "assist_begin",
        "assist_end",
        "switch",
        "request_begin",
        "request_step",
        "request_end",
    ];
}

/// What was lost, by reason, index into [`Counters::lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Lost {
    /// A birth that found no room in the ring.
    RingCreate = 0,
    /// A death that found no room in the ring.
    RingExit = 1,
    /// A wait that found no room in the ring.
    RingWait = 2,
    /// A process event that found no room in the ring.
    RingProcess = 3,
    /// A wait whose beginning found no room in the table of parked goroutines.
    TableFull = 4,
    /// Memory of the process could not be read.
    ReadFailed = 5,
    /// A list of woken goroutines was longer than is followed.
    ListTooLong = 6,
    /// A pause or an assist of the collector that found no room in the ring.
    RingCollector = 7,
    /// A thread that found no room in the table of threads: what its goroutines use of the processors, or an assist.
    ThreadsFull = 8,
    /// A slow request that found no room in the ring: it is counted with its route.
    RingRequest = 9,
    /// A request that found no room in the table of open ones.
    RequestsFull = 10,
    /// A request that found no room for its route.
    RoutesFull = 11,
    /// A request whose end was not seen: its goroutine began another one.
    RequestUnended = 12,
}

impl Lost {
    /// How many there are.
    pub const COUNT: usize = 13;
    /// Name of each, as outputs show it.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "ring_create",
        "ring_exit",
        "ring_wait",
        "ring_process",
        "table_full",
        "read_failed",
        "list_too_long",
        "ring_collector",
        "threads_full",
        "ring_request",
        "requests_full",
        "routes_full",
        "request_unended",
    ];
}

/// Value of the per-CPU map `COUNTERS`, one row a process slot (264 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Probe hits, by [`Hit`].
    pub hits: [u64; Hit::COUNT],
    /// Losses, by [`Lost`].
    pub lost: [u64; Lost::COUNT],
    /// Waits below the threshold: counted in the histograms, not sent.
    pub short_waits: u64,
}

const _: () = assert!(size_of::<Counters>() == 264);

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (size asserted above), every bit pattern valid.
unsafe impl aya::Pod for Counters {}
