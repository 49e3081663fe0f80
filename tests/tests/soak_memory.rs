//! A million parked goroutines, half of them leaked, in the container of the shipped manifests. Needs root, `go`, a memory
//! cgroup, and 3 GB for the program.

use std::time::Duration;

use gotrace_tests::{gotrace::privileged, memory::watch_parked};

/// What the agent may have at its peak, in MiB, its own file's pages included; its container has 512.
const PEAK_MIB: u64 = 496;

#[test]
fn the_daemon_lives_with_a_million_parked_goroutines_and_their_proof() {
    if !privileged("soak_memory") {
        return;
    }
    let watched = watch_parked(1_000_000, Duration::from_secs(1200)).expect("proven");
    println!("{watched:?}: {} MiB", watched.peak >> 20);
    assert!(watched.peak >> 20 <= PEAK_MIB, "{watched:?}");
}
