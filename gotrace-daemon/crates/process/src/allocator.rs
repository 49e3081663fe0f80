//! gotrace's own heap: what was read of a process with a million goroutines goes back to the system once it is dropped.
//!
//! The C library's allocator keeps what it has once had: it takes ever larger blocks from its own heaps after one was
//! freed, and has up to eight heaps for each processor. Both are bounded here, where it is that one.

/// Blocks from this size on are the system's, and go back to it when they are freed. What is read at once is smaller.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: libc::c_int = 8 << 20;
/// Heaps that threads share.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 4;

/// Sets the bounds; to be called before there are threads.
pub fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives free memory back to the system, which takes some milliseconds.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number, and locks what it changes.
    unsafe {
        libc::malloc_trim(0);
    }
}
