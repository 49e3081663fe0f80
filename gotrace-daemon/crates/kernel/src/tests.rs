//! What the kernel says to the whole object: that it takes every program, and how much memory the maps take. Needs root.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
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
const MOST: u64 = 62_000_000;
/// Requests that are open at once, of all processes, as the agent has it where they are traced, and what it may be then.
const REQUESTS: u32 = 1 << 14;
const MOST_WITH_REQUESTS: u64 = 86_000_000;

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
    let (accepted, refused) = preflight::try_programs(&mut kernel);
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
    for (requests, most) in [(0, MOST), (REQUESTS, MOST_WITH_REQUESTS)] {
        let others = own_maps();
        let _kernel = Kernel::load(&Options { requests, ..OPTIONS }).expect("it loads");
        let own: Vec<u64> = own_maps().into_iter().filter(|id| !others.contains(id)).collect();
        let new: Vec<MapInfo> = maps().into_iter().filter(|map| own.contains(&map.id)).collect();
        let bytes: u64 = new.iter().map(MapInfo::bytes_there).sum();
        eprintln!("{PROCESSES} processes, {CPUS} CPUs, {requests} requests: {bytes} bytes");
        assert!((30_000_000..=most).contains(&bytes), "{bytes} bytes: {new:#?}");
    }
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

/// A control group with half a CPU, in the hierarchy that governs CPU time here. Whoever else wants that has to wait.
fn half_a_cpu() -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let name = format!("gotrace-half-{}", std::process::id());
    let v1 = root.join("cpu").join("cpu.stat").exists();
    let (group, settings) = if v1 {
        (root.join("cpu").join(name), [("cpu.cfs_quota_us", "50000"), ("cpu.shares", "262144")])
    } else {
        fs::write(root.join("cgroup.subtree_control"), "+cpu").expect("a controller");
        (root.join(name), [("cpu.max", "50000 100000"), ("cpu.weight", "10000")])
    };
    fs::create_dir(&group).expect("a control group");
    for (file, setting) in settings {
        fs::write(group.join(file), setting).expect("a setting");
    }
    group
}

/// Three threads want two CPUs, one of them the first alone, and may have half of one. What a thread does not run it stands
/// still, or waits for the one beside it.
#[test]
fn live_what_a_quota_takes_is_counted() {
    const WINDOW: Duration = Duration::from_secs(2);
    /// Others may want these CPUs too.
    const TRIES: u32 = 5;
    if !is_root("that time throttled is counted") {
        return;
    }
    if let Err(error) = preflight::try_throttling() {
        return crate::not_tested(error);
    }
    // As above.
    if std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| !link.ends_with("pid:[4026531836]")) {
        return crate::not_tested("that time throttled is counted, outside of the initial PID namespace");
    }
    let mut kernel = Kernel::load(&OPTIONS).expect("it loads");
    kernel.watch_threads().expect("the kernel tells of switches");
    let group = half_a_cpu();
    let mut children = ["1", "2", "2"].map(|cpu| {
        let spin = "echo $$ >$0/cgroup.procs; echo; while [ -d /proc/$PPID ]; do :; done";
        let mut command = Command::new("taskset");
        command.args([cpu, "sh", "-c", spin]).arg(&group).stdout(Stdio::piped());
        command.spawn().expect("it starts")
    });
    for child in &mut children {
        child.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("it is in the group");
        kernel.threads.insert(child.id(), ThreadState::default(), 0).expect("room");
    }
    let look = || children.each_ref().map(|child| kernel.threads.get(&child.id(), 0).expect("known"));
    let percent = |times: &[u64], of: Duration| 100 * u128::from(times.iter().sum::<u64>()) / of.as_nanos();
    let agree = (0..TRIES).any(|_| {
        let (began, before) = (Instant::now(), look());
        thread::sleep(WINDOW);
        let (elapsed, after) = (began.elapsed(), look());
        let [cpu, stood] = [|t: ThreadState| t.cpu_ns, |t: ThreadState| t.throttled_ns]
            .map(|of| [0, 1, 2].map(|n: usize| of(after[n]) - of(before[n])));
        let alone = percent(&[cpu[0], stood[0]], elapsed);
        let beside = percent(&[cpu[1], cpu[2], stood[1].min(stood[2])], elapsed);
        eprintln!("on a CPU {cpu:?} ns, throttled {stood:?} ns of {elapsed:?}: {alone} %, {beside} %");
        stood.iter().all(|ns| *ns > 0) && [alone, beside].iter().all(|part| (80..115).contains(part))
    });
    for child in &mut children {
        child.kill().expect("it lives");
        child.wait().expect("it ends");
    }
    let said = fs::read_to_string(group.join("cpu.stat")).expect("the group's own");
    fs::remove_dir(&group).expect("nobody is in it");
    eprintln!("{said}");
    assert!(agree, "what threads neither run nor stand still does not fit");
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
    assert_eq!(programs, gotrace_common::program::NAMES.len() + 5, "the dispatchers too");
}
