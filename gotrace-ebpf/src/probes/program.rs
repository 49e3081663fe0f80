//! Processes that execute another program.

use aya_ebpf::{bindings::BPF_RB_FORCE_WAKEUP, macros::raw_tracepoint, programs::RawTracePointContext};
use gotrace_common::{ExecRecord, Header, Lost, kind};

use crate::{
    maps::{COUNTERS, EVENTS, EXECUTIONS, EXECUTIONS_LOST, PROCESSES},
    process::{current_pid, executions, increment},
};

/// Set to 1 to be told of every program that is executed, not only by traced processes.
#[unsafe(no_mangle)]
static FOLLOW_ALL: u32 = 0;

/// The process has a new memory image: the addresses of its probes are gone, or, when it is of the same file, hit by
/// another program's goroutines. Counting it, before the new program's first instruction, makes the entry that user
/// space wrote for the old program void, and any that it is about to write for that one.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let pid = current_pid();
    if pid == 0 {
        return 0;
    }
    let config = PROCESSES.get_ptr(pid);
    let (process, generation) = match config {
        Some(config) => {
            // SAFETY: values of a preallocated map stay readable while a program runs.
            let config = unsafe { &*config };
            if let Some(count) = EXECUTIONS.get_ptr_mut(config.slot) {
                increment(count, 1);
            }
            (config.process, executions(config.slot) as u32)
        }
        // SAFETY: user space sets it before loading.
        None if unsafe { core::ptr::read_volatile(&FOLLOW_ALL) } != 0 => (0, 0),
        None => return 0,
    };
    // Rare and awaited: wakes the reader, also when there are records that did not. When the ring is full the reader
    // finds out by looking.
    let Some(mut entry) = EVENTS.reserve::<ExecRecord>(0) else {
        if let Some(count) = EXECUTIONS_LOST.get_ptr_mut(0) {
            increment(count, 1);
        }
        // SAFETY: as above.
        if let Some(counters) = config.and_then(|config| COUNTERS.get_ptr_mut(unsafe { (*config).slot })) {
            let lost = Lost::RingProcess as usize;
            // SAFETY: a pointer to a map value; the index is a constant below the array's length.
            increment(unsafe { (&raw mut (*counters).lost).cast::<u64>().add(lost) }, 1);
        }
        return 0;
    };
    // SAFETY: the helper has no precondition.
    let time_ns = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
    entry.write(ExecRecord {
        header: Header { kind: kind::EXEC, arg: 0, count: 0, waker: 0, process, time_ns },
        pid,
        generation,
    });
    entry.submit(u64::from(BPF_RB_FORCE_WAKEUP));
    0
}
