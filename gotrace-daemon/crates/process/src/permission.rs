//! Why the kernel refuses to let gotrace read a process: what it asks for, in its order
//! (`kernel/ptrace.c`, `__ptrace_may_access`; `security/commoncap.c`; `security/yama/yama_lsm.c`), looked up
//! in `/proc` after the refusal.
//!
//! Explains, decides nothing. Whatever cannot be looked up is left out of the explanation.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::parent_of;

/// `CAP_SYS_PTRACE` (`linux/capability.h`).
const SYS_PTRACE: u64 = 1 << 19;
/// The initial PID namespace (`PROC_PID_INIT_INO` of the kernel).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What gotrace wants of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Its `/proc` files (`PTRACE_MODE_READ`).
    Look,
    /// Its memory (`PTRACE_MODE_ATTACH`), which Yama guards too.
    Memory,
}

/// Something that stands between gotrace and a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is another user's, and gotrace lacks the capability.
    User {
        /// gotrace's.
        own: u32,
        /// The process's.
        target: u32,
    },
    /// It has capabilities that gotrace has not.
    Capability,
    /// It is not dumpable.
    NotDumpable,
    /// It is in a user namespace in which gotrace's capabilities do not count.
    UserNamespace,
    /// Yama, `kernel.yama.ptrace_scope`.
    PtraceScope(u8),
    /// Its executable lies on a file system that is another user's process's (FUSE), which lets no others in.
    FileSystem,
    /// A filter on gotrace's system calls.
    Seccomp,
    /// Nothing that can be looked up.
    SecurityModule,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { own, target } => write!(
                f,
                "the process belongs to user {target}, and gotrace runs as user {own} without CAP_SYS_PTRACE: run gotrace \
                 as user {target} or root, or give it the capability (setcap, docker --cap-add SYS_PTRACE, \
                 securityContext.capabilities.add)"
            ),
            Self::Capability => f.write_str(
                "the process has capabilities that gotrace lacks: give gotrace CAP_SYS_PTRACE (setcap, docker \
                 --cap-add SYS_PTRACE, securityContext.capabilities.add); root has it, except in most containers",
            ),
            Self::NotDumpable => f.write_str(
                "the process is not dumpable, so that even its own user may not read it (prctl PR_SET_DUMPABLE, setuid, or \
                 file capabilities): give gotrace CAP_SYS_PTRACE",
            ),
            Self::UserNamespace => f.write_str(
                "the process is in another user namespace, where gotrace's capabilities do not apply: run gotrace \
                 on the host, or in the user namespace of the process",
            ),
            Self::PtraceScope(1) => f.write_str(
                "kernel.yama.ptrace_scope is 1, which lets only ancestors read a process: give gotrace \
                 CAP_SYS_PTRACE, set sysctl kernel.yama.ptrace_scope=0, or start the program with `gotrace exec`",
            ),
            Self::PtraceScope(3) => f.write_str(
                "kernel.yama.ptrace_scope is 3, which forbids reading any process: reboot with another value",
            ),
            Self::PtraceScope(n) => write!(
                f,
                "kernel.yama.ptrace_scope is {n}, which requires CAP_SYS_PTRACE to read a process: give it to gotrace, or \
                 set sysctl kernel.yama.ptrace_scope=0"
            ),
            Self::FileSystem => f.write_str(
                "its executable is on a FUSE file system that only its own user may access: mount it with -o allow_other, or \
                 run gotrace as that user",
            ),
            Self::Seccomp => f.write_str(
                "gotrace runs under a seccomp filter: use a profile that allows process_vm_readv(2) and /proc/PID/mem \
                 (docker --security-opt seccomp=unconfined)",
            ),
            Self::SecurityModule => f.write_str(
                "users, capabilities, namespaces, ptrace scope and seccomp all permit it: probably a security module \
                 (AppArmor, SELinux) denies it; see its log (dmesg, ausearch)",
            ),
        }
    }
}

/// What `/proc` says of both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    own_uid: u32,
    own_gid: u32,
    own_capabilities: u64,
    seccomp: bool,
    /// Effective, saved, real.
    target_uids: [u32; 3],
    target_gids: [u32; 3],
    target_capabilities: u64,
    dumpable: bool,
    same_user_namespace: bool,
    ptrace_scope: u8,
    descendant: bool,
}

/// Looks up what stands in the way.
pub(super) fn obstacles(pid: u32, access: Access) -> Vec<Obstacle> {
    facts(pid).map(|facts| judge(&facts, access)).unwrap_or_default()
}

fn judge(facts: &Facts, access: Access) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let capability_counts = facts.own_capabilities & SYS_PTRACE != 0 && facts.same_user_namespace;
    if !capability_counts {
        let same_user = facts.target_uids.iter().all(|uid| *uid == facts.own_uid)
            && facts.target_gids.iter().all(|gid| *gid == facts.own_gid);
        if !facts.same_user_namespace {
            found.push(Obstacle::UserNamespace);
        } else if !same_user {
            found.push(Obstacle::User { own: facts.own_uid, target: facts.target_uids[0] });
        } else if facts.target_capabilities & !facts.own_capabilities != 0 {
            found.push(Obstacle::Capability);
        } else if !facts.dumpable {
            found.push(Obstacle::NotDumpable);
        }
    }
    if access == Access::Memory {
        let passes = match facts.ptrace_scope {
            0 => true,
            1 => capability_counts || facts.descendant,
            2 => capability_counts,
            _ => false,
        };
        if !passes {
            found.push(Obstacle::PtraceScope(facts.ptrace_scope));
        }
    }
    if found.is_empty() {
        found.push(if facts.seccomp { Obstacle::Seccomp } else { Obstacle::SecurityModule });
    }
    found
}

fn facts(pid: u32) -> Option<Facts> {
    let own = Status::read("/proc/self/status")?;
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let target = Status::read(directory.join("status"))?;
    let [real, effective, saved, own_fs] =
        [0, 1, 2, 3].map(|n| move |s: &Status, key: &str| s.number(key, n));
    let ids = |key| Some([effective(&target, key)?, saved(&target, key)?, real(&target, key)?]);
    let target_uids = ids("Uid")?;
    Some(Facts {
        own_uid: own_fs(&own, "Uid")?,
        own_gid: own_fs(&own, "Gid")?,
        own_capabilities: own.mask("CapEff")?,
        seccomp: own.number("Seccomp", 0) == Some(2),
        target_uids,
        target_gids: ids("Gid")?,
        target_capabilities: target.mask("CapPrm")?,
        // What is in the directory is root's where the process is not dumpable (fs/proc/base.c,
        // task_dump_owner).
        dumpable: fs::metadata(directory.join("status")).map_or(true, |m| m.uid() == target_uids[0]),
        same_user_namespace: same_user_namespace(&directory),
        ptrace_scope: fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
            .ok()
            .and_then(|v| v.trim().parse().ok())
            .unwrap_or(0),
        descendant: descends_from(pid, std::process::id()),
    })
}

/// By name where it may be read, else by what the namespaces map, which everyone may read.
fn same_user_namespace(directory: &Path) -> bool {
    let name = |directory: &Path| fs::read_link(directory.join("ns/user")).ok();
    let map = |directory: &Path| fs::read(directory.join("uid_map")).ok();
    let own = Path::new("/proc/self");
    match (name(own), name(directory)) {
        (Some(own), Some(target)) => own == target,
        _ => map(own) == map(directory),
    }
}

/// Whether `pid` has `ancestor` among its parents, or is it.
pub fn descends_from(mut pid: u32, ancestor: u32) -> bool {
    // Deeper trees exist only to confuse.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        let Some(parent) = parent_of(pid) else { return false };
        pid = parent;
    }
    false
}

/// Whether gotrace can name only processes of a PID namespace of its own.
pub(super) fn in_own_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() != INITIAL_PID_NAMESPACE)
}

/// `/proc/PID/status`.
struct Status(String);

impl Status {
    fn read(path: impl AsRef<Path>) -> Option<Self> {
        fs::read_to_string(path).ok().map(Self)
    }

    fn line(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|l| Some(l.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    fn number(&self, key: &str, n: usize) -> Option<u32> {
        self.line(key)?.split_whitespace().nth(n)?.parse().ok()
    }

    fn mask(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.line(key)?, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An unprivileged gotrace and an unprivileged process of the same user.
    fn plain() -> Facts {
        Facts {
            own_uid: 1000,
            own_gid: 1000,
            own_capabilities: 0,
            seccomp: false,
            target_uids: [1000; 3],
            target_gids: [1000; 3],
            target_capabilities: 0,
            dumpable: true,
            same_user_namespace: true,
            ptrace_scope: 0,
            descendant: false,
        }
    }

    #[test]
    fn each_obstacle_is_told_from_the_others() {
        let other_user = Obstacle::User { own: 1000, target: 33 };
        let all = u64::MAX >> 24;
        let cases: [(Facts, Access, &[Obstacle]); 13] = [
            (plain(), Access::Memory, &[Obstacle::SecurityModule]),
            (Facts { seccomp: true, ..plain() }, Access::Memory, &[Obstacle::Seccomp]),
            (Facts { target_uids: [33; 3], ..plain() }, Access::Look, &[other_user]),
            (
                Facts { target_uids: [1000, 1000, 33], ..plain() },
                Access::Look,
                &[Obstacle::User { own: 1000, target: 1000 }],
            ),
            (Facts { target_capabilities: 1, ..plain() }, Access::Look, &[Obstacle::Capability]),
            (Facts { dumpable: false, ..plain() }, Access::Look, &[Obstacle::NotDumpable]),
            (Facts { ptrace_scope: 1, ..plain() }, Access::Memory, &[Obstacle::PtraceScope(1)]),
            (Facts { ptrace_scope: 1, ..plain() }, Access::Look, &[Obstacle::SecurityModule]),
            (
                Facts { ptrace_scope: 1, descendant: true, ..plain() },
                Access::Memory,
                &[Obstacle::SecurityModule],
            ),
            (
                Facts { ptrace_scope: 2, target_uids: [33; 3], ..plain() },
                Access::Memory,
                &[other_user, Obstacle::PtraceScope(2)],
            ),
            // The capability overrides all but scope 3 and namespaces.
            (
                Facts {
                    own_capabilities: all,
                    target_uids: [33; 3],
                    dumpable: false,
                    ptrace_scope: 2,
                    ..plain()
                },
                Access::Memory,
                &[Obstacle::SecurityModule],
            ),
            (
                Facts { own_capabilities: all, ptrace_scope: 3, ..plain() },
                Access::Memory,
                &[Obstacle::PtraceScope(3)],
            ),
            (
                Facts { own_capabilities: all, same_user_namespace: false, ..plain() },
                Access::Memory,
                &[Obstacle::UserNamespace],
            ),
        ];
        for (facts, access, expected) in cases {
            assert_eq!(judge(&facts, access), expected, "{facts:?} {access:?}");
        }
    }

    #[test]
    fn this_process_is_looked_up() {
        let facts = facts(std::process::id()).expect("it may look at itself");
        assert_eq!(facts.own_uid, facts.target_uids[0]);
        assert!(facts.same_user_namespace && facts.descendant);
        assert!(facts.dumpable);
    }

    #[test]
    fn every_obstacle_says_what_to_do() {
        for obstacle in [
            Obstacle::User { own: 1, target: 2 },
            Obstacle::Capability,
            Obstacle::NotDumpable,
            Obstacle::UserNamespace,
            Obstacle::PtraceScope(1),
            Obstacle::PtraceScope(2),
            Obstacle::PtraceScope(3),
            Obstacle::Seccomp,
            Obstacle::SecurityModule,
        ] {
            assert!(obstacle.to_string().contains(": "), "{obstacle}");
        }
    }
}
