//! Single facts of `/proc/PID/stat`, by a pid that may mean another process at any moment: for first looks, and to be
//! compared. What is to be relied on is read through a [`Target`](super::Target).
//!
//! Input: a pid. Output: a number; `None`, or 0, when the process is gone or the kernel does not tell.

use std::io;

use super::passing;

/// A field of `/proc/PID/stat`, by its number in proc(5), from 3 on; `None` when the process is gone.
fn stat_field<T: std::str::FromStr>(pid: u32, number: usize) -> Option<T> {
    // Bytes: the name may hold anything, a closing parenthesis too.
    let stat =
        passing::again(format_args!("/proc/{pid}/stat"), || std::fs::read(format!("/proc/{pid}/stat")))
            .ok()?;
    let name_end = stat.iter().rposition(|&b| b == b')')?;
    let fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    fields.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Whether a process is stopped, by a signal or a debugger; `false` where it is gone.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    stat_field::<char>(pid, 3).is_some_and(|state| matches!(state, 'T' | 't'))
}

/// The parent of a process; `None` when it is gone.
#[must_use]
pub fn parent_of(pid: u32) -> Option<u32> {
    stat_field(pid, 4)
}

/// When a process started, in clock ticks since boot: with the pid it tells it from all others. `None` when
/// it is gone.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

/// Where the stack of the program that a process runs begins: another place after each execution, as far as
/// the kernel lays out memory at random. 0 where it does not tell (without leave to trace the process), or
/// the process is gone.
#[must_use]
pub fn stack_start(pid: u32) -> u64 {
    stat_field(pid, 28).unwrap_or(0)
}

/// `PF_FORKNOEXEC` of the kernel's `include/linux/sched.h`.
const PF_FORKNOEXEC: u32 = 0x40;

/// Whether a process has executed a program since it was forked; `false` where it is gone.
#[must_use]
pub fn has_executed(pid: u32) -> bool {
    stat_field::<u32>(pid, 9).is_some_and(|flags| flags & PF_FORKNOEXEC == 0)
}

/// How old a process is that started then ([`start_ticks`]), to a second.
#[must_use]
pub fn age(start_ticks: u64) -> std::time::Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let started = std::time::Duration::from_millis(start_ticks.saturating_mul(1000) / per_second);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    std::time::Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or(0)).saturating_sub(started)
}

/// CPU seconds and resident bytes of a process; 0 where `/proc` does not tell.
#[must_use]
pub fn usage(pid: u32) -> (f64, u64) {
    let ticks = |number| stat_field::<u64>(pid, number).unwrap_or(0);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    ((ticks(14) + ticks(15)) as f64 / per_second as f64, ticks(24) * page)
}

/// All processes that `/proc` shows now.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn all_processes() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in passing::again("/proc", || std::fs::read_dir("/proc"))? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}
