//! The processes that are traced: who they are, whether they still live, their files and memory, and
//! starting one with the probes in place.
//!
//! Reads `/proc` and uses pidfds; refuses to stop, signal or write to a process that it did not start.
//! Input: a pid or a command. Output: [`Target`], [`Memory`], [`Watch`], [`Spawned`], or a
//! [`ProcessError`] that says what to do.

mod allocator;
mod clock;
mod connector;
mod content;
mod cpu_quota;
mod error;
mod executable;
mod file_locks;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
pub mod helper;
mod image;
mod memory;
mod mounts;
mod open_files;
mod passing;
mod permission;
mod pinned;
pub mod private;
mod privileges;
mod proc_text;
mod resident;
pub mod root;
mod rules;
mod signals;
mod sockets;
mod spawn;
mod stat;
mod system_calls;
mod target;
mod threads;
mod tied;
mod watch;

pub use allocator::{bound_allocator, give_memory_back};
pub use clock::{Clock, NodeClock};
pub use connector::{Connector, Notice};
pub use content::{Content, MAX_EXECUTABLE_BYTES, Unreadable};
pub use cpu_quota::CpuQuota;
pub use error::ProcessError;
pub use executable::{Executable, FileIdentity, FileNode};
pub use guard::{Guard, Unguarded, lease_notice, take_lease_notice};
pub use image::{Image, ImageMemory};
pub use memory::{Memory, Piece, ReadMemory, read_one_by_one};
pub use open_files::{FileKind, NamedProcess, OpenFile, OpenFiles};
pub use passing::{again, is_passing};
pub use permission::{Obstacle, descends_from};
pub use pinned::PinnedMemory;
pub use privileges::{drop_privileges, raise_open_files_limit};
pub use proc_text::own_file_offset;
pub use rules::{Facts, Pattern, Rule, Rules};
pub use signals::Forwarder;
pub use spawn::{ExecutableKind, SpawnError, Spawned};
pub use stat::{age, all_processes, has_executed, is_stopped, parent_of, stack_start, start_ticks, usage};
pub use system_calls::{RawCall, SystemCall};
pub use target::{Identity, Mapping, Target};
pub use threads::{Background, Beat, Threads, Trouble, contained, room_for};
pub use tied::Tied;
pub use watch::{Watch, wait_for_any};

/// Whether the kernel that runs is this release or a later one.
#[must_use]
pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Waits until a child that was just spawned is laid out: `spawn` returns when the program has replaced
/// the test, which is before the kernel maps it and tells its arguments and environment
/// (`fs/binfmt_elf.c`, load_elf_binary; the environment comes last).
#[cfg(test)]
fn wait_for_program(pid: u32) {
    let begin = std::time::Instant::now();
    while std::fs::read(format!("/proc/{pid}/environ")).expect("it lives").is_empty() {
        assert!(begin.elapsed().as_secs() < 120, "its environment never came");
        std::thread::yield_now();
    }
}

/// Says aloud, past what the test harness hides, that a test needs root and does not run.
///
/// # Panics
/// In CI, where nothing is left out.
#[cfg(test)]
fn not_tested(what: impl std::fmt::Display) {
    use std::io::Write as _;
    assert!(
        std::env::var_os("CI").is_none_or(|v| v.is_empty()),
        "{what}: needs root, and is not left out in CI"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED, needs root: {what}");
}
