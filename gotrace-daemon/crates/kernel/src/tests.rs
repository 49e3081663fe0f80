//! What the kernel says to the whole object: that it takes every program, and how much memory the maps take. Needs root.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::{Kernel, Options, copies, preflight};
use gotrace_common::{Histogram, Hit, ThreadState};

/// What a node's agent has by default.
const PROCESSES: u32 = 64;
const OPTIONS: Options = Options {
    ring_bytes: 8 << 20,
    goroutines: 1 << 17,
    processes: PROCESSES,
    follow_all: true,
    cpu_time: true,
    requests: 1 << 12,
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

/// Ids of the maps that this process has open.
fn own_maps() -> Vec<u64> {
    let files = fs::read_dir("/proc/self/fdinfo").expect("own descriptors").flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts
        .filter_map(|text| text.lines().find_map(|l| l.strip_prefix("map_id:")?.trim().parse().ok()))
        .collect()
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
    let others = own_maps();
    let _kernel = Kernel::load(&OPTIONS).expect("it loads");
    let own: Vec<u64> = own_maps().into_iter().filter(|id| !others.contains(id)).collect();
    let new: Vec<MapInfo> = maps().into_iter().filter(|map| own.contains(&map.id)).collect();
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
    for (thread, process) in [(4_000_001, 5), (4_000_002, 5), (4_000_003, 6)] {
        kernel.threads.insert(thread, ThreadState { process, ..ThreadState::default() }, 0).expect("room");
    }
    kernel.forget_goroutines(|process| process == 5).expect("it is read");
    let left: Vec<_> = kernel.threads.keys().filter_map(Result::ok).collect();
    assert_eq!(left, [4_000_003]);
}

#[test]
fn live_what_a_thread_uses_of_a_processor_is_counted() {
    const BUSY: Duration = Duration::from_millis(60);
    if !is_root("that processor time is counted") {
        return;
    }
    let own_ns = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        u64::try_from(Duration::try_from(time).expect("positive").as_nanos()).expect("small")
    };
    let mut kernel = Kernel::load(&OPTIONS).expect("it loads");
    kernel.watch_threads().expect("the kernel tells of switches");
    let (id, known) = std::sync::mpsc::channel();
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        id.send(rustix::thread::gettid().as_raw_pid().cast_unsigned()).expect("heard");
        may_go.recv().expect("told");
        // Switched in since, as it has waited.
        let began_ns = own_ns();
        for _ in 0..3 {
            let busy = Instant::now();
            while busy.elapsed() < BUSY {}
            thread::sleep(BUSY);
        }
        let used_ns = own_ns() - began_ns;
        id.send(0).expect("heard");
        may_go.recv().expect("told");
        used_ns
    });
    let number = known.recv().expect("told");
    kernel.threads.insert(number, ThreadState { slot: 3, ..ThreadState::default() }, 0).expect("room");
    // The agent may be in a PID namespace of its own, and the kernel side's numbers are those of the first.
    if std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| !link.ends_with("pid:[4026531836]")) {
        crate::not_tested("that processor time is counted, outside of the initial PID namespace");
        return;
    }
    go.send(()).expect("heard");
    known.recv().expect("told");
    thread::sleep(BUSY);
    let counted_ns = kernel.threads.get(&number, 0).expect("known").cpu_ns;
    let switches = kernel.counters(3).expect("read").hits[Hit::Switch as usize];
    go.send(()).expect("heard");
    let used_ns = thread.join().expect("it ends");
    eprintln!("{counted_ns} ns counted, {used_ns} ns used, {switches} switches");
    let off_ns = counted_ns.abs_diff(used_ns);
    assert!(off_ns < used_ns / 50 + 500_000, "{counted_ns} ns counted, {used_ns} ns used");
    assert!(switches >= 3, "{switches} switches");
    // It has ended.
    let deadline = Instant::now() + Duration::from_secs(60);
    while kernel.threads.get(&number, 0).is_ok() {
        assert!(Instant::now() < deadline, "a thread that has ended is still known");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A program on a uprobe may be preempted by itself, and must not have a stack that is the CPU's (`keep_own_stack` of
/// `gotrace-ebpf/src/process.rs`).
#[test]
fn each_program_on_a_probe_has_a_tail_call() {
    /// `call` of a helper, by number, and `bpf_tail_call`'s.
    const CALL: u8 = 0x85;
    const TAIL_CALL: i32 = 12;
    let object = aya_obj::Object::parse(super::OBJECT).expect("the embedded object");
    let mut programs = 0;
    for (name, program) in &object.programs {
        if !matches!(program.section, aya_obj::ProgramSection::UProbe { .. }) {
            continue;
        }
        let function = &object.functions[&program.function_key()];
        // Source 0 in the upper half of the registers: a helper, not another function.
        let is_tail_call =
            |i: &aya_obj::generated::bpf_insn| i.code == CALL && i.src_reg() == 0 && i.imm == TAIL_CALL;
        assert!(function.instructions.iter().any(is_tail_call), "{name}");
        programs += 1;
    }
    assert_eq!(programs, gotrace_common::program::NAMES.len() + 4, "the dispatchers too");
}
