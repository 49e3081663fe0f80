//! The contract between gotrace's kernel side and its user side.
//!
//! Everything that crosses the border is here: the records in the ring buffer, the keys and values
//! of the maps, the numbers of events, losses and wakers. All types are `repr(C)`, hold no implicit
//! padding and have their size asserted at compile time, so that both sides, built by different
//! compilers, agree byte for byte.
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`), the clock of Go's own
//! `runtime.nanotime`. Addresses are virtual addresses of the traced process, load bias included.
#![cfg_attr(not(test), no_std)]

mod config;
mod counters;
mod histogram;
mod record;
pub mod request;

pub use config::{
    CPU_TOLD_NS, EntryFilter, GLayout, GoroutineKey, GoroutineState, LEVEL_FULL, LEVEL_LIFECYCLE,
    LEVEL_WAITS, MAX_WAKE_LIST, ProcessConfig, QuotaLayout, SocketLayout, ThreadState, flags, program,
};
pub use counters::{Counters, Hit, Lost};
pub use histogram::{
    BUCKETS, Histogram, REASON_ROWS, ROW_OTHER, ROW_SCHEDULE, ROW_SYSCALL, bucket_of, bucket_upper_bound_ns,
};
pub use record::{
    AssistRecord, CLOSURE_WORDS, CoroutineRecord, CpuRecord, CreateClosureRecord, CreateRecord, DEEP_FRAMES,
    ExecRecord, ExitRecord, FRAMES, Header, OpenWaitRecord, PEER_WORDS, PauseRecord, Peer, WaitDeepRecord,
    WaitHead, WaitOf, WaitPeerDeepRecord, WaitPeerRecord, WaitRecord, WakerKind, kind,
};
pub use request::{Account, OpenRequest, RequestConfig, RequestKey, RequestRecord, RouteKey, RouteTimes};
