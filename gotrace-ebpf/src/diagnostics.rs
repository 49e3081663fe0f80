//! What the kernel side says of its own work, through aya-log: which probe dropped what.
//!
//! Off unless user space sets `AYA_LOG_LEVEL` before loading. The level is a constant to the verifier,
//! which then removes the calls and these functions: what is off costs nothing on the way of an event.
//! Messages are numbers that user space puts into words: text would be copied byte by byte.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
    trace,
};
use gotrace_common::{Hit, Lost};

/// A probe dropped something (level debug).
#[inline(always)]
pub fn dropped(hit: Hit, lost: Lost) {
    if level_enabled(Level::Debug) {
        say_dropped((bpf_get_current_pid_tgid() >> 32) as u32, hit as u32, lost as u32);
    }
}

/// A probe was hit in a process that is not traced (level trace).
#[inline(always)]
pub fn not_traced(hit: Hit) {
    if level_enabled(Level::Trace) {
        say_not_traced((bpf_get_current_pid_tgid() >> 32) as u32, hit as u32);
    }
}

#[inline(never)]
fn say_dropped(pid: u32, hit: u32, lost: u32) {
    debug!(&(), "{} {} {}", pid, hit, lost);
}

#[inline(never)]
fn say_not_traced(pid: u32, hit: u32) {
    trace!(&(), "{} {}", pid, hit);
}
