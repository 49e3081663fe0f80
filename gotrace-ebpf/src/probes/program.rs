//! Processes that execute another program.

use aya_ebpf::{bindings::BPF_RB_FORCE_WAKEUP, macros::raw_tracepoint, programs::RawTracePointContext};
use gotrace_common::{ExecRecord, Header, flags, kind};

use crate::{
    maps::{EVENTS, PROCESSES},
    process::current_pid,
};

/// Set to 1 to be told of every program that is executed, not only by traced processes.
#[unsafe(no_mangle)]
static FOLLOW_ALL: u32 = 0;

/// The process has a new memory image: the addresses of its probes are gone, or, when it is of the same file,
/// hit by another program's goroutines. A traced process is switched off, before its new program's first
/// instruction, until user space says how that one is traced.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let pid = current_pid();
    if pid == 0 {
        return 0;
    }
    let process = match PROCESSES.get_ptr_mut(pid) {
        Some(config) => {
            // SAFETY: the value of a preallocated map. The process has this thread alone, so that no probe
            // reads it meanwhile; what user space writes at the same time goes to another place.
            unsafe {
                if (*config).flags & flags::EXPECTS_EXECUTION != 0 {
                    (*config).flags &= !flags::EXPECTS_EXECUTION;
                } else {
                    (*config).level = 0;
                }
                (*config).process
            }
        }
        // SAFETY: user space sets it before loading.
        None if unsafe { core::ptr::read_volatile(&FOLLOW_ALL) } != 0 => 0,
        None => return 0,
    };
    // Rare and awaited: wakes the reader, also when there are records that did not. When the ring is full the reader finds out by looking.
    if let Some(mut entry) = EVENTS.reserve::<ExecRecord>(0) {
        // SAFETY: the helper has no precondition.
        let time_ns = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
        entry.write(ExecRecord {
            header: Header { kind: kind::EXEC, arg: 0, count: 0, waker: 0, process, time_ns },
            pid,
            reserved: 0,
        });
        entry.submit(u64::from(BPF_RB_FORCE_WAKEUP));
    }
    0
}
