//! The maps. User space sets their sizes before loading; the ones here are the least.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use gotrace_common::{
    Account, Counters, GoroutineKey, GoroutineState, Histogram, OpenRequest, PauseRecord, ProcessConfig,
    REASON_ROWS, RequestConfig, RequestKey, RouteKey, RouteTimes, ThreadState,
};

/// Traced processes, by thread group id in the agent's PID namespace.
#[map]
pub static PROCESSES: HashMap<u32, ProcessConfig> = HashMap::with_max_entries(64, 0);

/// How often the process in each slot has executed a program, since the object was loaded. Only the kernel side
/// writes it; it is never set back, so that a count names one execution of one process.
#[map]
pub static EXECUTIONS: Array<u64> = Array::with_max_entries(1, 0);

/// Executions for whose record the ring had no room, since the object was loaded.
#[map]
pub static EXECUTIONS_LOST: Array<u64> = Array::with_max_entries(1, 0);

/// Goroutines that have parked at least once. Preallocated, so that a probe never allocates.
#[map]
pub static GOROUTINES: HashMap<GoroutineKey, GoroutineState> = HashMap::with_max_entries(1024, 0);

/// How many goroutines `GOROUTINES` holds of the process in each slot. User space sets it to 0 for a new process.
#[map]
pub static HELD: Array<u64> = Array::with_max_entries(1, 0);

/// How many it may hold of the process in each slot, so that no process takes the room of others. Set by user space.
#[map]
pub static SHARES: Array<u64> = Array::with_max_entries(1, 0);

/// The pause that the process in each slot is in, or was in: one at a time, as only one goroutine can stop the world.
/// `start_ns` is 0 outside of one.
#[map]
pub static PAUSES: Array<PauseRecord> = Array::with_max_entries(1, 0);

/// For how long the world of the process in each slot has been stopped, all in all.
#[map]
pub static STOPPED: Array<u64> = Array::with_max_entries(1, 0);

/// How requests of the process in each slot are read. Set by user space.
#[map]
pub static REQUEST_CONFIGS: Array<RequestConfig> = Array::with_max_entries(1, 0);

/// What goroutines that serve requests spend their time on. Preallocated, as those of requests and routes.
#[map]
pub static ACCOUNTS: HashMap<GoroutineKey, Account> = HashMap::with_max_entries(1, 0);

/// How many accounts of goroutines there are that were started for a request, and how many there may be, so that they leave
/// room for those that serve. Set by user space, which counts them anew now and then.
#[map]
pub static CHILDREN: Array<u64> = Array::with_max_entries(2, 0);

/// Requests that have begun and not ended.
#[map]
pub static REQUESTS: HashMap<RequestKey, OpenRequest> = HashMap::with_max_entries(1, 0);

/// All requests that have ended, by route and status.
#[map]
pub static ROUTES: HashMap<RouteKey, RouteTimes> = HashMap::with_max_entries(1, 0);

/// How long requests of a route take at least that are sent. Set by user space.
#[map]
pub static THRESHOLDS: HashMap<RouteKey, u64> = HashMap::with_max_entries(1, 0);

/// All 0, and never written: what new values begin with that the stack has no room for.
#[map]
pub static ZEROS: Array<RouteTimes> = Array::with_max_entries(1, 0);

/// Threads of traced processes that run goroutines, by their ids in the initial PID namespace. Preallocated.
#[map]
pub static THREADS: HashMap<u32, ThreadState> = HashMap::with_max_entries(1024, 0);

/// How many threads `THREADS` holds of the process in each slot. User space sets it to 0 for a new process.
#[map]
pub static THREADS_HELD: Array<u64> = Array::with_max_entries(1, 0);

/// Counters, one row a process slot.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Waits below the threshold, scheduling delays and system calls: `REASON_ROWS` rows for each of the copies of a process
/// slot. CPUs share copies: one for each CPU would take 75 KB a process and CPU.
#[map]
pub static HISTOGRAMS: Array<Histogram> = Array::with_max_entries(REASON_ROWS, 0);

/// Empty, and never called through: see [`crate::process::keep_own_stack`].
#[map]
pub static NOWHERE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Records on their way to user space.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
