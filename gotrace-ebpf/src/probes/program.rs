//! Processes that execute another program.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use gotrace_common::{ExecRecord, Header, kind};

use crate::{
    maps::{EVENTS, PROCESSES},
    process::current_pid,
};

/// Set to 1 to be told of every program that is executed, not only by traced processes.
#[unsafe(no_mangle)]
static FOLLOW_ALL: u32 = 0;

/// The process has a new memory image; the addresses of its probes are gone.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let pid = current_pid();
    if pid == 0 {
        return 0;
    }
    let process = match PROCESSES.get_ptr(pid) {
        // SAFETY: the value of a preallocated map.
        Some(config) => unsafe { (*config).process },
        // SAFETY: user space sets it before loading.
        None if unsafe { core::ptr::read_volatile(&FOLLOW_ALL) } != 0 => 0,
        None => return 0,
    };
    // Rare and awaited: wakes the reader. When the ring is full the reader finds out by looking.
    if let Some(mut entry) = EVENTS.reserve::<ExecRecord>(0) {
        // SAFETY: the helper has no precondition.
        let time_ns = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
        entry.write(ExecRecord {
            header: Header { kind: kind::EXEC, arg: 0, count: 0, waker: 0, process, time_ns },
            pid,
            reserved: 0,
        });
        entry.submit(0);
    }
    0
}
