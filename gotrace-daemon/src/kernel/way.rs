//! How probes are put in place on this host: by links of many uprobes, or by perf events.
//!
//! A link (Linux 6.6) costs the target less a hit, goes in a grace period however many probes it holds and
//! beside others, and takes no CAP_SYS_ADMIN. Of the kernels that have them some (before 6.10, unless
//! corrected) look at one thread of a process only. So it is tried, once: on gotrace itself, with hits of
//! another thread than the first.

use std::{
    fmt,
    hint::black_box,
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
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
        /// Whether gotrace may not try.
        refused: bool,
    },
}

impl Way {
    /// Whether probes want CAP_SYS_ADMIN, as far as it can be told.
    #[must_use]
    pub fn wants_admin(&self) -> bool {
        match self {
            Self::Links => false,
            Self::PerfEvents { refused, .. } => !refused || !crate::process::kernel_is_at_least(6, 6),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Links => f.write_str("links (uprobe_multi)"),
            Self::PerfEvents { why, .. } => write!(f, "perf events ({why})"),
        }
    }
}

/// How it is done here. The first call tries it, which takes two milliseconds.
pub fn way() -> &'static Way {
    WAY.get_or_init(|| {
        let way = match std::env::var(VARIABLE) {
            Ok(value) if value == "perf" => {
                Way::PerfEvents { why: format!("{VARIABLE}=perf"), refused: false }
            }
            _ => try_links(),
        };
        tracing::debug!("probes are put in place by {way}");
        way
    })
}

/// As [`way`], and nothing of the trial is left to be done, nor a thread that does it.
pub fn settled_way() -> &'static Way {
    let way = way();
    let removing = REMOVING.lock().unwrap_or_else(PoisonError::into_inner).take();
    // It removes the probe, and cannot fail.
    removing.map(thread::JoinHandle::join);
    way
}

static WAY: OnceLock<Way> = OnceLock::new();
/// Removes the trial's probe, for which the kernel takes some hundredths of a second.
static REMOVING: Mutex<Option<thread::JoinHandle<()>>> = Mutex::new(None);

/// Calls of the probed function.
const CALLS: u64 = 3;

fn try_links() -> Way {
    match count_calls() {
        Ok(CALLS) => Way::Links,
        Ok(0) => Way::PerfEvents {
            why: "this kernel's links do not see all threads of a process, which Linux 6.10 corrected".into(),
            refused: false,
        },
        Ok(hits) => Way::PerfEvents {
            why: format!("a link's probe was hit {hits} times in {CALLS} calls"),
            refused: false,
        },
        Err((what, error)) => match error.raw_os_error() {
            // An attach type that is not known is an invalid argument.
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Way::PerfEvents {
                why: "this kernel has no links of many uprobes, which Linux 6.6 brought".into(),
                refused: false,
            },
            Some(libc::EPERM | libc::EACCES) => {
                Way::PerfEvents { why: format!("{what}: permission denied"), refused: true }
            }
            _ => Way::PerfEvents { why: format!("{what}: {error}"), refused: false },
        },
    }
}

/// Has another thread than the first call a function, with a probe there. How often that was hit, or what
/// did not go.
fn count_calls() -> Result<u64, (&'static str, io::Error)> {
    super::raise_memory_lock_limit();
    let hits = bpf::one_number().map_err(|e| ("make a map", e))?;
    let program = bpf::load_for_multi("gotrace_trial", &count_into(&hits), c"GPL")
        .map_err(|refused| ("load a program", refused.error))?;
    let offset = file_offset_of(probed as fn(u64) -> u64 as usize as u64)
        .ok_or_else(|| ("find gotrace's own code", io::Error::other("/proc/self/maps does not show it")))?;
    let own_pid = NonZeroU32::new(std::process::id());
    let link = bpf::link_multi(program.as_fd(), c"/proc/self/exe", &[(offset, 0)], own_pid)
        .map_err(|e| ("link a uprobe of gotrace itself", e))?;
    let calls = || (0..CALLS).fold(0, |sum, n| sum ^ probed(black_box(n)));
    let called = thread::Builder::new().spawn(calls).map(thread::JoinHandle::join);
    let counted = bpf::read_number(hits.as_fd()).map_err(|e| ("read a map", e));
    // Without a thread it is removed here.
    let removing = thread::Builder::new().spawn(move || drop(link)).ok();
    *REMOVING.lock().unwrap_or_else(PoisonError::into_inner) = removing;
    let called = called.map_err(|e| ("start a thread", e))?;
    black_box(called.unwrap_or_default());
    counted
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
