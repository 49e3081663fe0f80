//! How probes are put in place on this host: by links of many uprobes, or by perf events.
//!
//! A link (Linux 6.6) costs the target less a hit, goes in a grace period however many probes it holds and
//! beside others, and takes no CAP_SYS_ADMIN. Of the kernels that have them some (before 6.10, unless
//! corrected) look at one thread of a process only. So it is tried, once: on gotrace itself, with hits of
//! another thread than the first.

use std::{
    ffi::CStr,
    fmt,
    hint::black_box,
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::OnceLock,
    thread,
};

use super::{bpf, preflight::file_offset_of};

/// The variable that decides instead: `perf` for perf events.
const VARIABLE: &str = "GOTRACE_UPROBES";

/// How probes are put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By links of many uprobes.
    Links,
    /// By perf events, as links do not do it here.
    PerfEvents {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Links => f.write_str("links (uprobe_multi)"),
            Self::PerfEvents { why } => write!(f, "perf events ({why})"),
        }
    }
}

/// How it is done here. The first call tries it, which takes a millisecond or two, and a tenth of a second
/// where the probe of the trial is waited for.
pub fn way() -> &'static Way {
    static WAY: OnceLock<Way> = OnceLock::new();
    WAY.get_or_init(|| {
        let way = match std::env::var(VARIABLE) {
            Ok(value) if value == "perf" => Way::PerfEvents { why: format!("{VARIABLE}=perf") },
            _ => match try_links() {
                Ok(()) => Way::Links,
                Err(why) => Way::PerfEvents { why },
            },
        };
        tracing::debug!("probes are put in place by {way}");
        way
    })
}

/// Calls of the probed function.
const CALLS: u64 = 3;

fn try_links() -> Result<(), String> {
    let refused = |what: &str, error: &io::Error| match error.raw_os_error() {
        // An attach type that is not known is an invalid argument.
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            "this kernel has no links of many uprobes, which Linux 6.6 brought".to_owned()
        }
        Some(libc::EPERM | libc::EACCES) => format!("{what}: permission denied"),
        _ => format!("{what}: {error}"),
    };
    super::raise_memory_lock_limit();
    let hits = bpf::one_number().map_err(|e| refused("make a map", &e))?;
    let program = bpf::load_for_multi("gotrace_trial", &count_into(&hits), c"GPL")
        .map_err(|r| refused("load a program", &r.error))?;
    let offset = file_offset_of(probed as fn(u64) -> u64 as usize as u64)
        .ok_or("/proc/self/maps does not show gotrace's own code")?;
    let own_pid = NonZeroU32::new(std::process::id());
    let own_file: &CStr = c"/proc/self/exe";
    let link = bpf::link_multi(program.as_fd(), own_file, &[offset], 0, own_pid)
        .map_err(|e| refused("link a uprobe of gotrace itself", &e))?;
    let calls = thread::Builder::new().spawn(|| (0..CALLS).fold(0, |sum, n| sum ^ probed(black_box(n))));
    let called = calls.map(thread::JoinHandle::join);
    let counted = bpf::read_number(hits.as_fd());
    drop(link);
    black_box(called.map_err(|e| format!("start a thread: {e}"))?.unwrap_or_default());
    match counted.map_err(|e| refused("read a map", &e))? {
        CALLS => Ok(()),
        0 => {
            Err("this kernel's links do not see all threads of a process, which Linux 6.10 corrected".into())
        }
        hits => Err(format!("a probe was hit {hits} times in {CALLS} calls")),
    }
}

/// A program that adds 1 to the number.
fn count_into(number: &OwnedFd) -> [u64; 6] {
    // The address of a value of the map with this descriptor.
    const PSEUDO_MAP_VALUE: u8 = 2;
    [
        // r1 = the number's address, in two instructions' room
        bpf::instruction(0x18, 1, PSEUDO_MAP_VALUE, 0, number.as_raw_fd()),
        0,
        // r2 = 1
        bpf::instruction(0xb7, 2, 0, 0, 1),
        // lock *(u64 *)(r1 + 0) += r2
        bpf::instruction(0xdb, 1, 2, 0, 0),
        // r0 = 0; exit
        bpf::instruction(0xb7, 0, 0, 0, 0),
        bpf::instruction(0x95, 0, 0, 0, 0),
    ]
}

/// The function that is probed.
#[inline(never)]
fn probed(n: u64) -> u64 {
    black_box(n.rotate_left(7) ^ 0x67_6f74)
}
