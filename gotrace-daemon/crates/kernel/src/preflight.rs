//! Trying what the kernel allows, piece by piece, so that a refusal names the piece.
//!
//! Nothing but this process is probed, and nothing stays behind. Output: each attempt's success or the
//! kernel's [`Error`].

use std::{hint::black_box, io, num::NonZeroU32, os::fd::FromRawFd as _, path::Path};

use aya::programs::Program;
use gotrace_common::{GLayout, Hit, LEVEL_LIFECYCLE, ProcessConfig, QuotaLayout};

use super::{Error, Kernel, Options, Scope, btf, multi};
use gotrace_go::{Event, Operand, Probe};
use gotrace_process::own_file_offset;

/// `BPF_MAP_CREATE` and `BPF_MAP_TYPE_RINGBUF` of the kernel's `include/uapi/linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// Makes a ring buffer map and drops it (Linux 5.8 and later).
///
/// # Errors
/// [`Error::Permission`] when bpf(2) is refused, [`Error::Unsupported`] when the kernel has none.
pub fn try_ring_buffer() -> Result<(), Error> {
    let what = "create a ring buffer map (bpf(2))";
    super::raise_memory_lock_limit();
    // union bpf_attr: map_type, key_size, value_size, max_entries; the kernel takes what is not given
    // as zero.
    let attributes: [u32; 4] = [BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16];
    // SAFETY: the kernel reads as many bytes of `attributes` as it is told, and returns a new
    // descriptor or -1.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attributes.as_ptr(), size_of_val(&attributes))
    };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just made this descriptor; nobody else owns it.
            drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => {
            let e = io::Error::last_os_error();
            match e.raw_os_error() {
                // An unknown map type is an invalid argument.
                Some(libc::EINVAL) => Err(Error::Unsupported {
                    what: what.into(),
                    reason: "this kernel has no BPF ring buffer (Linux 5.8 and later)".into(),
                }),
                _ => Err(Error::from_loader(what, &e)),
            }
        }
    }
}

/// Loads the embedded object with its maps small, and all that it can do switched on: the verifier does not look at what
/// is off.
///
/// # Errors
/// As [`Kernel::load`].
pub fn try_load() -> Result<Kernel, Error> {
    Kernel::load(&Options {
        ring_bytes: 1 << 16,
        goroutines: 64,
        processes: 1,
        follow_all: true,
        cpu_time: true,
        requests: 64,
        log_level: 0,
    })
}

/// Has the kernel verify every program of the object that it can be asked to run. Returns those that it refused.
pub fn try_programs(kernel: &mut Kernel) -> (usize, Vec<(String, Error)>) {
    let mut refused = Vec::new();
    let mut accepted = 0;
    let mut multi = kernel.multi.take();
    for name in multi.iter().flat_map(multi::Programs::names).collect::<Vec<_>>() {
        match multi.as_mut().map(|programs| programs.load(&name).map(drop)) {
            Some(Err(error)) => refused.push((name, error)),
            _ => accepted += 1,
        }
    }
    for (name, program) in kernel.ebpf.programs_mut() {
        let result = match program {
            Program::UProbe(_) if multi.is_some() => continue,
            // They are for links, which there are none of where there are no cookies.
            Program::UProbe(_) if !kernel.has_cookies && name.starts_with("dispatch_") => continue,
            Program::UProbe(program) => program.load(),
            Program::RawTracePoint(program) => program.load(),
            _ => continue,
        };
        match result {
            Ok(()) => accepted += 1,
            Err(e) => {
                refused.push((name.to_owned(), Error::from_loader(format!("load the program {name}"), &e)));
            }
        }
    }
    kernel.multi = multi;
    (accepted, refused)
}

/// Puts a probe on a function of this program, calls it, and looks whether the probe has counted the
/// calls. Wants a kernel side of its own, freshly loaded.
///
/// # Errors
/// The kernel's refusal, or [`Error::Failed`] when the probe did not fire.
pub fn try_uprobe_on_self(kernel: &mut Kernel) -> Result<(), Error> {
    const CALLS: u64 = 3;
    let what = "attach a probe to gotrace itself";
    let failed = |reason: String| Error::Failed { what: what.into(), reason };
    let own_pid = std::process::id();
    let pid = NonZeroU32::new(own_pid).ok_or_else(|| failed("no pid".into()))?;
    let file_offset = own_file_offset(probed as fn(u64) -> u64 as usize as u64)
        .ok_or_else(|| failed("/proc/self/maps does not list gotrace's code".into()))?;
    let layout = GLayout { goid: 152, gopc: 280, m: 48, curg: 192, ..GLayout::default() };
    kernel.configure(
        own_pid,
        ProcessConfig { process: 1, slot: 0, level: LEVEL_LIFECYCLE, layout, ..ProcessConfig::default() },
    )?;
    let probe = Probe {
        event: Event::Exit,
        function: "gotrace itself".into(),
        address: 0,
        file_offset,
        instruction: String::new(),
        emulated: false,
        operand: Operand::Argument(0),
    };
    let attachment = kernel.attach(Path::new("/proc/self/exe"), Scope::Process(pid), &[probe], || {})?;
    for n in 0..CALLS {
        black_box(probed(black_box(n)));
    }
    attachment.detach();
    kernel.forget(own_pid);
    let hits = kernel.counters(0)?.hits[Hit::Exit as usize];
    if hits == CALLS { Ok(()) } else { Err(failed(format!("the probe fired {hits} times in {CALLS} calls"))) }
}

/// Attaches to the raw tracepoint by which executions of programs are seen. Wants a kernel side whose
/// programs are not loaded yet.
///
/// # Errors
/// The kernel's refusal.
pub fn try_raw_tracepoint() -> Result<(), Error> {
    try_load()?.watch_executions()
}

/// Watches switches of threads and reads from the kernel's own description where a thread's number and CPU time are.
///
/// # Errors
/// The kernel's refusal, or what its description lacks.
pub fn try_cpu_time() -> Result<(), Error> {
    let mut kernel = try_load()?;
    btf::Kernel::read()
        .and_then(|kernel| kernel.task())
        .map_err(|e| Error::Failed { what: "count CPU time".into(), reason: e.to_string() })?;
    kernel.watch_threads()
}

/// What tells that a thread stands still for its CPU quota, as the kernel describes itself.
///
/// # Errors
/// [`Error::Unsupported`] where nothing does, [`Error::Failed`] without such a description.
pub fn try_throttling() -> Result<&'static str, Error> {
    let what = || "tell which threads stand still for their CPU quota".into();
    match btf::Kernel::read().and_then(|kernel| kernel.task()) {
        Ok(btf::Task { quota: QuotaLayout { marked: 1.., .. }, .. }) => Ok("each thread (task_struct.throttled)"),
        Ok(btf::Task { quota: QuotaLayout { queue: 1.., .. }, .. }) => {
            Ok("each queue of threads (cfs_rq.throttle_count)")
        }
        Ok(_) => Err(Error::Unsupported {
            what: what(),
            reason: "the kernel has neither task_struct.throttled nor cfs_rq.throttle_count: it was built without \
                     CPU quotas (CONFIG_CFS_BANDWIDTH)"
                .into(),
        }),
        Err(error) => Err(Error::Failed { what: what(), reason: error.to_string() }),
    }
}

/// The function that is probed.
#[inline(never)]
fn probed(n: u64) -> u64 {
    black_box(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1)
}
