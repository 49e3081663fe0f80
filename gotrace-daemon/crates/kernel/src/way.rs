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
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{bpf, error::is_passing};
use gotrace_process::own_file_offset;

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
        /// Whether the trial failed for a reason of the moment, so that it is made again.
        passing: bool,
    },
}

impl Way {
    /// Whether probes want CAP_SYS_ADMIN, as far as it can be told.
    #[must_use]
    pub fn wants_admin(&self) -> bool {
        match self {
            Self::Links => false,
            Self::PerfEvents { refused, .. } => !refused || !gotrace_process::kernel_is_at_least(6, 6),
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

/// How it is done here. The first call tries it, which takes two milliseconds; later ones do only while that failed for
/// a reason of the moment.
pub fn way() -> Way {
    WAY.answer(Instant::now(), &|| {
        let way = match std::env::var(VARIABLE) {
            Ok(value) if value == "perf" => {
                Way::PerfEvents { why: format!("{VARIABLE}=perf"), refused: false, passing: false }
            }
            _ => try_links(),
        };
        tracing::debug!("attaching probes by {way}");
        way
    })
}

/// A trial whose answer is kept once it is one.
#[derive(Debug)]
struct Trial(Mutex<Option<(Way, Instant)>>);

/// Times that the trial is made at first while it fails for a reason of the moment, the first pause between two, and
/// how long such an answer is good for.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const TRY_EVERY: Duration = Duration::from_secs(5);

impl Trial {
    fn answer(&self, now: Instant, try_it: &dyn Fn() -> Way) -> Way {
        let passing = |way: &Way| matches!(way, Way::PerfEvents { passing: true, .. });
        // A panic elsewhere leaves a whole value.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((way, tried)) if !passing(way) || now.saturating_duration_since(*tried) < TRY_EVERY => {
                return way.clone();
            }
            _ => {}
        }
        let mut way = try_it();
        let mut pause = FIRST_PAUSE;
        for _ in 1..if kept.is_none() { TRIES } else { 1 } {
            if !passing(&way) {
                break;
            }
            thread::sleep(pause);
            pause *= 2;
            way = try_it();
        }
        if passing(&way) {
            tracing::warn!("attaching probes by {way}; will retry links");
        }
        *kept = Some((way.clone(), now));
        way
    }
}

/// As [`way`], and nothing of the trial is left to be done, nor a thread that does it.
pub fn settled_way() -> Way {
    let way = way();
    let removing = REMOVING.lock().unwrap_or_else(PoisonError::into_inner).take();
    // It removes the probe, and cannot fail.
    removing.map(thread::JoinHandle::join);
    way
}

static WAY: Trial = Trial(Mutex::new(None));
/// Removes the trial's probe, for which the kernel takes some hundredths of a second.
static REMOVING: Mutex<Option<thread::JoinHandle<()>>> = Mutex::new(None);

/// Calls of the probed function.
const CALLS: u64 = 3;

fn try_links() -> Way {
    let (why, refused, passing) = match count_calls() {
        Ok(CALLS) => return Way::Links,
        Ok(0) => (
            "uprobe links of this kernel miss some threads of a process (fixed in Linux 6.10)".into(),
            false,
            false,
        ),
        Ok(hits) => (format!("the probe of a link fired {hits} times in {CALLS} calls"), false, false),
        Err((what, error)) => match error.raw_os_error() {
            // An attach type that is not known is an invalid argument.
            Some(libc::EINVAL | libc::EOPNOTSUPP) => {
                ("this kernel has no uprobe links (Linux 6.6 and later)".into(), false, false)
            }
            Some(libc::EPERM | libc::EACCES) => (format!("cannot {what}: permission denied"), true, false),
            _ => (format!("cannot {what}: {error}"), false, is_passing(&error)),
        },
    };
    Way::PerfEvents { why, refused, passing }
}

/// Has another thread than the first call a function, with a probe there. How often that was hit, or what
/// did not go.
fn count_calls() -> Result<u64, (&'static str, io::Error)> {
    super::raise_memory_lock_limit();
    let hits = bpf::one_number().map_err(|e| ("create a map", e))?;
    let program = bpf::load_for_multi("gotrace_trial", &count_into(&hits), c"GPL")
        .map_err(|refused| ("load a program", refused.error))?;
    let offset = own_file_offset(probed as fn(u64) -> u64 as usize as u64)
        .ok_or_else(|| ("find gotrace's code", io::Error::other("not in /proc/self/maps")))?;
    let own_pid = NonZeroU32::new(std::process::id());
    let link = bpf::link_multi(program.as_fd(), c"/proc/self/exe", &[(offset, 0)], own_pid)
        .map_err(|e| ("attach a uprobe link to gotrace itself", e))?;
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn perf(passing: bool) -> Way {
        Way::PerfEvents { why: "make a map: Too many open files".into(), refused: false, passing }
    }

    #[test]
    fn a_failure_of_the_moment_is_not_for_ever() {
        let trial = Trial(Mutex::new(None));
        let tries = Cell::new(0);
        let begin = Instant::now();
        // Nothing left for a while: at first it is tried some times, then now and then.
        let ask = |after: u64, way: Way| {
            trial.answer(begin + Duration::from_secs(after), &|| {
                tries.set(tries.get() + 1);
                way.clone()
            })
        };
        assert_eq!((ask(0, perf(true)), tries.get()), (perf(true), TRIES));
        assert_eq!((ask(1, Way::Links), tries.get()), (perf(true), TRIES), "it was tried just now");
        assert_eq!((ask(6, perf(true)), tries.get()), (perf(true), TRIES + 1));
        assert_eq!((ask(12, Way::Links), tries.get()), (Way::Links, TRIES + 2));
        assert_eq!((ask(100, perf(true)), tries.get()), (Way::Links, TRIES + 2), "settled");
    }

    #[test]
    fn what_the_kernel_cannot_is_settled_at_once() {
        let trial = Trial(Mutex::new(None));
        assert_eq!(trial.answer(Instant::now(), &|| perf(false)), perf(false));
        let later = Instant::now() + Duration::from_secs(100);
        assert_eq!(trial.answer(later, &|| Way::Links), perf(false));
    }
}
