//! Which threads stand still as the CPU quota of their control group, or of one around it, is used up.
//!
//! From Linux 6.18 on the scheduler marks each such thread as it gives up its processor. Before, it stops the queue of one
//! control group on one CPU, with all threads in it, between two of them or as one gives up its processor: at the switch
//! that is done. So a thread that could go on and finds its queue stopped stands still from then until it has a processor
//! again. One that waits for a processor in a queue with quota left may stand still later, when another thread has used
//! that up: for as long as the queue says that it was stopped meanwhile.
//!
//! Not seen before Linux 6.18: a thread that is woken while its queue is stopped, and one that waits and is moved to another
//! CPU's queue.

use core::ptr;

use gotrace_common::{QuotaLayout, ThreadState};

use crate::kernel::{follow, read};

/// Where things are in the kernel's structures, by its BTF; all 0 where that is not known.
#[unsafe(no_mangle)]
static QUOTA: QuotaLayout = QuotaLayout::NONE;

/// Where something is that `QUOTA` tells.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: user space sets it before loading; volatile, so that the value here is not built in.
        u64::from(unsafe { ptr::read_volatile(&raw const QUOTA.$field) })
    };
}

/// A thread gives up its processor; `preempted`: it has no say in that.
#[inline(always)]
pub fn leave(thread: &mut ThreadState, task: u64, preempted: bool, now_ns: u64) {
    let marked = offset!(marked);
    if marked != 0 {
        if read::<u8>(task, marked) != 0 {
            thread.throttled_since_ns = now_ns;
        }
        return;
    }
    let queue = offset!(queue);
    // Others block, for something else than a processor.
    if queue == 0 || !preempted && read::<u32>(task, offset!(state)) != 0 {
        return;
    }
    thread.throttled_since_ns = now_ns;
    let queue = follow(task, queue);
    if read::<u32>(queue, offset!(throttle_count)) == 0 {
        thread.queue = queue;
        thread.queue_throttled_ns = read(queue, offset!(throttled_time));
    }
}

/// It gets one.
#[inline(always)]
pub fn come_back(thread: &mut ThreadState, task: u64, now_ns: u64) {
    if thread.throttled_since_ns == 0 {
        return;
    }
    let mut stood_ns = now_ns.saturating_sub(thread.throttled_since_ns);
    thread.throttled_since_ns = 0;
    if thread.queue != 0 {
        let stopped_ns = if follow(task, offset!(queue)) == thread.queue {
            read::<u64>(thread.queue, offset!(throttled_time)).saturating_sub(thread.queue_throttled_ns)
        } else {
            0
        };
        if stopped_ns < stood_ns {
            stood_ns = stopped_ns;
        }
        thread.queue = 0;
    }
    thread.throttled_ns += stood_ns;
}
