//! The processes that are traced: who they are, whether they still live, their files and memory, and
//! starting one with the probes in place.
//!
//! Reads `/proc` and uses pidfds; refuses to stop, signal or write to a process that it did not start.
//! Input: a pid or a command. Output: [`Target`], [`Memory`], [`Watch`], [`Spawned`], or a
//! [`ProcessError`] that says what to do.

mod clock;
mod connector;
mod error;
mod executable;
mod memory;
mod permission;
mod privileges;
mod resource;
mod root;
mod rules;
mod signals;
mod spawn;
mod stat;
mod target;
mod watch;

pub use clock::Clock;
pub use connector::{Connector, Notice};
pub use error::ProcessError;
pub use executable::{FileIdentity, FileNode, Guard, Unguarded, lease_notice, take_lease_notice};
pub use memory::{Memory, Piece, ReadMemory};
pub use permission::{Obstacle, descends_from};
pub use privileges::{drop_privileges, raise_open_files_limit};
pub use resource::{GoFacts, ResourceOptions, resource};
pub use rules::{Facts, Pattern, Rule, Rules};
pub use signals::Forwarder;
pub use spawn::{ExecutableKind, SpawnError, Spawned};
pub use stat::{age, all_processes, parent_of, stack_start, start_ticks, usage};
pub use target::{Identity, MAX_EXECUTABLE_BYTES, Mapping, Target};
pub use watch::{Watch, is_gone, wait_for_any};

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
