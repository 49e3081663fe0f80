//! How long the scheduler lets a thread run before another that waits: shortest for threads that read the memory of
//! other processes for long, so that a goroutine that wakes up beside them runs at once.

use std::mem::size_of;

/// The kernel's shortest: 0.1 ms (`kernel/sched/syscalls.c`, `__setparam_fair`).
const SHORTEST_NS: u64 = 100_000;

/// `struct sched_attr` of the first version (`include/uapi/linux/sched/types.h`).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// From now on this thread, and those that it makes, run for the shortest time at a stretch that the kernel has
/// (Linux 6.12 and later; others take no notice). They get as much processor time as before.
///
/// Without it a thread that just woke up waits for the end of a turn of 1.4 ms or more, where all processors are busy.
pub fn take_short_turns() {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>() as u32;
    // SAFETY: `attributes` is live and as large as is said; 0 is the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 || i64::from(attributes.policy) != i64::from(libc::SCHED_OTHER) {
        return;
    }
    attributes.size = size;
    attributes.runtime = SHORTEST_NS;
    // SAFETY: as above. Where it is refused, turns are what they were.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_short_where_the_kernel_has_them() {
        let turn = || {
            let mut attributes = Attributes::default();
            let size = size_of::<Attributes>() as u32;
            // SAFETY: as in the function that is tested.
            let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
            assert_eq!(got, 0);
            attributes.runtime
        };
        std::thread::spawn(move || {
            take_short_turns();
            if crate::process::kernel_is_at_least(6, 12) {
                assert_eq!(turn(), SHORTEST_NS);
                assert_eq!(std::thread::spawn(turn).join().expect("it ends"), SHORTEST_NS);
            }
        })
        .join()
        .expect("it ends");
    }
}
