//! What `/proc` and `/sys` say about this host, and whether the memory-lock limit matters. Explains the
//! trials; decides nothing by itself.

use std::fs;

use super::Check;
use gotrace_kernel as kernel;
use gotrace_kernel::{Error, Kernel, Options};

/// Capabilities that tracing may need: name, number (`linux/capability.h`), what for.
const CAPABILITIES: [(&str, u32, &str); 6] = [
    ("CAP_BPF", 39, "to load eBPF programs (or CAP_SYS_ADMIN)"),
    ("CAP_PERFMON", 38, "to load tracing programs (or CAP_SYS_ADMIN)"),
    ("CAP_SYS_PTRACE", 19, "to read processes of other users"),
    ("CAP_LEASE", 28, "to keep executables of other users from changing while they have probes"),
    ("CAP_SYS_ADMIN", 21, "to attach uprobes with perf_event_open(2) where uprobe links do not work"),
    ("CAP_SYS_RESOURCE", 24, "to raise the locked-memory limit before Linux 5.11"),
];

/// Inode of the initial PID namespace (`PROC_PID_INIT_INO` of the kernel).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![kernel(), btf()];
    checks.push(capabilities());
    checks.push(memory_lock());
    checks.push(seccomp());
    checks.push(lockdown());
    checks.push(pid_namespace());
    checks.extend(sysctls());
    checks
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let found = format!("Linux {} on {}", uname.release().to_string_lossy(), arch());
    if matches!(arch(), "amd64" | "arm64") {
        Check::ok("kernel", found, "the checks below decide, not the version")
    } else {
        Check::missing("kernel", found, "gotrace runs on amd64 and arm64", "use an amd64 or arm64 host")
    }
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    match fs::File::open(path).and_then(|mut f| {
        let mut magic = [0; 2];
        std::io::Read::read_exact(&mut f, &mut magic).map(|()| u16::from_ne_bytes(magic))
    }) {
        // BTF_MAGIC of linux/btf.h.
        Ok(0xeb9f) => Check::ok("BTF", format!("{path} is readable"), "the kernel has type information"),
        Ok(_) => Check::degraded("BTF", format!("{path} is not BTF"), NO_BTF, "not needed"),
        Err(e) => Check::degraded(
            "BTF",
            format!("{path}: {e}"),
            NO_BTF,
            "not needed; kernels with CONFIG_DEBUG_INFO_BTF have it",
        ),
    }
}

const NO_BTF: &str = "not needed by gotrace, whose probes only read user memory";

fn capabilities() -> Check {
    let missing = missing_capabilities();
    let has: Vec<&str> = CAPABILITIES.iter().map(|c| c.0).filter(|name| has_capability(name)).collect();
    let found = if has.is_empty() { "none".into() } else { has.join(", ") };
    if missing.is_empty() {
        return Check::ok("capabilities", found, "enough to trace every process");
    }
    let why: Vec<String> = CAPABILITIES
        .iter()
        .filter(|c| missing.contains(&c.0))
        .map(|(name, _, why)| format!("{name} {why}"))
        .collect();
    Check::degraded(
        "capabilities",
        format!("{found}; missing: {}", missing.join(", ")),
        why.join("; "),
        "run as root, or add the missing capabilities (setcap, docker --cap-add, securityContext.capabilities.add)",
    )
}

/// Capabilities that gotrace lacks and that nothing it has stands for.
fn missing_capabilities() -> Vec<&'static str> {
    let admin = kernel::way().wants_admin().then_some("CAP_SYS_ADMIN");
    let others = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_LEASE"];
    admin.into_iter().chain(others).filter(|c| lacks(c)).collect()
}

/// Whether gotrace lacks this capability, and one that stands for it.
pub(super) fn lacks(name: &str) -> bool {
    let admin_serves = matches!(name, "CAP_BPF" | "CAP_PERFMON");
    !(has_capability(name) || admin_serves && has_capability("CAP_SYS_ADMIN"))
}

fn has_capability(name: &str) -> bool {
    let effective = status("CapEff").and_then(|v| u64::from_str_radix(&v, 16).ok()).unwrap_or(0);
    CAPABILITIES.iter().any(|(n, bit, _)| *n == name && effective >> bit & 1 == 1)
}

fn memory_lock() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let found = limit.current.map_or("unlimited".into(), |n| format!("{n} bytes"));
    match limit.current {
        // Before Linux 5.11 the maps count against it: tried with the sizes that tracing uses.
        Some(n) if n < 64 << 20 && !has_capability("CAP_SYS_RESOURCE") => {
            match Kernel::load(&Options::default()) {
                Ok(_) => Check::ok(
                    "memory-lock limit",
                    format!("{found}, and the maps fit"),
                    "the eBPF maps fit, or do not count against the limit",
                ),
                Err(Error::Permission { .. }) => Check::degraded(
                    "memory-lock limit",
                    found,
                    "not known whether the eBPF maps fit: see the eBPF object below",
                    "see the eBPF object below",
                ),
                Err(_) => Check::degraded(
                    "memory-lock limit",
                    found,
                    "the eBPF maps do not fit, and gotrace may not raise the limit",
                    "ulimit -l unlimited, LimitMEMLOCK=infinity, or CAP_SYS_RESOURCE",
                ),
            }
        }
        _ => Check::ok("memory-lock limit", found, "the eBPF maps fit"),
    }
}

fn seccomp() -> Check {
    match status("Seccomp").as_deref() {
        Some("2") => Check::degraded(
            "seccomp",
            "a filter is active",
            "may deny bpf(2), perf_event_open(2) or process_vm_readv(2); see the checks below",
            "if they are denied: docker --security-opt seccomp=unconfined, or a profile that allows them",
        ),
        Some("0") => Check::ok("seccomp", "no filter", "seccomp denies no system call"),
        Some(mode) => Check::ok("seccomp", format!("mode {mode}"), "see the checks below"),
        None => Check::ok("seccomp", "not in this kernel", "seccomp denies no system call"),
    }
}

fn lockdown() -> Check {
    let Ok(text) = fs::read_to_string("/sys/kernel/security/lockdown") else {
        return Check::ok(
            "lockdown",
            "not in this kernel, or securityfs is not mounted",
            "see the checks below",
        );
    };
    let mode = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    if mode == "confidentiality" {
        return Check::degraded(
            "lockdown",
            mode,
            "eBPF programs cannot read kernel memory; see the checks below",
            "boot without lockdown=confidentiality",
        );
    }
    Check::ok("lockdown", mode, "eBPF programs can read memory")
}

fn pid_namespace() -> Check {
    let own = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if own.as_os_str() == INITIAL_PID_NAMESPACE {
        Check::ok("PID namespace", "the host's", "every process is visible")
    } else {
        Check::degraded(
            "PID namespace",
            format!("{}, not the host's", own.display()),
            "only processes of this namespace are visible, by their pids in it",
            "to see others: docker --pid=host, hostPID: true, or shareProcessNamespace: true within a pod",
        )
    }
}

fn sysctls() -> Vec<Check> {
    let privileged = !lacks("CAP_PERFMON");
    let mut checks = Vec::new();
    if let Some(value) = sysctl("kernel/unprivileged_bpf_disabled") {
        checks.push(Check::ok(
            "unprivileged bpf",
            format!("kernel.unprivileged_bpf_disabled = {value}"),
            "does not matter: uprobes always need capabilities",
        ));
    }
    if let Some(value) = sysctl("kernel/perf_event_paranoid") {
        let found = format!("kernel.perf_event_paranoid = {value}");
        let meaning = "capabilities override it";
        checks.push(if privileged || value.parse().unwrap_or(2) < 2 {
            Check::ok("perf events", found, meaning)
        } else {
            Check::degraded("perf events", found, "attaching probes needs CAP_PERFMON", "add CAP_PERFMON")
        });
    }
    if let Some(value) = sysctl("kernel/yama/ptrace_scope") {
        let found = format!("kernel.yama.ptrace_scope = {value}");
        checks.push(match value.as_str() {
            "0" => Check::ok("ptrace scope", found, "processes of the same user can be read"),
            "3" => Check::degraded(
                "ptrace scope",
                found,
                "the memory of other processes cannot be read until the next boot",
                "reboot with another value of kernel.yama.ptrace_scope",
            ),
            _ if has_capability("CAP_SYS_PTRACE") => {
                Check::ok("ptrace scope", found, "CAP_SYS_PTRACE overrides it")
            }
            _ => Check::degraded(
                "ptrace scope",
                found,
                "only gotrace's own children can be read",
                "add CAP_SYS_PTRACE, or sysctl kernel.yama.ptrace_scope=0",
            ),
        });
    }
    checks
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|v| v.trim().to_owned())
}

/// A line of `/proc/self/status`.
fn status(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|l| Some(l.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
}
