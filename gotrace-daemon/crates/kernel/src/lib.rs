//! The kernel side as user space sees it: loads the embedded object, attaches its programs, tells it
//! which processes to trace, and reads what it counted. The only room that names aya.
//!
//! Input is a probe plan and a [`ProcessConfig`]; output are records (through [`Ring`]), counters,
//! histograms and the table of parked goroutines. Nothing here interprets a record.

mod attach;
mod batch;
mod bpf;
mod btf;
mod calibration;
mod diagnostics;
mod error;
mod multi;
pub mod preflight;
mod requests;
mod ring;
#[cfg(test)]
mod tests;
mod way;

use std::{
    collections::HashMap,
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, PerCpuValues},
};
use gotrace_common::{
    Counters, GoroutineKey, GoroutineState, Histogram, LEVEL_WAITS, PauseRecord, ProcessConfig, REASON_ROWS,
    SocketLayout, ThreadState, flags,
};

use diagnostics::Diagnostics;

pub use attach::{Attachment, Scope};
pub use calibration::{Calibration, HitCost};
pub use diagnostics::TARGET as PROBE_LOG_TARGET;
pub use error::Error;
pub use ring::Ring;
pub use way::{Way, settled_way, way};

/// The kernel side, built for the machine that this program is built for.
#[cfg(target_arch = "x86_64")]
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/gotrace.x86_64.bpf.o");
/// The kernel side, built for the machine that this program is built for.
#[cfg(target_arch = "aarch64")]
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/gotrace.aarch64.bpf.o");

/// What the copies of all processes' histograms may take together, in bytes; each has one at least. Where there is room
/// for it each CPU has its own.
const HISTOGRAM_BYTES: usize = 20 << 20;

/// The initial PID namespace's inode is the same on every Linux (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Sizes and switches that hold while the kernel side is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring buffer in bytes; rounded up to a power of two of at least a page.
    pub ring_bytes: u32,
    /// Goroutines that can be kept track of at once, above level `lifecycle`, of all processes ([`Kernel::share`]).
    /// About 192 bytes of kernel memory each.
    pub goroutines: u32,
    /// Processes that can be traced at once.
    pub processes: u32,
    /// Whether executions by processes that are not traced are reported too.
    pub follow_all: bool,
    /// Whether processor time of goroutines is counted where the level allows it: then a program runs at each switch
    /// of the machine's threads.
    pub cpu_time: bool,
    /// Requests that can be open at once, of all processes; 0 where none are traced. About 700 bytes of kernel memory each,
    /// and 1.6 KB for each of a sixteenth as many routes.
    pub requests: u32,
    /// Level of the kernel side's own diagnostics: 0 off (and free) to 5.
    pub log_level: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_bytes: 8 << 20,
            goroutines: 1 << 17,
            processes: 8,
            follow_all: false,
            cpu_time: false,
            requests: 0,
            log_level: 0,
        }
    }
}

/// Threads that there is room for at least, of each process, and of all.
const THREADS_OF_ONE: u32 = 512;
const THREADS_OF_ALL: u32 = 4096;

/// Whether switches of threads are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CpuTime {
    /// Nobody wants that.
    Unwanted,
    /// From the first process on whose level allows it.
    Wanted,
    Watched,
    /// The kernel refuses.
    Refused,
}

/// The loaded kernel side. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    ring_bytes: u32,
    processes: BpfHashMap<MapData, u32, ProcessConfig>,
    /// Kept as it is: programs that are loaded later refer to its descriptor.
    goroutines: MapData,
    counters: PerCpuArray<MapData, Counters>,
    executions: Array<MapData, u64>,
    executions_lost: Array<MapData, u64>,
    held: Array<MapData, u64>,
    shares: Array<MapData, u64>,
    /// Pauses of the world, as they are.
    pauses: Array<MapData, [u8; size_of::<PauseRecord>()]>,
    threads: BpfHashMap<MapData, u32, ThreadState>,
    threads_held: Array<MapData, u64>,
    requests: requests::Maps,
    cpu_time: CpuTime,
    /// Kept as it is, for commands that aya lacks.
    histograms: MapData,
    /// Copies of each process's histograms.
    copies: u32,
    /// Programs for perf events that are loaded, and tracepoints' that are attached.
    loaded: HashMap<&'static str, ()>,
    /// Programs for links, where probes are put in place by them, or may be.
    multi: Option<multi::Programs>,
    diagnostics: Option<Diagnostics>,
    has_cookies: bool,
}

impl Kernel {
    /// Loads the embedded object. Programs are loaded when they are first attached.
    ///
    /// # Errors
    /// [`Error::Permission`] without the capabilities that bpf(2) wants, [`Error::Failed`] otherwise.
    pub fn load(options: &Options) -> Result<Self, Error> {
        raise_memory_lock_limit();
        let ring_bytes = options.ring_bytes.clamp(1 << 16, 1 << 30).next_power_of_two();
        let namespace = fs::metadata("/proc/self/ns/pid").ok();
        let inode = namespace.as_ref().map_or(0, MetadataExt::ino);
        let (device, inode) = match namespace {
            Some(namespace) if inode != INITIAL_PID_NAMESPACE => (namespace.dev(), inode),
            _ => (0, 0),
        };
        let wakeup_bytes = u64::from(ring_bytes / 2);
        let follow_all = u32::from(options.follow_all);
        let has_cookies = has_cookies();
        let cookies = u32::from(has_cookies);
        let processes = options.processes.max(1);
        let copies = copies(processes, aya::util::nr_cpus().unwrap_or(1));
        let threads_each = THREADS_OF_ONE.max(THREADS_OF_ALL / processes);
        let (task, sockets) = {
            let kernel = btf::Kernel::read();
            let kernel = || kernel.as_ref().map_err(Clone::clone);
            let task = options.cpu_time.then(|| kernel().and_then(btf::Kernel::task));
            (task, kernel().and_then(btf::Kernel::sockets))
        };
        let (cpu_time, task) = match task {
            None => (CpuTime::Unwanted, btf::Task::default()),
            Some(Ok(task)) => (CpuTime::Wanted, task),
            Some(Err(error)) => {
                tracing::info!(%error, "CPU time of goroutines is not known: gotrace cannot tell the kernel's threads apart");
                (CpuTime::Refused, btf::Task::default())
            }
        };
        let sockets = sockets.unwrap_or_else(|error| {
            tracing::info!(%error, "who is at the other end of a connection that is waited for is not known");
            SocketLayout::NONE
        });
        let requests_traced = u32::from(options.requests > 0);
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .override_global("PID_NAMESPACE_DEVICE", &device, true)
            .override_global("PID_NAMESPACE_INODE", &inode, true)
            .override_global("WAKEUP_BYTES", &wakeup_bytes, true)
            .override_global("FOLLOW_ALL", &follow_all, true)
            .override_global("COOKIES", &cookies, true)
            .override_global("HISTOGRAM_COPIES", &(copies - 1), true)
            .override_global("TASK_PID", &task.pid, true)
            .override_global("TASK_RUNTIME", &task.runtime, true)
            .override_global("QUOTA", &task.quota, true)
            .override_global("SOCKETS", &sockets, true)
            .override_global("REQUESTS_TRACED", &requests_traced, true)
            .override_global("THREADS_EACH", &u64::from(threads_each), true)
            .override_global("AYA_LOG_LEVEL", &options.log_level, true)
            // Always there, as the object names it; a page when nothing is logged.
            .map_max_entries("AYA_LOGS", if options.log_level == 0 { 1 << 12 } else { 1 << 17 })
            .map_max_entries("EVENTS", ring_bytes)
            .map_max_entries("PROCESSES", processes)
            .map_max_entries("GOROUTINES", options.goroutines.max(1))
            .map_max_entries("HELD", processes)
            .map_max_entries("SHARES", processes)
            .map_max_entries("PAUSES", processes)
            .map_max_entries("THREADS", processes * threads_each)
            .map_max_entries("THREADS_HELD", processes)
            .map_max_entries("COUNTERS", processes)
            .map_max_entries("EXECUTIONS", processes)
            .map_max_entries("STOPPED", processes)
            .map_max_entries("REQUEST_CONFIGS", processes)
            .map_max_entries("ACCOUNTS", options.requests.max(1) + requests::children(options.requests))
            .map_max_entries("REQUESTS", options.requests.max(1))
            .map_max_entries("ROUTES", requests::routes(options.requests))
            .map_max_entries("THRESHOLDS", requests::routes(options.requests))
            .map_max_entries("HISTOGRAMS", processes * copies * REASON_ROWS)
            .load(OBJECT)
            .map_err(|e| Error::from_loader("load gotrace's eBPF object", &e))?;
        // Where it is not settled yet how probes are put in place, both ways are kept open.
        let multi = match way() {
            Way::PerfEvents { passing: false, .. } => None,
            Way::Links | Way::PerfEvents { .. } => Some(multi::Programs::new(OBJECT, &ebpf)?),
        };
        let diagnostics = if options.log_level == 0 { None } else { Some(Diagnostics::new(&mut ebpf)?) };
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| Error::Object(format!("map {name}")));
        let maps = ["PROCESSES", "GOROUTINES", "COUNTERS", "EXECUTIONS", "EXECUTIONS_LOST", "HISTOGRAMS"];
        let [of_processes, goroutines, counters, executions, executions_lost, histograms] =
            maps.map(&mut take);
        let [held, shares, pauses, threads, threads_held] =
            ["HELD", "SHARES", "PAUSES", "THREADS", "THREADS_HELD"].map(&mut take);
        let requests = requests::Maps::take(&mut ebpf, options.requests)?;
        let mut kernel = Self {
            ebpf,
            ring_bytes,
            processes: typed(of_processes?, "PROCESSES")?,
            goroutines: data(goroutines?)?,
            counters: typed(counters?, "COUNTERS")?,
            executions: typed(executions?, "EXECUTIONS")?,
            executions_lost: typed(executions_lost?, "EXECUTIONS_LOST")?,
            held: typed(held?, "HELD")?,
            shares: typed(shares?, "SHARES")?,
            pauses: typed(pauses?, "PAUSES")?,
            threads: typed(threads?, "THREADS")?,
            threads_held: typed(threads_held?, "THREADS_HELD")?,
            requests,
            cpu_time,
            histograms: data(histograms?)?,
            copies,
            loaded: HashMap::new(),
            multi,
            diagnostics,
            has_cookies,
        };
        for slot in 0..processes {
            kernel.share(slot, u64::from(options.goroutines))?;
        }
        Ok(kernel)
    }

    /// Whether [`Scope::File`] can be used: probes scoped to processes and those of all must be told apart, which
    /// takes cookies (Linux 5.15).
    #[must_use]
    pub fn has_cookies(&self) -> bool {
        self.has_cookies
    }

    /// How often the process in `slot` has executed a program, modulo 2^32. An entry ([`Self::configure`]) counts
    /// for no other execution than the one that its [`ProcessConfig::generation`] names. Always the same where
    /// executions are not watched ([`Self::watch_executions`]).
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn executions(&self, slot: u32) -> Result<u32, Error> {
        let count = self.executions.get(&slot, 0);
        // Its lower half is what an entry is compared with.
        #[expect(clippy::cast_possible_truncation, reason = "modulo 2^32")]
        count.map(|count| count as u32).map_err(|e| Error::from_loader("read the count of executions", &e))
    }

    /// Executions, of traced processes and others, for whose record the ring had no room; 0 where the kernel does not tell.
    #[must_use]
    pub fn executions_lost(&self) -> u64 {
        self.executions_lost.get(&0, 0).unwrap_or(0)
    }

    /// Takes the ring; once.
    ///
    /// # Errors
    /// [`Error::Object`] when it was taken already.
    pub fn ring(&mut self) -> Result<Ring, Error> {
        let map = self.ebpf.take_map("EVENTS").ok_or_else(|| Error::Object("map EVENTS".into()))?;
        Ring::new(map, self.ring_bytes as usize)
    }

    /// Logs what the kernel side has to say since the last call; nothing when that is off.
    pub fn log_diagnostics(&mut self) {
        if let Some(diagnostics) = &mut self.diagnostics {
            diagnostics.flush();
        }
    }

    /// Sets how a process is traced, from its next event on. `pid` is its thread group id in this
    /// program's PID namespace.
    ///
    /// # Errors
    /// [`Error::Failed`] when more processes are traced than [`Options::processes`] has room for.
    pub fn configure(&mut self, pid: u32, config: ProcessConfig) -> Result<(), Error> {
        let config = self.with_cpu_time(config);
        self.processes
            .insert(pid, config, 0)
            .map_err(|e| Error::from_loader(format!("switch tracing on for process {pid}"), &e))
    }

    /// The same of a process that is traced; one that is not stays so.
    ///
    /// # Errors
    /// [`Error::Failed`] when it is not.
    pub fn reconfigure(&mut self, pid: u32, config: ProcessConfig) -> Result<(), Error> {
        const BPF_EXIST: u64 = 2;
        let config = self.with_cpu_time(config);
        self.processes
            .insert(pid, config, BPF_EXIST)
            .map_err(|e| Error::from_loader(format!("change how process {pid} is traced"), &e))
    }

    /// The same with processor time, where its level allows it and switches of threads can be watched: they are from the
    /// first such process on.
    fn with_cpu_time(&mut self, mut config: ProcessConfig) -> ProcessConfig {
        if config.level < LEVEL_WAITS {
            return config;
        }
        if self.cpu_time == CpuTime::Wanted {
            self.cpu_time = match self.watch_threads() {
                Ok(()) => CpuTime::Watched,
                // Another time there may be what it takes.
                Err(error) if error.is_passing() => CpuTime::Wanted,
                Err(error) => {
                    tracing::info!(%error, "CPU time of goroutines is not known");
                    CpuTime::Refused
                }
            };
        }
        if self.cpu_time == CpuTime::Watched {
            config.flags |= flags::CPU_TIME;
        }
        config
    }

    /// Stops tracing a process. Its probes stay until their [`Attachment`] is detached.
    pub fn forget(&mut self, pid: u32) {
        if let Err(error) = self.processes.remove(&pid) {
            tracing::debug!(pid, %error, "the process was not traced");
        }
    }

    /// What was counted for the process in `slot`, all CPUs together.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn counters(&self, slot: u32) -> Result<Counters, Error> {
        let values = self
            .counters
            .get(&slot, 0)
            .map_err(|e| Error::from_loader("read the kernel side's counters", &e))?;
        let mut total = Counters::default();
        for value in values.iter() {
            let Counters { hits, lost, short_waits } = value;
            total.hits.iter_mut().zip(hits).for_each(|(sum, n)| *sum += n);
            total.lost.iter_mut().zip(lost).for_each(|(sum, n)| *sum += n);
            total.short_waits += short_waits;
        }
        Ok(total)
    }

    /// Sets everything that is counted in `slot` to 0, for another process.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to write its maps.
    pub fn clear_slot(&mut self, slot: u32) -> Result<(), Error> {
        let what = "clear the kernel side's counters";
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| Error::Failed {
            what: what.into(),
            reason: format!("{path}: {error}"),
        })?;
        let zeros =
            |_| Error::Failed { what: what.into(), reason: "as many values as CPUs were not taken".into() };
        let counters = PerCpuValues::try_from(vec![Counters::default(); cpus]).map_err(zeros)?;
        self.counters.set(slot, counters, 0).map_err(|e| Error::from_loader(what, &e))?;
        self.clear_held(slot)?;
        let rows = vec![Histogram::default(); (self.copies * REASON_ROWS) as usize];
        batch::write_rows(self.histograms.fd().as_fd(), self.first_row(slot), &rows)
            .map_err(|e| Error::from_loader(what, &e))
    }

    /// Where the histograms of the process in `slot` begin.
    fn first_row(&self, slot: u32) -> u32 {
        slot * self.copies * REASON_ROWS
    }

    /// The histograms of the process in `slot`, all CPUs together: by wait reason, or one of the `ROW_*` of
    /// gotrace-common.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn histograms(&self, slot: u32) -> Result<Vec<Histogram>, Error> {
        let mut rows = vec![Histogram::default(); (self.copies * REASON_ROWS) as usize];
        batch::read_rows(self.histograms.fd().as_fd(), self.first_row(slot), &mut rows)
            .map_err(|e| Error::from_loader("read the kernel side's histograms", &e))?;
        for row in &mut rows {
            row.count = row.buckets.iter().sum();
        }
        let mut copies = rows.chunks_exact(REASON_ROWS as usize);
        let mut total = copies.next().unwrap_or_default().to_vec();
        for copy in copies {
            total.iter_mut().zip(copy).for_each(|(total, row)| total.merge(row));
        }
        Ok(total)
    }

    /// Goroutines of the process in `slot` that the kernel side keeps track of.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn held(&self, slot: u32) -> Result<u64, Error> {
        let held = self.held.get(&slot, 0);
        // Below 0 where one that came while it was set to 0 has ended.
        held.map(|held| held.cast_signed().max(0).cast_unsigned())
            .map_err(|e| Error::from_loader("read the share of a process", &e))
    }

    /// Sets how many goroutines of the process in `slot` it may keep track of, from the next one on.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to write its map.
    pub fn share(&mut self, slot: u32, goroutines: u64) -> Result<(), Error> {
        self.shares.set(slot, goroutines, 0).map_err(|e| Error::from_loader("set the share of a process", &e))
    }

    /// Notes that the kernel side keeps track of no goroutine of the process in `slot`: they were forgotten, and its level
    /// lets no new ones in.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to write its map.
    pub fn clear_held(&mut self, slot: u32) -> Result<(), Error> {
        let cleared = self.held.set(slot, 0, 0).and_then(|()| self.threads_held.set(slot, 0, 0));
        cleared.map_err(|e| Error::from_loader("set the share of a process", &e))
    }

    /// Forgets a pause of the world of the process in `slot`, whose end was not seen.
    pub fn forget_pause(&mut self, slot: u32) {
        if let Err(error) = self.pauses.set(slot, [0; size_of::<PauseRecord>()], 0) {
            tracing::debug!(%error, "a pause that nobody saw the end of may be told too long");
        }
    }

    /// Calls `f` with every goroutine that the kernel side keeps track of. What changes meanwhile may be
    /// seen in its old state or its new one.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn goroutines(&self, f: impl FnMut(&GoroutineKey, &GoroutineState)) -> Result<(), Error> {
        batch::for_each(self.goroutines.fd().as_fd(), "parked goroutines", f)
    }

    /// What the kernel side knows of a goroutine, where it keeps track of it.
    #[must_use]
    pub fn goroutine(&self, key: &GoroutineKey) -> Option<GoroutineState> {
        batch::lookup(self.goroutines.fd().as_fd(), key)
    }

    /// Takes goroutines out of the table of those that the kernel side keeps track of: all that `gone`
    /// names. For processes (by [`ProcessConfig::process`]) that have ended or whose waits are not watched
    /// any more. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to read its map.
    pub fn forget_goroutines(&mut self, gone: impl Fn(u32) -> bool) -> Result<usize, Error> {
        let mut keys = Vec::new();
        self.goroutines(|key, _| {
            if gone(key.process) {
                keys.push(*key);
            }
        })?;
        for key in &keys {
            // One that has ended meanwhile is gone already.
            batch::delete(self.goroutines.fd().as_fd(), key);
        }
        let threads = self.threads.iter().filter_map(Result::ok).filter(|(_, thread)| gone(thread.process));
        for (id, _) in threads.collect::<Vec<_>>() {
            // One that has ended meanwhile is gone already.
            let _ = self.threads.remove(&id);
        }
        Ok(keys.len())
    }
}

fn typed<T>(map: Map, name: &str) -> Result<T, Error>
where
    T: TryFrom<Map>,
{
    T::try_from(map).map_err(|_| Error::Object(format!("map {name} of the expected type")))
}

/// A map itself, for the commands that aya lacks.
fn data(map: Map) -> Result<MapData, Error> {
    match map {
        Map::HashMap(data) | Map::Array(data) => Ok(data),
        _ => Err(Error::Object("a map of the expected type".into())),
    }
}

/// Copies of each process's histograms, a power of two: one for each CPU at most.
fn copies(processes: u32, cpus: usize) -> u32 {
    let cpus = cpus.next_power_of_two();
    let of_all = processes as usize * REASON_ROWS as usize * size_of::<Histogram>();
    let room = (HISTOGRAM_BYTES / of_all.max(1)).max(1);
    1 << u32::try_from(cpus).unwrap_or(1).min(u32::try_from(room).unwrap_or(1)).ilog2()
}

/// Whether probes can carry cookies: since Linux 5.15, and tried nowhere, as an object that asks for one
/// does not load on an older kernel.
fn has_cookies() -> bool {
    gotrace_process::kernel_is_at_least(5, 15)
}

/// Before Linux 5.11 maps count against this limit. Where it cannot be raised the load itself will tell.
fn raise_memory_lock_limit() {
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited) {
        tracing::debug!(%error, "cannot raise the locked-memory limit");
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
