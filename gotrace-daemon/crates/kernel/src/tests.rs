//! What the kernel says to the whole object: that it takes every program, and how much memory the maps take. Needs root.

use std::fs;

use super::{Kernel, Options, copies, preflight};
use gotrace_common::{GoroutineKey, Histogram};

/// What a node's agent has by default.
const PROCESSES: u32 = 64;
const OPTIONS: Options = Options {
    ring_bytes: 8 << 20,
    goroutines: 1 << 17,
    processes: PROCESSES,
    follow_all: true,
    log_level: 0,
};
/// CPUs that the memory is computed for, and what it may be then.
const CPUS: u64 = 128;
const MOST: u64 = 64_000_000;

fn is_root(test: &str) -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        crate::not_tested(test);
    }
    is
}

#[test]
fn live_the_kernel_takes_every_program() {
    if !is_root("that the kernel takes every program") {
        return;
    }
    let mut kernel = Kernel::load(&OPTIONS).expect("it loads");
    let (accepted, mut refused) = preflight::try_programs(&mut kernel);
    // They are for links, which there are none of where there are no cookies.
    refused.retain(|(name, _)| kernel.has_cookies() || !name.starts_with("dispatch_"));
    assert_eq!(
        refused.iter().map(|(name, e)| format!("{name}: {e}")).collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    assert!(accepted > 18, "{accepted}");
}

/// A map of this process, as `/proc/self/fdinfo` tells of it.
#[derive(Debug)]
struct MapInfo {
    id: u64,
    kind: u64,
    value_size: u64,
    bytes: u64,
    entries: u64,
}

fn maps() -> Vec<MapInfo> {
    let infos = fs::read_dir("/proc/self/fdinfo").expect("its own descriptors");
    // One that another test has closed meanwhile is none.
    let texts = infos.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let of = |text: &str, name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let mut all: Vec<MapInfo> = texts
        .filter_map(|text| {
            Some(MapInfo {
                id: of(&text, "map_id:")?,
                kind: of(&text, "map_type:")?,
                value_size: of(&text, "value_size:")?,
                bytes: of(&text, "memlock:")?,
                entries: of(&text, "max_entries:")?,
            })
        })
        .collect();
    // A map can have several descriptors.
    all.sort_by_key(|map| map.id);
    all.dedup_by_key(|map| map.id);
    all
}

impl MapInfo {
    /// Its bytes where there are [`CPUS`].
    fn bytes_there(&self) -> u64 {
        const HASH: u64 = 1;
        const ARRAY: u64 = 2;
        const PER_CPU_ARRAY: u64 = 6;
        /// What the kernel keeps beside key and value of a hash map's entry.
        const ENTRY: u64 = 48 + 16;
        let cpus = aya::util::nr_cpus().expect("a count") as u64;
        match self.kind {
            PER_CPU_ARRAY => {
                self.bytes.max(self.entries * self.value_size.next_multiple_of(8) * cpus) * CPUS / cpus
            }
            // A spare entry for each CPU.
            HASH => self.bytes + (CPUS - cpus) * (ENTRY + self.value_size.next_multiple_of(8)),
            ARRAY if self.value_size == size_of::<Histogram>() as u64 => {
                let of = |cpus: u64| u64::from(copies(PROCESSES, cpus as usize));
                self.bytes * of(CPUS) / of(cpus)
            }
            _ => self.bytes,
        }
    }
}

#[test]
fn live_kernel_memory_is_bounded_for_many_processes_and_cpus() {
    if !is_root("kernel memory of many processes") {
        return;
    }
    let before: Vec<u64> = maps().iter().map(|map| map.id).collect();
    let _kernel = Kernel::load(&OPTIONS).expect("it loads");
    let new: Vec<MapInfo> = maps().into_iter().filter(|map| !before.contains(&map.id)).collect();
    let bytes: u64 = new.iter().map(MapInfo::bytes_there).sum();
    eprintln!("{PROCESSES} processes, {CPUS} CPUs: {bytes} bytes");
    assert!((30_000_000..=MOST).contains(&bytes), "{bytes} bytes: {new:#?}");
}

#[test]
fn live_what_a_killed_process_was_about_is_forgotten() {
    if !is_root("that what is kept of an ended process goes") {
        return;
    }
    let mut kernel = Kernel::load(&OPTIONS).expect("it loads");
    let key = |process, goid| GoroutineKey { goid, process, reserved: 0 };
    for (process, goid) in [(5, 1), (5, 2), (6, 1)] {
        kernel.assists.insert(key(process, goid), 7, 0).expect("room");
    }
    kernel.forget_goroutines(|process| process == 5).expect("it is read");
    let left: Vec<_> = kernel.assists.keys().filter_map(Result::ok).collect();
    assert_eq!(left, [key(6, 1)]);
}
