//! The trials: each does the thing itself, on gotrace and a child of its own.

use std::{ffi::OsStr, fs::File};

use super::{Check, host};
use gotrace_kernel as kernel;
use gotrace_kernel::{Error, Way, preflight};
use gotrace_model::Level;
use gotrace_process::{Executable, Guard, ProcessError, Spawned};

/// A value whose place in memory is the same in a forked child.
static MARK: u64 = 0x676f_7472_6163_6521;

/// How the trials came out.
pub(super) struct Trials {
    pub checks: Vec<Check>,
    /// The most detailed level whose programs the kernel takes.
    pub level: Option<Level>,
    /// Whether memory can be read.
    pub snapshots: bool,
}

/// Runs all trials.
pub(super) fn trials() -> Trials {
    let mut checks = Vec::new();
    let ring = preflight::try_ring_buffer();
    checks.push(check("ring buffer", "created one", "needed to deliver events", &["CAP_BPF"], &ring));
    let (programs, level) = programs();
    checks.extend(programs);
    checks.push(leases());
    let memory = memory();
    checks.push(match &memory {
        Ok(()) => Check::ok("process memory", "read the memory of a child process", "snapshots work"),
        Err(e) => Check::degraded(
            "process memory",
            e.to_string(),
            "no snapshots; `gotrace dump`, `leaks` and `why` do not work",
            e.help().unwrap_or_else(|| "allow process_vm_readv(2) or /proc/PID/mem".into()),
        ),
    });
    Trials { checks, level: level.filter(|_| ring.is_ok()), snapshots: memory.is_ok() }
}

fn programs() -> (Vec<Check>, Option<Level>) {
    let mut kernel = match preflight::try_load() {
        Ok(kernel) => kernel,
        Err(e) => {
            let meaning = "no probe can be attached";
            return (vec![failure("eBPF object", meaning, &["CAP_BPF"], &e)], None);
        }
    };
    let mut checks = vec![Check::ok("eBPF object", "loaded, with its maps", "the eBPF maps can be created")];
    let way = kernel::way();
    checks.push(links(&way));
    let uprobe = preflight::try_uprobe_on_self(&mut kernel);
    checks.push(check(
        "uprobe",
        "a test probe on gotrace itself fired on every call",
        "needed to probe the Go runtime",
        if way.wants_admin() { &["CAP_SYS_ADMIN", "CAP_PERFMON"] } else { &["CAP_BPF", "CAP_PERFMON"] },
        &uprobe,
    ));
    // Its own kernel side: a program is loaded once.
    drop(kernel);
    let refused = match preflight::try_load() {
        Ok(mut kernel) => {
            let (accepted, refused) = preflight::try_programs(&mut kernel);
            match refused.first() {
                None => checks.push(Check::ok(
                    "eBPF programs",
                    format!("all {accepted} loaded"),
                    "every level works",
                )),
                Some((_, first @ Error::Permission { .. })) if accepted == 0 => {
                    checks.push(failure("eBPF programs", "no level works", &["CAP_PERFMON"], first));
                }
                Some((_, first)) => {
                    let names: Vec<&str> = refused.iter().map(|(name, _)| name.as_str()).collect();
                    checks.push(Check::degraded(
                        "eBPF programs",
                        format!("{accepted} loaded; failed: {}: {first}", names.join(", ")),
                        "levels that need these programs do not work",
                        "please report it with the kernel release; use a lower --level meanwhile",
                    ));
                }
            }
            refused.into_iter().map(|(name, _)| name).collect()
        }
        Err(_) => Vec::new(),
    };
    let tracepoint = preflight::try_raw_tracepoint();
    checks.push(match &tracepoint {
        Ok(()) => {
            Check::ok("raw tracepoint", "attached to sched_process_exec", "exec --follow-children works")
        }
        Err(e) => Check::degraded(
            "raw tracepoint",
            e.to_string(),
            "exec --follow-children does not work",
            remedy(&["CAP_PERFMON"], e),
        ),
    });
    checks.push(match preflight::try_cpu_time() {
        Ok(()) => Check::ok(
            "CPU time",
            "attached to sched_switch; the kernel describes its threads (BTF)",
            "CPU time of goroutines is counted from level waits on",
        ),
        Err(e) => Check::degraded(
            "CPU time",
            e.to_string(),
            "CPU time of goroutines is not known",
            remedy(&["CAP_PERFMON"], &e),
        ),
    });
    checks.push(match preflight::try_throttling() {
        Ok(of) => Check::ok(
            "CPU throttling",
            format!("the kernel tells it of {of}"),
            "time that a CPU quota takes is told by goroutine and request",
        ),
        Err(e) => Check::degraded(
            "CPU throttling",
            e.to_string(),
            "time that a CPU quota takes counts as descheduled",
            "not needed where no CPU quota is set; `gotrace gc` shows how often one is used up",
        ),
    });
    (checks, uprobe.ok().and_then(|()| level(&refused)))
}

/// Whether a file can be kept as it is while probes are in it.
fn leases() -> Check {
    let meaning = "executables that can be written to are traced by snapshots, as probes go only into files that cannot change";
    let guarded = File::open("/proc/self/exe")
        .map_err(|e| e.to_string())
        .and_then(|file| Guard::new(&Executable::of(file)).map_err(|e| e.to_string()));
    match guarded {
        Ok(guard) if guard.is_leased() => Check::ok(
            "file lease",
            "took one on gotrace's own executable",
            "executables with probes cannot change",
        ),
        Ok(_) => {
            Check::ok("file lease", "gotrace's own executable is read-only", "read-only files need no lease")
        }
        Err(found) => Check::degraded(
            "file lease",
            found,
            meaning,
            "add CAP_LEASE; sysctl fs.leases-enable=1, fs.lease-break-time=45",
        ),
    }
}

/// How probes are put in place.
pub(super) fn links(way: &Way) -> Check {
    let (why, refused) = match way {
        Way::Links => {
            return Check::ok(
                "uprobe links",
                "a link on gotrace itself counted the calls of another thread (uprobe_multi)",
                "probes need no CAP_SYS_ADMIN, and detach in parallel",
            );
        }
        Way::PerfEvents { why, refused, .. } => (why, *refused),
    };
    let remedy = if refused {
        remedy(&["CAP_BPF", "CAP_PERFMON"], &Error::Permission { what: why.clone() })
    } else {
        "not needed; Linux 6.6 and later has uprobe links, and 6.10 and later for all threads".into()
    };
    Check::degraded(
        "uprobe links",
        why.clone(),
        "probes are attached by perf events instead, which needs CAP_SYS_ADMIN and takes about 0.1 s per probe to detach",
        remedy,
    )
}

/// The most detailed level that does without the refused programs.
fn level(refused: &[String]) -> Option<Level> {
    let needs = |names: &[&str]| refused.iter().any(|r| names.contains(&r.as_str()));
    if needs(&["dispatch_lifecycle", "create_0", "create_1", "create_2", "exit"]) {
        None
    } else if needs(&["dispatch_waits", "park", "run"]) {
        Some(Level::Lifecycle)
    } else if needs(&["dispatch_full", "ready", "netpoll", "inject_list", "syscall_enter", "syscall_exit"]) {
        Some(Level::Waits)
    } else {
        Some(Level::Full)
    }
}

/// Reads a child that waits to execute, and never does.
fn memory() -> Result<(), ProcessError> {
    let error = |what: String, source| ProcessError::Io { pid: std::process::id(), what, source };
    let child = Spawned::prepare(OsStr::new("/proc/self/exe"), &[])
        .map_err(|e| error("start a child process".into(), std::io::Error::other(e)))?;
    let memory = child.target()?.memory();
    let value = memory.read_u64(&raw const MARK as u64)?;
    if value == MARK {
        Ok(())
    } else {
        Err(error("read a child's memory".into(), std::io::Error::other("it differs from what was written")))
    }
}

/// `wanted`: the capabilities that the thing tried takes.
fn check(
    name: &'static str,
    found: &str,
    meaning: &str,
    wanted: &[&str],
    result: &Result<(), Error>,
) -> Check {
    match result {
        Ok(()) => Check::ok(name, found, meaning),
        Err(e) => failure(name, meaning, wanted, e),
    }
}

pub(super) fn failure(name: &'static str, meaning: &str, wanted: &[&str], error: &Error) -> Check {
    Check::missing(name, error.to_string(), meaning, remedy(wanted, error))
}

fn remedy(wanted: &[&str], error: &Error) -> String {
    let missing: Vec<&str> = wanted.iter().copied().filter(|c| host::lacks(c)).collect();
    match (error, missing.as_slice()) {
        (Error::Permission { .. }, []) => {
            "gotrace has the capabilities, so that a seccomp filter, a security module or lockdown denies bpf(2) or \
             perf_event_open(2); see above"
                .into()
        }
        (Error::Permission { .. }, missing) => format!(
            "give gotrace {}: run it as root, or use setcap, docker --cap-add or securityContext.capabilities.add",
            missing.join(" and ")
        ),
        _ => error.help().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_programs_lower_the_level() {
        let level = |names: &[&str]| level(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(level(&[]), Some(Level::Full));
        assert_eq!(level(&["netpoll"]), Some(Level::Waits));
        assert_eq!(level(&["netpoll", "park"]), Some(Level::Lifecycle));
        assert_eq!(level(&["exit"]), None);
    }

    #[test]
    fn a_child_can_be_read() {
        memory().expect("a child of one's own may be read");
    }
}
